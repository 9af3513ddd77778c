//! What informers tell.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{Engine, State, finished, node_name, nominee};
use crate::PodKey;
use crate::preempt::Budget;
use crate::selecting::Labels;
use crate::volumes::{self, ClaimKey};

impl Engine {
    pub(super) fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.state.lock());
        self.changed.notify_one();
    }

    pub fn node_changed(&self, new: Arc<Node>) {
        let mut state = self.state.lock();
        let name = new.metadata.name.clone().unwrap_or_default();
        let version = |state: &State| state.snapshot.slot_of(&name).map(|slot| state.snapshot.row(slot).version);
        let before = version(&state);
        state.snapshot.set_node(new);
        // Most updates of a node are heartbeats.
        if version(&state) != before {
            let slot = state.snapshot.slot_of(&name);
            state.events.nodes.extend(slot);
            drop(state);
            self.changed.notify_one();
        }
    }

    pub fn node_removed(&self, name: &str) {
        self.change(|state| {
            state.snapshot.remove_node(name);
            // A domain with few pods may be gone.
            state.events.arrived = true;
        });
    }

    pub fn pod_changed(&self, key: PodKey, pod: &Arc<Pod>) {
        self.change(|state| {
            state.groups.see(&key, pod);
            if finished(pod) {
                return state.forget(&key);
            }
            state.see_devices(&key, pod);
            if let Some(node) = node_name(pod) {
                if let Some(assumed) = state.release(&key).filter(|assumed| assumed.node != node) {
                    state.give_devices_back(&assumed);
                }
                state.queue.remove(&key);
                state.with_claims.remove(&key);
                let before = state.snapshot.placed_pod(&key).map(|placed| (placed.slot, placed.group));
                state.snapshot.place_pod(key.clone(), pod, node);
                let after = state.snapshot.placed_pod(&key).map(|placed| (placed.slot, placed.group));
                state.events.arrived |= before != after;
                // Requests may shrink in place.
                state.events.freed.extend(before.filter(|_| before != after).map(|(slot, _)| slot));
                return;
            }
            if !state.wants(pod) {
                state.queue.remove(&key);
                return;
            }
            if let Some(assumed) = state.assumed.get_mut(&key) {
                assumed.pod = Arc::clone(pod);
                return;
            }
            let nominated = pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref());
            if let Some(node) = nominated.filter(|node| !node.is_empty())
                && state.queue.get(&key).is_none()
                && state.snapshot.nominated_slot(&key).is_none()
            {
                state.snapshot.nominate(nominee(&key, pod), node);
            }
            state.queue.offer(&key, pod);
        });
    }

    pub fn pod_removed(&self, key: &PodKey) {
        self.change(|state| {
            state.groups.forget(key);
            state.forget(key);
        });
    }

    /// `None` for a claim that is gone.
    pub fn claim_changed(&self, key: ClaimKey, new: Option<Arc<PersistentVolumeClaim>>) {
        self.change(|state| {
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
            state.wake_users(&key, room);
        });
    }

    /// `None` for a volume that is gone.
    pub fn volume_changed(&self, name: &str, new: Option<Arc<PersistentVolume>>) {
        self.change(|state| {
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
            if matters {
                state.wake_with_claims();
            }
        });
    }

    /// `None` for a class that is gone.
    pub fn class_changed(&self, name: &str, new: Option<Arc<StorageClass>>) {
        self.change(|state| {
            let classes = &mut state.snapshot.storage_mut().classes;
            match new {
                Some(new) => drop(classes.insert(name.to_owned(), new)),
                None => drop(classes.remove(name)),
            }
            state.wake_with_claims();
        });
    }

    /// `None` for a node that no driver says anything about any more.
    pub fn csi_node_changed(&self, name: &str, new: Option<Arc<CSINode>>) {
        self.change(|state| {
            let nodes = &mut state.snapshot.storage_mut().csi_nodes;
            match new {
                Some(new) => drop(nodes.insert(name.to_owned(), new)),
                None => drop(nodes.remove(name)),
            }
            state.wake_with_claims();
        });
    }

    /// `None` for a driver that is gone.
    pub fn driver_changed(&self, name: &str, new: Option<Arc<CSIDriver>>) {
        self.change(|state| {
            let drivers = &mut state.snapshot.storage_mut().drivers;
            match new {
                Some(new) => drop(drivers.insert(name.to_owned(), new)),
                None => drop(drivers.remove(name)),
            }
            state.wake_with_claims();
        });
    }

    /// `None` for what a driver no longer says.
    pub fn capacity_changed(&self, key: ClaimKey, new: Option<Arc<CSIStorageCapacity>>) {
        self.change(|state| {
            let capacities = &mut state.snapshot.storage_mut().capacities;
            match new {
                Some(new) => {
                    drop(capacities.insert(key, new));
                    state.wake_with_claims();
                }
                None => drop(capacities.remove(&key)),
            }
        });
    }

    /// What is attached to a node, or was with `gone`.
    pub fn attachment_changed(&self, attachment: &VolumeAttachment, gone: bool) {
        let (name, spec) = (attachment.metadata.name.clone().unwrap_or_default(), &attachment.spec);
        let Some(volume) = &spec.source.persistent_volume_name else { return };
        self.change(|state| {
            let attached = &mut state.snapshot.storage_mut().attached;
            if !gone {
                let what = (spec.attacher.clone(), volume.clone());
                attached.entry(spec.node_name.clone()).or_default().insert(name, what);
                return;
            }
            if let Some(here) = attached.get_mut(&spec.node_name) {
                here.remove(&name);
                if here.is_empty() {
                    attached.remove(&spec.node_name);
                }
            }
            state.wake_with_claims();
        });
    }

    /// `None` for a namespace that is gone.
    pub fn namespace_changed(&self, name: &str, labels: Option<Labels>) {
        self.change(|state| state.events.all |= state.snapshot.set_namespace(name, labels));
    }

    pub fn service_changed(&self, name: PodKey, selector: Option<Labels>) {
        self.state.lock().snapshot.owners.set_service(name, selector);
    }

    pub fn owner_changed(&self, kind: &'static str, name: PodKey, selector: Option<LabelSelector>) {
        self.state.lock().snapshot.owners.set_owner(kind, name, selector);
    }

    pub fn budget_changed(&self, name: PodKey, budget: Option<&PodDisruptionBudget>) {
        let mut state = self.state.lock();
        let here = state.budgets.entry(name.0.clone()).or_default();
        match budget {
            Some(budget) => drop(here.insert(name.1, Budget::of(budget))),
            None => drop(here.remove(&name.1)),
        }
        if here.is_empty() {
            state.budgets.remove(&name.0);
        }
    }
}

