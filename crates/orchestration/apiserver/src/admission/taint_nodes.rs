//! TaintNodesByCondition: a new node takes no pods until something has looked at its conditions.

use dhow_api::meta;
use serde_json::json;

use super::{Attributes, Operation};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub fn mutate(attributes: &mut Attributes<'_>) {
    if attributes.operation != Operation::Create || !attributes.is("", "Node") || attributes.subresource.is_some() {
        return;
    }
    let spec = meta::child_mut(&mut attributes.object, "spec");
    meta::default_to(spec, "taints", json!([]));
    if let Some(taints) = spec.get_mut("taints").and_then(|taints| taints.as_array_mut())
        && !taints.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule")
    {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
}
