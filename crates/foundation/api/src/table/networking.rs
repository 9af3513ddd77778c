//! Columns of networking.k8s.io and discovery.k8s.io.

use serde_json::{Value, json};

use super::cells::Cell::{Age, Name, Of, Or, Selector, Text};
use super::cells::three;
use super::{Column, column};
use crate::meta::{at, items, text};

pub(crate) const INGRESS: &[Column] = &[
    column("Name", Name),
    column("Class", Or(&["spec", "ingressClassName"], "<none>")),
    column("Hosts", Of(hosts)),
    column("Address", Of(|i| json!(ingress_addresses(i).join(",")))),
    column("Ports", Of(|i| json!(if items(i, &["spec", "tls"]).is_empty() { "80" } else { "80, 443" }))),
    column("Age", Age),
];

/// The addresses of a load balancer, sorted.
pub(super) fn ingress_addresses(object: &Value) -> Vec<&str> {
    let mut all: Vec<&str> = items(object, &["status", "loadBalancer", "ingress"])
        .iter()
        .map(|entry| match text(entry, &["ip"]) {
            "" => text(entry, &["hostname"]),
            ip => ip,
        })
        .filter(|address| !address.is_empty())
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn hosts(ingress: &Value) -> Value {
    let rules = items(ingress, &["spec", "rules"]);
    let named: Vec<&str> = rules.iter().map(|rule| text(rule, &["host"])).filter(|host| !host.is_empty()).collect();
    match named.len() {
        0 => json!("*"),
        more if more > 3 => json!(format!("{} + {} more...", named[..3].join(","), rules.len() - 3)),
        _ => json!(named.join(",")),
    }
}

pub(crate) const INGRESS_CLASS: &[Column] = &[
    column("Name", Name),
    column("Controller", Text(&["spec", "controller"])),
    column("Parameters", Of(parameters)),
    column("Age", Age),
];

fn parameters(class: &Value) -> Value {
    let Some(parameters) = at(class, &["spec", "parameters"]) else { return json!("<none>") };
    let kind = crate::status::qualified(text(parameters, &["apiGroup"]), text(parameters, &["kind"]));
    json!(format!("{kind}/{}", text(parameters, &["name"])))
}

pub(crate) const NETWORK_POLICY: &[Column] =
    &[column("Name", Name), column("Pod-Selector", Selector(&["spec", "podSelector"])), column("Age", Age)];

pub(crate) const SERVICE_CIDR: &[Column] = &[
    column("Name", Name),
    column(
        "CIDRs",
        Of(|s| {
            let cidrs: Vec<&str> = items(s, &["spec", "cidrs"]).iter().filter_map(Value::as_str).collect();
            json!(cidrs.join(","))
        }),
    ),
    column("Age", Age),
];

pub(crate) const IP_ADDRESS: &[Column] = &[column("Name", Name), column("ParentRef", Of(parent)), column("Age", Age)];

/// `services/default/kubernetes`.
fn parent(address: &Value) -> Value {
    let Some(parent) = at(address, &["spec", "parentRef"]) else { return json!("<none>") };
    let mut shown = crate::status::qualified(text(parent, &["group"]), text(parent, &["resource"])).to_lowercase();
    for part in [text(parent, &["namespace"]), text(parent, &["name"])] {
        if !part.is_empty() {
            shown = format!("{shown}/{part}");
        }
    }
    json!(shown)
}

pub(crate) const ENDPOINT_SLICE: &[Column] = &[
    column("Name", Name),
    column("AddressType", Text(&["addressType"])),
    column(
        "Ports",
        Of(|s| {
            let ports = items(s, &["ports"]).iter().map(|port| match (port["port"].as_i64(), port["name"].as_str()) {
                (Some(number), _) => number.to_string(),
                (None, Some(name)) => name.to_owned(),
                (None, None) => "*".to_owned(),
            });
            three(&ports.collect::<Vec<_>>(), "<unset>")
        }),
    ),
    column(
        "Endpoints",
        Of(|s| {
            let endpoints = items(s, &["endpoints"]).iter().flat_map(|endpoint| items(endpoint, &["addresses"]));
            three(&endpoints.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>(), "<unset>")
        }),
    ),
    column("Age", Age),
];
