//! Subresources that may touch one part of an object only: what they send is grafted onto what is there.

use dhow_api::validation::FieldError;
use dhow_api::{Status, meta, strategy, time};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// The metadata that takes part in every write: the precondition and who manages what.
fn with_metadata(new: &Value, old: &Value) -> Value {
    let mut object = old.clone();
    let metadata = meta::metadata_mut(&mut object);
    for field in ["resourceVersion", "managedFields", "uid"] {
        match new["metadata"].get(field) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
    object
}

/// `pods/ephemeralcontainers`: containers may be added, those there stay as they are.
pub fn ephemeral_containers(new: &Value, old: &Value) -> Result<Value, Status> {
    const PATH: [&str; 2] = ["spec", "ephemeralContainers"];
    let mut errors = Vec::new();
    let wanted = meta::items(new, &PATH);
    for there in meta::items(old, &PATH) {
        let name = meta::text(there, &["name"]);
        match wanted.iter().find(|one| one["name"] == name) {
            None => errors.push(FieldError::forbidden(
                "spec.ephemeralContainers",
                &format!("existing ephemeral containers {name:?} may not be removed\n"),
            )),
            Some(one) if one != there => errors.push(FieldError::forbidden(
                "spec.ephemeralContainers",
                &format!("existing ephemeral containers {name:?} may not be changed\n"),
            )),
            Some(_) => {}
        }
    }
    let taken: Vec<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| meta::items(old, &["spec", list]))
        .map(|container| meta::text(container, &["name"]))
        .collect();
    for (index, one) in wanted.iter().enumerate() {
        let path = format!("spec.ephemeralContainers[{index}]");
        let name = meta::text(one, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(&format!("{path}.name"), ""));
        } else if taken.contains(&name) || wanted[..index].iter().any(|other| other["name"] == name) {
            errors.push(FieldError::duplicate(&format!("{path}.name"), name));
        }
        if meta::text(one, &["image"]).is_empty() {
            errors.push(FieldError::required(&format!("{path}.image"), ""));
        }
        for field in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resizePolicy"] {
            if meta::at(one, &[field]).is_some() {
                let why = "cannot be set for an Ephemeral Container";
                errors.push(FieldError::forbidden(&format!("{path}.{field}"), why));
            }
        }
        if meta::object(one, &["resources"]).is_some_and(|resources| !resources.is_empty()) {
            let why = "cannot be set for an Ephemeral Container";
            errors.push(FieldError::forbidden(&format!("{path}.resources"), why));
        }
    }
    if !errors.is_empty() {
        return Err(Status::invalid("", "Pod", meta::name(old), &errors));
    }
    let mut object = with_metadata(new, old);
    meta::child_mut(&mut object, "spec").insert("ephemeralContainers".into(), json!(wanted));
    Ok(object)
}

/// `pods/resize`: CPU and memory of containers, and how they are resized.
pub fn resize(new: &Value, old: &Value) -> Result<Value, Status> {
    let mut object = with_metadata(new, old);
    let mut rest = new.clone();
    for list in ["containers", "initContainers"] {
        let wanted = meta::items(new, &["spec", list]).to_vec();
        for container in meta::each_mut(meta::child_mut(&mut object, "spec"), list) {
            let Some(one) = wanted.iter().find(|one| Some(&one["name"]) == container.get("name")) else { continue };
            take(container, one);
        }
        let there = meta::items(old, &["spec", list]).to_vec();
        for container in meta::each_mut(meta::child_mut(&mut rest, "spec"), list) {
            let Some(one) = there.iter().find(|one| Some(&one["name"]) == container.get("name")) else { continue };
            take(container, one);
        }
    }
    let mut errors = Vec::new();
    if rest["spec"] != old["spec"] {
        errors.push(FieldError::forbidden("spec", "only cpu and memory resources are mutable"));
    }
    for list in ["containers", "initContainers"] {
        for (index, (now, before)) in
            meta::items(&object, &["spec", list]).iter().zip(meta::items(old, &["spec", list])).enumerate()
        {
            for kind in ["requests", "limits"] {
                let others = |container: &Value| {
                    let mut amounts = meta::object(container, &["resources", kind]).cloned().unwrap_or_default();
                    amounts.retain(|name, _| name != "cpu" && name != "memory");
                    amounts
                };
                if others(now) != others(before) {
                    let path = format!("spec.{list}[{index}].resources.{kind}");
                    errors.push(FieldError::forbidden(&path, "only cpu and memory resources are mutable"));
                }
            }
        }
    }
    let (class, before) = (strategy::qos_class(&object), strategy::qos_class(old));
    if class != before {
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("spec", class, why));
    }
    if errors.is_empty() { Ok(object) } else { Err(Status::invalid("", "Pod", meta::name(old), &errors)) }
}

fn take(container: &mut serde_json::Map<String, Value>, from: &Value) {
    for field in ["resources", "resizePolicy"] {
        match from.get(field) {
            Some(value) => container.insert(field.into(), value.clone()),
            None => container.remove(field),
        };
    }
}

const DECISIONS: [&str; 2] = ["Approved", "Denied"];

/// `certificatesigningrequests/approval`: labels, annotations and the conditions, and of those what was decided stays.
pub fn approval(new: &Value, old: &Value) -> Result<Value, Status> {
    const PATH: [&str; 2] = ["status", "conditions"];
    let mut conditions = meta::items(new, &PATH).to_vec();
    let has = |list: &[Value], kind: &str| list.iter().any(|condition| condition["type"] == kind);
    let mut errors = Vec::new();
    for kind in DECISIONS {
        if has(meta::items(old, &PATH), kind) && !has(&conditions, kind) {
            let why = format!("updates may not remove a condition of type {kind:?}");
            errors.push(FieldError::forbidden("status.conditions", &why));
        }
    }
    if DECISIONS.iter().all(|kind| has(&conditions, kind)) {
        let why = "Approved and Denied conditions are mutually exclusive";
        errors.push(FieldError::invalid("status.conditions", "Denied", why));
    }
    if !errors.is_empty() {
        return Err(Status::invalid("certificates.k8s.io", "CertificateSigningRequest", meta::name(old), &errors));
    }
    let now = time::rfc3339(Timestamp::now());
    for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
        for field in ["lastUpdateTime", "lastTransitionTime"] {
            meta::default_to(condition, field, now.clone());
        }
    }
    let mut object = with_metadata(new, old);
    // Whoever approves may also leave a note.
    let metadata = meta::metadata_mut(&mut object);
    for field in ["labels", "annotations"] {
        match new["metadata"].get(field) {
            Some(value) => drop(metadata.insert(field.into(), value.clone())),
            None => drop(metadata.remove(field)),
        }
    }
    meta::child_mut(&mut object, "status").insert("conditions".into(), conditions.into());
    Ok(object)
}
