//! Layers seen as one tree without mounting them: what overlayfs would show, for whoever only reads.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Dir, FileType, Stat};
use rustix::io::Errno;

use crate::unpack::fsops::{self, Found};
use crate::{Error, Result};

const MAX_LINKS: u32 = 40;

/// A tree made of layers. Links are resolved within it.
pub struct View {
    layers: Vec<OwnedFd>,
}

/// Something in the tree.
pub struct Node {
    layer: usize,
    path: PathBuf,
    /// Its attributes; of a link those of the link.
    pub stat: Stat,
}

impl Node {
    /// What it is.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Whether it is a folder.
    pub fn is_dir(&self) -> bool {
        self.kind() == FileType::Directory
    }

    /// Where it is in the tree, without a slash before it.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What the layers, top first, show at `path`, honouring whiteouts and opaque directories between them.
pub(crate) fn lookup(layers: &[OwnedFd], path: &Path) -> Result<Option<(usize, OwnedFd, Stat)>, Errno> {
    for (at, layer) in layers.iter().enumerate() {
        let mut hidden_below = false;
        let mut prefix = PathBuf::new();
        let mut parts = path.components().peekable();
        while let Some(part) = parts.next() {
            prefix.push(part);
            let fd = match fsops::peek(layer.as_fd(), &prefix) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => break,
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(e) => return Err(e),
            };
            let stat = rustix::fs::fstat(&fd)?;
            let found = fsops::classify(&stat);
            if found == Found::Whiteout {
                return Ok(None);
            }
            if parts.peek().is_none() {
                return Ok(Some((at, fd, stat)));
            }
            if found != Found::Directory {
                return Ok(None);
            }
            let dir = fsops::open_beneath_dir(layer.as_fd(), &prefix)?;
            hidden_below |= fsops::is_opaque(dir.as_fd());
        }
        if hidden_below {
            return Ok(None);
        }
    }
    Ok(None)
}

impl View {
    /// Of these layers, top first.
    pub fn open(layers: &[PathBuf]) -> Result<Self> {
        let open =
            |path: &PathBuf| fsops::open_root(path).map_err(|e| Error::io(format!("open {}", path.display()), e));
        Ok(View { layers: layers.iter().map(open).collect::<Result<_>>()? })
    }

    /// What is at a path whose folders are folders, not links; `None` if there is nothing.
    pub fn lstat(&self, path: &Path) -> io::Result<Option<Node>> {
        let path: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        if path.as_os_str().is_empty() {
            let Some(top) = self.layers.first() else { return Ok(None) };
            return Ok(Some(Node { layer: 0, path, stat: rustix::fs::fstat(top)? }));
        }
        let found = lookup(&self.layers, &path)?;
        Ok(found.map(|(layer, _, stat)| Node { layer, path, stat }))
    }

