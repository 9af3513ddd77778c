//! Certificates that lead to a root.

use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert, ring as algorithms};
use x509_parser::extensions::ExtendedKeyUsage;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Extended key usages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usage {
    CodeSigning,
    TimeStamping,
}

impl Usage {
    fn id(self) -> &'static [u8] {
        match self {
            Usage::CodeSigning => &[43, 6, 1, 5, 5, 7, 3, 3],
            Usage::TimeStamping => &[43, 6, 1, 5, 5, 7, 3, 8],
        }
    }

    /// Whether a certificate says itself that it is for this.
    pub fn is_of(self, certificate: &CertificateDer<'_>) -> bool {
        let says = |usage: &ExtendedKeyUsage<'_>| match self {
            Usage::CodeSigning => usage.code_signing,
            Usage::TimeStamping => usage.time_stamping,
        };
        X509Certificate::from_der(certificate)
            .is_ok_and(|(_, parsed)| matches!(parsed.extended_key_usage(), Ok(Some(usage)) if says(usage.value)))
    }
}

/// All certificates of a text in PEM.
///
/// # Errors
/// When there is none.
pub(super) fn read_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let certificates = certificates.map_err(|error| format!("it is no PEM: {error}"))?;
    if certificates.is_empty() {
        return Err("it has no CERTIFICATE in PEM".to_owned());
    }
    Ok(certificates)
}

/// # Errors
/// When one of them cannot be a root.
pub(super) fn check_roots(certificates: &[CertificateDer<'static>]) -> Result<(), String> {
    for certificate in certificates {
        anchor_from_trusted_cert(certificate).map_err(|error| format!("a certificate cannot be a root: {error}"))?;
    }
    Ok(())
}

/// Whether `signer` led to one of `roots` over `between` at that time, and none of them is for another use.
pub(super) fn is_trusted(
    signer: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    roots: &[CertificateDer<'static>],
    usage: Usage,
    at: SystemTime,
) -> Result<(), String> {
    let untrusted = |error: webpki::Error| format!("the signer's certificate is not trusted: {error}");
    let anchors: Vec<_> = roots.iter().filter_map(|root| anchor_from_trusted_cert(root).ok()).collect();
    let signer = EndEntityCert::try_from(signer).map_err(untrusted)?;
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let at = UnixTime::since_unix_epoch(since);
    let usage = KeyUsage::required_if_present(usage.id());
    signer.verify_for_usage(&known(), &anchors, between, at, usage, None, None).map(drop).map_err(untrusted)
}

fn known() -> Vec<&'static dyn SignatureVerificationAlgorithm> {
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
