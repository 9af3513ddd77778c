//! Objects coming in: streams that go on where a connection broke, and never end short without an error.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use http::header::{ETAG, IF_MATCH, RANGE};
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;

use super::client::{Call, Failure};
use super::{Inner, length};
use crate::{BlobStream, Error};

struct Reading {
    inner: Arc<Inner>,
    key: String,
    /// What is still to come.
    range: Range<u64>,
    /// The version that was opened.
    etag: Option<String>,
    body: Option<Incoming>,
    /// Since the last byte.
    attempt: u32,
}

/// The bytes of `range`, cut to what there is; `None`: there is no such object.
pub async fn open(inner: &Arc<Inner>, key: &str, range: Range<u64>) -> Result<Option<BlobStream>, Error> {
    if range.start >= range.end {
        return Ok(inner.head(key).await?.map(|_| stream::empty().boxed()));
    }
    let answer = match ask(inner, key, &range, None).await {
        Ok(answer) => answer,
        // It begins where there is nothing any more.
        Err(failure) if failure.status() == Some(StatusCode::RANGE_NOT_SATISFIABLE) => {
            return Ok(Some(stream::empty().boxed()));
        }
        Err(failure) if failure.status() == Some(StatusCode::NOT_FOUND) && !failure.is("NoSuchBucket") => {
            return Ok(None);
        }
        Err(failure) => return Err(inner.client.error("read", key, failure)),
    };
    let etag = etag(&answer);
    let asked_for_part = range.start > 0 || range.end < u64::MAX;
    let is_part = answer.status() == StatusCode::PARTIAL_CONTENT;
    let Some(size) = length(answer.headers()).filter(|_| asked_for_part == is_part) else {
        let failure = Failure::Nonsense(format!("{} without a length, or with another range", answer.status()));
        return Err(inner.client.error("read", key, failure));
    };
    let range = range.start..range.start.saturating_add(size).min(range.end);
    let body = Some(answer.into_body());
    let reading = Reading { inner: inner.clone(), key: key.to_owned(), range, etag, body, attempt: 1 };
    Ok(Some(stream::unfold(Some(reading), |reading| async { next(reading?).await }).boxed()))
}

/// All of an object that has to be there, with this size.
pub async fn expected(inner: &Arc<Inner>, key: &str, size: u64) -> Result<BlobStream, Error> {
    let gone = || inner.client.error("read", key, Failure::Nonsense("a piece of an upload is gone".to_owned()));
    open(inner, key, 0..size).await?.ok_or_else(gone)
}

/// The same, in memory.
pub async fn whole(inner: &Arc<Inner>, key: &str, size: u64) -> Result<BytesMut, Error> {
    let mut bytes = BytesMut::new();
    let mut stream = expected(inner, key, size).await?;
    while let Some(piece) = stream.try_next().await? {
        bytes.extend_from_slice(&piece);
    }
    if bytes.len() as u64 != size {
        let failure = Failure::Nonsense(format!("{} bytes where {size} were written", bytes.len()));
        return Err(inner.client.error("read", key, failure));
    }
    Ok(bytes)
}

async fn ask(
    inner: &Inner,
    key: &str,
    range: &Range<u64>,
    etag: Option<&String>,
) -> Result<Response<Incoming>, Failure> {
    let mut call = Call::new("read", Method::GET, key);
    match (range.start, range.end) {
        (0, u64::MAX) => {}
        (start, u64::MAX) => call.headers.push((RANGE, format!("bytes={start}-"))),
        (start, end) => call.headers.push((RANGE, format!("bytes={start}-{}", end - 1))),
    }
    call.headers.extend(etag.map(|etag| (IF_MATCH, etag.clone())));
    inner.client.open(&call).await
}

fn etag(answer: &Response<Incoming>) -> Option<String> {
    answer.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned)
}

async fn next(mut reading: Reading) -> Option<(Result<Bytes, Error>, Option<Reading>)> {
    loop {
        if reading.range.is_empty() {
            // To its end, so that the connection can be used again.
            if let Some(body) = &mut reading.body {
                let _ = reading.inner.client.next(body).await;
            }
            return None;
        }
        let came = match &mut reading.body {
            Some(body) => reading.inner.client.next(body).await,
            None => match ask(&reading.inner, &reading.key, &reading.range, reading.etag.as_ref()).await {
                Ok(answer) if etag(&answer) != reading.etag => {
                    // Not every server looks at what it is asked to match.
                    let failure = Failure::Nonsense("it was replaced meanwhile".to_owned());
                    return Some((Err(failed(&reading, failure)), None));
                }
                Ok(answer) if answer.status() == StatusCode::PARTIAL_CONTENT => {
                    reading.body = Some(answer.into_body());
                    continue;
                }
                Ok(answer) => Err(Failure::Nonsense(format!("{} where a range was asked for", answer.status()))),
                // Tried often enough already; or replaced, or deleted.
                Err(failure) => return Some((Err(failed(&reading, failure)), None)),
            },
        };
        let failure = match came {
            Ok(Some(mut bytes)) => {
                let left = usize::try_from(reading.range.end - reading.range.start).unwrap_or(usize::MAX);
                bytes.truncate(left);
                reading.range.start += bytes.len() as u64;
                reading.attempt = 1;
                return Some((Ok(bytes), Some(reading)));
            }
            Ok(None) => Failure::Nonsense("it ended too early".to_owned()),
            Err(failure) => failure,
        };
        reading.body = None;
        if reading.attempt >= reading.inner.client.config.attempts {
            return Some((Err(failed(&reading, failure)), None));
        }
        reading.inner.client.pause(reading.attempt).await;
        reading.attempt += 1;
    }
}

fn failed(reading: &Reading, failure: Failure) -> Error {
    reading.inner.client.error("read", &reading.key, failure)
}
