//! Pod network, service proxy, load balancer addresses and network policies: one owner of our links, routes and nftables table.
//!
//! Invariants:
//! - Everything we make in the kernel is in one nftables table, on one bridge, on one tunnel, a route of it, on an
//!   interface whose name starts with [`VETH_PREFIX`], or an address that the table names; [`Net::purge`] needs no memory
//!   to remove it. What CNI plugins make, where they connect the pods ([`cni`]), is theirs to undo.
//! - Every change to the table is one transaction, so no packet ever sees half of it, and a restart that
//!   finds the table as it should be changes nothing.
//! - Pod to pod traffic is routed through the bridge's own address even on one node (pods have /32 and /128
//!   addresses), so connection tracking sees both directions and `br_netfilter` is never needed.
//! - No thread of the async runtime ever changes its network namespace.

// `setsockopt` and `setns` have no safe form we can use; each call carries its reason.
#![allow(unsafe_code)]

mod address;
pub mod announce;
mod base_table;
pub mod cni;
mod config;
mod error;
mod gate;
mod ipam;
mod kernel;
mod net;
pub mod peers;
mod pod;
pub mod policy;
pub mod proxy;
mod rules;
pub mod service_ranges;
mod shape;

pub use address::{Cidr, Family};
pub use config::{NetConfig, Networks};
pub use error::Error;
pub use kernel::VETH_PREFIX;
pub use net::Net;

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
