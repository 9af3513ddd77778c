//! DNS: the cluster's zone straight from the watch, zones of users, and everything else from the resolvers upstream.
//!
//! What a name holds is encoded when its object changes ([`names`], [`zones`]); a question is answered by one function
//! without IO ([`answer`]); `udp` and `tcp` move packets. See docs/dns.md.

// Names are on the stack on purpose: a question allocates nothing. So what holds one is large.
#![allow(clippy::large_enum_variant, clippy::result_large_err)]

pub mod answer;
mod config;
mod cookies;
mod datagrams;
mod error;
pub mod forward;
mod http;
pub mod kind;
mod limit;
mod metrics;
pub mod name;
pub mod names;
pub mod objects;
mod random;
mod reply;
mod request;
mod rrset;
mod server;
mod tcp;
#[doc(hidden)]
pub mod testing;
mod udp;
mod watch;
pub mod zones;

pub use config::{DnsConfig, HostResolver, UpstreamAddress, ZonesConfig, host_resolver};
pub use error::Error;
pub use server::Server;

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
