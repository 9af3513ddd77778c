//! Rules between pods, asked per bucket: required and preferred affinity and anti-affinity, spread, and normalisation.

use k8s_openapi::api::core::v1::Node;

use super::fixed::Fixed;
use super::tally::{MISSING, Source, Tally};
use crate::counts::{Slot, TermId};
use crate::profile::Profile;
use crate::reasons::Refusal;
use crate::score::MAX;
use crate::selecting::Matcher;
use crate::shape::Shape;
use crate::snapshot::Snapshot;

const HOSTNAME: &str = "kubernetes.io/hostname";
/// Parts of a bucket's key before those of rules.
const FIXED: usize = 2;

#[derive(Debug)]
enum Rule {
    /// Some pod is in the domain that all terms are about.
    Near,
    /// No pod is in the domain that this term is about.
    Apart,
    /// No pod is in the domain that keeps such as this one away.
    Kept,
    /// Not many more than in the domain with the fewest.
    Spread { index: usize },
    /// Only weighs.
    Weighs { weight: i64 },
    /// The fewer the better.
    Evenly { index: usize },
}

pub(super) struct Rules {
    all: Vec<(Rule, Tally)>,
    /// The pod may be the first of those that want to be together.
    may_be_first: bool,
    hard_keys: Vec<String>,
    soft_keys: Vec<String>,
    spreads: Vec<(i64, i64, i64)>,
    own_spread: bool,
    hostname: Vec<bool>,
}

/// What spread constraints compare with: by rule, the fewest pods of any domain.
pub(super) struct Floor(Vec<i64>, bool);

impl Rules {
    pub fn new(snapshot: &mut Snapshot, profile: &Profile, shape: &Shape, kept: &[TermId]) -> Self {
        let mut all = Vec::new();
        let filters = &profile.filters;
        let keys = |hard: bool| shape.spread.iter().filter(|s| s.hard == hard).map(|s| s.key.clone()).collect();
        for (index, spread) in shape.spread.iter().enumerate().take(64) {
            let wanted = if spread.hard { filters.spread } else { profile.weights.spread != 0 };
            if wanted {
                let source = Source::Counted(snapshot.counts.count(&spread.counted));
                let topology = snapshot.find_topology(&spread.key);
                let rule = if spread.hard { Rule::Spread { index } } else { Rule::Evenly { index } };
                all.push((rule, Tally::new(snapshot, source, topology, false)));
            }
        }
        let one = |about: &crate::selecting::PodMatch| Matcher { all: vec![about.clone()], alive: false };
        if filters.pod_affinity {
            let together = Matcher { all: shape.affinity.iter().map(|t| t.about.clone()).collect(), alive: false };
            for term in &shape.affinity {
                let source = Source::Counted(snapshot.counts.count(&together));
                let topology = snapshot.find_topology(&term.key);
                all.push((Rule::Near, Tally::new(snapshot, source, topology, true)));
            }
            for term in &shape.anti {
                let source = Source::Counted(snapshot.counts.count(&one(&term.about)));
                let topology = snapshot.find_topology(&term.key);
                all.push((Rule::Apart, Tally::new(snapshot, source, topology, true)));
            }
        }
        for id in kept {
            let carried = snapshot.counts.carried(*id).clone();
            let topology = snapshot.find_topology(&carried.term.key);
            let rule = match carried.keeps_away {
                true if filters.pod_affinity => Rule::Kept,
                false
                    if profile.weights.pod_affinity != 0
                        && !(profile.ignore_preferred_terms && shape.preferred.is_empty()) =>
                {
                    Rule::Weighs { weight: 1 }
                }
                _ => continue,
            };
            all.push((rule, Tally::new(snapshot, Source::Carried(*id), topology, carried.keeps_away)));
        }
        if profile.weights.pod_affinity != 0 {
            for (weight, term) in &shape.preferred {
                let source = Source::Counted(snapshot.counts.count(&one(&term.about)));
                let topology = snapshot.find_topology(&term.key);
                all.push((Rule::Weighs { weight: *weight }, Tally::new(snapshot, source, topology, false)));
            }
        }
        Self {
            all,
            may_be_first: shape.own_affinity,
            hard_keys: keys(true),
            soft_keys: keys(false),
            spreads: shape.spread.iter().map(|s| (s.max_skew, s.min_domains, i64::from(s.own))).collect(),
            own_spread: shape.own_spread,
            hostname: shape.spread.iter().map(|s| s.key == HOSTNAME).collect(),
        }
    }

    /// Whether a node has every label that spread constraints of the kind need.
    pub fn has_labels(&self, shape: &Shape, hard: bool, node: &Node) -> bool {
        let keys = if hard { &self.hard_keys } else { &self.soft_keys };
        let labels = node.metadata.labels.as_ref();
        (!hard && !shape.own_spread) || keys.iter().all(|key| labels.is_some_and(|labels| labels.contains_key(key)))
    }

    pub fn repair(&mut self, snapshot: &Snapshot, slot: Slot, fixed: &Fixed) {
        let live = snapshot.row(slot).node.is_some();
        for (rule, tally) in &mut self.all {
            let counts = match rule {
                Rule::Spread { index } | Rule::Evenly { index } => fixed.counts & (1 << *index) != 0,
                _ => true,
            };
            tally.repair(snapshot, slot, live && counts);
        }
    }

    pub fn key(&self, snapshot: &Snapshot, slot: Slot, fixed: &Fixed) -> Vec<i64> {
        let mut key = Vec::with_capacity(FIXED + self.all.len());
        key.extend([fixed.disliked, fixed.preferred]);
        key.extend(self.all.iter().map(|(_, tally)| tally.part(snapshot, slot)));
        key
    }

