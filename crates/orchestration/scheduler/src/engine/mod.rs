//! What the scheduler knows between decisions: the cluster as seen, pods it assumes to be placed, and pods that wait.
//!
//! Invariants: a pod counts on its node from the moment it is decided, not from when the API says so; a pod that found
//! no node is woken by every change that could help it, because waiting is recorded under the lock changes take.

mod changes;
mod devices;
mod extended;
mod gang;
mod hints;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::decider::{Decider, Signature};
use crate::dra::Reservation;
use crate::extenders::{Answer, Interest, Room};
use crate::preempt::{Budgets, Preemption, best_room};
use crate::profile::Profile;
use crate::queue::PodQueue;
use crate::snapshot::Nominee;
use crate::volumes::{self, ClaimKey, Needs, Progress, Step};
use crate::{Decision, PodKey, Snapshot, Unschedulable};

pub use gang::GroupRule;

/// What to do for one pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Nothing: it is placed, finished, gated, someone else's, or gone.
    Ignore,
    /// Bind it; a failure is told by [`Engine::bind_failed`].
    Bind { node: String },
    /// Write these, or call [`Engine::bind_failed`]. The pod is woken when its claims have changed.
    Provide { node: String, steps: Vec<Step> },
    /// Tell why; it will be woken.
    Wait(Unschedulable),
    /// End these pods and keep their room for it; it will be woken by their end.
    Preempt { why: Unschedulable, preemption: Preemption, denominated: Vec<PodKey> },
    /// Ask extenders about these nodes, and tell their answer by [`Engine::answered`].
    Ask { nodes: Vec<Arc<Node>> },
    /// Ask extenders about these ways of making room, and tell their answer by [`Engine::answered`].
    AskRoom { why: Unschedulable, rooms: Vec<Room> },
    /// Tell that it could not be decided; it will be tried again.
    Fail(String),
}

/// A pod that was decided.
#[derive(Default)]
struct Assumed {
    node: String,
    /// It is bound when its claims are.
    awaits_claims: bool,
    claims: Vec<ClaimKey>,
    /// What is written on its claims on devices before it is bound.
    devices: Vec<Reservation>,
    pod: Arc<Pod>,
}

#[derive(Default)]
struct State {
    snapshot: Snapshot,
    deciders: BTreeMap<String, Decider>,
    queue: PodQueue,
    /// Decided here, not yet seen placed in the API.
    assumed: HashMap<PodKey, Assumed>,
    /// Waiting pods that use claims, and which.
    with_claims: BTreeMap<PodKey, Vec<ClaimKey>>,
    /// Pods without a node that use claims on devices.
    with_devices: BTreeSet<PodKey>,
    /// Claims whose devices no node of a waiting pod can get at.
    idle_claims: HashMap<PodKey, ClaimKey>,
    budgets: Budgets,
    events: hints::Events,
    interests: Vec<Interest>,
    /// What extenders said about pods that are about to be decided.
    answers: HashMap<PodKey, Answer>,
    groups: gang::Groups,
}

pub struct Engine {
    state: Mutex<State>,
    changed: Notify,
    /// Moves with every claim on devices.
    device_claims: watch::Sender<()>,
}

impl Engine {
    pub fn new(name: &str) -> Self {
        Self::with_profiles(vec![Profile::named(name)])
    }

    /// One scheduler of several names.
    pub fn with_profiles(profiles: Vec<Profile>) -> Self {
        let mut state = State { snapshot: Snapshot::new(), ..State::default() };
        if let Some(first) = profiles.first() {
            state.snapshot.set_hard_affinity_weight(first.hard_affinity_weight);
        }
        state.deciders = profiles.into_iter().map(|p| (p.name.clone(), Decider::new(p))).collect();
        Self { state: Mutex::new(state), changed: Notify::new(), device_claims: watch::Sender::new(()) }
    }

    /// Whether the pod is one to place.
    pub fn wants(&self, pod: &Pod) -> bool {
        self.state.lock().wants(pod)
    }

    /// Takes out the next pod to be decided.
    pub fn pop(&self) -> Option<(PodKey, Arc<Pod>)> {
        let mut state = self.state.lock();
        state.heed_events();
        state.queue.pop()
    }

    /// Takes out the next pod and decides about it, and about its group; `None` if there is nothing to do now.
    pub fn next(&self) -> Option<Vec<(PodKey, Arc<Pod>, Outcome)>> {
        let mut state = self.state.lock();
        state.heed_events();
        let (key, pod) = state.queue.pop()?;
        Some(state.decide_all(&key, &pod))
    }

    /// When there may be something to pop, if nothing changes before.
    pub fn due(&self) -> Option<Instant> {
        self.state.lock().queue.due()
    }

    /// Waits for a change that may give something to pop.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Decides about one pod. A pod to bind counts on its node from here on.
    pub fn decide(&self, key: &PodKey, pod: &Pod) -> Outcome {
        self.state.lock().decide(key, pod)
    }

