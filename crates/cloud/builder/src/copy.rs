//! COPY and ADD: which files, where to, whose, and what decides whether they were copied before.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use dhow_image::{Digest, Entry, EntryKind, Hasher, LayerWriter, Node, View, clean};
use rustix::fs::FileType;

use crate::Digests;
use crate::error::{Error, Result};
use crate::glob::{Glob, Ignore};
use crate::owner::Owner;
use crate::plan::Copy;

/// A file or folder on its way into a layer.
pub struct Chosen {
    entry: Entry,
    data: Data,
}

enum Data {
    None,
    /// In the tree that is copied from.
    Node(Node),
    Inline(String),
}

/// What a mode in `--chmod` does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    Exactly(u32),
    Symbolic(Vec<Change>),
}

/// One `who op what` of a symbolic mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    who: u32,
    op: char,
    bits: u32,
    /// `X`: execute for folders, and for files that somebody may execute.
    execute: bool,
}

impl Mode {
    /// Octal, or as chmod(1) has it.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("invalid chmod parameter: {text:?}: it should be octal, or symbolic as in u=rwX,go=rX");
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).map_err(|_| wrong())?;
            return if mode > 0o7777 { Err(wrong()) } else { Ok(Mode::Exactly(mode)) };
        }
        let mut changes = Vec::new();
        for part in text.split(',') {
            let at = part.find(['+', '-', '=']).ok_or_else(wrong)?;
            let (who, rest) = part.split_at(at);
            let mut mask = 0;
            for c in who.chars() {
                mask |= match c {
                    'u' => 0o4700,
                    'g' => 0o2070,
                    'o' => 0o1007,
                    'a' => 0o7777,
                    _ => return Err(wrong()),
                };
            }
            let who = if mask == 0 { 0o7777 } else { mask };
            let mut chars = rest.chars();
            let op = chars.next().ok_or_else(wrong)?;
            let (mut bits, mut execute) = (0, false);
            for c in chars {
                match c {
                    'r' => bits |= 0o444,
                    'w' => bits |= 0o222,
                    'x' => bits |= 0o111,
                    'X' => execute = true,
                    's' => bits |= 0o6000,
                    't' => bits |= 0o1000,
                    _ => return Err(wrong()),
                }
            }
            changes.push(Change { who, op, bits, execute });
        }
        Ok(Mode::Symbolic(changes))
    }

    fn apply(&self, mode: u32, folder: bool) -> u32 {
        match self {
            Mode::Exactly(exactly) => *exactly,
            Mode::Symbolic(changes) => changes.iter().fold(mode, |mode, change| {
                let execute = if change.execute && (folder || mode & 0o111 != 0) { 0o111 } else { 0 };
                let bits = (change.bits | execute) & change.who;
                match change.op {
                    '+' => mode | bits,
                    '-' => mode & !bits,
                    _ => mode & !(change.who & 0o777) | bits,
                }
            }),
        }
    }
}

/// Where files come from and go to.
pub struct Job<'a> {
    pub copy: &'a Copy,
    pub source: &'a View,
    /// Files of the build's own context belong to root, whoever has them here.
    pub of_context: bool,
    /// What is there already; nothing with `--link`.
    pub target: &'a View,
    pub owner: Option<Owner>,
    /// For folders that are made on the way.
    pub now: i64,
}

struct Choosing<'a> {
    job: &'a Job<'a>,
    mode: Option<Mode>,
    exclude: Ignore,
    /// Folders that are there or were chosen.
    made: BTreeSet<PathBuf>,
    chosen: Vec<Chosen>,
}

