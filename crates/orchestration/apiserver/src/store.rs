//! Reads and writes of objects: compare-and-swap on the store, reads from the cache.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use dhow_api::Status;
use dhow_api::bounds::MAX_STORED;
use dhow_api::registry::Kind;
use dhow_store::{Compare, KeyRange, Kv, Op, OpResult, RangeRequest, Txn};
use serde_json::Value;

use crate::cache::{Cache, Objects, Snapshot};
use crate::convert::Converter;
use crate::object::{Change, Stored, exact};

/// Where objects are stored that should be encrypted at rest.
pub const SENSITIVE: &[&str] = &["/registry/core/secrets/"];

/// Seconds an Event is kept.
const EVENT_TTL: u64 = 3600;
/// How often a write is tried again when the object changed under it and the client left that to us.
pub const RETRIES: usize = 16;

/// Where objects live. Only the pipeline's store step and the server's own bootstrap hold one.
pub struct ObjectStore {
    kv: Arc<dyn Kv>,
    pub cache: Arc<Cache>,
    converter: Converter,
}

/// The outcome of a compare-and-swap.
pub enum Written {
    Done(Arc<Stored>),
    /// The object is not what it was; read it again.
    Changed,
    /// A guard is not what it was; decide again.
    Moved,
}

/// Another key that a write is decided upon, and changes along with its object: the write happens only if the key is
/// still as it was.
#[derive(Clone)]
pub struct Guard {
    key: Bytes,
    revision: u64,
    value: Bytes,
}

impl ObjectStore {
    pub fn new(kv: Arc<dyn Kv>, cache: Arc<Cache>) -> Self {
        Self { kv, converter: Converter::new(cache.clone()), cache }
    }

    /// The store's newest revision.
    pub async fn revision(&self) -> Result<u64, Status> {
        self.kv.current_revision().await.map_err(|error| store_error(&error))
    }

    /// Waits until the cache holds everything that was acknowledged before this call.
    pub async fn catch_up(&self) -> Result<(), Status> {
        let revision = self.revision().await?;
        self.cache.wait_for(revision).await;
        Ok(())
    }

    pub async fn get(&self, kind: &Kind, namespace: Option<&str>, name: &str) -> Result<Arc<Stored>, Status> {
        self.catch_up().await?;
        let found = self.cache.get(kind, &kind.storage_key(namespace, name));
        let found = found.ok_or_else(|| Status::not_found(kind.group, kind.plural, name))?;
        self.converter.one(kind, &found).await
    }

    /// Has webhooks convert those of the objects that nothing else can; [`Stored::in_form`] shows them from then on.
    pub async fn convert(&self, kind: &Kind, objects: impl Iterator<Item = &Arc<Stored>>) -> Result<(), Status> {
        self.converter.all(kind, objects).await
    }

    /// Has a webhook make what of the changes only it can, so that [`Change::in_form`] finds it.
    pub async fn shape(&self, kind: &Kind, changes: &[Arc<Change>]) -> Result<(), Status> {
        self.converter.shared(kind, changes.iter().flat_map(|change| change.states())).await
    }

    /// The kind's objects; what a webhook converts is still to be converted.
    pub async fn snapshot(&self, kind: &Kind) -> Result<Snapshot, Status> {
        self.catch_up().await?;
        self.cache.snapshot(kind)
    }

    /// The kind's objects as they were at a revision; `None` if that is too long ago.
    pub async fn snapshot_at(&self, kind: &Kind, revision: u64) -> Result<Option<Snapshot>, Status> {
        if let Some(kept) = self.cache.snapshot_at(kind, revision)? {
            return Ok(Some(kept));
        }
        let range = KeyRange::prefix(kind.storage_prefix());
        let request = RangeRequest { range, revision, limit: 0, count_only: false, keys_only: false };
        let all = match self.kv.range(request).await {
            Ok(all) => all,
            Err(dhow_store::Error::Compacted { .. }) => return Ok(None),
            Err(dhow_store::Error::FutureRevision { requested, current }) => {
                return Err(Status::too_large_resource_version(requested, current));
            }
            Err(error) => return Err(store_error(&error)),
        };
        let mut objects = Objects::new();
        for entry in &all.kvs {
            let stored = decode(kind, &entry.key, &entry.value, entry.mod_revision)?;
            objects.insert(stored.key.clone(), stored);
        }
        Ok(Some(Snapshot { objects, revision }))
    }

