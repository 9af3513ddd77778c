//! What the scheduler knows between decisions: the cluster as seen, pods it assumes to be placed, and pods that wait.
//!
//! Invariants: a pod counts on its node from the moment it is decided, not from when the API says so; a pod that found
//! no node is woken by every change that could help it, because waiting is recorded under the lock changes take.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;

use crate::{Decision, PodKey, Snapshot, Unschedulable, place, topology};

/// What to do for one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: it is placed, finished, gated, someone else's, or gone.
    Ignore,
    /// Bind it; then call [`Engine::bound`] or [`Engine::bind_failed`].
    Bind { node: String },
    /// Tell why; it will be woken.
    Wait(Unschedulable),
}

#[derive(Default)]
struct State {
    snapshot: Snapshot,
    /// Decided here, not yet seen placed in the API.
    assumed: HashMap<PodKey, String>,
    waiting: BTreeSet<PodKey>,
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
            let arrived = state.assumed.remove(&key).is_some();
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

    /// Decides about one pod. A pod to bind counts on its node from here on.
    pub fn decide(&self, key: &PodKey, pod: &Pod) -> Outcome {
        let mut state = self.state.lock();
        if !self.wants(pod) || state.assumed.contains_key(key) || state.snapshot.node_of(key).is_some() {
            return Outcome::Ignore;
        }
        match place(&state.snapshot, pod) {
            Decision::Place { node } => {
                state.waiting.remove(key);
                state.assumed.insert(key.clone(), node.clone());
                state.snapshot.place_pod(key.clone(), pod, &node);
                Outcome::Bind { node }
            }
            Decision::Unschedulable(why) => {
                state.waiting.insert(key.clone());
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
        if state.assumed.remove(key).is_none() {
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
    fn wake_sensitive(&mut self) -> Vec<PodKey> {
        let mut keys = std::mem::take(&mut self.sensitive);
        keys.retain(|key| self.waiting.remove(key));
        keys.into_iter().collect()
    }

    fn wake(&mut self) -> Vec<PodKey> {
        self.sensitive.clear();
        std::mem::take(&mut self.waiting).into_iter().collect()
    }

    fn forget(&mut self, key: &PodKey) -> Vec<PodKey> {
        self.assumed.remove(key);
        self.waiting.remove(key);
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
    old.metadata.labels != new.metadata.labels || old.spec != new.spec || room(old) != room(new)
}
