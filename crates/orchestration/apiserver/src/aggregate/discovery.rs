//! Puts extension servers into the documents of discovery.

use std::cmp::Reverse;
use std::sync::Arc;

use dhow_api::custom::definition::priority;
use serde_json::{Value, json};

use super::{Remote, local};

type Remotes = [Arc<Remote>];

/// Adds the groups to `/apis`.
pub fn add_groups(document: &mut Value, remotes: &Remotes) {
    let Some(groups) = document["groups"].as_array_mut() else { return };
    for remote in remotes {
        let known = groups.iter().position(|group| group["name"] == remote.group.as_str());
        let at = known.unwrap_or_else(|| {
            groups.push(json!({"name": remote.group, "versions": []}));
            groups.len() - 1
        });
        add_version(&mut groups[at], remotes, remote);
    }
}

/// `/apis/<group>`: the local document, if there is one, with what extension servers add.
pub fn group(local: Option<Value>, remotes: &Remotes, name: &str) -> Option<Value> {
    let mut document = local;
    for remote in remotes.iter().filter(|remote| remote.group == name) {
        let known = document
            .get_or_insert_with(|| json!({"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": []}));
        add_version(known, remotes, remote);
    }
    document
}

fn add_version(group: &mut Value, remotes: &Remotes, remote: &Remote) {
    let Some(versions) = group["versions"].as_array_mut() else { return };
    if !versions.iter().any(|entry| entry["version"] == remote.version.as_str()) {
        let whole = format!("{}/{}", remote.group, remote.version);
        versions.push(json!({"groupVersion": whole, "version": remote.version}));
    }
    sort(versions, remotes, &remote.group);
    group["preferredVersion"] = versions.first().cloned().unwrap_or_default();
}

/// The best version first.
fn sort(versions: &mut [Value], remotes: &Remotes, group: &str) {
    let rank = |version: &str| {
        let remote = remotes.iter().find(|remote| remote.group == group && remote.version == version);
        remote.map_or_else(|| local::priorities(group, version).1, |remote| remote.version_priority)
    };
    versions.sort_by(|one, other| {
        let name = |entry: &Value| entry["version"].as_str().unwrap_or_default().to_owned();
        let (one, other) = (name(one), name(other));
        Reverse(rank(&one)).cmp(&Reverse(rank(&other))).then_with(|| priority(&one, &other))
    });
}

/// Adds the groups to the aggregated form of `/apis`.
pub fn aggregated(document: &mut Value, remotes: &Remotes) {
    let Some(items) = document["items"].as_array_mut() else { return };
    for remote in remotes {
        let known = items.iter().position(|item| item["metadata"]["name"] == remote.group.as_str());
        let at = known.unwrap_or_else(|| {
            items.push(json!({"metadata": {"name": remote.group, "creationTimestamp": null}, "versions": []}));
            items.len() - 1
        });
        let Some(versions) = items[at]["versions"].as_array_mut() else { continue };
        versions.retain(|entry| entry["version"] != remote.version.as_str());
        let state = remote.state();
        versions.push(json!({
            "version": remote.version,
            "resources": state.resources.as_deref().map(|list| resources(list, remote)).unwrap_or_default(),
            "freshness": if state.available { "Current" } else { "Stale" },
        }));
        sort(versions, remotes, &remote.group);
    }
}

/// An `APIResourceList` in the aggregated form.
fn resources(list: &Value, remote: &Remote) -> Vec<Value> {
    let all = list["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = |entry: &Value| entry["name"].as_str().unwrap_or_default().to_owned();
    let response = |entry: &Value| {
        let or =
            |field: &str, own: &str| entry[field].as_str().filter(|text| !text.is_empty()).unwrap_or(own).to_owned();
        json!({
            "group": or("group", &remote.group),
            "version": or("version", &remote.version),
            "kind": entry["kind"],
        })
    };
    let whole = all.iter().filter(|entry| !name(entry).contains('/'));
    whole
        .map(|entry| {
            let mut found = json!({
                "resource": entry["name"],
                "responseKind": response(entry),
                "scope": if entry["namespaced"] == true { "Namespaced" } else { "Cluster" },
                "singularResource": entry["singularName"],
                "verbs": entry["verbs"],
            });
            for field in ["shortNames", "categories"] {
                if let Some(value) = entry.get(field) {
                    found[field] = value.clone();
                }
            }
            let prefix = format!("{}/", name(entry));
            let parts: Vec<Value> = all
                .iter()
                .filter_map(|part| {
                    let title = name(part).strip_prefix(&prefix)?.to_owned();
                    Some(json!({"subresource": title, "responseKind": response(part), "verbs": part["verbs"]}))
                })
                .collect();
            if !parts.is_empty() {
                found["subresources"] = json!(parts);
            }
            found
        })
        .collect()
}

/// Adds the documents of extension servers to `/openapi/v3`.
pub fn add_documents(root: &mut Value, remotes: &Remotes) {
    for remote in remotes {
        let path = format!("apis/{}/{}", remote.group, remote.version);
        match remote.state().openapi {
            Some(url) => root["paths"][path.as_str()] = json!({"serverRelativeURL": url}),
            None => drop(root["paths"].as_object_mut().and_then(|paths| paths.remove(&path))),
        }
    }
}
