//! A client of the OCI distribution protocol: manifests and blobs from a registry or its mirrors.

mod auth;
mod client;
mod cluster;
mod config;
mod download;
mod hosts;
mod nodes;
mod peer;
mod push;
mod remote;
mod traffic;

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;

pub(crate) use self::client::Session;
use self::client::{Ask, read_body, text_header};
pub use self::cluster::{CLUSTER_AUDIENCE, ClusterRegistry};
pub(crate) use self::config::Endpoint;
pub use self::config::{HostConfig, Mirror, Registries, RegistriesConfig};
pub use self::download::{DownloadOptions, Downloaded, download};
pub use self::nodes::{Candidates, NodePeers};
pub(crate) use self::nodes::{Nodes, PATIENCE as NODES_PATIENCE};
pub(crate) use self::peer::Content;
pub use self::peer::{Opener, Peer, PeerOptions, Pushed};
pub(crate) use self::push::{Source, Upload};
pub use self::remote::{Remote, RemoteBlob, RemoteManifest};
pub use self::traffic::Traffic;
use crate::credentials::Auth;
use crate::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, DOCKER_SCHEMA1, MAX_MANIFEST_BYTES, OCI_INDEX, OCI_MANIFEST};
use crate::{Digest, Error, Reference, Result};

/// The places a repository is asked for at, in order.
pub(crate) struct Registry {
    sessions: Vec<Session>,
    /// They may have layers.
    pub nodes: Option<Box<Nodes>>,
}

/// How long to wait for so many more bytes of a transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub time: Duration,
    pub bytes: u64,
}

/// A manifest endpoint's answer, verified against the digest asked for or promised.
pub(crate) struct FetchedManifest {
    pub bytes: Vec<u8>,
    pub media_type: String,
    pub digest: Digest,
}

impl Registry {
    pub async fn connect(registries: &Registries, reference: &Reference, auth: &Auth) -> Result<Self> {
        let mut sessions = Vec::new();
        for endpoint in registries.endpoints(reference)?.into_iter().filter(|e| e.pull || e.resolve) {
            sessions.push(Session::open(registries, endpoint, auth, "pull").await?);
        }
        if sessions.is_empty() {
            return Err(Error::Config(format!("no host is configured to pull {} from", reference.registry)));
        }
        Ok(Registry { sessions, nodes: registries.nodes(reference).map(Box::new) })
    }

    /// From the first place that has it. A mirror that fails is no reason to fail; the last place's word counts.
    pub async fn manifest(&self, target: &str) -> Result<FetchedManifest> {
        let by_digest = Digest::parse(target).is_ok();
        let mut last = None;
        for session in self.sessions.iter().filter(|s| if by_digest { s.endpoint.pull } else { s.endpoint.resolve }) {
            match session.manifest(target).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => {
                    tracing::debug!(host = session.endpoint.host, target, error = error.chain(), "no manifest here");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| Error::Config("no configured host may resolve names".to_owned())))
    }

    /// Those that blobs may be pulled from, in order; those that could not be reached lately come last.
    pub fn sources(&self) -> impl Iterator<Item = &Session> {
        let may = || self.sessions.iter().filter(|session| session.endpoint.pull);
        may().filter(|session| !session.is_down()).chain(may().filter(|session| session.is_down()))
    }
}

impl Session {
    pub async fn manifest(&self, target: &str) -> Result<FetchedManifest> {
        let url = self.url(&format!("manifests/{target}"));
        // Schema 1 is asked for as well, so that the answer names what is wrong instead of "not found".
        let accept = [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST, DOCKER_SCHEMA1].join(", ");
        let response = self.request(&Ask { accept: Some(accept), ..Ask::new(Method::GET, &url) }).await?;
        let media_type = text_header(&response, CONTENT_TYPE.as_str()).unwrap_or_default();
        let promised = text_header(&response, "docker-content-digest");
        let bytes = read_body(&url, response, MAX_MANIFEST_BYTES, self.silence).await?;
        let digest = match (Digest::parse(target), promised.as_deref().map(Digest::parse)) {
            (Ok(asked), _) => asked,
            (Err(_), Some(Ok(promised))) => promised,
            _ => Digest::of(&bytes),
        };
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        // A schema 1 manifest's digest leaves out its signature; it is refused anyway, and by name.
        if !media_type.starts_with("application/vnd.docker.distribution.manifest.v1") {
            digest.verify(&url, &bytes)?;
        }
        Ok(FetchedManifest { bytes, media_type, digest })
    }

    /// A blob's bytes from `offset` on. The flag says whether the registry honoured the offset.
    pub async fn blob(&self, url: &str, offset: u64) -> Result<(Response<Incoming>, bool)> {
        let ask = Ask {
            offset: (offset > 0).then_some(offset),
            accepted: &[StatusCode::RANGE_NOT_SATISFIABLE],
            ..Ask::new(Method::GET, url)
        };
        let mut response = self.request(&ask).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            response = self.request(&Ask::new(Method::GET, url)).await?;
        }
        let resumed = resumed_at(url, &response, offset)?;
        Ok((response, resumed))
    }
}

/// Whether an answer honours the offset that was asked for; another one is an error.
fn resumed_at(url: &str, response: &Response<Incoming>, offset: u64) -> Result<bool> {
    let from = text_header(response, "content-range")
        .and_then(|r| r.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse::<u64>().ok());
    let partial = response.status() == StatusCode::PARTIAL_CONTENT;
    if partial && from != Some(offset) {
        let message = "answered with another range than asked for".to_owned();
        return Err(Error::Registry { url: url.to_owned(), status: 206, message });
    }
    Ok(partial)
}

fn bare_host(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if !host.ends_with(']') => &host[..colon],
        _ => host,
    }
}
