//! What the kernel holds of our services, and what must change to make it hold something else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use nlink::netlink::nftables::{SetElementData, Verdict};

use super::names::{is_service_chain, is_service_map};
use super::plan::NodePort;
use crate::base_table::{BALANCED_ENDPOINTS, NO_ENDPOINT_PORTS, NO_ENDPOINTS, SERVICE_IPS, SERVICE_NODEPORTS};
use crate::kernel::Kernel;
use crate::rules::{Destination, read_destination, read_endpoint, read_port, read_slot, set_name};
use crate::{Family, Result};

/// Names and map entries; content follows from the names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub maps: BTreeSet<String>,
    pub chains: BTreeSet<String>,
    pub balanced: BTreeMap<Destination, Vec<SocketAddr>>,
    pub service_ips: BTreeMap<Destination, String>,
    pub node_ports: BTreeMap<NodePort, String>,
    pub no_endpoints: BTreeSet<Destination>,
    pub no_endpoint_ports: BTreeSet<NodePort>,
}

impl State {
    pub async fn read(kernel: &Kernel) -> Result<Self> {
        let verdict = |data: Option<&SetElementData>| match data {
            Some(SetElementData::Verdict(Verdict::GotoTo(chain))) => Some(chain.as_str().to_owned()),
            _ => None,
        };
        let mut state = Self {
            maps: kernel.sets().await?.into_iter().filter(|name| is_service_map(name)).collect(),
            chains: kernel.chains().await?.into_iter().filter(|name| is_service_chain(name)).collect(),
            ..Self::default()
        };
        for family in Family::BOTH {
            let set = |name: &str| set_name(family, name);
            let port = |key: &[u8]| read_port(key).map(|(protocol, port)| (family, protocol, port));
            let to = |key: &[u8]| read_destination(family, key);
            state.balanced.extend(read_balanced(kernel, family).await?);
            let elements = kernel.elements(&set(SERVICE_IPS)).await?;
            state.service_ips.extend(elements.iter().filter_map(|e| Some((to(e.key())?, verdict(e.data())?))));
            let elements = kernel.elements(&set(SERVICE_NODEPORTS)).await?;
            state.node_ports.extend(elements.iter().filter_map(|e| Some((port(e.key())?, verdict(e.data())?))));
            let elements = kernel.elements(&set(NO_ENDPOINTS)).await?;
            state.no_endpoints.extend(elements.iter().filter_map(|e| to(e.key())));
            let elements = kernel.elements(&set(NO_ENDPOINT_PORTS)).await?;
            state.no_endpoint_ports.extend(elements.iter().filter_map(|e| port(e.key())));
        }
        Ok(state)
    }

    /// What leads from here to `wanted`.
    pub fn changes_to(&self, wanted: &State) -> Changes {
        let names = |from: &BTreeSet<String>, to: &BTreeSet<String>| from.difference(to).cloned().collect();
        let gone = |d: &BTreeSet<Destination>, other: &BTreeSet<Destination>| d.difference(other).copied().collect();
        let ports = |d: &BTreeSet<NodePort>, other: &BTreeSet<NodePort>| d.difference(other).copied().collect();
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
            remove_no_endpoint_ports: ports(&self.no_endpoint_ports, &wanted.no_endpoint_ports),
            add_no_endpoint_ports: ports(&wanted.no_endpoint_ports, &self.no_endpoint_ports),
        }
    }
}

/// The numbered endpoints of all balanced destinations.
async fn read_balanced(kernel: &Kernel, family: Family) -> Result<BTreeMap<Destination, Vec<SocketAddr>>> {
    let value = |data: Option<&SetElementData>| match data {
        Some(SetElementData::Value(value)) => read_endpoint(family, value),
        _ => None,
    };
    let elements = kernel.elements(&set_name(family, BALANCED_ENDPOINTS)).await?;
    let slots: BTreeMap<(Destination, u32), SocketAddr> =
        elements.iter().filter_map(|e| Some((read_slot(family, e.key())?, value(e.data())?))).collect();
    let mut balanced: BTreeMap<Destination, Vec<SocketAddr>> = BTreeMap::new();
    for ((destination, _), endpoint) in slots {
        balanced.entry(destination).or_default().push(endpoint);
    }
    Ok(balanced)
}

/// Slots of `from` that `other` lacks or has differently.
fn slots(
    from: &BTreeMap<Destination, Vec<SocketAddr>>,
    other: &BTreeMap<Destination, Vec<SocketAddr>>,
) -> Vec<(Destination, u32, SocketAddr)> {
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
    from: &BTreeMap<Destination, Vec<SocketAddr>>,
    other: &BTreeMap<Destination, Vec<SocketAddr>>,
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
    pub remove_slots: Vec<(Destination, u32, SocketAddr)>,
    pub add_slots: Vec<(Destination, u32, SocketAddr)>,
    pub remove_counts: Vec<(Destination, u32)>,
    pub add_counts: Vec<(Destination, u32)>,
    pub remove_service_ips: Vec<(Destination, String)>,
    pub add_service_ips: Vec<(Destination, String)>,
    pub remove_node_ports: Vec<(NodePort, String)>,
    pub add_node_ports: Vec<(NodePort, String)>,
    pub remove_no_endpoints: Vec<Destination>,
    pub add_no_endpoints: Vec<Destination>,
    pub remove_no_endpoint_ports: Vec<NodePort>,
    pub add_no_endpoint_ports: Vec<NodePort>,
}
