//! Uploads: pieces as objects of their own, put together within S3 by their commit.
//!
//! What is written goes out in pieces while more comes. The rest stays in memory until it is a piece, the commit sends it,
//! or the upload is left.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use http::Method;
use http::header::ETAG;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::assembly::{self, AT_ONCE, Piece};
use super::client::{Call, Client};
use super::{Inner, Live, UPLOADS, read};
use crate::blob::check_key;
use crate::{BlobStream, BlobUpload, Error};

/// From here on pieces are larger: an object has 10,000 parts at most.
const MANY: usize = 1000;
const LARGER: usize = 8;

pub fn folder(id: &str) -> String {
    format!("{UPLOADS}{id}/")
}

/// Named by where it begins, so that one that is written again takes the place of the old one.
pub fn piece_key(id: &str, offset: u64) -> String {
    format!("{UPLOADS}{id}/{offset:020}")
}

pub fn is_piece(name: &str) -> bool {
    name.parse::<u64>().is_ok()
}

/// Removes whatever there is of an upload.
pub async fn sweep(inner: &Arc<Inner>, id: &str) -> Result<(), Error> {
    let found: Vec<_> = inner.list(&folder(id)).try_collect().await?;
    if found.iter().any(|object| object.key == assembly::note(id)) {
        assembly::give_up(inner, id).await?;
    }
    let deleting: Vec<_> = found.iter().map(|object| inner.delete(&object.key)).collect();
    stream::iter(deleting).buffer_unordered(AT_ONCE).try_collect().await
}

/// Makes an object; returns what its version is called.
pub async fn put(client: &Client, key: &str, body: Bytes) -> Result<Option<String>, Error> {
    let call = Call { body, ..Call::new("write", Method::PUT, key) };
    let (headers, _) = client.ask(&call).await.map_err(|failure| client.error(call.verb, key, failure))?;
    Ok(headers.get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned))
}

/// `None` once it has ended.
pub struct Upload(Option<State>);

struct State {
    inner: Arc<Inner>,
    id: String,
    /// What is in the bucket, or on the way there.
    pieces: Vec<Piece>,
    /// The last piece, if it is on the way.
    sending: Option<JoinHandle<Result<Option<String>, Error>>>,
    /// What follows them.
    tail: BytesMut,
    written: u64,
    /// The bucket has something of this upload.
    is_known: bool,
    /// The bucket has all of it.
    is_kept: bool,
    /// A piece did not get through.
    is_broken: bool,
    /// Another handle of this process writes to it; this one only tells how far that is.
    is_foreign: bool,
}

impl Upload {
    pub fn begin(inner: &Arc<Inner>, id: &str) -> Self {
        inner.live.lock().insert(id.to_owned(), Live { written: 0, settling: None });
        Self(Some(State::new(inner, id, Vec::new(), 0)))
    }

    pub async fn resume(inner: &Arc<Inner>, id: &str) -> Result<Option<Self>, Error> {
        if let Some(live) = inner.live.lock().get(id) {
            let state = State::new(inner, id, Vec::new(), live.written);
            return Ok(Some(Self(Some(State { is_foreign: true, is_known: true, ..state }))));
        }
        let folder = folder(id);
        let found: Vec<_> = inner.list(&folder).try_collect().await?;
        if found.iter().any(|object| object.key == assembly::note(id)) {
            assembly::give_up(inner, id).await?;
        }
        let (mut pieces, mut written, mut is_known) = (Vec::new(), 0, false);
        for object in found {
            // They are listed in order; what does not follow was never acknowledged.
            if object.key.strip_prefix(&folder).and_then(|name| name.parse::<u64>().ok()) != Some(written) {
                continue;
            }
            is_known = true;
            if object.size > 0 {
                pieces.push(Piece { offset: written, size: object.size, etag: object.etag });
                written += object.size;
            }
        }
        if !is_known {
            return Ok(None);
        }
        inner.live.lock().insert(id.to_owned(), Live { written, settling: None });
        let state = State::new(inner, id, pieces, written);
        Ok(Some(Self(Some(State { is_known, is_kept: true, ..state }))))
    }

    fn state(&mut self) -> Result<&mut State, Error> {
        self.0.as_mut().ok_or(Error::Closed)
    }
}

impl State {
    fn new(inner: &Arc<Inner>, id: &str, pieces: Vec<Piece>, written: u64) -> Self {
        let (inner, id) = (inner.clone(), id.to_owned());
        let (sending, tail) = (None, BytesMut::new());
        let (is_known, is_kept, is_broken, is_foreign) = Default::default();
        Self { inner, id, pieces, sending, tail, written, is_known, is_kept, is_broken, is_foreign }
    }

    fn usable(&self) -> Result<(), Error> {
        let not = |why: &str| Err(Error::Invalid(format!("the upload {} {why}", self.id)));
        match (self.is_foreign, self.is_broken) {
            (true, _) => not("is being written to"),
            (_, true) => not("lacks what a write could not bring there"),
            _ => Ok(()),
        }
    }

    /// Where the tail begins.
    fn sent(&self) -> u64 {
        self.written - self.tail.len() as u64
    }

    /// Takes the last piece back if it is too small to be followed by another.
    async fn take_back(&mut self) -> Result<(), Error> {
        let small = |piece: &mut Piece| piece.size < assembly::SMALLEST;
        let Some(last) = self.pieces.pop_if(small) else { return Ok(()) };
        let key = piece_key(&self.id, last.offset);
        let bytes = read::whole(&self.inner, &key, last.size).await?;
        self.tail = bytes;
        Ok(())
    }

