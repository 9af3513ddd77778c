//! The embedded store: the shared core in memory, every revision on disk through one writer.
//!
//! Invariants: a write is acknowledged and becomes visible only after it is durable (a `relaxed` one after the kernel
//! has it, which survives the process but not the power); reads and watches never touch the disk; writes that arrive
//! while the disk is busy share the next `fdatasync`.

mod backup;
mod check;
mod disk;
mod mark;
mod writer;

use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::core::{Command, Expiry, Hub, Options, next_id};
use crate::{Error, Kv, LeaseId, RangeRequest, RangeResponse, Revision, Txn, TxnResponse, WatchRequest, WatchStream};
pub use backup::{Backup, SKIP_REVISIONS, restore_backup, verify_backup};
use disk::Disk;
use writer::{Job, Work, Writer};

/// Jobs that may wait for the writer before callers do.
const QUEUE: usize = 4096;

/// Cheap to clone; clones are the same store. The last clone to go waits until the files are closed.
#[derive(Clone)]
pub struct FjallKv(Arc<Inner>);

struct Inner {
    hub: Arc<Hub>,
    /// `None` only while dropping.
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    expiry: Expiry,
}

impl FjallKv {
    /// Opens the store in `dir`, making it if there is none. Reads everything once, so it blocks for a moment.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(dir, Options::default())
    }

    pub fn open_with(dir: impl AsRef<Path>, options: Options) -> Result<Self, Error> {
        let (disk, keyspace, history) = Disk::open(dir.as_ref())?;
        let leases: Vec<_> = keyspace.leases().collect();
        let hub = Arc::new(Hub::new(keyspace.clone(), history, options));
        let (jobs, receiver) = mpsc::channel(QUEUE);
        let writer = Writer::new(disk, keyspace, Arc::clone(&hub));
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(receiver))
            .map_err(|e| Error::Backend { context: "start the store's writer".to_owned(), source: e.into() })?;
        let store = Self(Arc::new(Inner { hub, jobs: Some(jobs), writer: Some(writer), expiry: Expiry::new() }));
        for (id, ttl) in leases {
            store.start_clock(id, ttl)?;
        }
        Ok(store)
    }

    /// The leases there are, and their whole time to live in seconds.
    pub fn leases(&self) -> Vec<(LeaseId, u64)> {
        self.hub().keyspace().leases().collect()
    }

    fn hub(&self) -> &Hub {
        &self.0.hub
    }

    fn start_clock(&self, id: LeaseId, ttl: u64) -> Result<(), Error> {
        let store: Weak<Inner> = Arc::downgrade(&self.0);
        self.0.expiry.add(id, ttl, move |id| {
            let Some(jobs) = store.upgrade().and_then(|s| s.jobs.clone()) else { return };
            let (reply, _) = oneshot::channel();
            // A closed store keeps its leases for the next start.
            let _ = jobs.blocking_send(Job { work: Work::Write(Command::Revoke(id), true), reply });
        })
    }

    async fn run(&self, work: Work) -> Result<TxnResponse, Error> {
        let (reply, answer) = oneshot::channel();
        let jobs = self.0.jobs.as_ref().ok_or(Error::Closed)?;
        jobs.send(Job { work, reply }).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The writer ends when the queue is closed and drained.
        self.jobs = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

#[async_trait::async_trait]
impl Kv for FjallKv {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        self.0.hub.range(&request)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        let relaxed = txn.relaxed;
        self.run(Work::Write(Command::Txn(txn), relaxed)).await
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchStream, Error> {
        self.0.hub.watch(request)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.run(Work::Compact(revision)).await.map(|_| ())
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        Ok(self.0.hub.revision())
    }

    async fn lease_grant(&self, ttl: u64) -> Result<LeaseId, Error> {
        let (id, ttl) = (next_id(), ttl.max(1));
        self.run(Work::Write(Command::Grant(id, ttl), false)).await?;
        self.start_clock(id, ttl)?;
        Ok(id)
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), Error> {
        self.0.expiry.keep_alive(id)
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        self.run(Work::Write(Command::Revoke(id), false)).await?;
        self.0.expiry.remove(id);
        Ok(())
    }
}
