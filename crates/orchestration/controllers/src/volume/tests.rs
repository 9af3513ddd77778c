//! Plans, case by case, in upstream's words.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use dhow_api::local_volumes::Source;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use super::claim_plan::{self, View};
use super::expand::{self, Growth};
use super::{provision, volume_plan};

fn merged(mut base: Value, more: Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        match (base.get(key), value) {
            (Some(Value::Object(_)), Value::Object(_)) => base[key] = merged(base[key].clone(), value.clone()),
            _ => base[key] = value.clone(),
        }
    }
    base
}

fn volume(name: &str, size: &str, more: Value) -> Arc<PersistentVolume> {
    let base = json!({"metadata": {"name": name}, "status": {"phase": "Available"}, "spec": {
        "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}});
    Arc::new(serde_json::from_value(merged(base, more)).unwrap())
}

fn claim(size: &str, more: Value) -> PersistentVolumeClaim {
    let base = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}});
    serde_json::from_value(merged(base, more)).unwrap()
}

fn class(provisioner: &str, mode: &str) -> StorageClass {
    let class = json!({"metadata": {"name": "k"}, "provisioner": provisioner, "volumeBindingMode": mode,
        "allowVolumeExpansion": true});
    serde_json::from_value(class).unwrap()
}

fn planned(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>], class: Option<&StorageClass>) -> String {
    let plan = claim_plan::plan(&View { claim, volumes, class, consumer: None });
    let act = match plan.act {
        claim_plan::Act::Nothing => "wait".to_owned(),
        claim_plan::Act::Bind(volume) => format!("bind {}", volume.metadata.name.clone().unwrap()),
        claim_plan::Act::Provision { node } => format!("provision on {node}"),
        claim_plan::Act::HandOver { provisioner } => format!("hand over to {provisioner}"),
        claim_plan::Act::Lose => "lose".to_owned(),
    };
    plan.told.map_or(act.clone(), |told| format!("{act}: {}", told.reason))
}

#[test]
fn a_claim_gets_the_smallest_volume_that_serves_it() {
    let held = json!({"spec": {"claimRef": {"name": "c", "namespace": "n"}}});
    let others = json!({"spec": {"claimRef": {"name": "d", "namespace": "n", "uid": "v"}}});
    let sizes = [volume("big", "9Gi", json!({})), volume("fits", "2Gi", json!({})), volume("small", "1Mi", json!({}))];
    assert_eq!(planned(&claim("1Gi", json!({})), &sizes, None), "bind fits");
    assert_eq!(planned(&claim("10Gi", json!({})), &sizes, None), "wait: FailedBinding");
    let with = |more: Value| [sizes[1].clone(), volume("other", "9Gi", more)];
    assert_eq!(planned(&claim("1Gi", json!({})), &with(held), None), "bind other", "it was held for the claim");
    for (wish, more) in [
        (json!({"spec": {"accessModes": ["ReadWriteMany"]}}), json!({"spec": {"accessModes": ["ReadWriteMany"]}})),
        (json!({"spec": {"volumeMode": "Block"}}), json!({"spec": {"volumeMode": "Block"}})),
        (json!({"spec": {"storageClassName": "k"}}), json!({"spec": {"storageClassName": "k"}})),
        (json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}}), json!({"metadata": {"labels": {"a": "b"}}})),
    ] {
        assert_eq!(planned(&claim("1Gi", wish.clone()), &with(more), None), "bind other", "{wish}");
        let nothing = planned(&claim("1Gi", wish), &sizes, None);
        assert!(nothing.starts_with("wait: "), "{nothing}");
    }
    assert_eq!(planned(&claim("5Gi", json!({})), &with(others), None), "wait: FailedBinding");
    let gone = json!({"metadata": {"deletionTimestamp": "2020-01-01T00:00:00Z"}});
    assert_eq!(planned(&claim("5Gi", json!({})), &with(gone), None), "wait: FailedBinding");
}

