//! A CustomResourceDefinition, read once: names, versions and what each version serves.

use std::cmp::Ordering;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::path::Path;
use super::rules::Rules;
use super::schema::Schema;
use crate::error::Error;
use crate::meta::{items, text};
use crate::time;
use crate::validation::FieldError;

/// One definition.
#[derive(Debug, Clone)]
pub struct Definition {
    pub group: String,
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub list_kind: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    /// Best first, as discovery lists them.
    pub versions: Vec<Arc<Version>>,
    /// The webhook that converts, when one does; otherwise only `apiVersion` changes.
    pub webhook: Option<Value>,
    /// Whether it is being deleted, and nothing new is taken.
    pub terminating: bool,
}

/// One version of a definition.
#[derive(Debug, Clone)]
pub struct Version {
    pub name: String,
    pub served: bool,
    pub storage: bool,
    /// What to warn with, when the version is deprecated.
    pub deprecation: Option<String>,
    pub status: bool,
    pub scale: Option<Scale>,
    pub columns: Vec<Column>,
    pub selectable: Vec<Selectable>,
    pub schema: Schema,
    pub rules: Rules,
    /// The schema as it was written, for those who read about the kind.
    pub document: Value,
}

/// Where a scale reads and writes.
#[derive(Debug, Clone)]
pub struct Scale {
    pub spec_replicas: Path,
    pub status_replicas: Path,
    pub selector: Option<Path>,
}

/// A field that field selectors may name.
#[derive(Debug, Clone)]
pub struct Selectable {
    /// `spec.color`: the path without its first dot.
    pub name: String,
    pub path: Path,
}

/// A column of `kubectl get`.
#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    pub kind: String,
    pub format: String,
    pub description: String,
    pub priority: i64,
    pub path: Path,
}

