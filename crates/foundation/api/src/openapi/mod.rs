//! OpenAPI documents that clients merge, validate and explain by.
//!
//! Schemas come from the typed definitions, list semantics from [`crate::list_semantics`]; nothing is written twice.

mod custom;
mod gnostic;
mod paths;

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::custom::Catalog;
use crate::list_semantics::{self, ListType};
use crate::registry::{KINDS, Kind, group_path};
use crate::schema;

pub use custom::Documents;
pub use gnostic::gnostic;

/// `/openapi/v3`: the documents there are.
pub fn v3_root(catalog: &Catalog) -> Value {
    let custom = catalog.documents.get_or_init(Documents::default).v3(catalog);
    let paths: Map<String, Value> = DOCUMENTS
        .iter()
        .chain(custom)
        .map(|(path, document)| {
            let url = format!("/openapi/v3/{path}?hash={:016X}", hash(document));
            (path.clone(), json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// `/openapi/v3/<path>`, such as `api/v1` or `apis/apps/v1`.
pub fn v3(catalog: &Catalog, path: &str) -> Option<Bytes> {
    let custom = catalog.documents.get_or_init(Documents::default).v3(catalog);
    custom.get(path).or_else(|| DOCUMENTS.get(path)).cloned()
}

/// `/openapi/v2`: all groups in one Swagger document.
pub fn v2(catalog: &Catalog) -> Bytes {
    static BUILTIN: LazyLock<Bytes> = LazyLock::new(|| swagger([], |_| {}).to_string().into());
    match catalog.custom().next() {
        None => BUILTIN.clone(),
        Some(_) => catalog.documents.get_or_init(Documents::default).v2(catalog),
    }
}

/// The same in protobuf.
pub fn v2_protobuf(catalog: &Catalog) -> Bytes {
    static BUILTIN: LazyLock<Bytes> = LazyLock::new(|| gnostic(&swagger([], |_| {})).into());
    match catalog.custom().next() {
        None => BUILTIN.clone(),
        Some(_) => catalog.documents.get_or_init(Documents::default).gnostic(catalog),
    }
}

fn swagger<'a>(custom: impl IntoIterator<Item = &'a Kind>, add: impl Fn(&mut Map<String, Value>)) -> Value {
    let mut definitions = annotated("#/definitions/");
    add(&mut definitions);
    definitions.values_mut().for_each(unwrap_references);
    let mut items = Map::new();
    let kinds = KINDS.iter().chain(custom).flat_map(paths::of);
    let discovery = paths::discovery().into_iter().map(|(_, item, _)| item);
    items.extend(kinds.chain(discovery).map(|(path, item)| (path, paths::in_version_2(item))));
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "v1.35.0"},
        "paths": items,
        "definitions": definitions,
    })
}

/// Encoded documents by path.
static DOCUMENTS: LazyLock<BTreeMap<String, Bytes>> = LazyLock::new(|| {
    let schemas = annotated("#/components/schemas/");
    let mut documents: BTreeMap<String, Parts> = BTreeMap::new();
    for kind in KINDS.iter() {
        let path = group_path(kind.group, kind.version).trim_start_matches('/').to_owned();
        documents.entry(path).or_default().add(kind, &schemas);
    }
    for (path, item, answered) in paths::discovery() {
        let document = documents.entry(path).or_default();
        document.items.extend([item]);
        collect(&answered, &schemas, &mut document.types);
    }
    documents.into_iter().map(|(path, parts)| (path, parts.finish().to_string().into())).collect()
});

/// FNV-1a: stable over restarts, so that clients keep what they have.
fn hash(text: &[u8]) -> u64 {
    text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// One document of version 3 in the making.
#[derive(Default)]
struct Parts {
    items: Map<String, Value>,
    types: BTreeMap<String, Value>,
}

impl Parts {
    fn add(&mut self, kind: &Kind, schemas: &Map<String, Value>) {
        collect(kind.definition, schemas, &mut self.types);
        collect(&format!("{}List", kind.definition), schemas, &mut self.types);
        paths::types(kind).for_each(|name| collect(&name, schemas, &mut self.types));
        self.items.extend(paths::of(kind));
    }

    fn finish(self) -> Value {
        json!({
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": "v1.35.0"},
            "paths": self.items,
            "components": {"schemas": self.types},
        })
    }
}

/// A definition and all it refers to.
fn collect(name: &str, schemas: &Map<String, Value>, into: &mut BTreeMap<String, Value>) {
    if into.contains_key(name) {
        return;
    }
    let Some(schema) = schemas.get(name) else { return };
    into.insert(name.to_owned(), schema.clone());
    let mut found = Vec::new();
    references(schema, &mut found);
    for reference in found {
        collect(&reference, schemas, into);
    }
}

fn references(schema: &Value, into: &mut Vec<String>) {
    match schema {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                into.extend(reference.rsplit('/').next().map(str::to_owned));
            }
            fields.values().for_each(|value| references(value, into));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, into)),
        _ => {}
    }
}

