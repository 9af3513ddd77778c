//! A pod container's file system: overlay, kernel file systems, bind mounts, devices, masks, and the change of root.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};

use super::mounts::{self, Source, Wanted};
use super::options::{self, Options};
use super::paths::open_root;
use super::devices;
use crate::error::{Context, Error, Result};
use crate::spec::{ContainerSpec, Mount, Propagation, Rootfs};

/// Builds the file system and makes it the root. The process has a mount namespace of its own.
pub fn enter(spec: &ContainerSpec, shm: &Path) -> Result<()> {
    let target = &spec.rootfs.target;
    overlay(&spec.rootfs)?;
    {
        let root = open_root(target)?;
        let root = root.as_fd();
        kernel_file_systems(root, spec)?;
        bind(root, shm, Path::new("/dev/shm"), Options::default())?;
        devices::standard(root, false)?;
        if spec.privileged {
            devices::of_the_host(root)?;
        }
        for device in &spec.devices {
            devices::bind(root, &device.source, &device.target)?;
        }
        for wanted in &spec.mounts {
            bind(root, &wanted.source, &wanted.target, options_of(wanted))?;
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

/// Mounts the layers. Their names are made relative to a common folder, since options are a page at most.
fn overlay(rootfs: &Rootfs) -> Result<()> {
    let empty = rootfs.work.with_extension("empty");
    let (folder, names): (PathBuf, Vec<String>) = match rootfs.lower.first().and_then(|first| first.parent()) {
        Some(parent) if rootfs.lower.iter().all(|layer| layer.parent() == Some(parent)) => {
            let name = |layer: &PathBuf| layer.file_name().map(|n| n.to_string_lossy().into_owned());
            (parent.to_owned(), rootfs.lower.iter().filter_map(name).collect())
        }
        Some(_) => ("/".into(), rootfs.lower.iter().map(|layer| layer.display().to_string()).collect()),
        None => {
            // An image without layers.
            fs::create_dir_all(&empty).step("create an empty layer")?;
            ("/".into(), vec![empty.display().to_string()])
        }
    };
    let escape = |text: String| text.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,");
    let lower: Vec<String> = names.into_iter().map(escape).collect();
    let place = |path: &Path| escape(path.display().to_string());
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), place(&rootfs.upper), place(&rootfs.work));
    if options.len() >= 4096 {
        return Err(Error::Invalid(format!("image has {} layers, more than can be mounted", rootfs.lower.len())));
    }
    rustix::process::chdir(&folder).step("enter the layers' folder")?;
    let options = std::ffi::CString::new(options).map_err(|_| Error::Invalid("layer path holds NUL".into()))?;
    mount("overlay", &rootfs.target, "overlay", MountFlags::empty(), Some(options.as_c_str())).step("mount overlay")
}

/// File systems of the kernel: type, place, options.
const FILE_SYSTEMS: [(&str, &str, &[&str]); 5] = [
    ("proc", "/proc", &["nosuid", "noexec", "nodev"]),
    ("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
    ("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
];

fn kernel_file_systems(root: BorrowedFd<'_>, spec: &ContainerSpec) -> Result<()> {
    let writable = |options: &mut Options| options.flags.set(MountFlags::RDONLY, false);
    for (kind, target, names) in FILE_SYSTEMS {
        let mut options = options::parse(names);
        if spec.privileged {
            writable(&mut options);
        }
        mounts::perform(root, &Wanted { source: Source::Name(kind), target: Path::new(target), kind, options })?;
    }
    let mut options = options::parse(&["nosuid", "noexec", "nodev", "ro"]);
    if spec.privileged {
        writable(&mut options);
    }
    mounts::control_groups(root, Path::new("/sys/fs/cgroup"), &options, None)
}

/// Binds a file or folder of the host. The place is made inside the root if it is missing.
fn bind(root: BorrowedFd<'_>, source: &Path, target: &Path, options: Options) -> Result<()> {
    let options = Options { bind: true, recursive: true, ..options };
    mounts::perform(root, &Wanted { source: Source::Path(source), target, kind: "", options })
}

fn options_of(wanted: &Mount) -> Options {
    let mut options = Options::default();
    options.flags.set(MountFlags::RDONLY, wanted.readonly);
    options.propagation = match wanted.propagation {
        Propagation::Private => Vec::new(),
        Propagation::Slave => vec![MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC],
    };
    options
}

/// Makes `target` the root and lets go of the old one.
pub fn change_root(target: &Path) -> Result<()> {
    rustix::process::chdir(target).step("enter the new root")?;
    rustix::process::pivot_root(".", ".").step("change the root")?;
    // The old root lies on top of the new one now; what is below it must not hear of the unmount.
    mount_change(".", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).step("isolate the old root")?;
    unmount(".", UnmountFlags::DETACH).step("let go of the old root")?;
    rustix::process::chdir("/").step("enter the root")
}
