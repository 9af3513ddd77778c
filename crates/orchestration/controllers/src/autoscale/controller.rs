//! The loop: every 15 seconds for each autoscaler, and not at all while there is none.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dhow_api::quantity::Quantity;
use dhow_api::selectors::LabelSelector;
use dhow_client::{
    Change, Client, Error, EventRecorder, EventType, Informer, Key, Outcome, Queue, Reconcile, reference,
};
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus,
    MetricTarget,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;

use super::behavior::History;
use super::metric::{Measured, Proposal, Target, Tolerance, proposal};
use super::status::{current, message, name, set_condition};
use super::{Outside, decide, outside, read};
use crate::scale::{Kinds, Scaled};

const PERIOD: Duration = Duration::from_secs(15);
const NO_PODS: &str = "no pods returned by selector while calculating replica count";

pub struct Autoscalers {
    client: Client,
    recorder: EventRecorder,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    kinds: Kinds,
    known: Mutex<HashMap<Key, Known>>,
}

/// What is remembered of an autoscaler.
struct Known {
    uid: Option<String>,
    history: History,
    /// The pods of its target, so that two autoscalers of the same pods are found.
    selector: Option<LabelSelector>,
}

/// Why nothing can be said of a metric: a reason of the condition, and the text.
type Unread = (&'static str, String);

/// What one look at the metrics gave.
struct Look {
    proposals: Vec<Option<i32>>,
    statuses: Vec<MetricStatus>,
    /// The metric that asks for most.
    leading: String,
    first_failure: Option<Unread>,
}

impl Autoscalers {
    pub fn new(
        client: Client,
        autoscalers: Informer<HorizontalPodAutoscaler>,
        pods: Informer<Pod>,
        queue: &Queue,
    ) -> Arc<Self> {
        let recorder = EventRecorder::new(client.clone(), "horizontal-pod-autoscaler");
        let to = queue.clone();
        autoscalers.on_change(move |change| {
            // Its own status wakes nobody: the next look is due in its time.
            if let Change::Updated { old, new } = change
                && old.spec == new.spec
                && old.metadata.uid == new.metadata.uid
            {
                return;
            }
            to.add(Key::of(&change.object().metadata));
        });
        let kinds = Kinds::new(client.clone());
        Arc::new(Self { client, recorder, autoscalers, pods, kinds, known: Mutex::default() })
    }

    fn warn(&self, autoscaler: &HorizontalPodAutoscaler, reason: &str, message: &str) {
        self.recorder.event(reference(autoscaler), EventType::Warning, reason, message);
    }

    async fn scale(&self, namespace: &str, spec: &HorizontalPodAutoscalerSpec) -> Result<Scaled, Error> {
        let target = &spec.scale_target_ref;
        let version = target.api_version.as_deref().filter(|version| !version.is_empty()).unwrap_or("v1");
        let resource = self.kinds.find(version, &target.kind).await?;
        let found = Scaled::get(&self.client, &resource, namespace, &target.name).await;
        if found.as_ref().is_err_and(Error::is_not_found) {
            self.kinds.forget(version, &target.kind);
        }
        found
    }

    /// The other autoscalers whose targets have some of these pods.
    fn rivals(&self, key: &Key, pods: &[Arc<Pod>]) -> Vec<String> {
        let none = std::collections::BTreeMap::new();
        let known = self.known.lock();
        let others = known.iter().filter(|(other, _)| other.namespace == key.namespace && *other != key);
        let mut rivals: Vec<String> = others
            .filter(|(_, known)| {
                let selector = known.selector.as_ref();
                let has = |pod: &Arc<Pod>| {
                    selector.is_some_and(|selector| selector.matches(pod.metadata.labels.as_ref().unwrap_or(&none)))
                };
                pods.iter().any(has)
            })
            .map(|(other, _)| other.to_string())
            .collect();
        rivals.sort();
        rivals
    }

    /// The pods of a target, if they are its own.
    fn pods(&self, key: &Key, scaled: &Scaled) -> Result<Vec<Arc<Pod>>, Unread> {
        if scaled.selector().is_empty() {
            return Err(("InvalidSelector", "the HPA target's scale is missing a selector".into()));
        }
        let selector = LabelSelector::parse(scaled.selector()).map_err(|error| {
            let text = format!("couldn't convert selector into a corresponding internal selector object: {error}");
            ("InvalidSelector", text)
        })?;
        let none = std::collections::BTreeMap::new();
        let mut pods = self.pods.by_index("namespace", key.namespace().unwrap_or_default());
        pods.retain(|pod| selector.matches(pod.metadata.labels.as_ref().unwrap_or(&none)));
        if let Some(known) = self.known.lock().get_mut(key) {
            known.selector = Some(selector);
        }
        let mut rivals = self.rivals(key, &pods);
        if rivals.is_empty() {
            return Ok(pods);
        }
        rivals.push(key.to_string());
        let all = rivals.join(" ");
        Err((
            "AmbiguousSelector",
            format!("pods by selector {} are controlled by multiple HPAs: [{all}]", scaled.selector()),
        ))
    }

    async fn look(
        &self,
        namespace: &str,
        spec: &HorizontalPodAutoscalerSpec,
        scaled: &Scaled,
        pods: &[Arc<Pod>],
        now: Timestamp,
    ) -> Look {
        let mut look =
            Look { proposals: Vec::new(), statuses: Vec::new(), leading: String::new(), first_failure: None };
        let mut most = None;
        let tolerance = tolerance(spec);
        for metric in spec.metrics.iter().flatten() {
            match self.one(namespace, metric, scaled, pods, tolerance, now).await {
                Ok((target, proposal)) => {
                    if most.is_none_or(|most| proposal.replicas > most) {
                        most = Some(proposal.replicas);
                        look.leading = name(metric);
                    }
                    look.proposals.push(Some(proposal.replicas));
                    look.statuses.push(current(metric, target, &proposal));
                }
                Err(failure) => {
                    look.proposals.push(None);
                    look.first_failure.get_or_insert(failure);
                }
            }
        }
        look
    }

    /// What one metric says.
    async fn one(
        &self,
        namespace: &str,
        spec: &MetricSpec,
        scaled: &Scaled,
        pods: &[Arc<Pod>],
        tolerance: Tolerance,
        now: Timestamp,
    ) -> Result<(Target, Proposal), Unread> {
        let (client, selector, replicas) = (&self.client, scaled.selector(), scaled.replicas());
        let whole = |value| Measured::Whole { value, ready: read::ready(pods), pods: scaled.actual() };
        let resource = async |name: &str, container: Option<&str>, wanted: &MetricTarget, reason: &'static str| {
            let failed = |error: String| (reason, format!("failed to get {name} utilization: {error}"));
            let target = target(wanted).ok_or_else(|| failed("no target was set".into()))?;
            let samples = read::resource(client, namespace, selector, name, container).await;
            let samples =
                samples.map_err(|error| failed(format!("unable to get metrics for resource {name}: {error}")))?;
            let request = |pod: &Pod| match target {
                Target::Utilization(_) => read::request(pod, name, container),
                _ => Ok(0.0),
            };
            let states = read::states(pods, &samples, name == "cpu", request, now).map_err(failed)?;
            Ok::<_, Unread>((target, Measured::Pods(states), reason))
        };
        let (target, measured, reason) = if let Some(own) = &spec.resource {
            resource(&own.name, None, &own.target, "FailedGetResourceMetric").await?
        } else if let Some(own) = &spec.container_resource {
            resource(&own.name, Some(&own.container), &own.target, "FailedGetContainerResourceMetric").await?
        } else if let Some(own) = &spec.pods {
            let reason = "FailedGetPodsMetric";
            let failed = |error| (reason, format!("failed to get pods metric value: {error}"));
            let target = target(&own.target).ok_or_else(|| failed("no average value was set".to_owned()))?;
            let (metric, labels) = (&own.metric.name, own.metric.selector.as_ref());
            let samples = read::pods(client, namespace, selector, metric, labels).await;
            let samples = samples.map_err(|error| failed(format!("unable to get metric {metric}: {error}")))?;
            let states = read::states(pods, &samples, false, |_| Ok(0.0), now).map_err(failed)?;
            (target, Measured::Pods(states), reason)
        } else if let Some(own) = &spec.object {
            let reason = "FailedGetObjectMetric";
            let failed = |error| (reason, format!("failed to get object metric value: {error}"));
            let target = target(&own.target).ok_or_else(|| {
                failed(
                    "invalid object metric source: neither a value target nor an average value target was set"
                        .to_owned(),
                )
            })?;
            let of = &own.described_object;
            let version = of.api_version.as_deref().filter(|version| !version.is_empty()).unwrap_or("v1");
            let kind = self.kinds.find(version, &of.kind).await.map_err(|error| failed(error.to_string()))?;
            let (metric, labels) = (&own.metric.name, own.metric.selector.as_ref());
            let value = read::object(client, namespace, &kind, &of.name, metric, labels).await;
            (target, whole(value.map_err(failed)?), reason)
        } else if let Some(own) = &spec.external {
            let reason = "FailedGetExternalMetric";
            let metric = &own.metric.name;
            let failed = |error| (reason, format!("failed to get external metric {metric}: {error}"));
            let target = target(&own.target).ok_or_else(|| {
                failed(
                    "invalid external metric source: neither a value target nor an average value target was set"
                        .to_owned(),
                )
            })?;
            let value = read::external(client, namespace, metric, own.metric.selector.as_ref()).await;
            (target, whole(value.map_err(failed)?), reason)
        } else {
            return Err(("InvalidMetricSourceType", format!("unknown metric source type \"{}\"", spec.type_)));
        };
        if matches!(measured, Measured::Pods(_)) && pods.is_empty() {
            return Err((reason, NO_PODS.into()));
        }
        let found = proposal(target, &measured, replicas, tolerance);
        let found = found
            .ok_or_else(|| (reason, "did not receive metrics for targeted pods (pods might be unready)".into()))?;
        Ok((target, found))
    }

    /// One look at one autoscaler; its status, new or as it was.
    async fn autoscale(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        now: Timestamp,
    ) -> HorizontalPodAutoscalerStatus {
        let mut status = autoscaler.status.clone().unwrap_or_default();
        let Some(spec) = &autoscaler.spec else { return status };
        let namespace = key.namespace().unwrap_or_default();
        let scaled = match self.scale(namespace, spec).await {
            Ok(scaled) => scaled,
            Err(error) => {
                let text = format!("the HPA controller was unable to get the target's current scale: {error}");
                if set_condition(&mut status, now, "AbleToScale", "False", "FailedGetScale", &text) {
                    self.warn(autoscaler, "FailedGetScale", &error.to_string());
                }
                return status;
            }
        };
        let text = "the HPA controller was able to get the target's current scale";
        let able = ("True", "SucceededGetScale", text.to_owned());
        let size = scaled.replicas();
        status.current_replicas = Some(size);
        if let Some(known) = self.known.lock().get_mut(key) {
            known.history.begin(size, now);
        }
        let (wanted, why) = match outside(spec, size) {
            Some(Outside::Disabled) => {
                set_condition(&mut status, now, "AbleToScale", able.0, able.1, &able.2);
                let text = "scaling is disabled since the replica count of the target is zero";
                set_condition(&mut status, now, "ScalingActive", "False", "ScalingDisabled", text);
                (status.desired_replicas, status.current_metrics) = (0, None);
                return status;
            }
            Some(Outside::Above) => (spec.max_replicas, "Current number of replicas above Spec.MaxReplicas".to_owned()),
            Some(Outside::Below) => {
                (spec.min_replicas.unwrap_or(1), "Current number of replicas below Spec.MinReplicas".to_owned())
            }
            None => match self.measured(key, autoscaler, &scaled, &mut status, now).await {
                Some(found) => found,
                None => {
                    set_condition(&mut status, now, "AbleToScale", able.0, able.1, &able.2);
                    return status;
                }
            },
        };
        status.desired_replicas = wanted;
        if wanted == size {
            return status;
        }
        if let Err(error) = scaled.set(&self.client, wanted).await {
            let text = format!("the HPA controller was unable to update the target scale: {error}");
            let news = set_condition(&mut status, now, "AbleToScale", "False", "FailedUpdateScale", &text);
            if news && !error.is_conflict() {
                self.warn(autoscaler, "FailedRescale", &format!("New size: {wanted}; reason: {why}; error: {error}"));
            }
            status.desired_replicas = autoscaler.status.as_ref().map_or(size, |status| status.desired_replicas);
            return status;
        }
        let text = format!("the HPA controller was able to update the target scale to {wanted}");
        set_condition(&mut status, now, "AbleToScale", "True", "SucceededRescale", &text);
        let text = format!("New size: {wanted}; reason: {why}");
        self.recorder.event(reference(autoscaler), EventType::Normal, "SuccessfulRescale", &text);
        status.last_scale_time = Some(Time(now));
        if let Some(known) = self.known.lock().get_mut(key) {
            known.history.scaled(size, wanted, now);
        }
        status
    }

    /// The size that the metrics lead to, and why; `None` where they say nothing. The conditions tell either.
    async fn measured(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        scaled: &Scaled,
        status: &mut HorizontalPodAutoscalerStatus,
        now: Timestamp,
    ) -> Option<(i32, String)> {
        let (spec, size) = (autoscaler.spec.as_ref()?, scaled.replicas());
        let pods = match self.pods(key, scaled) {
            Ok(pods) => pods,
            Err((reason, text)) => {
                if set_condition(status, now, "ScalingActive", "False", reason, &text) {
                    self.warn(autoscaler, reason, &text);
                }
                return None;
            }
        };
        let look = self.look(key.namespace().unwrap_or_default(), spec, scaled, &pods, now).await;
        let decision = {
            let mut known = self.known.lock();
            let history = &mut known.get_mut(key)?.history;
            decide(spec, size, &look.proposals, history, now)
        };
        let Some(decision) = decision else {
            let (reason, error) =
                look.first_failure.unwrap_or(("InvalidMetricSourceType", "no metric is given".into()));
            let text = format!("the HPA was unable to compute the replica count: {error}");
            if set_condition(status, now, "ScalingActive", "False", reason, &text) {
                self.warn(autoscaler, reason, &error);
                let (bad, all) = (look.proposals.iter().filter(|one| one.is_none()).count(), look.proposals.len());
                let text = format!("invalid metrics ({bad} invalid out of {all}), first error is: {error}");
                self.warn(autoscaler, "FailedComputeMetricsReplicas", &text);
            }
            return None;
        };
        let able = message(decision.able);
        set_condition(status, now, "AbleToScale", "True", decision.able, able);
        let text = format!("the HPA was able to successfully calculate a replica count from {}", look.leading);
        set_condition(status, now, "ScalingActive", "True", "ValidMetricFound", &text);
        let (is_limited, reason) = decision.limited;
        let state = if is_limited { "True" } else { "False" };
        set_condition(status, now, "ScalingLimited", state, reason, message(reason));
        status.current_metrics = Some(look.statuses);
        let why = if decision.wanted > size {
            format!("{} above target", look.leading)
        } else {
            "All metrics below target".to_owned()
        };
        Some((decision.replicas, why))
    }
}

