//! `clusterAutoscaler:` of the configuration file, in the words of upstream's flags, and the settings that come of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use dhow_base::duration::go_seconds;
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Adds nodes for pods that find no place, and removes nodes that are hardly used. Off without a provider.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClusterAutoscalerConfig {
    /// Who makes and removes machines.
    pub provider: Option<ProviderConfig>,
    /// How often the cluster is looked at, at most.
    pub scan_interval: String,
    /// How to choose among groups of nodes that would do; the next one decides where one finds several equal.
    pub expander: Vec<ExpanderName>,
    /// For the expander `priority`: patterns of groups' names by priority, the highest wins.
    pub priorities: BTreeMap<i32, Vec<String>>,
    /// 0 means no limit.
    pub max_nodes_total: i32,
    /// Pods younger than this are not looked at.
    pub new_pod_scale_up_delay: String,
    /// Pods of a lower priority neither make nodes nor keep them.
    pub expendable_pods_priority_cutoff: i32,
    /// A machine that is no node after this time is given up.
    pub max_node_provision_time: String,
    /// Beyond so many nodes that are not ready, in number and in percent, nothing is done.
    pub ok_total_unready_count: i32,
    pub max_total_unready_percentage: f64,
    pub scale_down_enabled: bool,
    pub scale_down_delay_after_add: String,
    pub scale_down_delay_after_delete: String,
    pub scale_down_delay_after_failure: String,
    /// How long a node must be unneeded before it goes, ready or not.
    pub scale_down_unneeded_time: String,
    pub scale_down_unready_time: String,
    /// Requests by allocatable below which a node is hardly used.
    pub scale_down_utilization_threshold: f64,
    pub ignore_daemon_sets_utilization: bool,
    pub skip_nodes_with_system_pods: bool,
    pub skip_nodes_with_local_storage: bool,
    /// Empty nodes removed at a time.
    pub max_empty_bulk_delete: usize,
    /// Nodes with pods removed at a time.
    pub max_drain_parallelism: usize,
    /// A pod that is evicted has at most this long to end.
    pub max_graceful_termination_seconds: i64,
    /// How long an eviction is tried.
    pub max_pod_eviction_time: String,
}

/// A server of upstream's external gRPC interface for node providers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProviderConfig {
    /// `host:port`.
    pub address: String,
    /// Files with certificates and the key; without them the connection is plain.
    #[serde(default)]
    pub cacert: Option<PathBuf>,
    #[serde(default)]
    pub cert: Option<PathBuf>,
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// How long a call may take.
    #[serde(default = "five_seconds")]
    pub timeout: String,
}

fn five_seconds() -> String {
    "5s".to_owned()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExpanderName {
    LeastWaste,
    Priority,
    Random,
}

impl Default for ClusterAutoscalerConfig {
    fn default() -> Self {
        Self {
            provider: None,
            scan_interval: "10s".to_owned(),
            expander: vec![ExpanderName::LeastWaste],
            priorities: BTreeMap::new(),
            max_nodes_total: 0,
            new_pod_scale_up_delay: "0s".to_owned(),
            expendable_pods_priority_cutoff: -10,
            max_node_provision_time: "15m".to_owned(),
            ok_total_unready_count: 3,
            max_total_unready_percentage: 45.0,
            scale_down_enabled: true,
            scale_down_delay_after_add: "10m".to_owned(),
            scale_down_delay_after_delete: "0s".to_owned(),
            scale_down_delay_after_failure: "3m".to_owned(),
            scale_down_unneeded_time: "10m".to_owned(),
            scale_down_unready_time: "20m".to_owned(),
            scale_down_utilization_threshold: 0.5,
            ignore_daemon_sets_utilization: false,
            skip_nodes_with_system_pods: true,
            skip_nodes_with_local_storage: true,
            max_empty_bulk_delete: 10,
            max_drain_parallelism: 1,
            max_graceful_termination_seconds: 600,
            max_pod_eviction_time: "2m".to_owned(),
        }
    }
}

/// What a group of nodes may have of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    pub utilization_threshold: f64,
    pub unneeded: Duration,
    pub unready: Duration,
    pub provision: Duration,
    pub ignore_daemon_sets: bool,
}

#[derive(Debug, Clone)]
pub struct ClusterAutoscalerSettings {
    pub provider: ProviderConfig,
    pub timeout: Duration,
    pub scan: Duration,
    pub expanders: Vec<ExpanderName>,
    /// Highest first.
    pub priorities: Vec<(i32, Vec<Regex>)>,
    pub most_nodes: i32,
    pub new_pod_delay: Duration,
    pub expendable_below: i32,
    pub unready_count: i32,
    pub unready_percentage: f64,
    pub scale_down: bool,
    pub after_add: Duration,
    pub after_delete: Duration,
    pub after_failure: Duration,
    pub options: Options,
    pub skip_system: bool,
    pub skip_local: bool,
    pub most_empty: usize,
    pub most_drains: usize,
    pub most_grace: i64,
    pub eviction: Duration,
}

