//! cosign's signatures without keys of long life: by a certificate of a few minutes (Fulcio's), which says who asked for it and
//! who vouched for them. That it was used in these minutes is what a log or a time stamp says.

use std::collections::BTreeMap;
use std::time::SystemTime;

use dhow_image::Digest;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::chain::{self, Usage};
use super::der::{CONTEXT_0, Pieces};
use super::inclusion::Proof;
use super::keys::{Key, base64};
use super::log::{Entry, Expected, Log};
use super::{cosign, timestamp};
use crate::rules::Pattern;

/// Beside a signature in a layer's annotations.
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";
const BUNDLE: &str = "dev.sigstore.cosign/bundle";
const TIMESTAMP: &str = "dev.sigstore.cosign/rfc3161timestamp";
/// Extensions that tell who vouched for the signer: as a string of its own, and as a bare one as it used to be.
const ISSUER: &str = "1.3.6.1.4.1.57264.1.8";
const BARE_ISSUER: &str = "1.3.6.1.4.1.57264.1.1";
/// A name that is neither an address nor an e-mail address.
const USERNAME: &str = "1.3.6.1.4.1.57264.1.7";
const UTF8: u8 = 0x0c;
/// Entries and time stamps of one signature that are looked at.
const MAX_WITNESSES: usize = 8;

/// Who may sign, and who is believed about that.
#[derive(Debug, Clone)]
pub struct Keyless {
    roots: Vec<CertificateDer<'static>>,
    /// Between certificates and roots.
    between: Vec<CertificateDer<'static>>,
    logs: Vec<Log>,
    /// Roots of time stamp authorities.
    clocks: Vec<CertificateDer<'static>>,
    /// Their other certificates: time stamps may come without them.
    clocks_between: Vec<CertificateDer<'static>>,
    identities: Vec<Identity>,
}

/// A signer; `*` stands for any characters in both.
#[derive(Debug, Clone)]
pub struct Identity {
    pub subject: Pattern,
    /// Who vouched for the subject.
    pub issuer: Pattern,
}

impl Keyless {
    /// All in PEM: certificates of the authority, at least one of them a root; keys of logs; certificates of time stamp authorities, as those of the authority.
    /// With logs, a signature has to be in one of them; otherwise it needs a time stamp.
    ///
    /// # Errors
    /// When any of it cannot be read, or nothing is given that tells when a signature was made.
    pub fn read(
        certificates: &str,
        logs: Option<&str>,
        clocks: Option<&str>,
        identities: Vec<Identity>,
    ) -> Result<Self, String> {
        let (roots, between) = divide(certificates)?;
        if identities.is_empty() {
            return Err("it names no identity".to_owned());
        }
        let logs = logs.map(Log::read_all).transpose()?.unwrap_or_default();
        let (clocks, clocks_between) = clocks.map(divide).transpose()?.unwrap_or_default();
        if logs.is_empty() && clocks.is_empty() {
            return Err("it needs keys of logs or certificates of time stamp authorities".to_owned());
        }
        Ok(Self { roots, between, logs, clocks, clocks_between, identities })
    }
}

type Certificates = Vec<CertificateDer<'static>>;

/// Roots, which have made themselves, and others.
fn divide(pem: &str) -> Result<(Certificates, Certificates), String> {
    let (roots, between): (Vec<_>, Vec<_>) = chain::read_pem(pem)?.into_iter().partition(|certificate| {
        X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| parsed.subject() == parsed.issuer())
    });
    if roots.is_empty() {
        return Err("none of its certificates is a root".to_owned());
    }
    chain::check_roots(&roots)?;
    Ok((roots, between))
}

/// `verificationMaterial` of a bundle.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Material {
    certificate: Option<Raw>,
    x509_certificate_chain: Option<RawChain>,
    tlog_entries: Vec<TlogEntry>,
    timestamp_verification_data: Option<Timestamps>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    raw_bytes: String,
}

