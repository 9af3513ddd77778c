//! Files in memory, and the API's own judgement of objects.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dhow_api::registry::builtin;
use dhow_api::{defaulting, descriptor, strategy, validation};
use dhow_translate::{FileKind, Files, Options, Source, Translation, translate};
use serde_json::Value;

/// Where projects lie, so that no path of the machine is in what is expected.
pub const FOLDER: &str = "/project";

#[derive(Default)]
pub struct Memory(pub BTreeMap<PathBuf, Vec<u8>>);

impl Memory {
    pub fn with(mut self, path: &str, text: &str) -> Self {
        self.0.insert(Path::new(FOLDER).join(path), text.as_bytes().to_vec());
        self
    }
}

impl Files for Memory {
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        self.0.get(path).cloned().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    fn kind(&self, path: &Path) -> FileKind {
        if self.0.contains_key(path) {
            FileKind::File
        } else if self.0.keys().any(|file| file.starts_with(path)) {
            FileKind::Folder
        } else {
            FileKind::Missing
        }
    }
}

pub fn source(name: &str, text: &str) -> Source {
    Source { name: name.to_owned(), text: text.to_owned(), folder: FOLDER.into() }
}

pub fn options() -> Options {
    Options { folder: FOLDER.into(), ..Options::default() }
}

pub fn one(text: &str, files: &Memory) -> dhow_translate::Result<Translation> {
    translate(&[source("compose.yaml", text)], &options(), files)
}

/// What the API would refuse: unknown fields, wrong types, rules.
pub fn complaints(object: &Value) -> Vec<String> {
    let api_version = object["apiVersion"].as_str().unwrap();
    let kind = object["kind"].as_str().unwrap();
    let Some(row) = builtin().by_api_version(api_version, kind) else { return vec![format!("no kind {kind}")] };
    let mut object = object.clone();
    let mut found = Vec::new();
    if let Some(message) = row.message() {
        match descriptor::settle(message, &mut object) {
            Ok(unknown) => found.extend(unknown),
            Err(error) => found.push(format!("{error:?}")),
        }
    }
    // As the server makes it: a Job's selector is its doing.
    strategy::prepare_create(row, &mut object);
    strategy::fill_metadata(&mut object, "00000000-0000-0000-0000-000000000001", "2026-01-01T00:00:00Z");
    strategy::finish_create(row, &mut object);
    defaulting::apply(row, &mut object);
    found.extend(validation::validate_create(row, &object, None).iter().map(ToString::to_string));
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    found.into_iter().map(|one| format!("{kind} {name}: {one}")).collect()
}

pub fn all_valid(objects: &[Value]) {
    let wrong: Vec<String> = objects.iter().flat_map(complaints).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
