//! How much room a driver's storage has for new volumes, and which nodes reach it: what a driver's CSIStorageCapacity
//! objects say, for drivers whose CSIDriver has `storageCapacity`.

use std::collections::{BTreeMap, BTreeSet};

use dhow_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIStorageCapacity, StorageClass};

use super::matching::requested;
use super::storage::Storage;
use crate::selecting::{Labels, Selector};

/// The nodes that reach storage with room for one claim.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Roomy<'a> {
    /// Named by one label, as storage of single nodes is: its values by the label's key.
    by_label: BTreeMap<&'a str, BTreeSet<&'a str>>,
    others: Vec<Selector>,
}

impl<'a> Roomy<'a> {
    /// `None` if the driver does not say where it has room: then any node may do.
    pub fn of(known: &'a Storage, claim: &PersistentVolumeClaim, class: &StorageClass) -> Option<Self> {
        let driver = known.drivers.get(&class.provisioner)?;
        driver.spec.storage_capacity.filter(|told| *told)?;
        let size = requested(claim);
        let mut roomy = Self::default();
        let name = class.metadata.name.as_deref().unwrap_or_default();
        let suits = |one: &&CSIStorageCapacity| one.storage_class_name == name && largest(one) >= Some(size);
        for capacity in known.capacities.values().map(|one| &**one).filter(suits) {
            // Without a topology no node reaches it.
            let Some(topology) = &capacity.node_topology else { continue };
            let labels = topology.match_labels.iter().flatten().collect::<Vec<_>>();
            match (labels.as_slice(), topology.match_expressions.as_deref().unwrap_or_default()) {
                ([(key, value)], []) => drop(roomy.by_label.entry(key.as_str()).or_default().insert(value.as_str())),
                _ => roomy.others.push(Selector::from(topology)),
            }
        }
        Some(roomy)
    }

    pub fn reached_from(&self, node: &Node) -> bool {
        static NONE: Labels = Labels::new();
        let labels = node.metadata.labels.as_ref().unwrap_or(&NONE);
        let named = |(key, values): (&&str, &BTreeSet<&str>)| {
            labels.get(*key).is_some_and(|value| values.contains(value.as_str()))
        };
        self.by_label.iter().any(named) || self.others.iter().any(|selector| selector.matches(labels))
    }
}

/// The largest volume that can be made there.
fn largest(capacity: &CSIStorageCapacity) -> Option<i64> {
    let limit = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref())?;
    limit.0.parse::<Quantity>().ok().map(|limit| limit.units())
}
