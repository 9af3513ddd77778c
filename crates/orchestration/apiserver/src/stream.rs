//! Byte streams: logs, exec, attach and port-forward to the node agent, and the proxies to nodes, pods and services.
//!
//! The server checks who may, finds the other end, and then only copies bytes: what is said on the stream is between the
//! client and that end.

use std::net::IpAddr;
use std::sync::Arc;

use dhow_api::registry::{self, Subresource};
use dhow_api::{Status, meta};
use dhow_client::Body;
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::ApiServer;
use crate::audit::Trail;
use crate::info::ResourceTarget;
use crate::proxy::{self, Backend};

/// The other end's address and the path to ask it for.
#[derive(Debug, Clone)]
pub struct Destination {
    host: String,
    port: u16,
    path: String,
    end: End,
}

/// Who is at the other end.
#[derive(Debug, Clone)]
enum End {
    /// The agent of this node.
    Agent(String),
    /// A program in a pod, seen through the proxy whose path is `prefix`.
    Program { tls: bool, prefix: String },
}

pub fn is_streaming(target: &ResourceTarget) -> bool {
    is_session(target)
        || matches!(target.subresource, Some(Subresource::Log))
        || matches!(target.kind.kind, "Node" | "Pod" | "Service") && target.subresource == Some(Subresource::Proxy)
}

/// Whether the stream runs something in a pod, as opposed to reading from it.
pub fn is_session(target: &ResourceTarget) -> bool {
    matches!(target.subresource, Some(Subresource::Exec | Subresource::Attach | Subresource::PortForward))
}

/// Whether admission is asked before the stream opens.
pub fn is_connection(target: &ResourceTarget) -> bool {
    is_session(target) || target.subresource == Some(Subresource::Proxy)
}

pub async fn destination(server: &ApiServer, target: &ResourceTarget, uri: &Uri) -> Result<Destination, Status> {
    let name = target.name.as_deref().unwrap_or_default();
    if target.kind.kind == "Node" {
        return node_agent(server, name, format!("/{}", target.rest), uri.query()).await;
    }
    if target.subresource == Some(Subresource::Proxy) {
        let Backend { host, port, tls, path, prefix } = proxy::backend(server, target, uri).await?;
        return Ok(Destination { host, port, path, end: End::Program { tls, prefix } });
    }
    let namespace = target.namespace.as_deref().unwrap_or_default();
    let pod = server.store.get(&target.kind, Some(namespace), name).await?.value()?;
    let node = meta::text(&pod, &["spec", "nodeName"]);
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let query = crate::info::Query::parse(uri.query().unwrap_or_default());
    let container = || container_of(&pod, query.get("container"));
    let path = match target.subresource {
        Some(Subresource::Log) => format!("/containerLogs/{namespace}/{name}/{}", container()?),
        Some(Subresource::Exec) => format!("/exec/{namespace}/{name}/{}", container()?),
        Some(Subresource::Attach) => format!("/attach/{namespace}/{name}/{}", container()?),
        _ => format!("/portForward/{namespace}/{name}"),
    };
    node_agent(server, node, path, uri.query()).await
}

/// The container a request means: the one named, else the default one, else the only one.
fn container_of(pod: &serde_json::Value, wanted: Option<&str>) -> Result<String, Status> {
    let name = meta::name(pod);
    let mut all = Vec::new();
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        all.extend(meta::items(pod, &["spec", list]).iter().filter_map(|container| container["name"].as_str()));
    }
    let annotation = meta::text(pod, &["metadata", "annotations", "kubectl.kubernetes.io/default-container"]);
    match wanted {
        Some(wanted) if all.contains(&wanted) => Ok(wanted.into()),
        Some(wanted) => Err(Status::bad_request(format!("container {wanted} is not valid for pod {name}"))),
        None if all.contains(&annotation) => Ok(annotation.into()),
        None => match meta::items(pod, &["spec", "containers"]) {
            [only] => Ok(only["name"].as_str().unwrap_or_default().into()),
            _ => Err(Status::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                all.join(" ")
            ))),
        },
    }
}

async fn node_agent(server: &ApiServer, name: &str, path: String, query: Option<&str>) -> Result<Destination, Status> {
    let kind = registry::builtin().get("", "v1", "nodes").ok_or_else(Status::no_such_resource)?;
    let node = server.store.get(kind, None, name).await?.value()?;
    let address = meta::items(&node, &["status", "addresses"])
        .iter()
        .find(|address| address["type"] == "InternalIP")
        .and_then(|address| address["address"].as_str())
        .ok_or_else(|| Status::service_unavailable(format!("node {name} has no address yet")))?;
    let port = meta::int(&node, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]);
    let port = u16::try_from(port).ok().filter(|port| *port > 0).unwrap_or(10250);
    let path = match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    Ok(Destination { host: address.into(), port, path, end: End::Agent(name.into()) })
}

