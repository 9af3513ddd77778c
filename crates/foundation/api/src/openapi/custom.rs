//! Documents about custom kinds: their schemas as they were written, with what every object has.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{Parts, annotated, gnostic, list_schema, swagger};
use crate::custom::Catalog;
use crate::registry::{Kind, group_path};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The documents of one catalogue that has custom kinds, each made when first asked for.
#[derive(Default)]
pub struct Documents {
    v3: OnceLock<BTreeMap<String, Bytes>>,
    v2: OnceLock<Bytes>,
    gnostic: OnceLock<Bytes>,
}

impl Documents {
    /// Encoded documents by path, of those groups that have custom kinds.
    pub(super) fn v3(&self, catalog: &Catalog) -> &BTreeMap<String, Bytes> {
        self.v3.get_or_init(|| {
            if catalog.custom().next().is_none() {
                return BTreeMap::new();
            }
            let mut schemas = annotated("#/components/schemas/");
            add(&mut schemas, catalog, "#/components/schemas/");
            let mut documents = BTreeMap::new();
            for row in catalog.custom() {
                let path = group_path(row.group, row.version).trim_start_matches('/').to_owned();
                documents.entry(path).or_insert_with(|| {
                    let mut parts = Parts::default();
                    catalog.kinds_of(row.group, row.version).for_each(|kind| parts.add(kind, &schemas));
                    parts.finish().to_string().into()
                });
            }
            documents
        })
    }

    pub(super) fn v2(&self, catalog: &Catalog) -> Bytes {
        self.v2.get_or_init(|| whole(catalog).to_string().into()).clone()
    }

    pub(super) fn gnostic(&self, catalog: &Catalog) -> Bytes {
        self.gnostic.get_or_init(|| gnostic(&whole(catalog)).into()).clone()
    }
}

fn whole(catalog: &Catalog) -> Value {
    swagger(catalog.custom(), |definitions| {
        add(definitions, catalog, "#/definitions/");
        for row in catalog.custom() {
            if let Some(fields) =
                definitions.get_mut(row.definition).and_then(|schema| schema["properties"].as_object_mut())
            {
                fields.values_mut().for_each(simplify);
            }
        }
    })
}

fn add(schemas: &mut Map<String, Value>, catalog: &Catalog, prefix: &str) {
    for kind in catalog.custom() {
        let Some(served) = &kind.custom else { continue };
        let mut schema = served.version.document.clone();
        if !schema["properties"].is_object() {
            schema["properties"] = json!({});
        }
        let properties = &mut schema["properties"];
        for field in ["apiVersion", "kind"] {
            if properties[field].is_null() {
                properties[field] = json!({"type": "string"});
            }
        }
        properties["metadata"] = json!({
            "description": "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
            "allOf": [{"$ref": format!("{prefix}{OBJECT_META}")}],
        });
        let named = |kind: &Kind, name: &str| json!([{"group": kind.group, "version": kind.version, "kind": name}]);
        schema["x-kubernetes-group-version-kind"] = named(kind, kind.kind);
        schemas.insert(kind.definition.to_owned(), schema);
        let mut list = list_schema(kind, prefix);
        list["x-kubernetes-group-version-kind"] = named(kind, kind.list_kind);
        schemas.insert(format!("{}List", kind.definition), list);
    }
}

/// Version 2 has no words for junctions and nulls; where a schema uses them it says less.
fn simplify(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    if fields.contains_key("allOf") && fields["allOf"][0]["$ref"].is_string() {
        return;
    }
    let flag = |name: &str| fields.get(name) == Some(&Value::Bool(true));
    let vague = flag("nullable") || flag("x-kubernetes-preserve-unknown-fields");
    let any = vague || flag("x-kubernetes-int-or-string");
    for name in ["allOf", "anyOf", "oneOf", "not", "nullable", "default", "x-kubernetes-validations"] {
        fields.remove(name);
    }
    if any {
        fields.remove("type");
    }
    if vague {
        for name in ["items", "properties", "additionalProperties", "required"] {
            fields.remove(name);
        }
    }
    for name in ["items", "additionalProperties"] {
        if let Some(child) = fields.get_mut(name) {
            simplify(child);
        }
    }
    if let Some(properties) = fields.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(simplify);
    }
}
