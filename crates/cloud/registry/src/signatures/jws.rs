//! notation's envelope as a JSON web signature.

use std::collections::BTreeMap;
use std::time::SystemTime;

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::Value;

use super::keys::base64;
use super::notation::{AUTHENTIC_TIME, EXPIRY, SCHEME, Signed};

#[derive(Deserialize)]
struct Envelope {
    payload: String,
    protected: String,
    header: Header,
    signature: String,
}

#[derive(Deserialize)]
struct Header {
    x5c: Vec<String>,
}

/// # Errors
/// When it is malformed.
pub(super) fn open(bytes: &[u8]) -> Result<Signed, String> {
    let envelope: Envelope =
        serde_json::from_slice(bytes).map_err(|error| format!("a signature is malformed: {error}"))?;
    let decoded = |text: &str| base64(text).ok_or_else(|| "a signature is not in base64".to_owned());
    let protected: BTreeMap<String, Value> = serde_json::from_slice(&decoded(&envelope.protected)?)
        .map_err(|error| format!("a signature's header is malformed: {error}"))?;
    let text = |name: &str| protected.get(name).and_then(Value::as_str);
    let moment = |name: &str| match text(name) {
        None => Ok(None),
        Some(text) => {
            text.parse::<Timestamp>().map(|at| Some(SystemTime::from(at))).map_err(|error| format!("{name}: {error}"))
        }
    };
    let chain = envelope.header.x5c.iter().map(|text| decoded(text).map(CertificateDer::from));
    // What is no text is no header that is known.
    let critical = protected.get("crit").and_then(Value::as_array).into_iter().flatten();
    Ok(Signed {
        algorithm: text("alg").unwrap_or_default().to_owned(),
        message: format!("{}.{}", envelope.protected, envelope.payload).into_bytes(),
        signature: decoded(&envelope.signature)?,
        chain: chain.collect::<Result<_, _>>()?,
        critical: critical.map(|name| name.as_str().map_or_else(|| name.to_string(), str::to_owned)).collect(),
        scheme: text(SCHEME).map(str::to_owned),
        expiry: moment(EXPIRY)?,
        authentic_time: moment(AUTHENTIC_TIME)?,
        content_type: text("cty").map(str::to_owned),
        payload: decoded(&envelope.payload)?,
    })
}
