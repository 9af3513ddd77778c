//! Time stamps (RFC 3161): when an authority saw a signature.

use std::time::SystemTime;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use ring::digest::{self, Algorithm};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::chain::{self, Usage};
use super::der::{CONTEXT_0, INTEGER, OBJECT, OCTETS, Piece, Pieces, SEQUENCE, SET, TIME};
use super::keys::Key;

/// Contents of object identifiers.
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
const TST_INFO: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 16, 1, 4];
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 3];
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 4];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
const SHA384: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2];
const SHA512: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3];

fn hash(name: &[u8]) -> Result<&'static Algorithm, String> {
    match name {
        SHA256 => Ok(&digest::SHA256),
        SHA384 => Ok(&digest::SHA384),
        SHA512 => Ok(&digest::SHA512),
        _ => Err("a time stamp uses another hash than SHA-2".to_owned()),
    }
}

/// The name in an `AlgorithmIdentifier`.
fn algorithm<'a>(piece: &Piece<'a>) -> Result<&'a [u8], String> {
    Ok(Pieces::of(piece.content).expect(OBJECT)?.content)
}

/// When an authority that leads to `roots` saw these bytes, by a `TimeStampResp`. `known` are certificates that it may come without.
///
/// # Errors
/// When it is malformed, of other bytes, or by somebody else.
pub(super) fn verify(
    response: &[u8],
    seen: &[u8],
    roots: &[CertificateDer<'static>],
    known: &[CertificateDer<'static>],
) -> Result<SystemTime, String> {
    let mut parts = Pieces::of(Pieces::of(response).expect(SEQUENCE)?.content);
    let status = Pieces::of(parts.expect(SEQUENCE)?.content).expect(INTEGER)?;
    if !matches!(status.content, [0 | 1]) {
        return Err("a time stamp was not granted".to_owned());
    }
    let mut token = Pieces::of(parts.expect(SEQUENCE)?.content);
    if token.expect(OBJECT)?.content != SIGNED_DATA {
        return Err("a time stamp is not signed".to_owned());
    }
    let mut data = Pieces::of(Pieces::of(token.expect(CONTEXT_0)?.content).expect(SEQUENCE)?.content);
    data.expect(INTEGER)?;
    data.expect(SET)?;
    let mut content = Pieces::of(data.expect(SEQUENCE)?.content);
    if content.expect(OBJECT)?.content != TST_INFO {
        return Err("a time stamp says something else".to_owned());
    }
    let info = Pieces::of(content.expect(CONTEXT_0)?.content).expect(OCTETS)?.content;
    let certificates = data.optional(CONTEXT_0).map(|set| set.content).unwrap_or_default();
    // Lists of what is revoked.
    data.optional(CONTEXT_0 + 1);
    let signer = Pieces::of(data.expect(SET)?.content).expect(SEQUENCE)?;

    let (at, imprint, hashed_by) = statement(info)?;
    if digest::digest(hashed_by, seen).as_ref() != imprint {
        return Err("a time stamp is of another signature".to_owned());
    }
    let certificates: Vec<CertificateDer<'_>> = Pieces::of(certificates)
        .filter(|piece| piece.tag == SEQUENCE)
        .map(|one| CertificateDer::from(one.whole))
        .collect();
    let all: Vec<CertificateDer<'_>> = certificates.iter().chain(known).chain(roots).cloned().collect();
    let by = signed_by(&signer, info, &all)?;
    if !Usage::TimeStamping.is_of(by) {
        return Err("a time stamp is by a certificate for something else".to_owned());
    }
    chain::is_trusted(by, &all, roots, Usage::TimeStamping, at)?;
    Ok(at)
}

/// `TSTInfo`: when, the hash of what, and how that was hashed.
fn statement(info: &[u8]) -> Result<(SystemTime, &[u8], &'static Algorithm), String> {
    let mut info = Pieces::of(Pieces::of(info).expect(SEQUENCE)?.content);
    info.expect(INTEGER)?;
    info.expect(OBJECT)?;
    let mut imprint = Pieces::of(info.expect(SEQUENCE)?.content);
    let hashed_by = hash(algorithm(&imprint.expect(SEQUENCE)?)?)?;
    let imprint = imprint.expect(OCTETS)?.content;
    info.expect(INTEGER)?;
    let text = std::str::from_utf8(info.expect(TIME)?.content).unwrap_or_default();
    let at = text.strip_suffix('Z').and_then(|text| DateTime::strptime("%Y%m%d%H%M%S%.f", text).ok());
    let at = at.and_then(|at| at.to_zoned(TimeZone::UTC).ok()).ok_or("a time stamp has no time")?;
    Ok((at.timestamp().into(), imprint, hashed_by))
}

/// Which of the certificates has signed the statement.
fn signed_by<'a, 'b>(
    signer: &Piece<'_>,
    info: &[u8],
    certificates: &'a [CertificateDer<'b>],
) -> Result<&'a CertificateDer<'b>, String> {
    let mut parts = Pieces::of(signer.content);
    parts.expect(INTEGER)?;
    // Who it says it is: whose key fits is what counts.
    parts.next();
    let hashed_by = algorithm(&parts.expect(SEQUENCE)?)?;
    let attributes = parts.expect(CONTEXT_0)?;
    let signature_algorithm = algorithm(&parts.expect(SEQUENCE)?)?;
    let signature = parts.expect(OCTETS)?.content;
    let attribute = |name: &[u8]| -> Option<&[u8]> {
        Pieces::of(attributes.content).find_map(|one| {
            let mut one = Pieces::of(one.content);
            (one.next()?.content == name).then(|| Pieces::of(one.next()?.content).next().map(|value| value.content))?
        })
    };
    if attribute(CONTENT_TYPE) != Some(TST_INFO) {
        return Err("a time stamp's signature is of something else".to_owned());
    }
    let expected = digest::digest(hash(hashed_by)?, info);
    if attribute(MESSAGE_DIGEST) != Some(expected.as_ref()) {
        return Err("a time stamp's statement was changed".to_owned());
    }
    // They are signed as the set that they are.
    let mut message = attributes.whole.to_vec();
    if let Some(tag) = message.first_mut() {
        *tag = SET;
    }
    let fits = |certificate: &&CertificateDer<'_>| {
        X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| {
            Key::of(parsed.public_key())
                .is_ok_and(|key| key.verify_cms(signature_algorithm, hashed_by, &message, signature))
        })
    };
    certificates.iter().find(fits).ok_or_else(|| "a time stamp is signed by somebody unknown".to_owned())
}

impl Key {
    /// As in CMS, whose names of algorithms may leave the hash to another field.
    fn verify_cms(&self, algorithm: &[u8], hash: &[u8], message: &[u8], signature: &[u8]) -> bool {
        const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3];
        const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1];
        let hash = match (algorithm.strip_prefix(ECDSA), algorithm.strip_prefix(RSA)) {
            (Some([2]), _) | (_, Some([11])) => SHA256,
            (Some([3]), _) | (_, Some([12])) => SHA384,
            (Some([4]), _) | (_, Some([13])) => SHA512,
            (_, Some([1])) => hash,
            _ => return false,
        };
        let bits = match hash {
            SHA256 => 256,
            SHA384 => 384,
            _ => 512,
        };
        self.verify_with(bits, message, signature)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_harm(bytes: Vec<u8>) {
            prop_assert!(verify(&bytes, b"", &[], &[]).is_err());
        }
    }
}
