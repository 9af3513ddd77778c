//! Names, labels, annotations, owners and finalizers of any object.

use serde_json::Value;

use super::{Errors, FieldError};
use crate::meta::{self, text};
use crate::names;
use crate::registry::Kind;

/// All annotations together, in bytes.
const ANNOTATIONS: usize = 256 << 10;

pub(super) fn create(kind: &Kind, object: &Value, errors: &mut Errors) {
    let prefix = meta::text(object, &["metadata", "generateName"]);
    if !prefix.is_empty() {
        // What comes after it may also come after a dash.
        let whole = prefix.strip_suffix('-').filter(|rest| !rest.is_empty()).unwrap_or(prefix);
        errors.complaints("metadata.generateName", prefix, (kind.name_format)(whole));
    }
    let name = meta::name(object);
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        errors.complaints("metadata.name", name, (kind.name_format)(name));
    }
    common(object, errors);
}

pub(super) fn update(new: &Value, old: &Value, errors: &mut Errors) {
    for field in ["name", "namespace", "uid", "creationTimestamp"] {
        errors.immutable(new, old, &format!("metadata.{field}"), &["metadata", field]);
    }
    common(new, errors);
}

fn common(object: &Value, errors: &mut Errors) {
    labels(meta::at(object, &["metadata", "labels"]), "metadata.labels", errors);
    let annotations = meta::object(object, &["metadata", "annotations"]);
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        errors.complaints("metadata.annotations", key, names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS {
        errors.too_long("metadata.annotations", ANNOTATIONS);
    }
    for finalizer in meta::items(object, &["metadata", "finalizers"]) {
        let finalizer = finalizer.as_str().unwrap_or_default();
        errors.complaints("metadata.finalizers", finalizer, names::qualified_name(finalizer));
    }
    for (index, owner) in meta::items(object, &["metadata", "ownerReferences"]).iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, &[field]).is_empty() {
                let path = format!("metadata.ownerReferences[{index}].{field}");
                errors.push(FieldError::invalid(&path, "", "must not be empty"));
            }
        }
    }
}

/// Keys and values of a label map.
pub(super) fn labels(map: Option<&Value>, field: &str, errors: &mut Errors) {
    for (key, value) in map.and_then(Value::as_object).into_iter().flatten() {
        errors.complaints(field, key, names::qualified_name(key));
        match value.as_str() {
            Some(value) => errors.complaints(field, value, names::label_value(value)),
            None => errors.push(FieldError::invalid(field, &value.to_string(), "must be a string")),
        }
    }
}
