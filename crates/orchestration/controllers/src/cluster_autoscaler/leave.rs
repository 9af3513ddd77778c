//! How one node goes: marked, emptied by the eviction API, then its machine is removed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, Error, EventRecorder, EventType, Informer, Key, ListParams, Patch, reference};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::config::ClusterAutoscalerSettings;
use super::down::Removal;
use super::drain::moves;
use super::provider::NodeProvider;
use super::view::{TO_BE_DELETED, name};

/// On a node that was open to pods before it was marked.
const CORDONED: &str = "dhow.io/cordoned-by-cluster-autoscaler";
/// A budget that refuses is asked again after this time, as upstream does.
const EVICTION_RETRY: Duration = Duration::from_secs(10);
/// How much longer than its grace a pod may take to go.
const HEADROOM: Duration = Duration::from_secs(30);

/// What it takes to let nodes go.
#[derive(Clone)]
pub struct Leaving {
    pub client: Client,
    pub recorder: EventRecorder,
    pub provider: Arc<dyn NodeProvider>,
    pub settings: Arc<ClusterAutoscalerSettings>,
    pub pods: Informer<Pod>,
    /// Told of every change of a pod.
    pub pods_changed: Arc<Notify>,
}

impl Leaving {
    /// All of it. A node that cannot go is given back.
    pub async fn remove(&self, group: &str, removal: &Removal) -> Result<(), Error> {
        let node = mark(&self.client, &removal.node).await?;
        let text = "marked the node as toBeDeleted/unschedulable";
        self.recorder.event(reference(&node), EventType::Normal, "ScaleDown", text);
        let done = self.empty_and_delete(group, &node, &removal.pods).await;
        if let Err(error) = &done {
            let text = format!("failed to remove the node, aborting ScaleDown: {error}");
            self.recorder.event(reference(&node), EventType::Warning, "ScaleDownFailed", &text);
            unmark(&self.client, name(&node)).await?;
        }
        done
    }

    async fn empty_and_delete(&self, group: &str, node: &Node, expected: &[Arc<Pod>]) -> Result<(), Error> {
        // Nothing comes any more; what came since the decision was not part of it.
        let on = ListParams { field_selector: Some(format!("spec.nodeName={}", name(node))), ..ListParams::default() };
        let here = self.client.list::<Pod>(None, &on).await?.items;
        let moving: Vec<Pod> = here.into_iter().filter(moves).collect();
        let known: HashSet<_> = expected.iter().map(|pod| pod.metadata.uid.clone()).collect();
        if let Some(new) = moving.iter().find(|pod| !known.contains(&pod.metadata.uid)) {
            let name = new.metadata.name.as_deref().unwrap_or_default();
            return Err(Error::Reconcile(format!("pod {name} came to the node meanwhile")));
        }
        let mut grace = 0;
        for pod in &moving {
            grace = grace.max(self.evict(pod).await?);
        }
        self.wait_for_end(&moving, grace).await?;
        self.provider.delete(group, std::slice::from_ref(node)).await?;
        self.recorder.event(reference(node), EventType::Normal, "ScaleDown", "node removed by cluster autoscaler");
        Ok(())
    }

    /// Returns how many seconds the pod has to end.
    async fn evict(&self, pod: &Pod) -> Result<i64, Error> {
        let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        let grace = own.min(self.settings.most_grace);
        let (pod_name, namespace) = (pod.metadata.name.clone().unwrap_or_default(), pod.metadata.namespace.clone());
        let metadata =
            ObjectMeta { name: Some(pod_name.clone()), namespace: namespace.clone(), ..ObjectMeta::default() };
        let preconditions = k8s_openapi::apimachinery::pkg::apis::meta::v1::Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        };
        let options = DeleteOptions {
            grace_period_seconds: Some(grace),
            preconditions: Some(preconditions),
            ..DeleteOptions::default()
        };
        let eviction = Eviction { metadata, delete_options: Some(options) };
        let end = Instant::now() + self.settings.eviction;
        loop {
            let asked = self
                .client
                .create_subresource::<Pod, _, Value>(namespace.as_deref(), &pod_name, "eviction", &eviction)
                .await;
            match asked {
                Ok(_) => {
                    let text = "deleting pod for node scale down";
                    self.recorder.event(reference(pod), EventType::Normal, "ScaleDown", text);
                    return Ok(grace);
                }
                // Gone, or another of its name.
                Err(error) if error.is_not_found() || error.is_conflict() => return Ok(0),
                Err(Error::Api { code: 429, .. }) if Instant::now() + EVICTION_RETRY < end => {
                    sleep(EVICTION_RETRY).await;
                }
                Err(error) => {
                    let text = "failed to delete pod for ScaleDown";
                    self.recorder.event(reference(pod), EventType::Warning, "ScaleDownFailed", text);
                    return Err(error);
                }
            }
        }
    }

    async fn wait_for_end(&self, pods: &[Pod], grace: i64) -> Result<(), Error> {
        let end = Instant::now() + Duration::from_secs(u64::try_from(grace).unwrap_or(0)) + HEADROOM;
        loop {
            let changed = self.pods_changed.notified();
            let left = pods.iter().find(|pod| {
                let now = self.pods.get(&Key::of(&pod.metadata));
                now.is_some_and(|now| now.metadata.uid == pod.metadata.uid)
            });
            let Some(left) = left else { return Ok(()) };
            if timeout_at(end, changed).await.is_err() {
                let name = left.metadata.name.as_deref().unwrap_or_default();
                return Err(Error::Reconcile(format!("pod {name} does not end")));
            }
        }
    }
}

/// Lets no pod come to the node any more, unless it was changed meanwhile.
async fn mark(client: &Client, node: &Node) -> Result<Node, Error> {
    let spec = node.spec.clone().unwrap_or_default();
    let mut taints = spec.taints.unwrap_or_default();
    taints.retain(|taint| taint.key != TO_BE_DELETED);
    taints.push(Taint {
        key: TO_BE_DELETED.into(),
        value: Some(Timestamp::now().as_second().to_string()),
        effect: "NoSchedule".into(),
        time_added: None,
    });
    let mut patch = json!({
        "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
        "spec": {"taints": taints, "unschedulable": true},
    });
    if spec.unschedulable != Some(true) {
        patch["metadata"]["annotations"] = json!({CORDONED: "true"});
    }
    client.patch(None, name(node), Patch::Merge(patch), None).await
}

/// Gives a node back.
pub async fn unmark(client: &Client, node: &str) -> Result<(), Error> {
    let now: Node = match client.get(None, node).await {
        Ok(now) => now,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut taints = now.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    taints.retain(|taint| taint.key != TO_BE_DELETED);
    let mut patch = json!({
        "metadata": {"uid": now.metadata.uid, "resourceVersion": now.metadata.resource_version},
        "spec": {"taints": Some(taints).filter(|taints| !taints.is_empty())},
    });
    if now.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(CORDONED)) {
        patch["spec"]["unschedulable"] = Value::Null;
        patch["metadata"]["annotations"] = json!({CORDONED: null});
    }
    client.patch::<Node>(None, node, Patch::Merge(patch), None).await.map(drop)
}
