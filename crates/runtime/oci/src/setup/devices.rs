//! A container's `/dev`: device nodes, made or bound, and the links that programs expect.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::mounts::{self, Source, Wanted};
use super::options::Options;
use super::paths::{mount_point, open_in};
use crate::error::{Context, Error, Result};

/// A device node to make.
#[derive(Debug, Clone)]
pub struct Node {
    pub path: String,
    pub kind: FileType,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

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

/// The nodes and links that every container has. `by_binding` is for user namespaces, which make no nodes.
pub fn standard(root: BorrowedFd<'_>, by_binding: bool) -> Result<()> {
    for (name, major, minor) in DEVICES {
        let (path, kind) = (format!("/dev/{name}"), FileType::CharacterDevice);
        make(root, &Node { path, kind, major, minor, mode: 0o666, uid: 0, gid: 0 }, by_binding)?;
    }
    let folder = open_in(root, Path::new("/dev"), OFlags::DIRECTORY).step("open /dev")?;
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(target, &folder, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).step(format!("link /dev/{name}")),
        }
    }
    Ok(())
}

/// Makes one node; one that is there already is left as it is.
pub fn make(root: BorrowedFd<'_>, node: &Node, by_binding: bool) -> Result<()> {
    let path = Path::new(&node.path);
    if by_binding {
        return bind(root, path, path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::Invalid(format!("device path {:?} names no file", node.path)));
    };
    let parent = mount_point(root, parent, true)?;
    let parent =
        open_in(parent.as_fd(), Path::new("/"), OFlags::DIRECTORY).step(format!("open the folder of {}", node.path))?;
    let (device, mode) = (rustix::fs::makedev(node.major, node.minor), Mode::from_raw_mode(node.mode & 0o7777));
    match rustix::fs::mknodat(&parent, name, node.kind, mode, device) {
        Err(Errno::EXIST) => return Ok(()),
        result => result.step(format!("make {}", node.path))?,
    }
    // The process's umask took bits away.
    rustix::fs::chmodat(&parent, name, mode, AtFlags::empty()).step(format!("open {} to its users", node.path))?;
    if (node.uid, node.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .step(format!("give {} to its owner", node.path))?;
    }
    Ok(())
}

/// Shows a device of the host at a place in the container.
pub fn bind(root: BorrowedFd<'_>, source: &Path, target: &Path) -> Result<()> {
    let stat = rustix::fs::stat(source).step(format!("look at device {}", source.display()))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if !kind.is_char_device() && !kind.is_block_device() {
        return Err(Error::Invalid(format!("{} is not a device", source.display())));
    }
    let options = Options { bind: true, ..Options::default() };
    mounts::perform(root, &Wanted { source: Source::Path(source), target, kind: "", options })
}

/// Makes the host's devices, for privileged containers.
pub fn of_the_host(root: BorrowedFd<'_>) -> Result<()> {
    host_nodes()?.iter().try_for_each(|node| make(root, node, false))
}

/// The devices at the top of the host's `/dev`.
pub fn host_nodes() -> Result<Vec<Node>> {
    let entries = fs::read_dir("/dev").step("list /dev")?.flatten();
    Ok(entries.filter_map(|entry| look(&entry.path(), &entry.path())).collect())
}

/// The device at `source`, as it is to be at `target`; `None` if there is none.
pub fn look(source: &Path, target: &Path) -> Option<Node> {
    let stat = rustix::fs::lstat(source).ok()?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    (kind.is_char_device() || kind.is_block_device()).then_some(())?;
    Some(Node {
        path: target.to_str()?.to_owned(),
        kind,
        major: rustix::fs::major(stat.st_rdev),
        minor: rustix::fs::minor(stat.st_rdev),
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
    })
}
