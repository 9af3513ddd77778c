//! `deploy.placement`: where pods may go.

use serde_json::{Value, json};

use super::SERVICE;
use super::pod::Pod;
use super::project::Service;
use crate::error::Result;
use crate::view::View;

pub fn translate(service: &Service<'_>, pod: &mut Pod) -> Result<()> {
    let Some(placement) = service.deploy("placement") else { return Ok(()) };
    let mut expressions = Vec::new();
    for item in placement.get("constraints").iter().flat_map(View::items) {
        if let Some(expression) = constraint(&item)? {
            expressions.push(expression);
        }
    }
    let mut affinity = json!({});
    if !expressions.is_empty() {
        affinity["nodeAffinity"] = json!({"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": expressions}]}});
    }
    let own = json!({"matchLabels": {SERVICE: service.dns, super::PROJECT: pod.labels[super::PROJECT].clone()}});
    let mut spread = Vec::new();
    for item in placement.get("preferences").iter().flat_map(View::items) {
        let Some(view) = item.get("spread") else { continue };
        match key(view.text()?) {
            Some(key) => spread.push(json!({
                "maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": own})),
            None => view.warn("nodes are told apart by labels: write node.labels.NAME"),
        }
    }
    if let Some(view) = placement.get("max_replicas_per_node") {
        match view.int()? {
            0 => {}
            1 => {
                affinity["podAntiAffinity"] = json!({"requiredDuringSchedulingIgnoredDuringExecution": [
                    {"labelSelector": own, "topologyKey": "kubernetes.io/hostname"}]});
            }
            most => {
                spread.push(json!({"maxSkew": most, "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "DoNotSchedule", "labelSelector": own}));
                view.warn(format!(
                    "nodes differ by at most {most} pods; more than that on each is possible once all have as many"
                ));
            }
        }
    }
    super::put(&mut pod.spec, "affinity", affinity);
    super::put(&mut pod.spec, "topologySpreadConstraints", Value::Array(spread));
    Ok(())
}

/// `node.labels.disk == ssd` as a node selector's requirement.
fn constraint(view: &View<'_>) -> Result<Option<Value>> {
    let text = view.text()?;
    let (left, value, equal) = match (text.split_once("=="), text.split_once("!=")) {
        (Some((left, value)), None) => (left.trim(), value.trim(), true),
        (None, Some((left, value))) => (left.trim(), value.trim(), false),
        _ => return Err(view.invalid("is no constraint: KEY == VALUE or KEY != VALUE")),
    };
    if left == "node.role" {
        let manager = (value == "manager") == equal;
        let operator = if manager { "Exists" } else { "DoesNotExist" };
        return Ok(Some(json!({"key": "node-role.kubernetes.io/control-plane", "operator": operator})));
    }
    let Some(key) = key(left) else {
        view.warn("nodes are told apart by labels: write node.labels.NAME");
        return Ok(None);
    };
    if !dhow_api::names::label_value(value).is_empty() || !dhow_api::names::qualified_name(&key).is_empty() {
        return Err(view.invalid("no label of a node can be so"));
    }
    let value = if key == "kubernetes.io/arch" && value == "x86_64" { "amd64" } else { value };
    Ok(Some(json!({"key": key, "operator": if equal { "In" } else { "NotIn" }, "values": [value]})))
}

/// The node's label that Swarm's key stands for.
fn key(text: &str) -> Option<String> {
    match text {
        "node.hostname" | "node.id" => Some("kubernetes.io/hostname".to_owned()),
        "node.platform.os" => Some("kubernetes.io/os".to_owned()),
        "node.platform.arch" => Some("kubernetes.io/arch".to_owned()),
        _ => text.strip_prefix("node.labels.").or_else(|| text.strip_prefix("engine.labels.")).map(str::to_owned),
    }
}
