//! RuntimeClass: what a pod's runtime costs on top, and where it may run.

use dhow_api::quota::amounts;
use dhow_api::{Status, meta};
use serde_json::{Value, json};

use super::{Attributes, Operation, cached};
use crate::ApiServer;

fn class_of(server: &ApiServer, attributes: &Attributes<'_>) -> Result<Option<Value>, Status> {
    let name = meta::text(&attributes.object, &["spec", "runtimeClassName"]);
    if name.is_empty() {
        return Ok(None);
    }
    match cached(server, "node.k8s.io", "runtimeclasses", None, name) {
        Some(class) => class.value().map(Some),
        None => Err(attributes.forbidden(&format!("pod rejected: RuntimeClass \"{name}\" not found"))),
    }
}

fn creates_pod(attributes: &Attributes<'_>) -> bool {
    attributes.operation == Operation::Create && attributes.is("", "Pod") && attributes.subresource.is_none()
}

pub fn mutate(server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
    if !creates_pod(attributes) {
        return Ok(());
    }
    let Some(class) = class_of(server, attributes)? else { return Ok(()) };
    if let Some(overhead) = meta::at(&class, &["overhead", "podFixed"]) {
        if let Some(own) = meta::at(&attributes.object, &["spec", "overhead"])
            && amounts(own) != amounts(overhead)
        {
            let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
            return Err(attributes.forbidden(why));
        }
        meta::child_mut(&mut attributes.object, "spec").insert("overhead".into(), overhead.clone());
    }
    for (key, value) in meta::object(&class, &["scheduling", "nodeSelector"]).into_iter().flatten() {
        meta::child_mut(&mut attributes.object, "spec");
        let selector = meta::child_mut(&mut attributes.object["spec"], "nodeSelector");
        if let Some(own) = selector.get(key).filter(|own| *own != value) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let why = format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(value),
                text(own)
            );
            return Err(attributes.forbidden(&why));
        }
        selector.insert(key.clone(), value.clone());
    }
    for toleration in meta::items(&class, &["scheduling", "tolerations"]) {
        let spec = meta::child_mut(&mut attributes.object, "spec");
        meta::default_to(spec, "tolerations", json!([]));
        if let Some(list) = spec.get_mut("tolerations").and_then(Value::as_array_mut)
            && !list.contains(toleration)
        {
            list.push(toleration.clone());
        }
    }
    Ok(())
}

/// No overhead without a runtime that has it.
pub fn validate(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    if !creates_pod(attributes) {
        return Ok(());
    }
    let class = class_of(server, attributes)?;
    let defined = class.as_ref().and_then(|class| meta::at(class, &["overhead", "podFixed"]));
    match (meta::at(&attributes.object, &["spec", "overhead"]), defined) {
        (Some(own), None) if !amounts(own).is_empty() => {
            Err(attributes
                .forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"))
        }
        (Some(own), Some(defined)) if amounts(own) != amounts(defined) => {
            Err(attributes.forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"))
        }
        _ => Ok(()),
    }
}
