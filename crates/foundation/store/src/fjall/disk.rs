//! Layout of the files, and the only place that knows the storage engine.
//!
//! `revisions`: revision (8 bytes, big endian) then key -> flags, create revision, version, lease, value. One record
//! per key and revision, written once, removed by compaction when nothing can ask for it any more.
//! `leases`: id -> seconds. `meta`: `format`, `compacted`.
//! `acknowledged` beside them (see `mark`) tells when something is missing, and `check` finds out which file it is.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fjall::{Database, Keyspace as Tree, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};

use super::{check, mark};
use crate::core::{Batch, Effect, Garbage, History, Keyspace};
use crate::{Error, Event, EventKind, KeyValue, LeaseId, Revision};

const FORMAT: &[u8] = b"1";
/// The live keys are in memory already: a large write buffer would only hold them twice.
const WRITE_BUFFER: u64 = 8 << 20;
/// Bytes of a restore that are committed at once.
const RESTORE_BATCH: usize = 4 << 20;
const TOMBSTONE: u8 = 1;
/// Flags, create revision, version, lease.
const HEADER: usize = 1 + 3 * 8;

pub(super) struct Disk {
    db: Database,
    revisions: Tree,
    leases: Tree,
    meta: Tree,
    mark: mark::Mark,
    dir: PathBuf,
}

impl Disk {
    /// Opens or makes the files and reads them into memory.
    pub fn open(dir: &Path) -> Result<(Self, Keyspace, History), Error> {
        // The engine answers some damage with a panic; nothing of it outlives this call, so it is one more error.
        std::panic::catch_unwind(|| Self::open_files(dir)).unwrap_or_else(|_| {
            Err(Error::Corrupt {
                path: dir.display().to_string(),
                message: "the files are damaged; restore from a backup".to_owned(),
            })
        })
    }

    fn open_files(dir: &Path) -> Result<(Self, Keyspace, History), Error> {
        create(dir)?;
        let opened = |e| unusable(dir, e);
        refuse_shared(dir)?;
        let acknowledged = mark::read(dir)?;
        let torn = check::check(dir, acknowledged.is_some())?;
        let disk = Self::engine(dir)?;
        disk.check_format()?;
        let (keyspace, history) = disk.load()?;
        let revision = keyspace.revision();
        match acknowledged {
            Some(promised) if promised > revision => {
                let place = torn.unwrap_or_else(|| dir.join("*.jnl"));
                return Err(missing(&place, revision + 1, promised + 1));
            }
            None if revision > 1 => {
                tracing::warn!(file = %mark::path(dir).display(), "the mark of the last acknowledged revision is missing");
            }
            _ => {}
        }
        // A killed process leaves writes that only the kernel had; they are seen from now on, so they must stay.
        disk.db.persist(PersistMode::SyncAll).map_err(opened)?;
        disk.promise(revision)?;
        Ok((disk, keyspace, history))
    }

    fn engine(dir: &Path) -> Result<Self, Error> {
        let opened = |e| unusable(dir, e);
        let db = Database::builder(dir)
            .cache_size(4 << 20)
            .worker_threads(1)
            .manual_journal_persist(true)
            .open()
            .map_err(opened)?;
        let tree = |name: &str| {
            let options = || KeyspaceCreateOptions::default().max_memtable_size(WRITE_BUFFER);
            db.keyspace(name, options).map_err(opened)
        };
        let (revisions, leases, meta) = (tree("revisions")?, tree("leases")?, tree("meta")?);
        Ok(Self { db, revisions, leases, meta, mark: mark::Mark::open(dir)?, dir: dir.to_owned() })
    }

    fn corrupt(&self, message: impl Into<String>) -> Error {
        Error::Corrupt { path: self.dir.display().to_string(), message: message.into() }
    }

    fn check_format(&self) -> Result<(), Error> {
        let read = |e| unusable(&self.dir, e);
        match self.meta.get("format").map_err(read)? {
            Some(format) if &format[..] == FORMAT => Ok(()),
            Some(format) => Err(self.corrupt(format!(
                "the store has format {:?} and this version reads only format 1; use the version that wrote it",
                String::from_utf8_lossy(&format)
            ))),
            None if self.revisions.first_key_value().is_some() => {
                let path = self.dir.join("*.jnl").display().to_string();
                let message = "files were removed: the beginning of the store is missing; restore it from a backup";
                Err(Error::Corrupt { path, message: message.to_owned() })
            }
            None => {
                let mut batch = self.db.batch().durability(Some(PersistMode::SyncAll));
                batch.insert(&self.meta, "format", FORMAT);
                batch.commit().map_err(read)
            }
        }
    }

