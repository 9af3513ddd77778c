//! Rules between pods: required affinity and anti-affinity, and spread over topology domains.
//!
//! A rule is worked out once per decision by walking the placed pods, then asked per node.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod, PodAffinityTerm, PodSpec, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::affinity;
use crate::snapshot::{Placed, Snapshot};

type Labels = BTreeMap<String, String>;
/// A topology key and its value.
type Domain = (String, String);

pub(crate) struct Rules<'a> {
    affinity: &'a [PodAffinityTerm],
    anti: &'a [PodAffinityTerm],
    /// Domains with a pod that matches all affinity terms.
    near: BTreeSet<Domain>,
    /// Nobody matches, and the pod itself does: it may be the first.
    first: bool,
    avoid: BTreeSet<Domain>,
    /// Domains that pods already there keep for themselves.
    kept: BTreeSet<Domain>,
    spread: Vec<Spread<'a>>,
}

struct Spread<'a> {
    constraint: &'a TopologySpreadConstraint,
    counts: BTreeMap<String, i64>,
    least: i64,
    own: i64,
}

pub(crate) fn affinity_terms(spec: &PodSpec) -> &[PodAffinityTerm] {
    let affinity = spec.affinity.as_ref().and_then(|a| a.pod_affinity.as_ref());
    affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
}

pub(crate) fn anti_terms(spec: &PodSpec) -> &[PodAffinityTerm] {
    let affinity = spec.affinity.as_ref().and_then(|a| a.pod_anti_affinity.as_ref());
    affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
}

fn hard_spread(spec: &PodSpec) -> impl Iterator<Item = &TopologySpreadConstraint> {
    spec.topology_spread_constraints.iter().flatten().filter(|c| c.when_unsatisfiable == "DoNotSchedule")
}

/// Whether where other pods are matters to this one.
pub(crate) fn sensitive(spec: &PodSpec) -> bool {
    !affinity_terms(spec).is_empty() || hard_spread(spec).next().is_some()
}

/// Placing a pod and ignoring what it requires would be worse than not placing it.
pub(crate) fn unsupported(spec: &PodSpec) -> Option<&'static str> {
    let mut terms = affinity_terms(spec).iter().chain(anti_terms(spec));
    let selects = |s: &LabelSelector| s.match_labels.is_some() || s.match_expressions.is_some();
    if terms.clone().any(|t| t.namespace_selector.as_ref().is_some_and(selects)) {
        return Some("pod affinity with a namespaceSelector of labels");
    }
    if terms.any(|t| t.match_label_keys.is_some() || t.mismatch_label_keys.is_some()) {
        return Some("pod affinity with matchLabelKeys");
    }
    hard_spread(spec).any(|c| c.match_label_keys.is_some()).then_some("topology spread with matchLabelKeys")
}

pub(crate) fn matches(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    // No selector selects nothing, an empty one everything.
    let Some(selector) = selector else { return false };
    selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v))
        && selector.match_expressions.iter().flatten().all(|e| {
            let value = labels.get(&e.key);
            let listed = value.is_some_and(|v| e.values.iter().flatten().any(|x| x == v));
            match e.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Whether `term`, of a pod in `home`, is about a pod with these labels in `namespace`.
fn about(term: &PodAffinityTerm, home: &str, namespace: &str, labels: &Labels) -> bool {
    let named = term.namespaces.as_deref().unwrap_or_default();
    // Here a namespace selector is empty, which is every namespace.
    let here = term.namespace_selector.is_some()
        || named.iter().any(|n| n == namespace)
        || (named.is_empty() && home == namespace);
    here && matches(term.label_selector.as_ref(), labels)
}

fn label<'a>(node: &'a Node, key: &str) -> Option<&'a String> {
    node.metadata.labels.as_ref().and_then(|l| l.get(key))
}

fn domain(node: &Node, key: &str) -> Option<Domain> {
    label(node, key).map(|value| (key.to_owned(), value.clone()))
}

