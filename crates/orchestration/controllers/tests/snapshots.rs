//! Snapshots of CSI volumes through kubectl, with a driver's snapshotter that the test plays.
#![allow(clippy::unwrap_used)]

mod fake;
#[path = "../../apiserver/tests/harness/mod.rs"]
mod harness;

use fake::Cloud;
use serde_json::{Value, json};

const CONTENTS: &str = "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents";

async fn start() -> Cloud {
    let cloud = Cloud::start().await;
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../examples/storage/snapshots.yaml");
    cloud.kubectl(&["apply", "-f", file.to_str().unwrap()]).await;
    for kind in ["volumesnapshots", "volumesnapshotcontents", "volumesnapshotclasses"] {
        let definition = format!("crd/{kind}.snapshot.storage.k8s.io");
        cloud.kubectl(&["wait", "--for=condition=established", &definition, "--timeout=30s"]).await;
    }
    let annotations = json!({"snapshot.storage.kubernetes.io/is-default-class": "true"});
    for (name, policy, annotations) in [("gone", "Delete", annotations), ("kept", "Retain", json!({}))] {
        cloud
            .apply(json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass",
                "metadata": {"name": name, "annotations": annotations}, "driver": "d.example.com", "deletionPolicy": policy}))
            .await;
    }
    cloud
        .apply(json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "storageClassName": "",
            "csi": {"driver": "d.example.com", "volumeHandle": "volume-1"}}}))
        .await;
    cloud.apply(claim("data", json!({}))).await;
    cloud.until(&["get", "pvc/data", "-o", "jsonpath={.status.phase}"], "Bound").await;
    cloud
}

fn claim(name: &str, more: Value) -> Value {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "",
        "resources": {"requests": {"storage": "1Gi"}}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec})
}

fn snapshot(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name}, "spec": spec})
}

fn of_claim(class: Option<&str>) -> Value {
    json!({"source": {"persistentVolumeClaimName": "data"}, "volumeSnapshotClassName": class})
}

/// What a driver's snapshotter writes.
async fn taken(cloud: &Cloud, content: &str, status: Value) {
    let path = format!("{CONTENTS}/{content}/status");
    let body = json!({"status": status});
    let (code, answer) = cloud.cluster.json("PATCH", &path, "application/merge-patch+json", &body).await;
    assert_eq!(code, 200, "{answer}");
}

