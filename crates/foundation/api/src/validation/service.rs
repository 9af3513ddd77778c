//! Services and EndpointSlices.

use std::collections::HashSet;

use serde_json::Value;

use super::{Errors, FieldError};
use crate::meta::{items, text};
use crate::names;

pub fn create(service: &Value, errors: &mut Errors) {
    let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    errors.one_of(service, "spec.type", &["spec", "type"], &types);
    errors.one_of(service, "spec.sessionAffinity", &["spec", "sessionAffinity"], &["ClientIP", "None"]);
    let policies = ["Cluster", "Local"];
    for field in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        errors.one_of(service, &format!("spec.{field}"), &["spec", field], &policies);
    }
    let kind = text(service, &["spec", "type"]);
    let headless = text(service, &["spec", "clusterIP"]) == "None";
    if kind == "ExternalName" {
        let name = text(service, &["spec", "externalName"]);
        errors.complaints("spec.externalName", name, names::dns1123_subdomain(name.trim_end_matches('.')));
    } else if items(service, &["spec", "ports"]).is_empty() && !headless {
        errors.push(FieldError::required("spec.ports", ""));
    }
    if headless && (kind == "NodePort" || kind == "LoadBalancer") {
        let why = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", &why));
    }
    ports(service, errors);
}

fn ports(service: &Value, errors: &mut Errors) {
    let all = items(service, &["spec", "ports"]);
    let (mut names_seen, mut numbers) = (HashSet::new(), HashSet::new());
    for (index, port) in all.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let name = text(port, &["name"]);
        if name.is_empty() && all.len() > 1 {
            errors.push(FieldError::required(&field("name"), ""));
        } else if !name.is_empty() {
            errors.complaints(&field("name"), name, names::dns1123_label(name));
            if !names_seen.insert(name) {
                errors.push(FieldError::duplicate(&field("name"), name));
            }
        }
        let number = port["port"].as_i64().unwrap_or(0);
        errors.complaints(&field("port"), &number.to_string(), names::port_number(number));
        let protocol = text(port, &["protocol"]);
        errors.one_of(port, &field("protocol"), &["protocol"], &["SCTP", "TCP", "UDP"]);
        if !numbers.insert((protocol, number)) {
            errors.push(FieldError::duplicate(&format!("spec.ports[{index}]"), &number.to_string()));
        }
        match &port["targetPort"] {
            Value::Number(target) => {
                let target = target.as_i64().unwrap_or(0);
                errors.complaints(&field("targetPort"), &target.to_string(), names::port_number(target));
            }
            Value::String(target) => errors.complaints(&field("targetPort"), target, names::port_name(target)),
            _ => {}
        }
    }
}

pub fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let (kind, before) = (text(new, &["spec", "type"]), text(old, &["spec", "type"]));
    let held = text(old, &["spec", "clusterIP"]);
    if kind != "ExternalName" && before != "ExternalName" && !held.is_empty() {
        errors.immutable(new, old, "spec.clusterIPs[0]", &["spec", "clusterIP"]);
    }
}

pub fn endpoint_slice_update(new: &Value, old: &Value, errors: &mut Errors) {
    errors.immutable(new, old, "addressType", &["addressType"]);
}
