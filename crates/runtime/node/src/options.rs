//! `node:` of the configuration file, in the words of the kubelet's configuration, and the settings that come of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use dhow_base::duration::go_seconds;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::resources::{SYSTEM_CRITICAL, milli, whole};
use crate::settings::{Amount, NodeSettings, ShutdownGroup, Signal, Threshold};

/// What an administrator may write. Unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeOptions {
    /// Pods that the node takes.
    pub max_pods: u32,
    /// Processes of one pod; none or -1 leaves it to the kernel.
    pub pod_pids_limit: Option<i64>,
    /// Kept from pods: `cpu`, `memory`, `ephemeral-storage` as quantities.
    pub reserved: Reserved,
    /// What has to be left of the machine; with less, pods are evicted at once.
    pub eviction_hard: Thresholds,
    /// With less than this they are evicted after the time below.
    pub eviction_soft: Thresholds,
    /// How long each soft threshold may be missed.
    pub eviction_soft_grace_period: Thresholds,
    /// What is freed beyond a threshold, once something has to be.
    pub eviction_minimum_reclaim: Thresholds,
    /// Seconds that pods get to end when a soft threshold evicts them.
    pub eviction_max_pod_grace_period: u64,
    /// How long a node says that it is short of something after it no longer is.
    pub eviction_pressure_transition_period: String,
    /// Names, or beginnings of names with a `*`, that pods may set beside the safe ones.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Folder of pod manifests; `static-pods` in the data folder without it.
    pub static_pod_path: Option<PathBuf>,
    /// Size at which the log of a container is put aside.
    pub container_log_max_size: String,
    /// Files of one container's log, the one that is written to among them.
    pub container_log_max_files: usize,
    /// Time for all pods when the machine shuts down, `0s` for none.
    pub shutdown_grace_period: String,
    /// The part of it that critical pods keep.
    pub shutdown_grace_period_critical_pods: String,
    /// In the place of those two: each priority, and all above it up to the next, with its time.
    pub shutdown_grace_period_by_pod_priority: Vec<PriorityGrace>,
    /// Sandboxes that wait, ready made, for pods.
    pub pod_slots: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Reserved {
    pub cpu: Option<String>,
    pub memory: Option<String>,
    pub ephemeral_storage: Option<String>,
}

/// A quantity, a percentage or a duration for each signal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    #[serde(rename = "memory.available")]
    pub memory_available: Option<String>,
    #[serde(rename = "nodefs.available")]
    pub disk_available: Option<String>,
    #[serde(rename = "nodefs.inodesFree")]
    pub inodes_free: Option<String>,
    #[serde(rename = "imagefs.available")]
    pub image_disk_available: Option<String>,
    #[serde(rename = "imagefs.inodesFree")]
    pub image_inodes_free: Option<String>,
    #[serde(rename = "pid.available")]
    pub pid_available: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PriorityGrace {
    pub priority: i32,
    pub shutdown_grace_period_seconds: u64,
}

impl Default for NodeOptions {
    /// Upstream's, but for the disk, of which 5% are kept, and for shutdowns, which it has none for.
    fn default() -> Self {
        let text = |text: &str| Some(text.to_owned());
        Self {
            max_pods: 110,
            pod_pids_limit: None,
            reserved: Reserved::default(),
            eviction_hard: Thresholds {
                memory_available: text("100Mi"),
                disk_available: text("5%"),
                inodes_free: text("5%"),
                ..Thresholds::default()
            },
            eviction_soft: Thresholds::default(),
            eviction_soft_grace_period: Thresholds::default(),
            eviction_minimum_reclaim: Thresholds::default(),
            eviction_max_pod_grace_period: 30,
            eviction_pressure_transition_period: "5m".into(),
            allowed_unsafe_sysctls: Vec::new(),
            static_pod_path: None,
            container_log_max_size: "10Mi".into(),
            container_log_max_files: 5,
            shutdown_grace_period: "30s".into(),
            shutdown_grace_period_critical_pods: "10s".into(),
            shutdown_grace_period_by_pod_priority: Vec::new(),
            pod_slots: 2,
        }
    }
}

