//! Pods that have no node yet: those to be tried now, those that rest after a failure, and those that wait for a change.
//!
//! The most important pod goes first, then the one that came first. A waiting pod is tried again when something changed that
//! may help it; nothing is tried again because time went by, but a failed write.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use crate::decider::Signature;
use crate::snapshot::PodKey;

const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq)]
enum Place {
    Active,
    /// `forced`: not before its time, for a write failed.
    Resting {
        until: Instant,
        forced: bool,
    },
    /// Until something changes.
    Waiting,
    /// Taken out to be decided.
    Out,
}

struct Pending {
    pod: Arc<Pod>,
    priority: i32,
    number: u64,
    attempts: u32,
    tried: Option<Instant>,
    place: Place,
    signature: Option<Signature>,
}

#[derive(Default)]
pub(crate) struct PodQueue {
    pods: HashMap<PodKey, Pending>,
    active: BTreeSet<(Reverse<i32>, u64, PodKey)>,
    resting: BTreeSet<(Instant, u64, PodKey)>,
    /// Waiting pods by what they ask for.
    waiting: HashMap<Signature, HashSet<PodKey>>,
    number: u64,
}

impl PodQueue {
    /// Knows the pod as it is now; a new one is to be tried at once.
    pub fn offer(&mut self, key: &PodKey, pod: &Arc<Pod>) -> bool {
        if let Some(pending) = self.pods.get_mut(key) {
            let changed = asks_otherwise(&pending.pod, pod);
            pending.pod = Arc::clone(pod);
            if changed && pending.place != Place::Out {
                self.activate(key);
                return true;
            }
            return false;
        }
        self.insert(key, pod, Place::Out);
        self.activate(key);
        true
    }

    fn insert(&mut self, key: &PodKey, pod: &Arc<Pod>, place: Place) {
        self.number += 1;
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let pending = Pending {
            pod: Arc::clone(pod),
            priority,
            number: self.number,
            attempts: 0,
            tried: None,
            place,
            signature: None,
        };
        self.pods.insert(key.clone(), pending);
    }

    fn unlink(&mut self, key: &PodKey) {
        let Some(pending) = self.pods.get_mut(key) else { return };
        match std::mem::replace(&mut pending.place, Place::Out) {
            Place::Active => drop(self.active.remove(&(Reverse(pending.priority), pending.number, key.clone()))),
            Place::Resting { until, .. } => drop(self.resting.remove(&(until, pending.number, key.clone()))),
            Place::Waiting => {
                if let Some(signature) = &pending.signature
                    && let Some(group) = self.waiting.get_mut(signature)
                {
                    group.remove(key);
                    if group.is_empty() {
                        self.waiting.remove(signature);
                    }
                }
            }
            Place::Out => {}
        }
    }

    fn activate(&mut self, key: &PodKey) {
        self.unlink(key);
        if let Some(pending) = self.pods.get_mut(key) {
            pending.priority = pending.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
            pending.place = Place::Active;
            self.active.insert((Reverse(pending.priority), pending.number, key.clone()));
        }
    }

    fn rest(&mut self, key: &PodKey, until: Instant, forced: bool) {
        self.unlink(key);
        if let Some(pending) = self.pods.get_mut(key) {
            pending.place = Place::Resting { until, forced };
            self.resting.insert((until, pending.number, key.clone()));
        }
    }

    /// Takes the next pod out. With nothing else to do, pods that only rest out of caution are next.
    pub fn pop(&mut self) -> Option<(PodKey, Arc<Pod>)> {
        let now = Instant::now();
        let due: Vec<PodKey> =
            self.resting.iter().take_while(|(until, _, _)| *until <= now).map(|(_, _, key)| key.clone()).collect();
        due.iter().for_each(|key| self.activate(key));
        let next = self.active.first().map(|(_, _, key)| key.clone());
        let next = next.or_else(|| {
            let unforced = |key: &PodKey| {
                self.pods.get(key).is_some_and(|p| !matches!(p.place, Place::Resting { forced: true, .. }))
            };
            self.resting.iter().map(|(_, _, key)| key).find(|key| unforced(key)).cloned()
        })?;
        self.take(&next)
    }

    /// Takes this pod out, wherever it is.
    pub fn take(&mut self, key: &PodKey) -> Option<(PodKey, Arc<Pod>)> {
        self.unlink(key);
        let pending = self.pods.get_mut(key)?;
        pending.tried = Some(Instant::now());
        pending.attempts += 1;
        Some((key.clone(), Arc::clone(&pending.pod)))
    }

    /// When the first pod rests no longer.
    pub fn due(&self) -> Option<Instant> {
        self.resting.first().map(|(until, _, _)| *until)
    }

    /// Taken out to be asked about, it is to be decided now.
    pub fn again(&mut self, key: &PodKey) {
        if self.pods.get(key).is_some_and(|pending| pending.place == Place::Out) {
            self.activate(key);
        }
    }

    /// It found no node.
    pub fn park(&mut self, key: &PodKey, pod: &Arc<Pod>, signature: Signature) {
        if !self.pods.contains_key(key) {
            self.insert(key, pod, Place::Out);
        }
        self.unlink(key);
        if let Some(pending) = self.pods.get_mut(key) {
            self.waiting.entry(signature.clone()).or_default().insert(key.clone());
            pending.signature = Some(signature);
            pending.place = Place::Waiting;
        }
    }

    /// Something changed that may help it.
    pub fn wake(&mut self, key: &PodKey) -> bool {
        let Some(pending) = self.pods.get(key).filter(|pending| pending.place == Place::Waiting) else { return false };
        let rest = FIRST_REST.saturating_mul(1 << pending.attempts.saturating_sub(1).min(10)).min(LONGEST_REST);
        match pending.tried.map(|tried| tried + rest).filter(|until| *until > Instant::now()) {
            Some(until) => self.rest(key, until, false),
            None => self.activate(key),
        }
        true
    }

    /// A write for it failed.
    pub fn retry(&mut self, key: &PodKey, pod: &Arc<Pod>) {
        if !self.pods.contains_key(key) {
            self.insert(key, pod, Place::Out);
        }
        let attempts = self.pods.get(key).map_or(1, |pending| pending.attempts);
        let rest = FIRST_REST.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(LONGEST_REST);
        self.rest(key, Instant::now() + rest, true);
    }

    pub fn remove(&mut self, key: &PodKey) -> Option<Arc<Pod>> {
        self.unlink(key);
        self.pods.remove(key).map(|pending| pending.pod)
    }

    pub fn get(&self, key: &PodKey) -> Option<&Arc<Pod>> {
        self.pods.get(key).map(|pending| &pending.pod)
    }

    pub fn signatures(&self) -> Vec<Signature> {
        self.waiting.keys().cloned().collect()
    }

    pub fn group(&self, signature: &Signature) -> Vec<PodKey> {
        self.waiting.get(signature).into_iter().flatten().cloned().collect()
    }

    pub fn waiting_pods(&self) -> Vec<PodKey> {
        self.waiting.values().flatten().cloned().collect()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.values().map(HashSet::len).sum()
    }
}

/// Whether what the pod asks for changed, as opposed to what is said about it.
fn asks_otherwise(old: &Pod, new: &Pod) -> bool {
    let claims = |pod: &Pod| pod.status.as_ref().and_then(|status| status.resource_claim_statuses.clone());
    claims(old) != claims(new)
        || old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || old.metadata.uid != new.metadata.uid
}
