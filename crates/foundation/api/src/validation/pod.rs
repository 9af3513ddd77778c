//! Pods and pod templates.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::common::{amount, quantity};
use super::field::Field;
use super::pod_parts::{affinity, dns, env, handler, identities, labels, probe, relative, spread, tolerations, volume};
use super::{Errors, FieldError};
use crate::meta::{at, items, text};
use crate::names;

pub fn rules(pod: &Value, errors: &mut Errors) {
    spec(&pod["spec"], "spec", errors);
}

/// Ephemeral containers come later, through their subresource.
pub fn create(pod: &Value, errors: &mut Errors) {
    let ephemeral = Field::spec(pod).at("ephemeralContainers");
    if ephemeral.len() > 0 {
        errors.deny(&ephemeral, "cannot be set on create");
    }
}

/// A pod's specification, also in a template.
pub(super) fn spec(spec: &Value, path: &str, errors: &mut Errors) {
    with_volumes(spec, path, HashSet::new(), errors);
}

/// The same where some volumes are made elsewhere: by the claim templates of a StatefulSet.
pub(super) fn with_volumes(spec: &Value, path: &str, given: HashSet<&str>, errors: &mut Errors) {
    let field = Field { value: spec, path: path.to_owned() };
    let mut volumes = HashSet::new();
    for one in field.at("volumes").items() {
        let name = one.at("name");
        errors.need_name(&name, names::dns1123_label);
        if !volumes.insert(name.text()) {
            errors.twice(&name);
        }
        volume(&one, errors);
    }
    volumes.extend(given);
    if field.at("containers").len() == 0 {
        errors.missing(&field.at("containers"), "");
    }
    let mut seen = HashSet::new();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for one in field.at(list).items() {
            container(&one, list, &volumes, &mut seen, errors);
            if field.at("hostNetwork").is_true() {
                host_ports(&one, errors);
            }
        }
    }
    whole(&field, errors);
}

