//! All nodes for one shape of pod, kept from one decision to the next.
//!
//! Nodes that are alike for every rule but differ in how full they are share a bucket: a heap by the score that a node has
//! of itself. Rules that compare nodes (affinity, spread, normalisation) are asked once per bucket. A change of a node
//! moves that node alone, when the ranking is asked next.

mod fixed;
mod rules;
mod tally;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::counts::{Slot, TermId};
use crate::profile::Profile;
use crate::reasons::Refusal;
use crate::resources::Amounts;
use crate::score;
use crate::shape::{Shape, SharedShape};
use crate::snapshot::{HostPort, NodeInfo, Nominee, PodKey, Snapshot};

use fixed::Fixed;
use rules::Rules;

const NONE: u32 = u32::MAX;

/// A node as the ranking saw it last.
#[derive(Debug, Clone)]
struct Row {
    version: u64,
    fixed: Fixed,
    bucket: u32,
    score: i64,
}

#[derive(Debug, Default)]
struct Bucket {
    /// Counted taints, weight of preferred node affinity, then one part per rule.
    key: Box<[i64]>,
    heap: BinaryHeap<(i64, Reverse<Slot>)>,
    nodes: usize,
}

pub(crate) struct Ranking {
    pub shape: SharedShape,
    epoch: (u64, u64),
    images_epoch: u64,
    cursor: u64,
    rows: Vec<Row>,
    buckets: Vec<Bucket>,
    by_key: HashMap<Box<[i64]>, u32>,
    rules: Rules,
    /// Of the last time that no node would do, and until which change it is true.
    pub(crate) refused: Option<(u64, std::sync::Arc<crate::Unschedulable>)>,
}

/// A node that will do, with its whole score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    pub slot: Slot,
    pub score: i64,
}

impl Ranking {
    pub fn new(snapshot: &mut Snapshot, profile: &Profile, shape: SharedShape, kept: &[TermId]) -> Self {
        snapshot.counts.make_room();
        let rules = Rules::new(snapshot, profile, &shape, kept);
        let mut ranking = Self {
            epoch: snapshot.epoch(),
            images_epoch: snapshot.images_epoch(),
            cursor: snapshot.log_end(),
            rows: Vec::with_capacity(snapshot.size()),
            buckets: Vec::new(),
            by_key: HashMap::new(),
            rules,
            refused: None,
            shape,
        };
        for slot in 0..snapshot.size() {
            ranking.repair_one(snapshot, profile, slot as Slot);
        }
        ranking
    }

    /// Whether it can still be repaired.
    pub fn is_valid(&self, snapshot: &Snapshot) -> bool {
        let images = self.shape.images.is_empty() || self.images_epoch == snapshot.images_epoch();
        self.epoch == snapshot.epoch() && images
    }

    /// Brings it up to date with the nodes that changed.
    pub fn repair(&mut self, snapshot: &Snapshot, profile: &Profile) {
        match snapshot.changed_since(self.cursor) {
            Some(changed) => {
                for slot in changed {
                    self.repair_one(snapshot, profile, *slot);
                }
            }
            None => {
                for slot in 0..snapshot.size() {
                    self.repair_one(snapshot, profile, slot as Slot);
                }
            }
        }
        self.cursor = snapshot.log_end();
    }

    fn repair_one(&mut self, snapshot: &Snapshot, profile: &Profile, slot: Slot) {
        let index = slot as usize;
        while self.rows.len() <= index {
            self.rows.push(Row { version: 0, fixed: Fixed::default(), bucket: NONE, score: 0 });
        }
        let info = snapshot.row(slot);
        if self.rows[index].version == info.version && info.version != 0 {
            return;
        }
        self.rows[index].version = info.version;
        self.rows[index].fixed.update(profile, &self.shape, info, &self.rules);
        let fixed = &self.rows[index].fixed;
        self.rules.repair(snapshot, slot, fixed);
        let open = fixed.refusal.is_none()
            && info.node.is_some()
            && fits(profile, &self.shape, info)
            && fits_beside_nominees(profile, &self.shape, info, None);
        let (bucket, score) = match open {
            true => {
                let key = self.rules.key(snapshot, slot, fixed);
                (self.bucket(key), score::local(profile, &self.shape, info, snapshot))
            }
            false => (NONE, 0),
        };
        self.move_to(slot, bucket, score);
    }

    fn bucket(&mut self, key: Vec<i64>) -> u32 {
        if let Some(bucket) = self.by_key.get(&key[..]) {
            return *bucket;
        }
        let key = key.into_boxed_slice();
        let bucket = self.buckets.len() as u32;
        self.buckets.push(Bucket { key: key.clone(), ..Bucket::default() });
        self.by_key.insert(key, bucket);
        bucket
    }

