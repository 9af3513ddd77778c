//! Blobs as files in one folder: `<key>` below it, and `.uploads/<id>` for what is not committed yet.
//!
//! Invariants: a file under its key is whole and on disk before it gets that name; a commit is acknowledged once the
//! folder knows the name for good. Commits that end together share one sync of their folder.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use parking_lot::Mutex;
use rustix::fs::syncfs;
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev};
use tokio::task::JoinHandle;

use super::direct::{BLOCK, Direct, cut};
use super::{Blob, BlobMeta, BlobStream, BlobUpload, PendingUpload, check_id, check_key};
use crate::Error;
use crate::core::next_id;

const UPLOADS: &str = ".uploads";
/// What one read of the disk brings. Large enough that changing threads for it does not show.
const READ: u64 = 1 << 20;
/// What one read of the kernel's memory brings. Small enough that it is still in the processor's cache when it is sent.
const GLANCE: u64 = 256 << 10;
/// After so much more the disk begins with what is written, so that the end has little left to wait for.
const WRITE_BEHIND: u64 = 8 << 20;
/// Writes of at least this go past the kernel's memory, where they can.
const LARGE: u64 = 256 << 10;
/// So many files are brought to disk by bringing all there: one by one each is a write that is waited for.
const MANY: usize = 64;

/// Cheap to clone; clones are the same store. One process at a time uses a folder.
#[derive(Clone)]
pub struct FsBlob(Arc<Inner>);

struct Inner {
    root: PathBuf,
    folders: Mutex<HashMap<PathBuf, Arc<Folder>>>,
    /// The file system takes no writes past the kernel's memory.
    only_buffered: AtomicBool,
}

/// Syncs of one folder, each for all the names given to it before.
#[derive(Default)]
struct Folder {
    asked: AtomicU64,
    done: tokio::sync::Mutex<u64>,
}

impl FsBlob {
    /// Opens the store in `root`, making it if there is none.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, Error> {
        let root = root.as_ref().to_owned();
        let uploads = root.join(UPLOADS);
        fs::create_dir_all(&uploads).map_err(|e| failed("create", &uploads, e))?;
        Ok(Self(Arc::new(Inner { root, folders: Mutex::default(), only_buffered: AtomicBool::new(false) })))
    }

    fn upload_path(&self, id: &str) -> Result<PathBuf, Error> {
        check_id(id)?;
        Ok(self.0.root.join(UPLOADS).join(id))
    }

    fn path(&self, key: &str) -> Result<PathBuf, Error> {
        check_key(key)?;
        Ok(self.0.root.join(key))
    }
}

fn failed(verb: &str, path: &Path, source: io::Error) -> Error {
    Error::Backend { context: format!("{verb} {}", path.display()), source: source.into() }
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Closed))
}

/// `None` when there is no such file.
fn found<T>(result: io::Result<T>, verb: &str, path: &Path) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(failed(verb, path, e)),
    }
}

impl Inner {
    /// Returns once every name that `folder` has now survives a power cut.
    async fn sync_folder(&self, path: PathBuf) -> Result<(), Error> {
        let folder = self.folders.lock().entry(path.clone()).or_default().clone();
        let ticket = folder.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut done = folder.done.lock().await;
        if *done >= ticket {
            return Ok(());
        }
        let covered = folder.asked.load(Ordering::Acquire);
        blocking(move || File::open(&path).and_then(|d| d.sync_all()).map_err(|e| failed("sync", &path, e))).await?;
        *done = covered;
        Ok(())
    }

    /// Writes all objects to disk, then gives them their names. Returns the folders whose names are not on disk yet, and in
    /// `unnamed` what was begun, from the last to the first.
    fn put_files(
        &self,
        objects: &[(String, Bytes)],
        unnamed: &mut Vec<(File, PathBuf)>,
    ) -> Result<BTreeSet<PathBuf>, Error> {
        let mut folders = BTreeSet::new();
        // Opened before anything is written, so that it is told of what cannot be.
        let disk = File::open(&self.root).map_err(|e| failed("open", &self.root, e))?;
        for (key, bytes) in objects.iter().rev() {
            let path = self.root.join(UPLOADS).join(format!("all-{}", next_id()));
            let file = OpenOptions::new().write(true).create_new(true).open(&path);
            unnamed.push((file.map_err(|e| failed("create", &path, e))?, path.clone()));
            let written = unnamed.last_mut().map_or(Ok(()), |(file, _)| file.write_all(bytes));
            written.map_err(|e| failed("write", &path, e))?;
            let to = self.root.join(key);
            if let Some(known) = self.make_parent(&to)? {
                let made = to.ancestors().skip(2).take_while(|parent| parent.starts_with(&known));
                folders.extend(made.map(Path::to_owned));
            }
            folders.extend(to.parent().map(Path::to_owned));
        }
        if objects.len() >= MANY {
            syncfs(&disk).map_err(|e| failed("sync", &self.root, e.into()))?;
        } else {
            for (file, path) in unnamed.iter() {
                file.sync_data().map_err(|e| failed("sync", path, e))?;
            }
        }
        for (key, _) in objects {
            let (Some((_, from)), to) = (unnamed.pop(), self.root.join(key)) else { break };
            fs::rename(&from, &to).map_err(|e| failed("create", &to, e))?;
        }
        Ok(folders)
    }