    /// A guard that is an object, and what it becomes.
    pub fn guard(&self, kind: &Kind, old: &Stored, new: &Value) -> Result<Guard, Status> {
        let key = Bytes::copy_from_slice(old.key.as_bytes());
        Ok(Guard { key, revision: old.revision, value: encode(kind, Cow::Borrowed(new))? })
    }

    /// A guard that is nothing but that. Everything written under it so far is in the cache.
    pub async fn bare_guard(&self, key: &'static str) -> Result<Guard, Status> {
        let key = Bytes::from_static(key.as_bytes());
        let found = self.kv.range(RangeRequest::new(KeyRange::key(key.clone()))).await;
        let found = found.map_err(|error| store_error(&error))?;
        self.cache.wait_for(found.revision).await;
        let revision = found.kvs.first().map_or(0, |kept| kept.mod_revision);
        Ok(Guard { key, revision, value: Bytes::new() })
    }

    /// Writes a new object; `AlreadyExists` if there is one.
    pub async fn create(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
        object: &Value,
        guards: &[Guard],
    ) -> Result<Written, Status> {
        match self.swap(kind, &kind.storage_key(namespace, name), 0, object, guards).await? {
            Written::Changed => Err(Status::already_exists(kind.group, kind.plural, name)),
            other => Ok(other),
        }
    }

    /// Whether what is stored is what a write of this object would store: in the version that is stored today, and
    /// where values are sealed with the key in use. What changed meanwhile is somebody else's to judge.
    pub async fn is_current(&self, kind: &Kind, old: &Stored, object: &Value) -> Result<bool, Status> {
        let Some(stored) = self.cache.stored(kind, &old.key).filter(|stored| stored.revision == old.revision) else {
            return Ok(true);
        };
        let kept: Value = serde_json::from_slice(stored.kept()).map_err(|error| Status::internal(error.to_string()))?;
        let same = match &kind.custom {
            // Whether a webhook says the same twice is not known.
            Some(served) if served.definition.webhook.is_some() => {
                kept["apiVersion"] == kind.storage_row().unwrap_or(kind).api_version()
            }
            None if !kind.is_storage() => true,
            _ => kept == *storage_form(kind, self.converter.to_storage(kind, object).await?),
        };
        if !same {
            return Ok(false);
        }
        let key = Bytes::copy_from_slice(old.key.as_bytes());
        self.kv.outdated(&key).await.map(|outdated| !outdated).map_err(|error| store_error(&error))
    }

    /// Replaces the object if it is still at `revision`.
    pub async fn update(&self, kind: &Kind, old: &Stored, object: &Value) -> Result<Written, Status> {
        self.update_with(kind, old, object, &[]).await
    }

    /// The same, guarded.
    pub async fn update_with(
        &self,
        kind: &Kind,
        old: &Stored,
        object: &Value,
        guards: &[Guard],
    ) -> Result<Written, Status> {
        self.swap(kind, &old.key, old.revision, object, guards).await
    }

