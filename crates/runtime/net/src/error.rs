//! What can go wrong between us and the kernel's network.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::address::Cidr;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused; `context` is a verb phrase ("create bridge dhow0").
    #[error("{context}: {source}")]
    Kernel { context: String, source: Box<nlink::Error> },
    #[error("{context} {}: {source}", path.display())]
    File { context: &'static str, path: PathBuf, source: std::io::Error },
    #[error("listen on {address}: {source}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("no free address left in {0}")]
    AddressesExhausted(Cidr),
    #[error("host port {port}/{protocol} is already used by sandbox {owner}")]
    HostPortInUse { port: u16, protocol: &'static str, owner: String },
    #[error("{0:?} is not a network in CIDR notation")]
    InvalidCidr(String),
    #[error("invalid network configuration: {0}")]
    InvalidConfig(String),
    #[error("invalid sandbox id {0:?}")]
    InvalidSandboxId(String),
    #[error("protocol {0:?} cannot be mapped to a host port")]
    UnsupportedProtocol(String),
    /// An interface that must exist is not there.
    #[error("interface {0} not found")]
    NoInterface(String),
    #[error("address {address} of sandbox {sandbox} is already given to another")]
    AddressConflict { address: IpAddr, sandbox: String },
    #[error("annotation {annotation}: {text:?} is no rate from 1k to 1P bits a second")]
    InvalidBandwidth { annotation: String, text: String },
    #[error("announce {address}: {source}")]
    Announce { address: IpAddr, source: std::io::Error },
    #[error("network policies cannot be put in force for the new pod; the log says why")]
    PoliciesNotEnforced,
    #[error("watch the cluster's services: {0}")]
    Watch(String),
}

impl From<Error> for dhow_cri::Error {
    fn from(error: Error) -> Self {
        dhow_cri::Error::Network(error.to_string())
    }
}

/// Gives a failed kernel call its verb phrase.
pub(crate) trait KernelContext<T> {
    fn doing(self, context: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> KernelContext<T> for Result<T, nlink::Error> {
    fn doing(self, context: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Kernel { context: context(), source: Box::new(source) })
    }
}
