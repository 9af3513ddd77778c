//! Small content that is acknowledged before it is a file.
//!
//! Where blobs are files, each costs several writes of the disk by itself. So a small one is written together with its link,
//! in one transaction, whose write of the disk is shared by all that come at once; it is read from the records until, a moment
//! later, it is a file with many others. Who was killed finds in the records what has no file yet.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use dhow_store::{Blob, BlobMeta, BlobStream, BlobUpload, PendingUpload};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::Notify;

use crate::catalog::{Catalog, Fresh};
use crate::content::{key, of_key};
use crate::{Error, Inner, Registry, Result};

/// Records are held in memory, and their history is bounded: what is larger is a file at once.
const SMALL: u64 = 16 << 10;
/// So much waits at most, in bytes; beyond it, all is a file at once.
const MOST: usize = 16 << 20;
/// More than this does not wait any longer, in bytes.
const ENOUGH: usize = 4 << 20;
/// How long content waits for more of it.
const GATHER: Duration = Duration::from_secs(1);
/// After a failure.
const RETRY: Duration = Duration::from_secs(30);
/// Files made at once.
const BATCH: usize = 512;

/// What waits, in numbers.
#[derive(Default)]
pub struct Waiting {
    bytes: AtomicUsize,
    /// Somebody sees to it.
    attended: AtomicBool,
    enough: Notify,
    settling: tokio::sync::Mutex<()>,
}

impl Inner {
    /// Whether content of this size may wait.
    pub fn may_wait(&self, size: u64) -> bool {
        size <= SMALL && self.blobs.is_local() && self.waiting.bytes.load(Ordering::Relaxed) < MOST
    }

    /// Tells that so much more waits.
    pub fn waits(&self, size: usize) {
        if self.waiting.bytes.fetch_add(size, Ordering::Relaxed) + size >= ENOUGH {
            self.waiting.enough.notify_one();
        }
        if !self.waiting.attended.swap(true, Ordering::AcqRel) {
            tokio::spawn(attend(self.waiting.clone(), self.me.clone()));
        }
    }
}

/// Makes files of what waits until nothing does, or nobody has the registry any more.
async fn attend(waiting: Arc<Waiting>, registry: Weak<Inner>) {
    let mut pause = GATHER;
    loop {
        tokio::select! { () = tokio::time::sleep(pause) => {}, () = waiting.enough.notified() => {} }
        let Some(registry) = registry.upgrade().map(Registry) else { return };
        pause = match registry.settle().await {
            Ok(()) => GATHER,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                tracing::warn!("make files of small blobs: {error}{cause}");
                RETRY
            }
        };
        if pause == GATHER {
            waiting.attended.store(false, Ordering::Release);
            // Who came since the last look saw that it was attended to.
            let more = waiting.bytes.load(Ordering::Acquire) > 0;
            if !more || waiting.attended.swap(true, Ordering::AcqRel) {
                return;
            }
        }
    }
}

impl Registry {
    /// Makes files of all small content that waits for it now.
    ///
    /// # Errors
    /// When records or files cannot be read or written; what waits stays readable.
    pub async fn settle(&self) -> Result<()> {
        let (inner, catalog) = (&self.0, &self.0.catalog);
        let _one = inner.waiting.settling.lock().await;
        // Counted once it is in the records: all of this is found below.
        let before = inner.waiting.bytes.load(Ordering::Acquire);
        let mut last = None;
        loop {
            let fresh = catalog.fresh_after(last.as_ref(), BATCH).await?;
            let Some(Fresh { digest, .. }) = fresh.last() else {
                inner.waiting.bytes.fetch_sub(before, Ordering::AcqRel);
                return Ok(());
            };
            last = Some(digest.clone());
            let mut wanted = Vec::with_capacity(fresh.len());
            for Fresh { digest, content, .. } in &fresh {
                // Taken away again already.
                if !catalog.holders(digest, 1).await?.is_empty() {
                    wanted.push((key(digest), content.clone()));
                }
            }
            inner.blobs.put_all(wanted).await.map_err(Error::store("make files of small blobs"))?;
            catalog.settled(&fresh).await?;
        }
    }
}

/// Blobs of a store, and small ones that wait in the records.
pub struct Overlay {
    pub files: Arc<dyn Blob>,
    pub catalog: Arc<Catalog>,
}

impl Overlay {
    async fn fresh(&self, key: &str) -> Result<Option<Bytes>, dhow_store::Error> {
        let Some(digest) = of_key(key).filter(|_| self.files.is_local()) else { return Ok(None) };
        self.catalog.fresh(&digest).await.map_err(|error| match error {
            Error::Store { source, .. } => source,
            other => dhow_store::Error::Invalid(other.to_string()),
        })
    }
}

#[async_trait::async_trait]
impl Blob for Overlay {
    async fn begin(&self, id: &str) -> Result<Box<dyn BlobUpload>, dhow_store::Error> {
        self.files.begin(id).await
    }

    async fn resume(&self, id: &str) -> Result<Option<Box<dyn BlobUpload>>, dhow_store::Error> {
        self.files.resume(id).await
    }

    async fn uploads(&self) -> Result<Vec<PendingUpload>, dhow_store::Error> {
        self.files.uploads().await
    }

    async fn head(&self, key: &str) -> Result<Option<BlobMeta>, dhow_store::Error> {
        if let Some(meta) = self.files.head(key).await? {
            return Ok(Some(meta));
        }
        match self.fresh(key).await? {
            Some(content) => {
                let size = content.len() as u64;
                Ok(Some(BlobMeta { key: key.to_owned(), size, modified: SystemTime::now() }))
            }
            // It may have got its file in between.
            None if self.files.is_local() => self.files.head(key).await,
            None => Ok(None),
        }
    }

    async fn get(&self, key: &str, range: Range<u64>) -> Result<Option<BlobStream>, dhow_store::Error> {
        if let Some(stream) = self.files.get(key, range.clone()).await? {
            return Ok(Some(stream));
        }
        match self.fresh(key).await? {
            Some(content) => {
                let cut = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(content.len());
                let (from, to) = (cut(range.start), cut(range.end));
                let piece = content.slice(from..to.max(from));
                Ok(Some(stream::iter((!piece.is_empty()).then(|| Ok(piece))).boxed()))
            }
            None if self.files.is_local() => self.files.get(key, range).await,
            None => Ok(None),
        }
    }

    async fn put_all(&self, objects: Vec<(String, Bytes)>) -> Result<(), dhow_store::Error> {
        self.files.put_all(objects).await
    }

    fn is_local(&self) -> bool {
        self.files.is_local()
    }

    async fn list(
        &self,
        prefix: &str,
    ) -> Result<BoxStream<'static, Result<BlobMeta, dhow_store::Error>>, dhow_store::Error> {
        self.files.list(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<bool, dhow_store::Error> {
        self.files.delete(key).await
    }

    fn file(&self, key: &str) -> Option<PathBuf> {
        self.files.file(key)
    }
}
