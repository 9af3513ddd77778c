//! `/stats/summary`: the node and its pods in the words of the kubelet's stats API (v1alpha1).

use std::collections::BTreeMap;
use std::path::Path;

use dhow_cri::links::LinkStats;
use dhow_cri::runtime::{DiskUsage, ImageFsInfo};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::usage::{Run, Usage};
use crate::disk::{Disks, FileSystem, PodDisk};

/// A file system's numbers, with what somebody takes of it in the place of what all take; nothing for one that cannot be
/// asked.
fn file_system(time: Timestamp, all: Option<FileSystem>, used: Option<DiskUsage>) -> Value {
    let Some(all) = all else { return Value::Null };
    let used = used.unwrap_or(DiskUsage { bytes: all.used, inodes: all.inodes.saturating_sub(all.inodes_free) });
    json!({
        "time": time,
        "availableBytes": all.available,
        "capacityBytes": all.capacity,
        "usedBytes": used.bytes,
        "inodesFree": all.inodes_free,
        "inodes": all.inodes,
        "inodesUsed": used.inodes,
    })
}

fn of_images(info: &ImageFsInfo) -> FileSystem {
    FileSystem {
        capacity: info.capacity_bytes,
        available: info.available_bytes,
        used: info.used_bytes,
        inodes: info.inodes,
        inodes_free: info.inodes_free,
    }
}

/// The volumes without a driver.
pub fn volumes(disk: &PodDisk, namespace: &str) -> Vec<Value> {
    let one = |(name, volume): (&String, &crate::disk::VolumeDisk)| {
        let mut out = file_system(disk.at, volume.file_system, Some(volume.used));
        out["name"] = json!(name);
        if let Some(claim) = &volume.claim {
            out["pvcRef"] = json!({"name": claim, "namespace": namespace});
        }
        out
    };
    disk.volumes.iter().map(one).collect()
}

/// What passed all links, with the one of that name in front.
fn network(time: Timestamp, links: Option<&Vec<LinkStats>>, first: &str) -> Value {
    let Some(links) = links else { return Value::Null };
    let one = |link: &LinkStats| {
        json!({
            "name": link.name,
            "rxBytes": link.received_bytes,
            "rxErrors": link.received_errors,
            "txBytes": link.sent_bytes,
            "txErrors": link.sent_errors,
        })
    };
    let default = links.iter().find(|link| link.name == first);
    let mut out = default.map_or_else(|| json!({"name": ""}), one);
    out["time"] = json!(time);
    out["interfaces"] = links.iter().map(one).collect();
    out
}

/// The link of the default route, from `/proc/net/route`.
fn default_link(routes: &str) -> &str {
    let lines = routes.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut found =
        lines.filter(|fields| fields.get(1) == Some(&"00000000")).filter_map(|fields| fields.first().copied());
    found.next().unwrap_or("eth0")
}

fn started(at: Option<std::time::SystemTime>) -> Value {
    at.map_or(Value::Null, |at| json!(crate::status::time(at)))
}