    /// Makes the folder of `path`; tells the lowest folder that was there before.
    fn make_parent(&self, path: &Path) -> Result<Option<PathBuf>, Error> {
        let parent = path.parent().unwrap_or(&self.root);
        if parent.is_dir() {
            return Ok(None);
        }
        let known = parent.ancestors().find(|folder| folder.is_dir()).unwrap_or(&self.root).to_owned();
        fs::create_dir_all(parent).map_err(|e| failed("create", parent, e))?;
        Ok(Some(known))
    }
}

/// Reads what the kernel has in memory, without a thread that may wait for the disk; `None`: it has not all of it.
fn glance(file: &File, range: &Range<u64>) -> Option<Bytes> {
    let mut bytes = vec![0u8; usize::try_from(range.end - range.start).ok()?];
    let mut have = 0;
    while have < bytes.len() {
        let slices = &mut [IoSliceMut::new(&mut bytes[have..])];
        match preadv2(file, slices, range.start + have as u64, ReadWriteFlags::NOWAIT) {
            Ok(0) | Err(_) => return None,
            Ok(n) => have += n,
        }
    }
    Some(Bytes::from(bytes))
}

/// The bytes of `range`: from the kernel's memory as long as they are there, then from the disk.
fn read(file: File, path: PathBuf, range: Range<u64>) -> BlobStream {
    stream::unfold(Reading::Memory(file, range.start), move |reading| {
        let (path, end) = (path.clone(), range.end);
        async move {
            let mut rest = match reading {
                Reading::Memory(_, at) if at >= end => return None,
                Reading::Memory(file, at) => {
                    let next = at.saturating_add(GLANCE).min(end);
                    if let Some(bytes) = glance(&file, &(at..next)) {
                        return Some((Ok(bytes), Reading::Memory(file, next)));
                    }
                    from_disk(file, path, at..end)
                }
                Reading::Disk(rest) => rest,
            };
            rest.next().await.map(|piece| (piece, Reading::Disk(rest)))
        }
    })
    .boxed()
}

enum Reading {
    /// From here on.
    Memory(File, u64),
    Disk(BlobStream),
}

/// Read ahead by one piece.
fn from_disk(file: File, path: PathBuf, range: Range<u64>) -> BlobStream {
    let file = Arc::new(file);
    let piece = move |at: u64| {
        let (file, path) = (file.clone(), path.clone());
        let end = at.saturating_add(READ).min(range.end);
        (at < end).then(|| {
            let work = blocking(move || {
                let mut bytes = vec![0u8; usize::try_from(end - at).unwrap_or_default()];
                file.read_exact_at(&mut bytes, at).map_err(|e| failed("read", &path, e))?;
                Ok(Bytes::from(bytes))
            });
            (tokio::spawn(work), end)
        })
    };
    let first = piece(range.start);
    stream::unfold((first, piece), |(next, piece)| async move {
        let (work, end): (JoinHandle<Result<Bytes, Error>>, u64) = next?;
        let following = piece(end);
        match work.await.unwrap_or(Err(Error::Closed)) {
            Ok(bytes) => Some((Ok(bytes), (following, piece))),
            Err(error) => Some((Err(error), (None, piece))),
        }
    })
    .boxed()
}

#[async_trait::async_trait]
impl Blob for FsBlob {
    async fn begin(&self, id: &str) -> Result<Box<dyn BlobUpload>, Error> {
        let path = self.upload_path(id)?;
        let inner = self.0.clone();
        let upload = blocking(move || {
            // A new file, not the old one cut short: a reader of the old one may still be there.
            let _ = fs::remove_file(&path);
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
            let file = Arc::new(file.map_err(|e| failed("create", &path, e))?);
            Ok(Upload::new(inner, path, file, 0))
        });
        Ok(Box::new(upload.await?))
    }

