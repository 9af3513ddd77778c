//! Which pods end so that a more important one can run: the node where that hurts least, and no more pods than needed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;

use crate::counts::Slot;
use crate::decider::{Decider, Signature, pod_key};
use crate::extenders::Room;
use crate::node_rules::NodeRules;
use crate::profile::Profile;
use crate::ranking::Ranking;
use crate::reasons::Refusal;
use crate::selecting::{Labels, Selector};
use crate::snapshot::{PodKey, Snapshot};

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

/// A pod that others may have to make room for.
#[derive(Clone, Copy)]
struct Urgent<'a> {
    pod: &'a Pod,
    key: &'a PodKey,
    priority: i32,
    signature: &'a Signature,
    /// Whether nodes have to be asked about it one by one.
    restricted: bool,
}

/// One way of making room.
struct Way {
    slot: Slot,
    /// With priority and start, the most important first.
    victims: Vec<Victim>,
    violations: usize,
}

impl Way {
    fn of(snapshot: &Snapshot, room: &Room) -> Option<Self> {
        let slot = snapshot.slot_of(&room.node)?;
        let placed = room.victims.iter().filter_map(|key| Some((key, snapshot.placed_pod(key)?)));
        let here = placed.filter(|(_, placed)| placed.slot == slot);
        let victims: Vec<_> = here.map(|(key, placed)| (key.clone(), placed.priority, placed.started)).collect();
        (!victims.is_empty()).then_some(Self { slot, victims, violations: room.violations })
    }

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

/// The least harmful way.
pub(crate) fn best_room(snapshot: &Snapshot, rooms: &[Room]) -> Option<Preemption> {
    let ways = rooms.iter().filter_map(|room| Way::of(snapshot, room));
    let best = ways.min_by_key(|way| (way.harm(), way.slot))?;
    Some(Preemption {
        node: snapshot.row(best.slot).name.to_string(),
        victims: best.victims.into_iter().map(|(key, _, _)| key).collect(),
    })
}

impl Decider {
    /// Ways of making room for a pod that found no node, or why there is none.
    pub fn rooms(
        &mut self,
        snapshot: &mut Snapshot,
        pod: &Pod,
        signature: &Signature,
        budgets: &Budgets,
    ) -> Result<Vec<Room>, Option<String>> {
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
        let candidates = self.candidates(snapshot, pod, signature);
        if !snapshot.has_below(priority) || candidates.is_empty() {
            return Err(none(candidates.len()));
        }
        let most = (candidates.len() * self.profile.min_candidates_percentage / 100)
            .max(self.profile.min_candidates)
            .min(candidates.len());
        // Not always the same nodes first.
        self.offset = (self.offset + most) % candidates.len();
        let offset = self.offset;
        let restricted = NodeRules::new(snapshot, &self.profile, pod).map_or(true, |rules| rules.restricts());
        let urgent = Urgent { pod, key: &key, priority, signature, restricted };
        let mut ways: Vec<Room> = Vec::new();
        let mut gentle = false;
        for slot in candidates[offset..].iter().chain(&candidates[..offset]) {
            if let Some(way) = self.way(snapshot, urgent, budgets, *slot) {
                gentle |= way.violations == 0;
                ways.push(way);
                if ways.len() >= most && gentle {
                    break;
                }
            }
        }
        if ways.is_empty() { Err(none(candidates.len())) } else { Ok(ways) }
    }

    /// Nodes where the end of other pods could help.
    fn candidates(&mut self, snapshot: &mut Snapshot, pod: &Pod, signature: &Signature) -> Vec<Slot> {
        self.ranking(snapshot, signature);
        let Some(ranking) = self.peek(signature) else { return Vec::new() };
        let all = (0..snapshot.size() as Slot).filter(|slot| snapshot.row(*slot).node.is_some());
        let Ok(rules) = NodeRules::new(snapshot, &self.profile, pod) else { return Vec::new() };
        let helpful = all.filter(|slot| {
            let refusals = ranking.refusals(snapshot, &self.profile, *slot);
            let more = if rules.restricts() { rules.refuses(snapshot, *slot) } else { None };
            refusals.iter().chain(&more).all(Refusal::may_be_preempted)
        });
        helpful.collect()
    }

