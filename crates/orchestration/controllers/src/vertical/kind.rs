//! The kind VerticalPodAutoscaler (`autoscaling.k8s.io/v1`), as its definition in `examples/vertical-autoscaler` has it.

use std::collections::BTreeMap;

use dhow_client::kind;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

/// The definition that has to be there.
pub const DEFINITION: &str = "verticalpodautoscalers.autoscaling.k8s.io";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VerticalPodAutoscaler {
    pub metadata: ObjectMeta,
    pub spec: Spec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
}

kind!(VerticalPodAutoscaler, "autoscaling.k8s.io", "v1", "verticalpodautoscalers", NamespaceResourceScope);

/// Amounts by resource, as text.
pub type Amounts = BTreeMap<String, String>;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    pub target_ref: TargetRef,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_policy: Option<UpdatePolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_policy: Option<ResourcePolicy>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    #[serde(default)]
    pub api_version: String,
    pub kind: String,
    pub name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdatePolicy {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_replicas: Option<i32>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourcePolicy {
    #[serde(default)]
    pub container_policies: Vec<ContainerPolicy>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPolicy {
    #[serde(default)]
    pub container_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    #[serde(default)]
    pub min_allowed: Amounts,
    #[serde(default)]
    pub max_allowed: Amounts,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controlled_resources: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controlled_values: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recommendation: Option<Recommendation>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<ConditionOf>,
}

/// As upstream's: without the fields that newer kinds have.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionOf {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recommendation {
    #[serde(default)]
    pub container_recommendations: Vec<ContainerRecommendation>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRecommendation {
    pub container_name: String,
    pub target: Amounts,
    #[serde(default)]
    pub lower_bound: Amounts,
    #[serde(default)]
    pub upper_bound: Amounts,
    #[serde(default)]
    pub uncapped_target: Amounts,
}

/// What is to become of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Off,
    /// New pods only.
    Initial,
    /// Pods are evicted to be made anew.
    Recreate,
    /// Pods are resized where they are, and evicted only if that cannot be.
    InPlaceOrRecreate,
}

impl Spec {
    pub fn mode(&self) -> Mode {
        match self.update_policy.as_ref().and_then(|policy| policy.update_mode.as_deref()) {
            Some("Off") => Mode::Off,
            Some("Initial") => Mode::Initial,
            Some("InPlaceOrRecreate") => Mode::InPlaceOrRecreate,
            _ => Mode::Recreate,
        }
    }

    /// The policy of a container; the one for `*` where it has none.
    pub fn policy(&self, container: &str) -> Option<&ContainerPolicy> {
        let all = &self.resource_policy.as_ref()?.container_policies;
        let find = |name: &str| all.iter().find(|policy| policy.container_name == name);
        find(container).or_else(|| find("*"))
    }
}
