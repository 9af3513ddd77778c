//! What can go wrong while a process sets itself up.

use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} {path}", path = path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A key or certificate file that cannot be used; names the file and what to do.
    #[error("{path}: {message}", path = path.display())]
    BadFile { path: PathBuf, message: String },
    #[error("issue certificate for {subject:?}")]
    Issue {
        subject: String,
        #[source]
        source: rcgen::Error,
    },
    #[error("read certificate: {0}")]
    Certificate(String),
    #[error("set up TLS: {context}")]
    Tls {
        context: &'static str,
        #[source]
        source: rustls::Error,
    },
    #[error("{origin}: {message}")]
    Config { origin: String, message: String },
    #[error("set up logging: {0}")]
    Logging(String),
    /// A mistake in how services were declared.
    #[error("service graph: {0}")]
    Graph(String),
    #[error("service {name:?} failed")]
    Service {
        name: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// An error with what caused it, each text once: the outermost alone often says nothing.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !texts.last().is_some_and(|last| last.contains(&text)) {
            texts.push(text);
        }
        source = inner.source();
    }
    texts.join(": ")
}
