//! `dhow.io/auto-rollback`: a rollout that fails goes back by itself to the last revision that was up, once, and says
//! why.
//!
//! A revision whose rollout was completed is marked, and on trial for as long as a rollout may take: what looked ready
//! for a moment may still keep ending. The template of the last good one is put back, and what was done is recorded on
//! the object: the condition and the event tell it, and a template that was put back is never taken away again, so that
//! one failure cannot lead to a round of rollbacks.

use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, Error, EventRecorder, EventType, Object, Patch, reference};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::common::{is_finished, ready_since};

/// On a Deployment, StatefulSet or DaemonSet: `true` asks for it.
const ENABLED: &str = "dhow.io/auto-rollback";
/// How long a pod of a new revision may take to become ready, in seconds. A Deployment has a field for that.
const DEADLINE: &str = "dhow.io/progress-deadline-seconds";
const STANDARD_DEADLINE: i64 = 600;
/// What was done; written with the template that was put back.
const RECORD: &str = "dhow.io/rolled-back";
/// On a ReplicaSet or ControllerRevision: the number under which its rollout was completed last.
const COMPLETED: &str = "dhow.io/completed";
/// And when that was.
const COMPLETED_AT: &str = "dhow.io/completed-at";
pub const CONDITION: &str = "RolledBack";
pub const DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
/// A container that keeps ending is given up after so many restarts.
const RESTARTS: i32 = 3;

/// What was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The revision that failed, and the one put back, by name.
    pub from: String,
    pub to: String,
    pub reason: String,
    pub message: String,
    pub time: Time,
}

fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

pub fn is_wanted(metadata: &ObjectMeta) -> bool {
    annotation(metadata, ENABLED) == Some("true")
}

/// The record, as long as the template that was put back is the present one.
pub fn record(metadata: &ObjectMeta, current: &str) -> Option<Record> {
    let record: Record = serde_json::from_str(annotation(metadata, RECORD)?).ok()?;
    (record.to == current).then_some(record)
}

/// Whether a revision was ever up.
pub fn was_completed(metadata: &ObjectMeta) -> bool {
    annotation(metadata, COMPLETED).is_some()
}

/// Whether the rollout of a revision under this number is over.
pub fn is_completed(metadata: &ObjectMeta, number: i64) -> bool {
    annotation(metadata, COMPLETED).is_some_and(|known| known == number.to_string())
}

/// Whether the rollout of a revision under this number is over, but so recently that it may still turn out bad.
pub fn is_on_trial(metadata: &ObjectMeta, number: i64, seconds: i64, now: Timestamp) -> bool {
    let since = annotation(metadata, COMPLETED_AT).and_then(|text| text.parse::<Timestamp>().ok());
    is_completed(metadata, number) && since.is_some_and(|since| now.as_second() - since.as_second() < seconds)
}

/// Remembers that the rollout of a revision was completed.
pub async fn mark<K: Object>(client: &Client, revision: &K, number: i64) -> Result<(), Error> {
    if is_completed(revision.metadata(), number) {
        return Ok(());
    }
    let annotations = json!({COMPLETED: number.to_string(), COMPLETED_AT: Timestamp::now().to_string()});
    annotate(client, revision, annotations).await
}

/// Takes back that a revision was up: it was so for a moment only.
pub async fn unmark<K: Object>(client: &Client, revision: &K) -> Result<(), Error> {
    if !was_completed(revision.metadata()) {
        return Ok(());
    }
    annotate(client, revision, json!({COMPLETED: null, COMPLETED_AT: null})).await
}

