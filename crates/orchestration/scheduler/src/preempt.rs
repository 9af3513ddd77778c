//! Which pods end so that a more important one can run: the node where that hurts least, and no more pods than needed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;

use crate::counts::Slot;
use crate::decider::{Decider, Signature, pod_key};
use crate::dra;
use crate::selecting::{Labels, Selector};
use crate::snapshot::{PodKey, Snapshot};
use crate::volumes::Needs;

/// A disruption budget, as far as it matters here.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    selector: Option<Selector>,
    allowed: i32,
    /// Pods that are on their way out already and counted.
    disrupted: BTreeSet<String>,
}

impl Budget {
    pub fn of(budget: &PodDisruptionBudget) -> Self {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let some = selector.filter(|s| s.match_labels.is_some() || s.match_expressions.is_some());
        let status = budget.status.as_ref();
        let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
        Self {
            // An empty selector covers nothing for this purpose.
            selector: some.map(Selector::from),
            allowed: status.map_or(0, |status| status.disruptions_allowed),
            disrupted: disrupted.into_iter().flatten().map(|(name, _)| name.clone()).collect(),
        }
    }

    fn covers(&self, name: &str, labels: &Labels) -> bool {
        !self.disrupted.contains(name) && self.selector.as_ref().is_some_and(|selector| selector.matches(labels))
    }
}

/// By namespace, then name.
pub(crate) type Budgets = BTreeMap<String, BTreeMap<String, Budget>>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preemption {
    pub node: String,
    /// The most important first.
    pub victims: Vec<PodKey>,
}

/// One way of making room.
struct Way {
    slot: Slot,
    /// With priority and start, the most important first.
    victims: Vec<(PodKey, i32, Option<Timestamp>)>,
    violations: usize,
}

impl Way {
    /// Fewer broken budgets, then less important victims, then fewer, then those that started last.
    fn harm(&self) -> (usize, i32, i64, usize, Reverse<Option<Timestamp>>) {
        let highest = self.victims.first().map_or(i32::MIN, |(_, priority, _)| *priority);
        // Shifted so that a victim of negative priority is still one more.
        let sum = self.victims.iter().map(|(_, priority, _)| i64::from(*priority) + (1 << 31)).sum();
        let earliest = self
            .victims
            .iter()
            .filter(|(_, priority, _)| *priority == highest)
            .filter_map(|(_, _, start)| *start)
            .min();
        (self.violations, highest, sum, self.victims.len(), Reverse(earliest))
    }
}

impl Decider {
    /// The least harmful way of making room for a pod that found no node, or why there is none.
    pub fn preempt(
        &mut self,
        snapshot: &mut Snapshot,
        pod: &Pod,
        signature: &Signature,
        budgets: &Budgets,
    ) -> Result<Preemption, Option<String>> {
        let spec = pod.spec.as_ref().ok_or(None)?;
        let priority = spec.priority.unwrap_or(0);
        let key = pod_key(pod);
        if !self.profile.filters.preemption {
            return Err(None);
        }
        if spec.preemption_policy.as_deref() == Some("Never") {
            return Err(Some("not eligible due to preemptionPolicy=Never.".to_owned()));
        }
        if waits_for_victims(snapshot, &key, priority) {
            return Err(Some("not eligible due to a terminating pod on the nominated node.".to_owned()));
        }
        let nodes = snapshot.live();
        let none = |helpful: usize| {
            let mut parts = Vec::new();
            if helpful > 0 {
                parts.push(format!("{helpful} No preemption victims found for incoming pod"));
            }
            if nodes > helpful {
                parts.push(format!("{} Preemption is not helpful for scheduling", nodes - helpful));
            }
            Some(format!("0/{nodes} nodes are available: {}.", parts.join(", ")))
        };
        self.ranking(snapshot, signature);
        let candidates = self.candidates(snapshot, signature, pod);
        if !snapshot.has_below(priority) || candidates.is_empty() {
            return Err(none(candidates.len()));
        }
        let most = (candidates.len() * self.profile.min_candidates_percentage / 100)
            .max(self.profile.min_candidates)
            .min(candidates.len());
        // Not always the same nodes first.
        self.offset = (self.offset + most) % candidates.len();
        let offset = self.offset;
        let mut ways: Vec<Way> = Vec::new();
        let mut gentle = false;
        for slot in candidates[offset..].iter().chain(&candidates[..offset]) {
            if let Some(way) = self.way(snapshot, pod, &key, priority, signature, budgets, *slot) {
                gentle |= way.violations == 0;
                ways.push(way);
                if ways.len() >= most && gentle {
                    break;
                }
            }
        }
        let best = ways.into_iter().min_by_key(|way| (way.harm(), way.slot));
        let best = best.ok_or_else(|| none(candidates.len()))?;
        Ok(Preemption {
            node: snapshot.row(best.slot).name.to_string(),
            victims: best.victims.into_iter().map(|(key, _, _)| key).collect(),
        })
    }

    /// Nodes where the end of other pods could help.
    fn candidates(&mut self, snapshot: &mut Snapshot, signature: &Signature, pod: &Pod) -> Vec<Slot> {
        self.ranking(snapshot, signature);
        let Some(ranking) = self.peek(signature) else { return Vec::new() };
        let all = (0..snapshot.size() as Slot).filter(|slot| snapshot.row(*slot).node.is_some());
        let helpful = all.filter(|slot| {
            let refusals = ranking.refusals(snapshot, &self.profile, *slot);
            refusals.iter().all(crate::reasons::Refusal::may_be_preempted)
        });
        // Devices stay their claims' when pods end.
        let Ok(claims) = dra::Needs::new(snapshot, pod) else { return Vec::new() };
        let node = |slot: Slot| snapshot.row(slot).node.as_deref();
        helpful.filter(|slot| node(*slot).is_some_and(|node| claims.refuses(node).is_none())).collect()
    }

