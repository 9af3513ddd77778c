//! What the node has left, and what its pods use of it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use dhow_cri::runtime::DiskUsage;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};

use super::decide::{Candidate, Reading, Readings};
use crate::disk::{Disks, FileSystem, uid};
use crate::resources::{SYSTEM_CRITICAL, amount, request, whole};
use crate::server::NodeUsage;
use crate::settings::Signal;
use crate::shared::Shared;

pub async fn readings(shared: &Shared) -> Readings {
    let node = NodeUsage::read();
    let memory = Reading { available: node.memory_available, capacity: node.memory_total };
    let pids = Reading { available: node.max_processes.saturating_sub(node.processes), capacity: node.max_processes };
    let mut out = Readings::from([(Signal::MemoryAvailable, memory), (Signal::PidAvailable, pids)]);
    if let Some(disk) = FileSystem::of(&shared.config.root_dir) {
        out.insert(Signal::DiskAvailable, Reading { available: disk.available, capacity: disk.capacity });
        // Some file systems make inodes as they go and report none.
        if disk.inodes > 0 {
            out.insert(Signal::InodesFree, Reading { available: disk.inodes_free, capacity: disk.inodes });
        }
    }
    out.extend(of_images(shared).await.unwrap_or_default());
    out
}

/// Of the images' file system; nothing while nobody set a threshold of it.
async fn of_images(shared: &Shared) -> Option<Readings> {
    const OF_IMAGES: [Signal; 2] = [Signal::ImageDiskAvailable, Signal::ImageInodesFree];
    shared.config.settings.eviction.iter().find(|threshold| OF_IMAGES.contains(&threshold.signal))?;
    let images = shared.config.runtime.image_fs_info().await.ok()?;
    let disk = Reading { available: images.available_bytes, capacity: images.capacity_bytes };
    let mut out = Readings::from([(Signal::ImageDiskAvailable, disk)]);
    if images.inodes > 0 {
        out.insert(Signal::ImageInodesFree, Reading { available: images.inodes_free, capacity: images.inodes });
    }
    Some(out)
}

/// Pods that say how much disk they may use, whose files are to be looked at.
pub fn limits_disk(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let sized = spec.volumes.iter().flatten().any(|volume| size_limit(volume).is_some());
    sized || spec.containers.iter().any(|container| disk_limit(container).is_some())
}

/// How much a volume on the node's disk may hold, and how that was written.
fn size_limit(volume: &Volume) -> Option<(u64, &str)> {
    let empty = volume.empty_dir.as_ref().filter(|empty| empty.medium.as_deref().is_none_or(str::is_empty))?;
    let limit = empty.size_limit.as_ref()?.0.as_str();
    whole(limit).filter(|most| *most > 0).map(|most| (most, limit))
}

fn disk_limit(container: &Container) -> Option<u64> {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    amount(limits, "ephemeral-storage").and_then(|limit| u64::try_from(limit / 1000).ok())
}

/// What pods are compared by: where images are on the node's own file system, all that is on it counts.
pub async fn compared_by(shared: &Shared, signal: Signal) -> Signal {
    let own = match signal {
        Signal::ImageDiskAvailable => Signal::DiskAvailable,
        Signal::ImageInodesFree => Signal::InodesFree,
        other => return other,
    };
    let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev()).ok();
    let images = shared.config.runtime.image_fs_info().await.ok().and_then(|images| device(&images.mountpoint));
    if images.is_some_and(|images| Some(images) != device(&shared.config.root_dir)) { signal } else { own }
}

fn disk(pod: &Pod, disks: &Disks) -> DiskUsage {
    disks.get(uid(pod)).map(|disk| disk.total()).unwrap_or_default()
}

/// What a pod's containers wrote to their own file systems.
fn written(pod: &Pod, disks: &Disks) -> DiskUsage {
    disks.get(uid(pod)).map(|disk| crate::disk::sum(disk.layers.values().copied())).unwrap_or_default()
}

/// What a pod uses of what is short; `None` for one that must stay.
pub fn candidate<'a>(shared: &Shared, pod: &'a Pod, signal: Signal, disks: &Disks) -> Option<Candidate<'a>> {
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
        Signal::DiskAvailable => (disk(pod, disks).bytes, asked("ephemeral-storage")),
        Signal::InodesFree => (disk(pod, disks).inodes, 0),
        Signal::ImageDiskAvailable => (written(pod, disks).bytes, asked("ephemeral-storage")),
        Signal::ImageInodesFree => (written(pod, disks).inodes, 0),
    };
    Some(Candidate { pod, priority, usage, request, greedy: greedy(spec, signal, usage) })
}

/// A pod's only container used what the pod did; of several, none can be told from outside. Nobody asks for inodes or
/// processes, so none uses more of them than it asked for.
fn greedy(spec: &PodSpec, signal: Signal, usage: u64) -> Vec<(String, u64, u64)> {
    if matches!(signal.resource(), "inodes" | "pids") {
        return Vec::new();
    }
    let [only] = spec.containers.as_slice() else { return Vec::new() };
    let asked = request(only, signal.resource()).map_or(0, |m| u64::try_from(m / 1000).unwrap_or(0));
    if usage > asked { vec![(only.name.clone(), usage, asked)] } else { Vec::new() }
}

/// Why a pod has to go that uses more disk than its own limits allow.
pub fn over_its_limit(pod: &Pod, disks: &Disks) -> Option<String> {
    let (spec, disk) = (pod.spec.as_ref()?, disks.get(uid(pod))?);
    for volume in spec.volumes.iter().flatten() {
        let Some((most, written)) = size_limit(volume) else { continue };
        if disk.volumes.get(&volume.name).is_some_and(|own| own.used.bytes > most) {
            return Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {written:?}. ", volume.name));
        }
    }
    if let Some(total) = spec.containers.iter().map(disk_limit).sum::<Option<u64>>()
        && disk.total().bytes > total
    {
        let quantity = super::decide::show_bytes(total);
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {quantity}. "));
    }
    spec.containers.iter().find_map(|container| {
        let limit = disk_limit(container)?;
        let of =
            |all: &std::collections::BTreeMap<String, DiskUsage>| all.get(&container.name).map_or(0, |one| one.bytes);
        (of(&disk.layers) + of(&disk.logs) > limit).then(|| {
            let (name, quantity) = (&container.name, super::decide::show_bytes(limit));
            format!("Container {name} exceeded its local ephemeral storage limit {quantity:?}. ")
        })
    })
}