    /// Whom the pod would drive from a node; nothing is changed in the end.
    fn way(&mut self, snapshot: &mut Snapshot, urgent: Urgent<'_>, budgets: &Budgets, slot: Slot) -> Option<Room> {
        let below = |snapshot: &Snapshot, key: &PodKey| {
            let placed = snapshot.placed_pod(key)?;
            (placed.priority < urgent.priority).then(|| (key.clone(), placed.priority, placed.started))
        };
        let mut lower: Vec<Victim> =
            snapshot.row(slot).residents.iter().filter_map(|resident| below(snapshot, resident)).collect();
        if lower.is_empty() {
            return None;
        }
        // The most important first; of equals the one that started first, and one that did not start last.
        lower.sort_by(|(a, pa, sa), (b, pb, sb)| {
            pb.cmp(pa).then_with(|| started(sa).cmp(&started(sb))).then_with(|| a.cmp(b))
        });
        let (broken, kept) = split(snapshot, budgets, &lower);
        let order: Vec<(&Victim, bool)> =
            broken.iter().map(|v| (v, true)).chain(kept.iter().map(|v| (v, false))).collect();
        self.ranking(snapshot, urgent.signature);
        let ranking = self.peek(urgent.signature).filter(|_| !urgent.restricted);
        let mut chosen = match ranking.filter(|ranking| ranking.asks_room_alone(snapshot, slot)) {
            Some(ranking) => must_go(snapshot, &self.profile, ranking, urgent.key, slot, &order),
            None => self.must_go_by_trial(snapshot, urgent, slot, &order),
        };
        let violations = chosen.iter().filter(|(_, breaks)| *breaks).count();
        chosen.sort_by(|((_, pa, sa), _), ((_, pb, sb), _)| pb.cmp(pa).then_with(|| started(sa).cmp(&started(sb))));
        let victims: Vec<PodKey> = chosen.into_iter().map(|((key, _, _), _)| key.clone()).collect();
        let node = snapshot.row(slot).name.to_string();
        (!victims.is_empty()).then_some(Room { node, victims, violations })
    }

