//! From ways to routes, the tunnel's link and its neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nlink::netlink::link::VxlanLink;
use nlink::netlink::neigh::Neighbor;
use nlink::netlink::nftables::SetElement;
use nlink::{FdbEntryBuilder, Ipv4Address, Ipv4Route, Ipv6Route};

use super::{End, MAC_PREFIX, Mode, TUNNEL_ID, TUNNEL_PORT, Way, tunnel_gateway, tunnel_mac, tunnel_overhead};
use crate::base_table::TUNNEL_PEERS;
use crate::error::KernelContext;
use crate::kernel::{Kernel, MAIN_TABLE};
use crate::rules::{address_key, address_type, set_name};
use crate::{Cidr, Error, Family, Net, Networks, Result};

/// The link that a pod network's packets leave by, and where they are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hop {
    gateway: IpAddr,
    /// Of the tunnel; `None` is any other.
    tunnel: Option<u32>,
}

impl Net {
    /// Makes the ways to other nodes' pods exactly these. One that cannot be set is reported and left out; returns how
    /// many were.
    pub async fn set_peers(&self, wanted: &BTreeMap<Cidr, Way>) -> Result<usize> {
        let kernel = &self.kernel;
        let tunnelled: BTreeMap<Cidr, End> = wanted
            .iter()
            .filter_map(|(network, way)| match way {
                Way::Tunnel(end) => Some((*network, *end)),
                Way::Direct(_) => None,
            })
            .collect();
        let name = self.config.tunnel();
        let mut index = kernel.link_index(&name).await?;
        if !tunnelled.is_empty() {
            index = Some(self.ensure_tunnel(&name, index).await?);
            self.admit_tunnel(tunnelled.values().map(|end| end.node).collect()).await?;
        }
        if let Some(index) = index {
            // Where packets go is known before the first is sent there.
            self.set_neighbours(index, &tunnelled).await?;
        }
        let failed = self.set_routes(wanted, index).await?;
        if let Some(index) = index {
            self.forget_neighbours(index, &tunnelled).await?;
            if tunnelled.is_empty() {
                self.admit_tunnel(BTreeSet::new()).await?;
                kernel.remove_link(&name).await?;
            }
        }
        Ok(failed)
    }

    /// The family of the addresses that nodes send the tunnel's packets to: the primary one, of which every node has one.
    /// What the tunnel carries may be of either.
    pub(super) fn outer(&self) -> Family {
        self.config.pod_cidr.family()
    }

    fn networks_of(&self, family: Family) -> Option<Networks> {
        self.config.networks().find(|networks| networks.family() == family)
    }

    /// The address of what this node itself sends into the tunnel.
    fn tunnel_source(&self, family: Family) -> Option<IpAddr> {
        let networks = self.networks_of(family)?;
        Some(match family {
            Family::V4 => networks.pods.network(),
            Family::V6 => networks.gateway(),
        })
    }

    async fn set_routes(&self, wanted: &BTreeMap<Cidr, Way>, tunnel: Option<u32>) -> Result<usize> {
        let held =
            self.kernel.peer_routes(|to| self.config.networks().any(|all| all.cluster.contains(to)), tunnel).await?;
        for (network, hop) in held.iter().filter(|(network, _)| !wanted.contains_key(network)) {
            self.kernel.remove_peer_route(*network, *hop).await?;
        }
        let mut failed = 0;
        for (network, way) in wanted {
            let hop = match way {
                Way::Direct(gateway) => Hop { gateway: *gateway, tunnel: None },
                Way::Tunnel(end) => Hop { gateway: tunnel_gateway(*network, end.mac), tunnel },
            };
            if held.get(network) == Some(&hop) {
                continue;
            }
            let source = self.tunnel_source(network.family());
            if let Err(error) = self.kernel.ensure_peer_route(*network, hop, source).await {
                tracing::warn!(%error, "cannot route to another node's pods");
                failed += 1;
            }
        }
        Ok(failed)
    }

