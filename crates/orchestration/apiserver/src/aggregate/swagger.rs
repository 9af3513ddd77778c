//! OpenAPI version 2 of extension servers: what is about their group version becomes part of this server's document.

use std::collections::{BTreeMap, BTreeSet};

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use dhow_api::custom::Catalog;
use dhow_api::{Status, openapi};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::Remote;

const REFERENCE: &str = "#/definitions/";

/// The document of this server and extension servers together, made once for as long as none of them changes.
#[derive(Default)]
pub struct Swagger(Mutex<Option<Arc<Whole>>>);

struct Whole {
    catalog: Arc<Catalog>,
    extensions: Vec<Arc<Value>>,
    json: Bytes,
    /// The same in protobuf, when somebody asks for it.
    protobuf: OnceLock<Bytes>,
}

impl Swagger {
    pub fn json(&self, catalog: &Arc<Catalog>, remotes: &[Arc<Remote>]) -> Result<Bytes, Status> {
        Ok(self.whole(catalog, remotes)?.map_or_else(|| openapi::v2(catalog), |whole| whole.json.clone()))
    }

    pub fn protobuf(&self, catalog: &Arc<Catalog>, remotes: &[Arc<Remote>]) -> Result<Bytes, Status> {
        let Some(whole) = self.whole(catalog, remotes)? else { return Ok(openapi::v2_protobuf(catalog)) };
        if let Some(known) = whole.protobuf.get() {
            return Ok(known.clone());
        }
        let bytes = Bytes::from(openapi::gnostic(&parse(&whole.json)?));
        Ok(whole.protobuf.get_or_init(|| bytes).clone())
    }

    /// `None` while no extension server has anything to add.
    fn whole(&self, catalog: &Arc<Catalog>, remotes: &[Arc<Remote>]) -> Result<Option<Arc<Whole>>, Status> {
        let extensions: Vec<Arc<Value>> = remotes.iter().filter_map(|remote| remote.state().swagger).collect();
        if extensions.is_empty() {
            return Ok(None);
        }
        let mut kept = self.0.lock();
        let same = |whole: &Whole| {
            let pairs = whole.extensions.iter().zip(&extensions);
            Arc::ptr_eq(&whole.catalog, catalog)
                && whole.extensions.len() == extensions.len()
                && pairs.into_iter().all(|(one, other)| Arc::ptr_eq(one, other))
        };
        if let Some(whole) = kept.as_ref().filter(|whole| same(whole)) {
            return Ok(Some(whole.clone()));
        }
        let mut document = parse(&openapi::v2(catalog))?;
        extensions.iter().for_each(|extension| add(&mut document, extension));
        let json = document.to_string().into();
        let whole = Arc::new(Whole { catalog: catalog.clone(), extensions, json, protobuf: OnceLock::new() });
        *kept = Some(whole.clone());
        Ok(Some(whole))
    }
}

fn parse(document: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(document).map_err(|error| Status::internal(format!("OpenAPI document: {error}")))
}

/// What of a server's document is about its group version: those paths, and the definitions they need.
pub fn own(document: &Value, group: &str, version: &str) -> Option<Value> {
    let root = format!("/apis/{group}/{version}");
    let within = |path: &str| path.strip_prefix(&root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let paths = document["paths"].as_object()?.iter().filter(|(path, _)| within(path));
    let paths: Map<String, Value> = paths.map(|(path, item)| (path.clone(), item.clone())).collect();
    if paths.is_empty() {
        return None;
    }
    let mut wanted: Vec<String> = paths.values().flat_map(references).collect();
    // Kinds without a path of their own are explained as well.
    let of_group = |schema: &Value| {
        let kinds = schema["x-kubernetes-group-version-kind"].as_array().map(Vec::as_slice).unwrap_or_default();
        kinds.iter().any(|kind| kind["group"] == group && kind["version"] == version)
    };
    let all = document["definitions"].as_object()?;
    wanted.extend(all.iter().filter(|(_, schema)| of_group(schema)).map(|(name, _)| name.clone()));
    let mut definitions = Map::new();
    let mut seen = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        if let Some(schema) = all.get(&name).filter(|_| seen.insert(name.clone())) {
            wanted.extend(references(schema));
            definitions.insert(name, schema.clone());
        }
    }
    Some(json!({"paths": paths, "definitions": definitions}))
}

