//! Pods that extenders have a say about: what is to be asked is handed out, and the pod is decided when the answer is there.
//! Meanwhile it is in nobody's way.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::{Engine, Outcome, State};
use crate::counts::Slot;
use crate::extenders::{Answer, Interest, Objection};
use crate::reasons::Refusal;
use crate::{PodKey, Unschedulable};

impl Engine {
    /// To be told before the first pod is decided.
    pub fn set_extenders(&self, interests: Vec<Interest>) {
        self.state.lock().interests = interests;
    }

    /// What extenders said: the pod is next to be decided.
    pub fn answered(&self, key: &PodKey, asked: &Pod, answer: Answer) {
        let mut state = self.state.lock();
        let Some(known) = state.queue.get(key).cloned() else { return };
        let same = known.metadata.uid == asked.metadata.uid && known.spec == asked.spec;
        // A pod that asks for something else by now is asked about again.
        if same && known.metadata.labels == asked.metadata.labels {
            state.answers.insert(key.clone(), answer);
        }
        state.queue.again(key);
        drop(state);
        self.changed.notify_one();
    }
}

fn objection(of: &Objection) -> Refusal {
    Refusal::Extender { reason: of.reason.clone(), lasting: of.lasting }
}

impl State {
    fn interest(&self, pod: &Pod, about: impl Fn(&Interest) -> bool) -> bool {
        self.interests.iter().any(|interest| about(interest) && interest.is_in(pod))
    }

    pub(super) fn is_extended(&self, pod: &Pod) -> bool {
        self.interest(pod, |interest| interest.places)
    }

    pub(super) fn rooms_are_asked(&self, pod: &Pod) -> bool {
        self.interest(pod, |interest| interest.preempts)
    }

    /// Decides with extenders: hands out the question, or uses the answer.
    pub(super) fn decide_extended(&mut self, key: &PodKey, pod: &Pod) -> Outcome {
        let Some(decider) = self.deciders.get_mut(Self::decider_name(pod)) else { return Outcome::Ignore };
        let signature = decider.signature(&self.snapshot, pod);
        let open = match decider.open_for(&mut self.snapshot, pod, &signature) {
            Ok(open) => open,
            Err(why) => {
                self.answers.remove(key);
                return self.no_node(key, pod, Unschedulable::clone(&why), signature);
            }
        };
        let (good, refused) = match self.answers.remove(key) {
            Some(Answer::Nodes { good, refused }) => (good, refused),
            _ => return self.ask(&open),
        };
        let name = |slot: &Slot| &*self.snapshot.row(*slot).name;
        let left: Vec<(Slot, i64)> = open.iter().filter_map(|slot| Some((*slot, *good.get(name(slot))?))).collect();
        if let Some(slot) = decider.best_among(&signature, &left) {
            let node = self.snapshot.row(slot).name.to_string();
            return self.assume(key, pod, &node);
        }
        // Nodes that were not asked about yet may do.
        if open.iter().any(|slot| !good.contains_key(name(slot)) && !refused.contains_key(name(slot)))
            && !good.is_empty()
        {
            return self.ask(&open);
        }
        let objections: HashMap<Slot, Refusal> =
            open.iter().filter_map(|slot| Some((*slot, objection(refused.get(name(slot))?)))).collect();
        let why = decider.explain(&mut self.snapshot, pod, &signature, &objections);
        self.no_node(key, pod, why, signature)
    }

    fn ask(&self, open: &[Slot]) -> Outcome {
        let nodes = open.iter().filter_map(|slot| self.snapshot.row(*slot).node.clone());
        Outcome::Ask { nodes: nodes.collect() }
    }

    /// An extender that may not be passed over did not answer: the pod is tried again later.
    pub(super) fn unanswered(&mut self, key: &PodKey, pod: &Pod, error: String) -> Outcome {
        let known = self.queue.get(key).cloned().unwrap_or_else(|| Arc::new(pod.clone()));
        self.queue.retry(key, &known);
        Outcome::Fail(error)
    }
}
