//! `/stats/summary`: the node and its pods in the words of the kubelet's stats API (v1alpha1).

use std::collections::BTreeMap;
use std::path::Path;

use dhow_cri::runtime::ImageFsInfo;
use serde_json::{Value, json};

use super::usage::{Run, Usage};

/// A file system's numbers; nothing for one that cannot be asked.
fn file_system(time: &jiff::Timestamp, folder: &Path) -> Value {
    let Ok(stat) = rustix::fs::statvfs(folder) else { return Value::Null };
    json!({
        "time": time,
        "availableBytes": stat.f_bavail * stat.f_frsize,
        "capacityBytes": stat.f_blocks * stat.f_frsize,
        "usedBytes": (stat.f_blocks - stat.f_bfree) * stat.f_frsize,
        "inodesFree": stat.f_ffree,
        "inodes": stat.f_files,
        "inodesUsed": stat.f_files - stat.f_ffree,
    })
}

fn image_file_system(time: &jiff::Timestamp, info: &ImageFsInfo) -> Value {
    json!({
        "time": time,
        "availableBytes": info.available_bytes,
        "capacityBytes": info.capacity_bytes,
        "usedBytes": info.used_bytes,
        "inodesFree": info.inodes_free,
        "inodes": info.inodes,
        "inodesUsed": info.inodes_used,
    })
}

fn started(at: Option<std::time::SystemTime>) -> Value {
    at.map_or(Value::Null, |at| json!(crate::status::time(at)))
}

/// Everything measured at one time.
pub fn of(node: &str, root_dir: &Path, images: Option<&ImageFsInfo>, usage: &Usage) -> Value {
    let time = &usage.at;
    let cpu = |id: Option<&str>, total: u64, speed: Option<u64>| {
        let speed = speed.or_else(|| usage.speeds.get(id?).copied());
        json!({"time": time, "usageNanoCores": speed, "usageCoreNanoSeconds": total})
    };
    let memory =
        |used: u64, working_set: u64| json!({"time": time, "usageBytes": used, "workingSetBytes": working_set});
    let mut pods: BTreeMap<&str, Vec<&Run>> = BTreeMap::new();
    for run in &usage.runs {
        pods.entry(run.sandbox.pod.uid.as_str()).or_default().push(run);
    }
    let pods: Vec<Value> = pods
        .into_iter()
        .map(|(uid, runs)| {
            let sum = |of: fn(&Run) -> u64| runs.iter().map(|run| of(run)).sum::<u64>();
            let speed = runs.iter().map(|run| usage.speeds.get(&run.container.id).copied()).sum::<Option<u64>>();
            let containers: Vec<Value> = runs
                .iter()
                .map(|Run { container, stats, .. }| {
                    json!({
                        "name": container.name,
                        "startTime": started(container.started_at),
                        "cpu": cpu(Some(&container.id), stats.cpu_usage_core_nanos, None),
                        "memory": memory(stats.memory_usage_bytes, stats.memory_working_set_bytes),
                    })
                })
                .collect();
            let first = runs.first();
            let pod = first.map(|run| &run.sandbox.pod);
            json!({
                "podRef": {"name": pod.map(|p| &p.name), "namespace": pod.map(|p| &p.namespace), "uid": uid},
                "startTime": started(first.map(|run| run.sandbox.created_at)),
                "containers": containers,
                "cpu": cpu(None, sum(|run| run.stats.cpu_usage_core_nanos), speed),
                "memory": memory(sum(|run| run.stats.memory_usage_bytes), sum(|run| run.stats.memory_working_set_bytes)),
                "process_stats": {"process_count": sum(|run| run.stats.pids)},
            })
        })
        .collect();
    let machine = &usage.node;
    let mut memory = memory(machine.working_set(), machine.working_set());
    memory["availableBytes"] = json!(machine.memory_available);
    let booted = jiff::Timestamp::from_second(machine.booted_at).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    json!({
        "node": {
            "nodeName": node,
            "startTime": booted,
            "cpu": cpu(Some(""), machine.cpu_nanos, None),
            "memory": memory,
            "fs": file_system(time, root_dir),
            "runtime": {"imageFs": images.map(|images| image_file_system(time, images))},
            "rlimit": {"time": time, "maxpid": machine.max_processes, "curproc": machine.processes},
        },
        "pods": pods,
    })
}
