//! Certificate signing requests: approved where the requester may have what it asks for, signed, and cleaned away. The
//! authority is published as a trust bundle. Tokens
//! with which machines ask for their first certificate go when they expire.

mod approve;
mod check;
mod clean;
mod publish;
mod sign;
mod tokens;

pub use approve::Approver;
pub use clean::{Cleaner, PodCleaner};
pub use publish::{Publisher, SERVING};
pub use sign::Signer;
pub use tokens::TokenCleaner;

use dhow_base::pki::CertRequest;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";
const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// The condition of a type, if it is there.
fn condition<'a>(request: &'a CertificateSigningRequest, kind: &str) -> Option<&'a CertificateSigningRequestCondition> {
    let conditions = request.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn certificate(request: &CertificateSigningRequest) -> Option<&str> {
    let bytes = request.status.as_ref()?.certificate.as_ref()?;
    std::str::from_utf8(&bytes.0).ok().filter(|pem| !pem.is_empty())
}

/// What is asked for, in PEM and read.
fn asked(request: &CertificateSigningRequest) -> Result<(String, CertRequest), String> {
    let pem = String::from_utf8(request.spec.request.0.clone()).map_err(|_| "the request is no PEM".to_owned())?;
    let read = CertRequest::parse(&pem).map_err(|error| error.to_string())?;
    Ok((pem, read))
}

fn new_condition(kind: &str, reason: &str, message: &str) -> CertificateSigningRequestCondition {
    let now = Time(Timestamp::now());
    CertificateSigningRequestCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    }
}
