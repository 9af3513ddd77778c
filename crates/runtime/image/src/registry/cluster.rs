//! The registry of the cluster that the node is of: learnt while the node runs, trusted without set-up.

use std::collections::BTreeSet;

use super::config::Endpoint;
use crate::{Reference, Result};

/// The audience of tokens that say to the cluster's registry on whose behalf a node pulls.
pub const CLUSTER_AUDIENCE: &str = "registry.dhow.io";

/// Where the cluster's own registry is and how it is told from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRegistry {
    /// What references call it, `host[:port]`.
    pub hosts: BTreeSet<String>,
    /// `address:port`s that serve it, at least one. All are among the hosts.
    pub addresses: Vec<String>,
    /// The cluster's authority.
    pub ca_pem: String,
}

impl ClusterRegistry {
    /// Where to ask for the repository, if it is one of ours: where the reference says, or for names that only the cluster's
    /// DNS knows, at any address.
    pub(super) fn endpoint(&self, reference: &Reference) -> Result<Option<Endpoint>> {
        if !self.hosts.contains(&reference.registry) {
            return Ok(None);
        }
        let named = self.addresses.iter().find(|address| **address == reference.registry);
        let Some(address) = named.or(self.addresses.first()) else { return Ok(None) };
        let mut endpoint = Endpoint::at(&format!("https://{address}"), false, reference.repository.clone())?;
        endpoint.registry.clone_from(&reference.registry);
        endpoint.tls.ca_pem = vec![self.ca_pem.clone()];
        Ok(Some(endpoint))
    }
}
