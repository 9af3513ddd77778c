//! What the node says of itself: pods, numbers, a summary.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use dhow_cri::runtime::{ContainerState, ContainerStats, ContainerStatus, SandboxStatus};
use dhow_cri::{Error, Runtime};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

pub fn pods(pods: &[Arc<Pod>]) -> Value {
    let items: Vec<Value> = pods.iter().filter_map(|pod| serde_json::to_value(pod.as_ref()).ok()).collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

struct Run {
    sandbox: SandboxStatus,
    container: ContainerStatus,
    stats: ContainerStats,
}

/// The containers that run now; one that ends while it is asked is left out.
async fn running(runtime: &dyn Runtime) -> Result<Vec<Run>, Error> {
    let sandboxes: BTreeMap<_, _> = runtime.list_sandboxes().await?.into_iter().map(|s| (s.id.clone(), s)).collect();
    let mut out = Vec::new();
    for container in runtime.list_containers().await? {
        let Some(sandbox) = sandboxes.get(&container.sandbox_id) else { continue };
        if container.state != ContainerState::Running {
            continue;
        }
        if let Ok(stats) = runtime.container_stats(&container.id).await {
            out.push(Run { sandbox: sandbox.clone(), container, stats });
        }
    }
    Ok(out)
}

pub async fn metrics(runtime: &dyn Runtime) -> Result<String, Error> {
    let runs = running(runtime).await?;
    let mut out = String::new();
    let _ = writeln!(out, "# TYPE kubelet_running_containers gauge\nkubelet_running_containers {}", runs.len());
    type Metric = (&'static str, &'static str, fn(&ContainerStats) -> f64);
    let metrics: [Metric; 2] = [
        ("container_cpu_usage_seconds_total", "counter", |s| s.cpu_usage_core_nanos as f64 / 1e9),
        ("container_memory_working_set_bytes", "gauge", |s| s.memory_working_set_bytes as f64),
    ];
    for (name, kind, value) in metrics {
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for Run { sandbox, container, stats } in &runs {
            // Names of pods and containers are DNS labels, so nothing needs an escape.
            let (ns, pod) = (&sandbox.pod.namespace, &sandbox.pod.name);
            let labels = format!("container=\"{}\",namespace=\"{ns}\",pod=\"{pod}\"", container.name);
            let _ = writeln!(out, "{name}{{{labels}}} {}", value(stats));
        }
    }
    Ok(out)
}

pub async fn summary(node: &str, runtime: &dyn Runtime) -> Result<Value, Error> {
    let time = jiff::Timestamp::now();
    let usage = |cpu: u64, memory: u64, working_set: u64| {
        let cpu = json!({"time": time, "usageCoreNanoSeconds": cpu});
        let memory = json!({"time": time, "usageBytes": memory, "workingSetBytes": working_set});
        (cpu, memory)
    };
    let mut pods: BTreeMap<String, Vec<Run>> = BTreeMap::new();
    for run in running(runtime).await? {
        pods.entry(run.sandbox.pod.uid.clone()).or_default().push(run);
    }
    let pods: Vec<Value> = pods
        .into_iter()
        .map(|(uid, runs)| {
            let (mut cpu, mut memory, mut working_set) = (0, 0, 0);
            let mut containers = Vec::new();
            for Run { container, stats, .. } in &runs {
                cpu += stats.cpu_usage_core_nanos;
                memory += stats.memory_usage_bytes;
                working_set += stats.memory_working_set_bytes;
                let own = usage(stats.cpu_usage_core_nanos, stats.memory_usage_bytes, stats.memory_working_set_bytes);
                containers.push(json!({"name": container.name, "cpu": own.0, "memory": own.1}));
            }
            let pod = runs.first().map(|run| &run.sandbox.pod);
            let total = usage(cpu, memory, working_set);
            json!({
                "podRef": {"name": pod.map(|p| &p.name), "namespace": pod.map(|p| &p.namespace), "uid": uid},
                "containers": containers,
                "cpu": total.0,
                "memory": total.1,
            })
        })
        .collect();
    Ok(json!({"node": {"nodeName": node}, "pods": pods}))
}
