//! A store that forgets everything when it is dropped: for tests and throw-away clusters.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::core::{Command, Expiry, History, Hub, Keyspace, Options, decide, next_id};
use crate::{Error, Kv, LeaseId, RangeRequest, RangeResponse, Revision, Txn, TxnResponse, WatchRequest, WatchStream};

/// Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct MemoryKv(Arc<Inner>);

struct Inner {
    hub: Arc<Hub>,
    /// Held while a write is decided and published, which makes writes one sequence.
    writer: Mutex<Keyspace>,
    expiry: Expiry,
}

impl Default for MemoryKv {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryKv {
    pub fn new() -> Self {
        Self::with_options(Options::default())
    }

    pub fn with_options(options: Options) -> Self {
        let keyspace = Keyspace::empty();
        let hub = Arc::new(Hub::new(keyspace.clone(), History::new(0), options));
        Self(Arc::new(Inner { hub, writer: Mutex::new(keyspace), expiry: Expiry::new() }))
    }
}

impl Inner {
    fn run(&self, command: Command) -> Result<TxnResponse, Error> {
        let mut keyspace = self.writer.lock();
        let (response, effect) = decide(&mut keyspace, &self.hub, &[], command)?;
        self.hub.publish(&keyspace, effect.batch.as_slice());
        if let Some(revision) = self.hub.excess() {
            self.hub.compact(revision);
        }
        Ok(response)
    }
}

#[async_trait::async_trait]
impl Kv for MemoryKv {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        self.0.hub.range(&request)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        self.0.run(Command::Txn(txn))
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchStream, Error> {
        self.0.hub.watch(request)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let _writes_wait = self.0.writer.lock();
        self.0.hub.plan_compaction(revision)?;
        self.0.hub.compact(revision);
        Ok(())
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        Ok(self.0.hub.revision())
    }

    async fn lease_grant(&self, ttl: u64) -> Result<LeaseId, Error> {
        let (id, ttl) = (next_id(), ttl.max(1));
        self.0.run(Command::Grant(id, ttl))?;
        let store: Weak<Inner> = Arc::downgrade(&self.0);
        self.0.expiry.add(id, ttl, move |id| {
            if let Some(store) = store.upgrade()
                && let Err(error) = store.run(Command::Revoke(id))
            {
                tracing::debug!(lease = id, %error, "a lease that ran out was gone already");
            }
        })?;
        Ok(id)
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), Error> {
        self.0.expiry.keep_alive(id)
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        self.0.run(Command::Revoke(id))?;
        self.0.expiry.remove(id);
        Ok(())
    }
}
