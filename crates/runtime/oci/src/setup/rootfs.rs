//! The container's file system: overlay, kernel file systems, bind mounts, devices, masks, and the change of root.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

use super::paths::{by_fd, mount_point, open_in, open_root};
use crate::cgroup;
use crate::error::{Context, Error, Result};
use crate::spec::{ContainerSpec, Mount, Propagation, Rootfs};

const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC).union(MountFlags::NODEV);

/// Character devices of every container: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links in `/dev`: name, target.
const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Builds the file system and makes it the root. The process has a mount namespace of its own.
pub fn enter(spec: &ContainerSpec, shm: &Path) -> Result<()> {
    let target = &spec.rootfs.target;
    overlay(&spec.rootfs)?;
    {
        let root = open_root(target)?;
        let root = root.as_fd();
        kernel_file_systems(root, spec)?;
        devices(root, spec, shm)?;
        for wanted in &spec.mounts {
            bind(root, wanted)?;
        }
        if !spec.privileged {
            restrict(root, spec)?;
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

/// Mounts a new file system beneath the root.
fn mount_in(root: BorrowedFd<'_>, kind: &str, path: &str, flags: MountFlags, options: &str) -> Result<()> {
    let target = mount_point(root, Path::new(path), true)?;
    let options = std::ffi::CString::new(options).unwrap_or_default();
    mount(kind, by_fd(&target), kind, flags, Some(options.as_c_str())).step(format!("mount {kind} on {path}"))
}

fn kernel_file_systems(root: BorrowedFd<'_>, spec: &ContainerSpec) -> Result<()> {
    mount_in(root, "proc", "/proc", PLAIN, "")?;
    let access = if spec.privileged { MountFlags::empty() } else { MountFlags::RDONLY };
    mount_in(root, "sysfs", "/sys", PLAIN | access, "")?;
    if cgroup::is_unified() {
        return mount_in(root, "cgroup2", "/sys/fs/cgroup", PLAIN | access, "nsdelegate")
            .or_else(|_| mount_in(root, "cgroup2", "/sys/fs/cgroup", PLAIN | access, ""));
    }
    mount_in(root, "tmpfs", "/sys/fs/cgroup", PLAIN, "mode=755,size=64k")?;
    for controller in cgroup::controllers() {
        let path = format!("/sys/fs/cgroup/{controller}");
        mount_in(root, "cgroup", &path, PLAIN | access, controller)?;
    }
    let tree = open_in(root, Path::new("/sys/fs/cgroup"), OFlags::PATH).step("open /sys/fs/cgroup")?;
    mount_remount(by_fd(&tree), MountFlags::BIND | PLAIN | access, "").step("protect /sys/fs/cgroup")
}

fn devices(root: BorrowedFd<'_>, spec: &ContainerSpec, shm: &Path) -> Result<()> {
    mount_in(root, "tmpfs", "/dev", MountFlags::NOSUID | MountFlags::STRICTATIME, "mode=755,size=65536k")?;
    mount_in(
        root,
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        "newinstance,ptmxmode=0666,mode=0620,gid=5",
    )?;
    mount_in(root, "mqueue", "/dev/mqueue", PLAIN, "")?;
    let target = mount_point(root, Path::new("/dev/shm"), true)?;
    mount_bind(shm, by_fd(&target)).step("share /dev/shm")?;
    let folder = open_in(root, Path::new("/dev"), OFlags::DIRECTORY).step("open /dev")?;
    for (name, major, minor) in DEVICES {
        node(&folder, name, FileType::CharacterDevice, 0o666, rustix::fs::makedev(major, minor))?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, &folder, name).step(format!("link /dev/{name}"))?;
    }
    if spec.privileged {
        host_devices(&folder)?;
    }
    for device in &spec.devices {
        let stat = rustix::fs::stat(&device.source).step(format!("look at device {}", device.source.display()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !kind.is_char_device() && !kind.is_block_device() {
            return Err(Error::Invalid(format!("{} is not a device", device.source.display())));
        }
        let place = mount_point(root, &device.target, false)?;
        mount_bind(&device.source, by_fd(&place)).step(format!("give device {}", device.target.display()))?;
    }
    Ok(())
}

fn node(folder: impl AsFd, name: &str, kind: FileType, mode: u32, device: u64) -> Result<()> {
    rustix::fs::mknodat(&folder, name, kind, Mode::from_raw_mode(mode), device).step(format!("make /dev/{name}"))?;
    // The process's umask took bits away.
    rustix::fs::chmodat(&folder, name, Mode::from_raw_mode(mode), rustix::fs::AtFlags::empty())
        .step(format!("open /dev/{name} to its users"))
}

/// The devices at the top of the host's `/dev`, for privileged containers.
fn host_devices(folder: impl AsFd) -> Result<()> {
    for entry in fs::read_dir("/dev").step("list /dev")?.flatten() {
        let Ok(stat) = rustix::fs::lstat(entry.path()) else { continue };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !kind.is_char_device() && !kind.is_block_device() {
            continue;
        }
        match rustix::fs::mknodat(&folder, name, kind, Mode::from_raw_mode(stat.st_mode & 0o7777), stat.st_rdev) {
            Err(rustix::io::Errno::EXIST) | Ok(()) => {}
            Err(error) => return Err(error).step(format!("make /dev/{name}")),
        }
    }
    Ok(())
}

/// Binds a file or folder of the host. The place is made inside the root if it is missing.
fn bind(root: BorrowedFd<'_>, wanted: &Mount) -> Result<()> {
    let shown = wanted.target.display();
    let folder =
        fs::metadata(&wanted.source).step(format!("look at mount source {}", wanted.source.display()))?.is_dir();
    let target = mount_point(root, &wanted.target, folder)?;
    mount_bind_recursive(&wanted.source, by_fd(&target)).step(format!("mount {shown}"))?;
    drop(target);
    // The descriptor named what lay below; the path now leads to what was mounted.
    let mounted = open_in(root, &wanted.target, OFlags::PATH).step(format!("open mount {shown}"))?;
    let propagation = match wanted.propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
    };
    mount_change(by_fd(&mounted), propagation | MountPropagationFlags::REC).step(format!("isolate mount {shown}"))?;
    if wanted.readonly {
        let flags = MountFlags::BIND | MountFlags::RDONLY | inherited_flags(&mounted);
        mount_remount(by_fd(&mounted), flags, "").step(format!("make mount {shown} read-only"))?;
    }
    Ok(())
}

/// Flags of the mount that a remount must repeat, or it would lift them (or be refused).
fn inherited_flags(mounted: impl AsFd) -> MountFlags {
    use rustix::fs::StatVfsMountFlags as Have;
    let Ok(have) = rustix::fs::fstatvfs(mounted) else { return MountFlags::empty() };
    let mut flags = MountFlags::empty();
    for (has, flag) in
        [(Have::NOSUID, MountFlags::NOSUID), (Have::NODEV, MountFlags::NODEV), (Have::NOEXEC, MountFlags::NOEXEC)]
    {
        flags.set(flag, have.f_flag.contains(has));
    }
    flags
}

/// Hides what a container must not see, and protects what it must not write.
fn restrict(root: BorrowedFd<'_>, spec: &ContainerSpec) -> Result<()> {
    for path in &spec.masked_paths {
        let Ok(found) = open_in(root, Path::new(path), OFlags::PATH) else { continue };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found).step(format!("look at {path}"))?.st_mode);
        if kind.is_dir() {
            let options = c"size=0k";
            mount("tmpfs", by_fd(&found), "tmpfs", PLAIN | MountFlags::RDONLY, Some(options))
                .step(format!("mask {path}"))?;
        } else {
            mount_bind("/dev/null", by_fd(&found)).step(format!("mask {path}"))?;
        }
    }
    for path in &spec.readonly_paths {
        let Ok(found) = open_in(root, Path::new(path), OFlags::PATH) else { continue };
        mount_bind_recursive(by_fd(&found), by_fd(&found)).step(format!("protect {path}"))?;
        let mounted = open_in(root, Path::new(path), OFlags::PATH).step(format!("open {path}"))?;
        let flags = MountFlags::BIND | MountFlags::RDONLY | inherited_flags(&mounted);
        mount_remount(by_fd(&mounted), flags, "").step(format!("protect {path}"))?;
    }
    Ok(())
}

/// Makes `target` the root and lets go of the old one.
fn change_root(target: &Path) -> Result<()> {
    rustix::process::chdir(target).step("enter the new root")?;
    rustix::process::pivot_root(".", ".").step("change the root")?;
    // The old root lies on top of the new one now; what is below it must not hear of the unmount.
    mount_change(".", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).step("isolate the old root")?;
    unmount(".", UnmountFlags::DETACH).step("let go of the old root")?;
    rustix::process::chdir("/").step("enter the root")
}