    /// Decides about one pod, and about all those of its group if they have to be placed together.
    pub fn decide_all(&self, key: &PodKey, pod: &Arc<Pod>) -> Vec<(PodKey, Arc<Pod>, Outcome)> {
        self.state.lock().decide_all(key, pod)
    }

    /// The write failed: the room is free again, and the pod is tried later.
    pub fn bind_failed(&self, key: &PodKey) {
        let mut state = self.state.lock();
        // The API may have shown it placed after all, as when only the answer was lost.
        let Some(assumed) = state.release(key) else { return };
        state.give_devices_back(&assumed);
        let slot = state.snapshot.placed_pod(key).map(|placed| placed.slot);
        state.snapshot.remove_pod(key);
        state.events.freed.extend(slot);
        state.events.storage = true;
        state.queue.retry(key, &assumed.pod);
        drop(state);
        self.changed.notify_one();
    }

    pub fn waiting(&self) -> usize {
        self.state.lock().queue.waiting()
    }
}

impl State {
    fn wants(&self, pod: &Pod) -> bool {
        let Some(spec) = &pod.spec else { return false };
        let name = spec.scheduler_name.as_deref().unwrap_or(crate::profile::DEFAULT_NAME);
        node_name(pod).is_none()
            && !finished(pod)
            && pod.metadata.deletion_timestamp.is_none()
            && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
            && self.deciders.contains_key(name)
    }

    fn decide(&mut self, key: &PodKey, pod: &Pod) -> Outcome {
        if !self.wants(pod) {
            self.queue.remove(key);
            return Outcome::Ignore;
        }
        if let Some(outcome) = self.outcome_so_far(key, pod) {
            self.queue.remove(key);
            return outcome;
        }
        match self.answers.remove(key) {
            Some(Answer::Failed(error)) => return self.unanswered(key, pod, error),
            Some(Answer::Rooms { why, rooms }) => return self.make_room(key, pod, why, &rooms),
            Some(answer) => drop(self.answers.insert(key.clone(), answer)),
            None => {}
        }
        if self.is_extended(pod) {
            return self.decide_extended(key, pod);
        }
        match self.try_place(pod) {
            Ok(node) => self.assume(key, pod, &node),
            Err(failed) => {
                let (why, signature) = *failed;
                self.no_node(key, pod, why, signature)
            }
        }
    }

    fn decider_name(pod: &Pod) -> &str {
        let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
        name.unwrap_or(crate::profile::DEFAULT_NAME)
    }

    /// The node that the pod would have now; nothing is taken yet.
    fn try_place(&mut self, pod: &Pod) -> Result<String, Box<(Unschedulable, Signature)>> {
        let Some(decider) = self.deciders.get_mut(Self::decider_name(pod)) else {
            let signature = Decider::new(Profile::default()).signature(&self.snapshot, pod);
            return Err(Box::new((Unschedulable::default(), signature)));
        };
        let signature = decider.signature(&self.snapshot, pod);
        match decider.decide_as(&mut self.snapshot, pod, &signature) {
            Decision::Place { node } => Ok(node),
            Decision::Unschedulable(why) => Err(Box::new((why, signature))),
        }
    }

    /// Takes the node, and for the pod's claims what they get there.
    fn assume(&mut self, key: &PodKey, pod: &Pod, node: &str) -> Outcome {
        self.with_claims.remove(key);
        let steps = self.take_claims(pod, node);
        let known = self.queue.remove(key).unwrap_or_else(|| Arc::new(pod.clone()));
        let mut assumed = Assumed { node: node.to_owned(), pod: known, ..Assumed::default() };
        if steps.is_some() {
            assumed.awaits_claims = true;
            assumed.claims = volumes::keys(pod);
        }
        assumed.devices = self.take_devices(pod, node);
        self.assumed.insert(key.clone(), assumed);
        self.snapshot.place_pod(key.clone(), pod, node);
        self.events.arrived = true;
        match steps {
            Some(steps) => Outcome::Provide { node: node.to_owned(), steps },
            None => Outcome::Bind { node: node.to_owned() },
        }
    }

    fn no_node(&mut self, key: &PodKey, pod: &Pod, mut why: Unschedulable, signature: Signature) -> Outcome {
        let known = self.queue.get(key).cloned().unwrap_or_else(|| Arc::new(pod.clone()));
        let claims = volumes::keys(pod);
        if !claims.is_empty() || !volumes::attach::Inline::of(pod).is_empty() {
            self.with_claims.insert(key.clone(), claims);
        }
        self.note_idle_claim(key, pod, &why);
        let asks = self.rooms_are_asked(pod);
        let mut made_room = None;
        if why.lack.is_none()
            && why.nodes > 0
            && let Some(decider) = self.deciders.get_mut(Self::decider_name(pod))
        {
            match decider.rooms(&mut self.snapshot, pod, &signature, &self.budgets) {
                Ok(rooms) if asks => return Outcome::AskRoom { why, rooms },
                Ok(rooms) => made_room = best_room(&self.snapshot, &rooms),
                Err(text) => why.preemption = text,
            }
        }
        self.queue.park(key, &known, signature);
        self.wait_for_room(key, pod, why, made_room)
    }

