//! Decides for one profile, keeping what was worked out for each shape of pod.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::advice::advice;
use crate::counts::{Slot, TermId};
use crate::node_rules::NodeRules;
use crate::profile::Profile;
use crate::ranking::{Choice, Ranking};
use crate::reasons::Refusal;
use crate::selecting::Labels;
use crate::shape::{Shape, SharedShape};
use crate::snapshot::{PodKey, Snapshot};
use crate::{Decision, Unschedulable};

/// Rows of nodes that all rankings may have together, and how many rankings there may be whatever their size.
const MOST_ROWS: usize = 4_000_000;
const FEWEST_RANKINGS: usize = 16;

/// What decides a pod's place but for the nodes: its shape, and the terms of placed pods that are about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Signature {
    pub shape: SharedShape,
    pub kept: Vec<TermId>,
}

struct Kept {
    ranking: Ranking,
    used: u64,
}

pub(crate) struct Decider {
    pub profile: Profile,
    rankings: HashMap<Signature, Kept>,
    clock: u64,
    pub(crate) offset: usize,
}

pub(crate) fn pod_key(pod: &Pod) -> PodKey {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

impl Decider {
    pub fn new(profile: Profile) -> Self {
        Self { profile, rankings: HashMap::new(), clock: 0, offset: 0 }
    }

    pub fn signature(&self, snapshot: &Snapshot, pod: &Pod) -> Signature {
        let shape = Shape::of(pod, snapshot, &self.profile.spread_defaults);
        let no_labels = Labels::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&no_labels);
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        Signature { shape: Arc::new(shape), kept: snapshot.counts.carried_about(namespace, labels) }
    }

    /// The up-to-date ranking for a signature.
    pub fn ranking(&mut self, snapshot: &mut Snapshot, signature: &Signature) -> &mut Ranking {
        self.clock += 1;
        let clock = self.clock;
        let usable = self.rankings.get(signature).is_some_and(|kept| kept.ranking.is_valid(snapshot));
        if !usable {
            self.make_room(snapshot);
            let ranking = Ranking::new(snapshot, &self.profile, Arc::clone(&signature.shape), &signature.kept);
            self.rankings.insert(signature.clone(), Kept { ranking, used: clock });
        }
        let profile = &self.profile;
        let kept = self.rankings.entry(signature.clone()).or_insert_with(|| Kept {
            ranking: Ranking::new(snapshot, profile, Arc::clone(&signature.shape), &signature.kept),
            used: clock,
        });
        kept.used = clock;
        kept.ranking.repair(snapshot, &self.profile);
        &mut kept.ranking
    }

    /// The ranking as it was repaired last.
    pub(crate) fn peek(&self, signature: &Signature) -> Option<&Ranking> {
        self.rankings.get(signature).map(|kept| &kept.ranking)
    }

    fn make_room(&mut self, snapshot: &Snapshot) {
        let most = (MOST_ROWS / snapshot.size().max(1)).clamp(FEWEST_RANKINGS, 1024);
        if self.rankings.len() >= most {
            let mut used: Vec<u64> = self.rankings.values().map(|kept| kept.used).collect();
            used.sort_unstable();
            let middle = used[used.len() / 2];
            self.rankings.retain(|_, kept| kept.used > middle);
        }
    }

    pub fn decide(&mut self, snapshot: &mut Snapshot, pod: &Pod) -> Decision {
        let signature = self.signature(snapshot, pod);
        self.decide_as(snapshot, pod, &signature)
    }

    pub fn decide_as(&mut self, snapshot: &mut Snapshot, pod: &Pod, signature: &Signature) -> Decision {
        match self.choose(snapshot, pod, signature) {
            Ok(choice) => Decision::Place { node: snapshot.row(choice.slot).name.to_string() },
            Err(why) => Decision::Unschedulable(Unschedulable::clone(&why)),
        }
    }

    pub fn choose(
        &mut self,
        snapshot: &mut Snapshot,
        pod: &Pod,
        signature: &Signature,
    ) -> Result<Choice, Arc<Unschedulable>> {
        self.ranking(snapshot, signature);
        let profile = &self.profile;
        let lacking = |lack: String| {
            Arc::new(Unschedulable { nodes: snapshot.live(), lack: Some(lack), ..Unschedulable::default() })
        };
        let rules = NodeRules::new(snapshot, profile, pod).map_err(lacking)?;
        let Some(kept) = self.rankings.get_mut(signature) else {
            return Err(Arc::new(Unschedulable::default()));
        };
        let ranking = &mut kept.ranking;
        let refused = |slot: Slot| rules.refuses(snapshot, slot);
        let key = pod_key(pod);
        if let Some(slot) = snapshot.nominated_slot(&key)
            && ranking.allows_nominee(snapshot, profile, slot, &key)
            && refused(slot).is_none()
        {
            return Ok(Choice { slot, score: 0 });
        }
        let plain = !rules.restricts();
        let choice = if plain {
            let end = snapshot.log_end();
            if let Some((at, why)) = &ranking.refused
                && *at == end
            {
                return Err(Arc::clone(why));
            }
            ranking.best(profile)
        } else {
            let open: Vec<Slot> = match rules.only_nodes(snapshot) {
                Some(slots) => slots.into_iter().filter(|slot| ranking.allows(*slot)).collect(),
                None => ranking.open(),
            };
            let open: Vec<Slot> = open.into_iter().filter(|slot| refused(*slot).is_none()).collect();
            ranking.best_of(profile, &open)
        };
        if let Some(choice) = choice {
            return Ok(choice);
        }
        let why = Arc::new(why_not(snapshot, profile, ranking, pod, &rules, &HashMap::new()));
        if plain {
            ranking.refused = Some((snapshot.log_end(), Arc::clone(&why)));
        }
        Err(why)
    }

    /// All nodes that will do, or why there are none. A pod that room is kept for gets that node, if it will do.
    pub fn open_for(
        &mut self,
        snapshot: &mut Snapshot,
        pod: &Pod,
        signature: &Signature,
    ) -> Result<Vec<Slot>, Arc<Unschedulable>> {
        let nominated = snapshot.nominated_slot(&pod_key(pod));
        let choice = self.choose(snapshot, pod, signature)?;
        if nominated == Some(choice.slot) {
            return Ok(vec![choice.slot]);
        }
        let (Some(ranking), Ok(rules)) = (self.peek(signature), NodeRules::new(snapshot, &self.profile, pod)) else {
            return Ok(vec![choice.slot]);
        };
        let open = ranking.open().into_iter();
        Ok(match rules.restricts() {
            true => open.filter(|slot| rules.refuses(snapshot, *slot).is_none()).collect(),
            false => open.collect(),
        })
    }

    /// The best of nodes that will do, with something added to each one's score.
    pub fn best_among(&self, signature: &Signature, slots: &[(Slot, i64)]) -> Option<Slot> {
        let choice = self.peek(signature)?.best_with(&self.profile, slots)?;
        Some(choice.slot)
    }

    /// Why no node will do, where someone else refused those that were left.
    pub fn explain(
        &mut self,
        snapshot: &mut Snapshot,
        pod: &Pod,
        signature: &Signature,
        objections: &HashMap<Slot, Refusal>,
    ) -> Unschedulable {
        self.ranking(snapshot, signature);
        let (Some(ranking), Ok(rules)) = (self.peek(signature), NodeRules::new(snapshot, &self.profile, pod)) else {
            return Unschedulable::default();
        };
        why_not(snapshot, &self.profile, ranking, pod, &rules, objections)
    }
}

