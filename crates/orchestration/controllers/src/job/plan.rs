//! What a Job does next: a function of a snapshot.
//!
//! Pods are counted exactly once: an ended pod is held by a finalizer until its uid is in the status
//! (`uncountedTerminatedPods`), and the uid moves into the counters once the finalizer is gone.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::EventType;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::count::{self, Counts};
use super::manage;
use super::policy::{self, Verdict};
use super::template::{New, tracked};
use crate::common::{is_active, is_finished, is_ready, phase};

/// All that a decision is made from.
pub struct Snapshot<'a> {
    pub job: &'a Job,
    pub pods: &'a [Arc<Pod>],
    /// The copy of the pods shows all that was asked for.
    pub settled: bool,
    pub now: Timestamp,
}

#[derive(Debug, Default)]
pub struct Plan {
    pub status: JobStatus,
    pub create: Vec<New>,
    /// Too many, or the job is suspended: deleted without counting.
    pub withdraw: Vec<Arc<Pod>>,
    /// The job has its result: deleted, and counted as failed.
    pub kill: Vec<Arc<Pod>>,
    /// Let go of once the status is written.
    pub release: Vec<Arc<Pod>>,
    pub events: Vec<(EventType, String, String)>,
    pub wait: Option<Duration>,
}

pub fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind && condition.status == "True")
}

/// The condition that ended the job.
pub fn finished(job: &Job) -> Option<&JobCondition> {
    let status = job.status.as_ref()?;
    condition(status, "Complete").or_else(|| condition(status, "Failed"))
}

/// The result that the job is heading for.
#[derive(Debug, Clone, PartialEq)]
struct Verdicted {
    success: bool,
    reason: String,
    message: String,
}

impl Verdicted {
    fn new(success: bool, reason: &str, message: impl Into<String>) -> Self {
        Self { success, reason: reason.into(), message: message.into() }
    }
}

pub fn plan(snapshot: &Snapshot<'_>) -> Plan {
    let job = snapshot.job;
    let mut plan = Plan { status: job.status.clone().unwrap_or_default(), ..Plan::default() };
    let Some(spec) = &job.spec else { return plan };
    if finished(job).is_some() {
        plan.release = snapshot.pods.iter().filter(|pod| tracked(pod)).cloned().collect();
        return plan;
    }
    let suspended = spec.suspend == Some(true);
    let deleting = job.metadata.deletion_timestamp.is_some();
    if plan.status.start_time.is_none() && !suspended {
        plan.status.start_time = Some(Time(snapshot.now));
    }
    let counts = count::count(snapshot, &mut plan.release);
    let active: Vec<_> = snapshot.pods.iter().filter(|pod| is_active(pod)).cloned().collect();
    let ready = active.iter().filter(|pod| is_ready(pod)).count();
    let terminating =
        snapshot.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some() && !is_finished(pod)).count();
    let mut result = verdict(snapshot, spec, &counts, &active, suspended, &mut plan.wait);
    let mut alive = active.len();
    if result.is_some() {
        plan.kill = active.clone();
        alive = 0;
    } else if snapshot.settled && !deleting {
        manage::manage(snapshot, spec, &counts, &active, terminating, &mut plan);
        alive = (alive + plan.create.len()).saturating_sub(plan.withdraw.len());
        result = complete(spec, &counts, alive);
        suspend(snapshot, suspended, &mut plan);
    }
    let status = &mut plan.status;
    status.active = nonzero(alive);
    status.ready = Some(int(if alive == 0 { 0 } else { ready.min(alive) }));
    let now_terminating = terminating + plan.kill.len() + plan.withdraw.len();
    status.terminating = Some(int(now_terminating));
    let open =
        !counts.uncounted_succeeded.is_empty() || !counts.uncounted_failed.is_empty() || !counts.last_failed.is_empty();
    counts.write(status);
    if let Some(result) = result {
        conclude(snapshot.now, &result, open || now_terminating > 0, &mut plan);
    }
    plan
}

