//! What a Deployment's rollout does next: a function of a snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::common::portion;

pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
pub const HASH: &str = "pod-template-hash";

/// All that a decision is made from.
pub struct Snapshot<'a> {
    pub deployment: &'a Deployment,
    /// The sets the deployment owns.
    pub sets: &'a [Arc<ReplicaSet>],
    /// Pods of old sets that are not finished; Recreate waits for them.
    pub old_pods: usize,
    pub now: Timestamp,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make the set for the present template, with this many replicas and revision.
    Create {
        replicas: i32,
        revision: i64,
    },
    /// The set of this template exists: give it the revision and the deployment's annotations.
    Revise {
        set: String,
        revision: i64,
    },
    Scale {
        set: String,
        from: i32,
        to: i32,
    },
    /// Remove a set beyond the history limit.
    Delete {
        set: String,
    },
}

#[derive(Debug, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub revision: Option<i64>,
    pub status: DeploymentStatus,
    /// When the progress deadline passes.
    pub wait: Option<Duration>,
}

pub fn plan(snapshot: &Snapshot<'_>) -> Plan {
    let deployment = snapshot.deployment;
    let mut sets = snapshot.sets.to_vec();
    sets.sort_by_key(|set| (set.metadata.creation_timestamp.as_ref().map(|time| time.0), name(set).to_owned()));
    let new = sets.iter().find(|set| same_template(deployment, set)).cloned();
    let old: Vec<_> = sets.iter().filter(|set| Some(name(set)) != new.as_deref().map(name)).cloned().collect();
    let mut plan = Plan::default();
    if deployment.metadata.deletion_timestamp.is_none() {
        plan.actions = actions(snapshot, new.as_ref(), &old, &mut plan.revision);
    }
    (plan.status, plan.wait) = status(snapshot, new.as_ref(), &old);
    if deployment.metadata.deletion_timestamp.is_none() && complete(deployment, &plan.status) {
        plan.actions.extend(surplus(deployment, &old));
    }
    plan
}

fn actions(
    snapshot: &Snapshot<'_>,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
    revised: &mut Option<i64>,
) -> Vec<Action> {
    let deployment = snapshot.deployment;
    let paused = deployment.spec.as_ref().is_some_and(|spec| spec.paused == Some(true));
    let wanted = replicas(deployment);
    let all: Vec<_> = old.iter().chain(new).cloned().collect();
    let revision = old.iter().map(|set| revision(set)).max().unwrap_or(0) + 1;
    let mut actions = Vec::new();
    if let Some(new) = new {
        let kept = self::revision(new).max(revision);
        *revised = Some(kept);
        if self::revision(new) < revision {
            actions.push(Action::Revise { set: name(new).into(), revision });
        }
    }
    let resized = all.iter().any(|set| {
        size(set) > 0
            && annotation(set, DESIRED).and_then(|value| value.parse().ok()).is_some_and(|was: i32| was != wanted)
    });
    if paused || (resized && new.is_some() && !recreates(deployment)) {
        actions.extend(resize(deployment, new, old));
        return actions;
    }
    if recreates(deployment) {
        let down: Vec<_> = old.iter().filter(|set| size(set) > 0).map(|set| scale(set, 0)).collect();
        if !down.is_empty() {
            actions.extend(down);
            return actions;
        }
        if snapshot.old_pods > 0 {
            return actions;
        }
        match new {
            None => {
                *revised = Some(revision);
                actions.push(Action::Create { replicas: wanted, revision });
            }
            Some(new) if size(new) != wanted => actions.push(scale(new, wanted)),
            Some(_) => {}
        }
        return actions;
    }
    let Some(new) = new else {
        *revised = Some(revision);
        let room = wanted + surge(deployment) - old.iter().map(|set| size(set)).sum::<i32>();
        actions.push(Action::Create { replicas: room.clamp(0, wanted), revision });
        return actions;
    };
    let target = new_size(deployment, new, &all);
    if target != size(new) {
        actions.push(scale(new, target));
        return actions;
    }
    actions.extend(shrink_old(deployment, new, old));
    actions
}