    async fn ensure_tunnel(&self, name: &str, known: Option<u32>) -> Result<u32> {
        let route = &self.kernel.route;
        let own = self.config.node_ip(self.outer());
        let underlay = self.kernel.underlay_mtu(own).await?;
        let mtu = underlay.saturating_sub(tunnel_overhead(self.outer())).max(self.config.smallest_mtu());
        let index = match known {
            Some(index) => index,
            None => {
                let mut link = VxlanLink::new(name, TUNNEL_ID)
                    .port(TUNNEL_PORT)
                    .learning(false)
                    .address(tunnel_mac(self.config.pod_cidr))
                    .mtu(mtu);
                link = match own {
                    Some(IpAddr::V4(address)) => link.local(address),
                    Some(IpAddr::V6(address)) => link.local6(address),
                    // A tunnel's family is that of its own address.
                    None if self.outer() == Family::V6 => link.local6(std::net::Ipv6Addr::UNSPECIFIED),
                    None => link,
                };
                route.add_link(link).await.doing(|| format!("create tunnel {name}"))?;
                self.kernel.link_index(name).await?.ok_or_else(|| Error::NoInterface(name.to_owned()))?
            }
        };
        self.kernel.set_mtu(index, mtu).await?;
        if let Some(IpAddr::V4(address)) = self.tunnel_source(Family::V4) {
            let own = Ipv4Address::with_index(index, address, 32);
            route.replace_address(own).await.doing(|| format!("give {address} to {name}"))?;
        }
        if self.networks_of(Family::V6).is_some() {
            // Nobody else in it has our address, and nobody in it is a router that tells others.
            self.kernel.sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0").await?;
            self.kernel.sysctl(&format!("ipv6/conf/{name}/accept_ra"), "0").await?;
        }
        route.set_link_up_by_index(index).await.doing(|| format!("bring up {name}"))?;
        Ok(index)
    }

    /// Lets only these nodes speak through the tunnel.
    async fn admit_tunnel(&self, nodes: BTreeSet<IpAddr>) -> Result<()> {
        let outer = self.outer();
        let name = set_name(outer, TUNNEL_PEERS);
        let set = self.kernel.set(&name).key_type(address_type(outer));
        let held = self.kernel.elements(&name).await?;
        let wanted: Vec<SetElement> = nodes.iter().map(|node| address_key(*node)).collect();
        let stale: Vec<SetElement> =
            held.iter().filter(|one| !wanted.iter().any(|other| other.key() == one.key())).cloned().collect();
        let missing: Vec<SetElement> =
            wanted.iter().filter(|one| !held.iter().any(|other| other.key() == one.key())).cloned().collect();
        self.kernel.batch().remove_elements(&set, &stale).add_elements(&set, &missing).commit().await
    }

    /// Who is behind the tunnel at which address.
    async fn set_neighbours(&self, index: u32, wanted: &BTreeMap<Cidr, End>) -> Result<()> {
        let route = &self.kernel.route;
        let entries = route.get_fdb_by_index(index).await.doing(|| "list the tunnel's nodes".to_owned())?;
        let ends: BTreeSet<End> = wanted.values().copied().collect();
        for end in ends {
            let known = entries.iter().any(|entry| entry.mac() == end.mac && entry.dst() == Some(end.node));
            if !known {
                let entry = FdbEntryBuilder::new(end.mac).ifindex(index).dst(end.node).self_();
                route.replace_fdb(entry).await.doing(|| format!("reach {} through the tunnel", end.node))?;
            }
        }
        for (network, end) in wanted {
            let address = tunnel_gateway(*network, end.mac);
            let neighbour = Neighbor::with_index(index, address).lladdr(end.mac).permanent();
            route.replace_neighbor(neighbour).await.doing(|| format!("know {address} in the tunnel"))?;
        }
        Ok(())
    }

    async fn forget_neighbours(&self, index: u32, wanted: &BTreeMap<Cidr, End>) -> Result<()> {
        let route = &self.kernel.route;
        let listing = || "list the tunnel's nodes".to_owned();
        let macs: BTreeSet<[u8; 6]> = wanted.values().map(|end| end.mac).collect();
        for entry in route.get_fdb_by_index(index).await.doing(listing)? {
            // Others' entries, such as those of multicast, are not like ours.
            if !entry.mac().starts_with(&MAC_PREFIX) || macs.contains(&entry.mac()) || entry.dst().is_none() {
                continue;
            }
            let mut stale = FdbEntryBuilder::new(entry.mac()).ifindex(index).self_();
            if let Some(node) = entry.dst() {
                stale = stale.dst(node);
            }
            match route.del_fdb_entry(stale).await {
                Err(error) if error.is_not_found() => {}
                other => other.doing(|| "forget a node in the tunnel".to_owned())?,
            }
        }
        let gateways: BTreeSet<IpAddr> =
            wanted.iter().map(|(network, end)| tunnel_gateway(*network, end.mac)).collect();
        for neighbour in route.get_neighbors().await.doing(listing)? {
            if neighbour.ifindex() != index || !neighbour.is_permanent() {
                continue;
            }
            let Some(address) = neighbour.destination().copied() else { continue };
            let ours = match address {
                IpAddr::V4(_) => self.networks_of(Family::V4).is_some_and(|all| all.cluster.contains(address)),
                IpAddr::V6(six) => six.is_unicast_link_local(),
            };
            if ours && !gateways.contains(&address) {
                let gone = Neighbor::with_index(index, address);
                route.del_neighbor_if_exists(gone).await.doing(|| format!("forget {address} in the tunnel"))?;
            }
        }
        Ok(())
    }

