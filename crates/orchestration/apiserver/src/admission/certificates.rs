//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction: rights are per signer.

use base64::Engine as _;
use dhow_api::registry::Subresource;
use dhow_api::{Status, meta};
use serde_json::Value;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use super::{Attributes, Operation};
use crate::ApiServer;
use crate::identity::MASTERS;
use crate::rbac;

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub fn validate(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    if !attributes.is(GROUP, "CertificateSigningRequest") {
        return Ok(());
    }
    match (attributes.operation, attributes.subresource, attributes.old) {
        (Operation::Update, Some(Subresource::Approval), Some(old)) => permitted(server, attributes, old, "approve"),
        (Operation::Update, Some(Subresource::Status), Some(old)) if signs(old, &attributes.object) => {
            permitted(server, attributes, old, "sign")
        }
        (Operation::Create, None, _) => subject(attributes),
        _ => Ok(()),
    }
}

/// Whether the certificate changes or the request fails: both are the signer's to do.
fn signs(old: &Value, new: &Value) -> bool {
    let failed = |request: &Value| -> Vec<Value> {
        let conditions = meta::items(request, &["status", "conditions"]).iter();
        conditions.filter(|condition| condition["type"] == "Failed").cloned().collect()
    };
    old["status"]["certificate"] != new["status"]["certificate"] || failed(old) != failed(new)
}

/// Refuses users who may not do this for the request's signer, by name or by domain.
fn permitted(server: &ApiServer, attributes: &Attributes<'_>, request: &Value, verb: &str) -> Result<(), Status> {
    let signer = meta::text(request, &["spec", "signerName"]);
    let domain = signer.split('/').next().unwrap_or_default();
    let may = |name: &str| {
        let question = rbac::Attributes::Resource {
            verb: verb.into(),
            group: GROUP.into(),
            resource: "signers".into(),
            subresource: String::new(),
            namespace: String::new(),
            name: name.into(),
        };
        server.authorizer.allows(attributes.user, &question)
    };
    if may(signer) || may(&format!("{domain}/*")) {
        return Ok(());
    }
    Err(attributes.forbidden(&format!("user not permitted to {verb} requests with signerName {signer:?}")))
}

/// Nobody becomes an administrator by a certificate.
fn subject(attributes: &Attributes<'_>) -> Result<(), Status> {
    if meta::text(&attributes.object, &["spec", "signerName"]) != CLIENT_SIGNER {
        return Ok(());
    }
    let pem = base64::engine::general_purpose::STANDARD
        .decode(meta::text(&attributes.object, &["spec", "request"]))
        .unwrap_or_default();
    // What is no request at all is validation's to refuse.
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&pem) else { return Ok(()) };
    let Ok((_, request)) = X509CertificationRequest::from_der(&pem.contents) else { return Ok(()) };
    let subject = &request.certification_request_info.subject;
    if subject.iter_organization().filter_map(|group| group.as_str().ok()).any(|group| group == MASTERS) {
        return Err(attributes.forbidden(&format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed")));
    }
    Ok(())
}
