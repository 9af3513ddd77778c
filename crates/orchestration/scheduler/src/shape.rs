//! What a pod asks of its node, compiled once: pods that ask the same share one shape, and all that is worked out for it.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, Pod, PodAffinityTerm, PodSpec, Toleration, TopologySpreadConstraint,
    WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde::Serialize;

use crate::resources::Request;
use crate::selecting::{Labels, Matcher, PodMatch};
use crate::snapshot::{HostPort, Snapshot, host_ports};

/// A term of required pod affinity or anti-affinity, or a preferred one with its weight.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct Term {
    pub about: PodMatch,
    pub key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct Spread {
    pub key: String,
    pub max_skew: i64,
    pub min_domains: i64,
    pub hard: bool,
    pub counted: Matcher,
    /// Whether the pod counts itself.
    pub own: bool,
    pub honor_affinity: bool,
    pub honor_taints: bool,
}

/// The compiled question. Two pods with equal shapes get the same answer.
#[derive(Debug)]
pub(crate) struct Shape {
    key: Box<[u8]>,
    /// Only what placement looks at.
    pub spec: PodSpec,
    pub request: Request,
    pub ports: Vec<HostPort>,
    pub images: Vec<String>,
    pub priority: i32,
    pub affinity: Vec<Term>,
    /// The pod matches all its own affinity terms.
    pub own_affinity: bool,
    pub anti: Vec<Term>,
    pub preferred: Vec<(i64, Term)>,
    pub spread: Vec<Spread>,
    /// The pod brought its own spread constraints; the cluster's defaults do not need every topology.
    pub own_spread: bool,
}

impl PartialEq for Shape {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Shape {}

impl Hash for Shape {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

#[derive(Serialize)]
struct KeyParts<'a> {
    node_name: Option<&'a String>,
    selector: Option<&'a BTreeMap<String, String>>,
    node_affinity: Option<&'a NodeAffinity>,
    tolerations: Option<&'a Vec<Toleration>>,
    cpu: i64,
    memory: i64,
    ephemeral: i64,
    extended: &'a BTreeMap<String, i64>,
    scored: (i64, i64),
    ports: Vec<(&'a str, &'a str, i32)>,
    images: &'a [String],
    priority: i32,
    affinity: &'a [Term],
    own_affinity: bool,
    anti: &'a [Term],
    preferred: &'a [(i64, Term)],
    spread: &'a [Spread],
    own_spread: bool,
}

/// Constraints for pods that bring none.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct SpreadDefaults {
    pub constraints: Vec<TopologySpreadConstraint>,
    /// The built-in list, as opposed to one of the configuration.
    pub system: bool,
}

