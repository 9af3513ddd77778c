//! The group resource.k8s.io.

use std::collections::HashMap;

use serde_json::Value;

use super::Errors;
use super::common::node_selector;
use super::field::{Field, IMMUTABLE};
use crate::cel::devices::{LONGEST, Selector};
use crate::meta::{items, text};
use crate::names;

const REQUESTS: usize = 32;
const SUBREQUESTS: usize = 8;
const SELECTORS: usize = 32;
const RESULTS: usize = 32;
const CONSUMERS: usize = 256;
const DEVICES: usize = 128;
const DEVICES_WITH_TAINTS: usize = 64;
const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];
const REQUEST_NAME: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
const ONE_NODES: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";

pub fn claim(value: &Value, errors: &mut Errors) {
    devices(&Field::spec(value).at("devices"), errors);
}

pub fn claim_template(value: &Value, errors: &mut Errors) {
    devices(&Field::spec(value).at("spec").at("devices"), errors);
}

pub fn spec_immutable(new: &Value, old: &Value, errors: &mut Errors) {
    errors.same(&Field::spec(new), &Field::spec(old));
}

/// What is asked for stays; what is given is checked, and stays until it is given back.
pub fn claim_update(new: &Value, old: &Value, errors: &mut Errors) {
    spec_immutable(new, old, errors);
    let (now, before) = (Field::top(new, "status"), &old["status"]);
    if now.value == before {
        return;
    }
    let reserved = now.at("reservedFor");
    errors.at_most(&reserved, CONSUMERS);
    for by in reserved.items() {
        for field in ["resource", "name", "uid"] {
            errors.need(&by.at(field));
        }
    }
    errors.distinct(&reserved, "uid");
    let allocation = now.at("allocation");
    if reserved.len() > 0 && !allocation.present() {
        errors.deny(&reserved, "may not be specified when `allocated` is not set");
    } else if !text(new, &["metadata", "deletionTimestamp"]).is_empty() {
        let known = items(before, &["reservedFor"]);
        if reserved.items().any(|by| !known.contains(by.value)) {
            let why = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errors.deny(&reserved, why);
        }
    }
    match (allocation.present(), before["allocation"].is_object()) {
        (true, true) => errors.same_as(&allocation, &before["allocation"]),
        (true, false) => given(&allocation, &request_names(&Field::spec(new).at("devices")), errors),
        (false, _) => {}
    }
}

/// The devices that a claim gets.
fn given(allocation: &Field, known: &HashMap<&str, Vec<&str>>, errors: &mut Errors) {
    let (results, config) = (allocation.at("devices").at("results"), allocation.at("devices").at("config"));
    errors.at_most(&results, RESULTS);
    for result in results.items() {
        reference(&result.at("request"), known, errors);
        driver(&result.at("driver"), errors);
        pool_name(&result.at("pool"), errors);
        errors.need_name(&result.at("device"), names::dns1123_label);
    }
    errors.at_most(&config, 64);
    for one in config.items() {
        errors.need_known(&one.at("source"), &["FromClaim", "FromClass"]);
        references(&one.at("requests"), known, errors);
        configuration(&one, errors);
    }
    let selector = allocation.at("nodeSelector");
    if selector.present() {
        node_selector(&selector, errors);
    }
}

/// The requests of a claim, and the subrequests of each.
fn request_names<'a>(devices: &Field<'a>) -> HashMap<&'a str, Vec<&'a str>> {
    let subrequests =
        |request: &'a Value| items(request, &["firstAvailable"]).iter().map(|one| text(one, &["name"])).collect();
    items(devices.value, &["requests"]).iter().map(|request| (text(request, &["name"]), subrequests(request))).collect()
}

