//! ConfigMaps, Secrets, claims, role references and priority classes.

use serde_json::Value;

use super::{Errors, FieldError};
use crate::meta::{flag, object};
use crate::names;

/// All values together, in bytes.
const LARGEST: usize = 1 << 20;

pub fn config_map(value: &Value, errors: &mut Errors) {
    keys(value, &["data", "binaryData"], errors);
    for key in object(value, &["data"]).into_iter().flatten().map(|(key, _)| key) {
        if object(value, &["binaryData"]).is_some_and(|other| other.contains_key(key)) {
            errors.push(FieldError::invalid(&format!("data[{key}]"), key, "duplicate of key present in binaryData"));
        }
    }
}

pub fn secret(value: &Value, errors: &mut Errors) {
    keys(value, &["data"], errors);
}

fn keys(value: &Value, fields: &[&str], errors: &mut Errors) {
    let mut size = 0;
    for field in fields {
        for (key, content) in object(value, &[field]).into_iter().flatten() {
            errors.complaints(&format!("{field}[{key}]"), key, names::config_key(key));
            size += content.as_str().map_or(0, str::len);
        }
    }
    if size > LARGEST {
        errors.push(FieldError::invalid("data", "", &format!("Too long: may not be more than {LARGEST} bytes")));
    }
}

pub fn config_map_update(new: &Value, old: &Value, errors: &mut Errors) {
    immutable_data(new, old, &["data", "binaryData"], errors);
}

pub fn secret_update(new: &Value, old: &Value, errors: &mut Errors) {
    errors.immutable(new, old, "type", &["type"]);
    immutable_data(new, old, &["data"], errors);
}

fn immutable_data(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    if !flag(old, &["immutable"]) {
        return;
    }
    if !flag(new, &["immutable"]) {
        errors.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in fields {
        if new.get(field) != old.get(field) {
            errors.push(FieldError::forbidden(field, "field is immutable when `immutable` is set"));
        }
    }
}

/// A claim's specification stays, but for its size, which may grow.
pub fn claim_update(new: &Value, old: &Value, errors: &mut Errors) {
    let rest = |claim: &Value| {
        let mut spec = claim["spec"].clone();
        if let Some(fields) = spec.as_object_mut() {
            fields.remove("resources");
            fields.remove("volumeName");
        }
        spec
    };
    if rest(new) != rest(old) {
        let why =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden("spec", why));
    }
}

pub fn role_ref_immutable(new: &Value, old: &Value, errors: &mut Errors) {
    if new["roleRef"] != old["roleRef"] {
        errors.push(FieldError::invalid("roleRef", &new["roleRef"].to_string(), "cannot change roleRef"));
    }
}

pub fn priority_class_update(new: &Value, old: &Value, errors: &mut Errors) {
    for field in ["value", "preemptionPolicy"] {
        if new[field] != old[field] {
            errors.push(FieldError::forbidden(field, "may not be changed in an update."));
        }
    }
}
