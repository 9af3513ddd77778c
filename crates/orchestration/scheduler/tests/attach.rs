//! Volumes that are attached to nodes: limits of drivers, zones, and disks that are not shared; by examples, and against an
//! oracle that counts everything again.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dhow_scheduler::{Engine, Outcome, PodKey};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass, VolumeAttachment};
use proptest::prelude::*;
use serde_json::{Value, json};

const DRIVER: &str = "disk.example.com";

fn key(name: &str) -> PodKey {
    ("default".to_owned(), name.to_owned())
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn node(name: &str, labels: Value) -> Arc<Node> {
    read(json!({"metadata": {"name": name, "labels": labels},
        "status": {"allocatable": {"cpu": "64", "memory": "64Gi", "pods": "110"}}}))
}

fn csi_node(name: &str, drivers: Value, migrated: &str) -> Arc<CSINode> {
    read(json!({"metadata": {"name": name, "annotations": {"storage.alpha.kubernetes.io/migrated-plugins": migrated}},
        "spec": {"drivers": drivers}}))
}

fn limited(name: &str, count: usize) -> Arc<CSINode> {
    csi_node(name, json!([{"name": DRIVER, "nodeID": name, "allocatable": {"count": count}}]), "")
}

fn volume(name: &str, labels: Value, claim: &str) -> Arc<PersistentVolume> {
    read(json!({"metadata": {"name": name, "labels": labels},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "csi": {"driver": DRIVER, "volumeHandle": name},
            "claimRef": {"name": claim, "namespace": "default", "uid": claim}},
        "status": {"phase": "Bound"}}))
}

fn claim(name: &str, volume: Option<&str>, mode: &str) -> Arc<PersistentVolumeClaim> {
    let mut claim = json!({"metadata": {"name": name, "namespace": "default", "uid": name, "annotations": {}},
        "spec": {"storageClassName": "later", "accessModes": [mode], "volumeName": volume,
            "resources": {"requests": {"storage": "1Gi"}}}});
    if volume.is_some() {
        claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = json!("yes");
    }
    read(claim)
}

fn with_volumes(name: &str, volumes: Value, node: Option<&str>) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"containers": [{"name": "c"}], "volumes": volumes, "nodeName": node}}))
    .unwrap()
}

fn using(name: &str, claims: &[&str], node: Option<&str>) -> Pod {
    let volume = |claim: &&str| json!({"name": format!("v-{claim}"), "persistentVolumeClaim": {"claimName": claim}});
    with_volumes(name, claims.iter().map(volume).collect(), node)
}

fn bound(engine: &Engine, name: &str, labels: Value, mode: &str) {
    let of = format!("pv-{name}");
    engine.volume_changed(&of, Some(volume(&of, labels, name)));
    engine.claim_changed(key(name), Some(claim(name, Some(&of), mode)));
}

fn class(engine: &Engine, provisioner: &str) {
    let class = read::<StorageClass>(json!({"metadata": {"name": "later"}, "provisioner": provisioner,
        "volumeBindingMode": "WaitForFirstConsumer"}));
    engine.class_changed("later", Some(class));
}

fn decide(engine: &Engine, pod: &Pod) -> Outcome {
    engine.decide(&key(pod.metadata.name.as_deref().unwrap()), pod)
}

fn refusal(outcome: Outcome) -> String {
    match outcome {
        Outcome::Wait(why) => why.plain(),
        other => panic!("{other:?}"),
    }
}

fn awake(engine: &Engine) -> Vec<PodKey> {
    std::iter::from_fn(|| engine.pop().map(|(key, _)| key)).collect()
}

const FULL: &str = "0/1 nodes are available: 1 node(s) exceed max volume count.";

