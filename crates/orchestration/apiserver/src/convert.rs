//! Conversion between the versions of a custom kind whose definition names a webhook: `ConversionReview` of
//! `apiextensions.k8s.io/v1`.
//!
//! What a webhook made of an object is kept beside it ([`Stored::keep_form`]), so that it is asked once per object and
//! version, however many read or watch.

use std::borrow::Cow;
use std::sync::{Arc, Weak};

use dhow_api::custom::{Definition, Served};
use dhow_api::registry::Kind;
use dhow_api::{Status, meta};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::cache::Cache;
use crate::object::Stored;
use crate::webhook::Endpoint;

/// Seconds a webhook has to convert.
const TIMEOUT: u64 = 30;
/// Bytes of objects in one review; a longer list takes several.
const BATCH: usize = 4 << 20;
/// Largest answer that is read: converted objects may well be larger than they were.
const MAX_ANSWER: usize = 16 << 20;
const GROUP: &str = "apiextensions.k8s.io";

/// A definition's webhook.
struct Hook {
    definition: Weak<Definition>,
    endpoint: Endpoint,
    /// Held by watchers while they ask: the next finds what the first was told.
    turn: tokio::sync::Mutex<()>,
}

/// Asks conversion webhooks.
pub struct Converter {
    cache: Arc<Cache>,
    hooks: Mutex<Vec<Arc<Hook>>>,
}

impl Converter {
    pub fn new(cache: Arc<Cache>) -> Self {
        Self { cache, hooks: Mutex::default() }
    }

    /// The hook of a definition; connections outlive changes of definitions.
    fn hook(&self, definition: &Arc<Definition>, config: &Value) -> Arc<Hook> {
        let mut hooks = self.hooks.lock();
        let own = |hook: &&Arc<Hook>| std::ptr::eq(hook.definition.as_ptr(), Arc::as_ptr(definition));
        if let Some(found) = hooks.iter().find(own) {
            return found.clone();
        }
        let known: Vec<&Endpoint> = hooks.iter().map(|hook| &hook.endpoint).collect();
        let endpoint = Endpoint::read(&config["clientConfig"], TIMEOUT, &self.cache, &known);
        let made =
            Arc::new(Hook { definition: Arc::downgrade(definition), endpoint, turn: tokio::sync::Mutex::default() });
        hooks.retain(|hook| hook.definition.strong_count() > 0);
        hooks.push(made.clone());
        made
    }

    /// One object as a row of the registry shows it.
    pub async fn one(&self, kind: &Kind, stored: &Arc<Stored>) -> Result<Arc<Stored>, Status> {
        if !stored.lacks_form(kind) {
            // What is not custom is in that form already.
            return Ok(if kind.custom.is_some() { stored.in_form(kind) } else { stored.clone() });
        }
        let Some((served, config)) = by_webhook(kind) else { return Ok(stored.clone()) };
        let hook = self.hook(&served.definition, config);
        let converted = review(&hook.endpoint, config, kind, &served.api_version, &[stored.value()?], false).await?;
        for object in &converted {
            stored.keep_form(kind, object)?;
        }
        Ok(stored.in_form(kind))
    }

    /// Converts those of the objects that were not yet, many at a time.
    pub async fn all(&self, kind: &Kind, objects: impl Iterator<Item = &Arc<Stored>>) -> Result<(), Status> {
        let Some((served, config)) = by_webhook(kind) else { return Ok(()) };
        let missing: Vec<&Arc<Stored>> = objects.filter(|stored| stored.lacks_form(kind)).collect();
        let hook = self.hook(&served.definition, config);
        let mut rest = missing.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|stored| {
                bytes += stored.size();
                bytes <= BATCH
            });
            let (batch, later) = rest.split_at(fits.count().max(1));
            let values: Vec<Value> = batch.iter().map(|stored| stored.value()).collect::<Result<_, _>>()?;
            let converted = review(&hook.endpoint, config, kind, &served.api_version, &values, true).await?;
            for (stored, object) in batch.iter().zip(&converted) {
                stored.keep_form(kind, object)?;
            }
            rest = later;
        }
        Ok(())
    }

    /// The same for watchers, of whom many want the same at once.
    pub async fn shared<'a>(&self, kind: &Kind, objects: impl Iterator<Item = &'a Arc<Stored>>) -> Result<(), Status> {
        let Some((served, config)) = by_webhook(kind) else { return Ok(()) };
        let missing: Vec<&Arc<Stored>> = objects.filter(|stored| stored.lacks_form(kind)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let hook = self.hook(&served.definition, config);
        let _turn = hook.turn.lock().await;
        self.all(kind, missing.into_iter()).await
    }

    /// The object in the version that is stored, where only a webhook makes that.
    pub async fn to_storage<'a>(&self, kind: &Kind, object: &'a Value) -> Result<Cow<'a, Value>, Status> {
        let Some((served, config)) = by_webhook(kind) else { return Ok(Cow::Borrowed(object)) };
        let Some(version) = served.definition.storage() else { return Ok(Cow::Borrowed(object)) };
        let wanted = format!("{}/{}", kind.group, version.name);
        if object["apiVersion"] == wanted {
            return Ok(Cow::Borrowed(object));
        }
        let hook = self.hook(&served.definition, config);
        let converted = review(&hook.endpoint, config, kind, &wanted, std::slice::from_ref(object), false).await?;
        let mut converted = converted.into_iter().next().unwrap_or_default();
        version.schema.prune(&mut converted);
        Ok(Cow::Owned(converted))
    }
}

