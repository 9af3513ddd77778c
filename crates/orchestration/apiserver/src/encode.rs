//! Answers: whole objects, Table or metadata only, as JSON, YAML, protobuf or CBOR, as the client accepts.

use std::sync::Arc;

use bytes::Bytes;
use dhow_api::registry::Kind;
use dhow_api::{Status, cbor, descriptor, protobuf, table};
use dhow_client::{Body, full};
use http::{HeaderMap, HeaderValue, Response, header};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::Stored;
use crate::read::Page;

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// Watches in CBOR are one document after the other.
const CBOR_SEQUENCE: &str = "application/cbor-seq";
/// Media types of objects, read and written.
pub const CBOR: &str = "application/cbor";
pub const MEDIA_TYPES: [&str; 4] = [JSON, YAML, PROTOBUF, CBOR];

/// How documents are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wire {
    #[default]
    Json,
    Yaml,
    Protobuf,
    Cbor,
}

impl Wire {
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Yaml => YAML,
            Self::Protobuf => PROTOBUF,
            Self::Cbor => CBOR,
        }
    }
}

/// How much of an object is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Shape {
    #[default]
    Whole,
    Table,
    /// `PartialObjectMetadata`.
    Metadata,
}

/// What the client wants back.
#[derive(Debug, Clone, Default)]
pub struct Accept {
    pub wire: Wire,
    pub shape: Shape,
    /// What the rows of a Table carry beside their cells.
    pub include: table::Include,
    /// Whether the client takes anything of what we have.
    pub satisfied: bool,
    /// The header as it came, for documents with forms of their own.
    pub raw: String,
}

impl Accept {
    pub fn of(headers: &HeaderMap) -> Self {
        let raw = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        // The first form we have wins.
        let found = raw.split(',').find_map(range);
        let satisfied = found.is_some() || raw.trim().is_empty();
        let (wire, shape) = found.unwrap_or_default();
        Self { wire, shape, include: table::Include::default(), satisfied, raw }
    }

    /// With what the request's `includeObject` says.
    pub fn including(mut self, include: Option<&str>) -> Result<Self, Status> {
        self.include = match include {
            None | Some("Metadata") => table::Include::Metadata,
            Some("Object") => table::Include::Object,
            Some("None") => table::Include::Nothing,
            Some(other) => {
                return Err(Status::bad_request(format!("unrecognized includeObject value: {other:?}")));
            }
        };
        Ok(self)
    }

    /// Refuses a client that takes nothing we can write.
    pub fn check(&self) -> Result<(), Status> {
        if self.satisfied { Ok(()) } else { Err(Status::not_acceptable(&MEDIA_TYPES)) }
    }
}

/// One media range of an Accept header, if it names a form of ours.
fn range(text: &str) -> Option<(Wire, Shape)> {
    let mut parts = text.split(';').map(str::trim);
    let wire = match parts.next()? {
        JSON | "*/*" | "application/*" => Wire::Json,
        YAML => Wire::Yaml,
        PROTOBUF => Wire::Protobuf,
        CBOR | CBOR_SEQUENCE => Wire::Cbor,
        _ => return None,
    };
    let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
    let get = |name: &str| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    if get("as").is_some() && (get("v") != Some("v1") || get("g").is_some_and(|group| group != "meta.k8s.io")) {
        return None;
    }
    match get("as") {
        None => Some((wire, Shape::Whole)),
        // Cells are of any type, which protobuf cannot say.
        Some("Table") if wire == Wire::Protobuf => None,
        Some("Table") => Some((wire, Shape::Table)),
        Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Some((wire, Shape::Metadata)),
        Some(_) => None,
    }
}

pub fn json(code: u16, bytes: impl Into<Bytes>) -> Result<Response<Body>, Status> {
    build(code, JSON, bytes.into())
}

pub fn build(code: u16, media_type: &str, bytes: Bytes) -> Result<Response<Body>, Status> {
    Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, media_type)
        .header(header::CACHE_CONTROL, "no-cache, private")
        .body(full(bytes))
        .map_err(|error| Status::internal(format!("build the answer: {error}")))
}

/// A tree with a type header.
pub fn value(code: u16, value: &Value, accept: &Accept) -> Result<Response<Body>, Status> {
    let (wire, bytes) = written(value, accept.wire)?;
    build(code, wire.media_type(), bytes)
}

