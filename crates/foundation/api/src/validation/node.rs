//! Nodes.

use std::collections::HashSet;

use serde_json::Value;

use super::{Errors, FieldError};
use crate::meta::{items, text};
use crate::names;

const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "PreferNoSchedule"];

pub fn create(node: &Value, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (index, taint) in items(node, &["spec", "taints"]).iter().enumerate() {
        let field = format!("spec.taints[{index}]");
        let key = text(taint, &["key"]);
        errors.complaints(&format!("{field}.key"), key, names::qualified_name(key));
        let effect = text(taint, &["effect"]);
        if !EFFECTS.contains(&effect) {
            errors.push(FieldError::not_supported(&format!("{field}.effect"), effect, &EFFECTS));
        }
        if !seen.insert((key, effect)) {
            errors.push(FieldError::duplicate(&field, key));
        }
    }
}

pub fn update(new: &Value, old: &Value, errors: &mut Errors) {
    // Addresses of pods follow from it: once set, it stays.
    for field in ["podCIDR", "providerID"] {
        if !text(old, &["spec", field]).is_empty() {
            errors.immutable(new, old, &format!("spec.{field}"), &["spec", field]);
        }
    }
}
