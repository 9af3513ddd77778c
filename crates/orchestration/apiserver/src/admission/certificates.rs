//! CertificateApproval, CertificateSigning, CertificateSubjectRestriction and ClusterTrustBundleAttest: rights are per
//! signer, those to give pods their certificates as well.

use base64::Engine as _;
use dhow_api::registry::Subresource;
use dhow_api::validation::FieldError;
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
    if attributes.is(GROUP, "ClusterTrustBundle") {
        return attested(server, attributes);
    }
    if attributes.is(GROUP, "PodCertificateRequest") {
        return issued(server, attributes);
    }
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

/// A bundle of a signer is published by who may speak for it. Its signer never changes.
fn attested(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    let writes = matches!(attributes.operation, Operation::Create | Operation::Update);
    let signer = meta::text(&attributes.object, &["spec", "signerName"]);
    if !writes || signer.is_empty() || attributes.old.is_some_and(|old| says_the_same(old, &attributes.object)) {
        return Ok(());
    }
    if may(server, attributes, signer, "attest") {
        return Ok(());
    }
    Err(attributes.forbidden(&format!("user not permitted to attest for signerName {signer:?}")))
}

/// Whether two forms of an object differ in what garbage collection and storage migration write, at most.
fn says_the_same(old: &Value, new: &Value) -> bool {
    let bare = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            for field in ["finalizers", "managedFields", "ownerReferences", "resourceVersion"] {
                metadata.remove(field);
            }
        }
        object
    };
    bare(old) == bare(new)
}

/// A pod's certificate is its signer's to give; who may write the status may still deny it.
fn issued(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    let (Some(Subresource::Status), Some(old)) = (attributes.subresource, attributes.old) else { return Ok(()) };
    let chain = |request: &Value| meta::text(request, &["status", "certificateChain"]).to_owned();
    let signer = meta::text(old, &["spec", "signerName"]);
    if chain(old) == chain(&attributes.object) || may(server, attributes, signer, "sign") {
        return Ok(());
    }
    let why = format!("User {:?} is not permitted to \"sign\" for signer {signer:?}", attributes.user.name);
    let errors = [FieldError::forbidden("spec.signerName", &why)];
    Err(Status::invalid(GROUP, "PodCertificateRequest", attributes.name, &errors))
}

/// Refuses users who may not do this for the request's signer.
fn permitted(server: &ApiServer, attributes: &Attributes<'_>, request: &Value, verb: &str) -> Result<(), Status> {
    let signer = meta::text(request, &["spec", "signerName"]);
    if may(server, attributes, signer, verb) {
        return Ok(());
    }
    Err(attributes.forbidden(&format!("user not permitted to {verb} requests with signerName {signer:?}")))
}

/// Whether a user may do this for a signer, by its name or its domain.
fn may(server: &ApiServer, attributes: &Attributes<'_>, signer: &str, verb: &str) -> bool {
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
    may(signer) || may(&format!("{domain}/*"))
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
