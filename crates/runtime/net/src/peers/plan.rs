//! What the Nodes ask for: functions of a snapshot.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;

use super::{End, Mode, Peer, Way, tunnel_mac};
use crate::{Cidr, Family};

/// Where other nodes reach a node, if that is not its internal address.
pub const OUTER_ADDRESS: &str = "net.dhow.io/outer-address";

/// The other nodes that have a network for pods and an address. Of two that claim the same network the older one has it:
/// a newcomer draws no one's packets to itself. `clusters` are the networks of all pods, the primary family's first.
pub(super) fn peers<'a>(nodes: impl Iterator<Item = &'a Node>, here: &str, clusters: &[Cidr]) -> Vec<Peer> {
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
            let inside = |cluster: &Cidr| cluster.contains(cidr.network()) && cidr.prefix() > cluster.prefix();
            let overlaps = |other: &Cidr| other.contains(cidr.network()) || cidr.contains(other.network());
            if clusters.iter().any(inside) && !networks.contains(&cidr) && !given.iter().any(overlaps) {
                networks.push(cidr);
            }
        }
        given.extend(&networks);
        let addresses = addresses(node);
        if name == here || addresses.is_empty() {
            continue;
        }
        // What names it in the tunnel is of the same family for all.
        let first = networks.iter().find(|network| Some(network.family()) == clusters.first().map(|all| all.family()));
        if let Some(first) = first {
            peers.push(Peer { name, addresses, mac: tunnel_mac(*first), networks });
        }
    }
    peers
}

/// Where it is reached, by one address of each family.
fn addresses(node: &Node) -> Vec<IpAddr> {
    let announced = node.metadata.annotations.as_ref().and_then(|all| all.get(OUTER_ADDRESS));
    let announced = announced.into_iter().flat_map(|text| text.split(','));
    let listed = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let internal = listed.filter(|address| address.type_ == "InternalIP").map(|address| address.address.as_str());
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in announced.chain(internal).filter_map(|text| text.trim().parse::<IpAddr>().ok()) {
        if !addresses.iter().any(|known| Family::of(*known) == Family::of(address)) {
            addresses.push(address);
        }
    }
    addresses
}

/// How this node reaches others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Here<'a> {
    pub mode: Mode,
    /// Of the tunnel's own packets.
    pub outer: Family,
    /// Families in which this node has an address.
    pub families: &'a [Family],
}

