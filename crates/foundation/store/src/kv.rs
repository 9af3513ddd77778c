//! The `Kv` trait: etcd v3's data model and guarantees, as the API server needs them.
//!
//! Every backend must be indistinguishable in [`crate::suite`]; etcd itself is one of them.

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::Error;

/// A store-wide revision. The first write makes revision 2, as in etcd (an empty store is at 1).
pub type Revision = u64;

/// Identifies a lease; 0 means "no lease".
pub type LeaseId = i64;

/// One key as it stood at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    /// Revision of the write that created the key since it was last absent.
    pub create_revision: Revision,
    /// Revision of the latest write to the key.
    pub mod_revision: Revision,
    /// Number of writes since creation; 1 for a new key.
    pub version: u64,
    pub lease: LeaseId,
}

/// A half-open key interval `[start, end)`. `end == None` names the single key `start`; an `end` of one zero byte
/// means "and every key after it", as in etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    pub start: Bytes,
    pub end: Option<Bytes>,
}

impl KeyRange {
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self { start: key.into(), end: None }
    }

    /// Every key that begins with `prefix`; an empty prefix is every key.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let mut end = start.to_vec();
        while end.last() == Some(&0xff) {
            end.pop();
        }
        match end.last_mut() {
            Some(last) => *last += 1,
            None => end.push(0),
        }
        Self { start, end: Some(end.into()) }
    }

    /// No key can be in it.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| &end[..] != b"\0" && *end <= self.start)
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            None => key == self.start,
            Some(end) => key >= &self.start[..] && (&end[..] == b"\0" || key < &end[..]),
        }
    }
}

/// What to read. `revision == 0` reads the latest; a compacted revision gives [`Error::Compacted`].
#[derive(Debug, Clone)]
pub struct RangeRequest {
    pub range: KeyRange,
    pub revision: Revision,
    /// 0 means no limit.
    pub limit: usize,
    pub count_only: bool,
    /// Leave the values out.
    pub keys_only: bool,
}

impl RangeRequest {
    /// Everything in `range`, as it stands now.
    pub fn new(range: KeyRange) -> Self {
        Self { range, revision: 0, limit: 0, count_only: false, keys_only: false }
    }

    pub fn at(range: KeyRange, revision: Revision) -> Self {
        Self { revision, ..Self::new(range) }
    }
}

#[derive(Debug, Clone)]
pub struct RangeResponse {
    /// The store's current revision, or the revision asked for.
    pub revision: Revision,
    /// In key order.
    pub kvs: Vec<KeyValue>,
    /// Whether `limit` cut the answer.
    pub more: bool,
    /// Keys in the whole range, regardless of `limit`.
    pub count: usize,
}

/// A guard of a transaction: all must hold for `success` to run.
///
/// An absent key compares as revision, version and lease 0; its value compares as nothing, not even as unequal.
#[derive(Debug, Clone)]
pub struct Compare {
    pub key: Bytes,
    pub operator: Operator,
    pub target: Target,
}

/// How the key's own property relates to the one given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    Equal,
    NotEqual,
    Greater,
    Less,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    ModRevision(Revision),
    CreateRevision(Revision),
    Version(u64),
    Value(Bytes),
    Lease(LeaseId),
}

impl Compare {
    pub fn new(key: impl Into<Bytes>, operator: Operator, target: Target) -> Self {
        Self { key: key.into(), operator, target }
    }

    pub fn equal(key: impl Into<Bytes>, target: Target) -> Self {
        Self::new(key, Operator::Equal, target)
    }

    /// The key's last write is the one of this revision; 0 means the key is absent.
    pub fn mod_revision(key: impl Into<Bytes>, revision: Revision) -> Self {
        Self::equal(key, Target::ModRevision(revision))
    }

    pub(crate) fn holds(&self, kv: Option<&KeyValue>) -> bool {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let order = match (&self.target, kv) {
            (Target::Value(_), None) => return false,
            (Target::Value(value), Some(kv)) => kv.value.cmp(value),
            (Target::ModRevision(revision), kv) => kv.map_or(0, |kv| kv.mod_revision).cmp(revision),
            (Target::CreateRevision(revision), kv) => kv.map_or(0, |kv| kv.create_revision).cmp(revision),
            (Target::Version(version), kv) => kv.map_or(0, |kv| kv.version).cmp(version),
            (Target::Lease(lease), kv) => kv.map_or(0, |kv| kv.lease).cmp(lease),
        };
        match self.operator {
            Operator::Equal => order == Equal,
            Operator::NotEqual => order != Equal,
            Operator::Greater => order == Greater,
            Operator::Less => order == Less,
        }
    }
}

#[derive(Debug, Clone)]
pub enum Op {
    Put { key: Bytes, value: Bytes, lease: LeaseId },
    Delete { range: KeyRange },
    Range(RangeRequest),
}

#[derive(Debug, Clone)]
pub enum OpResult {
    /// The value replaced, if the key existed.
    Put {
        previous: Option<KeyValue>,
    },
    /// What was removed.
    Delete {
        previous: Vec<KeyValue>,
    },
    Range(RangeResponse),
}

/// Compare-then-act, atomic and isolated; all writes in it share one revision.
#[derive(Debug, Clone, Default)]
pub struct Txn {
    pub compare: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
    /// The write may be acknowledged before it is on disk (Lease and Event objects only).
    pub relaxed: bool,
}

#[derive(Debug, Clone)]
pub struct TxnResponse {
    pub revision: Revision,
    pub succeeded: bool,
    pub results: Vec<OpResult>,
}

#[derive(Debug, Clone)]
pub struct WatchRequest {
    pub range: KeyRange,
    /// First revision to deliver; 0 means "after now". A compacted one gives [`Error::Compacted`].
    pub start_revision: Revision,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// For a delete: the key with an empty value and the revision of the delete as `mod_revision`.
    pub kv: KeyValue,
    /// The value before this event, if the key existed.
    pub previous: Option<KeyValue>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// What a watch delivers. All events of one revision come in one batch, revisions ascend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchMessage {
    Events {
        revision: Revision,
        events: Vec<Event>,
    },
    /// Nothing at or below this revision is still to come.
    Progress {
        revision: Revision,
    },
}

pub type WatchStream = BoxStream<'static, Result<WatchMessage, Error>>;

/// A revisioned, watchable, leased key-value store with etcd v3 semantics.
#[async_trait::async_trait]
pub trait Kv: Send + Sync + 'static {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error>;

    /// Returns once the write is durable (unless `relaxed`) and visible to every reader.
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error>;

    /// Registers the watch before it returns; events from `start_revision` on are never missed. A range no key can be
    /// in is [`Error::Invalid`].
    async fn watch(&self, request: WatchRequest) -> Result<WatchStream, Error>;

    /// Forgets history below `revision`.
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// Whether a key's value would be kept otherwise if it was written again now: sealed with another key.
    async fn outdated(&self, _key: &Bytes) -> Result<bool, Error> {
        Ok(false)
    }

    async fn current_revision(&self) -> Result<Revision, Error>;

    /// `ttl` in whole seconds, at least 1.
    async fn lease_grant(&self, ttl: u64) -> Result<LeaseId, Error>;
    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), Error>;
    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error>;
}
