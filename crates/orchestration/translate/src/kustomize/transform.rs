//! Patches, namespace, labels, annotations, images, replicas.

use dhow_api::patch;
use dhow_api::registry::builtin;
use dhow_api::selectors;
use serde_json::{Map, Value, json};

use super::{Reader, Resource};
use crate::error::Result;

/// Kinds without a namespace among those that are not built in are told by their names alone.
fn is_namespaced(resource: &Resource) -> bool {
    match builtin().by_api_version(resource.text("/apiVersion"), resource.kind()) {
        Some(kind) => kind.namespaced,
        None => true,
    }
}

pub fn all(reader: &Reader<'_>, fields: &Map<String, Value>, resources: &mut Vec<Resource>) -> Result<()> {
    for text in reader.list(fields, "patchesStrategicMerge")? {
        let Some(text) = text.as_str() else { return Err(reader.wrong("patchesStrategicMerge holds no text")) };
        for patch in inline_or_file(reader, text)? {
            strategic(reader, resources, &patch, None)?;
        }
    }
    for key in ["patches", "patchesJson6902"] {
        for item in reader.list(fields, key)? {
            one(reader, item, resources)?;
        }
    }
    Ok(())
}

/// What is set once names are final.
pub fn after_names(reader: &Reader<'_>, fields: &Map<String, Value>, resources: &mut [Resource]) -> Result<()> {
    if let Some(namespace) = reader.text(fields, "namespace")? {
        for resource in resources.iter_mut() {
            if resource.kind() == "Namespace" {
                resource.object["metadata"]["name"] = json!(namespace);
            } else if is_namespaced(resource) {
                resource.object["metadata"]["namespace"] = json!(namespace);
            }
            if resource.kind().ends_with("RoleBinding") {
                for subject in resource.object["subjects"].as_array_mut().into_iter().flatten() {
                    if subject["kind"] == "ServiceAccount"
                        && (subject.get("namespace").is_some() || subject["name"] == "default")
                    {
                        subject["namespace"] = json!(namespace);
                    }
                }
            }
        }
    }
    if let Some(labels) = fields.get("commonLabels").and_then(Value::as_object) {
        resources.iter_mut().for_each(|resource| label(resource, labels, true, true));
    }
    for item in reader.list(fields, "labels")? {
        let pairs = item["pairs"].as_object().ok_or_else(|| reader.wrong("`labels` has an entry without pairs"))?;
        let selectors = item["includeSelectors"] == true;
        let templates = selectors || item["includeTemplates"] == true;
        resources.iter_mut().for_each(|resource| label(resource, pairs, selectors, templates));
    }
    if let Some(annotations) = fields.get("commonAnnotations").and_then(Value::as_object) {
        for resource in resources.iter_mut() {
            for pointer in [
                "/metadata",
                "/spec/template/metadata",
                "/spec/jobTemplate/metadata",
                "/spec/jobTemplate/spec/template/metadata",
            ] {
                add(&mut resource.object, pointer, "annotations", annotations);
            }
        }
    }
    for item in reader.list(fields, "images")? {
        let name = item["name"].as_str().ok_or_else(|| reader.wrong("an image has no name"))?;
        resources.iter_mut().for_each(|resource| image(&mut resource.object, name, item));
    }
    for item in reader.list(fields, "replicas")? {
        let (Some(name), Some(count)) = (item["name"].as_str(), item["count"].as_i64()) else {
            return Err(reader.wrong("`replicas` needs name and count"));
        };
        let mut found = false;
        for resource in resources.iter_mut() {
            let scales =
                ["Deployment", "ReplicaSet", "StatefulSet", "ReplicationController"].contains(&resource.kind());
            if scales && (resource.name() == name || resource.original == name) {
                resource.object["spec"]["replicas"] = json!(count);
                found = true;
            }
        }
        if !found {
            return Err(reader.wrong(format!("nothing that is called {name} has replicas")));
        }
    }
    Ok(())
}

fn inline_or_file(reader: &Reader<'_>, text: &str) -> Result<Vec<Value>> {
    if text.contains('\n') || text.contains(": ") {
        reader.parse("a patch", text)
    } else {
        reader.documents(&reader.path(text))
    }
}