    async fn write(&mut self, pieces: Vec<Bytes>) -> Result<(), Error> {
        if self.tail.is_empty() && self.sending.is_none() {
            self.take_back().await?;
        }
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            self.tail.extend_from_slice(piece);
            self.written += piece.len() as u64;
            self.is_kept = false;
        }
        if let Some(live) = self.inner.live.lock().get_mut(&self.id) {
            live.written = self.written;
        }
        loop {
            let factor = if self.pieces.len() < MANY { 1 } else { LARGER };
            let size = self.inner.client.config.piece.max(usize::try_from(assembly::SMALLEST).unwrap_or(0)) * factor;
            if self.tail.len() < size {
                return Ok(());
            }
            self.settle().await?;
            let (offset, body) = (self.sent(), self.tail.split_to(size).freeze());
            self.pieces.push(Piece { offset, size: size as u64, etag: None });
            self.is_known = true;
            let (inner, key) = (self.inner.clone(), piece_key(&self.id, offset));
            self.sending = Some(tokio::spawn(async move { put(&inner.client, &key, body).await }));
        }
    }

    /// Waits for what is on the way.
    async fn settle(&mut self) -> Result<(), Error> {
        let Some(sending) = &mut self.sending else { return Ok(()) };
        // Whoever stops waiting for it leaves it to the next one.
        let sent = sending.await.unwrap_or(Err(Error::Closed));
        self.sending = None;
        match sent {
            Ok(etag) => {
                if let Some(last) = self.pieces.last_mut() {
                    last.etag = etag;
                }
                Ok(())
            }
            Err(error) => {
                self.is_broken = true;
                Err(error)
            }
        }
    }

    /// Sees to it that another process could go on.
    async fn keep(&mut self) -> Result<(), Error> {
        self.settle().await?;
        if self.is_kept || self.tail.is_empty() && !self.pieces.is_empty() {
            return Ok(());
        }
        put(&self.inner.client, &piece_key(&self.id, self.sent()), self.tail.clone().freeze()).await?;
        self.is_known = true;
        self.is_kept = true;
        Ok(())
    }

    async fn commit(&mut self, key: &str) -> Result<(), Error> {
        self.settle().await?;
        let tail = self.tail.clone().freeze();
        match self.pieces.as_slice() {
            [] => put(&self.inner.client, key, tail).await.map(drop)?,
            [one] if tail.is_empty() => assembly::copy(&self.inner, &self.id, one, key).await?,
            many => assembly::assemble(&self.inner, &self.id, many, tail, key).await?,
        }
        if self.is_known
            && let Err(error) = self.clean_up().await
        {
            tracing::warn!(error = dhow_base::chain(&error), "what an upload was made of is still there");
        }
        Ok(())
    }

    /// After the commit. The note first: what it says is over.
    async fn clean_up(&self) -> Result<(), Error> {
        if !self.pieces.is_empty() {
            self.inner.delete(&assembly::note(&self.id)).await?;
        }
        sweep(&self.inner, &self.id).await
    }

    fn forget(&self) {
        if !self.is_foreign {
            self.inner.live.lock().remove(&self.id);
        }
    }
}

#[async_trait::async_trait]
impl BlobUpload for Upload {
    fn written(&self) -> u64 {
        self.0.as_ref().map_or(0, |state| state.written)
    }

    async fn write(&mut self, pieces: Vec<Bytes>) -> Result<(), Error> {
        let state = self.state()?;
        state.usable()?;
        state.write(pieces).await
    }

    async fn read_back(&mut self) -> Result<BlobStream, Error> {
        let state = self.state()?;
        state.usable()?;
        state.settle().await?;
        let (inner, id) = (state.inner.clone(), state.id.clone());
        let tail = stream::iter((!state.tail.is_empty()).then(|| Ok(state.tail.clone().freeze())));
        let pieces: Vec<(String, u64)> =
            state.pieces.iter().map(|piece| (piece_key(&id, piece.offset), piece.size)).collect();
        let stored = stream::iter(pieces).then(move |(key, size)| {
            let inner = inner.clone();
            async move { read::expected(&inner, &key, size).await }
        });
        Ok(stored.try_flatten().chain(tail).boxed())
    }

    async fn sync(&mut self) -> Result<(), Error> {
        // What is left is the commit's; sent alone, it would only have to be copied.
        self.state()?.settle().await
    }

    async fn park(mut self: Box<Self>) -> Result<(), Error> {
        let state = self.state()?;
        state.usable()?;
        state.keep().await?;
        state.forget();
        self.0 = None;
        Ok(())
    }

    async fn commit(mut self: Box<Self>, key: &str) -> Result<(), Error> {
        check_key(key)?;
        let state = self.state()?;
        state.usable()?;
        state.commit(key).await?;
        state.forget();
        self.0 = None;
        Ok(())
    }

    async fn abort(mut self: Box<Self>) -> Result<(), Error> {
        let state = self.state()?;
        // One that arrived later would stay.
        let _ = state.settle().await;
        let (inner, id, is_known) = (state.inner.clone(), state.id.clone(), state.is_known);
        state.forget();
        self.0 = None;
        if is_known { sweep(&inner, &id).await } else { Ok(()) }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut state) = self.0.take() else { return };
        let is_done = state.is_foreign || state.is_broken || state.is_kept;
        let (false, Ok(runtime)) = (is_done, tokio::runtime::Handle::try_current()) else { return state.forget() };
        let (settled, settling) = watch::channel(());
        let live = Live { written: state.written, settling: Some(settling) };
        state.inner.live.lock().insert(state.id.clone(), live);
        runtime.spawn(async move {
            if let Err(error) = state.keep().await {
                tracing::warn!(
                    error = dhow_base::chain(&error),
                    upload = state.id,
                    "the end of an upload that was left is lost"
                );
            }
            state.forget();
            drop(settled);
        });
    }
}
