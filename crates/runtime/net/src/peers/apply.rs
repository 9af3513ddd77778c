//! From ways to routes, the tunnel's link and its neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use nlink::netlink::link::VxlanLink;
use nlink::netlink::neigh::Neighbor;
use nlink::netlink::nftables::SetElement;
use nlink::{FdbEntryBuilder, Ipv4Address, Ipv4Route};

use super::{Mode, TUNNEL_ID, TUNNEL_OVERHEAD, TUNNEL_PORT, Way, tunnel_address, tunnel_mac};
use crate::base_table::TUNNEL_PEERS;
use crate::error::KernelContext;
use crate::kernel::{Kernel, MAIN_TABLE};
use crate::{Cidr, Error, Family, Net, NetConfig, Networks, Result};

/// The link that a pod network's packets leave by, and where they are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hop {
    gateway: Ipv4Addr,
    /// Of the tunnel; `None` is any other.
    tunnel: Option<u32>,
}

impl Net {
    /// Makes the ways to other nodes' pods exactly these. One that cannot be set is reported and left out; returns how
    /// many were.
    pub async fn set_peers(&self, wanted: &BTreeMap<Cidr, Way>) -> Result<usize> {
        let kernel = &self.kernel;
        let tunnelled: BTreeMap<Cidr, Ipv4Addr> = wanted
            .iter()
            .filter_map(|(network, way)| match way {
                Way::Tunnel(node) => Some((*network, *node)),
                Way::Direct(_) => None,
            })
            .collect();
        let name = self.config.tunnel();
        let mut index = kernel.link_index(&name).await?;
        if !tunnelled.is_empty() {
            index = Some(self.ensure_tunnel(&name, index).await?);
            self.admit_tunnel(tunnelled.values().copied().collect()).await?;
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

    /// The networks that nodes reach each other's pods in: those of IPv4. Of a cluster without, its own, in which no peer is.
    pub(super) fn v4(&self) -> Networks {
        let of_v4 = self.config.networks().find(|networks| networks.family() == Family::V4);
        let NetConfig { pod_cidr: pods, cluster_cidr: cluster, service_cidr: services, .. } = self.config;
        of_v4.unwrap_or(Networks { pods, cluster, services })
    }

    async fn set_routes(&self, wanted: &BTreeMap<Cidr, Way>, tunnel: Option<u32>) -> Result<usize> {
        let held = self.kernel.peer_routes(self.v4().cluster, tunnel).await?;
        for (network, hop) in held.iter().filter(|(network, _)| !wanted.contains_key(network)) {
            self.kernel.remove_peer_route(*network, hop.gateway).await?;
        }
        let mut failed = 0;
        for (network, way) in wanted {
            let hop = match way {
                Way::Direct(gateway) => Hop { gateway: *gateway, tunnel: None },
                Way::Tunnel(_) => Hop { gateway: tunnel_address(*network), tunnel },
            };
            if held.get(network) == Some(&hop) {
                continue;
            }
            let source = tunnel_address(self.v4().pods);
            if let Err(error) = self.kernel.ensure_peer_route(*network, hop, source).await {
                tracing::warn!(%error, "cannot route to another node's pods");
                failed += 1;
            }
        }
        Ok(failed)
    }

    async fn ensure_tunnel(&self, name: &str, known: Option<u32>) -> Result<u32> {
        let route = &self.kernel.route;
        let underlay = self.kernel.underlay_mtu(self.config.node_ip).await?;
        let mtu = underlay.saturating_sub(TUNNEL_OVERHEAD).max(576);
        let index = match known {
            Some(index) => index,
            None => {
                let mut link = VxlanLink::new(name, TUNNEL_ID)
                    .port(TUNNEL_PORT)
                    .learning(false)
                    .address(tunnel_mac(self.v4().pods))
                    .mtu(mtu);
                if let Some(address) = self.config.node_ip {
                    link = link.local(address);
                }
                route.add_link(link).await.doing(|| format!("create tunnel {name}"))?;
                self.kernel.link_index(name).await?.ok_or_else(|| Error::NoInterface(name.to_owned()))?
            }
        };
        self.kernel.set_mtu(index, mtu).await?;
        let address = tunnel_address(self.v4().pods);
        let own = Ipv4Address::with_index(index, address, 32);
        route.replace_address(own).await.doing(|| format!("give {address} to {name}"))?;
        route.set_link_up_by_index(index).await.doing(|| format!("bring up {name}"))?;
        Ok(index)
    }

    /// Lets only these nodes speak through the tunnel.
    async fn admit_tunnel(&self, nodes: BTreeSet<Ipv4Addr>) -> Result<()> {
        let set = self.kernel.set(TUNNEL_PEERS).key_type(nlink::netlink::nftables::SetKeyType::Ipv4Addr);
        let held = self.kernel.elements(TUNNEL_PEERS).await?;
        let wanted: Vec<SetElement> = nodes.iter().map(|node| SetElement::ipv4(*node)).collect();
        let stale: Vec<SetElement> =
            held.iter().filter(|one| !wanted.iter().any(|other| other.key() == one.key())).cloned().collect();
        let missing: Vec<SetElement> =
            wanted.iter().filter(|one| !held.iter().any(|other| other.key() == one.key())).cloned().collect();
        self.kernel.batch().remove_elements(&set, &stale).add_elements(&set, &missing).commit().await
    }

    /// Who is behind the tunnel at which address.
    async fn set_neighbours(&self, index: u32, wanted: &BTreeMap<Cidr, Ipv4Addr>) -> Result<()> {
        let route = &self.kernel.route;
        let entries = route.get_fdb_by_index(index).await.doing(|| "list the tunnel's nodes".to_owned())?;
        for (network, node) in wanted {
            let (address, mac) = (tunnel_address(*network), tunnel_mac(*network));
            let known = entries.iter().any(|entry| entry.mac() == mac && entry.dst() == Some(IpAddr::V4(*node)));
            if !known {
                let entry = FdbEntryBuilder::new(mac).ifindex(index).dst(IpAddr::V4(*node)).self_();
                route.replace_fdb(entry).await.doing(|| format!("reach {network} through {node}"))?;
            }
            let neighbour = Neighbor::with_index_v4(index, address).lladdr(mac).permanent();
            route.replace_neighbor(neighbour).await.doing(|| format!("know {address} in the tunnel"))?;
        }
        Ok(())
    }

    async fn forget_neighbours(&self, index: u32, wanted: &BTreeMap<Cidr, Ipv4Addr>) -> Result<()> {
        let route = &self.kernel.route;
        let listing = || "list the tunnel's nodes".to_owned();
        let macs: BTreeSet<[u8; 6]> = wanted.keys().map(|network| tunnel_mac(*network)).collect();
        for entry in route.get_fdb_by_index(index).await.doing(listing)? {
            // Others' entries, such as those of multicast, are not like ours.
            let [a, b, ..] = entry.mac();
            if [a, b] != [0x02, 0x76] || macs.contains(&entry.mac()) || entry.dst().is_none() {
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
        for neighbour in route.get_neighbors().await.doing(listing)? {
            if neighbour.ifindex() != index || !neighbour.is_permanent() {
                continue;
            }
            let Some(IpAddr::V4(address)) = neighbour.destination().copied() else { continue };
            if self.v4().cluster.contains(address) && !wanted.keys().any(|n| tunnel_address(*n) == address) {
                let gone = Neighbor::with_index_v4(index, address);
                route.del_neighbor_if_exists(gone).await.doing(|| format!("forget {address} in the tunnel"))?;
            }
        }
        Ok(())
    }

    /// Whether the host reaches a node without a router in between; `None` if not at all.
    pub(super) async fn on_link(&self, node: Ipv4Addr) -> Option<bool> {
        let route = self.kernel.route.lookup_route(IpAddr::V4(node)).await.ok()?;
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
    /// Routes through a gateway to somewhere inside `cidr`.
    async fn peer_routes(&self, cidr: Cidr, tunnel: Option<u32>) -> Result<BTreeMap<Cidr, Hop>> {
        let routes = self.route.get_routes_for_table(MAIN_TABLE).await.doing(|| "list routes".to_owned())?;
        let ours = routes.iter().filter_map(|route| match (route.destination(), route.gateway()) {
            (Some(IpAddr::V4(destination)), Some(IpAddr::V4(gateway))) if cidr.contains(*destination) => {
                let hop = Hop { gateway: *gateway, tunnel: tunnel.filter(|index| route.oif() == Some(*index)) };
                Some((Cidr::new(*destination, route.dst_len())?, hop))
            }
            _ => None,
        });
        Ok(ours.collect())
    }

    async fn ensure_peer_route(&self, network: Cidr, hop: Hop, source: Ipv4Addr) -> Result<()> {
        let mut route = Ipv4Route::new(tunnel_address(network), network.prefix()).gateway(hop.gateway);
        if let Some(tunnel) = hop.tunnel {
            route = route.dev_index(tunnel).onlink().prefsrc(source);
        }
        self.route.replace_route(route).await.doing(|| format!("route {network} via {}", hop.gateway))
    }

    async fn remove_peer_route(&self, network: Cidr, gateway: Ipv4Addr) -> Result<bool> {
        let route = Ipv4Route::new(tunnel_address(network), network.prefix()).gateway(gateway);
        self.route.del_route_if_exists(route).await.doing(|| format!("remove route to {network} via {gateway}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnel_of_a_network_follows_from_it() {
        let network = Cidr::new(Ipv4Addr::new(10, 42, 7, 0), 24).expect("24 is a prefix");
        assert_eq!(tunnel_address(network), Ipv4Addr::new(10, 42, 7, 0));
        assert_eq!(tunnel_mac(network), [0x02, 0x76, 10, 42, 7, 0]);
    }
}
