//! What a write keeps and what it resets: status and spec do not overwrite each other, `generation` moves
//! with the desired state only.

use crate::defaulting;
use crate::meta::{child_mut, default_to, metadata_mut, text};
use crate::registry::Kind;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// Fields of `metadata` that a client cannot set on create.
const SERVER_SET: [&str; 6] =
    ["uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"];

/// Clears what the server owns, resets status and starts `generation`. Uid, name and timestamps are
/// the pipeline's: it calls [`fill_metadata`] with them.
pub fn prepare_create(kind: &Kind, object: &mut Value) {
    let metadata = metadata_mut(object);
    for field in SERVER_SET {
        metadata.remove(field);
    }
    metadata.remove("generation");
    if kind.generation {
        metadata.insert("generation".into(), json!(1));
    }
    if kind.has_status()
        && !keeps_status_on_create(kind)
        && let Some(map) = object.as_object_mut()
    {
        match kind.custom {
            Some(_) => map.remove("status"),
            None => map.insert("status".into(), json!({})),
        };
    }
    (kind.prepare_create)(object);
    defaulting::apply(kind, object);
    leave_out_empty(object);
}

/// Metadata that says nothing is not kept, as upstream's types leave it out.
fn leave_out_empty(object: &mut Value) {
    const OPTIONAL: [&str; 8] = [
        "annotations",
        "finalizers",
        "generateName",
        "generation",
        "labels",
        "managedFields",
        "ownerReferences",
        "selfLink",
    ];
    let says_nothing = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(_) => false,
    };
    metadata_mut(object).retain(|field, value| !(OPTIONAL.contains(&field.as_str()) && says_nothing(value)));
}

/// Nodes register with their status in one request; everything else reports it later.
fn keeps_status_on_create(kind: &Kind) -> bool {
    kind.kind == "Node"
}

/// Sets what the server gives every new object.
pub fn fill_metadata(object: &mut Value, uid: &str, created: &str) {
    let metadata = metadata_mut(object);
    metadata.insert("uid".into(), json!(uid));
    metadata.insert("creationTimestamp".into(), json!(created));
}

/// An update of the main resource: status and server-set metadata stay as they were.
pub fn prepare_update(kind: &Kind, object: &mut Value, old: &Value) {
    keep_metadata(object, old);
    if kind.has_status() {
        keep(object, old, "status");
    }
    (kind.prepare_update)(object, old);
    defaulting::apply(kind, object);
    set_generation(kind, object, old);
    leave_out_empty(object);
}

/// An update of `status`: everything but status and a few metadata fields stays as it was.
pub fn prepare_status_update(kind: &Kind, object: &mut Value, old: &Value) {
    let status = object.get("status").cloned();
    let incoming = object.get("metadata").cloned().unwrap_or_default();
    let mut result = old.clone();
    if let Some(map) = result.as_object_mut() {
        match status {
            Some(status) if !status.is_null() => map.insert("status".into(), status),
            _ => map.remove("status"),
        };
    }
    // Labels and annotations may travel with a status update; nodes rely on it. Finalizers and owners may not. Those
    // of custom kinds stay as they are.
    let metadata = metadata_mut(&mut result);
    let fields = ["managedFields", "resourceVersion", "annotations", "labels"];
    for field in if kind.custom.is_some() { &fields[..2] } else { &fields[..] } {
        let field = *field;
        match incoming.get(field) {
            Some(value) if !value.is_null() => metadata.insert(field.into(), value.clone()),
            _ => metadata.remove(field),
        };
    }
    *object = result;
    (kind.prepare_status)(object, old);
    defaulting::apply(kind, object);
    leave_out_empty(object);
}