    /// Those of `order` without whose end the pod would not fit; none if it would not fit even without all of them. Nothing
    /// is changed in the end.
    fn must_go_by_trial<'a>(
        &mut self,
        snapshot: &mut Snapshot,
        urgent: Urgent<'_>,
        slot: Slot,
        order: &[(&'a Victim, bool)],
    ) -> Vec<(&'a Victim, bool)> {
        let mut away = BTreeMap::new();
        for (victim, _) in order {
            if let Some(taken) = snapshot.take_away(&victim.0) {
                away.insert(&victim.0, taken);
            }
        }
        let mut chosen = Vec::new();
        if self.would_fit(snapshot, urgent, slot) {
            for (victim, breaks) in order {
                let Some(taken) = away.remove(&victim.0) else { continue };
                snapshot.put_back(victim.0.clone(), taken);
                if self.would_fit(snapshot, urgent, slot) {
                    continue;
                }
                if let Some(taken) = snapshot.take_away(&victim.0) {
                    away.insert(&victim.0, taken);
                }
                chosen.push((*victim, *breaks));
            }
        }
        for (victim, taken) in away {
            snapshot.put_back(victim.clone(), taken);
        }
        chosen
    }

    fn would_fit(&mut self, snapshot: &mut Snapshot, urgent: Urgent<'_>, slot: Slot) -> bool {
        // The terms that keep the pod away stay known while their pods are away for the trial.
        self.ranking(snapshot, urgent.signature);
        let Some(ranking) = self.peek(urgent.signature) else { return false };
        if !ranking.allows_nominee(snapshot, &self.profile, slot, urgent.key) {
            return false;
        }
        let rules = NodeRules::new(snapshot, &self.profile, urgent.pod);
        rules.is_ok_and(|rules| rules.refuses(snapshot, slot).is_none())
    }
}

/// Whether the pod's earlier victims are still on their way out.
fn waits_for_victims(snapshot: &Snapshot, key: &PodKey, priority: i32) -> bool {
    let Some(slot) = snapshot.nominated_slot(key) else { return false };
    let residents = snapshot.row(slot).residents.iter().filter_map(|resident| snapshot.placed_pod(resident));
    let mut leaving = residents.filter(|placed| placed.priority < priority && snapshot.counts.is_leaving(placed.group));
    leaving.next().is_some()
}

/// With its priority and start.
type Victim = (PodKey, i32, Option<Timestamp>);

fn started(at: &Option<Timestamp>) -> Timestamp {
    at.unwrap_or(Timestamp::MAX)
}

/// As [`Decider::must_go_by_trial`], for a pod to which nothing but room matters.
fn must_go<'a>(
    snapshot: &Snapshot,
    profile: &Profile,
    ranking: &Ranking,
    key: &PodKey,
    slot: Slot,
    order: &[(&'a Victim, bool)],
) -> Vec<(&'a Victim, bool)> {
    let info = snapshot.row(slot);
    let (mut used, mut pods) = ranking.taken_from(info, key);
    let request = |victim: &Victim| snapshot.placed_pod(&victim.0).map(|placed| &placed.request.amounts);
    for (victim, _) in order {
        if let Some(amounts) = request(victim) {
            used.subtract(amounts);
            pods -= 1;
        }
    }
    if !ranking.has_room(profile, info, &used, pods) {
        return Vec::new();
    }
    let mut chosen = Vec::new();
    for (victim, breaks) in order {
        let Some(amounts) = request(victim) else { continue };
        used.add(amounts);
        if ranking.has_room(profile, info, &used, pods + 1) {
            pods += 1;
        } else {
            used.subtract(amounts);
            chosen.push((*victim, *breaks));
        }
    }
    chosen
}

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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Node;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::resources::Request;
    use crate::snapshot::Nominee;

    fn pod(name: &str, cpu: i64, memory: i64, priority: i32) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"namespace": "default", "name": name}, "spec": {"priority": priority,
            "containers": [{"name": "a", "resources": {"requests": {"cpu": format!("{cpu}m"), "memory": memory}}}]}}),
        )
        .unwrap()
    }

    proptest! {
        /// Where only room matters, adding up says the same as trying.
        #[test]
        fn sums_say_what_trials_say(
            residents in proptest::collection::vec((0i64..2000, 0i64..2000, 0i32..12), 0..9),
            promised in proptest::option::of((0i64..2000, 5i32..15)),
            (cpu, memory, most) in (1i64..4000, 1i64..4000, 1i64..10),
        ) {
            let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"allocatable":
                {"cpu": "4", "memory": "4000", "pods": most.to_string()}}})).unwrap();
            let mut snapshot = Snapshot::new();
            snapshot.set_node(Arc::new(node));
            for (index, (cpu, memory, priority)) in residents.iter().enumerate() {
                let pod = pod(&format!("p{index}"), *cpu, *memory, *priority);
                snapshot.place_pod(pod_key(&pod), &pod, "n");
            }
            if let Some((cpu, priority)) = promised {
                let pod = pod("promised", cpu, 0, priority);
                let nominee = Nominee { key: pod_key(&pod), request: Request::of(&pod), ports: Vec::new(), priority };
                snapshot.nominate(nominee, "n");
            }
            let urgent = pod("urgent", cpu, memory, 10);
            let (key, slot) = (pod_key(&urgent), snapshot.slot_of("n").unwrap());
            let mut decider = Decider::new(Profile::default());
            let signature = decider.signature(&snapshot, &urgent);
            decider.ranking(&mut snapshot, &signature);
            let victims: Vec<Victim> = (0..residents.len())
                .map(|index| ("default".to_owned(), format!("p{index}")))
                .filter_map(|key| snapshot.placed_pod(&key).map(|placed| (key.clone(), placed.priority, None)))
                .filter(|(_, priority, _)| *priority < 10)
                .collect();
            let order: Vec<(&Victim, bool)> = victims.iter().map(|victim| (victim, false)).collect();
            let ranking = decider.peek(&signature).unwrap();
            prop_assert!(ranking.asks_room_alone(&snapshot, slot));
            let sums = must_go(&snapshot, &decider.profile, ranking, &key, slot, &order);
            let before = snapshot.row(slot).used.clone();
            let wants = Urgent { pod: &urgent, key: &key, priority: 10, signature: &signature, restricted: false };
            let trial = decider.must_go_by_trial(&mut snapshot, wants, slot, &order);
            prop_assert_eq!(sums, trial);
            prop_assert_eq!(&snapshot.row(slot).used, &before);
        }
    }
}
