//! Discovery and OpenAPI documents as plain facts, so that they can be compared.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// What discovery says of a resource or subresource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resource {
    pub verbs: BTreeSet<String>,
    /// `apps/v1 Deployment`.
    pub kind: String,
    pub namespaced: bool,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
}

/// By group version and name, `pods/log` for a subresource.
pub type Resources = BTreeMap<(String, String), Resource>;
/// What is said of each field, such as `type string`, by type and field. The empty field is the type itself.
pub type Fields = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;
/// Parameters in the query by path and method.
pub type Operations = BTreeMap<(String, String), BTreeSet<String>>;

/// `v1` and `v2` are stable, `v1beta1` is not.
pub fn is_stable(version: &str) -> bool {
    version.strip_prefix('v').is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> impl Iterator<Item = String> {
    value.as_array().into_iter().flatten().map(text)
}

fn named(group: &str, version: &str, kind: &str) -> String {
    if group.is_empty() { format!("{version} {kind}") } else { format!("{group}/{version} {kind}") }
}

/// What upstream's document has and is stable.
pub struct Wanted {
    pub resources: Resources,
    pub fields: Fields,
    pub operations: Operations,
    /// The group version of each package of types.
    pub packages: BTreeMap<String, String>,
}

impl Wanted {
    pub fn new(swagger: &Value) -> Self {
        let mut resources = Resources::new();
        let mut operations = Operations::new();
        for (path, item) in swagger["paths"].as_object().unwrap() {
            let Some((key, namespaced)) = resource(path) else { continue };
            for (method, operation) in item.as_object().unwrap() {
                let verbs = verbs(text(&operation["x-kubernetes-action"]).as_str(), method);
                if verbs.is_empty() {
                    continue;
                }
                let entry = resources.entry(key.clone()).or_default();
                entry.verbs.extend(verbs.iter().map(|verb| (*verb).to_owned()));
                entry.namespaced |= namespaced;
                let kind = &operation["x-kubernetes-group-version-kind"];
                entry.kind = named(&text(&kind["group"]), &text(&kind["version"]), &text(&kind["kind"]));
                let parameters = [&operation["parameters"], &item["parameters"]].into_iter().flat_map(|list| {
                    list.as_array().into_iter().flatten().map(|one| match one["$ref"].as_str() {
                        Some(reference) => &swagger["parameters"][reference.rsplit('/').next().unwrap()],
                        None => one,
                    })
                });
                let names = parameters.filter(|one| one["in"] == "query").map(|one| text(&one["name"])).collect();
                operations.insert((path.clone(), method.clone()), names);
            }
        }
        let stable = |name: &str| {
            let version = name.rsplit('.').nth(1).unwrap_or_default();
            is_stable(version) || matches!(version, "resource" | "runtime" | "intstr" | "version")
        };
        let mut fields = fields(&swagger["definitions"]);
        fields.retain(|name, _| stable(name));
        // Some types are said to be of every group version; those that nothing else is of do not matter.
        let matters = |fact: &String| match fact.strip_prefix("x-kubernetes-group-version-kind ") {
            Some(kind) => kind.split(' ').next().is_some_and(|of| resources.keys().any(|(known, _)| known == of)),
            None => true,
        };
        fields.values_mut().flat_map(BTreeMap::values_mut).for_each(|facts| facts.retain(matters));
        let mut packages = BTreeMap::new();
        for (name, schema) in swagger["definitions"].as_object().unwrap() {
            if let [one] = schema["x-kubernetes-group-version-kind"].as_array().map_or(&[][..], Vec::as_slice) {
                let (group, version) = (text(&one["group"]), text(&one["version"]));
                let group_version = if group.is_empty() { version } else { format!("{group}/{version}") };
                packages.insert(package(name).to_owned(), group_version);
            }
        }
        Self { resources, fields, operations, packages }
    }

    /// The group version that a type is of.
    pub fn group_version(&self, definition: &str) -> &str {
        match package(definition) {
            shared if shared.contains("apimachinery") => "shared types",
            package => self.packages.get(package).map_or("", String::as_str),
        }
    }
}

fn package(definition: &str) -> &str {
    definition.rsplit_once('.').map_or("", |(package, _)| package)
}

/// Group version and name of a path that is about a stable resource, and whether it is in a namespace.
fn resource(path: &str) -> Option<((String, String), bool)> {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let group_version = match *parts.first()? {
        "api" => parts.drain(..2.min(parts.len())).next_back()?.to_owned(),
        "apis" if parts.len() > 3 => {
            let (group, version) = (parts[1], parts[2]);
            parts.drain(..3);
            is_stable(version).then(|| format!("{group}/{version}"))?
        }
        _ => return None,
    };
    if parts.first() == Some(&"watch") {
        parts.remove(0);
    }
    // `namespaces/{namespace}/pods/…`, but `namespaces/{name}/status`.
    let namespaced = parts.len() > 2 && parts[0] == "namespaces" && parts[1] == "{namespace}";
    if namespaced {
        parts.drain(..2);
    }
    let name = match parts.as_slice() {
        [plural] | [plural, "{name}"] => (*plural).to_owned(),
        [plural, "{name}", sub] | [plural, "{name}", sub, "{path}"] => format!("{plural}/{sub}"),
        _ => return None,
    };
    (!name.is_empty()).then_some(((group_version, name), namespaced))
}

fn verbs(action: &str, method: &str) -> &'static [&'static str] {
    match (action, method) {
        ("get", _) => &["get"],
        ("list", _) => &["list"],
        ("watch" | "watchlist", _) => &["watch"],
        ("post", _) | ("connect", "post") => &["create"],
        ("put", _) | ("connect", "put") => &["update"],
        ("patch", _) | ("connect", "patch") => &["patch"],
        ("delete", _) | ("connect", "delete") => &["delete"],
        ("deletecollection", _) => &["deletecollection"],
        ("connect", "get") => &["get"],
        _ => &[],
    }
}

