//! A pod's volumes: made before its containers, refreshed while it runs, removed after it.

pub mod claim;
pub mod local;
pub mod ownership;
mod payload;
pub mod pod_certificate;
mod pod_keys;
mod subpath;
pub mod token;
mod trust_bundle;
mod write;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::shared::Shared;
use crate::{Error, csi};
pub use subpath::mount as mount_sub_path;

fn bad(message: impl Into<String>) -> Error {
    Error::Spec { reason: "ContainerCreating", message: message.into() }
}

pub fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}

/// Whether a relative path stays below where it starts.
pub fn is_inside(path: &str) -> bool {
    Path::new(path).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

/// Where volumes are, and when to look at them again.
pub struct Prepared {
    /// Host path of each by name.
    pub paths: BTreeMap<String, PathBuf>,
    pub refresh: Option<SystemTime>,
}

/// Makes or refreshes every volume.
pub async fn prepare(shared: &Shared, pod: &Pod, dir: &Path) -> Result<Prepared, Error> {
    let mut prepared = Prepared { paths: BTreeMap::new(), refresh: None };
    pod_certificate::ask_all(shared, pod, dir).await;
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let name = &volume.name;
        if !is_inside(name) {
            return Err(bad(format!("volume name {name:?} is not valid")));
        }
        // Mounted by the runtime.
        if volume.image.is_some() {
            continue;
        }
        if let Some(claim) = claim::named(pod, volume) {
            let found = claim::prepare(shared, pod, volume, &claim, dir).await.map_err(|error| failed(name, error))?;
            prepared.add(name, found);
            continue;
        }
        if let Some(csi) = &volume.csi {
            let source = csi::Source::of_pod(pod, name, csi);
            let pod_dir = dir.parent().unwrap_or(dir);
            let found = csi::prepare(shared, pod, &source, pod_dir).await.map_err(|error| failed(name, error))?;
            prepared.add(name, found);
            continue;
        }
        let found = one(shared, pod, volume, dir.join(name)).await.map_err(|error| failed(name, error))?;
        prepared.add(name, found);
    }
    Ok(prepared)
}

impl Prepared {
    fn add(&mut self, name: &str, (path, refresh): (PathBuf, Option<SystemTime>)) {
        self.refresh = [self.refresh, refresh].into_iter().flatten().min();
        self.paths.insert(name.to_owned(), path);
    }
}

fn failed(volume: &str, error: Error) -> Error {
    // Who waits for somebody else has not failed.
    if error.reason() == csi::attach::WAITS {
        return error;
    }
    bad(format!("MountVolume.SetUp failed for volume {volume:?} : {error}"))
}

pub fn fs_group(pod: &Pod) -> Option<u32> {
    let security = pod.spec.as_ref()?.security_context.as_ref()?;
    security.fs_group.and_then(|group| u32::try_from(group).ok())
}

async fn one(
    shared: &Shared,
    pod: &Pod,
    volume: &Volume,
    target: PathBuf,
) -> Result<(PathBuf, Option<SystemTime>), Error> {
    if let Some(host) = &volume.host_path {
        return Ok((host_path(&host.path, host.type_.as_deref().unwrap_or_default())?, None));
    }
    let group = fs_group(pod);
    if let Some(empty) = &volume.empty_dir {
        let in_memory = empty.medium.as_deref().is_some_and(|medium| !medium.is_empty());
        if is_to_be_made(&target, in_memory) {
            make_dir(&target, 0o777, group)?;
            if let Err(error) = fill_empty_dir(pod, empty, &target, group) {
                // Or else the next look would take it for made.
                let _ = std::fs::remove_dir(&target);
                return Err(error);
            }
        }
        return Ok((target, None));
    }
    let payload = payload::of(shared, pod, volume, &target.join("..data")).await?;
    let Some((payload, refresh)) = payload else {
        return Err(bad(format!("volume {:?} is of a type this node does not support", volume.name)));
    };
    let in_memory = volume.config_map.is_none();
    if is_to_be_made(&target, in_memory) {
        make_dir(&target, 0o777, group)?;
        if in_memory {
            mount_memory(&target, "tmpfs", "mode=0777")?;
            own(&target, 0o777, group)?;
        }
    }
    write::write(&target, &payload, group)?;
    Ok((target, refresh))
}

