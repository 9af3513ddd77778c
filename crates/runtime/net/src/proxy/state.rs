//! What the kernel holds of our services, and what must change to make it hold something else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;

use nlink::netlink::nftables::{SetElementData, Verdict};

use super::names::{is_service_chain, is_service_map};
use crate::Result;
use crate::base_table::{BALANCED_ENDPOINTS, NO_ENDPOINTS, SERVICE_IPS, SERVICE_NODEPORTS};
use crate::kernel::Kernel;
use crate::rules::{Destination, Protocol, read_destination, read_endpoint, read_port, read_slot};

/// Names and map entries; content follows from the names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub maps: BTreeSet<String>,
    pub chains: BTreeSet<String>,
    pub balanced: BTreeMap<Destination, Vec<SocketAddrV4>>,
    pub service_ips: BTreeMap<Destination, String>,
    pub node_ports: BTreeMap<(Protocol, u16), String>,
    pub no_endpoints: BTreeSet<Destination>,
}

impl State {
    pub async fn read(kernel: &Kernel) -> Result<Self> {
        let verdict = |data: Option<&SetElementData>| match data {
            Some(SetElementData::Verdict(Verdict::GotoTo(chain))) => Some(chain.as_str().to_owned()),
            _ => None,
        };
        let service_ips = kernel.elements(SERVICE_IPS).await?;
        let node_ports = kernel.elements(SERVICE_NODEPORTS).await?;
        let no_endpoints = kernel.elements(NO_ENDPOINTS).await?;
        Ok(Self {
            balanced: read_balanced(kernel).await?,
            maps: kernel.sets().await?.into_iter().filter(|name| is_service_map(name)).collect(),
            chains: kernel.chains().await?.into_iter().filter(|name| is_service_chain(name)).collect(),
            service_ips: service_ips
                .iter()
                .filter_map(|e| Some((read_destination(e.key())?, verdict(e.data())?)))
                .collect(),
            node_ports: node_ports.iter().filter_map(|e| Some((read_port(e.key())?, verdict(e.data())?))).collect(),
            no_endpoints: no_endpoints.iter().filter_map(|e| read_destination(e.key())).collect(),
        })
    }

    /// What leads from here to `wanted`.
    pub fn changes_to(&self, wanted: &State) -> Changes {
        let names = |from: &BTreeSet<String>, to: &BTreeSet<String>| from.difference(to).cloned().collect();
        let gone = |d: &BTreeSet<Destination>, other: &BTreeSet<Destination>| d.difference(other).copied().collect();
        Changes {
            add_maps: names(&wanted.maps, &self.maps),
            remove_maps: names(&self.maps, &wanted.maps),
            add_chains: names(&wanted.chains, &self.chains),
            remove_chains: names(&self.chains, &wanted.chains),
            remove_slots: slots(&self.balanced, &wanted.balanced),
            add_slots: slots(&wanted.balanced, &self.balanced),
            remove_counts: counts(&self.balanced, &wanted.balanced),
            add_counts: counts(&wanted.balanced, &self.balanced),
            remove_service_ips: entries(&self.service_ips, &wanted.service_ips),
            add_service_ips: entries(&wanted.service_ips, &self.service_ips),
            remove_node_ports: entries(&self.node_ports, &wanted.node_ports),
            add_node_ports: entries(&wanted.node_ports, &self.node_ports),
            remove_no_endpoints: gone(&self.no_endpoints, &wanted.no_endpoints),
            add_no_endpoints: gone(&wanted.no_endpoints, &self.no_endpoints),
        }
    }
}

/// The numbered endpoints of all balanced destinations.
async fn read_balanced(kernel: &Kernel) -> Result<BTreeMap<Destination, Vec<SocketAddrV4>>> {
    let value = |data: Option<&SetElementData>| match data {
        Some(SetElementData::Value(value)) => read_endpoint(value),
        _ => None,
    };
    let elements = kernel.elements(BALANCED_ENDPOINTS).await?;
    let slots: BTreeMap<(Destination, u32), SocketAddrV4> =
        elements.iter().filter_map(|e| Some((read_slot(e.key())?, value(e.data())?))).collect();
    let mut balanced: BTreeMap<Destination, Vec<SocketAddrV4>> = BTreeMap::new();
    for ((destination, _), endpoint) in slots {
        balanced.entry(destination).or_default().push(endpoint);
    }
    Ok(balanced)
}

/// Slots of `from` that `other` lacks or has differently.
fn slots(
    from: &BTreeMap<Destination, Vec<SocketAddrV4>>,
    other: &BTreeMap<Destination, Vec<SocketAddrV4>>,
) -> Vec<(Destination, u32, SocketAddrV4)> {
    let mut differing = Vec::new();
    for (destination, endpoints) in from {
        let others = other.get(destination).map(Vec::as_slice).unwrap_or_default();
        for (slot, endpoint) in (0..).zip(endpoints) {
            if others.get(slot as usize) != Some(endpoint) {
                differing.push((*destination, slot, *endpoint));
            }
        }
    }
    differing
}

/// How many endpoints each destination of `from` has, where `other` has another number.
fn counts(
    from: &BTreeMap<Destination, Vec<SocketAddrV4>>,
    other: &BTreeMap<Destination, Vec<SocketAddrV4>>,
) -> Vec<(Destination, u32)> {
    let differing = from.iter().filter(|(key, endpoints)| other.get(key).map(Vec::len) != Some(endpoints.len()));
    differing.map(|(key, endpoints)| (*key, u32::try_from(endpoints.len()).unwrap_or(u32::MAX))).collect()
}

/// Entries of `from` that `other` lacks or has differently.
fn entries<K: Ord + Copy>(from: &BTreeMap<K, String>, other: &BTreeMap<K, String>) -> Vec<(K, String)> {
    from.iter().filter(|(key, chain)| other.get(key) != Some(chain)).map(|(key, chain)| (*key, chain.clone())).collect()
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub add_maps: BTreeSet<String>,
    pub remove_maps: BTreeSet<String>,
    pub add_chains: BTreeSet<String>,
    pub remove_chains: BTreeSet<String>,
    pub remove_slots: Vec<(Destination, u32, SocketAddrV4)>,
    pub add_slots: Vec<(Destination, u32, SocketAddrV4)>,
    pub remove_counts: Vec<(Destination, u32)>,
    pub add_counts: Vec<(Destination, u32)>,
    pub remove_service_ips: Vec<(Destination, String)>,
    pub add_service_ips: Vec<(Destination, String)>,
    pub remove_node_ports: Vec<((Protocol, u16), String)>,
    pub add_node_ports: Vec<((Protocol, u16), String)>,
    pub remove_no_endpoints: Vec<Destination>,
    pub add_no_endpoints: Vec<Destination>,
}
