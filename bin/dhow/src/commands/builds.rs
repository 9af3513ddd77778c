//! `dhow builds`: runs of Builds, started, read and stopped.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use dhow_builder::cloud::kinds::{Build, BuildRun, GROUP, Phase, RunSpec, VERSION};
use dhow_client::{Body, Client, Informer, Key, ListParams, Patch, full, status_error};
use http::{Method, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::build::context::archive;
use super::connect;
use crate::cli::{BuildsAt, BuildsCommand};
use crate::exit::NotFound;

pub async fn run(command: BuildsCommand) -> Result<()> {
    match command {
        BuildsCommand::Start { at, name, from, revision, follow } => {
            let runs = Runs::at(&at)?;
            let run = match from {
                Some(folder) => runs.send(&name, &folder).await?,
                None => runs.start(&name, revision).await?,
            };
            if !follow {
                println!("{}", run.name());
                return Ok(());
            }
            eprintln!("run {}", run.name());
            runs.print(run.name(), &[("follow", "true".to_owned())]).await?;
            runs.ended(run.name()).await
        }
        BuildsCommand::Logs { at, name, follow, tail, timestamps } => {
            let runs = Runs::at(&at)?;
            let mut query = vec![("follow", follow.to_string()), ("timestamps", timestamps.to_string())];
            query.extend(tail.map(|tail| ("tailLines", tail.to_string())));
            let run = runs.meant(&name).await?;
            runs.print(&run, &query).await
        }
        BuildsCommand::Cancel { at, name } => {
            let runs = Runs::at(&at)?;
            let patch = Patch::Merge(json!({"spec": {"cancel": true}}));
            runs.client.patch::<BuildRun>(Some(&runs.namespace), &name, patch, None).await?;
            Ok(())
        }
    }
}

/// The runs of one namespace.
struct Runs {
    client: Client,
    namespace: String,
}

impl Runs {
    fn at(at: &BuildsAt) -> Result<Self> {
        Ok(Self { client: connect(&at.connect)?, namespace: at.namespace.clone() })
    }

    fn path(&self, rest: &str) -> String {
        format!("/apis/{GROUP}/{VERSION}/namespaces/{}/{rest}", self.namespace)
    }

    async fn start(&self, build: &str, revision: Option<String>) -> Result<BuildRun> {
        self.client.get::<Build>(Some(&self.namespace), build).await?;
        let run = BuildRun {
            metadata: ObjectMeta {
                generate_name: Some(format!("{build}-")),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: RunSpec { build: build.to_owned(), revision, ..RunSpec::default() },
            status: None,
        };
        Ok(self.client.create(&run).await?)
    }

    async fn send(&self, build: &str, folder: &Path) -> Result<BuildRun> {
        let spec = self.client.get::<Build>(Some(&self.namespace), build).await?.spec;
        let file = if spec.dockerfile.is_empty() { "Dockerfile".to_owned() } else { spec.dockerfile };
        let file = format!("{}/{file}", spec.source.context_dir);
        let kept = [format!("{file}.dockerignore"), file, ".dockerignore".to_owned()];
        let (pieces, writing) = archive(folder, &kept)?;
        let pieces = futures::TryStreamExt::map_ok(pieces, Frame::data);
        let called = folder.display().to_string();
        let broken = move |error| dhow_client::Error::Configuration(format!("read {called}: {error}"));
        let body = StreamBody::new(futures::TryStreamExt::map_err(pieces, broken)).boxed_unsync();
        let answer = self.ask(Method::POST, &self.path(&format!("builds/{build}/upload")), body).await;
        // Why the folder could not be read says more than that the archive broke off.
        writing.await.with_context(|| format!("read {}", folder.display()))??;
        let text = answer?.collect().await?.to_bytes();
        serde_json::from_slice(&text).context("read the server's answer")
    }

    async fn ask(&self, method: Method, path: &str, body: Body) -> Result<Body> {
        let request = Request::builder().method(method).uri(path).body(body).context("build the request")?;
        let answer = self.client.upload(request).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer.into_body());
        }
        let said = answer.into_body().collect().await?.to_bytes();
        Err(status_error(status.as_u16(), &said).into())
    }

    /// A run by its name, or the newest one of a Build.
    async fn meant(&self, name: &str) -> Result<String> {
        match self.client.get::<BuildRun>(Some(&self.namespace), name).await {
            Ok(_) => return Ok(name.to_owned()),
            Err(error) if !error.is_not_found() => return Err(error.into()),
            Err(_) => {}
        }
        let of = ListParams { field_selector: Some(format!("spec.build={name}")), ..ListParams::default() };
        let runs = self.client.list::<BuildRun>(Some(&self.namespace), &of).await?.items;
        let newest = runs.iter().max_by_key(|run| run.age()).map(|run| run.name().to_owned());
        newest
            .ok_or_else(|| NotFound(format!("there is no run {name:?}, and no Build of that name that was run")).into())
    }

    async fn print(&self, run: &str, query: &[(&str, String)]) -> Result<()> {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        let path = self.path(&format!("buildruns/{run}/log?{query}"));
        let mut body = self.ask(Method::GET, &path, full(Bytes::new())).await?;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.context("the log broke off")?.into_data() else { continue };
            let mut out = std::io::stdout().lock();
            out.write_all(&data).and_then(|()| out.flush()).context("write the log")?;
        }
        Ok(())
    }

    /// Waits for the end of a run; an error unless it succeeded.
    async fn ended(&self, name: &str) -> Result<()> {
        let stop = CancellationToken::new();
        let _stopped = stop.clone().drop_guard();
        let changed = Arc::new(Notify::new());
        let scope = ListParams { field_selector: Some(format!("metadata.name={name}")), ..ListParams::default() };
        let runs = Informer::<BuildRun>::start(self.client.clone(), scope, Some(&self.namespace), stop);
        let told = Arc::clone(&changed);
        runs.on_change(move |_| told.notify_one());
        runs.synced().await;
        let key = Key::new(Some(&self.namespace), name);
        loop {
            let Some(run) = runs.get(&key) else { bail!("the run was deleted") };
            let status = run.status.clone().unwrap_or_default();
            match status.phase {
                Phase::Succeeded => {
                    eprintln!("built {}", status.image.unwrap_or_default());
                    return Ok(());
                }
                phase if phase.is_over() => bail!("{phase:?}: {} {}", status.reason, status.message),
                _ => changed.notified().await,
            }
        }
    }
}
