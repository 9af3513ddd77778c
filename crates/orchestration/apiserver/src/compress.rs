//! gzip for large answers, when the client takes it.

use std::io::Write;

use bytes::Bytes;
use dhow_client::{Body, full};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Body as _;
use http_body_util::BodyExt;

/// Smaller answers are sent as they are, as upstream does.
const WORTHWHILE: u64 = 128 << 10;

/// Whether the client takes gzip.
pub fn accepted(headers: &HeaderMap) -> bool {
    let offers = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    offers.flat_map(|value| value.split(',')).any(|offer| {
        let mut parts = offer.split(';').map(str::trim);
        parts.next() == Some("gzip") && !parts.any(|part| part == "q=0")
    })
}

/// Compresses an answer whose size is known and large. Streams stay as they are.
pub async fn compress(response: Response<Body>) -> Response<Body> {
    let large = response.body().size_hint().exact().is_some_and(|size| size >= WORTHWHILE);
    if !large || response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(collected) = body.collect().await else {
        return Response::from_parts(parts, full(Bytes::new()));
    };
    let plain = collected.to_bytes();
    let input = plain.clone();
    // Megabytes of it would hold up the other requests of this thread.
    let packed = tokio::task::spawn_blocking(move || pack(&input)).await;
    let Ok(Ok(packed)) = packed else { return Response::from_parts(parts, full(plain)) };
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    Response::from_parts(parts, full(packed.into()))
}

fn pack(input: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(input.len() / 4), Compression::fast());
    encoder.write_all(input)?;
    encoder.finish()
}
