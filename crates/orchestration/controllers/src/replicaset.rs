//! Keeps as many pods as a ReplicaSet asks for.

use std::borrow::Cow;
use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, Error, Informer, Key, Object, Outcome, Queue, Reconcile, controller_of};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use k8s_openapi::jiff::Timestamp;

use crate::common::{available_in, is_active, is_finished, is_ready, node_name, phase, ready_since};
use crate::pods::{PodControl, claim, from_template};

/// At most this many creations or deletions per reconciliation.
const BURST: usize = 500;

/// What to do about the number of pods.
#[derive(Debug, PartialEq)]
pub enum Action {
    Create(usize),
    /// Pods to delete, least useful first.
    Delete(Vec<Arc<Pod>>),
}

/// Decides from the active pods of a ReplicaSet. `crowd` is how many related pods run on each node.
pub fn plan(set: &ReplicaSet, active: &[Arc<Pod>], crowd: &HashMap<String, usize>) -> Option<Action> {
    let wanted = usize::try_from(replicas(set)).unwrap_or(0);
    match active.len().cmp(&wanted) {
        Ordering::Equal => None,
        Ordering::Less => Some(Action::Create((wanted - active.len()).min(BURST))),
        Ordering::Greater => {
            let mut ranked = active.to_vec();
            ranked.sort_by_key(|pod| rank(pod, crowd));
            ranked.truncate((active.len() - wanted).min(BURST));
            Some(Action::Delete(ranked))
        }
    }
}

/// Upstream's order of deletion: lower goes first.
fn rank(pod: &Pod, crowd: &HashMap<String, usize>) -> impl Ord + use<> {
    let annotations = pod.metadata.annotations.as_ref();
    let cost = annotations
        .and_then(|all| all.get("controller.kubernetes.io/pod-deletion-cost"))
        .and_then(|cost| cost.parse::<i32>().ok())
        .unwrap_or(0);
    let restarts = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref())
        .map_or(0, |containers| containers.iter().map(|container| container.restart_count).max().unwrap_or(0));
    let phase = match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    (
        node_name(pod).is_some(),
        phase,
        is_ready(pod),
        cost,
        Reverse(node_name(pod).and_then(|node| crowd.get(node)).copied().unwrap_or(0)),
        Reverse(ready_since(pod)),
        Reverse(restarts),
        Reverse(pod.metadata.creation_timestamp.as_ref().map(|time| time.0)),
    )
}

