//! `depends_on` and the older `links`: pods that wait behind a scheduling gate.
//!
//! An annotation of the pod names what it waits for; a controller takes the gate away once all of it is so. No pod holds a
//! node's place while it waits, and no image is needed for waiting.

use serde_json::{Value, json};

use super::GATE;
use super::pod::Pod;
use super::project::{Project, Service};
use crate::error::Result;

pub fn translate(project: &Project<'_>, leader: &Service<'_>, service: &Service<'_>, pod: &mut Pod) -> Result<()> {
    let mut waits: Vec<Value> =
        pod.annotations.get(GATE).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let Some(view) = service.get("depends_on") else { return Ok(()) };
    let mut needs = Vec::new();
    if view.is_list() {
        for item in view.items() {
            needs.push((item.text()?.to_owned(), "service_started", true, item));
        }
    } else {
        for (name, need) in view.entries() {
            let condition = need.get("condition").map(|view| view.text()).transpose()?.unwrap_or("service_started");
            let required = need.get("required").map(|view| view.bool()).transpose()?.unwrap_or(true);
            if let Some(restart) = need.get("restart")
                && restart.bool()?
            {
                restart.warn("pods are not restarted with what they depend on");
            }
            needs.push((name.to_owned(), condition, required, need));
        }
    }
    for (name, condition, required, at) in needs {
        let Some(other) = project.service(&name) else {
            if required {
                return Err(at.invalid(format!("there is no service {name:?}, or its profile is not active")));
            }
            continue;
        };
        if other.view.has("provider") {
            continue;
        }
        if other.leader == leader.name {
            if other.name != service.name {
                at.warn(format!("{name} is in the same pod: they start together"));
                continue;
            }
            return Err(at.invalid("depends on itself"));
        }
        if let Some(way) = cycle(project, &name, &leader.name) {
            return Err(at.invalid(format!("a circle: {} needs {way}", leader.name)));
        }
        if condition == "service_healthy" && !has_check(other) {
            at.warn(format!("{name} has no healthcheck: it counts as healthy once it runs"));
        }
        let target = project.service(&other.leader).map_or(&other.dns, |leader| &leader.dns);
        let wait = json!({"service": target, "condition": condition});
        if !waits.contains(&wait) {
            waits.push(wait);
        }
    }
    if waits.is_empty() {
        return Ok(());
    }
    pod.annotations.insert(GATE.to_owned(), Value::Array(waits).to_string());
    pod.spec.insert("schedulingGates".into(), json!([{"name": GATE}]));
    Ok(())
}

fn has_check(service: &Service<'_>) -> bool {
    service.view.node.get("healthcheck").is_some_and(|check| check.get("test").is_some())
}

/// The way from a service back to `end`, if there is one.
fn cycle(project: &Project<'_>, from: &str, end: &str) -> Option<String> {
    let mut open = vec![(from.to_owned(), from.to_owned())];
    let mut seen = std::collections::BTreeSet::new();
    while let Some((name, way)) = open.pop() {
        let service = project.service(&name)?;
        if service.leader == end {
            return Some(way);
        }
        if !seen.insert(service.leader.clone()) {
            continue;
        }
        for member in project.members(&service.leader) {
            let Some(needs) = member.view.node.get("depends_on") else { continue };
            let names = needs.entries().iter().map(|(name, _)| name.as_str());
            for next in names.chain(needs.items().iter().filter_map(|item| item.scalar())) {
                // Within a pod nothing waits.
                let own = project.service(next).is_some_and(|other| other.leader == service.leader);
                if project.service(next).is_some() && !own {
                    open.push((next.to_owned(), format!("{way} needs {next}")));
                }
            }
        }
    }
    None
}