    fn load(&self) -> Result<(Keyspace, History), Error> {
        let read = |e| unusable(&self.dir, e);
        let compacted = match self.meta.get("compacted").map_err(read)? {
            None => 0,
            Some(bytes) => u64_at(&bytes, 0).ok_or_else(|| self.corrupt("the compaction mark is damaged"))?,
        };
        let mut keyspace = Keyspace::empty();
        for entry in self.leases.iter() {
            let (id, ttl) = entry.into_inner().map_err(read)?;
            let (Some(id), Some(ttl)) = (u64_at(&id, 0), u64_at(&ttl, 0)) else {
                return Err(self.corrupt("a lease is damaged; restore the store from a backup"));
            };
            keyspace.grant(id as LeaseId, ttl);
        }
        let mut history = History::new(compacted);
        let mut pending: Option<(Revision, Vec<Event>)> = None;
        let mut last = compacted.max(1);
        for entry in self.revisions.iter() {
            let (key, value) = entry.into_inner().map_err(read)?;
            let (kind, kv) = decode(&key, &value)
                .ok_or_else(|| self.corrupt("a record is damaged; restore the store from a backup"))?;
            let revision = kv.mod_revision;
            // Older revisions may be gone for good reasons, later ones may not.
            if revision > compacted {
                if revision > last + 1 {
                    return Err(missing(&self.dir, last + 1, revision));
                }
                last = revision;
            }
            if pending.as_ref().is_some_and(|(r, _)| *r != revision) {
                push(&mut history, pending.take());
            }
            let mut event = keyspace.replay(kind, kv);
            if revision < compacted {
                continue;
            }
            if revision == compacted {
                event.previous = None;
            }
            pending.get_or_insert_with(|| (revision, Vec::new())).1.push(event);
        }
        push(&mut history, pending);
        keyspace.advance_to(compacted);
        Ok((keyspace, history))
    }

    /// From here on, less than this is a loss.
    fn promise(&self, revision: Revision) -> Result<(), Error> {
        self.mark.set(revision).map_err(|e| Error::Backend {
            context: format!("write {}", mark::path(&self.dir).display()),
            source: e.into(),
        })
    }

    /// Makes the effects durable in one step; without `sync` they only reach the kernel.
    pub fn write(&self, effects: &[Effect], sync: bool) -> Result<(), Error> {
        let mut batch = self.batch(sync);
        for effect in effects {
            if let Some(Batch { events, .. }) = effect.batch.as_deref() {
                for event in events {
                    let kv = &event.kv;
                    batch.insert(&self.revisions, record_key(kv.mod_revision, &kv.key), encode(event.kind, kv));
                }
            }
            if let Some((id, ttl)) = effect.granted {
                batch.insert(&self.leases, id.to_be_bytes(), ttl.to_be_bytes());
            }
            if let Some(id) = effect.revoked {
                batch.remove(&self.leases, id.to_be_bytes());
            }
        }
        batch.commit().map_err(|e| unusable(&self.dir, e))?;
        if sync
            && let Some(revision) = effects.iter().filter_map(|e| e.batch.as_ref()).map(|b| b.revision).max()
            && let Err(error) = self.promise(revision)
        {
            // The write itself is durable. An older mark only notices less.
            tracing::warn!(%error, "note the acknowledged revision");
        }
        Ok(())
    }

    /// Losing this to a power cut only brings some history back, so it does not wait for the disk.
    pub fn compact(&self, revision: Revision, garbage: &Garbage) -> Result<(), Error> {
        let mut batch = self.batch(false);
        batch.insert(&self.meta, "compacted", revision.to_be_bytes());
        for (revision, key) in garbage {
            batch.remove(&self.revisions, record_key(*revision, key));
        }
        batch.commit().map_err(|e| unusable(&self.dir, e))
    }

    fn batch(&self, sync: bool) -> OwnedWriteBatch {
        let mode = if sync { PersistMode::SyncData } else { PersistMode::Buffer };
        self.db.batch().durability(Some(mode))
    }

    /// `revision` is what was reached, unless writes have failed.
    pub fn close(self, revision: Option<Revision>) {
        let Some(revision) = revision else { return };
        let synced = self.db.persist(PersistMode::SyncAll).map_err(|e| unusable(&self.dir, e));
        if let Err(error) = synced.and_then(|()| self.promise(revision)) {
            tracing::error!(%error, "close the store");
        }
    }
}

/// Fills an empty folder with the records of a backup.
pub(super) struct Restorer {
    disk: Disk,
    batch: OwnedWriteBatch,
    pending: usize,
}

impl Restorer {
    pub fn begin(dir: &Path) -> Result<Self, Error> {
        create(dir)?;
        let disk = Disk::engine(dir)?;
        let batch = disk.batch(false);
        Ok(Self { disk, batch, pending: 0 })
    }

