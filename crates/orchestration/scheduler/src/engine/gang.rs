//! Pods that are placed all or not at all: groups that name the fewest pods with which they make sense.
//!
//! A group is what `spec.workloadRef` names, or the label of the scheduler-plugins' PodGroup. When one of its pods is taken
//! up, all that wait are decided together on the same snapshot; if too few find nodes, none keeps its node.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::{Outcome, State, node_name};
use crate::{PodKey, Unschedulable};

const LABEL: &str = "scheduling.x-k8s.io/pod-group";
/// Labels of pods that bring the rule themselves, without any other object.
const OWN_NAME: &str = "pod-group.scheduling.sigs.k8s.io/name";
const OWN_LEAST: &str = "pod-group.scheduling.sigs.k8s.io/min-available";

/// Namespace, the kind of reference, and the names it consists of.
pub(crate) type GroupKey = (String, &'static str, String);

/// How many of a group's pods have to be placed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupRule {
    /// One by one, as pods are.
    Basic,
    Gang(usize),
}

#[derive(Default)]
pub(crate) struct Groups {
    /// By what pods name; the rest of a workload reference's name is its replica.
    rules: HashMap<GroupKey, GroupRule>,
    members: HashMap<GroupKey, BTreeSet<PodKey>>,
    of: HashMap<PodKey, (GroupKey, GroupKey)>,
}

/// The members' group, and the one whose rule counts.
fn named(key: &PodKey, pod: &Pod) -> Option<(GroupKey, GroupKey)> {
    if let Some(reference) = pod.spec.as_ref().and_then(|spec| spec.workload_ref.as_ref()) {
        let rule = format!("{}/{}", reference.name, reference.pod_group);
        let replica = reference.pod_group_replica_key.as_deref().unwrap_or_default();
        let group = (key.0.clone(), "Workload", format!("{rule}/{replica}"));
        return Some((group, (key.0.clone(), "Workload", rule)));
    }
    let label = |label: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(label));
    if let (Some(name), Some(_)) = (label(OWN_NAME), own_least(pod)) {
        let group = (key.0.clone(), "labels", name.clone());
        return Some((group.clone(), group));
    }
    let name = label(LABEL)?;
    let group = (key.0.clone(), "PodGroup", name.clone());
    Some((group.clone(), group))
}

fn own_least(pod: &Pod) -> Option<usize> {
    pod.metadata.labels.as_ref()?.get(OWN_LEAST)?.parse().ok()
}

impl Groups {
    pub fn see(&mut self, key: &PodKey, pod: &Pod) {
        let new = named(key, pod);
        if self.of.get(key) == new.as_ref() {
            return;
        }
        self.forget(key);
        if let Some(new) = new {
            self.members.entry(new.0.clone()).or_default().insert(key.clone());
            self.of.insert(key.clone(), new);
        }
    }

    pub fn forget(&mut self, key: &PodKey) {
        let Some((group, _)) = self.of.remove(key) else { return };
        if let Some(members) = self.members.get_mut(&group) {
            members.remove(key);
            if members.is_empty() {
                self.members.remove(&group);
            }
        }
    }
}

impl super::Engine {
    /// The rules of a workload's or PodGroup's groups, by name; `None` for those that are gone.
    pub fn groups_changed(&self, namespace: &str, kind: &'static str, rules: &[(String, Option<GroupRule>)]) {
        let mut state = self.state.lock();
        for (name, rule) in rules {
            let key = (namespace.to_owned(), kind, name.clone());
            match rule {
                Some(rule) => drop(state.groups.rules.insert(key, *rule)),
                None => drop(state.groups.rules.remove(&key)),
            }
        }
        state.events.all = true;
        drop(state);
        self.changed.notify_one();
    }
}

