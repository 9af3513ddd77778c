//! Names that change, and everything that refers to them.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Reader, Resource};
use crate::error::Result;

/// Kinds whose names stay: other things know them by that name.
const FIXED: &[&str] = &["Namespace", "CustomResourceDefinition", "APIService"];

pub fn prefix_and_suffix(reader: &Reader<'_>, fields: &Map<String, Value>, all: &mut [Resource]) -> Result<()> {
    let prefix = reader.text(fields, "namePrefix")?.unwrap_or_default();
    let suffix = reader.text(fields, "nameSuffix")?.unwrap_or_default();
    if prefix.is_empty() && suffix.is_empty() {
        return Ok(());
    }
    rename(all, |resource| (!FIXED.contains(&resource.kind())).then(|| format!("{prefix}{}{suffix}", resource.name())));
    Ok(())
}

/// Gives generated objects the hash of their contents.
pub fn hash(all: &mut [Resource]) {
    rename(all, |resource| resource.hashed.then(|| format!("{}-{}", resource.name(), content_hash(&resource.object))));
}

/// As kustomize has it: ten digits of the digest of kind and contents under an empty name, without digits that make words.
fn content_hash(object: &Value) -> String {
    let mut known = std::collections::BTreeMap::new();
    for key in ["kind", "data", "type"] {
        if key != "type" || object["kind"] == "Secret" {
            known.insert(key, sorted(&object[key]));
        }
    }
    if known["data"].is_null() {
        known.insert("data", json!(""));
    }
    known.insert("name", json!(""));
    if object["binaryData"].is_object() {
        known.insert("binaryData", sorted(&object["binaryData"]));
    }
    let text = json!(known).to_string();
    // Go writes these as escapes.
    let text = text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    let text = text.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
    let digest = Sha256::digest(text.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let harmless = |c: char| match c {
        '0' => 'g',
        '1' => 'h',
        '3' => 'k',
        'a' => 'm',
        'e' => 't',
        other => other,
    };
    hex.chars().take(10).map(harmless).collect()
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<&String> = fields.keys().collect();
            names.sort();
            names.into_iter().map(|name| (name.clone(), fields[name].clone())).collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

fn rename(all: &mut [Resource], new: impl Fn(&Resource) -> Option<String>) {
    let mut changes = Vec::new();
    for resource in all.iter_mut() {
        let Some(name) = new(resource) else { continue };
        changes.push((resource.kind().to_owned(), resource.name().to_owned(), name.clone()));
        resource.object["metadata"]["name"] = json!(name);
    }
    for resource in all.iter_mut() {
        let kind = resource.kind().to_owned();
        refer(&mut resource.object, &kind, &[], &changes);
    }
}

/// Which kinds a text at a path refers to; the last keys decide.
fn target(kind: &str, path: &[&str], parent: &Map<String, Value>) -> Vec<String> {
    let ends = |tail: &[&str]| path.ends_with(tail);
    let one = |kind: &str| vec![kind.to_owned()];
    let named = || parent.get("kind").and_then(Value::as_str).map(str::to_owned).into_iter().collect::<Vec<_>>();
    if ends(&["configMap", "name"]) || ends(&["configMapRef", "name"]) || ends(&["configMapKeyRef", "name"]) {
        one("ConfigMap")
    } else if ends(&["secretRef", "name"])
        || ends(&["secretKeyRef", "name"])
        || ends(&["secret", "secretName"])
        || ends(&["secret", "name"])
        || ends(&["imagePullSecrets", "name"])
        || ends(&["tls", "secretName"])
    {
        one("Secret")
    } else if ends(&["persistentVolumeClaim", "claimName"]) {
        one("PersistentVolumeClaim")
    } else if ends(&["serviceAccountName"]) || ends(&["serviceAccount"]) {
        one("ServiceAccount")
    } else if (ends(&["service", "name"]) && kind == "Ingress")
        || (ends(&["serviceName"]) && kind == "StatefulSet")
        || (kind.ends_with("WebhookConfiguration") && ends(&["service", "name"]))
        || (kind.ends_with("Route") && ends(&["backendRefs", "name"]))
    {
        one("Service")
    } else if ends(&["priorityClassName"]) {
        one("PriorityClass")
    } else if ends(&["storageClassName"]) {
        one("StorageClass")
    } else if ends(&["volumeName"]) {
        one("PersistentVolume")
    } else if ends(&["ingressClassName"]) {
        one("IngressClass")
    } else if ends(&["runtimeClassName"]) {
        one("RuntimeClass")
    } else if ends(&["roleRef", "name"])
        || ends(&["scaleTargetRef", "name"])
        || ends(&["subjects", "name"])
        || ends(&["targetRef", "name"])
    {
        named()
    } else {
        Vec::new()
    }
}

fn refer(value: &mut Value, kind: &str, path: &[&str], changes: &[(String, String, String)]) {
    match value {
        Value::Object(fields) => {
            let before = fields.clone();
            for (key, inner) in fields.iter_mut() {
                let mut here = path.to_vec();
                here.push(key);
                if let Value::String(text) = inner {
                    let kinds = target(kind, &here, &before);
                    let found = changes.iter().find(|(of, old, _)| kinds.contains(of) && old == text);
                    if let Some((_, _, new)) = found {
                        text.clone_from(new);
                    }
                } else {
                    refer(inner, kind, &here, changes);
                }
            }
        }
        // Items are where their list is.
        Value::Array(items) => items.iter_mut().for_each(|item| refer(item, kind, path, changes)),
        _ => {}
    }
}