fn one(reader: &Reader<'_>, item: &Value, resources: &mut Vec<Resource>) -> Result<()> {
    let documents = match (item["path"].as_str(), item["patch"].as_str()) {
        (Some(path), None) => reader.documents(&reader.path(path))?,
        (None, Some(text)) => reader.parse("a patch", text)?,
        _ => return Err(reader.wrong("a patch needs either `path` or `patch`")),
    };
    let target = item.get("target").filter(|target| target.is_object());
    for document in documents {
        if document.is_array() {
            let target = target.ok_or_else(|| reader.wrong("a JSON patch needs a target"))?;
            let mut found = false;
            for resource in resources.iter_mut() {
                if matches(reader, resource, target)? {
                    let shown = format!("{} {}", resource.kind(), resource.name());
                    patch::json(&mut resource.object, &document)
                        .map_err(|error| reader.wrong(format!("{shown}: {error}")))?;
                    found = true;
                }
            }
            if !found {
                return Err(reader.wrong(format!("no object fits the target {target}")));
            }
        } else {
            strategic(reader, resources, &document, target)?;
        }
    }
    Ok(())
}

fn strategic(
    reader: &Reader<'_>,
    resources: &mut Vec<Resource>,
    document: &Value,
    target: Option<&Value>,
) -> Result<()> {
    let mut found = false;
    let mut failed = None;
    let whole = document["$patch"] == "delete";
    let mut kept = Vec::with_capacity(resources.len());
    for mut resource in std::mem::take(resources) {
        let fits = match target {
            Some(target) => matches(reader, &resource, target)?,
            None => {
                let same = |pointer: &str| {
                    document.pointer(pointer).is_none_or(|value| resource.object.pointer(pointer) == Some(value))
                };
                let name = document.pointer("/metadata/name").and_then(Value::as_str);
                same("/kind")
                    && same("/apiVersion")
                    && (name == Some(&resource.original) || name == Some(resource.name()))
            }
        };
        if !fits {
            kept.push(resource);
            continue;
        }
        found = true;
        if whole {
            continue;
        }
        let name = resource.object["metadata"]["name"].clone();
        let result = match builtin().by_api_version(resource.text("/apiVersion"), resource.kind()) {
            Some(kind) => patch::strategic(&mut resource.object, document, kind.definition),
            None => patch::merge(&mut resource.object, document),
        };
        if let Err(error) = result {
            failed = Some(reader.wrong(format!("{} {}: {error}", resource.kind(), resource.name())));
        }
        resource.object["metadata"]["name"] = name;
        kept.push(resource);
    }
    *resources = kept;
    match failed {
        Some(error) => Err(error),
        None if !found => {
            let shown = format!("{} {}", document["kind"], document["metadata"]["name"]);
            Err(reader.wrong(format!("no object fits the patch of {shown}")))
        }
        None => Ok(()),
    }
}

