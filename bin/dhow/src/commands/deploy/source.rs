//! What a path holds: Compose files, Kubernetes YAML, a kustomization.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use dhow_translate::kustomize;
use dhow_translate::{Build, FileKind, Files, Options, PROJECT, Source, Warning};
use serde_json::{Value, json};

use crate::cli::SourceArgs;

/// Objects to apply, in their order.
pub struct Deployable {
    /// Each with where it comes from.
    pub objects: Vec<(String, Value)>,
    /// For objects that name none.
    pub namespace: String,
    /// The label of what belongs together.
    pub project: Option<String>,
    /// Images to build first.
    pub builds: Vec<Build>,
    pub warnings: Vec<Warning>,
}

const COMPOSE: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];
const OVERRIDES: [&str; 4] =
    ["compose.override.yaml", "compose.override.yml", "docker-compose.override.yaml", "docker-compose.override.yml"];

struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn kind(&self, path: &Path) -> FileKind {
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => FileKind::Folder,
            Ok(_) => FileKind::File,
            Err(_) => FileKind::Missing,
        }
    }
}

pub fn read(args: &SourceArgs) -> Result<Deployable> {
    let Some(first) = args.paths.first() else { bail!("name a file or folder to deploy, or `-`") };
    if first == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read standard input")?;
        let folder = std::env::current_dir().context("find the working folder")?;
        return match is_compose(&text) {
            true => compose(args, vec![Source { name: "standard input".into(), text, folder: folder.clone() }], folder),
            false => kubernetes(args, parse("standard input", &text)?),
        };
    }
    if first.is_dir() {
        let folder = std::fs::canonicalize(first).with_context(|| format!("read {}", first.display()))?;
        if kustomize::find(&folder, &Disk).is_some() {
            return kustomization(args, &folder);
        }
        if let Some(file) = COMPOSE.iter().map(|name| first.join(name)).find(|file| file.is_file()) {
            let overriding = OVERRIDES.iter().map(|name| first.join(name)).find(|file| file.is_file());
            let files: Vec<PathBuf> = [Some(file), overriding].into_iter().flatten().collect();
            return compose(args, sources(&files)?, folder);
        }
    } else if first.file_name().and_then(|name| name.to_str()).is_some_and(|name| kustomize::NAMES.contains(&name)) {
        let folder = std::fs::canonicalize(parent(first)).with_context(|| format!("read {}", first.display()))?;
        return kustomization(args, &folder);
    } else {
        let text = std::fs::read_to_string(first).with_context(|| format!("read {}", first.display()))?;
        if is_compose(&text) {
            let folder = std::fs::canonicalize(parent(first)).with_context(|| format!("read {}", first.display()))?;
            return compose(args, sources(&args.paths)?, folder);
        }
    }
    let mut objects = Vec::new();
    for path in &args.paths {
        for file in yaml_files(path)? {
            let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            objects.extend(parse(&file.display().to_string(), &text)?);
        }
    }
    kubernetes(args, objects)
}

fn parent(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sources(files: &[PathBuf]) -> Result<Vec<Source>> {
    let one = |file: &PathBuf| {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let folder = std::fs::canonicalize(parent(file)).with_context(|| format!("read {}", file.display()))?;
        Ok(Source { name: file.display().to_string(), text, folder })
    };
    files.iter().map(one).collect()
}

/// Whether a document has services rather than a kind.
fn is_compose(text: &str) -> bool {
    let Ok(documents) = dhow_translate::yaml::parse("", text) else { return false };
    let has = |key: &str| documents.iter().any(|document| document.get(key).is_some());
    !has("kind") && (has("services") || has("include"))
}

fn compose(args: &SourceArgs, sources: Vec<Source>, folder: PathBuf) -> Result<Deployable> {
    let options = Options {
        folder,
        environment: std::env::vars().collect(),
        env_files: args.env_file.clone(),
        profiles: args.profile.clone(),
        project: args.project.clone(),
        namespace: args.namespace.clone(),
    };
    let name = sources.first().map(|source| source.name.clone()).unwrap_or_default();
    let found = dhow_translate::translate(&sources, &options, &Disk)?;
    Ok(Deployable {
        objects: found.objects.into_iter().map(|object| (name.clone(), object)).collect(),
        namespace: found.namespace,
        project: Some(found.project),
        builds: found.builds,
        warnings: found.warnings,
    })
}

fn kustomization(args: &SourceArgs, folder: &Path) -> Result<Deployable> {
    let mut objects: Vec<(String, Value)> =
        kustomize::build(folder, &Disk)?.into_iter().map(|object| (folder.display().to_string(), object)).collect();
    objects.sort_by_key(|(_, object)| rank(object["kind"].as_str().unwrap_or_default()));
    kubernetes(args, objects)
}

/// What others need comes first.
fn rank(kind: &str) -> usize {
    let first = [
        "Namespace",
        "CustomResourceDefinition",
        "PriorityClass",
        "StorageClass",
        "ServiceAccount",
        "ClusterRole",
        "Role",
    ];
    let second =
        ["ClusterRoleBinding", "RoleBinding", "ConfigMap", "Secret", "PersistentVolume", "PersistentVolumeClaim"];
    first.iter().chain(&second).position(|known| *known == kind).unwrap_or(first.len() + second.len())
}

fn kubernetes(args: &SourceArgs, mut objects: Vec<(String, Value)>) -> Result<Deployable> {
    if objects.is_empty() {
        let paths: Vec<String> = args.paths.iter().map(|path| path.display().to_string()).collect();
        bail!("{} holds no object", paths.join(" "));
    }
    if let Some(project) = &args.project {
        for (source, object) in &mut objects {
            let metadata = object["metadata"].as_object_mut().with_context(|| format!("{source}: no metadata"))?;
            let labels = metadata.entry("labels").or_insert_with(|| json!({}));
            labels[PROJECT] = json!(project);
        }
    }
    Ok(Deployable {
        objects,
        namespace: args.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        project: args.project.clone(),
        builds: Vec::new(),
        warnings: Vec::new(),
    })
}

fn yaml_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known)) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn parse(source: &str, text: &str) -> Result<Vec<(String, Value)>> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).with_context(|| format!("{source} is not valid YAML"))?;
    let mut objects = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        let place = format!("{source}, document {}", index + 1);
        match document {
            Value::Null => {}
            Value::Object(ref fields) if fields.get("kind").is_some_and(|kind| kind == "List") => {
                for item in document["items"].as_array().into_iter().flatten() {
                    objects.push((place.clone(), item.clone()));
                }
            }
            Value::Object(_) => objects.push((place, document)),
            _ => bail!("{place}: expected an object with apiVersion and kind"),
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_become_objects() {
        let text = "kind: A\n---\n---\nkind: List\nitems: [{kind: B}, {kind: C}]\n";
        let kinds: Vec<String> =
            parse("x", text).unwrap().into_iter().map(|(_, object)| object["kind"].as_str().unwrap().into()).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
    }

    #[test]
    fn a_scalar_is_refused_with_its_place() {
        let error = parse("file.yaml", "kind: A\n---\nhello\n").unwrap_err();
        assert!(error.to_string().contains("file.yaml, document 2"), "{error}");
    }

    #[test]
    fn compose_files_are_told_from_manifests() {
        assert!(is_compose("services:\n  web: {image: a}\n"));
        assert!(!is_compose("apiVersion: v1\nkind: List\nservices: 1\n"));
        assert!(!is_compose("kind: A\n---\nkind: B\n"));
    }
}
