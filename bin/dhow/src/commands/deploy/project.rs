//! Everything that carries a project's label, of every kind that the server knows.

use anyhow::{Context, Result};
use dhow_translate::PROJECT;
use serde_json::Value;

use super::apply::{Applier, what};
use super::source::Deployable;

/// An object of a project.
pub struct Found {
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    pub path: String,
    pub object: Value,
}

impl Found {
    pub fn what(&self) -> String {
        what(&self.kind, self.namespace.as_deref(), &self.name)
    }

    /// Whether it was there still.
    pub async fn delete(&self, applier: &Applier) -> Result<bool> {
        let removed = applier.delete(&self.path, "Background").await;
        removed.with_context(|| format!("remove {}", self.what()))
    }

    pub fn is_volume(&self) -> bool {
        self.kind == "PersistentVolumeClaim"
    }
}

/// What a project has in the cloud and no longer in its files. Volumes are never stale.
pub async fn stale(applier: &Applier, name: &str, wanted: &Deployable, keep: &[&str]) -> Result<Vec<Found>> {
    let mut all = find(applier, name, Some(&wanted.namespace)).await?;
    all.retain(|found| !keep.contains(&found.path.as_str()) && !found.is_volume() && found.kind != "Namespace");
    Ok(all)
}

/// All objects of a project that nobody else looks after; of one namespace and those without any, or of all.
pub async fn find(applier: &Applier, name: &str, namespace: Option<&str>) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for (collection, list) in collections(applier, namespace).await? {
        let Some(objects) = applier.get(&format!("{collection}?labelSelector={PROJECT}%3D{name}")).await? else {
            continue;
        };
        for object in objects["items"].as_array().into_iter().flatten() {
            let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
            // What a controller made goes with what it was made for.
            let owned = object["metadata"]["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty());
            let Some(object_name) = text("/metadata/name").filter(|_| !owned) else { continue };
            let place = text("/metadata/namespace");
            if namespace.is_some() && place.is_some() && place.as_deref() != namespace {
                continue;
            }
            let path = match &place {
                Some(place) => format!("{}/namespaces/{place}/{}/{object_name}", list.root, list.plural),
                None => format!("{}/{}/{object_name}", list.root, list.plural),
            };
            found.push(Found {
                kind: list.kind.clone(),
                namespace: place,
                name: object_name,
                path,
                object: object.clone(),
            });
        }
    }
    found.sort_by_key(|found| order(&found.kind));
    Ok(found)
}

/// What takes traffic goes first, then what runs, then what it needs.
fn order(kind: &str) -> usize {
    let last = ["ConfigMap", "Secret", "PersistentVolumeClaim", "Namespace"];
    last.iter().position(|known| *known == kind).map_or(0, |at| at + 1)
}

struct Kind {
    root: String,
    plural: String,
    kind: String,
}

/// The addresses of all lists whose objects can be removed.
async fn collections(applier: &Applier, namespace: Option<&str>) -> Result<Vec<(String, Kind)>> {
    let mut roots = vec!["/api/v1".to_owned()];
    let groups = applier.get("/apis").await?.unwrap_or_default();
    for group in groups["groups"].as_array().into_iter().flatten() {
        roots.extend(group["preferredVersion"]["groupVersion"].as_str().map(|version| format!("/apis/{version}")));
    }
    let mut all = Vec::new();
    for root in roots {
        // A group whose server is away does not stop the others.
        let Ok(Some(list)) = applier.get(&root).await else { continue };
        for resource in list["resources"].as_array().into_iter().flatten() {
            let verbs = |verb: &str| resource["verbs"].as_array().is_some_and(|all| all.iter().any(|one| one == verb));
            let (Some(plural), Some(kind)) = (resource["name"].as_str(), resource["kind"].as_str()) else { continue };
            // Endpoints and slices follow their Service, and carry its labels.
            let derived = ["Event", "Endpoints", "EndpointSlice", "Pod"].contains(&kind);
            if plural.contains('/') || derived || !verbs("list") || !verbs("delete") {
                continue;
            }
            let collection = match namespace {
                Some(namespace) if resource["namespaced"] == true => format!("{root}/namespaces/{namespace}/{plural}"),
                _ => format!("{root}/{plural}"),
            };
            all.push((collection, Kind { root: root.clone(), plural: plural.to_owned(), kind: kind.to_owned() }));
        }
    }
    Ok(all)
}
