//! The node's numbers in the Prometheus text format, under the names that dashboards of Kubernetes look for.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use super::usage::{Run, Usage};
use crate::shared::ProbeKey;

/// A text under way. Values of labels here are names of objects, images or numbers: nothing needs an escape.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.line(name, "", value);
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn started(run: &Run) -> f64 {
    let since = run.container.started_at.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// `/metrics`: the agent itself.
pub fn agent(node: &str, usage: &Usage) -> String {
    let mut page = Page::default();
    page.family("kubelet_node_name", "gauge", "The node's name. The count is always 1.");
    page.line("kubelet_node_name", &format!("node=\"{node}\""), 1);
    page.one("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox", usage.pods);
    page.family("kubelet_running_containers", "gauge", "Number of containers by state");
    for (state, count) in &usage.states {
        page.line("kubelet_running_containers", &format!("container_state=\"{state}\""), count);
    }
    page.0
}

/// What images brought and took, a part of `/metrics`.
pub fn images(traffic: dhow_image::Traffic) -> String {
    let mut page = Page::default();
    let name = "dhow_image_fetched_bytes_total";
    page.family(name, "counter", "Bytes of images that were fetched, by where from.");
    page.line(name, "from=\"registry\"", traffic.from_registries);
    page.line(name, "from=\"node\"", traffic.from_nodes);
    let help = "Bytes of images that other nodes got from this one.";
    page.one("dhow_image_given_bytes_total", "counter", help, traffic.to_nodes);
    page.0
}

/// The volumes of claims, a part of `/metrics`; those of several pods once.
pub fn claims(volumes: &[Value]) -> String {
    let mut page = Page::default();
    for (name, field, help) in [
        ("capacity_bytes", "capacityBytes", "Capacity in bytes of the volume"),
        ("available_bytes", "availableBytes", "Number of available bytes in the volume"),
        ("used_bytes", "usedBytes", "Number of used bytes in the volume"),
        ("inodes", "inodes", "Maximum number of inodes in the volume"),
        ("inodes_free", "inodesFree", "Number of free inodes in the volume"),
        ("inodes_used", "inodesUsed", "Number of used inodes in the volume"),
    ] {
        let name = format!("kubelet_volume_stats_{name}");
        let text = |volume: &Value, field: &str| volume["pvcRef"][field].as_str().unwrap_or_default().to_owned();
        let known: BTreeMap<_, _> = volumes
            .iter()
            .filter_map(|one| Some(((text(one, "namespace"), text(one, "name")), one[field].as_u64()?)))
            .collect();
        if !known.is_empty() {
            page.family(&name, "gauge", help);
        }
        for ((namespace, claim), value) in known {
            let labels = format!("namespace=\"{namespace}\",persistentvolumeclaim=\"{claim}\"");
            page.line(&name, &labels, value);
        }
    }
    page.0
}

/// A metric of containers: name, kind, help and value.
type Metric = (&'static str, &'static str, &'static str, fn(&Run) -> f64);

/// `/metrics/resource`: what schedulers and autoscalers count with.
pub fn resource(usage: &Usage) -> String {
    let mut page = Page::default();
    let containers: [Metric; 3] = [
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the container in core-seconds",
            |run| seconds(run.stats.cpu_usage_core_nanos),
        ),
        ("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes", |run| {
            run.stats.memory_working_set_bytes as f64
        }),
        ("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds", started),
    ];
    for (name, kind, help, value) in containers {
        page.family(name, kind, help);
        for run in &usage.runs {
            let (pod, container) = (&run.sandbox.pod, &run.container.name);
            let labels = format!("container=\"{container}\",namespace=\"{}\",pod=\"{}\"", pod.namespace, pod.name);
            page.line(name, &labels, value(run));
        }
    }
    let pods: [Metric; 2] = [
        ("pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod in core-seconds", |run| {
            seconds(run.stats.cpu_usage_core_nanos)
        }),
        ("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes", |run| {
            run.stats.memory_working_set_bytes as f64
        }),
    ];
    for (name, kind, help, value) in pods {
        page.family(name, kind, help);
        let mut sums: BTreeMap<(&str, &str), f64> = BTreeMap::new();
        for run in &usage.runs {
            *sums.entry((&run.sandbox.pod.namespace, &run.sandbox.pod.name)).or_default() += value(run);
        }
        for ((namespace, pod), sum) in sums {
            page.line(name, &format!("namespace=\"{namespace}\",pod=\"{pod}\""), sum);
        }
    }
    let node = &usage.node;
    let help = "Cumulative cpu time consumed by the node in core-seconds";
    page.one("node_cpu_usage_seconds_total", "counter", help, seconds(node.cpu_nanos));
    let help = "Current working set of the node in bytes";
    page.one("node_memory_working_set_bytes", "gauge", help, node.working_set());
    page.one(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
        0,
    );
    page.0
}

/// `/metrics/cadvisor`: containers one by one.
pub fn cadvisor(usage: &Usage) -> String {
    let mut page = Page::default();
    let metrics: [Metric; 5] = [
        ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", |run| {
            seconds(run.stats.cpu_usage_core_nanos)
        }),
        ("container_memory_usage_bytes", "gauge", "Current memory usage in bytes, including all memory.", |run| {
            run.stats.memory_usage_bytes as f64
        }),
        ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |run| {
            run.stats.memory_working_set_bytes as f64
        }),
        ("container_threads", "gauge", "Number of threads running inside the container.", |run| run.stats.pids as f64),
        ("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds.", started),
    ];
    for (name, kind, help, value) in metrics {
        page.family(name, kind, help);
        for run in &usage.runs {
            let (pod, container) = (&run.sandbox.pod, &run.container);
            let cpu = if name == "container_cpu_usage_seconds_total" { "cpu=\"total\"," } else { "" };
            let labels = format!(
                "container=\"{}\",{cpu}id=\"/{}\",image=\"{}\",name=\"{}\",namespace=\"{}\",pod=\"{}\"",
                container.name, container.id, container.image_ref, container.id, pod.namespace, pod.name
            );
            page.line(name, &labels, value(run));
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    page.one("machine_cpu_cores", "gauge", "Number of logical CPU cores.", cores);
    page.one("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.", usage.node.memory_total);
    page.0
}

/// `/metrics/probes`: checks so far.
pub fn probes(counts: &BTreeMap<ProbeKey, u64>) -> String {
    let mut page = Page::default();
    let name = "prober_probe_total";
    page.family(
        name,
        "counter",
        "Cumulative number of a liveness, readiness or startup probe for a container by result.",
    );
    for ((namespace, pod, container, kind, passed), count) in counts {
        let result = if *passed { "successful" } else { "failed" };
        let kind = kind.name();
        let labels = format!(
            "container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod}\",probe_type=\"{kind}\",result=\"{result}\""
        );
        page.line(name, &labels, count);
    }
    page.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_of_several_pods_is_told_of_once() {
        let volume = json!({"pvcRef": {"namespace": "n", "name": "c"}, "usedBytes": 7});
        let page = claims(&[volume.clone(), volume]);
        assert_eq!(page.lines().count(), 3, "{page}");
        assert!(page.ends_with("kubelet_volume_stats_used_bytes{namespace=\"n\",persistentvolumeclaim=\"c\"} 7\n"));
    }
}
