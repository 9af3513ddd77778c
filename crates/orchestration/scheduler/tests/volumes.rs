//! Pods and their claims: where they can go, what is written first, and when they are bound.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use dhow_scheduler::volumes::Step;
use dhow_scheduler::{Engine, Outcome, PodKey};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

fn key(name: &str) -> PodKey {
    ("default".to_owned(), name.to_owned())
}

fn node(name: &str, room: &str) -> Arc<Node> {
    let node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name},
            "annotations": {"dhow.io/local-volumes-capacity": room}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
    });
    Arc::new(serde_json::from_value(node).unwrap())
}

fn pod(name: &str, claim: &str) -> Pod {
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]);
    let pod = json!({"metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"containers": [{"name": "c"}], "volumes": volumes}});
    serde_json::from_value(pod).unwrap()
}

struct Claim<'a> {
    name: &'a str,
    size: &'a str,
    class: &'a str,
    node: Option<&'a str>,
    volume: Option<&'a str>,
    mode: &'a str,
}

const CLAIM: Claim<'_> =
    Claim { name: "c", size: "6Gi", class: "local", node: None, volume: None, mode: "ReadWriteOnce" };

fn claim(wish: &Claim<'_>) -> Option<Arc<PersistentVolumeClaim>> {
    let mut claim = json!({"metadata": {"name": wish.name, "namespace": "default", "uid": wish.name, "annotations": {}},
        "spec": {"storageClassName": wish.class, "accessModes": [wish.mode], "volumeName": wish.volume,
            "resources": {"requests": {"storage": wish.size}}}});
    if let Some(node) = wish.node {
        claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"] = json!(node);
    }
    if wish.volume.is_some() {
        claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = json!("yes");
    }
    Some(Arc::new(serde_json::from_value(claim).unwrap()))
}

fn volume(name: &str, node: &str, claim: Option<&str>) -> Option<Arc<PersistentVolume>> {
    let terms = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]);
    let volume = json!({
        "metadata": {"name": name, "labels": {"dhow.io/node": node}},
        "spec": {"capacity": {"storage": "6Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
            "claimRef": claim.map(|claim| json!({"name": claim, "namespace": "default", "uid": claim})),
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}},
        "status": {"phase": if claim.is_some() { "Bound" } else { "Available" }},
    });
    Some(Arc::new(serde_json::from_value(volume).unwrap()))
}

fn engine(nodes: &[Arc<Node>], provisioner: &str) -> Engine {
    let engine = Engine::new("default-scheduler");
    for node in nodes {
        engine.node_changed(Arc::clone(node));
    }
    let class: Value = json!({"metadata": {"name": "local"}, "provisioner": provisioner,
        "volumeBindingMode": "WaitForFirstConsumer"});
    let class: StorageClass = serde_json::from_value(class).unwrap();
    engine.class_changed("local", Some(Arc::new(class)));
    engine
}

fn set(engine: &Engine, wish: &Claim<'_>) -> Vec<PodKey> {
    engine.claim_changed(key(wish.name), claim(wish));
    awake(engine)
}

/// Everything that would be tried now.
fn awake(engine: &Engine) -> Vec<PodKey> {
    std::iter::from_fn(|| engine.pop().map(|(key, _)| key)).collect()
}

fn set_volume(engine: &Engine, name: &str, volume: Option<Arc<PersistentVolume>>) -> Vec<PodKey> {
    engine.volume_changed(name, volume);
    awake(engine)
}

fn why(outcome: Outcome) -> String {
    match outcome {
        Outcome::Wait(why) => why.plain(),
        other => panic!("{other:?}"),
    }
}

