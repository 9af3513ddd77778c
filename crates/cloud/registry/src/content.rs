//! A blob's bytes: where they lie, how they come in and how they go out.

use bytes::{Bytes, BytesMut};
use dhow_image::{Digest, Hasher};
use dhow_store::BlobUpload;
use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use crate::request::{Asked, Incoming};
use crate::{Code, Error, Inner, Result};

/// Pieces are put together to about this size before they are hashed and written.
const BATCH: usize = 1 << 20;
/// Batches smaller than this are hashed in place: changing threads would take longer.
const HASH_HERE: usize = 64 << 10;

/// The key in the blob store. The same layout as an image store's, so that a file may have a name in both.
pub fn key(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// What a key is of.
pub fn of_key(key: &str) -> Option<Digest> {
    let (algorithm, hex) = key.strip_prefix("blobs/")?.split_once('/')?;
    Digest::parse(&format!("{algorithm}:{hex}")).ok()
}

/// Writes a body to the end of an upload and hashes it on the way. What came before an error is written, so that the
/// client may go on from there. Returns how much came.
pub async fn receive(
    registry: &Inner,
    body: &mut Incoming,
    upload: &mut Box<dyn BlobUpload>,
    hasher: &mut Hasher,
    most: Option<u64>,
) -> Result<u64> {
    let (sender, mut batches) = mpsc::channel::<(Vec<Bytes>, usize)>(2);
    let reading = async move {
        let (mut batch, mut size, mut total) = (Vec::new(), 0usize, 0u64);
        let ended = loop {
            let data = match next(registry, body).await {
                Ok(Some(data)) => data,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            total += data.len() as u64;
            if most.is_some_and(|most| total > most) {
                break Err(Error::new(Code::SizeInvalid, "more came than the headers say"));
            }
            let mut data = data;
            // Batches of just this size begin and end where the disk's blocks do.
            while size + data.len() >= BATCH {
                batch.push(data.split_to(BATCH - size));
                size = 0;
                if sender.send((std::mem::take(&mut batch), BATCH)).await.is_err() {
                    // The writer's own error is the one that counts.
                    return Ok(total);
                }
            }
            size += data.len();
            if !data.is_empty() {
                batch.push(data);
            }
        };
        if !batch.is_empty() {
            // The writer's own error is the one that counts.
            let _ = sender.send((batch, size)).await;
        }
        ended.map(|()| total)
    };
    // A batch is hashed while the one before it is on its way to disk.
    let (hashed, mut ready) = mpsc::channel::<Vec<Bytes>>(1);
    let hashing = async move {
        while let Some((batch, size)) = batches.recv().await {
            if size < HASH_HERE {
                batch.iter().for_each(|piece| hasher.update(piece));
            } else {
                let (pieces, mut moved) = (batch.clone(), std::mem::replace(hasher, Hasher::sha256()));
                let work = tokio::task::spawn_blocking(move || {
                    pieces.iter().for_each(|piece| moved.update(piece));
                    moved
                });
                *hasher = work.await.map_err(|error| Error::Internal(format!("hash an upload: {error}")))?;
            }
            if hashed.send(batch).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let writing = async move {
        while let Some(batch) = ready.recv().await {
            upload.write(batch).await.map_err(Error::store("write an upload"))?;
        }
        Ok(())
    };
    let (read, hashed, written): (_, Result<()>, Result<()>) = tokio::join!(reading, hashing, writing);
    written?;
    hashed?;
    read
}

/// All of a body whose length is known to be small; with an error, what came before it.
pub async fn whole(registry: &Inner, asked: &mut Asked) -> std::result::Result<Bytes, (Error, Bytes)> {
    let most = asked.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
    let Some(body) = asked.body.as_mut() else {
        return Err((Error::Internal("a body was read twice".to_owned()), Bytes::new()));
    };
    // Copied, as a piece would keep a whole buffer of the connection.
    let mut whole = BytesMut::with_capacity(most);
    loop {
        match next(registry, body).await {
            Ok(Some(piece)) => whole.extend_from_slice(&piece),
            Ok(None) => break,
            Err(error) => return Err((error, whole.freeze())),
        }
        if whole.len() > most {
            return Err((Error::new(Code::SizeInvalid, "more came than the headers say"), whole.freeze()));
        }
    }
    asked.body = None;
    Ok(whole.freeze())
}

/// The next piece of a body, unless the client is silent for too long.
pub async fn next(registry: &Inner, body: &mut Incoming) -> Result<Option<Bytes>> {
    loop {
        let frame = match tokio::time::timeout(registry.config.silence, body.frame()).await {
            Ok(None) => return Ok(None),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                return Err(Error::new(Code::BlobUploadInvalid, format!("the body broke off: {error}")));
            }
            Err(_) => {
                return Err(Error::new(Code::BlobUploadInvalid, "the client went silent")
                    .with_status(http::StatusCode::REQUEST_TIMEOUT));
            }
        };
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
}

/// The digest of all that is written.
pub async fn digest_of(upload: &mut Box<dyn BlobUpload>, like: &Digest) -> Result<Digest> {
    let mut hasher = Hasher::like(like);
    let mut stream = upload.read_back().await.map_err(Error::store("read an upload"))?;
    while let Some(piece) = stream.next().await {
        hasher.update(&piece.map_err(Error::store("read an upload"))?);
        // Hashing does not wait for anything; others want to run too.
        tokio::task::yield_now().await;
    }
    Ok(hasher.finish())
}

impl Inner {
    /// Gives the repository what is written, whose digest is verified: first the record, then the name. Returns once both
    /// survive a power cut.
    pub async fn keep(&self, repository: &str, digest: &Digest, mut upload: Box<dyn BlobUpload>) -> Result<()> {
        let size = upload.written();
        if self.may_wait(size) {
            let read = upload.read_back().await.map_err(Error::store("read an upload"))?;
            let pieces: Vec<Bytes> = read.try_collect().await.map_err(Error::store("read an upload"))?;
            upload.abort().await.map_err(Error::store("end an upload"))?;
            return self.keep_small(repository, digest, pieces.concat().into()).await;
        }
        let rules = self.access.rules(repository).await?;
        let linking = self.catalog.link(repository, digest, size, rules.quota);
        let (linked, synced) = tokio::join!(linking, upload.sync());
        if let Err(error) = linked {
            upload.abort().await.map_err(Error::store("give up an upload"))?;
            return Err(error);
        }
        synced.map_err(Error::store("write an upload"))?;
        upload.commit(&key(digest)).await.map_err(Error::store("keep a blob"))?;
        self.grown.notify_one();
        Ok(())
    }

    /// As [`Inner::keep`], for content of which [`Inner::may_wait`] is true.
    pub async fn keep_small(&self, repository: &str, digest: &Digest, content: Bytes) -> Result<()> {
        let rules = self.access.rules(repository).await?;
        self.catalog.link_fresh(repository, digest, &content, rules.quota).await?;
        self.waits(content.len());
        self.grown.notify_one();
        Ok(())
    }

    /// The size of content that is there.
    pub async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        let meta = self.blobs.head(&key(digest)).await.map_err(Error::store("look for a blob"))?;
        Ok(meta.map(|meta| meta.size))
    }
}