    async fn resume(&self, id: &str) -> Result<Option<Box<dyn BlobUpload>>, Error> {
        let path = self.upload_path(id)?;
        let inner = self.0.clone();
        blocking(move || {
            let Some(mut file) = found(OpenOptions::new().read(true).write(true).open(&path), "open", &path)? else {
                return Ok(None);
            };
            let written = file.seek(SeekFrom::End(0)).map_err(|e| failed("seek in", &path, e))?;
            let file = Arc::new(file);
            Ok(Some(Box::new(Upload::new(inner, path, file, written)) as Box<dyn BlobUpload>))
        })
        .await
    }

    async fn uploads(&self) -> Result<Vec<PendingUpload>, Error> {
        let folder = self.0.root.join(UPLOADS);
        blocking(move || {
            let mut pending = Vec::new();
            for entry in fs::read_dir(&folder).map_err(|e| failed("list", &folder, e))? {
                let entry = entry.map_err(|e| failed("list", &folder, e))?;
                // Gone meanwhile is fine.
                let Ok(meta) = entry.metadata() else { continue };
                let touched = meta.modified().map_err(|e| failed("stat", &entry.path(), e))?;
                let id = entry.file_name().to_string_lossy().into_owned();
                pending.push(PendingUpload { id, size: meta.len(), touched });
            }
            Ok(pending)
        })
        .await
    }

    async fn head(&self, key: &str) -> Result<Option<BlobMeta>, Error> {
        let (path, key) = (self.path(key)?, key.to_owned());
        // One system call on metadata that is nearly always in memory: cheaper than another thread.
        let Some(meta) = found(fs::metadata(&path), "stat", &path)? else { return Ok(None) };
        let modified = meta.modified().map_err(|e| failed("stat", &path, e))?;
        let size = meta.len();
        Ok(meta.is_file().then_some(BlobMeta { key, size, modified }))
    }

    async fn get(&self, key: &str, range: Range<u64>) -> Result<Option<BlobStream>, Error> {
        let path = self.path(key)?;
        // As for `head`: who reads it has mostly looked for it just before.
        let Some(file) = found(File::open(&path), "open", &path)? else { return Ok(None) };
        let meta = file.metadata().map_err(|e| failed("stat", &path, e))?;
        if !meta.is_file() {
            return Ok(None);
        }
        let start = range.start.min(meta.len());
        Ok(Some(read(file, path, start..range.end.clamp(start, meta.len()))))
    }

    async fn put_all(&self, objects: Vec<(String, Bytes)>) -> Result<(), Error> {
        for (key, _) in &objects {
            check_key(key)?;
        }
        let inner = self.0.clone();
        let put = blocking(move || {
            let mut unnamed = Vec::with_capacity(objects.len());
            let put = inner.put_files(&objects, &mut unnamed);
            if put.is_err() {
                unnamed.iter().for_each(|(_, path)| drop(fs::remove_file(path)));
            }
            put
        });
        for folder in put.await? {
            self.0.sync_folder(folder).await?;
        }
        Ok(())
    }

    fn is_local(&self) -> bool {
        true
    }

    async fn list(&self, prefix: &str) -> Result<BoxStream<'static, Result<BlobMeta, Error>>, Error> {
        let (root, prefix) = (self.0.root.clone(), prefix.to_owned());
        let listed = blocking(move || {
            let mut objects = Vec::new();
            let mut folders = vec![String::new()];
            while let Some(folder) = folders.pop() {
                let path = root.join(&folder);
                let Some(entries) = found(fs::read_dir(&path), "list", &path)? else { continue };
                for entry in entries {
                    let entry = entry.map_err(|e| failed("list", &path, e))?;
                    let name = entry.file_name().to_string_lossy().into_owned();
                    let key = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
                    let Ok(meta) = entry.metadata() else { continue };
                    if name.starts_with('.') {
                        continue;
                    }
                    let inside = format!("{key}/");
                    if meta.is_dir() && (inside.starts_with(&prefix) || prefix.starts_with(&inside)) {
                        folders.push(key);
                    } else if meta.is_file() && key.starts_with(&prefix) {
                        let modified = meta.modified().map_err(|e| failed("stat", &path, e))?;
                        objects.push(Ok(BlobMeta { key, size: meta.len(), modified }));
                    }
                }
            }
            Ok(objects)
        })
        .await?;
        Ok(stream::iter(listed).boxed())
    }

    async fn delete(&self, key: &str) -> Result<bool, Error> {
        let path = self.path(key)?;
        blocking(move || Ok(found(fs::remove_file(&path), "remove", &path)?.is_some())).await
    }

    fn file(&self, key: &str) -> Option<PathBuf> {
        self.path(key).ok().filter(|path| path.is_file())
    }
}

struct Upload {
    inner: Arc<Inner>,
    path: PathBuf,
    file: Arc<File>,
    written: u64,
    /// What the disk was asked to keep so far.
    synced: u64,
    /// What is in the kernel's memory only.
    buffered: u64,
    direct: Option<Direct>,
    behind: Option<JoinHandle<Result<(), Error>>>,
}