impl Definition {
    /// Reads an object that validation has accepted.
    pub fn parse(object: &Value) -> Result<Self, Error> {
        let spec = &object["spec"];
        let accepted = &object["status"]["acceptedNames"];
        let names = if text(accepted, &["plural"]).is_empty() { &spec["names"] } else { accepted };
        let name = |field: &str| text(names, &[field]).to_owned();
        let words = |field: &str| -> Vec<String> {
            items(names, &[field]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let (group, kind) = (text(spec, &["group"]).to_owned(), name("kind"));
        let mut versions = Vec::new();
        for version in items(spec, &["versions"]) {
            versions.push(Arc::new(Version::parse(version, &group, &kind)?));
        }
        versions.sort_by(|one, other| priority(&one.name, &other.name));
        Ok(Self {
            singular: name("singular"),
            plural: name("plural"),
            list_kind: name("listKind"),
            short_names: words("shortNames"),
            categories: words("categories"),
            namespaced: text(spec, &["scope"]) == "Namespaced",
            webhook: (text(spec, &["conversion", "strategy"]) == "Webhook")
                .then(|| spec["conversion"]["webhook"].clone()),
            terminating: crate::meta::deletion_timestamp(object).is_some(),
            group,
            kind,
            versions,
        })
    }

    pub fn version(&self, name: &str) -> Option<&Arc<Version>> {
        self.versions.iter().find(|version| version.name == name && version.served)
    }

    /// The version that objects are stored in.
    pub fn storage(&self) -> Option<&Arc<Version>> {
        self.versions.iter().find(|version| version.storage)
    }

    /// An object at another version, where no webhook is asked: nothing but the type header changes.
    pub fn relabel(&self, object: &mut Value, version: &str) {
        object["apiVersion"] = json!(format!("{}/{version}", self.group));
    }
}

/// `v2`, `v1`, `v2beta1`, `v1alpha1`, and then everything else by name: best first.
pub fn priority(one: &str, other: &str) -> Ordering {
    fn rank(name: &str) -> Option<(u8, u64, u64)> {
        let rest = name.strip_prefix('v')?;
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let major = rest[..digits].parse().ok()?;
        let rest = &rest[digits..];
        if rest.is_empty() {
            return Some((2, major, 0));
        }
        let (stage, minor) = match rest.strip_prefix("beta") {
            Some(minor) => (1, minor),
            None => (0, rest.strip_prefix("alpha")?),
        };
        Some((stage, major, minor.parse().ok()?))
    }
    match (rank(one), rank(other)) {
        (Some(one), Some(other)) => other.cmp(&one),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => one.cmp(other),
    }
}

impl Version {
    fn parse(version: &Value, group: &str, kind: &str) -> Result<Self, Error> {
        let path = |text: &str| Path::parse(text);
        let scale = &version["subresources"]["scale"];
        let scale = match scale.is_object() {
            false => None,
            true => Some(Scale {
                spec_replicas: path(text(scale, &["specReplicasPath"]))?,
                status_replicas: path(text(scale, &["statusReplicasPath"]))?,
                selector: Some(text(scale, &["labelSelectorPath"]))
                    .filter(|text| !text.is_empty())
                    .map(path)
                    .transpose()?,
            }),
        };
        let mut columns = Vec::new();
        for column in items(version, &["additionalPrinterColumns"]) {
            let word = |field: &str| text(column, &[field]).to_owned();
            columns.push(Column {
                name: word("name"),
                kind: word("type"),
                format: word("format"),
                description: word("description"),
                priority: column["priority"].as_i64().unwrap_or(0),
                path: path(text(column, &["jsonPath"]))?,
            });
        }
        let name = text(version, &["name"]).to_owned();
        let selectable = items(version, &["selectableFields"]).iter().map(|field| {
            let text = text(field, &["jsonPath"]);
            Ok(Selectable { name: text.trim_start_matches(['$', '.']).to_owned(), path: path(text)? })
        });
        let warning = match text(version, &["deprecationWarning"]) {
            "" => format!("{group}/{name} {kind} is deprecated"),
            warning => warning.to_owned(),
        };
        let schema = Schema::parse(&version["schema"]["openAPIV3Schema"])?;
        Ok(Self {
            served: version["served"] == true,
            storage: version["storage"] == true,
            deprecation: (version["deprecated"] == true).then_some(warning),
            status: version["subresources"]["status"].is_object(),
            scale,
            columns,
            selectable: selectable.collect::<Result<_, Error>>()?,
            rules: Rules::compile(&schema),
            schema,
            document: version["schema"]["openAPIV3Schema"].clone(),
            name,
        })
    }

    /// Makes an incoming object whole: prunes, defaults, and says which fields were unknown.
    pub fn settle(&self, object: &mut Value) -> Vec<String> {
        let unknown = self.schema.prune(object);
        self.schema.fill_defaults(object);
        unknown
    }

    /// What is wrong with an object that was settled, by its schema alone.
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        self.schema.validate(object)
    }

    /// Titles, and whether each is for `-o wide`: the name, the definition's own, or the age when it has none.
    pub fn table_columns(&self) -> Vec<Value> {
        let mut columns =
            vec![json!({"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0})];
        columns.extend(self.columns.iter().map(|column| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            })
        }));
        if self.columns.is_empty() {
            columns.push(json!({"name": "Age", "type": "date", "format": "", "description": "", "priority": 0}));
        }
        columns
    }

    /// The cells of one object, in the order of [`Version::table_columns`].
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let age = |value: &Value| json!(time::age(value.as_str(), now));
        let mut cells = vec![json!(crate::meta::name(object))];
        cells.extend(self.columns.iter().map(|column| match column.path.first(object) {
            None => Value::Null,
            Some(value) => match column.kind.as_str() {
                "date" => age(value),
                "string" => json!(column.path.find(object).into_iter().map(plain).collect::<Vec<_>>().join(",")),
                _ => value.clone(),
            },
        }));
        if self.columns.is_empty() {
            cells.push(age(&object["metadata"]["creationTimestamp"]));
        }
        cells
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn definition() -> Definition {
        let version = |name: &str, storage: bool| {
            json!({
                "name": name, "served": true, "storage": storage,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"replicas": {"type": "integer", "default": 1}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                "additionalPrinterColumns": [
                    {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
                    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
            })
        };
        Definition::parse(&json!({"spec": {"group": "g.io", "scope": "Namespaced",
            "names": {"kind": "Thing", "plural": "things", "singular": "thing", "listKind": "ThingList", "shortNames": ["t"]},
            "versions": [version("v1beta1", false), version("v1", true)]}}))
        .unwrap()
    }

    #[test]
    fn a_definition_serves_settles_and_prints() {
        let definition = definition();
        assert_eq!(definition.versions[0].name, "v1");
        assert_eq!(definition.storage().unwrap().name, "v1");
        let version = definition.version("v1beta1").unwrap();
        let mut object = json!({"metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"odd": 1},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(version.settle(&mut object), ["spec.odd"]);
        assert_eq!(object["spec"], json!({"replicas": 1}));
        assert!(version.validate(&object).is_empty());
        let cells = version.cells(&object, "2026-01-01T01:00:00Z".parse().unwrap());
        assert_eq!(cells, [json!("x"), json!(1), json!("True"), json!("60m")]);
        assert_eq!(version.scale.as_ref().unwrap().spec_replicas.first(&object), Some(&json!(1)));
        definition.relabel(&mut object, "v1");
        assert_eq!(object["apiVersion"], "g.io/v1");
    }

    #[test]
    fn versions_are_listed_best_first() {
        let mut names = ["v1alpha1", "foo", "v1", "v10", "v2beta1", "v2beta10", "bar", "v2"];
        names.sort_by(|one, other| priority(one, other));
        assert_eq!(names, ["v10", "v2", "v1", "v2beta10", "v2beta1", "v1alpha1", "bar", "foo"]);
    }
}