    fn move_to(&mut self, slot: Slot, bucket: u32, score: i64) {
        let row = &mut self.rows[slot as usize];
        if row.bucket == bucket && row.score == score {
            return;
        }
        let old = std::mem::replace(&mut row.bucket, bucket);
        row.score = score;
        if old != bucket {
            if let Some(old) = self.buckets.get_mut(old as usize) {
                old.nodes -= 1;
            }
            if let Some(new) = self.buckets.get_mut(bucket as usize) {
                new.nodes += 1;
            }
        }
        if let Some(new) = self.buckets.get_mut(bucket as usize) {
            new.heap.push((score, Reverse(slot)));
            if new.heap.len() > 4 * new.nodes + 64 {
                let rows = &self.rows;
                new.heap.retain(|(score, Reverse(slot))| {
                    let row = &rows[*slot as usize];
                    row.bucket == bucket && row.score == *score
                });
            }
        }
    }

    /// The best node of a bucket, after dropping what is no longer true of the heap.
    fn top(&mut self, bucket: usize) -> Option<(i64, Slot)> {
        let (rows, heap) = (&self.rows, &mut self.buckets[bucket].heap);
        while let Some((score, Reverse(slot))) = heap.peek() {
            let row = &rows[*slot as usize];
            if row.bucket as usize == bucket && row.score == *score {
                return Some((*score, *slot));
            }
            heap.pop();
        }
        None
    }

    /// The best node of all; of equals the one that was known first.
    pub fn best(&mut self, profile: &Profile) -> Option<Choice> {
        let floor = self.rules.floor();
        let mut open = Vec::new();
        for bucket in 0..self.buckets.len() {
            if self.buckets[bucket].nodes > 0 && self.rules.refuses(&self.buckets[bucket].key, &floor).is_none() {
                open.extend(self.top(bucket).map(|top| (bucket, top)));
            }
        }
        let sizes: Vec<(&[i64], usize)> =
            open.iter().map(|(bucket, _)| (&*self.buckets[*bucket].key, self.buckets[*bucket].nodes)).collect();
        let shared = self.rules.shared_scores(profile, &sizes);
        let choices = open.iter().zip(shared).map(|((_, (own, slot)), shared)| (own + shared, Reverse(*slot)));
        choices.max().map(|(score, Reverse(slot))| Choice { slot, score })
    }

    /// Among nodes that a further rule left over.
    pub fn best_of(&self, profile: &Profile, slots: &[Slot]) -> Option<Choice> {
        let plain: Vec<(Slot, i64)> = slots.iter().map(|slot| (*slot, 0)).collect();
        self.best_with(profile, &plain)
    }

    /// The same with something added to each node's score.
    pub fn best_with(&self, profile: &Profile, slots: &[(Slot, i64)]) -> Option<Choice> {
        let mut sizes: HashMap<u32, usize> = HashMap::new();
        for (slot, _) in slots {
            *sizes.entry(self.rows[*slot as usize].bucket).or_default() += 1;
        }
        let buckets: Vec<u32> = sizes.keys().copied().collect();
        let keyed: Vec<(&[i64], usize)> =
            buckets.iter().map(|bucket| (&*self.buckets[*bucket as usize].key, sizes[bucket])).collect();
        let shared = self.rules.shared_scores(profile, &keyed);
        let shared: HashMap<u32, i64> = buckets.into_iter().zip(shared).collect();
        let scored = slots.iter().map(|(slot, more)| {
            let row = &self.rows[*slot as usize];
            (
                row.score.saturating_add(shared.get(&row.bucket).copied().unwrap_or(0)).saturating_add(*more),
                Reverse(*slot),
            )
        });
        scored.max().map(|(score, Reverse(slot))| Choice { slot, score })
    }

    /// All nodes that will do.
    pub fn open(&self) -> Vec<Slot> {
        let floor = self.rules.floor();
        let refused: Vec<bool> =
            self.buckets.iter().map(|bucket| self.rules.refuses(&bucket.key, &floor).is_some()).collect();
        let rows = self.rows.iter().enumerate();
        let open = rows.filter(|(_, row)| refused.get(row.bucket as usize).is_some_and(|refused| !refused));
        open.map(|(slot, _)| slot as Slot).collect()
    }

    /// Whether a node will do.
    pub fn allows(&self, slot: Slot) -> bool {
        let Some(row) = self.rows.get(slot as usize) else { return false };
        let bucket = self.buckets.get(row.bucket as usize);
        bucket.is_some_and(|bucket| self.rules.refuses(&bucket.key, &self.rules.floor()).is_none())
    }

    /// Whether it will do for the pod that the room on it is kept for.
    pub fn allows_nominee(&self, snapshot: &Snapshot, profile: &Profile, slot: Slot, pod: &PodKey) -> bool {
        let info = snapshot.row(slot);
        let Some(row) = self.rows.get(slot as usize) else { return false };
        info.node.is_some()
            && row.fixed.refusal.is_none()
            && fits(profile, &self.shape, info)
            && fits_beside_nominees(profile, &self.shape, info, Some(pod))
            && self.rules.refuses(&self.rules.key(snapshot, slot, &row.fixed), &self.rules.floor()).is_none()
    }

