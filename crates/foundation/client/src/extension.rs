//! What a part of the cloud answers beside the API's objects: streams of a kind of its own, such as a log.

use http::{Request, Response};

use crate::Body;

/// Answers paths below `/apis/`. The API server proves, queues and authorises the caller first, by the subresource in the
/// path, as it does for extension servers.
#[async_trait::async_trait]
pub trait Extension: Send + Sync + 'static {
    /// Whether this path is one of its own.
    fn claims(&self, path: &str) -> bool;

    /// The answer; its body and the request's stream.
    async fn answer(&self, request: Request<Body>) -> Response<Body>;
}
