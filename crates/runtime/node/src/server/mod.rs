//! The node's own HTTPS server, for the API server: logs, exec, attach, port-forward, images and numbers. Other nodes get
//! layers of images, and nothing else.

mod forward;
mod logs;
mod metrics;
mod remote;
mod remote_spdy;
mod socket;
mod spdy;
mod summary;
mod system;
mod usage;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dhow_cri::Runtime;
use dhow_cri::runtime::{ContainerStatus, SandboxStatus};
use futures::TryStreamExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Pod;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::NodeSettings;
use crate::disk::Disks;
use crate::shared::ProbeKey;
pub use logs::tail as log_tail;
pub use usage::{Meter, NodeUsage};

const HANDSHAKE: Duration = Duration::from_secs(10);

type Body = UnsyncBoxBody<Bytes, std::io::Error>;
type Answer = Response<Body>;

/// An answer that is not the one asked for.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl From<dhow_cri::Error> for Refusal {
    fn from(error: dhow_cri::Error) -> Self {
        let status = match error {
            dhow_cri::Error::NotFound { .. } => StatusCode::NOT_FOUND,
            dhow_cri::Error::InvalidArgument(_) | dhow_cri::Error::FailedPrecondition(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

fn text(status: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(body(bytes));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    answer
}

fn json(value: &serde_json::Value) -> Answer {
    text(StatusCode::OK, "application/json", value.to_string())
}

/// What the routes need; one for all connections.
pub struct Server {
    pub node: String,
    pub root_dir: std::path::PathBuf,
    pub runtime: Arc<dyn Runtime>,
    /// The pods bound to this node.
    pub pods: Box<dyn Fn() -> Vec<Arc<Pod>> + Send + Sync>,
    pub image_api: Option<crate::ImageApi>,
    /// Bytes of images that went through so far.
    pub image_traffic: Box<dyn Fn() -> dhow_image::Traffic + Send + Sync>,
    /// Checks of probes so far.
    pub probes: Box<dyn Fn() -> BTreeMap<ProbeKey, u64> + Send + Sync>,
    pub settings: NodeSettings,
    pub meter: usage::Meter,
    /// What drivers tell of the volumes of a pod, by its uid.
    pub volumes: VolumeStats,
    /// What pods take of the disk, as far as it is known; see [`crate::disk::DiskMeter::known`].
    pub disks: Box<dyn Fn() -> Disks + Send + Sync>,
}

pub type VolumeStats = Box<dyn Fn(String) -> BoxFuture<'static, Vec<serde_json::Value>> + Send + Sync>;

/// The pods in the shape of the API.
fn pod_list(pods: &[Arc<Pod>]) -> serde_json::Value {
    let items: Vec<_> = pods.iter().filter_map(|pod| serde_json::to_value(pod.as_ref()).ok()).collect();
    serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// The API server, or an administrator: may do everything.
    Master,
    /// Another node: may have layers of images.
    Node,
}

impl Caller {
    /// By the client's certificate, which the cluster's authority signed.
    fn of(certificate: Option<&[u8]>) -> Result<Self, Refusal> {
        let Some(der) = certificate else {
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "a client certificate is required"));
        };
        let parsed = x509_parser::parse_x509_certificate(der);
        let (_, certificate) =
            parsed.map_err(|_| Refusal::new(StatusCode::FORBIDDEN, "unreadable client certificate"))?;
        let subject = certificate.subject();
        let in_group = |wanted| subject.iter_organization().any(|group| group.as_str() == Ok(wanted));
        let mut names = subject.iter_common_name();
        let name = names.next().and_then(|name| name.as_str().ok()).filter(|_| names.next().is_none());
        if name == Some("dhow-apiserver") || in_group("system:masters") {
            return Ok(Self::Master);
        }
        if name.is_some_and(|name| name.starts_with("system:node:")) && in_group("system:nodes") {
            return Ok(Self::Node);
        }
        Err(Refusal::new(StatusCode::FORBIDDEN, "only the API server and system:masters may call a node"))
    }

    fn may(self, method: &Method, path: &[&str]) -> Result<(), Refusal> {
        match (self, path) {
            (Self::Master, _) => Ok(()),
            (Self::Node, ["images", "layers", _]) if method == Method::GET => Ok(()),
            (Self::Node, _) => Err(Refusal::new(StatusCode::FORBIDDEN, "other nodes may have layers of images only")),
        }
    }
}

/// Accepts until `shutdown`, then lets go of every connection; upgraded ones end with their streams.
pub async fn serve(
    listener: TcpListener,
    tls: &rustls::ServerConfig,
    server: Arc<Server>,
    shutdown: CancellationToken,
) {
    // Upgrades exist in HTTP/1.1 only, so nothing else is offered.
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = connection(stream, peer, acceptor.clone(), Arc::clone(&server));
                let shutdown = shutdown.clone();
                tokio::spawn(async move { shutdown.run_until_cancelled(connection).await });
            }
            Err(error) => {
                // Out of file descriptors, or a peer that left early: neither ends the server.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor, server: Arc<Server>) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "handshake failed"),
        Err(_) => return tracing::debug!(%peer, "handshake took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|c| c.to_vec());
    let service =
        service_fn(move |request: Request<Incoming>| {
            let (server, caller) = (Arc::clone(&server), Caller::of(certificate.as_deref()));
            async move {
                let answer = match caller {
                    Ok(caller) => server.route(caller, request).await,
                    Err(refusal) => Err(refusal),
                };
                Ok::<_, Infallible>(answer.unwrap_or_else(|refusal| {
                    text(refusal.status, "text/plain; charset=utf-8", refusal.message + "\n")
                }))
            }
        });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

impl Server {
    /// Every route of the node.
    async fn route(&self, caller: Caller, mut request: Request<Incoming>) -> Result<Answer, Refusal> {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default();
        let query: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        caller.may(request.method(), &parts)?;
        // Exec and its kin are GET from browsers and kubectl's WebSocket, POST from older callers.
        let method = match request.method() {
            &Method::POST if matches!(parts[0], "exec" | "attach" | "portForward") => Method::GET,
            method => method.clone(),
        };
        match (method, parts.as_slice()) {
            (Method::GET, ["healthz"]) => Ok(text(StatusCode::OK, "text/plain; charset=utf-8", "ok")),
            (Method::GET, ["pods" | "runningpods"]) => Ok(json(&pod_list(&(self.pods)()))),
            (Method::GET, ["metrics", rest @ ..]) => self.metrics(rest).await,
            (Method::GET, ["configz"]) => Ok(json(&serde_json::json!({"kubeletconfig": self.settings.shown()}))),
            (Method::GET, ["stats", "summary"]) => Ok(json(&self.summary().await?)),
            (Method::POST, ["images", "import"]) => self.import(request).await,
            (_, ["images", ..]) if let Some(api) = &self.image_api => Ok(api(request).await),
            (Method::GET, ["images"]) => Ok(json(&serde_json::json!({"images": self.runtime.list_images().await?}))),
            (_, ["images", ..]) => Err(Refusal::new(
                StatusCode::NOT_IMPLEMENTED,
                "this node's runtime keeps its images itself; use its own tools",
            )),
            (Method::GET, ["containerLogs", ns, pod, container]) => {
                let lines = self.log_lines(ns, pod, container, &query).await?;
                if request.headers().contains_key(header::UPGRADE) {
                    let handshake = socket::Handshake::accept(&mut request, &[logs::SOCKET])?;
                    return Ok(handshake.run(move |to, from| logs::serve(lines, to, from)));
                }
                Ok(logs::answer(lines))
            }
            (Method::GET | Method::POST, ["exec", ns, pod, container]) => {
                let asked = remote::request(&query);
                if asked.command.is_empty() {
                    return Err(Refusal::bad_request("command is required"));
                }
                let id = self.container(ns, pod, container, false).await?.1.id;
                let way = remote::Way::of(&mut request)?;
                let (runtime, wanted) = (Arc::clone(&self.runtime), asked.clone());
                way.run(asked, async move { runtime.exec(&id, wanted).await }).await
            }
            (Method::GET | Method::POST, ["attach", ns, pod, container]) => {
                let asked = remote::request(&query);
                let id = self.container(ns, pod, container, false).await?.1.id;
                let way = remote::Way::of(&mut request)?;
                let runtime = Arc::clone(&self.runtime);
                let stdin = asked.stdin;
                way.run(asked, async move { runtime.attach(&id, stdin).await }).await
            }
            (Method::GET | Method::POST, ["portForward", ns, pod]) => {
                let sandbox = self.sandbox(ns, pod).await?.id;
                let runtime = Arc::clone(&self.runtime);
                let (spdy_runtime, spdy_sandbox) = (Arc::clone(&runtime), sandbox.clone());
                if let Some(upgrade) = socket::Spdy::accept(&mut request, spdy::PROTOCOL)? {
                    return Ok(upgrade.run(|io| async move {
                        if let Err(error) = spdy::serve(spdy_runtime, spdy_sandbox, io).await {
                            tracing::debug!(%error, "port-forward ended");
                        }
                    }));
                }
                let handshake = socket::Handshake::accept(&mut request, &forward::PROTOCOLS)?;
                if handshake.protocol == spdy::TUNNEL {
                    return Ok(handshake.run(move |to, from| spdy::tunnel(runtime, sandbox, to, from)));
                }
                // Only the channel protocol names its ports beforehand; SPDY's streams bring theirs.
                let ports = forward::ports(&query).map_err(Refusal::bad_request)?;
                Ok(handshake.run(move |to, from| forward::serve(runtime, sandbox, ports, to, from)))
            }
            _ => Err(Refusal::not_found(format!("no such path: {path}"))),
        }
    }

    async fn metrics(&self, path: &[&str]) -> Result<Answer, Refusal> {
        let page = |page: String| Ok(text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page));
        if path == ["probes"] {
            return page(metrics::probes(&(self.probes)()));
        }
        let usage = usage::now(self.runtime.as_ref()).await?;
        match path {
            [] => {
                // A runtime that keeps its images itself does not say what it fetches.
                let images = self.image_api.as_ref().map(|_| metrics::images((self.image_traffic)()));
                let agent = metrics::agent(&self.node, &usage);
                page(agent + &images.unwrap_or_default() + &metrics::claims(&self.claims().await))
            }
            ["resource"] => page(metrics::resource(&usage)),
            ["cadvisor"] => page(metrics::cadvisor(&usage)),
            _ => Err(Refusal::not_found(format!("no such metrics: {}", path.join("/")))),
        }
    }

    /// What there is in the volumes of claims, in the words of the summary.
    async fn claims(&self) -> Vec<serde_json::Value> {
        let (disks, mut all) = ((self.disks)(), Vec::new());
        for pod in (self.pods)() {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let own = disks.get(crate::disk::uid(&pod)).map(|disk| summary::volumes(disk, namespace));
            all.extend(own.unwrap_or_default());
            all.extend((self.volumes)(pod.metadata.uid.clone().unwrap_or_default()).await);
        }
        all.retain(|volume| volume["pvcRef"].is_object());
        all
    }

    /// The newest sandbox of a pod.
    async fn sandbox(&self, ns: &str, pod: &str) -> Result<SandboxStatus, Refusal> {
        let sandboxes = self.runtime.list_sandboxes().await?;
        let found = sandboxes.into_iter().filter(|s| s.pod.namespace == ns && s.pod.name == pod);
        let newest = found.max_by_key(|s| (s.created_at, s.pod.attempt));
        newest.ok_or_else(|| Refusal::not_found(format!("pod \"{pod}_{ns}\" not found")))
    }

    /// The newest run of a container, or the one before it, with the sandbox it ran in.
    async fn container(
        &self,
        ns: &str,
        pod: &str,
        name: &str,
        previous: bool,
    ) -> Result<(SandboxStatus, ContainerStatus), Refusal> {
        let uid = self.sandbox(ns, pod).await?.pod.uid;
        let sandboxes = self.runtime.list_sandboxes().await?;
        let mut runs: Vec<_> = self.runtime.list_containers().await?;
        runs.retain(|c| c.name == name);
        let owner = |c: &ContainerStatus| sandboxes.iter().find(|s| s.id == c.sandbox_id && s.pod.uid == uid).cloned();
        let mut runs: Vec<_> = runs.into_iter().filter_map(|c| Some((owner(&c)?, c))).collect();
        runs.sort_by_key(|(_, c)| std::cmp::Reverse((c.attempt, c.created_at)));
        let what = if previous { "previous terminated container" } else { "container" };
        let mut runs = runs.into_iter().skip(usize::from(previous));
        runs.next().ok_or_else(|| Refusal::bad_request(format!("{what} {name:?} in pod {pod:?} not found")))
    }

    async fn log_lines(
        &self,
        ns: &str,
        pod: &str,
        name: &str,
        query: &[(String, String)],
    ) -> Result<logs::Lines, Refusal> {
        let options = logs::LogOptions::parse(query, jiff::Timestamp::now()).map_err(Refusal::bad_request)?;
        let (sandbox, container) = self.container(ns, pod, name, options.previous).await?;
        let path = crate::config::log_directory(&self.root_dir, &sandbox.pod).join(&container.log_path);
        let stream = logs::LogStream { runtime: Arc::clone(&self.runtime), container: container.id, path, options };
        stream.start().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Refusal::not_found(format!("container {name:?} has no log")),
            _ => Refusal::internal(format!("read log of container {name:?}: {error}")),
        })
    }

    async fn summary(&self) -> Result<serde_json::Value, Refusal> {
        // What is to be looked at is, while processors are measured.
        drop((self.disks)());
        let usage = self.meter.measure(self.runtime.as_ref(), self.settings.cgroup_root.as_deref()).await?;
        // A runtime that does not tell leaves it out.
        let images = self.runtime.image_fs_info().await.ok();
        let mut all = summary::of(&self.node, &self.root_dir, images.as_ref(), &usage, &(self.disks)());
        for pod in all["pods"].as_array_mut().into_iter().flatten() {
            let uid = pod["podRef"]["uid"].as_str().unwrap_or_default().to_owned();
            if let Some(volumes) = pod["volume"].as_array_mut() {
                volumes.extend((self.volumes)(uid).await);
            }
        }
        Ok(all)
    }

    async fn import(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let data = request.into_body().into_data_stream().map_err(std::io::Error::other);
        let reader = tokio_util::io::StreamReader::new(data);
        let images = self.runtime.import_image(Box::new(reader)).await?;
        Ok(json(&serde_json::json!({"images": images})))
    }
}

#[cfg(test)]
mod tests;
