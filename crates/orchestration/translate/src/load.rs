//! From files to one tree: variables, schema, `extends`, `include`, further files, profiles.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::dotenv;
use crate::error::{Error, Place, Result};
use crate::interpolate::{self, Variables};
use crate::merge::{merge, without_tags};
use crate::schema;
use crate::view::{Notes, Warning};
use crate::yaml::{self, Kind, Node};

/// What lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    Missing,
    File,
    Folder,
}

/// The only road of this crate to the file system.
pub trait Files {
    /// # Errors
    /// As the file system has it.
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>>;

    fn kind(&self, path: &Path) -> FileKind;
}

/// A Compose file, read already.
#[derive(Debug, Clone)]
pub struct Source {
    /// As errors call it.
    pub name: String,
    pub text: String,
    /// Where `extends` looks for files.
    pub folder: PathBuf,
}

/// Sections whose entries have names.
pub const SECTIONS: [&str; 6] = ["services", "networks", "volumes", "configs", "secrets", "models"];

pub struct Loader<'a> {
    pub files: &'a dyn Files,
    pub notes: &'a Notes,
}

impl Loader<'_> {
    pub fn text(&self, path: &Path) -> std::io::Result<String> {
        String::from_utf8(self.files.read(path)?)
            .map_err(|_| std::io::Error::new(std::io::ErrorKind::InvalidData, "it is not UTF-8 text"))
    }

    /// Files laid on each other in their order. `opened` are those that are being included.
    pub fn load(&self, sources: &[Source], base: &Path, variables: &Variables, opened: &[PathBuf]) -> Result<Node> {
        let mut all: Option<Node> = None;
        for source in sources {
            for mut document in self.documents(source, variables)? {
                self.extend_services(&mut document, source, variables)?;
                self.include(&mut document, base, variables, opened)?;
                match &mut all {
                    Some(known) => merge(known, document, &[])?,
                    None => all = Some(without_tags(document)),
                }
            }
        }
        let mut all = all.ok_or_else(|| {
            Error::Conflict(format!(
                "{} holds nothing",
                sources.first().map_or("the input", |source| source.name.as_str())
            ))
        })?;
        resolve_paths(&mut all, base, variables);
        Ok(all)
    }

    fn documents(&self, source: &Source, variables: &Variables) -> Result<Vec<Node>> {
        let mut documents = yaml::parse(&source.name, &source.text)?;
        for document in &mut documents {
            interpolate::tree(document, variables, self.notes, "")?;
            schema::check(document)?;
        }
        Ok(documents)
    }

    fn extend_services(&self, document: &mut Node, source: &Source, variables: &Variables) -> Result<()> {
        let names: Vec<String> =
            document.get("services").map_or(&[][..], Node::entries).iter().map(|(name, _)| name.clone()).collect();
        let original = document.clone();
        for name in names {
            let extended = self.extended(&name, &original, source, variables, &mut Vec::new())?;
            if let Some(services) = document.get_mut("services") {
                services.set(&name, extended);
            }
        }
        Ok(())
    }

    /// The service with what it extends below it.
    fn extended(
        &self,
        name: &str,
        document: &Node,
        source: &Source,
        variables: &Variables,
        visited: &mut Vec<(String, String)>,
    ) -> Result<Node> {
        let Some(service) = document.get("services").and_then(|services| services.get(name)) else {
            return Err(Error::Conflict(format!("{}: there is no service {name:?} to extend", source.name)));
        };
        let mut service = service.clone();
        let Some(extends) = service.remove("extends").filter(|node| !node.is_null()) else { return Ok(service) };
        let path = format!("services.{name}.extends");
        let invalid = |problem: String| Error::Invalid { place: extends.place.clone(), path: path.clone(), problem };
        let here = (source.name.clone(), name.to_owned());
        if visited.contains(&here) {
            return Err(invalid("extends itself".into()));
        }
        visited.push(here);
        let wanted = extends.scalar().or_else(|| extends.get("service").and_then(Node::scalar));
        let wanted = wanted.ok_or_else(|| invalid("names no service".into()))?;
        let file = extends.get("file").and_then(Node::scalar);
        let mut base = match file {
            None => {
                if document.get("services").is_none_or(|services| services.get(wanted).is_none()) {
                    return Err(invalid(format!("there is no service {wanted:?} here")));
                }
                self.extended(wanted, document, source, variables, visited)?
            }
            Some(file) => {
                let target = clean(&source.folder.join(file));
                let text = self.text(&target).map_err(|error| Error::Read {
                    place: extends.place.clone(),
                    path: path.clone(),
                    file: target.display().to_string(),
                    source: error,
                })?;
                let folder = target.parent().unwrap_or(Path::new("/")).to_path_buf();
                let other = Source { name: beside(&source.name, file), text, folder };
                let mut documents = self.documents(&other, variables)?;
                if documents.is_empty() {
                    return Err(invalid(format!("{file} holds nothing")));
                }
                let found = documents.remove(0);
                if found.get("services").is_none_or(|services| services.get(wanted).is_none()) {
                    return Err(invalid(format!("there is no service {wanted:?} in {file}")));
                }
                let mut base = self.extended(wanted, &found, &other, variables, visited)?;
                resolve_service(&mut base, &other.folder, variables);
                base
            }
        };
        visited.pop();
        base = without_tags(base);
        merge(&mut base, service, &["services", name])?;
        Ok(base)
    }

    fn include(&self, document: &mut Node, base: &Path, variables: &Variables, opened: &[PathBuf]) -> Result<()> {
        let Some(includes) = document.remove("include") else { return Ok(()) };
        for (index, item) in includes.items().iter().enumerate() {
            let path = format!("include[{index}]");
            let texts = |node: Option<&Node>| -> Vec<String> {
                let Some(node) = node else { return Vec::new() };
                match node.scalar() {
                    Some(one) => vec![one.to_owned()],
                    None => node.items().iter().filter_map(Node::scalar).map(str::to_owned).collect(),
                }
            };
            let names = match item.scalar() {
                Some(one) => vec![one.to_owned()],
                None => texts(item.get("path")),
            };
            let read_error = |file: &Path, source| Error::Read {
                place: item.place.clone(),
                path: path.clone(),
                file: file.display().to_string(),
                source,
            };
            let mut sources = Vec::new();
            let mut opened = opened.to_vec();
            for name in &names {
                let file = clean(&base.join(name));
                if opened.contains(&file) {
                    return Err(Error::Invalid {
                        place: item.place.clone(),
                        path,
                        problem: format!("{name} includes itself"),
                    });
                }
                let text = self.text(&file).map_err(|error| read_error(&file, error))?;
                let folder = file.parent().unwrap_or(Path::new("/")).to_path_buf();
                sources.push(Source { name: name.clone(), text, folder });
                opened.push(file);
            }
            let Some(first) = sources.first() else {
                return Err(Error::Invalid { place: item.place.clone(), path, problem: "names no file".into() });
            };
            let folder = match item.get("project_directory").and_then(Node::scalar) {
                Some(folder) => clean(&base.join(folder)),
                None => first.folder.clone(),
            };
            let mut files: Vec<PathBuf> =
                texts(item.get("env_file")).iter().map(|file| clean(&base.join(file))).collect();
            if files.is_empty() && self.files.kind(&folder.join(".env")) == FileKind::File {
                files.push(folder.join(".env"));
            }
            // The project's own variables win.
            let mut inner = variables.clone();
            for file in files {
                let text = self.text(&file).map_err(|error| read_error(&file, error))?;
                for (name, value) in dotenv::parse(&file.display().to_string(), &text, &inner)? {
                    if !variables.contains_key(&name) {
                        inner.insert(name, value);
                    }
                }
            }
            let included = self.load(&sources, &folder, &inner, &opened)?;
            import(document, included)?;
        }
        Ok(())
    }
}