impl State {
    /// Those that use the claim, and with `room` those that may use what it no longer takes.
    fn wake_users(&mut self, key: &ClaimKey, room: bool) {
        let awaiting = self.assumed.iter().filter(|(_, one)| one.awaits_claims && one.claims.contains(key));
        let awaiting: Vec<PodKey> = awaiting.map(|(pod, _)| pod.clone()).collect();
        awaiting.iter().for_each(|pod| self.look_again(pod));
        let users = self.with_claims.iter().filter(|(_, claims)| room || claims.contains(key));
        let users: Vec<PodKey> = users.map(|(pod, _)| pod.clone()).collect();
        for pod in users {
            self.with_claims.remove(&pod);
            self.queue.wake(&pod);
        }
    }

    fn forget(&mut self, key: &PodKey) {
        if let Some(assumed) = self.release(key) {
            self.give_devices_back(&assumed);
        }
        self.with_devices.remove(key);
        self.idle_claims.remove(key);
        self.answers.remove(key);
        self.queue.remove(key);
        self.with_claims.remove(key);
        if self.snapshot.unnominate(key).is_some() {
            self.events.nominees = true;
        }
        let Some(slot) = self.snapshot.placed_pod(key).map(|placed| placed.slot) else { return };
        self.snapshot.remove_pod(key);
        self.events.freed.insert(slot);
        self.events.storage = !self.with_claims.is_empty();
    }
}
