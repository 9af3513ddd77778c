//! Paths inside a container's root, resolved so that no link leads out of it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

/// Opens the root that paths are resolved beneath.
pub fn open_root(root: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step(format!("open root {}", root.display()))
}

/// Opens `path` as if `root` were `/`: absolute links and `..` stay inside (openat2's RESOLVE_IN_ROOT).
pub fn open_in(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// The target of a mount: made if it is missing, as a folder or as an empty file.
pub fn mount_point(root: BorrowedFd<'_>, path: &Path, folder: bool) -> Result<OwnedFd> {
    let failed = |error: Errno| Error::System { step: format!("make mount point {}", path.display()), source: error };
    match open_in(root, path, OFlags::PATH) {
        Ok(found) => return Ok(found),
        Err(Errno::NOENT) => {}
        Err(error) => return Err(failed(error)),
    }
    let mut parts: Vec<&std::ffi::OsStr> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    let Some(last) = parts.pop() else { return Err(failed(Errno::NOENT)) };
    let mut here = PathBuf::new();
    let mut parent = open_in(root, Path::new("/"), OFlags::PATH | OFlags::DIRECTORY).map_err(failed)?;
    for part in parts {
        here.push(part);
        parent = match open_in(root, &here, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(found) => found,
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&parent, part, Mode::from_raw_mode(0o755)).map_err(failed)?;
                open_in(root, &here, OFlags::PATH | OFlags::DIRECTORY).map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
        };
    }
    if folder {
        rustix::fs::mkdirat(&parent, last, Mode::from_raw_mode(0o755)).map_err(failed)?;
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&parent, last, flags, Mode::from_raw_mode(0o644)).map_err(failed)?;
    }
    open_in(root, path, OFlags::PATH).map_err(failed)
}

/// A path that names an open file, whatever happens to its name.
pub fn by_fd(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// Reads a small file inside the root; `None` if it is missing or larger than `limit` bytes.
pub fn read_small(root: BorrowedFd<'_>, path: &Path, limit: u64) -> Option<String> {
    use std::io::Read;
    let file = std::fs::File::from(open_in(root, path, OFlags::RDONLY | OFlags::NONBLOCK).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(limit).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_do_not_lead_out() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        let inside = folder.path().join("root");
        std::fs::create_dir_all(inside.join("etc")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), "s").unwrap();
        symlink(&outside, inside.join("absolute")).unwrap();
        symlink("../../outside", inside.join("etc/relative")).unwrap();
        let root = open_root(&inside).unwrap();
        for path in ["absolute/secret", "etc/relative/secret", "../outside/secret"] {
            assert_eq!(read_small(root.as_fd(), Path::new(path), 10), None, "{path}");
        }
        // A mount point below such a link is made inside, or refused; never outside.
        let made = mount_point(root.as_fd(), Path::new("/absolute/x"), true);
        assert!(!outside.join("x").exists());
        drop(made);
        mount_point(root.as_fd(), Path::new("/a/b/c"), false).unwrap();
        assert!(inside.join("a/b/c").is_file());
    }
}
