//! notation's signatures: of an image's descriptor, in one of two envelopes, with the certificates of whoever signed.

use std::collections::BTreeMap;
use std::time::SystemTime;

use dhow_image::Digest;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::chain::{self, Usage};
use super::keys::Key;

const PAYLOAD: &str = "application/vnd.cncf.notary.payload.v1+json";
pub(super) const SCHEME: &str = "io.cncf.notary.signingScheme";
pub(super) const EXPIRY: &str = "io.cncf.notary.expiry";
pub(super) const AUTHENTIC_TIME: &str = "io.cncf.notary.authenticSigningTime";
/// Times are those of whoever signed, or those of an authority that vouches for them.
const BY_ITSELF: &str = "notary.x509";
const BY_AUTHORITY: &str = "notary.x509.signingAuthority";

/// Longer chains are nobody's.
const MAX_CHAIN: usize = 10;

/// Which certificates are believed.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    /// What a signer's certificate has to name, one of these sets; none: any.
    subjects: Vec<BTreeMap<String, String>>,
}

impl Roots {
    /// `subjects` are written as `CN=…,O=…`: all of it has to be in the certificate.
    ///
    /// # Errors
    /// When there is no certificate, or a subject is malformed.
    pub fn read(pem: &str, subjects: &[String]) -> Result<Self, String> {
        let certificates = chain::read_pem(pem)?;
        chain::check_roots(&certificates)?;
        let subjects = subjects.iter().map(|text| subject(text)).collect::<Result<_, _>>()?;
        Ok(Self { certificates, subjects })
    }
}

fn subject(text: &str) -> Result<BTreeMap<String, String>, String> {
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').ok_or_else(|| format!("{text:?} is not written as CN=…,O=…"))?;
        Ok((name.trim().to_ascii_uppercase(), value.trim().to_owned()))
    };
    text.split(',').map(pair).collect()
}

/// What an envelope holds, whatever its encoding. Nothing of it is verified yet.
#[derive(Debug, Default)]
pub(super) struct Signed {
    /// As JSON web signatures call it.
    pub algorithm: String,
    /// What the signature is of.
    pub message: Vec<u8>,
    pub signature: Vec<u8>,
    /// The signer's certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Headers that have to be understood.
    pub critical: Vec<String>,
    pub scheme: Option<String>,
    pub expiry: Option<SystemTime>,
    pub authentic_time: Option<SystemTime>,
    pub content_type: Option<String>,
    pub payload: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    target_artifact: Target,
}

#[derive(Deserialize)]
struct Target {
    digest: String,
}

pub(super) fn judge(signed: &Signed, digest: &Digest, roots: &Roots, now: SystemTime) -> Result<(), String> {
    let (Some(first), 1..=MAX_CHAIN) = (signed.chain.first(), signed.chain.len()) else {
        return Err(format!("a signature has {} certificates", signed.chain.len()));
    };
    let (_, signer) = X509Certificate::from_der(first).map_err(|error| format!("a signer's certificate: {error}"))?;
    let key = Key::of(signer.public_key())?;
    key.verify_jws(&signed.algorithm, &signed.message, &signed.signature)?;

    // From here on it is what somebody signed; now whether it is somebody who is trusted.
    if let Some(unknown) =
        signed.critical.iter().find(|name| ![SCHEME, EXPIRY, AUTHENTIC_TIME].contains(&name.as_str()))
    {
        return Err(format!("a signature is to be read by who knows {unknown:?}"));
    }
    if signed.expiry.is_some_and(|expiry| expiry <= now) {
        return Err("the signature has expired".to_owned());
    }
    let at = match signed.scheme.as_deref() {
        Some(BY_ITSELF) => now,
        Some(BY_AUTHORITY) => signed.authentic_time.ok_or("a signature does not say when it was made")?,
        other => return Err(format!("a signature is of the scheme {other:?}")),
    };
    chain::is_trusted(first, &signed.chain[1..], &roots.certificates, Usage::CodeSigning, at)?;
    let names = names_of(&signer);
    let fits = |wanted: &BTreeMap<String, String>| wanted.iter().all(|(name, value)| names.get(name) == Some(value));
    if !roots.subjects.is_empty() && !roots.subjects.iter().any(fits) {
        return Err(format!("it is signed by {}, who is not one of those trusted", signer.subject()));
    }
    if signed.content_type.as_deref() != Some(PAYLOAD) {
        return Err(format!("what is signed is of type {:?}", signed.content_type));
    }
    let payload: Payload =
        serde_json::from_slice(&signed.payload).map_err(|error| format!("what is signed is malformed: {error}"))?;
    let signed = payload.target_artifact.digest;
    if signed == digest.as_str() { Ok(()) } else { Err(format!("a signature is of {signed}")) }
}

/// What a certificate calls its holder.
fn names_of(certificate: &X509Certificate<'_>) -> BTreeMap<String, String> {
    let short = [
        ("2.5.4.3", "CN"),
        ("2.5.4.6", "C"),
        ("2.5.4.7", "L"),
        ("2.5.4.8", "ST"),
        ("2.5.4.10", "O"),
        ("2.5.4.11", "OU"),
    ];
    let mut names = BTreeMap::new();
    for attribute in certificate.subject().iter_attributes() {
        let id = attribute.attr_type().to_id_string();
        if let (Some((_, name)), Ok(value)) = (short.iter().find(|(known, _)| *known == id), attribute.as_str()) {
            names.insert((*name).to_owned(), value.to_owned());
        }
    }
    names
}
