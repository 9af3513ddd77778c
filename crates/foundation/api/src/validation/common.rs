//! What several kinds have in common: selectors, references, webhooks, addresses, amounts.

use std::net::IpAddr;

use serde_json::Value;

use super::field::{Field, NOT_NEGATIVE};
use super::{Errors, metadata};
use crate::names;
use crate::quantity::Quantity;

/// A label selector.
pub(super) fn selector(field: &Field, errors: &mut Errors) {
    let labels = field.at("matchLabels");
    metadata::labels(Some(labels.value), &labels.path, errors);
    for term in field.at("matchExpressions").items() {
        let values = term.at("values");
        match term.at("operator").text() {
            "In" | "NotIn" if values.len() == 0 => {
                errors.missing(&values, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if values.len() > 0 => {
                errors.deny(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.bad(&term.at("operator"), "not a valid selector operator"),
        }
        let key = term.at("key");
        errors.complaints(&key.path, key.text(), names::qualified_name(key.text()));
        for value in values.items() {
            errors.name(&value, names::label_value);
        }
    }
}

/// A selector of nodes, with its terms.
pub(super) fn node_selector(field: &Field, errors: &mut Errors) {
    if !field.present() {
        return;
    }
    let terms = field.at("nodeSelectorTerms");
    if terms.len() == 0 {
        errors.missing(&terms, "must have at least one node selector term");
    }
    terms.items().for_each(|term| node_selector_term(&term, errors));
}

pub(super) fn node_selector_term(term: &Field, errors: &mut Errors) {
    for requirement in term.at("matchExpressions").items() {
        let values = requirement.at("values");
        match requirement.at("operator").text() {
            "In" | "NotIn" if values.len() == 0 => {
                errors.missing(&values, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if values.len() > 0 => {
                errors.deny(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            "Gt" | "Lt" if values.len() != 1 => {
                errors.missing(&values, "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => errors.bad(&requirement.at("operator"), "not a valid selector operator"),
        }
        let key = requirement.at("key");
        errors.complaints(&key.path, key.text(), names::qualified_name(key.text()));
    }
    for requirement in term.at("matchFields").items() {
        let values = requirement.at("values");
        match requirement.at("operator").text() {
            "In" | "NotIn" if values.len() != 1 => {
                errors.missing(
                    &values,
                    "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                );
            }
            "In" | "NotIn" => {}
            _ => errors.bad(&requirement.at("operator"), "not a valid selector operator"),
        }
        if !requirement.at("key").is("metadata.name") {
            errors.bad(&requirement.at("key"), "not a valid field selector key");
        }
    }
}

/// A number or a percentage, not negative. Returns its number.
pub(super) fn int_or_percent(field: &Field, errors: &mut Errors) -> i64 {
    match field.value {
        Value::String(text) => match text.strip_suffix('%').and_then(|digits| digits.parse::<i64>().ok()) {
            Some(number) if number >= 0 => return number,
            _ => errors.bad(
                field,
                "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
                 regex used for validation is '[0-9]+%')",
            ),
        },
        Value::Number(number) => {
            let number = number.as_i64().unwrap_or(-1);
            if number < 0 {
                errors.bad(field, NOT_NEGATIVE);
            }
            return number;
        }
        _ => {}
    }
    0
}

/// Not more than the whole.
pub(super) fn at_most_all(field: &Field, errors: &mut Errors) {
    let percent = field.text().strip_suffix('%').and_then(|digits| digits.parse::<i64>().ok());
    if percent.is_some_and(|percent| percent > 100) {
        errors.bad(field, "must not be greater than 100%");
    }
}

pub(super) fn quantity(field: &Field) -> Option<Quantity> {
    match field.value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

const QUANTITY: &str = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// A quantity that is not negative.
pub(super) fn amount(field: &Field, errors: &mut Errors) {
    match quantity(field) {
        None if field.present() => errors.bad(field, QUANTITY),
        Some(amount) if amount.is_negative() => errors.bad(field, NOT_NEGATIVE),
        _ => {}
    }
}

/// A quantity above zero.
pub(super) fn positive(field: &Field, errors: &mut Errors) {
    match quantity(field) {
        None if field.present() => errors.bad(field, QUANTITY),
        Some(amount) if amount.is_negative() || amount.is_zero() => errors.bad(field, "must be greater than zero"),
        _ => {}
    }
}

/// `acme.io/foo`.
pub(super) fn domain_path(field: &Field, errors: &mut Errors) {
    if !errors.need(field) {
        return;
    }
    match field.text().split_once('/') {
        Some((host, path)) if !host.is_empty() && !path.is_empty() => {
            errors.complaints(&field.path, host, names::dns1123_subdomain(host));
            let fine = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
            if !path.bytes().all(fine) {
                let why = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
                errors.complaints(&field.path, path, vec![why.to_owned()]);
            }
        }
        _ => errors.bad(field, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    }
}

/// A name of at least three segments.
pub(super) fn qualified(field: &Field, errors: &mut Errors) {
    if !errors.need(field) {
        return;
    }
    errors.name(field, names::dns1123_subdomain);
    if field.text().split('.').count() < 3 {
        errors.bad(field, "should be a domain with at least three segments separated by dots");
    }
}

/// A host name, or one whose first label is `*`.
pub(super) fn host(field: &Field, errors: &mut Errors) {
    if field.text().parse::<IpAddr>().is_ok() {
        errors.bad(field, "must be a DNS name, not an IP address");
    }
    match field.text().contains('*') {
        true => errors.name(field, names::wildcard_subdomain),
        false => errors.name(field, names::dns1123_subdomain),
    }
}

pub(super) fn ip(field: &Field, errors: &mut Errors) {
    if field.present() && field.text().parse::<IpAddr>().is_err() {
        errors.bad(field, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

/// A network as its address and prefix length.
pub(super) fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let (address, length): (IpAddr, u8) = (address.parse().ok()?, length.parse().ok()?);
    (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
}

pub(super) fn cidr(field: &Field, errors: &mut Errors) -> Option<(IpAddr, u8)> {
    let network = network(field.text());
    if network.is_none() {
        errors.bad(field, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
    }
    network
}

/// Whether a network lies within another, and is smaller.
pub(super) fn within(inner: (IpAddr, u8), outer: (IpAddr, u8)) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
        IpAddr::V6(v6) => u128::from(v6),
    };
    let mask = if outer.1 == 0 { 0 } else { u128::MAX << (128 - u32::from(outer.1)) };
    inner.0.is_ipv4() == outer.0.is_ipv4() && inner.1 > outer.1 && bits(inner.0) & mask == bits(outer.0) & mask
}

/// Where a webhook is called: a URL or a service.
pub(super) fn webhook(config: &Field, errors: &mut Errors) {
    let (url, service) = (config.at("url"), config.at("service"));
    match (url.present(), service.present()) {
        (true, false) => webhook_url(&url, errors),
        (false, true) => webhook_service(&service, errors),
        _ => errors.missing(config, "exactly one of url or service is required"),
    }
}

fn webhook_url(url: &Field, errors: &mut Errors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let rest = match url.text().split_once("://") {
        Some(("https", rest)) => rest,
        Some((scheme, _)) => {
            let why = format!("'https' is the only allowed URL scheme{FORM}");
            return errors.complaints(&url.path, scheme, vec![why]);
        }
        None => return errors.complaints(&url.path, "", vec![format!("'https' is the only allowed URL scheme{FORM}")]),
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() {
        errors.complaints(&url.path, "", vec![format!("host must be specified{FORM}")]);
    }
    if let Some((user, _)) = host.split_once('@') {
        errors.complaints(&url.path, user, vec!["user information is not permitted in the URL".into()]);
    }
    if let Some((_, fragment)) = rest.split_once('#') {
        errors.complaints(&url.path, fragment, vec!["fragments are not permitted in the URL".into()]);
    }
    if let Some((_, query)) = rest.split('#').next().and_then(|rest| rest.split_once('?')) {
        errors.complaints(&url.path, query, vec!["query parameters are not permitted in the URL".into()]);
    }
}

fn webhook_service(service: &Field, errors: &mut Errors) {
    for (name, why) in [("name", "service name is required"), ("namespace", "service namespace is required")] {
        if service.at(name).text().is_empty() {
            errors.missing(&service.at(name), why);
        }
    }
    let port = service.at("port");
    if let Some(number) = port.int() {
        for problem in names::port_number(number) {
            errors.bad(&port, &format!("port is not valid: {problem}"));
        }
    }
    let path = service.at("path");
    if path.present() && !path.text().starts_with('/') {
        errors.bad(&path, "must start with a '/'");
    }
}

/// `kind` and `name` of a reference.
pub(super) fn reference(field: &Field, errors: &mut Errors) {
    errors.need_name(&field.at("kind"), names::path_segment);
    errors.need_name(&field.at("name"), names::path_segment);
}

/// Whether a list that holds `*` holds anything else beside it.
pub(super) fn lonely_wildcard(field: &Field, errors: &mut Errors, what: &str) {
    if field.contains("*") && field.len() > 1 {
        errors.bad(field, &format!("if '*' is present, must not specify other {what}"));
    }
}

/// A map of parameters: not too many, not too large.
pub(super) fn parameters(field: &Field, errors: &mut Errors) {
    const LARGEST: usize = 256 << 10;
    if field.len() > 512 {
        return errors.too_long(&field.path, 512);
    }
    let entries = field.value.as_object().into_iter().flatten();
    let size: usize = entries.map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if field.value.as_object().is_some_and(|map| map.contains_key("")) {
        errors.complaints(&field.path, "", vec!["field can not be empty.".into()]);
    }
    if size > LARGEST {
        errors.too_long(&field.path, LARGEST);
    }
}
