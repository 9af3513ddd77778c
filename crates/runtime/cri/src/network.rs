//! The `PodNetwork` trait: gives a sandbox its network. `dhow-net` implements it; CNI is another.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use crate::Error;
use crate::runtime::{PodIdentity, PortMapping};

/// What a sandbox asks of the network.
#[derive(Debug, Clone, Default)]
pub struct NetworkRequest {
    pub sandbox_id: String,
    pub pod: PodIdentity,
    pub port_mappings: Vec<PortMapping>,
    /// The pod's, as far as the runtime is told.
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// Connects sandboxes. Both calls are idempotent per sandbox, also across a restart of the daemon.
#[async_trait::async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Sets up interface, addresses, routes and port mappings in the network namespace `netns`.
    /// On error nothing is left behind. Returns the pod's addresses, primary first.
    async fn attach(&self, netns: BorrowedFd<'_>, request: &NetworkRequest) -> Result<Vec<IpAddr>, Error>;

    /// Does ahead of time what of `attach` depends on no pod, for a sandbox that waits to be used; `detach` undoes it.
    /// A network that cannot do so does all of it in `attach`.
    async fn prepare(&self, _netns: BorrowedFd<'_>, _sandbox_id: &str) -> Result<(), Error> {
        Ok(())
    }

    /// Undoes `attach`; the namespace may already be gone.
    async fn detach(&self, sandbox_id: &str) -> Result<(), Error>;

    /// Why pods cannot be connected now, in the node's words, and whenever that changes; a network that always can has none.
    fn problem(&self) -> Option<tokio::sync::watch::Receiver<Option<String>>> {
        None
    }

    /// Frees everything that belongs to none of these sandboxes (start-up reconciliation).
    async fn retain(&self, live_sandboxes: &[String]) -> Result<(), Error>;
}
