//! Volumes of the built-in provisioner: directories on one node.
//!
//! Making one is an object only: the node makes the directory when a pod first mounts it, or fills it before that. Its finalizer stays until the
//! node has emptied and removed the directory, or the node itself is gone.

use dhow_api::local_volumes::{FILLED_FROM, FILLING, FINALIZER, NODE_LABEL, PATH, PROVISIONER, Source};
use dhow_client::{Error, reference};
use dhow_scheduler::volumes::local;
use dhow_scheduler::volumes::matching::{annotation, class_of, requested};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::json;

use super::PROVISIONED_BY;

const HOSTNAME: &str = "kubernetes.io/hostname";

/// Why a volume cannot be made on the node that was selected, for the claim's events.
pub fn refusal(claim: &PersistentVolumeClaim, node: Option<&Node>, promised: i64) -> Option<String> {
    let Some(node) = node else { return Some("the selected node is gone".to_owned()) };
    let name = node.metadata.name.as_deref().unwrap_or_default();
    if annotation(&node.metadata, PATH).is_none() {
        return Some(format!("node \"{name}\" holds no local volumes"));
    }
    let left = local::room(node).saturating_sub(promised);
    let asked = requested(claim);
    (asked > left).then(|| format!("node \"{name}\" has {left} bytes left for local volumes, {asked} are asked for"))
}

/// The volume for a claim on a node, to be filled there from `source`.
pub fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
    source: Option<&Source>,
) -> Result<PersistentVolume, Error> {
    let name = local::name(claim);
    let node_name = node.metadata.name.as_deref().unwrap_or_default();
    let host = node.metadata.labels.as_ref().and_then(|labels| labels.get(HOSTNAME)).map_or(node_name, String::as_str);
    let folder = annotation(&node.metadata, PATH).unwrap_or_default();
    let spec = claim.spec.as_ref();
    let asked = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
    let terms = json!([{"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [host]}]}]);
    let mut volume = json!({
        "metadata": {
            "name": name,
            "labels": {NODE_LABEL: node_name},
            "annotations": {PROVISIONED_BY: PROVISIONER},
            "finalizers": [FINALIZER],
        },
        "spec": {
            "capacity": {"storage": asked},
            "accessModes": spec.and_then(|spec| spec.access_modes.clone()),
            "volumeMode": "Filesystem",
            "storageClassName": class_of(claim),
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "claimRef": reference(claim),
            "local": {"path": format!("{folder}/{name}")},
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
        },
    });
    if let Some(source) = source {
        volume["metadata"]["annotations"][FILLED_FROM] = json!(source.to_string());
        volume["metadata"]["finalizers"] = json!([FINALIZER, FILLING]);
    }
    serde_json::from_value(volume).map_err(|source| Error::Decode { context: "make a volume".into(), source })
}
