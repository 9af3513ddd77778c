//! What all translators know of a project: its services, who shares whose pod, who is on which network.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{PROJECT, SERVICE};
use crate::error::{Error, Result};
use crate::interpolate::Variables;
use crate::load::Files;
use crate::names;
use crate::view::{Notes, View};
use crate::yaml::Node;

pub struct Project<'a> {
    pub name: String,
    pub namespace: String,
    /// Whether the namespace is made for it.
    pub own_namespace: bool,
    pub notes: &'a Notes,
    pub files: &'a dyn Files,
    pub variables: Variables,
    pub services: Vec<Service<'a>>,
    root: &'a Node,
}

pub struct Service<'a> {
    /// As the file calls it.
    pub name: String,
    /// As the cluster does.
    pub dns: String,
    pub view: View<'a>,
    /// The service whose pod it is in: its own, or another's.
    pub leader: String,
    /// Services that wait for its end.
    pub awaited: bool,
    /// Networks it is on, by their names in the file.
    pub networks: BTreeSet<String>,
}

impl<'a> Service<'a> {
    pub fn leads(&self) -> bool {
        self.leader == self.name
    }

    pub fn get(&self, key: &str) -> Option<View<'a>> {
        self.view.get(key)
    }

    pub fn deploy(&self, key: &str) -> Option<View<'a>> {
        self.view.get("deploy")?.get(key)
    }

    /// The service's network mode, without `service:` and the like.
    pub fn network_mode(&self) -> Option<&'a str> {
        self.view.get("network_mode").and_then(|view| view.node.scalar())
    }
}

impl<'a> Project<'a> {
    pub fn new(
        name: String,
        namespace: Option<String>,
        root: &'a Node,
        notes: &'a Notes,
        files: &'a dyn Files,
        variables: Variables,
    ) -> Result<Self> {
        let mut services = Vec::new();
        for (service, node) in root.get("services").map_or(&[][..], |node| node.entries()) {
            if service.starts_with("x-") {
                continue;
            }
            let view = View::new(node, format!("services.{service}"), notes);
            let dns = names::label(service);
            if dns != *service {
                // It is found under its new name only.
                notes.add(crate::Warning {
                    place: node.place.clone(),
                    path: view.path.clone(),
                    message: format!("the name does not fit DNS: other services reach it as {dns}"),
                });
            }
            let networks = networks(&view, root)?;
            services.push(Service {
                name: service.clone(),
                dns,
                view,
                leader: service.clone(),
                awaited: false,
                networks,
            });
        }
        if services.is_empty() {
            return Err(Error::Conflict("the project has no services".into()));
        }
        let own_namespace = namespace.is_none();
        let namespace = namespace.unwrap_or_else(|| name.clone());
        let mut project = Self { name, namespace, own_namespace, notes, files, variables, services, root };
        project.find_leaders()?;
        project.find_awaited();
        Ok(project)
    }

