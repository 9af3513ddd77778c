//! Defaults of volumes, claims and storage classes.

use super::canonical_quantities;
use crate::meta::{child_mut, default_to};
use serde_json::{Map, Value};

pub(crate) fn volume(object: &mut Value) {
    let spec = child_mut(object, "spec");
    default_to(spec, "persistentVolumeReclaimPolicy", "Retain");
    default_to(spec, "volumeMode", "Filesystem");
    canonical_quantities(spec, "capacity");
    super::rows::fill_map(spec, super::rows::VOLUME);
    default_to(child_mut(object, "status"), "phase", "Pending");
}

pub(crate) fn claim(object: &mut Value) {
    let spec = child_mut(object, "spec");
    claim_spec(spec);
    data_sources(spec);
    default_to(child_mut(object, "status"), "phase", "Pending");
}

/// Two fields say what a claim begins with: the older one knows claims and snapshots only, and no other namespace.
fn data_sources(spec: &mut Map<String, Value>) {
    let text = |source: &Value, field: &str| source[field].as_str().unwrap_or_default().to_owned();
    match (spec.get("dataSource"), spec.get("dataSourceRef")) {
        (Some(old), None) if old.is_object() => {
            let known = [("", "PersistentVolumeClaim"), ("snapshot.storage.k8s.io", "VolumeSnapshot")];
            let (group, kind) = (text(old, "apiGroup"), text(old, "kind"));
            let old = old.clone();
            if known.contains(&(group.as_str(), kind.as_str())) {
                spec.insert("dataSourceRef".into(), old);
            } else if !group.is_empty() {
                spec.remove("dataSource");
            }
        }
        (None, Some(new)) if new.is_object() && text(new, "namespace").is_empty() => {
            let mut old = new.clone();
            if let Some(old) = old.as_object_mut() {
                old.remove("namespace");
            }
            spec.insert("dataSource".into(), old);
        }
        _ => {}
    }
}

pub(crate) fn claim_spec(spec: &mut Map<String, Value>) {
    default_to(spec, "volumeMode", "Filesystem");
    if let Some(resources) = spec.get_mut("resources").and_then(Value::as_object_mut) {
        canonical_quantities(resources, "requests");
        canonical_quantities(resources, "limits");
    }
}

pub(crate) fn class(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        default_to(map, "reclaimPolicy", "Delete");
        default_to(map, "volumeBindingMode", "Immediate");
    }
}
