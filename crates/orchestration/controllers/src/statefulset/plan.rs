//! What a StatefulSet does next: a function of a snapshot.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::identity::{first, ordinal, revision};
use crate::common::{available_in, is_finished, phase, portion, ready_since};

/// All that a decision is made from.
pub struct Snapshot<'a> {
    pub set: &'a StatefulSet,
    /// The set's pods.
    pub pods: &'a [Arc<Pod>],
    /// Name of the revision that pods had before the rollout, and of the present template.
    pub current: &'a str,
    pub update: &'a str,
    /// The revision that the present one was put back in place of: its pods hold nobody up.
    pub undone: Option<&'a str>,
    pub collisions: Option<i32>,
    pub now: Timestamp,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make the pod of this ordinal, of this revision, after its claims.
    Create {
        ordinal: i32,
        revision: String,
    },
    Delete {
        pod: Arc<Pod>,
        why: Why,
    },
    /// See that labels and claims of a running pod are right.
    Keep {
        pod: Arc<Pod>,
        ordinal: i32,
    },
    /// See that claims of a pod beyond the size are owned as the retention policy says.
    Release {
        pod: Arc<Pod>,
        ordinal: i32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    Scale,
    Update,
    Failed,
    Succeeded,
}

#[derive(Debug, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub status: StatefulSetStatus,
    /// When the next pod becomes available.
    pub wait: Option<Duration>,
}

pub fn plan(snapshot: &Snapshot<'_>) -> Plan {
    let set = snapshot.set;
    let (status, wait) = status(snapshot);
    let actions = if set.metadata.deletion_timestamp.is_some() { Vec::new() } else { actions(snapshot) };
    Plan { actions, status, wait }
}

pub fn replicas(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Whether each pod waits for those before it.
pub fn ordered(set: &StatefulSet) -> bool {
    set.spec.as_ref().and_then(|spec| spec.pod_management_policy.as_deref()) != Some("Parallel")
}

pub fn rolls(set: &StatefulSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
}

/// The least ordinal that a rolling update touches, counted from the first, and how many may be unavailable.
fn rolling(set: &StatefulSet) -> (i32, i32) {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let most = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
    (rolling.and_then(|rolling| rolling.partition).unwrap_or(0), portion(most, "1", replicas(set), false).max(1))
}

fn terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn running_and_ready(pod: &Pod) -> bool {
    phase(pod) == "Running" && ready_since(pod).is_some()
}

fn available(snapshot: &Snapshot<'_>, pod: &Pod) -> bool {
    let least = snapshot.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    running_and_ready(pod) && available_in(pod, least, snapshot.now).is_some_and(|left| left.is_zero())
}

/// Up, and not about to go.
pub fn is_serving(snapshot: &Snapshot<'_>, pod: &Pod) -> bool {
    !terminating(pod) && available(snapshot, pod)
}

fn status(snapshot: &Snapshot<'_>) -> (StatefulSetStatus, Option<Duration>) {
    let set = snapshot.set;
    let before = set.status.clone().unwrap_or_default();
    let least = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let count = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(snapshot.pods.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
    };
    let of = |wanted: &str| count(&|pod| !terminating(pod) && revision(pod) == wanted);
    let mut status = StatefulSetStatus {
        replicas: count(&|_| true),
        ready_replicas: Some(count(&running_and_ready)),
        available_replicas: Some(count(&|pod| available(snapshot, pod))),
        current_replicas: Some(of(snapshot.current)),
        updated_replicas: Some(of(snapshot.update)),
        current_revision: Some(snapshot.current.into()),
        update_revision: Some(snapshot.update.into()),
        observed_generation: set.metadata.generation,
        collision_count: snapshot.collisions,
        conditions: before.conditions,
    };
    let wanted = replicas(set);
    if rolls(set)
        && status.updated_replicas == Some(wanted)
        && status.ready_replicas == Some(wanted)
        && status.replicas == wanted
    {
        status.current_replicas = status.updated_replicas;
        status.current_revision = status.update_revision.clone();
    }
    // A zero is left out, as upstream's JSON has it.
    for number in [&mut status.ready_replicas, &mut status.current_replicas, &mut status.updated_replicas] {
        *number = number.filter(|number| *number > 0);
    }
    let waits = snapshot.pods.iter().filter(|pod| running_and_ready(pod));
    let wait = waits.filter_map(|pod| available_in(pod, least, snapshot.now)).filter(|left| !left.is_zero()).min();
    (status, wait)
}

/// The revision that a pod made anew is of: what the partition holds back stays as it was.
fn revision_for<'a>(snapshot: &Snapshot<'a>, ordinal: i32) -> &'a str {
    let held = rolls(snapshot.set) && ordinal < first(snapshot.set).saturating_add(rolling(snapshot.set).0);
    if held { snapshot.current } else { snapshot.update }
}

