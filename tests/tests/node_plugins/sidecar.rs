//! What the usual sidecars of a driver do, as little of it as the tests need: a provisioner, an attacher and a resizer
//! over the API, with kubectl.

use anyhow::{Context, Result, ensure};
use dhow_e2e::pods::{SOON, merge};
use dhow_e2e::{Host, eventually};
use serde_json::{Value, json};

use crate::driver::{Driver, NAME};

const FINALIZER: &str = "external-attacher/dirs-example-com";

/// Makes the volume of a claim that was handed over, once it was.
pub fn provision(host: &Host, driver: &Driver, claim: &str, more: Value) -> Result<String> {
    let found = eventually(SOON, || {
        let found = host.get(&["get", "pvc", claim])?;
        let named = &found["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"];
        ensure!(*named == NAME, "not handed over: {:#}", found["metadata"]);
        Ok(found)
    })?;
    let name = format!("pvc-{}", found["metadata"]["uid"].as_str().context("uid")?);
    let block = found["spec"]["volumeMode"] == "Block";
    driver.create(&name, block)?;
    let mut spec = json!({
        "capacity": {"storage": found["spec"]["resources"]["requests"]["storage"]},
        "accessModes": found["spec"]["accessModes"],
        "volumeMode": found["spec"]["volumeMode"],
        "storageClassName": found["spec"]["storageClassName"],
        "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"namespace": "default", "name": claim, "uid": found["metadata"]["uid"]},
        "csi": {"driver": NAME, "volumeHandle": name, "volumeAttributes": {"made": "here"}},
    });
    merge(&mut spec["csi"], more);
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec});
    host.apply(&volume.to_string())?;
    Ok(name)
}

fn attachments(host: &Host, volume: &str) -> Result<Vec<Value>> {
    let all = host.get(&["get", "volumeattachments"])?;
    let all = all["items"].as_array().cloned().unwrap_or_default();
    Ok(all.into_iter().filter(|one| one["spec"]["source"]["persistentVolumeName"] == volume).collect())
}

/// Waits until somebody asks for the volume on a node, and says that it is there.
pub fn attach(host: &Host, volume: &str) -> Result<String> {
    let asked = eventually(SOON, || attachments(host, volume)?.into_iter().next().context("nobody asks for it"))?;
    ensure!(asked["spec"]["attacher"] == NAME && asked["spec"]["nodeName"] == "e2e", "{:#}", asked["spec"]);
    let name = asked["metadata"]["name"].as_str().context("name")?.to_owned();
    let finalizers = json!({"metadata": {"finalizers": [FINALIZER]}}).to_string();
    host.kubectl(&["patch", "volumeattachment", &name, "--type=merge", "-p", &finalizers])?;
    let status = json!({"status": {"attached": true, "attachmentMetadata": {"lun": "7"}}}).to_string();
    host.kubectl(&["patch", "volumeattachment", &name, "--subresource=status", "--type=merge", "-p", &status])?;
    Ok(name)
}

/// Waits until it is to be taken away, and lets it go.
pub fn detach(host: &Host, volume: &str) -> Result<()> {
    let going = eventually(SOON, || {
        let one = attachments(host, volume)?.into_iter().next().context("it is gone already")?;
        ensure!(one["metadata"]["deletionTimestamp"].is_string(), "still wanted: {:#}", one["metadata"]);
        Ok(one)
    })?;
    let name = going["metadata"]["name"].as_str().context("name")?;
    let node = host.get(&["get", "node", "e2e"])?;
    let shown = node["status"]["volumesAttached"].to_string();
    ensure!(!shown.contains(volume), "the node's status still has it: {shown}");
    let finalizers = json!({"metadata": {"finalizers": null}}).to_string();
    host.kubectl(&["patch", "volumeattachment", name, "--type=merge", "-p", &finalizers])?;
    eventually(SOON, || {
        ensure!(attachments(host, volume)?.is_empty(), "it is still there");
        Ok(())
    })
}

/// Grows a claim's volume as far as a controller can, and leaves the rest to the node.
pub fn grow(host: &Host, claim: &str, volume: &str, size: &str) -> Result<()> {
    let asked = json!({"spec": {"resources": {"requests": {"storage": size}}}}).to_string();
    host.kubectl(&["patch", "pvc", claim, "-p", &asked])?;
    let capacity = json!({"spec": {"capacity": {"storage": size}}}).to_string();
    host.kubectl(&["patch", "pv", volume, "-p", &capacity])?;
    let waits = json!({"status": {"conditions": [{"type": "FileSystemResizePending", "status": "True",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    host.kubectl(&["patch", "pvc", claim, "--subresource=status", "--type=merge", "-p", &waits.to_string()]).map(drop)
}

/// Waits for what a snapshot of the volume is to become, and takes it. The usual snapshotter's patches replace fields that are not
/// there yet.
pub fn snapshot(host: &Host, volume: &str) -> Result<String> {
    let name = eventually(SOON, || {
        let all = host.get(&["get", "volumesnapshotcontents"])?;
        let mut all = all["items"].as_array().into_iter().flatten();
        let found = all.find(|one| one["spec"]["source"]["volumeHandle"] == volume).context("nobody asks for it")?;
        ensure!(found["spec"]["driver"] == NAME, "{:#}", found["spec"]);
        found["metadata"]["name"].as_str().map(str::to_owned).context("name")
    })?;
    let patch = |more: &[&str], operation: Value| {
        let patch = json!([operation]).to_string();
        let args = ["patch", "volumesnapshotcontent", &name, "--type=json", "-p", &patch];
        host.kubectl(&[&args[..], more].concat())
    };
    let being_created = json!({"snapshot.storage.kubernetes.io/volumesnapshot-being-created": "yes"});
    patch(&[], json!({"op": "replace", "path": "/metadata/annotations", "value": being_created}))?;
    let taken = json!({"snapshotHandle": format!("snapshot of {volume}"), "creationTime": 1_800_000_000_000_000_000_i64,
        "readyToUse": true, "restoreSize": 10 << 20});
    patch(&["--subresource=status"], json!({"op": "replace", "path": "/status", "value": taken}))?;
    let path = "/metadata/annotations/snapshot.storage.kubernetes.io~1volumesnapshot-being-created";
    patch(&[], json!({"op": "remove", "path": path}))?;
    Ok(name)
}

/// Waits until the snapshot is to go, and says that it has gone.
pub fn remove_snapshot(host: &Host, content: &str) -> Result<()> {
    eventually(SOON, || {
        let found = host.get(&["get", "volumesnapshotcontent", content])?;
        ensure!(found["metadata"]["deletionTimestamp"].is_string(), "still wanted: {:#}", found["metadata"]);
        Ok(())
    })?;
    let none = json!({"metadata": {"finalizers": null}}).to_string();
    host.kubectl(&["patch", "volumesnapshotcontent", content, "--type=merge", "-p", &none]).map(drop)
}