/// All that is to be copied, folders before what is in them.
pub fn choose(job: &Job<'_>) -> Result<Vec<Chosen>> {
    let copy = job.copy;
    let mode = copy.chmod.as_deref().map(Mode::parse).transpose().map_err(Error::Invalid)?;
    let exclude = Ignore::new(copy.exclude.iter().map(String::as_str)).map_err(Error::Invalid)?;
    let mut choosing = Choosing { job, mode, exclude, made: BTreeSet::new(), chosen: Vec::new() };
    let folder = copy.destination.ends_with('/');
    let into = job.target.resolve(Path::new(&copy.destination), !copy.link).at("look at the destination")?;
    let there = choosing.existing(&into)?;
    if there == Some(false) && folder {
        return Err(Error::Invalid(format!("cannot copy to non-directory: {}", copy.destination)));
    }
    let folder = folder || there == Some(true);
    for heredoc in &copy.inline {
        let to = if folder { into.join(&heredoc.name) } else { into.clone() };
        choosing.file_at(&to)?;
        let kind = EntryKind::File(heredoc.content.len() as u64);
        choosing.push(&to, kind, 0o644, (0, 0), job.now, Vec::new(), Data::Inline(heredoc.content.clone()));
    }
    for pattern in &copy.sources {
        choosing.source(pattern, &into, folder)?;
    }
    Ok(choosing.chosen)
}

/// A folder and those above it that are not there yet.
pub fn folder(job: &Job<'_>, at: &Path) -> Result<Vec<Chosen>> {
    let mut choosing =
        Choosing { job, mode: None, exclude: Ignore::default(), made: BTreeSet::new(), chosen: Vec::new() };
    choosing.parents_of(&at.join("inside"))?;
    Ok(choosing.chosen)
}

/// Everything there is in these trees, as an archive; each in a folder of its own if it has a name.
pub fn export(trees: &[(Option<String>, View)], to: impl Write) -> Result<()> {
    let target = View::open(&[])?;
    let mut writer = LayerWriter::new(to);
    for (folder, source) in trees {
        let destination = folder.as_ref().map_or_else(|| "/".to_owned(), |folder| format!("/{folder}/"));
        let copy = Copy::plain(crate::plan::Origin::Scratch, "/", &destination);
        let job = Job { copy: &copy, source, of_context: false, target: &target, owner: None, now: 0 };
        choose(&job)?.iter().try_for_each(|one| append(one, source, None, &mut writer)).at("write the files")?;
    }
    writer.finish().and_then(|mut to| to.flush()).at("write the files")
}