#[derive(Deserialize)]
struct RawChain {
    certificates: Vec<Raw>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TlogEntry {
    /// 64-bit numbers are strings in this JSON; some write zero by leaving it out.
    #[serde(default)]
    log_index: String,
    log_id: LogId,
    #[serde(default)]
    integrated_time: String,
    inclusion_promise: Option<Promise>,
    inclusion_proof: Option<Proof>,
    canonicalized_body: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogId {
    key_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Promise {
    signed_entry_timestamp: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Timestamps {
    rfc3161_timestamps: Vec<Stamp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stamp {
    signed_timestamp: String,
}

/// As it lies in an annotation.
#[derive(Deserialize)]
struct Annotation {
    #[serde(rename = "SignedEntryTimestamp")]
    promise: String,
    #[serde(rename = "Payload")]
    payload: AnnotatedEntry,
}

#[derive(Deserialize)]
struct AnnotatedEntry {
    body: String,
    #[serde(rename = "integratedTime")]
    integrated: i64,
    #[serde(rename = "logIndex")]
    index: i64,
    #[serde(rename = "logID")]
    log: String,
}

#[derive(Deserialize)]
struct AnnotatedStamp {
    #[serde(rename = "SignedRFC3161Timestamp")]
    stamp: String,
}

/// Everything that comes with a signature.
#[derive(Default)]
struct Witnesses {
    /// The signer's certificate first.
    chain: Vec<CertificateDer<'static>>,
    entries: Vec<Entry>,
    stamps: Vec<Vec<u8>>,
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| pair.filter(|pair| pair.len() == 2).and_then(|pair| u8::from_str_radix(pair, 16).ok())).collect()
}

/// A document of its own, with its signature beside it.
pub(super) fn simple(
    payload: &[u8],
    signature: &[u8],
    annotations: &BTreeMap<String, String>,
    digest: &Digest,
    trust: &Keyless,
) -> Result<(), String> {
    let mut witnesses = Witnesses::default();
    for name in [CERTIFICATE, CHAIN] {
        if let Some(pem) = annotations.get(name).filter(|pem| !pem.is_empty()) {
            witnesses.chain.extend(chain::read_pem(pem).map_err(|why| format!("{name}: {why}"))?);
        }
    }
    if let Some(text) = annotations.get(BUNDLE) {
        let Annotation { promise, payload } =
            serde_json::from_str(text).map_err(|error| format!("a log's entry is malformed: {error}"))?;
        let AnnotatedEntry { body, integrated, index, log } = payload;
        let (log, promise) = (hex(&log).unwrap_or_default(), base64(&promise).unwrap_or_default());
        witnesses.entries.push(Entry { log, index, integrated, body, promise, ..Entry::default() });
    }
    if let Some(text) = annotations.get(TIMESTAMP) {
        let AnnotatedStamp { stamp } =
            serde_json::from_str(text).map_err(|error| format!("a time stamp is malformed: {error}"))?;
        witnesses.stamps.extend(base64(&stamp));
    }
    let signature = Signature { message: payload, content: payload, enveloped: false, bytes: signature };
    judge(&witnesses, &signature, trust)?;
    cosign::is_of(payload, digest)
}

/// A sigstore bundle.
pub(super) fn bundle(bytes: &[u8], digest: &Digest, trust: &Keyless) -> Result<(), String> {
    let opened = cosign::open(bytes)?;
    let material = &opened.material;
    let raw = material.certificate.iter().chain(material.x509_certificate_chain.iter().flat_map(|c| &c.certificates));
    let mut witnesses = Witnesses::default();
    for Raw { raw_bytes } in raw {
        witnesses.chain.push(base64(raw_bytes).ok_or("a bundle's certificate is not in base64")?.into());
    }
    let number = |text: &str| if text.is_empty() { Ok(0) } else { text.parse() };
    for entry in &material.tlog_entries {
        let integrated = number(&entry.integrated_time).map_err(|_| "a log's entry has no time")?;
        let index = number(&entry.log_index).map_err(|_| "a log's entry has no index")?;
        let log = base64(&entry.log_id.key_id).unwrap_or_default();
        let promise = entry.inclusion_promise.as_ref().and_then(|of| base64(&of.signed_entry_timestamp));
        let (body, promise) = (entry.canonicalized_body.clone(), promise.unwrap_or_default());
        let proof = entry.inclusion_proof.clone().filter(Proof::is_of_a_tree);
        let to_be_proven = opened.proves;
        witnesses.entries.push(Entry { log, index, integrated, body, promise, proof, to_be_proven });
    }
    let stamps = material.timestamp_verification_data.iter().flat_map(|data| &data.rfc3161_timestamps);
    witnesses.stamps.extend(stamps.filter_map(|stamp| base64(&stamp.signed_timestamp)));
    let mut why = "a bundle's envelope has no signature".to_owned();
    for signature in opened.signatures.iter().take(MAX_WITNESSES) {
        let (message, content) = (&opened.message, &opened.payload);
        match judge(&witnesses, &Signature { message, content, enveloped: true, bytes: signature }, trust) {
            Ok(()) => return opened.is_of(digest),
            Err(reason) => why = reason,
        }
    }
    Err(why)
}

struct Signature<'a> {
    /// What it is of.
    message: &'a [u8],
    /// The part of that which a log knows the hash of.
    content: &'a [u8],
    enveloped: bool,
    bytes: &'a [u8],
}

/// Whether it is by somebody trusted.
fn judge(witnesses: &Witnesses, signature: &Signature<'_>, trust: &Keyless) -> Result<(), String> {
    let Signature { message, content, enveloped, bytes } = *signature;
    let Some(certificate) = witnesses.chain.first() else {
        return Err("a signature has no certificate".to_owned());
    };
    let (_, signer) =
        X509Certificate::from_der(certificate).map_err(|error| format!("a signer's certificate: {error}"))?;
    if !Key::of(signer.public_key())?.verify(message, bytes) {
        return Err("a signature is not by the key of its certificate".to_owned());
    }
    let expected = Expected { content, message, enveloped, signature: bytes, certificate };
    let between: Vec<_> = witnesses.chain[1..].iter().chain(&trust.between).cloned().collect();
    if !Usage::CodeSigning.is_of(certificate) {
        return Err("a signer's certificate is not for signing code".to_owned());
    }
    for at in moments(witnesses, &expected, trust)? {
        chain::is_trusted(certificate, &between, &trust.roots, Usage::CodeSigning, at)?;
    }
    let (subjects, issuer) = (subjects(&signer), issuer(&signer).unwrap_or_default());
    let fits = |identity: &Identity| {
        identity.issuer.matches(&issuer) && subjects.iter().any(|subject| identity.subject.matches(subject))
    };
    if trust.identities.iter().any(fits) {
        return Ok(());
    }
    Err(format!("it is signed by {}, vouched for by {issuer:?}, who is not one of those trusted", subjects.join(", ")))
}

/// When the signature was seen, by all who are believed about it; by one at least.
fn moments(witnesses: &Witnesses, expected: &Expected<'_>, trust: &Keyless) -> Result<Vec<SystemTime>, String> {
    let mut why = None;
    let entries = witnesses.entries.iter().take(MAX_WITNESSES).filter(|_| !trust.logs.is_empty());
    let verified = entries.map(|entry| entry.verify(&trust.logs, expected));
    let logged: Vec<_> = verified.filter_map(|what| what.map_err(|reason| why = Some(reason)).ok()).collect();
    if logged.is_empty() && !trust.logs.is_empty() {
        return Err(why.unwrap_or_else(|| "a signature is in no log".to_owned()));
    }
    let mut seen = |what: Result<SystemTime, String>| what.map_err(|reason| why = Some(reason)).ok();
    let stamps = witnesses.stamps.iter().take(MAX_WITNESSES).filter(|_| !trust.clocks.is_empty());
    let stamped: Vec<SystemTime> = stamps
        .filter_map(|stamp| seen(timestamp::verify(stamp, expected.signature, &trust.clocks, &trust.clocks_between)))
        .collect();
    let moments: Vec<_> = logged.into_iter().flatten().chain(stamped).collect();
    if moments.is_empty() {
        return Err(why.unwrap_or_else(|| "a signature has no time stamp".to_owned()));
    }
    Ok(moments)
}

fn subjects(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::URI(text) | GeneralName::RFC822Name(text) => Some((*text).to_owned()),
        GeneralName::OtherName(kind, value) if kind.to_id_string() == USERNAME => {
            let inner = Pieces::of(value).next()?;
            let text = if inner.tag == CONTEXT_0 { Pieces::of(inner.content).next()? } else { inner };
            String::from_utf8(text.content.to_vec()).ok().filter(|_| text.tag == UTF8)
        }
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

fn issuer(certificate: &X509Certificate<'_>) -> Option<String> {
    let extension = |id: &str| certificate.extensions().iter().find(|one| one.oid.to_id_string() == id);
    if let Some(extension) = extension(ISSUER) {
        let text = Pieces::of(extension.value).next().filter(|piece| piece.tag == UTF8)?;
        return String::from_utf8(text.content.to_vec()).ok();
    }
    String::from_utf8(extension(BARE_ISSUER)?.value.to_vec()).ok()
}
