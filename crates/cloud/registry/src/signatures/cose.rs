//! notation's envelope in COSE (RFC 9052): one signer, what is signed inside.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;

use super::cbor::{self, Value};
use super::notation::{AUTHENTIC_TIME, EXPIRY, SCHEME, Signed};

/// The tag of `COSE_Sign1`, and labels of headers.
const SIGN1: u64 = 18;
const ALGORITHM: i128 = 1;
const CRITICAL: i128 = 2;
const CONTENT_TYPE: i128 = 3;
const X5CHAIN: i128 = 33;
/// The tag of seconds since the epoch.
const EPOCH: u64 = 1;
const BYTES: u8 = 2;
const ARRAY: u8 = 4;

/// # Errors
/// When it is malformed.
pub(super) fn open(bytes: &[u8]) -> Result<Signed, String> {
    let malformed = |what: &str| format!("a signature is malformed: {what}");
    let envelope = match cbor::decode(bytes).map_err(|error| malformed(&error))? {
        Value::Tag(SIGN1, inner) => *inner,
        untagged => untagged,
    };
    let Some([protected, Value::Map(unprotected), payload, signature]) = envelope.array() else {
        return Err(malformed("it is no COSE_Sign1"));
    };
    let (Some(protected), Some(payload), Some(signature)) = (protected.bytes(), payload.bytes(), signature.bytes())
    else {
        return Err(malformed("its parts are no byte strings"));
    };
    let Value::Map(headers) = cbor::decode(protected).map_err(|error| malformed(&error))? else {
        return Err(malformed("its headers are no map"));
    };
    // Which of two counted would be a matter of who reads it.
    if headers.iter().enumerate().any(|(n, (key, _))| headers[..n].iter().any(|(other, _)| other == key)) {
        return Err(malformed("a header is there twice"));
    }
    let number = |label: i128| headers.iter().find(|(key, _)| key.integer() == Some(label)).map(|(_, value)| value);
    let named = |name: &str| headers.iter().find(|(key, _)| key.text() == Some(name)).map(|(_, value)| value);
    let moment = |name: &str| match named(name) {
        None => Ok(None),
        Some(value) => at(value).map(Some).ok_or_else(|| malformed(name)),
    };
    let chain = unprotected.iter().find(|(key, _)| key.integer() == Some(X5CHAIN)).map(|(_, value)| value);
    let chain = match chain {
        Some(Value::Array(certificates)) => certificates.iter().map(Value::bytes).collect::<Option<Vec<_>>>(),
        Some(one) => one.bytes().map(|one| vec![one]),
        None => Some(Vec::new()),
    };
    let critical = number(CRITICAL).and_then(Value::array).unwrap_or_default();
    // Those of the specification are always understood.
    let critical = critical
        .iter()
        .filter(|label| !label.integer().is_some_and(|label| [ALGORITHM, CRITICAL, CONTENT_TYPE].contains(&label)));
    Ok(Signed {
        algorithm: number(ALGORITHM).and_then(Value::integer).and_then(algorithm).unwrap_or_default().to_owned(),
        message: to_be_signed(protected, payload),
        signature: signature.to_vec(),
        chain: chain
            .ok_or_else(|| malformed("its certificates are no byte strings"))?
            .into_iter()
            .map(|certificate| CertificateDer::from(certificate.to_vec()))
            .collect(),
        critical: critical.map(|label| label.text().map_or_else(|| format!("{label:?}"), str::to_owned)).collect(),
        scheme: named(SCHEME).and_then(Value::text).map(str::to_owned),
        expiry: moment(EXPIRY)?,
        authentic_time: moment(AUTHENTIC_TIME)?,
        content_type: number(CONTENT_TYPE).and_then(Value::text).map(str::to_owned),
        payload: payload.to_vec(),
    })
}

/// As JSON web signatures call it.
fn algorithm(label: i128) -> Option<&'static str> {
    let names = [(-7, "ES256"), (-35, "ES384"), (-37, "PS256"), (-38, "PS384"), (-39, "PS512")];
    names.iter().find(|(known, _)| *known == label).map(|(_, name)| *name)
}

fn at(value: &Value<'_>) -> Option<SystemTime> {
    let Value::Tag(EPOCH, seconds) = value else { return None };
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds.integer()?).ok()?))
}

/// `Sig_structure` of section 4.4, without anything from outside.
fn to_be_signed(protected: &[u8], payload: &[u8]) -> Vec<u8> {
    let context = b"\x6aSignature1";
    [
        &cbor::head(ARRAY, 4)[..],
        context,
        &cbor::head(BYTES, protected.len()),
        protected,
        &cbor::head(BYTES, 0),
        &cbor::head(BYTES, payload.len()),
        payload,
    ]
    .concat()
}
