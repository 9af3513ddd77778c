//! A client of the OCI distribution protocol: manifests, blobs, authentication, retries.

mod auth;
mod connect;

use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, RANGE, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;

pub use self::auth::Auth;
use self::auth::{Challenge, parse_challenge, query_escape};
use self::connect::Connector;
use crate::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, MAX_MANIFEST_BYTES, OCI_INDEX, OCI_MANIFEST};
use crate::{Digest, Error, Reference, Result};

const ATTEMPTS: u32 = 5;
const MAX_REDIRECTS: u32 = 8;
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(20);
/// From sending a request to the head of its answer, and between two pieces of a body.
pub const SILENCE: Duration = Duration::from_secs(60);

pub struct Registry {
    client: Client<Connector, Empty<Bytes>>,
    base: String,
    repository: String,
    auth: Auth,
    /// The `Authorization` value in use.
    credential: Mutex<Option<HeaderValue>>,
}

/// A manifest endpoint's answer, verified against the digest asked for or promised.
pub struct FetchedManifest {
    pub bytes: Vec<u8>,
    pub media_type: String,
    pub digest: Digest,
}

impl Registry {
    pub async fn connect(
        reference: &Reference,
        auth: Auth,
        plain_http_hosts: &[String],
        extra_ca_pem: &[String],
        proxy: Option<&str>,
    ) -> Result<Self> {
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(15))
            .build(Connector::new(connect::tls_config(extra_ca_pem)?, proxy));
        let host = match reference.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let credential = match &auth {
            Auth::Bearer(token) => Some(header(&format!("Bearer {token}"))?),
            Auth::Anonymous | Auth::Basic { .. } => None,
        };
        let mut registry = Registry {
            client,
            base: format!("https://{host}"),
            repository: reference.repository.clone(),
            auth,
            credential: Mutex::new(credential),
        };
        let bare = bare_host(host);
        let plain = plain_http_hosts.iter().any(|h| h == host || h == bare);
        if plain || (is_loopback(bare) && !registry.speaks_tls().await) {
            registry.base = format!("http://{host}");
        }
        Ok(registry)
    }

    /// A registry on this very machine may do without TLS; whether it does is found by asking.
    async fn speaks_tls(&self) -> bool {
        let Ok(request) = Request::get(format!("{}/v2/", self.base)).body(Empty::new()) else { return false };
        match tokio::time::timeout(Duration::from_secs(5), self.client.request(request)).await {
            Ok(Ok(_)) => true,
            Ok(Err(e)) => connect::is_untrusted(&e),
            Err(_) => false,
        }
    }

    pub async fn manifest(&self, target: &str) -> Result<FetchedManifest> {
        let url = format!("{}/v2/{}/manifests/{target}", self.base, self.repository);
        let accept = [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        let response = self.get(&url, Some(&accept), None).await?;
        let media_type = text_header(&response, CONTENT_TYPE.as_str()).unwrap_or_default();
        let promised = text_header(&response, "docker-content-digest");
        let bytes = read_body(&url, response, MAX_MANIFEST_BYTES).await?;
        let digest = match Digest::parse(target) {
            Ok(asked) => {
                asked.verify(&url, &bytes)?;
                asked
            }
            Err(_) => match promised.as_deref().map(Digest::parse) {
                Some(Ok(promised)) => {
                    promised.verify(&url, &bytes)?;
                    promised
                }
                _ => Digest::of(&bytes),
            },
        };
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        Ok(FetchedManifest { bytes, media_type, digest })
    }

    /// A blob from `offset` on. The flag says whether the registry honoured the offset.
    pub async fn blob(&self, digest: &Digest, offset: u64) -> Result<(Response<Incoming>, bool)> {
        let url = self.blob_url(digest);
        let response = self.get(&url, None, (offset > 0).then_some(offset)).await?;
        let from = text_header(&response, "content-range")
            .and_then(|r| r.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse::<u64>().ok());
        let resumed = response.status() == StatusCode::PARTIAL_CONTENT && from == Some(offset);
        if response.status() == StatusCode::PARTIAL_CONTENT && !resumed {
            let message = "answered with another range than asked for".to_owned();
            return Err(Error::Registry { url, status: 206, message });
        }
        Ok((response, resumed))
    }

    pub fn blob_url(&self, digest: &Digest) -> String {
        format!("{}/v2/{}/blobs/{digest}", self.base, self.repository)
    }

    /// GET with authentication, redirects and retries.
    async fn get(&self, url: &str, accept: Option<&str>, offset: Option<u64>) -> Result<Response<Incoming>> {
        let mut attempt = 0;
        let mut challenged = false;
        loop {
            let outcome = self.follow(url, accept, offset).await;
            let delay = match outcome {
                Ok(response) => match response.status() {
                    status if status.is_success() => return Ok(response),
                    StatusCode::UNAUTHORIZED if !challenged => {
                        challenged = true;
                        self.answer_challenge(url, &response).await?;
                        continue;
                    }
                    StatusCode::UNAUTHORIZED => return Err(Error::Unauthorized { url: url.to_owned() }),
                    status
                        if (status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error())
                            && attempt + 1 < ATTEMPTS =>
                    {
                        text_header(&response, RETRY_AFTER.as_str())
                            .and_then(|s| s.parse().ok())
                            .map(Duration::from_secs)
                    }
                    status => {
                        let body = read_body(url, response, 64 << 10).await.unwrap_or_default();
                        let message = error_message(&body);
                        return Err(Error::Registry { url: url.to_owned(), status: status.as_u16(), message });
                    }
                },
                Err(Error::Transport { url, source }) if connect::is_untrusted(&*source) => {
                    return Err(Error::Tls(format!(
                        "{url}: the registry's certificate is not trusted: {}",
                        root_cause(&*source)
                    )));
                }
                Err(e @ Error::Transport { .. }) if attempt + 1 < ATTEMPTS => {
                    tracing::debug!(url, error = ?e, "registry request failed, trying again");
                    None
                }
                Err(e) => return Err(e),
            };
            let delay = delay.unwrap_or(FIRST_BACKOFF * 2u32.pow(attempt)).min(MAX_BACKOFF);
            attempt += 1;
            tokio::time::sleep(delay).await;
        }
    }

    async fn follow(&self, url: &str, accept: Option<&str>, offset: Option<u64>) -> Result<Response<Incoming>> {
        let mut here: Uri = parse_uri(url)?;
        let home = here.authority().cloned();
        for _ in 0..MAX_REDIRECTS {
            let mut request = Request::get(&here).header(USER_AGENT, concat!("dhow/", env!("CARGO_PKG_VERSION")));
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(offset) = offset {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            // Storage back ends must not see the registry's credentials.
            if here.authority() == home.as_ref()
                && let Some(credential) = self.credential.lock().clone()
            {
                request = request.header(AUTHORIZATION, credential);
            }
            let response = self.send(&here, request).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = text_header(&response, LOCATION.as_str()).ok_or_else(|| Error::Registry {
                url: here.to_string(),
                status: response.status().as_u16(),
                message: "redirect without a location".to_owned(),
            })?;
            let next = resolve(&here, &location)?;
            if here.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                let message = "redirect from HTTPS to plain HTTP refused".to_owned();
                return Err(Error::Registry { url: next.to_string(), status: response.status().as_u16(), message });
            }
            here = next;
        }
        Err(Error::Registry { url: url.to_owned(), status: 310, message: "too many redirects".to_owned() })
    }

    async fn send(&self, url: &Uri, request: http::request::Builder) -> Result<Response<Incoming>> {
        let transport =
            |source: Box<dyn std::error::Error + Send + Sync>| Error::Transport { url: url.to_string(), source };
        let request = request.body(Empty::new()).map_err(|e| transport(e.into()))?;
        match tokio::time::timeout(SILENCE, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(e)) => Err(transport(e.into())),
            Err(e) => Err(transport(e.into())),
        }
    }

    async fn answer_challenge(&self, url: &str, response: &Response<Incoming>) -> Result<()> {
        let denied = || Error::Unauthorized { url: url.to_owned() };
        let challenge = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|v| parse_challenge(v.to_str().ok()?))
            .max_by_key(|c| matches!(c, Challenge::Bearer { .. }))
            .ok_or_else(denied)?;
        let credential = match challenge {
            Challenge::Basic => self.basic()?.ok_or_else(denied)?,
            Challenge::Bearer { realm, service, scope } => {
                let token = self.token(url, &realm, service.as_deref(), scope.as_deref()).await?;
                header(&format!("Bearer {token}"))?
            }
        };
        *self.credential.lock() = Some(credential);
        Ok(())
    }

    fn basic(&self) -> Result<Option<HeaderValue>> {
        match &self.auth {
            Auth::Basic { username, password } => {
                let pair = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
                Ok(Some(header(&format!("Basic {pair}"))?))
            }
            Auth::Anonymous | Auth::Bearer(_) => Ok(None),
        }
    }

    async fn token(&self, url: &str, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<String> {
        let realm_uri = parse_uri(realm)?;
        if self.base.starts_with("https:") && realm_uri.scheme_str() != Some("https") {
            let message = "token service is on plain HTTP; refusing to send credentials there".to_owned();
            return Err(Error::Registry { url: realm.to_owned(), status: 401, message });
        }
        let scope = scope.map_or_else(|| format!("repository:{}:pull", self.repository), str::to_owned);
        let mut address =
            format!("{realm}{}scope={}", if realm.contains('?') { '&' } else { '?' }, query_escape(&scope));
        if let Some(service) = service {
            address.push_str(&format!("&service={}", query_escape(service)));
        }
        let uri = parse_uri(&address)?;
        for attempt in 0..ATTEMPTS {
            let mut request = Request::get(&uri).header(USER_AGENT, concat!("dhow/", env!("CARGO_PKG_VERSION")));
            if let Some(basic) = self.basic()? {
                request = request.header(AUTHORIZATION, basic);
            }
            let last = attempt + 1 == ATTEMPTS;
            match self.send(&uri, request).await {
                Ok(response) if response.status().is_success() => {
                    let body = read_body(&address, response, 1 << 20).await?;
                    #[derive(serde::Deserialize)]
                    struct Answer {
                        token: Option<String>,
                        access_token: Option<String>,
                    }
                    let answer: Answer = serde_json::from_slice(&body).map_err(|e| Error::Registry {
                        url: realm.to_owned(),
                        status: 200,
                        message: format!("token service's answer is not JSON: {e}"),
                    })?;
                    return answer
                        .token
                        .or(answer.access_token)
                        .ok_or_else(|| Error::Unauthorized { url: url.to_owned() });
                }
                Ok(response) => match response.status() {
                    s if !last && (s == StatusCode::TOO_MANY_REQUESTS || s.is_server_error()) => {}
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                        return Err(Error::Unauthorized { url: url.to_owned() });
                    }
                    s => {
                        let body = read_body(&address, response, 64 << 10).await.unwrap_or_default();
                        let message = error_message(&body);
                        return Err(Error::Registry { url: realm.to_owned(), status: s.as_u16(), message });
                    }
                },
                Err(e) if last => return Err(e),
                Err(_) => {}
            }
            tokio::time::sleep((FIRST_BACKOFF * 2u32.pow(attempt)).min(MAX_BACKOFF)).await;
        }
        Err(Error::Unauthorized { url: url.to_owned() })
    }
}

