//! Copies a tree of files as it is: bytes (shared with the source where the filesystem can), holes, owners, modes, times,
//! extended attributes with access lists, links and special files.
//!
//! Containers may write below the source meanwhile. Nothing is followed by its name: every step goes from an open folder to
//! one entry of it that is no link, so that what is copied is always below where the copy began.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

/// Folders within folders; each takes open files while it is copied.
const DEEPEST: usize = 200;
/// Of the filesystem, this part stays free.
const SPARE: u64 = 20;

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    pub files: u64,
    /// Bytes that were written.
    pub written: u64,
    /// Bytes that both have now.
    pub shared: u64,
}

/// Copies what is in the folder `from`, and what the folder itself is like, to `to`, which is made. It is on the disk when
/// this returns.
pub fn tree(from: &Path, to: &Path) -> io::Result<Copied> {
    let source = rustix::fs::openat(CWD, from, FOLDER, Mode::empty())?;
    std::fs::create_dir(to)?;
    let target = rustix::fs::openat(CWD, to, FOLDER, Mode::empty())?;
    let mut copy = Copy { root: target.try_clone()?, linked: HashMap::new(), done: Copied::default() };
    copy.folder(&source, &target, Path::new(""), 0)?;
    rustix::fs::syncfs(&target)?;
    Ok(copy.done)
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

struct Copy {
    root: OwnedFd,
    /// Where files with several names are, below the root.
    linked: HashMap<(u64, u64), PathBuf>,
    done: Copied,
}

impl Copy {
    fn folder(&mut self, source: &OwnedFd, target: &OwnedFd, path: &Path, depth: usize) -> io::Result<()> {
        if depth > DEEPEST {
            return Err(io::Error::other(format!("{} is more than {DEEPEST} folders deep", path.display())));
        }
        for entry in Dir::read_from(source)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            self.entry(source, target, name, &path, depth).map_err(|error| match error.kind() {
                io::ErrorKind::Other | io::ErrorKind::StorageFull => error,
                kind => io::Error::new(kind, format!("{}: {error}", path.display())),
            })?;
        }
        like(source, target, &rustix::fs::fstat(source)?)
    }

    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, path: &Path, depth: usize) -> io::Result<()> {
        let handle = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let seen = match rustix::fs::openat(from, name, handle, Mode::empty()) {
            // It went while the folder was read.
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        let stat = rustix::fs::fstat(&seen)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let inner = rustix::fs::openat(&seen, c".", FOLDER, Mode::empty())?;
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let target = rustix::fs::openat(to, name, FOLDER, Mode::empty())?;
            return self.folder(&inner, &target, path, depth + 1);
        }
        let identity = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.linked.get(&identity) {
            return Ok(rustix::fs::linkat(&self.root, first, to, name, AtFlags::empty())?);
        }
        match kind {
            FileType::RegularFile => self.file(&seen, to, name, &stat)?,
            FileType::Symlink => {
                let text = rustix::fs::readlinkat(&seen, c"", Vec::new())?;
                rustix::fs::symlinkat(&text, to, name)?;
                named(to, name, &stat)?;
            }
            _ => {
                rustix::fs::mknodat(to, name, kind, Mode::RUSR, stat.st_rdev)?;
                rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
                named(to, name, &stat)?;
            }
        }
        self.done.files += 1;
        if stat.st_nlink > 1 {
            self.linked.insert(identity, path.to_owned());
        }
        Ok(())
    }

    fn file(&mut self, seen: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
        // What was looked at, not what has its name by now.
        let source = File::open(format!("/proc/self/fd/{}", seen.as_raw_fd()))?;
        let new = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = File::from(rustix::fs::openat(to, name, new, Mode::RUSR | Mode::WUSR)?);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size > 0 && rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
            self.done.shared += size;
        } else if size > 0 {
            self.written(&source, &target, size, stat)?;
        }
        like(&source, &target, stat)
    }

    /// Writes what there is between the holes of a file.
    fn written(&mut self, source: &File, target: &File, size: u64, stat: &Stat) -> io::Result<()> {
        let free = rustix::fs::fstatvfs(target)?;
        let left = free.f_bavail.saturating_sub(free.f_blocks / SPARE) * free.f_frsize;
        let needs = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        if needs > left {
            let text = format!("the node's disk has {left} bytes to spare, a file of {needs} bytes is to be copied");
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(source, SeekFrom::Data(at)) {
                Ok(start) if start < size => start,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            // A file that grows meanwhile is as long as it was.
            let end = rustix::fs::seek(source, SeekFrom::Hole(start))?.min(size);
            rustix::fs::seek(source, SeekFrom::Start(start))?;
            rustix::fs::seek(target, SeekFrom::Start(start))?;
            self.done.written += io::copy(&mut source.take(end - start), &mut &*target)?;
            at = end.max(start + 1);
        }
        Ok(rustix::fs::ftruncate(target, size)?)
    }
}

