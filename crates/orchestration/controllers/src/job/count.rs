//! Counting a Job's ended pods, each exactly once.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use super::indexes::{self, Indexes};
use super::plan::{Snapshot, condition, nonzero, uids};
use super::policy::{self, Verdict};
use super::template::{Failures, failures, tracked};
use crate::common::{is_active, phase};

/// At most this many uids wait in the status.
const MOST_UNCOUNTED: usize = 500;

/// What there is to tell of a job's ended pods.
#[derive(Debug, Default)]
pub struct Counts {
    /// All, whether counted in the status or about to be.
    pub succeeded: i32,
    pub failed: i32,
    pub completed: Indexes,
    pub failed_indexes: Indexes,
    /// Where failures are limited per index: the last failed pod of each index that needs another pod.
    pub last_failed: BTreeMap<i32, Arc<Pod>>,
    pub uncounted_succeeded: Vec<String>,
    pub uncounted_failed: Vec<String>,
    counted_succeeded: i32,
    counted_failed: i32,
    indexed: bool,
    per_index: bool,
}

pub fn indexed(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.completion_mode.as_deref()) == Some("Indexed")
}

/// Whether a pod counts as failed: one on its way out does, unless only ended ones are to be replaced.
pub fn failed(job: &Job, pod: &Pod) -> bool {
    let policy = job.spec.as_ref().and_then(|spec| spec.pod_replacement_policy.as_deref());
    phase(pod) == "Failed"
        || (policy != Some("Failed") && pod.metadata.deletion_timestamp.is_some() && phase(pod) != "Succeeded")
}

/// Counts; puts pods that the finalizer need no longer hold into `release`.
pub fn count(snapshot: &Snapshot<'_>, release: &mut Vec<Arc<Pod>>) -> Counts {
    let job = snapshot.job;
    let status = job.status.clone().unwrap_or_default();
    let spec = job.spec.as_ref();
    let completions = spec.and_then(|spec| spec.completions).unwrap_or(0);
    let per_index = spec.is_some_and(|spec| spec.backoff_limit_per_index.is_some());
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let (was_succeeded, was_failed) = (uids(uncounted.succeeded.as_ref()), uids(uncounted.failed.as_ref()));
    let held: HashSet<&str> =
        snapshot.pods.iter().filter(|pod| tracked(pod)).filter_map(|pod| pod.metadata.uid.as_deref()).collect();
    let mut counts = Counts {
        completed: indexes::parse(status.completed_indexes.as_deref(), completions),
        failed_indexes: indexes::parse(status.failed_indexes.as_deref(), completions),
        counted_succeeded: status.succeeded.unwrap_or(0),
        counted_failed: status.failed.unwrap_or(0),
        indexed: indexed(job),
        per_index,
        ..Counts::default()
    };
    // What the finalizer no longer holds moves into the counters.
    for (list, counter, open) in [
        (uncounted.succeeded, &mut counts.counted_succeeded, &mut counts.uncounted_succeeded),
        (uncounted.failed, &mut counts.counted_failed, &mut counts.uncounted_failed),
    ] {
        for uid in list.into_iter().flatten() {
            if held.contains(uid.as_str()) { open.push(uid) } else { *counter += 1 }
        }
    }
    if per_index {
        fail_indexes(snapshot, &mut counts);
    }
    let mut fresh_failed = 0;
    for pod in snapshot.pods.iter().filter(|pod| tracked(pod)) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let room = counts.uncounted_succeeded.len() + counts.uncounted_failed.len() < MOST_UNCOUNTED;
        if was_succeeded.contains(&uid) || was_failed.contains(&uid) {
            release.push(pod.clone());
        } else if phase(pod) == "Succeeded" {
            if counts.indexed {
                // The index itself is the count.
                counts.completed.extend(indexes::of(pod).filter(|index| *index < completions));
                release.push(pod.clone());
            } else if room {
                counts.uncounted_succeeded.push(uid);
                release.push(pod.clone());
            }
        } else if failed(job, pod) {
            let ignored = policy::verdict(job, pod) == Verdict::Ignore;
            fresh_failed += i32::from(!ignored);
            let needed = indexes::of(pod).and_then(|index| counts.last_failed.get(&index));
            if needed.is_some_and(|last| last.metadata.uid == pod.metadata.uid) {
                // Its successor learns the number of failures from it.
                continue;
            }
            if ignored {
                release.push(pod.clone());
            } else if room {
                counts.uncounted_failed.push(uid);
                release.push(pod.clone());
            }
        } else if job.metadata.deletion_timestamp.is_some() && pod.metadata.deletion_timestamp.is_some() {
            release.push(pod.clone());
        }
    }
    let open = |list: &[String], was: &HashSet<String>| {
        i32::try_from(list.iter().filter(|uid| was.contains(*uid)).count()).unwrap_or(i32::MAX)
    };
    counts.failed = counts.counted_failed + open(&counts.uncounted_failed, &was_failed) + fresh_failed;
    counts.succeeded = if counts.indexed {
        i32::try_from(counts.completed.len()).unwrap_or(i32::MAX)
    } else {
        counts.counted_succeeded + i32::try_from(counts.uncounted_succeeded.len()).unwrap_or(i32::MAX)
    };
    // An index that succeeded after all has not failed.
    counts.failed_indexes.retain(|index| !counts.completed.contains(index));
    counts
}

