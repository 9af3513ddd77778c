//! Mounts beneath a container's root. Every target is resolved inside the root and named by its descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, mount_remount, move_mount,
    open_tree,
};

use super::options::{self, Attributes, Options};
use super::paths::{by_fd, mount_point, open_in};
use crate::error::{Context, Error, Result};
use crate::{cgroup, sys};

/// Where a mount comes from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// The name of a device, or nothing in particular.
    Name(&'a str),
    /// A file or folder outside of the container.
    Path(&'a Path),
    /// A mount that somebody else has made ready.
    Tree(BorrowedFd<'a>),
}

/// One thing to mount.
#[derive(Debug)]
pub struct Wanted<'a> {
    pub source: Source<'a>,
    pub target: &'a Path,
    /// Type of the file system; unused for bind mounts.
    pub kind: &'a str,
    pub options: Options,
}

/// Files below `/proc` that may be covered: what tools show as the container's resources.
const COVERABLE: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
];

/// Mounts a file system, or a part of the host's, at its place beneath `root`.
pub fn perform(root: BorrowedFd<'_>, wanted: &Wanted<'_>) -> Result<()> {
    let shown = wanted.target.display();
    if wanted.options.remount {
        let target = open_in(root, wanted.target, OFlags::PATH).step(format!("open mount {shown}"))?;
        set(&target, attributes_of(&wanted.options), false).step(format!("remount {shown}"))?;
        return finish(root, wanted);
    }
    if wanted.options.bind {
        bind(root, wanted)?;
    } else {
        let target = target(root, wanted, true)?;
        let Source::Name(source) = wanted.source else {
            return Err(Error::Invalid(format!("mount {shown}: {} takes no source of that kind", wanted.kind)));
        };
        let covered = wanted.options.copy_up.then(|| copy_of(root, wanted.target)).transpose()?;
        let data = std::ffi::CString::new(wanted.options.data.join(",")).unwrap_or_default();
        mount(source, by_fd(&target), wanted.kind, wanted.options.flags, Some(data.as_c_str()))
            .step(format!("mount {} on {shown}", wanted.kind))?;
        if let Some(covered) = covered {
            copy_back(root, wanted.target, &covered)?;
        }
    }
    finish(root, wanted)
}

fn bind(root: BorrowedFd<'_>, wanted: &Wanted<'_>) -> Result<()> {
    let shown = wanted.target.display();
    let made;
    let tree = match wanted.source {
        Source::Tree(tree) => tree,
        Source::Path(path) => {
            made = clone_tree(path, wanted.options.recursive)?;
            made.as_fd()
        }
        Source::Name(name) => return Err(Error::Invalid(format!("mount {shown}: {name:?} cannot be bound"))),
    };
    let folder = FileType::from_raw_mode(rustix::fs::fstat(tree).step(format!("look at {shown}"))?.st_mode).is_dir();
    let target = target(root, wanted, folder)?;
    set(tree, attributes_of(&wanted.options), false).step(format!("set options of mount {shown}"))?;
    // What the host mounts below is not seen inside unless that is asked for.
    if wanted.options.propagation.is_empty() {
        change(tree, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .step(format!("isolate mount {shown}"))?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", &target, "", flags).step(format!("mount {shown}"))
}

/// A copy of the mount at `path`, attached nowhere.
pub fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(CWD, path, flags).step(format!("open mount source {}", path.display()))
}

/// Whether the mount that a path lies on tells its peers what is mounted below it.
pub fn is_shared(path: &Path) -> Result<bool> {
    let shown = path.display();
    let about = rustix::fs::statx(CWD, path, rustix::fs::AtFlags::empty(), rustix::fs::StatxFlags::MNT_ID)
        .step(format!("look at {shown}"))?;
    let text = std::fs::read_to_string("/proc/thread-self/mountinfo").step("list mounts")?;
    let own = format!("{} ", about.stx_mnt_id);
    let line = text.lines().find(|line| line.starts_with(&own));
    // Optional fields come before the lone dash.
    Ok(line.is_some_and(|line| line.split(" - ").next().unwrap_or_default().contains(" shared:")))
}

/// Propagation and what holds for everything below; done last, when the mount is in place.
fn finish(root: BorrowedFd<'_>, wanted: &Wanted<'_>) -> Result<()> {
    let shown = wanted.target.display();
    if wanted.options.propagation.is_empty() && wanted.options.all_below.is_empty() {
        return Ok(());
    }
    // The descriptor named what lay below; the path now leads to what was mounted.
    let mounted = open_in(root, wanted.target, OFlags::PATH).step(format!("open mount {shown}"))?;
    for flags in &wanted.options.propagation {
        mount_change(by_fd(&mounted), *flags).step(format!("set the propagation of mount {shown}"))?;
    }
    set(&mounted, wanted.options.all_below, true).step(format!("set options of mounts below {shown}"))
}

/// The place to mount on. File systems of the kernel are not to be covered or led astray.
fn target(root: BorrowedFd<'_>, wanted: &Wanted<'_>, folder: bool) -> Result<OwnedFd> {
    let shown = wanted.target.display();
    if ["proc", "sysfs"].contains(&wanted.kind) && !wanted.options.bind && leads_elsewhere(root, wanted.target) {
        return Err(Error::Invalid(format!(
            "{} must be mounted on an ordinary folder, not on a link: {shown}",
            wanted.kind
        )));
    }
    let target = mount_point(root, wanted.target, folder)?;
    let on_proc = rustix::fs::fstatfs(&target).is_ok_and(|stat| stat.f_type == rustix::fs::PROC_SUPER_MAGIC);
    if on_proc && wanted.kind != "proc" && !COVERABLE.iter().any(|path| Path::new(path) == wanted.target) {
        return Err(Error::Invalid(format!("{shown} cannot be mounted on, because it is inside /proc")));
    }
    Ok(target)
}

fn leads_elsewhere(root: BorrowedFd<'_>, path: &Path) -> bool {
    let found = open_in(root, path, OFlags::PATH | OFlags::NOFOLLOW);
    found.is_ok_and(|found| {
        rustix::fs::fstat(found).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_symlink())
    })
}

