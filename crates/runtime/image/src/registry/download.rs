//! One file by HTTP, for what is no registry: through the same proxies, with the same trust.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use dhow_base::connect::{Connector, TlsOptions, tls_config};
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::client::{AGENT, resolve};
use crate::{Error, Result};

const MAX_REDIRECTS: usize = 10;
/// Longest wait for the next bytes.
const SILENCE: Duration = Duration::from_secs(60);

/// What a server said about a file.
#[derive(Clone, Debug, Default)]
pub struct Downloaded {
    pub bytes: u64,
    /// `Last-Modified`, as it stands there.
    pub modified: Option<String>,
    /// The name it would be saved under, if the server says so.
    pub name: Option<String>,
}

/// How a file is fetched.
#[derive(Clone, Debug, Default)]
pub struct DownloadOptions {
    /// Of the header `Authorization`, for the host that is named and no other.
    pub authorization: Option<String>,
    /// For people who do not run this machine: nothing of the machine itself is fetched.
    pub guarded: bool,
    /// Bytes above which it is given up.
    pub most: Option<u64>,
    /// PEM of authorities that are believed as well.
    pub authorities: Option<String>,
}

/// Fetches `url` into `to`.
pub async fn download(url: &str, options: &DownloadOptions, mut to: impl Write) -> Result<Downloaded> {
    let tls = TlsOptions { ca_pem: options.authorities.iter().cloned().collect(), ..TlsOptions::default() };
    let connector = Connector::new(tls_config(&tls)?, None);
    let connector = if options.guarded { connector.guarded() } else { connector };
    let client = Client::builder(TokioExecutor::new()).build(connector);
    // What is signed, and a password, are nobody else's to read.
    let shown = shown(url);
    let failed = |why: String| Error::io(format!("fetch {shown}"), std::io::Error::other(why));
    let refused = |status: u16, message: String| failed(format!("{status} {message}"));
    let transport = |source: Box<dyn std::error::Error + Send + Sync>| {
        Error::io(format!("fetch {shown}"), std::io::Error::other(source))
    };
    let silent = |have: u64| {
        let host = shown.clone();
        Error::Stalled { host, what: shown.clone(), have, size: have, silence: SILENCE }
    };
    let mut at: Uri = url.parse().map_err(|_| refused(400, "malformed address".to_owned()))?;
    let asked = at.authority().cloned();
    for _ in 0..MAX_REDIRECTS {
        let mut request = Request::get(at.clone()).header(header::USER_AGENT, AGENT);
        if let Some(proof) = options.authorization.as_ref().filter(|_| at.authority() == asked.as_ref()) {
            request = request.header(header::AUTHORIZATION, proof);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|e| transport(e.into()))?;
        let answer = tokio::time::timeout(SILENCE, client.request(request)).await.map_err(|_| silent(0))?;
        let answer = answer.map_err(|e| transport(e.into()))?;
        let text = |name: header::HeaderName| answer.headers().get(name)?.to_str().ok().map(str::to_owned);
        let status = answer.status();
        if status.is_redirection()
            && let Some(location) = text(header::LOCATION)
        {
            let next =
                resolve(&at, &location).map_err(|_| refused(status.as_u16(), format!("redirect to {location:?}")))?;
            if at.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(refused(status.as_u16(), "redirect from HTTPS to plain HTTP refused".to_owned()));
            }
            at = next;
            continue;
        }
        if !status.is_success() {
            return Err(refused(status.as_u16(), status.canonical_reason().unwrap_or_default().to_owned()));
        }
        let disposition = text(header::CONTENT_DISPOSITION).unwrap_or_default();
        let name = disposition.split(';').find_map(|part| part.trim().strip_prefix("filename="));
        let mut done = Downloaded {
            bytes: 0,
            modified: text(header::LAST_MODIFIED),
            name: name.map(|name| name.trim_matches('"').to_owned()),
        };
        let mut body = answer.into_body();
        loop {
            let frame = tokio::time::timeout(SILENCE, body.frame()).await.map_err(|_| silent(done.bytes))?;
            let Some(frame) = frame else { return Ok(done) };
            let Ok(data) = frame.map_err(|e| transport(e.into()))?.into_data() else { continue };
            to.write_all(&data).map_err(|e| Error::io(format!("write {shown}"), e))?;
            done.bytes += data.len() as u64;
            if options.most.is_some_and(|most| done.bytes > most) {
                return Err(failed(format!("larger than {} bytes", options.most.unwrap_or_default())));
            }
        }
    }
    Err(refused(310, "too many redirects".to_owned()))
}

/// An address without its query and whoever it names as a user.
fn shown(url: &str) -> String {
    let plain = url.split('?').next().unwrap_or_default();
    match plain.split_once("://").map(|(scheme, rest)| (scheme, rest.split_once('@'))) {
        Some((scheme, Some((user, rest)))) if !user.contains('/') => format!("{scheme}://{rest}"),
        _ => plain.to_owned(),
    }
}
