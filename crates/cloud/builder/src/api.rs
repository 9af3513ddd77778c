//! `POST /images/build` of a node: an archive goes in, events come out, one JSON document a line.
//!
//! The archive has `build.json`, a [`Request`], and below `contexts/N/` the files of the contexts that it numbers. After the
//! event `archive` the rest of the answer is what was asked for as output. Whoever stops listening stops the build.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use dhow_image::api::{Answer, Credentials};
use dhow_image::{ArchiveFormat, Compression, Platform, PushOptions};
use futures::TryStreamExt;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};

use crate::build::Tree;
use crate::copy::{self, At};
use crate::error::{Error, Result, blocking};
use crate::event::{Event, Events};
use crate::plan::Wanted;
use crate::{Builder, ContextSource, Job};

/// The path below a node's server.
pub const PATH: &str = "/images/build";

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
    /// `os/arch[/variant]`; the node's if not said.
    pub platform: Option<String>,
    /// By name; the build's own has none.
    pub contexts: BTreeMap<String, Context>,
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
    /// On whose behalf, if not the caller's own.
    pub run: Option<crate::run::Run>,
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
        if request.uri().path() != PATH {
            return self.serve_runs(request).await;
        }
        if request.method() != http::Method::POST {
            return refusal(http::StatusCode::METHOD_NOT_ALLOWED, "a build is asked for by POST".to_owned());
        }
        let received = self.receive(request.into_body()).await;
        match received.and_then(|received| Ok((self.log_of(&received.request)?, received))) {
            Ok((log, received)) => answer(self.clone(), received, log),
            Err(error) => refusal(http::StatusCode::BAD_REQUEST, error.to_string()),
        }
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
        Ok(Received { request, folder })
    }
}