fn actions(snapshot: &Snapshot<'_>) -> Vec<Action> {
    let set = snapshot.set;
    let ordered = ordered(set);
    let begin = first(set);
    let end = begin.saturating_add(replicas(set));
    let at = |wanted: i32| snapshot.pods.iter().find(|pod| ordinal(set, pod) == Some(wanted));
    let mut condemned: Vec<(i32, &Arc<Pod>)> = snapshot
        .pods
        .iter()
        .filter_map(|pod| Some((ordinal(set, pod)?, pod)))
        .filter(|(ordinal, _)| !(begin..end).contains(ordinal))
        .collect();
    condemned.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
    let mut actions = Vec::new();
    for ordinal in begin..end {
        let Some(pod) = at(ordinal) else {
            actions.push(Action::Create { ordinal, revision: revision_for(snapshot, ordinal).into() });
            if ordered {
                return actions;
            }
            continue;
        };
        if is_finished(pod) {
            if !terminating(pod) {
                let why = if phase(pod) == "Failed" { Why::Failed } else { Why::Succeeded };
                actions.push(Action::Delete { pod: pod.clone(), why });
            }
            // Its successor is made once it is gone.
            if ordered {
                return actions;
            }
            continue;
        }
        let is_undone = snapshot.undone == Some(revision(pod)) && !running_and_ready(pod);
        if ordered && is_undone && !terminating(pod) {
            actions.push(Action::Delete { pod: pod.clone(), why: Why::Update });
            return actions;
        }
        actions.push(Action::Keep { pod: pod.clone(), ordinal });
        if ordered && (terminating(pod) || !available(snapshot, pod)) {
            return actions;
        }
    }
    let unhealthy = |pod: &Pod| terminating(pod) || !running_and_ready(pod);
    // Of several unhealthy ones the lowest goes first to let the others recover: it must not block.
    let first_unhealthy = condemned.iter().rev().find(|(_, pod)| unhealthy(pod)).map(|(ordinal, _)| *ordinal);
    for (ordinal, pod) in &condemned {
        actions.push(Action::Release { pod: Arc::clone(pod), ordinal: *ordinal });
        if terminating(pod) {
            if ordered {
                return actions;
            }
            continue;
        }
        if ordered && !available(snapshot, pod) && Some(*ordinal) != first_unhealthy {
            return actions;
        }
        actions.push(Action::Delete { pod: Arc::clone(pod), why: Why::Scale });
        if ordered {
            return actions;
        }
    }
    if rolls(set) {
        actions.extend(roll(snapshot, begin, end));
    }
    actions
}

/// Deletes pods of other revisions, the highest ordinals first, as far as availability lets it.
fn roll(snapshot: &Snapshot<'_>, begin: i32, end: i32) -> Vec<Action> {
    let set = snapshot.set;
    let (partition, most) = rolling(set);
    let at = |wanted: i32| snapshot.pods.iter().find(|pod| ordinal(set, pod) == Some(wanted));
    let serves = |pod: &Pod| is_serving(snapshot, pod);
    let down = (begin..end).filter(|ordinal| !at(*ordinal).is_some_and(|pod| serves(pod))).count();
    let mut budget = most - i32::try_from(down).unwrap_or(i32::MAX);
    let mut actions = Vec::new();
    for ordinal in (begin.saturating_add(partition)..end).rev() {
        let Some(pod) = at(ordinal) else { continue };
        if terminating(pod) || is_finished(pod) {
            continue;
        }
        let old = revision(pod) != snapshot.update;
        if old && serves(pod) {
            if budget <= 0 {
                break;
            }
            budget -= 1;
        } else if !old && !serves(pod) && most == 1 {
            // One by one: the next waits for this one.
            break;
        }
        // One that does not serve costs nothing.
        if old {
            actions.push(Action::Delete { pod: pod.clone(), why: Why::Update });
        }
    }
    actions
}