async fn annotate<K: Object>(client: &Client, revision: &K, annotations: Value) -> Result<(), Error> {
    let metadata = revision.metadata();
    let patch = Patch::Merge(json!({"metadata": {"uid": metadata.uid, "annotations": annotations}}));
    let name = metadata.name.as_deref().unwrap_or_default();
    match client.patch::<K>(metadata.namespace.as_deref(), name, patch, None).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

/// How a rollout fares.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Nothing to complain of yet; look again after this time.
    Fine(Option<Duration>),
    /// A reason, and what is wrong.
    Failed(&'static str, String),
}

/// Judges by the pods of the new revision. With a deadline each of them has that long to become ready.
pub fn judge(pods: &[Arc<Pod>], deadline: Option<i64>, now: Timestamp) -> Verdict {
    let alive = || pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    if let Some(text) = alive().find_map(|pod| crash_loop(pod)) {
        return Verdict::Failed("CrashLoopBackOff", text);
    }
    let Some(deadline) = deadline else { return Verdict::Fine(None) };
    let mut wait = None::<i64>;
    for pod in alive().filter(|pod| ready_since(pod).is_none() && !is_finished(pod)) {
        let left = deadline - (now.as_second() - waits_since(pod).as_second());
        if left <= 0 {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let text = format!("pod {name} is not ready after {deadline} seconds{}", complaint(pod));
            return Verdict::Failed(DEADLINE_EXCEEDED, text);
        }
        wait = Some(wait.map_or(left, |known| known.min(left)));
    }
    Verdict::Fine(wait.map(|left| Duration::from_secs(u64::try_from(left).unwrap_or(0) + 1)))
}

/// Since when a pod is not ready: it may have been.
fn waits_since(pod: &Pod) -> Timestamp {
    let made = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let lost = conditions.filter(|one| one.type_ == "Ready").filter_map(|one| one.last_transition_time.as_ref());
    lost.map(|time| time.0).max().map_or(made, |lost| lost.max(made))
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    let own = status.and_then(|status| status.container_statuses.as_ref());
    init.into_iter().chain(own).flatten()
}

/// Whether a pod is given up: it keeps ending.
pub fn is_crash_looping(pod: &Pod) -> bool {
    crash_loop(pod).is_some()
}

fn crash_loop(pod: &Pod) -> Option<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let loops = |one: &&ContainerStatus| {
        let waiting = one.state.as_ref().and_then(|state| state.waiting.as_ref());
        one.restart_count >= RESTARTS
            && waiting.and_then(|waiting| waiting.reason.as_deref()) == Some("CrashLoopBackOff")
    };
    let found = statuses(pod).find(loops)?;
    let last = found.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let code = last.map_or(String::new(), |ended| format!(", the last time with exit code {}", ended.exit_code));
    Some(format!("container {} of pod {name} ended {} times{code}", found.name, found.restart_count))
}

/// What a pod that is not ready suffers from, for people.
pub fn complaint(pod: &Pod) -> String {
    let waiting = statuses(pod).find_map(|one| {
        let waiting = one.state.as_ref()?.waiting.as_ref()?;
        let busy = ["ContainerCreating", "PodInitializing"];
        let reason = waiting.reason.as_deref().filter(|reason| !busy.contains(reason))?;
        let text = waiting.message.as_deref().map_or(String::new(), |text| format!(" ({text})"));
        Some(format!(": container {} waits: {reason}{text}", one.name))
    });
    let unready = || {
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        let false_ = conditions.iter().filter(|one| one.status != "True");
        let found = false_.filter(|one| ["PodScheduled", "ContainersReady", "Ready"].contains(&one.type_.as_str()));
        found.filter_map(|one| one.message.as_deref()).next().map(|text| format!(": {text}"))
    };
    waiting.or_else(unready).unwrap_or_default()
}

/// What a pod of a set that makes no progress suffers from.
pub fn complaints(pods: &[Arc<Pod>]) -> String {
    let sick = pods.iter().find(|pod| ready_since(pod).is_none() && pod.metadata.deletion_timestamp.is_none());
    sick.map_or(String::new(), |pod| {
        format!(": pod {} is not ready{}", pod.metadata.name.as_deref().unwrap_or_default(), complaint(pod))
    })
}

/// The deadline of a kind that has no field for it.
pub fn deadline(metadata: &ObjectMeta) -> i64 {
    annotation(metadata, DEADLINE).and_then(|text| text.parse().ok()).unwrap_or(STANDARD_DEADLINE)
}

/// A revision that may be put back.
#[derive(Debug, Clone)]
pub struct Good {
    pub name: String,
    pub number: i64,
    pub template: PodTemplateSpec,
}

