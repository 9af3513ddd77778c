//! `build`: what is to be built before the objects are applied.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::project::{Project, Service};
use crate::error::Result;
use crate::view::View;

/// An image that a service wants built.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Build {
    pub service: String,
    /// First the one that the objects name.
    pub names: Vec<String>,
    /// Absolute, or an address.
    pub context: PathBuf,
    /// Absolute, or its place in a context by address; `Dockerfile` in the context if there is none.
    pub dockerfile: Option<PathBuf>,
    /// The Dockerfile's text, in place of a file.
    pub inline: Option<String>,
    /// `None` is taken from the caller's environment.
    pub args: Vec<(String, Option<String>)>,
    pub labels: Vec<(String, String)>,
    pub target: Option<String>,
    /// One or, between commas, several.
    pub platform: Option<String>,
    pub network: Option<String>,
    pub no_cache: bool,
    pub pull: bool,
    /// Stages that are built anew.
    pub no_cache_filter: Vec<String>,
    /// Where steps come from and go to, as `--cache-from` and `--cache-to` have it; folders are absolute.
    pub cache_from: Vec<String>,
    pub cache_to: Vec<String>,
    /// What is stated about the image, as `--provenance` and `--sbom` have it.
    pub provenance: Option<String>,
    pub sbom: Option<String>,
    /// Names and where each is: a folder (absolute), an address, or `docker-image://`, `oci-layout://`.
    pub contexts: BTreeMap<String, String>,
    /// Names, and where each is: a file (absolute) or a variable.
    pub secrets: Vec<(String, Secret)>,
    /// `default`, or `name=socket`.
    pub ssh: Vec<String>,
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    File(PathBuf),
    Variable(String),
}

/// The image of a service that says how to build it; what its name is, if it has none.
pub fn image(project: &Project<'_>, service: &Service<'_>) -> Result<Option<String>> {
    match service.get("image") {
        Some(image) => Ok(Some(image.text()?.to_owned())),
        None if service.view.has("build") => Ok(Some(format!("{}-{}", project.name, service.name))),
        None => Ok(None),
    }
}

/// All that is to be built, in the order of the file.
pub fn builds(project: &Project<'_>, folder: &Path) -> Result<Vec<Build>> {
    let mut all = Vec::new();
    for service in &project.services {
        let (Some(view), Some(image)) = (service.get("build"), image(project, service)?) else { continue };
        all.push(one(project, service, &view, image, folder)?);
    }
    Ok(all)
}

