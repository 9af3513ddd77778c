//! What the network is told once, at start.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::peers::Mode;
use crate::{Cidr, Error};

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
    pub node_port_range: RangeInclusive<u16>,
    /// Where given addresses are remembered.
    pub state_dir: PathBuf,
    /// The node's own address, as other nodes know it.
    pub node_ip: Option<Ipv4Addr>,
    /// Of pod interfaces and the bridge; 0 is what fits through the nodes' own links.
    pub mtu: u32,
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
            node_port_range: 30000..=32767,
            state_dir: state_dir.into(),
            node_ip: None,
            mtu: 1500,
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
        // The hairpin set holds every pod address, so the pod network of one node stays small.
        if !(20..=29).contains(&self.pod_cidr.prefix()) {
            return invalid(format!("pod network {} must be between /20 and /29", self.pod_cidr));
        }
        if !self.cluster_cidr.contains(self.pod_cidr.network()) || self.cluster_cidr.prefix() > self.pod_cidr.prefix() {
            return invalid(format!("pod network {} is not in cluster network {}", self.pod_cidr, self.cluster_cidr));
        }
        if self.service_cidr.contains(self.cluster_cidr.network())
            || self.cluster_cidr.contains(self.service_cidr.network())
        {
            return invalid(format!("service network {} overlaps {}", self.service_cidr, self.cluster_cidr));
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

    /// The bridge's address: the first of the pod network.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.pod_cidr.network().to_bits() + 1)
    }
}
