//! What can go wrong with a build.

use crate::dockerfile::Mistake;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a build failed, in the caller's words.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Dockerfile is wrong; shown with its place.
    #[error("{shown}")]
    Dockerfile { shown: String, line: usize },
    /// An instruction failed; shown with its place.
    #[error("{shown}")]
    Step {
        shown: String,
        line: usize,
        #[source]
        source: Box<Error>,
    },
    #[error("process {command:?} did not complete successfully: exit code: {code}")]
    Exit { command: String, code: i32 },
    #[error("process {command:?} did not complete successfully: it wanted more memory than a step may have ({})", size(*.limit))]
    Memory { command: String, limit: i64 },
    #[error(
        "{program} programs cannot be run on this machine, which is {host}: give the kernel an interpreter for them \
         (binfmt_misc, for example QEMU's), or let the stage begin with FROM --platform=$BUILDPLATFORM"
    )]
    Foreign { program: String, host: String },
    #[error("{0}")]
    Invalid(String),
    #[error("{doing}: {source}")]
    Io { doing: String, source: std::io::Error },
    #[error("{}", .0.chain())]
    Image(dhow_image::Error),
    #[error("{0}")]
    Runtime(#[from] dhow_oci::Error),
    #[error("the network of a step: {0}")]
    Network(String),
    #[error("the build was interrupted: {0}")]
    Interrupted(String),
    /// What a client took for kept is not, or is in use: it sends everything.
    #[error("{0}")]
    Stale(String),
    /// Somebody else's machine does not answer.
    #[error("{0}")]
    Unreachable(String),
}

/// As people write sizes.
fn size(bytes: i64) -> String {
    match bytes {
        0 => "all there was".to_owned(),
        bytes if bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        bytes => format!("{bytes} bytes"),
    }
}

impl From<dhow_image::Error> for Error {
    fn from(error: dhow_image::Error) -> Self {
        Error::Image(error)
    }
}

impl Error {
    /// A mistake with the lines around it.
    pub fn mistake(mistake: &Mistake, file: &str, text: &str) -> Self {
        Error::Dockerfile { shown: mistake.show(file, text), line: mistake.line }
    }

    /// Whether something that was named is not there.
    pub fn is_not_found(&self) -> bool {
        match self {
            Error::Image(error) => error.is_not_found(),
            Error::Step { source, .. } => source.is_not_found(),
            _ => false,
        }
    }
}

impl Error {
    /// Whether doing the same again may end better: it is not the build that is wrong.
    pub fn is_passing(&self) -> bool {
        match self {
            Error::Image(error) => error.is_unavailable(),
            Error::Step { source, .. } => source.is_passing(),
            Error::Io { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            Error::Runtime(_) | Error::Network(_) | Error::Interrupted(_) | Error::Unreachable(_) | Error::Stale(_) => {
                true
            }
            Error::Dockerfile { .. }
            | Error::Exit { .. }
            | Error::Memory { .. }
            | Error::Foreign { .. }
            | Error::Invalid(_) => false,
        }
    }

    /// Which line of the Dockerfile it is about.
    pub fn line(&self) -> Option<usize> {
        match self {
            Error::Dockerfile { line, .. } | Error::Step { line, .. } => Some(*line),
            _ => None,
        }
    }
}

/// Runs what blocks off the async threads.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Interrupted(error.to_string())),
    }
}
