//! What a container runtime can answer instead of success.

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{kind} {id} not found")]
    NotFound { kind: &'static str, id: String },
    #[error("{kind} {id} already exists")]
    AlreadyExists { kind: &'static str, id: String },
    /// The object is not in a state that allows the call.
    #[error("{0}")]
    FailedPrecondition(String),
    #[error("{0}")]
    InvalidArgument(String),
    /// The image could not be pulled; text is shown to the user as the waiting message.
    #[error("failed to pull image {reference:?}: {message}")]
    ImagePull { reference: String, message: String },
    #[error("command timed out after {0:?}")]
    DeadlineExceeded(std::time::Duration),
    /// The container's process could not be started (`StartError`).
    #[error("cannot run container: {0}")]
    CannotRun(String),
    /// Failure to set up or tear down the pod's network.
    #[error("pod network: {0}")]
    Network(String),
    #[error("{context}")]
    Internal {
        context: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl Error {
    /// An internal failure: `context` is a verb phrase ("mount overlay"), `source` its cause.
    pub fn internal(context: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal { context: context.into(), source: Some(source.into()) }
    }
}
