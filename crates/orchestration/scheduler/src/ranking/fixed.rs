//! What a node is for a shape whatever runs on it: worked out again only when the node's object changes.

use k8s_openapi::api::core::v1::{Affinity, PodSpec};

use super::rules::Rules;
use crate::profile::Profile;
use crate::reasons::Refusal;
use crate::shape::Shape;
use crate::snapshot::NodeInfo;
use crate::{affinity, taints};

#[derive(Debug, Clone, Default)]
pub(super) struct Fixed {
    version: u64,
    pub refusal: Option<Refusal>,
    /// Taints that would rather not have the pod.
    pub disliked: i64,
    /// Weight of the preferred terms the node matches.
    pub preferred: i64,
    /// By spread constraint: whether the node counts for it.
    pub counts: u64,
}

impl Fixed {
    pub fn update(&mut self, profile: &Profile, shape: &Shape, info: &NodeInfo, rules: &Rules) {
        if self.version == info.object_version {
            return;
        }
        *self = Self { version: info.object_version, ..Self::default() };
        let Some(node) = info.node.as_deref() else { return };
        let spec = &shape.spec;
        self.refusal = refusal(profile, shape, info);
        self.disliked = taints::discouraging(spec, node);
        self.preferred = affinity::preferred(spec, node);
        if let Some(added) = &profile.added_affinity {
            self.preferred += affinity::preferred(&only(added), node);
        }
        for (index, spread) in shape.spread.iter().enumerate() {
            let suits = !spread.honor_affinity || affinity::required(spec, node);
            let welcome = !spread.honor_taints || taints::blocking(spec, node).is_none();
            if suits && welcome && rules.has_labels(shape, spread.hard, node) {
                self.counts |= 1 << index.min(63);
            }
        }
    }
}

fn only(added: &k8s_openapi::api::core::v1::NodeAffinity) -> PodSpec {
    PodSpec {
        affinity: Some(Affinity { node_affinity: Some(added.clone()), ..Affinity::default() }),
        ..PodSpec::default()
    }
}

fn refusal(profile: &Profile, shape: &Shape, info: &NodeInfo) -> Option<Refusal> {
    let (spec, node, filters) = (&shape.spec, info.node.as_deref()?, &profile.filters);
    let cordoned = node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true));
    if filters.unschedulable && cordoned && !taints::tolerates_cordon(spec) {
        return Some(Refusal::Cordoned);
    }
    if filters.node_name && spec.node_name.is_some() && spec.node_name != node.metadata.name {
        return Some(Refusal::NodeName);
    }
    if filters.taints
        && let Some(taint) = taints::blocking(spec, node)
    {
        let value = taint.value.clone().unwrap_or_default();
        return Some(Refusal::Taint { key: taint.key.clone(), value });
    }
    if let Some(added) = &profile.added_affinity
        && !affinity::required(&only(added), node)
    {
        return Some(Refusal::AddedAffinity);
    }
    (filters.node_affinity && !affinity::required(spec, node)).then_some(Refusal::NodeAffinity)
}
