//! Claims, volumes and classes as one decision sees them, with what earlier decisions took and the API does not show yet.

use std::sync::Arc;

use dhow_api::local_volumes::PROVISIONER;
use imbl::OrdMap;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};

use super::local;
use super::matching::{class_of, is_bound, is_held_for, reaches, selected_node, volume_name};
use crate::snapshot::Snapshot;

/// Identifies a claim: namespace and name.
pub type ClaimKey = (String, String);

/// What a decision took for a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    pub node: String,
    /// An existing volume; without one, it is to be made.
    pub volume: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Storage {
    pub claims: OrdMap<ClaimKey, Arc<PersistentVolumeClaim>>,
    pub volumes: OrdMap<String, Arc<PersistentVolume>>,
    pub classes: OrdMap<String, Arc<StorageClass>>,
    pub taken: OrdMap<ClaimKey, Taken>,
    /// What drivers say about each node.
    pub csi_nodes: OrdMap<String, Arc<CSINode>>,
    pub drivers: OrdMap<String, Arc<CSIDriver>>,
    /// By namespace and name.
    pub capacities: OrdMap<ClaimKey, Arc<CSIStorageCapacity>>,
    /// By node, then by attachment: the driver and the volume that it attached or is to attach.
    pub attached: OrdMap<String, OrdMap<String, (String, String)>>,
}

/// How far the claims of a pod are that has its node already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Complete,
    Pending,
    /// What was decided cannot be had.
    Lost,
}

/// A claim among a pod's volumes.
pub(crate) struct Used {
    pub claim: String,
    /// Made for this pod alone.
    pub ephemeral: bool,
}

/// The claims that a pod's volumes are.
pub(crate) fn used_by(pod: &Pod) -> Vec<Used> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let used = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(Used { claim: source.claim_name.clone(), ephemeral: false }),
        (None, Some(_)) => Some(Used { claim: format!("{name}-{}", volume.name), ephemeral: true }),
        (None, None) => None,
    });
    used.collect()
}

pub(crate) fn keys(pod: &Pod) -> Vec<ClaimKey> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    used_by(pod).into_iter().map(|used| (namespace.clone(), used.claim)).collect()
}

impl Storage {
    pub fn class(&self, claim: &PersistentVolumeClaim) -> Option<&StorageClass> {
        self.classes.get(class_of(claim)).map(|class| &**class)
    }

    /// The node that a claim without a volume is to get one on, if that is decided.
    pub fn chosen_node<'a>(&'a self, key: &ClaimKey, claim: &'a PersistentVolumeClaim) -> Option<&'a str> {
        let taken = self.taken.get(key).map(|taken| taken.node.as_str());
        taken.or_else(|| selected_node(claim))
    }

    /// Claims of the built-in provisioner that have a node and no volume yet.
    pub fn to_be_made(&self) -> impl Iterator<Item = (&PersistentVolumeClaim, &str)> {
        self.claims.iter().filter_map(|(key, claim)| {
            let local = || self.class(claim).is_some_and(|class| class.provisioner == PROVISIONER);
            let unmade = volume_name(claim).is_empty() && !self.volumes.contains_key(&local::name(claim));
            let existing = self.taken.get(key).is_some_and(|taken| taken.volume.is_some());
            let node = self.chosen_node(key, claim).filter(|_| unmade && !existing && local())?;
            Some((&**claim, node))
        })
    }

    pub fn progress(&self, pod: &Pod, node: &str, snapshot: &Snapshot) -> Progress {
        let mut progress = Progress::Complete;
        for key in keys(pod) {
            let claim = self.claims.get(&key).filter(|claim| claim.metadata.deletion_timestamp.is_none());
            let Some(claim) = claim else { return Progress::Lost };
            if is_bound(claim) {
                let lost = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost");
                match self.volumes.get(volume_name(claim)) {
                    // The copy of the volumes is behind that of the claims.
                    None if !lost => progress = Progress::Pending,
                    Some(volume) if snapshot.node(node).is_some_and(|node| reaches(volume, node)) => {}
                    _ => return Progress::Lost,
                }
                continue;
            }
            let held = match self.taken.get(&key).and_then(|taken| taken.volume.as_ref()) {
                Some(volume) => self.volumes.get(volume).is_some_and(|volume| {
                    let free = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none());
                    free || is_held_for(volume, claim)
                }),
                None => self.chosen_node(&key, claim) == Some(node),
            };
            if !held {
                return Progress::Lost;
            }
            progress = Progress::Pending;
        }
        progress
    }
}
