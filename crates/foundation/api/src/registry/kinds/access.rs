//! Who may do what: authentication, authorization, certificates and rbac.

use super::*;
use crate::table::access as t;
use crate::{defaulting, validation};

macro_rules! review {
    ($group:literal, $kind:literal, $name:literal, $plural:literal, $schema:literal) => {
        kind!($group, "v1", $kind, $plural, $name, $schema).cluster().review()
    };
}

pub(super) const REVIEWS: &[Kind] = &[
    review!("authentication.k8s.io", "TokenReview", "tokenreview", "tokenreviews", "authentication"),
    review!("authentication.k8s.io", "SelfSubjectReview", "selfsubjectreview", "selfsubjectreviews", "authentication"),
    kind!(
        "authorization.k8s.io",
        "v1",
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
        "authorization"
    )
    .review(),
    review!(
        "authorization.k8s.io",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreview",
        "selfsubjectaccessreviews",
        "authorization"
    ),
    review!(
        "authorization.k8s.io",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreview",
        "selfsubjectrulesreviews",
        "authorization"
    ),
    review!(
        "authorization.k8s.io",
        "SubjectAccessReview",
        "subjectaccessreview",
        "subjectaccessreviews",
        "authorization"
    ),
];

pub(super) const CERTIFICATES: &[Kind] = &[
    kind!(
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
        "certificatesigningrequest",
        "certificates"
    )
    .short(&["csr"])
    .cluster()
    .subs(&[Sub::Approval, Sub::Status])
    .fields(&["spec.signerName"])
    .columns(t::SIGNING_REQUEST)
    .updating(crate::strategy::signing_request_update)
    .rules(validation::access::signing_request)
    .update_rules(validation::access::signing_request_update),
    // These two are without a stable version upstream.
    kind!(
        "certificates.k8s.io",
        "v1beta1",
        "PodCertificateRequest",
        "podcertificaterequests",
        "podcertificaterequest",
        "certificates"
    )
    .conditional()
    .subs(&[Sub::Status])
    .fields(&["spec.nodeName", "spec.podName", "spec.signerName"])
    .defaults(defaulting::pod_certificate_request)
    .new_rules(validation::pod_certificates::new_request)
    .update_rules(validation::pod_certificates::request_update)
    .reporting(crate::strategy::pod_certificate_request_status, validation::pod_certificates::request_status),
    kind!(
        "certificates.k8s.io",
        "v1beta1",
        "ClusterTrustBundle",
        "clustertrustbundles",
        "clustertrustbundle",
        "certificates"
    )
    .cluster()
    .conditional()
    .named(names::path_segment)
    .fields(&["spec.signerName"])
    .columns(t::TRUST_BUNDLE)
    .rules(validation::certificates::trust_bundle)
    .new_rules(validation::certificates::new_trust_bundle)
    .update_rules(validation::certificates::trust_bundle_update),
];

macro_rules! rbac {
    ($kind:literal, $plural:literal, $name:literal) => {
        kind!("rbac.authorization.k8s.io", "v1", $kind, $plural, $name, "rbac").named(names::path_segment).upsert()
    };
}

pub(super) const RBAC: &[Kind] = &[
    rbac!("ClusterRole", "clusterroles", "clusterrole").cluster().rules(validation::access::cluster_role),
    rbac!("ClusterRoleBinding", "clusterrolebindings", "clusterrolebinding")
        .cluster()
        .columns(t::ROLE_BINDING)
        .defaults(defaulting::role_binding)
        .rules(validation::access::cluster_role_binding)
        .update_rules(validation::access::role_ref_immutable),
    rbac!("Role", "roles", "role").rules(validation::access::role),
    rbac!("RoleBinding", "rolebindings", "rolebinding")
        .columns(t::ROLE_BINDING)
        .defaults(defaulting::role_binding)
        .rules(validation::access::role_binding)
        .update_rules(validation::access::role_ref_immutable),
];
