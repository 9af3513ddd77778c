//! Networks that keep services apart, as policies.
//!
//! A project that names no network is one: its namespace. Once it names some, a pod is reached from those that share a
//! network with it, and from everywhere at its published ports.

use serde_json::{Map, Value, json};

use super::network::{NETWORK, ports};
use super::project::{Project, Service};
use crate::error::Result;
use crate::names;
use crate::view::View;

/// Whether the project has more than its one network.
pub fn wanted(project: &Project<'_>) -> bool {
    project.services.iter().any(|service| service.networks.iter().any(|network| network != "default"))
        || project.section("networks").iter().any(|(_, entry)| is_internal(entry))
}

fn is_internal(entry: &View<'_>) -> bool {
    entry.get("internal").is_some_and(|view| view.bool().unwrap_or(false))
}

pub fn all(project: &Project<'_>) -> Result<Vec<Value>> {
    let mut made = Vec::new();
    for (_, entry) in project.section("networks") {
        keys(&entry)?;
    }
    for service in &project.services {
        of_service(service)?;
        if service.network_mode() == Some("none") {
            let spec = json!({"podSelector": {"matchLabels": project.selector(&service.dns)}, "policyTypes": ["Ingress", "Egress"]});
            made.push(policy(project, &format!("{}-no-network", service.dns), Some(service), Map::new(), spec));
        }
    }
    if !wanted(project) {
        return Ok(made);
    }
    let mut used: Vec<&String> = project.services.iter().flat_map(|service| &service.networks).collect();
    used.sort();
    used.dedup();
    for network in used {
        let pods = selector(project, network);
        let mut labels = Map::new();
        if let Some(view) = project.entry("networks", network).and_then(|entry| entry.get("labels")) {
            let mut annotations = std::collections::BTreeMap::new();
            for (name, value, at) in view.pairs()? {
                super::pod::label(&at, &name, &value.unwrap_or_default(), &mut labels, &mut annotations);
            }
        }
        let spec =
            json!({"podSelector": pods, "ingress": [{"from": [{"podSelector": pods}]}], "policyTypes": ["Ingress"]});
        made.push(policy(project, &format!("network-{network}"), None, labels, spec));
    }
    for leader in project.leaders() {
        made.extend(published(project, leader)?);
        made.extend(inside(project, leader));
    }
    Ok(made)
}

fn policy(
    project: &Project<'_>,
    name: &str,
    service: Option<&Service<'_>>,
    labels: Map<String, Value>,
    spec: Value,
) -> Value {
    let mut metadata = project.metadata(&names::label(name), service.map(|service| service.dns.as_str()));
    let mut all = metadata["labels"].as_object().cloned().unwrap_or_default();
    for (name, value) in labels {
        all.entry(name).or_insert(value);
    }
    metadata.insert("labels".into(), Value::Object(all));
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
}

fn selector(project: &Project<'_>, network: &str) -> Value {
    json!({"matchLabels": {super::PROJECT: project.name, format!("{NETWORK}{}", names::label(network)): "true"}})
}

/// Published ports are open to all.
fn published(project: &Project<'_>, leader: &Service<'_>) -> Result<Option<Value>> {
    let mut open: Vec<Value> = Vec::new();
    for member in project.members(&leader.name) {
        for port in ports(member)? {
            // The node itself always reaches its pods.
            let loopback = |text: &String| text.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
            if port.host_ip.as_ref().is_some_and(loopback) {
                continue;
            }
            let entry = json!({"port": port.target, "protocol": port.protocol.name()});
            if !open.contains(&entry) {
                open.push(entry);
            }
        }
    }
    if open.is_empty() {
        return Ok(None);
    }
    let spec = json!({"podSelector": {"matchLabels": project.selector(&leader.dns)},
        "ingress": [{"ports": open}], "policyTypes": ["Ingress"]});
    Ok(Some(policy(project, &format!("{}-published", leader.dns), Some(leader), Map::new(), spec)))
}

/// A service on internal networks alone reaches these and the name server, nothing else.
fn inside(project: &Project<'_>, leader: &Service<'_>) -> Option<Value> {
    let internal = |network: &String| project.entry("networks", network).is_some_and(|entry| is_internal(&entry));
    if leader.networks.is_empty() || !leader.networks.iter().all(internal) {
        return None;
    }
    let to: Vec<Value> =
        leader.networks.iter().map(|network| json!({"podSelector": selector(project, network)})).collect();
    let names = json!([{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]);
    let spec = json!({"podSelector": {"matchLabels": project.selector(&leader.dns)},
        "egress": [{"to": to}, {"ports": names}], "policyTypes": ["Egress"]});
    Some(policy(project, &format!("{}-internal", leader.dns), Some(leader), Map::new(), spec))
}

/// What a network of the file says beside `internal`.
fn keys(entry: &View<'_>) -> Result<()> {
    if let Some(view) = entry.get("external")
        && (view.is_map() || view.bool()?)
    {
        view.warn(
            "networks outside of the project cannot be joined: the services on it reach each other in this namespace",
        );
    }
    if let Some(view) = entry.get("driver") {
        match view.text()? {
            "bridge" | "overlay" | "default" | "" => {}
            other => view.warn(format!("there is one pod network, and not by the driver {other}")),
        }
    }
    let because = [
        ("name", "no other project sees the network: its name is of no use"),
        ("driver_opts", "the pod network is set up for the cluster"),
        ("ipam", "the cluster gives out addresses"),
        ("enable_ipv4", "address families are the cluster's"),
        ("enable_ipv6", "address families are the cluster's"),
        ("attachable", "any pod with the network's label is on it"),
    ];
    for (key, why) in because {
        if let Some(view) = entry.get(key) {
            view.warn(why);
        }
    }
    Ok(())
}

/// What a service says of its place on a network.
fn of_service(service: &Service<'_>) -> Result<()> {
    let Some(view) = service.get("networks").filter(View::is_map) else { return Ok(()) };
    for (_, network) in view.entries() {
        for (key, why) in [
            ("ipv4_address", "the cluster gives out addresses"),
            ("ipv6_address", "the cluster gives out addresses"),
            ("link_local_ips", "the cluster gives out addresses"),
            ("mac_address", "the pod network chooses it"),
            ("interface_name", "a pod has one interface, eth0"),
            ("driver_opts", "the pod network is set up for the cluster"),
            ("priority", "a pod has one interface"),
            ("gw_priority", "a pod has one interface"),
        ] {
            if let Some(view) = network.get(key) {
                view.warn(why);
            }
        }
    }
    Ok(())
}