    pub fn floor(&self) -> Floor {
        let least = self.all.iter().map(|(rule, tally)| match rule {
            Rule::Spread { index } => {
                let (least, domains) = tally.least();
                if (domains as i64) < self.spreads[*index].1 { 0 } else { least }
            }
            _ => 0,
        });
        let nobody = self.all.iter().filter(|(rule, _)| matches!(rule, Rule::Near)).all(|(_, t)| t.total == 0);
        Floor(least.collect(), nobody && self.may_be_first)
    }

    pub fn refuses(&self, key: &[i64], floor: &Floor) -> Option<Refusal> {
        let rules = || self.all.iter().zip(&key[FIXED..]).enumerate();
        for (at, ((rule, tally), part)) in rules() {
            let Rule::Spread { index } = rule else { continue };
            let Some(count) = tally.count(*part) else { return Some(Refusal::SpreadLabel) };
            let (max_skew, _, own) = self.spreads[*index];
            if count + own - floor.0[at] > max_skew {
                return Some(Refusal::Spread);
            }
        }
        let near = |tally: &Tally, part: i64| part != MISSING && (floor.1 || tally.count(part).is_some_and(|c| c > 0));
        if rules().any(|(_, ((rule, tally), part))| matches!(rule, Rule::Near) && !near(tally, *part)) {
            return Some(Refusal::Affinity);
        }
        let some = |tally: &Tally, part: i64| tally.count(part).is_some_and(|count| count > 0);
        if rules().any(|(_, ((rule, tally), part))| matches!(rule, Rule::Apart) && some(tally, *part)) {
            return Some(Refusal::AntiAffinity);
        }
        let kept = rules().any(|(_, ((rule, tally), part))| matches!(rule, Rule::Kept) && some(tally, *part));
        kept.then_some(Refusal::KeptAway)
    }

    /// Scores that depend on all nodes that will do, for each bucket of them (its key, and how many nodes).
    pub fn shared_scores(&self, profile: &Profile, buckets: &[(&[i64], usize)]) -> Vec<i64> {
        let weights = &profile.weights;
        let highest = |at: usize| buckets.iter().map(|(key, _)| key[at]).max().unwrap_or(0);
        let (most_disliked, most_preferred) = (highest(0), highest(1));
        let near: Vec<i64> = buckets.iter().map(|(key, _)| self.weight(key)).collect();
        let (low, high) = (near.iter().min().copied().unwrap_or(0), near.iter().max().copied().unwrap_or(0));
        let even = self.evenness(buckets);
        let known = || even.iter().flatten().copied();
        let (least, most) = (known().min().unwrap_or(0), known().max().unwrap_or(0));
        let scores = buckets.iter().zip(near).zip(&even).map(|(((key, _), near), even)| {
            let taints = if most_disliked > 0 { MAX - key[0] * MAX / most_disliked } else { MAX };
            let affinity = if most_preferred > 0 { key[1] * MAX / most_preferred } else { 0 };
            let near = if high > low { (MAX as f64 * ((near - low) as f64 / (high - low) as f64)) as i64 } else { 0 };
            let even = match even {
                _ if self.soft_keys.is_empty() => 0,
                None => 0,
                Some(_) if most == 0 => MAX,
                Some(score) => MAX * (most + least - score) / most,
            };
            weights.taints * taints
                + weights.node_affinity * affinity
                + weights.pod_affinity * near
                + weights.spread * even
        });
        scores.collect()
    }

    fn weight(&self, key: &[i64]) -> i64 {
        let weighed = self.all.iter().zip(&key[FIXED..]).map(|((rule, tally), part)| match rule {
            Rule::Weighs { weight } => weight * tally.count(*part).unwrap_or(0),
            _ => 0,
        });
        weighed.sum()
    }

    /// How crowded each bucket's domains are; `None` for nodes that the constraints say nothing about.
    fn evenness(&self, buckets: &[(&[i64], usize)]) -> Vec<Option<i64>> {
        let soft: Vec<(usize, usize, &Tally)> = self
            .all
            .iter()
            .enumerate()
            .filter_map(|(at, (rule, tally))| match rule {
                Rule::Evenly { index } => Some((at, *index, tally)),
                _ => None,
            })
            .collect();
        if soft.is_empty() {
            return vec![None; buckets.len()];
        }
        let part = |key: &[i64], at: usize| key[FIXED + at];
        let ignored = |key: &[i64]| self.own_spread && soft.iter().any(|(at, _, _)| part(key, *at) == MISSING);
        let looked_at = || buckets.iter().filter(|(key, _)| !ignored(key));
        let nodes: usize = looked_at().map(|(_, nodes)| nodes).sum();
        let weights: Vec<f64> = soft
            .iter()
            .map(|(at, index, tally)| {
                let domains = if self.hostname[*index] {
                    nodes
                } else if tally.fine {
                    looked_at().filter(|(key, _)| part(key, *at) != MISSING).map(|(_, nodes)| nodes).sum()
                } else {
                    let mut domains: Vec<i64> =
                        looked_at().map(|(key, _)| part(key, *at)).filter(|part| *part != MISSING).collect();
                    domains.sort_unstable();
                    domains.dedup();
                    domains.len()
                };
                ((domains + 2) as f64).ln()
            })
            .collect();
        let crowd = |key: &[i64]| {
            let parts = soft.iter().zip(&weights).filter_map(|((at, index, tally), weight)| {
                let count = tally.count(part(key, *at))?;
                Some(count as f64 * weight + (self.spreads[*index].0 - 1) as f64)
            });
            parts.sum::<f64>().round() as i64
        };
        buckets.iter().map(|(key, _)| (!ignored(key)).then(|| crowd(key))).collect()
    }
}
