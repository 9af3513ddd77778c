//! `configs` and `secrets`: ConfigMaps, Secrets, and their files in containers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

use super::pod::{Pod, label};
use super::project::{Project, Service};
use super::put;
use super::security::push;
use crate::error::{Error, Result};
use crate::names;
use crate::view::View;

/// A ConfigMap or Secret holds no more.
const LARGEST: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Configs,
    Secrets,
}

impl Section {
    fn name(self) -> &'static str {
        match self {
            Self::Configs => "configs",
            Self::Secrets => "secrets",
        }
    }
}

/// The objects that hold the contents.
#[derive(Default)]
pub struct Store {
    made: BTreeMap<(Section, String), Value>,
}

impl Store {
    pub fn objects(self) -> Vec<Value> {
        self.made.into_values().collect()
    }

    /// What no service uses is made too: Compose knows it as the project's.
    pub fn top_level(&mut self, project: &Project<'_>) -> Result<()> {
        for section in [Section::Configs, Section::Secrets] {
            for (name, entry) in project.section(section.name()) {
                self.entry(project, section, name, &entry)?;
            }
        }
        Ok(())
    }

    /// The object's name, the key in it, and the contents if they are known.
    fn entry(
        &mut self,
        project: &Project<'_>,
        section: Section,
        name: &str,
        entry: &View<'_>,
    ) -> Result<(String, String, Vec<u8>)> {
        let own = entry
            .get("name")
            .or_else(|| entry.get("external").filter(View::is_map).and_then(|external| external.get("name")));
        let own = own.map(|view| view.text().map(str::to_owned)).transpose()?;
        let object = names::subdomain(own.as_deref().unwrap_or(name));
        let key = name.replace(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.'), "-");
        let external = match entry.get("external") {
            Some(view) => view.is_map() || view.bool()?,
            None => false,
        };
        if external {
            for unused in ["file", "content", "environment", "labels", "driver", "driver_opts", "template_driver"] {
                if let Some(view) = entry.get(unused) {
                    view.warn("does not count: the object is there already");
                }
            }
            return Ok((object, key, Vec::new()));
        }
        if let Some(view) = entry.get("driver") {
            return Err(view.invalid("secrets of drivers are not fetched: make the Secret and say `external: true`"));
        }
        for unused in ["driver_opts", "template_driver"] {
            if let Some(view) = entry.get(unused) {
                view.warn("templates and drivers are not known to ConfigMaps and Secrets");
            }
        }
        let contents = contents(project, entry)?;
        if contents.len() > LARGEST {
            return Err(entry.invalid("is larger than 1 MiB, which is the most that Kubernetes keeps in an object"));
        }
        let mut metadata = project.metadata(&object, None);
        if let Some(view) = entry.get("labels") {
            let mut labels = metadata["labels"].as_object().cloned().unwrap_or_default();
            let mut annotations = BTreeMap::new();
            for (name, value, at) in view.pairs()? {
                label(&at, &name, &value.unwrap_or_default(), &mut labels, &mut annotations);
            }
            metadata.insert("labels".into(), Value::Object(labels));
            put(&mut metadata, "annotations", json!(annotations));
        }
        let value = match (section, String::from_utf8(contents.clone())) {
            (Section::Secrets, _) => json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata,
                "type": "Opaque", "data": {&key: STANDARD.encode(&contents)}}),
            (_, Ok(text)) => {
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {&key: text}})
            }
            (_, Err(_)) => json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
                "binaryData": {&key: STANDARD.encode(&contents)}}),
        };
        self.made.insert((section, name.to_owned()), value);
        Ok((object, key, contents))
    }
}

fn contents(project: &Project<'_>, entry: &View<'_>) -> Result<Vec<u8>> {
    if let Some(view) = entry.get("content") {
        return Ok(view.text()?.as_bytes().to_vec());
    }
    if let Some(view) = entry.get("environment") {
        let name = view.text()?;
        let value =
            project.variables.get(name).ok_or_else(|| view.invalid(format!("the variable {name} is not set")))?;
        return Ok(value.as_bytes().to_vec());
    }
    let Some(view) = entry.get("file") else {
        return Err(entry.invalid("says not where it comes from: file, content, environment or external"));
    };
    let path = view.text()?;
    project.files.read(std::path::Path::new(path)).map_err(|source| Error::Read {
        place: view.node.place.clone(),
        path: view.path.clone(),
        file: path.to_owned(),
        source,
    })
}

/// The files that a service asks for.
pub fn mount(
    project: &Project<'_>,
    service: &Service<'_>,
    pod: &mut Pod,
    container: &mut Map<String, Value>,
    store: &mut Store,
) -> Result<()> {
    for section in [Section::Configs, Section::Secrets] {
        for item in service.get(section.name()).iter().flat_map(View::items) {
            one(project, &item, section, pod, container, store)?;
        }
    }
    Ok(())
}

fn one(
    project: &Project<'_>,
    item: &View<'_>,
    section: Section,
    pod: &mut Pod,
    container: &mut Map<String, Value>,
    store: &mut Store,
) -> Result<()> {
    let text = |key: &str| item.get(key).map(|view| view.text().map(str::to_owned)).transpose();
    let source = match text("source")? {
        Some(source) => source,
        None if item.is_map() => return Err(item.invalid("has no source")),
        None => item.text()?.to_owned(),
    };
    let Some(entry) = project.entry(section.name(), &source) else {
        let section = section.name();
        return Err(item.invalid(format!("there is no {source:?} under `{section}` of the file")));
    };
    let (object, key, contents) = store.entry(project, section, &source, &entry)?;
    pod.contents.extend_from_slice(source.as_bytes());
    pod.contents.extend_from_slice(&contents);
    let target = match (text("target")?, section) {
        (Some(target), _) if target.starts_with('/') => target,
        (Some(target), Section::Secrets) => format!("/run/secrets/{target}"),
        (Some(target), Section::Configs) => format!("/{target}"),
        (None, Section::Secrets) => format!("/run/secrets/{source}"),
        (None, Section::Configs) => format!("/{source}"),
    };
    for owner in ["uid", "gid"] {
        if let Some(view) = item.get(owner)
            && view.text()? != "0"
        {
            view.warn("files of configs and secrets are root's; their mode lets others read them");
        }
    }
    let mode = item.get("mode").map(|view| view.mode()).transpose()?.unwrap_or(0o444);
    let file = json!([{"key": key, "path": key, "mode": mode}]);
    let name = names::label(&format!("{}-{source}-{mode:o}", section.name().trim_end_matches('s')));
    let volume = match section {
        Section::Configs => json!({"name": name, "configMap": {"name": object, "items": file}}),
        Section::Secrets => json!({"name": name, "secret": {"secretName": object, "items": file}}),
    };
    pod.volume(volume);
    push(container, "volumeMounts", json!({"name": name, "mountPath": target, "subPath": key, "readOnly": true}));
    Ok(())
}