/// What the server says, in each of the ways it does.
pub struct Served {
    pub legacy: Resources,
    pub aggregated: Resources,
    pub v2: Fields,
    pub v3: Fields,
    pub v2_operations: Operations,
    pub v3_operations: Operations,
}

impl Served {
    pub fn new(legacy: &[Value], aggregated: &[Value], v2: Value, v3: Vec<Value>) -> Self {
        let mut v3_fields = Fields::new();
        for document in &v3 {
            for (name, fields) in fields(&document["components"]["schemas"]) {
                // Every document that has a type says the same of it.
                let known = v3_fields.entry(name.clone()).or_insert_with(|| fields.clone());
                assert_eq!(*known, fields, "{name}");
            }
        }
        Self {
            legacy: legacy.iter().flat_map(legacy_resources).collect(),
            aggregated: aggregated.iter().flat_map(aggregated_resources).collect(),
            v2: fields(&v2["definitions"]),
            v3: v3_fields,
            v2_operations: operations(&v2).collect(),
            v3_operations: v3.iter().flat_map(operations).collect(),
        }
    }
}

fn legacy_resources(list: &Value) -> Vec<((String, String), Resource)> {
    let group_version = text(&list["groupVersion"]);
    let (group, version) = group_version.split_once('/').unwrap_or(("", &group_version));
    let or = |value: &Value, known: &str| value.as_str().unwrap_or(known).to_owned();
    let entries = list["resources"].as_array().unwrap().iter();
    entries
        .map(|entry| {
            let version = or(&entry["version"], version);
            let resource = Resource {
                verbs: texts(&entry["verbs"]).collect(),
                kind: named(&or(&entry["group"], group), &version, &text(&entry["kind"])),
                namespaced: entry["namespaced"] == true,
                short_names: texts(&entry["shortNames"]).collect(),
                categories: texts(&entry["categories"]).collect(),
            };
            ((group_version.clone(), text(&entry["name"])), resource)
        })
        .collect()
}

