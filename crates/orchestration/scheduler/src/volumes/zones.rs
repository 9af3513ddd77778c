//! Volumes that are labelled with a zone or a region, as those of drivers are that know no node affinity.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, PersistentVolume};

/// Labels that say where something is, each with the name that replaced it.
const LABELS: [(&str, &str); 4] = [
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
];

/// Several zones in one label.
const DELIMITER: &str = "__";

/// Whether the node is where the volume's labels say. A node that has no such label is anywhere.
pub(crate) fn holds(volume: &PersistentVolume, node: &Node) -> bool {
    let empty = BTreeMap::new();
    let has = node.metadata.labels.as_ref().unwrap_or(&empty);
    let asks = volume.metadata.labels.as_ref().unwrap_or(&empty);
    if !LABELS.iter().any(|(label, _)| has.contains_key(*label)) {
        return true;
    }
    LABELS.iter().all(|(label, now)| {
        let Some(wanted) = asks.get(*label) else { return true };
        let places: BTreeSet<&str> = wanted.split(DELIMITER).map(str::trim).collect();
        let here = has.get(*label).or_else(|| has.get(*now));
        here.is_some_and(|here| places.contains(here.as_str()))
    })
}
