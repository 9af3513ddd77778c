//! Keys of a service that Kubernetes has nothing for, each with the reason. Whatever is in no table at all is told too,
//! because nobody reads it.

use super::project::Service;

const REASONS: &[(&str, &str)] = &[
    ("attach", "deploy follows roll-outs, not output: see `kubectl logs`"),
    ("blkio_config", "the bandwidth of disks is not shared out"),
    ("cgroup_parent", "a pod's control group is its own"),
    ("cpu_percent", "is Windows'"),
    ("cpu_rt_period", "real-time scheduling is not given to pods"),
    ("cpu_rt_runtime", "real-time scheduling is not given to pods"),
    ("cpuset", "processors are given by the node (its CPU manager), not chosen"),
    ("credential_spec", "is Windows'"),
    ("develop", "is for work on the code; what is deployed does not watch it"),
    ("device_cgroup_rules", "only a privileged container opens devices"),
    ("external_links", "containers outside of the project are reached by their own Services"),
    ("isolation", "is Windows'"),
    ("logging", "the node keeps the output, turns it over, and `kubectl logs` shows it"),
    ("mac_address", "the pod network chooses it"),
    ("mem_swappiness", "swapping is set for the node"),
    ("memswap_limit", "swapping is set for the node"),
    ("models", "no models are run"),
    ("oom_kill_disable", "a container over its limit is ended"),
    ("oom_score_adj", "follows from requests and limits"),
    ("pids_limit", "the number of processes is limited for all pods of a node, by its configuration"),
    ("pull_refresh_after", "nodes do not look by the clock"),
    ("ulimits", "a pod has the node's limits"),
    ("use_api_socket", "no engine's socket is given to pods"),
];

pub fn warn(service: &Service<'_>) {
    for (key, reason) in REASONS {
        if let Some(view) = service.get(key) {
            view.warn(*reason);
        }
    }
    // Services whose profiles are not active are gone already.
    if let Some(profiles) = service.get("profiles") {
        profiles.items().for_each(drop);
    }
}