/// What protobuf has no message for is written as JSON.
fn written(value: &Value, wire: Wire) -> Result<(Wire, Bytes), Status> {
    match wire {
        Wire::Json => Ok((wire, value.to_string().into())),
        Wire::Yaml => {
            let text = serde_saphyr::to_string(value).map_err(|error| Status::internal(error.to_string()))?;
            Ok((wire, text.into()))
        }
        Wire::Cbor => Ok((wire, cbor::encode(value).into())),
        Wire::Protobuf => match protobuf::document(value) {
            Ok(bytes) => Ok((wire, bytes.into())),
            Err(protobuf::Error::UnknownKind { .. }) => written(value, Wire::Json),
            Err(error) => Err(Status::internal(format!("encode an object: {error}"))),
        },
    }
}

/// An error as the answer. Cannot fail itself.
pub fn status(status: &Status, accept: &Accept) -> Response<Body> {
    let document = status.to_value();
    let (wire, bytes) = written(&document, accept.wire).unwrap_or_else(|_| (Wire::Json, document.to_string().into()));
    let mut response = Response::new(full(bytes));
    *response.status_mut() = http::StatusCode::from_u16(status.code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(wire.media_type()));
    if let Some(seconds) = status.details.as_ref().and_then(|details| details.retry_after_seconds) {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// One object.
pub fn object(kind: &Kind, stored: &Stored, accept: &Accept, code: u16) -> Result<Response<Body>, Status> {
    let (wire, bytes) = document(kind, stored, accept)?;
    build(code, wire.media_type(), bytes)
}

/// One object as a document of its own.
pub fn document(kind: &Kind, stored: &Stored, accept: &Accept) -> Result<(Wire, Bytes), Status> {
    match (accept.shape, accept.wire) {
        (Shape::Whole, Wire::Json) => Ok((Wire::Json, stored.json())),
        (Shape::Whole, Wire::Protobuf) => match stored.protobuf(kind)? {
            Some(raw) => Ok((Wire::Protobuf, protobuf::envelope(&kind.api_version(), kind.kind, &raw).into())),
            None => Ok((Wire::Json, stored.json())),
        },
        (Shape::Whole, wire @ (Wire::Yaml | Wire::Cbor)) => written(&stored.value()?, wire),
        (Shape::Table, wire) => {
            written(&table(kind, &[stored.value()?], accept.include, &stored.revision.to_string()), wire)
        }
        (Shape::Metadata, wire) => written(&metadata_only(stored)?, wire),
    }
}

/// A list: the items' bytes joined, not encoded again.
pub fn list(kind: &Kind, page: &Page, accept: &Accept) -> Result<Response<Body>, Status> {
    match (accept.shape, accept.wire) {
        (Shape::Table, wire) => {
            let objects = page.items.iter().map(|item| item.value()).collect::<Result<Vec<_>, _>>()?;
            let mut document = table(kind, &objects, accept.include, &page.revision.to_string());
            document["metadata"] = list_metadata(page);
            let (wire, bytes) = written(&document, wire)?;
            build(200, wire.media_type(), bytes)
        }
        (Shape::Metadata, Wire::Protobuf) => {
            let items = page.items.iter().map(|item| metadata_only(item)).collect::<Result<Vec<_>, _>>()?;
            let document = json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": list_metadata(page),
                "items": items,
            });
            value(200, &document, accept)
        }
        (Shape::Whole, Wire::Protobuf) if descriptor::message(&format!("{}List", kind.definition)).is_some() => {
            protobuf_list(kind, page)
        }
        (shape, Wire::Yaml | Wire::Cbor) => {
            let bytes = json_list(kind, page, shape)?;
            let tree: Value =
                serde_json::from_slice(&bytes).map_err(|error| Status::internal(format!("decode a list: {error}")))?;
            value(200, &tree, accept)
        }
        (shape, _) => json(200, json_list(kind, page, shape)?),
    }
}

fn json_list(kind: &Kind, page: &Page, shape: Shape) -> Result<Vec<u8>, Status> {
    let metadata = shape == Shape::Metadata;
    let (api_version, list_kind) = match metadata {
        true => ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList"),
        false => (kind.api_version(), kind.list_kind),
    };
    let size: usize = page.items.iter().map(|item| item.size() + 1).sum();
    let mut bytes = Vec::with_capacity(if metadata { 0 } else { size + 160 });
    bytes
        .extend_from_slice(format!("{{\"kind\":{list_kind:?},\"apiVersion\":{api_version:?},\"metadata\":").as_bytes());
    bytes.extend_from_slice(list_metadata(page).to_string().as_bytes());
    bytes.extend_from_slice(b",\"items\":[");
    for (index, item) in page.items.iter().enumerate() {
        if index > 0 {
            bytes.push(b',');
        }
        match metadata {
            true => bytes.extend_from_slice(metadata_only(item)?.to_string().as_bytes()),
            false => item.write_json(&mut bytes),
        }
    }
    bytes.extend_from_slice(b"]}");
    Ok(bytes)
}