/// Adds what an included project has; the same name twice is a mistake unless it means the same.
fn import(document: &mut Node, included: Node) -> Result<()> {
    for section in SECTIONS {
        let Some(more) = included.get(section) else { continue };
        if document.get(section).is_none_or(Node::is_null) {
            document.set(section, Node::map(&more.place));
        }
        let Some(known) = document.get_mut(section) else { continue };
        for (name, node) in more.entries() {
            match known.get(name) {
                Some(other) if other.to_json() != node.to_json() => {
                    return Err(Error::Invalid {
                        place: other.place.clone(),
                        path: format!("{section}.{name}"),
                        problem: format!("is included from {} as well, with another meaning", node.place),
                    });
                }
                Some(_) => {}
                None => known.set(name, node.clone()),
            }
        }
    }
    Ok(())
}

/// Takes away services whose profiles are not asked for, and says so.
pub fn drop_inactive(document: &mut Node, active: &BTreeSet<String>, notes: &Notes) {
    let Some(Node { kind: Kind::Map(services), .. }) = document.get_mut("services") else { return };
    services.retain(|(name, service)| {
        let Some(profiles) = service.get("profiles").filter(|node| !node.items().is_empty()) else { return true };
        let wanted: Vec<&str> = profiles.items().iter().filter_map(Node::scalar).collect();
        let kept = wanted.iter().any(|profile| active.contains(*profile) || active.contains("*"));
        if !kept {
            let message = format!("left out: needs the profile {} (--profile)", wanted.join(" or "));
            notes.add(Warning { place: profiles.place.clone(), path: format!("services.{name}.profiles"), message });
        }
        kept
    });
}

