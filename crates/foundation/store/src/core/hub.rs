//! Where published writes meet readers and watchers.
//!
//! Invariant: publishing a batch and queueing it for every watcher happen under one write lock, and registering a
//! watch happens under the read lock; so a watch sees each later revision exactly once and none in between is lost.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use futures::StreamExt;
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;

use super::{Batch, Garbage, History, Keyspace, Options};
use crate::{Error, KeyRange, RangeRequest, RangeResponse, Revision, WatchMessage, WatchRequest, WatchStream};

pub(crate) struct Hub {
    published: RwLock<Published>,
    watchers: Mutex<Watchers>,
    options: Options,
}

struct Published {
    keyspace: Keyspace,
    history: History,
}

#[derive(Default)]
struct Watchers {
    next_id: u64,
    all: HashMap<u64, Watcher>,
}

struct Watcher {
    range: KeyRange,
    start: Revision,
    queue: mpsc::Sender<WatchMessage>,
    /// Latest revision queued.
    last: Revision,
    /// Set when the watcher is cut off; 0 until then.
    lagged: Arc<AtomicU64>,
}

impl Hub {
    pub fn new(keyspace: Keyspace, history: History, options: Options) -> Self {
        Self { published: RwLock::new(Published { keyspace, history }), watchers: Mutex::default(), options }
    }

    pub fn keyspace(&self) -> Keyspace {
        self.published.read().keyspace.clone()
    }

    pub fn revision(&self) -> Revision {
        self.published.read().keyspace.revision()
    }

    pub fn with_history<T>(&self, read: impl FnOnce(&History) -> T) -> T {
        read(&self.published.read().history)
    }

    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        if request.revision == 0 {
            // A copy is a snapshot: the lock is not held while a long list is put together.
            let keyspace = self.keyspace();
            return keyspace.range(request, &History::new(0));
        }
        let published = self.published.read();
        published.keyspace.range(request, &published.history)
    }

    /// Makes decided writes visible. `keyspace` is the one they were decided on.
    pub fn publish(&self, keyspace: &Keyspace, batches: &[Arc<Batch>]) {
        let mut published = self.published.write();
        published.keyspace = keyspace.clone();
        if batches.is_empty() {
            return;
        }
        for batch in batches {
            published.history.push(Arc::clone(batch));
        }
        let mut watchers = self.watchers.lock();
        for batch in batches {
            watchers.all.retain(|_, watcher| watcher.deliver(batch));
        }
    }

    /// Where the writer should compact to on its own account.
    pub fn excess(&self) -> Option<Revision> {
        self.published.read().history.excess(&self.options)
    }

    /// Checks a compaction and says what it frees on disk.
    pub fn plan_compaction(&self, revision: Revision) -> Result<Garbage, Error> {
        let published = self.published.read();
        let (compacted, current) = (published.history.compacted(), published.keyspace.revision());
        if revision <= compacted {
            return Err(Error::Compacted { requested: revision, compacted });
        }
        if revision > current {
            return Err(Error::FutureRevision { requested: revision, current });
        }
        Ok(published.history.garbage(revision))
    }

    pub fn compact(&self, revision: Revision) {
        self.published.write().history.compact(revision);
    }

    pub fn watch(self: &Arc<Self>, request: WatchRequest) -> Result<WatchStream, Error> {
        if request.range.is_empty() {
            return Err(Error::Invalid("the range to watch is empty".to_owned()));
        }
        let published = self.published.read();
        let current = published.keyspace.revision();
        let start = if request.start_revision == 0 { current + 1 } else { request.start_revision };
        published.history.check(start)?;
        let past: VecDeque<WatchMessage> = published
            .history
            .after(start - 1)
            .filter_map(|batch| {
                let events = batch.select(&request.range);
                (!events.is_empty()).then_some(WatchMessage::Events { revision: batch.revision, events })
            })
            .collect();
        let (queue, receiver) = mpsc::channel(self.options.watch_buffer.max(1));
        let lagged = Arc::new(AtomicU64::new(0));
        let mut watchers = self.watchers.lock();
        let id = watchers.next_id;
        watchers.next_id += 1;
        let last = current.max(start - 1);
        watchers.all.insert(id, Watcher { range: request.range, start, queue, last, lagged: Arc::clone(&lagged) });
        drop(watchers);
        drop(published);
        let watch = Watch { hub: Arc::downgrade(self), id, past, receiver, lagged, seen: last, ended: false };
        Ok(futures::stream::unfold(watch, Watch::next).boxed())
    }
}

impl Watcher {
    /// `false` when the watcher is gone or too slow to keep.
    fn deliver(&mut self, batch: &Batch) -> bool {
        if batch.revision < self.start {
            return true;
        }
        let events = batch.select(&self.range);
        if events.is_empty() {
            return !self.queue.is_closed();
        }
        match self.queue.try_send(WatchMessage::Events { revision: batch.revision, events }) {
            Ok(()) => {
                self.last = batch.revision;
                true
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.lagged.store(self.last, Ordering::Release);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}

/// The reader's end of one watch.
struct Watch {
    hub: Weak<Hub>,
    id: u64,
    past: VecDeque<WatchMessage>,
    receiver: mpsc::Receiver<WatchMessage>,
    lagged: Arc<AtomicU64>,
    /// Everything at or below this was delivered or was not for us.
    seen: Revision,
    ended: bool,
}

impl Watch {
    async fn next(mut self) -> Option<(Result<WatchMessage, Error>, Self)> {
        if self.ended {
            return None;
        }
        if let Some(message) = self.past.pop_front() {
            return Some((Ok(message), self));
        }
        let Some(interval) = self.hub.upgrade().map(|hub| hub.options.watch_progress) else {
            return self.received_after_close();
        };
        loop {
            match tokio::time::timeout(interval, self.receiver.recv()).await {
                Ok(Some(message)) => {
                    self.note(&message);
                    return Some((Ok(message), self));
                }
                Ok(None) => return self.end(),
                Err(_) => {
                    if let Some(message) = self.quiet() {
                        self.note(&message);
                        return Some((Ok(message), self));
                    }
                }
            }
        }
    }

    /// Nothing came for a while: whatever slipped in meanwhile, or how far the store has moved on.
    fn quiet(&mut self) -> Option<WatchMessage> {
        let hub = self.hub.upgrade()?;
        // Under this lock nothing can be published, so an empty queue means all up to now was not for us.
        let published = hub.published.read();
        if let Ok(message) = self.receiver.try_recv() {
            return Some(message);
        }
        let revision = published.keyspace.revision();
        let cut_off = self.lagged.load(Ordering::Acquire) != 0;
        (revision > self.seen && !cut_off).then_some(WatchMessage::Progress { revision })
    }

    fn note(&mut self, message: &WatchMessage) {
        let (WatchMessage::Events { revision, .. } | WatchMessage::Progress { revision }) = message;
        self.seen = *revision;
    }

    fn received_after_close(mut self) -> Option<(Result<WatchMessage, Error>, Self)> {
        match self.receiver.try_recv() {
            Ok(message) => {
                self.note(&message);
                Some((Ok(message), self))
            }
            Err(_) => self.end(),
        }
    }

    fn end(mut self) -> Option<(Result<WatchMessage, Error>, Self)> {
        self.ended = true;
        let error = match self.lagged.load(Ordering::Acquire) {
            0 => Error::Closed,
            revision => Error::WatchLagged(revision),
        };
        Some((Err(error), self))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.watchers.lock().all.remove(&self.id);
        }
    }
}
