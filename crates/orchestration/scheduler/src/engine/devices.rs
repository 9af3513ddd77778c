//! Claims on devices: what pods take of them when they are placed, and whom a change of them wakes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::resource::v1alpha3::DeviceTaintRule;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;

use super::{Assumed, Engine, State};
use crate::dra::{self, Needs, Progress, Reservation, is_conditional};
use crate::reasons::Refusal;
use crate::volumes::ClaimKey;
use crate::{PodKey, Unschedulable};

impl Engine {
    /// `None` for a claim that is gone.
    pub fn device_claim_changed(&self, key: &ClaimKey, new: Option<Arc<ResourceClaim>>) {
        self.change(|state| {
            let has = |claim: &Option<Arc<ResourceClaim>>| {
                claim.as_ref().is_some_and(|claim| claim.status.as_ref().is_some_and(|s| s.allocation.is_some()))
            };
            let old = state.snapshot.devices().claim(key).cloned();
            // Nobody else is helped by a claim that is new, or has got its devices.
            let frees = has(&old) && !has(&new);
            state.snapshot.devices_mut().set_claim(key, new);
            state.wake_device_users((!frees).then_some(key));
        });
        self.device_claims.send_replace(());
    }

    /// What was written on a claim is known before it is heard of.
    pub fn device_claim_written(&self, key: &ClaimKey, claim: ResourceClaim) {
        let known = |state: &State| state.snapshot.devices().claim(key).map(|known| known.metadata.uid.clone());
        self.change(|state| {
            if known(state).is_some_and(|uid| uid == claim.metadata.uid) {
                state.snapshot.devices_mut().set_claim(key, Some(Arc::new(claim)));
                state.wake_device_users(Some(key));
            }
        });
        self.device_claims.send_replace(());
    }

    /// Tells of every change of a claim on devices.
    pub(crate) fn device_claims_moved(&self) -> watch::Receiver<()> {
        self.device_claims.subscribe()
    }

    /// How far the pod's devices are that have to be prepared before it is bound, worst first, with the claim they are of.
    pub(crate) fn unprepared(&self, pod: &Pod, now: Timestamp) -> Option<(ClaimKey, Progress)> {
        let state = self.state.lock();
        let progress = |key: ClaimKey| {
            let claim = state.snapshot.devices().claim(&key)?;
            let conditional =
                claim.status.as_ref().and_then(|status| status.allocation.as_ref()).is_none_or(is_conditional);
            let progress = dra::progress(claim, pod, now);
            (conditional && progress != Progress::Ready).then_some((key, progress))
        };
        let all: Vec<_> = dra::keys(pod).into_iter().filter_map(progress).collect();
        let waits = |(_, progress): &(ClaimKey, Progress)| matches!(progress, Progress::Waits(_));
        all.iter().find(|one| !waits(one)).or_else(|| all.first()).cloned()
    }

    /// Whether the pod may have to wait for its devices to be prepared.
    pub(crate) fn has_conditional_devices(&self, key: &PodKey, pod: &Pod) -> bool {
        let state = self.state.lock();
        let reserved = state.assumed.get(key).into_iter().flat_map(|assumed| &assumed.devices);
        let mut decided = reserved.filter_map(|reservation| reservation.allocation.as_deref());
        decided.any(is_conditional)
            || dra::keys(pod).iter().any(|key| {
                let claim = state.snapshot.devices().claim(key);
                claim.is_some_and(|claim| {
                    claim.status.as_ref().and_then(|s| s.allocation.as_ref()).is_some_and(is_conditional)
                })
            })
    }

    /// `None` for a slice that is gone.
    pub fn slice_changed(&self, name: &str, new: Option<Arc<ResourceSlice>>) {
        self.change(|state| {
            state.snapshot.devices_mut().set_slice(name, new);
            state.wake_device_users(None);
        });
    }

    /// `None` for a rule that is gone.
    pub fn taint_rule_changed(&self, name: &str, new: Option<Arc<DeviceTaintRule>>) {
        self.change(|state| {
            state.snapshot.devices_mut().set_taint_rule(name, new);
            state.wake_device_users(None);
        });
    }

    /// `None` for a class that is gone.
    pub fn device_class_changed(&self, name: &str, new: Option<Arc<DeviceClass>>) {
        self.change(|state| {
            state.snapshot.devices_mut().set_class(name, new);
            state.wake_device_users(None);
        });
    }

    /// What is to be written on claims before the decided pod is bound.
    pub fn reservations(&self, key: &PodKey) -> Vec<Reservation> {
        self.state.lock().assumed.get(key).map_or_else(Vec::new, |assumed| assumed.devices.clone())
    }

    /// A claim of a waiting pod whose devices are where the pod cannot go, and which nobody else uses.
    pub fn take_idle_claim(&self, key: &PodKey) -> Option<(ClaimKey, Arc<ResourceClaim>)> {
        let mut state = self.state.lock();
        let claim = state.idle_claims.remove(key)?;
        let known = state.snapshot.devices().claim(&claim).cloned()?;
        Some((claim, known))
    }
}

impl State {
    /// Takes note of a pod that uses claims on devices, as long as it has no node.
    pub(super) fn see_devices(&mut self, key: &PodKey, pod: &Pod) {
        let uses = pod.spec.as_ref().is_some_and(|spec| spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()));
        if uses && self.wants(pod) {
            self.with_devices.insert(key.clone());
        } else {
            self.with_devices.remove(key);
        }
    }

    /// Takes the devices that the pod's claims get on the node; gives what is to be written on claims.
    pub(super) fn take_devices(&mut self, pod: &Pod, node: &str) -> Vec<Reservation> {
        let reservations = {
            let Ok(needs) = Needs::new(&self.snapshot, pod) else { return Vec::new() };
            let Some(node) = self.snapshot.node(node) else { return Vec::new() };
            needs.reservations(node).unwrap_or_default()
        };
        for reservation in &reservations {
            if let Some(allocation) = &reservation.allocation {
                self.snapshot.devices_mut().take(&reservation.claim, Arc::clone(allocation));
            }
        }
        reservations
    }

    /// The pod will not have what it took; what the API shows already stays.
    pub(super) fn give_devices_back(&mut self, assumed: &Assumed) {
        let taken: Vec<&ClaimKey> = assumed
            .devices
            .iter()
            .filter(|reservation| reservation.allocation.is_some())
            .map(|reservation| &reservation.claim)
            .collect();
        if taken.is_empty() {
            return;
        }
        for claim in taken {
            self.snapshot.devices_mut().give_back(claim);
        }
        self.wake_device_users(None);
    }

    /// Waiting pods that use the claim, or all that use any.
    fn wake_device_users(&mut self, claim: Option<&ClaimKey>) {
        let users = self.with_devices.iter().filter(|key| match (claim, self.queue.get(key)) {
            (Some(claim), Some(pod)) => dra::keys(pod).contains(claim),
            (None, _) => true,
            (Some(_), None) => false,
        });
        let users: Vec<PodKey> = users.cloned().collect();
        for pod in users {
            self.queue.wake(&pod);
        }
    }

    pub(super) fn note_idle_claim(&mut self, key: &PodKey, pod: &Pod, why: &Unschedulable) {
        self.idle_claims.remove(key);
        if !why.reasons.contains_key(&Refusal::Devices(dra::ELSEWHERE.to_owned())) {
            return;
        }
        let idle = Needs::new(&self.snapshot, pod).ok().and_then(|needs| needs.idle(&self.snapshot, pod));
        if let Some(claim) = idle {
            self.idle_claims.insert(key.clone(), claim);
        }
    }
}