/// Whether a resource is what a target means; names are whole regular expressions, of which `.*` and plain names are known.
fn matches(reader: &Reader<'_>, resource: &Resource, target: &Value) -> Result<bool> {
    let text = |key: &str| target[key].as_str().filter(|text| !text.is_empty());
    let version = resource.text("/apiVersion").rsplit('/').next().unwrap_or_default();
    let fits =
        |wanted: Option<&str>, found: &[&str]| wanted.is_none_or(|wanted| found.iter().any(|one| like(wanted, one)));
    if !fits(text("kind"), &[resource.kind()])
        || !fits(text("group"), &[resource.group()])
        || !fits(text("version"), &[version])
        || !fits(text("name"), &[resource.name(), &resource.original])
        || !fits(text("namespace"), &[resource.text("/metadata/namespace")])
    {
        return Ok(false);
    }
    for (key, field) in [("labelSelector", "labels"), ("annotationSelector", "annotations")] {
        let Some(selector) = text(key) else { continue };
        let selector = selectors::LabelSelector::parse(selector).map_err(|error| reader.wrong(error))?;
        let held = resource.object["metadata"][field].as_object().cloned().unwrap_or_default();
        let held = held.iter().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect();
        if !selector.matches(&held) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `.*` stands for anything; `|` for either.
fn like(pattern: &str, text: &str) -> bool {
    let pattern = pattern.trim_start_matches('^').trim_end_matches('$');
    pattern.split('|').any(|one| {
        let mut parts = one.split(".*");
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        let parts: Vec<&str> = parts.collect();
        let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
        for part in middle {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    })
}

fn add(object: &mut Value, pointer: &str, field: &str, pairs: &Map<String, Value>) {
    let Some(parent) = object.pointer_mut(pointer).and_then(Value::as_object_mut) else { return };
    let known = parent.entry(field).or_insert_with(|| json!({}));
    if !known.is_object() {
        *known = json!({});
    }
    known.as_object_mut().into_iter().for_each(|known| known.extend(pairs.clone()));
}

fn label(resource: &mut Resource, pairs: &Map<String, Value>, selectors: bool, templates: bool) {
    let kind = resource.kind().to_owned();
    let object = &mut resource.object;
    add(object, "/metadata", "labels", pairs);
    let works = ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"].contains(&kind.as_str());
    if templates && (works || kind == "ReplicationController") {
        ensure(object, &["spec", "template", "metadata"]);
        add(object, "/spec/template/metadata", "labels", pairs);
    }
    if templates && kind == "CronJob" {
        ensure(object, &["spec", "jobTemplate", "spec", "template", "metadata"]);
        ensure(object, &["spec", "jobTemplate", "metadata"]);
        add(object, "/spec/jobTemplate/metadata", "labels", pairs);
        add(object, "/spec/jobTemplate/spec/template/metadata", "labels", pairs);
    }
    if !selectors {
        return;
    }
    match kind.as_str() {
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" => {
            ensure(object, &["spec", "selector"]);
            add(object, "/spec/selector", "matchLabels", pairs);
        }
        "Service" | "ReplicationController" if object.pointer("/spec/selector").is_some() => {
            add(object, "/spec", "selector", pairs);
        }
        "NetworkPolicy" if object.pointer("/spec/podSelector/matchLabels").is_some() => {
            add(object, "/spec/podSelector", "matchLabels", pairs);
        }
        "PodDisruptionBudget" if object.pointer("/spec/selector").is_some() => {
            add(object, "/spec/selector", "matchLabels", pairs);
        }
        _ => {}
    }
}

fn ensure(object: &mut Value, path: &[&str]) {
    let mut at = object;
    for step in path {
        if !at[*step].is_object() {
            at[*step] = json!({});
        }
        at = &mut at[*step];
    }
}

/// Changes images called `name` in all containers.
fn image(value: &mut Value, name: &str, change: &Value) {
    match value {
        Value::Object(fields) => {
            for (key, inner) in fields.iter_mut() {
                if ["containers", "initContainers"].contains(&key.as_str()) {
                    for container in inner.as_array_mut().into_iter().flatten() {
                        if let Some(new) = container["image"].as_str().and_then(|image| changed(image, name, change)) {
                            container["image"] = json!(new);
                        }
                    }
                }
                image(inner, name, change);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| image(item, name, change)),
        _ => {}
    }
}

fn changed(image: &str, name: &str, change: &Value) -> Option<String> {
    let (rest, digest) = image.split_once('@').map_or((image, None), |(rest, digest)| (rest, Some(digest)));
    let (base, tag) = match rest.rsplit_once(':') {
        Some((base, tag)) if !tag.contains('/') => (base, Some(tag)),
        _ => (rest, None),
    };
    if base != name {
        return None;
    }
    let base = change["newName"].as_str().unwrap_or(base);
    if let Some(digest) = change["digest"].as_str() {
        return Some(format!("{base}@{digest}"));
    }
    if let Some(tag) = change["newTag"]
        .as_str()
        .map(str::to_owned)
        .or_else(|| change["newTag"].is_number().then(|| change["newTag"].to_string()))
    {
        return Some(format!("{base}:{tag}"));
    }
    let tag = tag.map_or(String::new(), |tag| format!(":{tag}"));
    let digest = digest.map_or(String::new(), |digest| format!("@{digest}"));
    Some(format!("{base}{tag}{digest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_change_by_their_name() {
        let change = json!({"newName": "b", "newTag": "2"});
        assert_eq!(changed("a:1", "a", &change).as_deref(), Some("b:2"));
        assert_eq!(changed("reg:5000/a", "reg:5000/a", &change).as_deref(), Some("b:2"));
        assert_eq!(changed("aa:1", "a", &change), None);
        assert_eq!(changed("a@sha256:x", "a", &json!({"newName": "c"})).as_deref(), Some("c@sha256:x"));
    }

    #[test]
    fn names_of_targets_are_patterns() {
        assert!(like("web.*", "web-1") && like(".*", "x") && like("a|b", "b") && like("^a.*c$", "abc"));
        assert!(!like("web", "web-1") && !like("a.*c", "ab"));
    }
}
