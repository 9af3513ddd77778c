//! Reading certificates back: is this one still ours, still right, still alive?

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::CertSpec;
use crate::{Error, Result};

/// A certificate or a request for one, as far as `spec` says.
pub(super) fn parameters(spec: &CertSpec) -> Result<CertificateParams> {
    let failed = |source| Error::Issue { subject: spec.common_name().to_owned(), source };
    let mut params = CertificateParams::new(spec.sans()).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, spec.common_name());
    push_groups(&mut params.distinguished_name, spec)?;
    Ok(params)
}

/// Adds one organisation per group.
pub(super) fn push_groups(name: &mut DistinguishedName, spec: &CertSpec) -> Result<()> {
    // `DistinguishedName` holds one value per attribute type, and takes the second organisation only when the type is
    // spelled as a bare OID (2.5.4.10).
    let types = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
    if spec.groups().len() > types.len() {
        return Err(Error::Certificate(format!(
            "{:?} has {} groups; a certificate carries at most {}",
            spec.common_name(),
            spec.groups().len(),
            types.len()
        )));
    }
    for (ty, group) in types.into_iter().zip(spec.groups()) {
        name.push(ty, group.as_str());
    }
    Ok(())
}

fn with_certificate<T>(cert_pem: &str, read: impl FnOnce(&X509Certificate<'_>) -> T) -> Result<T> {
    let der = CertificateDer::from_pem_slice(cert_pem.as_bytes())
        .map_err(|e| Error::Certificate(format!("no PEM certificate: {e}")))?;
    let (_, certificate) =
        X509Certificate::from_der(&der).map_err(|e| Error::Certificate(format!("malformed: {e}")))?;
    Ok(read(&certificate))
}

pub(super) fn same_key(cert_pem: &str, key: &KeyPair) -> Result<bool> {
    with_certificate(cert_pem, |cert| *cert.public_key().subject_public_key.data == *key.public_key_raw())
}

/// When a certificate should be replaced: a third of its life before it ends.
pub fn renewal_time(cert_pem: &str) -> Result<SystemTime> {
    with_certificate(cert_pem, |cert| {
        let seconds = |t: i64| Duration::from_secs(u64::try_from(t).unwrap_or(0));
        let start = seconds(cert.validity().not_before.timestamp());
        let end = seconds(cert.validity().not_after.timestamp());
        SystemTime::UNIX_EPOCH + end.saturating_sub(end.saturating_sub(start) / 3)
    })
}

/// When a certificate ends.
pub fn expires(cert_pem: &str) -> Result<SystemTime> {
    with_certificate(cert_pem, |cert| {
        let end = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(end)
    })
}

/// Whether a certificate that somebody else signed is for `spec` and this key, and not over.
pub fn serves(cert_pem: &str, key_pem: &str, spec: &CertSpec) -> bool {
    let Ok(key) = KeyPair::from_pem(key_pem) else { return false };
    expires(cert_pem).is_ok_and(|end| SystemTime::now() < end)
        && same_key(cert_pem, &key).unwrap_or(false)
        && with_certificate(cert_pem, |cert| {
            subject_matches(cert, spec) && sans_match(cert, spec) && usages_match(cert, spec)
        })
        .unwrap_or(false)
}

/// A certificate's SubjectPublicKeyInfo.
pub(super) fn public_key_info(cert_pem: &str) -> Result<Vec<u8>> {
    with_certificate(cert_pem, |cert| cert.public_key().raw.to_vec())
}

/// Whether less than a third of the certificate's life is left; one that cannot be read needs renewal, too.
pub fn needs_renewal(cert_pem: &str) -> bool {
    renewal_time(cert_pem).map_or(true, |time| SystemTime::now() >= time)
}

/// Whether a pair on disk can go on being used for `spec` under this authority.
pub(super) fn still_good(cert_pem: &str, key_pem: &str, ca_pem: &str, spec: &CertSpec) -> bool {
    if needs_renewal(cert_pem) {
        return false;
    }
    let Ok(key) = KeyPair::from_pem(key_pem) else { return false };
    if !same_key(cert_pem, &key).unwrap_or(false) {
        return false;
    }
    let Ok(Some(authority)) = with_certificate(ca_pem, subject_key_id) else { return false };
    with_certificate(cert_pem, |cert| {
        authority_key_id(cert).is_some_and(|id| id == authority)
            && subject_matches(cert, spec)
            && sans_match(cert, spec)
            && usages_match(cert, spec)
    })
    .unwrap_or(false)
}

fn subject_key_id(cert: &X509Certificate<'_>) -> Option<Vec<u8>> {
    cert.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

fn authority_key_id(cert: &X509Certificate<'_>) -> Option<Vec<u8>> {
    cert.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|k| k.0.to_vec()),
        _ => None,
    })
}

fn subject_matches(cert: &X509Certificate<'_>, spec: &CertSpec) -> bool {
    let names: Vec<&str> = cert.subject().iter_common_name().filter_map(|a| a.as_str().ok()).collect();
    let mut groups: Vec<&str> = cert.subject().iter_organization().filter_map(|a| a.as_str().ok()).collect();
    let mut wanted: Vec<&str> = spec.groups().iter().map(String::as_str).collect();
    groups.sort_unstable();
    wanted.sort_unstable();
    names == [spec.common_name()] && groups == wanted
}

fn sans_match(cert: &X509Certificate<'_>, spec: &CertSpec) -> bool {
    let mut have: Vec<String> = Vec::new();
    if let Ok(Some(sans)) = cert.subject_alternative_name() {
        have.extend(sans.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|ip| ip.to_string()),
            _ => None,
        }));
    }
    let mut wanted: Vec<String> =
        spec.sans().iter().map(|s| s.parse::<IpAddr>().map_or_else(|_| s.clone(), |ip| ip.to_string())).collect();
    have.sort_unstable();
    wanted.sort_unstable();
    have == wanted
}

fn usages_match(cert: &X509Certificate<'_>, spec: &CertSpec) -> bool {
    let Ok(Some(usage)) = cert.extended_key_usage() else { return false };
    let (server, client) = match spec {
        CertSpec::Server { .. } | CertSpec::ServerOf { .. } => (true, false),
        CertSpec::Client { .. } => (false, true),
        CertSpec::Peer { .. } => (true, true),
    };
    usage.value.server_auth == server && usage.value.client_auth == client
}

pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}
