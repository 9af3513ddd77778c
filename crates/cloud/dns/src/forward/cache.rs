//! Answers of others, for as long as they hold and a while longer; bounded by bytes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::message::{Ask, Reply};

/// RFC 8767: what stale answers say of themselves, and how long a failure keeps us from asking again.
pub const STALE_TTL: u32 = 30;
const RECHECK: Duration = Duration::from_secs(30);
/// Of the bookkeeping around an entry.
const OVERHEAD: usize = 160;
/// An answer used as often is fetched again before it ends.
const HOT: u32 = 3;

pub struct Cache {
    capacity: usize,
    stale: Duration,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<Arc<[u8]>, Entry>,
    /// In the order they came; who was used since gets another round.
    order: VecDeque<Arc<[u8]>>,
    bytes: usize,
}

struct Entry {
    reply: Arc<Reply>,
    stored: Instant,
    used: bool,
    hits: u32,
    /// Somebody fetches it again already.
    refreshing: bool,
    /// Nobody could be asked lately: until then the old answer is given.
    failed_until: Option<Instant>,
}

#[derive(Debug, Clone)]
pub enum Lookup {
    /// With the seconds since it came; `refresh` asks for a new one before this one ends.
    Fresh {
        reply: Arc<Reply>,
        age: u32,
        refresh: bool,
    },
    /// Ended, but better than nothing; `only` if nobody is to be asked now.
    Stale {
        reply: Arc<Reply>,
        only: bool,
    },
    Miss,
}

impl Cache {
    pub fn new(capacity: usize, stale: Duration) -> Self {
        Self { capacity, stale, inner: Mutex::default() }
    }

    pub fn get(&self, ask: &Ask, now: Instant) -> Lookup {
        let mut buffer = [0; 258];
        let mut inner = self.inner.lock();
        let Some(entry) = inner.entries.get_mut(ask.key(&mut buffer)) else { return Lookup::Miss };
        let age = now.saturating_duration_since(entry.stored);
        let lifetime = Duration::from_secs(entry.reply.ttl.into());
        entry.used = true;
        let reply = Arc::clone(&entry.reply);
        if age < lifetime {
            entry.hits = entry.hits.saturating_add(1);
            let refresh = entry.hits >= HOT && age * 10 >= lifetime * 9 && !entry.refreshing;
            entry.refreshing |= refresh;
            let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            return Lookup::Fresh { reply, age, refresh };
        }
        if age < lifetime + self.stale {
            let only = entry.failed_until.is_some_and(|until| now < until);
            return Lookup::Stale { reply, only };
        }
        Lookup::Miss
    }

    pub fn insert(&self, ask: &Ask, reply: Arc<Reply>, now: Instant) {
        let mut buffer = [0; 258];
        let key = ask.key(&mut buffer);
        let size = size(key, &reply);
        if reply.ttl == 0 || size > self.capacity / 4 {
            return;
        }
        let mut inner = self.inner.lock();
        let entry = Entry { reply, stored: now, used: false, hits: 0, refreshing: false, failed_until: None };
        match inner.entries.get_mut(key) {
            Some(old) => {
                // Hot names stay hot.
                let hits = old.hits / 2;
                let before = std::mem::replace(old, Entry { hits, ..entry });
                inner.bytes = (inner.bytes + size).saturating_sub(self::size(key, &before.reply));
            }
            None => {
                let key: Arc<[u8]> = key.into();
                inner.order.push_back(Arc::clone(&key));
                inner.entries.insert(key, entry);
                inner.bytes += size;
            }
        }
        inner.shrink(self.capacity);
    }

    /// Nobody answered: the old answer is good enough for a while.
    pub fn failed(&self, ask: &Ask, now: Instant) {
        let mut buffer = [0; 258];
        if let Some(entry) = self.inner.lock().entries.get_mut(ask.key(&mut buffer)) {
            entry.failed_until = Some(now + RECHECK);
            entry.refreshing = false;
        }
    }

    /// Entries and their bytes.
    pub fn usage(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.entries.len(), inner.bytes)
    }
}

impl Inner {
    /// Second chance: the oldest goes unless it was used since it was looked at last.
    fn shrink(&mut self, capacity: usize) {
        while self.bytes > capacity {
            let Some(key) = self.order.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            if std::mem::take(&mut entry.used) {
                self.order.push_back(key);
                continue;
            }
            if let Some(entry) = self.entries.remove(&key) {
                self.bytes = self.bytes.saturating_sub(size(&key, &entry.reply));
            }
        }
    }
}

fn size(key: &[u8], reply: &Reply) -> usize {
    key.len() + reply.size() + OVERHEAD
}
