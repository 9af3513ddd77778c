//! What the network is told once, at start.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::peers::Mode;
use crate::{Cidr, Error, Family};

/// The networks of one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Networks {
    /// This node's pods; the first address is the bridge's.
    pub pods: Cidr,
    /// All nodes' pods: traffic inside it keeps its source address.
    pub cluster: Cidr,
    pub services: Cidr,
}

/// A family with more addresses than this on one node gives only its first ones: the set of pairs for pods that reach
/// themselves names each of them.
const MAX_POD_ADDRESSES: u64 = 1024;

impl Networks {
    pub fn family(&self) -> Family {
        self.pods.family()
    }

    /// The bridge's address: the first of the pod network.
    pub fn gateway(&self) -> IpAddr {
        self.pods.nth(1).unwrap_or(self.pods.network())
    }

    /// How many addresses after the network's own pods are given, less one: the broadcast address of IPv4 is nobody's.
    pub(crate) fn end(&self) -> u64 {
        match self.family() {
            Family::V4 => self.pods.size() - 1,
            Family::V6 => self.pods.size().min(MAX_POD_ADDRESSES),
        }
    }

    fn check(&self) -> Result<(), Error> {
        let invalid = |why: String| Err(Error::InvalidConfig(why));
        let Self { pods, cluster, services } = *self;
        let (shortest, longest) = match self.family() {
            Family::V4 => (20, 29),
            Family::V6 => (48, 125),
        };
        // The hairpin set holds every pod address, so the pod network of one node stays small.
        if !(shortest..=longest).contains(&pods.prefix()) {
            return invalid(format!("pod network {pods} must be between /{shortest} and /{longest}"));
        }
        if !cluster.contains(pods.network()) || cluster.prefix() > pods.prefix() {
            return invalid(format!("pod network {pods} is not in cluster network {cluster}"));
        }
        if services.family() != self.family() {
            return invalid(format!("service network {services} is not of the pods' family, {}", self.family().name()));
        }
        if services.contains(cluster.network()) || cluster.contains(services.network()) {
            return invalid(format!("service network {services} overlaps {cluster}"));
        }
        Ok(())
    }
}

/// Bytes in the name of an interface.
const MAX_NAME: usize = 15;
const TUNNEL_SUFFIX: &str = "-vx";

/// Everything [`crate::Net`] needs to know. Two networks on one machine need different bridges, tables
/// and state directories, or different namespaces.
#[derive(Debug)]
pub struct NetConfig {
    /// Name of the bridge, at most 15 bytes.
    pub bridge: String,
    /// Name of the nftables table, in family `inet`.
    pub table: String,
    /// This node's pods; the first address is the bridge's.
    pub pod_cidr: Cidr,
    /// All nodes' pods: traffic inside it keeps its source address.
    pub cluster_cidr: Cidr,
    pub service_cidr: Cidr,
    /// The networks of the other family, where pods have an address of both. Those above are the primary family's.
    pub secondary: Option<Networks>,
    /// Node ports answer on the node's addresses inside these networks; on all of them when there is none.
    pub node_port_addresses: Vec<Cidr>,
    pub node_port_range: RangeInclusive<u16>,
    /// Where given addresses are remembered.
    pub state_dir: PathBuf,
    /// The node's own addresses, as other nodes know them: one of each family that it has.
    pub node_ips: Vec<IpAddr>,
    /// Of pod interfaces and the bridge; 0 is what fits through the nodes' own links.
    pub mtu: u32,
    /// CNI plugins connect the pods: the bridge has its own address and no pods.
    pub plugins: bool,
    /// How packets travel to other nodes' pods.
    pub mode: Mode,
    /// The namespace that takes the host's place; `None` is the process' own.
    pub host_netns: Option<OwnedFd>,
}

impl NetConfig {
    /// The product's defaults for the node whose pods are in `pod_cidr`.
    pub fn new(pod_cidr: Cidr, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            bridge: "dhow0".to_owned(),
            table: "dhow".to_owned(),
            pod_cidr,
            cluster_cidr: Cidr::new(Ipv4Addr::new(10, 42, 0, 0), 16).unwrap_or(pod_cidr),
            service_cidr: Cidr::new(Ipv4Addr::new(10, 43, 0, 0), 16).unwrap_or(pod_cidr),
            secondary: None,
            node_port_addresses: Vec::new(),
            node_port_range: 30000..=32767,
            state_dir: state_dir.into(),
            node_ips: Vec::new(),
            mtu: 1500,
            plugins: false,
            mode: Mode::default(),
            host_netns: None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let invalid = |why: String| Err(Error::InvalidConfig(why));
        if self.bridge.is_empty() || self.bridge.len() > 15 || self.bridge.contains(['/', ' ', ':']) {
            return invalid(format!("{:?} cannot name an interface", self.bridge));
        }
        if self.table.is_empty() || self.table.len() > 64 {
            return invalid(format!("{:?} cannot name a table", self.table));
        }
        self.networks().try_for_each(|networks| networks.check())?;
        if let Some(second) = self.secondary
            && second.family() == self.pod_cidr.family()
        {
            return invalid(format!("pod networks {} and {} are of one family", self.pod_cidr, second.pods));
        }
        if self.mtu != 0 && !(576..=65535).contains(&self.mtu) {
            return invalid(format!("MTU {} is out of range", self.mtu));
        }
        Ok(())
    }

    /// The name of the link that is the tunnel to other nodes.
    pub(crate) fn tunnel(&self) -> String {
        let room = MAX_NAME - TUNNEL_SUFFIX.len();
        format!("{}{TUNNEL_SUFFIX}", &self.bridge[..self.bridge.floor_char_boundary(room)])
    }

    /// The node's address of this family.
    pub(crate) fn node_ip(&self, family: Family) -> Option<IpAddr> {
        self.node_ips.iter().copied().find(|address| Family::of(*address) == family)
    }

    /// No link of ours carries less: IPv6 asks for more than IPv4 does.
    pub(crate) fn smallest_mtu(&self) -> u32 {
        let six = self.networks().any(|networks| networks.family() == Family::V6);
        if six { 1280 } else { 576 }
    }

    /// The networks of each family, the primary one first.
    pub fn networks(&self) -> impl Iterator<Item = Networks> + use<> {
        let primary = Networks { pods: self.pod_cidr, cluster: self.cluster_cidr, services: self.service_cidr };
        std::iter::once(primary).chain(self.secondary)
    }
}