#[test]
fn a_claim_that_names_its_volume_gets_that_or_none() {
    let named = |more: Value| claim("1Gi", merged(json!({"spec": {"volumeName": "v"}}), more));
    let others = json!({"spec": {"claimRef": {"name": "d", "namespace": "n", "uid": "v"}}});
    assert_eq!(planned(&named(json!({})), &[volume("v", "1Gi", json!({}))], None), "bind v");
    assert_eq!(planned(&named(json!({})), &[], None), "wait");
    assert_eq!(planned(&named(json!({})), &[volume("v", "1Gi", others.clone())], None), "wait: FailedBinding");
    assert_eq!(planned(&named(json!({})), &[volume("v", "1Mi", json!({}))], None), "wait: VolumeMismatch");
    let complete = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}});
    assert_eq!(planned(&named(complete.clone()), &[], None), "lose: ClaimLost");
    assert_eq!(planned(&named(complete.clone()), &[volume("v", "1Gi", others)], None), "lose: ClaimMisbound");
    assert_eq!(planned(&claim("1Gi", complete), &[], None), "lose: ClaimLost");
}

#[test]
fn a_class_says_when_and_by_whom_a_volume_is_made() {
    let wish = |more: Value| claim("1Gi", merged(json!({"spec": {"storageClassName": "k"}}), more));
    let first = class("dhow.io/local", "WaitForFirstConsumer");
    let selected = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "n1"}}});
    let free = [volume("v", "1Gi", json!({"spec": {"storageClassName": "k"}}))];
    assert_eq!(planned(&wish(json!({})), &free, Some(&first)), "wait: WaitForFirstConsumer");
    assert_eq!(planned(&wish(selected), &[], Some(&first)), "provision on n1");
    assert_eq!(planned(&wish(json!({})), &[], None), "wait: ProvisioningFailed");
    assert_eq!(planned(&wish(json!({})), &[], Some(&class("dhow.io/local", "Immediate"))), "wait: ProvisioningFailed");
    let other = class("example.com/x", "Immediate");
    assert_eq!(planned(&wish(json!({})), &[], Some(&other)), "hand over to example.com/x: ExternalProvisioning");
    let view = View { claim: &wish(json!({})), volumes: &[], class: Some(&first), consumer: Some("p") };
    assert_eq!(claim_plan::plan(&view).told.unwrap().message, "waiting for pod p to be scheduled");
}

#[test]
fn volumes_follow_their_claims() {
    use volume_plan::{Act, plan};
    let held = |phase: &str, more: Value| {
        let base =
            json!({"status": {"phase": phase}, "spec": {"claimRef": {"name": "c", "namespace": "n", "uid": "u"}}});
        volume("v", "1Gi", merged(base, more))
    };
    let act = |volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>| plan(volume, claim).act;
    let named = claim("1Gi", json!({"spec": {"volumeName": "v"}}));
    let elsewhere = claim("1Gi", json!({"spec": {"volumeName": "w"}}));
    assert_eq!(act(&volume("v", "1Gi", json!({"status": {"phase": "Pending"}})), None), Act::Phase("Available", None));
    assert_eq!(act(&held("Available", json!({})), Some(&named)), Act::Phase("Bound", None));
    assert_eq!(act(&held("Bound", json!({})), Some(&named)), Act::Nothing);
    assert_eq!(act(&held("Bound", json!({})), Some(&claim("1Gi", json!({})))), Act::WakeClaim);
    assert_eq!(act(&held("Available", json!({})), Some(&elsewhere)), Act::Unbind);
    assert_eq!(act(&held("Bound", json!({})), None), Act::Release);
    let made_anew = claim("1Gi", json!({"metadata": {"uid": "other"}, "spec": {"volumeName": "v"}}));
    assert_eq!(act(&held("Bound", json!({})), Some(&made_anew)), Act::Release);
    assert_eq!(act(&held("Released", json!({})), None), Act::Nothing, "Retain");
    let delete = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}});
    let by = |who: &str| {
        merged(delete.clone(), json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": who}}}))
    };
    assert_eq!(act(&held("Released", by("dhow.io/local")), None), Act::Delete);
    assert_eq!(act(&held("Released", by("example.com/x")), None), Act::Nothing);
    let failed = plan(&held("Released", delete), None);
    assert!(matches!(failed.act, Act::Phase("Failed", Some(("VolumeFailedDelete", _)))), "{failed:?}");
}