    /// The pod waits, with a promise if there is one.
    fn wait_for_room(&mut self, key: &PodKey, pod: &Pod, why: Unschedulable, made_room: Option<Preemption>) -> Outcome {
        let Some(preemption) = made_room else {
            // Victims that are still leaving keep the room for it; else nothing does.
            let waits = why.preemption.as_deref().is_some_and(|text| text.contains("terminating pod"));
            if !waits && self.snapshot.unnominate(key).is_some() {
                self.events.nominees = true;
            }
            return Outcome::Wait(why);
        };
        let denominated = self.nominate(key, pod, &preemption.node);
        Outcome::Preempt { why, preemption, denominated }
    }

    /// What extenders left of the ways of making room.
    fn make_room(&mut self, key: &PodKey, pod: &Pod, mut why: Unschedulable, rooms: &[Room]) -> Outcome {
        let Some(decider) = self.deciders.get(Self::decider_name(pod)) else { return Outcome::Ignore };
        let signature = decider.signature(&self.snapshot, pod);
        let known = self.queue.get(key).cloned().unwrap_or_else(|| Arc::new(pod.clone()));
        self.queue.park(key, &known, signature);
        let made_room = best_room(&self.snapshot, rooms);
        if made_room.is_none() {
            why.preemption = Some("extenders left no way of making room.".to_owned());
        }
        self.wait_for_room(key, pod, why, made_room)
    }

    /// Keeps the node's room; gives the less important pods that no longer have theirs kept there.
    fn nominate(&mut self, key: &PodKey, pod: &Pod, node: &str) -> Vec<PodKey> {
        let nominee = nominee(key, pod);
        let lower: Vec<PodKey> = self.snapshot.slot_of(node).map_or_else(Vec::new, |slot| {
            let nominees = self.snapshot.row(slot).nominees.iter();
            nominees.filter(|other| other.priority < nominee.priority).map(|other| other.key.clone()).collect()
        });
        for other in &lower {
            self.snapshot.unnominate(other);
            self.queue.wake(other);
        }
        self.snapshot.nominate(nominee, node);
        lower
    }

    /// What is to be done for a pod that has a node; `None` for one that is to be placed.
    fn outcome_so_far(&mut self, key: &PodKey, pod: &Pod) -> Option<Outcome> {
        let Some(assumed) = self.assumed.get_mut(key) else {
            return self.snapshot.node_of(key).map(|_| Outcome::Ignore);
        };
        if !assumed.awaits_claims {
            return Some(Outcome::Ignore);
        }
        match self.snapshot.storage().progress(pod, &assumed.node, &self.snapshot) {
            Progress::Complete => {
                assumed.awaits_claims = false;
                Some(Outcome::Bind { node: assumed.node.clone() })
            }
            Progress::Pending => Some(Outcome::Ignore),
            Progress::Lost => {
                let slot = self.snapshot.placed_pod(key).map(|placed| placed.slot);
                self.events.freed.extend(slot);
                if let Some(assumed) = self.release(key) {
                    self.give_devices_back(&assumed);
                }
                self.snapshot.remove_pod(key);
                None
            }
        }
    }

    /// Takes for the pod's waiting claims what they get on its node; `None` if it has none.
    fn take_claims(&mut self, pod: &Pod, node: &str) -> Option<Vec<Step>> {
        let given = {
            let needs = Needs::new(&self.snapshot, pod).ok().filter(Needs::has_waiting)?;
            needs.assign(self.snapshot.node(node)?).ok()?
        };
        let storage = self.snapshot.storage_mut();
        let steps = volumes::steps(storage, &given);
        storage.taken.extend(given);
        Some(steps)
    }

    /// Ends an assumption, and what it took of volumes.
    fn release(&mut self, key: &PodKey) -> Option<Assumed> {
        let assumed = self.assumed.remove(key)?;
        for claim in &assumed.claims {
            let shared = self.assumed.values().any(|other| other.claims.contains(claim));
            if !shared {
                self.snapshot.storage_mut().taken.remove(claim);
            }
        }
        Some(assumed)
    }
}

fn nominee(key: &PodKey, pod: &Pod) -> Nominee {
    Nominee {
        key: key.clone(),
        priority: pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0),
        request: crate::resources::Request::of(pod),
        ports: pod.spec.as_ref().map(crate::snapshot::host_ports).unwrap_or_default(),
    }
}

fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty())
}

fn finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}