fn aggregated_resources(list: &Value) -> Vec<((String, String), Resource)> {
    let mut found = Vec::new();
    for group in list["items"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            let name = text(&group["metadata"]["name"]);
            let version_name = text(&version["version"]);
            let group_version = if name.is_empty() { version_name } else { format!("{name}/{version_name}") };
            for entry in version["resources"].as_array().unwrap() {
                let kind = |of: &Value| named(&text(&of["group"]), &text(&of["version"]), &text(&of["kind"]));
                let plural = text(&entry["resource"]);
                let namespaced = entry["scope"] == "Namespaced";
                let resource = Resource {
                    verbs: texts(&entry["verbs"]).collect(),
                    kind: kind(&entry["responseKind"]),
                    namespaced,
                    short_names: texts(&entry["shortNames"]).collect(),
                    categories: texts(&entry["categories"]).collect(),
                };
                found.push(((group_version.clone(), plural.clone()), resource));
                for sub in entry["subresources"].as_array().into_iter().flatten() {
                    let resource = Resource {
                        verbs: texts(&sub["verbs"]).collect(),
                        kind: kind(&sub["responseKind"]),
                        namespaced,
                        ..Resource::default()
                    };
                    found.push(((group_version.clone(), format!("{plural}/{}", text(&sub["subresource"]))), resource));
                }
            }
        }
    }
    found
}

fn operations(document: &Value) -> impl Iterator<Item = ((String, String), BTreeSet<String>)> {
    document["paths"].as_object().into_iter().flatten().flat_map(|(path, item)| {
        item.as_object().unwrap().iter().filter(|(method, _)| *method != "parameters").map(
            move |(method, operation)| {
                let own = operation["parameters"].as_array().into_iter().flatten();
                let shared = item["parameters"].as_array().into_iter().flatten();
                let names =
                    own.chain(shared).filter(|one| one["in"] == "query").map(|one| text(&one["name"])).collect();
                ((path.clone(), method.clone()), names)
            },
        )
    })
}

fn fields(definitions: &Value) -> Fields {
    let types = definitions.as_object().unwrap().iter();
    types
        .map(|(name, schema)| {
            let mut fields: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (field, property) in schema["properties"].as_object().into_iter().flatten() {
                let known = fields.entry(field.clone()).or_default();
                said("", property, known);
                if texts(&schema["required"]).any(|required| required == *field) {
                    known.insert("required".into());
                }
            }
            let own = fields.entry(String::new()).or_default();
            for word in ["x-kubernetes-map-type", "x-kubernetes-group-version-kind"] {
                extension("", schema, word, own);
            }
            (name.clone(), fields)
        })
        .collect()
}

/// What a schema says that readers act on.
fn said(prefix: &str, schema: &Value, into: &mut BTreeSet<String>) {
    let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
    match reference {
        Some(reference) => drop(into.insert(format!("{prefix}is {}", reference.rsplit('/').next().unwrap()))),
        None => {
            for word in ["type", "format"] {
                if let Some(value) = schema[word].as_str() {
                    into.insert(format!("{prefix}{word} {value}"));
                }
            }
        }
    }
    for word in ["list-type", "list-map-keys", "map-type", "patch-merge-key", "patch-strategy"] {
        extension(prefix, schema, &format!("x-kubernetes-{word}"), into);
    }
    for (word, inner) in [("items", &schema["items"]), ("values", &schema["additionalProperties"])] {
        if inner.is_object() {
            said(&format!("{prefix}{word} "), inner, into);
        }
    }
}

fn extension(prefix: &str, schema: &Value, word: &str, into: &mut BTreeSet<String>) {
    match &schema[word] {
        Value::Null => {}
        // The default of every map.
        value if *value == "granular" => {}
        Value::String(value) => drop(into.insert(format!("{prefix}{word} {value}"))),
        Value::Array(list) if word.ends_with("kind") => {
            for one in list {
                let kind = named(&text(&one["group"]), &text(&one["version"]), &text(&one["kind"]));
                into.insert(format!("{prefix}{word} {kind}"));
            }
        }
        other => drop(into.insert(format!("{prefix}{word} {other}"))),
    }
}
