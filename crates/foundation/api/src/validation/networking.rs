//! The group networking.k8s.io.

use serde_json::Value;

use super::Errors;
use super::common::{cidr, domain_path, host, network, selector, within};
use super::field::Field;
use crate::meta::text;
use crate::names;

pub fn ingress(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    let (rules, fallback) = (spec.at("rules"), spec.at("defaultBackend"));
    if rules.len() == 0 && !fallback.present() {
        errors.bad_value(&spec.path, rules.value, "either `defaultBackend` or `rules` must be specified");
    }
    if fallback.present() {
        backend(&fallback, errors);
    }
    for rule in rules.items() {
        if !rule.at("host").text().is_empty() {
            host(&rule.at("host"), errors);
        }
        let http = rule.at("http");
        if http.present() && http.at("paths").len() == 0 {
            errors.missing(&http.at("paths"), "");
        }
        http.at("paths").items().for_each(|path| ingress_path(&path, errors));
    }
    for tls in spec.at("tls").items() {
        for name in tls.at("hosts").items() {
            match name.text().contains('*') {
                true => errors.name(&name, names::wildcard_subdomain),
                false => errors.name(&name, names::dns1123_subdomain),
            }
        }
        if !tls.at("secretName").text().is_empty() {
            errors.name(&tls.at("secretName"), names::dns1123_subdomain);
        }
    }
    errors.name(&spec.at("ingressClassName"), names::dns1123_subdomain);
    let annotated = text(value, &["metadata", "annotations", "kubernetes.io/ingress.class"]);
    if !annotated.is_empty() && spec.at("ingressClassName").present() && spec.at("ingressClassName").text() != annotated
    {
        let why = "must match `ingressClassName` when both are specified";
        errors.bad_value("annotations.kubernetes.io/ingress.class", &annotated.into(), why);
    }
}

fn ingress_path(path: &Field, errors: &mut Errors) {
    let (kind, text) = (path.at("pathType"), path.at("path"));
    if !kind.present() {
        return errors.missing(&kind, "pathType must be specified");
    }
    let absolute = text.text().starts_with('/');
    match kind.text() {
        "Exact" | "Prefix" => {
            if !absolute {
                errors.bad(&text, "must be an absolute path");
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"] {
                if text.text().contains(part) {
                    errors.bad(&text, &format!("must not contain '{part}'"));
                }
            }
            for end in ["/..", "/."] {
                if text.text().ends_with(end) {
                    errors.bad(&text, &format!("cannot end with '{end}'"));
                }
            }
        }
        "ImplementationSpecific" if !text.text().is_empty() && !absolute => {
            errors.bad(&text, "must be an absolute path");
        }
        _ => errors.known(&kind, &["Exact", "ImplementationSpecific", "Prefix"]),
    }
    backend(&path.at("backend"), errors);
}

fn backend(backend: &Field, errors: &mut Errors) {
    let (resource, service) = (backend.at("resource"), backend.at("service"));
    match (resource.present(), service.present()) {
        (true, true) => {
            errors.complaints(&backend.path, "", vec!["cannot set both resource and service backends".into()])
        }
        (false, false) => errors.complaints(&backend.path, "", vec!["resource or service backend is required".into()]),
        (true, false) => typed_reference(&resource, errors),
        (false, true) => {
            errors.need_name(&service.at("name"), names::dns1035_label);
            let port = service.at("port");
            let (name, number) = (port.at("name"), port.at("number"));
            match (!name.text().is_empty(), number.int().unwrap_or(0) != 0) {
                (true, true) => {
                    errors.complaints(&backend.path, "", vec!["cannot set both port name & port number".into()]);
                }
                (true, false) => errors.name(&name, names::port_name),
                (false, true) => {
                    for problem in names::port_number(number.int().unwrap_or(0)) {
                        errors.bad(&number, &problem);
                    }
                }
                (false, false) => errors.missing(backend, "port name or number is required"),
            }
        }
    }
}

fn typed_reference(field: &Field, errors: &mut Errors) {
    errors.name(&field.at("apiGroup"), names::dns1123_subdomain);
    for (name, why) in [("kind", "kind is required"), ("name", "name is required")] {
        match field.at(name).text() {
            "" => errors.missing(&field.at(name), why),
            _ => errors.name(&field.at(name), names::path_segment),
        }
    }
}

