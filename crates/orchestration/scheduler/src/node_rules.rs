//! Rules that are asked node by node, after those that a ranking knows: each has a state of its own in the snapshot.

use k8s_openapi::api::core::v1::Pod;

use crate::counts::Slot;
use crate::dra;
use crate::profile::Profile;
use crate::reasons::Refusal;
use crate::snapshot::Snapshot;
use crate::volumes::Needs;

/// What they ask for one pod, worked out once.
pub(crate) struct NodeRules<'a> {
    volumes: Needs<'a>,
    devices: dra::Needs<'a>,
}

impl<'a> NodeRules<'a> {
    /// Or what the pod lacks, whatever the node.
    pub fn new(snapshot: &'a Snapshot, profile: &Profile, pod: &Pod) -> Result<Self, String> {
        let volumes = if profile.filters.volumes { Needs::new(snapshot, pod)? } else { Needs::default() };
        Ok(Self { volumes, devices: dra::Needs::new(snapshot, pod)? })
    }

    /// Whether nodes have to be asked.
    pub fn restricts(&self) -> bool {
        self.volumes.restricts() || self.devices.restricts()
    }

    /// The only nodes that can do, where that is known without asking them all.
    pub fn only_nodes(&self) -> Option<Vec<&str>> {
        self.volumes.only_nodes()
    }

    /// Devices, the dearer question, come last.
    pub fn refuses(&self, snapshot: &Snapshot, slot: Slot) -> Option<Refusal> {
        self.refuses_volumes(snapshot, slot).or_else(|| self.refuses_devices(snapshot, slot))
    }

    pub fn refuses_volumes(&self, snapshot: &Snapshot, slot: Slot) -> Option<Refusal> {
        self.volumes.refuses(snapshot, slot).map(Refusal::Volume)
    }

    pub fn refuses_devices(&self, snapshot: &Snapshot, slot: Slot) -> Option<Refusal> {
        let node = snapshot.row(slot).node.as_deref()?;
        self.devices.refuses(node).map(Refusal::Devices)
    }
}
