//! What happened lately: whole revisions, oldest first, for watches that start in the past and reads of the past.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::Options;
use crate::{Error, Event, EventKind, KeyRange, Revision};

/// All events of one revision.
#[derive(Debug)]
pub(crate) struct Batch {
    pub revision: Revision,
    pub events: Vec<Event>,
    bytes: usize,
}

impl Batch {
    pub fn new(revision: Revision, events: Vec<Event>) -> Self {
        let bytes = events.iter().map(|e| e.kv.key.len() + e.kv.value.len()).sum();
        Self { revision, events, bytes }
    }

    pub fn select(&self, range: &KeyRange) -> Vec<Event> {
        self.events.iter().filter(|e| range.contains(&e.kv.key)).cloned().collect()
    }
}

/// Records on disk nothing can ask for any more: (revision, key).
pub(crate) type Garbage = Vec<(Revision, Bytes)>;

/// Reads are possible at `compacted` and later; watches may start there, too, so its batch is kept.
pub(crate) struct History {
    batches: VecDeque<Arc<Batch>>,
    compacted: Revision,
    events: usize,
    bytes: usize,
}

impl History {
    pub fn new(compacted: Revision) -> Self {
        Self { batches: VecDeque::new(), compacted, events: 0, bytes: 0 }
    }

    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    pub fn check(&self, revision: Revision) -> Result<(), Error> {
        if revision < self.compacted {
            return Err(Error::Compacted { requested: revision, compacted: self.compacted });
        }
        Ok(())
    }

    pub fn push(&mut self, batch: Arc<Batch>) {
        self.events += batch.events.len();
        self.bytes += batch.bytes;
        self.batches.push_back(batch);
    }

    /// Batches later than `revision`.
    pub fn after(&self, revision: Revision) -> impl Iterator<Item = &Arc<Batch>> {
        let first = self.batches.partition_point(|b| b.revision <= revision);
        self.batches.range(first..)
    }

    /// Where to compact to when there is more history than allowed: three quarters of the bounds remain.
    pub fn excess(&self, options: &Options) -> Option<Revision> {
        if self.events <= options.max_history_events && self.bytes <= options.max_history_bytes {
            return None;
        }
        let (mut events, mut bytes) = (self.events, self.bytes);
        for (batch, next) in self.batches.iter().zip(self.batches.iter().skip(1)) {
            events -= batch.events.len();
            bytes -= batch.bytes;
            if events <= options.max_history_events / 4 * 3 && bytes <= options.max_history_bytes / 4 * 3 {
                return Some(next.revision);
            }
        }
        self.batches.back().map(|b| b.revision).filter(|r| *r > self.compacted)
    }

    /// What compacting to `revision` leaves behind on disk.
    pub fn garbage(&self, revision: Revision) -> Garbage {
        let mut garbage = Garbage::new();
        for batch in self.batches.iter().take_while(|b| b.revision <= revision) {
            for event in &batch.events {
                garbage.extend(event.previous.iter().map(|p| (p.mod_revision, p.key.clone())));
                // The batch at `revision` can still be watched, so its tombstones stay until the next compaction.
                if event.kind == EventKind::Delete && batch.revision < revision {
                    garbage.push((batch.revision, event.kv.key.clone()));
                }
            }
        }
        garbage
    }

    pub fn compact(&mut self, revision: Revision) {
        while let Some(batch) = self.batches.pop_front_if(|b| b.revision < revision) {
            self.events -= batch.events.len();
            self.bytes -= batch.bytes;
        }
        // What stood before the compacted revision is forgotten.
        if let Some(first) = self.batches.front_mut().filter(|b| b.revision == revision) {
            let events = first.events.iter().map(|e| Event { previous: None, ..e.clone() }).collect();
            *first = Arc::new(Batch::new(revision, events));
        }
        self.compacted = revision;
    }
}
