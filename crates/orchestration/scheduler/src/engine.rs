//! What the scheduler knows between decisions: the cluster as seen, pods it assumes to be placed, and pods that wait.
//!
//! Invariants: a pod counts on its node from the moment it is decided, not from when the API says so; a pod that found
//! no node is woken by every change that could help it, because waiting is recorded under the lock changes take.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use parking_lot::Mutex;

use crate::volumes::{self, ClaimKey, Needs, Progress, Step};
use crate::{Decision, PodKey, Snapshot, Unschedulable, place, topology};

/// What to do for one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: it is placed, finished, gated, someone else's, or gone.
    Ignore,
    /// Bind it; then call [`Engine::bound`] or [`Engine::bind_failed`].
    Bind { node: String },
    /// Write these, or call [`Engine::bind_failed`]. The pod is woken when its claims have changed.
    Provide { node: String, steps: Vec<Step> },
    /// Tell why; it will be woken.
    Wait(Unschedulable),
}

/// A pod that was decided.
#[derive(Default)]
struct Assumed {
    node: String,
    /// It is bound when its claims are.
    awaits_claims: bool,
    claims: Vec<ClaimKey>,
}

#[derive(Default)]
struct State {
    snapshot: Snapshot,
    /// Decided here, not yet seen placed in the API.
    assumed: HashMap<PodKey, Assumed>,
    waiting: BTreeSet<PodKey>,
    /// Those of them that use claims, and which.
    with_claims: BTreeMap<PodKey, Vec<ClaimKey>>,
    /// Those of them that another pod's arrival may help.
    sensitive: BTreeSet<PodKey>,
}

pub struct Engine {
    /// Pods that name another scheduler are not ours.
    name: String,
    state: Mutex<State>,
}

impl Engine {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), state: Mutex::default() }
    }

    /// Whether the pod is one to place.
    pub fn wants(&self, pod: &Pod) -> bool {
        let Some(spec) = &pod.spec else { return false };
        node_name(pod).is_none()
            && !finished(pod)
            && pod.metadata.deletion_timestamp.is_none()
            && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
            && spec.scheduler_name.as_deref().unwrap_or("default-scheduler") == self.name
    }

    /// Gives the pods to try again.
    pub fn node_changed(&self, old: Option<&Node>, new: Arc<Node>) -> Vec<PodKey> {
        let mut state = self.state.lock();
        let matters = old.is_none_or(|old| differs(old, &new));
        state.snapshot.set_node(new);
        // Most updates of a node are heartbeats.
        if matters { state.wake() } else { Vec::new() }
    }

    pub fn node_removed(&self, name: &str) {
        self.state.lock().snapshot.remove_node(name);
    }

    /// Gives the pods to try again: this one, if it is to be placed, or those that its end may have made room for.
    pub fn pod_changed(&self, key: PodKey, pod: &Pod) -> Vec<PodKey> {
        let mut state = self.state.lock();
        if finished(pod) {
            return state.forget(&key);
        }
        if let Some(node) = node_name(pod) {
            let arrived = state.release(&key);
            state.waiting.remove(&key);
            let known = state.snapshot.placed_pod(&key).is_some_and(|p| p.node() == node && p.same_labels(pod));
            state.snapshot.place_pod(key, pod, node);
            return if known && !arrived { Vec::new() } else { state.wake_sensitive() };
        }
        if self.wants(pod) && !state.assumed.contains_key(&key) && !state.waiting.contains(&key) {
            return vec![key];
        }
        Vec::new()
    }

    /// The pod's own specification changed, so what was decided about it no longer counts.
    pub fn pod_spec_changed(&self, key: &PodKey) {
        self.state.lock().waiting.remove(key);
    }

    pub fn pod_removed(&self, key: &PodKey) -> Vec<PodKey> {
        self.state.lock().forget(key)
    }

    /// Gives the pods to try again; `None` for a claim that is gone.
    pub fn claim_changed(&self, key: ClaimKey, new: Option<Arc<PersistentVolumeClaim>>) -> Vec<PodKey> {
        let mut state = self.state.lock();
        let storage = state.snapshot.storage_mut();
        let selected = |claim: &PersistentVolumeClaim| volumes::matching::selected_node(claim).is_some();
        let old = match new {
            Some(new) => {
                let unselected = !selected(&new);
                let old = storage.claims.insert(key.clone(), new);
                if unselected && old.as_deref().is_some_and(selected) {
                    // Its provisioner could not make it there, and asks for another node.
                    storage.taken.remove(&key);
                }
                old
            }
            None => storage.claims.remove(&key),
        };
        let room = old.is_some_and(|old| !volumes::matching::is_bound(&old));
        state.wake_users(&key, room)
    }

    /// Gives the pods to try again; `None` for a volume that is gone.
    pub fn volume_changed(&self, name: &str, new: Option<Arc<PersistentVolume>>) -> Vec<PodKey> {
        let mut state = self.state.lock();
        let volumes = &mut state.snapshot.storage_mut().volumes;
        let held = |volume: &PersistentVolume| volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some());
        let matters = match new {
            Some(new) => {
                let holds = held(&new);
                let old = volumes.insert(name.to_owned(), new);
                // Volumes that become free, and those that claims are bound to already, help; one just taken does not.
                !holds || old.is_none()
            }
            // It leaves room on its node.
            None => volumes.remove(name).is_some(),
        };
        if matters { state.wake_with_claims() } else { Vec::new() }
    }

    /// Gives the pods to try again; `None` for a class that is gone.
    pub fn class_changed(&self, name: &str, new: Option<Arc<StorageClass>>) -> Vec<PodKey> {
        let mut state = self.state.lock();
        let classes = &mut state.snapshot.storage_mut().classes;
        match new {
            Some(new) => drop(classes.insert(name.to_owned(), new)),
            None => drop(classes.remove(name)),
        }
        state.wake_with_claims()
    }

    /// Decides about one pod. A pod to bind counts on its node from here on.
    pub fn decide(&self, key: &PodKey, pod: &Pod) -> Outcome {
        let mut state = self.state.lock();
        if !self.wants(pod) {
            return Outcome::Ignore;
        }
        if let Some(outcome) = state.outcome_so_far(key, pod) {
            return outcome;
        }
        match place(&state.snapshot, pod) {
            Decision::Place { node } => {
                state.waiting.remove(key);
                state.with_claims.remove(key);
                let steps = state.take_claims(pod, &node);
                let mut assumed = Assumed { node: node.clone(), ..Assumed::default() };
                if steps.is_some() {
                    assumed.awaits_claims = true;
                    assumed.claims = volumes::keys(pod);
                }
                state.assumed.insert(key.clone(), assumed);
                state.snapshot.place_pod(key.clone(), pod, &node);
                match steps {
                    Some(steps) => Outcome::Provide { node, steps },
                    None => Outcome::Bind { node },
                }
            }
            Decision::Unschedulable(why) => {
                state.waiting.insert(key.clone());
                let claims = volumes::keys(pod);
                if !claims.is_empty() {
                    state.with_claims.insert(key.clone(), claims);
                }
                if pod.spec.as_ref().is_some_and(topology::sensitive) {
                    state.sensitive.insert(key.clone());
                }
                Outcome::Wait(why)
            }
        }
    }

    /// Gives the pods to try again now that the room is free.
    pub fn bind_failed(&self, key: &PodKey) -> Vec<PodKey> {
        let mut state = self.state.lock();
        // The API may have shown it placed after all, as when only the answer was lost.
        if !state.release(key) {
            return Vec::new();
        }
        state.snapshot.remove_pod(key);
        state.wake()
    }

    pub fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }
}

