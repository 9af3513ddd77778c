//! Single file system steps relative to an open directory; none of them follows a symbolic link.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

fn confined() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV
}

/// What a name in a directory is, as far as overlayfs cares.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Found {
    Directory,
    Symlink,
    Whiteout,
    Other,
}

pub fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// The same folder once more, to be listed.
pub fn open_root_at(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(root, ".", flags, Mode::empty())
}

/// One component below `parent`.
pub fn open_dir(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    open_beneath_dir(parent, Path::new(name))
}

pub fn open_beneath_dir(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(root, path, flags, Mode::empty(), confined())
}

/// A handle for `fstat` and `readlink` only; opens nothing.
pub fn peek(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(root, path, flags, Mode::empty(), confined())
}

pub fn open_file(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat2(root, path, flags, Mode::empty(), confined())
}

pub fn create(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(parent, name, flags, Mode::from_raw_mode(0o600), confined())
}

pub fn kind(parent: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Found>, Errno> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(classify(&stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

pub fn classify(stat: &rustix::fs::Stat) -> Found {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Found::Directory,
        FileType::Symlink => Found::Symlink,
        FileType::CharacterDevice if stat.st_rdev == 0 => Found::Whiteout,
        _ => Found::Other,
    }
}

pub fn set_opaque(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::fsetxattr(dir, OPAQUE_XATTR, b"y", XattrFlags::empty())
}

pub fn is_opaque(dir: BorrowedFd<'_>) -> bool {
    let mut value = [0u8; 2];
    matches!(rustix::fs::fgetxattr(dir, OPAQUE_XATTR, &mut value), Ok(1)) && value[0] == b'y'
}

pub fn times(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: i64::from(mtime.1.min(999_999_999)) };
    Timestamps { last_access: time, last_modification: time }
}

/// Writes all but the whole zero pages, which become holes.
pub fn write_sparse(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    const PAGE: usize = 4096;
    let zero = |page: &[u8]| page.len() == PAGE && page.iter().all(|b| *b == 0);
    let mut start = 0;
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + PAGE).min(bytes.len());
        if zero(&bytes[at..end]) {
            if start < at {
                file.write_all_at(&bytes[start..at], offset + start as u64)?;
            }
            start = end;
        }
        at = end;
    }
    if start < bytes.len() {
        file.write_all_at(&bytes[start..], offset + start as u64)?;
    }
    Ok(())
}

/// Removes a directory and everything in it, without following links.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr, depth: u32) -> Result<(), Errno> {
    if depth > 2048 {
        return Err(Errno::LOOP);
    }
    let dir = open_dir(parent, name)?;
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let child = entry.file_name();
        if matches!(child.to_bytes(), b"." | b"..") {
            continue;
        }
        let child: &OsStr = std::os::unix::ffi::OsStrExt::from_bytes(child.to_bytes());
        match rustix::fs::unlinkat(&dir, child, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR | Errno::PERM) => remove_tree(std::os::fd::AsFd::as_fd(&dir), child, depth + 1)?,
            Err(e) => return Err(e),
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}
