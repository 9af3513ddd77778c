//! Machines that are not what they should be: never became nodes, failed, or were asked for in vain.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::provider::InstanceState;
use super::view::TO_BE_DELETED;
use super::view::{View, has_taint, name, provider_id, since};

/// How long a group that failed is left alone at first, and at most; and when that is forgotten.
const FIRST_BACKOFF: Duration = Duration::from_secs(5 * 60);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30 * 60);
const FORGIVEN: Duration = Duration::from_secs(3 * 3600);

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    pub since: Timestamp,
    pub length: Duration,
}

/// What is remembered from round to round of machines and groups.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Since when a machine is no node, by its id.
    unregistered: HashMap<String, Timestamp>,
    /// Since when a group has fewer machines than it should, by its id.
    short: HashMap<String, Timestamp>,
    backoff: HashMap<String, Backoff>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// A machine that will be no node.
    Remove { group: usize, instance: String, why: String },
    /// A wish that is not fulfilled.
    Decrease { group: usize, by: i32 },
    /// A node whose machine is gone.
    Forget { node: String },
}

impl Watched {
    pub fn failed(&mut self, group: &str, now: Timestamp) {
        let last = self.backoff.get(group).filter(|last| since(now, last.since) < FORGIVEN);
        let length = last.map_or(FIRST_BACKOFF, |last| (last.length * 2).min(LONGEST_BACKOFF));
        self.backoff.insert(group.to_owned(), Backoff { since: now, length });
    }

    /// Why and until when a group is left alone.
    pub fn backoff(&self, group: &str, now: Timestamp) -> Option<Duration> {
        let backoff = self.backoff.get(group)?;
        let left = backoff.length.saturating_sub(since(now, backoff.since));
        (!left.is_zero()).then_some(left)
    }

    /// How many machines of a group are no nodes, and how many of them too long.
    pub fn unregistered(&self, view: &View, group: usize) -> (usize, usize) {
        let of = &view.groups[group];
        let known = of.instances.iter().filter_map(|one| self.unregistered.get(&one.id));
        let ages: Vec<Duration> = known.map(|at| since(view.now, *at)).collect();
        (ages.len(), ages.iter().filter(|age| **age > of.options.provision).count())
    }

    /// Whether something is under way that no event will tell of.
    pub fn waits(&self) -> bool {
        !self.unregistered.is_empty() || !self.short.is_empty()
    }

    /// Looks at all machines. What is to be done follows from how long something has been wrong.
    pub fn look(&mut self, view: &View) -> Vec<Repair> {
        let mut repairs = Vec::new();
        let registered: HashSet<&str> = view.nodes.iter().map(|node| provider_id(node)).collect();
        let (mut unregistered, mut short) = (HashMap::new(), HashMap::new());
        for (group, of) in view.groups.iter().enumerate() {
            let mut size = of.target;
            let alive = of.instances.iter().filter(|one| one.state != InstanceState::Deleting);
            for one in alive.clone().filter(|one| !registered.contains(one.id.as_str())) {
                let at = self.unregistered.get(&one.id).copied().unwrap_or(view.now);
                let late = since(view.now, at) > of.options.provision;
                let why = match &one.error {
                    Some((code, text)) => Some(format!("{code}: {text}")),
                    None => late.then(|| format!("no node after {} seconds", of.options.provision.as_secs())),
                };
                // One that failed never took a place; one that is late may be somebody's least.
                if let Some(why) = why.filter(|_| one.error.is_some() || size > of.min) {
                    size -= 1;
                    self.failed(&of.id, view.now);
                    repairs.push(Repair::Remove { group, instance: one.id.clone(), why });
                }
                unregistered.insert(one.id.clone(), at);
            }
            let missing = of.target - i32::try_from(alive.count()).unwrap_or(i32::MAX);
            if missing > 0 {
                let at = self.short.get(&of.id).copied().unwrap_or(view.now);
                if since(view.now, at) > of.options.provision {
                    self.failed(&of.id, view.now);
                    repairs.push(Repair::Decrease { group, by: missing });
                } else {
                    short.insert(of.id.clone(), at);
                }
            }
        }
        (self.unregistered, self.short) = (unregistered, short);
        let machines: HashSet<&str> =
            view.groups.iter().flat_map(|group| &group.instances).map(|one| one.id.as_str()).collect();
        for node in view.nodes.iter().filter(|node| has_taint(node, TO_BE_DELETED)) {
            if !provider_id(node).is_empty() && !machines.contains(provider_id(node)) {
                repairs.push(Repair::Forget { node: name(node).to_owned() });
            }
        }
        repairs
    }
}
