//! The key that signs service-account tokens.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};

use crate::{Error, Result, files};

/// An ES256 key, one per cluster. Losing it invalidates every token; leaking it gives the cluster away.
pub struct SaKey {
    key: KeyPair,
}

impl SaKey {
    pub fn load_or_create(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            files::create_private_dir(dir)?;
        }
        let key = match files::read_optional(path)? {
            Some(pem) => KeyPair::from_pem(&pem).map_err(|e| Error::BadFile {
                path: path.to_owned(),
                message: format!("not a service-account signing key: {e}"),
            })?,
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
                    .map_err(|source| Error::Issue { subject: "service accounts".to_owned(), source })?;
                files::write_private(path, key.serialize_pem().as_bytes())?;
                key
            }
        };
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(Error::BadFile {
                path: path.to_owned(),
                message: "the service-account signing key is not an ES256 (P-256) key".to_owned(),
            });
        }
        Ok(Self { key })
    }

    /// PKCS#8.
    pub fn private_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// SubjectPublicKeyInfo.
    pub fn public_pem(&self) -> String {
        self.key.public_key_pem()
    }

    /// The `kid` of tokens: the SHA-256 of the public key's DER, base64url, as upstream derives it.
    pub fn key_id(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.key.subject_public_key_info());
        URL_SAFE_NO_PAD.encode(digest)
    }

    /// The public key as a JWK, for the issuer's key set document.
    pub fn jwk(&self) -> serde_json::Value {
        // An uncompressed point: 0x04, then x and y of 32 bytes each.
        let (x, y) = self.key.public_key_raw()[1..].split_at(32);
        serde_json::json!({
            "use": "sig",
            "kty": "EC",
            "kid": self.key_id(),
            "crv": "P-256",
            "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x),
            "y": URL_SAFE_NO_PAD.encode(y),
        })
    }
}
