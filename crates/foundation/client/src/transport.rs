//! How requests travel: a trait that HTTPS and the in-process server implement alike.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};

use crate::Error;

/// A response's body, possibly without end (watches, followed logs).
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Error>;

/// Carries one request. The URI is path-absolute; authentication is the transport's own.
#[async_trait::async_trait]
pub trait Transport: Send + Sync + 'static {
    async fn call(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Error>;

    /// As `call`, for a body that is too large to have in memory. Without a way to stream it is read whole.
    async fn upload(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Error> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        self.call(http::Request::from_parts(parts, body)).await
    }
}

/// A body that is already there.
pub fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