impl Thresholds {
    fn list(&self) -> [(Signal, &'static str, &Option<String>); 6] {
        [
            (Signal::MemoryAvailable, "memory.available", &self.memory_available),
            (Signal::DiskAvailable, "nodefs.available", &self.disk_available),
            (Signal::InodesFree, "nodefs.inodesFree", &self.inodes_free),
            (Signal::ImageDiskAvailable, "imagefs.available", &self.image_disk_available),
            (Signal::ImageInodesFree, "imagefs.inodesFree", &self.image_inodes_free),
            (Signal::PidAvailable, "pid.available", &self.pid_available),
        ]
    }

    fn of(&self, signal: Signal) -> Option<&str> {
        self.list().into_iter().find(|(own, ..)| *own == signal).and_then(|(_, _, text)| text.as_deref())
    }
}

impl NodeOptions {
    /// The settings, or what is wrong with a key.
    pub fn settings(&self) -> Result<NodeSettings, String> {
        let mut reserved = BTreeMap::new();
        let given = [
            ("cpu", &self.reserved.cpu),
            ("memory", &self.reserved.memory),
            ("ephemeral-storage", &self.reserved.ephemeral_storage),
        ];
        for (name, text) in given {
            let Some(text) = text else { continue };
            if milli(text).is_none_or(|amount| amount < 0) {
                return Err(format!("node.reserved.{name}: {text:?} is not a quantity"));
            }
            reserved.insert(name.to_owned(), text.clone());
        }
        if self.max_pods == 0 {
            return Err("node.maxPods: at least 1".to_owned());
        }
        self.log_limits()?;
        Ok(NodeSettings {
            max_pods: self.max_pods,
            pod_pids: self.pod_pids_limit.filter(|limit| *limit > 0),
            reserved,
            eviction: self.thresholds()?,
            eviction_grace: Duration::from_secs(self.eviction_max_pod_grace_period),
            pressure_transition: duration(
                "node.evictionPressureTransitionPeriod",
                &self.eviction_pressure_transition_period,
            )?,
            allowed_unsafe_sysctls: self.allowed_unsafe_sysctls.clone(),
            static_pods: self.static_pod_path.clone(),
            shutdown: self.shutdown()?,
            cgroup_root: None,
        })
    }

    /// Bytes at which a log file is put aside, and how many are kept.
    pub fn log_limits(&self) -> Result<(u64, usize), String> {
        let size = whole(&self.container_log_max_size).filter(|size| *size >= 1024);
        let size = size.ok_or("node.containerLogMaxSize: a quantity of at least 1Ki")?;
        if self.container_log_max_files < 2 {
            return Err("node.containerLogMaxFiles: at least 2".to_owned());
        }
        Ok((size, self.container_log_max_files))
    }

    fn thresholds(&self) -> Result<Vec<Threshold>, String> {
        let mut all = Vec::new();
        for (part, hard, given) in
            [("evictionHard", true, &self.eviction_hard), ("evictionSoft", false, &self.eviction_soft)]
        {
            for (signal, name, text) in given.list() {
                let Some(text) = text else { continue };
                let least = amount(&format!("node.{part}.{name}"), text)?;
                let grace = self.eviction_soft_grace_period.of(signal);
                let grace = match (hard, grace) {
                    (true, _) => None,
                    (false, Some(grace)) => Some(duration(&format!("node.evictionSoftGracePeriod.{name}"), grace)?),
                    (false, None) => {
                        return Err(format!("node.evictionSoft.{name}: evictionSoftGracePeriod.{name} is missing"));
                    }
                };
                let reclaim = match self.eviction_minimum_reclaim.of(signal) {
                    Some(text) => amount(&format!("node.evictionMinimumReclaim.{name}"), text)?,
                    None => Amount::Units(0),
                };
                all.push(Threshold { signal, least, grace, reclaim });
            }
        }
        Ok(all)
    }