impl Shape {
    pub fn of(pod: &Pod, snapshot: &Snapshot, defaults: &SpreadDefaults) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let no_labels = BTreeMap::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&no_labels);
        let home = pod.metadata.namespace.as_deref().unwrap_or_default();
        let terms = |terms: &[PodAffinityTerm]| -> Vec<Term> {
            terms.iter().map(|term| Term::new(term, home, labels)).collect()
        };
        let affinity = terms(required_affinity(spec));
        let own_affinity = !affinity.is_empty()
            && affinity.iter().all(|term| term.about.holds(home, labels, snapshot.namespace_labels(home)));
        let own_spread = spec.topology_spread_constraints.as_ref().is_some_and(|c| !c.is_empty());
        let spread: Vec<Spread> = match &spec.topology_spread_constraints {
            Some(own) if own_spread => own.iter().map(|c| Spread::new(c, None, home, labels)).collect(),
            _ if defaults.constraints.is_empty() => Vec::new(),
            _ => snapshot.owners_selector(pod).map_or_else(Vec::new, |selector| {
                defaults.constraints.iter().map(|c| Spread::new(c, Some(&selector), home, labels)).collect()
            }),
        };
        let mut node_affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.clone());
        // Pods that differ in their node alone, as a DaemonSet's do, are alike but for a rule of their own. Spread constraints
        // count the nodes that the pod may go to.
        if pin(spec).is_some() && spread.is_empty() {
            let preferred = node_affinity.and_then(|all| all.preferred_during_scheduling_ignored_during_execution);
            node_affinity = preferred.map(|preferred| NodeAffinity {
                preferred_during_scheduling_ignored_during_execution: Some(preferred),
                ..NodeAffinity::default()
            });
        }
        let mut shape = Self {
            key: Box::default(),
            spec: PodSpec {
                node_name: spec.node_name.clone().filter(|name| !name.is_empty()),
                node_selector: spec.node_selector.clone(),
                affinity: node_affinity
                    .map(|node_affinity| Affinity { node_affinity: Some(node_affinity), ..Affinity::default() }),
                tolerations: spec.tolerations.clone(),
                ..PodSpec::default()
            },
            request: Request::of(pod),
            ports: host_ports(spec),
            images: images(spec),
            priority: spec.priority.unwrap_or(0),
            affinity,
            own_affinity,
            anti: terms(required_anti(spec)),
            preferred: preferred(spec, home, labels),
            own_spread: own_spread || !defaults.system,
            spread,
        };
        shape.key = shape.make_key();
        shape
    }

    fn make_key(&self) -> Box<[u8]> {
        let parts = KeyParts {
            node_name: self.spec.node_name.as_ref(),
            selector: self.spec.node_selector.as_ref(),
            node_affinity: self.spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref()),
            tolerations: self.spec.tolerations.as_ref(),
            cpu: self.request.amounts.cpu,
            memory: self.request.amounts.memory,
            ephemeral: self.request.amounts.ephemeral,
            extended: &self.request.amounts.extended,
            scored: (self.request.scored_cpu, self.request.scored_memory),
            ports: self.ports.iter().map(|p| (p.protocol.as_str(), p.address.as_str(), p.port)).collect(),
            images: &self.images,
            priority: self.priority,
            affinity: &self.affinity,
            own_affinity: self.own_affinity,
            anti: &self.anti,
            preferred: &self.preferred,
            spread: &self.spread,
            own_spread: self.own_spread,
        };
        // Plain data of maps with text keys always encodes.
        serde_json::to_vec(&parts).unwrap_or_default().into_boxed_slice()
    }

    /// Whether where other pods are matters to it.
    pub fn minds_others(&self) -> bool {
        !self.affinity.is_empty() || !self.anti.is_empty() || self.spread.iter().any(|spread| spread.hard)
    }
}

/// The one node that a pod is made for, by its name.
pub(crate) fn pin(spec: &PodSpec) -> Option<&str> {
    let required = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &required.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let [term] = terms.as_slice() else { return None };
    if term.match_expressions.as_ref().is_some_and(|all| !all.is_empty()) {
        return None;
    }
    let [field] = term.match_fields.as_deref()? else { return None };
    let [name] = field.values.as_deref()? else { return None };
    (field.key == "metadata.name" && field.operator == "In").then_some(name)
}

impl Term {
    pub fn new(term: &PodAffinityTerm, home: &str, labels: &Labels) -> Self {
        let keys = |names: &Option<Vec<String>>| names.clone().unwrap_or_default();
        let selector = with_label_keys(
            term.label_selector.as_ref(),
            &keys(&term.match_label_keys),
            &keys(&term.mismatch_label_keys),
            labels,
        );
        Self {
            about: PodMatch::new(
                term.namespaces.as_deref().unwrap_or_default(),
                term.namespace_selector.as_ref(),
                home,
                selector.as_ref(),
            ),
            key: term.topology_key.clone(),
        }
    }
}

