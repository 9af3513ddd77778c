//! Requests for certificates of pods, and volumes that show these.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::access::signer_name;
use super::field::Field;
use super::{Errors, pod_parts};
use crate::pod_certificate::{self, KEY_TYPES, Problem};
use crate::strategy::unbase64;
use crate::{meta, names, trust_bundle};

/// What upstream shows of values that are long or secret.
const OMITTED: &str = "<omitted>";
const MAX_UID: usize = 128;
const MAX_KEY: usize = 10 << 10;
const MAX_CHAIN: usize = 100 << 10;
const MAX_ANNOTATIONS: usize = 256 << 10;
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const LONGEST: i64 = 91 * DAY;
const MARGIN: SignedDuration = SignedDuration::from_mins(10);
const SKEW: SignedDuration = SignedDuration::from_mins(5);
const ENDS: [&str; 3] = ["Issued", "Denied", "Failed"];

/// How long a certificate of this signer may be asked for.
fn longest(signer: &str) -> i64 {
    if signer.starts_with("kubernetes.io/") { DAY } else { LONGEST }
}

pub fn new_request(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    let signer = spec.at("signerName");
    signer_name(&signer, errors);
    annotations(&spec.at("unverifiedUserAnnotations"), errors);
    for name in ["podName", "serviceAccountName", "nodeName"] {
        let field = spec.at(name);
        errors.complaints(&field.path, field.text(), names::dns1123_subdomain(field.text()));
    }
    for name in ["podUID", "serviceAccountUID", "nodeUID"] {
        let field = spec.at(name);
        if field.text().is_empty() {
            errors.bad_value(&field.path, &json!(""), "must not be empty");
        }
        errors.at_most_bytes(&field, MAX_UID);
    }
    let seconds = spec.at("maxExpirationSeconds");
    let most = longest(signer.text());
    match seconds.int() {
        None => return errors.missing(&seconds, "must be set"),
        Some(seconds) if (HOUR..=most).contains(&seconds) => {}
        Some(_) => errors.bad(&seconds, &format!("must be in the range [{HOUR}, {most}]")),
    }
    let (key, proof) = (spec.at("pkixPublicKey"), spec.at("proofOfPossession"));
    let bytes = |field: &Field| unbase64(field.text()).unwrap_or_default();
    let (key_bytes, proof_bytes) = (bytes(&key), bytes(&proof));
    for (field, bytes) in [(&key, &key_bytes), (&proof, &proof_bytes)] {
        if bytes.len() > MAX_KEY {
            return errors.too_long(&field.path, MAX_KEY);
        }
    }
    match pod_certificate::check(&key_bytes, spec.at("podUID").text(), &proof_bytes) {
        Ok(()) => {}
        Err(Problem::Unreadable) => errors.bad(&key, "must be a valid PKIX-serialized public key"),
        Err(Problem::Kind) => {
            errors.bad(&key, "unknown public key type; supported types are Ed25519, ECDSA, and RSA");
        }
        Err(Problem::Unfit(what, why)) => errors.bad_value(&key.path, &json!(what), why),
        Err(Problem::Unproven) => errors.bad_place(&proof.path, "could not verify proof-of-possession signature"),
    }
}

