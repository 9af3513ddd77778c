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

/// Fetches `url` into `to`.
pub async fn download(url: &str, mut to: impl Write) -> Result<Downloaded> {
    let client = Client::builder(TokioExecutor::new()).build(Connector::new(tls_config(&TlsOptions::default())?, None));
    let failed = |why: String| Error::io(format!("fetch {url}"), std::io::Error::other(why));
    let refused = |status: u16, message: String| failed(format!("{status} {message}"));
    let transport = |source: Box<dyn std::error::Error + Send + Sync>| {
        Error::io(format!("fetch {url}"), std::io::Error::other(source))
    };
    let silent = |have: u64| {
        let host = url.to_owned();
        Error::Stalled { host, what: url.to_owned(), have, size: have, silence: SILENCE }
    };
    let mut at: Uri = url.parse().map_err(|_| refused(400, "malformed address".to_owned()))?;
    for _ in 0..MAX_REDIRECTS {
        let request = Request::get(at.clone())
            .header(header::USER_AGENT, AGENT)
            .body(Empty::<Bytes>::new())
            .map_err(|e| transport(e.into()))?;
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
            to.write_all(&data).map_err(|e| Error::io(format!("write {url}"), e))?;
            done.bytes += data.len() as u64;
        }
    }
    Err(refused(310, "too many redirects".to_owned()))
}
