//! Kustomizations: resources of files and folders, changed as `kustomization.yaml` says.
//!
//! The order is kustomize's: resources, generators, patches, prefixes and suffixes, namespace, labels, images, replicas,
//! and at the end the hashes of what was generated, with all references to it.

mod generate;
mod names;
mod transform;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::load::{FileKind, Files, clean};

/// The names that a kustomization has in its folder.
pub const NAMES: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

const KNOWN: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "resources",
    "bases",
    "components",
    "namePrefix",
    "nameSuffix",
    "namespace",
    "commonLabels",
    "labels",
    "commonAnnotations",
    "patches",
    "patchesStrategicMerge",
    "patchesJson6902",
    "configMapGenerator",
    "secretGenerator",
    "generatorOptions",
    "images",
    "replicas",
    "sortOptions",
    "buildMetadata",
];

/// A resource on its way.
#[derive(Debug, Clone)]
pub(crate) struct Resource {
    pub object: Value,
    /// The name it had first: references say it.
    pub original: String,
    /// Whether its name gets the hash of its contents.
    pub hashed: bool,
}

impl Resource {
    pub fn text(&self, pointer: &str) -> &str {
        self.object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    pub fn kind(&self) -> &str {
        self.text("/kind")
    }

    pub fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    pub fn group(&self) -> &str {
        self.text("/apiVersion").split_once('/').map_or("", |(group, _)| group)
    }
}

/// The kustomization in a folder, if there is one.
pub fn find(folder: &Path, files: &dyn Files) -> Option<PathBuf> {
    NAMES.iter().map(|name| folder.join(name)).find(|file| files.kind(file) == FileKind::File)
}

/// The objects of the kustomization in `folder`.
///
/// # Errors
/// Names the file, and what in it cannot be followed.
pub fn build(folder: &Path, files: &dyn Files) -> Result<Vec<Value>> {
    let mut resources = load(&clean(folder), files, &mut Vec::new())?;
    names::hash(&mut resources);
    Ok(resources.into_iter().map(|resource| resource.object).collect())
}

fn load(folder: &Path, files: &dyn Files, open: &mut Vec<PathBuf>) -> Result<Vec<Resource>> {
    load_onto(folder, files, open, Vec::new())
}

/// A component changes what is there; a kustomization begins with nothing.
fn load_onto(folder: &Path, files: &dyn Files, open: &mut Vec<PathBuf>, given: Vec<Resource>) -> Result<Vec<Resource>> {
    let Some(file) = find(folder, files) else {
        return Err(Error::Conflict(format!("{} has no kustomization.yaml", folder.display())));
    };
    if open.contains(&file) {
        return Err(Error::Conflict(format!("{} is a resource of itself", file.display())));
    }
    open.push(file.clone());
    let reader = Reader { folder: folder.to_path_buf(), file: file.clone(), files };
    let documents = reader.documents(&file)?;
    let [Value::Object(fields)] = documents.as_slice() else {
        return Err(reader.wrong("expected one map"));
    };
    if let Some(unknown) = fields.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(reader.wrong(format!("`{unknown}` is not understood")));
    }
    let mut all = given;
    for key in ["resources", "bases"] {
        for name in reader.texts(fields, key)? {
            all.extend(reader.resource(&name, open)?);
        }
    }
    generate::all(&reader, fields, &mut all)?;
    for name in reader.texts(fields, "components")? {
        all = load_onto(&clean(&folder.join(name)), files, open, all)?;
    }
    transform::all(&reader, fields, &mut all)?;
    names::prefix_and_suffix(&reader, fields, &mut all)?;
    transform::after_names(&reader, fields, &mut all)?;
    open.pop();
    Ok(all)
}

pub(crate) struct Reader<'a> {
    pub folder: PathBuf,
    pub file: PathBuf,
    pub files: &'a dyn Files,
}

impl Reader<'_> {
    pub fn wrong(&self, problem: impl std::fmt::Display) -> Error {
        Error::Conflict(format!("{}: {problem}", self.file.display()))
    }

    pub fn bytes(&self, path: &Path) -> Result<Vec<u8>> {
        self.files.read(path).map_err(|source| Error::Open { file: path.display().to_string(), source })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        clean(&self.folder.join(name))
    }

    pub fn documents(&self, path: &Path) -> Result<Vec<Value>> {
        let text =
            String::from_utf8(self.bytes(path)?).map_err(|_| self.wrong(format!("{} is not text", path.display())))?;
        self.parse(&path.display().to_string(), &text)
    }

    pub fn parse(&self, name: &str, text: &str) -> Result<Vec<Value>> {
        let all: Vec<Value> = serde_saphyr::from_multiple(text)
            .map_err(|error| Error::Conflict(format!("{name} is not valid YAML: {error}")))?;
        Ok(all.into_iter().filter(|document| !document.is_null()).collect())
    }

    pub fn list<'v>(&self, fields: &'v Map<String, Value>, key: &str) -> Result<&'v [Value]> {
        match fields.get(key) {
            None | Some(Value::Null) => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(_) => Err(self.wrong(format!("`{key}` is no list"))),
        }
    }

    pub fn texts(&self, fields: &Map<String, Value>, key: &str) -> Result<Vec<String>> {
        let one = |item: &Value| {
            item.as_str()
                .map(str::to_owned)
                .ok_or_else(|| self.wrong(format!("`{key}` holds something that is no text")))
        };
        self.list(fields, key)?.iter().map(one).collect()
    }

    pub fn text<'v>(&self, fields: &'v Map<String, Value>, key: &str) -> Result<Option<&'v str>> {
        match fields.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(format!("`{key}` is no text"))),
        }
    }

    fn resource(&self, name: &str, open: &mut Vec<PathBuf>) -> Result<Vec<Resource>> {
        if name.contains("://") || name.starts_with("git@") || name.starts_with("github.com/") {
            return Err(self.wrong(format!("{name} is not fetched: put it beside and name its folder")));
        }
        let path = self.path(name);
        match self.files.kind(&path) {
            FileKind::Folder => load(&path, self.files, open),
            FileKind::File => self
                .documents(&path)?
                .into_iter()
                .map(|object| self.object(&path, object))
                .collect::<Result<Vec<_>>>()
                .map(|all| all.into_iter().flatten().collect()),
            FileKind::Missing => Err(self.wrong(format!("there is no {name}"))),
        }
    }

    fn object(&self, path: &Path, object: Value) -> Result<Vec<Resource>> {
        if object["kind"] == "List" {
            let items = object["items"].as_array().cloned().unwrap_or_default();
            return items
                .into_iter()
                .map(|item| self.object(path, item))
                .collect::<Result<Vec<_>>>()
                .map(|all| all.into_iter().flatten().collect());
        }
        let name = object.pointer("/metadata/name").and_then(Value::as_str);
        match (name, object["kind"].as_str(), object["apiVersion"].as_str()) {
            (Some(name), Some(_), Some(_)) => Ok(vec![Resource { original: name.to_owned(), hashed: false, object }]),
            _ => {
                Err(Error::Conflict(format!("{}: an object needs apiVersion, kind and metadata.name", path.display())))
            }
        }
    }
}
