//! Entries of a transparency log (Rekor), verified without asking it: the log has signed that it took an entry in, and when, or
//! a tree that the entry is in.

use std::time::{Duration, SystemTime};

use dhow_image::Digest;
use ring::digest;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;

use super::inclusion::{Head, Proof};
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

    /// Whether an entry calls it so: by the hash of its key, or, as Rekor does since its second version, by that of its name and
    /// key (C2SP's signed-note).
    fn is_called(&self, id: &[u8], head: Option<&Head<'_>>) -> bool {
        let named = || match (&self.key, head) {
            (Key::Ed25519(key), Some(head)) => {
                let name = [head.origin.as_bytes(), b"\n\x01", key].concat();
                digest::digest(&digest::SHA256, &name).as_ref() == id
            }
            _ => false,
        };
        self.id == id || named()
    }
}

/// An entry, with the log's promise that it will be in the log, or the proof that it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Entry {
    pub log: Vec<u8>,
    pub index: i64,
    /// When it came, in seconds since the epoch.
    pub integrated: i64,
    /// In base64, as it is signed.
    pub body: String,
    pub promise: Vec<u8>,
    pub proof: Option<Proof>,
    /// A promise is not enough.
    pub to_be_proven: bool,
}

/// What an entry has to be of.
pub(super) struct Expected<'a> {
    /// What is signed: a document, or the payload of an envelope.
    pub content: &'a [u8],
    /// What the signature is made of: the document, or the payload with its type.
    pub message: &'a [u8],
    pub enveloped: bool,
    pub signature: &'a [u8],
    pub certificate: &'a CertificateDer<'a>,
}

impl Entry {
    /// Whether one of the logs took this signature in; and when, if it says so.
    ///
    /// # Errors
    /// When none did.
    pub fn verify(&self, logs: &[Log], expected: &Expected<'_>) -> Result<Option<SystemTime>, String> {
        let head = self.proof.as_ref().map(Proof::head).transpose()?;
        let log = logs.iter().find(|log| log.is_called(&self.log, head.as_ref()));
        let log = log.ok_or("a signature is in a log that is not known")?;
        let malformed = || "a log's entry is malformed".to_owned();
        let bytes = base64(&self.body).ok_or_else(malformed)?;
        let promised = if self.promise.is_empty() { None } else { Some(self.promised(log)?) };
        match (&self.proof, head) {
            (Some(proof), Some(head)) => proof.verify(&head, &bytes, &self.log, &log.key)?,
            _ if promised.is_none() => return Err("a log's entry is not signed by the log".to_owned()),
            _ if self.to_be_proven => return Err("a log's entry is not proven to be in its tree".to_owned()),
            _ => {}
        }
        let body: Body = serde_json::from_slice(&bytes).map_err(|_| malformed())?;
        if !body.is_of(expected) {
            return Err("a log's entry is of another signature".to_owned());
        }
        Ok(promised)
    }

    /// When the log took it in, as it signed.
    fn promised(&self, log: &Log) -> Result<SystemTime, String> {
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
    hashed_rekord_v002: Option<Hashed>,
    dsse_v002: Option<Enveloped>,
}

/// Of the second version, and so on.
#[derive(Deserialize)]
struct Hashed {
    data: HashOutput,
    signature: Witnessed,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Enveloped {
    payload_hash: HashOutput,
    signatures: Vec<Witnessed>,
}

#[derive(Deserialize)]
struct HashOutput {
    algorithm: String,
    digest: String,
}

#[derive(Deserialize)]
struct Witnessed {
    content: String,
    verifier: Verifier,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Verifier {
    x509_certificate: Option<RawCertificate>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawCertificate {
    raw_bytes: String,
}

impl HashOutput {
    fn is_of(&self, content: &[u8]) -> bool {
        let hash = digest::digest(&digest::SHA256, content);
        self.algorithm == "SHA2_256" && base64(&self.digest).is_some_and(|digest| digest == hash.as_ref())
    }
}

impl Witnessed {
    fn is_of(&self, expected: &Expected<'_>) -> bool {
        let raw = self.verifier.x509_certificate.as_ref().and_then(|of| base64(&of.raw_bytes));
        raw.is_some_and(|der| der == expected.certificate.as_ref())
            && base64(&self.content).is_some_and(|bytes| bytes == expected.signature)
    }
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
        self.algorithm == "sha256" && self.value == Digest::of(content).hex()
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
            // Envelopes are there by what is signed of them, too.
            ("hashedrekord", "0.0.2", _) => {
                let it = |of: &Hashed| of.data.is_of(expected.message) && of.signature.is_of(expected);
                spec.hashed_rekord_v002.as_ref().is_some_and(it)
            }
            ("dsse", "0.0.2", true) => spec.dsse_v002.as_ref().is_some_and(|of| {
                of.payload_hash.is_of(expected.content) && of.signatures.iter().any(|one| one.is_of(expected))
            }),
            _ => false,
        }
    }
}
