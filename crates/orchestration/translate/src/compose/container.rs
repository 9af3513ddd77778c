//! Image, command, environment: the container itself.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::pod::Pod;
use super::project::{Project, Service};
use super::put;
use crate::dotenv;
use crate::error::{Error, Result};
use crate::view::View;

pub fn translate(
    project: &Project<'_>,
    service: &Service<'_>,
    pod: &mut Pod,
    container: &mut Map<String, Value>,
) -> Result<()> {
    let Some(image) = super::build::image(project, service)? else {
        return Err(service.view.invalid("has neither `image` nor `build`"));
    };
    container.insert("image".into(), json!(image));
    pull_policy(service, container)?;
    // Docker's entrypoint is Kubernetes' command; an entrypoint of one's own takes the image's command away.
    let entrypoint = service.get("entrypoint").map(|view| view.words()).transpose()?;
    let command = service.get("command").map(|view| view.words()).transpose()?;
    if let Some(words) = &entrypoint {
        put(container, "command", words.iter().map(|word| json!(literal(word))).collect());
    }
    if let Some(words) = &command {
        put(container, "args", words.iter().map(|word| json!(literal(word))).collect());
    }
    put(container, "env", Value::Array(environment(project, service)?));
    if let Some(view) = service.get("working_dir") {
        container.insert("workingDir".into(), json!(view.text()?));
    }
    for (key, field) in [("tty", "tty"), ("stdin_open", "stdin")] {
        if let Some(view) = service.get(key)
            && view.bool()?
        {
            container.insert(field.into(), json!(true));
        }
    }
    if let Some(view) = service.get("init")
        && view.bool()?
    {
        // The sandbox's first process reaps what they leave.
        pod.spec.insert("shareProcessNamespace".into(), json!(true));
    }
    platform(service, pod)
}

fn pull_policy(service: &Service<'_>, container: &mut Map<String, Value>) -> Result<()> {
    let mut policy = "IfNotPresent";
    if let Some(view) = service.get("pull_policy") {
        match view.text()? {
            "always" => policy = "Always",
            "never" => policy = "Never",
            "missing" | "if_not_present" => {}
            // It is built before anything is applied.
            "build" if service.view.has("build") => {}
            "build" => view.warn("there is no `build`; the node pulls it if it has none"),
            other @ ("daily" | "weekly") => {
                policy = "Always";
                view.warn(format!("nodes do not look {other}: they look each time a container starts"));
            }
            other if other.starts_with("every_") => {
                policy = "Always";
                view.warn("nodes do not look by the clock: they look each time a container starts");
            }
            other => return Err(view.invalid(format!("unknown policy {other:?}: always, never, missing, build"))),
        }
    }
    container.insert("imagePullPolicy".into(), json!(policy));
    Ok(())
}

fn platform(service: &Service<'_>, pod: &mut Pod) -> Result<()> {
    let Some(view) = service.get("platform") else { return Ok(()) };
    let mut parts = view.text()?.split('/');
    let (system, machine) = (parts.next().unwrap_or_default(), parts.next());
    if parts.next().is_some() {
        view.warn("the variant is not looked at, only system and architecture");
    }
    let selector = pod.spec.entry("nodeSelector").or_insert_with(|| json!({}));
    selector["kubernetes.io/os"] = json!(system);
    if let Some(machine) = machine {
        let machine = match machine {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        selector["kubernetes.io/arch"] = json!(machine);
    }
    Ok(())
}

/// A text that Kubernetes is to take as it is: `$(X)` would be a variable there.
pub fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        out.push(c);
        if c == '$' && matches!(chars.peek(), Some('$' | '(')) {
            out.push('$');
        }
    }
    out
}

/// Files first, then the file's own, which win.
fn environment(project: &Project<'_>, service: &Service<'_>) -> Result<Vec<Value>> {
    let mut all: Vec<(String, Value)> = Vec::new();
    let mut set = |name: String, value: Value| match all.iter_mut().find(|(known, _)| *known == name) {
        Some((_, known)) => *known = value,
        None => all.push((name, value)),
    };
    if let Some(view) = service.get("env_file") {
        let entries: Vec<View<'_>> = if view.is_list() { view.items().collect() } else { vec![view] };
        let mut known = project.variables.clone();
        for entry in entries {
            for (name, value) in env_file(project, &entry, &known)? {
                known.insert(name.clone(), value.clone());
                set(name, json!({"value": literal(&value)}));
            }
        }
    }
    if let Some(view) = service.get("environment") {
        for (name, value, at) in view.pairs()? {
            // A name alone takes the caller's value, if it has one.
            let Some(value) = value.or_else(|| project.variables.get(&name).cloned()) else {
                at.warn(format!("the variable {name} is not set: the container does not get it"));
                continue;
            };
            set(name, template(&value).unwrap_or_else(|| json!({"value": literal(&value)})));
        }
    }
    let entries = all.into_iter().map(|(name, value)| {
        let mut entry = Map::new();
        entry.insert("name".into(), json!(name));
        entry.extend(value.as_object().cloned().unwrap_or_default());
        Value::Object(entry)
    });
    Ok(entries.collect())
}

/// Swarm's templates, where one is the whole value.
fn template(value: &str) -> Option<Value> {
    let inner = value.strip_prefix("{{")?.strip_suffix("}}")?.trim();
    let path = match inner {
        ".Node.Hostname" | ".Node.ID" => "spec.nodeName",
        ".Task.Name" => "metadata.name",
        ".Task.ID" => "metadata.uid",
        ".Service.Name" => "metadata.labels['dhow.io/service']",
        _ => return None,
    };
    Some(json!({"valueFrom": {"fieldRef": {"fieldPath": path}}}))
}

fn env_file(
    project: &Project<'_>,
    entry: &View<'_>,
    known: &crate::interpolate::Variables,
) -> Result<Vec<(String, String)>> {
    let (path, at) = match entry.get("path") {
        Some(path) => (path.text()?.to_owned(), path),
        None if entry.is_map() => return Err(entry.invalid("names no file: `path` is missing")),
        None => (entry.text()?.to_owned(), entry.clone()),
    };
    let required = entry.get("required").map(|view| view.bool()).transpose()?.unwrap_or(true);
    let format = entry.get("format").map(|view| view.text()).transpose()?;
    if !required && project.files.kind(Path::new(&path)) == crate::load::FileKind::Missing {
        return Ok(Vec::new());
    }
    let text = read_text(project, &at, &path)?;
    match format {
        None => dotenv::parse(&path, &text, known),
        Some("raw") => dotenv::parse_raw(&path, &text, known),
        Some(other) => Err(entry.invalid(format!("unknown format {other:?}: only `raw` has a name"))),
    }
}

pub fn read_text(project: &Project<'_>, at: &View<'_>, path: &str) -> Result<String> {
    let fail =
        |source| Error::Read { place: at.node.place.clone(), path: at.path.clone(), file: path.to_owned(), source };
    let bytes = project.files.read(Path::new(path)).map_err(fail)?;
    String::from_utf8(bytes).map_err(|_| at.invalid(format!("{path} is not UTF-8 text")))
}

#[cfg(test)]
mod tests {
    use super::literal;

    #[test]
    fn kubernetes_sees_no_variables() {
        assert_eq!(literal("a $(B) $$ $C $"), "a $$(B) $$$ $C $");
        assert_eq!(literal("$$(A)"), "$$$$(A)");
    }
}
