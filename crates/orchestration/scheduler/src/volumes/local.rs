//! Room for the built-in provisioner's volumes: what each node has, less what was promised of it.
//!
//! A directory has no size of its own, so the sum of promises is what is kept within the node's capacity.

use std::collections::BTreeMap;
use std::str::FromStr;

use dhow_api::local_volumes::{CAPACITY, NODE_LABEL, PROVISIONER, SOURCE_NODE};
use dhow_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use super::matching::{annotation, capacity, is_block, requested};

/// The name of the volume that is made for a claim.
pub fn name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default())
}

/// Why no node can make a volume for the claim, for its events.
pub fn impossible(claim: &PersistentVolumeClaim, class: &StorageClass) -> Option<String> {
    let spec = claim.spec.as_ref()?;
    if is_block(spec.volume_mode.as_deref()) {
        return Some(format!("{PROVISIONER} makes directories, not block devices: use volumeMode Filesystem"));
    }
    let shared = |mode: &&String| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany");
    if let Some(mode) = spec.access_modes.iter().flatten().find(shared) {
        return Some(format!(
            "{PROVISIONER} makes volumes of one node: use ReadWriteOnce or ReadWriteOncePod, not {mode}"
        ));
    }
    if spec.selector.is_some() {
        return Some(format!("{PROVISIONER} makes new volumes: a claim with a selector gets none"));
    }
    class.parameters.iter().flatten().next().map(|(name, _)| format!("{PROVISIONER} knows no parameter \"{name}\""))
}

/// What a claim is to be filled from: group, kind and name.
fn data_source(claim: &PersistentVolumeClaim) -> Option<(&str, &str, &str)> {
    let spec = claim.spec.as_ref()?;
    let referred = spec.data_source_ref.as_ref().map(|one| (one.api_group.as_deref(), &one.kind, &one.name));
    let plain = || spec.data_source.as_ref().map(|one| (one.api_group.as_deref(), &one.kind, &one.name));
    referred.or_else(plain).map(|(group, kind, name)| (group.unwrap_or_default(), kind.as_str(), name.as_str()))
}

/// What a claim begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning<'a> {
    Empty,
    /// With what another claim has.
    Claim(&'a str),
    /// With what a VolumeSnapshot holds.
    Snapshot(&'a str),
    /// Somebody else makes the volume and fills it: the kind and name that it is told by.
    Others(&'a str, &'a str),
}

pub fn beginning(claim: &PersistentVolumeClaim) -> Beginning<'_> {
    match data_source(claim) {
        None => Beginning::Empty,
        Some(("", "PersistentVolumeClaim", name)) => Beginning::Claim(name),
        Some(("snapshot.storage.k8s.io", "VolumeSnapshot", name)) => Beginning::Snapshot(name),
        Some((_, kind, name)) => Beginning::Others(kind, name),
    }
}

/// The only node on which the claim can be filled, or why that is not known yet.
pub fn source_node(claim: &PersistentVolumeClaim) -> Result<Option<&str>, String> {
    if !matches!(beginning(claim), Beginning::Claim(_) | Beginning::Snapshot(_)) {
        return Ok(None);
    }
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let node = annotation(&claim.metadata, SOURCE_NODE);
    node.map(Some).ok_or_else(|| format!("waiting for the data source of persistentvolumeclaim \"{name}\""))
}

/// The node that holds a volume, if the built-in provisioner made it.
pub fn node_of(volume: &PersistentVolume) -> Option<&str> {
    volume.metadata.labels.as_ref().and_then(|labels| labels.get(NODE_LABEL)).map(String::as_str)
}

/// Bytes that a node's volumes may take in sum; nothing for a node that holds none.
pub fn room(node: &Node) -> i64 {
    let text = annotation(&node.metadata, CAPACITY);
    text.and_then(|text| Quantity::from_str(text).ok()).map_or(0, |size| size.units())
}

/// Bytes promised by node: to volumes, and to claims whose volume is yet to be made on the node they are given with.
pub fn promised<'a>(
    volumes: impl Iterator<Item = &'a PersistentVolume>,
    claims: impl Iterator<Item = (&'a PersistentVolumeClaim, &'a str)>,
) -> BTreeMap<String, i64> {
    let mut sums: BTreeMap<String, i64> = BTreeMap::new();
    let mut add = |node: &str, bytes: i64| {
        let sum = sums.entry(node.to_owned()).or_default();
        *sum = sum.saturating_add(bytes);
    };
    for volume in volumes {
        if let Some(node) = node_of(volume) {
            add(node, capacity(volume));
        }
    }
    for (claim, node) in claims {
        add(node, requested(claim));
    }
    sums
}
