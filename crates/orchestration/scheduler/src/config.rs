//! Upstream's configuration of schedulers: `KubeSchedulerConfiguration` of `kubescheduler.config.k8s.io/v1`.

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::extenders::ExtenderConfig;
use crate::profile::{Filters, Profile, Strategy, Weights};

const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("scheduler configuration: {context}: {source}")]
    Malformed { context: String, source: serde_json::Error },
    #[error("scheduler configuration: {0}")]
    Invalid(String),
}

fn invalid(text: impl Into<String>) -> ConfigError {
    ConfigError::Invalid(text.into())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    api_version: String,
    kind: String,
    #[serde(default)]
    profiles: Vec<ProfileDocument>,
    #[serde(default)]
    extenders: Vec<Value>,
    // What says how upstream's process runs has no meaning here; all nodes are looked at, whatever their number.
    #[serde(default, rename = "parallelism")]
    _parallelism: Value,
    #[serde(default, rename = "leaderElection")]
    _leader_election: Value,
    #[serde(default, rename = "clientConnection")]
    _client_connection: Value,
    #[serde(default, rename = "percentageOfNodesToScore")]
    _percentage: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProfileDocument {
    #[serde(default)]
    scheduler_name: Option<String>,
    #[serde(default)]
    plugins: Plugins,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
    #[serde(default, rename = "percentageOfNodesToScore")]
    _percentage: Value,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Plugins {
    multi_point: PluginSet,
    filter: PluginSet,
    post_filter: PluginSet,
    score: PluginSet,
    pre_filter: PluginSet,
    pre_score: PluginSet,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PluginSet {
    enabled: Vec<Plugin>,
    disabled: Vec<Plugin>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plugin {
    name: String,
    #[serde(default)]
    weight: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginConfig {
    name: String,
    args: Value,
}

/// One profile for each scheduler's name.
pub fn profiles(document: &Value) -> Result<Vec<Profile>, ConfigError> {
    let document: Document = read(document.clone(), "the document")?;
    if document.api_version != API_VERSION || document.kind != "KubeSchedulerConfiguration" {
        let (version, kind) = (document.api_version, document.kind);
        return Err(invalid(format!("{version} {kind} is not {API_VERSION} KubeSchedulerConfiguration")));
    }
    let ignored = crate::extenders::read(&document.extenders)?;
    let ignored = ignored.iter().flat_map(|extender| &extender.managed_resources).filter(|r| r.ignored_by_scheduler);
    let ignored: Vec<String> = ignored.map(|resource| resource.name.clone()).collect();
    let mut profiles: Vec<Profile> = Vec::new();
    for document in document.profiles {
        let profile = profile(document)?;
        if profiles.iter().any(|other| other.name == profile.name) {
            return Err(invalid(format!("two profiles are named {:?}", profile.name)));
        }
        profiles.push(profile);
    }
    if profiles.is_empty() {
        profiles.push(Profile::default());
    }
    for profile in &mut profiles {
        profile.ignored_resources.extend(ignored.iter().cloned());
    }
    Ok(profiles)
}

/// The extenders of all profiles.
pub fn extenders(document: &Value) -> Result<Vec<ExtenderConfig>, ConfigError> {
    let list = document["extenders"].as_array().map(Vec::as_slice).unwrap_or_default();
    crate::extenders::read(list)
}

fn read<T: DeserializeOwned>(value: Value, context: &str) -> Result<T, ConfigError> {
    serde_json::from_value(value).map_err(|source| ConfigError::Malformed { context: context.to_owned(), source })
}

fn profile(document: ProfileDocument) -> Result<Profile, ConfigError> {
    let name = document.scheduler_name.filter(|name| !name.is_empty());
    let mut profile = Profile::named(name.as_deref().unwrap_or(crate::profile::DEFAULT_NAME));
    for point in [&document.plugins.pre_filter, &document.plugins.pre_score] {
        if let Some(plugin) = point.disabled.iter().chain(&point.enabled).next() {
            return Err(invalid(format!("{} can be set for filter and score, not for a part of them", plugin.name)));
        }
    }
    let plugins = &document.plugins;
    for (set, filters, scores) in [
        (&plugins.multi_point, true, true),
        (&plugins.filter, true, false),
        (&plugins.post_filter, true, false),
        (&plugins.score, false, true),
    ] {
        for plugin in &set.disabled {
            switch(&mut profile, plugin, false, filters, scores)?;
        }
        for plugin in &set.enabled {
            switch(&mut profile, plugin, true, filters, scores)?;
        }
    }
    for config in document.plugin_config {
        arguments(&mut profile, config)?;
    }
    Ok(profile)
}

/// What is always on, and has neither a filter nor a weight of its own.
const FIXED: [&str; 8] = [
    "PrioritySort",
    "SchedulingGates",
    "DefaultBinder",
    "VolumeRestrictions",
    "NodeVolumeLimits",
    "VolumeZone",
    "GangScheduling",
    "DynamicResources",
];

fn switch(profile: &mut Profile, plugin: &Plugin, on: bool, filter: bool, score: bool) -> Result<(), ConfigError> {
    let name = plugin.name.as_str();
    if name == "*" && !on {
        if filter {
            profile.filters = Filters {
                unschedulable: false,
                node_name: false,
                taints: false,
                node_affinity: false,
                ports: false,
                fit: false,
                volumes: false,
                spread: false,
                pod_affinity: false,
                preemption: false,
            };
        }
        if score {
            profile.weights =
                Weights { taints: 0, node_affinity: 0, fit: 0, spread: 0, pod_affinity: 0, balance: 0, images: 0 };
        }
        return Ok(());
    }
    if FIXED.contains(&name) {
        return if on { Ok(()) } else { Err(invalid(format!("{name} cannot be disabled"))) };
    }
    let (filters, weights, usual) = (&mut profile.filters, &mut profile.weights, Weights::default());
    let (its_filter, its_weight): (Option<&mut bool>, Option<(&mut i64, i64)>) = match name {
        "NodeUnschedulable" => (Some(&mut filters.unschedulable), None),
        "NodeName" => (Some(&mut filters.node_name), None),
        "NodePorts" => (Some(&mut filters.ports), None),
        "VolumeBinding" => (Some(&mut filters.volumes), None),
        "DefaultPreemption" => (Some(&mut filters.preemption), None),
        "TaintToleration" => (Some(&mut filters.taints), Some((&mut weights.taints, usual.taints))),
        "NodeAffinity" => (Some(&mut filters.node_affinity), Some((&mut weights.node_affinity, usual.node_affinity))),
        "NodeResourcesFit" => (Some(&mut filters.fit), Some((&mut weights.fit, usual.fit))),
        "PodTopologySpread" => (Some(&mut filters.spread), Some((&mut weights.spread, usual.spread))),
        "InterPodAffinity" => (Some(&mut filters.pod_affinity), Some((&mut weights.pod_affinity, usual.pod_affinity))),
        "NodeResourcesBalancedAllocation" => (None, Some((&mut weights.balance, usual.balance))),
        "ImageLocality" => (None, Some((&mut weights.images, usual.images))),
        _ => return Err(invalid(format!("there is no plugin {name:?}"))),
    };
    if let Some(its_filter) = its_filter.filter(|_| filter) {
        *its_filter = on;
    }
    if let Some((its_weight, usual)) = its_weight.filter(|_| score) {
        *its_weight = match (on, plugin.weight) {
            (false, _) => 0,
            (true, 0) => usual,
            (true, weight) => weight,
        };
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FitArguments {
    #[serde(default)]
    ignored_resources: Vec<String>,
    #[serde(default)]
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<ScoringStrategy>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ScoringStrategy {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    resources: Vec<Resource>,
    requested_to_capacity_ratio: Option<Ratio>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resource {
    name: String,
    #[serde(default = "one")]
    weight: i64,
}

fn one() -> i64 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ratio {
    shape: Vec<Point>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Point {
    utilization: i64,
    score: i64,
}

#[derive(Deserialize)]
struct BalanceArguments {
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AffinityArguments {
    added_affinity: Option<NodeAffinity>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodAffinityArguments {
    hard_pod_affinity_weight: Option<i64>,
    #[serde(default)]
    ignore_preferred_terms_of_existing_pods: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpreadArguments {
    #[serde(default)]
    default_constraints: Vec<TopologySpreadConstraint>,
    defaulting_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PreemptionArguments {
    min_candidate_nodes_percentage: Option<usize>,
    min_candidate_nodes_absolute: Option<usize>,
}

fn arguments(profile: &mut Profile, config: PluginConfig) -> Result<(), ConfigError> {
    let context = format!("arguments of {}", config.name);
    match config.name.as_str() {
        "NodeResourcesFit" => {
            let arguments: FitArguments = read(config.args, &context)?;
            profile.ignored_resources = arguments.ignored_resources;
            profile.ignored_groups = arguments.ignored_resource_groups;
            if let Some(strategy) = arguments.scoring_strategy {
                score_fit(profile, strategy)?;
            }
        }
        "NodeResourcesBalancedAllocation" => {
            let arguments: BalanceArguments = read(config.args, &context)?;
            profile.balance_resources = arguments.resources.into_iter().map(|resource| resource.name).collect();
        }
        "NodeAffinity" => {
            let arguments: AffinityArguments = read(config.args, &context)?;
            profile.added_affinity = arguments.added_affinity;
        }
        "InterPodAffinity" => {
            let arguments: PodAffinityArguments = read(config.args, &context)?;
            profile.ignore_preferred_terms = arguments.ignore_preferred_terms_of_existing_pods;
            if let Some(weight) = arguments.hard_pod_affinity_weight {
                if !(0..=100).contains(&weight) {
                    return Err(invalid(format!("hardPodAffinityWeight {weight} is not within 0 and 100")));
                }
                profile.hard_affinity_weight = weight;
            }
        }
        "PodTopologySpread" => {
            let arguments: SpreadArguments = read(config.args, &context)?;
            match arguments.defaulting_type.as_deref() {
                None | Some("List") => profile.set_spread_defaults(arguments.default_constraints),
                Some("System") if arguments.default_constraints.is_empty() => {}
                Some("System") => return Err(invalid("defaultingType System has no defaultConstraints")),
                Some(other) => return Err(invalid(format!("defaultingType {other:?} is neither List nor System"))),
            }
        }
        "DefaultPreemption" => {
            let arguments: PreemptionArguments = read(config.args, &context)?;
            if let Some(percentage) = arguments.min_candidate_nodes_percentage {
                profile.min_candidates_percentage = percentage.min(100);
            }
            if let Some(least) = arguments.min_candidate_nodes_absolute {
                profile.min_candidates = least;
            }
        }
        other => return Err(invalid(format!("{other} has no arguments here"))),
    }
    Ok(())
}

fn score_fit(profile: &mut Profile, strategy: ScoringStrategy) -> Result<(), ConfigError> {
    if !strategy.resources.is_empty() {
        profile.fit_resources = strategy.resources.into_iter().map(|r| (r.name, r.weight)).collect();
    }
    if let Some((name, weight)) = profile.fit_resources.iter().find(|(_, weight)| !(1..=100).contains(weight)) {
        return Err(invalid(format!("the weight {weight} of resource {name} is not within 1 and 100")));
    }
    profile.strategy = match (strategy.kind.as_str(), strategy.requested_to_capacity_ratio) {
        ("LeastAllocated" | "", None) => Strategy::Least,
        ("MostAllocated", None) => Strategy::Most,
        ("RequestedToCapacityRatio", Some(ratio)) => {
            let rising = ratio.shape.windows(2).all(|pair| pair[0].utilization < pair[1].utilization);
            let within = ratio.shape.iter().all(|p| (0..=100).contains(&p.utilization) && (0..=10).contains(&p.score));
            if ratio.shape.is_empty() || !rising || !within {
                return Err(invalid("a shape needs points of rising utilization 0 to 100 with scores 0 to 10"));
            }
            // Scores of a shape go to 10, those of nodes to 100.
            Strategy::ByRatio(ratio.shape.into_iter().map(|point| (point.utilization, point.score * 10)).collect())
        }
        (kind, _) => return Err(invalid(format!("scoringStrategy {kind:?} is unknown, or its shape is missing"))),
    };
    Ok(())
}