    async fn swap(
        &self,
        kind: &Kind,
        name: &str,
        revision: u64,
        object: &Value,
        guards: &[Guard],
    ) -> Result<Written, Status> {
        let value = encode(kind, self.converter.to_storage(kind, object).await?)?;
        if value.len() > MAX_STORED {
            return Err(Status::too_large(MAX_STORED));
        }
        let key = Bytes::copy_from_slice(name.as_bytes());
        let lease = match kind.kind {
            "Event" => self.kv.lease_grant(EVENT_TTL).await.map_err(|error| store_error(&error))?,
            _ => 0,
        };
        let mut txn = Txn {
            compare: vec![Compare::mod_revision(key.clone(), revision)],
            success: vec![Op::Put { key: key.clone(), value: value.clone(), lease }],
            failure: Vec::new(),
            relaxed: matches!(kind.kind, "Event" | "Lease"),
        };
        for guard in guards {
            txn.compare.push(Compare::mod_revision(guard.key.clone(), guard.revision));
            txn.success.push(Op::Put { key: guard.key.clone(), value: guard.value.clone(), lease: 0 });
        }
        if !guards.is_empty() {
            let ask = RangeRequest { keys_only: true, ..RangeRequest::new(KeyRange::key(key.clone())) };
            txn.failure.push(Op::Range(ask));
        }
        let answer = self.kv.txn(txn).await.map_err(|error| store_error(&error))?;
        // Whoever wrote reads its own write, and a loser reads what it lost to.
        self.cache.wait_for(answer.revision).await;
        if !answer.succeeded {
            let as_it_was = answer.results.first().is_some_and(|result| match result {
                OpResult::Range(found) => found.kvs.first().map_or(0, |kept| kept.mod_revision) == revision,
                _ => false,
            });
            return Ok(if as_it_was { Written::Moved } else { Written::Changed });
        }
        // What the cache has is shared with those who watch.
        let cached = self.cache.get(kind, name).filter(|stored| stored.revision == answer.revision);
        let stored = match cached {
            Some(stored) => stored,
            None => decode(kind, &key, &value, answer.revision)?,
        };
        self.converter.one(kind, &stored).await.map(Written::Done)
    }

    /// Removes the object if it is still at `revision`; returns it as it was last, at the revision of the delete.
    pub async fn delete(&self, kind: &Kind, old: &Stored) -> Result<Written, Status> {
        let key = Bytes::copy_from_slice(old.key.as_bytes());
        let txn = Txn {
            compare: vec![Compare::mod_revision(key.clone(), old.revision)],
            success: vec![Op::Delete { range: KeyRange { start: key.clone(), end: None } }],
            ..Txn::default()
        };
        let answer = self.kv.txn(txn).await.map_err(|error| store_error(&error))?;
        self.cache.wait_for(answer.revision).await;
        match answer.results.into_iter().next() {
            Some(OpResult::Delete { previous }) if answer.succeeded => {
                let last = previous.into_iter().next().map(|last| last.value).unwrap_or_default();
                let stored = decode(kind, &key, &last, answer.revision)?;
                self.converter.one(kind, &stored).await.map(Written::Done)
            }
            _ => Ok(Written::Changed),
        }
    }
}

/// Stored bytes as a row of the registry shows them.
fn decode(kind: &Kind, key: &[u8], value: &Bytes, revision: u64) -> Result<Arc<Stored>, Status> {
    let stored = Arc::new(Stored::decode(Some(kind.storage_row().unwrap_or(kind)), key, value, revision)?);
    Ok(stored.in_form(kind))
}

/// What to keep: in the form that is stored, and without the resource version, which is the store's own.
fn storage_form<'a>(kind: &Kind, kept: Cow<'a, Value>) -> Cow<'a, Value> {
    let has_version = kept.get("metadata").is_some_and(|metadata| metadata.get("resourceVersion").is_some());
    if kind.conversion.is_none() && kind.custom.is_none() && !has_version {
        return kept;
    }
    let mut kept = kept.into_owned();
    kind.to_storage(&mut kept);
    if let Some(metadata) = kept.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    Cow::Owned(kept)
}

fn encode(kind: &Kind, object: Cow<'_, Value>) -> Result<Bytes, Status> {
    serde_json::to_vec(&*storage_form(kind, object))
        .map(exact)
        .map_err(|error| Status::internal(format!("encode object: {error}")))
}

fn store_error(error: &dhow_store::Error) -> Status {
    Status::service_unavailable(format!("the store does not answer: {error}"))
}
