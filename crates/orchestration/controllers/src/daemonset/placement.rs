//! On which nodes a DaemonSet's pods belong, and how a pod is bound to one of them.

use dhow_scheduler::{affinity, taints};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};

use crate::common::node_name;
use crate::history::POD_REVISION;
use crate::pods::from_template;

const FIELD: &str = "metadata.name";

/// What a node and a set make of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// A pod belongs there.
    pub run: bool,
    /// One that is there may stay.
    pub stay: bool,
}

pub fn fit(set: &DaemonSet, node: &Node) -> Fit {
    let template = set.spec.as_ref().and_then(|spec| spec.template.spec.clone()).unwrap_or_default();
    let named = template.node_name.as_deref().filter(|name| !name.is_empty());
    if named.is_some_and(|name| Some(name) != node.metadata.name.as_deref()) || !affinity::required(&template, node) {
        return Fit { run: false, stay: false };
    }
    let spec = tolerant(template);
    match taints::blocking(&spec, node) {
        Some(_) => Fit { run: false, stay: taints::evicting(&spec, node).is_none() },
        None => Fit { run: true, stay: true },
    }
}

/// Daemons bear what would keep others away: they are often what a sick node needs to recover.
fn tolerant(mut spec: PodSpec) -> PodSpec {
    let mut wanted = vec![
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        wanted.push(("network-unavailable", "NoSchedule"));
    }
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in wanted {
        let added = Toleration {
            key: Some(format!("node.kubernetes.io/{key}")),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        if !tolerations.contains(&added) {
            tolerations.push(added);
        }
    }
    spec
}

/// A pod for one node. The scheduler binds it, for only it knows what else is there.
pub fn new_pod(set: &DaemonSet, node: &str, hash: &str) -> Pod {
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut pod = from_template(set, &template);
    pod.metadata.labels.get_or_insert_default().insert(POD_REVISION.into(), hash.into());
    let mut spec = tolerant(pod.spec.take().unwrap_or_default());
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    // Replaces what the set asks of nodes: this one has it.
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_expressions: None,
            match_fields: Some(vec![NodeSelectorRequirement {
                key: FIELD.into(),
                operator: "In".into(),
                values: Some(vec![node.into()]),
            }]),
        }],
    });
    pod.spec = Some(spec);
    pod
}

/// The node that a pod runs on or is meant for.
pub fn target(pod: &Pod) -> Option<&str> {
    let meant = || {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
        let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
        let fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
        let named = fields.filter(|one| one.key == FIELD && one.operator == "In");
        named.filter_map(|one| one.values.as_ref()?.first()).map(String::as_str).next()
    };
    node_name(pod).or_else(meant)
}
