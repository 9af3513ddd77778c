//! `POST /images/build` of a node: an archive goes in, events come out, one JSON document a line.
//!
//! The archive has `build.json`, a [`Request`], and below `contexts/N/` the files of the contexts that it numbers. After the
//! event `archive` the rest of the answer is what was asked for as output. Whoever stops listening stops the build.
//!
//! A client that asks before by `POST /images/build/wanted`, with [`Listings`] of its contexts, is told which of their entries
//! are not here from an earlier build ([`Missing`]), says again in `build.json` what they all have, and sends just those. The
//! answer 409 means that something else happened meanwhile: it sends everything.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use dhow_image::api::{Answer, Credentials};
use dhow_image::{Compression, Platform};
use dhow_oci::spec::Limits;
use futures::TryStreamExt;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::attest::Attest;
use crate::cache::{CacheMode, CacheSource};
use crate::contexts::{Lease, Listing};
use crate::copy::At;
use crate::error::{Error, Result, blocking};
use crate::event::{Event, Events};
use crate::git::Logins;
use crate::plan::Wanted;
use crate::report::Material;
use crate::source::secrets;
use crate::{Builder, ContextSource, Folder, Job};

/// The path below a node's server.
pub const PATH: &str = "/images/build";

/// Where a client asks what it has to send.
pub const WANTED: &str = "/images/build/wanted";

/// What folders have, by the numbers of their contexts.
pub type Listings = BTreeMap<usize, Listing>;

/// What of that is to be sent, by its place in the list.
pub type Missing = BTreeMap<usize, Vec<usize>>;

/// Largest [`Listings`]: of some millions of files.
const MOST_LISTED: usize = 512 << 20;

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Request {
    /// The Dockerfile's text, and what it is called.
    pub dockerfile: String,
    pub file: String,
    pub target: Option<String>,
    pub args: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// `os/arch[/variant]`, several between commas; the node's if not said.
    pub platform: Option<String>,
    /// By name; the build's own has none.
    pub contexts: BTreeMap<String, Context>,
    /// Of contexts that are kept; what came of them is only what was missing.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub listings: Listings,
    /// In base64.
    pub secrets: BTreeMap<String, String>,
    /// Sockets of SSH agents, on the node.
    pub agents: BTreeMap<String, PathBuf>,
    pub no_cache: bool,
    pub no_cache_stages: Vec<String>,
    pub pull: bool,
    pub network: Option<String>,
    pub epoch: Option<i64>,
    pub names: Vec<String>,
    pub output: Output,
    pub push: bool,
    pub compression: Option<Compression>,
    /// By registry.
    pub credentials: BTreeMap<String, Credentials>,
    pub cache_from: Vec<CacheFrom>,
    pub cache_to: Vec<CacheTo>,
    pub attest: Attest,
    pub limits: StepLimits,
    /// On whose behalf, if not the caller's own.
    pub run: Option<crate::run::Run>,
}

/// Where steps that others made are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CacheFrom {
    Registry(String),
    /// In the request, in the context's folder of this number: an OCI layout; its image of this tag if one is said.
    Folder(usize, Option<String>),
}

/// Who else gets the steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheTo {
    pub to: CacheTarget,
    pub mode: CacheMode,
    pub compression: Option<Compression>,
    /// The build succeeds although its steps could not be written.
    pub ignore_error: bool,
}

/// Where steps go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CacheTarget {
    Registry(String),
    /// Back to whoever asks, as an archive of an OCI layout, under this tag.
    Folder(String),
    /// With the image, which is a cache for others then.
    Inline,
}

/// What each step of the build may use at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StepLimits {
    /// Bytes.
    pub memory: Option<i64>,
    pub pids: Option<i64>,
    /// Beside other builds; 1024 is the usual weight.
    pub cpu_shares: Option<u64>,
    /// Microseconds in each period.
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<u64>,
    pub cpuset_cpus: Option<String>,
}

/// Where a context is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Context {
    /// In the request, in the folder of this number.
    Folder(usize),
    /// The same, an OCI layout with one image.
    Layout(usize),
    Image(String),
    /// Of a repository, an archive, or a single Dockerfile; the node fetches it. The build's own has the Dockerfile, too,
    /// unless that is in the request.
    Address(String),
}

