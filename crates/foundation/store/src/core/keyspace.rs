//! The live keys at one revision: a persistent map, so that a copy is a snapshot and costs nothing.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::{OrdMap, OrdSet};

use super::history::{Batch, History};
use crate::{
    Error, Event, EventKind, KeyRange, KeyValue, LeaseId, Op, OpResult, RangeRequest, RangeResponse, Revision, Txn,
    TxnResponse,
};

#[derive(Clone)]
pub(crate) struct Keyspace {
    keys: OrdMap<Bytes, Arc<KeyValue>>,
    revision: Revision,
    leases: OrdMap<LeaseId, Lease>,
}

#[derive(Clone)]
struct Lease {
    ttl: u64,
    keys: OrdSet<Bytes>,
}

impl Keyspace {
    pub fn empty() -> Self {
        Self { keys: OrdMap::new(), revision: 1, leases: OrdMap::new() }
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn leases(&self) -> impl Iterator<Item = (LeaseId, u64)> + '_ {
        self.leases.iter().map(|(id, lease)| (*id, lease.ttl))
    }

    /// Every live key, in order.
    pub fn iter(&self) -> impl Iterator<Item = &KeyValue> {
        self.keys.values().map(|kv| &**kv)
    }

    /// `false` if the lease exists already.
    pub fn grant(&mut self, id: LeaseId, ttl: u64) -> bool {
        if self.leases.contains_key(&id) {
            return false;
        }
        self.leases.insert(id, Lease { ttl, keys: OrdSet::new() });
        true
    }

    /// Deletes the lease's keys in one revision, if there are any.
    pub fn revoke(&mut self, id: LeaseId) -> Result<Option<Arc<Batch>>, Error> {
        let lease = self.leases.get(&id).cloned().ok_or(Error::LeaseNotFound(id))?;
        let mut write = Write::new(self);
        for key in &lease.keys {
            write.delete(key);
        }
        let batch = write.finish();
        self.leases.remove(&id);
        Ok(batch)
    }

    pub fn txn(
        &mut self,
        txn: &Txn,
        history: &History,
        unpublished: &[Arc<Batch>],
    ) -> Result<(TxnResponse, Option<Arc<Batch>>), Error> {
        check(&txn.success)?;
        check(&txn.failure)?;
        let succeeded = txn.compare.iter().all(|c| c.holds(self.keys.get(&c.key).map(|kv| &**kv)));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        for op in ops {
            match op {
                Op::Put { lease, .. } if *lease != 0 && !self.leases.contains_key(lease) => {
                    return Err(Error::LeaseNotFound(*lease));
                }
                Op::Range(request) => self.readable(request.revision, history)?,
                Op::Put { .. } | Op::Delete { .. } => {}
            }
        }
        let mut write = Write::new(self);
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            results.push(match op {
                Op::Put { key, value, lease } => {
                    OpResult::Put { previous: write.put(key, value, *lease).map(|kv| KeyValue::clone(&kv)) }
                }
                Op::Delete { range } => {
                    let keys: Vec<Bytes> = write.keyspace.select(range).map(|kv| kv.key.clone()).collect();
                    let previous = keys.iter().filter_map(|k| write.delete(k)).map(|kv| KeyValue::clone(&kv)).collect();
                    OpResult::Delete { previous }
                }
                Op::Range(request) => {
                    let mut response = write.keyspace.range_at(request, history, unpublished, &write.events);
                    if request.revision == 0 {
                        response.revision = write.next_revision();
                    }
                    OpResult::Range(response)
                }
            });
        }
        let batch = write.finish();
        Ok((TxnResponse { revision: self.revision, succeeded, results }, batch))
    }

    /// Whether a read at `revision` can be answered.
    pub fn readable(&self, revision: Revision, history: &History) -> Result<(), Error> {
        if revision == 0 {
            return Ok(());
        }
        if revision > self.revision {
            return Err(Error::FutureRevision { requested: revision, current: self.revision });
        }
        history.check(revision)
    }

    fn select<'a>(&'a self, range: &KeyRange) -> impl Iterator<Item = &'a Arc<KeyValue>> + use<'a> {
        select(&self.keys, range).map(|(_, kv)| kv)
    }

    /// Reads now or in the past; the caller has checked with [`Self::readable`].
    ///
    /// The past is the present with every later event undone.
    fn range_at(
        &self,
        request: &RangeRequest,
        history: &History,
        unpublished: &[Arc<Batch>],
        current: &BTreeMap<Bytes, Event>,
    ) -> RangeResponse {
        if request.revision == 0 {
            return collect(self.select(&request.range), request, self.revision);
        }
        let mut undone: BTreeMap<&Bytes, Option<&KeyValue>> = BTreeMap::new();
        let later = history.after(request.revision).flat_map(|b| b.events.iter());
        let later = later
            .chain(unpublished.iter().filter(|b| b.revision > request.revision).flat_map(|b| b.events.iter()))
            .chain(current.values());
        for event in later {
            if request.range.contains(&event.kv.key) {
                // The first later event of a key knows the value that stood before.
                undone.entry(&event.kv.key).or_insert(event.previous.as_ref());
            }
        }
        if undone.is_empty() {
            return collect(self.select(&request.range), request, request.revision);
        }
        let mut keys: OrdMap<Bytes, Arc<KeyValue>> = self.keys.clone();
        for (key, previous) in undone {
            match previous {
                Some(kv) => keys.insert(key.clone(), Arc::new(kv.clone())),
                None => keys.remove(key),
            };
        }
        collect(select(&keys, &request.range).map(|(_, kv)| kv), request, request.revision)
    }

    /// A read outside a transaction.
    pub fn range(&self, request: &RangeRequest, history: &History) -> Result<RangeResponse, Error> {
        self.readable(request.revision, history)?;
        Ok(self.range_at(request, history, &[], &BTreeMap::new()))
    }

    /// Puts a record read from disk in place; records come in the order of revisions. Gives the event it was.
    pub fn replay(&mut self, kind: EventKind, kv: KeyValue) -> Event {
        self.revision = self.revision.max(kv.mod_revision);
        let previous = self.keys.get(&kv.key).cloned();
        if let Some(old) = &previous {
            self.detach(old);
        }
        match kind {
            EventKind::Put => {
                let key = kv.key.clone();
                self.attach(&kv);
                self.keys.insert(key, Arc::new(kv.clone()));
            }
            EventKind::Delete => {
                self.keys.remove(&kv.key);
            }
        }
        Event { kind, kv, previous: previous.map(|kv| KeyValue::clone(&kv)) }
    }

    pub fn advance_to(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
    }

    fn attach(&mut self, kv: &KeyValue) {
        if kv.lease != 0
            && let Some(lease) = self.leases.get_mut(&kv.lease)
        {
            lease.keys.insert(kv.key.clone());
        }
    }

    fn detach(&mut self, kv: &KeyValue) {
        if kv.lease != 0
            && let Some(lease) = self.leases.get_mut(&kv.lease)
        {
            lease.keys.remove(&kv.key);
        }
    }
}

