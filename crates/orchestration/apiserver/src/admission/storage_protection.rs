//! StorageObjectInUseProtection: claims, volumes and their attributes' classes stay until nobody uses them.
//!
//! A new one gets a finalizer; the controllers `pvc-protection`, `pv-protection` and `vac-protection` take it away in the end.

use dhow_api::meta;
use serde_json::{Value, json};

use super::{Attributes, Operation};

pub fn mutate(attributes: &mut Attributes<'_>) {
    if attributes.operation != Operation::Create || attributes.subresource.is_some() {
        return;
    }
    let finalizer = match (attributes.kind.group, attributes.kind.kind) {
        ("", "PersistentVolumeClaim") => "kubernetes.io/pvc-protection",
        ("", "PersistentVolume") => "kubernetes.io/pv-protection",
        ("storage.k8s.io", "VolumeAttributesClass") => "kubernetes.io/vac-protection",
        _ => return,
    };
    if meta::items(&attributes.object, &["metadata", "finalizers"]).iter().any(|known| known == finalizer) {
        return;
    }
    let metadata = meta::child_mut(&mut attributes.object, "metadata");
    match metadata.get_mut("finalizers").and_then(Value::as_array_mut) {
        Some(finalizers) => finalizers.push(json!(finalizer)),
        None => drop(metadata.insert("finalizers".into(), json!([finalizer]))),
    }
}
