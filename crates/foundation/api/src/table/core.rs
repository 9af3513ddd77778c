//! Columns of the core group but pods, volumes and what makes pods.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::Cell::{Age, At, Len, Name, Of, Or, Selector, Text};
use super::cells::{or_none, three};
use super::{Column, column, wide};
use crate::meta::{at, int, items, object, text};
use crate::time;

pub(crate) const SERVICE: &[Column] = &[
    column("Name", Name),
    column("Type", Text(&["spec", "type"])),
    column("Cluster-IP", Or(&["spec", "clusterIP"], "<none>")),
    column("External-IP", Of(external_ip)),
    column("Port(s)", Of(ports)),
    column("Age", Age),
    wide("Selector", Selector(&["spec", "selector"])),
];

fn external_ip(service: &Value) -> Value {
    let given = items(service, &["spec", "externalIPs"]).iter().filter_map(Value::as_str);
    let kind = text(service, &["spec", "type"]);
    let all: Vec<&str> = match kind {
        "ExternalName" => vec![text(service, &["spec", "externalName"])],
        "LoadBalancer" => super::networking::ingress_addresses(service).into_iter().chain(given).collect(),
        _ => given.collect(),
    };
    match (all.is_empty(), kind) {
        (true, "LoadBalancer") => json!("<pending>"),
        (true, _) => json!("<none>"),
        _ => json!(all.join(",")),
    }
}

fn ports(service: &Value) -> Value {
    let all: Vec<String> = items(service, &["spec", "ports"])
        .iter()
        .map(|port| {
            let protocol = text(port, &["protocol"]);
            match int(port, &["nodePort"]) {
                0 => format!("{}/{protocol}", int(port, &["port"])),
                node => format!("{}:{node}/{protocol}", int(port, &["port"])),
            }
        })
        .collect();
    or_none(&all.join(","))
}

pub(crate) const ENDPOINTS: &[Column] = &[column("Name", Name), column("Endpoints", Of(endpoints)), column("Age", Age)];

fn endpoints(endpoints: &Value) -> Value {
    let mut all = Vec::new();
    for subset in items(endpoints, &["subsets"]) {
        let addresses = || items(subset, &["addresses"]).iter().map(|address| text(address, &["ip"]));
        let ports = items(subset, &["ports"]);
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports.iter().map(|port| int(port, &["port"])) {
            all.extend(addresses().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{port}"),
                false => format!("{ip}:{port}"),
            }));
        }
    }
    three(&all, "<none>")
}

pub(crate) const NODE: &[Column] = &[
    column("Name", Name),
    column("Status", Of(node_status)),
    column("Roles", Of(roles)),
    column("Age", Age),
    column("Version", Text(&["status", "nodeInfo", "kubeletVersion"])),
    wide("Internal-IP", Of(|n| address(n, "InternalIP"))),
    wide("External-IP", Of(|n| address(n, "ExternalIP"))),
    wide("OS-Image", Or(&["status", "nodeInfo", "osImage"], "<unknown>")),
    wide("Kernel-Version", Or(&["status", "nodeInfo", "kernelVersion"], "<unknown>")),
    wide("Container-Runtime", Or(&["status", "nodeInfo", "containerRuntimeVersion"], "<unknown>")),
];

fn node_status(node: &Value) -> Value {
    let ready = items(node, &["status", "conditions"]).iter().find(|condition| condition["type"] == "Ready");
    let mut state = match ready.map(|condition| text(condition, &["status"])) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node["spec"]["unschedulable"] == true {
        state.push_str(",SchedulingDisabled");
    }
    json!(state)
}

fn roles(node: &Value) -> Value {
    let mut roles: Vec<&str> = Vec::new();
    for (key, value) in object(node, &["metadata", "labels"]).into_iter().flatten() {
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => roles.push(role),
            None if key == "kubernetes.io/role" => roles.extend(value.as_str()),
            None => {}
        }
    }
    roles.retain(|role| !role.is_empty());
    roles.sort_unstable();
    roles.dedup();
    or_none(&roles.join(","))
}

fn address(node: &Value, kind: &str) -> Value {
    let found = items(node, &["status", "addresses"]).iter().find(|address| address["type"] == kind);
    or_none(found.map_or("", |address| text(address, &["address"])))
}

pub(crate) const NAMESPACE: &[Column] =
    &[column("Name", Name), column("Status", Text(&["status", "phase"])), column("Age", Age)];

pub(crate) const CONFIG_MAP: &[Column] = &[
    column("Name", Name),
    column(
        "Data",
        Of(|c| {
            let count = |field| object(c, &[field]).map_or(0, serde_json::Map::len);
            json!(count("data") + count("binaryData"))
        }),
    ),
    column("Age", Age),
];

pub(crate) const SECRET: &[Column] =
    &[column("Name", Name), column("Type", Text(&["type"])), column("Data", Len(&["data"])), column("Age", Age)];

