//! Blobs by digest on disk. A blob under its name is complete and verified: it is written elsewhere,
//! hashed, synced and renamed into place.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::digest::Hasher;
use crate::error::At;
use crate::locks::Locks;
use crate::{Digest, Error, Result};

/// A download interrupted longer ago than this is not worth resuming.
pub(crate) const STALE_PART: Duration = Duration::from_secs(24 * 3600);

const PART: &str = "part-";
/// Lists the blobs that a pull needs, by the digest of its manifest.
const PULL: &str = "pull-";

/// Who has blobs on this machine already: the registry beside the node.
pub trait Neighbour: Send + Sync {
    /// The blob as a verified file that nobody ever writes to, if `registry`, a host as references name it, is the
    /// neighbour and has it.
    fn file(&self, registry: &str, digest: &Digest) -> Option<PathBuf>;
}

pub(crate) struct Content {
    root: PathBuf,
    pub neighbour: RwLock<Option<Arc<dyn Neighbour>>>,
    /// Digests that work in progress relies on; garbage collection leaves them alone.
    pins: Mutex<HashMap<Digest, usize>>,
    /// Downloads under way.
    pub fetching: Locks,
}

impl Content {
    pub fn open(root: &Path) -> Result<Arc<Self>> {
        for dir in ["blobs/sha256", "blobs/sha512", "ingest"] {
            let dir = root.join(dir);
            fs::create_dir_all(&dir).at("create", &dir)?;
        }
        let content = Content {
            root: root.to_owned(),
            neighbour: RwLock::default(),
            pins: Mutex::default(),
            fetching: Locks::default(),
        };
        content.sweep_ingest(true, STALE_PART)?;
        Ok(Arc::new(content))
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    fn ingest_dir(&self) -> PathBuf {
        self.root.join("ingest")
    }

    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    pub fn size(&self, digest: &Digest) -> Result<u64> {
        let path = self.path(digest);
        Ok(fs::metadata(&path).at("stat", &path)?.len())
    }

    /// A small blob in memory, verified again: disks lie too.
    pub fn read(&self, what: &str, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.path(digest);
        let bytes = fs::read(&path).at("read", &path)?;
        digest.verify(what, &bytes)?;
        Ok(bytes)
    }

    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let path = self.path(digest);
        File::open(&path).at("open", &path)
    }

    /// Takes a blob from the neighbour by giving its file a second name. `false`: there is none, or it is on another disk.
    pub fn adopt(&self, registry: &str, digest: &Digest) -> Result<bool> {
        let neighbour = self.neighbour.read().clone();
        let Some(file) = neighbour.and_then(|neighbour| neighbour.file(registry, digest)) else { return Ok(false) };
        let path = self.path(digest);
        match fs::hard_link(&file, &path) {
            Ok(()) => sync_dir(path.parent().unwrap_or(&self.root)).map(|()| true),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(true),
            Err(error) => {
                tracing::debug!(file = %file.display(), %error, "cannot link to the registry's file");
                Ok(false)
            }
        }
    }

    /// Makes a blob that the neighbour has by now one file with the neighbour's. Where that cannot be, there stay two.
    pub fn share(&self, registry: &str, digest: &Digest) -> Result<()> {
        let neighbour = self.neighbour.read().clone();
        let Some(file) = neighbour.and_then(|neighbour| neighbour.file(registry, digest)) else { return Ok(()) };
        let (path, name) = (self.path(digest), format!("share-{}", digest.hex()));
        let inode = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
        let (own, theirs) = (inode(&path), inode(&file));
        if own.is_none() || theirs.is_none() || own == theirs {
            return Ok(());
        }
        let second = self.ingest_dir().join(name);
        let linked = fs::hard_link(&file, &second).and_then(|()| fs::rename(&second, &path));
        match linked {
            Ok(()) => sync_dir(path.parent().unwrap_or(&self.root)),
            Err(error) => {
                // One that does the same at the same time finds the name taken.
                let _ = fs::remove_file(&second);
                tracing::debug!(file = %file.display(), %error, "cannot share the registry's file");
                Ok(())
            }
        }
    }

