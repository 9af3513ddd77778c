//! How many pods a rule finds in each domain of its topology, kept up node by node.

use std::collections::BTreeMap;

use crate::counts::{CountId, Slot, TermId};
use crate::snapshot::Snapshot;
use crate::topologies::{NOWHERE, TopologyId};

#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    Counted(CountId),
    Carried(TermId),
}

impl Source {
    fn on(self, snapshot: &Snapshot, slot: Slot) -> i64 {
        match self {
            Self::Counted(id) => snapshot.counts.counted_on(id, slot),
            Self::Carried(id) => snapshot.counts.carried_on(id, slot),
        }
    }
}

/// A node that has no such label, as part of a bucket's key.
pub(super) const MISSING: i64 = i64::MIN;

#[derive(Debug)]
pub(super) struct Tally {
    source: Source,
    pub topology: TopologyId,
    /// Each node is a domain: the count itself is the key's part, and there are no sums.
    pub fine: bool,
    /// Only whether there are any matters.
    any: bool,
    sums: Vec<i64>,
    /// Nodes that count, by domain.
    nodes: Vec<u32>,
    /// Of a fine topology: nodes that count, by count.
    histogram: BTreeMap<i64, u32>,
    /// By slot: domain and count as they are in the sums.
    seen: Vec<(u32, i64)>,
    pub total: i64,
}

impl Tally {
    pub fn new(snapshot: &Snapshot, source: Source, topology: TopologyId, any: bool) -> Self {
        let of = snapshot.topology(topology);
        Self {
            source,
            topology,
            fine: of.is_fine(),
            any,
            sums: vec![0; of.domains()],
            nodes: vec![0; of.domains()],
            histogram: BTreeMap::new(),
            seen: Vec::new(),
            total: 0,
        }
    }

    /// `counts`: whether the node is one of those that the rule looks at.
    pub fn repair(&mut self, snapshot: &Snapshot, slot: Slot, counts: bool) {
        let index = slot as usize;
        if self.seen.len() <= index {
            self.seen.resize(index + 1, (NOWHERE, 0));
        }
        let domain = if counts { snapshot.topology(self.topology).domain(slot) } else { NOWHERE };
        let count = if domain == NOWHERE { 0 } else { self.source.on(snapshot, slot) };
        let old = std::mem::replace(&mut self.seen[index], (domain, count));
        if old == (domain, count) {
            return;
        }
        self.total += count - old.1;
        if self.fine {
            if old.0 != NOWHERE
                && let Some(nodes) = self.histogram.get_mut(&old.1)
            {
                *nodes -= 1;
                if *nodes == 0 {
                    self.histogram.remove(&old.1);
                }
            }
            if domain != NOWHERE {
                *self.histogram.entry(count).or_default() += 1;
            }
            return;
        }
        if old.0 != NOWHERE {
            self.sums[old.0 as usize] -= old.1;
            self.nodes[old.0 as usize] -= 1;
        }
        if domain != NOWHERE {
            if self.sums.len() <= domain as usize {
                self.sums.resize(domain as usize + 1, 0);
                self.nodes.resize(domain as usize + 1, 0);
            }
            self.sums[domain as usize] += count;
            self.nodes[domain as usize] += 1;
        }
    }

    /// The node's part of a bucket's key.
    pub fn part(&self, snapshot: &Snapshot, slot: Slot) -> i64 {
        let domain = snapshot.topology(self.topology).domain(slot);
        match (domain, self.fine) {
            (NOWHERE, _) => MISSING,
            (_, false) => i64::from(domain),
            (_, true) => {
                let count = self.source.on(snapshot, slot);
                if self.any { count.signum() } else { count }
            }
        }
    }

    /// The count in the domain that a key's part stands for.
    pub fn count(&self, part: i64) -> Option<i64> {
        match (part, self.fine) {
            (MISSING, _) => None,
            (count, true) => Some(count),
            (domain, false) => Some(self.sums.get(domain as usize).copied().unwrap_or(0)),
        }
    }

    /// The smallest count of any domain, and how many domains there are.
    pub fn least(&self) -> (i64, usize) {
        if self.fine {
            let least = self.histogram.first_key_value().map_or(0, |(count, _)| *count);
            return (least, self.histogram.values().map(|nodes| *nodes as usize).sum());
        }
        let there = || self.sums.iter().zip(&self.nodes).filter(|(_, nodes)| **nodes > 0);
        (there().map(|(sum, _)| *sum).min().unwrap_or(0), there().count())
    }
}
