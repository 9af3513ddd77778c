//! Giving a volume to a pod's group (`fsGroup`).
//!
//! Whatever runs in a container may change the tree meanwhile. So each entry is opened without following links, and what
//! was opened is changed.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};

use crate::Error;

/// Makes the group own everything, able to read and write it, and new files belong to it. Not `always`, only if the root
/// is not that way yet.
pub fn give(root: &Path, group: u32, always: bool) -> Result<(), Error> {
    let failed = || format!("give {} to group {group}", root.display());
    let seen = std::fs::metadata(root).map_err(Error::io(failed()))?;
    let wanted = 0o2070;
    if !always && seen.gid() == group && seen.permissions().mode() & wanted == wanted {
        return Ok(());
    }
    let open = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, root, open, Mode::empty()).map_err(|errno| Error::io(failed())(errno.into()))?;
    walk(&top, group, 0).map_err(Error::io(failed()))
}

/// Deeper trees are not looked at to their end: each level holds a descriptor.
const DEPTH: usize = 500;

/// A directory is changed after what is in it: a root that is as wanted says that all below it is.
fn walk(entry: &OwnedFd, group: u32, depth: usize) -> std::io::Result<()> {
    let stat = rustix::fs::fstat(entry)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Directory {
        if depth > DEPTH {
            return Err(std::io::Error::other(format!("the tree is deeper than {DEPTH} directories")));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for found in Dir::new(rustix::fs::openat(entry, ".", flags, Mode::empty())?)? {
            let found = found?;
            if matches!(found.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(entry, found.file_name(), flags, Mode::empty()) {
                Ok(child) => walk(&child, group, depth + 1)?,
                // Removed meanwhile.
                Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    change(entry, kind, stat.st_mode, group)
}

fn change(entry: &OwnedFd, kind: FileType, mode: u32, group: u32) -> std::io::Result<()> {
    let group = rustix::fs::Gid::from_raw(group);
    rustix::fs::chownat(entry.as_fd(), "", None, Some(group), AtFlags::EMPTY_PATH)?;
    let more = match kind {
        FileType::Symlink => return Ok(()),
        FileType::Directory => 0o2770,
        _ => 0o660,
    };
    // A descriptor that is a path only is changed through its name in /proc, which is no link to follow elsewhere.
    let name = format!("/proc/self/fd/{}", entry.as_fd().as_raw_fd());
    std::fs::set_permissions(name, PermissionsExt::from_mode((mode & 0o7777) | more))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_given_to_a_group_and_links_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("v"), dir.path().join("outside"));
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/file"), "").unwrap();
        std::fs::set_permissions(root.join("a/b/file"), PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&outside, "").unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        let seen = |path: &Path| {
            let meta = std::fs::metadata(path).unwrap();
            (meta.gid(), meta.permissions().mode() & 0o7777)
        };
        let before = seen(&outside);
        give(&root, 4242, true).unwrap();
        assert_eq!(seen(&root.join("a/b/file")), (4242, 0o660));
        assert_eq!(seen(&root.join("a/b")).0, 4242);
        assert_eq!(seen(&root.join("a/b")).1 & 0o2770, 0o2770);
        assert_eq!(seen(&outside), before);
        // With the root as wanted, nothing is looked at.
        std::fs::set_permissions(root.join("a/b/file"), PermissionsExt::from_mode(0o600)).unwrap();
        give(&root, 4242, false).unwrap();
        assert_eq!(seen(&root.join("a/b/file")).1, 0o600);
        give(&root, 4243, false).unwrap();
        assert_eq!(seen(&root.join("a/b/file")), (4243, 0o660));
    }
}