fn by_webhook(kind: &Kind) -> Option<(&Served, &Value)> {
    let served = kind.custom.as_deref()?;
    Some((served, served.definition.webhook.as_ref()?))
}

/// Asks a webhook to convert; what comes back has the metadata that went there, but for labels and annotations.
async fn review(
    endpoint: &Endpoint,
    config: &Value,
    kind: &Kind,
    wanted: &str,
    objects: &[Value],
    list: bool,
) -> Result<Vec<Value>, Status> {
    let from = objects.first().map(|object| meta::text(object, &["apiVersion"])).unwrap_or_default();
    let what = format!("{from}, Kind={}", if list { kind.list_kind } else { kind.kind });
    let failed = |why: String| Status::internal_plain(format!("conversion webhook for {what} {why}"));
    let versions = meta::items(config, &["conversionReviewVersions"]);
    let version = versions.iter().filter_map(Value::as_str).find(|version| matches!(*version, "v1" | "v1beta1"));
    let version = version.ok_or_else(|| Status::internal_plain("no supported conversion review versions"))?;
    let uid = uuid::Uuid::new_v4().to_string();
    let question = json!({"kind": "ConversionReview", "apiVersion": format!("{GROUP}/{version}"),
        "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": objects}});
    let converted = match endpoint.post(&question, MAX_ANSWER).await {
        Ok(bytes) => read(&bytes, version, &uid),
        Err(why) => Err(why),
    };
    let mut converted = converted.map_err(|why| failed(format!("failed: {why}")))?;
    if converted.len() != objects.len() {
        return Err(failed(format!("returned {} objects, expected {}", converted.len(), objects.len())));
    }
    for (index, (before, after)) in objects.iter().zip(&mut converted).enumerate() {
        let (mistyped, invalid, metadata) = match list {
            true => {
                let invalid = format!("returned invalid converted object at index {index}");
                (invalid.clone(), invalid, format!("returned invalid metadata in object at index {index}"))
            }
            false => (
                "returned invalid object at index 0".into(),
                "returned invalid object".into(),
                "returned invalid metadata".into(),
            ),
        };
        check_type(before, after, wanted).map_err(|why| failed(format!("{mistyped}: {why}")))?;
        check_identity(before, after).map_err(|why| failed(format!("{invalid}: {why}")))?;
        restore_metadata(before, after).map_err(|why| failed(format!("{metadata}: {why}")))?;
    }
    Ok(converted)
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    kind: String,
    api_version: String,
    response: Option<Response>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Response {
    uid: String,
    converted_objects: Option<Vec<Value>>,
    result: Outcome,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Outcome {
    status: String,
    message: String,
}

/// Reads an answer, and refuses one that is none.
fn read(bytes: &[u8], version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let document: Document = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let expected = format!("{GROUP}/{version}");
    // The older one never asked for it.
    let strict = version == "v1";
    if strict && (document.kind != "ConversionReview" || document.api_version != expected) {
        return Err(format!(
            "expected webhook response of {expected}, Kind=ConversionReview, got {}, Kind={}",
            document.api_version, document.kind
        ));
    }
    let response = document.response.ok_or("no response provided")?;
    if strict && response.uid != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", response.uid));
    }
    match (response.result.status.as_str(), response.result.message) {
        ("Success", _) => Ok(response.converted_objects.unwrap_or_default()),
        (status, message) if message.is_empty() => Err(format!("response.result.status was '{status}', not 'Success'")),
        (_, message) => Err(message),
    }
}

fn check_type(before: &Value, after: &Value, wanted: &str) -> Result<(), String> {
    let version = meta::text(after, &["apiVersion"]);
    if version != wanted {
        return Err(format!("invalid groupVersion (expected {wanted}, received {version})"));
    }
    let (expected, kind) = (meta::text(before, &["kind"]), meta::text(after, &["kind"]));
    if kind != expected {
        return Err(format!("invalid kind (expected {expected}, received {kind})"));
    }
    Ok(())
}

/// An object stays the one it is, in another version.
fn check_identity(before: &Value, after: &Value) -> Result<(), String> {
    for (title, field) in [("name", "name"), ("namespace", "namespace"), ("UID", "uid")] {
        let (expected, got) = (meta::text(before, &["metadata", field]), meta::text(after, &["metadata", field]));
        if expected != got {
            return Err(format!("must have the same {title}: {expected} != {got}"));
        }
    }
    Ok(())
}

/// Of the metadata only labels and annotations are a webhook's to change.
fn restore_metadata(before: &Value, after: &mut Value) -> Result<(), String> {
    let converted = match after.get_mut("metadata").map(Value::take) {
        None | Some(Value::Null) => return Err("missing metadata in converted object".into()),
        Some(Value::Object(metadata)) => metadata,
        Some(_) => return Err("invalid metadata in converted object".into()),
    };
    let mut metadata: Map<String, Value> = meta::object(before, &["metadata"]).cloned().unwrap_or_default();
    for field in ["labels", "annotations"] {
        metadata.remove(field);
        let Some(given) = converted.get(field).filter(|given| !given.is_null()) else { continue };
        let Some(map) = given.as_object() else {
            return Err(format!("invalid metadata.{field} in converted object"));
        };
        if let Some((key, _)) = map.iter().find(|(_, value)| !value.is_string()) {
            return Err(format!("metadata.{field}[{key}] must be a string in converted object"));
        }
        metadata.insert(field.into(), given.clone());
    }
    after["metadata"] = Value::Object(metadata);
    Ok(())
}