    /// Keeps `digest` from being collected while the guard lives. Pin first, then look whether it is there.
    pub fn pin(self: &Arc<Self>, digest: &Digest) -> Pin {
        *self.pins.lock().entry(digest.clone()).or_insert(0) += 1;
        Pin { content: self.clone(), digest: digest.clone() }
    }

    /// Stores a blob whose digest is known only once it is read, and pins it. `expected` is checked if given.
    pub fn ingest(
        self: &Arc<Self>,
        what: &str,
        mut reader: impl Read,
        expected: Option<&Digest>,
    ) -> Result<(Pin, u64)> {
        let mut writer = self.writer(expected.map_or_else(Hasher::sha256, Hasher::like))?;
        let mut buffer = vec![0u8; 128 << 10];
        loop {
            let n = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io(format!("read {what}"), e)),
            };
            writer.write_all(&buffer[..n]).at("write", &self.root)?;
        }
        if let Some(expected) = expected {
            return writer.finish_as(what, expected);
        }
        writer.finish()
    }

    /// A blob that is being written; it is nowhere until it is finished.
    pub fn writer(self: &Arc<Self>, hasher: Hasher) -> Result<BlobWriter> {
        let dir = self.ingest_dir();
        let temporary = tempfile::NamedTempFile::with_prefix_in("new-", &dir).at("create a file in", &dir)?;
        Ok(BlobWriter { content: self.clone(), temporary, hasher, size: 0 })
    }

    pub fn put(self: &Arc<Self>, what: &str, bytes: &[u8], expected: Option<&Digest>) -> Result<Pin> {
        Ok(self.ingest(what, bytes, expected)?.0)
    }

    /// Opens the partial download of `digest`, picking up what an earlier attempt left. The caller has it exclusively.
    pub fn resume(self: &Arc<Self>, digest: &Digest, size: u64) -> Result<Partial> {
        let path = self.part_path(digest);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).at("open", &path)?;
        let mut hasher = Hasher::like(digest);
        let mut have = 0u64;
        let mut buffer = vec![0u8; 128 << 10];
        loop {
            let n = file.read(&mut buffer).at("read", &path)?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            have += n as u64;
        }
        let file = Arc::new(file);
        let mut partial = Partial { content: self.clone(), digest: digest.clone(), path, file, hasher, have, size };
        if have > size {
            partial.file.set_len(0).at("truncate", &partial.path)?;
            partial.restart();
        }
        Ok(partial)
    }

    /// Keeps the blobs of an unfinished pull for another attempt, also after a restart.
    pub fn remember_pull(&self, manifest: &Digest, blobs: &[Digest]) -> Result<()> {
        let lines: Vec<&str> = blobs.iter().map(Digest::as_str).collect();
        write_whole(&self.pull_path(manifest), lines.join("\n").as_bytes())
    }

    /// There will be no other attempt, or none is needed.
    pub fn forget_pull(&self, manifest: &Digest) {
        if let Err(error) = fs::remove_file(self.pull_path(manifest)) {
            tracing::debug!(%manifest, %error, "forget the pull");
        }
    }

    /// Throws partial downloads of these blobs away, but for those under way.
    pub fn discard(&self, blobs: &[Digest]) -> Result<()> {
        for blob in blobs.iter().filter(|blob| !self.fetching.busy(blob)) {
            let path = self.part_path(blob);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).at("remove", &path),
                _ => {}
            }
        }
        Ok(())
    }

    fn part_path(&self, digest: &Digest) -> PathBuf {
        self.ingest_dir().join(format!("{PART}{}-{}", digest.algorithm(), digest.hex()))
    }

    fn pull_path(&self, manifest: &Digest) -> PathBuf {
        self.ingest_dir().join(format!("{PULL}{}-{}", manifest.algorithm(), manifest.hex()))
    }

    fn remembered(&self) -> Result<HashSet<Digest>> {
        let dir = self.ingest_dir();
        let mut blobs = HashSet::new();
        for entry in fs::read_dir(&dir).at("list", &dir)? {
            let entry = entry.at("list", &dir)?;
            if entry.file_name().to_string_lossy().starts_with(PULL) {
                // Finished meanwhile is fine.
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                blobs.extend(text.lines().filter_map(|line| Digest::parse(line).ok()));
            }
        }
        Ok(blobs)
    }

    /// Deletes every blob that is neither `live` nor pinned; returns the bytes freed.
    pub fn collect(&self, live: &HashSet<Digest>) -> Result<u64> {
        // Held throughout: work that pins afterwards sees the blob gone and fetches it again.
        let pins = self.pins.lock();
        let remembered = self.remembered()?;
        let mut freed = 0;
        for algorithm in ["sha256", "sha512"] {
            let dir = self.root.join("blobs").join(algorithm);
            for entry in fs::read_dir(&dir).at("list", &dir)? {
                let entry = entry.at("list", &dir)?;
                let name = entry.file_name();
                let Ok(digest) = Digest::parse(&format!("{algorithm}:{}", name.to_string_lossy())) else { continue };
                if live.contains(&digest) || remembered.contains(&digest) || pins.contains_key(&digest) {
                    continue;
                }
                freed += entry.metadata().map(|m| m.blocks() * 512).unwrap_or(0);
                fs::remove_file(entry.path()).at("remove", &entry.path())?;
            }
        }
        Ok(freed)
    }

    /// Deletes what nobody works on: temporary files of an earlier run (`all`), and partial downloads not touched for
    /// `age`. Returns the bytes freed.
    pub fn sweep_ingest(&self, all: bool, age: Duration) -> Result<u64> {
        let dir = self.ingest_dir();
        let mut freed = 0;
        for entry in fs::read_dir(&dir).at("list", &dir)? {
            let entry = entry.at("list", &dir)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(meta) = entry.metadata() else { continue };
            let digest = |text: &str| Digest::parse(&text.replacen('-', ":", 1));
            let busy = match (name.strip_prefix(PART), name.strip_prefix(PULL)) {
                (Some(blob), _) => digest(blob).is_ok_and(|blob| self.fetching.busy(&blob)),
                (None, Some(manifest)) => digest(manifest).is_ok_and(|manifest| self.pinned(&manifest)),
                (None, None) => !all,
            };
            let old = all && !name.starts_with(PART) && !name.starts_with(PULL)
                || meta.modified().is_ok_and(|t| t.elapsed().is_ok_and(|a| a >= age));
            let doomed = old && !busy;
            if doomed {
                fs::remove_file(entry.path()).at("remove", &entry.path())?;
                freed += meta.blocks() * 512;
            }
        }
        Ok(freed)
    }

    /// Bytes and files that blobs and partial downloads take on disk.
    pub fn usage(&self) -> Result<(u64, u64)> {
        let (mut bytes, mut files) = (0, 0);
        for dir in [self.root.join("blobs/sha256"), self.root.join("blobs/sha512"), self.ingest_dir()] {
            for entry in fs::read_dir(&dir).at("list", &dir)? {
                // Gone meanwhile is fine.
                if let Ok(meta) = entry.at("list", &dir)?.metadata() {
                    bytes += meta.blocks() * 512;
                    files += 1;
                }
            }
        }
        Ok((bytes, files))
    }

    pub fn pinned(&self, digest: &Digest) -> bool {
        self.pins.lock().contains_key(digest)
    }
}