/// Everything measured at one time.
pub fn of(node: &str, root_dir: &Path, images: Option<&ImageFsInfo>, usage: &Usage, disks: &Disks) -> Value {
    let time = usage.at;
    let node_disk = FileSystem::of(root_dir);
    // Layers are beside the images that they are upon.
    let image_disk = images.map(of_images);
    let cpu = |id: Option<&str>, total: u64, speed: Option<u64>| {
        let speed = speed.or_else(|| usage.speeds.get(id?).copied());
        json!({"time": time, "usageNanoCores": speed, "usageCoreNanoSeconds": total})
    };
    let memory_of =
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
            let disk = disks.get(uid).map(AsRef::as_ref);
            // What is not known yet is left out.
            let taken = |of: fn(&PodDisk) -> &BTreeMap<String, DiskUsage>, name: &str, all: Option<FileSystem>| {
                let used = disk.and_then(|disk| of(disk).get(name).map(|used| (disk.at, *used)));
                used.map_or(Value::Null, |(at, used)| file_system(at, all, Some(used)))
            };
            let containers: Vec<Value> = runs
                .iter()
                .map(|Run { container, stats, .. }| {
                    json!({
                        "name": container.name,
                        "startTime": started(container.started_at),
                        "cpu": cpu(Some(&container.id), stats.cpu_usage_core_nanos, None),
                        "memory": memory_of(stats.memory_usage_bytes, stats.memory_working_set_bytes),
                        "rootfs": taken(|disk| &disk.layers, &container.name, image_disk),
                        "logs": taken(|disk| &disk.logs, &container.name, node_disk),
                    })
                })
                .collect();
            let first = runs.first();
            let pod = first.map(|run| &run.sandbox.pod);
            let namespace = pod.map_or("", |pod| &pod.namespace);
            json!({
                "podRef": {"name": pod.map(|p| &p.name), "namespace": namespace, "uid": uid},
                "startTime": started(first.map(|run| run.sandbox.created_at)),
                "containers": containers,
                "cpu": cpu(None, sum(|run| run.stats.cpu_usage_core_nanos), speed),
                "network": network(time, first.and_then(|run| usage.links.get(&run.sandbox.id)), "eth0"),
                "memory": memory_of(sum(|run| run.stats.memory_usage_bytes), sum(|run| run.stats.memory_working_set_bytes)),
                "volume": disk.map(|disk| volumes(disk, namespace)).unwrap_or_default(),
                "ephemeral-storage":
                    disk.map_or(Value::Null, |disk| file_system(disk.at, node_disk, Some(disk.total()))),
                "process_stats": {"process_count": sum(|run| run.stats.pids)},
            })
        })
        .collect();
    let machine = &usage.node;
    let mut memory = memory_of(machine.working_set(), machine.working_set());
    memory["availableBytes"] = json!(machine.memory_available);
    let image_used = images.map(|images| DiskUsage { bytes: images.used_bytes, inodes: images.inodes_used });
    let layers = disks.values().flat_map(|disk| disk.layers.values().copied());
    let systems: Vec<Value> = usage
        .systems
        .iter()
        .map(|system| {
            json!({
                "name": system.name,
                "startTime": started(system.started),
                "cpu": cpu(Some(system.name), system.cpu_nanos, None),
                "memory": memory_of(system.memory_bytes, system.working_set_bytes),
            })
        })
        .collect();
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let booted = jiff::Timestamp::from_second(machine.booted_at).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    json!({
        "node": {
            "nodeName": node,
            "systemContainers": systems,
            "startTime": booted,
            "cpu": cpu(Some(""), machine.cpu_nanos, None),
            "memory": memory,
            "network": network(time, usage.links.get(""), default_link(&routes)),
            "fs": file_system(time, node_disk, None),
            "runtime": {
                "imageFs": file_system(time, image_disk, image_used),
                "containerFs": file_system(time, image_disk, Some(crate::disk::sum(layers))),
            },
            "rlimit": {"time": time, "maxpid": machine.max_processes, "curproc": machine.processes},
        },
        "pods": pods,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_names_the_nodes_link() {
        let routes = "Iface\tDestination\tGateway\ndhow0\t0000A8C0\t00000000\nens3\t00000000\t0100A8C0\n";
        assert_eq!(default_link(routes), "ens3");
        assert_eq!(default_link(""), "eth0");
    }

    #[test]
    fn links_are_told_with_the_first_in_front() {
        let link = |name: &str, bytes| LinkStats { name: name.into(), received_bytes: bytes, ..LinkStats::default() };
        let out = network(Timestamp::UNIX_EPOCH, Some(&vec![link("a", 1), link("eth0", 2)]), "eth0");
        assert_eq!((out["name"].as_str(), out["rxBytes"].as_u64()), (Some("eth0"), Some(2)));
        assert_eq!(out["interfaces"][0]["rxBytes"], 1);
        assert_eq!(network(Timestamp::UNIX_EPOCH, None, "eth0"), Value::Null);
    }
}
