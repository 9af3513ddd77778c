//! Create or patch objects of any kind the server knows, keeping what others own.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use dhow_api::list_semantics;
use dhow_api::registry::builtin;
use dhow_api::schema::{self, Shape};
use dhow_client::Client;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};

use super::diff;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// An object as the server stored it, or would store it.
pub struct Applied {
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    /// `created`, `replaced`, `configured` or `unchanged`.
    pub change: &'static str,
    /// Its address.
    pub path: String,
    pub before: Option<Value>,
    pub after: Value,
}

impl Applied {
    /// `deployment/demo/web`, as a person would point at it.
    pub fn what(&self) -> String {
        what(&self.kind, self.namespace.as_deref(), &self.name)
    }
}

pub fn what(kind: &str, namespace: Option<&str>, name: &str) -> String {
    let kind = kind.to_lowercase();
    match namespace {
        Some(namespace) => format!("{kind}/{namespace}/{name}"),
        None => format!("{kind}/{name}"),
    }
}

#[derive(Clone)]
struct Resource {
    plural: String,
    namespaced: bool,
}

/// Where an object is, and what is to be there.
pub struct Target {
    pub manifest: Value,
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    collection: String,
    pub path: String,
}

pub struct Applier {
    client: Client,
    namespace: String,
    /// Resources by apiVersion and kind, as discovered.
    known: HashMap<(String, String), Resource>,
}

const STRATEGIC: &str = "application/strategic-merge-patch+json";
const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json";

impl Applier {
    pub fn new(client: Client, namespace: String) -> Self {
        Self { client, namespace, known: HashMap::new() }
    }

    pub async fn target(&mut self, mut manifest: Value) -> Result<Target> {
        let text = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let api_version = text("/apiVersion").context("the object has no apiVersion")?;
        let kind = text("/kind").context("the object has no kind")?;
        let name = text("/metadata/name").context("the object has no metadata.name")?;
        let resource = self.resource(&api_version, &kind).await?;
        let namespace =
            resource.namespaced.then(|| text("/metadata/namespace").unwrap_or_else(|| self.namespace.clone()));
        if let Some(namespace) = &namespace {
            manifest["metadata"]["namespace"] = json!(namespace);
        }
        let collection = match &namespace {
            Some(namespace) => format!("{}/namespaces/{namespace}/{}", root(&api_version), resource.plural),
            None => format!("{}/{}", root(&api_version), resource.plural),
        };
        let path = format!("{collection}/{name}");
        Ok(Target { manifest, kind, namespace, name, collection, path })
    }

    /// Applies, or asks the server what it would store.
    pub async fn apply(&mut self, manifest: Value, dry_run: bool) -> Result<Applied> {
        let target = self.target(manifest).await?;
        let wanted = remember(&target.manifest);
        let before = self.get(&target.path).await?;
        let (after, change) = match &before {
            None => (self.create(&target, &wanted, dry_run).await?, "created"),
            Some(current) => match self.change(&target, current, &wanted, dry_run).await {
                Ok(after) => {
                    let same = if dry_run {
                        diff::settled(&after) == diff::settled(current)
                    } else {
                        after["metadata"]["resourceVersion"] == current["metadata"]["resourceVersion"]
                    };
                    (after, if same { "unchanged" } else { "configured" })
                }
                // A job's template stays as it is: a changed one is another job.
                Err(error) if target.kind == "Job" && error.to_string().contains("field is immutable") => {
                    if dry_run {
                        (target.manifest.clone(), "replaced")
                    } else {
                        self.delete(&target.path, "Background").await?;
                        (self.create(&target, &wanted, false).await?, "replaced")
                    }
                }
                Err(error) => return Err(error),
            },
        };
        let Target { kind, namespace, name, path, .. } = target;
        Ok(Applied { kind, namespace, name, change, path, before, after })
    }

    async fn create(&self, target: &Target, wanted: &Value, dry_run: bool) -> Result<Value> {
        let path = with_manager(&target.collection, dry_run);
        Ok(self.send(Method::POST, &path, JSON, Some(wanted)).await?.unwrap_or_default())
    }

