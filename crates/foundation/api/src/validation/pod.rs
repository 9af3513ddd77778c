//! Pods and pod templates.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{Errors, FieldError};
use crate::meta::{at, items, text};
use crate::names;
use crate::quantity::Quantity;

pub fn create(pod: &Value, errors: &mut Errors) {
    spec(&pod["spec"], "spec", errors);
}

/// A pod's specification, also in a template.
pub(super) fn spec(spec: &Value, path: &str, errors: &mut Errors) {
    let mut volumes = HashSet::new();
    for (index, volume) in items(spec, &["volumes"]).iter().enumerate() {
        let field = format!("{path}.volumes[{index}].name");
        let name = text(volume, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(&field, ""));
        } else {
            errors.complaints(&field, name, names::dns1123_label(name));
        }
        if !volumes.insert(name) {
            errors.push(FieldError::duplicate(&field, name));
        }
    }
    if items(spec, &["containers"]).is_empty() {
        errors.push(FieldError::required(&format!("{path}.containers"), ""));
    }
    let mut seen = HashSet::new();
    for list in ["initContainers", "containers"] {
        for (index, one) in items(spec, &[list]).iter().enumerate() {
            container(one, &format!("{path}.{list}[{index}]"), &volumes, &mut seen, errors);
        }
    }
    errors.one_of(spec, &format!("{path}.restartPolicy"), &["restartPolicy"], &["Always", "OnFailure", "Never"]);
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    errors.one_of(spec, &format!("{path}.dnsPolicy"), &["dnsPolicy"], &policies);
    if let Some(grace) = spec["terminationGracePeriodSeconds"].as_i64().filter(|grace| *grace < 0) {
        let field = format!("{path}.terminationGracePeriodSeconds");
        errors.push(FieldError::invalid(&field, &grace.to_string(), "must be greater than or equal to 0"));
    }
}

fn container<'a>(
    container: &'a Value,
    path: &str,
    volumes: &HashSet<&str>,
    seen: &mut HashSet<&'a str>,
    errors: &mut Errors,
) {
    let name = text(container, &["name"]);
    if name.is_empty() {
        errors.push(FieldError::required(&format!("{path}.name"), ""));
    } else {
        errors.complaints(&format!("{path}.name"), name, names::dns1123_label(name));
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(&format!("{path}.name"), name));
        }
    }
    if text(container, &["image"]).is_empty() {
        errors.push(FieldError::required(&format!("{path}.image"), ""));
    }
    let pulls = ["Always", "IfNotPresent", "Never"];
    errors.one_of(container, &format!("{path}.imagePullPolicy"), &["imagePullPolicy"], &pulls);
    ports(container, path, errors);
    for (index, variable) in items(container, &["env"]).iter().enumerate() {
        let field = format!("{path}.env[{index}].name");
        match text(variable, &["name"]) {
            "" => errors.push(FieldError::required(&field, "")),
            name => errors.complaints(&field, name, names::env_var_name(name)),
        }
        if !text(variable, &["value"]).is_empty() && at(variable, &["valueFrom"]).is_some() {
            let field = format!("{path}.env[{index}].valueFrom");
            errors.push(FieldError::invalid(&field, "", "may not be specified when `value` is not empty"));
        }
    }
    let mut places = HashSet::new();
    for (index, mount) in items(container, &["volumeMounts"]).iter().enumerate() {
        let field = |name: &str| format!("{path}.volumeMounts[{index}].{name}");
        match text(mount, &["name"]) {
            "" => errors.push(FieldError::required(&field("name"), "")),
            name if !volumes.contains(name) => errors.push(FieldError::not_found(&field("name"), name)),
            _ => {}
        }
        match text(mount, &["mountPath"]) {
            "" => errors.push(FieldError::required(&field("mountPath"), "")),
            place if !places.insert(place) => {
                errors.push(FieldError::invalid(&field("mountPath"), place, "must be unique"));
            }
            _ => {}
        }
        let inside = text(mount, &["subPath"]);
        if inside.starts_with('/') || inside.split('/').any(|part| part == "..") {
            errors.push(FieldError::invalid(&field("subPath"), inside, "must be a relative path without '..'"));
        }
    }
    resources(container, path, errors);
}

fn ports(container: &Value, path: &str, errors: &mut Errors) {
    let mut names_seen = HashSet::new();
    for (index, port) in items(container, &["ports"]).iter().enumerate() {
        let field = |name: &str| format!("{path}.ports[{index}].{name}");
        let name = text(port, &["name"]);
        if !name.is_empty() {
            errors.complaints(&field("name"), name, names::port_name(name));
            if !names_seen.insert(name) {
                errors.push(FieldError::duplicate(&field("name"), name));
            }
        }
        match port["containerPort"].as_i64() {
            None => errors.push(FieldError::required(&field("containerPort"), "")),
            Some(number) => errors.complaints(&field("containerPort"), &number.to_string(), names::port_number(number)),
        }
        errors.one_of(port, &field("protocol"), &["protocol"], &["SCTP", "TCP", "UDP"]);
    }
}

fn resources(container: &Value, path: &str, errors: &mut Errors) {
    let mut parse = |list: &str| -> Map<String, Value> {
        let map = at(container, &["resources", list]).and_then(Value::as_object).cloned().unwrap_or_default();
        for (name, value) in &map {
            if quantity(value).is_none() {
                let field = format!("{path}.resources.{list}[{name}]");
                errors.push(FieldError::invalid(
                    &field,
                    &value.to_string(),
                    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
                ));
            }
        }
        map
    };
    let (requests, limits) = (parse("requests"), parse("limits"));
    for (name, request) in &requests {
        let pair = (quantity(request), limits.get(name).and_then(quantity));
        if let (Some(request_size), Some(limit)) = pair
            && request_size > limit
        {
            let field = format!("{path}.resources.requests");
            let why = format!("must be less than or equal to {name} limit of {limit}");
            errors.push(FieldError::invalid(&field, request.as_str().unwrap_or_default(), &why));
        }
    }
}

fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

/// Fields of a running pod's specification that may change.
const MUTABLE: [&str; 3] = ["activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations"];

pub fn update(new: &Value, old: &Value, errors: &mut Errors) {
    if frozen(&new["spec"]) != frozen(&old["spec"]) {
        errors.push(FieldError::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`, \
             `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` (only additions to \
             existing tolerations), `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously \
             negative)",
        ));
    }
}

/// The specification without what may change.
fn frozen(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let Some(fields) = spec.as_object_mut() else { return spec };
    for field in MUTABLE {
        fields.remove(field);
    }
    // The scheduler and its gates write through subresources; a gate may be lifted.
    fields.remove("schedulingGates");
    for list in ["containers", "initContainers"] {
        for container in fields.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container.remove("image");
            }
        }
    }
    spec
}
