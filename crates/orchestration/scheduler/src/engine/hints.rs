//! Which waiting pods a change may help. Changes are gathered and looked at before the next pod is taken: a waiting pod is
//! woken if the changed node would now have it, or if what it wants of others may now be there.

use std::collections::BTreeSet;

use crate::counts::Slot;
use crate::engine::State;
use crate::reasons::Refusal;

/// What changed since waiting pods were looked at last.
#[derive(Default)]
pub(super) struct Events {
    /// Nodes that have more room than before.
    pub freed: BTreeSet<Slot>,
    /// Nodes that are new, or whose objects changed.
    pub nodes: BTreeSet<Slot>,
    /// A pod came to some node.
    pub arrived: bool,
    /// Room that was kept for a pod is not any more.
    pub nominees: bool,
    /// Room for volumes became free.
    pub storage: bool,
    /// What rules are about changed: labels of namespaces, owners.
    pub all: bool,
}

impl Events {
    fn is_empty(&self) -> bool {
        self.freed.is_empty() && self.nodes.is_empty() && !self.arrived && !self.nominees && !self.storage && !self.all
    }
}

/// Beyond this many changed nodes it is cheaper to ask for the best of all.
const FEW: usize = 64;

impl State {
    pub(super) fn heed_events(&mut self) {
        if self.events.is_empty() {
            return;
        }
        let events = std::mem::take(&mut self.events);
        if events.storage {
            self.wake_with_claims();
        }
        if self.queue.waiting() == 0 {
            return;
        }
        if events.all {
            for key in self.queue.waiting_pods() {
                self.queue.wake(&key);
            }
            return;
        }
        let only_arrivals = events.freed.is_empty() && events.nodes.is_empty() && !events.nominees;
        for signature in self.queue.signatures() {
            let asks_others = signature.shape.minds_others() || !signature.kept.is_empty();
            if only_arrivals && !asks_others {
                continue;
            }
            let group = self.queue.group(&signature);
            let Some(pod) = group.first().and_then(|key| self.queue.get(key)).cloned() else { continue };
            let Some(decider) = self.deciders.get_mut(State::decider_name(&pod)) else { continue };
            // Terms of pods that are gone are no longer in a new signature of the same pod.
            let current = decider.signature(&self.snapshot, &pod);
            decider.ranking(&mut self.snapshot, &current);
            let helped = if asks_others || events.nominees || events.freed.len() + events.nodes.len() > FEW {
                let profile = decider.profile.clone();
                decider.ranking(&mut self.snapshot, &current).best(&profile).is_some()
            } else {
                let Some(ranking) = decider.peek(&current) else { continue };
                events.freed.iter().chain(&events.nodes).any(|slot| ranking.allows(*slot))
            };
            let helped = helped || {
                // A node that could now be cleared for it.
                let Some(ranking) = decider.peek(&current) else { continue };
                let could = |slot: &Slot| {
                    let clearable = ranking.refusals(&self.snapshot, &decider.profile, *slot);
                    self.snapshot.row(*slot).node.is_some() && clearable.iter().all(Refusal::may_be_preempted)
                };
                self.snapshot.has_below(current.shape.priority) && events.nodes.iter().any(could)
            };
            // A nominee's own room may have become free.
            let nominated = |key: &crate::PodKey| {
                let slot = self.snapshot.nominated_slot(key);
                slot.is_some_and(|slot| events.freed.contains(&slot) || events.nodes.contains(&slot))
            };
            let woken: Vec<_> = group.into_iter().filter(|key| helped || nominated(key)).collect();
            for key in woken {
                self.queue.wake(&key);
                self.with_claims.remove(&key);
            }
        }
    }

    /// Waiting pods that use claims, and those that are bound when theirs are.
    pub(super) fn wake_with_claims(&mut self) {
        let waiting: Vec<_> = std::mem::take(&mut self.with_claims).into_keys().collect();
        for key in waiting {
            self.queue.wake(&key);
        }
        let awaiting: Vec<_> =
            self.assumed.iter().filter(|(_, one)| one.awaits_claims).map(|(key, _)| key.clone()).collect();
        awaiting.iter().for_each(|key| self.look_again(key));
    }

    /// A decided pod's claims changed: it is taken up again to see how far they are.
    pub(super) fn look_again(&mut self, key: &crate::PodKey) {
        if let Some(assumed) = self.assumed.get(key) {
            let pod = std::sync::Arc::clone(&assumed.pod);
            self.queue.offer(key, &pod);
        }
    }
}