fn protobuf_list(kind: &Kind, page: &Page) -> Result<Response<Body>, Status> {
    let Some(message) = descriptor::message(&format!("{}List", kind.definition)) else {
        return Err(Status::not_acceptable(&[JSON, YAML]));
    };
    let items = page
        .items
        .iter()
        .map(|item| Ok(item.protobuf(kind)?.unwrap_or_default()))
        .collect::<Result<Vec<_>, Status>>()?;
    let list = protobuf::list(message, &list_metadata(page), items.iter().map(AsRef::as_ref))
        .map_err(|error| Status::internal(format!("encode a list: {error}")))?;
    build(200, PROTOBUF, protobuf::envelope(&kind.api_version(), kind.list_kind, &list).into())
}

fn list_metadata(page: &Page) -> Value {
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(token) = &page.continue_token {
        metadata["continue"] = json!(token);
        if let Some(remaining) = page.remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
    }
    metadata
}

/// A `metav1.Table` of these objects.
fn table(kind: &Kind, objects: &[Value], include: table::Include, revision: &str) -> Value {
    table::render(kind, objects, include, revision, Timestamp::now())
}

fn metadata_only(stored: &Stored) -> Result<Value, Status> {
    let mut object = stored.value()?;
    Ok(json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"].take(),
    }))
}

/// One frame of a watch, in the client's form.
pub fn watch_frame(kind: &Kind, event: &str, stored: &Stored, accept: &Accept) -> Result<Bytes, Status> {
    let (wire, document) = document(kind, stored, &streamed(accept))?;
    Ok(frame(wire, event, &document))
}

/// One frame around any tree: a bookmark or an error.
pub fn value_frame(event: &str, tree: &Value, accept: &Accept) -> Result<Bytes, Status> {
    let (wire, document) = written(tree, streamed(accept).wire)?;
    Ok(frame(wire, event, &document))
}

pub fn frame(wire: Wire, event: &str, document: &[u8]) -> Bytes {
    if wire == Wire::Protobuf {
        return protobuf::frame(event, document).into();
    }
    if wire == Wire::Cbor {
        return cbor::event(event, document).into();
    }
    let mut line = Vec::with_capacity(document.len() + 32);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(event.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(document);
    line.extend_from_slice(b"}\n");
    line.into()
}

/// YAML has no frames: such a watcher gets JSON.
fn streamed(accept: &Accept) -> Accept {
    let wire = if accept.wire == Wire::Yaml { Wire::Json } else { accept.wire };
    Accept { wire, shape: accept.shape, include: accept.include, satisfied: accept.satisfied, raw: String::new() }
}

/// A body without end.
pub fn stream(body: Body, accept: &Accept) -> Result<Response<Body>, Status> {
    let media_type = match accept.wire {
        Wire::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        Wire::Cbor => CBOR_SEQUENCE,
        _ => JSON,
    };
    Response::builder()
        .header(header::CONTENT_TYPE, media_type)
        .header(header::CACHE_CONTROL, "no-cache, private")
        .body(body)
        .map_err(|error| Status::internal(format!("build the answer: {error}")))
}

/// What the client should know although its request succeeded.
#[derive(Debug, Clone, Default)]
pub struct Warnings(Arc<parking_lot::Mutex<Vec<String>>>);

impl Warnings {
    pub fn add(&self, text: impl Into<String>) {
        let text = text.into();
        let mut texts = self.0.lock();
        // Told once, also when the write was tried again.
        if !texts.contains(&text) {
            texts.push(text);
        }
    }

    /// Puts them into the answer's headers (RFC 7234, 5.5).
    pub fn write(&self, response: &mut Response<Body>) {
        for text in self.0.lock().iter() {
            let quoted = text.replace('\\', "\\\\").replace('"', "\\\"").replace(char::is_control, " ");
            if let Ok(header) = HeaderValue::try_from(format!("299 - \"{quoted}\"")) {
                response.headers_mut().append(header::WARNING, header);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &'static str) -> Accept {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(text));
        Accept::of(&headers)
    }

    #[test]
    fn the_first_form_we_have_wins() {
        let table = accept(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
        );
        assert_eq!((table.wire, table.shape), (Wire::Json, Shape::Table));
        let proto = accept("application/vnd.kubernetes.protobuf,application/json");
        assert_eq!((proto.wire, proto.shape), (Wire::Protobuf, Shape::Whole));
        let metadata = accept("application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
        assert_eq!((metadata.wire, metadata.shape), (Wire::Protobuf, Shape::Metadata));
        assert!(accept("text/html, */*").satisfied);
        assert!(!accept("text/html").satisfied);
    }
}