impl State {
    pub(super) fn decide_all(&mut self, key: &PodKey, pod: &Arc<Pod>) -> Vec<(PodKey, Arc<Pod>, Outcome)> {
        self.groups.see(key, pod);
        let Some((group, rule)) = self.groups.of.get(key).cloned() else {
            return vec![(key.clone(), Arc::clone(pod), self.decide(key, pod))];
        };
        let own = || own_least(pod).filter(|_| rule.1 == "labels").map(GroupRule::Gang);
        match self.groups.rules.get(&rule).copied().or_else(own) {
            Some(GroupRule::Basic) => vec![(key.clone(), Arc::clone(pod), self.decide(key, pod))],
            Some(GroupRule::Gang(least)) => self.decide_gang(key, pod, &group, least),
            None => {
                let what = format!("waiting for {} {:?} to exist", rule.1, rule.2);
                vec![(key.clone(), Arc::clone(pod), self.hold(key, pod, what))]
            }
        }
    }

    /// The pod waits with a reason that no node has a part in.
    fn hold(&mut self, key: &PodKey, pod: &Arc<Pod>, lack: String) -> Outcome {
        let Some(decider) = self.deciders.get(State::decider_name(pod)) else { return Outcome::Ignore };
        let signature = decider.signature(&self.snapshot, pod);
        self.queue.park(key, pod, signature);
        Outcome::Wait(Unschedulable {
            nodes: self.snapshot.live().max(1),
            lack: Some(lack),
            ..Unschedulable::default()
        })
    }

    fn decide_gang(
        &mut self,
        key: &PodKey,
        pod: &Arc<Pod>,
        group: &GroupKey,
        least: usize,
    ) -> Vec<(PodKey, Arc<Pod>, Outcome)> {
        if self.outcome_is_known(key) || !self.wants(pod) {
            return vec![(key.clone(), Arc::clone(pod), self.decide(key, pod))];
        }
        let members = self.groups.members.get(group).cloned().unwrap_or_default();
        let placed = members.iter().filter(|member| self.snapshot.node_of(member).is_some()).count();
        let mut open: BTreeMap<PodKey, Arc<Pod>> = BTreeMap::new();
        for member in members.iter().filter(|member| *member != key) {
            let known = self.queue.get(member).cloned();
            if let Some(known) = known.filter(|known| node_name(known).is_none() && self.wants(known)) {
                open.insert(member.clone(), known);
            }
        }
        open.insert(key.clone(), Arc::clone(pod));
        for member in open.keys() {
            self.queue.take(member);
        }
        let (have, name) = (placed + open.len(), &group.2);
        let mut outcomes = Vec::new();
        if have < least {
            let lack = format!("pod group {name} has {have} of the {least} pods it needs to start");
            for (member, pod) in open {
                let outcome = self.hold(&member, &pod, lack.clone());
                outcomes.push((member, pod, outcome));
            }
            return outcomes;
        }
        let mut failed: Vec<(PodKey, Arc<Pod>, Unschedulable)> = Vec::new();
        let arrived = self.events.arrived;
        for (member, pod) in open {
            match self.try_place(&pod) {
                Ok(node) => {
                    let outcome = self.assume(&member, &pod, &node);
                    outcomes.push((member, pod, outcome));
                }
                Err(unplaced) => {
                    let (why, signature) = *unplaced;
                    self.queue.park(&member, &pod, signature);
                    failed.push((member, pod, why));
                }
            }
        }
        let found = placed + outcomes.len();
        if found >= least {
            outcomes.extend(failed.into_iter().map(|(key, pod, why)| (key, pod, Outcome::Wait(why))));
            return outcomes;
        }
        // All or none: those that found a node give it back.
        let short = format!("{found} of the {least} pods that pod group {name} needs find a node");
        let mut held = Vec::new();
        // What is taken back was never there for others to see.
        self.events.arrived = arrived;
        for (member, pod, _) in outcomes {
            if let Some(assumed) = self.release(&member) {
                self.give_devices_back(&assumed);
            }
            self.snapshot.remove_pod(&member);
            let outcome = self.hold(&member, &pod, short.clone());
            held.push((member, pod, outcome));
        }
        for (member, pod, mut why) in failed {
            why.preemption = None;
            why.advice = Some(match why.advice.take() {
                Some(advice) => format!("Only {short}. {advice}"),
                None => format!("Only {short}."),
            });
            held.push((member, pod, Outcome::Wait(why)));
        }
        held
    }

    fn outcome_is_known(&self, key: &PodKey) -> bool {
        self.assumed.contains_key(key) || self.snapshot.node_of(key).is_some()
    }
}
