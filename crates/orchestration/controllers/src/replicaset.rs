//! Keeps as many pods as a ReplicaSet asks for.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{
    Change, Client, DeleteParams, Error, EventRecorder, EventType, Informer, Key, Outcome, Patch, Queue, Reconcile,
    controller_of, controller_reference, is_controlled_by, reference,
};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use crate::common::{
    Expectations, available_in, in_ending_namespace, is_active, is_finished, is_ready, node_name, phase, ready_since,
    selects,
};

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

pub struct ReplicaSets {
    client: Client,
    recorder: EventRecorder,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    expectations: Arc<Expectations>,
}

impl ReplicaSets {
    pub fn new(client: Client, sets: Informer<ReplicaSet>, pods: Informer<Pod>, queue: &Queue) -> Arc<Self> {
        let recorder = EventRecorder::new(client.clone(), "replicaset-controller");
        let expectations = Arc::new(Expectations::default());
        let to = queue.clone();
        sets.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        let (to, seen, all) = (queue.clone(), expectations.clone(), sets.clone());
        pods.on_change(move |change| on_pod(change, &to, &seen, &all));
        Arc::new(Self { client, recorder, sets, pods, expectations })
    }

    /// The pods of a set; adopts orphans that it selects and releases those that it no longer selects.
    async fn claim(&self, set: &ReplicaSet) -> Result<Vec<Arc<Pod>>, Error> {
        let Some(spec) = &set.spec else { return Ok(Vec::new()) };
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let mut claimed = Vec::new();
        for pod in self.pods.by_index("namespace", namespace) {
            let selected = selects(&spec.selector, pod.metadata.labels.as_ref());
            if is_controlled_by(&pod.metadata, set) {
                if selected {
                    claimed.push(pod);
                } else if set.metadata.deletion_timestamp.is_none() {
                    self.own(&pod, set, false).await?;
                }
            } else if selected
                && is_active(&pod)
                && controller_of(&pod.metadata).is_none()
                && set.metadata.deletion_timestamp.is_none()
            {
                claimed.extend(self.own(&pod, set, true).await?.map(Arc::new));
            }
        }
        Ok(claimed)
    }

    /// Adopts or releases a pod. A pod that is gone meanwhile is no error.
    async fn own(&self, pod: &Pod, set: &ReplicaSet, adopt: bool) -> Result<Option<Pod>, Error> {
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
        owners.retain(|owner| owner.uid != uid);
        if adopt {
            owners.push(controller_reference(set));
        }
        let patch = json!({"metadata": {
            "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "ownerReferences": owners,
        }});
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match self.client.patch(pod.metadata.namespace.as_deref(), name, Patch::Merge(patch), None).await {
            Err(error) if error.is_not_found() => Ok(None),
            other => other.map(Some),
        }
    }

    /// Creates pods in batches that double while all goes well, so that a failing template costs few calls.
    async fn create(&self, key: &Key, set: &ReplicaSet, number: usize) -> Result<(), Error> {
        self.expectations.expect(key, i64::try_from(number).unwrap_or(0), []);
        let pod = new_pod(set);
        let (mut left, mut batch) = (number, 1);
        while left > 0 {
            let size = batch.min(left);
            let results = join_all((0..size).map(|_| self.client.create(&pod))).await;
            left -= size;
            batch *= 2;
            let mut failure = None;
            for result in results {
                match result {
                    Ok(pod) => {
                        let name = pod.metadata.name.as_deref().unwrap_or_default();
                        let message = format!("Created pod: {name}");
                        self.recorder.event(reference(set), EventType::Normal, "SuccessfulCreate", &message).await;
                    }
                    Err(error) => {
                        self.expectations.created(key);
                        failure = Some(error);
                    }
                }
            }
            if let Some(error) = failure {
                // What was not tried will not be seen either.
                (0..left).for_each(|_| self.expectations.created(key));
                if in_ending_namespace(&self.client, &error, key.namespace()).await {
                    return Ok(());
                }
                let message = format!("Error creating: {error}");
                self.recorder.event(reference(set), EventType::Warning, "FailedCreate", &message).await;
                return Err(error);
            }
        }
        Ok(())
    }

