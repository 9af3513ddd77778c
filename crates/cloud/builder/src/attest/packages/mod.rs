//! The packages of a tree: what the databases of dpkg, apk and rpm list, what Python's and Node's installers left beside each package, what programs
//! of Go and Rust say they were made of, and what lock files name.

mod bdb;
mod languages;
mod locks;
mod ndb;
mod programs;
mod rpm;
mod sqlite;
mod system;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use dhow_image::View;

use crate::copy::At;
use crate::error::Result;

/// A database larger than this is not read to its end.
const MAX_DATABASE: u64 = 64 << 20;
/// What one package says about itself.
const MAX_DESCRIPTION: u64 = 1 << 20;
/// Folders looked into; a tree with more was made to be slow.
const MAX_FOLDERS: usize = 200_000;
const MAX_DEPTH: usize = 40;

/// One package.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// Its name in all of the world.
    pub purl: String,
    pub license: Option<String>,
    pub supplier: Option<String>,
    /// The file that says so.
    pub found_in: String,
}

/// What a tree consists of.
#[derive(Debug, Default)]
pub struct Found {
    /// `debian-12`.
    pub distribution: Option<String>,
    pub packages: BTreeSet<Package>,
}

/// Looks through a tree.
pub fn find(view: &View) -> Result<Found> {
    let mut found = Found::default();
    let release = match text(view, Path::new("etc/os-release"), MAX_DESCRIPTION)? {
        Some(text) => Some(text),
        None => text(view, Path::new("usr/lib/os-release"), MAX_DESCRIPTION)?,
    };
    let release = release.unwrap_or_default();
    let value = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim().trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
    };
    let id = value("ID");
    found.distribution = id.as_ref().map(|id| match value("VERSION_ID") {
        Some(version) => format!("{id}-{version}"),
        None => id.clone(),
    });
    let vendor = |usual: &str| id.clone().unwrap_or_else(|| usual.to_owned());
    let debian = Path::new("var/lib/dpkg/status");
    if let Some(text) = text(view, debian, MAX_DATABASE)? {
        found.dpkg(&text, &vendor("debian"), debian);
    }
    // Images without dpkg itself have a file for each package.
    let single = Path::new("var/lib/dpkg/status.d");
    for name in folder(view, single)? {
        let path = single.join(name);
        let sums = path.extension().is_some_and(|extension| extension == "md5sums");
        if let Some(text) = text(view, &path, MAX_DESCRIPTION)?.filter(|_| !sums) {
            found.dpkg(&text, &vendor("debian"), &path);
        }
    }
    for database in ["lib/apk/db/installed", "usr/lib/apk/db/installed"] {
        let database = Path::new(database);
        if let Some(text) = text(view, database, MAX_DATABASE)? {
            found.apk(&text, &vendor("alpine"), database);
        }
    }
    found.rpm(view, &vendor("redhat"))?;
    found.walk(view)?;
    Ok(found)
}

fn text(view: &View, path: &Path, limit: u64) -> Result<Option<String>> {
    let at = view.resolve(path, true).at("look for packages")?;
    match view.lstat(&at).at("look for packages")? {
        Some(node) if node.kind() == rustix::fs::FileType::RegularFile => {
            let mut bytes = Vec::new();
            view.file(&node).and_then(|file| file.take(limit).read_to_end(&mut bytes)).at("read a list of packages")?;
            Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
        }
        _ => Ok(None),
    }
}

fn folder(view: &View, path: &Path) -> Result<Vec<std::ffi::OsString>> {
    let at = view.resolve(path, true).at("look for packages")?;
    match view.lstat(&at).at("look for packages")? {
        Some(node) if node.is_dir() => Ok(view.list(&at).at("look for packages")?.into_keys().collect()),
        _ => Ok(Vec::new()),
    }
}

/// Records of `Key: value` lines between empty lines; what is continued on further lines is left out.
fn records(text: &str) -> impl Iterator<Item = BTreeMap<&str, &str>> {
    text.split("\n\n").map(|record| {
        let lines = record.lines().filter(|line| !line.starts_with([' ', '\t']));
        lines.filter_map(|line| line.split_once(':')).map(|(key, value)| (key, value.trim())).collect()
    })
}

