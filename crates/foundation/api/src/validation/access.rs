//! Roles, bindings and signing requests.

use serde_json::Value;

use super::Errors;
use super::common::selector;
use super::field::Field;
use crate::names;

const GROUP: &str = "rbac.authorization.k8s.io";

pub fn role(value: &Value, errors: &mut Errors) {
    for rule in Field::top(value, "rules").items() {
        policy_rule(&rule, true, errors);
    }
}

pub fn cluster_role(value: &Value, errors: &mut Errors) {
    for rule in Field::top(value, "rules").items() {
        policy_rule(&rule, false, errors);
    }
    let aggregation = Field::top(value, "aggregationRule");
    if !aggregation.present() {
        return;
    }
    let selectors = aggregation.at("clusterRoleSelectors");
    if selectors.len() == 0 {
        errors.missing(&selectors, "at least one clusterRoleSelector required if aggregationRule is non-nil");
    }
    selectors.items().for_each(|one| selector(&one, errors));
}

fn policy_rule(rule: &Field, namespaced: bool, errors: &mut Errors) {
    if rule.at("verbs").len() == 0 {
        errors.missing(&rule.at("verbs"), "verbs must contain at least one value");
    }
    let (urls, resources) = (rule.at("nonResourceURLs"), rule.at("resources"));
    if urls.len() > 0 {
        if namespaced {
            errors.bad(&urls, "namespaced rules cannot apply to non-resource URLs");
        }
        if rule.at("apiGroups").len() > 0 || resources.len() > 0 || rule.at("resourceNames").len() > 0 {
            errors.bad(&urls, "rules cannot apply to both regular resources and non-resource URLs");
        }
        return;
    }
    if rule.at("apiGroups").len() == 0 {
        errors.missing(&rule.at("apiGroups"), "resource rules must supply at least one api group");
    }
    if resources.len() == 0 {
        errors.missing(&resources, "resource rules must supply at least one resource");
    }
}

pub fn role_binding(value: &Value, errors: &mut Errors) {
    binding(value, &["Role", "ClusterRole"], true, errors);
}

pub fn cluster_role_binding(value: &Value, errors: &mut Errors) {
    binding(value, &["ClusterRole"], false, errors);
}

/// A service account that names no namespace is of the binding's own, if that has one.
fn binding(value: &Value, roles: &[&str], namespaced: bool, errors: &mut Errors) {
    let role = Field::top(value, "roleRef");
    errors.known(&role.at("apiGroup"), &[GROUP]);
    if role.at("kind").text().is_empty() {
        errors.known(&Field { value: &Value::String(String::new()), path: role.at("kind").path }, roles);
    } else {
        errors.known(&role.at("kind"), roles);
    }
    errors.need_name(&role.at("name"), names::path_segment);
    for subject in Field::top(value, "subjects").items() {
        errors.need(&subject.at("name"));
        let (group, namespace) = (subject.at("apiGroup"), subject.at("namespace"));
        match subject.at("kind").text() {
            "ServiceAccount" => {
                if !subject.at("name").text().is_empty() {
                    errors.name(&subject.at("name"), names::dns1123_subdomain);
                }
                if !group.text().is_empty() {
                    errors.known(&group, &[""]);
                }
                if !namespaced && namespace.text().is_empty() {
                    errors.missing(&namespace, "");
                }
            }
            "User" | "Group" => errors.known(&group, &[GROUP]),
            _ => errors.known(&subject.at("kind"), &["ServiceAccount", "User", "Group"]),
        }
    }
}

pub fn role_ref_immutable(new: &Value, old: &Value, errors: &mut Errors) {
    if new["roleRef"] != old["roleRef"] {
        errors.bad(&Field::top(new, "roleRef"), "cannot change roleRef");
    }
}

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// A whole PEM block with something like DER in it.
fn is_signing_request(encoded: &str) -> bool {
    let text = crate::strategy::unbase64(encoded).and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let block = text.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    let body: Option<String> = block.map(|(body, _)| body.split_whitespace().collect());
    body.and_then(|body| crate::strategy::unbase64(&body)).is_some_and(|der| der.first() == Some(&SEQUENCE))
}

pub fn signing_request(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    let request = spec.at("request");
    if !is_signing_request(request.text()) {
        errors.bad(&request, "PEM block type must be CERTIFICATE REQUEST");
    }
    let usages = spec.at("usages");
    if usages.len() == 0 {
        errors.missing(&usages, "usages must be provided");
    }
    let mut seen = Vec::new();
    for usage in usages.items() {
        errors.known(&usage, USAGES);
        if seen.contains(&usage.text()) {
            errors.twice(&usage);
        }
        seen.push(usage.text());
    }
    let signer = spec.at("signerName");
    if signer.is("kubernetes.io/legacy-unknown") {
        errors.bad(&signer, "the legacy signerName is not allowed via this API version");
    } else {
        signer_name(&signer, errors);
    }
    let seconds = spec.at("expirationSeconds");
    if seconds.int().is_some_and(|seconds| seconds < 600) {
        errors.bad(&seconds, "may not specify a duration less than 600 seconds (10 minutes)");
    }
    conditions(value, errors);
}

const BEGIN: &str = "-----BEGIN CERTIFICATE REQUEST-----";
const END: &str = "-----END CERTIFICATE REQUEST-----";
/// The tag that a request's DER begins with.
const SEQUENCE: u8 = 0x30;

/// `example.com/signer`.
pub(super) fn signer_name(field: &Field, errors: &mut Errors) {
    if !errors.need(field) {
        return;
    }
    match field.text().split('/').collect::<Vec<_>>().as_slice() {
        [domain, path] if !path.is_empty() => {
            errors.complaints(&field.path, field.text(), names::dns1123_subdomain(domain));
            if !domain.contains('.') {
                errors.bad(field, "should be a domain with at least two segments separated by dots");
            }
            errors.complaints(&field.path, field.text(), names::dns1123_subdomain(path));
        }
        _ => errors.bad(field, "must be a fully qualified domain and path of the form 'example.com/signer-name'"),
    }
}

fn conditions(value: &Value, errors: &mut Errors) {
    let all = Field::top(value, "status").at("conditions");
    for condition in all.items() {
        errors.need(&condition.at("type"));
        errors.need_known(&condition.at("status"), &["False", "True", "Unknown"]);
        let settled = matches!(condition.at("type").text(), "Approved" | "Denied" | "Failed");
        if settled && !condition.at("status").is("True") {
            let why = format!("must be \"True\" for {} condition", condition.at("type").text());
            errors.bad(&condition.at("status"), &why);
        }
    }
    let has = |kind: &str| all.items().any(|condition| condition.at("type").is(kind));
    if has("Approved") && has("Denied") {
        errors.bad(&all, "Approved and Denied conditions are mutually exclusive");
    }
    errors.distinct(&all, "type");
}

pub fn signing_request_update(new: &Value, old: &Value, errors: &mut Errors) {
    errors.same(&Field::spec(new), &Field::spec(old));
    let has = |value: &Value, kind: &str| {
        crate::meta::items(value, &["status", "conditions"]).iter().any(|condition| condition["type"] == kind)
    };
    for kind in ["Approved", "Denied", "Failed"] {
        if has(old, kind) && !has(new, kind) {
            let place = Field::top(new, "status").at("conditions");
            errors.deny(&place, &format!("updates may not remove a condition of type {kind:?}"));
        }
    }
}
