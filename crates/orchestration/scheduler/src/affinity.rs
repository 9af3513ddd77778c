//! Node selectors and node affinity.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec,
};

fn node_affinity(spec: &PodSpec) -> Option<&NodeAffinity> {
    spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref())
}

/// Whether the node has what `nodeSelector` and required node affinity ask for.
pub fn required(spec: &PodSpec, node: &Node) -> bool {
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = node_affinity(spec).and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|required| self::selected(required, node))
}

/// Whether one of the terms selects the node.
pub fn selected(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

/// The summed weight of the preferred terms the node matches.
pub fn preferred(spec: &PodSpec, node: &Node) -> i64 {
    node_affinity(spec)
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .flatten()
        // An empty preference matches every node and so says nothing.
        .filter(|p| !is_empty(&p.preference) && term_matches(&p.preference, node))
        .map(|p| i64::from(p.weight))
        .sum()
}

fn is_empty(term: &NodeSelectorTerm) -> bool {
    term.match_expressions.as_ref().is_none_or(Vec::is_empty) && term.match_fields.as_ref().is_none_or(Vec::is_empty)
}

/// All requirements hold; a term without any matches nothing.
fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key)).map(String::as_str);
    // The only field there is.
    let field = |key: &str| if key == "metadata.name" { node.metadata.name.as_deref() } else { None };
    !is_empty(term)
        && term.match_expressions.iter().flatten().all(|r| holds(r, label(&r.key)))
        && term.match_fields.iter().flatten().all(|r| holds(r, field(&r.key)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let listed = |value: &str| requirement.values.iter().flatten().any(|v| v == value);
    let bound = || match requirement.values.as_deref() {
        Some([bound]) => bound.parse::<i64>().ok(),
        _ => None,
    };
    let number = || value.and_then(|v| v.parse::<i64>().ok());
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number().zip(bound()).is_some_and(|(number, bound)| number > bound),
        "Lt" => number().zip(bound()).is_some_and(|(number, bound)| number < bound),
        _ => false,
    }
}
