//! The one reconcile driver.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{Error, Key, Queue};

/// What a reconciliation asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Wake me when something changes.
    Done,
    RequeueAfter(Duration),
}

/// Brings the world of one key closer to what is desired. Takes a key, never an event, and is idempotent.
#[async_trait::async_trait]
pub trait Reconcile: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error>;
}

/// Works on the queue with `workers` at a time until `shutdown`. An error queues its key again with back-off.
pub async fn run_controller(reconciler: Arc<dyn Reconcile>, queue: Queue, workers: usize, shutdown: CancellationToken) {
    let mut running = JoinSet::new();
    for _ in 0..workers.max(1) {
        running.spawn(work(reconciler.clone(), queue.clone(), shutdown.clone()));
    }
    while let Some(ended) = running.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            // A reconciler's bug must not stop the other keys.
            tracing::error!(controller = reconciler.name(), %error, "a worker panicked; replacing it");
            running.spawn(work(reconciler.clone(), queue.clone(), shutdown.clone()));
        }
    }
}

async fn work(reconciler: Arc<dyn Reconcile>, queue: Queue, shutdown: CancellationToken) {
    loop {
        let key = tokio::select! { key = queue.next() => key, () = shutdown.cancelled() => return };
        // Gives the key back also when the reconciler panics.
        let _held = Held { queue: &queue, key: &key };
        match reconciler.reconcile(&key).await {
            Ok(outcome) => {
                queue.forget(&key);
                if let Outcome::RequeueAfter(delay) = outcome {
                    queue.add_after(key.clone(), delay);
                }
            }
            Err(error) => {
                if error.is_conflict() {
                    tracing::debug!(controller = reconciler.name(), %key, %error, "retrying");
                } else {
                    tracing::warn!(controller = reconciler.name(), %key, %error, "reconcile failed; retrying");
                }
                queue.add_rate_limited(key.clone());
            }
        }
    }
}

struct Held<'a> {
    queue: &'a Queue,
    key: &'a Key,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.queue.done(self.key);
    }
}
