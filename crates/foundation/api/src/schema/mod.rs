//! The shapes of all types, compacted from the typed definitions: which field holds which type.
//!
//! Descriptions are dropped, so the table stays small; the full documents are made on request by [`crate::openapi`].

#[cfg(test)]
mod made;

use crate::registry::{KINDS, Subresource, builtin};
use flate2::read::GzDecoder;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::io::Read;
use std::sync::LazyLock;

/// What a field holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// Free-form, or a scalar.
    Any,
    /// Another type, by name.
    Ref(Box<str>),
    List(Box<Shape>),
    Map(Box<Shape>),
}

impl Shape {
    /// The type name that items of a list or values of a map have, or the type itself.
    pub fn type_name(&self) -> Option<&str> {
        match self {
            Self::Any => None,
            Self::Ref(name) => Some(name),
            Self::List(inner) | Self::Map(inner) => inner.type_name(),
        }
    }
}

/// One type: its fields, or none when it is free-form or a scalar.
#[derive(Debug, Default)]
pub struct Type {
    pub fields: HashMap<Box<str>, Shape>,
}

/// All types by definition name, such as `io.k8s.api.core.v1.PodSpec`.
pub struct Types(HashMap<Box<str>, Type>);

impl Types {
    pub fn get(&self, definition: &str) -> Option<&Type> {
        self.0.get(definition)
    }

    pub fn field(&self, definition: &str, field: &str) -> Option<&Shape> {
        self.0.get(definition)?.fields.get(field)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Type)> {
        self.0.iter().map(|(name, one)| (name.as_ref(), one))
    }
}

/// The shared table, built on first use.
pub fn types() -> &'static Types {
    static TYPES: LazyLock<Types> = LazyLock::new(|| {
        let definitions = definitions(WRITTEN_PREFIX);
        Types(definitions.into_iter().map(|(name, schema)| (name.into(), compact(&schema))).collect())
    });
    &TYPES
}

fn compact(schema: &Value) -> Type {
    let properties = schema["properties"].as_object().into_iter().flatten();
    Type { fields: properties.map(|(name, schema)| (name.as_str().into(), shape(schema))).collect() }
}

fn shape(schema: &Value) -> Shape {
    if let Some(name) = schema["$ref"].as_str() {
        return Shape::Ref(name.rsplit('/').next().unwrap_or(name).into());
    }
    if let Some(one) = schema["allOf"].get(0) {
        return shape(one);
    }
    if schema["items"].is_object() {
        return Shape::List(Box::new(shape(&schema["items"])));
    }
    if schema["additionalProperties"].is_object() {
        return Shape::Map(Box::new(shape(&schema["additionalProperties"])));
    }
    Shape::Any
}

/// Every definition reachable from the built-in kinds, as `made.rs` wrote them from the typed definitions: the code that describes
/// each type would be a tenth of the program.
static DEFINITIONS: &[u8] = include_bytes!("definitions.json.gz");
/// What references in them begin with.
const WRITTEN_PREFIX: &str = "#/$defs/";

/// Every definition reachable from the built-in kinds, with references that begin with `prefix`, such as `#/definitions/`.
pub(crate) fn definitions(prefix: &str) -> Map<String, Value> {
    let mut text = String::new();
    GzDecoder::new(DEFINITIONS).read_to_string(&mut text).expect("a test has read them");
    let text = text.replace(&format!("\"{WRITTEN_PREFIX}"), &format!("\"{prefix}"));
    serde_json::from_str(&text).expect("a test has read them")
}

/// Group, version and kind of every top-level definition, by definition name.
pub(crate) fn top_level() -> Vec<(String, &'static str, &'static str, String)> {
    let mut rows = Vec::new();
    for kind in KINDS.iter() {
        rows.push((kind.definition.to_owned(), kind.group, kind.version, kind.kind.to_owned()));
        if kind.stored {
            rows.push((format!("{}List", kind.definition), kind.group, kind.version, kind.list_kind.to_owned()));
        }
    }
    for (definition, subresource) in [
        ("io.k8s.api.autoscaling.v1.Scale", Subresource::Scale),
        ("io.k8s.api.policy.v1.Eviction", Subresource::Eviction),
        ("io.k8s.api.authentication.v1.TokenRequest", Subresource::Token),
    ] {
        if let Some((group, version, kind)) = subresource.response_kind() {
            rows.push((definition.to_owned(), group, version, kind.to_owned()));
        }
    }
    let meta = |kind: &str| format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}");
    for kind in ["APIGroup", "APIGroupList", "APIResourceList", "APIVersions", "Status"] {
        rows.push((meta(kind), "", "v1", kind.to_owned()));
    }
    // These are said to be of every group version, and have the same form in each.
    for group in builtin().groups() {
        for version in &group.versions {
            for kind in ["DeleteOptions", "WatchEvent"] {
                rows.push((meta(kind), group.name, version, kind.to_owned()));
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn follows_types() {
        let spec = types().field("io.k8s.api.core.v1.Pod", "spec").unwrap();
        assert_eq!(spec.type_name(), Some("io.k8s.api.core.v1.PodSpec"));
        let containers = types().field("io.k8s.api.core.v1.PodSpec", "containers").unwrap();
        assert_eq!(*containers, Shape::List(Box::new(Shape::Ref("io.k8s.api.core.v1.Container".into()))));
    }
}