    pub fn service(&self, name: &str) -> Option<&Service<'a>> {
        self.services.iter().find(|service| service.name == name)
    }

    pub fn leaders(&self) -> impl Iterator<Item = &Service<'a>> {
        self.services.iter().filter(|service| service.leads() && !service.view.has("provider"))
    }

    /// The services in a leader's pod, itself first.
    pub fn members(&self, leader: &str) -> Vec<&Service<'a>> {
        let mut all: Vec<_> = self.services.iter().filter(|service| service.leader == leader).collect();
        all.sort_by_key(|service| !service.leads());
        all
    }

    /// An entry of a section at the root: `volumes`, `configs`; `None` if the file has none of that name.
    pub fn entry(&self, section: &str, name: &str) -> Option<View<'a>> {
        let node = self.root.get(section)?.get(name)?;
        Some(View::new(node, format!("{section}.{name}"), self.notes))
    }

    pub fn section(&self, section: &str) -> Vec<(&'a str, View<'a>)> {
        let Some(node) = self.root.get(section) else { return Vec::new() };
        let entries = node.entries().iter().filter(|(name, _)| !name.starts_with("x-"));
        entries.map(|(name, node)| (name.as_str(), View::new(node, format!("{section}.{name}"), self.notes))).collect()
    }

    /// Labels of an object of the project, or of one of its services.
    pub fn labels(&self, service: Option<&str>) -> Map<String, Value> {
        let mut labels = Map::new();
        if let Some(service) = service {
            labels.insert("app.kubernetes.io/name".into(), json!(service));
        }
        labels.insert("app.kubernetes.io/instance".into(), json!(self.name));
        labels.insert("app.kubernetes.io/part-of".into(), json!(self.name));
        labels.insert("app.kubernetes.io/managed-by".into(), json!("dhow"));
        labels.insert(PROJECT.into(), json!(self.name));
        if let Some(service) = service {
            labels.insert(SERVICE.into(), json!(service));
        }
        labels
    }

    pub fn selector(&self, service: &str) -> Value {
        json!({PROJECT: self.name, SERVICE: service})
    }

    pub fn metadata(&self, name: &str, service: Option<&str>) -> Map<String, Value> {
        let mut metadata = Map::new();
        metadata.insert("name".into(), json!(name));
        metadata.insert("namespace".into(), json!(self.namespace));
        metadata.insert("labels".into(), Value::Object(self.labels(service)));
        metadata
    }

    fn find_leaders(&mut self) -> Result<()> {
        let mut joins: BTreeMap<String, String> = BTreeMap::new();
        for service in &self.services {
            for key in ["network_mode", "pid", "ipc"] {
                let Some(view) = service.get(key) else { continue };
                let Some(other) = view.node.scalar().and_then(|text| text.strip_prefix("service:")) else { continue };
                if self.service(other).is_none() {
                    return Err(view.invalid(format!("there is no service {other:?}")));
                }
                if joins.get(&service.name).is_some_and(|known| known != other) {
                    return Err(
                        view.invalid("joins another service than its other modes do: a container is in one pod")
                    );
                }
                joins.insert(service.name.clone(), other.to_owned());
            }
        }
        for index in 0..self.services.len() {
            let mut at = self.services[index].name.clone();
            let mut steps = 0;
            while let Some(next) = joins.get(&at) {
                steps += 1;
                if steps > joins.len() {
                    return Err(self.services[index].view.invalid("joins itself, by way of others"));
                }
                at.clone_from(next);
            }
            self.services[index].leader = at;
        }
        Ok(())
    }

    fn find_awaited(&mut self) {
        let mut awaited = BTreeSet::new();
        for service in &self.services {
            let Some(needs) = service.get("depends_on") else { continue };
            for (name, need) in needs.node.entries() {
                if need.get("condition").and_then(Node::scalar) == Some("service_completed_successfully") {
                    awaited.insert(name.clone());
                }
            }
        }
        for service in &mut self.services {
            service.awaited = awaited.contains(&service.name);
        }
    }
}

/// The networks that a service names, or `default`.
fn networks(service: &View<'_>, root: &Node) -> Result<BTreeSet<String>> {
    if service.has("network_mode") {
        return Ok(BTreeSet::new());
    }
    let Some(view) = service.get("networks") else { return Ok(["default".to_owned()].into()) };
    let mut all = Vec::new();
    if view.is_list() {
        for item in view.items() {
            all.push((item.text()?.to_owned(), item));
        }
    } else {
        all.extend(view.entries().map(|(name, inner)| (name.to_owned(), inner)));
    }
    let mut names = BTreeSet::new();
    for (name, place) in all {
        if name != "default" && root.get("networks").is_none_or(|networks| networks.get(&name).is_none()) {
            return Err(place.invalid(format!("there is no network {name:?}: name it under `networks` of the file")));
        }
        names.insert(name);
    }
    Ok(names)
}
