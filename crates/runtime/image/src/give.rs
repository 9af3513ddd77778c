//! Layers for other nodes: whole or from an offset on, a few at a time.

use std::io::{Seek, SeekFrom};
use std::sync::atomic::Ordering;

use futures::StreamExt;
use http::{HeaderValue, Request, StatusCode, header};
use hyper::body::Incoming;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use crate::api::{Answer, Api, Query, Refusal, streamed};
use crate::error::At;
use crate::store::blocking;
use crate::{Digest, Error};

/// Layers on their way out at one time; whoever wants more is sent elsewhere.
pub(crate) const AT_ONCE: usize = 32;
const PIECE: usize = 128 << 10;

impl Api {
    /// Answers who wants a layer of a repository. That the caller is a node is for the server to know.
    pub(crate) async fn layer(&self, digest: &str, request: &Request<Incoming>) -> Result<Answer, Refusal> {
        if !self.registries.gives() {
            return Err(Refusal(StatusCode::NOT_FOUND, "this node gives no layers".to_owned()));
        }
        let digest = Digest::parse(digest)?;
        let repository = Query::of(request).need("repository")?;
        let from = match request.headers().get(header::RANGE) {
            Some(range) => offset(range).ok_or_else(|| Refusal::bad("ranges here are of the form bytes=N-"))?,
            None => 0,
        };
        let busy = |_| Refusal(StatusCode::SERVICE_UNAVAILABLE, "busy with other nodes".to_owned());
        let turn = self.store.inner.giving.clone().try_acquire_owned().map_err(busy)?;
        let store = self.store.clone();
        let (file, size) = blocking(move || {
            let (mut file, size) = store.layer_of(&repository, &digest)?;
            file.seek(SeekFrom::Start(from)).at("read", store.root())?;
            Ok::<_, Error>((file, size))
        })
        .await?;
        if from > 0 && from >= size {
            return Err(Refusal(StatusCode::RANGE_NOT_SATISFIABLE, format!("the layer has {size} bytes")));
        }
        let registries = self.registries.clone();
        let pieces = ReaderStream::with_capacity(tokio::fs::File::from_std(file).take(size - from), PIECE);
        let counted = pieces.inspect(move |piece| {
            let _until_the_end = &turn;
            let bytes = piece.as_ref().map_or(0, |piece| piece.len() as u64);
            registries.counters.to_nodes.fetch_add(bytes, Ordering::Relaxed);
        });
        let mut answer = streamed(counted, "application/octet-stream");
        answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(size - from));
        if from > 0 {
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
            let range = HeaderValue::from_str(&format!("bytes {from}-{}/{size}", size - 1));
            answer.headers_mut().insert(header::CONTENT_RANGE, range.map_err(|e| Refusal::bad(e.to_string()))?);
        }
        Ok(answer)
    }
}

/// Of `bytes=N-`.
fn offset(range: &HeaderValue) -> Option<u64> {
    range.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}