/// A part of a package URL.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// One name, however it is written.
fn pypi(name: &str, version: &str) -> String {
    format!("pkg:pypi/{}@{}", escape(&name.to_lowercase().replace(['_', '.'], "-")), escape(version))
}

/// A name whose parts are divided by slashes.
fn escape_path(text: &str) -> String {
    text.split('/').map(escape).collect::<Vec<_>>().join("/")
}

impl Found {
    fn walk(&mut self, view: &View) -> Result<()> {
        let mut todo: Vec<PathBuf> = vec![PathBuf::new()];
        let mut seen = 0;
        while let Some(at) = todo.pop() {
            seen += 1;
            if seen > MAX_FOLDERS || at.components().count() > MAX_DEPTH {
                continue;
            }
            let inside_node = at.file_name().is_some_and(|name| name == "node_modules");
            for (name, node) in view.list(&at).at("look for packages")? {
                let path = at.join(&name);
                let name = name.to_string_lossy();
                if !node.is_dir() {
                    self.lock_file(view, &name, &path)?;
                    self.program(view, &node, &path)?;
                    continue;
                }
                // Nothing of the image's own.
                if at.as_os_str().is_empty() && matches!(&*name, "proc" | "sys" | "dev") {
                    continue;
                }
                if name.ends_with(".dist-info") {
                    self.python(view, &path.join("METADATA"))?;
                } else if name.ends_with(".egg-info") {
                    self.python(view, &path.join("PKG-INFO"))?;
                } else {
                    if inside_node && !name.starts_with(['.', '@']) || in_scope(&at) {
                        self.node(view, &path.join("package.json"))?;
                    }
                    todo.push(path);
                }
            }
        }
        Ok(())
    }
}

/// Whether it is `node_modules/@scope`.
fn in_scope(folder: &Path) -> bool {
    let above = folder.parent().and_then(Path::file_name);
    let own = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with('@'));
    own && above.is_some_and(|name| name == "node_modules")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_found_where_their_installers_note_them() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("etc/os-release", "NAME=\"Debian GNU/Linux\"\nID=debian\nVERSION_ID=\"12\"\n");
        write(
            "var/lib/dpkg/status",
            "Package: libstdc++6\nStatus: install ok installed\nVersion: 12.2.0-14\nArchitecture: amd64\n\
             Maintainer: D <d@example.org>\nDescription: x\n more: y\n\nPackage: gone\nStatus: deinstall ok config-files\n\
             Version: 1\n\nPackage: broken\n",
        );
        write("var/lib/dpkg/status.d/tz", "Package: tzdata\nVersion: 2024a\n");
        write("lib/apk/db/installed", "C:Q1\nP:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\n\nP:zlib\nV:1\n");
        write(
            "usr/lib/python3/dist-packages/Foo_Bar-1.dist-info/METADATA",
            "Name: Foo_Bar\nVersion: 1\n\nVersion: 9\n",
        );
        write("app/node_modules/left/package.json", r#"{"name": "left", "version": "1.0.0", "license": "MIT"}"#);
        write("app/node_modules/@a/b/package.json", r#"{"name": "@a/b", "version": "2.0.0"}"#);
        write("app/node_modules/left/test/package.json", r#"{"name": "no", "version": "0.0.0"}"#);
        let view = View::open(&[root.path().to_owned()]).unwrap();
        let found = find(&view).unwrap();
        let purls: Vec<&str> = found.packages.iter().map(|package| package.purl.as_str()).collect();
        assert_eq!(
            purls,
            [
                "pkg:npm/%40a/b@2.0.0",
                "pkg:pypi/foo-bar@1",
                "pkg:npm/left@1.0.0",
                "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14?arch=amd64&distro=debian-12",
                "pkg:apk/debian/musl@1.2.4-r2?arch=x86_64&distro=debian-12",
                "pkg:deb/debian/tzdata@2024a?distro=debian-12",
                "pkg:apk/debian/zlib@1?distro=debian-12",
            ]
        );
    }
}
