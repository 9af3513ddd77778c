//! A cluster as it might be: others ask where pods would go if there were more nodes, or fewer.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;

use crate::decider::{Decider, pod_key};
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

    /// Counts a pod on a node.
    pub fn put(&mut self, pod: &Pod, node: &str) {
        self.snapshot.place_pod(pod_key(pod), pod, node);
    }

    pub fn take(&mut self, pod: &Pod) {
        self.snapshot.remove_pod(&pod_key(pod));
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