    async fn delete(&self, key: &Key, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Result<(), Error> {
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        self.expectations.expect(key, 0, pods.iter().map(|pod| uid(pod)));
        let results = join_all(pods.iter().map(|pod| async {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let params = DeleteParams { uid: pod.metadata.uid.clone(), ..DeleteParams::default() };
            let result = self.client.delete::<Pod>(pod.metadata.namespace.as_deref(), name, &params).await;
            match result {
                Ok(()) => {
                    let message = format!("Deleted pod: {name}");
                    self.recorder.event(reference(set), EventType::Normal, "SuccessfulDelete", &message).await;
                    Ok(())
                }
                Err(error) => {
                    self.expectations.deleted(key, &uid(pod));
                    if error.is_not_found() || error.is_conflict() {
                        return Ok(());
                    }
                    let message = format!("Error deleting: {error}");
                    self.recorder.event(reference(set), EventType::Warning, "FailedDelete", &message).await;
                    Err(error)
                }
            }
        }))
        .await;
        results.into_iter().collect()
    }

    /// Pods of every set of the same owner, per node: where they crowd, one goes first.
    fn crowd(&self, set: &ReplicaSet) -> HashMap<String, usize> {
        let owner = controller_of(&set.metadata).map(|owner| owner.uid.clone());
        let mut crowd = HashMap::new();
        for other in self.sets.list() {
            let related = other.metadata.uid == set.metadata.uid
                || (owner.is_some() && controller_of(&other.metadata).map(|other| &other.uid) == owner.as_ref());
            if !related {
                continue;
            }
            for pod in self.pods.by_index("controller", other.metadata.uid.as_deref().unwrap_or_default()) {
                if let Some(node) = node_name(&pod).filter(|_| is_active(&pod)) {
                    *crowd.entry(node.to_owned()).or_insert(0) += 1;
                }
            }
        }
        crowd
    }
}

#[async_trait::async_trait]
impl Reconcile for ReplicaSets {
    fn name(&self) -> &'static str {
        "replicaset"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(set) = self.sets.get(key) else {
            self.expectations.forget(key);
            return Ok(Outcome::Done);
        };
        let settled = self.expectations.satisfied(key);
        let claimed = self.claim(&set).await?;
        let active: Vec<_> = claimed.iter().filter(|pod| is_active(pod)).cloned().collect();
        let going = claimed.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some() && !is_finished(pod)).count();
        let mut result = Ok(());
        let mut failure = None;
        if settled && set.metadata.deletion_timestamp.is_none() {
            let wanted = plan(&set, &active, &self.crowd(&set));
            let (reason, done) = match &wanted {
                Some(Action::Create(number)) => ("FailedCreate", self.create(key, &set, *number).await),
                Some(Action::Delete(pods)) => ("FailedDelete", self.delete(key, &set, pods).await),
                None => ("", Ok(())),
            };
            failure = done.as_ref().err().map(|error| (reason, error.to_string()));
            result = done;
        }
        let (status, wait) = status(&set, &active, going, failure, Timestamp::now());
        if set.status.as_ref() != Some(&status) {
            let mut changed = ReplicaSet::clone(&set);
            changed.status = Some(status);
            match self.client.update_status(&changed).await {
                Err(error) if error.is_not_found() => {}
                other => drop(other?),
            }
        }
        result?;
        Ok(wait.map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}

fn new_pod(set: &ReplicaSet) -> Pod {
    let template = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let given = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.metadata.name.as_deref().unwrap_or_default())),
            namespace: set.metadata.namespace.clone(),
            labels: given.labels,
            annotations: given.annotations,
            finalizers: given.finalizers,
            owner_references: Some(vec![controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// The key of the ReplicaSet that manages a pod.
fn owner(pod: &Pod) -> Option<Key> {
    let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet")?;
    Some(Key::new(pod.metadata.namespace.as_deref(), &owner.name))
}

fn on_pod(change: &Change<Pod>, queue: &Queue, expectations: &Expectations, sets: &Informer<ReplicaSet>) {
    let pod = change.object();
    if let Change::Updated { old, .. } = change
        && let Some(before) = owner(old).filter(|before| Some(before) != owner(pod).as_ref())
    {
        queue.add(before);
    }
    let Some(key) = owner(pod) else {
        // An orphan: whoever selects it may adopt it.
        for set in sets.by_index("namespace", pod.metadata.namespace.as_deref().unwrap_or_default()) {
            if set.spec.as_ref().is_some_and(|spec| selects(&spec.selector, pod.metadata.labels.as_ref())) {
                queue.add(Key::of(&set.metadata));
            }
        }
        return;
    };
    match change {
        Change::Added(_) => expectations.created(&key),
        Change::Updated { .. } => {}
        Change::Deleted(_) => {}
    }
    if matches!(change, Change::Deleted(_)) || pod.metadata.deletion_timestamp.is_some() {
        expectations.deleted(&key, pod.metadata.uid.as_deref().unwrap_or_default());
    }
    queue.add(key);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::Value;

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
