//! Keys that pods get certificates for: which there are, and whether who asks for a certificate holds the private one.

use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use rsa::Pss;
use rsa::pkcs8::DecodePublicKey;
use rsa::traits::PublicKeyParts;
use sha2::{Digest, Sha256};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ED25519,
};
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};

/// Names of the kinds of keys.
pub const KEY_TYPES: [&str; 6] = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];

/// Bytes of a number on the curve P-521.
pub const P521_BYTES: usize = 66;

/// What a request with a key is refused for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// No key at all.
    Unreadable,
    /// A key of a kind that nobody here signs with.
    Kind,
    /// What of it is wrong, and what would be right.
    Unfit(String, &'static str),
    /// Somebody else's key, as far as one can tell.
    Unproven,
}

/// What an ECDSA signature on P-521 is made of: a hash shorter than the curve's numbers stands at their end.
pub fn p521_digest(message: &[u8]) -> [u8; P521_BYTES] {
    let mut padded = [0; P521_BYTES];
    let hash = Sha256::digest(message);
    padded[P521_BYTES - hash.len()..].copy_from_slice(&hash);
    padded
}

/// Looks at a public key (a SubjectPublicKeyInfo in DER), and at the signature of a pod's uid that proves who has it.
pub fn check(key: &[u8], uid: &str, proof: &[u8]) -> Result<(), Problem> {
    let Ok((rest, info)) = SubjectPublicKeyInfo::from_der(key) else { return Err(Problem::Unreadable) };
    if !rest.is_empty() {
        return Err(Problem::Unreadable);
    }
    let point = info.subject_public_key.data.as_ref();
    let signed = |by: &'static dyn VerificationAlgorithm| {
        UnparsedPublicKey::new(by, point).verify(uid.as_bytes(), proof).is_ok()
    };
    let algorithm = &info.algorithm.algorithm;
    let proven = if *algorithm == OID_SIG_ED25519 {
        signed(&signature::ED25519)
    } else if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve =
            info.algorithm.parameters.as_ref().and_then(|given| given.as_oid().ok()).ok_or(Problem::Unreadable)?;
        if curve == OID_EC_P256 {
            signed(&signature::ECDSA_P256_SHA256_ASN1)
        } else if curve == OID_NIST_EC_P384 {
            signed(&signature::ECDSA_P384_SHA256_ASN1)
        } else if curve == OID_NIST_EC_P521 {
            signed_on_p521(point, uid, proof).ok_or(Problem::Unreadable)?
        } else {
            let why = "elliptic public keys must use curve P256 or P384";
            return Err(Problem::Unfit(format!("curve {curve}"), why));
        }
    } else if *algorithm == OID_PKCS1_RSAENCRYPTION {
        let key = rsa::RsaPublicKey::from_public_key_der(key).map_err(|_| Problem::Unreadable)?;
        let bits = key.size() * 8;
        if !matches!(bits, 3072 | 4096) {
            let why = "RSA keys must have modulus size 3072 or 4096";
            return Err(Problem::Unfit(format!("{bits}-bit modulus"), why));
        }
        signed_by_rsa(&key, uid, proof)
    } else {
        return Err(Problem::Kind);
    };
    if proven { Ok(()) } else { Err(Problem::Unproven) }
}

/// `None` if the point is on no curve.
fn signed_on_p521(point: &[u8], uid: &str, proof: &[u8]) -> Option<bool> {
    use p521::ecdsa::signature::hazmat::PrehashVerifier;
    let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?;
    let Ok(proof) = p521::ecdsa::DerSignature::try_from(proof).and_then(p521::ecdsa::Signature::try_from) else {
        return Some(false);
    };
    Some(key.verify_prehash(&p521_digest(uid.as_bytes()), &proof).is_ok())
}

/// The salt is as long as the hash, or as long as there is room: both are usual.
fn signed_by_rsa(key: &rsa::RsaPublicKey, uid: &str, proof: &[u8]) -> bool {
    let hash = Sha256::digest(uid);
    let room = key.size() - hash.len() - 2;
    [hash.len(), room].into_iter().any(|salt| key.verify(Pss::new_with_salt::<Sha256>(salt), &hash, proof).is_ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::trust_bundle;

    /// Keys, and signatures of `uid-1` with them, made by another implementation.
    const MADE: &str = include_str!("pod_certificate/made.pem");

    #[test]
    fn keys_of_every_kind_prove_who_has_them() {
        let blocks = trust_bundle::blocks(MADE);
        assert_eq!(blocks.len(), 16);
        for pair in blocks.chunks(2) {
            let [key, proof] = pair else { unreachable!() };
            let kind = key.label.strip_suffix(" PUBLIC KEY").unwrap();
            let expected = match kind {
                "RSA2048" => {
                    Err(Problem::Unfit("2048-bit modulus".into(), "RSA keys must have modulus size 3072 or 4096"))
                }
                "SECP224R1" => {
                    Err(Problem::Unfit("curve 1.3.132.0.33".into(), "elliptic public keys must use curve P256 or P384"))
                }
                _ => Ok(()),
            };
            assert_eq!(check(&key.der, "uid-1", &proof.der), expected, "{kind}");
            if expected.is_ok() {
                assert_eq!(check(&key.der, "uid-2", &proof.der), Err(Problem::Unproven), "{kind}");
                assert_eq!(check(&key.der, "uid-1", b"no"), Err(Problem::Unproven), "{kind}");
            }
        }
        assert_eq!(check(b"key", "uid-1", b""), Err(Problem::Unreadable));
    }
}