fn devices(devices: &Field, errors: &mut Errors) {
    let (requests, constraints, config) = (devices.at("requests"), devices.at("constraints"), devices.at("config"));
    let known = request_names(devices);
    errors.at_most(&requests, REQUESTS);
    for request in requests.items() {
        errors.need_name(&request.at("name"), names::dns1123_label);
        let (exactly, first) = (request.at("exactly"), request.at("firstAvailable"));
        match (exactly.present(), first.len() > 0) {
            (false, false) => errors.missing(&request, "exactly one of `exactly` or `firstAvailable` is required"),
            (true, true) => {
                let why = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
                errors.bad_value(&request.path, &Value::Null, why);
            }
            (true, false) => device_request(&exactly, errors),
            (false, true) => {
                errors.at_most(&first, SUBREQUESTS);
                for one in first.items() {
                    errors.need_name(&one.at("name"), names::dns1123_label);
                    device_request(&one, errors);
                }
                errors.distinct(&first, "name");
            }
        }
    }
    errors.distinct(&requests, "name");
    errors.at_most(&constraints, 32);
    for constraint in constraints.items() {
        references(&constraint.at("requests"), &known, errors);
        let (same, distinct) = (constraint.at("matchAttribute"), constraint.at("distinctAttribute"));
        if !same.present() && !distinct.present() {
            errors.missing(&same, "");
        }
        errors.name(&same, names::qualified_name);
        errors.name(&distinct, names::qualified_name);
    }
    errors.at_most(&config, 32);
    for one in config.items() {
        references(&one.at("requests"), &known, errors);
        configuration(&one, errors);
    }
}

fn references(list: &Field, known: &HashMap<&str, Vec<&str>>, errors: &mut Errors) {
    errors.at_most(list, REQUESTS);
    list.items().for_each(|one| reference(&one, known, errors));
}

fn reference(reference: &Field, known: &HashMap<&str, Vec<&str>>, errors: &mut Errors) {
    let found = match reference.text().split_once('/') {
        None => known.contains_key(reference.text()),
        Some((request, sub)) => known.get(request).is_some_and(|subs| subs.contains(&sub)),
    };
    if !found {
        errors.bad(reference, REQUEST_NAME);
    }
}

fn configuration(config: &Field, errors: &mut Errors) {
    let opaque = config.at("opaque");
    if !opaque.present() {
        return errors.missing(&opaque, "");
    }
    driver(&opaque.at("driver"), errors);
    if !opaque.at("parameters").present() {
        errors.missing(&opaque.at("parameters"), "");
    } else if !opaque.at("parameters").value.is_object() {
        errors.bad_value(&opaque.at("parameters").path, &"<value omitted>".into(), "must be a valid JSON object");
    }
}

fn driver(field: &Field, errors: &mut Errors) {
    if errors.need(field) {
        errors.at_most_bytes(field, 63);
        errors.name(field, names::dns1123_subdomain);
    }
}

fn device_request(request: &Field, errors: &mut Errors) {
    errors.need_name(&request.at("deviceClassName"), names::dns1123_subdomain);
    selectors(&request.at("selectors"), errors);
    let (mode, count) = (request.at("allocationMode"), request.at("count"));
    match mode.text() {
        "All" if count.int().unwrap_or(0) != 0 => {
            errors.bad(&count, "must not be specified when allocationMode is 'All'");
        }
        "ExactCount" if count.int().unwrap_or(0) <= 0 => errors.bad(&count, "must be greater than zero"),
        _ => errors.known(&mode, &["All", "ExactCount"]),
    }
    for toleration in request.at("tolerations").items() {
        errors.name(&toleration.at("key"), names::qualified_name);
        let value = toleration.at("value");
        match toleration.at("operator").text() {
            "Exists" if !value.text().is_empty() => errors.bad(&value, "must be empty for operator `Exists`"),
            "Equal" => errors.name(&value, names::label_value),
            _ => errors.need_known(&toleration.at("operator"), &["Equal", "Exists"]),
        }
        if !toleration.at("effect").text().is_empty() {
            errors.known(&toleration.at("effect"), EFFECTS);
        }
    }
}

fn selectors(list: &Field, errors: &mut Errors) {
    errors.at_most(list, SELECTORS);
    for selector in list.items() {
        let cel = selector.at("cel");
        if !cel.present() {
            errors.missing(&cel, "");
            continue;
        }
        let expression = cel.at("expression");
        if !errors.need(&expression) {
            continue;
        }
        errors.at_most_bytes(&expression, LONGEST);
        if expression.text().len() <= LONGEST
            && let Err(error) = Selector::compile(expression.text())
        {
            errors.bad(&expression, &error.to_string());
        }
    }
}

