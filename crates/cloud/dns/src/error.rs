//! What can go wrong before a question can be answered.

use std::net::SocketAddr;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listen for DNS on {address}: {source}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("{0:?} is not a domain name")]
    InvalidDomain(String),
    #[error("ask upstream {upstream}: {source}")]
    Upstream { upstream: SocketAddr, source: std::io::Error },
    /// Nobody answered: none is configured, or all failed.
    #[error("no upstream resolver answered")]
    NoUpstream,
}