/// Passes a request on to the node agent; after a protocol switch, copies bytes both ways until either side ends.
pub async fn forward<B>(
    server: &Arc<ApiServer>,
    destination: Destination,
    request: Request<B>,
    trail: Option<Trail>,
) -> Result<Response<Body>, Status>
where
    B: hyper::body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let answer = pass_on(server, destination, request, trail.clone()).await;
    let Some(trail) = trail else { return answer };
    match answer {
        Ok(switched) if switched.status() == StatusCode::SWITCHING_PROTOCOLS => Ok(switched),
        Ok(response) => Ok(trail.answered(response).await),
        Err(status) => {
            trail.failed(&status);
            Err(status)
        }
    }
}

impl Destination {
    fn gone(&self, error: &dyn std::fmt::Display) -> Status {
        let Self { host, port, end, .. } = self;
        Status::service_unavailable(match end {
            End::Agent(node) => format!("error dialing backend: node {node} at {host}:{port}: {error}"),
            End::Program { .. } => format!("error trying to reach service: {host}:{port}: {error}"),
        })
    }
}

/// A connection to the node agent for one request.
async fn connect<B>(server: &ApiServer, destination: &Destination) -> Result<SendRequest<B>, Status>
where
    B: hyper::body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let gone = |error: &dyn std::fmt::Display| destination.gone(error);
    let Destination { host, port, .. } = destination;
    let tcp = TcpStream::connect((host.as_str(), *port)).await.map_err(|error| gone(&error))?;
    // The agent's certificate carries its addresses; the cluster's CA signed it.
    let name = host.parse::<IpAddr>().map(|ip| ServerName::IpAddress(ip.into())).map_err(|error| gone(&error))?;
    let connector = match &destination.end {
        End::Program { tls: false, .. } => return speak(tcp).await.map_err(|error| gone(&error)),
        // Nobody vouches for its certificate, as upstream has it: what the proxy gives is reach, not trust.
        End::Program { tls: true, .. } => &dhow_base::tls::anonymous_unverified().map_err(|error| gone(&error))?.into(),
        End::Agent(_) => &server.node_tls,
    };
    let tls = connector.connect(name, tcp).await.map_err(|error| gone(&error))?;
    speak(tls).await.map_err(|error| gone(&error))
}

/// Speaks HTTP/1.1 on a connection.
async fn speak<B, S>(stream: S) -> hyper::Result<SendRequest<B>>
where
    B: hyper::body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "stream to the other end");
        }
    });
    Ok(sender)
}

/// Largest answer of a node to the server itself, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// Asks a node agent for the server's own sake, and reads the whole answer.
pub async fn ask(server: &ApiServer, node: &str, path: &str) -> Result<bytes::Bytes, Status> {
    let destination = node_agent(server, node, path.to_owned(), None).await?;
    let gone = |error: &dyn std::fmt::Display| destination.gone(error);
    let mut sender = connect(server, &destination).await?;
    let host = format!("{}:{}", destination.host, destination.port);
    let request = Request::get(path).header(header::HOST, host).body(http_body_util::Empty::<bytes::Bytes>::new());
    let mut answer = sender.send_request(request.map_err(|error| gone(&error))?).await.map_err(|error| gone(&error))?;
    if let Some(refusal) = refusal(&mut answer).await {
        return Err(refusal);
    }
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|error| gone(&error))?;
    Ok(body.to_bytes())
}

