//! Request bodies to trees: by media type, checked against the type they claim to be.

use bytes::{Bytes, BytesMut};
use dhow_api::bounds::{MAX_DEPTH, measure};
use dhow_api::descriptor;
use dhow_api::registry::Kind;
use dhow_api::validation::FieldError;
use dhow_api::{Status, cbor, header, protobuf, strict_json};
use dhow_client::Body;
use http::HeaderMap;
use http_body::Body as _;
use http_body_util::BodyExt;
use serde_json::Value;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

use crate::connections::Limits;
use crate::encode::{CBOR, JSON, MEDIA_TYPES, PROTOBUF, YAML};
use crate::info::ResourceTarget;
use crate::options::FieldValidation;
use crate::pipeline::{Authorized, Request};

/// Largest body of a request, as upstream's: an etcd value and some room.
const MAX_BODY: usize = 3 << 20;
/// What is read of a body that nobody wants, so that a client who is still sending it gets to the answer.
const UNWANTED: usize = 256 << 10;
const UNWANTED_TIME: Duration = Duration::from_millis(500);
/// How much of a body that cannot be read is shown.
const SHOWN: usize = 30;

/// Reads a body whole, as long as it keeps coming.
pub async fn read(mut body: Body, limits: &Limits) -> Result<Bytes, Status> {
    let too_large = || Status::too_large(MAX_BODY);
    // What announces itself as too large is not read at all.
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    let end = Instant::now() + limits.body;
    let (mut first, mut all) = (Bytes::new(), BytesMut::new());
    loop {
        let next = timeout_at(end.min(Instant::now() + limits.pause), body.frame()).await;
        let late = || Status::timeout("request did not complete within the allotted timeout", None);
        let Some(frame) = next.map_err(|_| late())? else { break };
        let frame =
            frame.map_err(|error| Status::bad_request(format!("read the body: {}", dhow_base::chain(&error))))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.len() + data.len() > MAX_BODY {
            return Err(too_large());
        }
        // Most come in one piece, which is not copied.
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        all.extend_from_slice(&std::mem::take(&mut first));
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// Lets a client finish sending what is not wanted, within reason.
pub async fn discard(mut body: Body) {
    let mut left = UNWANTED;
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    // Late or not, it was not wanted.
    let _ = timeout(UNWANTED_TIME, read).await;
}

/// The media type without parameters; empty if there is none.
pub fn media_type(headers: &HeaderMap) -> &str {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map_or("", |value| value.split(';').next().unwrap_or_default().trim())
}

/// A body and the fields that it gives twice.
type Parsed = (Value, Vec<String>);

/// Reads JSON (also when no type is named), YAML, protobuf or CBOR.
fn parse(headers: &HeaderMap, body: &[u8], expected: &str) -> Result<Parsed, Status> {
    let unrecognized = |error: &dyn std::fmt::Display| {
        let shown = summary(body);
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {expected}): {error} ({shown})"
        ))
    };
    // Readers of these forms have bounds of their own, in levels of their own.
    let bounded = |value: Value| match measure(&value).depth {
        ..=MAX_DEPTH => Ok((value, Vec::new())),
        _ => Err(unrecognized(&format!("exceeded max depth of {MAX_DEPTH}"))),
    };
    match media_type(headers) {
        "" | JSON => strict_json::parse(body)
            .map_err(|error| unrecognized(&format!("couldn't get version/kind; json parse error: {error}"))),
        YAML => {
            let text = std::str::from_utf8(body).map_err(|error| unrecognized(&error))?;
            let value =
                yaml(text).map_err(|error| unrecognized(&format!("yaml: {}", error.to_string().replace('\n', " "))))?;
            bounded(value)
        }
        CBOR => Ok((cbor::decode(body).map_err(|error| unrecognized(&error))?, Vec::new())),
        PROTOBUF => match protobuf::decode(body) {
            Ok(value) => bounded(value),
            Err(error @ protobuf::Error::Object { .. }) => Err(Status::bad_request(error.to_string())),
            Err(error) => Err(unrecognized(&error)),
        },
        _ => Err(Status::unsupported_media_type(&MEDIA_TYPES)),
    }
}

