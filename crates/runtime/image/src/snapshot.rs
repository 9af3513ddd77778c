//! Unpacked layers: one directory per chain of layers, made once, shared by every image that has it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::compress::decompress;
use crate::content::sync_dir;
use crate::digest::Hasher;
use crate::error::At;
use crate::index::Layer;
use crate::locks::Locks;
use crate::unpack::{Limits, unpack};
use crate::{Digest, Error, Result};

/// Names in overlayfs mount options add up to at most a page, so they are cut to 160 bits.
const NAME_DIGITS: usize = 40;

pub(crate) struct Snapshots {
    root: PathBuf,
    work: PathBuf,
    /// Chains that work in progress makes or relies on, by directory name; none of them is retired.
    leases: Mutex<HashMap<String, usize>>,
    /// Two images that share a layer unpack it once.
    pub making: Locks,
    /// Bytes and inodes of layers looked at before; a layer never changes.
    usage: Mutex<HashMap<String, Usage>>,
    /// How many were taken out of sight: their names there.
    retired: AtomicU64,
}

/// What something takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// Keeps layers from being retired while it lives.
pub(crate) struct Lease<'a> {
    snapshots: &'a Snapshots,
    names: Vec<String>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut leases = self.snapshots.leases.lock();
        for name in &self.names {
            if let Some(count) = leases.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    leases.remove(name);
                }
            }
        }
    }
}

impl Snapshots {
    pub fn open(root: &Path) -> Result<Self> {
        let snapshots = Snapshots {
            root: root.join("layers"),
            work: root.join("work"),
            leases: Mutex::default(),
            making: Locks::default(),
            usage: Mutex::default(),
            retired: AtomicU64::new(0),
        };
        for dir in [&snapshots.root, &snapshots.work] {
            fs::create_dir_all(dir).at("create", dir)?;
            // Layers hold other people's set-id programs.
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).at("chmod", dir)?;
        }
        // Left by a crash: half-unpacked or half-deleted.
        for entry in fs::read_dir(&snapshots.work).at("list", &snapshots.work)? {
            let entry = entry.at("list", &snapshots.work)?;
            remove_any(&entry.path())?;
        }
        Ok(snapshots)
    }

    pub fn path(&self, chain: &Digest) -> PathBuf {
        self.root.join(name(chain))
    }

    /// Lease first, then look what is there.
    pub fn lease(&self, chains: &[Digest]) -> Lease<'_> {
        let names: Vec<String> = chains.iter().map(|chain| name(chain).to_owned()).collect();
        let mut leases = self.leases.lock();
        for name in &names {
            *leases.entry(name.clone()).or_insert(0) += 1;
        }
        drop(leases);
        Lease { snapshots: self, names }
    }

    pub fn has(&self, chain: &Digest) -> bool {
        self.path(chain).is_dir()
    }

    /// Unpacks one layer on top of `lowers` (top first) from `blob`, the layer as packed, checking the uncompressed bytes
    /// against the config.
    pub fn make(
        &self,
        blob: impl Read + Send,
        layer: &Layer,
        chain: &Digest,
        lowers: &[PathBuf],
        limits: &Limits,
    ) -> Result<PathBuf> {
        let target = self.path(chain);
        if target.is_dir() {
            return Ok(target);
        }
        let work = tempfile::Builder::new()
            .prefix("unpack-")
            .tempdir_in(&self.work)
            .at("create a directory in", &self.work)?;
        fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755)).at("chmod", work.path())?;
        let name = layer.blob.to_string();
        let unreadable = |e| Error::io(format!("failed to extract layer {name}: decompress"), e);
        let blob = decompress(blob).map_err(unreadable)?;
        let bound = layer.size.saturating_mul(limits.ratio).max(limits.modest_bytes);
        let mut hashing = Hashing { inner: blob, hasher: Hasher::like(&layer.diff_id), left: bound };
        let summary = unpack(&mut hashing, work.path(), lowers, &name, limits)?;
        // Padding after the archive's end is part of what is hashed; a bomb there is bounded too.
        let rest = io::copy(&mut (&mut hashing).take(limits.bytes), &mut io::sink()).map_err(unreadable)?;
        layer.diff_id.expect(&format!("layer {name}, uncompressed"), &hashing.hasher.finish())?;
        tracing::debug!(layer = %name, entries = summary.entries, bytes = summary.bytes, rest, "unpacked layer");
        sync_file_system(work.path())?;
        let work = work.keep();
        match fs::rename(&work, &target) {
            Ok(()) => {}
            Err(_) if target.is_dir() => remove_any(&work)?,
            Err(e) => return Err(e).at("create", &target),
        }
        sync_dir(&self.root)?;
        Ok(target)
    }

    /// Takes layers that are neither live nor leased out of sight, each in one step; the caller deletes what is returned.
    pub fn retire(&self, live: &HashSet<Digest>) -> Result<Vec<PathBuf>> {
        let names: HashSet<&str> = live.iter().map(name).collect();
        // Held throughout: work that leases afterwards sees the layer gone and unpacks it again.
        let leases = self.leases.lock();
        let mut doomed = Vec::new();
        for entry in fs::read_dir(&self.root).at("list", &self.root)? {
            let entry = entry.at("list", &self.root)?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|n| names.contains(n) || leases.contains_key(n)) {
                continue;
            }
            // Nothing is created: this is how a full disk gets room again.
            let number = self.retired.fetch_add(1, Ordering::Relaxed);
            let place = self.work.join(format!("delete-{number}"));
            fs::rename(entry.path(), &place).at("move away", &entry.path())?;
            if let Some(name) = name.to_str() {
                self.usage.lock().remove(name);
            }
            doomed.push(place);
        }
        Ok(doomed)
    }

    /// What all layers take.
    pub fn usage(&self) -> Result<Usage> {
        let mut total = Usage::default();
        for entry in fs::read_dir(&self.root).at("list", &self.root)? {
            let entry = entry.at("list", &self.root)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let known = self.usage.lock().get(&name).copied();
            let usage = match known {
                Some(usage) => usage,
                None => {
                    let usage = disk_usage(&entry.path());
                    self.usage.lock().insert(name, usage);
                    usage
                }
            };
            total.bytes += usage.bytes;
            total.inodes += usage.inodes;
        }
        Ok(total)
    }
}

