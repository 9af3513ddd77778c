//! Builds for people who do not run the machine: on whose behalf, within which limits, and what stays here of each: its log,
//! and an archive that was sent for it.
//!
//! | request | answer |
//! |---|---|
//! | `POST /images/build` with a `run` in it | as ever; the log is written as well |
//! | `GET /images/build/logs/ID?follow=&tailLines=&timestamps=` | text; with `follow` until the run ends |
//! | `DELETE /images/build/logs/ID` | `204`, also if there is none |
//! | `PUT /images/build/uploads/NAMESPACE/ID` | `201`; the body is an archive |
//! | `DELETE /images/build/uploads/NAMESPACE/ID` | `204`, also if there is none |
//! | `POST /images/build/digests` with [`Names`] | what they stand for at their registries, as a list of [`Digests`] |

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use dhow_image::api::{Answer, Credentials};
use dhow_image::{Auth, Reference, Registries, Remote};
use dhow_oci::spec::Limits;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, mpsc, watch};

use crate::Builder;
use crate::api::{PATH, refusal};
use crate::copy::At;
use crate::error::{Error, Result};
use crate::log::{Shown, Writer, copy};
use crate::source::Origin;

/// What all logs of the node may take; the oldest go.
const LOGS: u64 = 256 << 20;
/// Largest archive that may be sent.
const MOST: u64 = 4 << 30;
/// Longest list of names with what registries are shown for them.
const MOST_NAMES: usize = 1 << 20;
/// What was sent and never built goes after so long.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);
/// Period of limits on processor time, in microseconds.
const PERIOD: u64 = 100_000;
/// A run that the API knows is on a node is there after so long.
const SOON: Duration = Duration::from_secs(20);

/// On whose behalf a build is done, and from what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Run {
    /// Names its log.
    pub id: String,
    /// Caches and steps are shared within one namespace.
    pub namespace: String,
    pub origin: Origin,
    /// Folder of the context among the files.
    pub context_dir: String,
    /// For the cluster's own registry.
    pub token: String,
    /// Thousandths of a processor, and bytes, for each step; 0: as the node has it.
    pub cpu_milli: u64,
    pub memory: u64,
}

/// Images that somebody wants to know the digests of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Names {
    pub names: Vec<String>,
    /// By registry.
    pub credentials: BTreeMap<String, Credentials>,
    /// For the cluster's own registry.
    pub token: String,
}

/// What a name stands for now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Digests {
    pub name: String,
    /// `None`: nothing, or it is not known, and why.
    pub digest: Option<String>,
    pub error: Option<String>,
}

/// For whom a build is done that does not run the machine.
#[derive(Clone, Debug)]
pub struct Tenant {
    pub namespace: String,
    pub limits: Limits,
    pub(crate) token: String,
}

impl Run {
    pub(crate) fn tenant(&self, node: &Limits) -> Tenant {
        let mut limits = node.clone();
        if self.cpu_milli > 0 {
            limits.cpu_period = Some(PERIOD);
            limits.cpu_quota = i64::try_from(self.cpu_milli.saturating_mul(PERIOD) / 1000).ok();
        }
        if self.memory > 0 {
            limits.memory = i64::try_from(self.memory).ok();
        }
        Tenant { namespace: self.namespace.clone(), limits, token: self.token.clone() }
    }

    /// What the cluster's own registry is shown.
    pub(crate) fn cluster(&self, registries: &Registries, host: &str) -> Option<Auth> {
        of_cluster(&self.token, registries, host)
    }
}

impl Tenant {
    pub(crate) fn cluster(&self, registries: &Registries, host: &str) -> Option<Auth> {
        of_cluster(&self.token, registries, host)
    }
}

fn of_cluster(token: &str, registries: &Registries, host: &str) -> Option<Auth> {
    let meant = !token.is_empty() && registries.is_clusters(host);
    meant.then(|| Auth::Basic { username: "serviceaccount".to_owned(), password: token.to_owned() })
}

/// Names of logs and uploads, which become names of files.
fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// What the node keeps of runs.
pub struct Runs {
    root: PathBuf,
    /// Lengths of logs that grow.
    growing: Mutex<HashMap<String, watch::Receiver<u64>>>,
    /// A log was begun.
    begun: Notify,
}

impl Runs {
    pub fn open(root: &Path) -> Result<Self> {
        let runs = Runs { root: root.to_owned(), growing: Mutex::default(), begun: Notify::new() };
        for folder in ["logs", "uploads"] {
            let folder = root.join(folder);
            dhow_base::files::create_private_dir(&folder)
                .map_err(|error| Error::Invalid(format!("make {}: {error}", folder.display())))?;
        }
        for (path, _, age) in files(&root.join("uploads"))? {
            if age > FORGOTTEN {
                fs::remove_file(path).at("remove what was sent and never built")?;
            }
        }
        Ok(runs)
    }

