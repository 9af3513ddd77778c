//! Projects as people write them, and the objects that come out: `tests/cases/NAME/`.
//!
//! `UPDATE_GOLDEN=1` writes what is expected anew.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{FOLDER, Memory, all_valid, one};
use dhow_translate::{Options, Source, translate};

const FILES: [&str; 5] =
    ["compose.yaml", "docker-compose.yml", "stack.yaml", "compose.override.yaml", "compose.prod.yaml"];

fn memory(folder: &Path) -> Memory {
    let mut memory = Memory::default();
    let mut open = vec![folder.to_path_buf()];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let inside = path.strip_prefix(folder).unwrap();
                memory.0.insert(Path::new(FOLDER).join(inside), std::fs::read(&path).unwrap());
            }
        }
    }
    memory
}

fn translated(folder: &Path) -> String {
    let files = memory(folder);
    let sources: Vec<Source> = FILES
        .iter()
        .filter_map(|name| {
            let text = files.0.get(&Path::new(FOLDER).join(name))?;
            let text = String::from_utf8(text.clone()).unwrap();
            Some(Source { name: (*name).to_owned(), text, folder: FOLDER.into() })
        })
        .collect();
    assert!(!sources.is_empty(), "{} has no project", folder.display());
    let name = folder.file_name().unwrap().to_str().unwrap();
    let options = Options { project: Some(name.to_owned()), folder: FOLDER.into(), ..Options::default() };
    let found = translate(&sources, &options, &files).unwrap_or_else(|error| panic!("{name}: {error}"));
    all_valid(&found.objects);
    let again = translate(&sources, &options, &files).unwrap();
    assert_eq!(found.objects, again.objects, "{name} is not the same each time");
    let mut text = String::new();
    for warning in &found.warnings {
        text.push_str(&format!("# {warning}\n"));
    }
    for object in &found.objects {
        text.push_str("---\n");
        text.push_str(serde_saphyr::to_string(object).unwrap().trim_end());
        text.push('\n');
    }
    text
}

#[test]
fn projects_become_what_is_expected() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(cases).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 15, "only {} cases", folders.len());
    let mut wrong = Vec::new();
    for folder in folders {
        let text = translated(&folder);
        let file = folder.join("expected.yaml");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_default();
        if expected != text {
            wrong.push(format!("{}:\n{text}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "other than expected:\n{}", wrong.join("\n"));
}

#[test]
fn builds_keep_what_is_said_of_them() {
    let text = "
services:
  web:
    image: registry.example/web:1
    platform: linux/arm64
    build:
      context: https://git.example/web.git#main:site
      dockerfile: ci/Dockerfile
      platforms: [linux/amd64, linux/arm64]
      tags: ['registry.example/web:latest']
      cache_from: ['registry.example/web:cache', 'type=local,src=cache']
      cache_to: ['type=local,dest=cache,mode=max', 'type=registry,ref=registry.example/web:cache']
      additional_contexts: {docs: 'https://git.example/docs.git'}
      no_cache: true
      pull: true
      provenance: mode=max
      sbom: true
  plain: {platform: linux/arm64, build: plain}
";
    let found = one(text, &Memory::default()).unwrap();
    assert!(found.warnings.is_empty(), "{:?}", found.warnings);
    let web = found.builds.iter().find(|build| build.service == "web").unwrap();
    assert_eq!(web.context.to_str(), Some("https://git.example/web.git#main:site"));
    assert_eq!(web.dockerfile.as_ref().and_then(|path| path.to_str()), Some("ci/Dockerfile"));
    assert_eq!(web.platform.as_deref(), Some("linux/amd64,linux/arm64"));
    assert_eq!(web.names, ["registry.example/web:1", "registry.example/web:latest"]);
    assert_eq!(web.cache_from, ["registry.example/web:cache", "type=local,src=/project/cache"]);
    let to = ["type=local,dest=/project/cache,mode=max", "type=registry,ref=registry.example/web:cache"];
    assert_eq!(web.cache_to, to);
    assert_eq!(web.contexts["docs"], "https://git.example/docs.git");
    assert!(web.no_cache && web.pull);
    assert_eq!((web.provenance.as_deref(), web.sbom.as_deref()), (Some("mode=max"), Some("true")));
    let plain = found.builds.iter().find(|build| build.service == "plain").unwrap();
    assert_eq!(plain.context.to_str(), Some("/project/plain"));
}
