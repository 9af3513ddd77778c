//! Services.

use std::collections::HashSet;

use serde_json::Value;

use super::common::{cidr, ip};
use super::field::Field;
use super::{Errors, FieldError, metadata};
use crate::meta::{items, text};
use crate::names;

pub fn create(service: &Value, errors: &mut Errors) {
    let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    errors.one_of(service, "spec.type", &["spec", "type"], &types);
    errors.one_of(service, "spec.sessionAffinity", &["spec", "sessionAffinity"], &["ClientIP", "None"]);
    let policies = ["Cluster", "Local"];
    for field in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        errors.one_of(service, &format!("spec.{field}"), &["spec", field], &policies);
    }
    let kind = text(service, &["spec", "type"]);
    let headless = text(service, &["spec", "clusterIP"]) == "None";
    if kind == "ExternalName" {
        let name = text(service, &["spec", "externalName"]);
        errors.complaints("spec.externalName", name, names::dns1123_subdomain(name.trim_end_matches('.')));
    } else if items(service, &["spec", "ports"]).is_empty() && !headless {
        errors.push(FieldError::required("spec.ports", ""));
    }
    if headless && (kind == "NodePort" || kind == "LoadBalancer") {
        let why = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", &why));
    }
    ports(service, errors);
    let spec = Field::spec(service);
    metadata::labels(Some(spec.at("selector").value), "spec.selector", errors);
    spec.at("externalIPs").items().for_each(|address| ip(&address, errors));
    for range in spec.at("loadBalancerSourceRanges").items() {
        cidr(&range, errors);
    }
    for field in ["clusterIPs", "ipFamilies"] {
        let values = spec.at(field);
        if values.len() > 2 {
            errors.bad(&values, "may only hold up to 2 values");
        }
    }
    errors.known(&spec.at("ipFamilyPolicy"), &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    spec.at("ipFamilies").items().for_each(|family| errors.known(&family, &["IPv4", "IPv6"]));
    let seconds = spec.at("sessionAffinityConfig").at("clientIP").at("timeoutSeconds");
    if seconds.int().is_some_and(|number| number <= 0 || number > 86_400) {
        errors.bad(&seconds, "must be greater than 0 and less than 86400");
    }
    if kind == "ClusterIP" && spec.at("externalTrafficPolicy").present() && spec.at("externalIPs").len() == 0 {
        let why = "may only be set for externally-accessible services";
        errors.bad(&spec.at("externalTrafficPolicy"), why);
    }
}

fn ports(service: &Value, errors: &mut Errors) {
    let all = items(service, &["spec", "ports"]);
    let (mut names_seen, mut numbers) = (HashSet::new(), HashSet::new());
    for (index, port) in all.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let name = text(port, &["name"]);
        if name.is_empty() && all.len() > 1 {
            errors.push(FieldError::required(&field("name"), ""));
        } else if !name.is_empty() {
            errors.complaints(&field("name"), name, names::dns1123_label(name));
            if !names_seen.insert(name) {
                errors.push(FieldError::duplicate(&field("name"), name));
            }
        }
        let number = port["port"].as_i64().unwrap_or(0);
        for (name, allowed) in [("port", false), ("nodePort", true), ("targetPort", true)] {
            let one = Field { value: &port[name], path: field(name) };
            match one.int() {
                Some(0) | None if allowed => {}
                given => {
                    for problem in names::port_number(given.unwrap_or(0)) {
                        errors.bad(&one, &problem);
                    }
                }
            }
        }
        let protocol = text(port, &["protocol"]);
        errors.one_of(port, &field("protocol"), &["protocol"], &["SCTP", "TCP", "UDP"]);
        if !numbers.insert((protocol, number)) {
            errors.push(FieldError::duplicate(&format!("spec.ports[{index}]"), &number.to_string()));
        }
        if let Some(target) = port["targetPort"].as_str() {
            errors.complaints(&field("targetPort"), target, names::port_name(target));
        }
    }
}

pub fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let (kind, before) = (text(new, &["spec", "type"]), text(old, &["spec", "type"]));
    let held = text(old, &["spec", "clusterIP"]);
    if kind != "ExternalName" && before != "ExternalName" && !held.is_empty() {
        errors.immutable(new, old, "spec.clusterIPs[0]", &["spec", "clusterIP"]);
    }
    if kind != "ExternalName" && before != "ExternalName" {
        families_update(new, old, errors);
    }
}

/// The first family stays; the second one goes only where one family is asked for.
fn families_update(new: &Value, old: &Value, errors: &mut Errors) {
    let list = |service, name| items(service, &["spec", name]).iter().filter_map(Value::as_str).collect::<Vec<_>>();
    let (families, had) = (list(new, "ipFamilies"), list(old, "ipFamilies"));
    let selects = new["spec"]["selector"].as_object().is_some_and(|labels| !labels.is_empty());
    let elsewhere = text(new, &["spec", "clusterIP"]) == "None" && !selects;
    if let (Some(family), Some(held)) = (families.first(), had.first())
        && family != held
        && !elsewhere
    {
        errors.push(FieldError::invalid("spec.ipFamilies[0]", family, "field is immutable"));
    }
    let policy = text(new, &["spec", "ipFamilyPolicy"]);
    for (field, what) in [("clusterIPs", "clusterIP"), ("ipFamilies", "ipFamily")] {
        if list(old, field).len() == 2 && list(new, field).len() == 1 && policy != "SingleStack" {
            let why = format!("must be set to 'SingleStack' when releasing the secondary {what}");
            errors.push(FieldError::invalid("spec.ipFamilyPolicy", policy, &why));
        }
    }
}