fn beside(name: &str, file: &str) -> String {
    match Path::new(name).parent() {
        Some(folder) if !folder.as_os_str().is_empty() => clean(&folder.join(file)).display().to_string(),
        _ => file.to_owned(),
    }
}

/// The path without `.` and `..`.
pub fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(out.components().next_back(), Some(Component::Normal(_))) => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

fn absolute(text: &str, base: &Path, variables: &Variables) -> String {
    let home = variables.get("HOME");
    match (text.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            clean(&Path::new(home).join(rest.trim_start_matches('/'))).display().to_string()
        }
        _ => clean(&base.join(text)).display().to_string(),
    }
}

/// Makes the paths of a project's files absolute, as each file's are its own.
fn resolve_paths(document: &mut Node, base: &Path, variables: &Variables) {
    if let Some(Node { kind: Kind::Map(services), .. }) = document.get_mut("services") {
        services.iter_mut().for_each(|(_, service)| resolve_service(service, base, variables));
    }
    for section in ["configs", "secrets"] {
        let Some(Node { kind: Kind::Map(entries), .. }) = document.get_mut(section) else { continue };
        for (_, entry) in entries {
            entry.get_mut("file").into_iter().for_each(|file| rewrite(file, base, variables));
        }
    }
}

fn rewrite(node: &mut Node, base: &Path, variables: &Variables) {
    if let Kind::Scalar { text, .. } = &mut node.kind
        && !text.is_empty()
    {
        *text = absolute(text, base, variables);
    }
}

fn resolve_service(service: &mut Node, base: &Path, variables: &Variables) {
    for key in ["env_file", "label_file"] {
        let Some(node) = service.get_mut(key) else { continue };
        match &mut node.kind {
            Kind::List(items) => {
                for item in items {
                    match item.get_mut("path") {
                        Some(path) => rewrite(path, base, variables),
                        None => rewrite(item, base, variables),
                    }
                }
            }
            _ => rewrite(node, base, variables),
        }
    }
    let Some(Node { kind: Kind::List(volumes), .. }) = service.get_mut("volumes") else { return };
    for volume in volumes {
        if let Kind::Scalar { text, .. } = &mut volume.kind {
            if let Some((source, rest)) = text.split_once(':')
                && crate::short::is_path(source)
            {
                *text = format!("{}:{rest}", absolute(source, base, variables));
            }
        } else if volume.get("type").and_then(Node::scalar) == Some("bind") {
            volume.get_mut("source").into_iter().for_each(|source| rewrite(source, base, variables));
        }
    }
}

/// A place for what no file says.
pub fn nowhere(file: &str) -> Place {
    Place { file: file.into(), line: 1, column: 1 }
}