pub fn ingress_class(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    errors.at_most_bytes(&spec.at("controller"), 250);
    domain_path(&spec.at("controller"), errors);
    let parameters = spec.at("parameters");
    if !parameters.present() {
        return;
    }
    typed_reference(&parameters, errors);
    let (scope, namespace) = (parameters.at("scope"), parameters.at("namespace"));
    errors.need_known(&scope, &["Cluster", "Namespace"]);
    match (scope.text(), namespace.present()) {
        ("Namespace", false) => errors.missing(&namespace, "`parameters.scope` is set to 'Namespace'"),
        ("Namespace", true) => errors.name(&namespace, names::dns1123_label),
        ("Cluster", true) => errors.deny(&namespace, "`parameters.scope` is set to 'Cluster'"),
        _ => {}
    }
}

pub fn ingress_class_update(new: &Value, old: &Value, errors: &mut Errors) {
    errors.fixed(new, old, &["controller"]);
}

pub fn network_policy(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    selector(&spec.at("podSelector"), errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.at(direction).items() {
            rule.at("ports").items().for_each(|port| policy_port(&port, errors));
            rule.at(peers).items().for_each(|peer| policy_peer(&peer, errors));
        }
    }
    let types = spec.at("policyTypes");
    if types.len() > 2 {
        return errors.bad(&types, "may not specify more than two policyTypes");
    }
    types.items().for_each(|kind| errors.known(&kind, &["Ingress", "Egress"]));
}

fn policy_port(port: &Field, errors: &mut Errors) {
    errors.known(&port.at("protocol"), &["SCTP", "TCP", "UDP"]);
    let (number, end) = (port.at("port"), port.at("endPort"));
    match number.value {
        Value::Number(_) => {
            let first = number.int().unwrap_or(0);
            for problem in names::port_number(first) {
                errors.bad(&number, &problem);
            }
            if let Some(last) = end.int() {
                if last < first {
                    errors.bad(&end, "must be greater than or equal to `port`");
                }
                for problem in names::port_number(last) {
                    errors.bad(&end, &problem);
                }
            }
        }
        Value::String(_) => {
            if end.present() {
                errors.bad(&end, "may not be specified when `port` is non-numeric");
            }
            errors.name(&number, names::port_name);
        }
        _ if end.present() => errors.bad(&end, "may not be specified when `port` is not specified"),
        _ => {}
    }
}

fn policy_peer(peer: &Field, errors: &mut Errors) {
    let (pods, namespaces, block) = (peer.at("podSelector"), peer.at("namespaceSelector"), peer.at("ipBlock"));
    selector(&pods, errors);
    selector(&namespaces, errors);
    if block.present() {
        let range = block.at("cidr");
        if errors.need(&range)
            && let Some(outer) = cidr(&range, errors)
        {
            for except in block.at("except").items() {
                if let Some(inner) = cidr(&except, errors)
                    && !within(inner, outer)
                {
                    errors.bad(&except, "must be a strict subset of `cidr`");
                }
            }
        }
    }
    match (pods.present() || namespaces.present(), block.present()) {
        (false, false) => errors.missing(peer, "must specify a peer"),
        (true, true) => errors.deny(peer, "may not specify both ipBlock and another peer"),
        _ => {}
    }
}

pub fn ip_address(value: &Value, errors: &mut Errors) {
    let parent = Field::spec(value).at("parentRef");
    if !parent.present() {
        return errors.missing(&parent, "");
    }
    if !parent.at("group").text().is_empty() {
        errors.name(&parent.at("group"), names::dns1123_subdomain);
    }
    errors.need_name(&parent.at("resource"), names::path_segment);
    errors.need_name(&parent.at("name"), names::path_segment);
    errors.name(&parent.at("namespace"), names::path_segment);
}

pub fn ip_address_update(new: &Value, old: &Value, errors: &mut Errors) {
    errors.fixed(new, old, &["parentRef"]);
}

pub fn service_cidr(value: &Value, errors: &mut Errors) {
    let cidrs = Field::spec(value).at("cidrs");
    match cidrs.len() {
        0 => return errors.missing(&cidrs, "at least one CIDR required"),
        1 => {}
        2 => {
            let families: Vec<Option<bool>> =
                cidrs.items().map(|range| network(range.text()).map(|(address, _)| address.is_ipv4())).collect();
            if families[0].is_none() || families[1].is_none() || families[0] == families[1] {
                let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
                return errors.bad(&cidrs, why);
            }
        }
        _ => return errors.bad(&cidrs, "may only hold up to 2 values"),
    }
    for range in cidrs.items() {
        cidr(&range, errors);
    }
}

pub fn service_cidr_update(new: &Value, old: &Value, errors: &mut Errors) {
    let list = |object| crate::meta::items(object, &["spec", "cidrs"]);
    // A cluster may gain its second family.
    if let ([first, _], [only]) = (list(new), list(old))
        && first == only
    {
        return;
    }
    errors.fixed(new, old, &["cidrs"]);
}
