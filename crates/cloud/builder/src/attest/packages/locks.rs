//! Lock files: what a project of a language is made of, to the version.

use std::path::Path;

use dhow_image::View;
use serde::Deserialize;
use serde_json::Value;

use super::{Found, MAX_DATABASE, Package, escape, escape_path, pypi, text};
use crate::error::Result;

/// Levels of packages in packages that the oldest form of `package-lock.json` is read to.
const DEPTH: usize = 64;

#[derive(Deserialize)]
struct CargoLock {
    #[serde(default)]
    package: Vec<CargoPackage>,
}

#[derive(Deserialize)]
struct CargoPackage {
    name: String,
    version: String,
    source: Option<String>,
}

impl Found {
    /// Reads a file if it is one of those.
    pub fn lock_file(&mut self, view: &View, name: &str, path: &Path) -> Result<()> {
        let read = match name {
            "Cargo.lock" => cargo,
            "package-lock.json" | "npm-shrinkwrap.json" => npm,
            "go.sum" => go_sum,
            _ if name.starts_with("requirements") && name.ends_with(".txt") => requirements,
            _ => return Ok(()),
        };
        // What packages bring along is about their own making.
        let foreign = |part: &std::ffi::OsStr| {
            part == "node_modules" || part == ".cargo" || part == "site-packages" || part == "dist-packages"
        };
        if path.iter().any(foreign) {
            return Ok(());
        }
        let Some(text) = text(view, path, MAX_DATABASE)? else { return Ok(()) };
        let found_in = format!("/{}", path.display());
        self.packages.extend(read(&text).into_iter().map(|(name, version, purl)| Package {
            name,
            version,
            purl,
            found_in: found_in.clone(),
            ..Package::default()
        }));
        Ok(())
    }
}

/// Name, version and package URL of each package.
type Packages = Vec<(String, String, String)>;

fn cargo(text: &str) -> Packages {
    let Ok(lock) = toml::from_str::<CargoLock>(text) else { return Vec::new() };
    // What has no source is the project itself.
    let others = lock.package.into_iter().filter(|package| package.source.is_some());
    let purl = |name: &str, version: &str| format!("pkg:cargo/{}@{}", escape(name), escape(version));
    others
        .map(|package| {
            let purl = purl(&package.name, &package.version);
            (package.name, package.version, purl)
        })
        .collect()
}

fn npm(text: &str) -> Packages {
    let Ok(lock) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    let mut all = Vec::new();
    let mut take = |name: &str, package: &Value| {
        let version = package["version"].as_str().unwrap_or_default();
        let skipped = package["dev"] == true || package["link"] == true;
        if !skipped && !name.is_empty() && version.starts_with(|c: char| c.is_ascii_digit()) {
            let purl = format!("pkg:npm/{}@{}", escape_path(name), escape(version));
            all.push((name.to_owned(), version.to_owned(), purl));
        }
    };
    if let Some(packages) = lock["packages"].as_object() {
        for (place, package) in packages {
            // The project itself and its parts have no such place.
            let Some((_, name)) = place.rsplit_once("node_modules/") else { continue };
            take(package["name"].as_str().unwrap_or(name), package);
        }
        return all;
    }
    let mut todo: Vec<(&Value, usize)> = vec![(&lock["dependencies"], 0)];
    while let Some((packages, depth)) = todo.pop() {
        for (name, package) in packages.as_object().into_iter().flatten() {
            take(name, package);
            if depth < DEPTH {
                todo.push((&package["dependencies"], depth + 1));
            }
        }
    }
    all
}

/// What is pinned: `name==version`, maybe with extras before it, and conditions and hashes behind.
fn requirements(text: &str) -> Packages {
    let pinned = |line: &str| {
        let line = line.split([';', '#']).next()?.split(" --").next()?.trim().trim_end_matches('\\').trim();
        let (name, version) = line.split_once("==")?;
        let name = name.split('[').next()?.trim();
        let version = version.trim_start_matches('=').trim();
        let plain =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+!".contains(c));
        (plain(name) && plain(version)).then(|| (name.to_owned(), version.to_owned(), pypi(name, version)))
    };
    text.lines().filter_map(pinned).collect()
}

fn go_sum(text: &str) -> Packages {
    let module = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (name, version) = (words.next()?, words.next()?);
        // Of these only the requirements were looked at.
        (!version.ends_with("/go.mod")).then(|| (name.to_owned(), version.to_owned(), golang(name, version)))
    };
    text.lines().filter_map(module).collect()
}

pub fn golang(name: &str, version: &str) -> String {
    format!("pkg:golang/{}@{}", escape_path(name), escape(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purls(packages: Packages) -> Vec<String> {
        packages.into_iter().map(|(_, _, purl)| purl).collect()
    }

    #[test]
    fn lock_files_name_what_is_used() {
        let text = "version = 4\n[[package]]\nname = \"app\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"serde\"\n\
            version = \"1.0.2\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\n";
        assert_eq!(purls(cargo(text)), ["pkg:cargo/serde@1.0.2"]);
        let text = r#"{"lockfileVersion": 3, "packages": {"": {"name": "app", "version": "1.0.0"},
            "node_modules/@a/b": {"version": "2.0.0"}, "node_modules/x/node_modules/y": {"version": "3.1.0"},
            "node_modules/test": {"version": "1.0.0", "dev": true}, "node_modules/own": {"resolved": "own", "link": true}}}"#;
        assert_eq!(purls(npm(text)), ["pkg:npm/%40a/b@2.0.0", "pkg:npm/y@3.1.0"]);
        let text = r#"{"dependencies": {"a": {"version": "1.0.0", "dependencies": {"b": {"version": "2.0.0"}}}}}"#;
        assert_eq!(purls(npm(text)), ["pkg:npm/a@1.0.0", "pkg:npm/b@2.0.0"]);
        let text = "-r other.txt\nFlask[async] == 3.0.1 ; python_version > '3'\nrequests>=2\nzope.x==1 \\\n    --hash=sha256:0\n# a==1\n";
        assert_eq!(purls(requirements(text)), ["pkg:pypi/flask@3.0.1", "pkg:pypi/zope-x@1"]);
        let text =
            "github.com/a/b v1.2.3 h1:x=\ngithub.com/a/b v1.2.3/go.mod h1:y=\nexample.org/c v0.1.0/go.mod h1:z=\n";
        assert_eq!(purls(go_sum(text)), ["pkg:golang/github.com/a/b@v1.2.3"]);
    }
}
