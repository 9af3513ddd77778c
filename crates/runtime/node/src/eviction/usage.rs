//! What the node has left, and what its pods use of it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dhow_cri::runtime::DiskUsage;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::decide::{Candidate, Reading, Readings};
use crate::config;
use crate::resources::{SYSTEM_CRITICAL, amount, request, whole};
use crate::server::NodeUsage;
use crate::settings::Signal;
use crate::shared::Shared;

pub fn readings(shared: &Shared) -> Readings {
    let node = NodeUsage::read();
    let memory = Reading { available: node.memory_available, capacity: node.memory_total };
    let pids = Reading { available: node.max_processes.saturating_sub(node.processes), capacity: node.max_processes };
    let mut out = Readings::from([(Signal::MemoryAvailable, memory), (Signal::PidAvailable, pids)]);
    if let Ok(stat) = rustix::fs::statvfs(&shared.config.root_dir) {
        let size = stat.f_frsize;
        let disk = Reading { available: stat.f_bavail * size, capacity: stat.f_blocks * size };
        out.insert(Signal::DiskAvailable, disk);
        // Some file systems make inodes as they go and report none.
        if stat.f_files > 0 {
            out.insert(Signal::InodesFree, Reading { available: stat.f_favail, capacity: stat.f_files });
        }
    }
    out
}

/// Bytes and inodes below a directory, without what other file systems hold.
pub fn below(root: &Path) -> (u64, u64) {
    let Ok(top) = std::fs::symlink_metadata(root) else { return (0, 0) };
    let (mut bytes, mut inodes, mut seen) = (0, 0, BTreeSet::new());
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        // A file with several names counts once.
        if meta.dev() != top.dev() || (meta.nlink() > 1 && !meta.is_dir() && !seen.insert(meta.ino())) {
            continue;
        }
        bytes += meta.blocks() * 512;
        inodes += 1;
        if meta.is_dir() {
            left.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    (bytes, inodes)
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// Where a pod's own files are: its volumes on disk, and its logs.
fn folders(shared: &Shared, pod: &Pod) -> [PathBuf; 2] {
    let root = &shared.config.root_dir;
    [root.join("pods").join(uid(pod)), config::log_directory(root, &config::identity(pod, 0))]
}

/// What containers wrote to their own file systems, by their pods' uids and their names.
pub type Layers = BTreeMap<String, BTreeMap<String, DiskUsage>>;

/// Looks at the pods that are wanted; what cannot be told counts nothing.
pub async fn layers(shared: &Shared, wanted: &BTreeSet<&str>) -> Layers {
    let mut found = Layers::new();
    let runtime = &shared.config.runtime;
    if wanted.is_empty() {
        return found;
    }
    let (Ok(sandboxes), Ok(containers)) = (runtime.list_sandboxes().await, runtime.list_containers().await) else {
        return found;
    };
    let uids: BTreeMap<String, String> = sandboxes.into_iter().map(|one| (one.id, one.pod.uid)).collect();
    for container in containers {
        let Some(uid) = uids.get(&container.sandbox_id).filter(|uid| wanted.contains(uid.as_str())) else { continue };
        if let Ok(Some(usage)) = runtime.writable_layer(&container.id).await {
            let sum = found.entry(uid.clone()).or_default().entry(container.name).or_default();
            sum.bytes += usage.bytes;
            sum.inodes += usage.inodes;
        }
    }
    found
}

fn disk(shared: &Shared, pod: &Pod, layers: &Layers) -> (u64, u64) {
    let own = layers.get(uid(pod)).into_iter().flatten().map(|(_, usage)| (usage.bytes, usage.inodes));
    let all = folders(shared, pod).into_iter().map(|folder| below(&folder)).chain(own);
    all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

/// Pods that say how much disk a container may use, whose containers are to be looked at.
pub fn limits_disk(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| &spec.containers).any(|container| disk_limit(container).is_some())
}

fn disk_limit(container: &Container) -> Option<u64> {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    amount(limits, "ephemeral-storage").and_then(|limit| u64::try_from(limit / 1000).ok())
}

/// What a pod uses of what is short; `None` for one that must stay.
pub fn candidate<'a>(shared: &Shared, pod: &'a Pod, signal: Signal, layers: &Layers) -> Option<Candidate<'a>> {
    let spec = pod.spec.as_ref()?;
    let priority = spec.priority.unwrap_or(0);
    if priority >= SYSTEM_CRITICAL || crate::static_pods::mirrored(pod).is_some() {
        return None;
    }
    let asked = |name: &str| u64::try_from(crate::resources::pod_request(spec, name) / 1000).unwrap_or(0);
    let (usage, request) = match signal {
        Signal::MemoryAvailable => {
            let usage = shared.cgroups.as_ref().map(|groups| groups.usage(spec, uid(pod)).working_set_bytes);
            (usage.unwrap_or(0), asked("memory"))
        }
        Signal::PidAvailable => (shared.cgroups.as_ref().map_or(0, |groups| groups.usage(spec, uid(pod)).pids), 0),
        Signal::DiskAvailable => (disk(shared, pod, layers).0, asked("ephemeral-storage")),
        Signal::InodesFree => (disk(shared, pod, layers).1, 0),
    };
    Some(Candidate { pod, priority, usage, request, greedy: greedy(spec, signal, usage) })
}

/// A pod's only container used what the pod did; of several, none can be told from outside.
fn greedy(spec: &PodSpec, signal: Signal, usage: u64) -> Vec<(String, u64, u64)> {
    let [only] = spec.containers.as_slice() else { return Vec::new() };
    let asked = request(only, signal.resource()).map_or(0, |m| u64::try_from(m / 1000).unwrap_or(0));
    if usage > asked { vec![(only.name.clone(), usage, asked)] } else { Vec::new() }
}

/// Why a pod has to go that uses more disk than its own limits allow.
pub fn over_its_limit(shared: &Shared, pod: &Pod, layers: &Layers) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let volumes = shared.config.root_dir.join("pods").join(uid(pod)).join("volumes");
    for volume in spec.volumes.iter().flatten() {
        let Some(empty) = volume.empty_dir.as_ref().filter(|e| e.medium.as_deref().is_none_or(str::is_empty)) else {
            continue;
        };
        let Some(limit) = &empty.size_limit else { continue };
        let most = whole(&limit.0).filter(|most| *most > 0)?;
        if below(&volumes.join(&volume.name)).0 > most {
            return Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {:?}. ", volume.name, limit.0));
        }
    }
    if let Some(total) = spec.containers.iter().map(disk_limit).sum::<Option<u64>>()
        && disk(shared, pod, layers).0 > total
    {
        let quantity = super::decide::show_bytes(total);
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {quantity}. "));
    }
    let [_, logs] = folders(shared, pod);
    spec.containers.iter().find_map(|container| {
        let limit = disk_limit(container)?;
        let layer = layers.get(uid(pod)).and_then(|own| own.get(&container.name)).map_or(0, |usage| usage.bytes);
        let used = layer + below(&logs.join(&container.name)).0;
        (used > limit).then(|| {
            let (name, quantity) = (&container.name, super::decide::show_bytes(limit));
            format!("Container {name} exceeded its local ephemeral storage limit {quantity:?}. ")
        })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_once_and_links_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), vec![1; 64 << 10]).unwrap();
        std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("c")).unwrap();
        let (bytes, inodes) = below(dir.path());
        assert_eq!(inodes, 3);
        assert!((64 << 10..128 << 10).contains(&bytes), "{bytes}");
        assert_eq!(below(&dir.path().join("absent")), (0, 0));
    }
}
