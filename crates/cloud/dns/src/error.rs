//! What can go wrong before a question can be answered.

use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listen for DNS on {address}: {source}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("{0:?} is not a domain name")]
    InvalidDomain(String),
    #[error("find random numbers: {0}")]
    Random(std::io::Error),
    #[error("no certificates to check the resolver at {0} with")]
    NoRoots(SocketAddr),
    #[error("read the certificates in {path}: {error}")]
    Roots { path: PathBuf, error: String },
    #[error("set TLS up: {0}")]
    Tls(String),
}
