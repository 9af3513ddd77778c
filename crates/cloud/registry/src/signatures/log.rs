//! Entries of a transparency log (Rekor), verified without asking it: the log has signed that it took an entry in, and when.

use std::time::{Duration, SystemTime};

use ring::digest;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;

use super::keys::{Key, base64};

/// A log that is believed.
#[derive(Debug, Clone)]
pub(super) struct Log {
    /// SHA-256 of its key.
    id: Vec<u8>,
    key: Key,
}

impl Log {
    /// All logs whose keys are in a text in PEM.
    ///
    /// # Errors
    /// As [`Key::read_all`].
    pub fn read_all(pem: &str) -> Result<Vec<Self>, String> {
        let logs = Key::read_with_der(pem)?.into_iter();
        Ok(logs.map(|(key, der)| Self { id: digest::digest(&digest::SHA256, &der).as_ref().to_vec(), key }).collect())
    }
}

/// An entry, and the log's promise that it is in the log.
#[derive(Debug, Clone, Default)]
pub(super) struct Entry {
    pub log: Vec<u8>,
    pub index: i64,
    /// When it came, in seconds since the epoch.
    pub integrated: i64,
    /// In base64, as it is signed.
    pub body: String,
    pub promise: Vec<u8>,
}

/// What an entry has to be of.
pub(super) struct Expected<'a> {
    /// What is signed: a document, or the payload of an envelope.
    pub content: &'a [u8],
    pub enveloped: bool,
    pub signature: &'a [u8],
    pub certificate: &'a CertificateDer<'a>,
}

impl Entry {
    /// When one of the logs took this signature in.
    ///
    /// # Errors
    /// When none did.
    pub fn verify(&self, logs: &[Log], expected: &Expected<'_>) -> Result<SystemTime, String> {
        let log = logs.iter().find(|log| log.id == self.log).ok_or("a signature is in a log that is not known")?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-_".contains(&byte);
        if !self.body.bytes().all(plain) {
            return Err("a log's entry is malformed".to_owned());
        }
        let id: String = self.log.iter().map(|byte| format!("{byte:02x}")).collect();
        // The canonical form of JSON (RFC 8785): what is in it needs no escapes.
        let message = format!(
            r#"{{"body":"{}","integratedTime":{},"logID":"{id}","logIndex":{}}}"#,
            self.body, self.integrated, self.index
        );
        if !log.key.verify(message.as_bytes(), &self.promise) {
            return Err("a log's entry is not signed by the log".to_owned());
        }
        let body = base64(&self.body).and_then(|body| serde_json::from_slice::<Body>(&body).ok());
        if !body.ok_or("a log's entry is malformed")?.is_of(expected) {
            return Err("a log's entry is of another signature".to_owned());
        }
        let at = u64::try_from(self.integrated).ok().map(Duration::from_secs);
        at.and_then(|at| SystemTime::UNIX_EPOCH.checked_add(at)).ok_or_else(|| "a log's entry has no time".to_owned())
    }
}

#[derive(Deserialize)]
struct Body {
    kind: String,
    #[serde(rename = "apiVersion")]
    version: String,
    spec: Spec,
}

/// Of all kinds together.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    data: Option<Data>,
    signature: Option<Signature>,
    payload_hash: Option<Hash>,
    #[serde(default)]
    signatures: Vec<Verified>,
    content: Option<Content>,
}

#[derive(Deserialize)]
struct Data {
    hash: Hash,
}

#[derive(Deserialize)]
struct Hash {
    algorithm: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Signature {
    content: String,
    public_key: PublicKey,
}

#[derive(Deserialize)]
struct PublicKey {
    content: String,
}

#[derive(Deserialize)]
struct Verified {
    signature: String,
    verifier: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    envelope: Envelope,
    payload_hash: Hash,
}

#[derive(Deserialize)]
struct Envelope {
    signatures: Vec<Signer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Signer {
    public_key: String,
    sig: String,
}

impl Hash {
    fn is_of(&self, content: &[u8]) -> bool {
        let hash = digest::digest(&digest::SHA256, content);
        let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        self.algorithm == "sha256" && self.value == hex
    }
}

impl Body {
    fn is_of(&self, expected: &Expected<'_>) -> bool {
        let signature = |text: &str| base64(text).is_some_and(|bytes| bytes == expected.signature);
        let certificate = |text: &str| {
            let pem = base64(text).unwrap_or_default();
            CertificateDer::from_pem_slice(&pem).is_ok_and(|found| found == *expected.certificate)
        };
        let spec = &self.spec;
        match (self.kind.as_str(), self.version.as_str(), expected.enveloped) {
            ("hashedrekord", "0.0.1", false) => {
                spec.data.as_ref().is_some_and(|data| data.hash.is_of(expected.content))
                    && spec
                        .signature
                        .as_ref()
                        .is_some_and(|of| signature(&of.content) && certificate(&of.public_key.content))
            }
            ("dsse", "0.0.1", true) => {
                spec.payload_hash.as_ref().is_some_and(|hash| hash.is_of(expected.content))
                    && spec.signatures.iter().any(|of| signature(&of.signature) && certificate(&of.verifier))
            }
            ("intoto", "0.0.2", true) => spec.content.as_ref().is_some_and(|content| {
                // The text of a signature, once more in base64.
                let twice = |text: &str| {
                    base64(text).and_then(|once| String::from_utf8(once).ok()).is_some_and(|once| signature(&once))
                };
                content.payload_hash.is_of(expected.content)
                    && content.envelope.signatures.iter().any(|of| twice(&of.sig) && certificate(&of.public_key))
            }),
            _ => false,
        }
    }
}
