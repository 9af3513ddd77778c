//! Request bodies to trees, by media type.

use dhow_api::Status;
use dhow_api::registry::Kind;
use http::HeaderMap;
use serde_json::Value;

use crate::info::ResourceTarget;

/// Media types of objects that can be read.
const ACCEPTED: [&str; 2] = ["application/json", "application/yaml"];

/// The media type without parameters; empty if there is none.
pub fn media_type(headers: &HeaderMap) -> &str {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map_or("", |value| value.split(';').next().unwrap_or_default().trim())
}

/// Reads JSON (also when no type is named) or YAML.
pub fn decode(headers: &HeaderMap, body: &[u8]) -> Result<Value, Status> {
    match media_type(headers) {
        "" | "application/json" => serde_json::from_slice(body)
            .map_err(|error| Status::bad_request(format!("couldn't get version/kind; json parse error: {error}"))),
        "application/yaml" => {
            let text = std::str::from_utf8(body).map_err(|error| Status::bad_request(error.to_string()))?;
            serde_saphyr::from_str(text).map_err(|error| Status::bad_request(format!("yaml parse error: {error}")))
        }
        other => Err(Status::unsupported_media_type(other, &ACCEPTED)),
    }
}

/// Reads an object for a target: fills in what the path says and refuses what contradicts it.
pub fn object(target: &ResourceTarget, headers: &HeaderMap, body: &[u8]) -> Result<Value, Status> {
    let mut object = decode(headers, body)?;
    if !object.is_object() {
        return Err(Status::bad_request("the body of the request is not an object"));
    }
    check_type(target.kind, &object)?;
    object["apiVersion"] = target.kind.api_version().into();
    object["kind"] = target.kind.kind.into();
    settle_names(target, &mut object)?;
    Ok(object)
}

/// The type header must be the path's, or absent.
pub fn check_type(kind: &Kind, object: &Value) -> Result<(), Status> {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let (version, name) = (text("apiVersion"), text("kind"));
    let expected = kind.api_version();
    if (!version.is_empty() && version != expected) || (!name.is_empty() && name != kind.kind) {
        return Err(Status::bad_request(format!(
            "the object provided ({version}, Kind={name}) does not match the expected type ({expected}, Kind={})",
            kind.kind
        )));
    }
    Ok(())
}

/// Namespace and name of path and object agree afterwards.
fn settle_names(target: &ResourceTarget, object: &mut Value) -> Result<(), Status> {
    let metadata = dhow_api::meta::metadata_mut(object);
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (name, namespace) = (text("name"), text("namespace"));
    if let Some(wanted) = &target.name {
        if !name.is_empty() && name != *wanted {
            return Err(Status::name_mismatch(&name, wanted));
        }
        metadata.insert("name".into(), wanted.as_str().into());
    }
    match &target.namespace {
        Some(wanted) if !namespace.is_empty() && namespace != *wanted => Err(Status::namespace_mismatch()),
        Some(wanted) => {
            metadata.insert("namespace".into(), wanted.as_str().into());
            Ok(())
        }
        None if target.kind.namespaced => Err(Status::bad_request("an empty namespace may not be set during creation")),
        None => {
            metadata.remove("namespace");
            Ok(())
        }
    }
}
