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

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::{Cidr, Family};

pub use plan::OUTER_ADDRESS;
pub use run::run;

/// Bytes that the tunnel puts around a packet: Ethernet, IP, UDP and VXLAN.
pub fn tunnel_overhead(outer: Family) -> u32 {
    match outer {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// Neither IANA's nor the kernel's: other software on the host may use those.
pub const TUNNEL_PORT: u16 = 14789;
/// The tunnel's network identifier.
const TUNNEL_ID: u32 = 42;
/// How our hardware addresses in the tunnel begin: locally administered.
const MAC_PREFIX: [u8; 2] = [0x02, 0x76];

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
    pub(crate) fn pod_mtu(self, underlay: u32, outer: Family) -> u32 {
        match self {
            Self::Routes => underlay,
            Self::Auto | Self::Tunnel => underlay.saturating_sub(tunnel_overhead(outer)),
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
    /// Where it is reached from other nodes: an address of each family that it has.
    pub addresses: Vec<IpAddr>,
    pub networks: Vec<Cidr>,
    /// Its hardware address in the tunnel.
    pub mac: [u8; 6],
}

impl Peer {
    fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(*address) == family)
    }
}

/// The other end of the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    pub node: IpAddr,
    pub mac: [u8; 6],
}

/// How the pods of one network are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through a node on our link.
    Direct(IpAddr),
    /// Through the tunnel to a node.
    Tunnel(End),
}

/// The tunnel's hardware address on a node follows from the node's first pod network, so that nobody needs to be asked
/// for it. Nodes' networks differ in fewer than 32 bits in a row, so no two nodes have the same.
pub fn tunnel_mac(network: Cidr) -> [u8; 6] {
    let [a, b, c, d] = match network.network() {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            let word = |shift: u32| ((bits >> shift) & u128::from(u32::MAX)) as u32;
            (word(0) ^ word(32) ^ word(64) ^ word(96)).to_be_bytes()
        }
    };
    let [first, second] = MAC_PREFIX;
    [first, second, a, b, c, d]
}

/// Where packets for a network are handed over inside the tunnel: of IPv4 the network's own address, which no pod has; of
/// IPv6 the link-local address that follows from the node's hardware address (RFC 4291, appendix A).
fn tunnel_gateway(network: Cidr, mac: [u8; 6]) -> IpAddr {
    match network.network() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(_) => {
            let [a, b, c, d, e, f] = mac;
            let id = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
            Ipv6Addr::from_bits((0xfe80 << 112) | u128::from(id)).into()
        }
    }
}
