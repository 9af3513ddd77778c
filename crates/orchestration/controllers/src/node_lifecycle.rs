//! Marks nodes that went silent, and evicts their pods when the pods' toleration ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{
    Client, DeleteParams, Error, EventRecorder, EventType, Informer, Key, Outcome, Patch, Queue, Reconcile, reference,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::common::is_finished;

/// A node whose lease was not renewed for this long is unreachable.
pub const GRACE: Duration = Duration::from_secs(40);
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// The taints that a node's Ready condition asks for; those of others are kept.
pub fn taints(node: &Node, ready: &str, now: Timestamp) -> Vec<Taint> {
    let known = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let wanted = match ready {
        "True" => None,
        "Unknown" => Some(UNREACHABLE),
        _ => Some(NOT_READY),
    };
    let ours = |taint: &Taint| taint.key == UNREACHABLE || taint.key == NOT_READY;
    let mut taints: Vec<_> =
        known.iter().filter(|taint| !ours(taint) || Some(taint.key.as_str()) == wanted).cloned().collect();
    for effect in ["NoSchedule", "NoExecute"] {
        if let Some(key) = wanted.filter(|key| !taints.iter().any(|taint| taint.key == *key && taint.effect == effect))
        {
            let time_added = (effect == "NoExecute").then_some(Time(now));
            taints.push(Taint { key: key.into(), effect: effect.into(), time_added, value: None });
        }
    }
    taints
}

/// When a pod has to leave a node with these taints: `None` if it may stay, zero if it is due.
pub fn eviction(pod: &Pod, taints: &[Taint], now: Timestamp) -> Option<Duration> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut soonest: Option<Duration> = None;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let matching: Vec<_> = tolerations
            .iter()
            .filter(|one| one.effect.as_deref().is_none_or(|effect| effect.is_empty() || effect == "NoExecute"))
            .filter(|one| match one.key.as_deref().filter(|key| !key.is_empty()) {
                Some(key) if key != taint.key => false,
                None if one.operator.as_deref() != Some("Exists") => false,
                _ => {
                    one.operator.as_deref() == Some("Exists")
                        || one.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
                }
            })
            .collect();
        if matching.is_empty() {
            return Some(Duration::ZERO);
        }
        if let Some(seconds) = matching.iter().filter_map(|one| one.toleration_seconds).min() {
            let since = taint.time_added.as_ref().map_or(now, |time| time.0);
            let left = seconds.max(0) - (now.as_second() - since.as_second());
            let left = Duration::from_secs(u64::try_from(left).unwrap_or(0));
            soonest = Some(soonest.map_or(left, |known| known.min(left)));
        }
    }
    soonest
}

pub struct NodeLifecycle {
    client: Client,
    recorder: EventRecorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    /// When this process last saw a node's lease move: clocks of nodes are not trusted.
    seen: Arc<Mutex<HashMap<Key, Instant>>>,
}

impl NodeLifecycle {
    pub fn new(
        client: Client,
        nodes: Informer<Node>,
        leases: &Informer<Lease>,
        pods: Informer<Pod>,
        queue: &Queue,
    ) -> Arc<Self> {
        let recorder = EventRecorder::new(client.clone(), "node-controller");
        let seen = Arc::<Mutex<HashMap<Key, Instant>>>::default();
        let (to, known) = (queue.clone(), seen.clone());
        nodes.on_change(move |change| {
            let key = Key::of(&change.object().metadata);
            match change {
                dhow_client::Change::Deleted(_) => drop(known.lock().remove(&key)),
                _ => drop(known.lock().entry(key.clone()).or_insert_with(Instant::now)),
            }
            to.add(key);
        });
        let (to, known) = (queue.clone(), seen.clone());
        leases.on_change(move |change| {
            let key = Key::new(None, change.object().metadata.name.as_deref().unwrap_or_default());
            // The last look still waits in the queue; only a node that came back needs one now.
            let late = known.lock().insert(key.clone(), Instant::now()).is_none_or(|last| last.elapsed() >= GRACE);
            if late {
                to.add(key);
            }
        });
        let to = queue.clone();
        pods.on_change(move |change| {
            if let dhow_client::Change::Added(pod) | dhow_client::Change::Updated { new: pod, .. } = change
                && let Some(node) = crate::common::node_name(pod)
            {
                to.add(Key::new(None, node));
            }
        });
        Arc::new(Self { client, recorder, nodes, pods, seen })
    }

