//! A pod template as it grows, and what is put together of the services in it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::files::Store;
use super::project::{Project, Service};
use super::{container, dependencies, hooks, network, placement, probes, put, resources, security, unkept, volumes};
use crate::error::Result;

#[derive(Default)]
pub struct Pod {
    pub spec: Map<String, Value>,
    pub security: Map<String, Value>,
    pub containers: Vec<Value>,
    /// By name, in the order in which they were asked for.
    pub volumes: Vec<Value>,
    pub labels: Map<String, Value>,
    pub annotations: BTreeMap<String, String>,
    /// Nobody may write to a claim that two pods have at once.
    pub writes_claim: bool,
    /// What files it mounts: their change makes new pods.
    pub contents: Vec<u8>,
}

impl Pod {
    /// Adds a volume unless it is there.
    pub fn volume(&mut self, volume: Value) {
        if self.volumes.iter().all(|known| known["name"] != volume["name"]) {
            self.volumes.push(volume);
        }
    }

    /// As a template's `metadata` and `spec`.
    pub fn template(mut self) -> Value {
        if !self.contents.is_empty() {
            self.annotations.insert("dhow.io/files".into(), crate::names::hash(&self.contents));
        }
        let mut metadata = Map::new();
        metadata.insert("labels".into(), Value::Object(self.labels));
        put(&mut metadata, "annotations", json!(self.annotations));
        let mut spec = self.spec;
        // Nothing in the pod speaks to the API unless it is told to.
        spec.insert("automountServiceAccountToken".into(), json!(false));
        spec.insert("enableServiceLinks".into(), json!(false));
        put(&mut spec, "securityContext", Value::Object(self.security));
        spec.insert("containers".into(), Value::Array(self.containers));
        put(&mut spec, "volumes", Value::Array(self.volumes));
        json!({"metadata": metadata, "spec": spec})
    }
}

/// The pod of a leader with all services in it.
pub fn of(project: &Project<'_>, leader: &Service<'_>, store: &mut Store) -> Result<Pod> {
    let mut pod = Pod { labels: project.labels(Some(&leader.dns)), ..Pod::default() };
    for member in project.members(&leader.name) {
        let mut container = Map::new();
        container.insert("name".into(), json!(member.dns));
        container::translate(project, member, &mut pod, &mut container)?;
        security::translate(member, &mut pod, &mut container)?;
        resources::translate(member, &mut container)?;
        probes::translate(member, &mut container)?;
        hooks::translate(project, member, &mut container)?;
        volumes::translate(project, member, &mut pod, &mut container)?;
        super::files::mount(project, member, &mut pod, &mut container, store)?;
        network::translate(project, member, &mut pod, &mut container)?;
        dependencies::translate(project, leader, member, &mut pod)?;
        metadata(member, project, &mut pod)?;
        unkept::warn(member);
        pod.containers.push(Value::Object(container));
    }
    placement::translate(leader, &mut pod)?;
    termination(project, leader, &mut pod)?;
    Ok(pod)
}

/// The longest time that any of its services wants to end in.
fn termination(project: &Project<'_>, leader: &Service<'_>, pod: &mut Pod) -> Result<()> {
    // Docker's standard, not Kubernetes'.
    let mut seconds = 10;
    for member in project.members(&leader.name) {
        if let Some(view) = member.get("stop_grace_period") {
            seconds = seconds.max(view.seconds(0)?);
            if leader.name == member.name {
                seconds = view.seconds(0)?;
            }
        }
    }
    pod.spec.insert("terminationGracePeriodSeconds".into(), json!(seconds));
    Ok(())
}

/// `labels`, `label_file` and `annotations`. Docker's labels hold any text: what does not fit a label is an annotation.
fn metadata(service: &Service<'_>, project: &Project<'_>, pod: &mut Pod) -> Result<()> {
    if let Some(view) = service.get("label_file") {
        for (path, at) in view.strings()? {
            let text = super::container::read_text(project, &at, &path)?;
            for (name, value) in crate::dotenv::parse(&path, &text, &project.variables)? {
                label(&at, &name, &value, &mut pod.labels, &mut pod.annotations);
            }
        }
    }
    if let Some(view) = service.get("labels") {
        for (name, value, at) in view.pairs()? {
            label(&at, &name, &value.unwrap_or_default(), &mut pod.labels, &mut pod.annotations);
        }
    }
    if let Some(view) = service.get("annotations") {
        for (name, value, at) in view.pairs()? {
            if dhow_api::names::qualified_name(&name).is_empty() {
                pod.annotations.insert(name, value.unwrap_or_default());
            } else {
                at.warn(format!("{name:?} is no name of an annotation in Kubernetes: left out"));
            }
        }
    }
    Ok(())
}

/// Puts a label where it fits.
pub fn label(
    at: &crate::view::View<'_>,
    name: &str,
    value: &str,
    labels: &mut Map<String, Value>,
    annotations: &mut BTreeMap<String, String>,
) {
    if !dhow_api::names::qualified_name(name).is_empty() {
        return at.warn(format!("{name:?} is no name of a label in Kubernetes: left out"));
    }
    if name.starts_with("app.kubernetes.io/") || name.starts_with("dhow.io/") && labels.contains_key(name) {
        return at.warn(format!("{name} is dhow's own: left out"));
    }
    if dhow_api::names::label_value(value).is_empty() {
        labels.insert(name.to_owned(), json!(value));
    } else {
        annotations.insert(name.to_owned(), value.to_owned());
    }
}