    pub fn lease(&mut self, id: LeaseId, ttl: u64) -> Result<(), Error> {
        self.batch.insert(&self.disk.leases, id.to_be_bytes(), ttl.to_be_bytes());
        self.wrote(16)
    }

    pub fn key(&mut self, kv: &KeyValue) -> Result<(), Error> {
        let record = encode(EventKind::Put, kv);
        let length = kv.key.len() + record.len();
        self.batch.insert(&self.disk.revisions, record_key(kv.mod_revision, &kv.key), record);
        self.wrote(length)
    }

    fn wrote(&mut self, bytes: usize) -> Result<(), Error> {
        self.pending += bytes;
        if self.pending > RESTORE_BATCH {
            self.pending = 0;
            let batch = std::mem::replace(&mut self.batch, self.disk.batch(false));
            return batch.commit().map_err(|e| unusable(&self.disk.dir, e));
        }
        Ok(())
    }

    /// The format comes last: without it the folder is refused as a store.
    pub fn finish(mut self, revision: Revision) -> Result<(), Error> {
        let Disk { db, meta, dir, .. } = &self.disk;
        self.batch.insert(meta, "compacted", revision.to_be_bytes());
        self.batch.commit().map_err(|e| unusable(dir, e))?;
        db.persist(PersistMode::SyncAll).map_err(|e| unusable(dir, e))?;
        let mut batch = self.disk.batch(true);
        batch.insert(meta, "format", FORMAT);
        batch.commit().map_err(|e| unusable(dir, e))
    }
}

fn create(dir: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Error::Backend { context: format!("create directory {}", dir.display()), source: e.into() })
}

/// The engine holds a lock of its own, but only once it has begun to read.
fn refuse_shared(dir: &Path) -> Result<(), Error> {
    let path = dir.join("lock");
    // Whoever removed the file took nothing away; the engine misses it all the same. A fresh store has none yet.
    let made = dir.join("version").exists();
    let file = match std::fs::File::options().create(made).truncate(false).write(true).open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened,
    };
    let file = file.map_err(|e| Error::Backend { context: format!("open {}", path.display()), source: e.into() })?;
    match file.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => Err(unusable(dir, fjall::Error::Locked)),
        _ => Ok(()),
    }
}

fn missing(path: &Path, first: Revision, next: Revision) -> Error {
    let message = format!(
        "revisions {first} to {} are missing: files were removed, cut or damaged; restore the store from a backup",
        next - 1
    );
    Error::Corrupt { path: path.display().to_string(), message }
}

fn push(history: &mut History, pending: Option<(Revision, Vec<Event>)>) {
    if let Some((revision, events)) = pending {
        history.push(Arc::new(Batch::new(revision, events)));
    }
}

fn unusable(dir: &Path, error: fjall::Error) -> Error {
    let path = dir.display().to_string();
    match error {
        fjall::Error::Locked => {
            Error::Corrupt { path, message: "another process has this store open; stop it first".to_owned() }
        }
        fjall::Error::Io(source) => {
            Error::Backend { context: format!("read or write the store in {path}"), source: source.into() }
        }
        fjall::Error::Poisoned => Error::Backend {
            context: format!("the disk of {path} is full or failing; make space or replace it, then restart"),
            source: Box::new(error),
        },
        damaged => {
            Error::Corrupt { path, message: format!("the files are damaged ({damaged:?}); restore from a backup") }
        }
    }
}

fn record_key(revision: Revision, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + key.len());
    out.extend_from_slice(&revision.to_be_bytes());
    out.extend_from_slice(key);
    out
}

fn encode(kind: EventKind, kv: &KeyValue) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + kv.value.len());
    out.push(if kind == EventKind::Delete { TOMBSTONE } else { 0 });
    out.extend_from_slice(&kv.create_revision.to_be_bytes());
    out.extend_from_slice(&kv.version.to_be_bytes());
    out.extend_from_slice(&kv.lease.to_be_bytes());
    out.extend_from_slice(&kv.value);
    out
}

fn decode(key: &[u8], record: &[u8]) -> Option<(EventKind, KeyValue)> {
    let (flags, value) = (*record.first()?, record.get(HEADER..)?);
    let kind = match flags {
        0 => EventKind::Put,
        TOMBSTONE => EventKind::Delete,
        _ => return None,
    };
    let kv = KeyValue {
        key: Bytes::copy_from_slice(key.get(8..)?),
        value: Bytes::copy_from_slice(value),
        create_revision: u64_at(record, 1)?,
        mod_revision: u64_at(key, 0)?,
        version: u64_at(record, 9)?,
        lease: u64_at(record, 17)? as LeaseId,
    };
    Some((kind, kv))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(offset..offset + 8)?.try_into().ok()?))
}