    async fn mark_unknown(&self, node: &Node) -> Result<(), Error> {
        let now = Time(Timestamp::now());
        let mut changed = node.clone();
        let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
        if !conditions.iter().any(|condition| condition.type_ == "Ready") {
            conditions.push(NodeCondition { type_: "Ready".into(), ..NodeCondition::default() });
        }
        for condition in conditions.iter_mut().filter(|condition| condition.status != "Unknown") {
            condition.status = "Unknown".into();
            condition.reason = Some("NodeStatusUnknown".into());
            condition.message = Some("Kubelet stopped posting node status.".into());
            condition.last_transition_time = Some(now.clone());
        }
        self.client.update_status(&changed).await?;
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let message = format!("Node {name} status is now: NodeNotReady");
        self.recorder.event(reference(node), EventType::Normal, "NodeNotReady", &message);
        Ok(())
    }
}

#[async_trait::async_trait]
impl Reconcile for NodeLifecycle {
    fn name(&self) -> &'static str {
        "node-lifecycle"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(node) = self.nodes.get(key) else { return Ok(Outcome::Done) };
        let silent = self.seen.lock().entry(key.clone()).or_insert_with(Instant::now).elapsed();
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
        let ready = ready.map_or("False", |condition| condition.status.as_str());
        if silent >= GRACE && ready != "Unknown" {
            // The change comes back as an event, and the taints follow then.
            self.mark_unknown(&node).await?;
            return Ok(Outcome::Done);
        }
        let now = Timestamp::now();
        let wanted = taints(&node, ready, now);
        if node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default() != wanted {
            let patch =
                json!({"metadata": {"resourceVersion": node.metadata.resource_version}, "spec": {"taints": wanted}});
            self.client.patch::<Node>(None, &key.name, Patch::Merge(patch), None).await?;
            return Ok(Outcome::RequeueAfter(GRACE));
        }
        let mut again = GRACE.saturating_sub(silent);
        for pod in self.pods.by_index("node", &key.name) {
            if pod.metadata.deletion_timestamp.is_some() || is_finished(&pod) {
                continue;
            }
            match eviction(&pod, &wanted, now) {
                None => {}
                Some(left) if !left.is_zero() => again = if again.is_zero() { left } else { again.min(left) },
                Some(_) => {
                    let name = pod.metadata.name.as_deref().unwrap_or_default();
                    let text = format!("Marking for deletion Pod {}", Key::of(&pod.metadata));
                    self.recorder.event(reference(&*pod), EventType::Normal, "TaintManagerEviction", &text);
                    let params = DeleteParams { uid: pod.metadata.uid.clone(), ..DeleteParams::default() };
                    match self.client.delete::<Pod>(pod.metadata.namespace.as_deref(), name, &params).await {
                        Err(error) if error.is_not_found() || error.is_conflict() => {}
                        other => other?,
                    }
                }
            }
        }
        // A node already marked is woken by its lease.
        Ok(if again.is_zero() { Outcome::Done } else { Outcome::RequeueAfter(again) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn taints_follow_ready_and_spare_others() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n"}, "spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}]}
        }))
        .unwrap();
        let silent = taints(&node, "Unknown", now);
        assert_eq!(silent.iter().filter(|taint| taint.key == UNREACHABLE).count(), 2);
        node.spec.as_mut().unwrap().taints = Some(silent.clone());
        assert_eq!(taints(&node, "Unknown", now + Duration::from_secs(9)), silent, "times stay");
        let back = taints(&node, "True", now);
        assert_eq!(back.iter().map(|taint| taint.key.as_str()).collect::<Vec<_>>(), ["mine"]);
    }

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let taints = taints(&Node::default(), "Unknown", start);
        let pod = |tolerations| -> Pod {
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [], "tolerations": tolerations}}))
                .unwrap()
        };
        let five =
            pod(json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(eviction(&five, &taints, at(100)), Some(Duration::from_secs(200)));
        assert_eq!(eviction(&five, &taints, at(301)), Some(Duration::ZERO));
        assert_eq!(eviction(&pod(json!([{"operator": "Exists"}])), &taints, at(9999)), None);
        assert_eq!(eviction(&pod(json!([])), &taints, start), Some(Duration::ZERO));
    }
}
