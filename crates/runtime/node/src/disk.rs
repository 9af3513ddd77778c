//! What pods take of the disk: looked at away from whoever asks, and remembered for those who ask often.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dhow_cri::runtime::{DiskUsage, PodIdentity};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;

use crate::shared::Shared;
use crate::volumes::claim;
use crate::{config, csi, static_pods};

/// What is older is looked at again when somebody asks; every file of the pods is, so this is not for every request.
const FRESH: Duration = Duration::from_secs(60);

/// What a file system has, in bytes and inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    pub capacity: u64,
    /// What an unprivileged process could still write.
    pub available: u64,
    pub used: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

impl FileSystem {
    /// The one that a folder is on; nothing for one that cannot be asked.
    pub fn of(folder: &Path) -> Option<Self> {
        let stat = rustix::fs::statvfs(folder).ok()?;
        let size = stat.f_frsize;
        Some(Self {
            capacity: stat.f_blocks * size,
            available: stat.f_bavail * size,
            used: stat.f_blocks.saturating_sub(stat.f_bfree) * size,
            inodes: stat.f_files,
            inodes_free: stat.f_ffree,
        })
    }
}

/// A volume without a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeDisk {
    pub used: DiskUsage,
    pub file_system: Option<FileSystem>,
    /// The claim that it comes from: its file system is counted, not its files.
    pub claim: Option<String>,
    /// It goes with its pod, and takes the node's disk until then.
    pub ephemeral: bool,
}

/// What a pod takes, by the names of its containers and volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodDisk {
    pub at: jiff::Timestamp,
    /// What containers wrote to their own file systems, as far as the runtime tells.
    pub layers: BTreeMap<String, DiskUsage>,
    pub logs: BTreeMap<String, DiskUsage>,
    pub volumes: BTreeMap<String, VolumeDisk>,
    /// Last words and the like.
    pub rest: DiskUsage,
}

impl PodDisk {
    /// All of it that goes with the pod.
    pub fn total(&self) -> DiskUsage {
        let volumes = self.volumes.values().filter(|volume| volume.ephemeral).map(|volume| volume.used);
        sum(self.layers.values().chain(self.logs.values()).copied().chain(volumes).chain([self.rest]))
    }
}

pub fn sum(all: impl Iterator<Item = DiskUsage>) -> DiskUsage {
    all.fold(DiskUsage::default(), |sum, one| DiskUsage {
        bytes: sum.bytes + one.bytes,
        inodes: sum.inodes + one.inodes,
    })
}

/// By the uids of pods.
pub type Disks = HashMap<String, Arc<PodDisk>>;

/// What was seen of all pods, each when it was looked at last.
#[derive(Default)]
pub struct DiskMeter {
    known: Mutex<Disks>,
    looking: AtomicBool,
}

impl DiskMeter {
    /// What is known, at once. What is old is looked at again meanwhile, for whoever asks next.
    pub fn known(shared: &Arc<Shared>, pods: &[Arc<Pod>]) -> Disks {
        let meter = &shared.disk;
        let known = {
            let mut known = meter.known.lock();
            let there: BTreeSet<&str> = pods.iter().map(|pod| uid(pod)).collect();
            known.retain(|uid, _| there.contains(uid.as_str()));
            known.clone()
        };
        let now = jiff::Timestamp::now();
        let is_old = |disk: &Arc<PodDisk>| now.duration_since(disk.at).unsigned_abs() > FRESH;
        let old: Vec<Arc<Pod>> = pods.iter().filter(|pod| known.get(uid(pod)).is_none_or(is_old)).cloned().collect();
        if !old.is_empty() && !meter.looking.swap(true, Ordering::AcqRel) {
            let shared = Arc::clone(shared);
            tokio::spawn(async move {
                look(&shared, &old).await;
                shared.disk.looking.store(false, Ordering::Release);
            });
        }
        known
    }
}

/// Where a pod's files are; a mirror's are those of what it mirrors.
pub fn uid(pod: &Pod) -> &str {
    static_pods::mirrored(pod).or(pod.metadata.uid.as_deref()).unwrap_or_default()
}

/// Looks at every file of these pods, and remembers what there is.
pub async fn look(shared: &Shared, pods: &[Arc<Pod>]) -> Disks {
    let mut found = Disks::new();
    if pods.is_empty() {
        return found;
    }
    let mut layers = layers(shared, pods).await;
    for pod in pods {
        let (root, own) = (shared.config.root_dir.clone(), Arc::clone(pod));
        // Large trees take long.
        let Ok(mut disk) = tokio::task::spawn_blocking(move || files(&root, &own)).await else { continue };
        disk.layers = layers.remove(uid(pod)).unwrap_or_default();
        let disk = Arc::new(disk);
        shared.disk.known.lock().insert(uid(pod).to_owned(), Arc::clone(&disk));
        found.insert(uid(pod).to_owned(), disk);
    }
    found
}

