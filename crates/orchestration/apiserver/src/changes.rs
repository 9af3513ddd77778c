//! A kind's recent changes: kept within bounds, and read by each watcher at its own pace.
//!
//! Nothing is queued for a watcher; it holds its place in the log and no more. So a slow one costs no memory, and one
//! that falls behind what is kept has missed something and is told so.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::object::Change;

/// Changes kept per kind.
const MOST: usize = 4096;
/// Bytes of the kept ones' objects, those before them and a frame of each; the newest is kept whatever its size.
const MOST_BYTES: usize = 32 << 20;

pub struct Log {
    kept: RwLock<Kept>,
    /// Told of every change, and of the end.
    news: watch::Sender<()>,
}

#[derive(Clone)]
struct Kept {
    changes: VecDeque<Arc<Change>>,
    /// Number of the oldest in `changes`; the log's first has number 0.
    first: u64,
    bytes: usize,
    /// Changes at or below this revision are no longer kept.
    compacted: u64,
    closed: bool,
}

/// Why there is no next change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// The next one is no longer kept.
    Behind,
    /// There will be no more.
    Closed,
}

/// A place in a log: what comes after it.
pub struct Changes {
    log: Arc<Log>,
    next: u64,
    news: watch::Receiver<()>,
}

impl Log {
    /// Empty; nothing is known of what happened up to a revision.
    pub fn new(compacted: u64) -> Arc<Self> {
        Self::of(Kept { changes: VecDeque::new(), first: 0, bytes: 0, compacted, closed: false })
    }

    fn of(kept: Kept) -> Arc<Self> {
        Arc::new(Self { kept: RwLock::new(kept), news: watch::Sender::new(()) })
    }

    /// Ends this log for those who read it, and goes on in a new one.
    pub fn reopen(&self) -> Arc<Self> {
        let next = Self::of(self.kept.read().clone());
        self.close();
        next
    }

    pub fn close(&self) {
        self.kept.write().closed = true;
        self.news.send_replace(());
    }

    pub fn push(&self, change: Change) {
        let mut kept = self.kept.write();
        kept.bytes += change.weight();
        kept.changes.push_back(Arc::new(change));
        while kept.changes.len() > MOST || kept.bytes > MOST_BYTES && kept.changes.len() > 1 {
            let Some(oldest) = kept.changes.pop_front() else { break };
            kept.bytes -= oldest.weight();
            kept.first += 1;
            kept.compacted = oldest.revision;
        }
        drop(kept);
        self.news.send_replace(());
    }

    /// Revision of the newest change.
    pub fn revision(&self) -> u64 {
        let kept = self.kept.read();
        kept.changes.back().map_or(kept.compacted, |change| change.revision)
    }

    /// What comes after now.
    pub fn from_now(self: &Arc<Self>) -> Changes {
        let kept = self.kept.read();
        Changes { log: self.clone(), next: kept.first + kept.changes.len() as u64, news: self.news.subscribe() }
    }

    /// Changes after a revision that are there already, and those to come; if that is no longer known, the oldest
    /// revision that is.
    pub fn after(self: &Arc<Self>, revision: u64) -> Result<(Vec<Arc<Change>>, Changes), u64> {
        let kept = self.kept.read();
        if revision < kept.compacted {
            return Err(kept.compacted);
        }
        let begin = kept.changes.partition_point(|change| change.revision <= revision);
        let past = kept.changes.iter().skip(begin).cloned().collect();
        drop(kept);
        Ok((past, self.from_now()))
    }
}

impl Changes {
    /// The next change, as soon as there is one. May be dropped while it waits.
    pub async fn recv(&mut self) -> Result<Arc<Change>, Missed> {
        loop {
            self.news.borrow_and_update();
            if let Some(next) = self.ready() {
                return next;
            }
            // The sender lives as long as the log, which is held here.
            let _ = self.news.changed().await;
        }
    }

    /// The next change if there is one already.
    pub fn ready(&mut self) -> Option<Result<Arc<Change>, Missed>> {
        let kept = self.log.kept.read();
        let Some(place) = self.next.checked_sub(kept.first) else { return Some(Err(Missed::Behind)) };
        match usize::try_from(place).ok().and_then(|place| kept.changes.get(place)) {
            Some(change) => {
                self.next += 1;
                Some(Ok(change.clone()))
            }
            None if kept.closed => Some(Err(Missed::Closed)),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::object::Stored;

    fn change(revision: u64, size: usize) -> Change {
        let document = format!(r#"{{"metadata":{{"name":"a"}},"data":"{}"}}"#, "x".repeat(size));
        let stored = Stored::decode(None, b"/registry/core/configmaps/a/a", &document.into(), revision).unwrap();
        Change::new(revision, Arc::new(stored), None, false)
    }

    #[tokio::test]
    async fn everyone_reads_at_their_own_pace() {
        let log = Log::new(5);
        let mut early = log.from_now();
        log.push(change(6, 1));
        // All changes of one revision are seen.
        log.push(change(6, 1));
        log.push(change(7, 1));
        let (past, mut late) = log.after(6).unwrap();
        assert_eq!(past.iter().map(|change| change.revision).collect::<Vec<_>>(), [7]);
        assert_eq!(log.after(4).err(), Some(5));
        for revision in [6, 6, 7] {
            assert_eq!(early.recv().await.unwrap().revision, revision);
        }
        let mut other = log.reopen().from_now();
        assert_eq!(early.recv().await.err(), Some(Missed::Closed));
        assert_eq!(late.recv().await.err(), Some(Missed::Closed));
        assert!(futures::poll!(std::pin::pin!(other.recv())).is_pending());
    }

    #[tokio::test]
    async fn kept_are_so_many_and_so_many_bytes() {
        let log = Log::new(0);
        let mut slow = log.from_now();
        for revision in 1..=100 {
            log.push(change(revision, 1 << 20));
        }
        assert!(log.kept.read().bytes <= MOST_BYTES);
        assert_eq!((slow.recv().await.err(), log.revision()), (Some(Missed::Behind), 100));
        let mut slow = log.from_now();
        for revision in 101..=101 + MOST as u64 {
            log.push(change(revision, 1));
        }
        assert_eq!((slow.recv().await.err(), log.kept.read().changes.len()), (Some(Missed::Behind), MOST));
        // One that is larger than all may be is kept alone.
        log.push(change(10_000, MOST_BYTES));
        assert_eq!(log.kept.read().changes.len(), 1);
    }
}