fn root_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a dyn std::error::Error {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last
}

fn header(value: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| Error::Tls("credentials contain characters that cannot be sent".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn text_header<B>(response: &Response<B>, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

fn parse_uri(text: &str) -> Result<Uri> {
    let uri: Uri =
        text.parse().map_err(|e: http::uri::InvalidUri| Error::Transport { url: text.to_owned(), source: e.into() })?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.host().is_some() => Ok(uri),
        _ => Err(Error::Transport { url: text.to_owned(), source: "not an http or https address".into() }),
    }
}

fn resolve(base: &Uri, location: &str) -> Result<Uri> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return parse_uri(location);
    }
    let scheme = base.scheme_str().unwrap_or("https");
    let authority = base.authority().map_or("", |a| a.as_str());
    if let Some(rest) = location.strip_prefix("//") {
        return parse_uri(&format!("{scheme}://{rest}"));
    }
    if location.starts_with('/') {
        return parse_uri(&format!("{scheme}://{authority}{location}"));
    }
    let dir = base.path().rsplit_once('/').map_or("", |(dir, _)| dir);
    parse_uri(&format!("{scheme}://{authority}{dir}/{location}"))
}

async fn read_body(url: &str, response: Response<Incoming>, limit: u64) -> Result<Vec<u8>> {
    let limited = Limited::new(response.into_body(), usize::try_from(limit).unwrap_or(usize::MAX));
    let transport = |source| Error::Transport { url: url.to_owned(), source };
    match tokio::time::timeout(SILENCE, limited.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
        Ok(Err(e)) => Err(transport(e)),
        Err(e) => Err(transport(e.into())),
    }
}

/// The registry's own words where it uses the standard error document.
fn error_message(body: &[u8]) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let first = parsed.as_ref().and_then(|v| v["errors"].get(0));
    match first {
        Some(e) => {
            format!("{}: {}", e["code"].as_str().unwrap_or("UNKNOWN"), e["message"].as_str().unwrap_or_default())
        }
        None => String::from_utf8_lossy(&body[..body.len().min(200)]).trim().to_owned(),
    }
}

fn bare_host(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if !host.ends_with(']') => &host[..colon],
        _ => host,
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
