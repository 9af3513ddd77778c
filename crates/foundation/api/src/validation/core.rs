//! Quotas, limits, endpoints and pod templates.

use serde_json::Value;

use super::Errors;
use super::common::{amount, ip, quantity};
use super::field::Field;
use crate::names;

const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

/// Resources that a quota names without a domain.
const COUNTED: [&str; 20] = [
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    "storage",
];

/// Whether what a quota limits is counted within the scope. Of what is not built in that is not known.
fn counts_all(scope: &str, hard: &Field) -> bool {
    const COMPUTE: [&str; 6] = ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
    const CLAIMS: [&str; 2] = ["persistentvolumeclaims", "requests.storage"];
    let mut names = hard.value.as_object().into_iter().flat_map(|map| map.keys()).map(String::as_str);
    names.all(|name| {
        !COUNTED.contains(&name)
            || match scope {
                "BestEffort" => name == "pods",
                "VolumeAttributesClass" => CLAIMS.contains(&name),
                _ => name == "pods" || COMPUTE.contains(&name),
            }
    })
}

pub fn resource_quota(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    let hard = spec.at("hard");
    for name in hard.value.as_object().into_iter().flatten().map(|(name, _)| name.as_str()) {
        let field = hard.key(name);
        errors.complaints(&field.path, name, names::qualified_name(name));
        let known = COUNTED.contains(&name)
            || name.contains('/')
            || name.starts_with("requests.")
            || name.starts_with("limits.");
        let huge_pages = name.starts_with("hugepages-");
        if !known && !huge_pages {
            errors.complaints(&field.path, name, vec!["must be a standard resource for quota".into()]);
        }
        amount(&field, errors);
        let whole = name.starts_with("count/") || matches!(name, "pods" | "services" | "secrets" | "configmaps");
        if whole && quantity(&field).is_some_and(|amount| !amount.is_integer()) {
            errors.bad(&field, "must be an integer");
        }
    }
    let mut scopes = Vec::new();
    for scope in spec.at("scopes").items() {
        errors.known(&scope, SCOPES);
        scopes.push(scope.text());
        if !counts_all(scope.text(), &hard) {
            errors.bad(&spec.at("scopes"), "unsupported scope applied to resource");
        }
    }
    for (one, other) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if scopes.contains(&one) && scopes.contains(&other) {
            errors.bad(&spec.at("scopes"), "conflicting scopes");
        }
    }
    for term in spec.at("scopeSelector").at("matchExpressions").items() {
        errors.need_known(&term.at("scopeName"), SCOPES);
        if !counts_all(term.at("scopeName").text(), &hard) {
            errors.bad(&spec.at("scopeSelector"), "unsupported scope applied to resource");
        }
        let values = term.at("values");
        match term.at("operator").text() {
            "In" | "NotIn" if values.len() == 0 => {
                errors.missing(
                    &values,
                    "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
                );
            }
            "Exists" | "DoesNotExist" if values.len() > 0 => {
                errors
                    .bad(&values, "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.bad(&term.at("operator"), "not a valid selector operator"),
        }
    }
}

pub fn resource_quota_update(new: &Value, old: &Value, errors: &mut Errors) {
    errors.fixed(new, old, &["scopes"]);
}

pub fn limit_range(value: &Value, errors: &mut Errors) {
    let limits = Field::spec(value).at("limits");
    for limit in limits.items() {
        let kind = limit.at("type");
        if errors.need(&kind) && !kind.text().contains('/') {
            errors.known(&kind, &["Container", "PersistentVolumeClaim", "Pod"]);
        }
        let defaults = ["default", "defaultRequest"];
        if kind.is("Pod") {
            for name in defaults.iter().filter(|name| limit.at(name).len() > 0) {
                errors.deny(&limit.at(name), "may not be specified when `type` is 'Pod'");
            }
        }
        if kind.is("PersistentVolumeClaim")
            && !limit.at("min").at("storage").present()
            && !limit.at("max").at("storage").present()
        {
            errors.missing(&limit, "either minimum or maximum storage value is required, but neither was provided");
        }
        for (low, high) in [
            ("min", "max"),
            ("min", "defaultRequest"),
            ("min", "default"),
            ("defaultRequest", "default"),
            ("defaultRequest", "max"),
            ("default", "max"),
        ] {
            ordered(&limit, low, high, errors);
        }
        for (name, _) in limit.at("maxLimitRequestRatio").value.as_object().into_iter().flatten() {
            let ratio = limit.at("maxLimitRequestRatio").key(name);
            let one = crate::quantity::Quantity::from_units(1);
            if quantity(&ratio).is_some_and(|ratio| ratio < one) {
                errors.bad(&ratio, "ratio is less than 1");
            }
        }
    }
    let mut seen = Vec::new();
    for limit in limits.items() {
        let kind = limit.at("type");
        if seen.contains(&kind.text()) {
            errors.twice(&kind);
        }
        seen.push(kind.text());
    }
}

/// The lower bound of a resource is not above the higher one. The error is at the one that a person would change.
fn ordered(limit: &Field, low: &str, high: &str, errors: &mut Errors) {
    let (lower, higher) = (limit.at(low), limit.at(high));
    for name in lower.value.as_object().into_iter().flatten().map(|(name, _)| name) {
        let (one, other) = (lower.key(name), higher.key(name));
        if let (Some(least), Some(most)) = (quantity(&one), quantity(&other))
            && least > most
        {
            let title = |name: &str| match name {
                "defaultRequest" => "default request".to_owned(),
                other => other.to_owned(),
            };
            let why = format!("{} value {least} is greater than {} value {most}", title(low), title(high));
            let place = if low == "min" { &one } else { &Field { value: one.value, path: one.path.clone() } };
            errors.bad(place, &why);
        }
    }
}

pub fn endpoints(value: &Value, errors: &mut Errors) {
    for subset in Field::top(value, "subsets").items() {
        let (ready, other) = (subset.at("addresses"), subset.at("notReadyAddresses"));
        if ready.len() + other.len() == 0 {
            errors.missing(&subset, "must specify `addresses` or `notReadyAddresses`");
        }
        for address in ready.items().chain(other.items()) {
            ip(&address.at("ip"), errors);
            if !address.at("hostname").text().is_empty() {
                errors.name(&address.at("hostname"), names::dns1123_label);
            }
        }
        let several = subset.at("ports").len() > 1;
        for port in subset.at("ports").items() {
            let name = port.at("name");
            match (name.text().is_empty(), several) {
                (true, true) => errors.missing(&name, ""),
                (false, _) => errors.name(&name, names::dns1123_label),
                _ => {}
            }
            for problem in names::port_number(port.at("port").int().unwrap_or(0)) {
                errors.bad(&port.at("port"), &problem);
            }
            errors.need_known(&port.at("protocol"), &["SCTP", "TCP", "UDP"]);
        }
    }
}

pub fn pod_template(value: &Value, errors: &mut Errors) {
    super::workload::template(&Field::top(value, "template"), errors);
}
