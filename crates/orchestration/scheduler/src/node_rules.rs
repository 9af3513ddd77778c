//! Rules that are asked node by node, after those that a ranking knows: each has a state of its own in the snapshot.

use k8s_openapi::api::core::v1::Pod;

use crate::counts::Slot;
use crate::dra;
use crate::profile::Profile;
use crate::reasons::Refusal;
use crate::shape::pin;
use crate::snapshot::Snapshot;
use crate::volumes::Needs;

/// What they ask for one pod, worked out once.
pub(crate) struct NodeRules<'a> {
    pin: Option<String>,
    volumes: Needs<'a>,
    devices: dra::Needs<'a>,
}

impl<'a> NodeRules<'a> {
    /// Or what the pod lacks, whatever the node.
    pub fn new(snapshot: &'a Snapshot, profile: &Profile, pod: &Pod) -> Result<Self, String> {
        let volumes = if profile.filters.volumes { Needs::new(snapshot, pod)? } else { Needs::default() };
        let pin = pod.spec.as_ref().filter(|_| profile.filters.node_affinity).and_then(pin).map(str::to_owned);
        Ok(Self { pin, volumes, devices: dra::Needs::new(snapshot, pod)? })
    }

    /// Whether nodes have to be asked.
    pub fn restricts(&self) -> bool {
        self.pin.is_some() || self.volumes.restricts() || self.devices.restricts()
    }

    /// The only nodes that can do, where that is known without asking them all.
    pub fn only_nodes(&self, snapshot: &Snapshot) -> Option<Vec<Slot>> {
        if let Some(pin) = &self.pin {
            return Some(snapshot.slot_of(pin).into_iter().collect());
        }
        let names = self.volumes.only_nodes()?;
        names.iter().map(|name| snapshot.slot_of(name).filter(|slot| has_own_name(snapshot, *slot))).collect()
    }

    /// Devices, the dearer question, come last.
    pub fn refuses(&self, snapshot: &Snapshot, slot: Slot) -> Option<Refusal> {
        self.refuses_others(snapshot, slot)
            .or_else(|| self.refuses_volumes(snapshot, slot))
            .or_else(|| self.refuses_devices(snapshot, slot))
    }

    /// All nodes but the one that the pod is made for.
    pub fn refuses_others(&self, snapshot: &Snapshot, slot: Slot) -> Option<Refusal> {
        let pin = self.pin.as_deref()?;
        (*snapshot.row(slot).name != *pin).then_some(Refusal::NodeAffinity)
    }

    pub fn refuses_volumes(&self, snapshot: &Snapshot, slot: Slot) -> Option<Refusal> {
        self.volumes.refuses(snapshot, slot).map(Refusal::Volume)
    }

    pub fn refuses_devices(&self, snapshot: &Snapshot, slot: Slot) -> Option<Refusal> {
        let node = snapshot.row(slot).node.as_deref()?;
        self.devices.refuses(node).map(Refusal::Devices)
    }
}

/// Whether a node's host name is its name, as it is unless someone changed the label.
fn has_own_name(snapshot: &Snapshot, slot: Slot) -> bool {
    let row = snapshot.row(slot);
    let labels = row.node.as_ref().and_then(|node| node.metadata.labels.as_ref());
    labels.and_then(|labels| labels.get("kubernetes.io/hostname")).is_some_and(|host| **host == *row.name)
}
