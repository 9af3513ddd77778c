//! The APIServices of what this server answers itself: there is one for every group version, and one that is deleted
//! comes back. One without the label is somebody's own, and stays as it is.

use std::collections::BTreeSet;
use std::sync::Arc;

use dhow_api::Status;
use dhow_api::registry::builtin;
use http::Method;
use serde_json::{Value, json};

use crate::identity::{MASTERS, UserInfo};
use crate::{ApiServer, bootstrap};

const LABEL: &str = "kube-aggregator.kubernetes.io/automanaged";
const COLLECTION: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// Upstream's priorities of groups; others are between these and the custom ones.
const GROUPS: &[(&str, i64)] = &[
    ("", 18_000),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("apiextensions.k8s.io", 16_700),
    ("admissionregistration.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
    ("flowcontrol.apiserver.k8s.io", 16_100),
    ("resource.k8s.io", 15_900),
];

/// `groupPriorityMinimum` and `versionPriority` of a group version of this server.
pub fn priorities(group: &str, version: &str) -> (i64, i64) {
    let own = builtin().groups().iter().any(|one| one.name == group && one.versions.contains(&version));
    if !own {
        return (1000, 100);
    }
    let known = GROUPS.iter().find(|(name, _)| *name == group).map_or(15_000, |(_, priority)| *priority);
    let version = match (group, version) {
        ("", _) => 1,
        ("autoscaling", "v2") => 30,
        (_, version) if version.contains("alpha") => 1,
        (_, version) if version.contains("beta") => 9,
        _ => 15,
    };
    (known, version)
}

/// Creates what is missing, and takes away what is for nothing any more.
pub async fn ensure(server: &Arc<ApiServer>) -> Result<(), Status> {
    let kind = super::row()?;
    let catalog = server.definitions.catalog();
    let client = server.client(UserInfo::new(bootstrap::SERVER, &[MASTERS]));
    let mut wanted = BTreeSet::new();
    let mut writes = Vec::new();
    for group in catalog.groups().iter().filter(|group| group.name != super::GROUP) {
        for version in &group.versions {
            let name = format!("{version}.{}", group.name);
            let (minimum, priority) = priorities(group.name, version);
            let own = builtin().groups().iter().any(|one| one.name == group.name && one.versions.contains(version));
            let label = if own { "onstart" } else { "true" };
            let mut object = json!({
                "metadata": {"name": name, "labels": {LABEL: label}},
                "spec": {"version": version, "groupPriorityMinimum": minimum, "versionPriority": priority},
            });
            if !group.name.is_empty() {
                object["spec"]["group"] = json!(group.name);
            }
            match server.store.cache.get(kind, &kind.storage_key(None, &name)) {
                None => writes.push((Method::POST, COLLECTION.to_owned(), object)),
                Some(stored) if stored.header.labels.get(LABEL).is_some() => {
                    let mut kept = stored.value()?;
                    if differs(&kept["spec"], &object["spec"]) {
                        kept["spec"] = object["spec"].take();
                        writes.push((Method::PUT, format!("{COLLECTION}/{name}"), kept));
                    }
                }
                Some(_) => {}
            }
            wanted.insert(name);
        }
    }
    for stored in server.store.cache.objects(kind)?.values() {
        let custom = stored.header.labels.get(LABEL) == Some("true");
        if custom && !wanted.contains(&stored.header.name) {
            writes.push((Method::DELETE, format!("{COLLECTION}/{}", stored.header.name), json!({})));
        }
    }
    let sent = writes.into_iter().map(|(method, path, body)| {
        let client = &client;
        async move {
            match bootstrap::send(client, method, &path, "application/json", &body).await? {
                // What changed meanwhile brings us back here.
                (200..=299 | 404 | 409, _) => Ok(()),
                (_, answer) => Err(bootstrap::failed(&answer)),
            }
        }
    });
    futures::future::try_join_all(sent).await.map(drop)
}

fn differs(one: &Value, other: &Value) -> bool {
    let service = one.get("service").is_some_and(|service| !service.is_null());
    service || ["groupPriorityMinimum", "versionPriority"].iter().any(|field| one[field] != other[field])
}
