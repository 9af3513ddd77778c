//! What a DaemonSet does next: a function of a snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;

use super::placement::{Fit, fit, target};
use crate::common::{available_in, is_ready, phase, portion};
use crate::history::POD_REVISION;

/// At most this many creations, and deletions, per reconciliation.
const BURST: usize = 250;

/// All that a decision is made from.
pub struct Snapshot<'a> {
    pub set: &'a DaemonSet,
    pub nodes: &'a [Arc<Node>],
    /// The set's pods.
    pub pods: &'a [Arc<Pod>],
    /// The hash of the present template's revision.
    pub hash: &'a str,
    pub collisions: Option<i32>,
    pub now: Timestamp,
}

#[derive(Debug, Default)]
pub struct Plan {
    /// Nodes that a pod is made for.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Ended pods in the way of a new one, with their node; deleted with a back-off that the loop keeps.
    pub ended: Vec<(String, Arc<Pod>)>,
    pub status: DaemonSetStatus,
    /// When the next pod becomes available.
    pub wait: Option<Duration>,
}

/// A node with the set's pods on it or meant for it, the one to keep first.
struct Place<'a> {
    node: &'a str,
    fit: Fit,
    pods: Vec<&'a Arc<Pod>>,
}

pub fn plan(snapshot: &Snapshot<'_>) -> Plan {
    let places = places(snapshot);
    let mut plan = Plan::default();
    if snapshot.set.metadata.deletion_timestamp.is_none() {
        manage(snapshot, &places, &mut plan);
        if plan.create.is_empty() && plan.delete.is_empty() && rolls(snapshot.set) {
            update(snapshot, &places, &mut plan);
        }
    }
    plan.create.truncate(BURST);
    plan.delete.truncate(BURST);
    (plan.status, plan.wait) = status(snapshot, &places);
    plan
}

fn places<'a>(snapshot: &Snapshot<'a>) -> Vec<Place<'a>> {
    let mut pods: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in snapshot.pods {
        if let Some(node) = target(pod) {
            pods.entry(node).or_default().push(pod);
        }
    }
    let mut places: Vec<_> = snapshot
        .nodes
        .iter()
        .map(|node| {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            Place { node: name, fit: fit(snapshot.set, node), pods: pods.remove(name).unwrap_or_default() }
        })
        .collect();
    for place in &mut places {
        let age = |pod: &Pod| (pod.metadata.creation_timestamp.as_ref().map(|time| time.0), pod.metadata.name.clone());
        place.pods.sort_by_key(|pod| (crate::common::node_name(pod).is_none(), age(pod)));
    }
    // Pods meant for a node that is gone will never be placed.
    places.extend(pods.into_iter().map(|(node, pods)| Place { node, fit: Fit { run: false, stay: false }, pods }));
    places
}

fn rolls(set: &DaemonSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
}

/// How many pods may be unavailable, and how many nodes may have a second pod, during an update.
fn bounds(set: &DaemonSet, wanted: i32) -> (i32, i32) {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref()).filter(|_| rolls(set));
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let surge = portion(rolling.and_then(|rolling| rolling.max_surge.as_ref()), "0", wanted, true);
    let down = portion(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), "1", wanted, true);
    (if down == 0 && surge == 0 { 1 } else { down }, surge)
}

fn current(snapshot: &Snapshot<'_>, pod: &Pod) -> bool {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(POD_REVISION)).is_some_and(|hash| hash == snapshot.hash)
}

fn available(snapshot: &Snapshot<'_>, pod: &Pod) -> bool {
    let least = snapshot.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    available_in(pod, least, snapshot.now).is_some_and(|left| left.is_zero())
}

