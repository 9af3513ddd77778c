//! Encryption at rest: a [`Kv`] around another one that seals the values below some prefixes.
//!
//! Keys, revisions and leases stay in the open. A value below the prefixes that is not sealed yet is read as it is, so
//! sealing can be turned on for an existing store; [`SealedKv::rewrite`] then seals what is there.

mod keys;

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;

pub use keys::SealingKeys;

use crate::{
    Compare, Error, Event, KeyRange, KeyValue, Kv, LeaseId, Op, OpResult, RangeRequest, RangeResponse, Revision,
    Target, Txn, TxnResponse, WatchMessage, WatchRequest, WatchStream,
};

/// Keys read at once when everything is written anew.
const PAGE: usize = 500;

pub struct SealedKv {
    inner: Arc<dyn Kv>,
    seals: Arc<Seals>,
}

struct Seals {
    keys: SealingKeys,
    prefixes: Vec<Bytes>,
}

impl SealedKv {
    /// Seals what is written below `prefixes` from now on; an empty prefix is everything.
    pub fn new(inner: Arc<dyn Kv>, keys: SealingKeys, prefixes: &[&str]) -> Self {
        let prefixes = prefixes.iter().map(|prefix| Bytes::copy_from_slice(prefix.as_bytes())).collect();
        Self { inner, seals: Arc::new(Seals { keys, prefixes }) }
    }

    /// Writes every value anew that is not as it would be written now: sealed with another key than the first, not
    /// sealed though it should be, sealed though it need not be. Returns how many there were; after it the other keys
    /// are not needed for the present, only for the past that is not yet compacted. Safe beside other writers.
    pub async fn rewrite(&self) -> Result<usize, Error> {
        let mut written = 0;
        let mut from = Bytes::from_static(b"\0");
        loop {
            let range = KeyRange { start: from, end: Some(Bytes::from_static(b"\0")) };
            let page = self.inner.range(RangeRequest { limit: PAGE, ..RangeRequest::new(range) }).await?;
            for kv in &page.kvs {
                let mut now = Some(kv.clone());
                while let Some(kv) = now.take().filter(|kv| self.seals.outdated(kv)) {
                    let value = self.seals.seal(&kv.key, self.seals.keys.open(&kv.key, &kv.value)?)?;
                    let txn = Txn {
                        compare: vec![Compare::mod_revision(kv.key.clone(), kv.mod_revision)],
                        success: vec![Op::Put { key: kv.key.clone(), value, lease: kv.lease }],
                        ..Txn::default()
                    };
                    if self.inner.txn(txn).await?.succeeded {
                        written += 1;
                    } else {
                        now = self.stored(&kv.key).await?;
                    }
                }
            }
            match page.kvs.last() {
                Some(last) if page.more => from = [&last.key[..], b"\0"].concat().into(),
                _ => return Ok(written),
            }
        }
    }

    /// One key as the store below has it.
    async fn stored(&self, key: &Bytes) -> Result<Option<KeyValue>, Error> {
        let found = self.inner.range(RangeRequest::new(KeyRange::key(key.clone()))).await?;
        Ok(found.kvs.into_iter().next())
    }

    /// A transaction that compares sealed values: no two seals of a value are equal, so the compares are decided here
    /// and the outcome is guarded by the revisions they were decided at.
    async fn txn_on_values(&self, txn: Txn) -> Result<TxnResponse, Error> {
        loop {
            let (mut guards, mut succeeded) = (Vec::new(), true);
            for compare in &txn.compare {
                let mut kv = self.stored(&compare.key).await?;
                if let Some(kv) = &mut kv {
                    self.seals.open(kv)?;
                }
                succeeded &= compare.holds(kv.as_ref());
                let revision = kv.map_or(0, |kv| kv.mod_revision);
                guards.push(Compare::mod_revision(compare.key.clone(), revision));
            }
            let ops = if succeeded { &txn.success } else { &txn.failure };
            let guarded = Txn { compare: guards, success: ops.clone(), failure: Vec::new(), relaxed: txn.relaxed };
            let response = self.inner.txn(guarded).await?;
            if response.succeeded {
                return self.opened(TxnResponse { succeeded, ..response });
            }
        }
    }

    fn opened(&self, mut response: TxnResponse) -> Result<TxnResponse, Error> {
        for result in &mut response.results {
            match result {
                OpResult::Put { previous } => previous.iter_mut().try_for_each(|kv| self.seals.open(kv))?,
                OpResult::Delete { previous } => previous.iter_mut().try_for_each(|kv| self.seals.open(kv))?,
                OpResult::Range(range) => range.kvs.iter_mut().try_for_each(|kv| self.seals.open(kv))?,
            }
        }
        Ok(response)
    }
}

impl Seals {
    fn chosen(&self, key: &[u8]) -> bool {
        self.prefixes.iter().any(|prefix| key.starts_with(prefix))
    }

    fn seal(&self, key: &Bytes, value: Bytes) -> Result<Bytes, Error> {
        // A plain value that looks sealed would not be read back as itself.
        if self.chosen(key) || keys::is_sealed(&value) { self.keys.seal(key, &value) } else { Ok(value) }
    }

    fn open(&self, kv: &mut KeyValue) -> Result<(), Error> {
        kv.value = self.keys.open(&kv.key, &kv.value)?;
        Ok(())
    }

    fn outdated(&self, kv: &KeyValue) -> bool {
        if self.chosen(&kv.key) { !self.keys.is_first(&kv.value) } else { keys::is_sealed(&kv.value) }
    }

    fn seal_ops(&self, ops: &mut [Op]) -> Result<(), Error> {
        for op in ops {
            // An empty key is the store's to refuse.
            if let Op::Put { key, value, .. } = op {
                *value = self.seal(key, std::mem::take(value))?;
            }
        }
        Ok(())
    }

    fn open_events(&self, events: &mut [Event]) -> Result<(), Error> {
        for event in events {
            self.open(&mut event.kv)?;
            event.previous.as_mut().map_or(Ok(()), |previous| self.open(previous))?;
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl Kv for SealedKv {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        let mut response = self.inner.range(request).await?;
        response.kvs.iter_mut().try_for_each(|kv| self.seals.open(kv))?;
        Ok(response)
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnResponse, Error> {
        self.seals.seal_ops(&mut txn.success)?;
        self.seals.seal_ops(&mut txn.failure)?;
        if txn.compare.iter().any(|c| matches!(c.target, Target::Value(_)) && self.seals.chosen(&c.key)) {
            return self.txn_on_values(txn).await;
        }
        self.opened(self.inner.txn(txn).await?)
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchStream, Error> {
        let seals = Arc::clone(&self.seals);
        let stream = self.inner.watch(request).await?;
        Ok(stream
            .map(move |message| match message? {
                WatchMessage::Events { revision, mut events } => {
                    seals.open_events(&mut events)?;
                    Ok(WatchMessage::Events { revision, events })
                }
                progress @ WatchMessage::Progress { .. } => Ok(progress),
            })
            .boxed())
    }

    async fn outdated(&self, key: &Bytes) -> Result<bool, Error> {
        Ok(self.stored(key).await?.is_some_and(|kv| self.seals.outdated(&kv)))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.inner.compact(revision).await
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        self.inner.current_revision().await
    }

    async fn lease_grant(&self, ttl: u64) -> Result<LeaseId, Error> {
        self.inner.lease_grant(ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), Error> {
        self.inner.lease_keep_alive(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        self.inner.lease_revoke(id).await
    }
}
