//! The one error of this crate, and the places it points to.

use std::fmt;
use std::sync::Arc;

/// Where something is written: `compose.yaml:3:5`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub file: Arc<str>,
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not YAML, or not a form of it that is understood.
    #[error("{place}: {problem}")]
    Syntax { place: Place, problem: String },
    /// A key that cannot be what it says.
    #[error("{place}: {path}: {problem}")]
    Invalid { place: Place, path: String, problem: String },
    /// Something that several places make impossible together.
    #[error("{0}")]
    Conflict(String),
    #[error("{place}: {path}: read {file}")]
    Read {
        place: Place,
        path: String,
        file: String,
        #[source]
        source: std::io::Error,
    },
    #[error("read {file}")]
    Open {
        file: String,
        #[source]
        source: std::io::Error,
    },
    /// A line of a file of variables.
    #[error("{file}:{line}: {problem}")]
    Variables { file: String, line: usize, problem: String },
}

pub type Result<T> = std::result::Result<T, Error>;
