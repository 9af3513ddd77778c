//! Defaults of pods and pod templates.

use super::canonical_quantities;
use crate::meta::{child_mut, default_to, each_mut};
use serde_json::{Map, Value, json};

/// A Pod. Resource requests are filled from limits here and not in templates, as upstream does.
pub(crate) fn object(object: &mut Value) {
    let spec = child_mut(object, "spec");
    spec_defaults(spec);
    default_to(spec, "enableServiceLinks", true);
    for key in ["containers", "initContainers"] {
        for container in each_mut(spec, key) {
            requests_from_limits(container);
        }
    }
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    if host_network {
        host_ports(spec);
    }
    let status = child_mut(object, "status");
    default_to(status, "phase", "Pending");
}

pub(crate) fn pod_template_object(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        template(map);
    }
}

/// The pod template under `template` of a workload's spec.
pub(crate) fn template(owner: &mut Map<String, Value>) {
    let Some(template) = owner.get_mut("template").filter(|t| t.is_object()) else { return };
    if template["metadata"].is_null() {
        template["metadata"] = json!({});
    }
    default_to(child_mut(template, "metadata"), "creationTimestamp", Value::Null);
    let spec = child_mut(template, "spec");
    spec_defaults(spec);
    if spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false) {
        host_ports(spec);
    }
}

fn host_ports(spec: &mut Map<String, Value>) {
    for key in ["containers", "initContainers"] {
        for container in each_mut(spec, key) {
            for port in each_mut(container, "ports") {
                if port.get("hostPort").and_then(Value::as_i64).unwrap_or(0) == 0
                    && let Some(number) = port.get("containerPort").cloned()
                {
                    port.insert("hostPort".into(), number);
                }
            }
        }
    }
}

fn spec_defaults(spec: &mut Map<String, Value>) {
    for (key, role) in
        [("initContainers", Role::Init), ("containers", Role::Main), ("ephemeralContainers", Role::Ephemeral)]
    {
        for one in each_mut(spec, key) {
            container(one, role);
        }
    }
    default_to(spec, "restartPolicy", "Always");
    default_to(spec, "terminationGracePeriodSeconds", 30);
    default_to(spec, "dnsPolicy", "ClusterFirst");
    default_to(spec, "securityContext", json!({}));
    default_to(spec, "schedulerName", "default-scheduler");
    // Both names of the service account are kept equal.
    let account = ["serviceAccountName", "serviceAccount"]
        .iter()
        .find_map(|key| spec.get(*key).filter(|v| v.as_str().is_some_and(|s| !s.is_empty())).cloned());
    if let Some(account) = account {
        spec.insert("serviceAccountName".into(), account.clone());
        spec.insert("serviceAccount".into(), account);
    }
    canonical_quantities(spec, "overhead");
    for one in each_mut(spec, "volumes") {
        volume(one);
    }
    for constraint in each_mut(spec, "topologySpreadConstraints") {
        if constraint.get("whenUnsatisfiable").is_none() {
            constraint.insert("whenUnsatisfiable".into(), json!("DoNotSchedule"));
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Init,
    Main,
    Ephemeral,
}

fn container(container: &mut Map<String, Value>, role: Role) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if pulls_always(image) { "Always" } else { "IfNotPresent" };
    default_to(container, "imagePullPolicy", policy);
    default_to(container, "terminationMessagePath", "/dev/termination-log");
    default_to(container, "terminationMessagePolicy", "File");
    if role != Role::Ephemeral {
        default_to(container, "resources", json!({}));
    }
    if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) {
        canonical_quantities(resources, "limits");
        canonical_quantities(resources, "requests");
    }
    for port in each_mut(container, "ports") {
        default_to(port, "protocol", "TCP");
    }
    for variable in each_mut(container, "env") {
        let source = variable.get_mut("valueFrom");
        if let Some(field) = source.and_then(|v| v.get_mut("fieldRef")).and_then(Value::as_object_mut) {
            default_to(field, "apiVersion", "v1");
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(key).and_then(Value::as_object_mut) {
            default_to(probe, "timeoutSeconds", 1);
            default_to(probe, "periodSeconds", 10);
            default_to(probe, "successThreshold", 1);
            default_to(probe, "failureThreshold", 3);
            handler(probe);
        }
    }
    if let Some(lifecycle) = container.get_mut("lifecycle").and_then(Value::as_object_mut) {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.get_mut(hook).and_then(Value::as_object_mut) {
                handler(hook);
            }
        }
    }
}

fn handler(map: &mut Map<String, Value>) {
    if let Some(http) = map.get_mut("httpGet").and_then(Value::as_object_mut) {
        default_to(http, "path", "/");
        default_to(http, "scheme", "HTTP");
    }
    if let Some(grpc) = map.get_mut("grpc").and_then(Value::as_object_mut) {
        default_to(grpc, "service", "");
    }
}

/// Whether an image without an explicit policy is pulled each time: no tag, or `latest`, and no digest.
fn pulls_always(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => true,
    }
}

fn requests_from_limits(container: &mut Map<String, Value>) {
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else { return };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
    let requests = resources.entry("requests").or_insert_with(|| json!({}));
    if requests.is_null() {
        *requests = json!({});
    }
    if let Some(requests) = requests.as_object_mut() {
        for (name, value) in limits {
            requests.entry(name).or_insert(value);
        }
    }
}

fn volume(volume: &mut Map<String, Value>) {
    if volume.len() == 1 && volume.contains_key("name") {
        volume.insert("emptyDir".into(), json!({}));
    }
    for key in ["secret", "configMap", "downwardAPI", "projected"] {
        let Some(source) = volume.get_mut(key).and_then(Value::as_object_mut) else { continue };
        default_to(source, "defaultMode", 420);
        field_refs(source);
        for projection in each_mut(source, "sources") {
            if let Some(token) = projection.get_mut("serviceAccountToken").and_then(Value::as_object_mut) {
                default_to(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = projection.get_mut("downwardAPI").and_then(Value::as_object_mut) {
                field_refs(downward);
            }
        }
    }
    super::rows::fill_map(volume, super::rows::VOLUME);
    if let Some(image) = volume.get_mut("image").and_then(Value::as_object_mut) {
        let reference = image.get("reference").and_then(Value::as_str).unwrap_or_default();
        let policy = if pulls_always(reference) { "Always" } else { "IfNotPresent" };
        default_to(image, "pullPolicy", policy);
    }
    let claim = volume.get_mut("ephemeral").and_then(|v| v.get_mut("volumeClaimTemplate"));
    if let Some(claim) = claim {
        super::storage::claim_spec(child_mut(claim, "spec"));
    }
}

fn field_refs(source: &mut Map<String, Value>) {
    for item in each_mut(source, "items") {
        if let Some(field) = item.get_mut("fieldRef").and_then(Value::as_object_mut) {
            default_to(field, "apiVersion", "v1");
        }
    }
}
