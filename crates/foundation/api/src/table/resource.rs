//! Columns of resource.k8s.io.

use serde_json::{Value, json};

use super::cells::Cell::{Age, Name, Of, Text};
use super::{Column, column};
use crate::meta::{at, deletion_timestamp, items};

pub(crate) const CLAIM: &[Column] = &[column("Name", Name), column("State", Of(state)), column("Age", Age)];

fn state(claim: &Value) -> Value {
    let mut states = Vec::new();
    if deletion_timestamp(claim).is_some() {
        states.push("deleted");
    }
    if at(claim, &["status", "allocation"]).is_none() {
        if deletion_timestamp(claim).is_none() {
            states.push("pending");
        }
    } else {
        states.push("allocated");
        if !items(claim, &["status", "reservedFor"]).is_empty() {
            states.push("reserved");
        }
    }
    json!(states.join(","))
}

pub(crate) const SLICE: &[Column] = &[
    column("Name", Name),
    column("Node", Text(&["spec", "nodeName"])),
    column("Driver", Text(&["spec", "driver"])),
    column("Pool", Text(&["spec", "pool", "name"])),
    column("Age", Age),
];