/// All definitions with references below `prefix` and Kubernetes' extensions.
fn annotated(prefix: &str) -> Map<String, Value> {
    let mut definitions = schema::definitions(prefix);
    lists(&mut definitions, prefix);
    let mut kinds: HashMap<String, Vec<Value>> = HashMap::new();
    for (definition, group, version, kind) in schema::top_level() {
        kinds.entry(definition).or_default().push(json!({"group": group, "version": version, "kind": kind}));
    }
    for (definition, kinds) in kinds {
        if let Some(schema) = definitions.get_mut(&definition) {
            schema["x-kubernetes-group-version-kind"] = json!(kinds);
        }
    }
    for (definition, field, semantics) in list_semantics::iter() {
        let schema = definitions.get_mut(definition);
        // An empty field name speaks of the type itself.
        let property = if field.is_empty() { schema } else { schema.and_then(|s| s["properties"].get_mut(field)) };
        let Some(property) = property else { continue };
        wrap_reference(property);
        match semantics.list_type {
            ListType::Unset => {}
            ListType::AtomicMap => property["x-kubernetes-map-type"] = json!("atomic"),
            ListType::Atomic => property["x-kubernetes-list-type"] = json!("atomic"),
            ListType::Set => property["x-kubernetes-list-type"] = json!("set"),
            ListType::Map(keys) => {
                property["x-kubernetes-list-type"] = json!("map");
                property["x-kubernetes-list-map-keys"] = json!(keys);
            }
        }
        if let Some(key) = semantics.merge_key {
            property["x-kubernetes-patch-merge-key"] = json!(key);
        }
        if let Some(strategy) = semantics.strategy {
            property["x-kubernetes-patch-strategy"] = json!(strategy);
        }
    }
    definitions
}

/// Keywords beside `$ref` are ignored by readers; `allOf` keeps them.
fn wrap_reference(property: &mut Value) {
    if let Some(reference) = property.as_object_mut().and_then(|fields| fields.remove("$ref")) {
        property["allOf"] = json!([{"$ref": reference}]);
    }
}

/// Readers of version 2 take a reference with keywords beside it, and nothing else.
fn unwrap_references(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let only = fields.get("allOf").and_then(Value::as_array).filter(|parts| parts.len() == 1);
            if let Some(reference) = only.and_then(|parts| parts[0].get("$ref")).cloned() {
                fields.remove("allOf");
                fields.insert("$ref".into(), reference);
            }
            fields.values_mut().for_each(unwrap_references);
        }
        Value::Array(items) => items.iter_mut().for_each(unwrap_references),
        _ => {}
    }
}

/// The list kinds, which have no types of their own.
fn lists(definitions: &mut Map<String, Value>, prefix: &str) {
    for kind in KINDS.iter().filter(|kind| kind.stored) {
        definitions.insert(format!("{}List", kind.definition), list_schema(kind, prefix));
    }
}

fn list_schema(kind: &Kind, prefix: &str) -> Value {
    json!({
        "type": "object",
        "description": format!("{} is a list of {}.", kind.list_kind, kind.plural),
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"$ref": format!("{prefix}io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta")},
            "items": {"type": "array", "items": {"$ref": format!("{prefix}{}", kind.definition)}},
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn v3(path: &str) -> Option<Value> {
        serde_json::from_slice(&super::v3(&Catalog::default(), path)?).ok()
    }

    #[test]
    fn containers_merge_by_name() {
        let document = v3("api/v1").unwrap();
        let schemas = &document["components"]["schemas"];
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        let ports = &schemas["io.k8s.api.core.v1.Container"]["properties"]["ports"];
        assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
        assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
    }

    /// What `kubectl explain` looks for: in the document of the group version, a schema that names the kind.
    #[test]
    fn every_kind_can_be_explained() {
        for kind in KINDS.iter() {
            let document = v3(group_path(kind.group, kind.version).trim_start_matches('/')).unwrap();
            let schema = &document["components"]["schemas"][kind.definition];
            let own = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
            let names = schema["x-kubernetes-group-version-kind"].as_array().unwrap();
            assert!(names.contains(&own), "{kind:?}");
            assert!(schema["properties"].as_object().is_some_and(|fields| fields.len() > 1), "{kind:?} has no fields");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        for path in DOCUMENTS.keys() {
            let document = v3(path).unwrap();
            let mut found = Vec::new();
            references(&document, &mut found);
            for reference in found {
                assert!(document["components"]["schemas"][&reference].is_object(), "{path}: {reference}");
            }
        }
    }
}
