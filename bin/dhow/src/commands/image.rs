//! `dhow image`: a node's images, through the API server's node proxy.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod progress;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use comfy_table::{Table, presets};
use dhow_builder::api::{Listings, Missing};
use dhow_client::{Body, Client, HttpsConfig, ListParams, full};
use dhow_image::api::Credentials;
use dhow_image::{Auth, DockerConfig, Reference};
use futures::TryStreamExt;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use serde_json::Value;
use tokio::io::AsyncRead;

use super::connect;
use crate::cli::{ArchiveKind, ConnectArgs, ImageCommand, ImageNode, ImageOutput};
use crate::exit::{Conflict, NotFound};

pub async fn run(command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Pull { at, name, platform } => {
            let mut query = vec![("name", name.as_str())];
            query.extend(platform.as_deref().map(|platform| ("platform", platform)));
            transfer(&at, "pull", &query, &name).await
        }
        ImageCommand::Push { at, name, target, chunk } => {
            let target = target.unwrap_or_else(|| name.clone());
            let chunk = chunk.map(|mib| (mib << 20).to_string());
            let mut query = vec![("name", name.as_str()), ("target", target.as_str())];
            query.extend(chunk.as_deref().map(|chunk| ("chunk", chunk)));
            transfer(&at, "push", &query, &target).await
        }
        ImageCommand::Import { at, files } => import(&at, &files).await,
        ImageCommand::Export { at, names, output, format } => export(&at, &names, &output, format).await,
        ImageCommand::List { at, output } => {
            let images = Images::at(&at).await?.document(Method::GET, "", &[]).await?;
            match output {
                ImageOutput::Table | ImageOutput::Wide => println!("{}", table(&images, output == ImageOutput::Wide)),
                other => print(&images, other)?,
            }
            Ok(())
        }
        ImageCommand::Inspect { at, name, output } => {
            let image = Images::at(&at).await?.document(Method::GET, "/inspect", &[("name", &name)]).await?;
            print(&image, output)
        }
        ImageCommand::Tag { at, name, target } => {
            let query = [("name", name.as_str()), ("target", target.as_str())];
            Images::at(&at).await?.document(Method::POST, "/tag", &query).await.map(drop)
        }
        ImageCommand::Remove { at, names } => {
            let images = Images::at(&at).await?;
            for name in names {
                images.document(Method::DELETE, "", &[("name", &name)]).await?;
                eprintln!("removed {name}");
            }
            Ok(())
        }
        ImageCommand::Prune { at, all } => {
            let all = if all { "true" } else { "false" };
            let gone = Images::at(&at).await?.document(Method::POST, "/prune", &[("all", all)]).await?;
            for name in gone["images"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                eprintln!("removed {name}");
            }
            eprintln!("freed {}", size(&gone["freedBytes"]));
            Ok(())
        }
    }
}

/// The image service of one node.
pub(super) struct Images {
    client: Client,
    base: String,
}

impl Images {
    pub(super) async fn at(node: &ImageNode) -> Result<Self> {
        let client = connect(&node.connect)?;
        let name = match &node.node {
            Some(name) => name.clone(),
            None => {
                let nodes = client.list::<Node>(None, &ListParams::default()).await?;
                let first = nodes.items.into_iter().find_map(|node| node.metadata.name);
                first.context("the cloud has no node yet")?
            }
        };
        Ok(Self { client, base: format!("/api/v1/nodes/{name}/proxy/images") })
    }

    /// A request that must succeed.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Body,
    ) -> Result<Response<Body>> {
        let mut uri = format!("{}{path}", self.base);
        if !query.is_empty() {
            let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
            uri = format!("{uri}?{query}");
        }
        let request = Request::builder().method(method).uri(uri).body(body).context("build the request")?;
        let response = self.client.upload(request).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let answer = response.into_body().collect().await?.to_bytes();
        let said = serde_json::from_slice::<Value>(&answer).ok();
        let said = said.and_then(|v| v["message"].as_str().map(str::to_owned));
        let message = said.unwrap_or_else(|| String::from_utf8_lossy(&answer).trim().to_owned());
        match status {
            http::StatusCode::NOT_FOUND => Err(NotFound(message).into()),
            http::StatusCode::CONFLICT => Err(Conflict(message).into()),
            _ => Err(anyhow::Error::msg(message)),
        }
    }

    /// What of these contexts the node does not have; of none that it keeps nothing of.
    pub(super) async fn missing(&self, listings: &Listings) -> Result<Missing> {
        let text = serde_json::to_vec(listings).context("write what the contexts have")?;
        match self.send(Method::POST, "/build/wanted", &[], full(Bytes::from(text))).await {
            Ok(answer) => {
                let answer = answer.into_body().collect().await?.to_bytes();
                serde_json::from_slice(&answer).context("read the node's answer")
            }
            // A node of an earlier version keeps none.
            Err(error) if error.is::<NotFound>() => Ok(Missing::new()),
            Err(error) => Err(error),
        }
    }

    async fn document(&self, method: Method, path: &str, query: &[(&str, &str)]) -> Result<Value> {
        let response = self.send(method, path, query, full(Bytes::new())).await?;
        let answer = response.into_body().collect().await?.to_bytes();
        serde_json::from_slice(&answer).context("read the server's answer")
    }
}