    /// Whom the pod would drive from a node; nothing is changed in the end.
    #[allow(clippy::too_many_arguments)]
    fn way(
        &mut self,
        snapshot: &mut Snapshot,
        pod: &Pod,
        key: &PodKey,
        priority: i32,
        signature: &Signature,
        budgets: &Budgets,
        slot: Slot,
    ) -> Option<Way> {
        let below = |snapshot: &Snapshot, key: &PodKey| {
            let placed = snapshot.placed_pod(key)?;
            (placed.priority < priority).then(|| (key.clone(), placed.priority, placed.started))
        };
        let mut lower: Vec<(PodKey, i32, Option<Timestamp>)> =
            snapshot.row(slot).residents.iter().filter_map(|resident| below(snapshot, resident)).collect();
        if lower.is_empty() {
            return None;
        }
        // The most important first; of equals the one that started first, and one that did not start last.
        lower.sort_by(|(a, pa, sa), (b, pb, sb)| {
            let started = |at: &Option<Timestamp>| at.unwrap_or(Timestamp::MAX);
            pb.cmp(pa).then_with(|| started(sa).cmp(&started(sb))).then_with(|| a.cmp(b))
        });
        let (broken, kept) = split(snapshot, budgets, &lower);
        let mut away = BTreeMap::new();
        for (victim, _, _) in &lower {
            if let Some(taken) = snapshot.take_away(victim) {
                away.insert(victim.clone(), taken);
            }
        }
        let mut victims = Vec::new();
        let mut violations = 0;
        if self.would_fit(snapshot, pod, key, signature, slot) {
            let order = broken.iter().map(|v| (v, true)).chain(kept.iter().map(|v| (v, false)));
            for (victim, breaks) in order {
                let Some(taken) = away.remove(&victim.0) else { continue };
                snapshot.put_back(victim.0.clone(), taken);
                if self.would_fit(snapshot, pod, key, signature, slot) {
                    continue;
                }
                if let Some(taken) = snapshot.take_away(&victim.0) {
                    away.insert(victim.0.clone(), taken);
                }
                violations += usize::from(breaks);
                victims.push(victim.clone());
            }
        }
        for (victim, taken) in away {
            snapshot.put_back(victim, taken);
        }
        let started = |at: &Option<Timestamp>| at.unwrap_or(Timestamp::MAX);
        victims.sort_by(|(_, pa, sa), (_, pb, sb)| pb.cmp(pa).then_with(|| started(sa).cmp(&started(sb))));
        (!victims.is_empty()).then_some(Way { slot, victims, violations })
    }

    fn would_fit(
        &mut self,
        snapshot: &mut Snapshot,
        pod: &Pod,
        key: &PodKey,
        signature: &Signature,
        slot: Slot,
    ) -> bool {
        // The terms that keep the pod away stay known while their pods are away for the trial.
        self.ranking(snapshot, signature);
        let Some(ranking) = self.peek(signature) else { return false };
        if !ranking.allows_nominee(snapshot, &self.profile, slot, key) {
            return false;
        }
        let needs = if self.profile.filters.volumes { Needs::new(snapshot, pod) } else { Ok(Needs::default()) };
        let node = snapshot.row(slot).node.as_deref();
        needs.is_ok_and(|needs| node.is_some_and(|node| needs.refuses(node).is_none()))
    }
}

/// Whether the pod's earlier victims are still on their way out.
fn waits_for_victims(snapshot: &Snapshot, key: &PodKey, priority: i32) -> bool {
    let Some(slot) = snapshot.nominated_slot(key) else { return false };
    let residents = snapshot.row(slot).residents.iter().filter_map(|resident| snapshot.placed_pod(resident));
    let mut leaving = residents.filter(|placed| placed.priority < priority && snapshot.counts.is_leaving(placed.group));
    leaving.next().is_some()
}

type Victim = (PodKey, i32, Option<Timestamp>);

/// Those whose end would break a budget, and the others, both in the given order.
fn split(snapshot: &Snapshot, budgets: &Budgets, victims: &[Victim]) -> (Vec<Victim>, Vec<Victim>) {
    let mut left: BTreeMap<(&str, &str), i32> = BTreeMap::new();
    let (mut broken, mut kept) = (Vec::new(), Vec::new());
    for victim in victims {
        let (namespace, name) = (victim.0.0.as_str(), victim.0.1.as_str());
        let labels = snapshot.placed_pod(&victim.0).map(|placed| snapshot.counts.group_labels(placed.group));
        let mut breaks = false;
        for (budget_name, budget) in budgets.get(namespace).into_iter().flatten() {
            if !labels.is_some_and(|labels| !labels.is_empty() && budget.covers(name, labels)) {
                continue;
            }
            let left = left.entry((namespace, budget_name)).or_insert(budget.allowed);
            *left -= 1;
            breaks |= *left < 0;
        }
        if breaks { broken.push(victim.clone()) } else { kept.push(victim.clone()) }
    }
    (broken, kept)
}
