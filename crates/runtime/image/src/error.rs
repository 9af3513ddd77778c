//! What can go wrong with images.

use std::path::Path;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("invalid image reference {reference:?}: {reason}")]
    InvalidReference { reference: String, reason: &'static str },
    #[error("invalid digest {0:?}: expected sha256:<64 hex digits> or sha512:<128 hex digits>")]
    InvalidDigest(String),
    #[error("no such image: {0}")]
    NotFound(String),
    #[error("image id prefix {0:?} is ambiguous")]
    Ambiguous(String),
    #[error("{what}: content does not match its digest: expected {expected}, got {actual}")]
    DigestMismatch { what: String, expected: String, actual: String },
    #[error("{what}: expected {expected} bytes, got {actual}")]
    SizeMismatch { what: String, expected: u64, actual: u64 },
    /// A layer is malformed or hostile, or cannot be represented on this machine.
    #[error("layer {layer}, entry {entry:?}: {message}")]
    Layer { layer: String, entry: String, message: String },
    #[error("{what}: {message}")]
    Manifest { what: String, message: String },
    #[error("{reference} has no image for platform {wanted}; it has: {available}")]
    NoPlatform { reference: String, wanted: String, available: String },
    #[error("archive: {0}")]
    Archive(String),
    /// The registry answered, and the answer was no.
    #[error("{url}: registry answered {status}: {message}")]
    Registry { url: String, status: u16, message: String },
    #[error("{url}: access denied by the registry; the image does not exist or needs credentials")]
    Unauthorized { url: String },
    #[error("{url}: cannot reach the registry")]
    Transport {
        url: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("TLS configuration: {0}")]
    Tls(String),
    #[error("the image store at {0} is in use by another process")]
    InUse(String),
    #[error("{context}")]
    Io {
        context: String,
        #[source]
        source: std::io::Error,
    },
    #[error("image work was interrupted: {0}")]
    Interrupted(String),
}

impl Error {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound(_) | Error::Registry { status: 404, .. })
    }

    pub(crate) fn io(context: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Error::Io { context: context.into(), source: source.into() }
    }
}

/// Adds "verb path" to an I/O error.
pub(crate) trait At<T> {
    fn at(self, verb: &str, path: &Path) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, verb: &str, path: &Path) -> Result<T> {
        self.map_err(|e| Error::io(format!("{verb} {}", path.display()), e))
    }
}