/// The content of a snapshot, once there is one.
async fn content(cloud: &Cloud, name: &str) -> String {
    let uid = cloud.get(&format!("vs/{name}"), "{.metadata.uid}").await;
    let content = format!("snapcontent-{uid}");
    cloud
        .until(
            &["get", "vsc", &content, "--ignore-not-found", "-o", "name"],
            &format!("volumesnapshotcontent.snapshot.storage.k8s.io/{content}"),
        )
        .await;
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_taken_shown_and_goes_with_its_data() {
    let cloud = start().await;
    cloud.apply(snapshot("s", of_claim(None))).await;
    let made = content(&cloud, "s").await;
    let spec = "{.spec.driver} {.spec.source.volumeHandle} {.spec.deletionPolicy} {.spec.volumeSnapshotClassName} {.metadata.finalizers[0]}";
    let wanted =
        "d.example.com volume-1 Delete gone snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
    cloud.until(&["get", "vsc", &made, "-o", &format!("jsonpath={spec}")], wanted).await;
    // The claim is held as long as nothing is taken.
    cloud.kubectl(&["delete", "pvc", "data", "--wait=false"]).await;
    let finalizers = ["get", "pvc/data", "-o", "jsonpath={.metadata.finalizers[*]}"];
    cloud.until(&finalizers, "snapshot.storage.kubernetes.io/pvc-as-source-protection").await;
    taken(&cloud, &made, json!({"error": {"message": "no room"}, "readyToUse": false})).await;
    let error = ["get", "vs/s", "-o", "jsonpath={.status.readyToUse} {.status.error.message}"];
    cloud.until(&error, "false no room").await;
    taken(&cloud, &made, json!({"error": null, "readyToUse": true, "snapshotHandle": "h", "restoreSize": 1 << 30, "creationTime": 1_000_000_000})).await;
    let shown = "jsonpath={.status.readyToUse} {.status.restoreSize} {.status.creationTime} {.status.error}";
    cloud.until(&["get", "vs/s", "-o", shown], "true 1Gi 1970-01-01T00:00:01Z").await;
    cloud.kubectl(&["wait", "pvc/data", "--for=delete", "--timeout=30s"]).await;

    // A claim that waits to be filled from it holds it.
    let source = json!({"dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"},
        "storageClassName": "elsewhere"});
    cloud.apply(claim("restored", source)).await;
    cloud.kubectl(&["delete", "vs", "s", "--wait=false"]).await;
    let pending =
        ["get", "events", "--field-selector=reason=SnapshotDeletePending", "-o", "jsonpath={.items[0].message}"];
    cloud.until(&pending, "Snapshot is being used to restore a PVC").await;
    assert_eq!(cloud.get(&format!("vsc/{made}"), "{.metadata.deletionTimestamp}").await, "");
    cloud.kubectl(&["delete", "pvc", "restored", "--timeout=30s"]).await;
    // The snapshotter is told, and the snapshot stays until it is done.
    let told = "jsonpath={.metadata.annotations.snapshot\\.storage\\.kubernetes\\.io/volumesnapshot-being-deleted}";
    cloud.until(&["get", "vsc", &made, "-o", told], "yes").await;
    assert_ne!(cloud.get("vs/s", "{.metadata.deletionTimestamp}").await, "");
    let free = json!({"metadata": {"finalizers": null}}).to_string();
    cloud.kubectl(&["patch", "vsc", &made, "--type=merge", "-p", &free]).await;
    cloud.kubectl(&["wait", "vs/s", "--for=delete", "--timeout=30s"]).await;
    cloud.until(&["get", "vsc", "-o", "name"], "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_retained_stays_and_can_be_bound_again() {
    let cloud = start().await;
    cloud.apply(snapshot("s", of_claim(Some("kept")))).await;
    let made = content(&cloud, "s").await;
    taken(&cloud, &made, json!({"readyToUse": true, "snapshotHandle": "h"})).await;
    cloud.until(&["get", "vs/s", "-o", "jsonpath={.status.readyToUse}"], "true").await;
    cloud.kubectl(&["delete", "vs", "s", "--timeout=30s"]).await;
    assert_eq!(cloud.get(&format!("vsc/{made}"), "{.metadata.deletionTimestamp}").await, "");

    // Under another name, by hand.
    let by_hand = json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
        "metadata": {"name": "by-hand"}, "spec": {"driver": "d.example.com", "deletionPolicy": "Retain",
            "source": {"snapshotHandle": "h"}, "volumeSnapshotRef": {"name": "again", "namespace": "default"}}});
    cloud.apply(by_hand).await;
    cloud.apply(snapshot("again", json!({"source": {"volumeSnapshotContentName": "by-hand"}}))).await;
    let uid = cloud.get("vs/again", "{.metadata.uid}").await;
    cloud.until(&["get", "vsc/by-hand", "-o", "jsonpath={.spec.volumeSnapshotRef.uid}"], &uid).await;
    taken(&cloud, "by-hand", json!({"readyToUse": true, "snapshotHandle": "h"})).await;
    let bound = "jsonpath={.status.readyToUse} {.status.boundVolumeSnapshotContentName}";
    cloud.until(&["get", "vs/again", "-o", bound], "true by-hand").await;
    // It is taken.
    cloud.apply(snapshot("thief", json!({"source": {"volumeSnapshotContentName": "by-hand"}}))).await;
    let why = ["get", "vs/thief", "-o", "jsonpath={.status.error.message}"];
    cloud.until(&why, "VolumeSnapshotContent [by-hand] is bound to a different snapshot").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_says_why_and_is_tried_again() {
    let cloud = start().await;
    let why = ["get", "vs/s", "-o", "jsonpath={.status.readyToUse} {.status.error.message}"];
    let spec = json!({"source": {"persistentVolumeClaimName": "later"}});
    cloud.apply(snapshot("s", spec)).await;
    cloud
        .until(&why, "false snapshot controller failed to update later: persistentvolumeclaim \"later\" not found")
        .await;
    cloud.apply(claim("later", json!({}))).await;
    cloud.until(&why, "false the PVC later is not yet bound to a PV, will not attempt to take a snapshot").await;
    cloud
        .apply(json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "second"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "storageClassName": "",
            "csi": {"driver": "d.example.com", "volumeHandle": "volume-2"}}}))
        .await;
    let made = content(&cloud, "s").await;
    taken(&cloud, &made, json!({"readyToUse": true, "snapshotHandle": "h"})).await;
    cloud.until(&["get", "vs/s", "-o", "jsonpath={.status.readyToUse}{.status.error}"], "true").await;
}
