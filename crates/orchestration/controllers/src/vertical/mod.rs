//! Sizes pods by what they use (`VerticalPodAutoscaler`): recommends requests, and resizes pods where they are.
//!
//! Works while the kind's definition is there, and looks once a minute while there is an autoscaler.

mod histogram;
mod kind;
mod recommend;
mod update;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use dhow_api::selectors::LabelSelector;
use dhow_client::{
    Change, Client, Error, EventRecorder, EventType, Informer, Key, ListParams, Outcome, Patch, Queue, Reconcile,
    reference, run_controller, while_served,
};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::autoscale::read;
use crate::common::{is_active, phase};
use crate::resources::call;
use crate::scale::{Kinds, Scaled};
use kind::{ConditionOf, ContainerRecommendation, Mode, Recommendation, Status, VerticalPodAutoscaler};
use recommend::{Model, Sample};

const PERIOD: Duration = Duration::from_secs(60);
const PROVIDED: &str = "RecommendationProvided";
/// Bounds that moved by less are not written anew.
const NEWS: f64 = 0.1;

/// Runs while the definition of the kind is there, until `shutdown`.
pub async fn run(client: Client, pods: Informer<Pod>, shutdown: CancellationToken) {
    let start = |stop| drop(tokio::spawn(run_kind(client.clone(), pods.clone(), stop)));
    while_served(&client, &[kind::DEFINITION], "v1", &shutdown, start).await;
}

async fn run_kind(client: Client, pods: Informer<Pod>, stop: CancellationToken) {
    let autoscalers =
        Informer::<VerticalPodAutoscaler>::start(client.clone(), ListParams::default(), None, stop.clone());
    autoscalers.add_index("namespace", |one| one.metadata.namespace.clone().into_iter().collect());
    let queue = Queue::new("vertical-pod-autoscaler");
    let reconciler = Verticals::new(client, autoscalers, pods, &queue);
    run_controller(reconciler, queue, 2, stop).await;
}

/// What is remembered of an autoscaler.
#[derive(Default)]
struct Known {
    model: Model,
    selector: Option<LabelSelector>,
    /// Pods, by uid, that were looked at when they were new.
    met: HashSet<String>,
}

struct Verticals {
    client: Client,
    recorder: EventRecorder,
    autoscalers: Informer<VerticalPodAutoscaler>,
    pods: Informer<Pod>,
    kinds: Kinds,
    known: Arc<Mutex<HashMap<Key, Known>>>,
}

fn labels(pod: &Pod) -> &BTreeMap<String, String> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    pod.metadata.labels.as_ref().unwrap_or(&NONE)
}

impl Verticals {
    fn new(
        client: Client,
        autoscalers: Informer<VerticalPodAutoscaler>,
        pods: Informer<Pod>,
        queue: &Queue,
    ) -> Arc<Self> {
        let to = queue.clone();
        autoscalers.on_change(move |change| {
            // Its own status wakes nobody.
            let is_told = matches!(change, Change::Updated { old, new } if old.spec == new.spec);
            if !is_told {
                to.add(Key::of(&change.object().metadata));
            }
        });
        let known = Arc::<Mutex<HashMap<Key, Known>>>::default();
        let (to, selecting) = (queue.clone(), known.clone());
        // A new pod is sized before it has begun, where that can be.
        pods.on_change(move |change| {
            let Change::Added(pod) = change else { return };
            for (key, known) in selecting.lock().iter() {
                let same = key.namespace() == pod.metadata.namespace.as_deref();
                if same && known.selector.as_ref().is_some_and(|selector| selector.matches(labels(pod))) {
                    to.add(key.clone());
                }
            }
        });
        let recorder = EventRecorder::new(client.clone(), "vpa-updater");
        Arc::new(Self { kinds: Kinds::new(client.clone()), client, recorder, autoscalers, pods, known })
    }

    /// Which pods the target has: by its scale, or by the selector that it carries itself.
    async fn selector(&self, namespace: &str, autoscaler: &VerticalPodAutoscaler) -> Result<String, Error> {
        let target = &autoscaler.spec.target_ref;
        let version = if target.api_version.is_empty() { "v1" } else { target.api_version.as_str() };
        let kind = self.kinds.find(version, &target.kind).await?;
        match Scaled::get(&self.client, &kind, namespace, &target.name).await {
            Err(error) if error.is_not_found() => {
                let path = kind.path(Some(namespace), Some(target.name.as_str()));
                let mut object = call(&self.client, Method::GET, &path, "", Vec::new()).await?;
                let selector = serde_json::from_value(object["spec"]["selector"].take())
                    .map_err(|source| Error::Decode { context: format!("read the selector of {path}"), source })?;
                Ok(dhow_client::selector_text(&selector))
            }
            other => Ok(other?.selector().to_owned()),
        }
    }