/// Puts a template back, with the record of why, unless somebody changed the object meanwhile.
pub async fn put_back<K: Object>(
    client: &Client,
    recorder: &EventRecorder,
    object: &K,
    from: (&str, i64),
    to: Good,
    why: (&str, String),
) -> Result<(), Error> {
    let message =
        format!("Rolled back from revision {} ({}) to revision {} ({}): {}", from.1, from.0, to.number, to.name, why.1);
    let time = Time(Timestamp::now());
    let record = Record { from: from.0.into(), to: to.name, reason: why.0.into(), message: message.clone(), time };
    let text = serde_json::to_string(&record)
        .map_err(|source| Error::Decode { context: "encode the record of a rollback".into(), source })?;
    let metadata = object.metadata();
    // The template as a whole: what the failing one added must go.
    let patch = Patch::Json(json!([
        {"op": "replace", "path": "/metadata/resourceVersion", "value": metadata.resource_version},
        {"op": "add", "path": format!("/metadata/annotations/{}", RECORD.replace('/', "~1")), "value": text},
        {"op": "replace", "path": "/spec/template", "value": to.template},
    ]));
    let name = metadata.name.as_deref().unwrap_or_default();
    client.patch::<K>(metadata.namespace.as_deref(), name, patch, None).await?;
    recorder.event(reference(object), EventType::Warning, "AutoRollback", &message);
    Ok(())
}

/// Tells that there is nothing to go back to. The same words again only count.
pub fn tell_stuck<K: Object>(recorder: &EventRecorder, object: &K, from: &str, why: &str) {
    let text = format!("Not rolled back from {from}, no earlier revision was ever up: {why}");
    recorder.event(reference(object), EventType::Warning, "AutoRollbackFailed", &text);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: &str = "2026-01-01T01:00:00Z";

    fn pod(status: Value) -> Arc<Pod> {
        let metadata = json!({"name": "p", "creationTimestamp": "2026-01-01T00:58:20Z"});
        Arc::new(serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap())
    }

    fn judged(status: Value, deadline: i64) -> Verdict {
        judge(&[pod(status)], Some(deadline), NOW.parse().unwrap())
    }

    #[test]
    fn a_pod_has_until_the_deadline_to_become_ready() {
        let waiting = json!({"phase": "Pending", "containerStatuses": [{"name": "c", "image": "", "imageID": "",
            "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]});
        assert_eq!(judged(waiting.clone(), 160), Verdict::Fine(Some(Duration::from_secs(61))));
        let text = "pod p is not ready after 60 seconds: container c waits: ImagePullBackOff (no such image)";
        assert_eq!(judged(waiting, 60), Verdict::Failed(DEADLINE_EXCEEDED, text.into()));
        let ready = |state: &str, since: &str| json!({"phase": "Running", "conditions": [{"type": "Ready", "status": state, "lastTransitionTime": since}]});
        assert_eq!(judged(ready("True", NOW), 60), Verdict::Fine(None));
        // It was ready until ten seconds ago.
        let lost = judged(ready("False", "2026-01-01T00:59:50Z"), 60);
        assert_eq!(lost, Verdict::Fine(Some(Duration::from_secs(51))));
    }

    #[test]
    fn a_crash_loop_is_not_waited_for() {
        let status = |restarts: i32| {
            json!({"phase": "Running", "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
                "restartCount": restarts, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 3}}}]})
        };
        assert!(matches!(judged(status(2), 600), Verdict::Fine(Some(_))));
        let text = "container c of pod p ended 3 times, the last time with exit code 3";
        assert_eq!(judged(status(3), 600), Verdict::Failed("CrashLoopBackOff", text.into()));
    }

    #[test]
    fn a_revision_is_on_trial_for_a_while() {
        let trial = |number: i64, seconds: i64| {
            let annotations = json!({COMPLETED: "2", COMPLETED_AT: "2026-01-01T00:58:20Z"});
            let metadata = serde_json::from_value(json!({"annotations": annotations})).unwrap();
            is_on_trial(&metadata, number, seconds, NOW.parse().unwrap())
        };
        assert!(trial(2, 101) && !trial(2, 100), "a hundred seconds have gone");
        assert!(!trial(3, 101), "under another number it is another rollout");
        assert!(!is_on_trial(&ObjectMeta::default(), 0, 600, NOW.parse().unwrap()));
    }

    #[test]
    fn a_record_holds_for_the_template_that_was_put_back() {
        let record = json!({"from": "b", "to": "a", "reason": "r", "message": "m", "time": NOW}).to_string();
        let metadata: ObjectMeta = serde_json::from_value(json!({"annotations": {RECORD: record}})).unwrap();
        assert_eq!(super::record(&metadata, "a").unwrap().from, "b");
        assert_eq!(super::record(&metadata, "c"), None);
    }
}