fn times(stat: &Stat) -> Timestamps {
    let at = |tv_sec: i64, tv_nsec: u64| Timespec { tv_sec, tv_nsec: i64::try_from(tv_nsec).unwrap_or(0) };
    Timestamps {
        last_access: at(stat.st_atime, stat.st_atime_nsec),
        last_modification: at(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn owner(stat: &Stat) -> (Option<rustix::fs::Uid>, Option<rustix::fs::Gid>) {
    (Some(rustix::fs::Uid::from_raw(stat.st_uid)), Some(rustix::fs::Gid::from_raw(stat.st_gid)))
}

/// Owner and times of what cannot be opened.
fn named(folder: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (user, group) = owner(stat);
    rustix::fs::chownat(folder, name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(rustix::fs::utimensat(folder, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Makes one file or folder like another. A new owner takes capabilities away, so those come after it.
fn like(source: impl AsFd, target: impl AsFd, stat: &Stat) -> io::Result<()> {
    let (user, group) = owner(stat);
    rustix::fs::fchown(&target, user, group)?;
    rustix::fs::fchmod(&target, Mode::from_raw_mode(stat.st_mode))?;
    attributes(&source, &target)?;
    Ok(rustix::fs::futimens(&target, &times(stat))?)
}

fn attributes(source: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let mut names = vec![0; 1 << 16];
    let length = match rustix::fs::flistxattr(&source, &mut names) {
        Err(Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    let mut value = vec![0; 1 << 16];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = CString::new(name)?;
        let length = match rustix::fs::fgetxattr(&source, &name, &mut value) {
            // It went meanwhile.
            Err(Errno::NODATA) => continue,
            other => other?,
        };
        match rustix::fs::fsetxattr(&target, &name, &value[..length], XattrFlags::empty()) {
            // What the kernel's security module says of a file is its own affair.
            Err(Errno::NOTSUP | Errno::PERM) if name.to_bytes().starts_with(b"security.") => {}
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Seek, Write};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_copy_is_like_what_it_is_of() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("inner/deep")).unwrap();
        std::fs::write(from.join("inner/deep/row"), "data").unwrap();
        std::fs::hard_link(from.join("inner/deep/row"), from.join("again")).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        std::fs::set_permissions(from.join("inner"), PermissionsExt::from_mode(0o2751)).unwrap();
        let mut sparse = File::create(from.join("sparse")).unwrap();
        sparse.seek(io::SeekFrom::Start(8 << 20)).unwrap();
        sparse.write_all(b"end").unwrap();
        sparse.set_len(16 << 20).unwrap();
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(86_400);
        sparse.set_modified(old).unwrap();
        rustix::fs::mknodat(CWD, from.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let file = File::open(from.join("inner/deep/row")).unwrap();
        let kept = rustix::fs::fsetxattr(&file, "user.kept", b"yes", XattrFlags::empty()).is_ok();

        let copied = tree(&from, &to).unwrap();
        assert_eq!(copied.files, 4, "{copied:?}");
        assert_eq!(std::fs::read_to_string(to.join("inner/deep/row")).unwrap(), "data");
        let inode = |path: &str| std::fs::metadata(to.join(path)).unwrap().ino();
        assert_eq!(inode("inner/deep/row"), inode("again"));
        assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(std::fs::metadata(to.join("inner")).unwrap().mode() & 0o7777, 0o2751);
        let sparse = std::fs::metadata(to.join("sparse")).unwrap();
        assert_eq!((sparse.len(), sparse.modified().unwrap()), (16 << 20, old));
        assert!(sparse.blocks() * 512 < 1 << 20, "holes are filled: {} blocks", sparse.blocks());
        assert_eq!(&std::fs::read(to.join("sparse")).unwrap()[8 << 20..(8 << 20) + 3], b"end");
        assert!(std::fs::symlink_metadata(to.join("fifo")).unwrap().mode() & 0o170_000 == 0o010_000);
        if kept {
            let mut value = [0; 8];
            let copy = File::open(to.join("again")).unwrap();
            assert_eq!(rustix::fs::fgetxattr(&copy, "user.kept", &mut value).unwrap(), 3);
        }
        assert!(tree(&from.join("link"), &dir.path().join("x")).is_err(), "a link is not followed");
    }
}
