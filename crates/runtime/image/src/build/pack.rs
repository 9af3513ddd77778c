//! Writes layers: archives whose bytes depend on what is in them only.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD};

use crate::unpack::{fsops, xattr_allowed};

/// An entry of an archive.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Relative to the root; folders need no slash at their end.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since the epoch.
    pub mtime: i64,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EntryKind {
    /// Of so many bytes.
    File(u64),
    #[default]
    Folder,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Fifo,
    /// Major and minor number.
    Char(u32, u32),
    Block(u32, u32),
}

/// Writes entries one after the other.
pub struct LayerWriter<W: Write> {
    tar: tar::Builder<W>,
}

/// Longest name without an extended header.
const NAME: usize = 100;

impl<W: Write> LayerWriter<W> {
    /// Writes to this.
    pub fn new(to: W) -> Self {
        LayerWriter { tar: tar::Builder::new(to) }
    }

    /// One entry; `data` has as many bytes as its kind says.
    pub fn append(&mut self, entry: &Entry, data: impl Read) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        let mut extended: Vec<(String, Vec<u8>)> = Vec::new();
        let mut path = entry.path.clone();
        if entry.kind == EntryKind::Folder {
            path.push(b'/');
        }
        let (kind, size) = match &entry.kind {
            EntryKind::File(size) => (tar::EntryType::Regular, *size),
            EntryKind::Folder => (tar::EntryType::Directory, 0),
            EntryKind::Symlink(_) => (tar::EntryType::Symlink, 0),
            EntryKind::HardLink(_) => (tar::EntryType::Link, 0),
            EntryKind::Fifo => (tar::EntryType::Fifo, 0),
            EntryKind::Char(..) => (tar::EntryType::Char, 0),
            EntryKind::Block(..) => (tar::EntryType::Block, 0),
        };
        if let EntryKind::Symlink(target) | EntryKind::HardLink(target) = &entry.kind {
            field(&mut header.as_old_mut().linkname, target, "linkpath", &mut extended);
        }
        if let EntryKind::Char(major, minor) | EntryKind::Block(major, minor) = entry.kind {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        field(&mut header.as_old_mut().name, &path, "path", &mut extended);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(entry.mode & 0o7777);
        header.set_uid(entry.uid.into());
        header.set_gid(entry.gid.into());
        header.set_mtime(u64::try_from(entry.mtime).unwrap_or(0));
        for (name, value) in &entry.xattrs {
            extended.push((format!("SCHILY.xattr.{}", String::from_utf8_lossy(name)), value.clone()));
        }
        if !extended.is_empty() {
            self.tar.append_pax_extensions(extended.iter().map(|(name, value)| (name.as_str(), value.as_slice())))?;
        }
        header.set_cksum();
        let mut counted = data.take(size);
        self.tar.append(&header, &mut counted)?;
        if counted.limit() > 0 {
            let name = String::from_utf8_lossy(&entry.path).into_owned();
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{name} shrank while it was read")));
        }
        Ok(())
    }

    /// Writes the end.
    pub fn finish(self) -> io::Result<W> {
        self.tar.into_inner()
    }
}

/// A name in the header, or what fits of it and the whole in an extended header.
fn field(place: &mut [u8; NAME], text: &[u8], key: &str, extended: &mut Vec<(String, Vec<u8>)>) {
    let fits = text.len().min(NAME);
    place[..fits].copy_from_slice(&text[..fits]);
    if text.len() > NAME {
        extended.push((key.to_owned(), text.to_vec()));
    }
}

/// Writes what is in the upper folder of an overlay as a layer; returns how many entries there were. With `latest`
/// nothing in it, archive and folder, is newer than that.
pub(crate) fn pack<W: Write>(upper: &Path, latest: Option<i64>, to: &mut LayerWriter<W>) -> io::Result<u64> {
    let mut packing = Packing { to, latest, links: HashMap::new(), entries: 0 };
    packing.folder(upper, &mut Vec::new())?;
    Ok(packing.entries)
}

