//! Which nodes nobody needs, and which of them go now.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use dhow_scheduler::resources::{Capacity, Request};
use dhow_scheduler::{Decision, Trial};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;

use super::config::ClusterAutoscalerSettings;
use super::drain::{self, Budgets};
use super::view::{TO_BE_DELETED, View, is_daemon, is_mirror, name, since, unplaced};
use crate::common::{is_finished, node_name};

const DISABLED: &str = "cluster-autoscaler.kubernetes.io/scale-down-disabled";

/// A node that goes, and the pods that move before it does.
#[derive(Debug, Clone)]
pub struct Removal {
    pub node: Arc<Node>,
    pub group: usize,
    pub pods: Vec<Arc<Pod>>,
}

#[derive(Debug, Default)]
pub struct Down {
    /// Since when nobody needs a node, by name.
    pub unneeded: HashMap<String, Timestamp>,
    pub removals: Vec<Removal>,
    /// When to look again if nothing happens.
    pub wait: Option<Duration>,
    /// Why the others stay.
    pub kept: HashMap<String, String>,
}

/// The greater share of CPU and memory that pods ask of a node.
fn utilization(node: &Node, pods: &[Arc<Pod>], without_daemons: bool) -> f64 {
    let room = Capacity::of(node).amounts;
    let (mut cpu, mut memory) = (0, 0);
    for pod in pods.iter().filter(|pod| !is_finished(pod)) {
        let amounts = Request::of(pod).amounts;
        let aside = is_mirror(pod) || is_daemon(pod);
        if !(without_daemons && aside) {
            cpu += amounts.cpu;
            memory += amounts.memory;
        }
    }
    let share = |amount: i64, of: i64| if of > 0 { amount as f64 / of as f64 } else { 0.0 };
    share(cpu, room.cpu).max(share(memory, room.memory))
}

/// Decides. `may` tells whether nodes may go now, `going` which are on their way out already.
pub fn plan(
    view: &View,
    settings: &ClusterAutoscalerSettings,
    trial: &mut Trial,
    unneeded: &HashMap<String, Timestamp>,
    going: &HashSet<String>,
    may: bool,
) -> Down {
    let mut down = Down::default();
    let mut by_node: HashMap<&str, Vec<Arc<Pod>>> = HashMap::new();
    for pod in &view.pods {
        if let Some(node) = node_name(pod) {
            by_node.entry(node).or_default().push(Arc::clone(pod));
        }
    }
    let mut candidates: Vec<(bool, f64, &Arc<Node>, usize)> = Vec::new();
    for node in &view.nodes {
        let Some(group) = view.group_of.get(name(node)).copied() else { continue };
        if going.contains(name(node)) || super::view::has_taint(node, TO_BE_DELETED) {
            continue;
        }
        let disabled = node.metadata.annotations.as_ref().and_then(|all| all.get(DISABLED));
        if disabled.is_some_and(|text| text == "true") {
            down.kept.insert(name(node).to_owned(), "scale down disabled annotation present".to_owned());
            continue;
        }
        let options = &view.groups[group].options;
        let pods = by_node.get(name(node)).map(Vec::as_slice).unwrap_or_default();
        let used = utilization(node, pods, options.ignore_daemon_sets);
        if used >= options.utilization_threshold {
            down.kept.insert(name(node).to_owned(), format!("utilization is {used:.2}"));
            continue;
        }
        // Those that are unneeded already come first, lest two nodes take turns.
        candidates.push((!unneeded.contains_key(name(node)), used, node, group));
    }
    candidates.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then_with(|| name(a.2).cmp(name(b.2))));
    let mut budgets = Budgets::new(&view.budgets);
    // Pods that an earlier candidate's end brings to a node must move on with that node.
    let mut brought: HashMap<String, Vec<Pod>> = HashMap::new();
    let mut found: Vec<Removal> = Vec::new();
    let mut shrunk: HashMap<usize, i32> = HashMap::new();
    for (_, _, node, group) in candidates {
        let of = &view.groups[group];
        let fewer = shrunk.entry(group).or_default();
        let leaving = i32::try_from(going.iter().filter(|one| view.group_of.get(*one) == Some(&group)).count());
        if of.target - leaving.unwrap_or(0) - *fewer <= of.min {
            down.kept.insert(name(node).to_owned(), "node group min size reached".to_owned());
            continue;
        }
        let pods = by_node.get(name(node)).map(Vec::as_slice).unwrap_or_default();
        let before = budgets.clone();
        let moving = match drain::plan(pods, settings, &mut budgets) {
            Ok(moving) => moving,
            Err(why) => {
                down.kept.insert(name(node).to_owned(), why);
                continue;
            }
        };
        let guests = brought.remove(name(node)).unwrap_or_default();
        match clear(trial, node, pods, &moving, &guests) {
            Ok(places) => {
                for (pod, to) in places {
                    brought.entry(to).or_default().push(pod);
                }
                *fewer += 1;
                let at = unneeded.get(name(node)).copied().unwrap_or(view.now);
                down.unneeded.insert(name(node).to_owned(), at);
                found.push(Removal { node: Arc::clone(node), group, pods: moving });
            }
            Err(why) => {
                budgets = before;
                brought.insert(name(node).to_owned(), guests);
                down.kept.insert(name(node).to_owned(), why);
            }
        }
    }
    let due = |removal: &Removal| {
        let options = &view.groups[removal.group].options;
        let least = if view.unready_for(&removal.node).is_some() { options.unready } else { options.unneeded };
        let at = down.unneeded.get(name(&removal.node)).copied().unwrap_or(view.now);
        least.saturating_sub(since(view.now, at))
    };
    down.wait = found.iter().map(&due).filter(|left| !left.is_zero()).min();
    if may {
        let mut ready: Vec<Removal> = found.into_iter().filter(|removal| due(removal).is_zero()).collect();
        // Empty ones go at once; those with pods, a few at a time.
        let (mut empty, mut full) = (0, going.len());
        ready.retain(|removal| {
            let (count, most) = if removal.pods.is_empty() {
                (&mut empty, settings.most_empty)
            } else {
                (&mut full, settings.most_drains)
            };
            *count += 1;
            *count <= most
        });
        down.removals = ready;
    }
    down
}

/// Takes a node and its pods away and finds places for those that move, or leaves all as it was and says who stays.
fn clear(
    trial: &mut Trial,
    node: &Arc<Node>,
    pods: &[Arc<Pod>],
    moving: &[Arc<Pod>],
    guests: &[Pod],
) -> Result<Vec<(Pod, String)>, String> {
    let here: Vec<&Pod> = pods.iter().map(|pod| &**pod).filter(|pod| !is_finished(pod)).chain(guests).collect();
    here.iter().for_each(|pod| trial.take(pod));
    trial.remove_node(name(node));
    let mut places: Vec<(Pod, String)> = Vec::new();
    let mut stays = None;
    for pod in moving.iter().map(|pod| unplaced(pod)).chain(guests.iter().cloned()) {
        match trial.place(&pod) {
            Decision::Place { node } => places.push((pod, node)),
            Decision::Unschedulable(_) => {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                stays = Some(format!("no place to move pods: {namespace}/{name}"));
                break;
            }
        }
    }
    let Some(why) = stays else { return Ok(places) };
    places.iter().for_each(|(pod, _)| trial.take(pod));
    trial.set_node(Arc::clone(node));
    here.iter().for_each(|pod| trial.put(pod, name(node)));
    Err(why)
}
