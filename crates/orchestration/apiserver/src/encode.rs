//! Answers: JSON, Table or metadata only, as the client accepts.

use bytes::Bytes;
use dhow_api::registry::Kind;
use dhow_api::{Status, table};
use dhow_client::{Body, full};
use http::{HeaderMap, Response, header};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::read::Page;

/// What the client wants back.
#[derive(Debug, Clone, Default)]
pub struct Accept {
    pub table: bool,
    /// `PartialObjectMetadata` instead of whole objects.
    pub metadata: bool,
    /// The header as it came, for documents with forms of their own.
    pub raw: String,
}

impl Accept {
    pub fn of(headers: &HeaderMap) -> Self {
        let raw = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        // The first form we have wins; plain JSON always is one.
        for range in raw.split(',') {
            let compact: String = range.chars().filter(|c| !c.is_whitespace()).collect();
            let json = compact.starts_with("application/json");
            let first = compact.contains("v=v1;") || compact.ends_with("v=v1");
            if json && first && compact.contains("as=Table;") | compact.ends_with("as=Table") {
                return Self { table: true, metadata: false, raw };
            }
            if json && compact.contains("as=PartialObjectMetadata") {
                return Self { table: false, metadata: true, raw };
            }
            if compact == "application/json" || compact.starts_with("*/*") {
                break;
            }
        }
        Self { table: false, metadata: false, raw }
    }
}

pub fn json(code: u16, bytes: impl Into<Bytes>) -> Result<Response<Body>, Status> {
    build(code, "application/json", bytes.into())
}

pub fn build(code: u16, media_type: &str, bytes: Bytes) -> Result<Response<Body>, Status> {
    Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, media_type)
        .header(header::CACHE_CONTROL, "no-cache, private")
        .body(full(bytes))
        .map_err(|error| Status::internal(format!("build the answer: {error}")))
}

/// An error as the answer. Cannot fail itself.
pub fn status(status: &Status) -> Response<Body> {
    let mut response = Response::new(full(status.to_bytes().into()));
    *response.status_mut() = http::StatusCode::from_u16(status.code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    if let Some(seconds) = status.details.as_ref().and_then(|details| details.retry_after_seconds) {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// One object.
pub fn object(kind: &Kind, bytes: &Bytes, accept: &Accept, code: u16) -> Result<Response<Body>, Status> {
    if accept.table {
        let version = tree(bytes)?;
        let revision = dhow_api::meta::resource_version(&version).parse().unwrap_or(0);
        return json(code, table_of(kind, std::slice::from_ref(bytes), revision)?);
    }
    if accept.metadata {
        return json(code, metadata_only(bytes)?.to_string());
    }
    json(code, bytes.clone())
}

/// A list: the items' bytes joined, not encoded again.
pub fn list(kind: &Kind, page: &Page, accept: &Accept) -> Result<Response<Body>, Status> {
    if accept.table {
        let mut table: Value = tree(&table_of(kind, &page.items, page.revision)?)?;
        table["metadata"] = list_metadata(page);
        return json(200, table.to_string());
    }
    let items: Vec<Bytes> = match accept.metadata {
        true => {
            page.items.iter().map(|item| Ok(metadata_only(item)?.to_string().into())).collect::<Result<_, Status>>()?
        }
        false => page.items.clone(),
    };
    let (api_version, list_kind) = match accept.metadata {
        true => ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList"),
        false => (kind.api_version(), kind.list_kind),
    };
    let size: usize = items.iter().map(|item| item.len() + 1).sum();
    let mut bytes = Vec::with_capacity(size + 160);
    bytes
        .extend_from_slice(format!("{{\"kind\":{list_kind:?},\"apiVersion\":{api_version:?},\"metadata\":").as_bytes());
    bytes.extend_from_slice(list_metadata(page).to_string().as_bytes());
    bytes.extend_from_slice(b",\"items\":[");
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            bytes.push(b',');
        }
        bytes.extend_from_slice(item);
    }
    bytes.extend_from_slice(b"]}");
    json(200, bytes)
}

fn list_metadata(page: &Page) -> Value {
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(token) = &page.continue_token {
        metadata["continue"] = json!(token);
        metadata["remainingItemCount"] = json!(page.remaining);
    }
    metadata
}

/// A `metav1.Table` of these objects.
pub fn table_of(kind: &Kind, items: &[Bytes], revision: u64) -> Result<Vec<u8>, Status> {
    let objects = items.iter().map(|item| tree(item)).collect::<Result<Vec<_>, _>>()?;
    let table = table::render(kind, &objects, &revision.to_string(), Timestamp::now());
    serde_json::to_vec(&table).map_err(|error| Status::internal(error.to_string()))
}

fn metadata_only(bytes: &[u8]) -> Result<Value, Status> {
    let object = tree(bytes)?;
    Ok(json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"],
    }))
}

fn tree(bytes: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(bytes).map_err(|error| Status::internal(format!("decode an object: {error}")))
}

/// A body without end.
pub fn stream(body: Body) -> Result<Response<Body>, Status> {
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CACHE_CONTROL, "no-cache, private")
        .body(body)
        .map_err(|error| Status::internal(format!("build the answer: {error}")))
}
