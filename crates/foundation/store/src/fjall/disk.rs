//! Layout of the files, and the only place that knows the storage engine.
//!
//! `revisions`: revision (8 bytes, big endian) then key -> flags, create revision, version, lease, value. One record
//! per key and revision, written once, removed by compaction when nothing can ask for it any more.
//! `leases`: id -> seconds. `meta`: `format`, `compacted`.
//! The file `clean` beside them holds the last revision of an orderly stop: less than that on disk means damage.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fjall::{Database, Keyspace as Tree, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};

use crate::core::{Batch, Effect, Garbage, History, Keyspace};
use crate::{Error, Event, EventKind, KeyValue, LeaseId, Revision};

const FORMAT: &[u8] = b"1";
/// The live keys are in memory already: a large write buffer would only hold them twice.
const WRITE_BUFFER: u64 = 8 << 20;
const TOMBSTONE: u8 = 1;
/// Flags, create revision, version, lease.
const HEADER: usize = 1 + 3 * 8;

pub(super) struct Disk {
    db: Database,
    revisions: Tree,
    leases: Tree,
    meta: Tree,
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
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| Error::Backend { context: format!("create directory {}", dir.display()), source: e.into() })?;
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
        let disk = Self { db, revisions, leases, meta, dir: dir.to_owned() };
        disk.check_format()?;
        let (keyspace, history) = disk.load()?;
        disk.check_clean(keyspace.revision())?;
        Ok((disk, keyspace, history))
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
                Err(self.corrupt("the store's format mark is missing; restore it from a backup"))
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
                    return Err(self.missing(last + 1, revision));
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

    fn missing(&self, first: Revision, next: Revision) -> Error {
        self.corrupt(format!(
            "revisions {first} to {} are missing: files were lost or damaged; restore the store from a backup",
            next - 1
        ))
    }

    /// An orderly stop leaves the revision it reached; from here on the mark would only go stale.
    fn check_clean(&self, revision: Revision) -> Result<(), Error> {
        let path = self.dir.join("clean");
        let failed = |source: std::io::Error| Error::Backend {
            context: format!("read {}", path.display()),
            source: source.into(),
        };
        match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed(e)),
            Ok(text) => {
                if let Ok(reached) = text.trim().parse::<Revision>()
                    && reached > revision
                {
                    return Err(self.missing(revision + 1, reached + 1));
                }
                std::fs::remove_file(&path).map_err(failed)
            }
        }
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
        batch.commit().map_err(|e| unusable(&self.dir, e))
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

    pub fn close(self, revision: Revision) {
        let closed = self.db.persist(PersistMode::SyncAll).map_err(|e| unusable(&self.dir, e)).and_then(|()| {
            std::fs::write(self.dir.join("clean"), format!("{revision}\n"))
                .map_err(|e| Error::Backend { context: "mark the store as closed".to_owned(), source: e.into() })
        });
        if let Err(error) = closed {
            tracing::error!(%error, "close the store");
        }
    }
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
        fjall::Error::Poisoned => {
            Error::Backend { context: format!("an earlier write to {path} failed; restart"), source: Box::new(error) }
        }
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
