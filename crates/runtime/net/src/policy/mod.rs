//! NetworkPolicy: which connections pods of this node may open and be reached by.
//!
//! `plan` is a pure function from the cluster's pods, namespaces and policies to what this node has to enforce;
//! the difference to what the kernel holds becomes one transaction. A pod that a policy selects has an entry in
//! the map of its direction, which leads to a chain of what is permitted; the chain ends in a drop. Chains are
//! named after their content and shared by all pods with the same policies. Peers are sets of addresses, one per
//! distinct selector, so a pod that comes, goes or changes its labels changes elements only.
//!
//! Judged are connections through the node, as they are after destination NAT and before source NAT. What the
//! node itself sends or receives (probes of the kubelet, the name server) is never judged, nor is what a pod says
//! to itself, nor any packet of a connection that was permitted when it began.

mod apply;
mod cluster;
mod plan;
mod run;

pub use apply::Policies;
pub use run::run;
