//! What cosign signs: a small document that names a digest, or an envelope of a statement about it; and by keys who signed it.

use dhow_image::Digest;
use serde::Deserialize;

use super::keyless::Material;
use super::keys::{Key, base64};

const TYPE: &str = "cosign container image signature";
/// What is said of an image by signing it; other statements about it are no signatures of it.
const SIGNED: &str = "https://sigstore.dev/cosign/sign/v1";
/// The first version of bundles.
const FIRST: &str = "application/vnd.dev.sigstore.bundle+json;version=0.1";
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
pub(super) fn simple(payload: &[u8], signature: &[u8], digest: &Digest, keys: &[Key]) -> Result<(), String> {
    if !keys.iter().any(|key| key.verify(payload, signature)) {
        return Err(strange());
    }
    is_of(payload, digest)
}

/// Whether a document names the digest.
pub(super) fn is_of(payload: &[u8], digest: &Digest) -> Result<(), String> {
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
    #[serde(default)]
    media_type: String,
    dsse_envelope: Option<Envelope>,
    #[serde(default)]
    verification_material: Material,
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

/// An envelope out of a sigstore bundle. Nothing of it is verified yet.
pub(super) struct Opened {
    pub payload: Vec<u8>,
    payload_type: String,
    /// What is signed.
    pub message: Vec<u8>,
    pub signatures: Vec<Vec<u8>>,
    pub material: Material,
    /// Its entries of logs come with proofs, as they do since the second version.
    pub proves: bool,
}

/// # Errors
/// When the bundle is malformed or has no envelope.
pub(super) fn open(bytes: &[u8]) -> Result<Opened, String> {
    let bundle: Bundle = serde_json::from_slice(bytes).map_err(|error| format!("a bundle is malformed: {error}"))?;
    let envelope = bundle.dsse_envelope.ok_or("a bundle has no envelope")?;
    let payload = base64(&envelope.payload).ok_or("a bundle's payload is not in base64")?;
    let mut message =
        format!("DSSEv1 {} {} {} ", envelope.payload_type.len(), envelope.payload_type, payload.len()).into_bytes();
    message.extend_from_slice(&payload);
    let signatures = envelope.signatures.iter().filter_map(|one| base64(&one.sig)).collect();
    let (payload_type, material) = (envelope.payload_type, bundle.verification_material);
    let proves = bundle.media_type != FIRST;
    Ok(Opened { payload, payload_type, message, signatures, material, proves })
}

impl Opened {
    /// Whether it is a signature of an image with this digest.
    pub fn is_of(&self, digest: &Digest) -> Result<(), String> {
        if self.payload_type != STATEMENT {
            return Err(format!("what is signed is of type {:?}", self.payload_type));
        }
        let statement: Statement =
            serde_json::from_slice(&self.payload).map_err(|error| format!("a statement is malformed: {error}"))?;
        if statement.predicate_type != SIGNED {
            return Err(format!("what is signed is a statement of type {:?}", statement.predicate_type));
        }
        let is_it = |subject: &Subject| subject.digest.get(digest.algorithm()).is_some_and(|hex| hex == digest.hex());
        if statement.subject.iter().any(is_it) { Ok(()) } else { Err(other("another image")) }
    }
}

/// A sigstore bundle, signed with a key.
pub(super) fn bundle(bytes: &[u8], digest: &Digest, keys: &[Key]) -> Result<(), String> {
    let opened = open(bytes)?;
    if !opened.signatures.iter().any(|signature| keys.iter().any(|key| key.verify(&opened.message, signature))) {
        return Err(strange());
    }
    opened.is_of(digest)
}
