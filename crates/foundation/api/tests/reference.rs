//! Compares what we serve with upstream's own documents, when the checkout sits beside a folder of them.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dhow_api::{discovery, schema};
use serde_json::Value;

/// The reference document from a `shared/reference` folder beside the checkout or above it; says so if there is none.
fn reference(name: &str) -> Option<Value> {
    let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("shared/reference"));
    let Some(folder) = folders.find(|folder| folder.is_dir()) else {
        eprintln!("no shared/reference beside the checkout: skipped");
        return None;
    };
    Some(serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap())
}

/// `v1` and `v2` are stable, `v1beta1` is not.
fn stable(version: &str) -> bool {
    version.strip_prefix('v').is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

/// Group version and resource (with its subresource) of a path, when it is about a stable resource.
fn resource(path: &str) -> Option<(String, String)> {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let group_version = match *parts.first()? {
        "api" => parts.drain(..2.min(parts.len())).next_back()?.to_owned(),
        "apis" if parts.len() > 3 => {
            let (group, version) = (parts[1], parts[2]);
            parts.drain(..3);
            stable(version).then(|| format!("{group}/{version}"))?
        }
        _ => return None,
    };
    if parts.first() == Some(&"watch") {
        parts.remove(0);
    }
    // `namespaces/{namespace}/pods/…`, but `namespaces/{name}/status`.
    if parts.len() > 2 && parts[0] == "namespaces" && parts[1] == "{namespace}" {
        parts.drain(..2);
    }
    let name = match parts.as_slice() {
        [plural] | [plural, "{name}"] => (*plural).to_owned(),
        [plural, "{name}", sub] | [plural, "{name}", sub, "{path}"] => format!("{plural}/{sub}"),
        _ => return None,
    };
    (!name.is_empty()).then_some((group_version, name))
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

#[test]
fn no_stable_resource_or_verb_is_missing() {
    let Some(reference) = reference("kubernetes-v1.33-swagger.json") else { return };
    let mut wanted: BTreeMap<(String, String), (BTreeSet<&str>, Value)> = BTreeMap::new();
    for (path, item) in reference["paths"].as_object().unwrap() {
        let Some(key) = resource(path) else { continue };
        for (method, operation) in item.as_object().unwrap() {
            let action = operation["x-kubernetes-action"].as_str().unwrap_or_default();
            let entry = wanted.entry(key.clone()).or_default();
            entry.0.extend(verbs(action, method));
            if operation["x-kubernetes-group-version-kind"].is_object() {
                entry.1 = operation["x-kubernetes-group-version-kind"]["kind"].clone();
            }
        }
    }
    assert!(wanted.len() > 100, "the reference reads as {} resources", wanted.len());
    let mut missing = Vec::new();
    for ((group_version, name), (verbs, kind)) in &wanted {
        let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
        let list = discovery::resource_list(&dhow_api::custom::Catalog::default(), group, version).unwrap_or_default();
        let ours = list["resources"].as_array().into_iter().flatten().find(|resource| resource["name"] == **name);
        let Some(ours) = ours else {
            missing.push(format!("{group_version} {name}"));
            continue;
        };
        if ours["kind"] != *kind {
            missing.push(format!("{group_version} {name}: kind {} instead of {kind}", ours["kind"]));
        }
        for verb in verbs {
            if !ours["verbs"].as_array().unwrap().iter().any(|known| known == verb) {
                missing.push(format!("{group_version} {name}: {verb}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn no_stable_field_is_missing() {
    let Some(reference) = reference("kubernetes-v1.33-swagger.json") else { return };
    let (mut missing, mut compared) = (Vec::new(), 0);
    for (definition, schema) in reference["definitions"].as_object().unwrap() {
        let version = definition.rsplit('.').nth(1).unwrap_or_default();
        if !stable(version) || definition.ends_with("List") {
            continue;
        }
        let Some(known) = schema::types().get(definition) else {
            missing.push(definition.clone());
            continue;
        };
        compared += 1;
        let properties = schema["properties"].as_object().into_iter().flatten();
        missing.extend(
            properties
                .filter(|(name, _)| !known.fields.contains_key(name.as_str()))
                .map(|(name, _)| format!("{definition} {name}")),
        );
    }
    // Types that are not objects of the API, and fields that 1.34 and 1.35 removed.
    let elsewhere = |name: &str| {
        let meta = name.contains("apimachinery.pkg.apis.meta.v1");
        meta || ELSEWHERE.contains(&name)
    };
    missing.retain(|name| !elsewhere(name));
    assert!(compared > 400, "only {compared} types were compared");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// What the reference has and we have not, on purpose.
const ELSEWHERE: &[&str] = &[];