impl<'a> Rules<'a> {
    pub fn new(snapshot: &Snapshot, pod: &Pod, spec: &'a PodSpec) -> Self {
        let home = pod.metadata.namespace.as_deref().unwrap_or_default();
        let own = pod.metadata.labels.clone().unwrap_or_default();
        let (affinity, anti) = (affinity_terms(spec), anti_terms(spec));
        let mut rules = Self {
            affinity,
            anti,
            near: BTreeSet::new(),
            first: false,
            avoid: BTreeSet::new(),
            kept: BTreeSet::new(),
            spread: Vec::new(),
        };
        let constraints: Vec<_> = hard_spread(spec).collect();
        if affinity.is_empty() && anti.is_empty() && constraints.is_empty() && !snapshot.has_anti_terms() {
            return rules;
        }
        let placed = || snapshot.placed().filter_map(|(key, p)| Some((key, p, snapshot.node(p.node())?)));
        let mut anyone = false;
        for ((namespace, _), there, node) in placed() {
            let all = affinity.iter().all(|t| about(t, home, namespace, there.labels()));
            if all && !affinity.is_empty() {
                anyone = true;
                rules.near.extend(affinity.iter().filter_map(|t| domain(node, &t.topology_key)));
            }
            let against = anti.iter().filter(|t| about(t, home, namespace, there.labels()));
            rules.avoid.extend(against.filter_map(|t| domain(node, &t.topology_key)));
            let keeps = there.anti_terms().iter().filter(|t| about(t, namespace, home, &own));
            rules.kept.extend(keeps.filter_map(|t| domain(node, &t.topology_key)));
        }
        rules.first = !anyone && affinity.iter().all(|t| about(t, home, home, &own));

        let keys: Vec<&str> = constraints.iter().map(|c| c.topology_key.as_str()).collect();
        let eligible = |node: &Node| affinity::required(spec, node) && keys.iter().all(|k| label(node, k).is_some());
        for constraint in constraints {
            let mut counts: BTreeMap<String, i64> = BTreeMap::new();
            for (_, _, node) in snapshot.nodes().filter(|(_, _, node)| eligible(node)) {
                counts.extend(label(node, &constraint.topology_key).map(|v| (v.clone(), 0)));
            }
            for ((namespace, _), there, node) in placed() {
                if namespace == home && eligible(node) && matches(constraint.label_selector.as_ref(), there.labels()) {
                    let count = label(node, &constraint.topology_key).and_then(|v| counts.get_mut(v));
                    count.into_iter().for_each(|c| *c += 1);
                }
            }
            let enough = counts.len() as i64 >= i64::from(constraint.min_domains.unwrap_or(1));
            let least = if enough { counts.values().copied().min().unwrap_or(0) } else { 0 };
            let own = i64::from(matches(constraint.label_selector.as_ref(), &own));
            rules.spread.push(Spread { constraint, counts, least, own });
        }
        rules
    }

    /// Why the pod may not go beside or away from the others here.
    pub fn refuses(&self, node: &Node) -> Option<&'static str> {
        for spread in &self.spread {
            let Some(value) = label(node, &spread.constraint.topology_key) else {
                return Some("node(s) didn't match pod topology spread constraints (missing required label)");
            };
            let here = spread.counts.get(value).copied().unwrap_or(0);
            if here + spread.own - spread.least > i64::from(spread.constraint.max_skew) {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        let near =
            |t: &PodAffinityTerm| domain(node, &t.topology_key).is_some_and(|d| self.first || self.near.contains(&d));
        if !self.affinity.iter().all(near) {
            return Some("node(s) didn't match pod affinity rules");
        }
        let avoids = |t: &PodAffinityTerm| domain(node, &t.topology_key).is_some_and(|d| self.avoid.contains(&d));
        if self.anti.iter().any(avoids) {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
        let kept = self.kept.iter().any(|(key, value)| label(node, key) == Some(value));
        kept.then_some("node(s) didn't satisfy existing pods anti-affinity rules")
    }
}

impl Placed {
    pub(crate) fn same_labels(&self, pod: &Pod) -> bool {
        pod.metadata.labels.as_ref().map_or(self.labels().is_empty(), |l| l == self.labels())
    }
}