    fn log_path(&self, id: &str) -> PathBuf {
        self.root.join("logs").join(id)
    }

    fn upload_path(&self, namespace: &str, id: &str) -> PathBuf {
        self.root.join("uploads").join(format!("{namespace}.{id}"))
    }

    /// Where an archive is that was sent for this namespace.
    pub fn upload(&self, namespace: &str, id: &str) -> Result<PathBuf> {
        let path = self.upload_path(namespace, id);
        if !is_name(id) || !is_name(namespace) || !path.is_file() {
            return Err(Error::Invalid("what was sent for this run is no longer here; send it again".to_owned()));
        }
        Ok(path)
    }

    /// Begins a log anew.
    pub fn log(self: &Arc<Self>, id: &str) -> Result<Writer> {
        if !is_name(id) {
            return Err(Error::Invalid(format!("{id:?} is no name of a run")));
        }
        self.make_room()?;
        let (told, growing) = watch::channel(0);
        self.growing.lock().insert(id.to_owned(), growing);
        let (this, ended) = (Arc::clone(self), id.to_owned());
        let writer = Writer::new(&self.log_path(id), told, Box::new(move || drop(this.growing.lock().remove(&ended))));
        self.begun.notify_waiters();
        writer
    }

    /// The log, and its length if it grows; for whoever follows it also one that is about to begin.
    async fn open_log(&self, id: &str, follow: bool) -> Option<(fs::File, Option<watch::Receiver<u64>>)> {
        let begun = async {
            loop {
                let next = self.begun.notified();
                // In this order: one that ends in between is whole.
                let growing = self.growing.lock().get(id).cloned();
                match fs::File::open(self.log_path(id)) {
                    Ok(file) => return Some((file, growing.filter(|_| follow))),
                    Err(_) if follow => next.await,
                    Err(_) => return None,
                }
            }
        };
        tokio::time::timeout(SOON, begun).await.ok().flatten()
    }

    fn make_room(&self) -> Result<()> {
        let mut all = files(&self.root.join("logs"))?;
        all.sort_by_key(|(_, _, age)| *age);
        let mut sum = 0;
        for (path, bytes, _) in all {
            sum += bytes;
            let busy = || path.file_name().is_some_and(|id| self.growing.lock().contains_key(&*id.to_string_lossy()));
            if sum > LOGS && !busy() {
                fs::remove_file(path).at("remove an old log")?;
            }
        }
        Ok(())
    }

    /// Takes in an archive.
    async fn take(&self, namespace: &str, id: &str, mut body: Incoming) -> Result<()> {
        let path = self.upload_path(namespace, id);
        let part = path.with_extension("part");
        let taken = async {
            let mut file = tokio::fs::File::create(&part).await.at("make a file")?;
            let mut sum = 0;
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| Error::Interrupted(format!("what is sent broke off: {error}")))?;
                let Ok(data) = frame.into_data() else { continue };
                sum += data.len() as u64;
                if sum > MOST {
                    return Err(Error::Invalid(format!("what is sent is larger than {MOST} bytes")));
                }
                file.write_all(&data).await.at("write what is sent")?;
            }
            file.flush().await.at("write what is sent")?;
            tokio::fs::rename(&part, &path).await.at("name what was sent")
        };
        let taken = taken.await;
        if taken.is_err() {
            let _ = tokio::fs::remove_file(&part).await;
        }
        taken
    }
}

/// Files of a folder, their sizes, and how long they were not written to.
fn files(folder: &Path) -> Result<Vec<(PathBuf, u64, Duration)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).at("list a folder of runs")? {
        let entry = entry.at("list a folder of runs")?;
        // Gone meanwhile.
        let Ok(meta) = entry.metadata() else { continue };
        let age = meta.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        all.push((entry.path(), meta.len(), age.unwrap_or_default()));
    }
    Ok(all)
}

