//! The revision up to which the cache holds everything, and those who wait for one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Wakes whoever waits when their revision is there, and nobody else: with many writers at a time most revisions are awaited
/// by one of them.
#[derive(Debug, Default)]
pub struct Revision {
    now: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Vec<oneshot::Sender<()>>>>,
}

impl Revision {
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Acquire)
    }

    /// Everything up to `revision` is there. One that was passed already changes nothing.
    pub fn reached(&self, revision: u64) {
        let mut waiting = self.waiting.lock();
        if revision <= self.now() {
            return;
        }
        // Under the lock, so that whoever begins to wait either sees it or is seen.
        self.now.store(revision, Ordering::Release);
        let later = waiting.split_off(&(revision + 1));
        let done = std::mem::replace(&mut *waiting, later);
        drop(waiting);
        for waiter in done.into_values().flatten() {
            // Who gave up waiting is not there to be told.
            let _ = waiter.send(());
        }
    }

    /// Returns once everything up to `revision` is there.
    pub async fn wait_for(&self, revision: u64) {
        if self.now() >= revision {
            // Whoever reads again and again lets others have their turn.
            return tokio::task::consume_budget().await;
        }
        let told = {
            let mut waiting = self.waiting.lock();
            if self.now() >= revision {
                return;
            }
            let (tell, told) = oneshot::channel();
            waiting.entry(revision).or_default().push(tell);
            told
        };
        // The sender lives in `self`, so waiting cannot fail.
        let _ = told.await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Revision;

    #[tokio::test]
    async fn whoever_waits_hears_of_their_revision() {
        let revision = Arc::new(Revision::default());
        revision.reached(3);
        revision.wait_for(3).await;
        let wait = |for_it: u64| {
            let revision = revision.clone();
            tokio::spawn(async move { revision.wait_for(for_it).await })
        };
        let (early, late, given_up) = (wait(5), wait(7), wait(6));
        tokio::task::yield_now().await;
        given_up.abort();
        // One that was never written is passed by a later one.
        revision.reached(6);
        assert!(early.await.is_ok());
        assert!(!late.is_finished());
        revision.reached(4);
        assert_eq!(revision.now(), 6);
        revision.reached(7);
        assert!(late.await.is_ok());
    }
}