    /// Whether room is all that the node may lack, and pods that end there take nothing from this one: then sums of amounts
    /// say whether it fits without some of them.
    pub fn asks_room_alone(&self, snapshot: &Snapshot, slot: Slot) -> bool {
        let Some(row) = self.rows.get(slot as usize) else { return false };
        let shape = &self.shape;
        shape.ports.is_empty()
            && shape.affinity.is_empty()
            && shape.spread.iter().all(|spread| !spread.hard)
            && row.fixed.refusal.is_none()
            && self.rules.refuses(&self.rules.key(snapshot, slot, &row.fixed), &self.rules.floor()).is_none()
    }

    /// What is used on the node or promised to others than this pod, and by how many.
    pub fn taken_from(&self, info: &NodeInfo, pod: &PodKey) -> (Amounts, i64) {
        with_nominees(&self.shape, info, Some(pod))
    }

    /// Whether there would be room if this much were used by so many pods.
    pub fn has_room(&self, profile: &Profile, info: &NodeInfo, used: &Amounts, pods: i64) -> bool {
        !profile.filters.fit || has_room(profile, &self.shape, info, used, pods)
    }

    /// Why a node will not do; empty if it will.
    pub fn refusals(&self, snapshot: &Snapshot, profile: &Profile, slot: Slot) -> Vec<Refusal> {
        let info = snapshot.row(slot);
        let fixed = &self.rows[slot as usize].fixed;
        if let Some(refusal) = &fixed.refusal {
            return vec![refusal.clone()];
        }
        if profile.filters.ports && ports_taken(&self.shape.ports, info) {
            return vec![Refusal::Ports];
        }
        let mut short = shortages(profile, &self.shape, info, &info.used, info.pods);
        if short.is_empty() && !fits_beside_nominees(profile, &self.shape, info, None) {
            let (used, pods) = with_nominees(&self.shape, info, None);
            short = shortages(profile, &self.shape, info, &used, pods);
            if short.is_empty() {
                short.push(Refusal::Ports);
            }
        }
        if !short.is_empty() {
            return short;
        }
        self.rules.refuses(&self.rules.key(snapshot, slot, fixed), &self.rules.floor()).into_iter().collect()
    }
}

pub(crate) fn ports_taken(wanted: &[HostPort], info: &NodeInfo) -> bool {
    wanted.iter().any(|wanted| info.ports.keys().any(|taken| taken.conflicts(wanted)))
}

/// Ports and room of the node alone.
fn fits(profile: &Profile, shape: &Shape, info: &NodeInfo) -> bool {
    let ports = !profile.filters.ports || shape.ports.is_empty() || !ports_taken(&shape.ports, info);
    ports && (!profile.filters.fit || has_room(profile, shape, info, &info.used, info.pods))
}

/// Pods of at least this priority that were promised room.
fn rivals<'a>(shape: &'a Shape, info: &'a NodeInfo, except: Option<&'a PodKey>) -> impl Iterator<Item = &'a Nominee> {
    info.nominees.iter().filter(move |nominee| nominee.priority >= shape.priority && Some(&nominee.key) != except)
}

/// What is used, and what others were promised.
fn with_nominees(shape: &Shape, info: &NodeInfo, except: Option<&PodKey>) -> (Amounts, i64) {
    let (mut used, mut pods) = (info.used.clone(), info.pods);
    for nominee in rivals(shape, info, except) {
        used.add(&nominee.request.amounts);
        pods += 1;
    }
    (used, pods)
}

fn fits_beside_nominees(profile: &Profile, shape: &Shape, info: &NodeInfo, except: Option<&PodKey>) -> bool {
    if info.nominees.is_empty() {
        return true;
    }
    let clash = rivals(shape, info, except)
        .any(|nominee| nominee.ports.iter().any(|p| shape.ports.iter().any(|w| p.conflicts(w))));
    let (used, pods) = with_nominees(shape, info, except);
    (!profile.filters.ports || !clash) && (!profile.filters.fit || has_room(profile, shape, info, &used, pods))
}

fn has_room(profile: &Profile, shape: &Shape, info: &NodeInfo, used: &Amounts, pods: i64) -> bool {
    let (want, have) = (&shape.request.amounts, &info.capacity.amounts);
    let enough = |want: i64, used: i64, have: i64| want <= 0 || want <= have.saturating_sub(used);
    pods < info.capacity.pods
        && enough(want.cpu, used.cpu, have.cpu)
        && enough(want.memory, used.memory, have.memory)
        && enough(want.ephemeral, used.ephemeral, have.ephemeral)
        && want
            .extended
            .iter()
            .all(|(name, want)| profile.ignores(name) || enough(*want, used.get(name), have.get(name)))
}

fn shortages(profile: &Profile, shape: &Shape, info: &NodeInfo, used: &Amounts, pods: i64) -> Vec<Refusal> {
    let mut short = Vec::new();
    if !profile.filters.fit {
        return short;
    }
    if pods >= info.capacity.pods {
        short.push(Refusal::TooManyPods);
    }
    for (name, want) in shape.request.amounts.each() {
        let have = info.capacity.amounts.get(name);
        // What is not asked for cannot be lacking, even on an overfull node.
        if want > 0 && want > have.saturating_sub(used.get(name)) && !profile.ignores(name) {
            short.push(Refusal::Insufficient { resource: name.to_owned(), ever: want <= have });
        }
    }
    short
}
