//! The revisioned core every local backend shares. It does no IO.
//!
//! A write is decided against a private [`Keyspace`] (`decide`), made durable by the backend, then published to readers
//! and watchers in one step ([`Hub::publish`]). So nobody ever sees a write that could still be lost, and a backend
//! that fails to persist simply drops its private keyspace.

mod history;
mod hub;
mod keyspace;
mod lease;

use std::sync::Arc;
use std::time::Duration;

pub(crate) use history::{Batch, Garbage, History};
pub(crate) use hub::Hub;
pub(crate) use keyspace::Keyspace;
pub(crate) use lease::{Expiry, next_id};

use crate::{Error, LeaseId, OpResult, Revision, Txn, TxnResponse};

/// Bounds of what a local backend keeps beyond the live keys.
#[derive(Debug, Clone)]
pub struct Options {
    /// Events kept for watches and reads in the past; the oldest quarter is compacted away above this.
    pub max_history_events: usize,
    /// The same bound in bytes of keys and values.
    pub max_history_bytes: usize,
    /// Batches a watcher may be behind before it is cut off with [`Error::WatchLagged`].
    pub watch_buffer: usize,
    /// How long a watch may be silent while the store moves on before it reports progress.
    pub watch_progress: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_history_events: 50_000,
            max_history_bytes: 64 << 20,
            watch_buffer: 8192,
            watch_progress: Duration::from_secs(5),
        }
    }
}

/// What a writer is asked to do. Compaction is not here: it changes history, not keys.
#[derive(Debug)]
pub(crate) enum Command {
    Txn(Txn),
    Grant(LeaseId, u64),
    Revoke(LeaseId),
}

/// What has to be persisted and published for one command.
#[derive(Debug, Default)]
pub(crate) struct Effect {
    pub batch: Option<Arc<Batch>>,
    pub granted: Option<(LeaseId, u64)>,
    pub revoked: Option<LeaseId>,
}

impl Effect {
    pub fn is_empty(&self) -> bool {
        self.batch.is_none() && self.granted.is_none() && self.revoked.is_none()
    }
}

/// Runs a command on the private keyspace. `unpublished` are batches decided before this one and not yet in `history`.
pub(crate) fn decide(
    keyspace: &mut Keyspace,
    hub: &Hub,
    unpublished: &[Arc<Batch>],
    command: Command,
) -> Result<(TxnResponse, Effect), Error> {
    match command {
        Command::Txn(txn) => {
            let (response, batch) = hub.with_history(|history| keyspace.txn(&txn, history, unpublished))?;
            Ok((response, Effect { batch, ..Effect::default() }))
        }
        Command::Grant(id, ttl) => {
            if !keyspace.grant(id, ttl) {
                return Err(Error::Invalid(format!("lease {id} exists already")));
            }
            Ok((done(keyspace.revision()), Effect { granted: Some((id, ttl)), ..Effect::default() }))
        }
        Command::Revoke(id) => {
            let batch = keyspace.revoke(id)?;
            Ok((done(keyspace.revision()), Effect { batch, revoked: Some(id), granted: None }))
        }
    }
}

fn done(revision: Revision) -> TxnResponse {
    TxnResponse { revision, succeeded: true, results: Vec::<OpResult>::new() }
}