    /// The place that a path leads to once links are followed, the last one with `follow` only. What is not there is
    /// taken as it is written.
    pub fn resolve(&self, path: &Path, follow: bool) -> io::Result<PathBuf> {
        let mut todo: Vec<OsString> = parts(path).rev().collect();
        let mut at = PathBuf::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            let node = if todo.is_empty() && !follow { None } else { self.lstat(&next)? };
            match node {
                Some(node) if node.kind() == FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let target = PathBuf::from(OsString::from_vec(self.readlink(&node)?));
                    if target.is_absolute() {
                        at = PathBuf::new();
                    }
                    todo.extend(parts(&target).rev());
                }
                _ => at = next,
            }
        }
        Ok(at)
    }

    /// The target of a link.
    pub fn readlink(&self, node: &Node) -> io::Result<Vec<u8>> {
        let fd = fsops::peek(self.layers[node.layer].as_fd(), &node.path)?;
        Ok(rustix::fs::readlinkat(&fd, "", Vec::new())?.into_bytes())
    }

    /// A regular file, to read.
    pub fn file(&self, node: &Node) -> io::Result<File> {
        Ok(File::from(fsops::open_file(self.layers[node.layer].as_fd(), &node.path)?))
    }

    /// A small file as text; `None` if it is not there.
    pub fn text(&self, path: &Path) -> io::Result<Option<String>> {
        let at = self.resolve(path, true)?;
        match self.lstat(&at)? {
            Some(node) if node.kind() == FileType::RegularFile => io::read_to_string(self.file(&node)?).map(Some),
            _ => Ok(None),
        }
    }

    /// Extended attributes of a file or folder, those that an archive may have.
    pub fn xattrs(&self, node: &Node) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let layer = self.layers[node.layer].as_fd();
        match node.kind() {
            FileType::RegularFile => crate::build::pack::xattrs(fsops::open_file(layer, &node.path)?.as_fd()),
            FileType::Directory if !node.path.as_os_str().is_empty() => {
                crate::build::pack::xattrs(fsops::open_beneath_dir(layer, &node.path)?.as_fd())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// What is in a folder, by name.
    pub fn list(&self, path: &Path) -> io::Result<BTreeMap<OsString, Node>> {
        let mut found: BTreeMap<OsString, Option<Node>> = BTreeMap::new();
        for (layer, root) in self.layers.iter().enumerate() {
            let (dir, last) = match self.folder(root, path)? {
                Shown::Missing => continue,
                Shown::End => break,
                Shown::Folder(dir, last) => (dir, last),
            };
            for entry in Dir::read_from(&dir)? {
                let entry = entry?;
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                if name == "." || name == ".." || found.contains_key(name) {
                    continue;
                }
                let stat = rustix::fs::statat(&dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
                let node = Node { layer, path: path.join(name), stat };
                let hidden = fsops::classify(&node.stat) == Found::Whiteout;
                found.insert(name.to_owned(), (!hidden).then_some(node));
            }
            if last {
                break;
            }
        }
        Ok(found.into_iter().filter_map(|(name, node)| Some((name, node?))).collect())
    }

    /// What one layer has to say about a folder.
    fn folder(&self, root: &OwnedFd, path: &Path) -> io::Result<Shown> {
        let mut hidden_below = false;
        let mut prefix = PathBuf::new();
        let mut dir = fsops::open_root_at(root.as_fd())?;
        for part in path.components() {
            prefix.push(part);
            dir = match fsops::open_beneath_dir(root.as_fd(), &prefix) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => return Ok(if hidden_below { Shown::End } else { Shown::Missing }),
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Shown::End),
                Err(e) => return Err(e.into()),
            };
            hidden_below |= fsops::is_opaque(dir.as_fd());
        }
        Ok(Shown::Folder(dir, hidden_below))
    }
}

enum Shown {
    /// The layers below decide.
    Missing,
    /// Nothing from here on down.
    End,
    /// This, and with `true` nothing below it.
    Folder(OwnedFd, bool),
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn layers_are_seen_as_one_tree() {
        let folder = tempfile::tempdir().unwrap();
        let (low, top) = (folder.path().join("low"), folder.path().join("top"));
        for dir in ["low/a/deep", "low/gone", "low/o", "top/a", "top/o"] {
            fs::create_dir_all(folder.path().join(dir)).unwrap();
        }
        fs::write(low.join("a/x"), "low").unwrap();
        fs::write(low.join("a/deep/y"), "y").unwrap();
        fs::write(low.join("o/hidden"), "").unwrap();
        fs::write(top.join("a/x"), "top").unwrap();
        fs::write(top.join("o/new"), "").unwrap();
        std::os::unix::fs::symlink("/a/deep", top.join("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, top.join("gone"), FileType::CharacterDevice, 0.into(), 0).unwrap();
        fsops::set_opaque(fsops::open_root(&top.join("o")).unwrap().as_fd()).unwrap();
        let view = View::open(&[top, low]).unwrap();
        let names = |path: &str| -> Vec<OsString> { view.list(Path::new(path)).unwrap().into_keys().collect() };
        assert_eq!(names(""), ["a", "link", "o"]);
        assert_eq!(names("a"), ["deep", "x"]);
        assert_eq!(names("o"), ["new"]);
        assert!(view.lstat(Path::new("gone")).unwrap().is_none());
        assert!(view.lstat(Path::new("o/hidden")).unwrap().is_none());
        assert_eq!(view.text(Path::new("/a/x")).unwrap().unwrap(), "top");
        assert_eq!(view.text(Path::new("/link/y")).unwrap().unwrap(), "y");
        assert_eq!(view.resolve(Path::new("link/../x"), true).unwrap(), Path::new("a/x"));
        assert_eq!(view.resolve(Path::new("/link"), false).unwrap(), Path::new("link"));
        assert_eq!(view.resolve(Path::new("../../etc/new"), true).unwrap(), Path::new("etc/new"));
    }
}