    async fn change(&self, target: &Target, current: &Value, wanted: &Value, dry_run: bool) -> Result<Value> {
        let api_version = target.manifest["apiVersion"].as_str().unwrap_or_default();
        let definition = builtin().by_api_version(api_version, &target.kind).map(|kind| kind.definition);
        let path = with_manager(&target.path, dry_run);
        let patch = patch(current, wanted, definition);
        // Kinds that are not built in have no merge keys.
        let media_type = if definition.is_some() { STRATEGIC } else { MERGE };
        Ok(self.send(Method::PATCH, &path, media_type, Some(&patch)).await?.unwrap_or_default())
    }

    pub async fn get(&self, path: &str) -> Result<Option<Value>> {
        self.send(Method::GET, path, JSON, None).await
    }

    /// Whether it was there.
    pub async fn delete(&self, path: &str, propagation: &str) -> Result<bool> {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation});
        Ok(self.send(Method::DELETE, path, JSON, Some(&options)).await?.is_some())
    }

    /// Puts an object back as it was before it was applied.
    pub async fn restore(&self, applied: &Applied) -> Result<&'static str> {
        let Some(before) = &applied.before else {
            self.delete(&applied.path, "Background").await?;
            return Ok("removed");
        };
        let mut before = before.clone();
        if let Some(metadata) = before["metadata"].as_object_mut() {
            for field in ["resourceVersion", "managedFields"] {
                metadata.remove(field);
            }
        }
        if applied.change == "replaced" {
            return Ok("stays as it is: a job cannot be undone");
        }
        self.send(Method::PUT, &with_manager(&applied.path, false), JSON, Some(&before)).await?;
        Ok("put back")
    }

    async fn resource(&mut self, api_version: &str, kind: &str) -> Result<Resource> {
        let key = (api_version.to_owned(), kind.to_owned());
        if let Some(found) = self.known.get(&key) {
            return Ok(found.clone());
        }
        let Some(list) = self.send(Method::GET, &root(api_version), "application/json", None).await? else {
            bail!("the server does not know apiVersion {api_version:?} (of kind {kind:?})");
        };
        for entry in list["resources"].as_array().into_iter().flatten() {
            let (Some(plural), Some(entry_kind)) = (entry["name"].as_str(), entry["kind"].as_str()) else { continue };
            if plural.contains('/') {
                continue;
            }
            let resource =
                Resource { plural: plural.to_owned(), namespaced: entry["namespaced"].as_bool().unwrap_or(false) };
            self.known.insert((api_version.to_owned(), entry_kind.to_owned()), resource);
        }
        self.known
            .get(&key)
            .cloned()
            .with_context(|| format!("the server does not know kind {kind:?} in {api_version:?}"))
    }

    /// Sends JSON and returns the answer; `None` stands for "not found" of a GET or DELETE.
    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<Option<Value>> {
        let bytes = body.map(serde_json::to_vec).transpose().context("encode the object")?.unwrap_or_default();
        let request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(http::header::CONTENT_TYPE, content_type)
            .header(http::header::ACCEPT, "application/json")
            .body(Bytes::from(bytes))
            .context("build the request")?;
        let response = self.client.request(request).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        if status.is_success() {
            return Ok(Some(serde_json::from_slice(&answer).context("read the server's answer")?));
        }
        if status == StatusCode::NOT_FOUND && (method == Method::GET || method == Method::DELETE) {
            return Ok(None);
        }
        let message = serde_json::from_slice::<Value>(&answer)
            .ok()
            .and_then(|status| status["message"].as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&answer).into_owned());
        bail!("{message}")
    }
}

fn with_manager(path: &str, dry_run: bool) -> String {
    format!("{path}?fieldManager=dhow-deploy{}", if dry_run { "&dryRun=All" } else { "" })
}

fn root(api_version: &str) -> String {
    if api_version.contains('/') { format!("/apis/{api_version}") } else { format!("/api/{api_version}") }
}

