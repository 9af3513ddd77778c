//! What the Nodes ask for: functions of a snapshot.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Node;

use super::{Mode, Peer, Way};
use crate::Cidr;

/// Where other nodes reach a node, if that is not its internal address.
pub const OUTER_ADDRESS: &str = "net.dhow.io/outer-address";

/// The other nodes that have a network for pods and an address. Of two that claim the same network the older one has it:
/// a newcomer draws no one's packets to itself.
///
/// Between nodes there is IPv4 alone: IPv6 networks stay on their nodes.
pub(super) fn peers<'a>(nodes: impl Iterator<Item = &'a Node>, here: &str, cluster: Cidr) -> Vec<Peer> {
    let mut nodes: Vec<&Node> = nodes.collect();
    nodes.sort_by_key(|node| (node.metadata.creation_timestamp.clone(), node.metadata.name.clone()));
    let mut given: Vec<Cidr> = Vec::new();
    let mut peers = Vec::new();
    for node in nodes {
        let Some(name) = node.metadata.name.clone() else { continue };
        let Some(spec) = &node.spec else { continue };
        let mut networks: Vec<Cidr> = Vec::new();
        for cidr in spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr) {
            let Ok(cidr) = cidr.parse::<Cidr>() else { continue };
            let inside = !cidr.is_ipv6() && cluster.contains(cidr.network()) && cidr.prefix() > cluster.prefix();
            let overlaps = |other: &Cidr| other.contains(cidr.network()) || cidr.contains(other.network());
            if inside && !networks.contains(&cidr) && !given.iter().any(overlaps) {
                networks.push(cidr);
            }
        }
        given.extend(&networks);
        if name == here || networks.is_empty() {
            continue;
        }
        if let Some(address) = address(node) {
            peers.push(Peer { name, address, networks });
        }
    }
    peers
}

fn address(node: &Node) -> Option<Ipv4Addr> {
    let announced = node.metadata.annotations.as_ref().and_then(|all| all.get(OUTER_ADDRESS));
    if let Some(address) = announced.and_then(|text| text.parse().ok()) {
        return Some(address);
    }
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses.filter(|address| address.type_ == "InternalIP").find_map(|address| address.address.parse().ok())
}

/// The way to each network. `on_link` says whether the host reaches a peer without a router in between; `None` is not at
/// all, and what is sent there then waits for that to change.
pub(super) fn ways(peers: &[Peer], mode: Mode, on_link: impl Fn(Ipv4Addr) -> Option<bool>) -> BTreeMap<Cidr, Way> {
    let mut ways = BTreeMap::new();
    for peer in peers {
        let way = match (mode, on_link(peer.address)) {
            (_, None) => continue,
            (Mode::Auto | Mode::Routes, Some(true)) => Way::Direct(peer.address),
            (Mode::Auto, Some(false)) | (Mode::Tunnel, Some(_)) => Way::Tunnel(peer.address),
            (Mode::Routes, Some(false)) => {
                tracing::warn!(node = peer.name, "is not on our link, and the pod network is made of routes alone");
                continue;
            }
        };
        ways.extend(peer.networks.iter().map(|network| (*network, way)));
    }
    ways
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn node(name: &str, ip: &str, cidr: &str, age: u32) -> Node {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:{age:02}Z")},
            "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
            "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip}]},
        }))
        .unwrap()
    }

    #[test]
    fn other_nodes_only_and_inside_the_cluster_only() {
        let mut moved = node("moved", "192.0.2.5", "10.42.5.0/24", 5);
        moved.metadata.annotations = Some([(OUTER_ADDRESS.to_owned(), "203.0.113.5".to_owned())].into());
        let nodes = [
            node("here", "192.0.2.1", "10.42.0.0/24", 0),
            node("there", "192.0.2.2", "10.42.1.0/24", 1),
            node("liar", "192.0.2.3", "10.0.0.0/8", 2),
            node("six", "2001:db8::1", "10.42.2.0/24", 3),
            node("thief", "192.0.2.4", "10.42.1.0/25", 4),
            node("usurper", "192.0.2.6", "10.42.0.0/24", 6),
            moved,
        ];
        let peers = peers(nodes.iter(), "here", "10.42.0.0/16".parse().unwrap());
        let seen: Vec<_> = peers.iter().map(|peer| (peer.name.as_str(), peer.address.to_string())).collect();
        assert_eq!(seen, [("there", "192.0.2.2".to_owned()), ("moved", "203.0.113.5".to_owned())]);
        assert_eq!(peers[0].networks, ["10.42.1.0/24".parse().unwrap()]);
    }

    #[test]
    fn the_way_is_chosen_by_reachability() {
        let near = Ipv4Addr::new(192, 0, 2, 2);
        let far = Ipv4Addr::new(203, 0, 113, 9);
        let lost = Ipv4Addr::new(198, 51, 100, 1);
        let peers: Vec<Peer> = [near, far, lost]
            .iter()
            .enumerate()
            .map(|(index, address)| Peer {
                name: index.to_string(),
                address: *address,
                networks: vec![format!("10.42.{index}.0/24").parse().unwrap()],
            })
            .collect();
        let on_link = |address| (address != lost).then_some(address == near);
        let chosen = |mode| ways(&peers, mode, on_link).into_values().collect::<Vec<_>>();
        assert_eq!(chosen(Mode::Auto), [Way::Direct(near), Way::Tunnel(far)]);
        assert_eq!(chosen(Mode::Routes), [Way::Direct(near)]);
        assert_eq!(chosen(Mode::Tunnel), [Way::Tunnel(near), Way::Tunnel(far)]);
    }

    #[test]
    fn modes_by_name() {
        for mode in [Mode::Auto, Mode::Routes, Mode::Tunnel] {
            assert_eq!(mode.name().parse::<Mode>().unwrap(), mode);
        }
        assert!("gre".parse::<Mode>().is_err());
        assert_eq!((Mode::Auto.pod_mtu(1500), Mode::Routes.pod_mtu(1500)), (1450, 1500));
    }
}