struct Packing<'a, W: Write> {
    to: &'a mut LayerWriter<W>,
    latest: Option<i64>,
    /// Files with several names, by where they were first.
    links: HashMap<(u64, u64), Vec<u8>>,
    entries: u64,
}

impl<W: Write> Packing<'_, W> {
    fn folder(&mut self, at: &Path, name: &mut Vec<u8>) -> io::Result<()> {
        let mut names: Vec<OsString> =
            fs::read_dir(at)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>()?;
        names.sort();
        for child in names {
            let length = name.len();
            if length > 0 {
                name.push(b'/');
            }
            name.extend_from_slice(child.as_bytes());
            self.entry(&at.join(&child), &child, name)?;
            name.truncate(length);
        }
        Ok(())
    }

    fn entry(&mut self, at: &Path, child: &OsStr, name: &mut Vec<u8>) -> io::Result<()> {
        let meta = fs::symlink_metadata(at)?;
        let kind = meta.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        self.entries += 1;
        let mtime = self.latest.map_or(meta.mtime(), |latest| latest.min(meta.mtime()));
        let device = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let mut entry = Entry {
            path: name.clone(),
            kind: EntryKind::Folder,
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            mtime,
            xattrs: Vec::new(),
        };
        if kind.is_char_device() && meta.rdev() == 0 {
            // Taken away: what was below is hidden.
            let parent = name.len() - child.len();
            entry.path = [&name[..parent], b".wh.", child.as_bytes()].concat();
            entry.kind = EntryKind::File(0);
            (entry.mode, entry.mtime) = (0o600, 0);
            return self.to.append(&entry, io::empty());
        }
        if !kind.is_dir() && meta.nlink() > 1 {
            match self.links.get(&(meta.dev(), meta.ino())) {
                Some(first) => {
                    entry.kind = EntryKind::HardLink(first.clone());
                    return self.to.append(&entry, io::empty());
                }
                None => drop(self.links.insert((meta.dev(), meta.ino()), name.clone())),
            }
        }
        if kind.is_dir() {
            let dir = File::open(at)?;
            entry.xattrs = xattrs(dir.as_fd())?;
            self.to.append(&entry, io::empty())?;
            if fsops::is_opaque(dir.as_fd()) {
                let path = [name.as_slice(), b"/.wh..wh..opq"].concat();
                let opaque = Entry { path, kind: EntryKind::File(0), mode: 0o600, ..Entry::default() };
                self.to.append(&opaque, io::empty())?;
            }
            self.folder(at, name)?;
        } else if kind.is_file() {
            let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
            let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(at)?;
            entry.xattrs = xattrs(file.as_fd())?;
            entry.kind = EntryKind::File(meta.len());
            self.to.append(&entry, file)?;
        } else {
            entry.kind = if kind.is_symlink() {
                EntryKind::Symlink(PathBuf::into_os_string(fs::read_link(at)?).into_vec())
            } else if kind.is_fifo() {
                EntryKind::Fifo
            } else if kind.is_block_device() {
                EntryKind::Block(device.0, device.1)
            } else {
                EntryKind::Char(device.0, device.1)
            };
            self.to.append(&entry, io::empty())?;
        }
        if mtime < meta.mtime() {
            rustix::fs::utimensat(CWD, at, &fsops::times((mtime, 0)), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }
}

/// Those attributes that a layer may have.
pub(crate) fn xattrs(fd: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0u8; 4 << 10];
    let length = loop {
        match rustix::fs::flistxattr(fd, names.as_mut_slice()) {
            Ok(length) => break length,
            Err(rustix::io::Errno::RANGE) if names.len() < 64 << 10 => names.resize(64 << 10, 0),
            Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    };
    let mut found = Vec::new();
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty() && xattr_allowed(name)) {
        let mut value = vec![0u8; 64 << 10];
        let size = rustix::fs::fgetxattr(fd, OsStr::from_bytes(name), value.as_mut_slice())?;
        value.truncate(size);
        found.push((name.to_vec(), value));
    }
    found.sort();
    Ok(found)
}