/// What containers of these pods wrote to their own file systems, by the uids of their pods and by their names. What
/// the runtime does not tell is left out.
async fn layers(shared: &Shared, pods: &[Arc<Pod>]) -> BTreeMap<String, BTreeMap<String, DiskUsage>> {
    let mut found = BTreeMap::<String, BTreeMap<String, DiskUsage>>::new();
    let runtime = &shared.config.runtime;
    let (Ok(sandboxes), Ok(containers)) = (runtime.list_sandboxes().await, runtime.list_containers().await) else {
        return found;
    };
    let wanted: BTreeSet<&str> = pods.iter().map(|pod| uid(pod)).collect();
    let owners: HashMap<String, String> = sandboxes.into_iter().map(|one| (one.id, one.pod.uid)).collect();
    for container in containers {
        let Some(uid) = owners.get(&container.sandbox_id).filter(|uid| wanted.contains(uid.as_str())) else { continue };
        if let Ok(Some(usage)) = runtime.writable_layer(&container.id).await {
            // Runs before this one, as long as they are kept, take disk as well.
            let all = found.entry(uid.clone()).or_default().entry(container.name).or_default();
            *all = sum([*all, usage].into_iter());
        }
    }
    found
}

/// Everything but layers.
fn files(root: &Path, pod: &Pod) -> PodDisk {
    let folder = root.join("pods").join(uid(pod));
    let device = std::fs::symlink_metadata(&folder).map(|meta| meta.dev()).ok();
    let driven: BTreeSet<String> = csi::record::of_pod(&folder).into_iter().map(|(_, own)| own.pod_volume).collect();
    let mut out = PodDisk { at: jiff::Timestamp::now(), ..PodDisk::default() };
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        if driven.contains(&volume.name) {
            continue;
        }
        let name = volume.name.clone();
        if let Some(claim) = claim::named(pod, volume) {
            let Some(file_system) = claim::known(&folder, &name).and_then(|path| FileSystem::of(&path)) else {
                continue;
            };
            let used = DiskUsage { bytes: file_system.used, inodes: file_system.inodes - file_system.inodes_free };
            let file_system = Some(file_system);
            out.volumes.insert(name, VolumeDisk { used, file_system, claim: Some(claim.name), ephemeral: false });
            continue;
        }
        let path = folder.join("volumes").join(&name);
        // Volumes that lie elsewhere are not the pod's.
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        let ephemeral = Some(meta.dev()) == device;
        let (used, file_system) = (below(&path), FileSystem::of(&path));
        out.volumes.insert(name, VolumeDisk { used, file_system, claim: None, ephemeral });
    }
    let named = |folder: &Path| -> Vec<_> { std::fs::read_dir(folder).into_iter().flatten().flatten().collect() };
    let identity = PodIdentity { uid: uid(pod).to_owned(), ..config::identity(pod, 0) };
    for entry in named(&config::log_directory(root, &identity)) {
        out.logs.insert(entry.file_name().to_string_lossy().into_owned(), below(&entry.path()));
    }
    // Below `subpaths`, parts of volumes are mounted.
    let rest =
        named(&folder).into_iter().filter(|entry| entry.file_name() != "volumes" && entry.file_name() != "subpaths");
    out.rest = sum(rest.map(|entry| below(&entry.path())));
    out
}

/// What is below a directory, without what other file systems hold.
fn below(root: &Path) -> DiskUsage {
    let mut usage = DiskUsage::default();
    let Ok(top) = std::fs::symlink_metadata(root) else { return usage };
    let mut seen = BTreeSet::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        // A file with several names counts once.
        if meta.dev() != top.dev() || (meta.nlink() > 1 && !meta.is_dir() && !seen.insert(meta.ino())) {
            continue;
        }
        usage.bytes += meta.blocks() * 512;
        usage.inodes += 1;
        if meta.is_dir() {
            left.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    usage
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
        let usage = below(dir.path());
        assert_eq!(usage.inodes, 3);
        assert!((64 << 10..128 << 10).contains(&usage.bytes), "{usage:?}");
        assert_eq!(below(&dir.path().join("absent")), DiskUsage::default());
    }

    #[test]
    fn a_pod_is_charged_with_its_own_files_only() {
        let dir = tempfile::tempdir().unwrap();
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "default", "name": "p", "uid": "u"},
            "spec": {"containers": [], "volumes": [{"name": "e", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/"}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "data"}}]}
        }))
        .unwrap();
        let block = vec![1; 64 << 10];
        let write = |path: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, &block).unwrap();
        };
        for path in ["pods/u/volumes/e/f", "pods/u/subpaths/a/0/f", "pods/u/containers/a/termination-0", "claimed/f"] {
            write(path);
        }
        write("logs/default_p_u/a/0.log");
        std::fs::create_dir_all(dir.path().join("pods/u/claims")).unwrap();
        let claimed = dir.path().join("claimed");
        std::fs::write(dir.path().join("pods/u/claims/c"), claimed.to_str().unwrap()).unwrap();
        let disk = files(dir.path(), &pod);
        assert_eq!(disk.volumes.keys().collect::<Vec<_>>(), ["c", "e"]);
        assert_eq!(disk.volumes["c"].claim.as_deref(), Some("data"));
        assert!(!disk.volumes["c"].ephemeral && disk.volumes["c"].file_system.is_some());
        let near =
            |usage: DiskUsage, blocks: u64| ((blocks * 64) << 10..(blocks * 64 + 63) << 10).contains(&usage.bytes);
        assert!(near(disk.volumes["e"].used, 1) && near(disk.logs["a"], 1) && near(disk.rest, 1), "{disk:?}");
        assert!(near(disk.total(), 3), "{:?}", disk.total());
    }
}
