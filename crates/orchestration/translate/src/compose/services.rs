//! Services: a name for each service, its aliases, and what is published.
//!
//! In Compose a service is reached at all of its ports, named or not: its Service is headless, and its name stands for its
//! pods. `endpoint_mode: vip` asks for one address, which stands for the ports that are named.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::network::{ALIAS, aliases, exposed, is_on_node, links, ports};
use super::project::{Project, Service};
use crate::error::Result;
use crate::names;
use crate::short::Port;

pub fn all(project: &Project<'_>) -> Result<Vec<Value>> {
    let mut made = Vec::new();
    let mut taken: BTreeSet<String> = project.services.iter().map(|service| service.dns.clone()).collect();
    for service in project.services.iter().filter(|service| !service.view.has("provider")) {
        let Some(leader) = project.service(&service.leader) else { continue };
        made.extend(of(project, service, leader)?);
    }
    let mut others: BTreeMap<String, Value> = BTreeMap::new();
    for service in &project.services {
        for (alias, at) in aliases(service)? {
            if taken.contains(&alias) && !others.contains_key(&alias) {
                at.warn("a service has this name: the alias is left out");
                continue;
            }
            others.insert(
                alias.clone(),
                headless(
                    project,
                    &alias,
                    &alias,
                    json!({
                super::PROJECT: project.name, format!("{ALIAS}{alias}"): "true"}),
                    &[],
                ),
            );
        }
    }
    taken.extend(others.keys().cloned());
    for service in &project.services {
        for (name, target, at) in links(service)? {
            let Some(other) = project.service(&target) else {
                return Err(at.invalid(format!("there is no service {target:?}")));
            };
            let alias = names::label(&name);
            if alias == other.dns {
                continue;
            }
            if alias != name {
                at.warn(format!("{name:?} does not fit DNS: left out"));
            } else if taken.contains(&alias) {
                let same = others
                    .get(&alias)
                    .is_some_and(|known| known["spec"]["selector"] == project.selector(&other.leader_dns(project)));
                if !same {
                    at.warn("another service has this name: the link's name is left out");
                }
            } else {
                at.node.read.set(true);
                taken.insert(alias.clone());
                let selector = project.selector(&other.leader_dns(project));
                others.insert(alias.clone(), headless(project, &alias, &other.dns, selector, &[]));
            }
        }
    }
    made.extend(others.into_values());
    Ok(made)
}

impl Service<'_> {
    fn leader_dns(&self, project: &Project<'_>) -> String {
        project.service(&self.leader).map_or_else(|| self.dns.clone(), |leader| leader.dns.clone())
    }
}

fn of(project: &Project<'_>, service: &Service<'_>, leader: &Service<'_>) -> Result<Vec<Value>> {
    let mut made = Vec::new();
    let published = ports(service)?;
    let mut inner: Vec<Port> = Vec::new();
    for port in published.iter().cloned().chain(exposed(service)?) {
        if inner.iter().all(|known| (known.target, known.protocol) != (port.target, port.protocol)) {
            inner.push(port);
        }
    }
    let selector = project.selector(&leader.dns);
    let mut own = headless(project, &service.dns, &service.dns, selector.clone(), &inner);
    if let Some(view) = leader.deploy("endpoint_mode") {
        match view.text()? {
            "vip" if inner.is_empty() => {
                view.warn("an address stands for ports, and none are named: the name stands for the pods")
            }
            "vip" => {
                if let Some(spec) = own["spec"].as_object_mut() {
                    spec.remove("clusterIP");
                    spec.insert("type".into(), json!("ClusterIP"));
                }
            }
            "dnsrr" => {}
            other => return Err(view.invalid(format!("unknown mode {other:?}: vip or dnsrr"))),
        }
    }
    made.push(own);
    if leader.network_mode() == Some("host") {
        return Ok(made);
    }
    let balanced: Vec<&Port> = published.iter().filter(|port| port.published.is_some() && !is_on_node(port)).collect();
    let anywhere: Vec<&Port> = published.iter().filter(|port| port.published.is_none()).collect();
    for (suffix, kind, ports) in [("published", "LoadBalancer", balanced), ("node", "NodePort", anywhere)] {
        if ports.is_empty() {
            continue;
        }
        let mut entries: Vec<Value> = Vec::new();
        for port in ports {
            let number = port.published.unwrap_or(port.target);
            if entries.iter().all(|known| known["port"] != json!(number) || known["protocol"] != port.protocol.name()) {
                entries.push(entry(port, number));
            }
        }
        let name = names::label(&format!("{}-{suffix}", service.dns));
        let metadata = project.metadata(&name, Some(&service.dns));
        made.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"type": kind, "selector": selector, "ports": entries}}));
    }
    Ok(made)
}

fn headless(project: &Project<'_>, name: &str, service: &str, selector: Value, ports: &[Port]) -> Value {
    let metadata = project.metadata(name, Some(service));
    let mut spec = json!({"clusterIP": "None", "selector": selector});
    if !ports.is_empty() {
        spec["ports"] = ports.iter().map(|port| entry(port, port.target)).collect();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
}

fn entry(port: &Port, number: u16) -> Value {
    let name = match &port.name {
        Some(name) if dhow_api::names::dns1123_label(name).is_empty() => name.clone(),
        _ => format!("{}-{number}", port.protocol.name().to_lowercase()),
    };
    let mut entry = json!({"name": name, "port": number, "targetPort": port.target, "protocol": port.protocol.name()});
    if let Some(protocol) = &port.app_protocol {
        entry["appProtocol"] = json!(protocol);
    }
    entry
}