/// Copies the metadata a client cannot change from `old`.
fn keep_metadata(object: &mut Value, old: &Value) {
    let empty = Map::new();
    let before = old["metadata"].as_object().unwrap_or(&empty);
    let metadata = metadata_mut(object);
    for field in [
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "uid",
        "namespace",
        "name",
    ] {
        // An explicit, different uid is a failed precondition and is left for validation to report.
        if field == "uid" && metadata.get(field).is_some_and(|v| v.as_str().is_some_and(|s| !s.is_empty())) {
            continue;
        }
        match before.get(field) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
}

fn keep(object: &mut Value, old: &Value, field: &str) {
    if let Some(map) = object.as_object_mut() {
        match old.get(field) {
            Some(value) => map.insert(field.into(), value.clone()),
            None => map.remove(field),
        };
    }
}

/// Moves `generation` when anything but metadata and status changed, or when deletion begins.
fn set_generation(kind: &Kind, object: &mut Value, old: &Value) {
    if !kind.generation {
        return;
    }
    let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
    // Without a subresource of its own, the status is a field like others.
    let status = kind.custom.is_some() && !kind.has_status() && object.get("status") != old.get("status");
    let changed = status || desired_changed(object, old);
    metadata_mut(object).insert("generation".into(), json!(generation + i64::from(changed)));
}

/// Whether the desired state differs.
pub fn desired_changed(object: &Value, old: &Value) -> bool {
    let desired = |value: &Value| -> Map<String, Value> {
        let entries = value.as_object().into_iter().flatten();
        entries
            .filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    desired(object) != desired(old)
}

/// Marks the object as being deleted: the first stage of a graceful delete or of waiting for finalizers.
pub fn begin_deletion(kind: &Kind, object: &mut Value, deletion_time: &str, grace_seconds: i64) {
    let generation = object["metadata"]["generation"].as_i64();
    let metadata = metadata_mut(object);
    metadata.insert("deletionTimestamp".into(), json!(deletion_time));
    metadata.insert("deletionGracePeriodSeconds".into(), json!(grace_seconds));
    if let Some(generation) = generation.filter(|_| kind.generation) {
        metadata.insert("generation".into(), json!(generation + 1));
    }
}

/// The grace period of a delete: the request's, else the object's own, else none. A pod that has no node yet or
/// has finished is deleted at once.
pub fn grace_seconds(kind: &Kind, object: &Value, requested: Option<i64>) -> i64 {
    if !kind.graceful_delete {
        return 0;
    }
    let finished = matches!(text(object, &["status", "phase"]), "Succeeded" | "Failed");
    if finished || text(object, &["spec", "nodeName"]).is_empty() {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    // A negative period means "at once, but not forced": upstream turns it into one second.
    match requested.unwrap_or(own) {
        seconds if seconds < 0 => 1,
        seconds => seconds,
    }
}

pub(crate) fn namespace_create(object: &mut Value) {
    child_mut(object, "status").insert("phase".into(), json!("Active"));
}

pub(crate) fn namespace_update(object: &mut Value, old: &Value) {
    // spec.finalizers changes only through the finalize subresource.
    if let Some(finalizers) = old["spec"].get("finalizers") {
        child_mut(object, "spec").insert("finalizers".into(), finalizers.clone());
    }
}

pub(crate) fn pod_create(object: &mut Value) {
    child_mut(object, "spec");
    let class = qos_class(object);
    let gated = object["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty());
    let status = child_mut(object, "status");
    status.insert("phase".into(), json!("Pending"));
    status.insert("qosClass".into(), json!(class));
    if gated {
        let message = "Scheduling is blocked due to non-empty scheduling gates";
        let condition =
            json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": message});
        status.insert("conditions".into(), json!([condition]));
    }
}

/// Guaranteed, Burstable or BestEffort, from CPU and memory of all containers.
pub fn qos_class(pod: &Value) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for key in ["containers", "initContainers"] {
        for container in pod["spec"][key].as_array().into_iter().flatten() {
            let get = |kind: &str, name: &str| {
                let value = &container["resources"][kind][name];
                let text = value.as_str().map(str::to_owned).or_else(|| value.as_i64().map(|n| n.to_string()))?;
                text.parse::<crate::quantity::Quantity>().ok().filter(|q| !q.is_zero())
            };
            for name in ["cpu", "memory"] {
                let limit = get("limits", name);
                let request = get("requests", name).or(limit);
                any |= limit.is_some() || request.is_some();
                guaranteed &= limit.is_some() && limit == request;
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

pub(crate) fn service_update(object: &mut Value, old: &Value) {
    // A PUT of the manifest that was created keeps what the server allocated.
    let kind = |v: &Value| text(v, &["spec", "type"]).to_owned();
    let (new_kind, old_kind) = (kind(object), kind(old));
    drop_what_the_type_had(object, old, &new_kind, &old_kind);
    if new_kind == "ExternalName" || old_kind == "ExternalName" {
        return;
    }
    let spec = child_mut(object, "spec");
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let absent = match spec.get(field) {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(_) => false,
        };
        if absent && let Some(value) = old["spec"].get(field) {
            spec.insert(field.into(), value.clone());
        }
    }
    let wants_node_ports = matches!(new_kind.as_str(), "NodePort" | "LoadBalancer");
    let empty = Vec::new();
    let old_ports = old["spec"]["ports"].as_array().unwrap_or(&empty);
    for port in crate::meta::each_mut(spec, "ports") {
        if wants_node_ports && port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) == 0 {
            let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_owned();
            let same = old_ports
                .iter()
                .find(|p| p.get("port") == port.get("port") && p["protocol"].as_str().unwrap_or("TCP") == protocol);
            if let Some(node_port) = same.and_then(|p| p.get("nodePort")) {
                port.insert("nodePort".into(), node_port.clone());
            }
        }
    }
}

/// Fields that only some types of Service have. One who changes the type and leaves them alone does not mean them.
fn drop_what_the_type_had(object: &mut Value, old: &Value, new_kind: &str, old_kind: &str) {
    const EXTERNAL: &[&str] = &["NodePort", "LoadBalancer"];
    const ADDRESSED: &[&str] = &["ClusterIP", "NodePort", "LoadBalancer"];
    const FIELDS: [(&str, &[&str]); 10] = [
        ("externalTrafficPolicy", EXTERNAL),
        ("healthCheckNodePort", EXTERNAL),
        ("allocateLoadBalancerNodePorts", &["LoadBalancer"]),
        ("loadBalancerClass", &["LoadBalancer"]),
        ("internalTrafficPolicy", ADDRESSED),
        ("clusterIP", ADDRESSED),
        ("clusterIPs", ADDRESSED),
        ("ipFamilies", ADDRESSED),
        ("ipFamilyPolicy", ADDRESSED),
        ("sessionAffinityConfig", ADDRESSED),
    ];
    let lost = |kinds: &[&str]| kinds.contains(&old_kind) && !kinds.contains(&new_kind);
    let spec = child_mut(object, "spec");
    for (field, kinds) in FIELDS {
        if lost(kinds) && spec.get(field) == old["spec"].get(field) {
            spec.remove(field);
        }
    }
    if !lost(EXTERNAL) {
        return;
    }
    let before: Vec<&Value> =
        crate::meta::items(old, &["spec", "ports"]).iter().map(|port| &port["nodePort"]).collect();
    for port in crate::meta::each_mut(spec, "ports") {
        if port.get("nodePort").is_some_and(|number| before.contains(&number)) {
            port.remove("nodePort");
        }
    }
}

/// Moves `stringData` into `data`; it is write-only.
pub(crate) fn secret(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    let Some(Value::Object(plain)) = map.remove("stringData") else { return };
    let data = map.entry("data").or_insert_with(|| json!({}));
    if data.is_null() {
        *data = json!({});
    }
    if let Some(data) = data.as_object_mut() {
        for (key, value) in plain {
            data.insert(key, json!(base64(value.as_str().unwrap_or_default().as_bytes())));
        }
    }
}

pub(crate) fn secret_update(object: &mut Value, old: &Value) {
    if text(object, &["type"]).is_empty()
        && let Some(kind) = old.get("type").cloned()
        && let Some(map) = object.as_object_mut()
    {
        map.insert("type".into(), kind);
    }
    secret(object);
}

pub(crate) fn priority_class_create(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        default_to(map, "value", 0);
    }
}

/// The second half of creation for kinds that need the uid, the name or the time.
pub fn finish_create(kind: &Kind, object: &mut Value) {
    (kind.finish_create)(object);
}

/// Gives a Job its own selector and labels unless the author took charge of them.
pub(crate) fn job_finish(object: &mut Value) {
    if object["spec"]["manualSelector"].as_bool() == Some(true) {
        return;
    }
    let uid = text(object, &["metadata", "uid"]).to_owned();
    let name = text(object, &["metadata", "name"]).to_owned();
    let spec = child_mut(object, "spec");
    let template = spec.entry("template").or_insert_with(|| json!({}));
    child_mut(template, "metadata");
    let labels = child_mut(&mut template["metadata"], "labels");
    for (key, value) in [
        ("controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
    ] {
        default_to(labels, key, value.as_str());
    }
    if spec.get("selector").is_none_or(Value::is_null) {
        spec.insert("selector".into(), json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
    }
}

/// An APIService that the server answers itself is available from the beginning.
pub(crate) fn api_service_finish(object: &mut Value) {
    if !object["spec"]["service"].is_null() {
        return;
    }
    let since = object["metadata"]["creationTimestamp"].clone();
    child_mut(object, "status").insert(
        "conditions".into(),
        json!([{
            "type": "Available",
            "status": "True",
            "lastTransitionTime": since,
            "reason": "Local",
            "message": "Local APIServices are always available",
        }]),
    );
}

/// A taint counts from when it was added.
pub(crate) fn slice_finish(object: &mut Value) {
    let now = object["metadata"]["creationTimestamp"].clone();
    for device in crate::meta::each_mut(child_mut(object, "spec"), "devices") {
        for taint in crate::meta::each_mut(device, "taints") {
            default_to(taint, "timeAdded", now.clone());
        }
    }
}

/// A driver need not know when it added a taint: one that was there keeps its time, one that is new begins now.
pub(crate) fn slice_update(object: &mut Value, old: &Value) {
    let now = crate::time::rfc3339(jiff::Timestamp::now());
    for device in crate::meta::each_mut(child_mut(object, "spec"), "devices") {
        let before =
            crate::meta::items(old, &["spec", "devices"]).iter().find(|one| Some(&one["name"]) == device.get("name"));
        let known: &[Value] = before.map_or(&[], |before| crate::meta::items(before, &["taints"]));
        for taint in crate::meta::each_mut(device, "taints") {
            let same = known.iter().find(|one| is_same_taint(one, &Value::Object(taint.clone())));
            let since = same.map_or_else(|| json!(now), |same| same["timeAdded"].clone());
            default_to(taint, "timeAdded", since);
        }
    }
}

fn is_same_taint(one: &Value, other: &Value) -> bool {
    ["key", "value", "effect"].into_iter().all(|field| one[field] == other[field])
}

/// As with a device's own taints.
pub(crate) fn taint_rule_finish(object: &mut Value) {
    let now = object["metadata"]["creationTimestamp"].clone();
    if let Some(taint) = object.pointer_mut("/spec/taint").and_then(Value::as_object_mut) {
        default_to(taint, "timeAdded", now);
    }
}

/// A taint that changes counts from then on.
pub(crate) fn taint_rule_update(object: &mut Value, old: &Value) {
    let (new, before) = (object["spec"]["taint"].clone(), &old["spec"]["taint"]);
    let since = if is_same_taint(&new, before) {
        before["timeAdded"].clone()
    } else {
        json!(crate::time::rfc3339(jiff::Timestamp::now()))
    };
    if new.is_object() {
        let given = new["timeAdded"].is_string() && new["timeAdded"] != before["timeAdded"];
        object["spec"]["taint"]["timeAdded"] = if given { new["timeAdded"].clone() } else { since };
    }
}

/// What a signing request asks for stays; only its approval and its status move on.
pub(crate) fn signing_request_update(object: &mut Value, old: &Value) {
    keep(object, old, "spec");
}

/// What ended a request stays as it was said, and is said at a time.
pub(crate) fn pod_certificate_request_status(object: &mut Value, old: &Value) {
    let before = crate::meta::items(old, &["status", "conditions"]);
    let Some(conditions) = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut) else { return };
    let now = crate::time::rfc3339(Timestamp::now());
    let kinds: Vec<Value> = conditions.iter().map(|condition| condition["type"].clone()).collect();
    for condition in conditions {
        let same = |other: &&Value| other["type"] == condition["type"];
        let once = kinds.iter().filter(|kind| **kind == condition["type"]).count() == 1;
        match before.iter().find(same).filter(|_| once) {
            Some(old) => *condition = old.clone(),
            None => {
                if let Some(condition) = condition.as_object_mut() {
                    default_to(condition, "lastTransitionTime", now.clone());
                }
            }
        }
    }
}

/// The storage version is the first to be noted as stored.
pub(crate) fn definition_create(object: &mut Value) {
    note_storage_version(object);
}

pub(crate) fn definition_update(object: &mut Value, _: &Value) {
    note_storage_version(object);
}

fn note_storage_version(object: &mut Value) {
    let versions = crate::meta::items(object, &["spec", "versions"]);
    let Some(name) = versions.iter().find(|version| version["storage"] == true).map(|version| version["name"].clone())
    else {
        return;
    };
    let stored = child_mut(object, "status").entry("storedVersions").or_insert_with(|| json!([]));
    if let Some(stored) = stored.as_array_mut()
        && !stored.contains(&name)
    {
        stored.push(name);
    }
}

/// The bytes of standard base64, padded or not; `None` when it is none.
pub(crate) fn unbase64(text: &str) -> Option<Vec<u8>> {
    let (mut out, mut word, mut bits) = (Vec::with_capacity(text.len() / 4 * 3), 0u32, 0);
    for byte in text.trim_end_matches('=').bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        word = word << 6 | u32::from(six);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((word >> bits & 0xff) as u8);
        }
    }
    Some(out)
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let six = (word >> (18 - 6 * index)) & 63;
            out.push(if index <= chunk.len() { char::from(ALPHABET[six as usize]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::registry::builtin;

    #[test]
    fn spec_and_status_do_not_overwrite_each_other() {
        let kind = builtin().get("apps", "v1", "deployments").unwrap();
        let mut object =
            json!({"metadata": {"name": "d", "uid": "forged"}, "spec": {"replicas": 2}, "status": {"replicas": 9}});
        prepare_create(kind, &mut object);
        fill_metadata(&mut object, "u1", "2024-01-01T00:00:00Z");
        assert_eq!(object["metadata"]["generation"], 1);
        assert_eq!(object["status"], json!({}));
        let old = object.clone();

        let mut update = old.clone();
        update["spec"]["replicas"] = json!(3);
        update["status"]["replicas"] = json!(7);
        prepare_update(kind, &mut update, &old);
        assert_eq!(update["metadata"]["generation"], 2);
        assert_eq!(update["status"], json!({}));

        let mut labels = old.clone();
        labels["metadata"]["labels"] = json!({"a": "b"});
        prepare_update(kind, &mut labels, &old);
        assert_eq!(labels["metadata"]["generation"], 1);

        let mut status = old.clone();
        status["spec"]["replicas"] = json!(8);
        status["status"]["replicas"] = json!(2);
        prepare_status_update(kind, &mut status, &old);
        assert_eq!((status["spec"]["replicas"].as_i64(), status["status"]["replicas"].as_i64()), (Some(2), Some(2)));
    }

    /// Of every kind: a client brings no status, writes of the specification leave it alone, and the reverse.
    #[test]
    fn status_belongs_to_its_subresource() {
        for kind in builtin().iter().filter(|kind| kind.has_status() && !keeps_status_on_create(kind)) {
            let mut object =
                json!({"metadata": {"name": "x"}, "spec": {"forged": 1}, "status": {"forged": true, "phase": "Odd"}});
            prepare_create(kind, &mut object);
            assert!(object["status"]["forged"].is_null(), "{kind:?} keeps a client's status");
            assert_ne!(object["status"]["phase"], "Odd", "{kind:?} keeps a client's phase");
            assert_eq!(object["metadata"]["generation"].as_i64(), kind.generation.then_some(1), "{kind:?}");

            let old = object.clone();
            let mut main = old.clone();
            main["status"]["forged"] = json!(true);
            main["spec"]["added"] = json!(2);
            prepare_update(kind, &mut main, &old);
            assert!(main["status"]["forged"].is_null(), "{kind:?}: a write of the object reaches its status");
            let moves = kind.generation && main["spec"]["added"] == 2;
            assert_eq!(main["metadata"]["generation"].as_i64().unwrap_or(1), 1 + i64::from(moves), "{kind:?}");

            let mut status = old.clone();
            status["status"]["reported"] = json!(true);
            status["spec"]["added"] = json!(2);
            prepare_status_update(kind, &mut status, &old);
            assert_eq!(status["status"]["reported"], true, "{kind:?}");
            assert!(status["spec"]["added"].is_null(), "{kind:?}: a write of the status reaches the specification");
            assert_eq!(status["metadata"]["generation"], old["metadata"]["generation"], "{kind:?}");
        }
    }

    #[test]
    fn some_kinds_begin_with_what_the_server_knows() {
        let made = |group: &str, plural: &str, mut object: Value| {
            let kind = builtin().get(group, "v1", plural).unwrap();
            prepare_create(kind, &mut object);
            fill_metadata(&mut object, "u1", "2026-01-01T00:00:00Z");
            finish_create(kind, &mut object);
            object
        };
        let definition = json!({"spec": {"versions": [{"name": "v1", "storage": true}]}});
        let definition = made("apiextensions.k8s.io", "customresourcedefinitions", definition);
        assert_eq!(definition["status"]["storedVersions"], json!(["v1"]));
        let local = made("apiregistration.k8s.io", "apiservices", json!({"spec": {}}));
        assert_eq!(local["status"]["conditions"][0]["reason"], "Local");
        let slice = json!({"spec": {"devices": [{"taints": [{"key": "k"}]}]}});
        let slice = made("resource.k8s.io", "resourceslices", slice);
        assert_eq!(slice["spec"]["devices"][0]["taints"][0]["timeAdded"], "2026-01-01T00:00:00Z");
    }

    #[test]
    fn base64_both_ways() {
        for text in ["", "a", "ab", "abc", "hello"] {
            assert_eq!(unbase64(&base64(text.as_bytes())).unwrap(), text.as_bytes());
        }
        assert!(unbase64("*").is_none());
    }

    #[test]
    fn quality_of_service() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        assert_eq!(qos_class(&pod(json!({"limits": {"cpu": "1", "memory": "1Gi"}}))), "Guaranteed");
    }

    #[test]
    fn secrets_fold_string_data() {
        let mut object = json!({"stringData": {"a": "hello", "b": "ab", "c": "abc"}, "data": {"d": "eA=="}});
        secret(&mut object);
        assert_eq!(object, json!({"data": {"d": "eA==", "a": "aGVsbG8=", "b": "YWI=", "c": "YWJj"}}));
    }

    #[test]
    fn a_service_keeps_its_addresses() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"], "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        service_update(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.43.0.9");
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30001);
    }

    #[test]
    fn a_service_of_another_type_loses_what_only_the_old_one_had() {
        let old = json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.43.0.9", "externalTrafficPolicy": "Local",
            "allocateLoadBalancerNodePorts": true, "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}]}});
        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        service_update(&mut new, &old);
        assert_eq!(
            new["spec"],
            json!({"type": "ClusterIP", "clusterIP": "10.43.0.9", "ports": [{"port": 80, "protocol": "TCP"}]})
        );
        new["spec"]["type"] = json!("ExternalName");
        let old = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.43.0.9", "ports": []}});
        service_update(&mut new, &old);
        assert!(new["spec"].get("clusterIP").is_none());
    }

    #[test]
    fn grace_periods() {
        let pods = builtin().get("", "v1", "pods").unwrap();
        let running =
            json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 5}, "status": {"phase": "Running"}});
        assert_eq!(grace_seconds(pods, &running, None), 5);
        assert_eq!(grace_seconds(pods, &running, Some(0)), 0);
        assert_eq!(grace_seconds(pods, &json!({"spec": {}}), None), 0);
    }
}
