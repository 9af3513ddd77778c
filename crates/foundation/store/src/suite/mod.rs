//! What every [`Kv`] backend must do; etcd itself is the yardstick.
//!
//! A backend's test calls [`run`] with a way to get a store. Stores may be fresh or shared: each case works below a
//! prefix of its own and assumes nothing about the revision it starts at. A failed expectation panics.
#![allow(clippy::unwrap_used)]

pub mod blobs;
mod leases;
mod model;
mod reads;
mod watches;
mod writes;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;

use crate::{
    Error, Event, KeyRange, KeyValue, Kv, Op, OpResult, RangeRequest, RangeResponse, Revision, Txn, TxnResponse,
    WatchMessage, WatchRequest, WatchStream,
};

/// Runs every case.
pub async fn run<F, Fut>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn Kv>>,
{
    macro_rules! cases {
        ($($module:ident :: $case:ident),* $(,)?) => {
            $(
                tracing::info!(case = stringify!($case), "suite");
                $module::$case(&Store::new(factory().await, stringify!($case))).await;
            )*
        };
    }
    cases!(
        writes::versions_count_writes,
        writes::compares_guard,
        writes::a_transaction_is_one_revision,
        writes::nothing_written_is_no_revision,
        writes::nonsense_is_refused_whole,
        writes::increments_are_not_lost,
        reads::ranges_are_ordered_and_limited,
        reads::pages_are_of_one_revision,
        reads::compaction_ends_the_past,
        watches::sees_what_it_asked_for,
        watches::empty_ranges_are_refused,
        watches::a_long_past_comes_whole,
        watches::starts_in_the_past,
        watches::starts_in_the_future,
        watches::starts_after_compaction,
        watches::sees_every_revision_once,
        leases::revoking_deletes_in_one_revision,
        leases::running_out_deletes,
        leases::keeping_alive_keeps,
        leases::unknown_leases_are_refused,
        model::agrees_with_a_simple_model,
    );
}

/// A store with the prefix of one case.
struct Store {
    kv: Arc<dyn Kv>,
    prefix: String,
}

impl Store {
    fn new(kv: Arc<dyn Kv>, case: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let unique = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { kv, prefix: format!("/suite/{case}/{unique}/") }
    }

    fn key(&self, name: &str) -> Bytes {
        format!("{}{name}", self.prefix).into()
    }

    fn all(&self) -> KeyRange {
        KeyRange::prefix(self.prefix.clone())
    }

    fn put_op(&self, name: &str, value: &str) -> Op {
        Op::Put { key: self.key(name), value: value.to_owned().into(), lease: 0 }
    }

    fn delete_op(&self, name: &str) -> Op {
        Op::Delete { range: KeyRange::key(self.key(name)) }
    }

    async fn write(&self, success: Vec<Op>) -> TxnResponse {
        self.kv.txn(Txn { success, ..Txn::default() }).await.unwrap()
    }

    /// Gives the revision of the write.
    async fn put(&self, name: &str, value: &str) -> Revision {
        self.write(vec![self.put_op(name, value)]).await.revision
    }

    async fn delete(&self, name: &str) -> Revision {
        self.write(vec![self.delete_op(name)]).await.revision
    }

    async fn get(&self, name: &str) -> Option<KeyValue> {
        let range = KeyRange::key(self.key(name));
        let response = self
            .kv
            .range(RangeRequest { range, revision: 0, limit: 0, count_only: false, keys_only: false })
            .await
            .unwrap();
        response.kvs.into_iter().next()
    }

    async fn list(&self, revision: Revision, limit: usize) -> Result<RangeResponse, Error> {
        self.kv.range(RangeRequest { range: self.all(), revision, limit, count_only: false, keys_only: false }).await
    }

    async fn names(&self, revision: Revision) -> Vec<String> {
        self.list(revision, 0).await.unwrap().kvs.iter().map(|kv| self.name(kv)).collect()
    }

    fn name(&self, kv: &KeyValue) -> String {
        String::from_utf8_lossy(&kv.key[self.prefix.len()..]).into_owned()
    }

    async fn watch(&self, start_revision: Revision) -> Watching {
        let stream = self.kv.watch(WatchRequest { range: self.all(), start_revision }).await.unwrap();
        Watching { stream, progress: 0 }
    }
}

/// A watch that checks the order of what it gets.
struct Watching {
    stream: WatchStream,
    progress: Revision,
}

impl Watching {
    async fn message(&mut self) -> Option<Result<WatchMessage, Error>> {
        tokio::time::timeout(Duration::from_secs(20), self.stream.next()).await.expect("a watch message within 20 s")
    }

    /// The next events, past any progress message.
    async fn events(&mut self) -> (Revision, Vec<Event>) {
        loop {
            match self.message().await.expect("the watch goes on").unwrap() {
                WatchMessage::Events { revision, events } => {
                    assert!(revision > self.progress, "revision {revision} came after {}", self.progress);
                    assert!(!events.is_empty());
                    assert!(events.iter().all(|e| e.kv.mod_revision == revision), "events of other revisions");
                    self.progress = revision;
                    return (revision, events);
                }
                WatchMessage::Progress { revision } => {
                    assert!(revision >= self.progress);
                    self.progress = revision;
                }
            }
        }
    }
}

fn previous(result: &OpResult) -> Vec<KeyValue> {
    match result {
        OpResult::Put { previous } => previous.iter().cloned().collect(),
        OpResult::Delete { previous } => previous.clone(),
        OpResult::Range(response) => response.kvs.clone(),
    }
}