impl Choosing<'_> {
    fn source(&mut self, pattern: &str, into: &Path, folder: bool) -> Result<()> {
        let (pivot, cleaned) = match pattern.split_once("/./").filter(|_| self.job.copy.parents) {
            Some((before, after)) => (clean(before), clean(&format!("{before}/{after}"))),
            None => (String::new(), clean(pattern)),
        };
        let wild = cleaned.contains(['*', '?', '[']);
        let found = if wild { self.matches(&cleaned)? } else { vec![PathBuf::from(&cleaned)] };
        for path in found {
            let real = self.job.source.resolve(&path, true).at("follow links")?;
            let node = self.job.source.lstat(&real).at("look at a source")?;
            let Some(node) = node else {
                if wild {
                    continue;
                }
                return Err(Error::Invalid(format!("\"/{cleaned}\": not found")));
            };
            let to = if self.job.copy.parents {
                let kept = path.strip_prefix(&pivot).unwrap_or(&path);
                into.join(kept)
            } else if node.is_dir() {
                into.to_owned()
            } else if folder {
                into.join(path.file_name().unwrap_or_default())
            } else {
                into.to_owned()
            };
            if node.is_dir() {
                self.top(&node, &to)?;
            } else if !self.exclude.ignores(&path.file_name().unwrap_or_default().to_string_lossy()) {
                self.file_at(&to)?;
                self.node(node, &to)?;
            }
        }
        Ok(())
    }

    /// The names that a pattern stands for. Its stars cross folders with `--parents` only.
    fn matches(&self, pattern: &str) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let deep = self.job.copy.parents && pattern.contains("**");
        if deep {
            let glob = Glob::new(pattern, true).map_err(Error::Invalid)?;
            let mut todo = vec![PathBuf::new()];
            while let Some(folder) = todo.pop() {
                for (name, node) in self.job.source.list(&folder).at("list the source")? {
                    let path = folder.join(name);
                    if glob.matches(&path.to_string_lossy()) {
                        found.push(path);
                    } else if node.is_dir() {
                        todo.push(path);
                    }
                }
            }
            found.sort();
            return Ok(found);
        }
        found.push(PathBuf::new());
        for part in pattern.split('/') {
            let glob = Glob::new(part, false).map_err(Error::Invalid)?;
            let mut next = Vec::new();
            for folder in found {
                if !part.contains(['*', '?', '[']) {
                    next.push(folder.join(part));
                    continue;
                }
                let real = self.job.source.resolve(&folder, true).at("follow links")?;
                let names = self.job.source.list(&real).at("list the source")?.into_keys();
                next.extend(names.filter(|name| glob.matches(&name.to_string_lossy())).map(|name| folder.join(name)));
            }
            found = next;
        }
        Ok(found)
    }

    /// What is in a folder goes into another; its own attributes only if the other is not there yet.
    fn top(&mut self, node: &Node, to: &Path) -> Result<()> {
        match self.existing(to)? {
            Some(true) => {}
            Some(false) => return Err(Error::Invalid(format!("cannot copy to non-directory: /{}", to.display()))),
            None => {
                self.parents_of(to)?;
                self.folder_like(node, to)?;
            }
        }
        self.children(node.path(), Path::new(""), to)
    }

    fn children(&mut self, from: &Path, below: &Path, to: &Path) -> Result<()> {
        for (name, node) in self.job.source.list(from).at("list the source")? {
            let (relative, target) = (below.join(&name), to.join(&name));
            let left_out = self.exclude.ignores(&relative.to_string_lossy());
            if node.is_dir() {
                if left_out && !self.exclude.has_exceptions() {
                    continue;
                }
                let before = self.chosen.len();
                match self.existing(&target)? {
                    Some(false) => {
                        let place = target.display();
                        return Err(Error::Invalid(format!("cannot copy to non-directory: /{place}")));
                    }
                    _ => self.folder_like(&node, &target)?,
                }
                let mark = self.chosen.len();
                self.children(&from.join(&name), &relative, &target)?;
                // A folder that is left out stays for what was let in again only.
                if left_out && self.chosen.len() == mark {
                    self.chosen.truncate(before);
                    self.made.remove(&target);
                }
            } else if !left_out {
                self.node(node, &target)?;
            }
        }
        Ok(())
    }

    /// `Some(true)` for a folder, `Some(false)` for anything else that is there.
    fn existing(&self, path: &Path) -> Result<Option<bool>> {
        if path.as_os_str().is_empty() || self.made.contains(path) {
            return Ok(Some(true));
        }
        Ok(self.job.target.lstat(path).at("look at the destination")?.map(|node| node.is_dir()))
    }

    /// Makes sure that a file can be written there.
    fn file_at(&mut self, to: &Path) -> Result<()> {
        self.parents_of(to)?;
        if self.existing(to)? == Some(true) {
            return Err(Error::Invalid(format!("cannot overwrite directory /{} with a file", to.display())));
        }
        Ok(())
    }

    /// Makes the folders above that are not there yet.
    fn parents_of(&mut self, path: &Path) -> Result<()> {
        let mut missing = Vec::new();
        for parent in path.ancestors().skip(1) {
            match self.existing(parent)? {
                Some(true) => break,
                Some(false) => {
                    return Err(Error::Invalid(format!("cannot create /{}: not a directory", parent.display())));
                }
                None => missing.push(parent.to_owned()),
            }
        }
        for parent in missing.into_iter().rev() {
            self.push(&parent, EntryKind::Folder, 0o755, (0, 0), self.job.now, Vec::new(), Data::None);
            self.made.insert(parent);
        }
        Ok(())
    }

    fn folder_like(&mut self, node: &Node, to: &Path) -> Result<()> {
        let xattrs = self.job.source.xattrs(node).at("read attributes")?;
        let stat = &node.stat;
        let mode = self.changed(stat.st_mode & 0o7777, true);
        self.push(to, EntryKind::Folder, mode, (stat.st_uid, stat.st_gid), stat.st_mtime, xattrs, Data::None);
        self.made.insert(to.to_owned());
        Ok(())
    }

    fn changed(&self, mode: u32, folder: bool) -> u32 {
        self.mode.as_ref().map_or(mode, |change| change.apply(mode, folder))
    }

    fn node(&mut self, node: Node, to: &Path) -> Result<()> {
        let stat = node.stat;
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match node.kind() {
            FileType::RegularFile => EntryKind::File(u64::try_from(stat.st_size).unwrap_or(0)),
            FileType::Symlink => EntryKind::Symlink(self.job.source.readlink(&node).at("read a link")?),
            FileType::Fifo => EntryKind::Fifo,
            FileType::CharacterDevice => EntryKind::Char(device.0, device.1),
            FileType::BlockDevice => EntryKind::Block(device.0, device.1),
            _ => return Ok(()),
        };
        let xattrs = self.job.source.xattrs(&node).at("read attributes")?;
        let data = if matches!(kind, EntryKind::File(_)) { Data::Node(node) } else { Data::None };
        let link = matches!(kind, EntryKind::Symlink(_));
        let mode = if link { 0o777 } else { self.changed(stat.st_mode & 0o7777, false) };
        self.push(to, kind, mode, (stat.st_uid, stat.st_gid), stat.st_mtime, xattrs, data);
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn push(
        &mut self,
        to: &Path,
        kind: EntryKind,
        mode: u32,
        ids: (u32, u32),
        mtime: i64,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
        data: Data,
    ) {
        let (uid, gid) = match self.job.owner {
            Some(owner) => (owner.uid, owner.gid),
            None if self.job.of_context => (0, 0),
            None => ids,
        };
        let mode = if matches!(data, Data::Inline(_)) { self.changed(mode, false) } else { mode };
        let path = to.as_os_str().as_bytes().to_vec();
        self.chosen.push(Chosen { entry: Entry { path, kind, mode, uid, gid, mtime, xattrs }, data });
    }
}

