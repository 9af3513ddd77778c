//! Copies a folder's contents by descriptors, for a tmpfs that begins with what it covers. Links are copied, not followed.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Result;

/// Everything below `from` into the empty folder `to`, with owners and modes.
pub fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let mut folder = Dir::read_from(from)?;
    while let Some(entry) = folder.read() {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let (kind, mode) = (FileType::from_raw_mode(stat.st_mode), Mode::from_raw_mode(stat.st_mode & 0o7777));
        let own = OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match kind {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, mode)?;
                let inner = rustix::fs::openat(from, name, own | OFlags::DIRECTORY, Mode::empty())?;
                let copy = rustix::fs::openat(to, name, own | OFlags::DIRECTORY, Mode::empty())?;
                tree(inner.as_fd(), copy.as_fd())?;
            }
            FileType::RegularFile => {
                let source = rustix::fs::openat(from, name, own | OFlags::RDONLY, Mode::empty())?;
                let copy = rustix::fs::openat(to, name, own | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, mode)?;
                while rustix::fs::sendfile(&copy, &source, None, 1 << 20)? > 0 {}
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(target.as_c_str(), to, name)?;
            }
            // Devices, sockets and pipes of what is covered are of no use in a copy.
            _ => continue,
        }
        let (uid, gid) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
        rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != FileType::Symlink {
            rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
        }
    }
    Ok(())
}
