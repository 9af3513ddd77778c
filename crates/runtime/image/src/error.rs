//! What can go wrong with images. Where containerd has words for it, these are its words: they end up in events and
//! in the waiting message of `ErrImagePull`, where people and tools look for them.

use std::path::Path;
use std::time::Duration;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("invalid reference format: {reference:?}: {reason}")]
    InvalidReference { reference: String, reason: &'static str },
    #[error("invalid digest {0:?}: expected sha256:<64 hex digits> or sha512:<128 hex digits>")]
    InvalidDigest(String),
    #[error("no such image: {0}")]
    NotFound(String),
    #[error("image id prefix {0:?} is ambiguous")]
    Ambiguous(String),
    #[error("{what}: unexpected commit digest {actual}, expected {expected}: failed precondition")]
    DigestMismatch { what: String, expected: String, actual: String },
    #[error("{what}: unexpected commit size {actual}, expected {expected}: failed precondition")]
    SizeMismatch { what: String, expected: u64, actual: u64 },
    /// A layer is malformed or hostile, or cannot be represented on this machine.
    #[error("failed to extract layer {layer}: entry {entry:?}: {message}")]
    Layer { layer: String, entry: String, message: String },
    #[error("{what}: {message}")]
    Manifest { what: String, message: String },
    #[error("{reference}: no match for platform {wanted} in manifest: not found; it has: {available}")]
    NoPlatform { reference: String, wanted: String, available: String },
    #[error("archive: {0}")]
    Archive(String),
    /// The registry answered, and the answer was no.
    #[error("{url}: unexpected status from registry: {status}: {message}")]
    Registry { url: String, status: u16, message: String },
    /// Only by the registry's own word that there is nothing under this name.
    #[error("{url}: not found: {message}")]
    Missing { url: String, message: String },
    #[error("{url}: toomanyrequests: {message}; the registry asks to wait {} s", wait.as_secs())]
    RateLimited { url: String, message: String, wait: Duration },
    #[error(
        "{url}: pull access denied, repository does not exist or may require authorization: authorization failed{}",
        if message.is_empty() { String::new() } else { format!(": {message}") }
    )]
    Unauthorized { url: String, message: String },
    #[error("{url}: cannot reach the registry")]
    Transport {
        url: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{host} sent nothing for {} s while fetching {what} ({have} of {size} bytes)", silence.as_secs())]
    Stalled { host: String, what: String, have: u64, size: u64, silence: Duration },
    #[error("TLS: {0}")]
    Tls(String),
    #[error("registry configuration: {0}")]
    Config(String),
    #[error("credentials: {0}")]
    Credentials(String),
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
        matches!(self, Error::NotFound(_) | Error::Missing { .. } | Error::NoPlatform { .. })
    }

    /// Whether the registry could not be asked, as opposed to having said no.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Error::Transport { .. } | Error::Stalled { .. } | Error::RateLimited { .. } => true,
            Error::Registry { status, .. } => *status >= 500,
            _ => false,
        }
    }

    /// Whether there was no room to write to.
    pub fn is_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Error::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// The error and its causes in one line, as a person sees it in a pod's status.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(next) = cause {
            text.push_str(&format!(": {next}"));
            cause = next.source();
        }
        text
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

impl From<dhow_base::Error> for Error {
    fn from(error: dhow_base::Error) -> Self {
        Self::Tls(dhow_base::chain(&error))
    }
}