/// Whether a volume is missing: its directory, or after a restart of the machine what was mounted on that.
fn is_to_be_made(target: &Path, in_memory: bool) -> bool {
    let device = |path: &Path| std::fs::symlink_metadata(path).map(|meta| meta.dev()).ok();
    let Some(own) = device(target) else { return true };
    in_memory && target.parent().and_then(device) == Some(own)
}

fn fill_empty_dir(pod: &Pod, empty: &EmptyDirVolumeSource, target: &Path, group: Option<u32>) -> Result<(), Error> {
    let medium = empty.medium.as_deref().unwrap_or_default();
    let asked = empty.size_limit.as_ref().and_then(|q| crate::resources::whole(&q.0)).filter(|size| *size > 0);
    if medium == "Memory" {
        let pods = pod.spec.as_ref().and_then(crate::resources::memory_limit);
        let size = [asked, pods].into_iter().flatten().min();
        let size = size.map(|size| format!(",size={size}")).unwrap_or_default();
        mount_memory(target, "tmpfs", &format!("mode=0777{size}"))?;
        own(target, 0o777, group)?;
    } else if let Some(page) = medium.strip_prefix("HugePages") {
        let page = match page.strip_prefix('-') {
            Some(page) => page.to_owned(),
            None => only_page_size(pod)?,
        };
        let bytes = crate::resources::whole(&page).filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or_else(|| bad(format!("medium {medium:?} names no page size")))?;
        let size = asked.map(|size| format!(",size={size}")).unwrap_or_default();
        mount_memory(target, "hugetlbfs", &format!("mode=0777,pagesize={}K{size}", bytes / 1024))?;
        own(target, 0o777, group)?;
    } else if !medium.is_empty() {
        return Err(bad(format!("unknown storage medium {medium:?}")));
    }
    Ok(())
}

/// The page size that the pod's containers ask for, if it is one.
fn only_page_size(pod: &Pod) -> Result<String, Error> {
    let containers = pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let names = containers.flat_map(|c| c.resources.iter().flat_map(|r| r.requests.iter().chain(&r.limits).flatten()));
    let sizes: std::collections::BTreeSet<&str> =
        names.filter_map(|(name, _)| name.strip_prefix("hugepages-")).collect();
    match sizes.into_iter().collect::<Vec<_>>().as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => Err(bad("the containers ask for no huge pages")),
        _ => Err(bad("the containers ask for huge pages of several sizes; the medium has to name one")),
    }
}

fn make_dir(path: &Path, mode: u32, group: Option<u32>) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(Error::io(format!("create volume directory {}", path.display())))?;
    own(path, mode, group)
}

/// With a group, new files belong to it as well.
fn own(path: &Path, mode: u32, group: Option<u32>) -> Result<(), Error> {
    let failed = || format!("set the owner of volume directory {}", path.display());
    let mode = if group.is_some() { mode | 0o2000 } else { mode };
    std::os::unix::fs::chown(path, None, group).map_err(Error::io(failed()))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(Error::io(failed()))
}

fn mount_memory(path: &Path, kind: &str, options: &str) -> Result<(), Error> {
    let options = CString::new(options).map_err(|e| bad(e.to_string()))?;
    rustix::mount::mount("dhow", path, kind, MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))
        .map_err(|errno| Error::io(format!("mount {kind} on {}", path.display()))(errno.into()))
}

fn host_path(path: &str, type_: &str) -> Result<PathBuf, Error> {
    let target = PathBuf::from(path);
    let made = match type_ {
        "DirectoryOrCreate" => std::fs::create_dir_all(&target),
        "FileOrCreate" if !target.exists() => std::fs::File::create(&target).map(drop),
        // Missing, it becomes a directory, as it always has been.
        "" if !target.exists() => std::fs::create_dir_all(&target),
        _ => Ok(()),
    };
    made.map_err(Error::io(format!("create {path}")))?;
    let kind = std::fs::metadata(&target).map(|m| m.file_type());
    let (fits, wanted) = match (&kind, type_) {
        (_, "") => (true, ""),
        (Ok(k), "Directory" | "DirectoryOrCreate") => (k.is_dir(), "directory"),
        (Ok(k), "File" | "FileOrCreate") => (k.is_file(), "file"),
        (Ok(k), "Socket") => (k.is_socket(), "socket file"),
        (Ok(k), "CharDevice") => (k.is_char_device(), "character device"),
        (Ok(k), "BlockDevice") => (k.is_block_device(), "block device"),
        (_, "Directory") => (false, "directory"),
        (_, "File") => (false, "file"),
        (_, "Socket") => (false, "socket file"),
        (_, "CharDevice") => (false, "character device"),
        (_, "BlockDevice") => (false, "block device"),
        (_, other) => (false, other),
    };
    if !fits {
        return Err(bad(format!("hostPath type check failed: {path} is not a {wanted}")));
    }
    Ok(target)
}