/// What pods say to signers; every key is of somebody's domain.
fn annotations(field: &Field, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in field.value.as_object().into_iter().flatten() {
        errors.complaints(&field.path, key, names::qualified_name(&key.to_lowercase()));
        if !key.contains('/') {
            errors.bad_value(&field.path, &json!(key), "must be domain-prefixed");
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_ANNOTATIONS {
        errors.too_long(&field.path, MAX_ANNOTATIONS);
    }
}

pub fn request_update(new: &Value, old: &Value, errors: &mut Errors) {
    errors.same(&Field::spec(new), &Field::spec(old));
}

pub fn request_status(new: &Value, old: &Value, errors: &mut Errors) {
    if new["status"] == old["status"] {
        return;
    }
    let status = Field::top(new, "status");
    if !conditions(&status.at("conditions"), errors) {
        return;
    }
    let has = |value: &Value, kind: &str| {
        meta::items(value, &["status", "conditions"]).iter().any(|condition| condition["type"] == kind)
    };
    if ENDS.iter().any(|kind| has(old, kind)) {
        let why = "immutable after PodCertificateRequest is issued, denied, or failed";
        return errors.bad_place(&status.path, why);
    }
    let bare = || {
        status.value.as_object().is_none_or(|all| all.iter().all(|(key, value)| key == "conditions" || value.is_null()))
    };
    match ENDS.iter().find(|kind| has(new, kind)) {
        Some(&"Issued") => issued(new, &status, errors),
        Some(_) if bare() => {}
        Some(_) => {
            let why = "non-condition status fields must be empty when denying or failing the PodCertificateRequest";
            errors.bad_place(&status.path, why);
        }
        None => {
            let why = "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"";
            errors.bad_place(&status.path, why);
        }
    }
}

/// Whether they are fine: at most one of the ends, and each said in full.
fn conditions(all: &Field, errors: &mut Errors) -> bool {
    let before = errors.0.len();
    for (index, condition) in all.items().enumerate() {
        let (kind, status) = (condition.at("type"), condition.at("status"));
        errors.need_known(&kind, &ENDS);
        errors.need_known(&status, &["True"]);
        if index > 0 {
            let why = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            errors.bad(&kind, why);
        }
        errors.need(&condition.at("reason"));
        errors.need(&condition.at("lastTransitionTime"));
        errors.at_most_bytes(&condition.at("message"), 32 << 10);
    }
    errors.0.len() == before
}

fn issued(value: &Value, status: &Field, errors: &mut Errors) {
    let chain = status.at("certificateChain");
    if chain.text().len() > MAX_CHAIN {
        return errors.too_long(&chain.path, MAX_CHAIN);
    }
    let bad = |errors: &mut Errors, why: &str| errors.bad_value(&chain.path, &json!(OMITTED), why);
    let blocks = trust_bundle::blocks(chain.text());
    let Some((leaf, rest)) = blocks.split_first() else {
        return bad(errors, "issued certificate chain must contain at least one certificate");
    };
    if blocks.iter().any(|block| block.label != "CERTIFICATE") {
        return bad(errors, "issued certificate chain must consist entirely of CERTIFICATE PEM blocks");
    }
    let Ok((_, leaf)) = X509Certificate::from_der(&leaf.der) else {
        return bad(errors, "leaf certificate does not parse as valid X.509");
    };
    if rest.iter().any(|block| X509Certificate::from_der(&block.der).is_err()) {
        return bad(errors, "intermediate certificate does not parse as valid X.509");
    }
    for name in dns_names(&leaf) {
        let why = match name {
            "" => "leaf certificate should not contain empty DNSName",
            name if name.contains("..") => "leaf certificate's DNSName should not contain '..'",
            name if name.starts_with('.') || name.ends_with('.') => {
                "leaf certificate's DNSName should not start or end with '.'"
            }
            _ => continue,
        };
        errors.bad_value(&chain.path, &json!(name), why);
    }
    if unbase64(meta::text(value, &["spec", "pkixPublicKey"])).as_deref() != Some(leaf.public_key().raw) {
        return bad(errors, "leaf certificate was not issued to the requested public key");
    }
    let time = |name: &str| {
        let field = status.at(name);
        let time: Option<Timestamp> = field.text().parse().ok();
        (field, time)
    };
    let (begins, ends, refresh) = (time("notBefore"), time("notAfter"), time("beginRefreshAt"));
    let (Some(not_before), Some(not_after), Some(refresh_at)) = (begins.1, ends.1, refresh.1) else {
        for (field, time) in [&begins, &ends] {
            if time.is_none() {
                errors.missing(field, "must be present and consistent with the issued certificate");
            }
        }
        if refresh.1.is_none() {
            errors.missing(&refresh.0, "must be present and in the range [notbefore+10min, notafter-10min]");
        }
        return;
    };
    let validity = leaf.validity();
    if not_before.as_second() != validity.not_before.timestamp() {
        return errors.bad(&begins.0, "must be set to the NotBefore time encoded in the leaf certificate");
    }
    if not_before.duration_since(Timestamp::now()).abs() >= SKEW {
        return errors.bad(&begins.0, "must be set to within 5 minutes of kube-apiserver's current time");
    }
    if not_after.as_second() != validity.not_after.timestamp() {
        return errors.bad(&ends.0, "must be set to the NotAfter time encoded in the leaf certificate");
    }
    let life = not_after.as_second() - not_before.as_second();
    let most = value["spec"]["maxExpirationSeconds"].as_i64().unwrap_or(DAY);
    let shown = json!(format!("{life}s"));
    if life < HOUR {
        return errors.bad_value(&chain.path, &shown, "leaf certificate lifetime must be >= 1 hour");
    }
    if life > most {
        let why = format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most})");
        return errors.bad_value(&chain.path, &shown, &why);
    }
    if refresh_at.duration_since(not_before) < MARGIN {
        return errors.bad(&refresh.0, "must be at least 10 minutes after status.notBefore");
    }
    if not_after.duration_since(refresh_at) < MARGIN {
        errors.bad(&refresh.0, "must be at least 10 minutes before status.notAfter");
    }
}

fn dns_names<'a>(leaf: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return Vec::new() };
    let one = |name: &'a GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    };
    names.value.general_names.iter().filter_map(one).collect()
}

/// A source of a projected volume.
pub(super) fn projection(source: &Field, errors: &mut Errors) {
    let signer = source.at("signerName");
    signer_name(&signer, errors);
    let kind = source.at("keyType");
    if !KEY_TYPES.contains(&kind.text()) {
        errors.known(&Field { value: &json!(kind.text()), path: kind.path }, &KEY_TYPES);
    }
    let (seconds, most) = (source.at("maxExpirationSeconds"), longest(signer.text()));
    if seconds.int().is_some_and(|seconds| seconds < HOUR) {
        errors.bad(&seconds, &format!("if provided, maxExpirationSeconds must be >= {HOUR}"));
    }
    if seconds.int().is_some_and(|seconds| seconds > most) {
        errors.bad(&seconds, &format!("if provided, maxExpirationSeconds must be <= {most}"));
    }
    let paths = ["credentialBundlePath", "keyPath", "certificateChainPath"].map(|name| source.at(name));
    let given: Vec<_> = paths.into_iter().filter(|path| !path.text().is_empty()).collect();
    if given.is_empty() {
        let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.missing(source, why);
    }
    given.iter().for_each(|path| pod_parts::relative(path, errors));
    annotations(&source.at("userAnnotations"), errors);
}