/// What becomes of the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Output {
    /// An image of the node.
    #[default]
    Store,
    /// Archives of the image.
    Oci,
    Docker,
    /// An archive of its files.
    Tar,
    /// Only whether it can be built.
    Nothing,
}

impl Builder {
    /// Answers a request; what goes wrong is an answer, too.
    pub async fn serve(&self, request: http::Request<Incoming>) -> Answer {
        if request.uri().path() == WANTED && request.method() == http::Method::POST {
            return self.missing(request.into_body()).await;
        }
        if request.uri().path() != PATH {
            return self.serve_runs(request).await;
        }
        if request.method() != http::Method::POST {
            return refusal(http::StatusCode::METHOD_NOT_ALLOWED, "a build is asked for by POST".to_owned());
        }
        let received = self.receive(request.into_body()).await;
        match received.and_then(|received| Ok((self.log_of(&received.request)?, received))) {
            Ok((log, received)) => answer(self.clone(), received, log),
            Err(error @ Error::Stale(_)) => refusal(http::StatusCode::CONFLICT, error.to_string()),
            Err(error) => refusal(http::StatusCode::BAD_REQUEST, error.to_string()),
        }
    }

    async fn missing(&self, body: Incoming) -> Answer {
        let read = http_body_util::Limited::new(body, MOST_LISTED).collect().await;
        let Some(listings) = read.ok().and_then(|read| serde_json::from_slice::<Listings>(&read.to_bytes()).ok())
        else {
            return refusal(http::StatusCode::BAD_REQUEST, "malformed lists of contexts".to_owned());
        };
        let mut missing = Missing::new();
        for (number, listing) in listings {
            match self.inner.contexts.wanted(listing).await {
                Ok(wanted) => drop(missing.insert(number, wanted)),
                Err(error) => return refusal(http::StatusCode::BAD_REQUEST, error.to_string()),
            }
        }
        let text = serde_json::to_vec(&missing).unwrap_or_default();
        Answer::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync())
    }

    fn log_of(&self, request: &Request) -> Result<Option<crate::log::Writer>> {
        request.run.as_ref().map(|run| self.inner.runs.log(&run.id)).transpose()
    }

    /// Takes the whole request in.
    async fn receive(&self, body: Incoming) -> Result<Received> {
        let contexts = self.inner.config.root.join("contexts");
        let folder = tempfile::tempdir_in(&contexts).at("make a folder for the context")?;
        let pieces = TryStreamExt::map_err(BodyStream::new(body), io::Error::other);
        let pieces = pieces.try_filter_map(|frame| async move { Ok(frame.into_data().ok()) });
        let bridge = SyncIoBridge::new(StreamReader::new(Box::pin(pieces)));
        let into = folder.path().to_owned();
        let request = blocking(move || {
            let mut plain = dhow_image::decompress(bridge).at("read the request")?;
            dhow_image::unpack(&mut plain, &into, &[], "of the request", &dhow_image::Limits::default())?;
            io::copy(&mut plain, &mut io::sink()).at("read the request")?;
            let path = into.join("build.json");
            let text = std::fs::read(&path).at("read build.json of the request")?;
            // It has secrets.
            std::fs::remove_file(&path).at("remove build.json of the request")?;
            let wrong = |error| Error::Invalid(format!("malformed build.json: {error}"));
            serde_json::from_slice::<Request>(&text).map_err(wrong)
        })
        .await?;
        let mut kept = BTreeMap::new();
        let mut request = request;
        for (number, listing) in std::mem::take(&mut request.listings) {
            let came = folder.path().join("contexts").join(number.to_string());
            kept.insert(number, self.inner.contexts.take(listing, came).await?);
        }
        Ok(Received { request, folder, kept })
    }
}

pub(crate) struct Received {
    pub request: Request,
    pub folder: tempfile::TempDir,
    /// By the numbers of their contexts.
    pub kept: BTreeMap<usize, Lease>,
}

