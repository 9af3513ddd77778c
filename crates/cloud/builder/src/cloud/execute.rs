//! One attempt at a run: the request to the node, and what its events come to.

use base64::Engine as _;
use bytes::Bytes;
use dhow_client::{Client, full};
use dhow_image::{Entry, EntryKind, LayerWriter};
use http_body_util::BodyExt;

use super::kinds::{BuildRun, BuildSpec, Seen, Source};
use super::secrets::{Data, Secrets};
use crate::api::{Output, Request};
use crate::event::Event;
use crate::git::{Login, Repository};
use crate::run::Run;
use crate::source::{Bucket, Origin};

/// Largest limits of a run's steps; a Build may want less.
#[derive(Debug, Clone, Copy)]
pub struct Largest {
    pub cpu_milli: u64,
    pub memory: u64,
}

/// Longest message that a status gets.
const MESSAGE: usize = 4096;
/// Most images that a run notes it was built from.
const BASES: usize = 64;
/// Beyond its deadline a token may be needed for a push that has begun.
const TOKEN_SPARE: u64 = 600;

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
    /// Another attempt may end better.
    pub passing: bool,
    pub step: Option<String>,
    pub line: Option<usize>,
}

impl Failure {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        message.truncate(message.floor_char_boundary(MESSAGE));
        Self { reason, message, passing: false, step: None, line: None }
    }

    pub fn passing(reason: &'static str, message: impl Into<String>) -> Self {
        Self { passing: true, ..Self::new(reason, message) }
    }
}

/// What an attempt came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub commit: Option<(String, String, String)>,
    /// What was pushed: names and digests.
    pub pushed: Vec<(String, String)>,
    /// The images that it began with.
    pub bases: Vec<Seen>,
    pub failure: Option<Failure>,
    /// The steps under way by number, and the first one that failed.
    steps: std::collections::BTreeMap<usize, String>,
    failed: Option<String>,
    ended: bool,
}

/// Has a node build. Whoever stops waiting stops the build.
pub async fn execute(
    client: &Client,
    run: &BuildRun,
    node: &str,
    names: &[String],
    spec: &BuildSpec,
    most: Largest,
) -> Report {
    let mut report = Report::default();
    let done = async {
        let request = request(client, run, names, spec, most).await?;
        let body = archive(&request).map_err(|error| Failure::new("Internal", error.to_string()))?;
        let path = format!("/api/v1/nodes/{node}/proxy{}", crate::api::PATH);
        let gone = |error: &dyn std::fmt::Display| Failure::passing("NodeUnreachable", format!("node {node}: {error}"));
        let asked = http::Request::post(path).body(full(body)).map_err(|error| gone(&error))?;
        let answer = client.upload(asked).await.map_err(|error| gone(&error))?;
        let status = answer.status();
        let mut body = answer.into_body();
        if !status.is_success() {
            let said = body.collect().await.map(|all| all.to_bytes()).unwrap_or_default();
            return Err(gone(&dhow_client::status_error(status.as_u16(), &said)));
        }
        let mut buffer = bytes::BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| gone(&error))?.into_data() else { continue };
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1);
                report.hear(serde_json::from_slice(&line).map_err(|error| gone(&error))?);
            }
        }
        Ok(())
    };
    let done: Result<(), Failure> = done.await;
    report.failure = report.failure.or(done.err());
    let complete = report.ended || report.pushed.len() == names.len();
    if report.failure.is_none() && !complete {
        report.failure =
            Some(Failure::passing("NodeUnreachable", format!("node {node} stopped before the build was done")));
    }
    report
}

impl Report {
    pub fn failed(failure: Failure) -> Self {
        Self { failure: Some(failure), ..Self::default() }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Started { step, name } => drop(self.steps.insert(step, name)),
            Event::Cached { step } | Event::Done { step, .. } => drop(self.steps.remove(&step)),
            Event::Failed { step, .. } => {
                let name = self.steps.remove(&step);
                self.failed = self.failed.take().or(name);
            }
            Event::Source { commit, author, subject } => self.commit = Some((commit, author, subject)),
            Event::Pushed { name, digest } => self.pushed.push((name, digest)),
            Event::Base { name, digest } => {
                let base = Seen { name, digest };
                if self.bases.len() < BASES && !self.bases.contains(&base) {
                    self.bases.push(base);
                }
            }
            Event::Error { message, line, passing, .. } => {
                self.ended = true;
                let reason = match (line, passing) {
                    (_, true) => "Unavailable",
                    (Some(_), false) => "StepFailed",
                    (None, false) => "BuildFailed",
                };
                let step = self.failed.clone();
                self.failure = Some(Failure { passing, step, line, ..Failure::new(reason, message) });
            }
            Event::Output { .. }
            | Event::Unauthorized { .. }
            | Event::Warning { .. }
            | Event::Built { .. }
            | Event::Cache { .. }
            | Event::Archive => {}
        }
    }
}

