//! What can go wrong on the node.

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{context}: {source}")]
    Client {
        context: &'static str,
        #[source]
        source: dhow_client::Error,
    },
    #[error(transparent)]
    Runtime(#[from] dhow_cri::Error),
    #[error("{context}: {source}")]
    Io {
        context: String,
        #[source]
        source: std::io::Error,
    },
    /// The pod asks for what is not there or not allowed; the reason is shown as the waiting reason.
    #[error("{message}")]
    Spec { reason: &'static str, message: String },
}

impl Error {
    pub(crate) fn client(context: &'static str) -> impl FnOnce(dhow_client::Error) -> Self {
        move |source| Self::Client { context, source }
    }

    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::Spec { reason: "CreateContainerConfigError", message: message.into() }
    }

    /// The waiting reason a user sees.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Spec { reason, .. } => reason,
            Self::Runtime(dhow_cri::Error::ImagePull { .. }) => "ErrImagePull",
            Self::Runtime(dhow_cri::Error::CannotRun(_)) => "RunContainerError",
            _ => "CreateContainerError",
        }
    }
}
