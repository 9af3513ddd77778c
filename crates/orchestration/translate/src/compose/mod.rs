//! A Compose project as Kubernetes objects; docs/compose.md has the table of keys and kinds.
//!
//! Services that share a pod (`network_mode: service:x`) are containers of one workload, its leader's. Each file here
//! translates a group of keys.

mod build;
mod container;
mod dependencies;
mod files;
mod hooks;
mod network;
mod placement;
mod pod;
mod policies;
mod probes;
mod project;
mod resources;
mod security;
mod services;
mod unkept;
mod volumes;
mod workload;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

pub use build::{Build, Secret};

use crate::dotenv;
use crate::error::{Error, Result};
use crate::interpolate::Variables;
use crate::load::{FileKind, Files, Loader, SECTIONS, Source, drop_inactive};
use crate::view::{Notes, View, Warning};
use project::Project;

/// Label of everything that belongs to a project.
pub const PROJECT: &str = "dhow.io/project";
/// Label of a service's workload and pods.
pub const SERVICE: &str = "dhow.io/service";
/// Scheduling gate of pods that wait for other services, and the annotation that names them.
pub const GATE: &str = "dhow.io/depends-on";

/// How a project is read and where it goes.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The project's folder, absolute.
    pub folder: PathBuf,
    /// The caller's variables.
    pub environment: Variables,
    /// Files of variables in place of the folder's `.env`.
    pub env_files: Vec<PathBuf>,
    pub profiles: Vec<String>,
    /// In place of the name in the file, or the folder's.
    pub project: Option<String>,
    /// Where it goes; otherwise into a namespace of its own, named like it.
    pub namespace: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Translation {
    pub project: String,
    pub namespace: String,
    /// In the order in which they are applied.
    pub objects: Vec<Value>,
    /// Images to build first.
    pub builds: Vec<Build>,
    pub warnings: Vec<Warning>,
}

/// Translates files that are laid on each other.
///
/// # Errors
/// Tells place and path of what cannot be understood.
pub fn translate(sources: &[Source], options: &Options, files: &dyn Files) -> Result<Translation> {
    let notes = Notes::default();
    let loader = Loader { files, notes: &notes };
    let mut variables = variables(options, &loader)?;
    let name = project_name(sources, options, &variables)?;
    variables.insert("COMPOSE_PROJECT_NAME".to_owned(), name.clone());
    let mut root = loader.load(sources, &options.folder, &variables, &[])?;
    let mut profiles: BTreeSet<String> = options.profiles.iter().cloned().collect();
    let from_environment = variables.get("COMPOSE_PROFILES").into_iter().flat_map(|text| text.split(','));
    profiles.extend(from_environment.filter(|text| !text.is_empty()).map(str::to_owned));
    drop_inactive(&mut root, &profiles, &notes);

    let view = View::new(&root, "", &notes);
    if let Some(version) = view_key(&view, "version") {
        version.warn("is obsolete; all keys of the Compose specification are understood");
    }
    view_key(&view, "name");
    let project = Project::new(name, options.namespace.clone(), &root, &notes, files, variables)?;
    let objects = objects(&project)?;
    let builds = build::builds(&project, &options.folder)?;
    for section in SECTIONS {
        for (name, node) in root.get(section).map_or(&[][..], |node| node.entries()) {
            if !name.starts_with("x-") {
                notes.unread(node, &format!("{section}.{name}"));
            }
        }
    }
    Ok(Translation {
        project: project.name.clone(),
        namespace: project.namespace.clone(),
        objects,
        builds,
        warnings: notes.sorted(),
    })
}

/// A key of the root: its path has no dot before it.
fn view_key<'a>(root: &View<'a>, key: &str) -> Option<View<'a>> {
    let node = root.node.get(key).filter(|node| !node.is_null())?;
    Some(View::new(node, key, root.notes))
}

fn variables(options: &Options, loader: &Loader<'_>) -> Result<Variables> {
    let mut files = options.env_files.clone();
    let standard = options.folder.join(".env");
    if files.is_empty() && loader.files.kind(&standard) == FileKind::File {
        files.push(standard);
    }
    let mut all = Variables::new();
    for file in files {
        let shown = file.display().to_string();
        let text = loader.text(&file).map_err(|source| Error::Open { file: shown.clone(), source })?;
        let mut outer = all.clone();
        outer.extend(options.environment.clone());
        all.extend(dotenv::parse(&shown, &text, &outer)?);
    }
    // What the caller sets wins.
    all.extend(options.environment.clone());
    Ok(all)
}

fn project_name(sources: &[Source], options: &Options, variables: &Variables) -> Result<String> {
    let set = options.project.clone().or_else(|| variables.get("COMPOSE_PROJECT_NAME").cloned());
    let chosen = match set.filter(|name| !name.is_empty()) {
        Some(name) => Some(name),
        None => {
            let mut named = None;
            for source in sources {
                for document in crate::yaml::parse(&source.name, &source.text)? {
                    if let Some(name) = document.get("name").and_then(crate::yaml::Node::scalar) {
                        let value = crate::interpolate::expand(name, variables, &mut Vec::new());
                        named = Some(value.map_err(Error::Conflict)?);
                    }
                }
            }
            named
        }
    };
    let folder = || options.folder.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = chosen.or_else(folder).unwrap_or_default();
    if name.chars().all(|c| !c.is_ascii_alphanumeric()) {
        return Err(Error::Conflict("the project has no name: give --project".into()));
    }
    Ok(crate::names::label(&name))
}

fn objects(project: &Project<'_>) -> Result<Vec<Value>> {
    let mut workloads = Vec::new();
    let mut others = files::Store::default();
    for leader in project.leaders() {
        workloads.push(workload::translate(project, leader, &mut others)?);
    }
    let services = services::all(project)?;
    let policies = policies::all(project)?;
    let claims = volumes::claims(project)?;
    others.top_level(project)?;

    let mut all = Vec::new();
    if project.own_namespace {
        all.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": project.namespace, "labels": project.labels(None)}}));
    }
    all.extend(others.objects());
    all.extend(claims);
    all.extend(policies);
    all.extend(services);
    all.extend(workloads);
    unique(&all)?;
    Ok(all)
}

/// Two objects may not have one name: different names of a file can become the same.
fn unique(objects: &[Value]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for object in objects {
        let name = format!(
            "{} {}",
            object["kind"].as_str().unwrap_or_default(),
            object["metadata"]["name"].as_str().unwrap_or_default()
        );
        if !seen.insert(name.clone()) {
            return Err(Error::Conflict(format!("two parts of the project become the same {name}: rename one")));
        }
    }
    Ok(())
}

/// Adds a field unless it is empty.
fn put(map: &mut Map<String, Value>, key: &str, value: Value) {
    let empty = match &value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    if !empty {
        map.insert(key.to_owned(), value);
    }
}
