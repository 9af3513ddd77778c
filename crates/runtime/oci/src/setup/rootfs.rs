//! A pod container's file system: overlay, kernel file systems, bind mounts, devices, masks, and the change of root.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount_change, mount_remount, unmount};

use super::mounts::{self, Source, Wanted};
use super::options::{self, Options};
use super::paths::open_root;
use super::{devices, idmap, layers};
use crate::error::{Context, Error, Result};
use crate::spec::{ContainerSpec, IdRange, Mount, Propagation};
use crate::sys;

/// What holds for the files of an image that is mounted as a volume.
const IMAGE_FLAGS: MountFlags = MountFlags::RDONLY.union(MountFlags::NOSUID).union(MountFlags::NODEV);

/// A user namespace, and what its ids are outside.
pub type Users<'a> = (BorrowedFd<'a>, IdRange);

/// Builds the file system and makes it the root. The process has a mount namespace of its own; `users` is the user
/// namespace it will join, whose ids the files are to have.
pub fn enter(spec: &ContainerSpec, shm: &Path, host_mounts: BorrowedFd<'_>, users: Option<Users<'_>>) -> Result<()> {
    let target = &spec.rootfs.target;
    let mut trees = shared_trees(&spec.mounts, host_mounts, users.is_some())?;
    trees.extend(layers::trees(&spec.mounts, &spec.rootfs, users)?);
    layers::root(&spec.rootfs, users)?;
    {
        let root = open_root(target)?;
        let root = root.as_fd();
        kernel_file_systems(root, spec, users)?;
        bind(root, shm, Path::new("/dev/shm"), Options::default(), users)?;
        devices::standard(root, false)?;
        if spec.privileged {
            devices::of_the_host(root)?;
        }
        for device in &spec.devices {
            devices::bind(root, &device.source, &device.target)?;
        }
        for (place, wanted) in spec.mounts.iter().enumerate() {
            let options = Options { bind: true, recursive: true, ..options_of(wanted) };
            match trees.get(&place) {
                Some(tree) => {
                    let source = Source::Tree(tree.as_fd());
                    mounts::perform(root, &Wanted { source, target: &wanted.target, kind: "", options })?;
                }
                None => bind(root, &wanted.source, &wanted.target, options, users)?,
            }
        }
        if !spec.privileged {
            mounts::restrict(root, &spec.masked_paths, &spec.readonly_paths)?;
        }
    }
    change_root(target)?;
    if spec.rootfs.readonly {
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        mount_remount("/", flags, "").step("make the root read-only")?;
    }
    Ok(())
}

/// File systems of the kernel: type, place, options.
const FILE_SYSTEMS: [(&str, &str, &[&str]); 5] = [
    ("proc", "/proc", &["nosuid", "noexec", "nodev"]),
    ("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
    ("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
];

fn kernel_file_systems(root: BorrowedFd<'_>, spec: &ContainerSpec, users: Option<Users<'_>>) -> Result<()> {
    let writable = |options: &mut Options| options.flags.set(MountFlags::RDONLY, false);
    for (kind, target, names) in FILE_SYSTEMS {
        let mut options = options::parse(names);
        if spec.privileged {
            writable(&mut options);
        }
        if let Some((_, range)) = users {
            give_to(range, kind, &mut options);
        }
        mounts::perform(root, &Wanted { source: Source::Name(kind), target: Path::new(target), kind, options })?;
    }
    let mut options = options::parse(&["nosuid", "noexec", "nodev", "ro"]);
    if spec.privileged {
        writable(&mut options);
    }
    mounts::control_groups(root, Path::new("/sys/fs/cgroup"), &options, None)
}

/// File systems with owners belong to the root of the namespace.
fn give_to(range: IdRange, kind: &str, options: &mut Options) {
    match kind {
        "tmpfs" => options.data.extend([format!("uid={}", range.host), format!("gid={}", range.host)]),
        // The group of terminals, 5, is the namespace's.
        "devpts" => {
            options.data.retain(|option| !option.starts_with("gid="));
            options.data.extend([format!("uid={}", range.host), format!("gid={}", range.host + 5)]);
        }
        _ => {}
    }
}

/// Binds a file or folder of the host. The place is made inside the root if it is missing.
fn bind(root: BorrowedFd<'_>, source: &Path, target: &Path, options: Options, users: Option<Users<'_>>) -> Result<()> {
    let options = Options { bind: true, recursive: true, ..options };
    let Some((users, _)) = users else {
        return mounts::perform(root, &Wanted { source: Source::Path(source), target, kind: "", options });
    };
    let tree = mounts::clone_tree(source, true)?;
    idmap::apply_namespace(tree.as_fd(), users, true)
        .map_err(|error| Error::Invalid(format!("mount {}: {error}", target.display())))?;
    mounts::perform(root, &Wanted { source: Source::Tree(tree.as_fd()), target, kind: "", options })
}

/// Copies of the host's mounts that stay their peers, by their place in the list: what is mounted on one side appears
/// on the other. They are taken in the host's mount namespace, since in ours they listen only.
fn shared_trees(wanted: &[Mount], host_mounts: BorrowedFd<'_>, own_users: bool) -> Result<BTreeMap<usize, OwnedFd>> {
    let mut trees = BTreeMap::new();
    let shared = wanted.iter().enumerate().filter(|(_, mount)| mount.propagation == Propagation::Shared);
    let shared: Vec<_> = shared.collect();
    if shared.is_empty() {
        return Ok(trees);
    }
    if own_users {
        return Err(Error::Invalid("a pod with user ids of its own cannot share mounts with the host".into()));
    }
    let own = fs::File::open("/proc/self/ns/mnt").step("keep the mount namespace")?;
    let mounts = libc::CLONE_NEWNS as u64;
    sys::join_namespaces(host_mounts, mounts).step("look at the host's mounts")?;
    for (place, mount) in shared {
        let source = mount.source.display();
        if !mounts::is_shared(&mount.source)? {
            return Err(Error::Invalid(format!("path {source} is not on a shared mount of the host")));
        }
        trees.insert(place, mounts::clone_tree(&mount.source, true)?);
    }
    sys::join_namespaces(own.as_fd(), mounts).step("return to the mount namespace")?;
    Ok(trees)
}

fn options_of(wanted: &Mount) -> Options {
    let mut options = Options::default();
    options.flags.set(MountFlags::RDONLY, wanted.readonly);
    if wanted.recursive_readonly && wanted.readonly {
        options.all_below = options::attributes(MountFlags::RDONLY, MountFlags::empty());
    }
    if !wanted.layers.is_empty() {
        options.flags |= IMAGE_FLAGS;
    }
    options.propagation = match wanted.propagation {
        Propagation::Private => Vec::new(),
        Propagation::Slave => vec![MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC],
        Propagation::Shared => vec![MountPropagationFlags::SHARED | MountPropagationFlags::REC],
    };
    options
}

/// Makes `target` the root and lets go of the old one.
pub fn change_root(target: &Path) -> Result<()> {
    let old = open_root(Path::new("/"))?;
    rustix::process::chdir(target).step("enter the new root")?;
    rustix::process::pivot_root(".", ".").step("change the root")?;
    // The old root lies on top of the new one now; what it shares mounts with must not hear of the unmount.
    rustix::process::fchdir(&old).step("enter the old root")?;
    mount_change(".", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).step("isolate the old root")?;
    unmount(".", UnmountFlags::DETACH).step("let go of the old root")?;
    rustix::process::chdir("/").step("enter the root")
}
