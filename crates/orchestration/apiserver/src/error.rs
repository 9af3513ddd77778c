//! Why the server cannot start or go on. What a client is told is a [`dhow_api::Status`].

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the store: {0}")]
    Store(#[source] dhow_store::Error),
    #[error("{0}")]
    Corrupt(String),
    #[error("{0}")]
    Configuration(String),
    #[error("create bootstrap objects: {0}")]
    Bootstrap(#[source] dhow_api::Status),
}