fn yaml(text: &str) -> Result<Value, serde_saphyr::Error> {
    let options = serde_saphyr::options! { budget: serde_saphyr::budget! { max_depth: MAX_DEPTH } };
    serde_saphyr::from_str_with_options(text, options)
}

/// The beginning of a body: text if it looks like JSON, else hexadecimal.
fn summary(body: &[u8]) -> String {
    let cut = &body[..body.len().min(SHOWN)];
    let more = if body.len() > SHOWN { " ..." } else { "" };
    match cut.first() {
        None => "<empty>".into(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(cut)),
        Some(_) => format!("{}{more}", cut.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    }
}

/// Settles a tree as upstream's typed decoding would, and applies the request's field validation.
fn settle(
    request: &Request<Authorized>,
    wanted: &str,
    parsed: Parsed,
    settle: impl FnOnce(&mut Value) -> Result<Vec<String>, descriptor::TypeError>,
) -> Result<Value, Status> {
    let (mut value, duplicates) = parsed;
    let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let refuse = |error: &dyn std::fmt::Display| {
        if kind.is_empty() {
            let shown = summary(&request.body);
            let why = format!("the object provided is unrecognized (must be of type {wanted}): {error} ({shown})");
            return Status::bad_request(why);
        }
        let version = header::split_api_version(&api_version).1;
        Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {wanted}: {error}"))
    };
    let unknown = settle(&mut value).map_err(|error| refuse(&error))?;
    complaints(request, duplicates, unknown, |all| refuse(&format!("strict decoding error: {all}")))?;
    Ok(value)
}

/// Unknown and duplicate fields become nothing, warnings, or an error.
fn complaints(
    request: &Request<Authorized>,
    duplicates: Vec<String>,
    unknown: Vec<String>,
    refuse: impl Fn(&str) -> Status,
) -> Result<(), Status> {
    let duplicates = duplicates.into_iter().map(|path| format!("duplicate field {path:?}"));
    let all: Vec<String> =
        duplicates.chain(unknown.into_iter().map(|path| format!("unknown field {path:?}"))).collect();
    match FieldValidation::of(request) {
        _ if all.is_empty() => Ok(()),
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Warn => {
            all.into_iter().for_each(|text| request.warnings.add(text));
            Ok(())
        }
        FieldValidation::Strict => Err(refuse(&all.join(", "))),
    }
}

/// Settles what a patch made of an object. `shown` stands for the patch in errors.
pub fn settle_patched(
    request: &Request<Authorized>,
    value: &mut Value,
    duplicates: Vec<String>,
    shown: &str,
) -> Result<(), Status> {
    let refuse = |why: &str| Status::invalid("", "", "", &[FieldError::invalid("patch", shown, why)]);
    let kind = &request.target.kind;
    let unknown = match (kind.message(), &kind.custom) {
        (Some(message), _) => descriptor::settle(message, value),
        (None, Some(served)) => served.settle(value),
        (None, None) => return Ok(()),
    };
    let unknown = unknown.map_err(|error| refuse(&error.to_string()))?;
    complaints(request, duplicates, unknown, |all| refuse(&format!("strict decoding error: {all}")))
}

/// Reads the body of a subresource that speaks a type of its own.
pub fn decode(request: &Request<Authorized>) -> Result<Value, Status> {
    let expected = request.target.subresource.and_then(|subresource| subresource.response_kind());
    let Some((group, version, kind)) = expected else {
        return Ok(parse(&request.headers, &request.body, request.target.kind.kind)?.0);
    };
    let parsed = parse(&request.headers, &request.body, kind)?;
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    // A claim to be another version of the same kind is believed, as long as there is such a version.
    let claimed = parsed.0["apiVersion"].as_str().unwrap_or_default();
    let message = descriptor::message_of(if claimed.is_empty() { &api_version } else { claimed }, kind)
        .or_else(|| descriptor::message_of(&api_version, kind));
    match message {
        Some(message) if parsed.0.is_object() => {
            settle(request, message.short(), parsed, |value| descriptor::settle(message, value))
        }
        _ => Ok(parsed.0),
    }
}

/// `DeleteOptions`.
pub fn options(request: &Request<Authorized>) -> Result<Value, Status> {
    let parsed = parse(&request.headers, &request.body, "DeleteOptions")?;
    // Of whichever group version it says it is.
    let kind = parsed.0["kind"].as_str().unwrap_or_default();
    if !matches!(kind, "" | "DeleteOptions") {
        let version = parsed.0["apiVersion"].as_str().unwrap_or_default();
        return Err(mismatch(version, kind, "v1", "DeleteOptions"));
    }
    match descriptor::message_of("v1", "DeleteOptions") {
        Some(message) => settle(request, message.short(), parsed, |value| descriptor::settle(message, value)),
        None => Ok(parsed.0),
    }
}

/// Reads the configuration of a server-side apply. Fields it does not know are the apply's to report.
pub fn apply(request: &Request<Authorized>) -> Result<Value, Status> {
    let mut config = configuration(request)?;
    check_type(&request.target.kind, &config)?;
    settle_names(&request.target, &mut config)?;
    Ok(config)
}

/// Reads the configuration of a workload's Scale.
pub fn apply_scale(request: &Request<Authorized>) -> Result<Value, Status> {
    let config = configuration(request)?;
    let (version, kind) =
        (config["apiVersion"].as_str().unwrap_or_default(), config["kind"].as_str().unwrap_or_default());
    if (version, kind) != ("autoscaling/v1", "Scale") {
        return Err(mismatch(version, kind, "autoscaling/v1", "Scale"));
    }
    Ok(config)
}

/// Reads JSON or YAML that says what it is of.
fn configuration(request: &Request<Authorized>) -> Result<Value, Status> {
    let text = std::str::from_utf8(&request.body).map_err(|error| Status::bad_request(error.to_string()))?;
    let mut config: Value = match strict_json::parse(&request.body) {
        Ok((value, duplicates)) => {
            complaints(request, duplicates, Vec::new(), |all| {
                Status::bad_request(format!("error strict decoding YAML: {all}"))
            })?;
            value
        }
        Err(_) => yaml(text).map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))?,
    };
    if !config.is_object() {
        return Err(Status::bad_request("error decoding YAML: the configuration is not an object"));
    }
    for field in ["apiVersion", "kind"] {
        if config[field].as_str().unwrap_or_default().is_empty() {
            return Err(Status::bad_request(format!("error decoding YAML: Object '{field}' is missing")));
        }
    }
    without_nulls(&mut config);
    Ok(config)
}

