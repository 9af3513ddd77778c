//! The `Blob` trait: large values by key, written once as a stream and visible whole or not at all.
//!
//! Every backend must be indistinguishable in [`crate::suite::blobs`].

mod direct;
mod fs;
mod memory;
mod s3;

use std::ops::Range;
use std::path::PathBuf;
use std::time::SystemTime;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::Error;
use crate::core::next_id;
pub use fs::FsBlob;
pub use memory::MemoryBlob;
pub use s3::{S3Blob, S3Config, S3Credentials, S3Page, S3Reader, S3Secret};

pub type BlobStream = BoxStream<'static, Result<Bytes, Error>>;

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobMeta {
    pub key: String,
    pub size: u64,
    pub modified: SystemTime,
}

/// An upload that was begun and neither committed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingUpload {
    pub id: String,
    pub size: u64,
    /// When something was last written to it.
    pub touched: SystemTime,
}

/// Objects by key. A key is segments joined by `/`, each of letters, digits, `.`, `_` and `-`, none beginning with `.`.
#[async_trait::async_trait]
pub trait Blob: Send + Sync + 'static {
    /// Begins an upload under a name of the caller's choice, one segment of a key; nothing is visible before its commit.
    /// The same name begun again begins anew.
    async fn begin(&self, id: &str) -> Result<Box<dyn BlobUpload>, Error>;

    /// Goes on with an upload, also one of an earlier process. Nobody else may be writing to it. `None`: there is none.
    async fn resume(&self, id: &str) -> Result<Option<Box<dyn BlobUpload>>, Error>;

    /// In no order.
    async fn uploads(&self) -> Result<Vec<PendingUpload>, Error>;

    async fn head(&self, key: &str) -> Result<Option<BlobMeta>, Error>;

    /// The bytes of `range`, cut to what there is. What is deleted meanwhile is still delivered by some backends and ends
    /// with an error in others; it is never delivered short without one.
    async fn get(&self, key: &str, range: Range<u64>) -> Result<Option<BlobStream>, Error>;

    /// Objects whose key begins with `prefix`, in no order. What comes or goes meanwhile may be in it or not.
    async fn list(&self, prefix: &str) -> Result<BoxStream<'static, Result<BlobMeta, Error>>, Error>;

    /// Many small objects at once; returns once all of them survive a power cut.
    async fn put_all(&self, objects: Vec<(String, Bytes)>) -> Result<(), Error> {
        for (key, _) in &objects {
            check_key(key)?;
        }
        for (n, (key, bytes)) in objects.into_iter().enumerate() {
            let mut upload = self.begin(&format!("all-{n}-{}", next_id())).await?;
            upload.write(vec![bytes]).await?;
            upload.commit(&key).await?;
        }
        Ok(())
    }

    /// Whether objects are files of this machine, of which each costs several writes of the disk by itself.
    fn is_local(&self) -> bool {
        false
    }

    /// Whether there was such an object.
    async fn delete(&self, key: &str) -> Result<bool, Error>;

    /// The object as a file of this machine, if that is what it is. It may be read and linked to, never written to.
    fn file(&self, _key: &str) -> Option<PathBuf> {
        None
    }
}

/// An upload under way. Dropped, it stays as it is and may be resumed by this process; [`BlobUpload::park`] waits until
/// others may, too.
#[async_trait::async_trait]
pub trait BlobUpload: Send {
    fn written(&self) -> u64;

    /// Adds these pieces at the end. After an error nothing is known of what was written: resume or abort.
    async fn write(&mut self, pieces: Vec<Bytes>) -> Result<(), Error>;

    /// What is written so far, from the beginning.
    async fn read_back(&mut self) -> Result<BlobStream, Error>;

    /// Brings what is written to disk; a commit after it is short.
    async fn sync(&mut self) -> Result<(), Error>;

    /// Leaves it to be resumed: what is written outlives this process, though not a power cut.
    async fn park(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }

    /// Makes it the object of `key`, replacing one that is there. Returns once that survives a power cut.
    async fn commit(self: Box<Self>, key: &str) -> Result<(), Error>;

    async fn abort(self: Box<Self>) -> Result<(), Error>;
}

/// Fails unless `key` has the form that [`Blob`] wants.
pub(crate) fn check_key(key: &str) -> Result<(), Error> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let segment = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(fine);
    if key.len() <= 1024 && key.split('/').all(segment) {
        return Ok(());
    }
    Err(Error::Invalid(format!("{key:?} is no key of a blob")))
}

pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    if id.contains('/') { Err(Error::Invalid(format!("{id:?} is no name of an upload"))) } else { check_key(id) }
}