fn tolerance(spec: &HorizontalPodAutoscalerSpec) -> Tolerance {
    let standard = Tolerance::default();
    let behavior = spec.behavior.as_ref();
    let of = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
        rules?.tolerance.as_ref()?.0.parse::<Quantity>().ok().map(|quantity| quantity.approximate())
    };
    Tolerance {
        up: of(behavior.and_then(|behavior| behavior.scale_up.as_ref())).unwrap_or(standard.up),
        down: of(behavior.and_then(|behavior| behavior.scale_down.as_ref())).unwrap_or(standard.down),
    }
}

fn target(spec: &MetricTarget) -> Option<Target> {
    let amount = |text: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| {
        text.0.parse::<Quantity>().ok().map(|quantity| quantity.approximate())
    };
    if let Some(value) = &spec.average_value {
        return amount(value).map(Target::AverageValue);
    }
    if let Some(percent) = spec.average_utilization {
        return Some(Target::Utilization(f64::from(percent)));
    }
    spec.value.as_ref().and_then(amount).map(Target::Value)
}

#[async_trait::async_trait]
impl Reconcile for Autoscalers {
    fn name(&self) -> &'static str {
        "horizontal-pod-autoscaler"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(autoscaler) = self.autoscalers.get(key).filter(|one| one.metadata.deletion_timestamp.is_none()) else {
            self.known.lock().remove(key);
            return Ok(Outcome::Done);
        };
        {
            let mut known = self.known.lock();
            if known.get(key).is_none_or(|known| known.uid != autoscaler.metadata.uid) {
                let uid = autoscaler.metadata.uid.clone();
                known.insert(key.clone(), Known { uid, history: History::default(), selector: None });
            }
        }
        let status = self.autoscale(key, &autoscaler, Timestamp::now()).await;
        if autoscaler.status.as_ref() != Some(&status) {
            let mut written = HorizontalPodAutoscaler::clone(&autoscaler);
            written.status = Some(status);
            match self.client.update_status(&written).await {
                // A change of the spec wakes the loop by itself.
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                other => drop(other?),
            }
        }
        Ok(Outcome::RequeueAfter(PERIOD))
    }
}
