//! The closed error set of this crate. [`crate::Status`] is what clients see.

/// What can go wrong while reading or combining API documents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("unable to parse quantity's suffix or digits: {0:?}")]
    Quantity(String),
    #[error("{0}")]
    Selector(String),
    #[error("{0:?} is not an RFC 3339 time")]
    Time(String),
    #[error("{0}")]
    Decode(String),
    /// A custom kind's schema that cannot be used.
    #[error("{0}")]
    Schema(String),
    /// The patch document itself is malformed.
    #[error("{0}")]
    PatchMalformed(String),
    /// The patch asks for more than one request may.
    #[error("{0}")]
    PatchTooLarge(String),
    /// The patch is well formed and does not apply to this object.
    #[error("{0}")]
    PatchRejected(String),
}