/// The manifest with itself noted in the annotation that `kubectl apply` uses too, byte for byte as kubectl would note it:
/// then neither finds anything to change after the other.
fn remember(manifest: &Value) -> Value {
    let mut wanted = manifest.clone();
    if !wanted["metadata"]["annotations"].is_object() {
        wanted["metadata"]["annotations"] = json!({});
    }
    if let Some(annotations) = wanted["metadata"]["annotations"].as_object_mut() {
        annotations.remove(LAST_APPLIED);
    }
    // Go writes maps in the order of their keys, and these characters as escapes.
    let text = sorted(&wanted).to_string();
    let text = text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    wanted["metadata"]["annotations"][LAST_APPLIED] = json!(text + "\n");
    wanted
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<&String> = fields.keys().collect();
            names.sort();
            names.into_iter().map(|name| (name.clone(), sorted(&fields[name]))).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// The manifest as a patch that also removes what the last apply set and this one does not.
fn patch(current: &Value, wanted: &Value, definition: Option<&str>) -> Value {
    let last = current["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .and_then(|text| serde_json::from_str::<Value>(text).ok())
        .unwrap_or(Value::Null);
    let mut patch = wanted.clone();
    remove_dropped(&last, &mut patch, definition);
    patch
}

/// Adds `null` for each map key of `last` that `wanted` lacks, and takes items out of lists that merge by a key.
fn remove_dropped(last: &Value, wanted: &mut Value, definition: Option<&str>) {
    let (Value::Object(last), Value::Object(wanted)) = (last, wanted) else { return };
    for (key, old) in last {
        let Some(new) = wanted.get_mut(key) else {
            wanted.insert(key.clone(), Value::Null);
            continue;
        };
        let shape = definition.and_then(|definition| schema::types().field(definition, key));
        let inner = match shape {
            // Values of a map have no type of their own at this level.
            Some(Shape::Map(_)) => None,
            other => other.and_then(Shape::type_name),
        };
        let semantics = definition.and_then(|definition| list_semantics::get(definition, key));
        let merge_key = semantics.filter(|found| found.merges()).and_then(|found| found.merge_key);
        match (old, &mut *new, merge_key) {
            (Value::Array(old), Value::Array(new), Some(merge_key)) => {
                let mut gone = Vec::new();
                for item in old {
                    match new.iter_mut().find(|other| other[merge_key] == item[merge_key]) {
                        Some(other) => remove_dropped(item, other, inner),
                        None => gone.push(json!({"$patch": "delete", merge_key: item[merge_key]})),
                    }
                }
                // A key is gone once, even where the list had it several times.
                gone.dedup();
                new.extend(gone);
            }
            _ => remove_dropped(old, new, inner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_what_kubectl_remembers() {
        let manifest =
            json!({"kind": "A", "apiVersion": "v1", "metadata": {"name": "n"}, "data": {"b": "<&>", "a": "1"}});
        let noted = &remember(&manifest)["metadata"]["annotations"][LAST_APPLIED];
        let expected = "{\"apiVersion\":\"v1\",\"data\":{\"a\":\"1\",\"b\":\"\\u003c\\u0026\\u003e\"},\"kind\":\"A\",\
                        \"metadata\":{\"annotations\":{},\"name\":\"n\"}}\n";
        assert_eq!(noted, expected);
    }

    #[test]
    fn a_field_dropped_from_the_manifest_is_removed() {
        let first = json!({"metadata": {"name": "a", "labels": {"x": "1", "y": "2"}}, "spec": {"replicas": 3}});
        let current = remember(&first);
        let second = remember(&json!({"metadata": {"name": "a", "labels": {"x": "1"}}, "spec": {}}));
        let patch = patch(&current, &second, None);
        assert_eq!(patch["metadata"]["labels"], json!({"x": "1", "y": null}));
        assert_eq!(patch["spec"], json!({"replicas": null}));
    }

    #[test]
    fn an_item_dropped_from_a_keyed_list_is_removed() {
        let of = |env: Value| {
            json!({"metadata": {"name": "a"}, "spec": {"template": {"spec": {"containers": [
                {"name": "c", "image": "i", "args": ["x"], "env": env}]}}}})
        };
        let definition = builtin().by_api_version("apps/v1", "Deployment").unwrap().definition;
        let first = remember(&of(json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}])));
        let second = remember(&of(json!([{"name": "A", "value": "3"}])));
        let patch = patch(&first, &second, Some(definition));
        let mut stored = first.clone();
        dhow_api::patch::strategic(&mut stored, &patch, definition).unwrap();
        assert_eq!(stored["spec"], second["spec"]);
    }
}