impl State {
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
                self.release(key);
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

    /// Ends an assumption, and what it took of volumes; says whether there was one.
    fn release(&mut self, key: &PodKey) -> bool {
        let Some(assumed) = self.assumed.remove(key) else { return false };
        for claim in assumed.claims {
            let shared = self.assumed.values().any(|other| other.claims.contains(&claim));
            if !shared {
                self.snapshot.storage_mut().taken.remove(&claim);
            }
        }
        true
    }

    /// Those that use the claim, and with `room` those that may use what it no longer takes.
    fn wake_users(&mut self, key: &ClaimKey, room: bool) -> Vec<PodKey> {
        let awaiting = self.assumed.iter().filter(|(_, one)| one.awaits_claims && one.claims.contains(key));
        let mut awake: Vec<PodKey> = awaiting.map(|(pod, _)| pod.clone()).collect();
        let users = self.with_claims.iter().filter(|(_, claims)| room || claims.contains(key));
        let users: Vec<PodKey> = users.map(|(pod, _)| pod.clone()).collect();
        for pod in users {
            self.with_claims.remove(&pod);
            if self.waiting.remove(&pod) {
                awake.push(pod);
            }
        }
        awake
    }

    fn wake_with_claims(&mut self) -> Vec<PodKey> {
        let mut awake: Vec<PodKey> = std::mem::take(&mut self.with_claims).into_keys().collect();
        awake.retain(|key| self.waiting.remove(key));
        awake.extend(self.assumed.iter().filter(|(_, one)| one.awaits_claims).map(|(key, _)| key.clone()));
        awake
    }

    fn wake_sensitive(&mut self) -> Vec<PodKey> {
        let mut keys = std::mem::take(&mut self.sensitive);
        keys.retain(|key| self.waiting.remove(key));
        keys.into_iter().collect()
    }

    fn wake(&mut self) -> Vec<PodKey> {
        self.sensitive.clear();
        self.with_claims.clear();
        std::mem::take(&mut self.waiting).into_iter().collect()
    }

    fn forget(&mut self, key: &PodKey) -> Vec<PodKey> {
        self.release(key);
        self.waiting.remove(key);
        self.with_claims.remove(key);
        if self.snapshot.node_of(key).is_none() {
            return Vec::new();
        }
        self.snapshot.remove_pod(key);
        self.wake()
    }
}

fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty())
}

fn finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether a node changed in something placement looks at.
fn differs(old: &Node, new: &Node) -> bool {
    let room = |node: &Node| node.status.as_ref().map(|s| (s.allocatable.clone(), s.capacity.clone()));
    let disk = volumes::local::room;
    disk(old) != disk(new)
        || old.metadata.labels != new.metadata.labels
        || old.spec != new.spec
        || room(old) != room(new)
}