fn going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// One pod on every node that is to have one, none elsewhere.
fn manage(snapshot: &Snapshot<'_>, places: &[Place<'_>], plan: &mut Plan) {
    let surges = bounds(snapshot.set, wanted(places)).1 > 0;
    for place in places {
        if !place.fit.stay {
            plan.delete.extend(place.pods.iter().filter(|pod| !going(pod)).map(|pod| Arc::clone(pod)));
            continue;
        }
        if place.pods.is_empty() {
            if place.fit.run {
                plan.create.push(place.node.to_owned());
            }
            continue;
        }
        let mut alive = Vec::new();
        for pod in place.pods.iter().filter(|pod| !going(pod)) {
            if matches!(phase(pod), "Failed" | "Succeeded") {
                plan.ended.push((place.node.to_owned(), Arc::clone(pod)));
            } else {
                alive.push(Arc::clone(pod));
            }
        }
        if !surges {
            // The first was placed first and is the oldest.
            plan.delete.extend(alive.into_iter().skip(1));
            continue;
        }
        let (new, old): (Vec<_>, Vec<_>) = alive.into_iter().partition(|pod| current(snapshot, pod));
        if old.is_empty() && new.is_empty() && place.fit.run && place.pods.iter().all(|pod| going(pod)) {
            // With surge the successor need not wait for the last one to end.
            plan.create.push(place.node.to_owned());
        }
        let serves = new.first().is_some_and(|pod| available(snapshot, pod));
        plan.delete.extend(new.into_iter().skip(1));
        plan.delete.extend(old.into_iter().skip(usize::from(!serves)));
    }
}

fn wanted(places: &[Place<'_>]) -> i32 {
    i32::try_from(places.iter().filter(|place| place.fit.run).count()).unwrap_or(i32::MAX)
}

/// Replaces pods of older templates within the bounds.
fn update(snapshot: &Snapshot<'_>, places: &[Place<'_>], plan: &mut Plan) {
    let (most_down, most_surge) = bounds(snapshot.set, wanted(places));
    let (mut free, mut candidates) = (Vec::new(), Vec::new());
    let mut used = 0;
    for place in places.iter().filter(|place| place.fit.run) {
        let alive = || place.pods.iter().filter(|pod| !going(pod) && !matches!(phase(pod), "Failed" | "Succeeded"));
        let new = alive().find(|pod| current(snapshot, pod));
        let old = alive().find(|pod| !current(snapshot, pod));
        match (new, old) {
            (Some(new), _) => used += i32::from(!available(snapshot, new)),
            // What does not serve is replaced whatever the bounds.
            (None, Some(old)) if !available(snapshot, old) => free.push((place.node, old)),
            (None, Some(old)) => candidates.push((place.node, old)),
            (None, None) => used += i32::from(most_surge == 0),
        }
    }
    let left = (if most_surge > 0 { most_surge } else { most_down } - used).max(0);
    let chosen = free.into_iter().chain(candidates.into_iter().take(usize::try_from(left).unwrap_or(0)));
    for (node, pod) in chosen {
        if most_surge > 0 {
            plan.create.push(node.to_owned());
        } else {
            plan.delete.push(Arc::clone(pod));
        }
    }
}

fn status(snapshot: &Snapshot<'_>, places: &[Place<'_>]) -> (DaemonSetStatus, Option<Duration>) {
    let set = snapshot.set;
    let least = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let mut status = DaemonSetStatus {
        desired_number_scheduled: wanted(places),
        observed_generation: set.metadata.generation,
        collision_count: snapshot.collisions,
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
        ..DaemonSetStatus::default()
    };
    let (mut up, mut updated) = (0, 0);
    let mut wait: Option<Duration> = None;
    for place in places {
        // The best of a node's pods speaks for it.
        let pods = || place.pods.iter().filter(|pod| !going(pod));
        if pods().next().is_none() {
            continue;
        }
        if !place.fit.run {
            status.number_misscheduled += 1;
            continue;
        }
        status.current_number_scheduled += 1;
        status.number_ready += i32::from(pods().any(|pod| is_ready(pod)));
        let soonest = pods().filter_map(|pod| available_in(pod, least, snapshot.now)).min();
        up += i32::from(soonest.is_some_and(|left| left.is_zero()));
        if let Some(left) = soonest.filter(|left| !left.is_zero()) {
            wait = Some(wait.map_or(left, |known| known.min(left)));
        }
        updated += i32::from(pods().any(|pod| current(snapshot, pod)));
    }
    let nonzero = |number: i32| (number > 0).then_some(number);
    status.number_available = nonzero(up);
    status.updated_number_scheduled = nonzero(updated);
    status.number_unavailable = nonzero(status.desired_number_scheduled - up);
    (status, wait)
}
