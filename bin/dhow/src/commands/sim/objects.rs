//! The objects of a simulation.

use anyhow::Result;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

use super::LABEL;
use super::entry::{Entry, Kind, Size};
use crate::cli::SimArgs;

const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";

pub fn node_name(number: usize) -> String {
    format!("sim-{number}")
}

pub fn node(number: usize, args: &SimArgs, has: &Size) -> Result<Node> {
    let name = node_name(number);
    let mut size = json!({"cpu": format!("{}m", has.cpu), "memory": has.memory.to_string(),
        "pods": args.node_pods.to_string()});
    if has.gpus > 0 {
        size["nvidia.com/gpu"] = json!(has.gpus.to_string());
    }
    let node = json!({
        "metadata": {"name": name, "labels": {
            LABEL: "true", HOST: name, ZONE: format!("zone-{}", number % args.zones.max(1)),
        }},
        "status": {"allocatable": size, "capacity": size, "conditions": [{
            "type": "Ready", "status": "True", "reason": "Simulated", "message": "made by dhow sim",
        }]},
    });
    Ok(serde_json::from_value(node)?)
}

/// The class that gives pods a priority.
pub fn class_name(priority: i32) -> String {
    format!("dhow-sim-{}{}", if priority < 0 { "minus-" } else { "" }, priority.unsigned_abs())
}

fn requests(size: &Size) -> Value {
    let mut requests = json!({"cpu": format!("{}m", size.cpu), "memory": size.memory.to_string()});
    if size.gpus > 0 {
        requests["nvidia.com/gpu"] = json!(size.gpus.to_string());
    }
    requests
}

/// `through_api`: the priority comes from a class.
pub fn pod(entry: &Entry, namespace: &str, through_api: bool) -> Result<Pod> {
    let mut resources = json!({"requests": requests(&entry.size)});
    if entry.size.gpus > 0 {
        // Extended resources are limits.
        resources["limits"] = json!({"nvidia.com/gpu": entry.size.gpus.to_string()});
    }
    let mut spec = json!({
        "containers": [{"name": "sim", "image": "simulated", "resources": resources}],
        "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
    });
    match (entry.priority, through_api) {
        (0, _) => {}
        (priority, true) => spec["priorityClassName"] = json!(class_name(priority)),
        (priority, false) => spec["priority"] = json!(priority),
    }
    let selector = json!({"matchLabels": {LABEL: "true"}});
    let spread = |key: &str, skew: i64, what: &str| json!({"maxSkew": skew, "topologyKey": key, "whenUnsatisfiable": what, "labelSelector": selector});
    let node_terms =
        |kind: &str, key: &str, values: Value| json!([{kind: [{"key": key, "operator": "In", "values": values}]}]);
    match entry.kind {
        Kind::Plain => {}
        Kind::NodeAffinity => {
            let terms = node_terms("matchExpressions", ZONE, json!(["zone-0", "zone-1"]));
            spec["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] = terms;
        }
        Kind::Node(number) => {
            let terms = node_terms("matchFields", "metadata.name", json!([node_name(number as usize)]));
            spec["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] = terms;
        }
        Kind::Affinity => {
            spec["affinity"]["podAffinity"][REQUIRED] = json!([{"topologyKey": ZONE, "labelSelector": selector}]);
        }
        Kind::AntiAffinity => {
            spec["affinity"]["podAntiAffinity"][REQUIRED] = json!([{"topologyKey": HOST, "labelSelector": selector}]);
        }
        Kind::Spread => spec["topologySpreadConstraints"] = json!([spread(ZONE, 5, "DoNotSchedule")]),
        Kind::PreferredSpread => {
            let both = [spread(ZONE, 5, "ScheduleAnyway"), spread(HOST, 3, "ScheduleAnyway")];
            spec["topologySpreadConstraints"] = json!(both);
        }
        Kind::Claim(number) => {
            let claim = json!({"claimName": volume_name(number)});
            spec["volumes"] = json!([{"name": "data", "persistentVolumeClaim": claim}]);
        }
    }
    let metadata = json!({"name": entry.name, "namespace": namespace, "labels": {LABEL: "true"}});
    Ok(serde_json::from_value(json!({"metadata": metadata, "spec": spec}))?)
}

fn volume_name(number: u32) -> String {
    format!("sim-volume-{number}")
}

/// A volume that every node of a zone can use, and the claim that it is bound to.
pub fn volume(number: u32, namespace: &str, zones: usize) -> Result<(PersistentVolume, PersistentVolumeClaim)> {
    let name = volume_name(number);
    let zone = format!("zone-{}", number as usize % zones.max(1));
    let terms = json!([{"matchExpressions": [{"key": ZONE, "operator": "In", "values": [zone]}]}]);
    let volume = json!({
        "metadata": {"name": name, "labels": {LABEL: "true"}},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain", "csi": {"driver": "sim.dhow.io", "volumeHandle": name},
            "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "name": name, "namespace": namespace},
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
        },
    });
    let claim = json!({
        "metadata": {"name": name, "namespace": namespace, "labels": {LABEL: "true"},
            "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": name,
            "resources": {"requests": {"storage": "1Gi"}}},
    });
    Ok((serde_json::from_value(volume)?, serde_json::from_value(claim)?))
}
