//! A cluster as it might be: others ask where pods would go if there were more nodes, or fewer.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimConsumerReference, ResourceSlice};
use k8s_openapi::api::resource::v1alpha3::DeviceTaintRule;
use k8s_openapi::api::storage::v1::StorageClass;

use crate::decider::{Decider, pod_key};
use crate::dra::{self, Needs};
use crate::profile::Profile;
use crate::resources::Amounts;
use crate::{Decision, Snapshot};

/// Nodes and pods to try things with. It decides as the default profile does and remembers what it worked out, so that
/// many pods alike cost little.
pub struct Trial {
    snapshot: Snapshot,
    decider: Decider,
}

impl Default for Trial {
    fn default() -> Self {
        Self { snapshot: Snapshot::new(), decider: Decider::new(Profile::default()) }
    }
}

impl Trial {
    pub fn set_node(&mut self, node: Arc<Node>) {
        self.snapshot.set_node(node);
    }

    /// The pods on it stay counted until they are taken or put elsewhere.
    pub fn remove_node(&mut self, name: &str) {
        self.snapshot.remove_node(name);
    }

    pub fn set_namespace(&mut self, name: &str, labels: BTreeMap<String, String>) {
        self.snapshot.set_namespace(name, Some(labels));
    }

    pub fn set_claim(&mut self, claim: Arc<PersistentVolumeClaim>) {
        let name = claim.metadata.name.clone().unwrap_or_default();
        let key = (claim.metadata.namespace.clone().unwrap_or_default(), name);
        self.snapshot.storage_mut().claims.insert(key, claim);
    }

    pub fn set_volume(&mut self, volume: Arc<PersistentVolume>) {
        let name = volume.metadata.name.clone().unwrap_or_default();
        self.snapshot.storage_mut().volumes.insert(name, volume);
    }

    pub fn set_class(&mut self, class: Arc<StorageClass>) {
        let name = class.metadata.name.clone().unwrap_or_default();
        self.snapshot.storage_mut().classes.insert(name, class);
    }

    pub fn set_device_class(&mut self, class: Arc<DeviceClass>) {
        let name = class.metadata.name.clone().unwrap_or_default();
        self.snapshot.devices_mut().set_class(&name, Some(class));
    }

    pub fn set_taint_rule(&mut self, rule: Arc<DeviceTaintRule>) {
        let name = rule.metadata.name.clone().unwrap_or_default();
        self.snapshot.devices_mut().set_taint_rule(&name, Some(rule));
    }

    pub fn set_device_claim(&mut self, claim: Arc<ResourceClaim>) {
        let name = claim.metadata.name.clone().unwrap_or_default();
        let key = (claim.metadata.namespace.clone().unwrap_or_default(), name);
        self.snapshot.devices_mut().set_claim(&key, Some(claim));
    }

    pub fn set_slice(&mut self, slice: Arc<ResourceSlice>) {
        let name = slice.metadata.name.clone().unwrap_or_default();
        self.snapshot.devices_mut().set_slice(&name, Some(slice));
    }

    pub fn remove_slice(&mut self, name: &str) {
        self.snapshot.devices_mut().set_slice(name, None);
    }

    /// Counts a pod on a node. Its claims get their devices there.
    pub fn put(&mut self, pod: &Pod, node: &str) {
        self.snapshot.place_pod(pod_key(pod), pod, node);
        let given = {
            let (Ok(needs), Some(node)) = (Needs::new(&self.snapshot, pod), self.snapshot.node(node)) else { return };
            needs.reservations(node).unwrap_or_default()
        };
        for one in given {
            let Some(mut claim) = self.snapshot.devices().claim(&one.claim).map(|claim| ResourceClaim::clone(claim))
            else {
                continue;
            };
            let status = claim.status.get_or_insert_default();
            status.allocation = one.allocation.map(|given| given.as_ref().clone()).or(status.allocation.take());
            status.reserved_for.get_or_insert_default().push(ResourceClaimConsumerReference {
                resource: "pods".to_owned(),
                name: pod.metadata.name.clone().unwrap_or_default(),
                uid: pod.metadata.uid.clone().unwrap_or_default(),
                api_group: None,
            });
            self.snapshot.devices_mut().set_claim(&one.claim, Some(Arc::new(claim)));
        }
    }

    /// Counts a pod no longer. Devices that it alone had are free.
    pub fn take(&mut self, pod: &Pod) {
        self.snapshot.remove_pod(&pod_key(pod));
        for key in dra::keys(pod) {
            let Some(mut claim) = self.snapshot.devices().claim(&key).map(|claim| ResourceClaim::clone(claim)) else {
                continue;
            };
            let status = claim.status.get_or_insert_default();
            let mut by = status.reserved_for.take().unwrap_or_default();
            let before = by.len();
            by.retain(|by| Some(&by.uid) != pod.metadata.uid.as_ref());
            if by.len() == before {
                continue;
            }
            if by.is_empty() {
                status.allocation = None;
            }
            status.reserved_for = Some(by);
            self.snapshot.devices_mut().set_claim(&key, Some(Arc::new(claim)));
        }
    }

    /// Decides, and counts the pod where it goes.
    pub fn place(&mut self, pod: &Pod) -> Decision {
        let decision = self.decider.decide(&mut self.snapshot, pod);
        if let Decision::Place { node } = &decision {
            self.put(pod, node);
        }
        decision
    }

    /// What the pods on a node ask for together.
    pub fn used(&self, node: &str) -> Amounts {
        self.snapshot.slot_of(node).map(|slot| self.snapshot.row(slot).used.clone()).unwrap_or_default()
    }
}
