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
    claim_spec(child_mut(object, "spec"));
    default_to(child_mut(object, "status"), "phase", "Pending");
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
