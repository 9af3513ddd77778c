//! Signatures of images: whether one of those who are trusted has signed a digest.
//!
//! Two ways to sign are known. cosign signs a small document that names the digest, with a key; it lies under a tag that
//! the digest makes, or in a manifest that refers to the image, there also as a bundle. Or the key is one that a certificate
//! of a few minutes is about, and a log or an authority says that it was used in these. notation signs the image's descriptor
//! as a JSON web signature or in COSE, with a certificate that leads to a trusted root.
//!
//! Nobody is asked: roots, keys of logs and authorities are those that are given.
//!
//! Nothing that an image's registry says is believed: all bytes are held against the digest they were asked for by.

mod cbor;
mod chain;
mod cose;
mod cosign;
mod der;
mod inclusion;
mod jws;
mod keyless;
mod keys;
mod log;
mod notation;
mod timestamp;

use std::collections::BTreeMap;
use std::time::SystemTime;

use dhow_image::Digest;
use serde::Deserialize;

pub use keyless::{Identity, Keyless};
pub use keys::Key;
pub use notation::Roots;

/// Signatures of one image that are looked at.
const MAX_SIGNATURES: usize = 50;
/// Larger than any signature.
pub const MAX_BLOB: u64 = 4 << 20;

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
const JWS: &str = "application/jose+json";
const COSE: &str = "application/cose";
/// Kinds of referrers that may be signatures; others are not fetched.
const KINDS: [&str; 4] = [
    "application/vnd.dev.cosign.",
    BUNDLE,
    "application/vnd.cncf.notary.signature",
    "application/vnd.oci.image.config",
];
/// cosign's signature of a layer, beside it.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// A repository that is asked for an image's signatures.
#[async_trait::async_trait]
pub trait Images: Send + Sync {
    /// Under a tag or digest, with its digest; `None`: there is none.
    async fn manifest(&self, target: &str) -> Result<Option<(Digest, Vec<u8>)>, String>;

    /// At most [`MAX_BLOB`] bytes, which have the digest.
    async fn blob(&self, digest: &Digest) -> Result<Vec<u8>, String>;

    /// Descriptors of what refers to a manifest.
    async fn referrers(&self, subject: &Digest) -> Result<Vec<serde_json::Value>, String>;
}

/// Whose signature counts.
pub enum Authority {
    /// Whoever has the key to one of these.
    Cosign(Vec<Key>),
    /// Whoever a certificate of minutes is about.
    Keyless(Keyless),
    /// Whoever has a certificate of one of these.
    Notation(Roots),
}

/// What an image's registry has that may be a signature.
enum Evidence {
    Simple { payload: Vec<u8>, signature: Vec<u8>, annotations: BTreeMap<String, String> },
    Bundle(Vec<u8>),
    Jws(Vec<u8>),
    Cose(Vec<u8>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
    subject: Option<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: Digest,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Succeeds if one of the authorities signed the image; says why not otherwise.
///
/// # Errors
/// With what was found instead, in words for whoever wanted to run the image.
pub async fn verify(
    images: &dyn Images,
    digest: &Digest,
    authorities: &[Authority],
    now: SystemTime,
) -> Result<(), String> {
    let evidence = collect(images, digest).await?;
    let mut reasons = Vec::new();
    for evidence in &evidence {
        for authority in authorities {
            let verdict = match (evidence, authority) {
                (Evidence::Simple { payload, signature, .. }, Authority::Cosign(keys)) => {
                    cosign::simple(payload, signature, digest, keys)
                }
                (Evidence::Simple { payload, signature, annotations }, Authority::Keyless(trust)) => {
                    keyless::simple(payload, signature, annotations, digest, trust)
                }
                (Evidence::Bundle(bytes), Authority::Keyless(trust)) => keyless::bundle(bytes, digest, trust),
                (Evidence::Bundle(bytes), Authority::Cosign(keys)) => cosign::bundle(bytes, digest, keys),
                (Evidence::Jws(bytes), Authority::Notation(roots)) => {
                    jws::open(bytes).and_then(|signed| notation::judge(&signed, digest, roots, now))
                }
                (Evidence::Cose(bytes), Authority::Notation(roots)) => {
                    cose::open(bytes).and_then(|signed| notation::judge(&signed, digest, roots, now))
                }
                _ => continue,
            };
            match verdict {
                Ok(()) => return Ok(()),
                Err(reason) if !reasons.contains(&reason) => reasons.push(reason),
                Err(_) => {}
            }
        }
    }
    Err(match (evidence.is_empty(), reasons.is_empty()) {
        (true, _) => "it has no signature".to_owned(),
        (false, true) => "it has no signature of the kind that is trusted".to_owned(),
        (false, false) => format!("no signature is one that is trusted: {}", reasons.join("; ")),
    })
}

async fn collect(images: &dyn Images, digest: &Digest) -> Result<Vec<Evidence>, String> {
    let mut found = Vec::new();
    let tag = format!("{}-{}.sig", digest.algorithm(), digest.hex());
    if let Some((_, bytes)) = images.manifest(&tag).await? {
        gather(images, &bytes, &mut found).await?;
    }
    for descriptor in images.referrers(digest).await? {
        let kind = descriptor["artifactType"].as_str().unwrap_or_default();
        if !kind.is_empty() && !KINDS.iter().any(|known| kind.starts_with(known)) {
            continue;
        }
        let Some(Ok(referrer)) = descriptor["digest"].as_str().map(Digest::parse) else { continue };
        let Some((_, bytes)) = images.manifest(referrer.as_str()).await? else { continue };
        let manifest: Manifest =
            serde_json::from_slice(&bytes).unwrap_or(Manifest { layers: Vec::new(), subject: None });
        if manifest.subject.is_some_and(|subject| subject.digest == digest.as_str()) {
            gather(images, &bytes, &mut found).await?;
        }
        if found.len() >= MAX_SIGNATURES {
            break;
        }
    }
    Ok(found)
}

/// What the layers of a manifest are.
async fn gather(images: &dyn Images, manifest: &[u8], found: &mut Vec<Evidence>) -> Result<(), String> {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(manifest) else { return Ok(()) };
    for layer in manifest.layers.iter().take(MAX_SIGNATURES) {
        let kind = layer.media_type.as_str();
        if kind == SIMPLE_SIGNING {
            let Some(signature) = layer.annotations.get(SIGNATURE).and_then(|text| keys::base64(text)) else {
                continue;
            };
            let (payload, annotations) = (images.blob(&layer.digest).await?, layer.annotations.clone());
            found.push(Evidence::Simple { payload, signature, annotations });
        } else if kind.starts_with(BUNDLE) {
            found.push(Evidence::Bundle(images.blob(&layer.digest).await?));
        } else if kind == JWS {
            found.push(Evidence::Jws(images.blob(&layer.digest).await?));
        } else if kind == COSE {
            found.push(Evidence::Cose(images.blob(&layer.digest).await?));
        }
    }
    Ok(())
}
