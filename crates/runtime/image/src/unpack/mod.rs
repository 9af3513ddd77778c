//! Applies one layer archive to a directory that serves as an overlayfs lower layer.
//!
//! Invariants:
//! - Nothing is read or written outside the layer's directory. Paths are walked one component at a time,
//!   symbolic links are resolved as if the directory were `/`, and every kernel call goes through a
//!   descriptor opened with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV)`.
//! - An archive cannot forge overlayfs state: `trusted.*` attributes and 0:0 devices are refused or dropped.
//! - Bytes and entries are bounded; an error names the layer and the entry.

pub(crate) mod fsops;
mod parents;
pub mod tarball;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use self::tarball::{Kind, Member, TarReader};
use crate::{Error, Result};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const WHITEOUT_META: &[u8] = b".wh..wh.";

/// Bounds on one layer. The defaults fit the largest images in use with room to spare.
#[derive(Debug, Clone)]
pub struct Limits {
    pub entries: u64,
    pub bytes: u64,
    pub xattr_bytes: u64,
    /// Uncompressed bytes per compressed byte, for layers that unpack to more than `modest_bytes`: small files may
    /// compress without bound.
    pub ratio: u64,
    pub modest_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { entries: 4_000_000, bytes: 128 << 30, xattr_bytes: 64 << 20, ratio: 1000, modest_bytes: 1 << 30 }
    }
}

/// What was written.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    pub entries: u64,
    pub bytes: u64,
}

/// Unpacks `archive` (uncompressed) into the empty directory `into`. `lowers` are the layers below, top
/// first: directories the archive only implies take their ownership and mode from there.
pub fn unpack(archive: impl Read, into: &Path, lowers: &[PathBuf], layer: &str, limits: &Limits) -> Result<Summary> {
    let open = |path: &Path| fsops::open_root(path).map_err(|e| Error::io(format!("open {}", path.display()), e));
    let mut unpacker = Unpacker {
        root: Rc::new(open(into)?),
        lowers: lowers.iter().map(|l| open(l)).collect::<Result<_>>()?,
        cached: None,
        directories: Vec::new(),
        limits,
        xattr_bytes: 0,
        summary: Summary::default(),
    };
    let mut reader = TarReader::new(archive);
    let fail = |entry: &[u8], message: String| Error::Layer {
        layer: layer.to_owned(),
        entry: String::from_utf8_lossy(entry).into_owned(),
        message,
    };
    let mut previous = Vec::new();
    loop {
        let member = match reader.next_member() {
            Ok(Some(member)) => member,
            Ok(None) => break,
            Err(e) => return Err(fail(&previous, format!("after this entry: {e}"))),
        };
        unpacker.apply(&member, &mut reader).map_err(|e| fail(&member.path, e.0))?;
        previous = member.path;
    }
    unpacker.finish().map_err(|e| fail(b"", e.0))?;
    Ok(unpacker.summary)
}

/// Why an entry was refused; the caller adds layer and entry.
pub(crate) struct Refused(String);

impl Refused {
    fn new(message: impl Into<String>) -> Self {
        Refused(message.into())
    }
}

impl From<Errno> for Refused {
    fn from(e: Errno) -> Self {
        Refused(std::io::Error::from(e).to_string())
    }
}

impl From<std::io::Error> for Refused {
    fn from(e: std::io::Error) -> Self {
        Refused(e.to_string())
    }
}

type Step<T = ()> = std::result::Result<T, Refused>;

struct Unpacker<'a> {
    root: Rc<OwnedFd>,
    lowers: Vec<OwnedFd>,
    /// The last parent, as written in the archive, with its descriptor and where it really is.
    cached: Option<(Vec<OsString>, Rc<OwnedFd>, PathBuf)>,
    /// Directory times are set last: filling a directory changes them.
    directories: Vec<(PathBuf, (i64, u32))>,
    limits: &'a Limits,
    xattr_bytes: u64,
    summary: Summary,
}

