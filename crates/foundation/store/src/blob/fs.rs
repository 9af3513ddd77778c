//! Blobs as files in one folder: `<key>` below it, and `.uploads/<id>` for what is not committed yet.
//!
//! Invariants: a file under its key is whole and on disk before it gets that name; a commit is acknowledged once the
//! folder knows the name for good. Commits that end together share one sync of their folder.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::{Blob, BlobMeta, BlobStream, BlobUpload, PendingUpload, check_id, check_key};
use crate::Error;

const UPLOADS: &str = ".uploads";
/// What one read brings. Large enough that changing threads for it does not show.
const READ: u64 = 1 << 20;
/// After so much more the disk begins with what is written, so that the end has little left to wait for.
const WRITE_BEHIND: u64 = 8 << 20;

/// Cheap to clone; clones are the same store. One process at a time uses a folder.
#[derive(Clone)]
pub struct FsBlob(Arc<Inner>);

struct Inner {
    root: PathBuf,
    folders: Mutex<HashMap<PathBuf, Arc<Folder>>>,
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
        Ok(Self(Arc::new(Inner { root, folders: Mutex::default() })))
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

/// The bytes of `range`, read ahead by one piece.
fn read(file: File, path: PathBuf, range: Range<u64>) -> BlobStream {
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
            Ok(Upload { inner, path, file, written: 0, synced: 0, behind: None })
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
            Ok(Some(Box::new(Upload { inner, path, file, written, synced: 0, behind: None }) as Box<dyn BlobUpload>))
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
        blocking(move || {
            let Some(mut file) = found(File::open(&path), "open", &path)? else { return Ok(None) };
            let meta = file.metadata().map_err(|e| failed("stat", &path, e))?;
            if !meta.is_file() {
                return Ok(None);
            }
            let range = range.start.min(meta.len())..range.end.min(meta.len());
            if range.start == 0 && range.end == meta.len() && meta.len() <= READ / 8 {
                let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or_default());
                file.read_to_end(&mut bytes).map_err(|e| failed("read", &path, e))?;
                return Ok(Some(stream::iter((!bytes.is_empty()).then(|| Ok(Bytes::from(bytes)))).boxed()));
            }
            Ok(Some((file, path, range)).map(|(file, path, range)| read(file, path, range)))
        })
        .await
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
    behind: Option<JoinHandle<Result<(), Error>>>,
}

impl Upload {
    fn write_behind(&mut self) {
        let idle = self.behind.as_ref().is_none_or(JoinHandle::is_finished);
        if idle && self.written - self.synced >= WRITE_BEHIND {
            let (file, path) = (self.file.clone(), self.path.clone());
            self.synced = self.written;
            // Its error is seen again by the sync that the commit waits for.
            self.behind =
                Some(tokio::task::spawn_blocking(move || file.sync_data().map_err(|e| failed("sync", &path, e))));
        }
    }
}

fn write_all(mut file: &File, pieces: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut left = &mut slices[..];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut left, n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[async_trait::async_trait]
impl BlobUpload for Upload {
    fn written(&self) -> u64 {
        self.written
    }

    async fn write(&mut self, pieces: Vec<Bytes>) -> Result<(), Error> {
        let (file, path) = (self.file.clone(), self.path.clone());
        let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        blocking(move || write_all(&file, &pieces).map_err(|e| failed("write", &path, e))).await?;
        self.written += length;
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
        self.synced = self.written.max(1);
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