/// What is copied, in one number: names, attributes and bytes, but no times.
pub fn digest(chosen: &[Chosen], source: &View, known: &Digests) -> Result<Digest> {
    let mut hasher = Hasher::sha256();
    for one in chosen {
        let Entry { path, kind, mode, uid, gid, xattrs, .. } = &one.entry;
        let path = PathBuf::from(std::ffi::OsString::from_vec(path.clone()));
        hasher.update(format!("{path:?} {kind:?} {mode:o} {uid} {gid} {xattrs:?}\n").as_bytes());
        match &one.data {
            Data::None => {}
            Data::Inline(text) => hasher.update(Digest::of(text.as_bytes()).as_str().as_bytes()),
            Data::Node(node) => match known.get(node.path()) {
                Some(digest) => hasher.update(digest.as_str().as_bytes()),
                None => {
                    let file = source.file(node).at("read a source")?;
                    hasher.update(crate::add::hash(file, Hasher::sha256())?.as_str().as_bytes());
                }
            },
        }
    }
    Ok(hasher.finish())
}

/// Writes what was chosen as an archive, in which each thing is once: as it was chosen last. With `latest` nothing is newer.
pub fn write(parts: &[(Vec<Chosen>, View)], latest: Option<i64>, to: impl Write) -> io::Result<()> {
    let mut writer = LayerWriter::new(to);
    let places = parts.iter().flat_map(|(chosen, _)| chosen).enumerate();
    let last: HashMap<&[u8], usize> = places.map(|(at, one)| (one.entry.path.as_slice(), at)).collect();
    let mut at = 0;
    for (chosen, source) in parts {
        for one in chosen {
            // A folder comes before what is in it.
            if one.entry.kind == EntryKind::Folder || last.get(one.entry.path.as_slice()) == Some(&at) {
                append(one, source, latest, &mut writer)?;
            }
            at += 1;
        }
    }
    writer.finish()?.flush()
}

fn append(one: &Chosen, source: &View, latest: Option<i64>, writer: &mut LayerWriter<impl Write>) -> io::Result<()> {
    let dated;
    let entry = match latest.filter(|latest| *latest < one.entry.mtime) {
        Some(latest) => {
            dated = Entry { mtime: latest, ..one.entry.clone() };
            &dated
        }
        None => &one.entry,
    };
    match &one.data {
        Data::None => writer.append(entry, io::empty()),
        Data::Inline(text) => writer.append(entry, text.as_bytes()),
        Data::Node(node) => writer.append(entry, source.file(node)?),
    }
}

/// Says what was being done when the file system refused.
pub trait At<T> {
    fn at(self, doing: &str) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, doing: &str) -> Result<T> {
        self.map_err(|source| Error::Io { doing: doing.to_owned(), source })
    }
}