fn attributes_of(options: &Options) -> Attributes {
    options::attributes(options.flags, options.cleared)
}

/// Sets attributes of a mount, and with `below` of all mounts beneath it.
pub fn set(mount: impl AsFd, attributes: Attributes, below: bool) -> rustix::io::Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    sys::mount_setattr(mount.as_fd(), attributes.set, attributes.clear, 0, None, below)
}

/// Changes how a mount that need not be attached hears of others.
fn change(mount: impl AsFd, flags: MountPropagationFlags) -> rustix::io::Result<()> {
    let below = flags.contains(MountPropagationFlags::REC);
    sys::mount_setattr(mount.as_fd(), 0, 0, u64::from((flags - MountPropagationFlags::REC).bits()), None, below)
}

/// The control groups, as the container is to see them: its own alone. `path` is its group below the root, for one
/// that shares the host's view.
pub fn control_groups(
    root: BorrowedFd<'_>,
    target: &Path,
    options: &Options,
    group: Option<&cgroup::Cgroup>,
) -> Result<()> {
    if let Some(group) = group.filter(|_| cgroup::is_unified()) {
        let source = group.folders();
        let source = source.first().map_or(Path::new("/sys/fs/cgroup"), PathBuf::as_path);
        let options = Options { bind: true, ..options.clone() };
        return perform(root, &Wanted { source: Source::Path(source), target, kind: "", options });
    }
    if cgroup::is_unified() {
        let with = |data: &[&str]| Options { data: data.iter().map(|s| (*s).to_owned()).collect(), ..options.clone() };
        let wanted = |options| Wanted { source: Source::Name("cgroup"), target, kind: "cgroup2", options };
        return perform(root, &wanted(with(&["nsdelegate"]))).or_else(|_| perform(root, &wanted(with(&[]))));
    }
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let data = ["mode=755".to_owned(), "size=64k".to_owned()].into();
    let top = Options { flags: plain, data, ..Options::default() };
    perform(root, &Wanted { source: Source::Name("tmpfs"), target, kind: "tmpfs", options: top })?;
    let access = options.flags & MountFlags::RDONLY;
    for controller in cgroup::controllers() {
        let place = target.join(controller);
        let flags = plain | access;
        match group.and_then(|group| group.folder(controller)) {
            Some(folder) => {
                let options = Options { flags, bind: true, ..Options::default() };
                perform(root, &Wanted { source: Source::Path(&folder), target: &place, kind: "", options })?;
            }
            None => {
                let options = Options { flags, data: vec![controller.to_owned()], ..Options::default() };
                let wanted = Wanted { source: Source::Name("cgroup"), target: &place, kind: "cgroup", options };
                perform(root, &wanted)?;
            }
        }
    }
    let tree = open_in(root, target, OFlags::PATH).step(format!("open {}", target.display()))?;
    mount_remount(by_fd(&tree), MountFlags::BIND | plain | access, "").step(format!("protect {}", target.display()))
}

/// Hides what a container must not see, and protects what it must not write. What is missing needs neither.
pub fn restrict(root: BorrowedFd<'_>, masked: &[String], readonly: &[String]) -> Result<()> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for path in masked {
        let Ok(found) = open_in(root, Path::new(path), OFlags::PATH) else { continue };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found).step(format!("look at {path}"))?.st_mode);
        if kind.is_dir() {
            mount("tmpfs", by_fd(&found), "tmpfs", plain | MountFlags::RDONLY, Some(c"size=0k"))
                .step(format!("mask {path}"))?;
        } else {
            let null = clone_tree(Path::new("/dev/null"), false)?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            move_mount(&null, "", &found, "", flags).step(format!("mask {path}"))?;
        }
    }
    for path in readonly {
        let Ok(found) = open_in(root, Path::new(path), OFlags::PATH) else { continue };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(&found, "", flags).step(format!("protect {path}"))?;
        set(&tree, options::attributes(MountFlags::RDONLY, MountFlags::empty()), true)
            .step(format!("protect {path}"))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&tree, "", &found, "", flags).step(format!("protect {path}"))?;
    }
    Ok(())
}

/// Keeps what a tmpfs is about to cover.
fn copy_of(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    open_in(root, path, OFlags::RDONLY | OFlags::DIRECTORY).step(format!("open {}", path.display()))
}

fn copy_back(root: BorrowedFd<'_>, path: &Path, covered: &OwnedFd) -> Result<()> {
    let fresh = open_in(root, path, OFlags::RDONLY | OFlags::DIRECTORY).step(format!("open {}", path.display()))?;
    super::copy::tree(covered.as_fd(), fresh.as_fd()).step(format!("copy up {}", path.display()))
}