impl Upload {
    fn new(inner: Arc<Inner>, path: PathBuf, file: Arc<File>, written: u64) -> Self {
        Upload { inner, path, file, written, synced: 0, buffered: 0, direct: None, behind: None }
    }

    fn write_behind(&mut self) {
        let idle = self.behind.as_ref().is_none_or(JoinHandle::is_finished);
        if idle && self.buffered >= WRITE_BEHIND {
            let (file, path) = (self.file.clone(), self.path.clone());
            (self.synced, self.buffered) = (self.written, 0);
            // Its error is seen again by the sync that the commit waits for.
            self.behind =
                Some(tokio::task::spawn_blocking(move || file.sync_data().map_err(|e| failed("sync", &path, e))));
        }
    }
}

fn write_all(file: &File, pieces: &[Bytes], mut at: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut left = &mut slices[..];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        // No more at once than the kernel takes.
        match pwritev(file, &left[..left.len().min(1024)], at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                IoSlice::advance_slices(&mut left, n);
                at += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Writes whole blocks past the kernel's memory. `false`: the file system does not take that.
fn past_memory(direct: &mut Option<Direct>, path: &Path, blocks: &[Bytes], at: u64) -> io::Result<bool> {
    let written = match direct {
        Some(direct) => direct.write(blocks, at),
        None => Direct::open(path).and_then(|opened| direct.insert(opened).write(blocks, at)),
    };
    match written {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
            *direct = None;
            Ok(false)
        }
        written => written.map(|()| true),
    }
}

#[async_trait::async_trait]
impl BlobUpload for Upload {
    fn written(&self) -> u64 {
        self.written
    }

    async fn write(&mut self, pieces: Vec<Bytes>) -> Result<(), Error> {
        let (inner, file, path) = (self.inner.clone(), self.file.clone(), self.path.clone());
        let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let past =
            self.written.is_multiple_of(BLOCK) && length >= LARGE && !inner.only_buffered.load(Ordering::Relaxed);
        let blocks = if past { length - length % BLOCK } else { 0 };
        let (at, mut direct) = (self.written, self.direct.take());
        let work = blocking(move || {
            let wrong = |e| failed("write", &path, e);
            let (first, rest) = cut(pieces, blocks);
            let mut buffered = length - blocks;
            if blocks > 0 && !past_memory(&mut direct, &path, &first, at).map_err(wrong)? {
                inner.only_buffered.store(true, Ordering::Relaxed);
                write_all(&file, &first, at).map_err(wrong)?;
                buffered = length;
            }
            write_all(&file, &rest, at + blocks).map_err(wrong)?;
            Ok((direct, buffered))
        });
        let buffered;
        (self.direct, buffered) = work.await?;
        self.written += length;
        self.buffered += buffered;
        self.write_behind();
        Ok(())
    }

    async fn read_back(&mut self) -> Result<BlobStream, Error> {
        // Another handle: positions of this one are where writing goes on.
        let path = self.path.clone();
        let file = blocking(move || File::open(&path).map_err(|e| failed("open", &path, e))).await?;
        Ok(read(file, self.path.clone(), 0..self.written))
    }

    async fn sync(&mut self) -> Result<(), Error> {
        if let Some(behind) = self.behind.take() {
            behind.await.unwrap_or(Err(Error::Closed))?;
        }
        let (file, path) = (self.file.clone(), self.path.clone());
        blocking(move || file.sync_data().map_err(|e| failed("sync", &path, e))).await?;
        (self.synced, self.buffered) = (self.written.max(1), 0);
        Ok(())
    }

    async fn commit(mut self: Box<Self>, key: &str) -> Result<(), Error> {
        check_key(key)?;
        if self.behind.is_some() || self.synced < self.written.max(1) {
            self.sync().await?;
        }
        let (inner, from, to) = (self.inner.clone(), self.path.clone(), self.inner.root.join(key));
        let folder = to.parent().unwrap_or(&inner.root).to_owned();
        let made = blocking(move || {
            let made = inner.make_parent(&to)?;
            fs::rename(&from, &to).map_err(|e| failed("create", &to, e))?;
            Ok(made)
        })
        .await?;
        if let Some(known) = made {
            for parent in folder.ancestors().skip(1).take_while(|parent| parent.starts_with(&known)) {
                self.inner.sync_folder(parent.to_owned()).await?;
            }
        }
        self.inner.sync_folder(folder).await
    }

    async fn abort(self: Box<Self>) -> Result<(), Error> {
        let path = self.path.clone();
        blocking(move || found(fs::remove_file(&path), "remove", &path).map(|_| ())).await
    }
}
