//! Taints of nodes and tolerations of pods.

use k8s_openapi::api::core::v1::{Node, PodSpec, Taint, Toleration};

pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

pub fn tolerates(toleration: &Toleration, key: &str, value: &str, effect: &str) -> bool {
    if toleration.effect.as_deref().is_some_and(|e| !e.is_empty() && e != effect) {
        return false;
    }
    let wanted = toleration.key.as_deref().unwrap_or_default();
    if !wanted.is_empty() && wanted != key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        // Without a key only "Exists" makes sense.
        "Equal" | "" => !wanted.is_empty() && toleration.value.as_deref().unwrap_or_default() == value,
        _ => false,
    }
}

fn untolerated<'a>(
    spec: &'a PodSpec,
    node: &'a Node,
    effects: &'static [&'static str],
) -> impl Iterator<Item = &'a Taint> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints.iter().filter(move |taint| {
        let value = taint.value.as_deref().unwrap_or_default();
        effects.contains(&taint.effect.as_str())
            && !spec.tolerations.iter().flatten().any(|t| tolerates(t, &taint.key, value, &taint.effect))
    })
}

/// The first taint that keeps the pod away.
pub fn blocking<'a>(spec: &'a PodSpec, node: &'a Node) -> Option<&'a Taint> {
    untolerated(spec, node, &["NoSchedule", "NoExecute"]).next()
}

/// The first taint that drives the pod away where it runs.
pub fn evicting<'a>(spec: &'a PodSpec, node: &'a Node) -> Option<&'a Taint> {
    untolerated(spec, node, &["NoExecute"]).next()
}

/// How many taints would rather not have the pod.
pub fn discouraging(spec: &PodSpec, node: &Node) -> i64 {
    untolerated(spec, node, &["PreferNoSchedule"]).count() as i64
}

/// Whether the pod may go to a cordoned node.
pub fn tolerates_cordon(spec: &PodSpec) -> bool {
    spec.tolerations.iter().flatten().any(|t| tolerates(t, UNSCHEDULABLE, "", "NoSchedule"))
}