    /// Counts what was measured since the last look.
    async fn measure(&self, key: &Key, selector: &str, pods: &[Arc<Pod>]) {
        let usage = match read::usage(&self.client, key.namespace().unwrap_or_default(), selector).await {
            Ok(usage) => usage,
            Err(error) => {
                tracing::debug!(%key, error, "no numbers of pods");
                Vec::new()
            }
        };
        let mut all = self.known.lock();
        let Some(known) = all.get_mut(key) else { return };
        for one in usage {
            let pod = pods.iter().find(|pod| pod.metadata.name.as_deref() == Some(one.pod.as_str()));
            let request =
                pod.and_then(|pod| read::request(pod, "cpu", Some(one.container.as_str())).ok()).unwrap_or(0.0);
            let sample = Sample { at: one.at, cpu: one.cpu, request, memory: one.memory };
            known.model.add(&one.pod, &one.container, sample);
        }
        for pod in pods {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            for status in pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten()) {
                let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
                let Some(last) = last.filter(|last| last.reason.as_deref() == Some("OOMKilled")) else { continue };
                let Some(at) = last.finished_at.as_ref() else { continue };
                let request = read::request(pod, "memory", Some(status.name.as_str())).unwrap_or(0.0);
                known.model.out_of_memory(name, &status.name, request, at.0);
            }
        }
        known.model.keep(|name| pods.iter().any(|pod| pod.metadata.name.as_deref() == Some(name)));
    }

    async fn apply(
        &self,
        key: &Key,
        autoscaler: &VerticalPodAutoscaler,
        pods: &[Arc<Pod>],
        recommended: &[ContainerRecommendation],
    ) -> Result<(), Error> {
        let (mode, now) = (autoscaler.spec.mode(), Timestamp::now());
        if mode == Mode::Off || recommended.is_empty() {
            return Ok(());
        }
        let policy = autoscaler.spec.update_policy.as_ref();
        let least = policy.and_then(|policy| policy.min_replicas).unwrap_or(2);
        let alive = i32::try_from(pods.iter().filter(|pod| phase(pod) == "Running").count()).unwrap_or(i32::MAX);
        let mut evicted = false;
        for pod in pods {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let is_new = phase(pod) == "Pending" && {
                let mut all = self.known.lock();
                all.get_mut(key).is_some_and(|known| known.met.insert(uid))
            };
            if !is_new && mode == Mode::Initial {
                continue;
            }
            let Some(change) = update::patch(&autoscaler.spec, pod, recommended, is_new, now) else { continue };
            if is_new || mode == Mode::InPlaceOrRecreate && !update::is_infeasible(pod) {
                self.resize(pod, change).await?;
            } else if !evicted && alive >= least {
                evicted = self.evict(autoscaler, pod).await?;
            }
        }
        Ok(())
    }

    async fn resize(&self, pod: &Pod, change: Value) -> Result<(), Error> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let done =
            self.client.patch::<Pod>(pod.metadata.namespace.as_deref(), name, Patch::Strategic(change), Some("resize"));
        match done.await {
            Ok(_) => {
                let text = "Pod was resized in place by VPA Updater.";
                self.recorder.event(reference(pod), EventType::Normal, "InPlaceResizedByVPA", text);
                Ok(())
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) if error.is_invalid() || error.is_forbidden() => {
                let text = format!("Pod cannot be resized in place: {error}");
                self.recorder.event(reference(pod), EventType::Warning, "FailedInPlaceResize", &text);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// One at a time, as far as budgets let it; tells whether it was.
    async fn evict(&self, autoscaler: &VerticalPodAutoscaler, pod: &Pod) -> Result<bool, Error> {
        let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.clone().unwrap_or_default());
        let metadata =
            ObjectMeta { name: Some(name.clone()), namespace: pod.metadata.namespace.clone(), ..ObjectMeta::default() };
        let eviction = Eviction { metadata, ..Eviction::default() };
        let done = self.client.create_subresource::<Pod, _, Value>(namespace, &name, "eviction", &eviction).await;
        match done {
            Ok(_) => {
                let text = "Pod was evicted by VPA Updater to apply resource recommendation.";
                self.recorder.event(reference(pod), EventType::Normal, "EvictedByVPA", text);
                let text = format!("VPA Updater evicted Pod {name} to apply resource recommendation.");
                self.recorder.event(reference(autoscaler), EventType::Normal, "EvictedPod", &text);
                Ok(true)
            }
            // A budget is in the way: the next look may find room.
            Err(Error::Api { code: 429, .. }) => Ok(false),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn tell(&self, key: &Key, before: &VerticalPodAutoscaler, status: Status) -> Result<(), Error> {
        if before.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"metadata": {"uid": before.metadata.uid}, "status": status}));
        match self.client.patch::<VerticalPodAutoscaler>(key.namespace(), &key.name, patch, Some("status")).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }
}

