//! HTTP/1.1 requests on a connection of their own, which may become something else.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::{UPGRADE, VERSION};
use crate::Error;

/// A request's body.
pub type Body = BoxBody<Bytes, std::io::Error>;

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// Sends one request; the connection lives as long as its answer, or as what it is upgraded to.
pub async fn send<T>(io: T, request: Request<Body>) -> Result<Response<Incoming>, Error>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = |error: hyper::Error| Error::internal("ask over HTTP", error);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "an HTTP connection broke");
        }
    });
    sender.send_request(request).await.map_err(failed)
}

/// Opens a streaming URL that a runtime gave out, to speak `protocol` on SPDY streams.
pub async fn open(url: &str, protocol: &'static str) -> Result<TokioIo<Upgraded>, Error> {
    let bad = |why: &str| Error::internal("open a stream", format!("{why}: {url:?}"));
    let uri: Uri = url.parse().map_err(|_| bad("the runtime gave no URL"))?;
    if uri.scheme_str() != Some("http") {
        return Err(bad("only plain HTTP is spoken with a stream server on this machine"));
    }
    let authority = uri.authority().ok_or_else(|| bad("the URL has no host"))?.clone();
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let io =
        TcpStream::connect(&address).await.map_err(|error| Error::internal(format!("connect to {address}"), error))?;
    let _ = io.set_nodelay(true);
    let request = Request::builder()
        .method(Method::POST)
        .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, authority.as_str())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, UPGRADE)
        .header(VERSION, HeaderValue::from_static(protocol))
        .body(empty())
        .map_err(|error| Error::internal("build a request", error))?;
    let answer = send(io, request).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = answer.status();
        let text = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(bad(&format!("{status}: {}", String::from_utf8_lossy(&text).trim())));
    }
    let upgraded =
        hyper::upgrade::on(answer).await.map_err(|error| Error::internal("take over a connection", error))?;
    Ok(TokioIo::new(upgraded))
}
