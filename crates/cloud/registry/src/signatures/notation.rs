//! notation's signatures: JSON web signatures with the certificates of whoever signed.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use dhow_image::Digest;
use jiff::Timestamp;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::Deserialize;
use serde_json::Value;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert, ring as algorithms};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::keys::{Key, base64};

const PAYLOAD: &str = "application/vnd.cncf.notary.payload.v1+json";
const SCHEME: &str = "io.cncf.notary.signingScheme";
const EXPIRY: &str = "io.cncf.notary.expiry";
const AUTHENTIC_TIME: &str = "io.cncf.notary.authenticSigningTime";
/// Times are those of whoever signed, or those of an authority that vouches for them.
const BY_ITSELF: &str = "notary.x509";
const BY_AUTHORITY: &str = "notary.x509.signingAuthority";
/// Extended key usage "code signing".
const CODE_SIGNING: &[u8] = &[43, 6, 1, 5, 5, 7, 3, 3];

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
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let certificates = certificates.map_err(|error| format!("it is no PEM: {error}"))?;
        if certificates.is_empty() {
            return Err("it has no CERTIFICATE in PEM".to_owned());
        }
        for certificate in &certificates {
            anchor_from_trusted_cert(certificate)
                .map_err(|error| format!("a certificate cannot be a root: {error}"))?;
        }
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

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    target_artifact: Target,
}

#[derive(Deserialize)]
struct Target {
    digest: String,
}

pub fn jws(bytes: &[u8], digest: &Digest, roots: &Roots, now: SystemTime) -> Result<(), String> {
    let envelope: Envelope =
        serde_json::from_slice(bytes).map_err(|error| format!("a signature is malformed: {error}"))?;
    let decoded = |text: &str| base64(text).ok_or_else(|| "a signature is not in base64".to_owned());
    let protected: BTreeMap<String, Value> = serde_json::from_slice(&decoded(&envelope.protected)?)
        .map_err(|error| format!("a signature's header is malformed: {error}"))?;
    let text = |name: &str| protected.get(name).and_then(Value::as_str);
    if envelope.header.x5c.is_empty() || envelope.header.x5c.len() > MAX_CHAIN {
        return Err(format!("a signature has {} certificates", envelope.header.x5c.len()));
    }
    let chain = envelope.header.x5c.iter().map(|text| decoded(text).map(CertificateDer::from));
    let chain: Vec<CertificateDer<'static>> = chain.collect::<Result<_, _>>()?;
    let (_, signer) =
        X509Certificate::from_der(&chain[0]).map_err(|error| format!("a signer's certificate: {error}"))?;
    let message = format!("{}.{}", envelope.protected, envelope.payload);
    let key = Key::of(signer.public_key())?;
    let algorithm = text("alg").unwrap_or_default();
    key.verify_jws(algorithm, message.as_bytes(), &decoded(&envelope.signature)?)?;

    // From here on it is what somebody signed; now whether it is somebody who is trusted.
    let critical = protected.get("crit").and_then(Value::as_array).cloned().unwrap_or_default();
    if let Some(unknown) =
        critical.iter().find(|name| ![SCHEME, EXPIRY, AUTHENTIC_TIME].map(Value::from).contains(name))
    {
        return Err(format!("a signature is to be read by who knows {unknown}"));
    }
    let moment = |name: &str| match text(name) {
        None => Ok(None),
        Some(text) => {
            text.parse::<Timestamp>().map(|at| Some(SystemTime::from(at))).map_err(|error| format!("{name}: {error}"))
        }
    };
    if moment(EXPIRY)?.is_some_and(|expiry| expiry <= now) {
        return Err("the signature has expired".to_owned());
    }
    let at = match text(SCHEME) {
        Some(BY_ITSELF) => now,
        Some(BY_AUTHORITY) => moment(AUTHENTIC_TIME)?.ok_or("a signature does not say when it was made")?,
        other => return Err(format!("a signature is of the scheme {other:?}")),
    };
    is_trusted(&chain, roots, at)?;
    let names = names_of(&signer);
    let fits = |wanted: &BTreeMap<String, String>| wanted.iter().all(|(name, value)| names.get(name) == Some(value));
    if !roots.subjects.is_empty() && !roots.subjects.iter().any(fits) {
        return Err(format!("it is signed by {}, who is not one of those trusted", signer.subject()));
    }
    if text("cty") != Some(PAYLOAD) {
        return Err(format!("what is signed is of type {:?}", text("cty")));
    }
    let payload: Payload = serde_json::from_slice(&decoded(&envelope.payload)?)
        .map_err(|error| format!("what is signed is malformed: {error}"))?;
    let signed = payload.target_artifact.digest;
    if signed == digest.as_str() { Ok(()) } else { Err(format!("a signature is of {signed}")) }
}

fn is_trusted(chain: &[CertificateDer<'_>], roots: &Roots, at: SystemTime) -> Result<(), String> {
    let untrusted = |error: webpki::Error| format!("the signer's certificate is not trusted: {error}");
    let anchors: Vec<_> = roots.certificates.iter().filter_map(|root| anchor_from_trusted_cert(root).ok()).collect();
    let signer = EndEntityCert::try_from(&chain[0]).map_err(untrusted)?;
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let usage = KeyUsage::required_if_present(CODE_SIGNING);
    let (known, at) = (algorithms_known(), UnixTime::since_unix_epoch(since));
    signer.verify_for_usage(&known, &anchors, &chain[1..], at, usage, None, None).map(drop).map_err(untrusted)
}

fn algorithms_known() -> Vec<&'static dyn rustls_pki_types::SignatureVerificationAlgorithm> {
    vec![
        algorithms::ECDSA_P256_SHA256,
        algorithms::ECDSA_P256_SHA384,
        algorithms::ECDSA_P384_SHA256,
        algorithms::ECDSA_P384_SHA384,
        algorithms::ED25519,
        algorithms::RSA_PKCS1_2048_8192_SHA256,
        algorithms::RSA_PKCS1_2048_8192_SHA384,
        algorithms::RSA_PKCS1_2048_8192_SHA512,
        algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
        algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
        algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
    ]
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