    /// Whether the host reaches a node without a router in between; `None` if not at all.
    pub(super) async fn on_link(&self, node: IpAddr) -> Option<bool> {
        let route = self.kernel.route.lookup_route(node).await.ok()?;
        Some(route.gateway().is_none() && route.via().is_none())
    }

    pub(super) fn mode(&self) -> Mode {
        self.config.mode
    }

    /// Removes all of it.
    pub(crate) async fn purge_peers(&self) -> Result<()> {
        let tunnel = self.config.tunnel();
        let index = self.kernel.link_index(&tunnel).await?;
        self.set_routes(&BTreeMap::new(), index).await?;
        self.kernel.remove_link(&tunnel).await.map(drop)
    }
}

impl Kernel {
    /// Routes through a gateway to somewhere that is `ours`.
    async fn peer_routes(&self, ours: impl Fn(IpAddr) -> bool, tunnel: Option<u32>) -> Result<BTreeMap<Cidr, Hop>> {
        let routes = self.route.get_routes_for_table(MAIN_TABLE).await.doing(|| "list routes".to_owned())?;
        let ours = routes.iter().filter_map(|route| match (route.destination(), route.gateway()) {
            (Some(destination), Some(gateway)) if ours(*destination) => {
                let hop = Hop { gateway: *gateway, tunnel: tunnel.filter(|index| route.oif() == Some(*index)) };
                Some((Cidr::new(*destination, route.dst_len())?, hop))
            }
            _ => None,
        });
        Ok(ours.collect())
    }

    async fn ensure_peer_route(&self, network: Cidr, hop: Hop, source: Option<IpAddr>) -> Result<()> {
        let routed = match (network.network(), hop.gateway) {
            (IpAddr::V4(to), IpAddr::V4(gateway)) => {
                let mut route = Ipv4Route::new(to, network.prefix()).gateway(gateway);
                if let Some(tunnel) = hop.tunnel {
                    route = route.dev_index(tunnel).onlink();
                    if let Some(IpAddr::V4(source)) = source {
                        route = route.prefsrc(source);
                    }
                }
                self.route.replace_route(route).await
            }
            (IpAddr::V6(to), IpAddr::V6(gateway)) => {
                let mut route = Ipv6Route::new(to, network.prefix()).gateway(gateway);
                if let Some(tunnel) = hop.tunnel {
                    route = route.dev_index(tunnel);
                    if let Some(IpAddr::V6(source)) = source {
                        route = route.prefsrc(source);
                    }
                }
                self.route.replace_route(route).await
            }
            _ => return Err(Error::InvalidConfig(format!("{network} and {} are of two families", hop.gateway))),
        };
        routed.doing(|| format!("route {network} via {}", hop.gateway))
    }

    async fn remove_peer_route(&self, network: Cidr, hop: Hop) -> Result<bool> {
        let removed = match (network.network(), hop.gateway) {
            (IpAddr::V4(to), IpAddr::V4(gateway)) => {
                self.route.del_route_if_exists(Ipv4Route::new(to, network.prefix()).gateway(gateway)).await
            }
            (IpAddr::V6(to), IpAddr::V6(gateway)) => {
                let mut route = Ipv6Route::new(to, network.prefix()).gateway(gateway);
                if let Some(tunnel) = hop.tunnel {
                    route = route.dev_index(tunnel);
                }
                self.route.del_route_if_exists(route).await
            }
            _ => return Ok(false),
        };
        removed.doing(|| format!("remove route to {network} via {}", hop.gateway))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnel_of_a_network_follows_from_it() {
        let network: Cidr = "10.42.7.0/24".parse().unwrap();
        let mac = tunnel_mac(network);
        assert_eq!(mac, [0x02, 0x76, 10, 42, 7, 0]);
        assert_eq!(tunnel_gateway(network, mac).to_string(), "10.42.7.0");
        let six: Cidr = "fd42:0:0:7::/64".parse().unwrap();
        assert_eq!(tunnel_gateway(six, mac).to_string(), "fe80::76:aff:fe2a:700");
        // Neighbouring networks, however long their prefixes are, have different ones.
        for (one, other) in [
            ("fd42:0:0:7::/64", "fd42:0:0:8::/64"),
            ("fd42::7:0/112", "fd42::8:0/112"),
            ("fd42:0:1::/48", "fd42:0:2::/48"),
        ] {
            let [one, other] = [one, other].map(|text| tunnel_mac(text.parse().unwrap()));
            assert_ne!(one, other);
            assert!(one.starts_with(&MAC_PREFIX));
        }
    }
}