/// Adds what [`own`] gave to a document. A definition whose name is taken by another gets one of its own.
pub fn add(document: &mut Value, extension: &Value) {
    let entries = |field: &str| extension[field].as_object().cloned().unwrap_or_default();
    let definitions = entries("definitions");
    let mut names = BTreeMap::new();
    for (name, schema) in &definitions {
        let taken = |name: &str| document["definitions"].get(name).is_some_and(|other| other != schema);
        if taken(name) {
            let free = (2..).map(|number| format!("{name}_v{number}")).find(|other| !taken(other));
            names.insert(name.clone(), free.unwrap_or_default());
        }
    }
    for (name, mut schema) in definitions {
        rename(&mut schema, &names);
        let name = names.get(&name).cloned().unwrap_or(name);
        document["definitions"][name] = schema;
    }
    for (path, mut item) in entries("paths") {
        rename(&mut item, &names);
        document["paths"][path] = item;
    }
}

fn references(tree: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = vec![tree];
    while let Some(next) = rest.pop() {
        match next {
            Value::Object(fields) => {
                let reference =
                    fields.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix(REFERENCE));
                found.extend(reference.map(str::to_owned));
                rest.extend(fields.values());
            }
            Value::Array(items) => rest.extend(items),
            _ => {}
        }
    }
    found
}

fn rename(tree: &mut Value, names: &BTreeMap<String, String>) {
    match tree {
        Value::Object(fields) => {
            for (field, value) in fields {
                let old = value.as_str().filter(|_| field == "$ref").and_then(|name| name.strip_prefix(REFERENCE));
                match old.and_then(|name| names.get(name)) {
                    Some(new) => *value = json!(format!("{REFERENCE}{new}")),
                    None => rename(value, names),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_group_version_brings_what_it_needs() {
        let refer = |name: &str| json!({"$ref": format!("{REFERENCE}{name}")});
        let kind = json!([{"group": "m.io", "version": "v1", "kind": "Node"}]);
        let theirs = json!({
            "paths": {"/apis/m.io/v1/nodes": {"get": {"responses": {"200": {"schema": refer("Node")}}}}, "/apis/m.io/v10/x": {}, "/version": {}},
            "definitions": {"Node": {"properties": {"meta": refer("Meta"), "self": refer("Node")}, "x-kubernetes-group-version-kind": kind},
                "Meta": {"type": "string"}, "Other": {}},
        });
        assert!(own(&theirs, "m.io", "v2").is_none());
        let part = own(&theirs, "m.io", "v1").unwrap();
        let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(&part["paths"]), ["/apis/m.io/v1/nodes".to_owned()].into());
        assert_eq!(names(&part["definitions"]), ["Meta".to_owned(), "Node".to_owned()].into());
        let mut ours = json!({"paths": {"/version": {}}, "definitions": {"Meta": {"type": "object"}}});
        add(&mut ours, &part);
        assert_eq!(ours["definitions"]["Meta"], json!({"type": "object"}));
        assert_eq!(ours["definitions"]["Meta_v2"], json!({"type": "string"}));
        assert_eq!(ours["definitions"]["Node"]["properties"], json!({"meta": refer("Meta_v2"), "self": refer("Node")}));
        assert_eq!(names(&ours["paths"]).len(), 2);
        // The same again changes nothing.
        let once = ours.clone();
        add(&mut ours, &json!({"paths": {}, "definitions": {"Meta": {"type": "object"}}}));
        assert_eq!(ours, once);
    }
}
