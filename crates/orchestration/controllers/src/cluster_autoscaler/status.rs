//! ConfigMap `cluster-autoscaler-status`, as upstream writes it; written when it says something new.

use std::collections::{BTreeMap, HashMap};

use dhow_client::{Client, Error, Patch};
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::machines::Watched;
use super::view::{TO_BE_DELETED, View, has_taint, is_ready, name};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "cluster-autoscaler-status";
const UPDATED: &str = "cluster-autoscaler.kubernetes.io/last-updated";

/// What was written last, and since when each part of it says what it says.
#[derive(Debug, Default)]
pub struct Status {
    written: Option<Value>,
    since: HashMap<String, (String, Timestamp)>,
    uid: Option<String>,
}

/// What one round found, beside the view.
pub struct Found<'a> {
    pub healthy: bool,
    pub watched: &'a Watched,
    /// Nodes that nobody needs, by name.
    pub unneeded: &'a [String],
}

impl Status {
    /// What events of the autoscaler as a whole are about.
    pub fn about(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("ConfigMap".into()),
            namespace: Some(NAMESPACE.into()),
            name: Some(NAME.into()),
            uid: self.uid.clone(),
            ..ObjectReference::default()
        }
    }

    fn part(&mut self, key: &str, status: &str, now: Timestamp) -> Value {
        let known = self.since.get(key).filter(|(text, _)| text == status).map(|(_, at)| *at);
        let at = known.unwrap_or(now);
        self.since.insert(key.to_owned(), (status.to_owned(), at));
        json!({"status": status, "lastTransitionTime": at.to_string()})
    }

    /// The document, without the time it is written at.
    pub fn compose(&mut self, view: &View, found: &Found<'_>) -> Value {
        let now = view.now;
        let text = |healthy: bool| if healthy { "Healthy" } else { "Unhealthy" };
        let (mut all, mut late, mut upcoming) = (0, 0, 0);
        let mut groups = Vec::new();
        for (index, group) in view.groups.iter().enumerate() {
            let (unregistered, long) = found.watched.unregistered(view, index);
            let coming = view.upcoming(index);
            (all, late, upcoming) = (all + unregistered, late + long, upcoming + coming);
            let members: Vec<_> = view.members(index).collect();
            let ready = members.iter().filter(|node| is_ready(node)).count();
            let candidates = members.iter().filter(|node| found.unneeded.iter().any(|one| one == name(node))).count();
            let key = |part: &str| format!("{}/{part}", group.id);
            let backoff = found.watched.backoff(&group.id, now).is_some();
            let mut health = self.part(&key("health"), text(found.healthy), now);
            health["nodeCounts"] = json!({"registered": {"total": members.len(), "ready": ready},
                "longUnregistered": long, "unregistered": unregistered - long});
            health["cloudProviderTarget"] = json!(group.target);
            health["minSize"] = json!(group.min);
            health["maxSize"] = json!(group.max);
            let activity = match coming {
                _ if backoff => "Backoff",
                0 => "NoActivity",
                _ => "InProgress",
            };
            let up = self.part(&key("scaleUp"), activity, now);
            let mut down = self.part(&key("scaleDown"), candidates_text(candidates), now);
            down["candidates"] = json!(candidates);
            groups.push(json!({"name": group.id, "health": health, "scaleUp": up, "scaleDown": down}));
        }
        let ready = view.nodes.iter().filter(|node| is_ready(node)).count();
        let leaving = view.nodes.iter().filter(|node| has_taint(node, TO_BE_DELETED)).count();
        let mut health = self.part("health", text(found.healthy), now);
        health["nodeCounts"] = json!({
            "registered": {"total": view.nodes.len(), "ready": ready, "beingDeleted": leaving,
                "unready": {"total": view.nodes.len() - ready}},
            "longUnregistered": late, "unregistered": all - late});
        let up = self.part("scaleUp", if upcoming > 0 { "InProgress" } else { "NoActivity" }, now);
        let mut down = self.part("scaleDown", candidates_text(found.unneeded.len()), now);
        down["candidates"] = json!(found.unneeded.len());
        json!({"autoscalerStatus": "Running",
            "clusterWide": {"health": health, "scaleUp": up, "scaleDown": down}, "nodeGroups": groups})
    }

    /// Whether a document is not the one that was written last.
    pub fn is_news(&self, document: &Value) -> bool {
        self.written.as_ref() != Some(document)
    }

    pub fn wrote(&mut self, document: Value, map: &ConfigMap) {
        self.written = Some(document);
        self.uid.clone_from(&map.metadata.uid);
    }
}

fn candidates_text(count: usize) -> &'static str {
    if count > 0 { "CandidatesPresent" } else { "NoCandidates" }
}

/// Writes the document.
pub async fn write(client: &Client, document: &Value, now: Timestamp) -> Result<ConfigMap, Error> {
    let mut timed = json!({"time": now.to_string()});
    if let (Value::Object(timed), Value::Object(rest)) = (&mut timed, document.clone()) {
        timed.extend(rest);
    }
    let text = serde_saphyr::to_string(&timed)
        .map_err(|error| Error::Reconcile(format!("write the status of the cluster autoscaler: {error}")))?;
    let annotations = BTreeMap::from([(UPDATED.to_owned(), now.to_string())]);
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}, "data": {"status": text}}));
    match client.patch::<ConfigMap>(Some(NAMESPACE), NAME, patch, None).await {
        Err(error) if error.is_not_found() => {}
        other => return other,
    }
    let metadata = ObjectMeta {
        name: Some(NAME.into()),
        namespace: Some(NAMESPACE.into()),
        annotations: Some(annotations),
        ..ObjectMeta::default()
    };
    let data = Some(BTreeMap::from([("status".to_owned(), text)]));
    client.create(&ConfigMap { metadata, data, ..ConfigMap::default() }).await
}
