//! Finding or making an entry's parent directory, as a container would see it: symbolic links are
//! resolved beneath the root, and directories that only lower layers have are brought up with their
//! ownership and mode.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode};

use super::fsops::{self, Found};
use super::{Refused, Step, Unpacker};
use crate::view;

const MAX_LINKS: u32 = 40;

impl Unpacker<'_> {
    /// The directory an entry with these parent components lives in, made if need be, and its real path.
    pub(super) fn parent(&mut self, wanted: &[OsString]) -> Step<(Rc<OwnedFd>, PathBuf)> {
        if let Some((path, fd, at)) = &self.cached
            && path == wanted
        {
            return Ok((fd.clone(), at.clone()));
        }
        let (fd, at) = self.walk(wanted)?;
        self.cached = Some((wanted.to_vec(), fd.clone(), at.clone()));
        Ok((fd, at))
    }

    fn walk(&mut self, wanted: &[OsString]) -> Step<(Rc<OwnedFd>, PathBuf)> {
        let mut todo: VecDeque<OsString> = wanted.iter().cloned().collect();
        let mut at = PathBuf::new();
        let mut dir = self.root.clone();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                // Only from a link's target; at the root it stays at the root.
                at.pop();
                dir = if at.as_os_str().is_empty() {
                    self.root.clone()
                } else {
                    Rc::new(fsops::open_beneath_dir(self.root.as_fd(), &at)?)
                };
                continue;
            }
            let target = match fsops::kind(dir.as_fd(), &name)? {
                Some(Found::Directory) => None,
                Some(Found::Symlink) => Some(rustix::fs::readlinkat(&*dir, &name, Vec::new())?.into_bytes()),
                Some(Found::Whiteout) => {
                    rustix::fs::unlinkat(&*dir, &name, AtFlags::empty())?;
                    rustix::fs::mkdirat(&*dir, &name, Mode::from_raw_mode(0o755))?;
                    fsops::set_opaque(fsops::open_dir(dir.as_fd(), &name)?.as_fd())?;
                    None
                }
                Some(Found::Other) => {
                    return Err(Refused::new(format!("{} is not a directory", at.join(&name).display())));
                }
                None => self.bring_up(&dir, &at, &name)?,
            };
            match target {
                None => {
                    dir = Rc::new(fsops::open_dir(dir.as_fd(), &name)?);
                    at.push(&name);
                }
                Some(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Refused::new("too many levels of symbolic links in the parent path"));
                    }
                    let target = PathBuf::from(OsString::from_vec(target));
                    for part in target.components().rev() {
                        match part {
                            Component::Normal(part) => todo.push_front(part.to_owned()),
                            Component::ParentDir => todo.push_front("..".into()),
                            Component::RootDir => {
                                at = PathBuf::new();
                                dir = self.root.clone();
                            }
                            Component::CurDir | Component::Prefix(_) => {}
                        }
                    }
                }
            }
        }
        Ok((dir, at))
    }

    /// Makes a directory this layer lacks. Returns the target instead if a lower layer has a link there.
    fn bring_up(&mut self, dir: &OwnedFd, at: &Path, name: &OsStr) -> Step<Option<Vec<u8>>> {
        let lower = self.lower(&at.join(name))?;
        let mut attributes = None;
        if let Some((fd, stat)) = &lower {
            match fsops::classify(stat) {
                Found::Symlink => return Ok(Some(rustix::fs::readlinkat(fd, "", Vec::new())?.into_bytes())),
                Found::Directory => attributes = Some(stat),
                Found::Whiteout | Found::Other => {}
            }
        }
        rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755))?;
        let made = fsops::open_dir(dir.as_fd(), name)?;
        if let Some(stat) = attributes {
            let (uid, gid) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
            rustix::fs::fchown(&made, Some(uid), Some(gid))?;
            rustix::fs::fchmod(&made, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
            let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
            self.directories.push((at.join(name), mtime));
        } else {
            rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
        }
        Ok(None)
    }

    /// What the layers below show at `path`, honouring whiteouts and opaque directories between them.
    fn lower(&self, path: &Path) -> Step<Option<(OwnedFd, rustix::fs::Stat)>> {
        Ok(view::lookup(&self.lowers, path)?.map(|(_, fd, stat)| (fd, stat)))
    }

    /// Copies a file from a lower layer, so that a hard link can be made to it.
    pub(super) fn copy_up(&mut self, dir: &OwnedFd, name: &OsStr, path: &Path) -> Step {
        let missing = || Refused::new(format!("hard link to {}, which does not exist", path.display()));
        let (fd, stat) = self.lower(path)?.ok_or_else(missing)?;
        if fsops::classify(&stat) == Found::Symlink {
            let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
            rustix::fs::symlinkat(target.as_c_str(), dir, name)?;
            return Ok(());
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Refused::new(format!("hard link to {}, which is not a regular file", path.display())));
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.summary.bytes = self.summary.bytes.saturating_add(size);
        if self.summary.bytes > self.limits.bytes {
            return Err(Refused::new(format!("layer unpacks to more than {} bytes", self.limits.bytes)));
        }
        let source = self.lowers.iter().find_map(|lower| {
            let fd = fsops::open_file(lower.as_fd(), path).ok()?;
            let found = rustix::fs::fstat(&fd).ok()?;
            ((found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino)).then_some(fd)
        });
        let mut source = File::from(source.ok_or_else(missing)?);
        let mut copy = File::from(fsops::create(dir.as_fd(), name)?);
        io::copy(&mut source, &mut copy)?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
        rustix::fs::fchown(&copy, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&copy, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        copy_xattrs(&source, &copy)?;
        let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        rustix::fs::futimens(&copy, &fsops::times(mtime))?;
        Ok(())
    }
}

fn copy_xattrs(from: &File, to: &File) -> Step {
    let mut names = vec![0u8; 64 << 10];
    let length = rustix::fs::flistxattr(from, &mut names)?;
    for name in names[..length].split(|b| *b == 0).filter(|n| super::xattr_allowed(n)) {
        let name = OsStr::from_bytes(name);
        let mut value = vec![0u8; 64 << 10];
        let size = rustix::fs::fgetxattr(from, name, &mut value)?;
        rustix::fs::fsetxattr(to, name, &value[..size], rustix::fs::XattrFlags::empty())?;
    }
    Ok(())
}