impl ClusterAutoscalerConfig {
    /// The settings, `None` without a provider.
    ///
    /// # Errors
    /// What is wrong, in words for who wrote it.
    pub fn settings(&self) -> Result<Option<ClusterAutoscalerSettings>, String> {
        let Some(provider) = &self.provider else { return Ok(None) };
        if provider.address.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        {
            return Err(format!("clusterAutoscaler.provider.address: {:?} is not host:port", provider.address));
        }
        if provider.cert.is_some() != provider.key.is_some() || provider.cert.is_some() != provider.cacert.is_some() {
            return Err("clusterAutoscaler.provider: cacert, cert and key go together".to_owned());
        }
        if self.expander.is_empty() {
            return Err("clusterAutoscaler.expander: name at least one of least-waste, priority and random".to_owned());
        }
        if !(0.0..=1.0).contains(&self.scale_down_utilization_threshold) {
            return Err("clusterAutoscaler.scaleDownUtilizationThreshold: a number from 0 to 1".to_owned());
        }
        let mut priorities = Vec::new();
        for (priority, patterns) in self.priorities.iter().rev() {
            let patterns = patterns.iter().map(|text| {
                Regex::new(text).map_err(|error| format!("clusterAutoscaler.priorities.{priority}: {error}"))
            });
            priorities.push((*priority, patterns.collect::<Result<_, _>>()?));
        }
        let options = Options {
            utilization_threshold: self.scale_down_utilization_threshold,
            unneeded: duration("scaleDownUnneededTime", &self.scale_down_unneeded_time)?,
            unready: duration("scaleDownUnreadyTime", &self.scale_down_unready_time)?,
            provision: duration("maxNodeProvisionTime", &self.max_node_provision_time)?,
            ignore_daemon_sets: self.ignore_daemon_sets_utilization,
        };
        let scan = duration("scanInterval", &self.scan_interval)?;
        if scan < Duration::from_millis(100) {
            return Err("clusterAutoscaler.scanInterval: at least 100ms".to_owned());
        }
        Ok(Some(ClusterAutoscalerSettings {
            timeout: duration("provider.timeout", &provider.timeout)?,
            provider: provider.clone(),
            scan,
            expanders: self.expander.clone(),
            priorities,
            most_nodes: self.max_nodes_total,
            new_pod_delay: duration("newPodScaleUpDelay", &self.new_pod_scale_up_delay)?,
            expendable_below: self.expendable_pods_priority_cutoff,
            unready_count: self.ok_total_unready_count,
            unready_percentage: self.max_total_unready_percentage,
            scale_down: self.scale_down_enabled,
            after_add: duration("scaleDownDelayAfterAdd", &self.scale_down_delay_after_add)?,
            after_delete: duration("scaleDownDelayAfterDelete", &self.scale_down_delay_after_delete)?,
            after_failure: duration("scaleDownDelayAfterFailure", &self.scale_down_delay_after_failure)?,
            options,
            skip_system: self.skip_nodes_with_system_pods,
            skip_local: self.skip_nodes_with_local_storage,
            most_empty: self.max_empty_bulk_delete,
            most_drains: self.max_drain_parallelism,
            most_grace: self.max_graceful_termination_seconds,
            eviction: duration("maxPodEvictionTime", &self.max_pod_eviction_time)?,
        }))
    }
}

fn duration(key: &str, text: &str) -> Result<Duration, String> {
    let duration = go_seconds(text).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| format!("clusterAutoscaler.{key}: {text:?} is not a duration such as 1m30s"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(text: serde_json::Value) -> Result<Option<ClusterAutoscalerSettings>, String> {
        serde_json::from_value::<ClusterAutoscalerConfig>(text).map_err(|error| error.to_string())?.settings()
    }

    #[test]
    fn mistakes_are_told_with_their_key() {
        let with = |key: &str, value: serde_json::Value| {
            let mut config = serde_json::json!({"provider": {"address": "localhost:8086"}});
            config[key] = value;
            of(config).map(drop)
        };
        assert!(of(serde_json::json!({})).unwrap().is_none());
        assert_eq!(with("scanInterval", "2s".into()), Ok(()));
        for (key, value, says) in [
            ("scanInterval", "soon".into(), "clusterAutoscaler.scanInterval: \"soon\""),
            ("scaleDownUtilizationThreshold", 50.into(), "from 0 to 1"),
            ("expander", serde_json::json!([]), "least-waste"),
            ("priorities", serde_json::json!({"10": ["("]}), "clusterAutoscaler.priorities.10"),
            ("provider", serde_json::json!({"address": "localhost"}), "host:port"),
            ("provider", serde_json::json!({"address": "localhost:1", "cert": "/a"}), "go together"),
            ("scanIntervall", "2s".into(), "unknown field"),
        ] {
            let error = with(key, value).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
