//! The store over HTTP, below `/images` of the node's server: what `dhow image` speaks.
//!
//! | request | answer |
//! |---|---|
//! | `GET /images` | `{"images": […]}` |
//! | `GET /images/inspect?name=` | one image with its config |
//! | `GET /images/usage` | the file system and what the store takes of it |
//! | `GET /images/export?name=&format=oci\|docker` | an archive; `name` may be given several times |
//! | `POST /images/pull?name=&platform=` | progress, one JSON document a line; the last one is `done` or has `error` |
//! | `POST /images/push?name=&target=&chunk=` | the same |
//! | `POST /images/tag?name=&target=` | `{}` |
//! | `POST /images/prune?all=` | what went |
//! | `DELETE /images?name=` | `{}` |
//! | `GET /images/layers/{digest}?repository=` | a layer, or the part of it that `Range` begins; for other nodes |
//!
//! Pull and push take credentials as `{"username", "password", "identityToken"}` in the body.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::export::ArchiveFormat;
use crate::publish::PushOptions;
use crate::pull::{Progress, ProgressFn, PullOptions};
use crate::registry::Registries;
use crate::store::blocking;
use crate::{Auth, Error, Image, ImageStore, Platform, Result};

pub type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// Nobody needs to see more steps of one blob than this.
const BETWEEN_STEPS: Duration = Duration::from_millis(100);

/// Serves one store.
#[derive(Clone)]
pub struct Api {
    pub store: ImageStore,
    pub registries: Arc<Registries>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    pub identity_token: String,
}

impl From<Credentials> for Auth {
    fn from(given: Credentials) -> Self {
        match (given.username.is_empty(), given.identity_token.is_empty()) {
            (_, false) => Auth::Refresh(given.identity_token),
            (false, true) => Auth::Basic { username: given.username, password: given.password },
            (true, true) => Auth::Anonymous,
        }
    }
}

pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub fn of(request: &Request<Incoming>) -> Self {
        let query = request.uri().query().unwrap_or_default();
        Query(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    pub fn need(&self, key: &str) -> Result<String, Refusal> {
        let value = self.get(key).filter(|value| !value.is_empty());
        value.map(str::to_owned).ok_or_else(|| Refusal::bad(format!("{key} is required")))
    }

    fn all(&self, key: &str) -> Vec<String> {
        self.0.iter().filter(|(name, _)| name == key).map(|(_, value)| value.clone()).collect()
    }
}

pub(crate) struct Refusal(pub StatusCode, pub String);

impl Refusal {
    pub fn bad(message: impl Into<String>) -> Self {
        Refusal(StatusCode::BAD_REQUEST, message.into())
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::NotFound(_) => StatusCode::NOT_FOUND,
            Error::InvalidReference { .. } | Error::InvalidDigest(_) | Error::Ambiguous(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal(status, error.chain())
    }
}

impl Api {
    /// Never fails: what goes wrong is an answer.
    pub async fn serve(&self, request: Request<Incoming>) -> Answer {
        match self.route(request).await {
            Ok(answer) => answer,
            Err(Refusal(status, message)) => {
                let mut answer = whole(message + "\n", "text/plain; charset=utf-8");
                *answer.status_mut() = status;
                answer
            }
        }
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let path = request.uri().path().trim_matches('/').to_owned();
        if let (&Method::GET, Some(digest)) = (request.method(), path.strip_prefix("images/layers/")) {
            return self.layer(digest, &request).await;
        }
        let query = Query::of(&request);
        let store = self.store.clone();
        match (request.method(), path.as_str()) {
            (&Method::GET, "images") => {
                let images: Vec<Value> = store.list().iter().map(summary).collect();
                Ok(document(&json!({ "images": images })))
            }
            (&Method::GET, "images/inspect") => Ok(document(&details(&self.image(&query.need("name")?)?))),
            (&Method::GET, "images/usage") => Ok(document(&blocking(move || store.fs_usage()).await?)),
            (&Method::GET, "images/export") => self.export(&query),
            (&Method::POST, "images/tag") => {
                let (name, target) = (query.need("name")?, query.need("target")?);
                blocking(move || store.tag(&name, &target)).await?;
                Ok(document(&json!({})))
            }
            (&Method::DELETE, "images") => {
                let name = query.need("name")?;
                blocking(move || store.remove(&name)).await?;
                Ok(document(&json!({})))
            }
            (&Method::POST, "images/prune") => {
                let all = query.get("all") == Some("true");
                Ok(document(&blocking(move || store.prune(all)).await?))
            }
            (&Method::POST, "images/pull") => {
                let name = query.need("name")?;
                let platform = match query.get("platform") {
                    Some(text) => Some(
                        Platform::parse(text)
                            .ok_or_else(|| Refusal::bad(format!("{text:?} is no platform; write os/arch[/variant]")))?,
                    ),
                    None => None,
                };
                let options =
                    PullOptions { auth: credentials(request).await?, registries: self.registries.clone(), platform };
                Ok(progress(move |report| async move { store.pull(&name, options, Some(report)).await.map(drop) }))
            }
            (&Method::POST, "images/push") => {
                let name = query.need("name")?;
                let target = query.get("target").map_or_else(|| name.clone(), str::to_owned);
                let chunk_bytes = match query.get("chunk").map(str::parse) {
                    Some(Ok(bytes)) => Some(bytes),
                    Some(Err(_)) => return Err(Refusal::bad("chunk is a number of bytes")),
                    None => None,
                };
                self.image(&name)?;
                let options =
                    PushOptions { auth: credentials(request).await?, registries: self.registries.clone(), chunk_bytes };
                Ok(progress(
                    move |report| async move { store.push(&name, &target, options, Some(report)).await.map(drop) },
                ))
            }
            (method, _) => Err(Refusal(StatusCode::NOT_FOUND, format!("no such request: {method} /{path}"))),
        }
    }

    fn image(&self, name: &str) -> Result<Image> {
        self.store.get(name).ok_or_else(|| Error::NotFound(name.to_owned()))
    }

    fn export(&self, query: &Query) -> Result<Answer, Refusal> {
        let names = query.all("name");
        if names.is_empty() {
            return Err(Refusal::bad("name is required"));
        }
        let format = match query.get("format") {
            None | Some("oci") => ArchiveFormat::Oci,
            Some("docker") => ArchiveFormat::Docker,
            Some(other) => return Err(Refusal::bad(format!("{other:?} is no archive format; oci and docker are"))),
        };
        for name in &names {
            self.image(name)?;
        }
        let (from, to) = tokio::io::duplex(256 << 10);
        let store = self.store.clone();
        let task = tokio::spawn(async move { store.export(&names, format, to).await });
        // An archive that could not be finished must not look finished.
        let end = futures::stream::once(async move {
            match task.await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(Err(io::Error::other(error.chain()))),
                Err(error) => Some(Err(io::Error::other(error))),
            }
        });
        let pieces = tokio_util::io::ReaderStream::with_capacity(from, 128 << 10);
        Ok(streamed(pieces.chain(end.filter_map(futures::future::ready)), "application/x-tar"))
    }
}

async fn credentials(request: Request<Incoming>) -> Result<Auth, Refusal> {
    let body = Limited::new(request.into_body(), 64 << 10).collect().await;
    let body = body.map_err(|e| Refusal::bad(format!("read the body: {e}")))?.to_bytes();
    if body.is_empty() {
        return Ok(Auth::Anonymous);
    }
    let given: Credentials =
        serde_json::from_slice(&body).map_err(|e| Refusal::bad(format!("malformed credentials: {e}")))?;
    Ok(given.into())
}

/// Runs `work` and streams its steps. Whoever stops listening stops the work.
fn progress<F>(work: impl FnOnce(ProgressFn) -> F) -> Answer
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (sender, receiver) = mpsc::unbounded_channel::<Bytes>();
    let line = |value: &Value| Bytes::from(format!("{value}\n"));
    let steps = sender.clone();
    let last = parking_lot::Mutex::new(std::collections::HashMap::<String, std::time::Instant>::new());
    let report: ProgressFn = Arc::new(move |step| {
        if let Progress::Downloading { blob, done, total } | Progress::Uploading { blob, done, total } = &step {
            let now = std::time::Instant::now();
            let mut last = last.lock();
            let recent = last.get(blob.as_str()).is_some_and(|at| now.duration_since(*at) < BETWEEN_STEPS);
            if recent && done < total {
                return;
            }
            last.insert(blob.to_string(), now);
        }
        let _ = steps.send(line(&json!(step)));
    });
    let work = work(report);
    let mut work = Box::pin(async move {
        if let Err(error) = work.await {
            let _ = sender.send(line(&json!({"error": error.chain(), "notFound": error.is_not_found()})));
        }
    });
    let mut receiver = receiver;
    let mut ended = false;
    let lines = futures::stream::poll_fn(move |context| {
        if !ended {
            ended = work.as_mut().poll(context).is_ready();
        }
        receiver.poll_recv(context).map(|line| line.map(Ok))
    });
    streamed(lines, "application/x-ndjson")
}

/// The fields the generic listing of a node has, and what only this store knows.
fn summary(image: &Image) -> Value {
    json!({
        "id": image.id, "repo_tags": image.references, "repo_digests": image.digests, "size": image.size,
        "manifest": image.manifest, "media_type": image.media_type, "in_use_by": image.holders.len(),
        "added": image.added, "used": image.used,
    })
}

fn details(image: &Image) -> Value {
    let mut value = summary(image);
    value["in_use_by"] = json!(image.holders);
    value["config"] = json!(image.config);
    value
}

fn document(value: &impl Serialize) -> Answer {
    whole(json!(value).to_string(), "application/json")
}

fn whole(bytes: impl Into<Bytes>, kind: &'static str) -> Answer {
    let body = Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync();
    with_kind(body, kind)
}

pub(crate) fn streamed(pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static, kind: &'static str) -> Answer {
    with_kind(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync(), kind)
}

fn with_kind(body: UnsyncBoxBody<Bytes, io::Error>, kind: &'static str) -> Answer {
    let mut answer = Response::new(body);
    answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    answer
}
