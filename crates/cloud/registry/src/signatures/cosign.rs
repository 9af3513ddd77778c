//! cosign's signatures with keys: a small document that names a digest, or an envelope of a statement about it.

use dhow_image::Digest;
use serde::Deserialize;

use super::keys::{Key, base64};

const TYPE: &str = "cosign container image signature";
/// What is said of an image by signing it; other statements about it are no signatures of it.
const SIGNED: &str = "https://sigstore.dev/cosign/sign/v1";
const STATEMENT: &str = "application/vnd.in-toto+json";

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    docker_manifest_digest: String,
}

fn other(digest: &str) -> String {
    format!("a signature is of {digest}")
}

fn strange() -> String {
    "a signature is by another key".to_owned()
}

/// A document of its own, with its signature beside it.
pub fn simple(payload: &[u8], signature: &[u8], digest: &Digest, keys: &[Key]) -> Result<(), String> {
    if !keys.iter().any(|key| key.verify(payload, signature)) {
        return Err(strange());
    }
    let payload: Payload =
        serde_json::from_slice(payload).map_err(|error| format!("what is signed is malformed: {error}"))?;
    if payload.critical.kind != TYPE {
        return Err(format!("what is signed is a {:?}", payload.critical.kind));
    }
    let signed = payload.critical.image.docker_manifest_digest;
    if signed == digest.as_str() { Ok(()) } else { Err(other(&signed)) }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    dsse_envelope: Option<Envelope>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    predicate_type: String,
    #[serde(default)]
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    digest: std::collections::BTreeMap<String, String>,
}

/// A sigstore bundle.
pub fn bundle(bytes: &[u8], digest: &Digest, keys: &[Key]) -> Result<(), String> {
    let bundle: Bundle = serde_json::from_slice(bytes).map_err(|error| format!("a bundle is malformed: {error}"))?;
    let envelope = bundle.dsse_envelope.ok_or("a bundle has no envelope")?;
    let payload = base64(&envelope.payload).ok_or("a bundle's payload is not in base64")?;
    let mut message =
        format!("DSSEv1 {} {} {} ", envelope.payload_type.len(), envelope.payload_type, payload.len()).into_bytes();
    message.extend_from_slice(&payload);
    let signatures = envelope.signatures.iter().filter_map(|one| base64(&one.sig));
    if !signatures.into_iter().any(|signature| keys.iter().any(|key| key.verify(&message, &signature))) {
        return Err(strange());
    }
    if envelope.payload_type != STATEMENT {
        return Err(format!("what is signed is of type {:?}", envelope.payload_type));
    }
    let statement: Statement =
        serde_json::from_slice(&payload).map_err(|error| format!("a statement is malformed: {error}"))?;
    if statement.predicate_type != SIGNED {
        return Err(format!("what is signed is a statement of type {:?}", statement.predicate_type));
    }
    let is_it = |subject: &Subject| subject.digest.get(digest.algorithm()).is_some_and(|hex| hex == digest.hex());
    if statement.subject.iter().any(is_it) { Ok(()) } else { Err(other("another image")) }
}
