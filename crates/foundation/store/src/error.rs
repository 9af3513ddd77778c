//! What can go wrong in a store.

use crate::Revision;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The revision asked for is older than the compaction; list again.
    #[error("required revision {requested} has been compacted; history starts at {compacted}")]
    Compacted { requested: Revision, compacted: Revision },
    /// The revision asked for does not exist yet.
    #[error("required revision {requested} is a future revision; the store is at {current}")]
    FutureRevision { requested: Revision, current: Revision },
    /// The transaction itself makes no sense, such as writing one key twice.
    #[error("invalid request: {0}")]
    Invalid(String),
    #[error("lease {0} does not exist")]
    LeaseNotFound(i64),
    #[error("the store is shutting down")]
    Closed,
    /// A watcher fell too far behind and was cut off; watch again from the last revision seen.
    #[error("watch fell behind at revision {0}")]
    WatchLagged(Revision),
    /// The files of the store cannot be used; names the file and what to do.
    #[error("{path}: {message}")]
    Corrupt { path: String, message: String },
    /// A sealed value cannot be opened; names the sealing key and what to do.
    #[error("{key}: {message}")]
    Sealed { key: String, message: String },
    /// The answer to a write got lost on the way; read before trying again.
    #[error("{context}: the answer was lost, so the write may or may not have happened")]
    OutcomeUnknown {
        context: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{context}")]
    Backend {
        context: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
