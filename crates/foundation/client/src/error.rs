//! What a call to the API can end in.

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with a `Status`.
    #[error("{message}")]
    Api { code: u16, reason: String, message: String },
    /// The server could not be reached, or the connection broke.
    #[error("{context}")]
    Connection {
        context: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer or object that is not what it should be.
    #[error("{context}: {source}")]
    Decode {
        context: String,
        #[source]
        source: serde_json::Error,
    },
    /// Certificates, addresses or kubeconfig that cannot be used.
    #[error("{0}")]
    Configuration(String),
    /// A reconciler's own failure; retried with back-off.
    #[error("{0}")]
    Reconcile(String),
}

impl Error {
    pub fn connection(context: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Connection { context: context.into(), source: source.into() }
    }

    fn is(&self, code: u16, reason: &str) -> bool {
        matches!(self, Self::Api { code: c, reason: r, .. } if *c == code && (reason.is_empty() || r == reason))
    }

    pub fn is_not_found(&self) -> bool {
        self.is(404, "")
    }

    /// The object changed meanwhile: read it again and retry.
    pub fn is_conflict(&self) -> bool {
        self.is(409, "Conflict")
    }

    pub fn is_already_exists(&self) -> bool {
        self.is(409, "AlreadyExists")
    }

    pub fn is_unauthorized(&self) -> bool {
        self.is(401, "")
    }

    pub fn is_forbidden(&self) -> bool {
        self.is(403, "")
    }

    pub fn is_invalid(&self) -> bool {
        self.is(422, "")
    }

    /// The resource version asked for is compacted: list again.
    pub fn is_gone(&self) -> bool {
        self.is(410, "")
    }
}
