//! Removes pods whose node is gone: no kubelet will ever confirm their end.

use std::sync::Arc;

use dhow_client::{Client, DeleteParams, Error, Informer, Key, Outcome, Queue, Reconcile};
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::common::{is_finished, node_name};

pub struct PodGc {
    client: Client,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
}

impl PodGc {
    pub fn new(client: Client, pods: Informer<Pod>, nodes: Informer<Node>, queue: &Queue) -> Arc<Self> {
        let to = queue.clone();
        pods.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        let (to, all) = (queue.clone(), pods.clone());
        nodes.on_change(move |change| {
            if let dhow_client::Change::Deleted(node) = change {
                for pod in all.by_index("node", node.metadata.name.as_deref().unwrap_or_default()) {
                    to.add(Key::of(&pod.metadata));
                }
            }
        });
        Arc::new(Self { client, pods, nodes })
    }
}

impl PodGc {
    /// Lets a pod have ended, so that whoever holds it by a finalizer until then lets it go.
    async fn end(&self, pod: &Pod) -> Result<(), Error> {
        if is_finished(pod) {
            return Ok(());
        }
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
                message: Some("PodGC: node no longer exists".into()),
                last_transition_time: Some(Time(Timestamp::now())),
                ..PodCondition::default()
            });
        }
        match self.client.update_status(&changed).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }
}

#[async_trait::async_trait]
impl Reconcile for PodGc {
    fn name(&self) -> &'static str {
        "pod-gc"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(pod) = self.pods.get(key) else { return Ok(Outcome::Done) };
        let orphaned = match node_name(&pod) {
            // Never scheduled and told to go: nobody else will confirm it.
            None => pod.metadata.deletion_timestamp.is_some(),
            Some(node) if self.nodes.get(&Key::new(None, node)).is_some() => false,
            // The copy may be behind; the server knows.
            Some(node) => match self.client.get::<Node>(None, node).await {
                Err(error) if error.is_not_found() => true,
                other => other.map(|_| false)?,
            },
        };
        if orphaned {
            self.end(&pod).await?;
            let params =
                DeleteParams { grace_period: Some(0), uid: pod.metadata.uid.clone(), ..DeleteParams::default() };
            match self.client.delete::<Pod>(key.namespace(), &key.name, &params).await {
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                other => other?,
            }
        }
        Ok(Outcome::Done)
    }
}
