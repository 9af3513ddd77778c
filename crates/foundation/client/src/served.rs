//! Work on custom kinds, done while the API serves them.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{Client, Informer, Key, ListParams};

/// Of a definition, what says whether the API serves it: its schemas, by far the most of it, are not kept.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CustomResourceDefinition {
    metadata: ObjectMeta,
    spec: Spec,
    status: Option<Status>,
}
crate::kind!(CustomResourceDefinition, "apiextensions.k8s.io", "v1", "customresourcedefinitions", ClusterResourceScope);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Spec {
    versions: Vec<Version>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Version {
    name: String,
    served: bool,
}

/// Null until the API has looked at the definition's names.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl CustomResourceDefinition {
    /// Whether objects of this version can be had.
    pub fn serves(&self, version: &str) -> bool {
        let mut conditions = self.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.any(|one| one.kind == "Established" && one.status == "True")
            && self.spec.versions.iter().any(|one| one.name == version && one.served)
    }
}

/// Calls `start` whenever `version` of all these definitions (by their names) begins to be served; what it is given is
/// cancelled when one is served no longer. Returns at `shutdown`.
pub async fn while_served(
    client: &Client,
    definitions: &[&str],
    version: &str,
    shutdown: &CancellationToken,
    start: impl Fn(CancellationToken),
) {
    let changed = Arc::new(Notify::new());
    let watch = |name: &&str| {
        let scope = ListParams { field_selector: Some(format!("metadata.name={name}")), ..ListParams::default() };
        let informer = Informer::<CustomResourceDefinition>::start(client.clone(), scope, None, shutdown.child_token());
        let told = changed.clone();
        informer.on_change(move |_| told.notify_one());
        (Key::new(None, name), informer)
    };
    let watched: Vec<_> = definitions.iter().map(watch).collect();
    let mut running: Option<CancellationToken> = None;
    loop {
        let is_there =
            watched.iter().all(|(key, all)| all.get(key).is_some_and(|definition| definition.serves(version)));
        match &running {
            None if is_there => {
                let stop = shutdown.child_token();
                start(stop.clone());
                running = Some(stop);
            }
            Some(stop) if !is_there => {
                stop.cancel();
                running = None;
            }
            _ => {}
        }
        tokio::select! { () = changed.notified() => {}, () = shutdown.cancelled() => return }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::CustomResourceDefinition;
    use crate::Object;

    #[test]
    fn a_definition_is_served_once_it_is_established() {
        let with = |status: &str| {
            let text = format!(
                r#"{{"metadata": {{"name": "a.b"}}, "spec": {{"versions": [{{"name": "v1", "served": true}},
                {{"name": "v2", "served": false}}]}}, "status": {status}}}"#
            );
            CustomResourceDefinition::decode(text.as_bytes()).unwrap()
        };
        // As Go clients send it, and as it is when it was just made.
        for status in ["null", r#"{"conditions": null, "storedVersions": null}"#] {
            assert!(!with(status).serves("v1"), "{status}");
        }
        let established = with(r#"{"conditions": [{"type": "Established", "status": "True"}]}"#);
        assert!(established.serves("v1") && !established.serves("v2") && !established.serves("v3"));
    }
}