async fn pass_on<B>(
    server: &Arc<ApiServer>,
    destination: Destination,
    mut request: Request<B>,
    trail: Option<Trail>,
) -> Result<Response<Body>, Status>
where
    B: hyper::body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let gone = |error: &dyn std::fmt::Display| destination.gone(error);
    let Destination { host, port, path, end } = &destination;
    if path.is_empty() {
        // So that relative links of the page lead to what is below it.
        return moved(request.uri()).map_err(|error| gone(&error));
    }
    let mut sender = connect(server, &destination).await?;
    let upgrading = request.headers().contains_key(header::UPGRADE);
    let client = upgrading.then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut outgoing = Request::new(body);
    let has_body = parts.method != http::Method::HEAD;
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = path.parse().map_err(|error| Status::bad_request(format!("stream path: {error}")))?;
    *outgoing.headers_mut() = passed_on(&parts.headers, upgrading);
    outgoing
        .headers_mut()
        .insert(header::HOST, header::HeaderValue::try_from(authority(host, *port)).map_err(|error| gone(&error))?);
    if let End::Program { prefix, .. } = end {
        proxy::forwarded(outgoing.headers_mut(), &parts.headers, path, prefix);
    }
    let mut answer = sender.send_request(outgoing).await.map_err(|error| gone(&error))?;
    match end {
        End::Agent(_) => {
            if let Some(refusal) = refusal(&mut answer).await {
                return Err(refusal);
            }
        }
        End::Program { prefix, .. } => {
            let status = answer.status();
            proxy::location(status, answer.headers_mut(), &authority(host, *port), prefix);
            if proxy::is_page(answer.headers()) && has_body {
                return page(answer, prefix).await.map_err(|error| gone(&error));
            }
        }
    }
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(|body| {
            body.map_err(|error| dhow_client::Error::connection("the answer broke off", error)).boxed_unsync()
        }));
    }
    let Some(client) = client else {
        return Err(gone(&"it switches to a protocol that was not asked for"));
    };
    Ok(switch(client, answer, trail))
}

/// `host:port`, an IPv6 address in its brackets.
fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Sends a browser to the same path with a slash at its end.
fn moved(uri: &Uri) -> http::Result<Response<Body>> {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Response::builder()
        .status(StatusCode::MOVED_PERMANENTLY)
        .header(header::LOCATION, format!("{}/{query}", uri.path()))
        .body(dhow_client::full(bytes::Bytes::new()))
}

/// A page with its links led through the proxy, if it is not too large for that and in UTF-8.
async fn page(
    answer: Response<Incoming>,
    prefix: &str,
) -> Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>> {
    let (mut parts, body) = answer.into_parts();
    let size = hyper::body::Body::size_hint(&body).upper();
    if size.is_some_and(|size| size > proxy::MAX_PAGE as u64) {
        let broken = |error| dhow_client::Error::connection("the answer broke off", error);
        return Ok(Response::from_parts(parts, body.map_err(broken).boxed_unsync()));
    }
    let bytes = Limited::new(body, proxy::MAX_PAGE).collect().await?.to_bytes();
    let bytes = match std::str::from_utf8(&bytes) {
        Ok(text) => proxy::page(text, prefix).into(),
        Err(_) => bytes,
    };
    parts.headers.remove(header::TRANSFER_ENCODING);
    parts.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    Ok(Response::from_parts(parts, dhow_client::full(bytes)))
}

/// Copies bytes both ways between a client and whoever switched protocols with it, until either ends. A session is
/// complete when both ends have been copied: so long its trail is open.
pub fn switch(client: OnUpgrade, mut answer: Response<Incoming>, trail: Option<Trail>) -> Response<Body> {
    let backend = hyper::upgrade::on(&mut answer);
    let open = trail.map(|trail| {
        trail.status(StatusCode::SWITCHING_PROTOCOLS.as_u16(), None);
        trail.started()
    });
    tokio::spawn(async move {
        let _open = open;
        let (Ok(client), Ok(backend)) = tokio::join!(client, backend) else { return };
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut backend).await {
            tracing::debug!(%error, "stream ended");
        }
    });
    let mut response = Response::new(dhow_client::full(bytes::Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    response
}

/// Largest text of a refusal that is passed on, in bytes.
const MAX_REFUSAL: usize = 64 << 10;

/// The agent's plain-text refusal as the `Status` that clients understand.
async fn refusal(answer: &mut Response<Incoming>) -> Option<Status> {
    let code = answer.status();
    let plain =
        answer.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !plain || !(code.is_client_error() || code.is_server_error()) {
        return None;
    }
    let text = Limited::new(answer.body_mut(), MAX_REFUSAL).collect().await.ok()?.to_bytes();
    Some(Status::of_backend(code.as_u16(), String::from_utf8_lossy(&text).trim()))
}

/// The client's headers without its credentials and without those of its own connection.
fn passed_on(headers: &HeaderMap, upgrading: bool) -> HeaderMap {
    let mut kept = headers.clone();
    for name in [header::AUTHORIZATION, header::HOST, header::COOKIE, header::PROXY_AUTHORIZATION] {
        kept.remove(name);
    }
    let impersonation: Vec<_> = kept.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    impersonation.iter().for_each(|name| drop(kept.remove(name)));
    if !upgrading {
        kept.remove(header::CONNECTION);
        kept.remove(header::TRANSFER_ENCODING);
    }
    kept
}
