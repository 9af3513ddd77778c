//! Bytes of blobs that were fetched and given, since the start of the process.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Default)]
pub(crate) struct Counters {
    pub from_registries: AtomicU64,
    pub from_nodes: AtomicU64,
    pub to_nodes: AtomicU64,
}

/// The same at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub from_registries: u64,
    pub from_nodes: u64,
    pub to_nodes: u64,
}

impl Counters {
    pub fn now(&self) -> Traffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            from_registries: read(&self.from_registries),
            from_nodes: read(&self.from_nodes),
            to_nodes: read(&self.to_nodes),
        }
    }
}
