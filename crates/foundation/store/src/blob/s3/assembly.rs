//! Commits of uploads: one object of many pieces, made within S3.
//!
//! A commit that was cut off leaves a note, so that the next one who meets the upload can give the half-made object up.
//! Pieces are copied only as they were written: one that another process has put in its place ends the commit.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use http::header::{DATE, ETAG, HeaderMap, HeaderName};
use http::{Method, StatusCode};
use jiff::fmt::rfc2822::DateTimeParser;

use super::client::{Call, Client, Failure};
use super::sign::encode;
use super::upload::{folder, piece_key, put};
use super::{Inner, length, modified, read};
use crate::Error;

/// A part of a multipart upload that is not its last is at least so large.
pub const SMALLEST: u64 = 5 << 20;
/// Requests at once.
pub const AT_ONCE: usize = 4;
/// Making one object of many takes S3 a while.
const PATIENCE: u32 = 10;
const COPY_SOURCE: HeaderName = HeaderName::from_static("x-amz-copy-source");
const COPY_IF: HeaderName = HeaderName::from_static("x-amz-copy-source-if-match");

/// One object of an upload.
#[derive(Debug, Clone)]
pub struct Piece {
    pub offset: u64,
    pub size: u64,
    /// Its version, if it is known.
    pub etag: Option<String>,
}

/// Says which object a commit is making.
pub fn note(id: &str) -> String {
    format!("{}commit", folder(id))
}

/// Ends what a commit began and did not finish.
pub async fn give_up(inner: &Arc<Inner>, id: &str) -> Result<(), Error> {
    let note = note(id);
    let Some(stream) = read::open(inner, &note, 0..u64::MAX).await? else { return Ok(()) };
    let text: Vec<Bytes> = stream.try_collect().await?;
    let text = String::from_utf8_lossy(&text.concat()).into_owned();
    if let Some((upload, key)) = text.split_once('\n') {
        abort(&inner.client, key, upload).await?;
    }
    inner.delete(&note).await
}

async fn abort(client: &Client, key: &str, upload: &str) -> Result<(), Error> {
    let mut call = Call::new("give up", Method::DELETE, key);
    call.query = vec![("uploadId", upload.to_owned())];
    match client.ask(&call).await {
        Ok(_) => Ok(()),
        // Finished, or given up before.
        Err(failure) if failure.status() == Some(StatusCode::NOT_FOUND) => Ok(()),
        // Some say so of what is unknown. Who may really not has to leave it to the bucket's own rules.
        Err(failure) if failure.status() == Some(StatusCode::FORBIDDEN) => {
            tracing::warn!(key, error = %failure, "what a commit began may still be in the bucket");
            Ok(())
        }
        Err(failure) => Err(client.error(call.verb, key, failure)),
    }
}

/// A call that copies a piece.
fn copying<'a>(client: &Client, id: &str, piece: &Piece, key: &'a str) -> Call<'a> {
    let from = format!("/{}/{}{}", client.config.bucket, client.config.prefix, piece_key(id, piece.offset));
    let mut call = Call { patience: PATIENCE, ..Call::new("copy an upload to", Method::PUT, key) };
    call.headers.push((COPY_SOURCE, encode(&from, true)));
    call.headers.extend(piece.etag.clone().map(|etag| (COPY_IF, etag)));
    call
}

/// Makes the object of the only piece.
pub async fn copy(inner: &Arc<Inner>, id: &str, piece: &Piece, key: &str) -> Result<(), Error> {
    let call = copying(&inner.client, id, piece, key);
    inner.client.ask_xml(&call).await.map(drop).map_err(|failure| inner.client.error(call.verb, key, failure))
}