impl Spread {
    fn new(c: &TopologySpreadConstraint, selector: Option<&LabelSelector>, home: &str, labels: &Labels) -> Self {
        let keys = c.match_label_keys.clone().unwrap_or_default();
        let selector = with_label_keys(selector.or(c.label_selector.as_ref()), &keys, &[], labels);
        let about = PodMatch::new(&[], None, home, selector.as_ref());
        Self {
            key: c.topology_key.clone(),
            max_skew: i64::from(c.max_skew),
            min_domains: i64::from(c.min_domains.unwrap_or(1)),
            hard: c.when_unsatisfiable == "DoNotSchedule",
            own: about.holds(home, labels, None),
            counted: Matcher { all: vec![about], alive: true },
            honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

/// A selector that also wants the pod's own values of some labels, and others than its own of others.
fn with_label_keys(
    selector: Option<&LabelSelector>,
    same: &[String],
    other: &[String],
    labels: &Labels,
) -> Option<LabelSelector> {
    let mut selector = selector?.clone();
    for (keys, operator) in [(same, "In"), (other, "NotIn")] {
        let known = keys.iter().filter_map(|key| labels.get(key).map(|value| (key, value)));
        let wanted = known.map(|(key, value)| LabelSelectorRequirement {
            key: key.clone(),
            operator: operator.to_owned(),
            values: Some(vec![value.clone()]),
        });
        let wanted: Vec<_> = wanted.collect();
        if !wanted.is_empty() {
            selector.match_expressions.get_or_insert_default().extend(wanted);
        }
    }
    Some(selector)
}

fn required_affinity(spec: &PodSpec) -> &[PodAffinityTerm] {
    let affinity = spec.affinity.as_ref().and_then(|a| a.pod_affinity.as_ref());
    affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
}

fn required_anti(spec: &PodSpec) -> &[PodAffinityTerm] {
    let affinity = spec.affinity.as_ref().and_then(|a| a.pod_anti_affinity.as_ref());
    affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
}

/// Preferred terms between pods; those of anti-affinity weigh negatively.
fn preferred(spec: &PodSpec, home: &str, labels: &Labels) -> Vec<(i64, Term)> {
    let Some(affinity) = &spec.affinity else { return Vec::new() };
    let near = affinity.pod_affinity.as_ref();
    let near = near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let apart = affinity.pod_anti_affinity.as_ref();
    let apart = apart.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let weighed = |terms: Option<&[WeightedPodAffinityTerm]>, sign: i64| -> Vec<(i64, Term)> {
        let terms = terms.unwrap_or_default().iter();
        terms.map(|t| (sign * i64::from(t.weight), Term::new(&t.pod_affinity_term, home, labels))).collect()
    };
    let mut all = weighed(near, 1);
    all.extend(weighed(apart, -1));
    all
}

/// What a pod's terms mean for those who come later.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Carried {
    pub term: Term,
    /// A required anti-affinity keeps others away; everything else only weighs.
    pub keeps_away: bool,
}

/// The terms a pod carries to its node, each with its weight.
pub(crate) fn carried(pod: &Pod, hard_weight: i64) -> Vec<(i64, Carried)> {
    let Some(spec) = pod.spec.as_ref().filter(|spec| spec.affinity.is_some()) else { return Vec::new() };
    let no_labels = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&no_labels);
    let home = pod.metadata.namespace.as_deref().unwrap_or_default();
    let term = |t: &PodAffinityTerm| Term::new(t, home, labels);
    let mut all: Vec<(i64, Carried)> =
        required_anti(spec).iter().map(|t| (1, Carried { term: term(t), keeps_away: true })).collect();
    if hard_weight > 0 {
        let near = required_affinity(spec).iter();
        all.extend(near.map(|t| (hard_weight, Carried { term: term(t), keeps_away: false })));
    }
    all.extend(preferred(spec, home, labels).into_iter().map(|(w, term)| (w, Carried { term, keeps_away: false })));
    all
}

/// The images of all containers, as nodes name them: with a tag or a digest.
fn images(spec: &PodSpec) -> Vec<String> {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut images: Vec<String> = containers.filter_map(|c| c.image.as_deref()).map(tagged).collect();
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref());
    images.extend(volumes.filter_map(|image| image.reference.as_deref()).map(tagged));
    images
}

fn tagged(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || last.contains('@') { name.to_owned() } else { format!("{name}:latest") }
}

/// A pod and its shape, kept together while it waits.
pub(crate) type SharedShape = Arc<Shape>;
