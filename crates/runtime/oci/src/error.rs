//! What can go wrong while a container is made or run.

use std::path::PathBuf;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step of the set-up failed; the step is a verb phrase.
    #[error("{step}: {source}")]
    System { step: String, source: rustix::io::Errno },
    #[error("{step}: {source}")]
    Io { step: String, source: std::io::Error },
    /// The specification asks for what cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The container's program cannot be run.
    #[error("{0}")]
    CannotRun(String),
    #[error("container {0} does not exist")]
    NotFound(String),
    /// The shim at this folder does not answer: it has ended.
    #[error("the sandbox at {} is gone: {source}", dir.display())]
    Gone { dir: PathBuf, source: std::io::Error },
    /// The shim answered with a failure of its own.
    #[error("{0}")]
    Shim(String),
}

/// Names the step that failed.
pub trait Context<T> {
    fn step(self, step: impl Into<String>) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, rustix::io::Errno> {
    fn step(self, step: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::System { step: step.into(), source })
    }
}

impl<T> Context<T> for std::result::Result<T, std::io::Error> {
    fn step(self, step: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Io { step: step.into(), source })
    }
}