pub(crate) struct Pin {
    content: Arc<Content>,
    digest: Digest,
}

impl Pin {
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.content.pins.lock();
        if let Some(count) = pins.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.digest);
            }
        }
    }
}

/// Content whose digest is known only once it is written.
pub(crate) struct BlobWriter {
    content: Arc<Content>,
    temporary: tempfile::NamedTempFile,
    hasher: Hasher,
    size: u64,
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.temporary.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.temporary.flush()
    }
}

impl BlobWriter {
    /// Puts it in place, and pins it; with its size.
    pub fn finish(self) -> Result<(Pin, u64)> {
        let digest = self.hasher.finish();
        Self::place(&self.content, self.temporary, digest, self.size)
    }

    /// The same, if it is what was expected.
    fn finish_as(self, what: &str, expected: &Digest) -> Result<(Pin, u64)> {
        let digest = self.hasher.finish();
        expected.expect(what, &digest)?;
        Self::place(&self.content, self.temporary, digest, self.size)
    }

    fn place(
        content: &Arc<Content>,
        temporary: tempfile::NamedTempFile,
        digest: Digest,
        size: u64,
    ) -> Result<(Pin, u64)> {
        // Pinned before looking: a collection in between would take the blob away again.
        let pin = content.pin(&digest);
        if !content.has(&digest) {
            temporary.as_file().sync_data().at("sync", temporary.path())?;
            let path = content.path(&digest);
            temporary.persist(&path).map_err(|e| e.error).at("create", &path)?;
            sync_dir(path.parent().unwrap_or(&content.root))?;
        }
        Ok((pin, size))
    }
}

