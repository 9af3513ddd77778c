//! How many pods a Job runs: which to make, which to withdraw, and how long to wait after failures.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::JobSpec;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::count::{Counts, failed};
use super::indexes;
use super::plan::{Plan, Snapshot, int, sooner};
use super::policy::{self, Verdict};
use super::template::{Failures, New, failures};
use crate::common::{is_finished, is_ready, node_name, phase};

/// Delay after the first failure, doubled by each further one, and its limit.
const FIRST_DELAY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_secs(600);
/// At most this many creations, and withdrawals, per reconciliation.
const BURST: usize = 500;

pub fn manage(
    snapshot: &Snapshot<'_>,
    spec: &JobSpec,
    counts: &Counts,
    active: &[Arc<Pod>],
    terminating: usize,
    plan: &mut Plan,
) {
    if spec.suspend == Some(true) {
        plan.withdraw = active.iter().take(BURST).cloned().collect();
        return;
    }
    let parallelism = spec.parallelism.unwrap_or(1);
    let alive = int(active.len());
    let wanted = match spec.completions {
        // The first success ends a job without a number: nothing is made any more.
        None if counts.succeeded > 0 => alive,
        None => parallelism,
        Some(all) => (all - counts.succeeded - int(counts.failed_indexes.len())).clamp(0, parallelism),
    };
    plan.withdraw = excess(spec, counts, active, usize::try_from(alive - wanted).unwrap_or(0));
    plan.withdraw.truncate(BURST);
    if !plan.withdraw.is_empty() {
        return;
    }
    let waits = spec.pod_replacement_policy.as_deref() == Some("Failed");
    let missing = wanted - alive - if waits { int(terminating) } else { 0 };
    let missing = usize::try_from(missing).unwrap_or(0).min(BURST);
    if missing == 0 {
        return;
    }
    if spec.backoff_limit_per_index.is_none() {
        let left = delay(snapshot);
        if !left.is_zero() {
            sooner(&mut plan.wait, left);
            return;
        }
    }
    if !counts_indexes(spec) {
        plan.create = vec![New::default(); missing];
        return;
    }
    let busy: HashSet<i32> = snapshot
        .pods
        .iter()
        .filter(|pod| !is_finished(pod) && (pod.metadata.deletion_timestamp.is_none() || waits))
        .filter_map(|pod| indexes::of(pod))
        .collect();
    let open = (0..spec.completions.unwrap_or(0)).filter(|index| {
        !busy.contains(index) && !counts.completed.contains(index) && !counts.failed_indexes.contains(index)
    });
    for index in open {
        if plan.create.len() == missing {
            break;
        }
        let mut new = New { index: Some(index), failures: None };
        if spec.backoff_limit_per_index.is_some() {
            let last = counts.last_failed.get(&index);
            let left = last.map_or(Duration::ZERO, |pod| index_delay(snapshot, pod));
            if !left.is_zero() {
                sooner(&mut plan.wait, left);
                continue;
            }
            new.failures = Some(last.map_or_else(Failures::default, |pod| next_failures(snapshot, pod)));
        }
        plan.create.push(new);
    }
}

fn counts_indexes(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// Pods to withdraw: those without a use at any rate, then the least useful up to `least`.
fn excess(spec: &JobSpec, counts: &Counts, active: &[Arc<Pod>], least: usize) -> Vec<Arc<Pod>> {
    let mut ranked = active.to_vec();
    // One that has come furthest stays.
    ranked.sort_by_key(|pod| {
        let age = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (node_name(pod).is_some(), phase(pod) == "Running", is_ready(pod), std::cmp::Reverse(age))
    });
    if !counts_indexes(spec) {
        ranked.truncate(least);
        return ranked;
    }
    let mut seen = HashSet::new();
    let (mut useless, mut useful) = (Vec::new(), Vec::new());
    for pod in ranked.into_iter().rev() {
        let index = indexes::of(&pod).filter(|index| {
            *index < spec.completions.unwrap_or(0)
                && !counts.completed.contains(index)
                && !counts.failed_indexes.contains(index)
        });
        match index {
            Some(index) if seen.insert(index) => useful.push((index, pod)),
            _ => useless.push(pod),
        }
    }
    // The highest indexes go first.
    useful.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
    let more = least.saturating_sub(useless.len());
    useless.extend(useful.into_iter().take(more).map(|(_, pod)| pod));
    useless
}

/// When a pod ended, as well as can be known.
fn ended(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().flatten();
    let times = containers.filter_map(|one| one.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    let conditions = status.conditions.iter().flatten().filter(|one| one.type_ == "Ready");
    times
        .map(|time| time.0)
        .max()
        .or_else(|| conditions.filter_map(|one| one.last_transition_time.as_ref()).map(|time| time.0).next())
        .or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|time| time.0))
        .or_else(|| pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

fn left(now: Timestamp, since: Timestamp, failures: i32) -> Duration {
    let doublings = u32::try_from(failures - 1).unwrap_or(0).min(16);
    let delay = FIRST_DELAY.saturating_mul(1 << doublings).min(LONGEST_DELAY);
    let gone = Duration::from_millis(u64::try_from(now.as_millisecond() - since.as_millisecond()).unwrap_or(0));
    delay.saturating_sub(gone)
}

/// How long to wait before the next pod, for the failures since the last success.
fn delay(snapshot: &Snapshot<'_>) -> Duration {
    let succeeded = snapshot.pods.iter().filter(|pod| phase(pod) == "Succeeded").filter_map(|pod| ended(pod)).max();
    let failures = snapshot
        .pods
        .iter()
        .filter(|pod| phase(pod) == "Failed" && policy::verdict(snapshot.job, pod) != Verdict::Ignore)
        .filter_map(|pod| ended(pod))
        .filter(|time| succeeded.is_none_or(|success| *time > success));
    let times: Vec<_> = failures.collect();
    times.iter().max().map_or(Duration::ZERO, |last| left(snapshot.now, *last, int(times.len())))
}

fn index_delay(snapshot: &Snapshot<'_>, last: &Pod) -> Duration {
    let Failures { counted, ignored } = next_failures(snapshot, last);
    ended(last).map_or(Duration::ZERO, |since| left(snapshot.now, since, counted + ignored))
}

/// What the successor of a failed pod is told.
fn next_failures(snapshot: &Snapshot<'_>, last: &Pod) -> Failures {
    let Failures { counted, ignored } = failures(last);
    debug_assert!(failed(snapshot.job, last));
    match policy::verdict(snapshot.job, last) {
        Verdict::Ignore => Failures { counted, ignored: ignored + 1 },
        _ => Failures { counted: counted + 1, ignored },
    }
}