pub fn refusal(status: http::StatusCode, message: String) -> Answer {
    let body = Full::new(Bytes::from(message + "\n"));
    let mut answer = Answer::new(body.map_err(|never: std::convert::Infallible| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

/// Runs the build for as long as somebody reads.
fn answer(builder: Builder, received: Received, log: Option<crate::log::Writer>) -> Answer {
    let (events, mut lines) = mpsc::unbounded_channel::<Bytes>();
    let (bytes, mut archive) = mpsc::channel::<io::Result<Bytes>>(8);
    let mut work = Box::pin(async move {
        let line = |event: &Event| Bytes::from(serde_json::to_string(event).unwrap_or_default() + "\n");
        let steps = events.clone();
        // Nobody may be listening any more.
        let log = Arc::new(log);
        let logged = Arc::clone(&log);
        let told = Events::new(move |event| {
            logged.iter().for_each(|log| log.tell(&event));
            let _ = steps.send(line(&event));
        });
        match builder.fulfil(received, told).await {
            Ok(outputs) => {
                drop(events);
                for output in outputs {
                    if let Err(error) = builder.write(output, &bytes).await {
                        // An archive that could not be finished must not look finished.
                        let _ = bytes.send(Err(io::Error::other(error))).await;
                        break;
                    }
                }
            }
            Err(error) => {
                let (message, not_found) = (error.to_string(), error.is_not_found());
                let event = Event::Error { message, not_found, line: error.line(), passing: error.is_passing() };
                log.iter().for_each(|log| log.tell(&event));
                let _ = events.send(line(&event));
            }
        }
    });
    let mut ended = false;
    let pieces = futures::stream::poll_fn(move |context| {
        if !ended {
            ended = work.as_mut().poll(context).is_ready();
        }
        match lines.poll_recv(context) {
            std::task::Poll::Ready(Some(line)) => std::task::Poll::Ready(Some(Ok(line))),
            std::task::Poll::Ready(None) => archive.poll_recv(context),
            std::task::Poll::Pending => std::task::Poll::Pending,
        }
    });
    let mut answer = Answer::new(StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync());
    let kind = http::HeaderValue::from_static("application/x-ndjson");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    answer
}

impl Builder {
    /// What a request asks for, for each platform, and where its context came from if the node fetched it.
    pub(crate) async fn jobs(
        &self,
        request: &Request,
        (folder, kept): (&Path, &BTreeMap<usize, Lease>),
        events: &Events,
    ) -> Result<(Vec<Job>, Option<Material>)> {
        let platforms = platforms(request)?;
        let (job, source) = self.job(request, (folder, kept), events).await?;
        let several = platforms.len() > 1;
        let jobs = platforms.into_iter().map(|platform| {
            let shown_as = several.then(|| platform.to_string());
            Job { wanted: Wanted { platform, ..job.wanted.clone() }, shown_as, ..job.clone() }
        });
        Ok((jobs.collect(), source))
    }

    async fn job(
        &self,
        request: &Request,
        (folder, kept): (&Path, &BTreeMap<usize, Lease>),
        events: &Events,
    ) -> Result<(Job, Option<Material>)> {
        let mut contexts = HashMap::new();
        let (mut dockerfile, mut source) = (request.dockerfile.clone(), None);
        let agents = agents(request)?;
        let secrets = secrets(request)?;
        let logins = Logins::of_secrets(secrets.iter());
        for (name, context) in &request.contexts {
            let numbered = |number: &usize| folder.join("contexts").join(number.to_string());
            let place = match context {
                Context::Folder(number) => match kept.get(number) {
                    Some(lease) => ContextSource::Folder(Folder::from(lease)),
                    None => ContextSource::Folder(Folder::unknown(numbered(number))),
                },
                Context::Layout(number) => ContextSource::Image(self.layout(name, &numbered(number)).await?),
                Context::Image(image) => ContextSource::Image(image.clone()),
                Context::Address(address) => {
                    let into = folder.join("fetched").join(contexts.len().to_string());
                    let wanted = (name.is_empty() && dockerfile.is_empty()).then_some(request.file.as_str());
                    let shown = (&logins, agents.get("default"));
                    let fetched = self.fetch_context(address, wanted, &into, shown, events).await?;
                    if name.is_empty() {
                        source = fetched.material;
                        if dockerfile.is_empty() {
                            dockerfile = fetched.dockerfile.unwrap_or_default();
                        }
                    }
                    ContextSource::Folder(Folder::unknown(fetched.folder))
                }
            };
            contexts.insert(name.clone(), place);
        }
        let epoch = request.args.get("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty());
        let epoch = match (request.epoch, epoch) {
            (None, Some(text)) => {
                let wrong = |_| Error::Invalid(format!("SOURCE_DATE_EPOCH {text:?} is no number of seconds"));
                Some(text.parse().map_err(wrong)?)
            }
            (given, _) => given,
        };
        let cache_from = request.cache_from.iter().map(|from| match from {
            CacheFrom::Registry(name) => CacheSource::Registry(name.clone()),
            CacheFrom::Folder(number, tag) => {
                CacheSource::Folder(folder.join("contexts").join(number.to_string()), tag.clone())
            }
        });
        let limits = &request.limits;
        let tenant = request.run.as_ref().map(|run| run.tenant(&self.inner.config.sandboxes.limits));
        let limits = tenant.as_ref().map_or_else(
            || Limits {
                memory: limits.memory,
                pids: limits.pids,
                cpu_shares: limits.cpu_shares,
                cpu_quota: limits.cpu_quota,
                cpu_period: limits.cpu_period,
                cpuset_cpus: limits.cpuset_cpus.clone(),
                ..Limits::default()
            },
            |tenant| tenant.limits.clone(),
        );
        let job = Job {
            dockerfile,
            file: request.file.clone(),
            wanted: Wanted {
                target: request.target.clone(),
                args: request.args.clone(),
                labels: request.labels.clone(),
                platform: Platform::host(),
                builder: Platform::host(),
                contexts: contexts.keys().filter(|name| !name.is_empty()).cloned().collect(),
            },
            contexts,
            secrets,
            agents,
            no_cache: request.no_cache,
            no_cache_stages: request.no_cache_stages.clone(),
            pull: request.pull,
            network: request.network.clone(),
            epoch,
            tenant,
            auth: request.credentials.iter().map(|(name, given)| (name.clone(), given.clone().into())).collect(),
            cache_from: cache_from.collect(),
            limits,
            shown_as: None,
        };
        Ok((job, source))
    }

    /// The image of an OCI layout, by its id.
    async fn layout(&self, name: &str, folder: &Path) -> Result<String> {
        let (from, into) = tokio::io::duplex(256 << 10);
        let (folder, bridge) = (folder.to_owned(), SyncIoBridge::new(into));
        let writing = blocking(move || {
            let mut archive = tar::Builder::new(bridge);
            archive.append_dir_all(".", &folder).at("read the layout")?;
            let mut bridge = archive.into_inner().at("read the layout")?;
            bridge.shutdown().at("read the layout")
        });
        let importing = async { Ok(self.inner.config.store.import(from).await?) };
        let ((), images) = tokio::try_join!(writing, importing)?;
        match images.as_slice() {
            [image] => Ok(image.id.clone()),
            all => Err(Error::Invalid(format!("context {name}: the layout has {} images; one is wanted", all.len()))),
        }
    }
}

fn platforms(request: &Request) -> Result<Vec<Platform>> {
    let Some(text) = &request.platform else { return Ok(vec![Platform::host()]) };
    let mut all = Vec::new();
    for name in text.split(',').map(str::trim) {
        let platform = Platform::parse(name)
            .ok_or_else(|| Error::Invalid(format!("{name:?} is no platform; write os/arch[/variant]")))?;
        if !all.contains(&platform) {
            all.push(platform);
        }
    }
    Ok(all)
}

fn agents(request: &Request) -> Result<HashMap<String, PathBuf>> {
    let mut agents = HashMap::new();
    for (id, path) in &request.agents {
        use std::os::unix::fs::FileTypeExt;
        let socket = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
        if !socket {
            let path = path.display();
            return Err(Error::Invalid(format!("ssh {id}: {path} is no socket of an agent on the node")));
        }
        agents.insert(id.clone(), path.clone());
    }
    Ok(agents)
}