/// Whether anybody needs to be told of other numbers.
fn is_news(before: &[ContainerRecommendation], now: &[ContainerRecommendation]) -> bool {
    let close = |a: &kind::Amounts, b: &kind::Amounts| {
        let value = |text: &String| {
            text.parse::<dhow_api::quantity::Quantity>().map(|quantity| quantity.approximate()).unwrap_or(0.0)
        };
        a.len() == b.len()
            && a.iter().all(|(resource, one)| {
                let (one, other) = (value(one), b.get(resource).map_or(f64::INFINITY, value));
                (one - other).abs() <= NEWS * one
            })
    };
    before.len() != now.len()
        || before.iter().zip(now).any(|(before, now)| {
            before.container_name != now.container_name
                || before.target != now.target
                || !close(&before.lower_bound, &now.lower_bound)
                || !close(&before.upper_bound, &now.upper_bound)
        })
}

/// The status with what is recommended now, or why nothing is.
fn status(before: Option<&Status>, recommended: &[ContainerRecommendation], has_pods: bool, now: Timestamp) -> Status {
    let mut status = before.cloned().unwrap_or_default();
    let known = status.recommendation.as_ref().map(|known| known.container_recommendations.as_slice());
    if !recommended.is_empty() && is_news(known.unwrap_or_default(), recommended) {
        status.recommendation = Some(Recommendation { container_recommendations: recommended.to_vec() });
    }
    let provided = status.recommendation.is_some();
    let mut set = |kind: &str, holds: bool, reason: &str, message: &str| {
        let state = if holds { "True" } else { "False" };
        let known = status.conditions.iter().find(|one| one.kind == kind && one.status == state);
        let since = known.and_then(|one| one.last_transition_time.clone()).unwrap_or_else(|| format!("{now:.0}"));
        status.conditions.retain(|one| one.kind != kind);
        status.conditions.push(ConditionOf {
            kind: kind.into(),
            status: state.into(),
            last_transition_time: Some(since),
            reason: reason.into(),
            message: message.into(),
        });
    };
    set(PROVIDED, provided, "", "");
    if has_pods {
        status.conditions.retain(|one| one.kind != "NoPodsMatched");
    } else {
        set("NoPodsMatched", true, "NoPodsMatched", "No pods match this VPA object");
    }
    status
}

#[async_trait::async_trait]
impl Reconcile for Verticals {
    fn name(&self) -> &'static str {
        "vertical-pod-autoscaler"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(autoscaler) = self.autoscalers.get(key) else {
            self.known.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let text = match self.selector(key.namespace().unwrap_or_default(), &autoscaler).await {
            Ok(text) => text,
            Err(error) => {
                tracing::debug!(%key, %error, "no pods of a target");
                String::new()
            }
        };
        let selector = LabelSelector::parse(&text).ok().filter(|selector| !selector.is_everything());
        let mut pods = self.pods.by_index("namespace", key.namespace().unwrap_or_default());
        pods.retain(|pod| is_active(pod) && selector.as_ref().is_some_and(|one| one.matches(labels(pod))));
        {
            let mut all = self.known.lock();
            let known = all.entry(key.clone()).or_default();
            known.selector = selector;
            known.met.retain(|uid| pods.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid)));
        }
        if !pods.is_empty() {
            self.measure(key, &text, &pods).await;
        }
        let now = Timestamp::now();
        let mut recommended = {
            let all = self.known.lock();
            all.get(key).map(|known| known.model.recommend(&autoscaler.spec)).unwrap_or_default()
        };
        let status = status(autoscaler.status.as_ref(), &recommended, !pods.is_empty(), now);
        if recommended.is_empty() {
            // What an earlier leader found holds until there is something newer.
            let earlier = status.recommendation.as_ref().map(|known| known.container_recommendations.clone());
            recommended = earlier.unwrap_or_default();
        }
        self.tell(key, &autoscaler, status).await?;
        self.apply(key, &autoscaler, &pods, &recommended).await?;
        Ok(Outcome::RequeueAfter(PERIOD))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn small_moves_of_bounds_are_not_told() {
        let one = |target: &str, upper: &str| {
            let all = json!([{"containerName": "c", "target": {"cpu": target}, "upperBound": {"cpu": upper}}]);
            serde_json::from_value::<Vec<ContainerRecommendation>>(all).unwrap()
        };
        assert!(!is_news(&one("1", "2"), &one("1", "2100m")));
        assert!(is_news(&one("1", "2"), &one("1", "3")));
        assert!(is_news(&one("1", "2"), &one("1050m", "2")));
        let now = Timestamp::from_second(1).unwrap();
        let first = status(None, &one("1", "2"), true, now);
        let again = status(Some(&first), &one("1", "2100m"), true, Timestamp::from_second(99).unwrap());
        assert_eq!(again, first);
        let none = status(None, &[], false, now);
        let said: Vec<_> = none.conditions.iter().map(|one| (one.kind.as_str(), one.status.as_str())).collect();
        assert_eq!(said, [(PROVIDED, "False"), ("NoPodsMatched", "True")]);
    }
}