/// A null in a configuration says nothing.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// Reads an object for a target: fills in what the path says and refuses what contradicts it.
pub fn object(request: &Request<Authorized>) -> Result<Value, Status> {
    let target = &request.target;
    let parsed = parse(&request.headers, &request.body, target.kind.kind)?;
    if !parsed.0.is_object() {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: \
             the document is not an object ({})",
            target.kind.kind,
            summary(&request.body)
        )));
    }
    check_type(&target.kind, &parsed.0)?;
    let mut object = match (target.kind.message(), &target.kind.custom) {
        (Some(message), _) => settle(request, message.short(), parsed, |value| descriptor::settle(message, value))?,
        (None, Some(served)) => settle(request, target.kind.kind, parsed, |value| served.settle(value))?,
        (None, None) => parsed.0,
    };
    object["apiVersion"] = target.kind.api_version().into();
    object["kind"] = target.kind.kind.into();
    settle_names(target, &mut object)?;
    Ok(object)
}

fn mismatch(version: &str, kind: &str, expected_version: &str, expected: &str) -> Status {
    Status::bad_request(format!(
        "the object provided ({version}, Kind={kind}) does not match the expected type ({expected_version}, Kind={expected})"
    ))
}

/// The type header must be the path's, or absent.
pub fn check_type(kind: &Kind, object: &Value) -> Result<(), Status> {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let (version, name) = (text("apiVersion"), text("kind"));
    let expected = kind.api_version();
    if (!version.is_empty() && version != expected) || (!name.is_empty() && name != kind.kind) {
        return Err(mismatch(version, name, &expected, kind.kind));
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