    fn shutdown(&self) -> Result<Vec<ShutdownGroup>, String> {
        if !self.shutdown_grace_period_by_pod_priority.is_empty() {
            let group = |one: &PriorityGrace| ShutdownGroup {
                priority: one.priority,
                grace: Duration::from_secs(one.shutdown_grace_period_seconds),
            };
            let mut groups: Vec<_> = self.shutdown_grace_period_by_pod_priority.iter().map(group).collect();
            groups.sort_by_key(|group| group.priority);
            if groups.windows(2).any(|pair| pair[0].priority == pair[1].priority) {
                return Err("node.shutdownGracePeriodByPodPriority: a priority stands there twice".to_owned());
            }
            return Ok(groups);
        }
        let all = duration("node.shutdownGracePeriod", &self.shutdown_grace_period)?;
        let critical = duration("node.shutdownGracePeriodCriticalPods", &self.shutdown_grace_period_critical_pods)?;
        if all.is_zero() {
            return Ok(Vec::new());
        }
        let Some(usual) = all.checked_sub(critical) else {
            return Err("node.shutdownGracePeriodCriticalPods: not more than shutdownGracePeriod".to_owned());
        };
        Ok(vec![
            ShutdownGroup { priority: 0, grace: usual },
            ShutdownGroup { priority: SYSTEM_CRITICAL, grace: critical },
        ])
    }
}

fn duration(key: &str, text: &str) -> Result<Duration, String> {
    let seconds = if text == "0" { Some(0.0) } else { go_seconds(text) };
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| format!("{key}: {text:?} is not a duration such as 1m30s"))
}

fn amount(key: &str, text: &str) -> Result<Amount, String> {
    let amount = match text.strip_suffix('%') {
        Some(percent) => {
            percent.parse::<f64>().ok().filter(|p| (0.0..=100.0).contains(p)).map(|p| Amount::Part(p / 100.0))
        }
        None => whole(text).map(Amount::Units),
    };
    amount.ok_or_else(|| format!("{key}: {text:?} is neither a quantity nor a percentage"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(json: serde_json::Value) -> Result<NodeSettings, String> {
        serde_json::from_value::<NodeOptions>(json).unwrap().settings()
    }

    #[test]
    fn words_become_settings() {
        let got = of(serde_json::json!({
            "maxPods": 30, "podPidsLimit": -1, "reserved": {"cpu": "500m", "memory": "1Gi"},
            "evictionHard": {"pid.available": "10%"}, "evictionSoft": {"memory.available": "1Gi"},
            "evictionSoftGracePeriod": {"memory.available": "1m30s"},
            "evictionMinimumReclaim": {"memory.available": "64Mi"},
            "shutdownGracePeriod": "1m", "shutdownGracePeriodCriticalPods": "20s"
        }))
        .unwrap();
        assert_eq!((got.max_pods, got.pod_pids), (30, None));
        assert_eq!(got.reserved["cpu"], "500m");
        let soft = Threshold {
            signal: Signal::MemoryAvailable,
            least: Amount::Units(1 << 30),
            grace: Some(Duration::from_secs(90)),
            reclaim: Amount::Units(64 << 20),
        };
        let hard = Threshold {
            signal: Signal::PidAvailable,
            least: Amount::Part(0.1),
            grace: None,
            reclaim: Amount::Units(0),
        };
        assert_eq!(got.eviction, [hard, soft]);
        let groups: Vec<(i32, u64)> = got.shutdown.iter().map(|g| (g.priority, g.grace.as_secs())).collect();
        assert_eq!(groups, [(0, 40), (SYSTEM_CRITICAL, 20)]);
    }

    #[test]
    fn mistakes_name_their_key() {
        for (json, key) in [
            (serde_json::json!({"maxPods": 0}), "node.maxPods"),
            (serde_json::json!({"reserved": {"cpu": "many"}}), "node.reserved.cpu"),
            (serde_json::json!({"evictionHard": {"nodefs.available": "101%"}}), "node.evictionHard.nodefs.available"),
            (serde_json::json!({"evictionSoft": {"pid.available": "1%"}}), "evictionSoftGracePeriod.pid.available"),
            (serde_json::json!({"shutdownGracePeriod": "5"}), "node.shutdownGracePeriod"),
            (serde_json::json!({"shutdownGracePeriod": "5s"}), "node.shutdownGracePeriodCriticalPods"),
            (serde_json::json!({"containerLogMaxFiles": 1}), "node.containerLogMaxFiles"),
        ] {
            let error = of(json).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn groups_of_priorities_are_in_order() {
        let group = |priority: i32, seconds: u64| serde_json::json!({"priority": priority, "shutdownGracePeriodSeconds": seconds});
        let of = |groups: &[serde_json::Value]| of(serde_json::json!({"shutdownGracePeriodByPodPriority": groups}));
        let got = of(&[group(1000, 5), group(0, 9)]).unwrap();
        assert_eq!(got.shutdown.iter().map(|g| g.priority).collect::<Vec<_>>(), [0, 1000]);
        assert!(of(&[group(1, 5), group(1, 9)]).is_err());
    }
}
