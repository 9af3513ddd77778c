//! Keeps the status of PodDisruptionBudgets, from which the API server decides on evictions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dhow_api::conditions;
use dhow_client::{
    Client, Error, EventRecorder, EventType, Informer, Key, Outcome, Queue, Reconcile, controller_of, reference,
};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use crate::common::{is_ready, portion, selects};
use crate::scale::{Kinds, Scaled};

/// An eviction that was granted but did not happen is forgotten after this time.
const DELETION_TIMEOUT: Duration = Duration::from_secs(120);
const ALLOWED: &str = "DisruptionAllowed";

/// The informers of kinds that say how many pods there should be.
pub struct Scales {
    pub deployments: Informer<Deployment>,
    pub sets: Informer<ReplicaSet>,
    pub stateful_sets: Informer<StatefulSet>,
    pub replication_controllers: Informer<ReplicationController>,
}

impl Scales {
    /// The uid and size of what manages a pod at the top.
    fn of(&self, pod: &Pod) -> Result<(String, i32), String> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let Some(owner) = controller_of(&pod.metadata) else {
            return Err(format!("found no controllers for pod \"{name}\""));
        };
        let key = Key::new(pod.metadata.namespace.as_deref(), &owner.name);
        let found = match owner.kind.as_str() {
            "ReplicaSet" => self.sets.get(&key).map(|set| {
                let above = controller_of(&set.metadata).filter(|above| above.kind == "Deployment");
                let above = above.and_then(|above| self.deployments.get(&Key::new(key.namespace(), &above.name)));
                match above {
                    Some(above) => (above.metadata.uid.clone(), above.spec.as_ref().and_then(|spec| spec.replicas)),
                    None => (set.metadata.uid.clone(), set.spec.as_ref().and_then(|spec| spec.replicas)),
                }
            }),
            "StatefulSet" => self
                .stateful_sets
                .get(&key)
                .map(|set| (set.metadata.uid.clone(), set.spec.as_ref().and_then(|spec| spec.replicas))),
            "ReplicationController" => self
                .replication_controllers
                .get(&key)
                .map(|set| (set.metadata.uid.clone(), set.spec.as_ref().and_then(|spec| spec.replicas))),
            kind => return Err(not_scalable(kind, &owner.api_version)),
        };
        let (uid, size) =
            found.ok_or_else(|| format!("the {} \"{}\" of pod \"{name}\" is gone", owner.kind, owner.name))?;
        Ok((uid.unwrap_or_default(), size.unwrap_or(1)))
    }
}

fn not_scalable(kind: &str, api_version: &str) -> String {
    format!("{}.{api_version} does not implement the scale subresource", kind.to_lowercase())
}

/// The kinds whose size is known from copies.
fn is_known(owner: &OwnerReference) -> bool {
    ["ReplicaSet", "StatefulSet", "ReplicationController"].contains(&owner.kind.as_str())
}

/// How many pods there should be, and how many of them healthy.
fn expected(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    scale: impl Fn(&Pod) -> Result<(String, i32), String>,
) -> Result<(i32, i32), String> {
    let Some(spec) = &budget.spec else { return Ok((0, 0)) };
    let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    let total = || -> Result<i32, String> {
        let scales = pods.iter().map(|pod| scale(pod)).collect::<Result<BTreeMap<_, _>, _>>()?;
        Ok(scales.values().sum())
    };
    if let Some(most) = &spec.max_unavailable {
        let total = total()?;
        return Ok((total, (total - portion(Some(most), "0", total, true)).max(0)));
    }
    match &spec.min_available {
        Some(IntOrString::Int(least)) => Ok((count, *least)),
        Some(least) => {
            let total = total()?;
            Ok((total, portion(Some(least), "0", total, true)))
        }
        None => Ok((count, 0)),
    }
}