fn provided(outcome: Outcome) -> (String, Vec<Step>) {
    match outcome {
        Outcome::Provide { node, steps } => (node, steps),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pod_waits_for_its_claim_and_the_claim_for_its_node() {
    let engine = engine(&[node("n1", "10Gi")], "dhow.io/local");
    let one = pod("p", "c");
    assert_eq!(why(engine.decide(&key("p"), &one)), "0/1 nodes are available: persistentvolumeclaim \"c\" not found.");
    assert_eq!(set(&engine, &CLAIM), [key("p")], "the claim wakes it");
    let (chosen, steps) = provided(engine.decide(&key("p"), &one));
    assert_eq!((chosen.as_str(), steps), ("n1", vec![Step::Select { claim: key("c"), node: "n1".into() }]));
    assert_eq!(set(&engine, &Claim { node: Some("n1"), ..CLAIM }), [key("p")]);
    assert_eq!(engine.decide(&key("p"), &one), Outcome::Ignore, "not bound yet");
    // The claim is seen before its volume is.
    assert_eq!(set(&engine, &Claim { node: Some("n1"), volume: Some("pvc-c"), ..CLAIM }), [key("p")]);
    assert_eq!(engine.decide(&key("p"), &one), Outcome::Ignore);
    assert_eq!(set_volume(&engine, "pvc-c", volume("pvc-c", "n1", Some("c"))), [key("p")]);
    assert_eq!(engine.decide(&key("p"), &one), Outcome::Bind { node: "n1".into() });
    // Another pod with the claim follows it.
    assert_eq!(engine.decide(&key("q"), &pod("q", "c")), Outcome::Bind { node: "n1".into() });
}

#[test]
fn a_claim_that_could_not_be_provided_goes_elsewhere() {
    let engine = engine(&[node("n1", "10Gi")], "dhow.io/local");
    set(&engine, &CLAIM);
    let one = pod("p", "c");
    assert_eq!(provided(engine.decide(&key("p"), &one)).0, "n1");
    assert_eq!(set(&engine, &Claim { node: Some("n1"), ..CLAIM }), [key("p")]);
    assert_eq!(engine.decide(&key("p"), &one), Outcome::Ignore, "not made yet");
    engine.node_changed(node("n1", "1Gi"));
    engine.node_changed(node("n2", "10Gi"));
    awake(&engine);
    assert_eq!(set(&engine, &CLAIM), [key("p")], "the annotation is taken back");
    let (chosen, steps) = provided(engine.decide(&key("p"), &one));
    assert_eq!((chosen.as_str(), steps), ("n2", vec![Step::Select { claim: key("c"), node: "n2".into() }]));
}

#[test]
fn a_node_promises_no_more_than_it_has() {
    let engine = engine(&[node("n1", "10Gi")], "dhow.io/local");
    set(&engine, &CLAIM);
    set(&engine, &Claim { name: "d", ..CLAIM });
    assert_eq!(provided(engine.decide(&key("p"), &pod("p", "c"))).0, "n1");
    let second = pod("q", "d");
    let full = "0/1 nodes are available: 1 node(s) did not have enough free storage.";
    assert_eq!(why(engine.decide(&key("q"), &second)), full, "what is assumed counts");
    set_volume(&engine, "pvc-c", volume("pvc-c", "n1", Some("c")));
    set(&engine, &Claim { node: Some("n1"), volume: Some("pvc-c"), ..CLAIM });
    assert_eq!(why(engine.decide(&key("q"), &second)), full, "what is made counts once");
    assert!(set_volume(&engine, "pvc-c", None).contains(&key("q")), "what is gone makes room");
    engine.claim_changed(key("c"), None);
    assert_eq!(provided(engine.decide(&key("q"), &second)).0, "n1");
}

#[test]
fn a_driver_that_tells_where_it_has_room_is_asked_for_volumes_there() {
    let engine = engine(&[node("n1", "0"), node("n2", "0")], "disks.example.com");
    let driver = |tells: bool| {
        let driver = json!({"metadata": {"name": "disks.example.com"}, "spec": {"storageCapacity": tells}});
        engine.driver_changed("disks.example.com", Some(Arc::new(serde_json::from_value(driver).unwrap())));
        awake(&engine)
    };
    let tells = |name: &str, class: &str, sizes: Value, topology: Value| {
        let mut capacity = json!({"metadata": {"name": name}, "storageClassName": class, "nodeTopology": topology});
        capacity.as_object_mut().unwrap().extend(sizes.as_object().unwrap().clone());
        engine.capacity_changed(key(name), Some(Arc::new(serde_json::from_value(capacity).unwrap())));
        awake(&engine)
    };
    let on = |node: &str| json!({"matchLabels": {"kubernetes.io/hostname": node}});
    set(&engine, &CLAIM);
    driver(true);
    let full = "0/2 nodes are available: 2 node(s) did not have enough free storage.";
    let asked = || why(engine.decide(&key("p"), &pod("p", "c")));
    assert_eq!(asked(), full, "nothing is said of any node");
    assert_eq!(tells("small", "local", json!({"capacity": "5Gi"}), on("n1")), [key("p")], "what is said wakes it");
    assert_eq!(asked(), full, "too little");
    tells("other", "fast", json!({"capacity": "50Gi"}), on("n1"));
    tells("pieces", "local", json!({"capacity": "50Gi", "maximumVolumeSize": "1Gi"}), on("n1"));
    tells("nowhere", "local", json!({"capacity": "50Gi"}), Value::Null);
    assert_eq!(asked(), full, "of another class, in small pieces, out of reach");
    let either = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n2"]}]});
    tells("far", "local", json!({"capacity": "6Gi"}), either);
    assert_eq!(provided(engine.decide(&key("p"), &pod("p", "c"))).0, "n2");
    engine.bind_failed(&key("p"));
    engine.capacity_changed(key("far"), None);
    tells("small", "local", json!({"capacity": "6Gi"}), on("n1"));
    assert_eq!(provided(engine.decide(&key("p"), &pod("p", "c"))).0, "n1");
    engine.bind_failed(&key("p"));
    engine.capacity_changed(key("small"), None);
    assert_eq!(asked(), full);
    assert_eq!(driver(false), [key("p")], "it no longer tells: any node may do");
    assert!(matches!(engine.decide(&key("p"), &pod("p", "c")), Outcome::Provide { .. }));
}

#[test]
fn a_free_volume_is_held_for_one_claim_only() {
    let engine = engine(&[node("n1", "0"), node("n2", "0")], "kubernetes.io/no-provisioner");
    set_volume(&engine, "v2", volume("v2", "n2", None));
    set(&engine, &CLAIM);
    set(&engine, &Claim { name: "d", ..CLAIM });
    let (chosen, steps) = provided(engine.decide(&key("p"), &pod("p", "c")));
    assert_eq!((chosen.as_str(), steps), ("n2", vec![Step::Hold { claim: key("c"), volume: "v2".into() }]));
    let none = "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind.";
    assert_eq!(why(engine.decide(&key("q"), &pod("q", "d"))), none);
    engine.bind_failed(&key("p"));
    assert_eq!(awake(&engine), [key("q")]);
    assert_eq!(provided(engine.decide(&key("q"), &pod("q", "d"))).0, "n2");
}

#[test]
fn says_why_a_claim_keeps_a_pod_from_a_node() {
    let engine = engine(&[node("n1", "10Gi")], "dhow.io/local");
    let asked = |claim: &str| why(engine.decide(&key(claim), &pod(claim, claim)));
    set(&engine, &Claim { name: "plain", class: "", ..CLAIM });
    assert_eq!(asked("plain"), "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.");
    set_volume(&engine, "far", volume("far", "n9", Some("far")));
    set(&engine, &Claim { name: "far", volume: Some("far"), ..CLAIM });
    assert_eq!(asked("far"), "0/1 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity.");
    set(&engine, &Claim { name: "lost", volume: Some("nothing"), ..CLAIM });
    let lost = "0/1 nodes are available: 1 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s).";
    assert_eq!(asked("lost"), lost);
    set_volume(&engine, "v", volume("v", "n1", Some("alone")));
    set(&engine, &Claim { name: "alone", volume: Some("v"), mode: "ReadWriteOncePod", ..CLAIM });
    assert_eq!(engine.decide(&key("first"), &pod("first", "alone")), Outcome::Bind { node: "n1".into() });
    let alone = "0/1 nodes are available: 1 node has pod using PersistentVolumeClaim with the same name and \
                 ReadWriteOncePod access mode.";
    assert_eq!(asked("alone"), alone);
    engine.pod_removed(&key("first"));
    assert!(awake(&engine).contains(&key("alone")));
}