impl Builder {
    /// Whether a path of the node's server is the builder's.
    pub fn owns(path: &str) -> bool {
        path.strip_prefix(PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// What is below [`PATH`].
    pub(crate) async fn serve_runs(&self, request: http::Request<Incoming>) -> Answer {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.strip_prefix(PATH).unwrap_or_default().trim_matches('/').split('/').collect();
        if parts.iter().any(|part| !is_name(part)) {
            return refusal(StatusCode::NOT_FOUND, "there is nothing of that name".to_owned());
        }
        let runs = &self.inner.runs;
        let done = match (request.method(), parts.as_slice()) {
            (&Method::GET, ["logs", id]) => {
                return self.log(id, request.uri().query().unwrap_or_default()).await;
            }
            (&Method::DELETE, ["logs", id]) => gone(fs::remove_file(runs.log_path(id))),
            (&Method::PUT, ["uploads", namespace, id]) => {
                runs.take(namespace, id, request.into_body()).await.map(|()| StatusCode::CREATED)
            }
            (&Method::POST, ["digests"]) => return self.digests(request.into_body()).await,
            (&Method::DELETE, ["uploads", namespace, id]) => gone(fs::remove_file(runs.upload_path(namespace, id))),
            _ => return refusal(StatusCode::NOT_FOUND, "there is nothing of that name".to_owned()),
        };
        match done {
            Ok(status) => {
                let mut answer = refusal(status, String::new());
                *answer.body_mut() = http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
                answer
            }
            Err(error @ Error::Invalid(_)) => refusal(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    /// What names stand for, asked on behalf of people who do not run the machine.
    async fn digests(&self, body: Incoming) -> Answer {
        let read = http_body_util::Limited::new(body, MOST_NAMES).collect().await;
        let asked = read.ok().and_then(|read| serde_json::from_slice::<Names>(&read.to_bytes()).ok());
        let Some(asked) = asked else {
            return refusal(StatusCode::BAD_REQUEST, "malformed names of images".to_owned());
        };
        let one = |name: &String| {
            let (name, asked) = (name.clone(), &asked);
            async move {
                match self.digest(&name, asked).await {
                    Ok(digest) => Digests { name, digest: digest.map(|digest| digest.to_string()), error: None },
                    Err(error) => Digests { name, digest: None, error: Some(error.to_string()) },
                }
            }
        };
        let all = futures::future::join_all(asked.names.iter().map(one)).await;
        let text = Bytes::from(serde_json::to_vec(&all).unwrap_or_default());
        let body = http_body_util::Full::new(text).map_err(|never: std::convert::Infallible| match never {});
        Answer::new(body.boxed_unsync())
    }

    async fn digest(&self, name: &str, asked: &Names) -> Result<Option<dhow_image::Digest>> {
        let registries = &self.inner.config.registries;
        self.check_registry(name).await?;
        let reference = Reference::parse(name)?;
        let given = asked.credentials.get(&reference.registry).cloned().map(Into::into);
        let own = || of_cluster(&asked.token, registries, &reference.registry);
        let auth = given.or_else(own).unwrap_or(Auth::Anonymous);
        let remote = Remote::connect(registries, &reference, &auth).await?;
        Ok(remote.digest(reference.target()).await?)
    }

    async fn log(&self, id: &str, query: &str) -> Answer {
        let shown = Shown::parse(query);
        let Some((file, growing)) = self.inner.runs.open_log(id, shown.follow).await else {
            return refusal(StatusCode::NOT_FOUND, "the log of this run is not, or no longer, on its node".to_owned());
        };
        let (pieces, mut waiting) = mpsc::channel::<std::io::Result<Bytes>>(8);
        tokio::spawn(copy(tokio::fs::File::from_std(file), shown, growing, pieces));
        let stream = futures::stream::poll_fn(move |context| waiting.poll_recv(context));
        let frames = futures::TryStreamExt::map_ok(stream, Frame::data);
        let mut answer = Answer::new(StreamBody::new(frames).boxed_unsync());
        let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
        answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        answer
    }
}

fn gone(removed: std::io::Result<()>) -> Result<StatusCode> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove what a run left"),
        _ => Ok(StatusCode::NO_CONTENT),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_run() {
        let node = Limits { pids: Some(7), memory: Some(5), ..Limits::default() };
        let run = Run { cpu_milli: 1500, memory: 1 << 20, ..Run::default() };
        let limits = run.tenant(&node).limits;
        assert_eq!((limits.cpu_quota, limits.cpu_period, limits.memory), (Some(150_000), Some(100_000), Some(1 << 20)));
        assert_eq!((limits.pids, Run::default().tenant(&node).limits.memory), (Some(7), Some(5)));
    }

    #[test]
    fn names_are_no_paths() {
        for (name, fine) in [("0a-b", true), ("", false), ("..", false), ("a/b", false), ("A", false)] {
            assert_eq!(is_name(name), fine, "{name}");
        }
        assert!(Builder::owns("/images/build/logs/x") && !Builder::owns("/images/builder"));
    }

    #[test]
    fn what_was_sent_for_one_namespace_is_not_anothers() {
        let folder = tempfile::tempdir().unwrap();
        let runs = Runs::open(folder.path()).unwrap();
        fs::write(folder.path().join("uploads/team.id"), "").unwrap();
        assert!(runs.upload("team", "id").is_ok());
        assert!(runs.upload("other", "id").is_err() && runs.upload("team", "../team.id").is_err());
    }
}