/// Pulls or pushes, showing each step.
async fn transfer(at: &ImageNode, verb: &str, query: &[(&str, &str)], name: &str) -> Result<()> {
    let credentials = match own_credentials(name).await? {
        Some(credentials) => credentials,
        None => of_cluster(at, name).await?.unwrap_or_default(),
    };
    let body = full(Bytes::from(serde_json::to_vec(&credentials).context("write the credentials")?));
    let images = Images::at(at).await?;
    let response = images.send(Method::POST, &format!("/{verb}"), query, body).await?;
    let mut shown = progress::Shown::new(std::io::stderr().is_terminal());
    let mut body = response.into_body();
    let mut buffer = Vec::new();
    let mut done = false;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("the node ended the conversation")?.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let step: Value = serde_json::from_slice(&line).context("read the node's progress")?;
            if let Some(error) = step["error"].as_str() {
                shown.clear();
                if step["notFound"] == true {
                    return Err(NotFound(error.to_owned()).into());
                }
                bail!("{error}");
            }
            done |= step["step"] == "done";
            shown.show(serde_json::from_value(step).context("understand the node's progress")?);
        }
    }
    shown.clear();
    if !done {
        bail!("the node ended the conversation before the {verb} was done");
    }
    eprintln!("{verb}ed {name}");
    Ok(())
}

/// What the user's docker configuration has for the image's registry.
pub(super) async fn own_credentials(name: &str) -> Result<Option<Credentials>> {
    let reference = Reference::parse(name)?;
    let Some(path) = DockerConfig::default_path() else { return Ok(None) };
    Ok(match DockerConfig::read(&path)?.find(&reference.name()).await? {
        Some(Auth::Basic { username, password }) => Some(Credentials { username, password, ..Credentials::default() }),
        Some(Auth::Refresh(identity_token)) => Some(Credentials { identity_token, ..Credentials::default() }),
        Some(Auth::Bearer(_) | Auth::Anonymous) | None => None,
    })
}

/// Where the cluster says that its registry is (KEP-1755).
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hosting {
    pub(super) host: String,
    #[serde(default)]
    host_from_cluster_network: String,
}

impl Hosting {
    /// Whether references to this host mean it.
    pub(super) fn is_called(&self, registry: &str) -> bool {
        let port = self.host.rsplit(':').next().unwrap_or_default();
        let local = [format!("localhost:{port}"), format!("127.0.0.1:{port}")];
        registry == self.host || registry == self.host_from_cluster_network || local.iter().any(|own| own == registry)
    }
}

/// The cluster's own registry, asked as whom the kubeconfig names; `None`: it has none, or the user does not get to know.
pub(super) async fn cluster_registry(args: &ConnectArgs) -> Result<Option<(Client, Hosting)>> {
    let (path, context) = super::kubeconfig_path(args)?;
    let config = HttpsConfig::from_kubeconfig(&path, context).with_context(|| format!("use {}", path.display()))?;
    let client = Client::https(config.clone())?;
    let map = match client.get::<ConfigMap>(Some("kube-public"), "local-registry-hosting").await {
        Ok(map) => map,
        Err(error) if error.is_not_found() || error.is_forbidden() => return Ok(None),
        Err(error) => return Err(error).context("look for the cluster's registry"),
    };
    let text = map.data.as_ref().and_then(|data| data.get("localRegistryHosting.v1"));
    let Some(hosting) = text.and_then(|text| serde_saphyr::from_str::<Hosting>(text).ok()) else { return Ok(None) };
    let there = Client::https(HttpsConfig { server: format!("https://{}", hosting.host), ..config })?;
    Ok(Some((there, hosting)))
}

/// What stands for the kubeconfig's user for a while, if the image is one of the cluster's own registry.
pub(super) async fn of_cluster(at: &ImageNode, name: &str) -> Result<Option<Credentials>> {
    let registry = Reference::parse(name)?.registry;
    let Some((there, hosting)) = cluster_registry(&at.connect).await? else { return Ok(None) };
    if !hosting.is_called(&registry) {
        return Ok(None);
    }
    let request =
        Request::get("/token?service=dhow&offline_token=true").body(Bytes::new()).context("build the request")?;
    let response = there.request(request).await.context("log in to the cluster's registry")?;
    let status = response.status();
    let answer = response.into_body().collect().await?.to_bytes();
    let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
    let Some(token) = answer["refresh_token"].as_str() else {
        let said = answer["errors"][0]["message"].as_str().unwrap_or("it gave no token");
        bail!("log in to the cluster's registry: {status}: {said}");
    };
    Ok(Some(Credentials { identity_token: token.to_owned(), ..Credentials::default() }))
}

