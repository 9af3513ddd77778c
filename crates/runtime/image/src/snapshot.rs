//! Unpacked layers: one directory per chain of layers, made once, shared by every image that has it.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::compress::decompress;
use crate::content::{Content, sync_dir};
use crate::digest::Hasher;
use crate::error::At;
use crate::index::Layer;
use crate::unpack::{Limits, unpack};
use crate::{Digest, Error, Result};

/// Names in overlayfs mount options add up to at most a page, so they are cut to 160 bits.
const NAME_DIGITS: usize = 40;

pub(crate) struct Snapshots {
    root: PathBuf,
    work: PathBuf,
}

impl Snapshots {
    pub fn open(root: &Path) -> Result<Self> {
        let snapshots = Snapshots { root: root.join("layers"), work: root.join("work") };
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
        self.root.join(&chain.hex()[..NAME_DIGITS])
    }

    pub fn has(&self, chain: &Digest) -> bool {
        self.path(chain).is_dir()
    }

    /// Unpacks one layer on top of `lowers` (top first), checking the uncompressed bytes against the config.
    pub fn make(
        &self,
        content: &Content,
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
        let unreadable = |e| Error::io(format!("decompress layer {name}"), e);
        let blob = decompress(content.open_blob(&layer.blob)?).map_err(unreadable)?;
        let mut hashing = Hashing { inner: blob, hasher: Hasher::like(&layer.diff_id) };
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

    /// Takes layers that are not live out of sight, each in one step; the caller deletes what is returned.
    pub fn retire(&self, live: &HashSet<Digest>) -> Result<Vec<PathBuf>> {
        let names: HashSet<&str> = live.iter().map(|chain| &chain.hex()[..NAME_DIGITS]).collect();
        let mut doomed = Vec::new();
        for entry in fs::read_dir(&self.root).at("list", &self.root)? {
            let entry = entry.at("list", &self.root)?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|n| names.contains(n)) {
                continue;
            }
            let place = tempfile::Builder::new().prefix("delete-").tempdir_in(&self.work);
            let place = place.at("create a directory in", &self.work)?.keep();
            fs::rename(entry.path(), place.join("layer")).at("move away", &entry.path())?;
            doomed.push(place);
        }
        Ok(doomed)
    }
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

fn sync_file_system(path: &Path) -> Result<()> {
    let dir = fs::File::open(path).at("open", path)?;
    rustix::fs::syncfs(&dir).at("sync", path)
}

struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}
