//! Blobs that are forgotten when the store is dropped: for tests.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use parking_lot::Mutex;

use super::{Blob, BlobMeta, BlobStream, BlobUpload, PendingUpload, check_id, check_key};
use crate::Error;

/// Cheap to clone; clones are the same store.
#[derive(Clone, Default)]
pub struct MemoryBlob(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, (Bytes, SystemTime)>,
    uploads: BTreeMap<String, (Vec<u8>, SystemTime)>,
}

struct Upload {
    store: MemoryBlob,
    id: String,
    written: u64,
}

fn once(bytes: Bytes) -> BlobStream {
    if bytes.is_empty() { stream::empty().boxed() } else { stream::once(async { Ok(bytes) }).boxed() }
}

#[async_trait::async_trait]
impl Blob for MemoryBlob {
    async fn begin(&self, id: &str) -> Result<Box<dyn BlobUpload>, Error> {
        check_id(id)?;
        self.0.lock().uploads.insert(id.to_owned(), (Vec::new(), SystemTime::now()));
        Ok(Box::new(Upload { store: self.clone(), id: id.to_owned(), written: 0 }))
    }

    async fn resume(&self, id: &str) -> Result<Option<Box<dyn BlobUpload>>, Error> {
        check_id(id)?;
        let written = self.0.lock().uploads.get(id).map(|(bytes, _)| bytes.len() as u64);
        let open =
            |written| Box::new(Upload { store: self.clone(), id: id.to_owned(), written }) as Box<dyn BlobUpload>;
        Ok(written.map(open))
    }

    async fn uploads(&self) -> Result<Vec<PendingUpload>, Error> {
        let state = self.0.lock();
        let pending = |(id, (bytes, touched)): (&String, &(Vec<u8>, SystemTime))| PendingUpload {
            id: id.clone(),
            size: bytes.len() as u64,
            touched: *touched,
        };
        Ok(state.uploads.iter().map(pending).collect())
    }

    async fn head(&self, key: &str) -> Result<Option<BlobMeta>, Error> {
        check_key(key)?;
        let meta = |(bytes, modified): &(Bytes, SystemTime)| BlobMeta {
            key: key.to_owned(),
            size: bytes.len() as u64,
            modified: *modified,
        };
        Ok(self.0.lock().objects.get(key).map(meta))
    }

    async fn get(&self, key: &str, range: Range<u64>) -> Result<Option<BlobStream>, Error> {
        check_key(key)?;
        let Some((bytes, _)) = self.0.lock().objects.get(key).cloned() else { return Ok(None) };
        let cut = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        let (from, to) = (cut(range.start), cut(range.end));
        Ok(Some(once(bytes.slice(from..to.max(from)))))
    }

    async fn list(&self, prefix: &str) -> Result<BoxStream<'static, Result<BlobMeta, Error>>, Error> {
        let state = self.0.lock();
        let found: Vec<_> = state
            .objects
            .iter()
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(key, (bytes, modified))| {
                Ok(BlobMeta { key: key.clone(), size: bytes.len() as u64, modified: *modified })
            })
            .collect();
        Ok(stream::iter(found).boxed())
    }

    async fn delete(&self, key: &str) -> Result<bool, Error> {
        check_key(key)?;
        Ok(self.0.lock().objects.remove(key).is_some())
    }
}

impl Upload {
    fn gone(&self) -> Error {
        Error::Invalid(format!("the upload {} has ended", self.id))
    }
}

#[async_trait::async_trait]
impl BlobUpload for Upload {
    fn written(&self) -> u64 {
        self.written
    }

    async fn write(&mut self, pieces: Vec<Bytes>) -> Result<(), Error> {
        let mut state = self.store.0.lock();
        let (bytes, touched) = state.uploads.get_mut(&self.id).ok_or_else(|| self.gone())?;
        for piece in pieces {
            bytes.extend_from_slice(&piece);
            self.written += piece.len() as u64;
        }
        *touched = SystemTime::now();
        Ok(())
    }

    async fn read_back(&mut self) -> Result<BlobStream, Error> {
        let state = self.store.0.lock();
        let (bytes, _) = state.uploads.get(&self.id).ok_or_else(|| self.gone())?;
        Ok(once(Bytes::copy_from_slice(bytes)))
    }

    async fn sync(&mut self) -> Result<(), Error> {
        Ok(())
    }

    async fn commit(self: Box<Self>, key: &str) -> Result<(), Error> {
        check_key(key)?;
        let mut state = self.store.0.lock();
        let (bytes, _) = state.uploads.remove(&self.id).ok_or_else(|| self.gone())?;
        state.objects.insert(key.to_owned(), (bytes.into(), SystemTime::now()));
        Ok(())
    }

    async fn abort(self: Box<Self>) -> Result<(), Error> {
        self.store.0.lock().uploads.remove(&self.id);
        Ok(())
    }
}