/// Grows the new set as far as the surge allows.
fn new_size(deployment: &Deployment, new: &ReplicaSet, all: &[Arc<ReplicaSet>]) -> i32 {
    let wanted = replicas(deployment);
    if size(new) >= wanted {
        return wanted;
    }
    let room = wanted + surge(deployment) - all.iter().map(|set| size(set)).sum::<i32>();
    if room <= 0 { size(new) } else { size(new) + room.min(wanted - size(new)) }
}

/// Shrinks old sets: first what is not available anyway, then as far as enough stays available.
fn shrink_old(deployment: &Deployment, new: &ReplicaSet, old: &[Arc<ReplicaSet>]) -> Vec<Action> {
    let least = replicas(deployment) - unavailable(deployment);
    let total = size(new) + old.iter().map(|set| size(set)).sum::<i32>();
    let budget = total - least - (size(new) - available(new)).max(0);
    if budget <= 0 {
        return Vec::new();
    }
    let mut sizes: BTreeMap<&str, i32> = BTreeMap::new();
    let mut left = budget;
    for set in old {
        let sick = (size(set) - available(set)).clamp(0, left);
        left -= sick;
        sizes.insert(name(set), size(set) - sick);
    }
    let mut spare = available(new) + old.iter().map(|set| available(set)).sum::<i32>() - least;
    for set in old {
        if let Some(size) = sizes.get_mut(name(set)) {
            let down = (*size).min(spare.max(0));
            *size -= down;
            spare -= down;
        }
    }
    old.iter().filter_map(|set| sizes.get(name(set)).filter(|to| **to != size(set)).map(|to| scale(set, *to))).collect()
}

/// Follows a change of the deployment's size without moving the rollout; in proportion while one is under way.
fn resize(deployment: &Deployment, new: Option<&Arc<ReplicaSet>>, old: &[Arc<ReplicaSet>]) -> Vec<Action> {
    let wanted = replicas(deployment);
    let mut active: Vec<_> = old.iter().chain(new).filter(|set| size(set) > 0).cloned().collect();
    if active.len() <= 1 {
        let only = active.pop().or_else(|| new.cloned());
        // Always written, even at the right size: its annotations record the size asked for.
        return only
            .map(|set| scale(&set, wanted))
            .into_iter()
            .filter(|action| stale(action, deployment, new, old))
            .collect();
    }
    if new.is_some_and(|new| size(new) == wanted && available(new) == wanted) {
        return old.iter().filter(|set| size(set) > 0).map(|set| scale(set, 0)).collect();
    }
    if recreates(deployment) {
        return Vec::new();
    }
    let total: i32 = active.iter().map(|set| size(set)).sum();
    let allowed = if wanted > 0 { wanted + surge(deployment) } else { 0 };
    let mut left = allowed - total;
    // The largest take their share first; what rounding leaves goes to the largest.
    active
        .sort_by_key(|set| (std::cmp::Reverse(size(set)), set.metadata.creation_timestamp.as_ref().map(|time| time.0)));
    if left > 0 {
        active.sort_by_key(|set| {
            (
                std::cmp::Reverse(size(set)),
                std::cmp::Reverse(set.metadata.creation_timestamp.as_ref().map(|time| time.0)),
            )
        });
    }
    let mut sizes = Vec::new();
    for set in &active {
        let before =
            annotation(set, MAX).and_then(|max| max.parse::<i32>().ok()).filter(|max| *max > 0).unwrap_or(total);
        let ideal = (f64::from(size(set)) * f64::from(allowed) / f64::from(before)).round() as i32 - size(set);
        let share = if left > 0 { ideal.clamp(0, left) } else { ideal.clamp(left, 0) };
        left -= share;
        sizes.push(size(set) + share);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + left).max(0);
    }
    active
        .iter()
        .zip(sizes)
        .map(|(set, to)| scale(set, to))
        .filter(|action| stale(action, deployment, new, old))
        .collect()
}

