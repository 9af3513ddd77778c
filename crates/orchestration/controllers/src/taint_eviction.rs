//! Deletes pods from nodes with NoExecute taints, when the pods' toleration ends.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{
    Change, Client, DeleteParams, Error, EventRecorder, EventType, Informer, Key, Outcome, Queue, Reconcile, reference,
};
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;

use crate::common::{delete, is_finished, node_name};

pub struct TaintEviction {
    client: Client,
    recorder: EventRecorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    /// Pods, by uid, that are to leave at a later time: they are told when they may stay after all.
    waiting: Mutex<BTreeSet<String>>,
}

impl TaintEviction {
    pub fn new(client: Client, nodes: Informer<Node>, pods: Informer<Pod>, queue: &Queue) -> Arc<Self> {
        let to = queue.clone();
        nodes.on_change(move |change| {
            let old = match change {
                Change::Updated { old, .. } => no_execute(old),
                _ => Vec::new(),
            };
            if old != no_execute(change.object()) {
                to.add(Key::of(&change.object().metadata));
            }
        });
        let (to, all) = (queue.clone(), nodes.clone());
        pods.on_change(move |change| {
            if let Change::Added(pod) | Change::Updated { new: pod, .. } = change
                && let Some(name) = node_name(pod)
            {
                let key = Key::new(None, name);
                if all.get(&key).is_some_and(|node| !no_execute(&node).is_empty()) {
                    to.add(key);
                }
            }
        });
        let recorder = EventRecorder::new(client.clone(), "taint-eviction-controller");
        Arc::new(Self { client, recorder, nodes, pods, waiting: Mutex::default() })
    }
}

/// What is said of a pod that is made to leave.
pub struct Why {
    pub event: &'static str,
    /// Of its condition `DisruptionTarget`.
    pub reason: &'static str,
    pub message: &'static str,
}

const WHY: Why = Why {
    event: "TaintManagerEviction",
    reason: "DeletionByTaintManager",
    message: "Taint manager: deleting due to NoExecute taint",
};

/// Deletes a pod, and says why before.
pub async fn evict(client: &Client, recorder: &EventRecorder, pod: &Pod, why: &Why) -> Result<(), Error> {
    let text = format!("Marking for deletion Pod {}", Key::of(&pod.metadata));
    recorder.event(reference(pod), EventType::Normal, why.event, &text);
    let mut changed = pod.clone();
    let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
    if !conditions.iter().any(|one| one.type_ == "DisruptionTarget" && one.status == "True") {
        conditions.retain(|condition| condition.type_ != "DisruptionTarget");
        conditions.push(PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            reason: Some(why.reason.into()),
            message: Some(why.message.into()),
            last_transition_time: Some(Time(Timestamp::now())),
            ..PodCondition::default()
        });
        match client.update_status(&changed).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other.map(drop)?,
        }
    }
    delete(client, pod, DeleteParams::default()).await
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (key, effect, operator) = (text(&toleration.key), text(&toleration.effect), text(&toleration.operator));
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match operator.as_str() {
        // Without a key it is for every taint.
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        _ => false,
    }
}

/// When a pod has to leave a node with these taints: `None` if it may stay, zero if it is due.
fn eviction(pod: &Pod, taints: &[Taint], now: Timestamp) -> Option<Duration> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut soonest: Option<Duration> = None;
    for taint in taints {
        let Some(toleration) = tolerations.iter().find(|one| tolerates(one, taint)) else {
            return Some(Duration::ZERO);
        };
        let Some(seconds) = toleration.toleration_seconds else { continue };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let left = seconds.max(0) - (now.as_second() - since.as_second()).max(0);
        let left = Duration::from_secs(u64::try_from(left).unwrap_or(0));
        soonest = Some(soonest.map_or(left, |known| known.min(left)));
    }
    soonest
}

#[async_trait::async_trait]
impl Reconcile for TaintEviction {
    fn name(&self) -> &'static str {
        "taint-eviction"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let taints = self.nodes.get(key).map(|node| no_execute(&node)).unwrap_or_default();
        let now = Timestamp::now();
        let mut again: Option<Duration> = None;
        for pod in self.pods.by_index("node", &key.name) {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let due = eviction(&pod, &taints, now);
            if pod.metadata.deletion_timestamp.is_some() || is_finished(&pod) {
                self.waiting.lock().remove(&uid);
                continue;
            }
            match due {
                None => {
                    if self.waiting.lock().remove(&uid) {
                        let text = format!("Cancelling deletion of Pod {}", Key::of(&pod.metadata));
                        self.recorder.event(reference(&*pod), EventType::Normal, "TaintManagerEviction", &text);
                    }
                }
                Some(left) if !left.is_zero() => {
                    self.waiting.lock().insert(uid);
                    again = Some(again.map_or(left, |known| known.min(left)));
                }
                Some(_) => {
                    evict(&self.client, &self.recorder, &pod, &WHY).await?;
                    self.waiting.lock().remove(&uid);
                }
            }
        }
        Ok(again.map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn pod(tolerations: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [], "tolerations": tolerations}})).unwrap()
    }

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let taint = |key: &str, value: &str| Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            time_added: Some(Time(start)),
            value: Some(value.into()).filter(|value: &String| !value.is_empty()),
        };
        let at = |seconds| start + Duration::from_secs(seconds);
        let one = [taint("a", "")];
        let five = pod(json!([{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]));
        assert_eq!(eviction(&five, &one, at(100)), Some(Duration::from_secs(200)));
        assert_eq!(eviction(&five, &one, at(301)), Some(Duration::ZERO));
        assert_eq!(eviction(&pod(json!([{"operator": "Exists"}])), &one, at(9999)), None);
        assert_eq!(eviction(&pod(json!([])), &one, start), Some(Duration::ZERO));
        let negative = pod(json!([{"key": "a", "operator": "Exists", "tolerationSeconds": -5}]));
        assert_eq!(eviction(&negative, &one, start), Some(Duration::ZERO));
        // Of several the first that fits counts, and of several taints the shortest.
        let two = pod(json!([
            {"key": "a", "operator": "Exists", "tolerationSeconds": 60},
            {"key": "a", "operator": "Exists", "tolerationSeconds": 10},
            {"key": "b", "value": "x", "tolerationSeconds": 30},
        ]));
        assert_eq!(eviction(&two, &one, start), Some(Duration::from_secs(60)));
        assert_eq!(eviction(&two, &[taint("a", ""), taint("b", "x")], start), Some(Duration::from_secs(30)));
        assert_eq!(eviction(&two, &[taint("b", "y")], start), Some(Duration::ZERO), "another value");
        let other = pod(json!([{"key": "a", "operator": "Exists", "effect": "NoSchedule"}]));
        assert_eq!(eviction(&other, &one, start), Some(Duration::ZERO), "another effect");
        assert_eq!(eviction(&pod(json!([])), &[], start), None);
    }
}