impl Unpacker<'_> {
    fn apply<R: Read>(&mut self, member: &Member, reader: &mut TarReader<R>) -> Step {
        self.summary.entries += 1;
        if self.summary.entries > self.limits.entries {
            return Err(Refused::new(format!("more than {} entries", self.limits.entries)));
        }
        let mut path = components(&member.path)?;
        let Some(name) = path.pop() else {
            // The root itself: its attributes only.
            if member.kind == Kind::Directory {
                let root = self.root.clone();
                self.directory_attributes(root.as_fd(), PathBuf::from("."), member)?;
            }
            return Ok(());
        };
        if name.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(&path, &name);
        }
        let (parent, at) = self.parent(&path)?;
        let at = at.join(&name);
        match member.kind {
            Kind::Directory => return self.directory(&parent, &name, at, member),
            Kind::Other(b'g' | b'x') => return Ok(()),
            Kind::Other(other) => return Err(Refused::new(format!("unsupported entry type {:?}", other as char))),
            Kind::Char | Kind::Block if !device_allowed(member) => {
                if member.kind == Kind::Char && member.device == (0, 0) {
                    return Err(Refused::new("a 0:0 character device would forge an overlayfs whiteout"));
                }
                tracing::debug!(path = %at.display(), device = ?member.device, "skip device node in layer");
                return Ok(());
            }
            _ => {}
        }
        if member.kind == Kind::HardLink {
            return self.hard_link(&parent, &name, member);
        }
        self.clear(&parent, &name)?;
        match member.kind {
            Kind::File => return self.file(&parent, &name, member, reader),
            Kind::Symlink => {
                if member.link.is_empty() || member.link.contains(&0) {
                    return Err(Refused::new("symbolic link without a valid target"));
                }
                rustix::fs::symlinkat(OsStr::from_bytes(&member.link), parent.as_fd(), &name)?;
                self.cached = None;
            }
            Kind::Fifo => rustix::fs::mknodat(&parent, &name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?,
            Kind::Char | Kind::Block => {
                let kind = if member.kind == Kind::Char { FileType::CharacterDevice } else { FileType::BlockDevice };
                let device = rustix::fs::makedev(member.device.0, member.device.1);
                rustix::fs::mknodat(&parent, &name, kind, Mode::from_raw_mode(0o600), device)?;
            }
            Kind::Directory | Kind::HardLink | Kind::Other(_) => {}
        }
        let (uid, gid) = owner(member)?;
        rustix::fs::chownat(&parent, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if member.kind != Kind::Symlink {
            // Not a link: it was created by us just now, in a directory nobody else writes to.
            rustix::fs::chmodat(&parent, &name, Mode::from_raw_mode(member.mode), AtFlags::empty())?;
        }
        let times = fsops::times(member.mtime);
        rustix::fs::utimensat(&parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    fn file<R: Read>(&mut self, parent: &OwnedFd, name: &OsStr, member: &Member, reader: &mut TarReader<R>) -> Step {
        self.summary.bytes = self.summary.bytes.saturating_add(member.size);
        if self.summary.bytes > self.limits.bytes {
            return Err(Refused::new(format!("layer unpacks to more than {} bytes", self.limits.bytes)));
        }
        let file = File::from(fsops::create(parent.as_fd(), name)?);
        reader.copy_data(member, |offset, bytes| fsops::write_sparse(&file, offset, bytes))?;
        rustix::fs::ftruncate(&file, member.size)?;
        self.file_attributes(&file, member)
    }

    fn file_attributes(&mut self, file: &File, member: &Member) -> Step {
        let (uid, gid) = owner(member)?;
        // Order matters: a change of owner drops set-id bits and capabilities.
        rustix::fs::fchown(file, Some(uid), Some(gid))?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(member.mode))?;
        self.xattrs(file.as_fd(), member)?;
        rustix::fs::futimens(file, &fsops::times(member.mtime))?;
        Ok(())
    }

    fn directory(&mut self, parent: &OwnedFd, name: &OsStr, at: PathBuf, member: &Member) -> Step {
        match fsops::kind(parent.as_fd(), name)? {
            Some(fsops::Found::Directory) => {}
            Some(fsops::Found::Whiteout) => {
                // Removed below and made anew here: the new one must hide the old one's contents.
                rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
                rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
                fsops::set_opaque(fsops::open_dir(parent.as_fd(), name)?.as_fd())?;
            }
            Some(_) => {
                self.clear(parent, name)?;
                rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
            }
            None => rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?,
        }
        let fd = fsops::open_dir(parent.as_fd(), name)?;
        self.directory_attributes(fd.as_fd(), at, member)
    }

    fn directory_attributes(&mut self, fd: std::os::fd::BorrowedFd<'_>, at: PathBuf, member: &Member) -> Step {
        let (uid, gid) = owner(member)?;
        rustix::fs::fchown(fd, Some(uid), Some(gid))?;
        rustix::fs::fchmod(fd, Mode::from_raw_mode(member.mode))?;
        self.xattrs(fd, member)?;
        self.directories.push((at, member.mtime));
        Ok(())
    }

    fn hard_link(&mut self, parent: &OwnedFd, name: &OsStr, member: &Member) -> Step {
        let mut target = components(&member.link)?;
        let Some(target_name) = target.pop() else {
            return Err(Refused::new("hard link to the root directory"));
        };
        let text = String::from_utf8_lossy(&member.link).into_owned();
        let (from, at) = self.parent(&target)?;
        match fsops::kind(from.as_fd(), &target_name)? {
            Some(fsops::Found::Directory) => return Err(Refused::new(format!("hard link to directory {text}"))),
            Some(fsops::Found::Whiteout) => {
                return Err(Refused::new(format!("hard link to {text}, which this layer removes")));
            }
            Some(_) => {}
            None => self.copy_up(&from, &target_name, &at.join(&target_name))?,
        }
        let same = {
            let a = rustix::fs::fstat(&*from)?;
            let b = rustix::fs::fstat(parent)?;
            (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) && target_name == name
        };
        if same {
            return Err(Refused::new("hard link to itself"));
        }
        self.clear(parent, name)?;
        rustix::fs::linkat(&*from, &target_name, parent, name, AtFlags::empty())?;
        Ok(())
    }

    fn whiteout(&mut self, parent: &[OsString], name: &OsStr) -> Step {
        if name.as_bytes() == OPAQUE {
            let (dir, _) = self.parent(parent)?;
            return Ok(fsops::set_opaque(dir.as_fd())?);
        }
        if name.as_bytes().starts_with(WHITEOUT_META) {
            return Ok(()); // bookkeeping of an older union file system
        }
        let target = OsStr::from_bytes(&name.as_bytes()[WHITEOUT.len()..]);
        if matches!(target.as_bytes(), b"" | b"." | b"..") {
            return Err(Refused::new("whiteout of an invalid name"));
        }
        let (dir, _) = self.parent(parent)?;
        match fsops::kind(dir.as_fd(), target)? {
            // A whiteout is about the layers below; what this layer brings stays.
            Some(fsops::Found::Directory) => fsops::set_opaque(fsops::open_dir(dir.as_fd(), target)?.as_fd())?,
            Some(_) => {}
            None => rustix::fs::mknodat(&*dir, target, FileType::CharacterDevice, Mode::empty(), 0)?,
        }
        Ok(())
    }

    /// Removes whatever has this name in this layer; a later entry replaces an earlier one.
    fn clear(&mut self, parent: &OwnedFd, name: &OsStr) -> Step {
        match fsops::kind(parent.as_fd(), name)? {
            None => Ok(()),
            Some(fsops::Found::Directory) => {
                self.cached = None;
                Ok(fsops::remove_tree(parent.as_fd(), name, 0)?)
            }
            Some(found) => {
                if found == fsops::Found::Symlink {
                    self.cached = None;
                }
                Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?)
            }
        }
    }

    fn xattrs(&mut self, fd: std::os::fd::BorrowedFd<'_>, member: &Member) -> Step {
        for (name, value) in &member.xattrs {
            if !xattr_allowed(name) {
                tracing::debug!(name = %String::from_utf8_lossy(name), "skip extended attribute in layer");
                continue;
            }
            self.xattr_bytes += (name.len() + value.len()) as u64;
            if self.xattr_bytes > self.limits.xattr_bytes {
                return Err(Refused::new(format!("more than {} bytes of attributes", self.limits.xattr_bytes)));
            }
            match rustix::fs::fsetxattr(fd, OsStr::from_bytes(name), value, rustix::fs::XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => {
                    tracing::warn!(name = %String::from_utf8_lossy(name), "file system does not store this attribute");
                }
                Err(e) => {
                    let name = String::from_utf8_lossy(name).into_owned();
                    return Err(Refused::new(format!("set attribute {name}: {}", std::io::Error::from(e))));
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Step {
        for (path, mtime) in self.directories.iter().rev() {
            // A later entry may have replaced the directory.
            let Ok(fd) = fsops::open_beneath_dir(self.root.as_fd(), path) else { continue };
            rustix::fs::futimens(&fd, &fsops::times(*mtime))?;
        }
        Ok(())
    }
}

/// The path's components, refusing what could leave the layer. A leading `/` means the layer's root.
fn components(path: &[u8]) -> Step<Vec<OsString>> {
    if path.contains(&0) {
        return Err(Refused::new("path contains a NUL byte"));
    }
    if path.len() > 4096 {
        return Err(Refused::new("path is longer than 4096 bytes"));
    }
    let mut parts = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Refused::new("path contains '..'")),
            part => parts.push(OsString::from_vec(part.to_vec())),
        }
    }
    Ok(parts)
}

fn owner(member: &Member) -> Step<(rustix::fs::Uid, rustix::fs::Gid)> {
    let id = |id: u64, what| match u32::try_from(id) {
        // The all-ones id means "no change" to the kernel.
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Refused::new(format!("{what} {id} is out of range"))),
    };
    Ok((rustix::fs::Uid::from_raw(id(member.uid, "uid")?), rustix::fs::Gid::from_raw(id(member.gid, "gid")?)))
}

/// Nodes every container may use anyway. Others (disks, memory, kernel log) have no business in an image;
/// the runtime mounts its own `/dev`.
fn device_allowed(member: &Member) -> bool {
    member.kind == Kind::Char && matches!(member.device, (1, 3 | 5 | 7 | 8 | 9) | (5, 0..=2))
}

pub(crate) fn xattr_allowed(name: &[u8]) -> bool {
    name == b"security.capability"
        || name.starts_with(b"system.posix_acl_")
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

#[cfg(test)]
mod tests;