/// Whether writing the scale changes the size or the annotation that records it.
fn stale(action: &Action, deployment: &Deployment, new: Option<&Arc<ReplicaSet>>, old: &[Arc<ReplicaSet>]) -> bool {
    let Action::Scale { set, from, to } = action else { return true };
    let desired = replicas(deployment).to_string();
    from != to
        || old.iter().chain(new).any(|other| name(other) == set && annotation(other, DESIRED) != Some(desired.as_str()))
}

/// Old sets beyond the history limit, oldest revision first.
fn surplus(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> Vec<Action> {
    let limit = deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
    let mut kept: Vec<_> = old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
    kept.sort_by_key(|set| revision(set));
    let excess = kept.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    kept.into_iter()
        .take(excess)
        .filter(|set| {
            let status = set.status.clone().unwrap_or_default();
            size(set) == 0 && status.replicas == 0 && status.observed_generation >= set.metadata.generation
        })
        .map(|set| Action::Delete { set: name(set).into() })
        .collect()
}

fn status(
    snapshot: &Snapshot<'_>,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
) -> (DeploymentStatus, Option<Duration>) {
    let deployment = snapshot.deployment;
    let before = deployment.status.clone().unwrap_or_default();
    let all = || old.iter().chain(new);
    let sum = |value: fn(&ReplicaSet) -> i32| all().map(|set| value(set)).sum::<i32>();
    let ready = sum(|set| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0));
    let up = sum(available);
    let nonzero = |number: i32| (number > 0).then_some(number);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: nonzero(sum(actual)),
        updated_replicas: nonzero(new.map_or(0, |set| actual(set))),
        ready_replicas: nonzero(ready),
        available_replicas: nonzero(up),
        unavailable_replicas: nonzero(sum(size) - up),
        terminating_replicas: nonzero(sum(|set| set.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or(0))),
        collision_count: before.collision_count,
        conditions: before.conditions.clone(),
    };
    let now = snapshot.now;
    let enough = up >= replicas(deployment) - unavailable(deployment);
    if enough {
        set_condition(
            &mut status,
            now,
            "Available",
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        );
    } else {
        let text = "Deployment does not have minimum availability.";
        set_condition(&mut status, now, "Available", "False", "MinimumReplicasUnavailable", text);
    }
    let failure = all().find_map(|set| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_ == "ReplicaFailure").cloned()
    });
    match failure {
        Some(found) => {
            let (reason, message) = (found.reason.unwrap_or_default(), found.message.unwrap_or_default());
            set_condition(&mut status, now, "ReplicaFailure", &found.status, &reason, &message);
        }
        None => status.conditions.iter_mut().for_each(|all| all.retain(|one| one.type_ != "ReplicaFailure")),
    }
    let wait = progress(snapshot, new, &before, &mut status);
    (status, wait)
}

