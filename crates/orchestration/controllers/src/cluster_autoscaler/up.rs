//! Which groups get more nodes, for which pods, and why others help nobody.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use dhow_client::controller_of;
use dhow_scheduler::resources::{Capacity, Request};
use dhow_scheduler::{Decision, Trial};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::config::{ClusterAutoscalerSettings, ExpanderName};
use super::view::{View, is_daemon, name, since};
use crate::common::node_name;

/// A group that becomes larger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Increase {
    pub group: usize,
    pub from: i32,
    pub to: i32,
}

#[derive(Debug, Default)]
pub struct Up {
    pub increases: Vec<Increase>,
    /// Pods and the groups that become larger for them.
    pub triggered: Vec<(Arc<Pod>, usize)>,
    /// Pods that no group helps, and why.
    pub helpless: Vec<(Arc<Pod>, String)>,
    /// Pods that nodes under way are enough for.
    pub awaiting: usize,
}

/// What one group would do for the pods.
struct Choice {
    group: usize,
    nodes: Vec<Arc<Node>>,
    placed: Vec<(usize, String)>,
    waste: f64,
}

/// Pods that the scheduler found no place for.
pub fn unschedulable(view: &View, settings: &ClusterAutoscalerSettings) -> Vec<Arc<Pod>> {
    let refused = |pod: &Pod| {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|one| {
            one.type_ == "PodScheduled" && one.status == "False" && one.reason.as_deref() == Some("Unschedulable")
        })
    };
    let old = |pod: &Pod| {
        let made = pod.metadata.creation_timestamp.as_ref();
        made.is_none_or(|made| since(view.now, made.0) >= settings.new_pod_delay)
    };
    let waits = |pod: &&Arc<Pod>| {
        let spec = pod.spec.as_ref();
        let priority = spec.and_then(|spec| spec.priority).unwrap_or(0);
        let nominated = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
        node_name(pod).is_none()
            && pod.metadata.deletion_timestamp.is_none()
            && nominated.is_none_or(str::is_empty)
            && refused(pod)
            && old(pod)
            && priority >= settings.expendable_below
            // Its node is chosen already: another would be of no use.
            && !is_daemon(pod)
    };
    view.pods.iter().filter(waits).cloned().collect()
}

/// Decides. `closed` tells why a group must not grow, `trial` holds the cluster as it is.
pub fn plan(
    view: &View,
    settings: &ClusterAutoscalerSettings,
    trial: &mut Trial,
    closed: &HashMap<usize, &'static str>,
) -> Up {
    let mut up = Up::default();
    let mut waiting = unschedulable(view, settings);
    if waiting.is_empty() {
        return up;
    }
    let templates: Vec<Option<Node>> = (0..view.groups.len()).map(|group| view.template(group)).collect();
    waiting = settle(view, &templates, trial, waiting, &mut up.awaiting);
    let reference = templates.iter().flatten().next().map(Capacity::of).unwrap_or_default();
    let size = |pod: &Pod| {
        let amounts = Request::of(pod).amounts;
        share(amounts.cpu, reference.amounts.cpu) + share(amounts.memory, reference.amounts.memory)
    };
    // The largest first, as they are the hardest to place.
    waiting.sort_by(|a, b| size(b).total_cmp(&size(a)));
    let total: i32 = view.groups.iter().map(|group| group.target).sum();
    let mut sizes: Vec<i32> = view.groups.iter().map(|group| group.target).collect();
    let mut numbers = vec![1000_usize; view.groups.len()];
    loop {
        let left = match settings.most_nodes {
            0 => i32::MAX,
            most => most - total - sizes.iter().zip(&view.groups).map(|(now, group)| now - group.target).sum::<i32>(),
        };
        let mut choices = Vec::new();
        for (group, template) in templates.iter().enumerate() {
            let Some(template) = template.as_ref().filter(|_| !closed.contains_key(&group)) else { continue };
            let room = (view.groups[group].max - sizes[group]).min(left).max(0);
            let room = usize::try_from(room).unwrap_or(0);
            let choice = estimate(view, trial, group, template, &waiting, room, numbers[group]);
            if !choice.placed.is_empty() {
                choices.push(choice);
            }
        }
        let Some(choice) = choose(view, settings, choices) else { break };
        // It is as good as done: the next group sees these nodes and pods.
        for node in &choice.nodes {
            add_node(view, trial, choice.group, node);
        }
        let count = choice.nodes.len();
        numbers[choice.group] += count;
        sizes[choice.group] += i32::try_from(count).unwrap_or(i32::MAX);
        let mut gone = HashSet::new();
        for (index, node) in &choice.placed {
            trial.put(&waiting[*index], node);
            // With what is new they may fit where others are.
            if count == 0 {
                up.awaiting += 1;
            } else {
                up.triggered.push((Arc::clone(&waiting[*index]), choice.group));
            }
            gone.insert(*index);
        }
        let mut index = 0;
        waiting.retain(|_| {
            index += 1;
            !gone.contains(&(index - 1))
        });
    }
    for (group, (size, of)) in sizes.iter().zip(&view.groups).enumerate() {
        if *size > of.target {
            up.increases.push(Increase { group, from: of.target, to: *size });
        }
    }
    let mut known: HashMap<String, String> = HashMap::new();
    for pod in waiting {
        let owner = controller_of(&pod.metadata).map(|owner| owner.uid.clone());
        let key = owner.unwrap_or_else(|| pod.metadata.uid.clone().unwrap_or_default());
        let why = known.entry(key).or_insert_with(|| reasons(view, &templates, &sizes, closed, settings, &pod)).clone();
        up.helpless.push((pod, why));
    }
    up
}

fn share(amount: i64, of: i64) -> f64 {
    if of > 0 { amount as f64 / of as f64 } else { 0.0 }
}