async fn request(
    client: &Client,
    run: &BuildRun,
    names: &[String],
    spec: &BuildSpec,
    most: Largest,
) -> Result<Request, Failure> {
    let namespace = run.namespace();
    let secrets = Secrets { client, namespace };
    let invalid = |why: String| Failure::new("InvalidBuild", why);
    let (cpu, memory) = spec.limits().map_err(invalid)?;
    let deadline = spec.deadline().map_err(invalid)?;
    let account = if spec.service_account_name.is_empty() { "default" } else { &spec.service_account_name };
    let (token, mut others) = secrets.account(account, deadline.as_secs() + TOKEN_SPARE).await?;
    // What is named comes last, and wins.
    others.extend(spec.output.secrets.iter().cloned());
    let mut given = std::collections::BTreeMap::new();
    for one in &spec.secrets {
        let bytes = secrets.key(&one.secret, &one.key).await?;
        given.insert(one.id.clone(), base64::engine::general_purpose::STANDARD.encode(bytes));
    }
    let source = &spec.source;
    let origin = origin(&secrets, source, run).await?;
    Ok(Request {
        dockerfile: source.inline.clone().unwrap_or_default(),
        file: if spec.dockerfile.is_empty() { "Dockerfile".to_owned() } else { spec.dockerfile.clone() },
        target: spec.target.clone(),
        args: spec.args.clone(),
        labels: spec.labels.clone(),
        platform: spec.platform.clone(),
        secrets: given,
        no_cache: spec.no_cache,
        // What is on the node may be somebody else's to use.
        pull: true,
        network: spec.network.clone(),
        names: names.to_vec(),
        output: Output::Nothing,
        push: true,
        credentials: secrets.registries(&others).await?,
        run: Some(Run {
            id: run.uid().to_owned(),
            namespace: namespace.to_owned(),
            origin,
            context_dir: source.context_dir.clone(),
            token,
            cpu_milli: cpu.unwrap_or(u64::MAX).min(most.cpu_milli),
            memory: memory.unwrap_or(u64::MAX).min(most.memory),
        }),
        ..Request::default()
    })
}

async fn origin(secrets: &Secrets<'_>, source: &Source, run: &BuildRun) -> Result<Origin, Failure> {
    let data = |name: Option<&String>| {
        let name = name.cloned();
        async move {
            match name {
                Some(name) => secrets.get(&name).await,
                None => Ok(Data::default()),
            }
        }
    };
    let authorities = |data: &Data| Some(data.text("ca.crt")).filter(|text| !text.is_empty());
    if let Some(git) = &source.git {
        let data = data(git.secret.as_ref()).await?;
        return Ok(Origin::Git(Repository {
            url: git.url.clone(),
            reference: run.spec.revision.as_deref().unwrap_or(&git.reference).to_owned(),
            login: Login {
                authorization: data.authorization(),
                key: data.text("ssh-privatekey"),
                known_hosts: data.text("known_hosts"),
                authorities: data.text("ca.crt"),
            },
            without_submodules: git.submodules == Some(false),
        }));
    }
    if let Some(archive) = &source.archive {
        let data = data(archive.secret.as_ref()).await?;
        return Ok(Origin::Archive {
            url: archive.url.clone(),
            checksum: archive.checksum.clone(),
            authorization: Some(data.authorization()).filter(|text| !text.is_empty()),
            authorities: authorities(&data),
        });
    }
    if let Some(bucket) = &source.bucket {
        let data = data(bucket.secret.as_ref()).await?;
        return Ok(Origin::Bucket(Bucket {
            endpoint: bucket.endpoint.clone(),
            name: bucket.name.clone(),
            region: bucket.region.clone(),
            object: bucket.object.clone().unwrap_or_default(),
            prefix: bucket.prefix.clone().unwrap_or_default(),
            checksum: bucket.checksum.clone(),
            access_key: data.line("accesskey"),
            secret_key: data.line("secretkey"),
            session_token: data.line("sessiontoken"),
            authorities: authorities(&data),
        }));
    }
    Ok(match (&source.artifact, &source.image, &source.upload) {
        (Some(name), ..) => Origin::Artifact(name.clone()),
        (_, Some(name), _) => Origin::Image(name.clone()),
        (_, _, Some(_)) => Origin::Upload(run.spec.upload.as_ref().map(|sent| sent.id.clone()).unwrap_or_default()),
        _ => Origin::Nothing,
    })
}

/// The request as the node takes it: an archive with one file.
fn archive(request: &Request) -> std::io::Result<Bytes> {
    let text = serde_json::to_vec(request)?;
    let entry = Entry {
        path: b"build.json".to_vec(),
        kind: EntryKind::File(text.len() as u64),
        mode: 0o600,
        ..Entry::default()
    };
    let mut archive = LayerWriter::new(Vec::new());
    archive.append(&entry, text.as_slice())?;
    Ok(archive.finish()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_to_a_report() {
        let mut report = Report::default();
        report.hear(Event::Started { step: 1, name: "[1/2] RUN true".to_owned() });
        report.hear(Event::Started { step: 2, name: "[2/2] RUN false".to_owned() });
        report.hear(Event::Done { step: 1, seconds: 0.1 });
        report.hear(Event::Failed { step: 2, error: "exit code: 1".to_owned() });
        let message = "Dockerfile:3: failed to solve".to_owned();
        report.hear(Event::Error { message: message.clone(), not_found: false, line: Some(3), passing: false });
        let failure = report.failure.as_ref();
        assert_eq!(failure.map(|f| (f.reason, f.line, f.passing)), Some(("StepFailed", Some(3), false)));
        assert_eq!(failure.and_then(|f| f.step.as_deref()), Some("[2/2] RUN false"));
        assert_eq!(Failure::new("A", "é".repeat(MESSAGE)).message.len(), MESSAGE);
    }
}
