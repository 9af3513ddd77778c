//! Certificate signing requests (RFC 2986): made for ourselves, read from others.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::{BACKDATE, CertSpec, ClusterCa, leaf};
use crate::{Error, Result};

/// What a request asks for. Its signature has been checked, so whoever made it has the key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertRequest {
    pub common_name: String,
    pub organisations: Vec<String>,
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub emails: Vec<String>,
    pub uris: Vec<String>,
    /// Names of other kinds, and whether the subject has other parts than common name and organisations.
    pub others: bool,
}

impl CertRequest {
    /// Reads a PEM request, which anybody may have written.
    pub fn parse(pem: &str) -> Result<Self> {
        let bad = |what: &str| Error::Certificate(format!("certificate request: {what}"));
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| bad("no PEM"))?;
        if pem.label != "CERTIFICATE REQUEST" {
            return Err(bad("PEM block type must be CERTIFICATE REQUEST"));
        }
        let (rest, request) = X509CertificationRequest::from_der(&pem.contents).map_err(|_| bad("malformed"))?;
        if !rest.is_empty() {
            return Err(bad("something follows it"));
        }
        // Checks the signature, too.
        rcgen::CertificateSigningRequestParams::from_der(&pem.contents.as_slice().into())
            .map_err(|error| bad(&error.to_string()))?;
        let mut read = Self::default();
        let subject = &request.certification_request_info.subject;
        for attribute in subject.iter_attributes() {
            let text = attribute.as_str().map_err(|_| bad("a name that is no text"))?.to_owned();
            match attribute.attr_type().to_id_string().as_str() {
                "2.5.4.3" if read.common_name.is_empty() => read.common_name = text,
                "2.5.4.10" => read.organisations.push(text),
                _ => read.others = true,
            }
        }
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(name) => read.dns_names.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => {
                        read.addresses.push(leaf::address(bytes).ok_or_else(|| bad("an address that is none"))?);
                    }
                    GeneralName::RFC822Name(name) => read.emails.push((*name).to_owned()),
                    GeneralName::URI(name) => read.uris.push((*name).to_owned()),
                    _ => read.others = true,
                }
            }
        }
        Ok(read)
    }

    /// Every alternative name that a certificate of ours can carry.
    pub fn sans(&self) -> Vec<String> {
        self.dns_names.iter().cloned().chain(self.addresses.iter().map(ToString::to_string)).collect()
    }
}

impl ClusterCa {
    /// Signs somebody's request with the subject and names it asks for, for `usages` in the words of the certificates
    /// API. The caller has decided that it may be so.
    pub fn sign_request(&self, csr_pem: &str, usages: &[String], life: Duration) -> Result<String> {
        let asked = CertRequest::parse(csr_pem)?;
        let failed = |source| Error::Issue { subject: asked.common_name.clone(), source };
        if asked.others || !asked.emails.is_empty() || !asked.uris.is_empty() {
            return Err(Error::Certificate("certificate request: it asks for names that are not signed here".into()));
        }
        let mut csr = rcgen::CertificateSigningRequestParams::from_pem(csr_pem).map_err(failed)?;
        let mut params = CertificateParams::new(asked.sans()).map_err(failed)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, asked.common_name.as_str());
        let groups = CertSpec::Client { user: asked.common_name.clone(), groups: asked.organisations.clone() };
        leaf::push_groups(&mut params.distinguished_name, &groups)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        for usage in usages {
            match usage.as_str() {
                "signing" | "digital signature" => params.key_usages.push(KeyUsagePurpose::DigitalSignature),
                "content commitment" => params.key_usages.push(KeyUsagePurpose::ContentCommitment),
                "key encipherment" => params.key_usages.push(KeyUsagePurpose::KeyEncipherment),
                "key agreement" => params.key_usages.push(KeyUsagePurpose::KeyAgreement),
                "data encipherment" => params.key_usages.push(KeyUsagePurpose::DataEncipherment),
                "server auth" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth),
                "client auth" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth),
                other => return Err(Error::Certificate(format!("usage {other:?} is not signed here"))),
            }
        }
        params.not_before = (SystemTime::now() - BACKDATE).into();
        // Nobody would believe it for longer than its authority.
        params.not_after = (SystemTime::now() + life).min(leaf::expires(self.cert_pem())?).into();
        csr.params = params;
        Ok(csr.signed_by(&self.issuer).map_err(failed)?.pem())
    }
}

/// A new key and a request for a certificate as `spec`, both PEM: the request, then the key.
pub fn new_request(spec: &CertSpec) -> Result<(String, String)> {
    let failed = |source| Error::Issue { subject: spec.common_name().to_owned(), source };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let params = leaf::parameters(spec)?;
    let request = params.serialize_request(&key).and_then(|request| request.pem()).map_err(failed)?;
    Ok((request, key.serialize_pem()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back() {
        let spec = CertSpec::Peer {
            user: "system:node:a".into(),
            groups: vec!["system:nodes".into()],
            sans: vec!["a".into(), "192.0.2.7".into(), "2001:db8::7".into()],
        };
        let (request, key) = new_request(&spec).unwrap();
        assert!(key.contains("PRIVATE KEY"));
        let read = CertRequest::parse(&request).unwrap();
        assert_eq!(
            (read.common_name.as_str(), read.organisations.as_slice()),
            ("system:node:a", ["system:nodes".to_owned()].as_slice())
        );
        assert_eq!(read.sans(), ["a", "192.0.2.7", "2001:db8::7"]);
        assert!(!read.others && read.emails.is_empty() && read.uris.is_empty());
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let (request, _) = new_request(&CertSpec::client("a", &[])).unwrap();
        for bad in [
            String::new(),
            request.replace(" REQUEST", ""),
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n".into(),
        ] {
            assert!(CertRequest::parse(&bad).is_err(), "{bad}");
        }
        // A request whose signature is of another key.
        let (other, _) = new_request(&CertSpec::client("b", &[])).unwrap();
        let der = |pem: &str| x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents;
        let (mut one, two) = (der(&request), der(&other));
        let tail = one.len() - 60;
        one.truncate(tail);
        one.extend_from_slice(&two[two.len() - 60..]);
        let pem = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, one)
        );
        assert!(CertRequest::parse(&pem).is_err());
    }
}
