//! ConfigMaps and Secrets.

use serde_json::Value;

use super::field::Field;
use super::{Errors, FieldError};
use crate::meta::{flag, object, text};
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

/// Keys that a type of Secret cannot do without.
const NEEDED: [(&str, &[&str]); 4] = [
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];

pub fn secret(value: &Value, errors: &mut Errors) {
    keys(value, &["data"], errors);
    let (kind, data) = (text(value, &["type"]), Field::top(value, "data"));
    for (_, names) in NEEDED.iter().filter(|(name, _)| *name == kind) {
        for name in names.iter().filter(|name| !data.at(name).present()) {
            errors.missing(&data.key(name), "");
        }
    }
    if kind == "kubernetes.io/basic-auth" && !data.at("username").present() && !data.at("password").present() {
        errors.missing(&data.key("username"), "");
        errors.missing(&data.key("password"), "");
    }
    const ACCOUNT: &str = "kubernetes.io/service-account.name";
    if kind == "kubernetes.io/service-account-token" && text(value, &["metadata", "annotations", ACCOUNT]).is_empty() {
        errors.missing(&Field::top(value, "metadata").at("annotations").key(ACCOUNT), "");
    }
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
        errors.too_long(fields[0], LARGEST);
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
