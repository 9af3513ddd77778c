//! Ports of a container, names and name servers of its pod.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::pod::Pod;
use super::project::{Project, Service};
use super::put;
use super::security::push;
use crate::error::Result;
use crate::names;
use crate::short::{self, Port, Protocol};
use crate::view::View;

/// Label of pods that answer to an alias, and of those on a network; the name follows.
pub const ALIAS: &str = "dhow.io/alias-";
pub const NETWORK: &str = "dhow.io/network-";

pub fn translate(
    project: &Project<'_>,
    service: &Service<'_>,
    pod: &mut Pod,
    container: &mut Map<String, Value>,
) -> Result<()> {
    let all = ports(service)?;
    let on_host = service.network_mode() == Some("host");
    mode(service, pod)?;
    let mut seen = BTreeSet::new();
    for port in all.iter().cloned().chain(exposed(service)?) {
        let on_node = port.published.filter(|_| is_on_node(&port) && !on_host);
        if !seen.insert((port.target, port.protocol, on_node))
            || on_node.is_none()
                && seen.iter().any(|(target, protocol, node)| {
                    (*target, *protocol) == (port.target, port.protocol) && node.is_some()
                })
        {
            continue;
        }
        let mut entry = json!({"containerPort": port.target, "protocol": port.protocol.name()});
        if let Some(published) = on_node {
            entry["hostPort"] = json!(published);
            if let Some(address) = port.host_ip.as_deref().filter(|address| !is_any(address)) {
                entry["hostIP"] = json!(address);
            }
        }
        push(container, "ports", entry);
    }
    if on_host && let Some(view) = service.get("ports") {
        view.warn("the container has the node's network: its ports are the node's");
    }
    for (alias, _) in aliases(service)? {
        pod.labels.insert(format!("{ALIAS}{alias}"), json!("true"));
    }
    if super::policies::wanted(project) {
        for network in &service.networks {
            pod.labels.insert(format!("{NETWORK}{}", names::label(network)), json!("true"));
        }
    }
    host_name(service, pod)?;
    name_service(service, pod)
}

/// Whether a port is published on the node that runs the container, rather than in front of all of them.
pub fn is_on_node(port: &Port) -> bool {
    port.published.is_some() && (port.host_mode || port.host_ip.as_deref().is_some_and(|address| !is_any(address)))
}

fn is_any(address: &str) -> bool {
    matches!(address, "0.0.0.0" | "::" | "")
}

fn mode(service: &Service<'_>, pod: &mut Pod) -> Result<()> {
    let Some(view) = service.get("network_mode") else { return Ok(()) };
    match view.text()? {
        "host" => {
            pod.spec.insert("hostNetwork".into(), json!(true));
            pod.spec.insert("dnsPolicy".into(), json!("ClusterFirstWithHostNet"));
        }
        // A policy keeps it apart.
        "none" => view.warn("the pod has an address, and a policy that lets nothing in or out"),
        "bridge" | "default" => view.warn("the pod network is used"),
        text if text.starts_with("service:") => {}
        _ => view.warn("containers and networks outside of the project cannot be joined: the pod network is used"),
    }
    Ok(())
}

/// What is published, in the file's order.
pub fn ports(service: &Service<'_>) -> Result<Vec<Port>> {
    let Some(view) = service.get("ports") else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for item in view.items() {
        if !item.is_map() {
            all.extend(short::ports(item.text()?).map_err(|problem| item.invalid(problem))?);
            continue;
        }
        let text = |key: &str| item.get(key).map(|view| view.text().map(str::to_owned)).transpose();
        let Some(target) = item.get("target") else { return Err(item.invalid("has no target")) };
        let target = target.text()?.parse::<u16>().map_err(|_| target.invalid("is no port"))?;
        let protocol =
            Protocol::parse(&text("protocol")?.unwrap_or_default()).map_err(|problem| item.invalid(problem))?;
        let published = match item.get("published") {
            Some(view) => {
                let range = short::range(view.text()?).ok_or_else(|| view.invalid("is no port"))?;
                if range.len() > 1 {
                    view.warn(format!("of the range the first is taken: {}", range.start()));
                }
                Some(*range.start())
            }
            None => None,
        };
        let host_mode = match item.get("mode") {
            Some(view) => match view.text()? {
                "host" => true,
                "ingress" => false,
                other => return Err(view.invalid(format!("unknown mode {other:?}: ingress or host"))),
            },
            None => false,
        };
        all.push(Port {
            name: text("name")?,
            host_ip: text("host_ip")?,
            published,
            target,
            protocol,
            app_protocol: text("app_protocol")?,
            host_mode,
        });
    }
    Ok(all)
}

pub fn exposed(service: &Service<'_>) -> Result<Vec<Port>> {
    let Some(view) = service.get("expose") else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for (text, at) in view.strings()? {
        all.extend(short::ports(&text).map_err(|problem| at.invalid(problem))?);
    }
    Ok(all)
}