/// Finds indexes that failed too often, and the last failed pods of those that may go on.
fn fail_indexes(snapshot: &Snapshot<'_>, counts: &mut Counts) {
    let job = snapshot.job;
    let spec = job.spec.as_ref();
    let limit = spec.and_then(|spec| spec.backoff_limit_per_index).unwrap_or(i32::MAX);
    let completions = spec.and_then(|spec| spec.completions).unwrap_or(0);
    let rank = |pod: &Pod| {
        let Failures { counted, ignored } = failures(pod);
        counted + ignored
    };
    let mut alive: BTreeMap<i32, i32> = BTreeMap::new();
    for pod in snapshot.pods.iter().filter(|pod| is_active(pod) || phase(pod) == "Succeeded") {
        if let Some(index) = indexes::of(pod) {
            let known = alive.entry(index).or_insert(-1);
            *known = (*known).max(rank(pod));
        }
    }
    let mut last: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
    for pod in snapshot.pods.iter().filter(|pod| failed(job, pod)) {
        let Some(index) = indexes::of(pod).filter(|index| *index < completions) else { continue };
        let done = match policy::verdict(job, pod) {
            Verdict::FailIndex => true,
            Verdict::Ignore => false,
            Verdict::Count | Verdict::FailJob(_) => failures(pod).counted >= limit,
        };
        if done && tracked(pod) {
            counts.failed_indexes.insert(index);
        }
        if last.get(&index).is_none_or(|known| rank(known) < rank(pod)) {
            last.insert(index, pod.clone());
        }
    }
    last.retain(|index, pod| {
        !counts.failed_indexes.contains(index)
            && !counts.completed.contains(index)
            && alive.get(index).is_none_or(|known| *known <= rank(pod))
    });
    let heading = ["FailureTarget", "SuccessCriteriaMet"];
    let status = job.status.clone().unwrap_or_default();
    if !heading.iter().any(|kind| condition(&status, kind).is_some()) {
        // Else there are no successors.
        counts.last_failed = last;
    }
}

impl Counts {
    pub fn write(self, status: &mut JobStatus) {
        let count = |number: i32| (number > 0).then_some(number);
        let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
        status.failed = count(self.counted_failed);
        if self.indexed {
            status.succeeded = nonzero(self.completed.len());
            status.completed_indexes = indexes::format(&self.completed);
        } else {
            status.succeeded = count(self.counted_succeeded);
        }
        if self.per_index {
            status.failed_indexes = Some(indexes::format(&self.failed_indexes).unwrap_or_default());
        }
        status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
            succeeded: some(self.uncounted_succeeded),
            failed: some(self.uncounted_failed),
        });
    }
}
