//! What an administrator may set of the node agent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::options::NodeOptions;

/// A limit of something the node runs out of: an amount, or a part of what it has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// Bytes, inodes or processes.
    Units(u64),
    /// 0.0 to 1.0.
    Part(f64),
}

impl Amount {
    /// The amount out of what there is.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Units(units) => units,
            // Sizes of machines are far below where a float loses whole numbers.
            Self::Part(part) => (capacity as f64 * part) as u64,
        }
    }
}

/// What is watched for running out, in the words of the kubelet's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Signal {
    MemoryAvailable,
    DiskAvailable,
    InodesFree,
    /// Of the file system that images and what containers write are on.
    ImageDiskAvailable,
    ImageInodesFree,
    PidAvailable,
}

/// When pods have to go.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    /// Less than this is too little.
    pub least: Amount,
    /// How long it may be too little; none at all for a hard threshold.
    pub grace: Option<Duration>,
    /// What is freed beyond the threshold, once something has to be.
    pub reclaim: Amount,
}

/// Pods of this priority, and of higher ones up to the next group's, end together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownGroup {
    pub priority: i32,
    pub grace: Duration,
}

#[derive(Debug, Clone)]
pub struct NodeSettings {
    pub max_pods: u32,
    /// Processes of one pod; `None` leaves it to the kernel.
    pub pod_pids: Option<i64>,
    /// Kept for the system and this agent: `cpu`, `memory`, `ephemeral-storage` as quantities.
    pub reserved: BTreeMap<String, String>,
    pub eviction: Vec<Threshold>,
    /// The longest grace of a pod evicted by a soft threshold.
    pub eviction_grace: Duration,
    /// How long a pressure is still reported after it is over.
    pub pressure_transition: Duration,
    pub allowed_unsafe_sysctls: Vec<String>,
    /// A directory of pod manifests that this node runs by itself.
    pub static_pods: Option<PathBuf>,
    /// How long pods get when the machine shuts down, the least important first; nothing for no shutdown in order.
    pub shutdown: Vec<ShutdownGroup>,
    /// Top control group of the runtime, where the groups of pods are this agent's to keep.
    pub cgroup_root: Option<String>,
}

impl NodeSettings {
    /// In the words of the kubelet's configuration, as far as it has words for them.
    pub fn shown(&self) -> serde_json::Value {
        let amount = |amount: Amount| match amount {
            Amount::Units(units) => units.to_string(),
            Amount::Part(part) => format!("{}%", part * 100.0),
        };
        let name = |signal| match signal {
            Signal::MemoryAvailable => "memory.available",
            Signal::DiskAvailable => "nodefs.available",
            Signal::InodesFree => "nodefs.inodesFree",
            Signal::ImageDiskAvailable => "imagefs.available",
            Signal::ImageInodesFree => "imagefs.inodesFree",
            Signal::PidAvailable => "pid.available",
        };
        let thresholds = |soft: bool| -> BTreeMap<&str, String> {
            let chosen = self.eviction.iter().filter(|t| t.grace.is_some() == soft);
            chosen.map(|t| (name(t.signal), amount(t.least))).collect()
        };
        let group = |group: &ShutdownGroup| {
            serde_json::json!({
                "priority": group.priority,
                "shutdownGracePeriodSeconds": group.grace.as_secs(),
            })
        };
        let groups: Vec<serde_json::Value> = self.shutdown.iter().map(group).collect();
        serde_json::json!({
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "maxPods": self.max_pods,
            "podPidsLimit": self.pod_pids.unwrap_or(-1),
            "kubeReserved": self.reserved,
            "evictionHard": thresholds(false),
            "evictionSoft": thresholds(true),
            "evictionMaxPodGracePeriod": self.eviction_grace.as_secs(),
            "evictionPressureTransitionPeriod": format!("{}s", self.pressure_transition.as_secs()),
            "allowedUnsafeSysctls": self.allowed_unsafe_sysctls,
            "staticPodPath": self.static_pods,
            "shutdownGracePeriodByPodPriority": groups,
        })
    }
}

impl Default for NodeSettings {
    /// Those of a node that nobody configured.
    fn default() -> Self {
        // A test holds the default options valid.
        NodeOptions::default().settings().unwrap_or_else(|error| unreachable!("{error}"))
    }
}