pub(crate) const SERVICE_ACCOUNT: &[Column] =
    &[column("Name", Name), column("Secrets", Len(&["secrets"])), column("Age", Age)];

pub(crate) const RESOURCE_QUOTA: &[Column] = &[
    column("Name", Name),
    column("Request", Of(|quota| usage(quota, false))),
    column("Limit", Of(|quota| usage(quota, true))),
    column("Age", Age),
];

/// `cpu: used/hard` of all limits, or of everything else.
fn usage(quota: &Value, limits: bool) -> Value {
    let hard = object(quota, &["status", "hard"]).into_iter().flatten();
    let mut rows: Vec<(&String, String)> = hard
        .filter(|(name, _)| name.starts_with("limits.") == limits)
        .map(|(name, hard)| {
            let used = super::cells::scalar(at(quota, &["status", "used", name]), "0");
            (name, format!("{name}: {used}/{}", super::cells::scalar(Some(hard), "0")))
        })
        .collect();
    rows.sort();
    json!(rows.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(", "))
}

pub(crate) const COMPONENT_STATUS: &[Column] = &[
    column("Name", Name),
    column(
        "Status",
        Of(|c| match healthy(c) {
            Some(condition) if condition["status"] == "True" => json!("Healthy"),
            Some(_) => json!("Unhealthy"),
            None => json!("Unknown"),
        }),
    ),
    column("Message", Of(|c| json!(healthy(c).map_or("", |condition| text(condition, &["message"]))))),
    column("Error", Of(|c| json!(healthy(c).map_or("", |condition| text(condition, &["error"]))))),
];

fn healthy(component: &Value) -> Option<&Value> {
    items(component, &["conditions"]).iter().find(|condition| condition["type"] == "Healthy")
}

pub(crate) const EVENT: &[Column] = &[
    column("Last Seen", At(last_seen)),
    column("Type", Text(&["type"])),
    column("Reason", Text(&["reason"])),
    column("Object", Of(|e| involved(e, "involvedObject"))),
    wide("Subobject", Text(&["involvedObject", "fieldPath"])),
    wide("Source", Of(source)),
    column("Message", Of(|e| json!(text(e, &["message"]).trim()))),
    wide("First Seen", At(first_seen)),
    wide("Count", Of(count)),
    wide("Name", Name),
];

/// The same of `events.k8s.io`, read from the fields as they are named there.
pub(crate) const NEW_EVENT: &[Column] = &[
    column("Last Seen", At(|e, now| last_seen(&as_core(e), now))),
    column("Type", Text(&["type"])),
    column("Reason", Text(&["reason"])),
    column("Object", Of(|e| involved(e, "regarding"))),
    wide("Subobject", Text(&["regarding", "fieldPath"])),
    wide("Source", Of(|e| source(&as_core(e)))),
    column("Message", Of(|e| json!(text(e, &["note"]).trim()))),
    wide("First Seen", At(|e, now| first_seen(&as_core(e), now))),
    wide("Count", Of(|e| count(&as_core(e)))),
    wide("Name", Name),
];

fn as_core(event: &Value) -> Value {
    let mut event = event.clone();
    (crate::conversion::EVENT.to_storage)(&mut event);
    event
}

fn first_of(event: &Value, fields: &[&str], now: Timestamp) -> Value {
    let seen = fields.iter().map(|field| text(event, &[field])).find(|seen| !seen.is_empty());
    json!(time::age(seen, now))
}

fn last_seen(event: &Value, now: Timestamp) -> Value {
    match text(event, &["series", "lastObservedTime"]) {
        "" => first_of(event, &["lastTimestamp", "firstTimestamp", "eventTime"], now),
        observed => json!(time::age(Some(observed), now)),
    }
}

fn first_seen(event: &Value, now: Timestamp) -> Value {
    first_of(event, &["firstTimestamp", "eventTime"], now)
}

fn count(event: &Value) -> Value {
    let single = int(event, &["count"]).max(1);
    json!(at(event, &["series", "count"]).and_then(Value::as_i64).unwrap_or(single))
}

fn involved(event: &Value, field: &str) -> Value {
    let kind = text(event, &[field, "kind"]).to_lowercase();
    match text(event, &[field, "name"]) {
        "" => json!(kind),
        name => json!(format!("{kind}/{name}")),
    }
}

/// The component, and the host where there is one.
fn source(event: &Value) -> Value {
    let either = |old: &[&str], new: &[&str]| match text(event, old) {
        "" => text(event, new).to_owned(),
        text => text.to_owned(),
    };
    let component = either(&["source", "component"], &["reportingComponent"]);
    match either(&["source", "host"], &["reportingInstance"]).as_str() {
        "" => json!(component),
        host => json!(format!("{component}, {host}")),
    }
}