/// A download that can stop and go on.
pub(crate) struct Partial {
    content: Arc<Content>,
    digest: Digest,
    path: PathBuf,
    file: Arc<File>,
    hasher: Hasher,
    have: u64,
    size: u64,
}

impl Partial {
    pub fn have(&self) -> u64 {
        self.have
    }

    pub fn complete(&self) -> bool {
        self.have == self.size
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let have = self.have + bytes.len() as u64;
        if have > self.size {
            return Err(Error::SizeMismatch { what: self.digest.to_string(), expected: self.size, actual: have });
        }
        self.file.write_all_at(bytes, self.have).at("write", &self.path)?;
        self.hasher.update(bytes);
        self.have = have;
        Ok(())
    }

    /// For reading what is written so far.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Begins anew. The bytes stay until they are overwritten: someone may be reading them.
    pub fn restart(&mut self) {
        self.hasher = Hasher::like(&self.digest);
        self.have = 0;
    }

    /// Verifies size and digest and puts the blob in place. A wrong blob is thrown away.
    pub fn commit(mut self) -> Result<()> {
        if self.have != self.size {
            let (expected, actual) = (self.size, self.have);
            return Err(Error::SizeMismatch { what: self.digest.to_string(), expected, actual });
        }
        let actual = std::mem::replace(&mut self.hasher, Hasher::sha256()).finish();
        if let Err(e) = self.digest.expect(&format!("failed commit on {}", self.digest), &actual) {
            fs::remove_file(&self.path).at("remove", &self.path)?;
            return Err(e);
        }
        self.file.sync_data().at("sync", &self.path)?;
        let target = self.content.path(&self.digest);
        fs::rename(&self.path, &target).at("create", &target)?;
        sync_dir(target.parent().unwrap_or(&self.content.root))
    }
}

/// Makes renames in `dir` survive a power cut.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).at("sync", dir)
}

/// Replaces the file as a whole or not at all.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let temporary = written_beside(path, bytes)?;
    temporary.as_file().sync_all().at("sync", path)?;
    temporary.persist(path).map_err(|e| e.error).at("replace", path)?;
    sync_dir(dir)
}

/// Whole or not at all for whoever reads it, also if this process is killed; not for a machine that loses power.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    written_beside(path, bytes)?.persist(path).map_err(|e| e.error).at("replace", path)?;
    Ok(())
}

fn written_beside(path: &Path, bytes: &[u8]) -> Result<tempfile::NamedTempFile> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut temporary = tempfile::NamedTempFile::with_prefix_in(".new-", dir).at("create a file in", dir)?;
    temporary.write_all(bytes).at("write", path)?;
    Ok(temporary)
}
