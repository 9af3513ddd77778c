//! The devices that a node can reach: of each pool the newest generation, and whether all of it is known.

use std::collections::{BTreeMap, BTreeSet};

use dhow_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, NodeSelector};
use k8s_openapi::api::resource::v1::{Device, DeviceTaint, ResourceSlice};

use super::capacity::{Counters, amount};
use super::known::{DeviceId, Devices, PoolId};
use crate::affinity;

pub(crate) struct Pool<'a> {
    pub id: &'a PoolId,
    /// Some of its slices are not there yet.
    pub incomplete: bool,
    /// Why nothing may be taken from it.
    pub invalid: Option<String>,
    /// What is left of counters that devices share.
    pub counters: Counters<'a>,
}

/// A device that the node can reach.
pub(crate) struct Candidate<'a> {
    pub id: DeviceId,
    pub device: &'a Device,
    pub slice: &'a ResourceSlice,
    /// Its pool's place in the list.
    pub pool: usize,
    /// Whoever gave it them.
    pub taints: Vec<DeviceTaint>,
}

impl Candidate<'_> {
    /// Several claims may have a part of it.
    pub fn is_shared(&self) -> bool {
        self.device.allow_multiple_allocations == Some(true)
    }

    /// Where the device can be used: a node's name, or what selects nodes.
    pub fn place(&self) -> (Option<&str>, Option<&NodeSelector>) {
        match self.slice.spec.per_device_node_selection {
            Some(true) => (self.device.node_name.as_deref(), self.device.node_selector.as_ref()),
            _ => (self.slice.spec.node_name.as_deref(), self.slice.spec.node_selector.as_ref()),
        }
    }

    /// Whether two devices differ in nothing but their names, so that where one does not help, neither does the other.
    pub fn is_like(&self, other: &Self) -> bool {
        let (one, two) = (self.device, other.device);
        self.pool == other.pool
            && self.place() == other.place()
            && one.attributes == two.attributes
            && one.capacity == two.capacity
            && self.taints == other.taints
            && one.consumes_counters == two.consumes_counters
            && one.allow_multiple_allocations == two.allow_multiple_allocations
            && one.binds_to_node == two.binds_to_node
            && one.binding_conditions == two.binding_conditions
            && one.binding_failure_conditions == two.binding_failure_conditions
    }
}

fn reaches(node: &Node, name: Option<&str>, all: Option<bool>, selector: Option<&NodeSelector>) -> bool {
    match (name.filter(|name| !name.is_empty()), all, selector) {
        (Some(name), ..) => node.metadata.name.as_deref() == Some(name),
        (None, Some(true), _) => true,
        (None, _, Some(selector)) => affinity::selected(selector, node),
        (None, _, None) => false,
    }
}

fn device_reaches(slice: &ResourceSlice, device: &Device, node: &Node) -> bool {
    slice.spec.per_device_node_selection != Some(true)
        || reaches(node, device.node_name.as_deref(), device.all_nodes, device.node_selector.as_ref())
}

fn slice_reaches(slice: &ResourceSlice, node: &Node) -> bool {
    let spec = &slice.spec;
    match spec.per_device_node_selection {
        Some(true) => spec.devices.iter().flatten().any(|device| device_reaches(slice, device, node)),
        _ => reaches(node, spec.node_name.as_deref(), spec.all_nodes, spec.node_selector.as_ref()),
    }
}

/// The pools that are about the node, and their devices that it can reach.
pub(crate) fn gather<'a>(known: &'a Devices, node: &Node) -> (Vec<Pool<'a>>, Vec<Candidate<'a>>) {
    let (mut pools, mut candidates) = (Vec::new(), Vec::new());
    for (id, slices) in known.pools_for(node.metadata.name.as_deref().unwrap_or_default()) {
        let newest = slices.values().map(|slice| slice.spec.pool.generation).max().unwrap_or_default();
        let current: Vec<&ResourceSlice> =
            slices.values().map(|slice| &**slice).filter(|slice| slice.spec.pool.generation == newest).collect();
        if !current.iter().any(|slice| slice_reaches(slice, node)) {
            continue;
        }
        let expected = current.first().map_or(0, |slice| slice.spec.pool.resource_slice_count);
        let (mut names, mut invalid) = (BTreeSet::new(), None);
        for device in current.iter().flat_map(|slice| slice.spec.devices.iter().flatten()) {
            if !names.insert(device.name.as_str()) {
                invalid = Some(format!("duplicate device name {}", device.name));
            }
        }
        for slice in current.iter().filter(|slice| slice_reaches(slice, node)) {
            let reachable = slice.spec.devices.iter().flatten().filter(|device| device_reaches(slice, device, node));
            candidates.extend(reachable.map(|device| Candidate {
                taints: known.taints(&device_id(id, device), device),
                id: device_id(id, device),
                device,
                slice,
                pool: pools.len(),
            }));
        }
        let incomplete = i64::try_from(current.len()) != Ok(expected);
        pools.push(Pool { id, incomplete, invalid, counters: counters(known, id, &current) });
    }
    (pools, candidates)
}

fn device_id((driver, pool): &PoolId, device: &Device) -> DeviceId {
    DeviceId { driver: driver.clone(), pool: pool.clone(), device: device.name.clone() }
}

/// What devices in use, on whatever node, leave of a pool's counters.
fn counters<'a>(known: &Devices, id: &PoolId, slices: &[&'a ResourceSlice]) -> Counters<'a> {
    let mut left: Counters<'a> = BTreeMap::new();
    for set in slices.iter().flat_map(|slice| slice.spec.shared_counters.iter().flatten()) {
        left.extend(set.counters.iter().map(|(name, counter)| {
            ((set.name.as_str(), name.as_str()), amount(&counter.value).unwrap_or(Quantity::ZERO))
        }));
    }
    if left.is_empty() {
        return left;
    }
    for device in slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten()) {
        if known.used(&device_id(id, device)).is_none() {
            continue;
        }
        for (key, used) in super::capacity::counters_of(device) {
            if let Some(left) = left.get_mut(&key) {
                *left = *left - used;
            }
        }
    }
    left
}
