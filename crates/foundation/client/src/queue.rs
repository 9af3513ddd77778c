//! The work queue: each key once, one worker per key, delays and back-off.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Key;

/// First and longest back-off of a failing key, as client-go has them.
const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1000);

/// Keys to reconcile. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Key>,
    /// Waiting in `ready`, or to be put there once their worker is done.
    dirty: HashSet<Key>,
    working: HashSet<Key>,
    /// Keys by due time; the number keeps equal times apart.
    delayed: BTreeMap<(Instant, u64), Key>,
    /// A key's place in `delayed`: it waits once, for the earliest time asked for.
    waiting: HashMap<Key, (Instant, u64)>,
    sequence: u64,
    failures: HashMap<Key, u32>,
}

impl Queue {
    pub fn new(name: &'static str) -> Self {
        Self { shared: Arc::new(Shared { name, state: Mutex::default(), changed: Notify::new() }) }
    }

    pub fn name(&self) -> &'static str {
        self.shared.name
    }

    /// Queues a key. One that is queued already stays once; one being worked on is worked on again afterwards.
    pub fn add(&self, key: Key) {
        self.shared.state.lock().add(key);
        self.shared.changed.notify_one();
    }

    pub fn add_after(&self, key: Key, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let mut state = self.shared.state.lock();
        state.sequence += 1;
        let due = (Instant::now() + delay, state.sequence);
        if let Some(known) = state.waiting.get(&key).copied() {
            if known <= due {
                return;
            }
            state.delayed.remove(&known);
        }
        state.waiting.insert(key.clone(), due);
        state.delayed.insert(due, key);
        drop(state);
        self.shared.changed.notify_one();
    }

    /// Queues a key after its back-off, which doubles with each failure until `forget`.
    pub fn add_rate_limited(&self, key: Key) {
        let failures = {
            let mut state = self.shared.state.lock();
            let count = state.failures.entry(key.clone()).or_insert(0);
            *count += 1;
            *count
        };
        let delay = FIRST_BACKOFF.saturating_mul(1 << (failures - 1).min(20)).min(LONGEST_BACKOFF);
        self.add_after(key, delay);
    }

    /// Resets a key's back-off.
    pub fn forget(&self, key: &Key) {
        self.shared.state.lock().failures.remove(key);
    }

    /// Waits for a key; the caller owns it until `done`.
    pub(crate) async fn next(&self) -> Key {
        loop {
            let changed = self.shared.changed.notified();
            let due = {
                let mut state = self.shared.state.lock();
                state.release_due();
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.working.insert(key.clone());
                    if !state.ready.is_empty() {
                        // More is there than this worker takes.
                        self.shared.changed.notify_one();
                    }
                    return key;
                }
                state.delayed.first_key_value().map(|((due, _), _)| *due)
            };
            match due {
                Some(due) => tokio::select! { () = changed => {}, () = tokio::time::sleep_until(due) => {} },
                None => changed.await,
            }
        }
    }

    pub(crate) fn done(&self, key: &Key) {
        let mut state = self.shared.state.lock();
        state.working.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.shared.changed.notify_one();
        }
    }
}

impl State {
    fn add(&mut self, key: Key) {
        if self.dirty.insert(key.clone()) && !self.working.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn release_due(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            self.waiting.remove(&key);
            self.add(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(None, name)
    }

    #[tokio::test]
    async fn a_key_is_queued_once() {
        let queue = Queue::new("test");
        queue.add(key("a"));
        queue.add(key("a"));
        queue.add(key("b"));
        assert_eq!(queue.next().await, key("a"));
        assert_eq!(queue.next().await, key("b"));
        assert!(queue.shared.state.lock().ready.is_empty());
    }

    #[tokio::test]
    async fn a_key_in_work_comes_again_only_when_done() {
        let queue = Queue::new("test");
        queue.add(key("a"));
        let held = queue.next().await;
        queue.add(key("a"));
        assert!(queue.shared.state.lock().ready.is_empty());
        queue.done(&held);
        assert_eq!(queue.next().await, key("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn back_off_doubles_and_is_forgotten() {
        let queue = Queue::new("test");
        let begin = Instant::now();
        for _ in 0..3 {
            queue.add_rate_limited(key("a"));
            let held = queue.next().await;
            queue.done(&held);
        }
        // 5 + 10 + 20 ms, in the timer's steps of one.
        let took = begin.elapsed();
        assert!((Duration::from_millis(35)..Duration::from_millis(40)).contains(&took), "{took:?}");
        queue.forget(&key("a"));
        let begin = Instant::now();
        queue.add_rate_limited(key("a"));
        queue.next().await;
        assert!(begin.elapsed() < Duration::from_millis(8));
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_key_waits_once_for_the_earliest_time() {
        let queue = Queue::new("test");
        let begin = Instant::now();
        for seconds in [40, 10, 20] {
            queue.add_after(key("a"), Duration::from_secs(seconds));
        }
        assert_eq!(queue.next().await, key("a"));
        assert_eq!(begin.elapsed().as_secs(), 10);
        let state = queue.shared.state.lock();
        assert!(state.delayed.is_empty() && state.waiting.is_empty());
    }
}