async fn import(at: &ImageNode, files: &[PathBuf]) -> Result<()> {
    let images = Images::at(at).await?;
    for file in files {
        let (reader, length): (Box<dyn AsyncRead + Send + Unpin>, Option<u64>) = if file == Path::new("-") {
            (Box::new(tokio::io::stdin()), None)
        } else {
            let opened = tokio::fs::File::open(file).await.with_context(|| format!("open {}", file.display()))?;
            let length = opened.metadata().await.ok().filter(std::fs::Metadata::is_file).map(|m| m.len());
            (Box::new(opened), length)
        };
        let bar = progress::bytes(length);
        let seen = bar.clone();
        let pieces = tokio_util::io::ReaderStream::with_capacity(reader, 128 << 10)
            .inspect_ok(move |piece| seen.inc(piece.len() as u64))
            .map_ok(Frame::data)
            .map_err(|e| dhow_client::Error::Configuration(format!("read: {e}")));
        let response = images.send(Method::POST, "/import", &[], StreamBody::new(pieces).boxed_unsync()).await;
        bar.finish_and_clear();
        let response = response.with_context(|| format!("import {}", file.display()))?;
        let answer = response.into_body().collect().await?.to_bytes();
        let names: Value = serde_json::from_slice(&answer).context("read the server's answer")?;
        for name in names["images"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            eprintln!("imported {name}");
        }
    }
    Ok(())
}

async fn export(at: &ImageNode, names: &[String], output: &Path, format: ArchiveKind) -> Result<()> {
    let to_stdout = output == Path::new("-");
    if to_stdout && std::io::stdout().is_terminal() {
        bail!("an archive is nothing to look at: name a file, or redirect standard output");
    }
    let mut query: Vec<(&str, &str)> = names.iter().map(|name| ("name", name.as_str())).collect();
    query.push(("format", if format == ArchiveKind::Docker { "docker" } else { "oci" }));
    let images = Images::at(at).await?;
    let mut body = images.send(Method::GET, "/export", &query, full(Bytes::new())).await?.into_body();
    // The file appears under its name once it is whole.
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = match to_stdout {
        true => None,
        false => Some(
            tempfile::NamedTempFile::new_in(folder)
                .with_context(|| format!("create a file in {}", folder.display()))?,
        ),
    };
    let bar = progress::bytes(None);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("the archive was cut off")?.into_data() else { continue };
        match &mut file {
            Some(file) => file.write_all(&data),
            None => std::io::stdout().write_all(&data),
        }
        .context("write the archive")?;
        bar.inc(data.len() as u64);
    }
    bar.finish_and_clear();
    if let Some(file) = file {
        file.persist(output).with_context(|| format!("create {}", output.display()))?;
    }
    Ok(())
}

pub(super) fn print(value: &Value, output: ImageOutput) -> Result<()> {
    match output {
        ImageOutput::Yaml => print!("{}", serde_saphyr::to_string(value)?),
        _ => println!("{}", serde_json::to_string_pretty(value)?),
    }
    Ok(())
}

pub(super) fn size(bytes: &Value) -> String {
    format!("{}", indicatif::BinaryBytes(bytes.as_u64().unwrap_or(0)))
}

fn table(images: &Value, wide: bool) -> Table {
    let mut table = Table::new();
    let mut header = vec!["IMAGE", "ID", "SIZE"];
    if wide {
        header.extend(["USED BY", "LAST USED", "MANIFEST"]);
    }
    table.load_style(presets::NOTHING).set_header(header);
    for image in images["images"].as_array().into_iter().flatten() {
        let id = image["id"].as_str().unwrap_or_default().trim_start_matches("sha256:");
        let mut tags: Vec<&str> =
            image["repo_tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if tags.is_empty() {
            tags.push("<none>");
        }
        for tag in tags {
            let mut row = vec![tag.to_owned(), id.get(..12).unwrap_or(id).to_owned(), size(&image["size"])];
            if wide {
                row.push(image["in_use_by"].as_u64().unwrap_or(0).to_string());
                row.push(ago(image["used"].as_u64().unwrap_or(0)));
                row.push(image["manifest"].as_str().unwrap_or_default().to_owned());
            }
            table.add_row(row);
        }
    }
    table
}

fn ago(seconds: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    format!("{} ago", indicatif::HumanDuration(std::time::Duration::from_secs(now.saturating_sub(seconds))))
}