/// The way to each network. `on_link` says whether the host reaches an address without a router in between; `None` is not
/// at all, and what is sent there then waits for that to change.
///
/// Both ends come to the same way: one is direct only where both have an address of the network's family.
pub(super) fn ways(peers: &[Peer], here: Here<'_>, on_link: impl Fn(IpAddr) -> Option<bool>) -> BTreeMap<Cidr, Way> {
    let mut ways = BTreeMap::new();
    for peer in peers {
        let outer = peer.address(here.outer).filter(|address| on_link(*address).is_some());
        let tunnel = outer.map(|node| Way::Tunnel(End { node, mac: peer.mac }));
        for network in &peer.networks {
            let family = network.family();
            let own = peer.address(family).filter(|_| here.families.contains(&family));
            let near = own.and_then(|address| Some((address, on_link(address)?)));
            let way = match (here.mode, near) {
                (Mode::Auto | Mode::Routes, Some((address, true))) => Some(Way::Direct(address)),
                (Mode::Auto | Mode::Tunnel, _) => tunnel,
                (Mode::Routes, Some((_, false))) => {
                    tracing::warn!(
                        node = peer.name,
                        %network,
                        "is not on our link, and the pod network is made of routes alone"
                    );
                    None
                }
                (Mode::Routes, None) => None,
            };
            ways.extend(way.map(|way| (*network, way)));
        }
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

    fn dual(name: &str, ips: &[&str], cidrs: &[&str], age: u32) -> Node {
        let mut node = node(name, ips[0], cidrs[0], age);
        node.spec.as_mut().unwrap().pod_cidrs = Some(cidrs.iter().map(|cidr| (*cidr).to_owned()).collect());
        let mut address = node.status.as_ref().unwrap().addresses.as_ref().unwrap()[1].clone();
        for ip in &ips[1..] {
            address.address = (*ip).to_owned();
            node.status.as_mut().unwrap().addresses.as_mut().unwrap().push(address.clone());
        }
        node
    }

    fn clusters(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn other_nodes_only_and_inside_the_cluster_only() {
        let mut moved = node("moved", "192.0.2.5", "10.42.5.0/24", 5);
        moved.metadata.annotations = Some([(OUTER_ADDRESS.to_owned(), "203.0.113.5".to_owned())].into());
        let nodes = [
            node("here", "192.0.2.1", "10.42.0.0/24", 0),
            node("there", "192.0.2.2", "10.42.1.0/24", 1),
            node("liar", "192.0.2.3", "10.0.0.0/8", 2),
            node("nowhere", "no address", "10.42.2.0/24", 3),
            node("thief", "192.0.2.4", "10.42.1.0/25", 4),
            node("usurper", "192.0.2.6", "10.42.0.0/24", 6),
            node("six", "2001:db8::7", "fd42:0:0:7::/64", 7),
            moved,
        ];
        let peers = peers(nodes.iter(), "here", &clusters(&["10.42.0.0/16"]));
        let seen: Vec<_> = peers.iter().map(|peer| (peer.name.as_str(), peer.addresses[0].to_string())).collect();
        assert_eq!(seen, [("there", "192.0.2.2".to_owned()), ("moved", "203.0.113.5".to_owned())]);
        assert_eq!(peers[0].networks, ["10.42.1.0/24".parse().unwrap()]);
    }

    #[test]
    fn both_families_of_a_node() {
        let nodes = [
            dual("here", &["192.0.2.1", "2001:db8::1"], &["10.42.0.0/24", "fd42::/64"], 0),
            dual("there", &["192.0.2.2", "2001:db8::2"], &["10.42.1.0/24", "fd42:0:0:1::/64"], 1),
            // Pods have both, the node has not.
            dual("half", &["192.0.2.3"], &["10.42.2.0/24", "fd42:0:0:2::/64"], 2),
            dual("far", &["198.51.100.4", "2001:db8:f::4"], &["10.42.3.0/24", "fd42:0:0:3::/64"], 3),
        ];
        let peers = peers(nodes.iter(), "here", &clusters(&["10.42.0.0/16", "fd42::/56"]));
        let near = |address: IpAddr| Some(!address.to_string().ends_with('4'));
        let way = |here: Here<'_>, network: &str| ways(&peers, here, near).get(&network.parse().unwrap()).copied();
        let both = Here { mode: Mode::Auto, outer: Family::V4, families: &Family::BOTH };
        let through = |index: usize| Some(Way::Tunnel(End { node: peers[index].addresses[0], mac: peers[index].mac }));
        assert_eq!(way(both, "10.42.1.0/24"), Some(Way::Direct("192.0.2.2".parse().unwrap())));
        assert_eq!(way(both, "fd42:0:0:1::/64"), Some(Way::Direct("2001:db8::2".parse().unwrap())));
        assert_eq!(way(both, "10.42.2.0/24"), Some(Way::Direct("192.0.2.3".parse().unwrap())));
        assert_eq!(way(both, "fd42:0:0:2::/64"), through(1));
        assert_eq!((way(both, "10.42.3.0/24"), way(both, "fd42:0:0:3::/64")), (through(2), through(2)));
        // The other side of "half": it has no address of IPv6 itself.
        let half = Here { families: &[Family::V4], ..both };
        assert_eq!(way(half, "fd42:0:0:1::/64"), through(0));
        let routes = Here { mode: Mode::Routes, ..both };
        assert_eq!(way(routes, "fd42:0:0:2::/64"), None);
    }

    #[test]
    fn the_way_is_chosen_by_reachability() {
        let near: IpAddr = "192.0.2.2".parse().unwrap();
        let far: IpAddr = "203.0.113.9".parse().unwrap();
        let lost: IpAddr = "198.51.100.1".parse().unwrap();
        let peers: Vec<Peer> = [near, far, lost]
            .iter()
            .enumerate()
            .map(|(index, address)| Peer {
                name: index.to_string(),
                addresses: vec![*address],
                networks: vec![format!("10.42.{index}.0/24").parse().unwrap()],
                mac: [0; 6],
            })
            .collect();
        let on_link = |address| (address != lost).then_some(address == near);
        let here = |mode| Here { mode, outer: Family::V4, families: &[Family::V4] };
        let chosen = |mode| ways(&peers, here(mode), on_link).into_values().collect::<Vec<_>>();
        let tunnel = |node| Way::Tunnel(End { node, mac: [0; 6] });
        assert_eq!(chosen(Mode::Auto), [Way::Direct(near), tunnel(far)]);
        assert_eq!(chosen(Mode::Routes), [Way::Direct(near)]);
        assert_eq!(chosen(Mode::Tunnel), [tunnel(near), tunnel(far)]);
    }

    #[test]
    fn modes_by_name() {
        for mode in [Mode::Auto, Mode::Routes, Mode::Tunnel] {
            assert_eq!(mode.name().parse::<Mode>().unwrap(), mode);
        }
        assert!("gre".parse::<Mode>().is_err());
        let sizes =
            [(Mode::Auto, Family::V4, 1450), (Mode::Tunnel, Family::V6, 1430), (Mode::Routes, Family::V6, 1500)];
        for (mode, outer, size) in sizes {
            assert_eq!(mode.pod_mtu(1500, outer), size);
        }
    }
}
