//! Random clusters against an oracle that knows nothing of snapshots: it adds everything up again for every node.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use dhow_scheduler::{Decision, Snapshot, place};
use k8s_openapi::api::core::v1::{Node, Pod};
use proptest::prelude::*;
use serde_json::json;

#[derive(Debug, Clone)]
struct PlainNode {
    cpu: i64,
    memory: i64,
    pods: i64,
    gpus: i64,
    zone: u8,
    tainted: bool,
    cordoned: bool,
}

#[derive(Debug, Clone)]
struct PlainPod {
    cpu: i64,
    memory: i64,
    gpus: i64,
    port: Option<u8>,
    zone: Option<u8>,
    /// Required affinity: any of these zones.
    zones: Option<Vec<u8>>,
    tolerates: bool,
    leaves: bool,
}

fn nodes() -> impl Strategy<Value = Vec<PlainNode>> {
    let node = (1..8i64, 1..8i64, 1..6i64, 0..3i64, 0..3u8, prop::bool::weighted(0.2), prop::bool::weighted(0.1));
    let node = node.prop_map(|(cpu, memory, pods, gpus, zone, tainted, cordoned)| PlainNode {
        cpu: cpu * 500,
        memory,
        pods,
        gpus,
        zone,
        tainted,
        cordoned,
    });
    prop::collection::vec(node, 0..6)
}

fn pods() -> impl Strategy<Value = Vec<PlainPod>> {
    let pod = (
        0..12i64,
        0..4i64,
        prop::bool::weighted(0.2),
        prop::option::weighted(0.2, 0..2u8),
        prop::option::weighted(0.2, 0..3u8),
        prop::option::weighted(0.2, prop::collection::vec(0..3u8, 1..3)),
        any::<bool>(),
        prop::bool::weighted(0.2),
    );
    let pod = pod.prop_map(|(cpu, memory, gpu, port, zone, zones, tolerates, leaves)| PlainPod {
        cpu: cpu * 125,
        memory,
        gpus: i64::from(gpu),
        port,
        zone,
        zones,
        tolerates,
        leaves,
    });
    prop::collection::vec(pod, 1..25)
}

fn real_node(i: usize, n: &PlainNode) -> Arc<Node> {
    let taints = if n.tainted { json!([{"key": "t", "effect": "NoSchedule"}]) } else { json!([]) };
    let node = json!({
        "metadata": {"name": format!("n{i}"), "labels": {"zone": n.zone.to_string()}},
        "spec": {"unschedulable": n.cordoned, "taints": taints},
        "status": {"allocatable": {
            "cpu": format!("{}m", n.cpu), "memory": format!("{}Gi", n.memory), "pods": n.pods.to_string(),
            "example.com/gpu": n.gpus.to_string(),
        }},
    });
    Arc::new(serde_json::from_value(node).unwrap())
}

fn real_pod(i: usize, p: &PlainPod) -> Pod {
    let mut requests = json!({"cpu": format!("{}m", p.cpu), "memory": format!("{}Mi", p.memory * 1024)});
    if p.gpus > 0 {
        requests["example.com/gpu"] = json!(p.gpus.to_string());
    }
    let ports: Vec<_> =
        p.port.iter().map(|port| json!({"containerPort": 80, "hostPort": 8000 + i32::from(*port)})).collect();
    let mut spec = json!({"containers": [{"name": "c", "resources": {"requests": requests}, "ports": ports}]});
    if let Some(zone) = p.zone {
        spec["nodeSelector"] = json!({"zone": zone.to_string()});
    }
    if let Some(zones) = &p.zones {
        let values: Vec<String> = zones.iter().map(u8::to_string).collect();
        spec["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "In", "values": values}]},
        ]}}});
    }
    if p.tolerates {
        spec["tolerations"] = json!([{"key": "t", "operator": "Exists"}]);
    }
    serde_json::from_value(json!({"metadata": {"name": format!("p{i}"), "namespace": "d"}, "spec": spec})).unwrap()
}

/// Whether `pod` fits beside those that are there.
fn fits(node: &PlainNode, there: &[&PlainPod], pod: &PlainPod) -> bool {
    let sum = |f: fn(&PlainPod) -> i64| there.iter().map(|p| f(p)).sum::<i64>();
    !node.cordoned
        && (!node.tainted || pod.tolerates)
        && pod.zone.is_none_or(|z| z == node.zone)
        && pod.zones.as_ref().is_none_or(|z| z.contains(&node.zone))
        && pod.port.is_none_or(|port| there.iter().all(|p| p.port != Some(port)))
        && (there.len() as i64) < node.pods
        && (pod.cpu == 0 || sum(|p| p.cpu) + pod.cpu <= node.cpu)
        && (pod.memory == 0 || sum(|p| p.memory) + pod.memory <= node.memory)
        && (pod.gpus == 0 || sum(|p| p.gpus) + pod.gpus <= node.gpus)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn places_exactly_when_some_node_fits(nodes in nodes(), pods in pods()) {
        let mut snapshot = Snapshot::new();
        for (i, node) in nodes.iter().enumerate() {
            snapshot.set_node(real_node(i, node));
        }
        let mut placed: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, pod) in pods.iter().enumerate() {
            let beside = |n: usize| -> Vec<&PlainPod> {
                placed.get(&n).into_iter().flatten().map(|p| &pods[*p]).collect()
            };
            let feasible: Vec<String> =
                (0..nodes.len()).filter(|n| fits(&nodes[*n], &beside(*n), pod)).map(|n| format!("n{n}")).collect();
            let real = real_pod(i, pod);
            let mut before = snapshot.clone();
            match place(&mut snapshot, &real) {
                Decision::Place { node } => {
                    prop_assert!(feasible.contains(&node), "pod {i} on {node}, feasible {feasible:?}");
                    snapshot.place_pod(("d".into(), format!("p{i}")), &real, &node);
                    placed.entry(node[1..].parse().unwrap()).or_default().push(i);
                }
                Decision::Unschedulable(why) => {
                    prop_assert!(feasible.is_empty(), "pod {i}: {why}, but {feasible:?} would do");
                    prop_assert_eq!(why.nodes, nodes.len());
                }
            }
            // A decision depends on nothing but its input.
            prop_assert_eq!(place(&mut before.clone(), &real), place(&mut before, &real));
            if pod.leaves {
                snapshot.remove_pod(&("d".into(), format!("p{i}")));
                placed.values_mut().for_each(|on| on.retain(|p| *p != i));
            }
        }
        // The running sums are what adding up gives.
        for (name, info, _) in snapshot.nodes() {
            let there: Vec<_> = placed.get(&name[1..].parse::<usize>().unwrap()).into_iter().flatten().map(|p| &pods[*p]).collect();
            prop_assert_eq!(info.used.cpu, there.iter().map(|p| p.cpu).sum::<i64>());
            prop_assert_eq!(info.used.memory, there.iter().map(|p| p.memory << 30).sum::<i64>());
            prop_assert_eq!(info.pods, there.len() as i64);
        }
    }
}