/// What is said of the pod as a whole.
fn whole(spec: &Field, errors: &mut Errors) {
    errors.known(&spec.at("restartPolicy"), &["Always", "OnFailure", "Never"]);
    dns(spec, errors);
    errors.not_negative(&spec.at("terminationGracePeriodSeconds"));
    let deadline = spec.at("activeDeadlineSeconds");
    if deadline.int().is_some_and(|seconds| !(1..=i64::from(i32::MAX)).contains(&seconds)) {
        errors.bad(&deadline, "must be between 1 and 2147483647, inclusive");
    }
    labels(spec, "nodeSelector", errors);
    for (name, format) in [
        ("serviceAccountName", names::dns1123_subdomain as fn(&str) -> Vec<String>),
        ("nodeName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("runtimeClassName", names::dns1123_subdomain),
        ("priorityClassName", names::dns1123_subdomain),
        ("schedulerName", names::qualified_name),
    ] {
        if !spec.at(name).text().is_empty() {
            errors.name(&spec.at(name), format);
        }
    }
    errors.known(&spec.at("preemptionPolicy"), &["Never", "PreemptLowerPriority"]);
    affinity(&spec.at("affinity"), errors);
    tolerations(&spec.at("tolerations"), errors);
    spread(&spec.at("topologySpreadConstraints"), errors);
    identities(&spec.at("securityContext"), errors);
    for gate in spec.at("readinessGates").items() {
        errors.name(&gate.at("conditionType"), names::qualified_name);
    }
    for gate in spec.at("schedulingGates").items() {
        errors.name(&gate.at("name"), names::qualified_name);
    }
    errors.distinct(&spec.at("schedulingGates"), "name");
    for claim in spec.at("resourceClaims").items() {
        errors.need_name(&claim.at("name"), names::dns1123_label);
        let (named, template) = (claim.at("resourceClaimName"), claim.at("resourceClaimTemplateName"));
        let why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
        match (named.present(), template.present()) {
            (true, true) => errors.bad(&claim, why),
            (false, false) => {
                errors.missing(&claim, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`");
            }
            _ => {}
        }
    }
    errors.distinct(&spec.at("resourceClaims"), "name");
    let shared = spec.at("securityContext").at("supplementalGroups");
    for group in shared.items() {
        if group.int().is_some_and(|id| !(0..=i64::from(i32::MAX)).contains(&id)) {
            errors.bad(&group, "must be between 0 and 2147483647, inclusive");
        }
    }
}

fn container<'a>(
    one: &Field<'a>,
    list: &str,
    volumes: &HashSet<&str>,
    seen: &mut HashSet<&'a str>,
    errors: &mut Errors,
) {
    let name = one.at("name");
    if errors.need(&name) {
        errors.name(&name, names::dns1123_label);
        if !seen.insert(name.text()) {
            errors.twice(&name);
        }
    }
    let image = one.at("image");
    if errors.need(&image) && image.text().trim() != image.text() {
        errors.bad(&image, "must not have leading or trailing whitespace");
    }
    errors.known(&one.at("imagePullPolicy"), &["Always", "IfNotPresent", "Never"]);
    errors.known(&one.at("terminationMessagePolicy"), &["File", "FallbackToLogsOnError"]);
    ports(one, errors);
    one.at("env").items().for_each(|variable| env(&variable, errors));
    for source in one.at("envFrom").items() {
        let (map, secret) = (source.at("configMapRef"), source.at("secretRef"));
        match (map.present(), secret.present()) {
            (false, false) => {
                errors.complaints(&source.path, "", vec!["must specify one of: `configMapRef` or `secretRef`".into()]);
            }
            (true, true) => {
                let why = "may not have more than one field specified at a time";
                errors.complaints(&source.path, "", vec![why.into()]);
            }
            (true, false) => {
                errors.need(&map.at("name"));
            }
            (false, true) => {
                errors.need(&secret.at("name"));
            }
        }
    }
    mounts(one, volumes, errors);
    runs(one, list, errors);
    resources(one, errors);
}

/// Probes, hooks and rights. Init containers end, so only those that go on may be watched.
fn runs(one: &Field, list: &str, errors: &mut Errors) {
    const WATCHED: [&str; 4] = ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"];
    let sidecar = one.at("restartPolicy").is("Always");
    if list == "initContainers" && !sidecar {
        for name in WATCHED.iter().filter(|name| one.at(name).present()) {
            errors.deny(&one.at(name), "may not be set for init containers without restartPolicy=Always");
        }
    } else if list == "ephemeralContainers" {
        for name in WATCHED.iter().chain(&["ports", "resizePolicy"]).filter(|name| one.at(name).present()) {
            errors.deny(&one.at(name), "cannot be set for an Ephemeral Container");
        }
    } else {
        for hook in ["postStart", "preStop"] {
            if one.at("lifecycle").at(hook).present() {
                handler(&one.at("lifecycle").at(hook), &["exec", "httpGet", "tcpSocket", "sleep"], errors);
            }
        }
        probe(&one.at("livenessProbe"), true, errors);
        probe(&one.at("readinessProbe"), false, errors);
        probe(&one.at("startupProbe"), true, errors);
        let grace = one.at("readinessProbe").at("terminationGracePeriodSeconds");
        if grace.present() {
            errors.bad(&grace, "must not be set for readinessProbes");
        }
    }
    let context = one.at("securityContext");
    identities(&context, errors);
    if context.at("privileged").is_true() && context.at("allowPrivilegeEscalation").value == &Value::Bool(false) {
        errors.bad(&context, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
    }
    errors.known(&context.at("procMount"), &["Default", "Unmasked"]);
}

fn mounts(one: &Field, volumes: &HashSet<&str>, errors: &mut Errors) {
    let mut places = HashSet::new();
    for mount in one.at("volumeMounts").items() {
        let (name, place) = (mount.at("name"), mount.at("mountPath"));
        match name.text() {
            "" => errors.missing(&name, ""),
            text if !volumes.contains(text) => errors.push(FieldError::not_found(&name.path, text)),
            _ => {}
        }
        match place.text() {
            "" => errors.missing(&place, ""),
            text if !places.insert(text) => errors.bad(&place, "must be unique"),
            _ => {}
        }
        for name in ["subPath", "subPathExpr"] {
            if !mount.at(name).text().is_empty() {
                relative(&mount.at(name), errors);
            }
        }
        if !mount.at("subPath").text().is_empty() && !mount.at("subPathExpr").text().is_empty() {
            errors.bad(&mount.at("subPathExpr"), "subPathExpr and subPath are mutually exclusive");
        }
        errors.known(&mount.at("mountPropagation"), &["Bidirectional", "HostToContainer", "None"]);
        if mount.at("mountPropagation").is("Bidirectional") && !one.at("securityContext").at("privileged").is_true() {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            errors.deny(&mount.at("mountPropagation"), why);
        }
    }
    for device in one.at("volumeDevices").items() {
        let name = device.at("name");
        if errors.need(&name) && !volumes.contains(name.text()) {
            errors.push(FieldError::not_found(&name.path, name.text()));
        }
        errors.need(&device.at("devicePath"));
    }
}

fn ports(one: &Field, errors: &mut Errors) {
    for port in one.at("ports").items() {
        let (name, number, host) = (port.at("name"), port.at("containerPort"), port.at("hostPort"));
        if !name.text().is_empty() {
            errors.name(&name, names::port_name);
        }
        match number.int() {
            None | Some(0) => errors.missing(&number, ""),
            Some(value) => {
                for problem in names::port_number(value) {
                    errors.bad(&number, &problem);
                }
            }
        }
        if let Some(value) = host.int().filter(|value| *value != 0) {
            for problem in names::port_number(value) {
                errors.bad(&host, &problem);
            }
        }
        errors.known(&port.at("protocol"), &["SCTP", "TCP", "UDP"]);
    }
    errors.distinct(&one.at("ports"), "name");
}

fn host_ports(one: &Field, errors: &mut Errors) {
    for port in one.at("ports").items() {
        let host = port.at("hostPort");
        if host.present() && host.value != port.at("containerPort").value {
            errors.bad(&port.at("containerPort"), "must match `hostPort` when `hostNetwork` is true");
        }
    }
}

/// Whether a resource is one that a container may ask for by its short name.
fn standard(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage" | "storage") || name.starts_with("hugepages-")
}

fn resources(one: &Field, errors: &mut Errors) {
    let both = one.at("resources");
    let mut read = |list: &str| -> Map<String, Value> {
        let field = both.at(list);
        let map = field.value.as_object().cloned().unwrap_or_default();
        for name in map.keys() {
            errors.complaints(&field.path, name, names::qualified_name(name));
            if !name.contains('/') && !standard(name) {
                errors.complaints(&field.path, name, vec!["must be a standard resource for containers".into()]);
            }
            amount(&field.key(name), errors);
            if name.contains('/') && quantity(&field.key(name)).is_some_and(|amount| !amount.is_integer()) {
                errors.bad(&field.key(name), "must be an integer");
            }
        }
        map
    };
    let (requests, limits) = (read("requests"), read("limits"));
    let place = both.at("requests");
    for (name, request) in &requests {
        // What cannot be shared is asked for and limited alike.
        let divisible = standard(name) && !name.starts_with("hugepages-");
        let size = |list: &str| quantity(&both.at(list).key(name));
        match (size("requests"), size("limits")) {
            (Some(wanted), Some(limit)) if !divisible && wanted != limit => {
                errors.bad_value(&place.path, request, &format!("must be equal to {name} limit of {limit}"));
            }
            (Some(wanted), Some(limit)) if wanted > limit => {
                errors.bad_value(
                    &place.path,
                    request,
                    &format!("must be less than or equal to {name} limit of {limit}"),
                );
            }
            _ if !divisible && !limits.contains_key(name) => {
                errors.missing(&both.at("limits"), "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
    for claim in both.at("claims").items() {
        errors.need(&claim.at("name"));
    }
}

/// Fields of a running pod's specification that may change.
const MUTABLE: [&str; 2] = ["activeDeadlineSeconds", "tolerations"];

pub fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let (spec, before) = (Field::spec(new), Field::spec(old));
    const GRACE: &str = "terminationGracePeriodSeconds";
    let hurried = before.at(GRACE).int().is_some_and(|seconds| seconds < 0) && spec.at(GRACE).int() == Some(1);
    if frozen(new, old, hurried) != frozen(old, old, hurried) {
        errors.deny(
            &spec,
            "pod updates may not change fields other than \
             `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
             `spec.tolerations` (only additions to existing tolerations),\
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        );
    }
    let deadline = spec.at("activeDeadlineSeconds");
    match (deadline.int(), before.at("activeDeadlineSeconds").int()) {
        (None, Some(_)) => errors.bad(&deadline, "must not update from a positive integer to nil value"),
        (Some(now), Some(then)) if now > then => {
            errors.bad(&deadline, &format!("must be less than or equal to previous value: {then}"));
        }
        _ => {}
    }
    for old in before.at("tolerations").items() {
        let kept = |toleration: &Value| {
            let plain = |value: &Value| {
                let mut value = value.clone();
                value.as_object_mut().map(|fields| fields.remove("tolerationSeconds"));
                value
            };
            plain(toleration) == plain(old.value)
        };
        if !items(new, &["spec", "tolerations"]).iter().any(kept) {
            errors
                .deny(&spec.at("tolerations"), "existing toleration can not be modified except its tolerationSeconds");
        }
    }
    let gates = |pod: &Value| -> HashSet<String> {
        items(pod, &["spec", "schedulingGates"]).iter().map(|gate| text(gate, &["name"]).to_owned()).collect()
    };
    if let Some(gate) = gates(new).difference(&gates(old)).next() {
        errors.deny(
            &spec.at("schedulingGates"),
            &format!("only deletion is allowed, but found new scheduling gate '{gate}'"),
        );
    }
}

/// The specification without what may change. While gates hold a pod from being scheduled, where it may run is
/// still open to be narrowed.
fn frozen(pod: &Value, old: &Value, hurried: bool) -> Value {
    let gated = at(old, &["spec", "schedulingGates"]).and_then(Value::as_array).is_some_and(|gates| !gates.is_empty());
    let mut spec = pod["spec"].clone();
    let Some(fields) = spec.as_object_mut() else { return spec };
    for field in MUTABLE {
        fields.remove(field);
    }
    if hurried {
        fields.remove("terminationGracePeriodSeconds");
    }
    // A gate may be lifted.
    fields.remove("schedulingGates");
    if gated {
        fields.remove("nodeSelector");
        if let Some(affinity) = fields.get_mut("affinity").and_then(Value::as_object_mut) {
            affinity.remove("nodeAffinity");
            if affinity.is_empty() {
                fields.remove("affinity");
            }
        }
    }
    for list in ["containers", "initContainers"] {
        for container in fields.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container.remove("image");
            }
        }
    }
    spec
}
