//! Which connections pods of this node may open and be reached by: NetworkPolicy, and before and after it what administrators
//! say for the whole cluster (AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy).
//!
//! `plan` is a pure function from the cluster's pods, namespaces, nodes and policies to what this node has to enforce; the
//! difference to what the kernel holds becomes one transaction. A pod that a policy selects has an entry in the map of its
//! direction, which leads to the chain of the first tier that has rules for it. The first rule that matches decides, and a
//! chain's end, or a `Pass`, leads to the chain of the next tier; that of NetworkPolicies ends in a drop. Chains are named
//! after their content and shared by all pods with the same policies. Peers are sets of addresses, one per distinct
//! selector, so a pod that comes, goes or changes its labels changes elements only.
//!
//! Judged are connections through the node, as they are after destination NAT and before source NAT. What the
//! node itself sends or receives (probes of the kubelet, the name server) is never judged, nor is what a pod says
//! to itself, nor any packet of a connection that was permitted when it began.

mod admin;
mod apply;
mod cluster;
mod definitions;
mod follow;
mod kinds;
mod plan;
mod run;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;

pub use apply::Policies;
pub use definitions::definitions;
pub use kinds::{AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy};
pub use run::run;

/// All that policies are and speak of, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    pub pods: Vec<Arc<Pod>>,
    pub namespaces: Vec<Arc<Namespace>>,
    pub nodes: Vec<Arc<Node>>,
    pub policies: Vec<Arc<NetworkPolicy>>,
    pub admin: Vec<Arc<AdminNetworkPolicy>>,
    pub baseline: Vec<Arc<BaselineAdminNetworkPolicy>>,
    pub cluster: Vec<Arc<ClusterNetworkPolicy>>,
}

impl Objects {
    fn no_policies(&self) -> bool {
        self.policies.is_empty() && self.admin.is_empty() && self.baseline.is_empty() && self.cluster.is_empty()
    }

    /// Whether some rule has nodes for peers.
    fn speak_of_nodes(&self) -> bool {
        let admin = self.admin.iter().map(|policy| &policy.spec);
        let baseline = self.baseline.iter().map(|policy| &policy.spec);
        let specs = admin.chain(baseline).chain(self.cluster.iter().map(|policy| &policy.spec));
        specs.flat_map(|spec| &spec.egress).flat_map(|rule| &rule.to).any(|peer| peer.nodes.is_some())
    }
}