/// Makes the object of all pieces and what follows them.
pub async fn assemble(inner: &Arc<Inner>, id: &str, pieces: &[Piece], tail: Bytes, key: &str) -> Result<(), Error> {
    let client = &inner.client;
    let failed = |failure| client.error("put together", key, failure);
    let mut call = Call::new("put together", Method::POST, key);
    call.query = vec![("uploads", String::new())];
    let (headers, body) = client.ask(&call).await.map_err(failed)?;
    let answer = super::xml::Element::parse(&body);
    let upload = answer.as_ref().and_then(|answer| answer.get("UploadId")).map(str::to_owned);
    let upload = upload.ok_or_else(|| failed(Failure::Nonsense("it begins an upload without a name".to_owned())))?;
    put(client, &note(id), Bytes::from(format!("{upload}\n{key}"))).await?;
    let size = pieces.iter().map(|piece| piece.size).sum::<u64>() + tail.len() as u64;
    let failure = match parts(inner, id, pieces, tail, key, &upload).await {
        Ok(parts) => match complete(client, key, &upload, &parts).await {
            Ok(()) => return Ok(()),
            // An answer that got lost on the way makes the next attempt come too late.
            Err(failure) if failure.status().is_some_and(|status| status.is_client_error()) => {
                if is_new(inner, key, size, &headers).await? {
                    return Ok(());
                }
                failure
            }
            Err(failure) => failure,
        },
        Err(failure) => failure,
    };
    if let Err(error) = give_up(inner, id).await {
        tracing::warn!(%error, "a commit that failed is not cleaned up yet");
    }
    Err(failed(failure))
}

/// Whether an object of this size came after the server answered with these headers.
async fn is_new(inner: &Inner, key: &str, size: u64, before: &HeaderMap) -> Result<bool, Error> {
    let began = before.get(DATE).and_then(|date| date.to_str().ok());
    let began = began.and_then(|date| DateTimeParser::new().parse_timestamp(date).ok());
    let Some(there) = inner.head(key).await? else { return Ok(false) };
    let is_after = modified(&there).zip(began).is_some_and(|(at, began)| at >= SystemTime::from(began));
    Ok(is_after && length(&there) == Some(size))
}

/// The parts' names, in order.
async fn parts(
    inner: &Arc<Inner>,
    id: &str,
    pieces: &[Piece],
    tail: Bytes,
    key: &str,
    upload: &str,
) -> Result<Vec<String>, Failure> {
    let copies = pieces.iter().enumerate().map(|(at, piece)| copy_part(inner, id, piece, key, query(upload, at)));
    let copies: Vec<_> = copies.collect();
    let mut parts: Vec<String> = stream::iter(copies).buffered(AT_ONCE).try_collect().await?;
    if !tail.is_empty() {
        parts.push(send_part(&inner.client, tail, key, query(upload, pieces.len())).await?);
    }
    Ok(parts)
}

fn query(upload: &str, at: usize) -> Vec<(&'static str, String)> {
    vec![("partNumber", (at + 1).to_string()), ("uploadId", upload.to_owned())]
}

async fn copy_part(
    inner: &Arc<Inner>,
    id: &str,
    piece: &Piece,
    key: &str,
    query: Vec<(&'static str, String)>,
) -> Result<String, Failure> {
    let call = Call { query, ..copying(&inner.client, id, piece, key) };
    match inner.client.ask_xml(&call).await {
        Ok(answer) => answer.get("ETag").map(str::to_owned).ok_or_else(no_etag),
        // Some servers cannot copy parts.
        Err(failure) if failure.status() == Some(StatusCode::NOT_IMPLEMENTED) => {
            let bytes = read::whole(inner, &piece_key(id, piece.offset), piece.size).await;
            let bytes = bytes.map_err(|error| Failure::Nonsense(dhow_base::chain(&error)))?;
            send_part(&inner.client, bytes.freeze(), key, call.query).await
        }
        Err(failure) => Err(failure),
    }
}

async fn send_part(
    client: &Client,
    body: Bytes,
    key: &str,
    query: Vec<(&'static str, String)>,
) -> Result<String, Failure> {
    let call = Call { body, query, ..Call::new("put together", Method::PUT, key) };
    let (headers, _) = client.ask(&call).await?;
    headers.get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned).ok_or_else(no_etag)
}

fn no_etag() -> Failure {
    Failure::Nonsense("a part without an ETag".to_owned())
}

async fn complete(client: &Client, key: &str, upload: &str, parts: &[String]) -> Result<(), Failure> {
    let part = |(number, etag): (usize, &String)| {
        let etag = etag.replace('&', "&amp;").replace('<', "&lt;");
        format!("<Part><PartNumber>{}</PartNumber><ETag>{etag}</ETag></Part>", number + 1)
    };
    let list: String = parts.iter().enumerate().map(part).collect();
    let text = format!(
        "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{list}</CompleteMultipartUpload>"
    );
    let mut call = Call { body: text.into(), patience: PATIENCE, ..Call::new("put together", Method::POST, key) };
    call.query = vec![("uploadId", upload.to_owned())];
    client.ask_xml(&call).await.map(drop)
}