/// The status of a set, and when a ready pod becomes available next.
pub fn status(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<(&'static str, String)>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let spec = set.spec.as_ref();
    let template = spec.and_then(|spec| spec.template.as_ref()).and_then(|template| template.metadata.as_ref());
    let template_labels = template.and_then(|metadata| metadata.labels.as_ref());
    let labelled = active.iter().filter(|pod| {
        template_labels
            .into_iter()
            .flatten()
            .all(|(key, value)| pod.metadata.labels.as_ref().and_then(|labels| labels.get(key)) == Some(value))
    });
    let min_ready = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let waits: Vec<Duration> = active.iter().filter_map(|pod| available_in(pod, min_ready, now)).collect();
    let available = waits.iter().filter(|wait| wait.is_zero()).count();
    let old = set.status.clone().unwrap_or_default();
    let mut conditions = old.conditions.unwrap_or_default();
    let known = conditions.iter().position(|condition| condition.type_ == "ReplicaFailure");
    match (failure, known) {
        (Some((reason, message)), None) => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        }),
        (None, Some(index)) => drop(conditions.remove(index)),
        _ => {}
    }
    let status = ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: nonzero(labelled.count()),
        ready_replicas: nonzero(waits.len()),
        available_replicas: nonzero(available),
        terminating_replicas: nonzero(terminating),
        observed_generation: set.metadata.generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    };
    (status, waits.into_iter().filter(|wait| !wait.is_zero()).min())
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn nonzero(number: usize) -> Option<i32> {
    (number > 0).then(|| count(number))
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// What a ReplicaSet and its elder, the ReplicationController, have in common.
pub trait Replicated: Object {
    /// The controller's name, for the queue and as the source of events.
    const CONTROLLER: (&'static str, &'static str);

    fn as_set(&self) -> Cow<'_, ReplicaSet>;

    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Replicated for ReplicaSet {
    const CONTROLLER: (&'static str, &'static str) = ("replicaset", "replicaset-controller");

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }
}

fn selector<K: Replicated>(owner: &K) -> Option<LabelSelector> {
    owner.as_set().spec.as_ref().map(|spec| spec.selector.clone())
}

pub struct ReplicaSets<K> {
    control: PodControl,
    sets: Informer<K>,
    pods: Informer<Pod>,
}

impl<K: Replicated> ReplicaSets<K> {
    pub fn new(client: Client, sets: Informer<K>, pods: Informer<Pod>, queue: &Queue) -> Arc<Self> {
        let control = PodControl::new(client, K::CONTROLLER.1);
        let to = queue.clone();
        sets.on_change(move |change| to.add(Key::of(change.object().metadata())));
        control.watch(&pods, &sets, queue, selector::<K>);
        Arc::new(Self { control, sets, pods })
    }

    async fn act(&self, key: &Key, owner: &K, set: &ReplicaSet, action: Action) -> Result<(), Error> {
        match action {
            Action::Create(number) => {
                let template = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
                let pods = vec![from_template(owner, &template); number];
                self.control.expect(key, number, &[]);
                self.control.create(key, owner, &pods).await
            }
            Action::Delete(pods) => {
                self.control.expect(key, 0, &pods);
                self.control.delete(key, owner, &pods).await
            }
        }
    }

    /// Pods of every set of the same owner, per node: where they crowd, one goes first.
    fn crowd(&self, set: &K) -> HashMap<String, usize> {
        let owner = controller_of(set.metadata()).map(|owner| owner.uid.clone());
        let mut crowd = HashMap::new();
        for other in self.sets.by_index("namespace", set.metadata().namespace.as_deref().unwrap_or_default()) {
            let other = other.metadata();
            let related = other.uid == set.metadata().uid
                || (owner.is_some() && controller_of(other).map(|other| &other.uid) == owner.as_ref());
            if !related {
                continue;
            }
            for pod in self.pods.by_index("controller", other.uid.as_deref().unwrap_or_default()) {
                if let Some(node) = node_name(&pod).filter(|_| is_active(&pod)) {
                    *crowd.entry(node.to_owned()).or_insert(0) += 1;
                }
            }
        }
        crowd
    }
}

#[async_trait::async_trait]
impl<K: Replicated> Reconcile for ReplicaSets<K> {
    fn name(&self) -> &'static str {
        K::CONTROLLER.0
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(object) = self.sets.get(key) else {
            self.control.expectations.forget(key);
            return Ok(Outcome::Done);
        };
        let set = object.as_set();
        let Some(spec) = &set.spec else { return Ok(Outcome::Done) };
        let settled = self.control.expectations.satisfied(key);
        let pods = self.pods.by_index("namespace", key.namespace().unwrap_or_default());
        let claimed = claim(&self.control.client, &*object, &spec.selector, pods, is_active).await?;
        let active: Vec<_> = claimed.iter().filter(|pod| is_active(pod)).cloned().collect();
        let going = claimed.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some() && !is_finished(pod)).count();
        let mut result = Ok(());
        let mut failure = None;
        if settled
            && set.metadata.deletion_timestamp.is_none()
            && let Some(action) = plan(&set, &active, &self.crowd(&object))
        {
            let reason = if matches!(action, Action::Create(_)) { "FailedCreate" } else { "FailedDelete" };
            result = self.act(key, &object, &set, action).await;
            failure = result.as_ref().err().map(|error| (reason, error.to_string()));
        }
        let (status, wait) = status(&set, &active, going, failure, Timestamp::now());
        let changed = object.with_status(status);
        // Compared as the kind keeps it: an elder one does not count what terminates.
        if set.status != changed.as_set().status {
            match self.control.client.update_status(&changed).await {
                Err(error) if error.is_not_found() => {}
                other => drop(other?),
            }
        }
        result?;
        Ok(wait.map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "a", "uid": "r", "generation": 3},
            "spec": {"replicas": replicas, "minReadySeconds": 10, "selector": {"matchLabels": {"app": "web"}},
                     "template": {"metadata": {"labels": {"app": "web"}}}}
        }))
        .unwrap()
    }

    fn pod(name: &str, node: Option<&str>, phase: &str, ready: Option<&str>, annotations: Value) -> Arc<Pod> {
        let conditions = ready.map(|since| json!([{"type": "Ready", "status": "True", "lastTransitionTime": since}]));
        let pod = json!({
            "metadata": {"name": name, "uid": name, "labels": {"app": "web"}, "annotations": annotations},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "conditions": conditions}
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn deletes_the_least_useful_first() {
        let early = Some("2026-01-01T00:00:00Z");
        let late = Some("2026-01-02T00:00:00Z");
        let pods = vec![
            pod("old", Some("n1"), "Running", early, json!({})),
            pod("cheap", Some("n1"), "Running", early, json!({"controller.kubernetes.io/pod-deletion-cost": "-5"})),
            pod("crowded", Some("n2"), "Running", early, json!({})),
            pod("young", Some("n1"), "Running", late, json!({})),
            pod("unready", Some("n1"), "Running", None, json!({})),
            pod("pending", Some("n1"), "Pending", None, json!({})),
            pod("unassigned", None, "Pending", None, json!({})),
        ];
        let crowd = HashMap::from([("n1".to_owned(), 1), ("n2".to_owned(), 4)]);
        let Some(Action::Delete(order)) = plan(&set(0), &pods, &crowd) else { panic!("nothing to delete") };
        let names: Vec<_> = order.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect();
        assert_eq!(names, ["unassigned", "pending", "unready", "cheap", "crowded", "young", "old"]);
        assert_eq!(plan(&set(7), &pods, &crowd), None);
        assert_eq!(plan(&set(900), &pods, &crowd), Some(Action::Create(BURST)));
    }

    #[test]
    fn a_pod_is_available_after_min_ready_seconds() {
        let now: Timestamp = "2026-01-02T00:00:04Z".parse().unwrap();
        let pods = vec![
            pod("a", Some("n"), "Running", Some("2026-01-01T00:00:00Z"), json!({})),
            pod("b", Some("n"), "Running", Some("2026-01-02T00:00:00Z"), json!({})),
        ];
        let (status, wait) = status(&set(2), &pods, 0, Some(("FailedCreate", "quota".into())), now);
        assert_eq!((status.replicas, status.ready_replicas, status.available_replicas), (2, Some(2), Some(1)));
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(wait, Some(Duration::from_secs(6)));
        assert_eq!(status.conditions.unwrap()[0].type_, "ReplicaFailure");
    }
}
