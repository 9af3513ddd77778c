//! `cargo xtask tidy`: the mechanical part of the style, proven from the tree and from `cargo metadata`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::shell;

/// A file longer than this has two jobs.
const MAX_LINES: usize = 700;

/// The layers, bottom first. A crate may depend on its own layer and on the foundation; see `ALLOWED`.
const LAYERS: &[&str] = &["foundation", "orchestration", "runtime", "platform", "cloud"];

/// Dependencies across layers that are there on purpose: (crate, what it may use).
const ALLOWED: &[(&str, &str)] =
    &[("dhow-builder", "dhow-image"), ("dhow-builder", "dhow-oci"), ("dhow-registry", "dhow-image")];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `None` for a normal dependency, else `dev` or `build`.
    kind: Option<String>,
    path: Option<PathBuf>,
}

pub fn run() -> Result<()> {
    let mut problems = layering()?;
    let mut files = Vec::new();
    for top in ["crates", "bin", "xtask", "tests"] {
        rust_files(&shell::root().join(top), &mut files)?;
    }
    for file in &files {
        check_file(file, &mut problems)?;
    }
    if !problems.is_empty() {
        bail!("tidy found {} problems:\n  {}", problems.len(), problems.join("\n  "));
    }
    eprintln!("    {} files, layers and module docs in order", files.len());
    Ok(())
}

/// Dependencies point down: foundation <- everything, and no layer reaches into a sibling layer.
fn layering() -> Result<Vec<String>> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(shell::root())
        .output()
        .context("run cargo metadata")?;
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let mut problems = Vec::new();
    for package in &metadata.packages {
        let Some(from) = layer(&package.manifest_path) else { continue };
        let ours = package.dependencies.iter().filter(|d| d.kind.as_deref() != Some("dev"));
        for dependency in ours {
            let Some(to) = dependency.path.as_deref().and_then(layer) else { continue };
            let allowed = ALLOWED.contains(&(package.name.as_str(), dependency.name.as_str()));
            if to != "foundation" && to != from && !allowed {
                problems.push(format!("{} ({from}) must not depend on {} ({to})", package.name, dependency.name));
            }
        }
    }
    Ok(problems)
}

/// The layer a path inside `crates/` belongs to.
fn layer(path: &Path) -> Option<&'static str> {
    let inside = path.strip_prefix(shell::root().join("crates")).ok()?;
    let first = inside.components().next()?.as_os_str();
    LAYERS.iter().copied().find(|name| first == *name)
}

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target" && name != "snapshots") {
                rust_files(&path, into)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
    Ok(())
}

fn check_file(path: &Path, problems: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let shown = path.strip_prefix(shell::root()).unwrap_or(path).display();
    if !text.trim_start().starts_with("//!") {
        problems.push(format!("{shown}: must open with a `//!` line that says what lives here"));
    }
    let lines = text.lines().count();
    let generated = text.lines().next().is_some_and(|line| line.contains("@generated"));
    if lines > MAX_LINES && !generated {
        problems.push(format!("{shown}: {lines} lines, more than {MAX_LINES}; give its second job a file"));
    }
    Ok(())
}