pub fn class(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    selectors(&spec.at("selectors"), errors);
    errors.at_most(&spec.at("config"), 32);
    spec.at("config").items().for_each(|one| configuration(&one, errors));
    let name = spec.at("extendedResourceName");
    let extended = name.text().contains('/') && !name.text().contains("kubernetes.io/");
    if name.present() && (!extended || !names::qualified_name(name.text()).is_empty()) {
        errors.bad(&name, "must be a valid extended resource name");
    }
}

pub fn slice(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    driver(&spec.at("driver"), errors);
    pool(&spec.at("pool"), errors);
    let mut given: Vec<&str> = Vec::new();
    let (node, selector) = (spec.at("nodeName"), spec.at("nodeSelector"));
    if node.present() {
        match node.text() {
            "" => errors.bad(&node, "must be either unset or set to a non-empty string"),
            _ => {
                given.push("`nodeName`");
                errors.name(&node, names::dns1123_subdomain);
            }
        }
    }
    if selector.present() {
        given.push("`nodeSelector`");
        node_selector(&selector, errors);
        if selector.at("nodeSelectorTerms").len() != 1 {
            errors.bad(&selector.at("nodeSelectorTerms"), "must have exactly one node selector term");
        }
    }
    for (name, shown) in [("allNodes", "`allNodes`"), ("perDeviceNodeSelection", "`perDeviceNodeSelection`")] {
        let flag = spec.at(name);
        if flag.is_true() {
            given.push(shown);
        } else if flag.present() {
            errors.bad(&flag, "must be either unset or set to true");
        }
    }
    match given.len() {
        0 => errors.missing(&spec, ONE_NODES),
        1 => {}
        _ => {
            let shown = Value::from(format!("{{{}}}", given.join(", ")));
            errors.bad_value(&spec.path, &shown, &format!("{ONE_NODES}, but multiple fields are set"));
        }
    }
    let (devices, counters) = (spec.at("devices"), spec.at("sharedCounters"));
    if devices.present() && counters.present() {
        errors.bad_value(&spec.path, &"".into(), "only one of `sharedCounters` or `devices` is allowed");
    }
    let tainted = devices.items().any(|device| device.at("taints").len() + device.at("consumesCounters").len() > 0);
    errors.at_most(&devices, if tainted { DEVICES_WITH_TAINTS } else { DEVICES });
    devices.items().for_each(|device| self::device(&device, errors));
    errors.distinct(&devices, "name");
    errors.at_most(&counters, 8);
    for set in counters.items() {
        errors.need_name(&set.at("name"), names::dns1123_label);
        if set.at("counters").len() == 0 {
            errors.missing(&set.at("counters"), "");
        }
    }
    errors.distinct(&counters, "name");
}

fn pool_name(name: &Field, errors: &mut Errors) {
    if errors.need(name) {
        errors.at_most_bytes(name, 253);
        for part in name.text().split('/') {
            errors.complaints(&name.path, part, names::dns1123_subdomain(part));
        }
    }
}

fn pool(pool: &Field, errors: &mut Errors) {
    pool_name(&pool.at("name"), errors);
    let (count, generation) = (pool.at("resourceSliceCount"), pool.at("generation"));
    if count.int().unwrap_or(0) <= 0 {
        errors.bad(&count, "must be greater than zero");
    }
    if generation.int().unwrap_or(0) < 0 {
        errors.bad(&generation, "must be greater than or equal to zero");
    }
}