/// Keeps the Progressing condition; returns when the deadline is to be looked at again.
fn progress(
    snapshot: &Snapshot<'_>,
    new: Option<&Arc<ReplicaSet>>,
    before: &DeploymentStatus,
    status: &mut DeploymentStatus,
) -> Option<Duration> {
    let (deployment, now) = (snapshot.deployment, snapshot.now);
    let spec = deployment.spec.as_ref()?;
    let deadline = spec.progress_deadline_seconds.unwrap_or(600);
    if deadline == i32::MAX {
        status.conditions.iter_mut().for_each(|all| all.retain(|one| one.type_ != "Progressing"));
        return None;
    }
    let known = condition(status, "Progressing").cloned();
    if spec.paused == Some(true) {
        if known.as_ref().and_then(|one| one.reason.as_deref()) != Some("ProgressDeadlineExceeded") {
            set_condition(status, now, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused");
        }
        return None;
    }
    let reason = known.as_ref().and_then(|one| one.reason.as_deref()).unwrap_or_default();
    let label = new.map_or_else(
        || format!("Deployment \"{}\"", deployment.metadata.name.as_deref().unwrap_or_default()),
        |set| format!("ReplicaSet \"{}\"", name(set)),
    );
    if reason == "DeploymentPaused" {
        set_condition(status, now, "Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed");
    }
    if new.is_some() && complete(deployment, status) {
        let text = format!("{label} has successfully progressed.");
        set_condition(status, now, "Progressing", "True", "NewReplicaSetAvailable", &text);
        return None;
    }
    let olds = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    let moved = status.updated_replicas > before.updated_replicas
        || olds(status) < olds(before)
        || status.ready_replicas > before.ready_replicas
        || status.available_replicas > before.available_replicas;
    // A finished rollout that lost a pod is no new rollout; only a new generation or set begins one.
    let begun = known.is_none()
        || (before.observed_generation != deployment.metadata.generation && reason != "DeploymentPaused");
    if reason == "NewReplicaSetAvailable" && !begun && status.replicas == status.updated_replicas {
        return None;
    }
    if moved || begun {
        let text = format!("{label} is progressing.");
        status.conditions.iter_mut().for_each(|all| {
            // The deadline counts from the last progress.
            all.iter_mut()
                .filter(|one| one.type_ == "Progressing")
                .for_each(|one| one.last_update_time = Some(Time(now)));
        });
        set_condition(status, now, "Progressing", "True", "ReplicaSetUpdated", &text);
    }
    let since =
        condition(status, "Progressing").and_then(|one| one.last_update_time.as_ref()).map_or(now, |time| time.0);
    let left = i64::from(deadline) - (now.as_second() - since.as_second());
    if left <= 0 {
        let text = format!("{label} has timed out progressing.");
        set_condition(status, now, "Progressing", "False", "ProgressDeadlineExceeded", &text);
        return None;
    }
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0) + 1))
}

/// Whether all replicas are of the present template and available, and no others are left.
pub fn complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = replicas(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// Sets a condition; one that says the same already keeps its times.
fn set_condition(status: &mut DeploymentStatus, now: Timestamp, kind: &str, state: &str, reason: &str, message: &str) {
    let conditions = status.conditions.get_or_insert_default();
    let made = |since| DeploymentCondition {
        type_: kind.into(),
        status: state.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(Time(now)),
        last_transition_time: since,
    };
    match conditions.iter_mut().find(|condition| condition.type_ == kind) {
        Some(known) if known.status == state && known.reason.as_deref() == Some(reason) => {
            known.message = Some(message.into());
        }
        Some(known) => {
            let since = if known.status == state { known.last_transition_time.clone() } else { Some(Time(now)) };
            *known = made(since);
        }
        None => conditions.push(made(Some(Time(now)))),
    }
}

/// Whether a set was made for the deployment's present template.
pub fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let bare = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        if let Some(metadata) = &mut template.metadata {
            metadata.labels.iter_mut().for_each(|labels| drop(labels.remove(HASH)));
            metadata.labels = metadata.labels.take().filter(|labels| !labels.is_empty());
        }
        template
    };
    let wanted = deployment.spec.as_ref().map(|spec| bare(&spec.template));
    wanted.is_some() && set.spec.as_ref().and_then(|spec| spec.template.as_ref()).map(bare) == wanted
}

fn scale(set: &ReplicaSet, to: i32) -> Action {
    Action::Scale { set: name(set).into(), from: size(set), to }
}

pub fn name(set: &ReplicaSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

fn annotation<'a>(set: &'a ReplicaSet, key: &str) -> Option<&'a str> {
    set.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

pub fn revision(set: &ReplicaSet) -> i64 {
    annotation(set, REVISION).and_then(|value| value.parse().ok()).unwrap_or(0)
}

fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn recreates(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// Surge and unavailability; both zero would never move, so then one may be unavailable.
pub fn bounds(deployment: &Deployment) -> (i32, i32) {
    if recreates(deployment) {
        return (0, 0);
    }
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let wanted = replicas(deployment);
    let surge = portion(rolling.and_then(|rolling| rolling.max_surge.as_ref()), "25%", wanted, true);
    let unavailable = portion(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), "25%", wanted, false);
    (surge, if surge == 0 && unavailable == 0 { 1 } else { unavailable.min(wanted) })
}

pub fn surge(deployment: &Deployment) -> i32 {
    bounds(deployment).0
}

fn unavailable(deployment: &Deployment) -> i32 {
    bounds(deployment).1
}