struct Received {
    request: Request,
    folder: tempfile::TempDir,
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
            Ok(None) => {}
            Ok(Some(output)) => {
                let _ = events.send(line(&Event::Archive));
                drop(events);
                if let Err(error) = builder.write(output, &bytes).await {
                    // An archive that could not be finished must not look finished.
                    let _ = bytes.send(Err(io::Error::other(error))).await;
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

/// An archive that is to be sent.
enum Archive {
    Files(Box<Tree>),
    Image { id: String, holder: String, names: Vec<String>, format: ArchiveFormat },
}

impl Builder {
    async fn fulfil(&self, received: Received, events: Events) -> Result<Option<Archive>> {
        let Received { mut request, folder } = received;
        self.gather(&mut request, folder.path(), &events).await?;
        let job = self.job(&request, folder.path()).await?;
        let tree = self.build(job, events.clone()).await?;
        blocking(move || folder.close().at("remove the context")).await?;
        let compression = request.compression.unwrap_or(match request.push {
            true => Compression::Gzip,
            false => Compression::Uncompressed,
        });
        match request.output {
            Output::Nothing if !request.push => return Ok(None),
            Output::Tar => return Ok(Some(Archive::Files(Box::new(tree)))),
            _ => {}
        }
        let archive = matches!(request.output, Output::Oci | Output::Docker);
        // A tenant's names are for the registry alone: here they could stand for somebody else's image.
        let nameless = archive && !request.push || request.run.is_some();
        let kept: &[String] = if nameless { &[] } else { &request.names };
        let step = events.begin("exporting to image");
        let image = self.image(&tree, kept, compression).await;
        step.end(&image);
        let image = image?;
        events.tell(Event::Built { id: image.id.clone(), names: request.names.clone() });
        if request.push {
            let holder = format!("{}{}", crate::build::HOLDER, uuid::Uuid::new_v4().simple());
            self.inner.config.store.hold(&image.id, &holder)?;
            let pushed = self.push(&request, &image.id, &events).await;
            self.inner.config.store.release(&holder)?;
            pushed?;
        }
        let format = match request.output {
            Output::Oci => ArchiveFormat::Oci,
            Output::Docker => ArchiveFormat::Docker,
            _ => return Ok(None),
        };
        let holder = format!("{}{}", crate::build::HOLDER, uuid::Uuid::new_v4().simple());
        self.inner.config.store.hold(&image.id, &holder)?;
        Ok(Some(Archive::Image { id: image.id, holder, names: request.names, format }))
    }

    async fn push(&self, request: &Request, id: &str, events: &Events) -> Result<()> {
        if request.names.is_empty() {
            return Err(Error::Invalid("an image is pushed under a name: give one".to_owned()));
        }
        for name in &request.names {
            let registry = dhow_image::Reference::parse(name)?.registry;
            let cluster = || request.run.as_ref()?.cluster(&self.inner.config.registries, &registry);
            let auth = request.credentials.get(&registry).cloned().map(Into::into).or_else(cluster);
            let auth = auth.unwrap_or(dhow_image::Auth::Anonymous);
            let options =
                PushOptions { auth, registries: Arc::clone(&self.inner.config.registries), chunk_bytes: None };
            let step = events.begin(format!("pushing {name}"));
            let pushed = self.inner.config.store.push(id, name, options, None).await.map_err(Error::from);
            step.end(&pushed);
            events.tell(Event::Pushed { name: name.clone(), digest: pushed?.to_string() });
        }
        Ok(())
    }

    async fn write(&self, archive: Archive, to: &mpsc::Sender<io::Result<Bytes>>) -> Result<()> {
        let (from, into) = tokio::io::duplex(256 << 10);
        let send = async {
            let mut pieces = ReaderStream::with_capacity(from, 128 << 10);
            while let Some(piece) = pieces.try_next().await.at("send the archive")? {
                if to.send(Ok(piece)).await.is_err() {
                    return Err(Error::Interrupted("nobody takes the archive".to_owned()));
                }
            }
            Ok(())
        };
        match archive {
            Archive::Files(tree) => {
                let view = self.view(&tree).await?;
                let bridge = SyncIoBridge::new(into);
                let writing = blocking(move || {
                    let mut bridge = io::BufWriter::with_capacity(128 << 10, bridge);
                    copy::export(&view, &mut bridge)?;
                    let mut bridge =
                        bridge.into_inner().map_err(io::IntoInnerError::into_error).at("write the files")?;
                    bridge.shutdown().at("write the files")
                });
                tokio::try_join!(send, writing).map(drop)
            }
            Archive::Image { id, holder, names, format } => {
                let store = &self.inner.config.store;
                let writing = async { Ok(store.export_as(&id, names, format, into).await?) };
                let done = tokio::try_join!(send, writing).map(drop);
                // Nobody asked for it to stay.
                store.release(&holder)?;
                done
            }
        }
    }

    async fn job(&self, request: &Request, folder: &Path) -> Result<Job> {
        let mut contexts = HashMap::new();
        for (name, context) in &request.contexts {
            let numbered = |number: &usize| folder.join("contexts").join(number.to_string());
            let source = match context {
                Context::Folder(number) => ContextSource::Folder(numbered(number)),
                Context::Layout(number) => ContextSource::Image(self.layout(name, &numbered(number)).await?),
                Context::Image(image) => ContextSource::Image(image.clone()),
            };
            contexts.insert(name.clone(), source);
        }
        let mut secrets = HashMap::new();
        for (id, text) in &request.secrets {
            let secret = base64::engine::general_purpose::STANDARD.decode(text);
            secrets.insert(id.clone(), secret.map_err(|error| Error::Invalid(format!("secret {id}: {error}")))?);
        }
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
        let platform = match &request.platform {
            None => Platform::host(),
            Some(text) => Platform::parse(text)
                .ok_or_else(|| Error::Invalid(format!("{text:?} is no platform; write os/arch[/variant]")))?,
        };
        let epoch = request.args.get("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty());
        let epoch = match (request.epoch, epoch) {
            (None, Some(text)) => {
                let wrong = |_| Error::Invalid(format!("SOURCE_DATE_EPOCH {text:?} is no number of seconds"));
                Some(text.parse().map_err(wrong)?)
            }
            (given, _) => given,
        };
        Ok(Job {
            dockerfile: request.dockerfile.clone(),
            file: request.file.clone(),
            wanted: Wanted {
                target: request.target.clone(),
                args: request.args.clone(),
                labels: request.labels.clone(),
                platform,
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
            tenant: request.run.as_ref().map(|run| run.tenant(&self.inner.config.sandboxes.limits)),
            auth: request.credentials.iter().map(|(name, given)| (name.clone(), given.clone().into())).collect(),
        })
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