/// Whether the job has its result already, before it makes or deletes anything.
fn verdict(
    snapshot: &Snapshot<'_>,
    spec: &JobSpec,
    counts: &Counts,
    active: &[Arc<Pod>],
    suspended: bool,
    wait: &mut Option<Duration>,
) -> Option<Verdicted> {
    let status = snapshot.job.status.clone().unwrap_or_default();
    for (kind, success) in [("FailureTarget", false), ("SuccessCriteriaMet", true)] {
        if let Some(known) = condition(&status, kind) {
            let (reason, message) = (known.reason.clone(), known.message.clone());
            return Some(Verdicted::new(success, &reason.unwrap_or_default(), message.unwrap_or_default()));
        }
    }
    for pod in snapshot.pods.iter().filter(|pod| phase(pod) == "Failed") {
        if let Verdict::FailJob(message) = policy::verdict(snapshot.job, pod) {
            return Some(Verdicted::new(false, "PodFailurePolicy", message));
        }
    }
    let limit = spec.backoff_limit.unwrap_or(6);
    if counts.failed > limit || restarts_exceed(spec, active, limit) {
        let text = "Job has reached the specified backoff limit";
        return Some(Verdicted::new(false, "BackoffLimitExceeded", text));
    }
    if let Some(deadline) = spec.active_deadline_seconds.filter(|_| !suspended) {
        // One that is resumed right now begins right now.
        let begun = status.start_time.as_ref().filter(|_| condition(&status, "Suspended").is_none());
        let begin = begun.map_or(snapshot.now, |time| time.0);
        let left = deadline * 1000 - (snapshot.now.as_millisecond() - begin.as_millisecond());
        if left <= 0 {
            let text = "Job was active longer than specified deadline";
            return Some(Verdicted::new(false, "DeadlineExceeded", text));
        }
        sooner(wait, Duration::from_millis(u64::try_from(left).unwrap_or(0)));
    }
    if spec.max_failed_indexes.is_some_and(|most| int(counts.failed_indexes.len()) > most) {
        let text = "Job has exceeded the specified maximal number of failed indexes";
        return Some(Verdicted::new(false, "MaxFailedIndexesExceeded", text));
    }
    let rule = policy::success(snapshot.job, spec.completions.unwrap_or(0), &counts.completed)?;
    Some(Verdicted::new(true, "SuccessPolicy", format!("Matched rules at index {rule}")))
}

/// Containers that restart in their pod count as failures of it.
fn restarts_exceed(spec: &JobSpec, active: &[Arc<Pod>], limit: i32) -> bool {
    if spec.template.spec.as_ref().and_then(|pod| pod.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let restarts: i32 = active
        .iter()
        .filter_map(|pod| pod.status.as_ref())
        .flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses).flatten())
        .map(|container| container.restart_count)
        .sum();
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

fn complete(spec: &JobSpec, counts: &Counts, alive: usize) -> Option<Verdicted> {
    let reached = match spec.completions {
        None => counts.succeeded > 0,
        Some(wanted) => counts.succeeded + int(counts.failed_indexes.len()) >= wanted,
    };
    if !reached || alive > 0 {
        return None;
    }
    if !counts.failed_indexes.is_empty() {
        return Some(Verdicted::new(false, "FailedIndexes", "Job has failed indexes"));
    }
    Some(Verdicted::new(true, "CompletionsReached", "Reached expected number of succeeded pods"))
}

/// Says in the status whether the job is suspended; a job that goes on begins anew.
fn suspend(snapshot: &Snapshot<'_>, suspended: bool, plan: &mut Plan) {
    let was = condition(&plan.status, "Suspended").is_some();
    if suspended == was {
        return;
    }
    let (state, reason, message) =
        if suspended { ("True", "JobSuspended", "Job suspended") } else { ("False", "JobResumed", "Job resumed") };
    if !suspended {
        plan.status.start_time = Some(Time(snapshot.now));
    }
    let conditions = plan.status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != "Suspended");
    conditions.push(made(snapshot.now, "Suspended", state, reason, message));
    let event = if suspended { "Suspended" } else { "Resumed" };
    plan.events.push((EventType::Normal, event.into(), message.into()));
}

/// Writes the result down: first as the aim, and as reached once every pod has ended and is counted.
fn conclude(now: Timestamp, result: &Verdicted, open: bool, plan: &mut Plan) {
    let (aim, end) = if result.success { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") };
    let mut add = |kind: &str| {
        if condition(&plan.status, kind).is_none() {
            let made = made(now, kind, "True", &result.reason, &result.message);
            plan.status.conditions.get_or_insert_default().push(made);
        }
    };
    add(aim);
    if open {
        return;
    }
    add(end);
    // Nothing is left to count.
    plan.status.uncounted_terminated_pods = Some(UncountedTerminatedPods::default());
    if result.success {
        plan.status.completion_time = Some(Time(now));
        plan.events.push((EventType::Normal, "Completed".into(), "Job completed".into()));
    } else {
        plan.events.push((EventType::Warning, result.reason.clone(), result.message.clone()));
    }
}

fn made(now: Timestamp, kind: &str, state: &str, reason: &str, message: &str) -> JobCondition {
    JobCondition {
        type_: kind.into(),
        status: state.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

pub fn sooner(wait: &mut Option<Duration>, other: Duration) {
    *wait = Some(wait.map_or(other, |known| known.min(other)));
}

pub fn int(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

pub fn nonzero(number: usize) -> Option<i32> {
    (number > 0).then(|| int(number))
}

/// Uids listed in the status.
pub fn uids(list: Option<&Vec<String>>) -> HashSet<String> {
    list.into_iter().flatten().cloned().collect()
}