/// The status of a budget, pods whose granted eviction did not happen, and when to look again.
fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: Result<(i32, i32), String>,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Vec<Arc<Pod>>, Option<Duration>) {
    let mut status = budget.status.clone().unwrap_or_default();
    let (mut overdue, mut wait) = (Vec::new(), None::<Duration>);
    let mut disrupted = BTreeMap::new();
    for (name, since) in status.disrupted_pods.take().unwrap_or_default() {
        let Some(pod) = pods.iter().find(|pod| pod.metadata.name.as_deref() == Some(&name)) else { continue };
        if pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let gone = Duration::from_millis(u64::try_from(now.as_millisecond() - since.0.as_millisecond()).unwrap_or(0));
        let left = DELETION_TIMEOUT.saturating_sub(gone);
        if left.is_zero() {
            overdue.push(pod.clone());
            continue;
        }
        wait = Some(wait.map_or(left, |known| known.min(left)));
        disrupted.insert(name, since);
    }
    let healthy = pods.iter().filter(|pod| {
        pod.metadata.deletion_timestamp.is_none()
            && !disrupted.contains_key(pod.metadata.name.as_deref().unwrap_or_default())
            && is_ready(pod)
    });
    let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    status.disrupted_pods = (!disrupted.is_empty()).then_some(disrupted);
    let (state, reason, message) = match expected {
        Ok((total, desired)) => {
            status.current_healthy = healthy;
            status.desired_healthy = desired;
            status.expected_pods = total;
            status.disruptions_allowed = if total <= 0 { 0 } else { (healthy - desired).max(0) };
            if status.disruptions_allowed > 0 {
                ("True", "SufficientPods", String::new())
            } else {
                ("False", "InsufficientPods", String::new())
            }
        }
        Err(message) => {
            status.disruptions_allowed = 0;
            ("False", "SyncFailed", message)
        }
    };
    let generation = budget.metadata.generation;
    status.observed_generation = generation;
    let conditions = status.conditions.get_or_insert_default();
    let since = conditions::since(conditions, ALLOWED, state, now);
    let made = Condition {
        type_: ALLOWED.into(),
        status: state.into(),
        reason: reason.into(),
        message,
        last_transition_time: since,
        observed_generation: generation,
    };
    match conditions.iter_mut().find(|one| one.type_ == ALLOWED) {
        Some(known) => *known = made,
        None => conditions.push(made),
    }
    (status, overdue, wait)
}

pub struct Disruption {
    client: Client,
    recorder: EventRecorder,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    scales: Scales,
    kinds: Kinds,
}

impl Disruption {
    pub fn new(
        client: Client,
        budgets: Informer<PodDisruptionBudget>,
        pods: Informer<Pod>,
        scales: Scales,
        queue: &Queue,
    ) -> Arc<Self> {
        let recorder = EventRecorder::new(client.clone(), "controllermanager");
        let to = queue.clone();
        budgets.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        let (to, all) = (queue.clone(), budgets.clone());
        pods.on_change(move |change| {
            let pod = change.object();
            for budget in all.by_index("namespace", pod.metadata.namespace.as_deref().unwrap_or_default()) {
                if covers(&budget, pod) {
                    to.add(Key::of(&budget.metadata));
                }
            }
        });
        // A new size is a new expectation, also where no pod changes by it.
        let wake = |namespace: Option<&str>, queue: &Queue, budgets: &Informer<PodDisruptionBudget>| {
            for budget in budgets.by_index("namespace", namespace.unwrap_or_default()) {
                queue.add(Key::of(&budget.metadata));
            }
        };
        let (to, all) = (queue.clone(), budgets.clone());
        scales.deployments.on_change(move |change| {
            if let dhow_client::Change::Updated { old, new } = change
                && old.metadata.generation != new.metadata.generation
            {
                wake(new.metadata.namespace.as_deref(), &to, &all);
            }
        });
        let (to, all) = (queue.clone(), budgets.clone());
        scales.stateful_sets.on_change(move |change| {
            if let dhow_client::Change::Updated { old, new } = change
                && old.metadata.generation != new.metadata.generation
            {
                wake(new.metadata.namespace.as_deref(), &to, &all);
            }
        });
        let kinds = Kinds::new(client.clone());
        Arc::new(Self { client, recorder, budgets, pods, scales, kinds })
    }

    /// The sizes of what manages pods and is of another kind, by uid: asked of the server.
    async fn others(&self, pods: &[Arc<Pod>]) -> Result<BTreeMap<String, Result<i32, String>>, Error> {
        let mut sizes = BTreeMap::new();
        for pod in pods {
            let Some(owner) = controller_of(&pod.metadata).filter(|owner| !is_known(owner)) else { continue };
            if sizes.contains_key(&owner.uid) {
                continue;
            }
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let found = async {
                let kind = self.kinds.find(&owner.api_version, &owner.kind).await?;
                Scaled::get(&self.client, &kind, namespace, &owner.name).await
            };
            let size = match found.await {
                Ok(scaled) => Ok(scaled.replicas()),
                Err(error) if error.is_not_found() => Err(not_scalable(&owner.kind, &owner.api_version)),
                Err(Error::Reconcile(text)) => Err(text),
                Err(error) => return Err(error),
            };
            sizes.insert(owner.uid.clone(), size);
        }
        Ok(sizes)
    }
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selects(selector, pod.metadata.labels.as_ref()))
}

