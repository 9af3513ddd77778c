//! What can go wrong, in the distribution protocol's words.

use dhow_image::Digest;
use http::StatusCode;
use serde_json::{Value, json};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The protocol's closed set of codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    PaginationNumberInvalid,
    RangeInvalid,
    SizeInvalid,
    TagInvalid,
    Unauthorized,
    Denied,
    Unsupported,
    Unknown,
}

impl Code {
    fn word(self) -> &'static str {
        match self {
            Code::BlobUnknown => "BLOB_UNKNOWN",
            Code::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Code::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Code::DigestInvalid => "DIGEST_INVALID",
            Code::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Code::ManifestInvalid => "MANIFEST_INVALID",
            Code::ManifestUnknown => "MANIFEST_UNKNOWN",
            Code::NameInvalid => "NAME_INVALID",
            Code::NameUnknown => "NAME_UNKNOWN",
            Code::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Code::RangeInvalid => "RANGE_INVALID",
            Code::SizeInvalid => "SIZE_INVALID",
            Code::TagInvalid => "TAG_INVALID",
            Code::Unauthorized => "UNAUTHORIZED",
            Code::Denied => "DENIED",
            Code::Unsupported => "UNSUPPORTED",
            Code::Unknown => "UNKNOWN",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Code::BlobUnknown | Code::BlobUploadUnknown | Code::ManifestUnknown | Code::NameUnknown => {
                StatusCode::NOT_FOUND
            }
            Code::Unauthorized => StatusCode::UNAUTHORIZED,
            Code::Denied => StatusCode::FORBIDDEN,
            Code::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Code::RangeInvalid => StatusCode::RANGE_NOT_SATISFIABLE,
            Code::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An answer for the client.
    #[error("{message}")]
    Refused { code: Code, message: String, detail: Value, status: StatusCode },
    /// Several of one kind: every blob a manifest lacks.
    #[error("{} of what the manifest refers to is unknown", .0.len())]
    Missing(Vec<Digest>),
    /// The store of bytes or records failed; clients learn only that.
    #[error("{context}")]
    Store {
        context: &'static str,
        #[source]
        source: dhow_store::Error,
    },
    #[error("{0}")]
    Internal(String),
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error::Refused { code, message: message.into(), detail: Value::Null, status: code.status() }
    }

    #[must_use]
    pub fn detail(self, detail: Value) -> Self {
        match self {
            Error::Refused { code, message, status, .. } => Error::Refused { code, message, detail, status },
            other => other,
        }
    }

    #[must_use]
    pub fn with_status(self, status: StatusCode) -> Self {
        match self {
            Error::Refused { code, message, detail, .. } => Error::Refused { code, message, detail, status },
            other => other,
        }
    }

    pub(crate) fn store(context: &'static str) -> impl FnOnce(dhow_store::Error) -> Self {
        move |source| Error::Store { context, source }
    }

    /// A name may be unknown or not for this client to know; both look alike.
    pub(crate) fn name_unknown(repository: &str) -> Self {
        Self::new(Code::NameUnknown, "repository name not known to registry").detail(json!({ "name": repository }))
    }

    pub(crate) fn manifest_unknown(reference: &str) -> Self {
        Self::new(Code::ManifestUnknown, "manifest unknown").detail(json!({ "reference": reference }))
    }

    pub(crate) fn blob_unknown(digest: &Digest) -> Self {
        Self::new(Code::BlobUnknown, "blob unknown to registry").detail(json!({ "digest": digest }))
    }

    pub fn status(&self) -> StatusCode {
        match self {
            Error::Refused { status, .. } => *status,
            Error::Missing(_) => StatusCode::NOT_FOUND,
            Error::Store { .. } if self.is_out_of_space() => StatusCode::INSUFFICIENT_STORAGE,
            Error::Store { .. } | Error::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether the disk is full: what was begun had better be given up.
    pub fn is_out_of_space(&self) -> bool {
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let io = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            if matches!(io, Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)) {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// The body that goes with the status.
    pub fn body(&self) -> Value {
        let one = |code: Code, message: &str, detail: &Value| {
            let mut error = json!({ "code": code.word(), "message": message });
            if !detail.is_null() {
                error["detail"] = detail.clone();
            }
            error
        };
        let errors = match self {
            Error::Refused { code, message, detail, .. } => vec![one(*code, message, detail)],
            Error::Missing(blobs) => blobs
                .iter()
                .map(|blob| one(Code::ManifestBlobUnknown, "blob unknown to registry", &json!({ "digest": blob })))
                .collect(),
            Error::Store { .. } if self.is_out_of_space() => {
                vec![one(Code::Unknown, "the registry has no space left", &Value::Null)]
            }
            Error::Store { .. } | Error::Internal(_) => {
                vec![one(Code::Unknown, "the registry cannot do this now; its log says why", &Value::Null)]
            }
        };
        json!({ "errors": errors })
    }
}