fn name(chain: &Digest) -> &str {
    &chain.hex()[..NAME_DIGITS]
}

/// Bytes and inodes below `path`, a file with several names counted once. What vanishes meanwhile counts nothing.
pub fn disk_usage(path: &Path) -> Usage {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut todo = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.nlink() > 1 && !meta.is_dir() && !linked.insert((meta.dev(), meta.ino())) {
            continue;
        }
        usage.bytes += meta.blocks() * 512;
        usage.inodes += 1;
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    usage
}

pub(crate) fn remove_any(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    };
    removed.at("remove", path)
}

pub(crate) fn sync_file_system(path: &Path) -> Result<()> {
    let dir = fs::File::open(path).at("open", path)?;
    rustix::fs::syncfs(&dir).at("sync", path)
}

/// Hashes what comes out of the decompressor, and stops when it is out of proportion to what went in.
struct Hashing<R> {
    inner: R,
    hasher: Hasher,
    left: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "decompresses to far more than a layer of its size may")
        })?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn make(blob: Vec<u8>, diff_id: Digest, limits: &Limits) -> (tempfile::TempDir, Result<PathBuf>) {
        let root = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(root.path()).unwrap();
        let layer = Layer {
            blob: Digest::of(&blob),
            size: blob.len() as u64,
            media_type: String::new(),
            diff_id: diff_id.clone(),
        };
        let made = snapshots.make(io::Cursor::new(blob), &layer, &diff_id, &[], limits);
        assert_eq!(fs::read_dir(root.path().join("work")).unwrap().count(), 0);
        (root, made)
    }

    /// Compresses an archive of one file of zeros of that many bytes, or its first bytes only.
    fn zeros(bytes: u64, tail: u64) -> (Vec<u8>, Digest) {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes);
        tar.append_data(&mut header, "zeros", io::repeat(0).take(bytes)).unwrap();
        let mut plain = tar.into_inner().unwrap();
        plain.resize(plain.len() + usize::try_from(tail).unwrap(), 0);
        (zstd::encode_all(&plain[..], 1).unwrap(), Digest::of(&plain))
    }

    #[test]
    fn bombs_are_out_of_proportion() {
        let limits = Limits { ratio: 10, modest_bytes: 2 << 20, ..Limits::default() };
        let (blob, diff_id) = zeros(1 << 20, 0);
        assert!(make(blob, diff_id, &limits).1.is_ok(), "small ones do no harm");
        for (bytes, tail) in [(3 << 20, 0), (1, 3 << 20)] {
            let (blob, diff_id) = zeros(bytes, tail);
            let error = make(blob, diff_id, &limits).1.unwrap_err();
            assert!(format!("{error:?}").contains("far more"), "{error:?}");
        }
    }

    #[test]
    fn zstd_frames_of_any_kind_are_one_stream() {
        // As zstd:chunked lays it out: several frames, then a skippable one with a table of contents.
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        tar.append_data(&mut header, "file", &b"data"[..]).unwrap();
        let plain = tar.into_inner().unwrap();
        let mut blob = zstd::encode_all(&plain[..512], 3).unwrap();
        blob.extend(zstd::encode_all(&plain[512..], 3).unwrap());
        blob.extend([0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4]);
        let (_root, made) = make(blob, Digest::of(&plain), &Limits::default());
        assert_eq!(fs::read(made.unwrap().join("file")).unwrap(), b"data");
    }
}
