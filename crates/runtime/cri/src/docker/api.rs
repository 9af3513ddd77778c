//! The Docker Engine API over its socket: one connection per request.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::TryStreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::AsyncBufRead;
use tokio::net::UnixStream;
use tokio_util::io::{ReaderStream, StreamReader};

use crate::Error;
use crate::runtime::Reader;
use crate::streaming::dial::{self, Body};

/// The newest version whose words are used; a daemon of an older one is spoken to in its own. Docker 20.10 has 1.41.
const NEWEST: (u32, u32) = (1, 44);

#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
    /// Before every path, such as `/v1.41`.
    prefix: String,
    /// Of the protocol that is spoken, such as 1.41.
    pub version: (u32, u32),
}

/// What the daemon says instead of success.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub status: StatusCode,
    pub message: String,
}

/// A call failed on the way, or was refused.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Broken(#[from] Error),
}

impl Failure {
    pub fn is(&self, status: StatusCode) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.status == status)
    }

    /// What it means when the call was about this object.
    pub fn on(self, kind: &'static str, id: &str) -> Error {
        match self {
            Self::Broken(error) => error,
            Self::Refused(Refusal { status, message }) => match status {
                StatusCode::NOT_FOUND => Error::NotFound { kind, id: id.to_owned() },
                StatusCode::CONFLICT => Error::FailedPrecondition(message),
                StatusCode::BAD_REQUEST => Error::InvalidArgument(message),
                _ => Error::Internal { context: message, source: None },
            },
        }
    }
}

type Answer = Result<Response<Incoming>, Failure>;

impl Api {
    /// Asks the daemon which version of the API it speaks; returns what it says of itself, too.
    pub async fn connect(socket: &Path) -> Result<(Self, Value), Error> {
        let mut api = Self { socket: socket.to_owned(), prefix: String::new(), version: (0, 0) };
        let about = api.get("/version").await.map_err(|failure| failure.on("daemon", "docker"))?;
        let text = about["ApiVersion"].as_str().unwrap_or_default();
        let version = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let Some(version) = version else {
            return Err(Error::internal("ask Docker for its version", format!("unexpected API version {text:?}")));
        };
        let (major, minor): (u32, u32) = std::cmp::min(version, NEWEST);
        (api.prefix, api.version) = (format!("/v{major}.{minor}"), (major, minor));
        Ok((api, about))
    }

    async fn send(&self, request: http::request::Builder, path: &str, body: Body) -> Answer {
        let failed = |error| Error::internal(format!("connect to Docker at {}", self.socket.display()), error);
        let io = UnixStream::connect(&self.socket).await.map_err(failed)?;
        let request = request.uri(format!("{}{path}", self.prefix)).header(header::HOST, "docker").body(body);
        let request = request.map_err(|error| Error::internal("build a request to Docker", error))?;
        let answer = dial::send(io, request).await?;
        let status = answer.status();
        if status.is_client_error() || status.is_server_error() {
            let text = whole(answer).await?;
            let told =
                serde_json::from_slice::<Value>(&text).ok().and_then(|v| v["message"].as_str().map(str::to_owned));
            let message = told.unwrap_or_else(|| String::from_utf8_lossy(&text).trim().to_owned());
            return Err(Refusal { status, message }.into());
        }
        Ok(answer)
    }

    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        parse(self.send(Request::builder(), path, dial::empty()).await?).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        parse(self.begin(path, body, None).await?).await
    }

    pub async fn delete(&self, path: &str) -> Result<Value, Failure> {
        parse(self.send(Request::builder().method(Method::DELETE), path, dial::empty()).await?).await
    }

    /// Posts; the answer is still to come. `header` is one more of the request's.
    pub async fn begin(&self, path: &str, body: &Value, header: Option<(&str, String)>) -> Answer {
        let mut request = Request::builder().method(Method::POST);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let body = json(&mut request, body);
        self.send(request, path, body).await
    }

    /// Posts a stream of bytes.
    pub async fn upload(&self, path: &str, reader: Reader) -> Answer {
        let request = Request::builder().method(Method::POST).header(header::CONTENT_TYPE, "application/x-tar");
        // Hyper wants a body to be shareable between threads; a reader behind a lock is.
        let frames = ReaderStream::new(Shared(parking_lot::Mutex::new(reader))).map_ok(Frame::data);
        self.send(request, path, StreamBody::new(frames).boxed()).await
    }

    /// A stream of bytes from the daemon.
    pub async fn stream(&self, path: &str) -> Result<impl AsyncBufRead + Send + Unpin + use<>, Failure> {
        Ok(reader(self.send(Request::builder(), path, dial::empty()).await?))
    }

    /// Posts, and takes the connection over for raw bytes in both directions.
    pub async fn hijack(&self, path: &str, body: &Value) -> Result<TokioIo<Upgraded>, Failure> {
        let mut request = Request::builder()
            .method(Method::POST)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "tcp");
        let body = json(&mut request, body);
        let answer = self.send(request, path, body).await?;
        let upgraded = hyper::upgrade::on(answer).await;
        Ok(TokioIo::new(upgraded.map_err(|error| Error::internal("take over a connection to Docker", error))?))
    }
}

/// A document as a request's body; `null` is none.
fn json(request: &mut http::request::Builder, document: &Value) -> Body {
    if document.is_null() {
        return dial::empty();
    }
    if let Some(headers) = request.headers_mut() {
        headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    }
    Full::from(document.to_string()).map_err(|never| match never {}).boxed()
}

/// A reader that may be shared between threads, and never is.
struct Shared(parking_lot::Mutex<Reader>);

impl tokio::io::AsyncRead for Shared {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(self.get_mut().0.get_mut()).poll_read(cx, buffer)
    }
}

/// The body of an answer as it comes.
pub fn reader(answer: Response<Incoming>) -> impl AsyncBufRead + Send + Unpin {
    StreamReader::new(answer.into_body().into_data_stream().map_err(std::io::Error::other))
}

async fn whole(answer: Response<Incoming>) -> Result<Bytes, Error> {
    let body = answer.into_body().collect().await;
    Ok(body.map_err(|error| Error::internal("read Docker's answer", error))?.to_bytes())
}

async fn parse(answer: Response<Incoming>) -> Result<Value, Failure> {
    let text = whole(answer).await?;
    if text.is_empty() {
        return Ok(Value::Null);
    }
    Ok(serde_json::from_slice(&text).map_err(|error| Error::internal("read Docker's answer", error))?)
}

/// Text as part of a path or query.
pub fn escape(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