#[test]
fn the_provisioner_says_what_it_cannot_make() {
    let node: Node =
        serde_json::from_value(json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "h1"},
        "annotations": {"dhow.io/local-volumes-path": "/d/volumes", "dhow.io/local-volumes-capacity": "10Gi"}}}))
        .unwrap();
    let local = class("dhow.io/local", "WaitForFirstConsumer");
    let refused = |claim: &PersistentVolumeClaim, promised: i64| provision::refusal(claim, Some(&node), promised);
    assert_eq!(refused(&claim("10Gi", json!({})), 0), None);
    assert!(refused(&claim("10Gi", json!({})), 1).unwrap().contains("bytes left for local volumes"));
    assert!(provision::refusal(&claim("1", json!({})), Some(&Node::default()), 0).is_some());
    assert!(provision::refusal(&claim("1", json!({})), None, 0).is_some());
    for odd in [json!({"volumeMode": "Block"}), json!({"accessModes": ["ReadWriteMany"]}), json!({"selector": {}})] {
        let odd = claim("1Gi", json!({"spec": merged(json!({"storageClassName": "k"}), odd)}));
        assert_eq!(planned(&odd, &[], Some(&local)), "wait: ProvisioningFailed", "{odd:?}");
    }
    let made = provision::volume(&claim("1Gi", json!({})), &local, &node, None).unwrap();
    assert_eq!(made.metadata.name.as_deref(), Some("pvc-u"));
    assert_eq!(made.spec.unwrap().local.unwrap().path, "/d/volumes/pvc-u");

    // One that is yet to be filled is not bound; one that others fill is not made.
    let from = |kind: &str, group: Value| {
        let source = json!({"apiGroup": group, "kind": kind, "name": "d"});
        let spec = json!({"storageClassName": "k", "dataSource": source});
        let annotations = json!({"volume.kubernetes.io/selected-node": "n1"});
        claim("1Gi", json!({"metadata": {"annotations": annotations}, "spec": spec}))
    };
    let clone = from("PersistentVolumeClaim", Value::Null);
    assert_eq!(planned(&clone, &[], Some(&local)), "provision on n1");
    let filling = provision::volume(&clone, &local, &node, Some(&Source::Volume("v".into()))).unwrap();
    assert_eq!(planned(&clone, &[Arc::new(filling.clone())], Some(&local)), "wait");
    let mut filled = filling;
    filled.metadata.finalizers.as_mut().unwrap().retain(|name| name != "dhow.io/local-volume-filling");
    assert_eq!(planned(&clone, &[Arc::new(filled)], Some(&local)), "bind pvc-u");
    let others = from("Backup", json!("example.com"));
    assert_eq!(planned(&others, &[], Some(&local)), "wait: Provisioning");
}

#[test]
fn a_claim_grows_step_by_step() {
    let ours = json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": "dhow.io/local"}}});
    let class = class("dhow.io/local", "WaitForFirstConsumer");
    let has =
        |size: &str, more: Value| merged(json!({"status": {"phase": "Bound", "capacity": {"storage": size}}}), more);
    let resizing = json!({"status": {"conditions": [{"type": "Resizing", "status": "True"}]}});
    let plan = |claim: &PersistentVolumeClaim, size: &str, left: i64| {
        expand::plan(claim, &volume("v", size, ours.clone()), Some(&class), left)
    };
    assert_eq!(plan(&claim("1Gi", has("1Gi", json!({}))), "1Gi", 0), Growth::None);
    assert_eq!(plan(&claim("2Gi", has("1Gi", json!({}))), "1Gi", 1 << 30), Growth::Begin);
    assert!(matches!(plan(&claim("2Gi", has("1Gi", json!({}))), "1Gi", 1), Growth::Refused(Some(_))));
    assert_eq!(plan(&claim("2Gi", has("1Gi", resizing.clone())), "1Gi", 1 << 30), Growth::Raise);
    assert_eq!(plan(&claim("2Gi", has("1Gi", resizing.clone())), "2Gi", 0), Growth::Show);
    assert_eq!(plan(&claim("2Gi", has("2Gi", resizing)), "2Gi", 0), Growth::Show);
    let foreign = expand::plan(&claim("2Gi", has("1Gi", json!({}))), &volume("v", "1Gi", json!({})), Some(&class), 0);
    assert!(matches!(foreign, Growth::NotOurs(Some(_))));
}