/// Makes a directory's mounts known to every mount namespace that was made from ours: volumes and parts of them are
/// mounted while sandboxes run, which may be before their containers start.
pub fn share(dir: &Path) -> Result<(), Error> {
    use rustix::mount::MountPropagationFlags;
    let failed = || format!("share the mounts of {}", dir.display());
    std::fs::create_dir_all(dir).map_err(Error::io(failed()))?;
    let dir = dir.canonicalize().map_err(Error::io(failed()))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(Error::io(failed()))?;
    let is_mounted = mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| dir.as_os_str() == point));
    if !is_mounted {
        rustix::mount::mount_bind(&dir, &dir).map_err(|errno| Error::io(failed())(errno.into()))?;
    }
    let changed = rustix::mount::mount_change(&dir, MountPropagationFlags::SHARED);
    changed.map_err(|errno| Error::io(failed())(errno.into()))
}

/// Unmounts what is in memory or part of another volume, below a pod's directory.
pub fn unmount(pod_dir: &Path) {
    for container in std::fs::read_dir(pod_dir.join("subpaths")).into_iter().flatten().flatten() {
        for place in std::fs::read_dir(container.path()).into_iter().flatten().flatten() {
            subpath::unmount(&place.path());
        }
    }
    for entry in std::fs::read_dir(pod_dir.join("volumes")).into_iter().flatten().flatten() {
        let _ = rustix::mount::unmount(entry.path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

/// Where something is mounted at a path or below it, the deepest first.
pub fn mounts_below(path: &Path) -> Vec<PathBuf> {
    if path.as_os_str().is_empty() {
        return Vec::new();
    }
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| PathBuf::from(unescape(point)));
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(&path)).collect();
    below.reverse();
    below
}

/// Blanks and the like are octal in lists of mounts.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, char)| text.replace(code, char))
}

/// Unmounts and removes a pod's directory. What a driver mounted there has to be gone: it is somebody's data.
pub fn remove(pod_dir: &Path) -> Result<(), Error> {
    unmount(pod_dir);
    for point in mounts_below(pod_dir) {
        if point.components().any(|part| part.as_os_str() == "kubernetes.io~csi") {
            return Err(bad(format!("{} is still mounted", point.display())));
        }
        let _ = rustix::mount::unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
    match std::fs::remove_dir_all(pod_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", pod_dir.display()))(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_memory_is_made_again_after_a_restart_of_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("v");
        assert!(is_to_be_made(&target, false) && is_to_be_made(&target, true));
        make_dir(&target, 0o777, None).unwrap();
        assert!(!is_to_be_made(&target, false) && is_to_be_made(&target, true));
        mount_memory(&target, "tmpfs", "mode=0777,size=64K").unwrap();
        assert!(!is_to_be_made(&target, true));
        rustix::mount::unmount(&target, UnmountFlags::DETACH).unwrap();
        assert!(is_to_be_made(&target, true));
    }

    #[test]
    fn host_paths_are_of_the_type_they_say() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for (name, type_, fits) in [
            ("file", "File", true),
            ("file", "Directory", false),
            ("absent", "Directory", false),
            ("absent", "File", false),
            ("made", "DirectoryOrCreate", true),
            ("made-file", "FileOrCreate", true),
            ("socket", "Socket", true),
            ("file", "Socket", false),
            ("file", "CharDevice", false),
            ("plain", "", true),
        ] {
            assert_eq!(host_path(&path(name), type_).is_ok(), fits, "{name} {type_}");
        }
        assert!(host_path("/dev/null", "CharDevice").is_ok());
        assert!(Path::new(&path("plain")).is_dir());
    }
}