/// The reasons of all nodes.
fn why_not(
    snapshot: &Snapshot,
    profile: &Profile,
    ranking: &Ranking,
    pod: &Pod,
    rules: &NodeRules<'_>,
    objections: &HashMap<Slot, Refusal>,
) -> Unschedulable {
    let mut by_node: Vec<(Slot, Vec<Refusal>)> = Vec::new();
    for slot in 0..snapshot.size() as Slot {
        if snapshot.row(slot).node.is_none() {
            continue;
        }
        let mut refusals = ranking.refusals(snapshot, profile, slot);
        if !refusals.iter().any(of_node)
            && let Some(refusal) = rules.refuses_others(snapshot, slot)
        {
            refusals = vec![refusal];
        }
        // Volumes are asked before rules between pods.
        if refusals.iter().all(between_pods)
            && let Some(refusal) = rules.refuses_volumes(snapshot, slot)
        {
            refusals = vec![refusal];
        }
        // Devices are asked for last.
        if refusals.is_empty() {
            refusals.extend(rules.refuses_devices(snapshot, slot));
        }
        if refusals.is_empty() {
            refusals.extend(objections.get(&slot).cloned());
        }
        by_node.push((slot, refusals));
    }
    let mut reasons: BTreeMap<Refusal, usize> = BTreeMap::new();
    for refusal in by_node.iter().flat_map(|(_, refusals)| refusals) {
        *reasons.entry(refusal.clone()).or_default() += 1;
    }
    let advice = advice(snapshot, &ranking.shape, pod, &by_node);
    Unschedulable { nodes: by_node.len(), reasons, advice, ..Unschedulable::default() }
}

/// Asked before a node's affinity.
fn of_node(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Cordoned | Refusal::NodeName | Refusal::Taint { .. } | Refusal::AddedAffinity)
}

fn between_pods(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::Spread | Refusal::SpreadLabel | Refusal::Affinity | Refusal::AntiAffinity | Refusal::KeptAway
    )
}
