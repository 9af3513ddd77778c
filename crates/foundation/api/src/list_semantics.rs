//! One table of how lists and maps merge: list type and keys for server-side apply, merge key and strategy for
//! strategic merge patch. The two differ for some lists (container ports), so both are kept.
//!
//! Types are named without the `io.k8s.` prefix's noise: `core.v1.PodSpec` is `io.k8s.api.core.v1.PodSpec`.

mod rows;

use std::collections::HashMap;
use std::sync::LazyLock;

/// `x-kubernetes-list-type` or `x-kubernetes-map-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListType {
    Unset,
    Atomic,
    Set,
    /// Keyed by the fields given.
    Map(&'static [&'static str]),
    /// A struct or map that is replaced as a whole.
    AtomicMap,
}

/// How one field merges. An empty field name speaks of the type itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Semantics {
    pub list_type: ListType,
    /// `x-kubernetes-patch-merge-key`.
    pub merge_key: Option<&'static str>,
    /// `x-kubernetes-patch-strategy`: `merge`, `replace`, `retainKeys` or `merge,retainKeys`.
    pub strategy: Option<&'static str>,
}

impl Semantics {
    /// Whether strategic merge merges this list or map item by item.
    pub fn merges(&self) -> bool {
        self.strategy.is_some_and(|s| s.split(',').any(|s| s == "merge"))
    }

    /// Whether strategic merge replaces this map whole.
    pub fn replaces(&self) -> bool {
        self.strategy.is_some_and(|s| s.split(',').any(|s| s == "replace"))
    }
}

type Row = (&'static str, &'static str, Semantics);

/// The definition name of a short type name.
fn expand(short: &str) -> String {
    let prefix = match short.split('.').next() {
        Some("meta") => "io.k8s.apimachinery.pkg.apis",
        Some("apiextensions") => "io.k8s.apiextensions-apiserver.pkg.apis",
        Some("apiregistration") => "io.k8s.kube-aggregator.pkg.apis",
        _ => "io.k8s.api",
    };
    format!("{prefix}.{short}")
}

static TABLE: LazyLock<HashMap<String, HashMap<&'static str, Semantics>>> = LazyLock::new(|| {
    let mut table: HashMap<String, HashMap<&'static str, Semantics>> = HashMap::new();
    for (definition, field, semantics) in rows::rows() {
        table.entry(expand(definition)).or_default().insert(field, semantics);
    }
    table
});

/// The row of `field` in `definition`.
pub fn get(definition: &str, field: &str) -> Option<Semantics> {
    TABLE.get(definition)?.get(field).copied()
}

/// All rows: definition, field, semantics.
pub fn iter() -> impl Iterator<Item = (&'static str, &'static str, Semantics)> {
    TABLE.iter().flat_map(|(definition, fields)| fields.iter().map(|(f, s)| (definition.as_str(), *f, *s)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stderr)]
    use super::*;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;
    use std::path::Path;

    fn as_reference(semantics: Semantics) -> Value {
        let mut value = json!({});
        match semantics.list_type {
            ListType::Unset => {}
            ListType::Atomic => value["list-type"] = json!("atomic"),
            ListType::Set => value["list-type"] = json!("set"),
            ListType::Map(keys) => {
                value["list-type"] = json!("map");
                value["list-map-keys"] = json!(keys);
            }
            ListType::AtomicMap => value["map-type"] = json!("atomic"),
        }
        if let Some(key) = semantics.merge_key {
            value["patch-merge-key"] = json!(key);
        }
        if let Some(strategy) = semantics.strategy {
            value["patch-strategy"] = json!(strategy);
        }
        value
    }

    #[test]
    fn every_row_names_a_real_field() {
        for (definition, field, _) in iter() {
            if field.is_empty() {
                assert!(crate::schema::types().get(definition).is_some(), "{definition}");
            } else {
                assert!(crate::schema::types().field(definition, field).is_some(), "{definition}.{field}");
            }
        }
    }

    /// Compares with an extract of upstream's facts, when the checkout sits beside one.
    #[test]
    fn agrees_with_the_reference() {
        let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|up| up.join("shared/reference"));
        let Some(folder) = folders.find(|folder| folder.is_dir()) else {
            eprintln!("no shared/reference beside the checkout: skipped");
            return;
        };
        let text = std::fs::read_to_string(folder.join("list-semantics-v1.33.json")).unwrap();
        let reference: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_str(&text).unwrap();
        let mut differences = Vec::new();
        // The group became stable after the reference was taken, with the shapes of its last beta.
        let stable = |definition: &str| definition.replace("resource.v1beta2.", "resource.v1.");
        let reference: BTreeMap<String, BTreeMap<String, Value>> =
            reference.into_iter().map(|(definition, fields)| (stable(&definition), fields)).collect();
        for (definition, fields) in &reference {
            let Some(known) = crate::schema::types().get(definition) else { continue };
            for (field, expected) in fields {
                if !field.is_empty() && !known.fields.contains_key(field.as_str()) {
                    continue; // Gone or renamed in the newer version our types have.
                }
                let ours = get(definition, field).map_or(json!({}), as_reference);
                let mut expected = expected.clone();
                if let Some(fields) = expected.as_object_mut() {
                    // Says nothing about merging, and the default of every map.
                    fields.remove("unions");
                    fields.retain(|name, value| name != "map-type" || value != "granular");
                }
                if ours != expected {
                    differences.push(format!("{definition} {field}: ours {ours}, reference {expected}"));
                }
            }
        }
        for (definition, field, semantics) in iter() {
            let Some(fields) = reference.get(definition) else { continue };
            if !fields.contains_key(field) && !rows::NEWER.iter().any(|(d, f)| definition.ends_with(d) && *f == field) {
                differences.push(format!("{definition} {field}: ours {}, reference none", as_reference(semantics)));
            }
        }
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }
}
