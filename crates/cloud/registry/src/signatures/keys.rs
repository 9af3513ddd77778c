//! Public keys as they are written down, and what is signed with them.

use base64::Engine as _;
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

const EC: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const RSA: &str = "1.2.840.113549.1.1.1";
const ED25519: &str = "1.3.101.112";

/// A key that signatures are held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    P256(Vec<u8>),
    P384(Vec<u8>),
    Rsa(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// Of either alphabet, padded or not.
pub fn base64(text: &str) -> Option<Vec<u8>> {
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text = text.trim();
    let alphabet = if text.contains(['-', '_']) { &base64::alphabet::URL_SAFE } else { &base64::alphabet::STANDARD };
    GeneralPurpose::new(alphabet, config).decode(text).ok()
}

impl Key {
    /// All keys of a text in PEM.
    ///
    /// # Errors
    /// When there is none, or one that nothing is verified with.
    pub fn read_all(pem: &str) -> Result<Vec<Self>, String> {
        Ok(Self::read_with_der(pem)?.into_iter().map(|(key, _)| key).collect())
    }

    /// With each the bytes that it is written in.
    pub(super) fn read_with_der(pem: &str) -> Result<Vec<(Self, Vec<u8>)>, String> {
        let mut keys = Vec::new();
        for block in Pem::iter_from_buffer(pem.as_bytes()) {
            let block = block.map_err(|error| format!("it is no PEM: {error}"))?;
            if block.label != "PUBLIC KEY" {
                return Err(format!("it has a {}, not a PUBLIC KEY", block.label));
            }
            let (_, info) =
                SubjectPublicKeyInfo::from_der(&block.contents).map_err(|error| format!("no key: {error}"))?;
            keys.push((Self::of(&info)?, block.contents.clone()));
        }
        if keys.is_empty() { Err("it has no PUBLIC KEY in PEM".to_owned()) } else { Ok(keys) }
    }

    pub(super) fn of(info: &SubjectPublicKeyInfo<'_>) -> Result<Self, String> {
        let bytes = info.subject_public_key.data.to_vec();
        let parameter =
            info.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok()).map(|oid| oid.to_id_string());
        match (info.algorithm.algorithm.to_id_string().as_str(), parameter.as_deref()) {
            (EC, Some(P256)) => Ok(Key::P256(bytes)),
            (EC, Some(P384)) => Ok(Key::P384(bytes)),
            (RSA, _) => Ok(Key::Rsa(bytes)),
            (ED25519, _) => Ok(Key::Ed25519(bytes)),
            _ => Err("keys are ECDSA on P-256 or P-384, RSA or Ed25519".to_owned()),
        }
    }

    fn check(&self, algorithm: &'static dyn VerificationAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        let (Key::P256(bytes) | Key::P384(bytes) | Key::Rsa(bytes) | Key::Ed25519(bytes)) = self;
        UnparsedPublicKey::new(algorithm, bytes).verify(message, signature).is_ok()
    }

    /// As cosign signs: SHA-256 with every kind of key that needs a hash.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &'static dyn VerificationAlgorithm = match self {
            Key::P256(_) => &signature::ECDSA_P256_SHA256_ASN1,
            Key::P384(_) => &signature::ECDSA_P384_SHA256_ASN1,
            Key::Rsa(_) => &signature::RSA_PKCS1_2048_8192_SHA256,
            Key::Ed25519(_) => &signature::ED25519,
        };
        self.check(algorithm, message, signature)
    }

    /// By a hash of so many bits, as certificates are signed.
    pub(super) fn verify_with(&self, bits: u32, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &'static dyn VerificationAlgorithm = match (self, bits) {
            (Key::P256(_), 256) => &signature::ECDSA_P256_SHA256_ASN1,
            (Key::P256(_), 384) => &signature::ECDSA_P256_SHA384_ASN1,
            (Key::P384(_), 256) => &signature::ECDSA_P384_SHA256_ASN1,
            (Key::P384(_), 384) => &signature::ECDSA_P384_SHA384_ASN1,
            (Key::Rsa(_), 256) => &signature::RSA_PKCS1_2048_8192_SHA256,
            (Key::Rsa(_), 384) => &signature::RSA_PKCS1_2048_8192_SHA384,
            (Key::Rsa(_), 512) => &signature::RSA_PKCS1_2048_8192_SHA512,
            _ => return false,
        };
        self.check(algorithm, message, signature)
    }

    /// As a JSON web signature of the algorithm `name`.
    pub(super) fn verify_jws(&self, name: &str, message: &[u8], signature: &[u8]) -> Result<(), String> {
        let algorithm: &'static dyn VerificationAlgorithm = match (name, self) {
            ("ES256", Key::P256(_)) => &signature::ECDSA_P256_SHA256_FIXED,
            ("ES384", Key::P384(_)) => &signature::ECDSA_P384_SHA384_FIXED,
            ("PS256", Key::Rsa(_)) => &signature::RSA_PSS_2048_8192_SHA256,
            ("PS384", Key::Rsa(_)) => &signature::RSA_PSS_2048_8192_SHA384,
            ("PS512", Key::Rsa(_)) => &signature::RSA_PSS_2048_8192_SHA512,
            _ => return Err(format!("the algorithm {name:?} does not go with the certificate's key")),
        };
        if self.check(algorithm, message, signature) { Ok(()) } else { Err("the signature is wrong".to_owned()) }
    }
}
