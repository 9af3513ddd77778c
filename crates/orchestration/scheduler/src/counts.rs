//! How many pods that a rule is about are on each node. Pods with equal namespaces and labels form a group, so a rule is
//! compared with groups and not with pods.

use std::collections::HashMap;

use crate::selecting::{Labels, Matcher};
use crate::shape::Carried;

pub(crate) type Slot = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct CountId(u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TermId(u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupId(u32);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct GroupKey {
    namespace: String,
    labels: Labels,
    leaving: bool,
}

#[derive(Debug, Clone)]
struct Group {
    key: GroupKey,
    pods: usize,
    nodes: HashMap<Slot, i64>,
    counted_by: Vec<CountId>,
}

#[derive(Debug, Clone)]
struct Counted {
    matcher: Matcher,
    nodes: HashMap<Slot, i64>,
}

#[derive(Debug, Clone)]
struct Carrying {
    what: Carried,
    nodes: HashMap<Slot, i64>,
}

/// Rules that nothing uses any more are only forgotten together: beyond this many, all are, and come back when asked for.
const MANY: usize = 8192;

#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    groups: Vec<Group>,
    free: Vec<u32>,
    group_of: HashMap<GroupKey, GroupId>,
    counted: Vec<Counted>,
    count_of: HashMap<Matcher, CountId>,
    carried: Vec<Carrying>,
    carried_of: HashMap<Carried, TermId>,
    namespaces: HashMap<String, Labels>,
    /// Changes when identifiers lose their meaning.
    pub epoch: u64,
}

fn add(nodes: &mut HashMap<Slot, i64>, slot: Slot, amount: i64) {
    let count = nodes.entry(slot).or_default();
    *count += amount;
    if *count == 0 {
        nodes.remove(&slot);
    }
}

impl Counts {
    pub fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }

    /// Says whether rules may now be about other pods.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) -> bool {
        let old = match labels {
            Some(labels) if self.namespaces.get(name) == Some(&labels) => return false,
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
        let selects = |matcher: &Matcher| matcher.all.iter().any(|one| one.namespace_selector.is_some());
        let carried = self.carried.iter().any(|c| c.what.term.about.namespace_selector.is_some());
        let matters = carried || self.counted.iter().any(|c| selects(&c.matcher));
        if matters && (old.is_some() || self.groups.iter().any(|g| g.pods > 0 && g.key.namespace == name)) {
            self.forget_rules();
            return true;
        }
        matters
    }

    fn forget_rules(&mut self) {
        self.epoch += 1;
        self.counted.clear();
        self.count_of.clear();
        self.groups.iter_mut().for_each(|group| group.counted_by.clear());
    }

    /// One more pod of this kind on a node.
    pub fn enter(&mut self, namespace: &str, labels: &Labels, leaving: bool, slot: Slot) -> GroupId {
        let key = GroupKey { namespace: namespace.to_owned(), labels: labels.clone(), leaving };
        let id = match self.group_of.get(&key) {
            Some(id) => *id,
            None => self.new_group(key),
        };
        let group = &mut self.groups[id.0 as usize];
        group.pods += 1;
        add(&mut group.nodes, slot, 1);
        for count in &group.counted_by {
            add(&mut self.counted[count.0 as usize].nodes, slot, 1);
        }
        id
    }

    fn new_group(&mut self, key: GroupKey) -> GroupId {
        let of_namespace = self.namespaces.get(&key.namespace);
        let holds = |c: &Counted| c.matcher.holds(&key.namespace, &key.labels, key.leaving, of_namespace);
        let counted_by =
            self.counted.iter().enumerate().filter(|(_, c)| holds(c)).map(|(i, _)| CountId(i as u32)).collect();
        let group = Group { key: key.clone(), pods: 0, nodes: HashMap::new(), counted_by };
        let id = match self.free.pop() {
            Some(index) => {
                self.groups[index as usize] = group;
                GroupId(index)
            }
            None => {
                self.groups.push(group);
                GroupId(self.groups.len() as u32 - 1)
            }
        };
        self.group_of.insert(key, id);
        id
    }

    pub fn leave(&mut self, id: GroupId, slot: Slot) {
        let group = &mut self.groups[id.0 as usize];
        group.pods -= 1;
        add(&mut group.nodes, slot, -1);
        for count in &group.counted_by {
            add(&mut self.counted[count.0 as usize].nodes, slot, -1);
        }
        if group.pods == 0 {
            self.group_of.remove(&group.key);
            group.counted_by.clear();
            self.free.push(id.0);
        }
    }

    pub fn group_labels(&self, id: GroupId) -> &Labels {
        &self.groups[id.0 as usize].key.labels
    }

    pub fn is_leaving(&self, id: GroupId) -> bool {
        self.groups[id.0 as usize].key.leaving
    }

    /// To be asked before identifiers are taken that have to be valid together.
    pub fn make_room(&mut self) {
        if self.counted.len() >= MANY {
            self.forget_rules();
        }
    }

    /// Counts from now on, and what is there already.
    pub fn count(&mut self, matcher: &Matcher) -> CountId {
        if let Some(id) = self.count_of.get(matcher) {
            return *id;
        }
        let id = CountId(self.counted.len() as u32);
        let mut nodes = HashMap::new();
        for group in self.groups.iter_mut().filter(|group| group.pods > 0) {
            let of_namespace = self.namespaces.get(&group.key.namespace);
            if matcher.holds(&group.key.namespace, &group.key.labels, group.key.leaving, of_namespace) {
                group.counted_by.push(id);
                group.nodes.iter().for_each(|(slot, count)| add(&mut nodes, *slot, *count));
            }
        }
        self.counted.push(Counted { matcher: matcher.clone(), nodes });
        self.count_of.insert(matcher.clone(), id);
        id
    }

    pub fn counted_on(&self, id: CountId, slot: Slot) -> i64 {
        self.counted.get(id.0 as usize).and_then(|c| c.nodes.get(&slot)).copied().unwrap_or(0)
    }

    pub fn carry(&mut self, what: &Carried, weight: i64, slot: Slot) {
        let id = match self.carried_of.get(what) {
            Some(id) => *id,
            None => {
                let id = TermId(self.carried.len() as u32);
                self.carried.push(Carrying { what: what.clone(), nodes: HashMap::new() });
                self.carried_of.insert(what.clone(), id);
                id
            }
        };
        add(&mut self.carried[id.0 as usize].nodes, slot, weight);
    }

    pub fn uncarry(&mut self, what: &Carried, weight: i64, slot: Slot) {
        let Some(id) = self.carried_of.get(what) else { return };
        add(&mut self.carried[id.0 as usize].nodes, slot, -weight);
        if self.carried.len() > MANY && self.carried.iter().filter(|c| !c.nodes.is_empty()).count() < MANY / 2 {
            self.carried.retain(|c| !c.nodes.is_empty());
            let ids = self.carried.iter().enumerate();
            self.carried_of = ids.map(|(i, c)| (c.what.clone(), TermId(i as u32))).collect();
            self.epoch += 1;
        }
    }

    /// The carried terms that are about a pod.
    pub fn carried_about(&self, namespace: &str, labels: &Labels) -> Vec<TermId> {
        let of_namespace = self.namespaces.get(namespace);
        let about = |c: &Carrying| c.what.term.about.holds(namespace, labels, of_namespace);
        self.carried.iter().enumerate().filter(|(_, c)| about(c)).map(|(i, _)| TermId(i as u32)).collect()
    }

    pub fn carried(&self, id: TermId) -> &Carried {
        &self.carried[id.0 as usize].what
    }

    pub fn carried_on(&self, id: TermId, slot: Slot) -> i64 {
        self.carried.get(id.0 as usize).and_then(|c| c.nodes.get(&slot)).copied().unwrap_or(0)
    }
}
