//! Discovery documents: what kinds there are and what can be done with them, from the catalogue alone.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::custom::Catalog;
use crate::registry::{Group, Kind, Subresource, builtin};

/// `/api`: the versions of the core group.
pub fn api_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

/// `/apis`: all named groups.
pub fn group_list(catalog: &Catalog) -> Value {
    let groups: Vec<Value> = named_groups(catalog).map(group_entry).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`.
pub fn group(catalog: &Catalog, name: &str) -> Option<Value> {
    let group = named_groups(catalog).find(|group| group.name == name)?;
    let mut entry = group_entry(group);
    entry["kind"] = json!("APIGroup");
    entry["apiVersion"] = json!("v1");
    Some(entry)
}

/// `/api/v1` and `/apis/<group>/<version>`.
pub fn resource_list(catalog: &Catalog, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in catalog.kinds_of(group, version) {
        resources.push(resource(kind));
        resources.extend(kind.subresources.iter().map(|sub| subresource(kind, *sub)));
    }
    if resources.is_empty() {
        return None;
    }
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version(group, version),
        "resources": resources,
    }))
}

/// Aggregated discovery (`apidiscovery.k8s.io/v2`) of `/api` or `/apis`.
pub fn aggregated(catalog: &Catalog, path: &str) -> Option<Value> {
    let core = match path {
        "/api" => true,
        "/apis" => false,
        _ => return None,
    };
    let groups = catalog.groups().iter().filter(|group| group.name.is_empty() == core);
    let items: Vec<Value> = groups.map(|group| aggregated_group(catalog, group)).collect();
    Some(json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    }))
}

fn named_groups(catalog: &Catalog) -> impl Iterator<Item = &Group> {
    catalog.groups().iter().filter(|group| !group.name.is_empty())
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn group_entry(group: &Group) -> Value {
    let version = |version: &&str| json!({"groupVersion": group_version(group.name, version), "version": version});
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    json!({"name": group.name, "versions": versions, "preferredVersion": versions.first()})
}

fn resource(kind: &Kind) -> Value {
    let mut entry = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        entry["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        entry["categories"] = json!(kind.categories);
    }
    if kind.stored {
        entry["storageVersionHash"] = json!(storage_hash(kind));
    }
    entry
}

fn subresource(kind: &Kind, sub: Subresource) -> Value {
    let mut entry = json!({
        "name": format!("{}/{}", kind.plural, sub.name()),
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": sub.verbs(),
    });
    let (group, version, name) = kind.response_kind(sub);
    entry["kind"] = json!(name);
    if (group, version) != (kind.group, kind.version) {
        entry["group"] = json!(group);
        entry["version"] = json!(version);
    }
    entry
}

/// Changes when objects are stored in another version, so that clients know when to migrate.
fn storage_hash(kind: &Kind) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    // Rows that share storage share the hash of the form that is stored.
    let text = match &kind.custom {
        Some(served) => {
            let stored = served.definition.storage().map_or("", |version| &version.name);
            format!("{}/{stored}/{}", kind.group, kind.kind)
        }
        None => {
            let stored = builtin().iter().find(|row| row.is_storage() && row.storage == kind.storage).unwrap_or(kind);
            format!("{}/{}/{}", stored.group, stored.version, stored.kind)
        }
    };
    let digest = Sha256::digest(text);
    // Eight bytes in base64 are eleven characters and one of padding.
    let word =
        u64::from_be_bytes([digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7]]);
    let bits = u128::from(word) << 2;
    let text: String = (0..11).map(|index| char::from(ALPHABET[(bits >> (60 - 6 * index)) as usize & 63])).collect();
    format!("{text}=")
}

fn aggregated_group(catalog: &Catalog, group: &Group) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|version| {
            let resources: Vec<Value> = catalog.kinds_of(group.name, version).map(aggregated_resource).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let mut metadata = json!({"creationTimestamp": null});
    if !group.name.is_empty() {
        metadata["name"] = json!(group.name);
    }
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(kind: &Kind) -> Value {
    let response =
        |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
    let own = (kind.group, kind.version, kind.kind);
    let mut entry = json!({
        "resource": kind.plural,
        "responseKind": response(own),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        entry["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        entry["categories"] = json!(kind.categories);
    }
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|sub| {
            json!({
                "subresource": sub.name(),
                "responseKind": response(kind.response_kind(*sub)),
                "verbs": sub.verbs(),
            })
        })
        .collect();
    if !subresources.is_empty() {
        entry["subresources"] = json!(subresources);
    }
    entry
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_kind_is_found_in_both_forms() {
        for kind in builtin().iter() {
            let legacy = resource_list(&Catalog::default(), kind.group, kind.version).unwrap();
            let names: Vec<&str> =
                legacy["resources"].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
            assert!(names.contains(&kind.plural), "{kind:?}");
            let path = if kind.group.is_empty() { "/api" } else { "/apis" };
            let text = aggregated(&Catalog::default(), path).unwrap().to_string();
            assert!(text.contains(&format!("\"resource\":\"{}\"", kind.plural)), "{kind:?}");
        }
    }

    #[test]
    fn pods_read_as_upstream_prints_them() {
        let list = resource_list(&Catalog::default(), "", "v1").unwrap();
        let pods = list["resources"].as_array().unwrap().iter().find(|entry| entry["name"] == "pods").unwrap().clone();
        assert_eq!(pods["shortNames"], json!(["po"]));
        assert_eq!(pods["categories"], json!(["all"]));
        // The very hash that clients of other servers know.
        assert_eq!(pods["storageVersionHash"], "xPOwRZ+Yhw8=");
        let hash = |group: &str, version: &str, plural: &str| {
            let list = resource_list(&Catalog::default(), group, version).unwrap();
            let found = list["resources"].as_array().unwrap().iter().find(|entry| entry["name"] == plural).cloned();
            found.unwrap()["storageVersionHash"].clone()
        };
        let autoscalers = ["v1", "v2"].map(|version| hash("autoscaling", version, "horizontalpodautoscalers"));
        assert_eq!(autoscalers[0], autoscalers[1]);
        assert_eq!(hash("", "v1", "events"), hash("events.k8s.io", "v1", "events"));
    }
}
