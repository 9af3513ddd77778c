//! Removes pods whose end no node will ever confirm: of nodes that are gone or known to be dead, and pods that never had a
//! node. Beyond a number of finished pods the oldest go, too.

use std::sync::Arc;

use dhow_client::{Change, Client, DeleteParams, Error, Informer, Key, Outcome, Queue, Reconcile};
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::common::{delete, is_finished, node_name};
use crate::node_lifecycle::is_ready;

/// An administrator's word that a node is dead: nothing on it runs any more.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// Finished pods that are kept, as upstream does.
const KEPT: usize = 12_500;
const FINISHED: &str = "finished";

pub struct PodGc {
    client: Client,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
}

impl PodGc {
    pub fn new(client: Client, pods: Informer<Pod>, nodes: Informer<Node>, queue: &Queue) -> Arc<Self> {
        pods.add_index(FINISHED, |pod| if is_finished(pod) { vec![String::new()] } else { Vec::new() });
        let to = queue.clone();
        pods.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        let (to, all) = (queue.clone(), pods.clone());
        nodes.on_change(move |change| {
            let node = change.object();
            if matches!(change, Change::Deleted(_)) || is_out_of_service(node) {
                for pod in all.by_index("node", node.metadata.name.as_deref().unwrap_or_default()) {
                    to.add(Key::of(&pod.metadata));
                }
            }
        });
        Arc::new(Self { client, pods, nodes })
    }

    /// Lets a pod have ended, so that whoever holds it by a finalizer until then lets it go; then removes it.
    async fn end(&self, pod: &Pod, why: &str) -> Result<(), Error> {
        if !is_finished(pod) {
            let mut changed = pod.clone();
            let status = changed.status.get_or_insert_default();
            status.phase = Some("Failed".into());
            if node_name(pod).is_some() {
                let conditions = status.conditions.get_or_insert_default();
                conditions.retain(|condition| condition.type_ != "DisruptionTarget");
                conditions.push(PodCondition {
                    type_: "DisruptionTarget".into(),
                    status: "True".into(),
                    reason: Some("DeletionByPodGC".into()),
                    message: Some(why.into()),
                    last_transition_time: Some(Time(Timestamp::now())),
                    ..PodCondition::default()
                });
            }
            match self.client.update_status(&changed).await {
                Err(error) if error.is_not_found() => return Ok(()),
                other => other.map(drop)?,
            }
        }
        self.remove(pod).await
    }

    async fn remove(&self, pod: &Pod) -> Result<(), Error> {
        delete(&self.client, pod, DeleteParams { grace_period: Some(0), ..DeleteParams::default() }).await
    }

    /// Removes the oldest finished pods beyond those that are kept.
    async fn remove_finished(&self) -> Result<(), Error> {
        let mut finished = self.pods.by_index(FINISHED, "");
        let Some(surplus) = finished.len().checked_sub(KEPT).filter(|surplus| *surplus > 0) else { return Ok(()) };
        finished.sort_by_key(|pod| (pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone()));
        for pod in finished.iter().take(surplus) {
            self.remove(pod).await?;
        }
        Ok(())
    }
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// Why a pod that runs, or ran, on this node is to be removed by force.
fn dead(pod: &Pod, node: &Node) -> Option<&'static str> {
    let going = pod.metadata.deletion_timestamp.is_some();
    (going && is_out_of_service(node) && !is_ready(node)).then_some("PodGC: node is out of service")
}

#[async_trait::async_trait]
impl Reconcile for PodGc {
    fn name(&self) -> &'static str {
        "pod-gc"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(pod) = self.pods.get(key) else { return Ok(Outcome::Done) };
        let why = match node_name(&pod) {
            // Never scheduled and told to go: nobody else will confirm it.
            None => pod.metadata.deletion_timestamp.is_some().then_some(""),
            Some(name) => match self.nodes.get(&Key::new(None, name)) {
                Some(node) => dead(&pod, &node),
                // The copy may be behind; the server knows.
                None => match self.client.get::<Node>(None, name).await {
                    Err(error) if error.is_not_found() => Some("PodGC: node no longer exists"),
                    other => other.map(|_| None)?,
                },
            },
        };
        if let Some(why) = why {
            self.end(&pod, why).await?;
        } else if is_finished(&pod) {
            self.remove_finished().await?;
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn only_the_dead_are_fenced() {
        let node = |ready: &str, taints: Value| -> Node {
            serde_json::from_value(json!({
                "metadata": {}, "spec": {"taints": taints},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        let pod = |going: bool| -> Pod {
            let deleted = going.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({"metadata": {"deletionTimestamp": deleted}})).unwrap()
        };
        let out = json!([{"key": OUT_OF_SERVICE, "value": "nodeshutdown", "effect": "NoExecute"}]);
        assert!(dead(&pod(true), &node("Unknown", out.clone())).is_some());
        assert!(dead(&pod(false), &node("Unknown", out.clone())).is_none(), "nobody told it to go");
        assert!(dead(&pod(true), &node("True", out)).is_none(), "the node is alive");
        assert!(dead(&pod(true), &node("Unknown", json!([]))).is_none(), "perhaps it runs on, unheard");
    }
}