/// Other names of a service: of its networks, of its container, of links to it are in [`links`].
pub fn aliases<'a>(service: &Service<'a>) -> Result<Vec<(String, View<'a>)>> {
    let mut all: Vec<(String, View<'a>)> = Vec::new();
    let mut add = |text: &str, at: View<'a>| {
        let name = names::label(text);
        if name != text {
            at.warn(format!("{text:?} does not fit DNS: left out"));
        } else if name != service.dns && all.iter().all(|(known, _)| *known != name) {
            all.push((name, at));
        }
    };
    if let Some(view) = service.get("networks").filter(View::is_map) {
        for (_, network) in view.entries() {
            if let Some(names) = network.get("aliases") {
                names.strings()?.into_iter().for_each(|(name, at)| add(&name, at));
            }
        }
    }
    if let Some(view) = service.get("container_name") {
        add(view.text()?, view.clone());
    }
    Ok(all)
}

/// The names that links give to other services: name, service.
pub fn links<'a>(service: &Service<'a>) -> Result<Vec<(String, String, View<'a>)>> {
    let Some(view) = service.get("links") else { return Ok(Vec::new()) };
    let all = view.strings()?.into_iter().map(|(text, at)| {
        let (target, name) = text.split_once(':').unwrap_or((&text, &text));
        (name.to_owned(), target.to_owned(), at)
    });
    Ok(all.collect())
}

fn host_name(service: &Service<'_>, pod: &mut Pod) -> Result<()> {
    let host = service.get("hostname");
    let domain = service.get("domainname");
    let name = match (&host, &domain) {
        (None, None) => return Ok(()),
        (Some(host), None) => host.text()?.to_owned(),
        (None, Some(domain)) => {
            domain.warn("counts only together with `hostname`");
            return Ok(());
        }
        (Some(host), Some(domain)) => format!("{}.{}", host.text()?, domain.text()?),
    };
    let Some(view) = host else { return Ok(()) };
    if name.contains("{{") {
        view.warn("a pod's host name is the same for all replicas, or its own name: the template is left out");
    } else if !dhow_api::names::dns1123_subdomain(&name).is_empty() || name.len() > 64 {
        view.warn(format!("{name:?} cannot be a pod's host name: lower case, digits, dots and dashes, 64 at most"));
    } else if name.contains('.') {
        pod.spec.insert("hostnameOverride".into(), json!(name));
    } else {
        pod.spec.insert("hostname".into(), json!(name));
    }
    Ok(())
}

fn name_service(service: &Service<'_>, pod: &mut Pod) -> Result<()> {
    let mut config = pod.spec.remove("dnsConfig").and_then(|value| value.as_object().cloned()).unwrap_or_default();
    for (key, field) in [("dns", "nameservers"), ("dns_search", "searches")] {
        let Some(view) = service.get(key) else { continue };
        let mut found: Vec<Value> = Vec::new();
        for (text, at) in view.strings()? {
            if key == "dns" && text.parse::<std::net::IpAddr>().is_err() {
                return Err(at.invalid(format!("{text:?} is no address")));
            }
            if key == "dns" && found.len() == 2 {
                at.warn("a resolver looks at three servers, and the cluster's is the first: left out");
                continue;
            }
            found.push(json!(text));
        }
        put(&mut config, field, Value::Array(found));
    }
    if let Some(view) = service.get("dns_opt") {
        let options = view.strings()?.into_iter().map(|(text, _)| match text.split_once(':') {
            Some((name, value)) => json!({"name": name, "value": value}),
            None => json!({"name": text}),
        });
        put(&mut config, "options", options.collect());
    }
    put(&mut pod.spec, "dnsConfig", Value::Object(config));
    let Some(view) = service.get("extra_hosts") else { return Ok(()) };
    let known = pod.spec.entry("hostAliases").or_insert_with(|| json!([]));
    for (name, address, at) in hosts(&view)? {
        let address = address.trim_start_matches('[').trim_end_matches(']');
        if address == "host-gateway" {
            at.warn("the node's address is not known before the pod is: left out");
        } else if address.parse::<std::net::IpAddr>().is_err() {
            return Err(at.invalid(format!("{address:?} is no address")));
        } else if let Some(list) = known.as_array_mut() {
            match list.iter_mut().find(|entry| entry["ip"] == json!(address)) {
                Some(entry) => {
                    if let Some(names) = entry["hostnames"].as_array_mut() {
                        names.push(json!(name));
                    }
                }
                None => list.push(json!({"ip": address, "hostnames": [name]})),
            }
        }
    }
    if known == &json!([]) {
        pod.spec.remove("hostAliases");
    }
    Ok(())
}

fn hosts<'a>(view: &View<'a>) -> Result<Vec<(String, String, View<'a>)>> {
    let mut all = Vec::new();
    if view.is_map() {
        for (name, value) in view.entries() {
            for (address, at) in value.strings()? {
                all.push((name.to_owned(), address, at));
            }
        }
        return Ok(all);
    }
    for item in view.items() {
        let text = item.text()?;
        let pair = text.split_once('=').or_else(|| text.split_once(':'));
        let (name, address) = pair.ok_or_else(|| item.invalid(format!("{text:?} is no host: NAME=ADDRESS")))?;
        all.push((name.to_owned(), address.to_owned(), item));
    }
    Ok(all)
}
