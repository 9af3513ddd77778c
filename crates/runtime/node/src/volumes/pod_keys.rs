//! Keys that pods get certificates for, made here and never sent anywhere.

use dhow_api::pod_certificate::p521_digest;
use dhow_api::trust_bundle::pem;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey};
use rsa::rand_core::OsRng;
use sha2::{Digest, Sha256};

/// What stands before a public key on P-256, and before each half of an Ed25519 key, in the usual forms.
const P256_PUBLIC: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const ED25519_PUBLIC: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const ED25519_PRIVATE: &[u8] =
    &[0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A new key.
pub struct Made {
    /// PKCS #8 in PEM.
    pub private: String,
    /// A SubjectPublicKeyInfo in DER.
    pub public: Vec<u8>,
    /// A signature of the pod's uid.
    pub proof: Vec<u8>,
}

/// Makes a key of a kind in [`dhow_api::pod_certificate::KEY_TYPES`]. RSA takes a while.
pub fn make(kind: &str, uid: &str) -> Result<Made, String> {
    let failed = |error: &dyn std::fmt::Display| format!("while generating keypair: {error}");
    let (private, public, proof) = match kind {
        "RSA3072" => of_rsa(3072, uid).map_err(|error| failed(&error))?,
        "RSA4096" => of_rsa(4096, uid).map_err(|error| failed(&error))?,
        "ECDSAP256" => on_p256(uid).map_err(|error| failed(&error))?,
        "ECDSAP384" => on_p384(uid).map_err(|error| failed(&error))?,
        "ECDSAP521" => on_p521(uid).map_err(|error| failed(&error))?,
        "ED25519" => of_ed25519(uid).map_err(|error| failed(&error))?,
        other => return Err(failed(&format!("unknown key type {other:?}"))),
    };
    Ok(Made { private: pem("PRIVATE KEY", &private), public, proof })
}

type Parts = (Vec<u8>, Vec<u8>, Vec<u8>);

fn of_rsa(bits: usize, uid: &str) -> Result<Parts, Box<dyn std::error::Error>> {
    let key = rsa::RsaPrivateKey::new(&mut OsRng, bits)?;
    let proof = key.sign_with_rng(&mut OsRng, rsa::Pss::new_blinded::<Sha256>(), &Sha256::digest(uid))?;
    let public = key.to_public_key().to_public_key_der()?.into_vec();
    Ok((key.to_pkcs8_der()?.as_bytes().to_vec(), public, proof))
}

fn on_p256(uid: &str) -> Result<Parts, Box<dyn std::error::Error>> {
    let random = SystemRandom::new();
    let private = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)?;
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, private.as_ref(), &random)?;
    let proof = key.sign(&random, uid.as_bytes())?;
    let public = [P256_PUBLIC, key.public_key().as_ref()].concat();
    Ok((private.as_ref().to_vec(), public, proof.as_ref().to_vec()))
}

fn on_p384(uid: &str) -> Result<Parts, Box<dyn std::error::Error>> {
    use p384::ecdsa::signature::hazmat::PrehashSigner;
    let secret = p384::SecretKey::random(&mut OsRng);
    let signer = p384::ecdsa::SigningKey::from(&secret);
    let proof: p384::ecdsa::DerSignature = signer.sign_prehash(&Sha256::digest(uid))?;
    let public = secret.public_key().to_public_key_der()?.into_vec();
    Ok((secret.to_pkcs8_der()?.as_bytes().to_vec(), public, proof.as_bytes().to_vec()))
}

fn on_p521(uid: &str) -> Result<Parts, Box<dyn std::error::Error>> {
    use p521::ecdsa::signature::hazmat::PrehashSigner;
    let secret = p521::SecretKey::random(&mut OsRng);
    let signer = p521::ecdsa::SigningKey::from_bytes(&secret.to_bytes())?;
    let proof: p521::ecdsa::Signature = signer.sign_prehash(&p521_digest(uid.as_bytes()))?;
    let public = secret.public_key().to_public_key_der()?.into_vec();
    Ok((secret.to_pkcs8_der()?.as_bytes().to_vec(), public, proof.to_der().as_bytes().to_vec()))
}

/// In the first version of PKCS #8: older programs do not read the one that repeats the public key.
fn of_ed25519(uid: &str) -> Result<Parts, ring::error::Unspecified> {
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed)?;
    let key = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| ring::error::Unspecified)?;
    let public = [ED25519_PUBLIC, key.public_key().as_ref()].concat();
    Ok(([ED25519_PRIVATE, &seed].concat(), public, key.sign(uid.as_bytes()).as_ref().to_vec()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dhow_api::pod_certificate::{KEY_TYPES, check};

    #[test]
    fn keys_of_every_kind_are_taken_by_the_api() {
        // The larger RSA keys take the same way as the smaller ones, and seconds longer.
        for kind in KEY_TYPES.into_iter().filter(|kind| *kind != "RSA4096") {
            let made = make(kind, "uid-1").unwrap();
            assert_eq!(check(&made.public, "uid-1", &made.proof), Ok(()), "{kind}");
            assert!(made.private.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{kind}");
        }
        assert!(make("DSA", "uid-1").is_err());
    }
}
