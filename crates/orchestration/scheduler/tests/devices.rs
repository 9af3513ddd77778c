//! Pods and their claims on devices: who waits, who is woken, what is written, and what is given back.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use dhow_scheduler::{Engine, Outcome, PodKey};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use serde_json::{Value, json};

fn key(name: &str) -> PodKey {
    ("default".to_owned(), name.to_owned())
}

fn pod(name: &str, claim: &str, status: Value) -> Arc<Pod> {
    let pod = json!({"metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"containers": [{"name": "c"}], "resourceClaims": [{"name": "own", "resourceClaimName": claim}]},
        "status": status});
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn claim(name: &str, version: u64, status: Value) -> Arc<ResourceClaim> {
    let exactly = json!({"deviceClassName": "any", "allocationMode": "ExactCount", "count": 1});
    let claim = json!({"metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": version.to_string()},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": exactly}]}}, "status": status});
    Arc::new(serde_json::from_value(claim).unwrap())
}

fn slice(engine: &Engine, node: &str, devices: &[&str]) {
    let devices: Vec<Value> = devices.iter().map(|name| json!({"name": name})).collect();
    let slice = json!({"metadata": {"name": node}, "spec": {"driver": "x.io", "nodeName": node, "devices": devices,
        "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}}});
    engine.slice_changed(node, Some(Arc::new(serde_json::from_value(slice).unwrap())));
}

fn engine(nodes: &[&str]) -> Engine {
    let engine = Engine::new("default-scheduler");
    for name in nodes {
        let node = json!({"metadata": {"name": name},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
        engine.node_changed(Arc::new(serde_json::from_value(node).unwrap()));
    }
    engine
}

fn with_class(engine: &Engine) {
    let class = json!({"metadata": {"name": "any"}, "spec": {}});
    engine.device_class_changed("any", Some(Arc::new(serde_json::from_value(class).unwrap())));
}

/// What is decided next, of the pod of this name.
fn next(engine: &Engine, name: &str) -> Outcome {
    let decided = engine.next().unwrap();
    let [(pod, _, outcome)] = decided.as_slice() else { panic!("{decided:?}") };
    assert_eq!(*pod, key(name));
    outcome.clone()
}

fn reason(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Wait(why) => why.to_string(),
        other => panic!("{other:?}"),
    }
}

fn bind(node: &str) -> Outcome {
    Outcome::Bind { node: node.to_owned() }
}

/// The claim as the API has it once it was written for these pods.
fn written(engine: &Engine, pod: &str, version: u64, pods: &[&str]) -> Arc<ResourceClaim> {
    let reservations = engine.reservations(&key(pod));
    let [one] = reservations.as_slice() else { panic!("{reservations:?}") };
    let by: Vec<Value> = pods.iter().map(|name| json!({"resource": "pods", "name": name, "uid": name})).collect();
    let allocation = serde_json::to_value(one.allocation.as_deref().unwrap()).unwrap();
    claim(&one.claim.1, version, json!({"allocation": allocation, "reservedFor": by}))
}

#[test]
fn a_pod_is_woken_by_what_it_waits_for() {
    let engine = engine(&["n"]);
    engine.pod_changed(key("p"), &pod("p", "c", Value::Null));
    assert!(reason(&next(&engine, "p")).contains("resourceclaim \"c\" not found"));
    engine.device_claim_changed(&key("c"), Some(claim("c", 1, Value::Null)));
    assert!(reason(&next(&engine, "p")).contains("request r: device class any does not exist"));
    with_class(&engine);
    let why = reason(&next(&engine, "p"));
    assert!(why.starts_with("0/1 nodes are available: 1 cannot allocate all claims."), "{why}");
    assert!(why.contains("Preemption is not helpful for scheduling"), "{why}");
    assert!(
        why.ends_with("It can run once a node has enough free devices for its claim (c), or the claim asks for less."),
        "{why}"
    );
    assert!(engine.next().is_none(), "tried again though nothing changed");
    slice(&engine, "n", &["d"]);
    assert_eq!(next(&engine, "p"), bind("n"));
    let reservations = engine.reservations(&key("p"));
    assert_eq!((reservations.len(), reservations[0].uid.as_deref()), (1, Some("c")));
}

/// Pods `a` and `b` with a claim each, and one device, which `a` gets.
fn two_pods_and_a_device() -> Engine {
    let engine = engine(&["n"]);
    with_class(&engine);
    slice(&engine, "n", &["d"]);
    for name in ["a", "b"] {
        engine.device_claim_changed(&key(name), Some(claim(name, 1, Value::Null)));
        engine.pod_changed(key(name), &pod(name, name, Value::Null));
    }
    assert_eq!(next(&engine, "a"), bind("n"));
    engine
}

#[test]
fn a_device_is_handed_on_when_its_claim_is_free() {
    let engine = two_pods_and_a_device();
    assert!(reason(&next(&engine, "b")).contains("cannot allocate all claims"));
    let allocated = written(&engine, "a", 2, &["a"]);
    engine.device_claim_changed(&key("a"), Some(allocated));
    assert!(engine.next().is_none(), "a claim that got its devices helps nobody");
    engine.device_claim_changed(&key("a"), Some(claim("a", 3, json!({}))));
    assert_eq!(next(&engine, "b"), bind("n"));
}

#[test]
fn what_could_not_be_written_is_free_again() {
    let engine = two_pods_and_a_device();
    assert!(matches!(next(&engine, "b"), Outcome::Wait(_)));
    engine.bind_failed(&key("a"));
    assert_eq!(next(&engine, "b"), bind("n"));
    // What was heard of late does not undo what was written.
    let allocated = written(&engine, "b", 5, &["b"]);
    engine.device_claim_written(&key("b"), ResourceClaim::clone(&allocated));
    engine.device_claim_changed(&key("b"), Some(claim("b", 4, json!({}))));
    engine.pod_removed(&key("b"));
    engine.pod_changed(key("late"), &pod("late", "a", Value::Null));
    let decided = engine.next().unwrap();
    assert!(reason(&decided[0].2).contains("cannot allocate all claims"), "{decided:?}");
}

#[test]
fn pods_share_a_claim_where_its_devices_are() {
    let engine = engine(&["n", "m"]);
    with_class(&engine);
    slice(&engine, "m", &["d"]);
    engine.device_claim_changed(&key("c"), Some(claim("c", 1, Value::Null)));
    for name in ["a", "b"] {
        engine.pod_changed(key(name), &pod(name, "c", Value::Null));
    }
    assert_eq!(next(&engine, "a"), bind("m"));
    assert!(reason(&next(&engine, "b")).contains("resource claim default/c is in the process of being allocated"));
    let allocated = written(&engine, "a", 2, &["a"]);
    engine.device_claim_changed(&key("c"), Some(allocated));
    assert_eq!(next(&engine, "b"), bind("m"));
    let reservations = engine.reservations(&key("b"));
    assert_eq!((reservations.len(), &reservations[0].allocation), (1, &None));
}

#[test]
fn devices_that_nobody_uses_and_the_pod_cannot_get_at_are_freed() {
    let engine = engine(&["n"]);
    with_class(&engine);
    slice(&engine, "n", &["d"]);
    let elsewhere = json!({"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["gone"]}]}]});
    let status = json!({"allocation": {"nodeSelector": elsewhere}});
    engine.device_claim_changed(&key("c"), Some(claim("c", 1, status.clone())));
    engine.pod_changed(key("p"), &pod("p", "c", Value::Null));
    assert!(reason(&next(&engine, "p")).contains("resourceclaim not available on the node"));
    assert_eq!(engine.take_idle_claim(&key("p")).unwrap().0, key("c"));
    let mut used = status;
    used["reservedFor"] = json!([{"resource": "pods", "name": "o", "uid": "o"}]);
    engine.device_claim_changed(&key("c"), Some(claim("c", 2, used)));
    assert!(matches!(next(&engine, "p"), Outcome::Wait(_)));
    assert!(engine.take_idle_claim(&key("p")).is_none(), "somebody else uses it");
}

#[test]
fn a_claim_by_template_is_awaited() {
    let engine = engine(&["n"]);
    with_class(&engine);
    slice(&engine, "n", &["d"]);
    let by_template = |status: Value| -> Arc<Pod> {
        let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "p"},
            "spec": {"containers": [{"name": "c"}], "resourceClaims": [{"name": "own", "resourceClaimTemplateName": "t"}]},
            "status": status});
        Arc::new(serde_json::from_value(pod).unwrap())
    };
    engine.pod_changed(key("p"), &by_template(Value::Null));
    assert!(reason(&next(&engine, "p")).contains("pod \"default/p\": ResourceClaim not created yet"));
    let mut own = ResourceClaim::clone(&claim("p-own-x", 1, Value::Null));
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p", "controller": true});
    own.metadata.owner_references = Some(vec![serde_json::from_value(owner).unwrap()]);
    engine.device_claim_changed(&key("p-own-x"), Some(Arc::new(own)));
    let made = json!({"resourceClaimStatuses": [{"name": "own", "resourceClaimName": "p-own-x"}]});
    engine.pod_changed(key("p"), &by_template(made));
    assert_eq!(next(&engine, "p"), bind("n"));
}