fn add_node(view: &View, trial: &mut Trial, group: usize, node: &Arc<Node>) {
    trial.set_node(Arc::clone(node));
    view.devices(group, name(node)).into_iter().for_each(|slice| trial.set_slice(Arc::new(slice)));
    for daemon in view.daemons(node) {
        trial.put(&daemon, name(node));
    }
}

/// Adds the nodes under way, and gives the pods that these and the present ones do not help.
fn settle(
    view: &View,
    templates: &[Option<Node>],
    trial: &mut Trial,
    waiting: Vec<Arc<Pod>>,
    awaiting: &mut usize,
) -> Vec<Arc<Pod>> {
    for (group, template) in templates.iter().enumerate() {
        let Some(template) = template else { continue };
        for number in 0..usize::try_from(view.upcoming(group)).unwrap_or(0) {
            add_node(view, trial, group, &view.instantiate(group, template, number));
        }
    }
    let before = waiting.len();
    let left: Vec<_> =
        waiting.into_iter().filter(|pod| matches!(trial.place(pod), Decision::Unschedulable(_))).collect();
    *awaiting = before - left.len();
    left
}

/// How many nodes of a group it takes for how many of the pods. The trial is afterwards what it was.
fn estimate(
    view: &View,
    trial: &mut Trial,
    group: usize,
    template: &Node,
    pods: &[Arc<Pod>],
    room: usize,
    first: usize,
) -> Choice {
    let mut nodes: Vec<Arc<Node>> = Vec::new();
    let mut used: HashSet<String> = HashSet::new();
    let mut placed: Vec<(usize, String)> = Vec::new();
    for (index, pod) in pods.iter().enumerate() {
        let mut decision = trial.place(pod);
        let fresh_is_empty = nodes.last().is_some_and(|node| !used.contains(name(node)));
        if matches!(decision, Decision::Unschedulable(_)) && nodes.len() < room && !fresh_is_empty {
            let node = view.instantiate(group, template, first + nodes.len());
            add_node(view, trial, group, &node);
            nodes.push(node);
            decision = trial.place(pod);
        }
        if let Decision::Place { node } = decision {
            used.insert(node.clone());
            placed.push((index, node));
        }
    }
    for (index, _) in &placed {
        trial.take(&pods[*index]);
    }
    for node in &nodes {
        view.daemons(node).iter().for_each(|daemon| trial.take(daemon));
        view.devices(group, name(node)).iter().for_each(|slice| {
            trial.remove_slice(slice.metadata.name.as_deref().unwrap_or_default());
        });
        trial.remove_node(name(node));
    }
    // The last may have been made for a pod that it does not help either.
    nodes.retain(|node| used.contains(name(node)));
    let capacity = Capacity::of(template).amounts;
    let (mut cpu, mut memory) = (0, 0);
    for (index, _) in &placed {
        let amounts = Request::of(&pods[*index]).amounts;
        cpu += amounts.cpu;
        memory += amounts.memory;
    }
    let count = i64::try_from(nodes.len()).unwrap_or(i64::MAX);
    let waste = 2.0 - share(cpu, capacity.cpu * count) - share(memory, capacity.memory * count);
    Choice { group, nodes, placed, waste }
}

/// The best by each expander in turn; those equal for all are chosen among by the clock.
fn choose(view: &View, settings: &ClusterAutoscalerSettings, mut choices: Vec<Choice>) -> Option<Choice> {
    for expander in &settings.expanders {
        match expander {
            ExpanderName::LeastWaste => {
                let least = choices.iter().map(|one| one.waste).min_by(f64::total_cmp)?;
                choices.retain(|one| one.waste <= least);
            }
            ExpanderName::Priority => {
                let matching = |one: &Choice| {
                    let id = &view.groups[one.group].id;
                    let found = settings.priorities.iter().find(|(_, all)| all.iter().any(|regex| regex.is_match(id)));
                    found.map(|(priority, _)| *priority)
                };
                let best = choices.iter().filter_map(matching).max();
                // Where no pattern fits any group, all are equal.
                choices.retain(|one| best.is_none() || matching(one) == best);
            }
            ExpanderName::Random => break,
        }
    }
    if choices.is_empty() {
        return None;
    }
    let lot = usize::try_from(view.now.as_millisecond().unsigned_abs()).unwrap_or(0) % choices.len();
    Some(choices.swap_remove(lot))
}

/// Why no group helps a pod, counted by reason.
fn reasons(
    view: &View,
    templates: &[Option<Node>],
    sizes: &[i32],
    closed: &HashMap<usize, &'static str>,
    settings: &ClusterAutoscalerSettings,
    pod: &Pod,
) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let total: i32 = sizes.iter().sum();
    for (group, template) in templates.iter().enumerate() {
        let mut add = |reason: &str| *counts.entry(reason.to_owned()).or_default() += 1;
        let Some(template) = template else {
            add("no template of its nodes");
            continue;
        };
        let mut alone = Trial::default();
        view.supply(&mut alone);
        add_node(view, &mut alone, group, &view.instantiate(group, template, 0));
        match alone.place(pod) {
            Decision::Unschedulable(why) => match &why.lack {
                Some(lack) => add(lack),
                None => why.reasons.keys().for_each(|refusal| add(&refusal.to_string())),
            },
            Decision::Place { .. } => match closed.get(&group) {
                Some(reason) => add(reason),
                None if sizes[group] >= view.groups[group].max => add("max node group size reached"),
                None if settings.most_nodes > 0 && total >= settings.most_nodes => {
                    add("max total nodes in cluster reached")
                }
                None => add("node(s) didn't satisfy rules between pods"),
            },
        }
    }
    if counts.is_empty() {
        return "there are no node groups".to_owned();
    }
    counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>().join(", ")
}
