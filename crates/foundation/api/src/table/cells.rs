//! Columns of all kinds but pods.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, column, wide};
use crate::meta::{at, int, items, object, text};
use crate::time;

pub(super) fn name(object: &Value, _: Timestamp) -> Value {
    json!(crate::meta::name(object))
}

pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    json!(time::age(at(object, &["metadata", "creationTimestamp"]).and_then(Value::as_str), now))
}

fn created(object: &Value, _: Timestamp) -> Value {
    json!(text(object, &["metadata", "creationTimestamp"]))
}

pub(super) fn or_none(text: &str) -> Value {
    json!(if text.is_empty() { "<none>" } else { text })
}

/// `a=b,c in (d)`.
fn selector(value: Option<&Value>) -> Value {
    let Some(value) = value else { return json!("<none>") };
    let labels = value.get("matchLabels").or(Some(value)).and_then(Value::as_object);
    let mut parts: Vec<String> =
        labels.into_iter().flatten().filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect();
    parts.sort();
    for term in items(value, &["matchExpressions"]) {
        let values: Vec<&str> = items(term, &["values"]).iter().filter_map(Value::as_str).collect();
        let key = text(term, &["key"]);
        parts.push(match text(term, &["operator"]) {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    or_none(&parts.join(","))
}

fn containers(object: &Value, field: &str) -> Value {
    let all = items(object, &["spec", "template", "spec", "containers"]);
    json!(all.iter().map(|container| text(container, &[field])).collect::<Vec<_>>().join(","))
}

fn container_names(object: &Value, _: Timestamp) -> Value {
    containers(object, "name")
}

fn container_images(object: &Value, _: Timestamp) -> Value {
    containers(object, "image")
}

fn spec_selector(object: &Value, _: Timestamp) -> Value {
    selector(at(object, &["spec", "selector"]))
}

fn number(object: &Value, path: &[&str]) -> Value {
    json!(int(object, path).to_string())
}

pub(super) const OTHER: &[Column] = &[column("Name", name), column("Age", age)];

pub(super) const DEPLOYMENT: &[Column] = &[
    column("Name", name),
    column("Ready", |d, _| {
        json!(format!("{}/{}", int(d, &["status", "readyReplicas"]), int(d, &["spec", "replicas"])))
    }),
    column("Up-to-date", |d, _| number(d, &["status", "updatedReplicas"])),
    column("Available", |d, _| number(d, &["status", "availableReplicas"])),
    column("Age", age),
    wide("Containers", container_names),
    wide("Images", container_images),
    wide("Selector", spec_selector),
];

pub(super) const REPLICA_SET: &[Column] = &[
    column("Name", name),
    column("Desired", |r, _| number(r, &["spec", "replicas"])),
    column("Current", |r, _| number(r, &["status", "replicas"])),
    column("Ready", |r, _| number(r, &["status", "readyReplicas"])),
    column("Age", age),
    wide("Containers", container_names),
    wide("Images", container_images),
    wide("Selector", spec_selector),
];

pub(super) const STATEFUL_SET: &[Column] = &[
    column("Name", name),
    column("Ready", |s, _| {
        json!(format!("{}/{}", int(s, &["status", "readyReplicas"]), int(s, &["spec", "replicas"])))
    }),
    column("Age", age),
    wide("Containers", container_names),
    wide("Images", container_images),
];

pub(super) const DAEMON_SET: &[Column] = &[
    column("Name", name),
    column("Desired", |d, _| number(d, &["status", "desiredNumberScheduled"])),
    column("Current", |d, _| number(d, &["status", "currentNumberScheduled"])),
    column("Ready", |d, _| number(d, &["status", "numberReady"])),
    column("Up-to-date", |d, _| number(d, &["status", "updatedNumberScheduled"])),
    column("Available", |d, _| number(d, &["status", "numberAvailable"])),
    column("Node Selector", |d, _| selector(at(d, &["spec", "template", "spec", "nodeSelector"]))),
    column("Age", age),
    wide("Containers", container_names),
    wide("Images", container_images),
    wide("Selector", spec_selector),
];

pub(super) const JOB: &[Column] = &[
    column("Name", name),
    column("Status", |job, _| {
        let holds = |kind: &str| {
            items(job, &["status", "conditions"]).iter().any(|c| c["type"] == kind && c["status"] == "True")
        };
        json!(["Complete", "Failed", "Suspended"].into_iter().find(|kind| holds(kind)).unwrap_or("Running"))
    }),
    column("Completions", |job, _| {
        let done = int(job, &["status", "succeeded"]);
        match at(job, &["spec", "completions"]).and_then(Value::as_i64) {
            Some(wanted) => json!(format!("{done}/{wanted}")),
            None => json!(format!("{done}/1 of {}", int(job, &["spec", "parallelism"]))),
        }
    }),
    column("Duration", |job, now| {
        let at = |field: &str| time::parse(text(job, &["status", field])).ok();
        let Some(begin) = at("startTime") else { return json!("") };
        json!(time::human_duration(time::seconds_between(begin, at("completionTime").unwrap_or(now))))
    }),
    column("Age", age),
    wide("Containers", container_names),
    wide("Images", container_images),
    wide("Selector", spec_selector),
];

pub(super) const SERVICE: &[Column] = &[
    column("Name", name),
    column("Type", |s, _| json!(text(s, &["spec", "type"]))),
    column("Cluster-IP", |s, _| or_none(text(s, &["spec", "clusterIP"]))),
    column("External-IP", external_ip),
    column("Port(s)", ports),
    column("Age", age),
    wide("Selector", |s, _| selector(at(s, &["spec", "selector"]))),
];

fn external_ip(service: &Value, _: Timestamp) -> Value {
    let given = items(service, &["spec", "externalIPs"]).iter().filter_map(Value::as_str);
    let ingress = items(service, &["status", "loadBalancer", "ingress"]).iter().map(|entry| {
        let ip = text(entry, &["ip"]);
        if ip.is_empty() { text(entry, &["hostname"]) } else { ip }
    });
    let all: Vec<&str> = match text(service, &["spec", "type"]) {
        "ExternalName" => vec![text(service, &["spec", "externalName"])],
        "LoadBalancer" => ingress.chain(given).collect(),
        _ => given.collect(),
    };
    match (all.is_empty(), text(service, &["spec", "type"])) {
        (true, "LoadBalancer") => json!("<pending>"),
        (true, _) => json!("<none>"),
        _ => json!(all.join(",")),
    }
}

fn ports(service: &Value, _: Timestamp) -> Value {
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

pub(super) const ENDPOINT_SLICE: &[Column] = &[
    column("Name", name),
    column("AddressType", |s, _| json!(text(s, &["addressType"]))),
    column("Ports", |s, _| {
        let all: Vec<String> = items(s, &["ports"]).iter().map(|port| int(port, &["port"]).to_string()).collect();
        json!(if all.is_empty() { "<unset>".to_owned() } else { all.join(",") })
    }),
    column("Endpoints", |s, _| {
        let all: Vec<&str> = items(s, &["endpoints"])
            .iter()
            .flat_map(|endpoint| items(endpoint, &["addresses"]))
            .filter_map(Value::as_str)
            .collect();
        match all.len() {
            0 => json!("<unset>"),
            more if more > 3 => json!(format!("{} + {} more...", all[..3].join(","), more - 3)),
            _ => json!(all.join(",")),
        }
    }),
    column("Age", age),
];

pub(super) const NODE: &[Column] = &[
    column("Name", name),
    column("Status", |n, _| {
        let ready = items(n, &["status", "conditions"]).iter().find(|condition| condition["type"] == "Ready");
        let mut state = match ready.map(|condition| text(condition, &["status"])) {
            Some("True") => "Ready".to_owned(),
            Some("False") => "NotReady".to_owned(),
            _ => "Unknown".to_owned(),
        };
        if n["spec"]["unschedulable"] == true {
            state.push_str(",SchedulingDisabled");
        }
        json!(state)
    }),
    column("Roles", |n, _| {
        let labels = object(n, &["metadata", "labels"]).into_iter().flatten();
        let mut roles: Vec<&str> = labels.filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/")).collect();
        roles.sort_unstable();
        or_none(&roles.join(","))
    }),
    column("Age", age),
    column("Version", |n, _| json!(text(n, &["status", "nodeInfo", "kubeletVersion"]))),
    wide("Internal-IP", |n, _| address(n, "InternalIP")),
    wide("External-IP", |n, _| address(n, "ExternalIP")),
    wide("OS-Image", |n, _| json!(text(n, &["status", "nodeInfo", "osImage"]))),
    wide("Kernel-Version", |n, _| json!(text(n, &["status", "nodeInfo", "kernelVersion"]))),
    wide("Container-Runtime", |n, _| json!(text(n, &["status", "nodeInfo", "containerRuntimeVersion"]))),
];

fn address(node: &Value, kind: &str) -> Value {
    let found = items(node, &["status", "addresses"]).iter().find(|address| address["type"] == kind);
    or_none(found.map_or("", |address| text(address, &["address"])))
}

pub(super) const NAMESPACE: &[Column] =
    &[column("Name", name), column("Status", |n, _| json!(text(n, &["status", "phase"]))), column("Age", age)];

fn entries(object_: &Value, fields: &[&str]) -> Value {
    let count: usize = fields.iter().filter_map(|field| object(object_, &[field])).map(serde_json::Map::len).sum();
    json!(count.to_string())
}

pub(super) const CONFIG_MAP: &[Column] =
    &[column("Name", name), column("Data", |c, _| entries(c, &["data", "binaryData"])), column("Age", age)];

pub(super) const SECRET: &[Column] = &[
    column("Name", name),
    column("Type", |s, _| json!(text(s, &["type"]))),
    column("Data", |s, _| entries(s, &["data"])),
    column("Age", age),
];

pub(super) const EVENT: &[Column] = &[
    column("Last Seen", |e, now| {
        let seen = ["lastTimestamp", "eventTime", "firstTimestamp"].into_iter().map(|field| text(e, &[field]));
        json!(time::age(seen.into_iter().find(|seen| !seen.is_empty()), now))
    }),
    column("Type", |e, _| json!(text(e, &["type"]))),
    column("Reason", |e, _| json!(text(e, &["reason"]))),
    column("Object", |e, _| {
        let of = |field: &str| text(e, &["involvedObject", field]);
        json!(format!("{}/{}", of("kind").to_lowercase(), of("name")))
    }),
    wide("Source", |e, _| json!(text(e, &["source", "component"]))),
    column("Message", |e, _| json!(text(e, &["message"]).trim())),
    wide("Count", |e, _| number(e, &["count"])),
    wide("Name", name),
];

pub(super) const LEASE: &[Column] =
    &[column("Name", name), column("Holder", |l, _| json!(text(l, &["spec", "holderIdentity"]))), column("Age", age)];

pub(super) const PRIORITY_CLASS: &[Column] = &[
    column("Name", name),
    column("Value", |p, _| number(p, &["value"])),
    column("Global-Default", |p, _| json!((p["globalDefault"] == true).to_string())),
    column("Age", age),
    column("PreemptionPolicy", |p, _| json!(text(p, &["preemptionPolicy"]))),
];

pub(super) const ROLE: &[Column] = &[column("Name", name), column("Created At", created)];

pub(super) const ROLE_BINDING: &[Column] = &[
    column("Name", name),
    column("Role", |b, _| json!(format!("{}/{}", text(b, &["roleRef", "kind"]), text(b, &["roleRef", "name"])))),
    column("Age", age),
    wide("Users", |b, _| subjects(b, "User")),
    wide("Groups", |b, _| subjects(b, "Group")),
    wide("ServiceAccounts", |b, _| subjects(b, "ServiceAccount")),
];

fn subjects(binding: &Value, kind: &str) -> Value {
    let of_kind = items(binding, &["subjects"]).iter().filter(|subject| subject["kind"] == kind);
    let names: Vec<String> = of_kind
        .map(|subject| match text(subject, &["namespace"]) {
            "" => text(subject, &["name"]).to_owned(),
            namespace => format!("{namespace}/{}", text(subject, &["name"])),
        })
        .collect();
    json!(names.join(", "))
}
