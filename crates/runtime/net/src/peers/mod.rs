//! The way to pods of other nodes: through the node itself where both are on one link, else through a tunnel (VXLAN,
//! RFC 7348) to it.
//!
//! Invariants:
//! - What is in the kernel follows from the cluster's Nodes and from the host's own routes, both by their events.
//! - A route of the main table with a gateway and a destination inside the cluster's pod network is ours; that is how
//!   they are found again after a restart, and by purge. So is everything on the tunnel's own link.
//! - Nothing is learnt from packets: who is behind the tunnel is known from the Nodes, and packets to its port from
//!   anybody else are dropped.

mod apply;
mod plan;
mod run;

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use crate::Cidr;

pub use plan::OUTER_ADDRESS;
pub use run::run;

/// Bytes that the tunnel puts around a packet: Ethernet, IPv4, UDP and VXLAN.
pub const TUNNEL_OVERHEAD: u32 = 50;
/// Neither IANA's nor the kernel's: other software on the host may use those.
pub const TUNNEL_PORT: u16 = 14789;
/// The tunnel's network identifier.
const TUNNEL_ID: u32 = 42;

/// How packets to other nodes' pods travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// By routes to nodes on our link, by the tunnel to the others.
    #[default]
    Auto,
    /// By routes only; nodes elsewhere are not reached. Packets keep the link's full size.
    Routes,
    /// By the tunnel always, for networks that carry no addresses but their own.
    Tunnel,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Routes => "routes",
            Self::Tunnel => "vxlan",
        }
    }

    /// The largest packet of a pod where the nodes' links carry `underlay`.
    pub(crate) fn pod_mtu(self, underlay: u32) -> u32 {
        match self {
            Self::Routes => underlay,
            Self::Auto | Self::Tunnel => underlay.saturating_sub(TUNNEL_OVERHEAD),
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Auto, Self::Routes, Self::Tunnel]
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| format!("{text:?} is none of auto, routes and vxlan"))
    }
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    /// Where it is reached from other nodes.
    pub address: Ipv4Addr,
    pub networks: Vec<Cidr>,
}

/// How the pods of one network are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through a node on our link.
    Direct(Ipv4Addr),
    /// Through the tunnel to a node.
    Tunnel(Ipv4Addr),
}

/// The tunnel's address on a node, for what it sends into the tunnel itself: the pod network's own, which no pod has.
/// Networks of IPv6 have none: see [`plan`].
fn tunnel_address(network: Cidr) -> Ipv4Addr {
    match network.network() {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

/// The tunnel's hardware address on a node follows from its pod network, so that nobody needs to be asked for it.
fn tunnel_mac(network: Cidr) -> [u8; 6] {
    let [a, b, c, d] = tunnel_address(network).octets();
    [0x02, 0x76, a, b, c, d]
}
