//! Defaults of Services and what hangs off them.

use crate::meta::{child_mut, default_to, each_mut};
use serde_json::{Value, json};

pub(crate) fn object(object: &mut Value) {
    let spec = child_mut(object, "spec");
    default_to(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "None" {
        spec.remove("sessionAffinityConfig");
    } else if spec["sessionAffinity"] == "ClientIP" {
        let config = spec.entry("sessionAffinityConfig").or_insert_with(|| json!({}));
        default_to(child_mut(config, "clientIP"), "timeoutSeconds", 10_800);
    }
    default_to(spec, "type", "ClusterIP");
    for port in each_mut(spec, "ports") {
        default_to(port, "protocol", "TCP");
        let empty = match port.get("targetPort") {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(other) => other.as_i64() == Some(0),
        };
        if empty && let Some(number) = port.get("port").cloned() {
            port.insert("targetPort".into(), number);
        }
    }
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        default_to(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        default_to(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default_to(spec, "allocateLoadBalancerNodePorts", true);
    }
    default_to(child_mut(object, "status"), "loadBalancer", json!({}));
}

pub(crate) fn endpoints(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    for subset in each_mut(map, "subsets") {
        for port in each_mut(subset, "ports") {
            default_to(port, "protocol", "TCP");
        }
    }
}

pub(crate) fn endpoint_slice(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    for port in each_mut(map, "ports") {
        default_to(port, "name", "");
        default_to(port, "protocol", "TCP");
    }
}

pub(crate) fn network_policy(object: &mut Value) {
    let spec = child_mut(object, "spec");
    for key in ["ingress", "egress"] {
        for rule in each_mut(spec, key) {
            for port in each_mut(rule, "ports") {
                default_to(port, "protocol", "TCP");
            }
        }
    }
    if spec.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
        let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        spec.insert("policyTypes".into(), types);
    }
}
