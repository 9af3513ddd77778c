//! Nodes and rollouts played against the plan.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::placement::{Fit, fit, new_pod, target};
use super::plan::{Plan, Snapshot, plan};

fn set(strategy: Value, spec: Value) -> DaemonSet {
    let mut pod = json!({"containers": [{"name": "c"}]});
    for (key, value) in spec.as_object().unwrap() {
        pod[key] = value.clone();
    }
    serde_json::from_value(json!({
        "metadata": {"name": "agent", "namespace": "a", "uid": "d"},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}}, "updateStrategy": strategy,
            "template": {"metadata": {"labels": {"app": "agent"}}, "spec": pod}
        }
    }))
    .unwrap()
}

fn node(name: &str, spec: Value) -> Arc<Node> {
    Arc::new(
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"disk": "ssd"}}, "spec": spec})).unwrap(),
    )
}

fn nodes(count: usize) -> Vec<Arc<Node>> {
    (0..count).map(|index| node(&format!("n{index}"), json!({}))).collect()
}

fn pod(set: &DaemonSet, node: &str, hash: &str, ready: bool) -> Arc<Pod> {
    let mut pod = new_pod(set, node, hash);
    pod.metadata.name = Some(format!("{node}-{hash}"));
    pod.metadata.uid = pod.metadata.name.clone();
    pod.spec.as_mut().unwrap().node_name = Some(node.into());
    let state = if ready { "True" } else { "False" };
    pod.status = serde_json::from_value(json!({
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": state, "lastTransitionTime": "2026-01-01T00:00:00Z"}]
    }))
    .unwrap();
    Arc::new(pod)
}

fn with(pod: &Arc<Pod>, edit: impl FnOnce(&mut Pod)) -> Arc<Pod> {
    let mut pod = Pod::clone(pod);
    edit(&mut pod);
    Arc::new(pod)
}

fn decide(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Plan {
    let now = "2026-01-01T00:01:00Z".parse().unwrap();
    plan(&Snapshot { set, nodes, pods, hash: "new", collisions: None, now })
}

fn deleted(plan: &Plan) -> Vec<&str> {
    plan.delete.iter().map(|pod| pod.metadata.name.as_deref().unwrap()).collect()
}

#[test]
fn nodes_fit_by_name_label_and_taint() {
    let plain = set(json!({}), json!({}));
    let both = |run, stay| Fit { run, stay };
    let taint = |key: &str, effect: &str| json!({"taints": [{"key": key, "effect": effect}]});
    assert_eq!(fit(&plain, &node("a", json!({}))), both(true, true));
    assert_eq!(fit(&plain, &node("a", taint("mine", "NoSchedule"))), both(false, true));
    assert_eq!(fit(&plain, &node("a", taint("mine", "NoExecute"))), both(false, false));
    assert_eq!(fit(&plain, &node("a", taint("node.kubernetes.io/unreachable", "NoExecute"))), both(true, true));
    assert_eq!(fit(&plain, &node("a", taint("node.kubernetes.io/unschedulable", "NoSchedule"))), both(true, true));
    let network = node("a", taint("node.kubernetes.io/network-unavailable", "NoSchedule"));
    assert_eq!(fit(&plain, &network), both(false, true));
    assert_eq!(fit(&set(json!({}), json!({"hostNetwork": true})), &network), both(true, true));
    assert_eq!(
        fit(&set(json!({}), json!({"nodeSelector": {"disk": "hdd"}})), &node("a", json!({}))),
        both(false, false)
    );
    assert_eq!(fit(&set(json!({}), json!({"nodeName": "b"})), &node("a", json!({}))), both(false, false));
}

#[test]
fn a_pod_is_meant_for_its_node_before_it_is_bound() {
    let pod = new_pod(&set(json!({}), json!({})), "n7", "new");
    assert_eq!(target(&pod), Some("n7"));
    assert_eq!(pod.metadata.labels.unwrap()["controller-revision-hash"], "new");
}

#[test]
fn every_node_has_one_pod_and_a_missing_node_none() {
    let set = set(json!({}), json!({}));
    let nodes = nodes(3);
    let twin = with(&pod(&set, "n0", "new", true), |pod| {
        pod.metadata.name = Some("twin".into());
        pod.metadata.creation_timestamp = serde_json::from_value(json!("2026-01-01T00:00:09Z")).unwrap();
    });
    let gone = with(&new_pod(&set, "gone", "new").into(), |pod| pod.metadata.name = Some("lost".into()));
    let plan = decide(&set, &nodes, &[pod(&set, "n0", "new", true), twin, pod(&set, "n1", "new", false), gone]);
    assert_eq!(plan.create, ["n2"]);
    assert_eq!(deleted(&plan), ["twin", "lost"]);
    let status = plan.status;
    assert_eq!((status.desired_number_scheduled, status.current_number_scheduled), (3, 2));
    assert_eq!((status.number_ready, status.number_unavailable, status.number_misscheduled), (1, Some(2), 1));
}

#[test]
fn an_ended_pod_is_replaced_once_it_is_gone() {
    let set = set(json!({}), json!({}));
    let failed = with(&pod(&set, "n0", "new", false), |pod| {
        pod.status.as_mut().unwrap().phase = Some("Failed".into());
    });
    let plan = decide(&set, &nodes(1), &[failed]);
    assert!(plan.create.is_empty() && plan.delete.is_empty());
    assert_eq!(plan.ended[0].0, "n0");
}

#[test]
fn an_update_keeps_within_max_unavailable_and_replaces_broken_ones_first() {
    let set = set(json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}}), json!({}));
    let nodes = nodes(4);
    let mut pods: Vec<_> = (0..4).map(|index| pod(&set, &format!("n{index}"), "old", true)).collect();
    assert_eq!(deleted(&decide(&set, &nodes, &pods)), ["n0-old", "n1-old"]);
    pods[3] = pod(&set, "n3", "old", false);
    pods[0] = pod(&set, "n0", "new", false);
    assert_eq!(deleted(&decide(&set, &nodes, &pods)), ["n3-old", "n1-old"], "one new pod is not up yet");
    pods[1] = with(&pods[1], |pod| {
        pod.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    });
    assert_eq!(deleted(&decide(&set, &nodes, &pods)), ["n3-old"]);
}

#[test]
fn with_surge_the_old_pod_goes_when_the_new_one_serves() {
    let set = set(json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}), json!({}));
    let nodes = nodes(2);
    let old: Vec<_> = (0..2).map(|index| pod(&set, &format!("n{index}"), "old", true)).collect();
    let plan = decide(&set, &nodes, &old);
    assert_eq!((plan.create.as_slice(), plan.delete.len()), (["n0".to_owned()].as_slice(), 0));
    let plan = decide(&set, &nodes, &[old[0].clone(), old[1].clone(), pod(&set, "n0", "new", false)]);
    assert!(plan.create.is_empty() && plan.delete.is_empty());
    let plan = decide(&set, &nodes, &[old[0].clone(), old[1].clone(), pod(&set, "n0", "new", true)]);
    assert_eq!(deleted(&plan), ["n0-old"]);
}

#[test]
fn on_delete_leaves_old_pods() {
    let set = set(json!({"type": "OnDelete"}), json!({}));
    let plan = decide(&set, &nodes(1), &[pod(&set, "n0", "old", true)]);
    assert!(plan.create.is_empty() && plan.delete.is_empty());
    assert_eq!((plan.status.number_available, plan.status.updated_number_scheduled), (Some(1), None));
}
