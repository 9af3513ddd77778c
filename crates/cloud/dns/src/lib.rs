//! Cluster DNS, answered straight from the watch.
//!
//! Names in the cluster's zone are computed from Services and EndpointSlices at the moment of the question:
//! there is no zone file to be stale. Everything else goes to the upstream resolvers, through a bounded
//! cache. [`zone`] decides and does no IO; [`Server`] moves packets.

mod cluster;
mod config;
mod error;
mod forward;
mod server;
mod watch;
mod wire;
pub mod zone;

pub use cluster::Cluster;
pub use config::{DnsConfig, host_upstreams};
pub use error::Error;
pub use server::Server;

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