#[async_trait::async_trait]
impl Reconcile for Disruption {
    fn name(&self) -> &'static str {
        "disruption"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(budget) = self.budgets.get(key) else { return Ok(Outcome::Done) };
        let all = self.pods.by_index("namespace", key.namespace().unwrap_or_default());
        let pods: Vec<_> = all.into_iter().filter(|pod| covers(&budget, pod)).collect();
        // A plain number of healthy pods needs nobody's size.
        let spec = budget.spec.as_ref();
        let by_size = spec.is_some_and(|spec| {
            spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
        });
        let others = if by_size { self.others(&pods).await? } else { BTreeMap::new() };
        let expected = expected(&budget, &pods, |pod| {
            let owner = controller_of(&pod.metadata);
            match owner.and_then(|owner| Some((owner.uid.clone(), others.get(&owner.uid)?.clone()))) {
                Some((uid, size)) => size.map(|size| (uid, size)),
                None => self.scales.of(pod),
            }
        });
        let about = || reference(&*budget);
        if pods.is_empty() {
            self.recorder.event(about(), EventType::Normal, "NoPods", "No matching pods found");
        }
        if let Err(error) = &expected {
            let text = format!("Failed to calculate the number of expected pods: {error}");
            self.recorder.event(about(), EventType::Warning, "CalculateExpectedPodCountFailed", &text);
        }
        let (status, overdue, wait) = status(&budget, &pods, expected, Timestamp::now());
        for pod in overdue {
            let text = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
            self.recorder.event(reference(&*pod), EventType::Warning, "NotDeleted", &text);
        }
        if budget.status.as_ref() != Some(&status) {
            let changed = PodDisruptionBudget { status: Some(status), ..PodDisruptionBudget::clone(&budget) };
            match self.client.update_status(&changed).await {
                Err(error) if error.is_not_found() => {}
                other => drop(other?),
            }
        }
        Ok(wait.map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({"metadata": {"name": "b", "generation": 2}, "spec": spec, "status": status}))
            .unwrap()
    }

    fn pod(name: &str, ready: bool) -> Arc<Pod> {
        let state = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name},
                "status": {"conditions": [{"type": "Ready", "status": state}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn numbers_and_percentages_of_what_should_be_there() {
        let pods = [pod("a", true), pod("b", true), pod("c", false)];
        let ask = |spec: Value| expected(&budget(spec, json!({})), &pods, |_| Ok(("d".into(), 5)));
        assert_eq!(ask(json!({"minAvailable": 2})), Ok((3, 2)));
        assert_eq!(ask(json!({"minAvailable": "50%"})), Ok((5, 3)));
        assert_eq!(ask(json!({"maxUnavailable": 1})), Ok((5, 4)));
        assert_eq!(ask(json!({"maxUnavailable": "30%"})), Ok((5, 3)));
        assert_eq!(ask(json!({"maxUnavailable": 9})), Ok((5, 0)));
        let lost = expected(&budget(json!({"maxUnavailable": 1}), json!({})), &pods, |_| Err("no scale".into()));
        assert!(lost.is_err());
    }

    #[test]
    fn granted_evictions_count_until_they_happen_or_time_out() {
        let now: Timestamp = "2026-01-01T00:02:30Z".parse().unwrap();
        let pods = [pod("a", true), pod("b", true), pod("c", true)];
        let known = budget(
            json!({"minAvailable": 1}),
            json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0,
                "disruptedPods": {"a": "2026-01-01T00:01:00Z", "b": "2026-01-01T00:00:00Z", "gone": "2026-01-01T00:02:00Z"}}),
        );
        let (status, overdue, wait) = status(&known, &pods, Ok((3, 1)), now);
        assert_eq!((status.current_healthy, status.disruptions_allowed), (2, 1));
        assert_eq!(status.disrupted_pods.unwrap().into_keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(overdue[0].metadata.name.as_deref(), Some("b"));
        assert_eq!(wait, Some(Duration::from_secs(30)));
        assert_eq!(status.conditions.unwrap()[0].reason, "SufficientPods");
        assert_eq!(status.observed_generation, Some(2));
    }

    #[test]
    fn nothing_is_allowed_when_the_sum_is_unknown() {
        let now = Timestamp::UNIX_EPOCH;
        let (status, _, _) =
            status(&budget(json!({"maxUnavailable": 1}), Value::Null), &[pod("a", true)], Err("why".into()), now);
        let condition = &status.conditions.unwrap()[0];
        assert_eq!((status.disruptions_allowed, condition.reason.as_str()), (0, "SyncFailed"));
        assert_eq!((condition.status.as_str(), condition.message.as_str()), ("False", "why"));
    }
}