fn device(device: &Field, errors: &mut Errors) {
    errors.need_name(&device.at("name"), names::dns1123_label);
    let (attributes, capacity) = (device.at("attributes"), device.at("capacity"));
    if attributes.len() + capacity.len() > 32 {
        let total = Value::from(attributes.len() + capacity.len());
        errors.bad_value(&device.path, &total, "the total number of attributes and capacities must not exceed 32");
    }
    for name in attributes.value.as_object().into_iter().flatten().map(|(name, _)| name) {
        let attribute = attributes.key(name);
        let kinds = ["bool", "int", "string", "version"].iter().filter(|kind| attribute.at(kind).present()).count();
        if kinds != 1 {
            errors.bad(&attribute, "exactly one value must be specified");
        }
        errors.at_most_bytes(&attribute.at("string"), 64);
        errors.at_most_bytes(&attribute.at("version"), 64);
    }
    errors.at_most(&device.at("taints"), 16);
    device.at("taints").items().for_each(|taint| self::taint(&taint, errors));
    for used in device.at("consumesCounters").items() {
        errors.need_name(&used.at("counterSet"), names::dns1123_label);
        if used.at("counters").len() == 0 {
            errors.missing(&used.at("counters"), "");
        }
    }
}

fn taint(taint: &Field, errors: &mut Errors) {
    let key = taint.at("key");
    errors.complaints(&key.path, key.text(), names::qualified_name(key.text()));
    errors.name(&taint.at("value"), names::label_value);
    errors.need_known(&taint.at("effect"), EFFECTS);
}

pub fn taint_rule(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    let selector = spec.at("deviceSelector");
    if selector.at("driver").present() {
        driver(&selector.at("driver"), errors);
    }
    if selector.at("pool").present() {
        pool_name(&selector.at("pool"), errors);
    }
    if selector.at("device").present() {
        errors.need_name(&selector.at("device"), names::dns1123_label);
    }
    taint(&spec.at("taint"), errors);
    errors.at_most(&Field::top(value, "status").at("conditions"), 8);
}

pub fn slice_update(new: &Value, old: &Value, errors: &mut Errors) {
    let pool = Field::spec(new).at("pool").at("name");
    if pool.value != &old["spec"]["pool"]["name"] {
        errors.bad(&pool, IMMUTABLE);
    }
    errors.fixed(new, old, &["driver", "nodeName"]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim(status: Value, deleted: bool) -> Value {
        let requests = json!([{"name": "r", "exactly": {"deviceClassName": "d"}}]);
        let metadata = if deleted { json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}) } else { json!({}) };
        json!({"metadata": metadata, "spec": {"devices": {"requests": requests}}, "status": status})
    }

    fn complaints(new: &Value, old: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        claim_update(new, old, &mut errors);
        errors.into_vec().iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn what_a_claim_is_given_is_checked_and_stays() {
        let by = |uid: &str| json!({"resource": "pods", "name": "p", "uid": uid});
        let result = |device: &str| json!({"request": "r", "driver": "a.b", "pool": "p", "device": device});
        let given = |device: &str, by: &[Value]| json!({"allocation": {"devices": {"results": [result(device)]}}, "reservedFor": by});
        let open = claim(json!({}), false);
        let allocated = claim(given("d", &[by("1")]), false);
        assert_eq!(complaints(&allocated, &open), Vec::<String>::new());
        assert_eq!(complaints(&claim(given("d", &[by("1"), by("2")]), false), &allocated), Vec::<String>::new());
        assert_eq!(complaints(&open, &allocated), Vec::<String>::new());
        for (status, deleted, field, part) in [
            (json!({"reservedFor": [by("1")]}), false, "status.reservedFor", "may not be specified when `allocated`"),
            (given("e", &[by("1")]), false, "status.allocation", "field is immutable"),
            (given("d", &[by("1"), by("1")]), false, "status.reservedFor[1].uid", "Duplicate value"),
            (
                given("d", &[json!({"resource": "pods", "name": "p"})]),
                false,
                "status.reservedFor[0].uid",
                "Required value",
            ),
            (given("d", &[by("1"), by("2")]), true, "status.reservedFor", "new entries may not be added"),
        ] {
            let found = complaints(&claim(status, deleted), &allocated);
            assert!(found.iter().any(|one| one.starts_with(field) && one.contains(part)), "{field} {part}: {found:?}");
        }
        let mut wrong = claim(given("d", &[]), false);
        wrong["status"]["allocation"]["devices"]["results"][0]["request"] = json!("other");
        let found = complaints(&wrong, &open);
        assert!(found.iter().any(|one| one.starts_with("status.allocation.devices.results[0].request")), "{found:?}");
    }
}