/// The writes of one revision in the making.
struct Write<'a> {
    keyspace: &'a mut Keyspace,
    /// Keys are written at most once, so their order does not matter to anyone and key order is as good as any.
    events: BTreeMap<Bytes, Event>,
}

impl<'a> Write<'a> {
    fn new(keyspace: &'a mut Keyspace) -> Self {
        Self { keyspace, events: BTreeMap::new() }
    }

    /// The store's revision as seen from inside: the new one as soon as something was written.
    fn next_revision(&self) -> Revision {
        self.keyspace.revision + u64::from(!self.events.is_empty())
    }

    fn put(&mut self, key: &Bytes, value: &Bytes, lease: LeaseId) -> Option<Arc<KeyValue>> {
        let revision = self.keyspace.revision + 1;
        let previous = self.keyspace.keys.get(key).cloned();
        let kv = KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: previous.as_ref().map_or(revision, |p| p.create_revision),
            mod_revision: revision,
            version: previous.as_ref().map_or(1, |p| p.version + 1),
            lease,
        };
        if let Some(old) = &previous {
            self.keyspace.detach(old);
        }
        self.keyspace.attach(&kv);
        self.keyspace.keys.insert(key.clone(), Arc::new(kv.clone()));
        let before = previous.as_ref().map(|kv| KeyValue::clone(kv));
        self.events.insert(key.clone(), Event { kind: EventKind::Put, kv, previous: before });
        previous
    }

    fn delete(&mut self, key: &Bytes) -> Option<Arc<KeyValue>> {
        let previous = self.keyspace.keys.remove(key)?;
        self.keyspace.detach(&previous);
        let kv = KeyValue {
            key: key.clone(),
            value: Bytes::new(),
            create_revision: 0,
            mod_revision: self.keyspace.revision + 1,
            version: 0,
            lease: 0,
        };
        let event = Event { kind: EventKind::Delete, kv, previous: Some(KeyValue::clone(&previous)) };
        self.events.insert(key.clone(), event);
        Some(previous)
    }

    fn finish(self) -> Option<Arc<Batch>> {
        if self.events.is_empty() {
            return None;
        }
        self.keyspace.revision += 1;
        Some(Arc::new(Batch::new(self.keyspace.revision, self.events.into_values().collect())))
    }
}

/// A transaction may write a key only once, because all its writes share one revision.
fn check(ops: &[Op]) -> Result<(), Error> {
    let mut puts = std::collections::BTreeSet::new();
    for op in ops {
        if let Op::Put { key, .. } = op {
            if key.is_empty() {
                return Err(Error::Invalid("key is not provided".to_owned()));
            }
            if !puts.insert(key) {
                return Err(Error::Invalid("duplicate key given in transaction".to_owned()));
            }
        }
    }
    for op in ops {
        if let Op::Delete { range } = op
            && puts.iter().any(|key| range.contains(key))
        {
            return Err(Error::Invalid("duplicate key given in transaction".to_owned()));
        }
    }
    Ok(())
}

fn select<'a>(
    keys: &'a OrdMap<Bytes, Arc<KeyValue>>,
    range: &KeyRange,
) -> impl Iterator<Item = (&'a Bytes, &'a Arc<KeyValue>)> + use<'a> {
    let start = range.start.clone();
    let (end, empty) = match &range.end {
        None => (Bound::Included(start.clone()), false),
        Some(end) if &end[..] == b"\0" => (Bound::Unbounded, false),
        Some(end) => (Bound::Excluded(end.clone()), *end <= start),
    };
    let found = (!empty).then(|| keys.range((Bound::Included(start), end)));
    found.into_iter().flatten()
}

fn collect<'a>(
    found: impl Iterator<Item = &'a Arc<KeyValue>>,
    request: &RangeRequest,
    revision: Revision,
) -> RangeResponse {
    let mut response = RangeResponse { revision, kvs: Vec::new(), more: false, count: 0 };
    for kv in found {
        response.count += 1;
        if request.count_only {
            continue;
        }
        if request.limit != 0 && response.kvs.len() == request.limit {
            response.more = true;
            continue;
        }
        let mut kv = KeyValue::clone(kv);
        if request.keys_only {
            kv.value = Bytes::new();
        }
        response.kvs.push(kv);
    }
    response
}
