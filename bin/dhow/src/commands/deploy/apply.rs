//! Create or patch objects of any kind the server knows, keeping what others own.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use dhow_client::Client;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// An object as the server stored it.
pub struct Applied {
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    /// `created`, `configured` or `unchanged`.
    pub change: &'static str,
}

impl Applied {
    /// `deployment/demo/web`, as a person would point at it.
    pub fn what(&self) -> String {
        let kind = self.kind.to_lowercase();
        match &self.namespace {
            Some(namespace) => format!("{kind}/{namespace}/{}", self.name),
            None => format!("{kind}/{}", self.name),
        }
    }
}

#[derive(Clone)]
struct Resource {
    plural: String,
    namespaced: bool,
}

pub struct Applier {
    client: Client,
    namespace: String,
    /// Resources by apiVersion and kind, as discovered.
    known: HashMap<(String, String), Resource>,
}

impl Applier {
    pub fn new(client: Client, namespace: String) -> Self {
        Self { client, namespace, known: HashMap::new() }
    }

    pub async fn apply(&mut self, mut manifest: Value) -> Result<Applied> {
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
        let object = format!("{collection}/{name}");
        let wanted = remember(&manifest);
        let change = match self.send(Method::GET, &object, "application/json", None).await? {
            None => {
                self.send(Method::POST, &collection, "application/json", Some(&wanted)).await?;
                "created"
            }
            Some(current) => {
                let patch = patch(&current, &wanted);
                let patched =
                    self.send(Method::PATCH, &object, "application/strategic-merge-patch+json", Some(&patch)).await?;
                let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
                if patched.as_ref().map(version) == Some(version(&current)) { "unchanged" } else { "configured" }
            }
        };
        Ok(Applied { kind, namespace, name, change })
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

    /// Sends JSON and returns the answer; `None` stands for "not found" of a GET.
    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<Option<Value>> {
        let bytes = body.map(serde_json::to_vec).transpose().context("encode the object")?.unwrap_or_default();
        let path = if method == Method::GET { path.to_owned() } else { format!("{path}?fieldManager=dhow-deploy") };
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
        if status == StatusCode::NOT_FOUND && method == Method::GET {
            return Ok(None);
        }
        let message = serde_json::from_slice::<Value>(&answer)
            .ok()
            .and_then(|status| status["message"].as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&answer).into_owned());
        bail!("{message}")
    }
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

/// The manifest as a strategic merge patch that also removes fields which the last apply set and this one does not.
fn patch(current: &Value, wanted: &Value) -> Value {
    let last = current["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .and_then(|text| serde_json::from_str::<Value>(text).ok())
        .unwrap_or(Value::Null);
    let mut patch = wanted.clone();
    remove_dropped(&last, &mut patch);
    patch
}

/// Adds `null` for each map key of `last` that `wanted` lacks. Lists are left to the server's merge keys.
fn remove_dropped(last: &Value, wanted: &mut Value) {
    let (Value::Object(last), Value::Object(wanted)) = (last, wanted) else { return };
    let wanted: &mut Map<String, Value> = wanted;
    for (key, old) in last {
        match wanted.get_mut(key) {
            Some(new) => remove_dropped(old, new),
            None => {
                wanted.insert(key.clone(), Value::Null);
            }
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
        let patch = patch(&current, &second);
        assert_eq!(patch["metadata"]["labels"], json!({"x": "1", "y": null}));
        assert_eq!(patch["spec"], json!({"replicas": null}));
    }
}