fn one(project: &Project<'_>, service: &Service<'_>, view: &View<'_>, image: String, folder: &Path) -> Result<Build> {
    let mut build = Build { service: service.name.clone(), names: vec![image], ..Build::default() };
    if !view.is_map() {
        build.context = context(view, folder)?;
        return Ok(build);
    }
    build.context = match view.get("context") {
        Some(view) => context(&view, folder)?,
        None => folder.to_owned(),
    };
    let text = |key: &str| view.get(key).map(|view| view.text().map(str::to_owned)).transpose();
    let flag = |key: &str| view.get(key).map_or(Ok(false), |view| view.bool());
    let is_fetched = build.context.to_str().is_some_and(is_address);
    build.dockerfile = text("dockerfile")?.map(|file| match is_fetched {
        true => PathBuf::from(file),
        false => build.context.join(file),
    });
    build.inline = text("dockerfile_inline")?;
    (build.target, build.network) = (text("target")?, text("network")?);
    if let Some(network) = build.network.as_deref().filter(|name| !["default", "none", "host"].contains(name)) {
        let message = format!("steps have no network {network:?}: default, none and host are known");
        view.get("network").into_iter().for_each(|view| view.warn(message.as_str()));
        build.network = None;
    }
    (build.no_cache, build.pull) = (flag("no_cache")?, flag("pull")?);
    let list = |key: &str| -> Result<Vec<String>> {
        let Some(view) = view.get(key) else { return Ok(Vec::new()) };
        Ok(view.strings()?.into_iter().map(|(text, _)| text).collect())
    };
    let at_home = |text: &String| cache(text, folder);
    build.cache_from = list("cache_from")?.iter().map(at_home).collect();
    build.cache_to = list("cache_to")?.iter().map(at_home).collect();
    build.no_cache_filter = list("no_cache_filter")?;
    (build.provenance, build.sbom) = (text("provenance")?, text("sbom")?);
    if let Some(args) = view.get("args") {
        build.args = args.pairs()?.into_iter().map(|(name, value, _)| (name, value)).collect();
    }
    if let Some(labels) = view.get("labels") {
        let labels = labels.pairs()?.into_iter();
        build.labels = labels.map(|(name, value, _)| (name, value.unwrap_or_default())).collect();
    }
    if let Some(tags) = view.get("tags") {
        build.names.extend(tags.strings()?.into_iter().map(|(tag, _)| tag));
    }
    if let Some(ssh) = view.get("ssh") {
        let agent =
            |(name, socket): (String, Option<String>)| socket.map_or(name.clone(), |socket| format!("{name}={socket}"));
        build.ssh = ssh.pairs()?.into_iter().map(|(name, socket, _)| agent((name, socket))).collect();
    }
    if let Some(contexts) = view.get("additional_contexts") {
        for (name, value, at) in contexts.pairs()? {
            let value = value.ok_or_else(|| at.invalid("says not where the context is"))?;
            if value.starts_with("service:") {
                at.warn("images of other services are not waited for; name them by docker-image://");
                continue;
            }
            let known = ["docker-image://", "oci-layout://"].iter().any(|scheme| value.starts_with(scheme));
            let value = if known { value } else { context_at(&value, &at, folder)?.display().to_string() };
            build.contexts.insert(name, value);
        }
    }
    if let Some(platforms) = view.get("platforms") {
        let platforms: Vec<String> = platforms.strings()?.into_iter().map(|(platform, _)| platform).collect();
        build.platform = (!platforms.is_empty()).then(|| platforms.join(","));
    }
    if build.platform.is_none() {
        build.platform = service.get("platform").map(|view| view.text().map(str::to_owned)).transpose()?;
    }
    for secret in view.get("secrets").iter().flat_map(View::items) {
        secrets(project, &secret, &mut build, folder)?;
    }
    Ok(build)
}

fn secrets(project: &Project<'_>, view: &View<'_>, build: &mut Build, folder: &Path) -> Result<()> {
    let name = match view.get("source") {
        Some(source) => source.text()?.to_owned(),
        None => view.text()?.to_owned(),
    };
    let Some(entry) = project.entry("secrets", &name) else {
        return Err(view.invalid(format!("there is no secret {name:?} in the project")));
    };
    let id = view.get("target").map_or(Ok(name.as_str()), |target| target.text())?.to_owned();
    let secret = match (entry.get("file"), entry.get("environment")) {
        (Some(file), _) => Secret::File(folder.join(file.text()?)),
        (None, Some(variable)) => Secret::Variable(variable.text()?.to_owned()),
        (None, None) => return Err(view.invalid("a build has secrets of files and variables only")),
    };
    build.secrets.push((id, secret));
    Ok(())
}

fn context(view: &View<'_>, folder: &Path) -> Result<PathBuf> {
    context_at(view.text()?, view, folder)
}

fn context_at(text: &str, view: &View<'_>, folder: &Path) -> Result<PathBuf> {
    if is_address(text) {
        return Ok(PathBuf::from(text));
    }
    if text.contains("://") {
        return Err(view.invalid("contexts are folders, repositories of git, or addresses by HTTP"));
    }
    Ok(folder.join(text))
}

/// Whether the node fetches it.
fn is_address(text: &str) -> bool {
    ["http://", "https://", "git://", "ssh://", "git@"].iter().any(|scheme| text.starts_with(scheme))
}

/// A cache whose folder is below that of the project.
fn cache(text: &str, folder: &Path) -> String {
    if !text.split(',').any(|field| field == "type=local") {
        return text.to_owned();
    }
    let field = |field: &str| match field.split_once('=') {
        Some((key @ ("src" | "dest"), path)) => format!("{key}={}", folder.join(path).display()),
        _ => field.to_owned(),
    };
    text.split(',').map(field).collect::<Vec<_>>().join(",")
}
