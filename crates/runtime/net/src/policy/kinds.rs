//! Policies for the whole cluster as administrators write them, group `policy.networking.k8s.io`: AdminNetworkPolicy and
//! BaselineAdminNetworkPolicy (v1alpha1) and ClusterNetworkPolicy (v1alpha2), which has both as tiers.
//!
//! Their rules differ in names only, so one set of types reads all three. The definitions that the API serves them by are in
//! [`super::definitions`].

use dhow_client::kind;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AdminNetworkPolicy {
    pub metadata: ObjectMeta,
    pub spec: PolicySpec,
}
kind!(AdminNetworkPolicy, "policy.networking.k8s.io", "v1alpha1", "adminnetworkpolicies", ClusterResourceScope);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BaselineAdminNetworkPolicy {
    pub metadata: ObjectMeta,
    pub spec: PolicySpec,
}
kind!(
    BaselineAdminNetworkPolicy,
    "policy.networking.k8s.io",
    "v1alpha1",
    "baselineadminnetworkpolicies",
    ClusterResourceScope
);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterNetworkPolicy {
    pub metadata: ObjectMeta,
    pub spec: PolicySpec,
}
kind!(ClusterNetworkPolicy, "policy.networking.k8s.io", "v1alpha2", "clusternetworkpolicies", ClusterResourceScope);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicySpec {
    /// Of ClusterNetworkPolicy: `Admin` or `Baseline`.
    pub tier: String,
    pub priority: i32,
    pub subject: PolicyPeer,
    pub ingress: Vec<PolicyRule>,
    pub egress: Vec<PolicyRule>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyRule {
    /// `Allow`, `Accept`, `Deny` or `Pass`.
    pub action: String,
    /// Of ingress.
    pub from: Vec<PolicyPeer>,
    /// Of egress.
    pub to: Vec<PolicyPeer>,
    /// Of v1alpha1.
    pub ports: Option<Vec<PolicyPort>>,
    /// Of v1alpha2.
    pub protocols: Option<Vec<PolicyProtocol>>,
}

/// One of its fields. A subject has one of the first two, as has a peer of ingress.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyPeer {
    pub namespaces: Option<LabelSelector>,
    pub pods: Option<NamespacedPods>,
    pub nodes: Option<LabelSelector>,
    pub networks: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NamespacedPods {
    pub namespace_selector: LabelSelector,
    pub pod_selector: LabelSelector,
}

/// One of its fields.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PolicyPort {
    pub port_number: Option<PortNumber>,
    pub port_range: Option<PortRange>,
    pub named_port: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PortNumber {
    pub protocol: String,
    pub port: i32,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PortRange {
    /// Of v1alpha1; absent means TCP there.
    pub protocol: String,
    pub start: i32,
    pub end: i32,
}

/// One of its fields.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PolicyProtocol {
    pub tcp: Option<Transport>,
    pub udp: Option<Transport>,
    pub sctp: Option<Transport>,
    pub destination_named_port: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Transport {
    pub destination_port: Option<DestinationPort>,
}

/// One of its fields.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DestinationPort {
    pub number: Option<i32>,
    pub range: Option<PortRange>,
}
