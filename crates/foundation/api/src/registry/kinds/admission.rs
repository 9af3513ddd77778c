//! The group admissionregistration.k8s.io.

use super::*;
use crate::defaulting::rows;
use crate::table::admission as t;
use crate::validation::admission as rules;

macro_rules! admission {
    ($kind:literal, $plural:literal, $name:literal) => {
        kind!("admissionregistration.k8s.io", "v1", $kind, $plural, $name, "admissionregistration")
            .cluster()
            .category(&["api-extensions"])
            .counted()
            .conditional()
    };
}

macro_rules! mutating {
    ($kind:literal, $plural:literal, $name:literal) => {
        kind!("admissionregistration.k8s.io", "v1beta1", $kind, $plural, $name, "admissionregistration")
            .cluster()
            .category(&["api-extensions"])
            .counted()
            .conditional()
    };
}

pub(super) const KINDS: &[Kind] = &[
    admission!("MutatingWebhookConfiguration", "mutatingwebhookconfigurations", "mutatingwebhookconfiguration")
        .columns(t::WEBHOOKS)
        .defaults(rows::mutating_webhooks)
        .rules(rules::mutating_webhooks),
    admission!("ValidatingAdmissionPolicy", "validatingadmissionpolicies", "validatingadmissionpolicy")
        .subs(STATUS)
        .columns(t::POLICY)
        .defaults(rows::admission_policy)
        .rules(rules::policy),
    admission!(
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        "validatingadmissionpolicybinding"
    )
    .columns(t::POLICY_BINDING)
    .defaults(rows::admission_policy_binding)
    .rules(rules::policy_binding),
    admission!("ValidatingWebhookConfiguration", "validatingwebhookconfigurations", "validatingwebhookconfiguration")
        .columns(t::WEBHOOKS)
        .defaults(rows::validating_webhooks)
        .rules(rules::validating_webhooks),
    mutating!("MutatingAdmissionPolicy", "mutatingadmissionpolicies", "mutatingadmissionpolicy")
        .columns(t::MUTATING_POLICY)
        .defaults(rows::mutating_policy)
        .rules(rules::mutating_policy),
    mutating!("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings", "mutatingadmissionpolicybinding")
        .columns(t::POLICY_BINDING)
        .defaults(rows::admission_policy_binding)
        .rules(rules::mutating_policy_binding),
];