#[test]
fn a_node_has_no_more_volumes_than_its_driver_can_attach() {
    let engine = Engine::new("default-scheduler");
    engine.node_changed(node("n1", json!({})));
    engine.csi_node_changed("n1", Some(limited("n1", 2)));
    class(&engine, DRIVER);
    for name in ["a", "b", "c"] {
        bound(&engine, name, json!({}), "ReadWriteMany");
    }
    engine.pod_changed(key("one"), &Arc::new(using("one", &["a", "b"], Some("n1"))));
    awake(&engine);
    assert_eq!(refusal(decide(&engine, &using("two", &["c"], None))), FULL);
    // What is there already takes no further place.
    assert_eq!(decide(&engine, &using("same", &["a"], None)), Outcome::Bind { node: "n1".into() });
    // A claim whose volume is yet to be made counts too.
    engine.claim_changed(key("new"), Some(claim("new", None, "ReadWriteOnce")));
    assert_eq!(refusal(decide(&engine, &using("three", &["new"], None))), FULL);
    let why = match decide(&engine, &using("two", &["c"], None)) {
        Outcome::Wait(why) => why.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(why.ends_with("It can run once a node can attach one more volume."), "{why}");
    // A raised limit wakes them.
    engine.csi_node_changed("n1", Some(limited("n1", 3)));
    let woken: BTreeSet<PodKey> = awake(&engine).into_iter().collect();
    assert_eq!(woken, BTreeSet::from([key("two"), key("three")]));
    assert_eq!(decide(&engine, &using("two", &["c"], None)), Outcome::Bind { node: "n1".into() });
    assert_eq!(refusal(decide(&engine, &using("three", &["new"], None))), FULL);
}

#[test]
fn what_is_still_attached_counts() {
    let engine = Engine::new("default-scheduler");
    engine.node_changed(node("n1", json!({})));
    engine.csi_node_changed("n1", Some(limited("n1", 1)));
    for name in ["a", "b"] {
        bound(&engine, name, json!({}), "ReadWriteMany");
    }
    let attachment = read::<VolumeAttachment>(json!({"metadata": {"name": "x"},
        "spec": {"attacher": DRIVER, "nodeName": "n1", "source": {"persistentVolumeName": "pv-a"}}}));
    engine.attachment_changed(&attachment, false);
    awake(&engine);
    assert_eq!(refusal(decide(&engine, &using("p", &["b"], None))), FULL, "its pod is gone, the volume is not");
    engine.attachment_changed(&attachment, true);
    assert_eq!(awake(&engine), [key("p")]);
    assert_eq!(decide(&engine, &using("p", &["b"], None)), Outcome::Bind { node: "n1".into() });
}

#[test]
fn generic_ephemeral_and_migrated_volumes_count() {
    let engine = Engine::new("default-scheduler");
    engine.node_changed(node("n1", json!({})));
    let drivers = json!([{"name": "ebs.csi.aws.com", "nodeID": "n1", "allocatable": {"count": 1}},
        {"name": DRIVER, "nodeID": "n1", "allocatable": {"count": 1}}]);
    engine.csi_node_changed("n1", Some(csi_node("n1", drivers.clone(), "kubernetes.io/aws-ebs,kubernetes.io/gce-pd")));
    let disk = |id: &str| json!([{"name": "d", "awsElasticBlockStore": {"volumeID": id}}]);
    engine.pod_changed(key("old"), &Arc::new(with_volumes("old", disk("vol-1"), Some("n1"))));
    assert_eq!(refusal(decide(&engine, &with_volumes("p", disk("vol-2"), None))), FULL);
    let same = "0/1 nodes are available: 1 node(s) had no available disk.";
    assert_eq!(refusal(decide(&engine, &with_volumes("q", disk("vol-1"), None))), same);
    // Where the driver was not migrated, its CSI driver's limit is none of its business.
    engine.csi_node_changed("n1", Some(csi_node("n1", drivers, "")));
    assert_eq!(decide(&engine, &with_volumes("p", disk("vol-2"), None)), Outcome::Bind { node: "n1".into() });
    // A claim made for one pod.
    class(&engine, DRIVER);
    let template = json!({"volumeClaimTemplate": {"spec": {}}});
    let ephemeral = |name: &str| with_volumes(name, json!([{"name": "e", "ephemeral": template}]), None);
    for name in ["r", "s"] {
        let mut owned = PersistentVolumeClaim::clone(&claim(&format!("{name}-e"), None, "ReadWriteOnce"));
        owned.metadata.owner_references =
            serde_json::from_value(json!([{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": name}])).unwrap();
        engine.claim_changed(key(&format!("{name}-e")), Some(Arc::new(owned)));
    }
    assert!(matches!(decide(&engine, &ephemeral("r")), Outcome::Provide { .. }));
    assert_eq!(refusal(decide(&engine, &ephemeral("s"))), FULL);
}

#[test]
fn disks_are_shared_by_readers_only() {
    let engine = Engine::new("default-scheduler");
    engine.node_changed(node("n1", json!({})));
    let gce = |read: bool| json!([{"name": "d", "gcePersistentDisk": {"pdName": "data", "readOnly": read}}]);
    let rbd = |monitor: &str| json!([{"name": "d", "rbd": {"monitors": [monitor], "image": "i", "pool": "p"}}]);
    let iscsi = json!([{"name": "d", "iscsi": {"targetPortal": "10.0.0.1:3260", "iqn": "iqn.2026-01.com.example:a", "lun": 0}}]);
    engine.pod_changed(key("reads"), &Arc::new(with_volumes("reads", gce(true), Some("n1"))));
    engine.pod_changed(key("blocks"), &Arc::new(with_volumes("blocks", rbd("10.0.0.1"), Some("n1"))));
    engine.pod_changed(key("target"), &Arc::new(with_volumes("target", iscsi.clone(), Some("n1"))));
    let taken = "0/1 nodes are available: 1 node(s) had no available disk.";
    assert_eq!(decide(&engine, &with_volumes("a", gce(true), None)), Outcome::Bind { node: "n1".into() });
    assert_eq!(refusal(decide(&engine, &with_volumes("b", gce(false), None))), taken);
    assert_eq!(refusal(decide(&engine, &with_volumes("c", rbd("10.0.0.1"), None))), taken);
    assert_eq!(decide(&engine, &with_volumes("d", rbd("10.0.0.2"), None)), Outcome::Bind { node: "n1".into() });
    assert_eq!(refusal(decide(&engine, &with_volumes("e", iscsi, None))), taken);
}

#[test]
fn zones_of_volumes_hold_on_nodes_that_have_some() {
    let engine = Engine::new("default-scheduler");
    engine.node_changed(node("n1", json!({"topology.kubernetes.io/zone": "a", "topology.kubernetes.io/region": "r"})));
    let beta = json!({"failure-domain.beta.kubernetes.io/zone": "b", "failure-domain.beta.kubernetes.io/region": "r"});
    bound(&engine, "far", beta, "ReadWriteMany");
    bound(&engine, "wide", json!({"topology.kubernetes.io/zone": "a__c"}), "ReadWriteMany");
    let conflict = "0/1 nodes are available: 1 node(s) had no available volume zone.";
    assert_eq!(refusal(decide(&engine, &using("p", &["far"], None))), conflict);
    assert_eq!(decide(&engine, &using("q", &["wide"], None)), Outcome::Bind { node: "n1".into() });
    engine.node_changed(node("n2", json!({"topology.kubernetes.io/zone": "b", "topology.kubernetes.io/region": "r"})));
    assert_eq!(decide(&engine, &using("p", &["far"], None)), Outcome::Bind { node: "n2".into() });
    engine.node_changed(node("n3", json!({})));
    let elsewhere = json!({"topology.kubernetes.io/zone": "z"});
    bound(&engine, "nowhere", elsewhere, "ReadWriteMany");
    assert_eq!(decide(&engine, &using("r", &["nowhere"], None)), Outcome::Bind { node: "n3".into() }, "it has no zone");
}

#[test]
fn who_uses_a_claim_alone_ends_for_someone_more_important() {
    let engine = Engine::new("default-scheduler");
    for name in ["n1", "n2", "n3"] {
        engine.node_changed(node(name, json!({})));
    }
    bound(&engine, "alone", json!({}), "ReadWriteOncePod");
    let mut holder = using("holder", &["alone"], Some("n2"));
    holder.spec.as_mut().unwrap().priority = Some(1);
    engine.pod_changed(key("holder"), &Arc::new(holder));
    let equal = {
        let mut pod = using("equal", &["alone"], None);
        pod.spec.as_mut().unwrap().priority = Some(1);
        pod
    };
    let text = "0/3 nodes are available: 3 node has pod using PersistentVolumeClaim with the same name and \
                ReadWriteOncePod access mode.";
    assert_eq!(refusal(decide(&engine, &equal)), text);
    let mut urgent = using("urgent", &["alone"], None);
    urgent.spec.as_mut().unwrap().priority = Some(2);
    let Outcome::Preempt { preemption, why, .. } = decide(&engine, &urgent) else { panic!("it does not preempt") };
    assert_eq!(why.plain(), text);
    assert_eq!((preemption.node.as_str(), &preemption.victims[..]), ("n2", &[key("holder")][..]));
    engine.pod_removed(&key("holder"));
    assert!(awake(&engine).contains(&key("urgent")));
    assert_eq!(decide(&engine, &urgent), Outcome::Bind { node: "n2".into() });
}

#[derive(Debug, Clone)]
struct PlainPod {
    claims: BTreeSet<usize>,
    leaves: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Claims 0 to 5 are bound, with a zone or none; pods use some. A node takes a pod exactly if all volumes are in its
    /// zone and the distinct volumes of its pods and attachments stay within its limit.
    #[test]
    fn limits_and_zones_hold(
        limits in prop::collection::vec((prop::option::weighted(0.8, 0..4usize), prop::option::weighted(0.8, 0..2u8)), 1..4),
        zones in prop::collection::vec(prop::option::weighted(0.5, 0..2u8), 6),
        attached in prop::collection::btree_set((0..3usize, 0..6usize), 0..4),
        pods in prop::collection::vec((prop::collection::btree_set(0..6usize, 0..4), prop::bool::weighted(0.3))
            .prop_map(|(claims, leaves)| PlainPod { claims, leaves }), 1..15),
    ) {
        let engine = Engine::new("default-scheduler");
        let zone = |zone: &Option<u8>| match zone {
            Some(zone) => json!({"topology.kubernetes.io/zone": zone.to_string()}),
            None => json!({}),
        };
        for (i, (limit, of)) in limits.iter().enumerate() {
            let name = format!("n{i}");
            engine.node_changed(node(&name, zone(of)));
            if let Some(limit) = limit {
                engine.csi_node_changed(&name, Some(limited(&name, *limit)));
            }
        }
        for (i, of) in zones.iter().enumerate() {
            bound(&engine, &format!("c{i}"), zone(of), "ReadWriteMany");
        }
        let attached: BTreeSet<(usize, usize)> = attached.into_iter().filter(|(node, _)| *node < limits.len()).collect();
        for (node, volume) in &attached {
            let attachment = read::<VolumeAttachment>(json!({"metadata": {"name": format!("{node}-{volume}")},
                "spec": {"attacher": DRIVER, "nodeName": format!("n{node}"),
                    "source": {"persistentVolumeName": format!("pv-c{volume}")}}}));
            engine.attachment_changed(&attachment, false);
        }
        let mut placed: BTreeMap<usize, (usize, BTreeSet<usize>)> = BTreeMap::new();
        for (i, pod) in pods.iter().enumerate() {
            let fits = |n: usize| {
                let (limit, here) = &limits[n];
                let near = pod.claims.iter().all(|c| here.is_none() || zones[*c].is_none() || zones[*c] == *here);
                let mut volumes: BTreeSet<usize> = attached.iter().filter(|(at, _)| *at == n).map(|(_, v)| *v).collect();
                placed.values().filter(|(at, _)| *at == n).for_each(|(_, claims)| volumes.extend(claims));
                let new = pod.claims.iter().filter(|claim| !volumes.contains(claim)).count();
                near && (new == 0 || limit.is_none_or(|limit| volumes.len() + new <= limit))
            };
            let names: Vec<String> = pod.claims.iter().map(|c| format!("c{c}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let name = format!("p{i}");
            match decide(&engine, &using(&name, &names, None)) {
                Outcome::Bind { node } => {
                    let n: usize = node[1..].parse().unwrap();
                    prop_assert!(fits(n), "{} on {}", name, node);
                    placed.insert(i, (n, pod.claims.clone()));
                }
                Outcome::Wait(why) => prop_assert!(!(0..limits.len()).any(fits), "{}: {}", name, why),
                other => prop_assert!(false, "{other:?}"),
            }
            if pod.leaves {
                engine.pod_removed(&key(&name));
                placed.remove(&i);
            }
        }
    }
}
