//! How one scheduler of a cluster decides: which rules it knows, what they weigh, and their arguments.

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::shape::SpreadDefaults;

pub const DEFAULT_NAME: &str = "default-scheduler";

/// What each score weighs; 0 leaves it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    pub taints: i64,
    pub node_affinity: i64,
    pub fit: i64,
    pub spread: i64,
    pub pod_affinity: i64,
    pub balance: i64,
    pub images: i64,
}

impl Default for Weights {
    /// Upstream's.
    fn default() -> Self {
        Self { taints: 3, node_affinity: 2, fit: 1, spread: 2, pod_affinity: 2, balance: 1, images: 1 }
    }
}

/// Filters that a profile may leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filters {
    pub unschedulable: bool,
    pub node_name: bool,
    pub taints: bool,
    pub node_affinity: bool,
    pub ports: bool,
    pub fit: bool,
    pub volumes: bool,
    pub spread: bool,
    pub pod_affinity: bool,
    pub preemption: bool,
}

impl Default for Filters {
    fn default() -> Self {
        Self {
            unschedulable: true,
            node_name: true,
            taints: true,
            node_affinity: true,
            ports: true,
            fit: true,
            volumes: true,
            spread: true,
            pod_affinity: true,
            preemption: true,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Strategy {
    /// Rather nodes with much free.
    Least,
    /// Rather nodes that are nearly full.
    Most,
    /// A line through points of utilisation in percent and score from 0 to 100.
    ByRatio(Vec<(i64, i64)>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Pods whose `schedulerName` is another are not its.
    pub name: String,
    pub weights: Weights,
    pub filters: Filters,
    pub strategy: Strategy,
    /// Resources that are scored, with weights.
    pub fit_resources: Vec<(String, i64)>,
    pub balance_resources: Vec<String>,
    /// Extended resources that someone else looks after, by name or by group.
    pub ignored_resources: Vec<String>,
    pub ignored_groups: Vec<String>,
    /// Asked of nodes on top of what pods ask.
    pub added_affinity: Option<NodeAffinity>,
    /// What a required pod affinity of placed pods weighs for those that it is about.
    pub hard_affinity_weight: i64,
    /// Pods that prefer no company of their own are not scored by that of others.
    pub ignore_preferred_terms: bool,
    pub(crate) spread_defaults: SpreadDefaults,
    pub min_candidates_percentage: usize,
    pub min_candidates: usize,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            name: DEFAULT_NAME.to_owned(),
            weights: Weights::default(),
            filters: Filters::default(),
            strategy: Strategy::Least,
            fit_resources: vec![("cpu".to_owned(), 1), ("memory".to_owned(), 1)],
            balance_resources: vec!["cpu".to_owned(), "memory".to_owned()],
            ignored_resources: Vec::new(),
            ignored_groups: Vec::new(),
            added_affinity: None,
            hard_affinity_weight: 1,
            ignore_preferred_terms: false,
            spread_defaults: SpreadDefaults { constraints: system_spread(), system: true },
            min_candidates_percentage: 10,
            min_candidates: 100,
        }
    }
}

impl Profile {
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    pub fn set_spread_defaults(&mut self, constraints: Vec<TopologySpreadConstraint>) {
        self.spread_defaults = SpreadDefaults { constraints, system: false };
    }

    pub(crate) fn ignores(&self, resource: &str) -> bool {
        self.ignored_resources.iter().any(|name| name == resource)
            || resource.split_once('/').is_some_and(|(group, _)| self.ignored_groups.iter().any(|g| g == group))
    }
}

/// Rather not many pods of one owner on one node or in one zone.
fn system_spread() -> Vec<TopologySpreadConstraint> {
    let constraint = |key: &str, max_skew| TopologySpreadConstraint {
        topology_key: key.to_owned(),
        max_skew,
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(LabelSelector::default()),
        ..TopologySpreadConstraint::default()
    };
    vec![constraint("kubernetes.io/hostname", 3), constraint("topology.kubernetes.io/zone", 5)]
}
