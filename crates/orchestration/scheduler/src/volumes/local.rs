//! Room for the built-in provisioner's volumes: what each node has, less what was promised of it.
//!
//! A directory has no size of its own, so the sum of promises is what is kept within the node's capacity.

use std::collections::BTreeMap;
use std::str::FromStr;

use dhow_api::local_volumes::{CAPACITY, NODE_LABEL};
use dhow_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};

use super::matching::{annotation, capacity, requested};

/// The name of the volume that is made for a claim.
pub fn name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default())
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
