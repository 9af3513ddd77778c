//! One endpoint of a registry: requests with authentication, redirects, retries and patience for rate limits.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use dhow_base::connect::{self, Connector};
use futures::TryStreamExt;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE, RETRY_AFTER, USER_AGENT,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::config::{Endpoint, Registries};
use super::peer::Opener;
use crate::credentials::Auth;
use crate::{Error, Result};

pub(super) const AGENT: &str = concat!("dhow/", env!("CARGO_PKG_VERSION"));
const ATTEMPTS: u32 = 5;
/// There is another place to ask.
const MIRROR_ATTEMPTS: u32 = 2;
const MAX_REDIRECTS: u32 = 8;
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// A registry that wants us to wait longer is left to whoever asked for the image.
const MAX_WAIT: Duration = Duration::from_secs(20);

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type HttpClient = Client<Connector, UnsyncBoxBody<Bytes, BoxError>>;

pub fn http(tls: Arc<rustls::ClientConfig>, proxy: Option<&str>) -> HttpClient {
    Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(15)).build(Connector::new(tls, proxy))
}

/// What a request carries; it can be sent again.
#[derive(Clone, Default)]
pub enum Payload {
    #[default]
    Nothing,
    Bytes(Bytes),
    /// `length` bytes of the file from `from` on.
    File {
        path: PathBuf,
        from: u64,
        length: u64,
    },
    /// The same of what is no file.
    Opened {
        open: Opener,
        from: u64,
        length: u64,
    },
}

#[derive(Clone, Default)]
pub struct Ask {
    pub method: Method,
    pub url: String,
    pub accept: Option<String>,
    /// First byte wanted of a blob.
    pub offset: Option<u64>,
    pub content_type: Option<String>,
    pub content_range: Option<String>,
    pub payload: Payload,
    /// Answers without success that the caller wants to see.
    pub accepted: &'static [StatusCode],
}

impl Ask {
    pub fn new(method: Method, url: impl Into<String>) -> Self {
        Ask { method, url: url.into(), ..Ask::default() }
    }
}

/// A conversation with one endpoint about one repository.
pub struct Session {
    pub endpoint: Endpoint,
    pub(super) client: HttpClient,
    pub(super) auth: Auth,
    /// `pull`, or `pull,push`.
    pub(super) actions: &'static str,
    /// The `Authorization` value in use.
    pub(super) credential: Mutex<Option<HeaderValue>>,
    /// How long an answer or the next piece of one may take.
    pub silence: Duration,
    /// It could not be reached when last tried.
    down: AtomicBool,
}

impl Session {
    /// `given` are credentials that come with the request; they are for the registry itself, not for its mirrors.
    pub async fn open(
        registries: &Registries,
        mut endpoint: Endpoint,
        given: &Auth,
        actions: &'static str,
    ) -> Result<Self> {
        let client = registries.client(&endpoint.tls, endpoint.proxy.as_deref())?;
        let silence = registries.silence();
        if endpoint.guessed && !speaks_tls(&client, &endpoint.base).await {
            endpoint.plain();
        }
        let auth = if *given == Auth::Anonymous || endpoint.namespace.is_some() {
            registries.credentials(&endpoint.registry, &endpoint.repository).await?
        } else {
            given.clone()
        };
        let credential = match &auth {
            Auth::Bearer(token) => Some(header(&format!("Bearer {token}"))?),
            Auth::Anonymous | Auth::Basic { .. } | Auth::Refresh(_) => None,
        };
        Ok(Session {
            endpoint,
            client,
            auth,
            actions,
            credential: Mutex::new(credential),
            silence,
            down: AtomicBool::new(false),
        })
    }

    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// An address below the repository, such as `blobs/uploads/`.
    pub fn url(&self, rest: &str) -> String {
        let Endpoint { base, repository, namespace, .. } = &self.endpoint;
        match namespace {
            Some(namespace) => format!("{base}/{repository}/{rest}?ns={}", super::auth::query_escape(namespace)),
            None => format!("{base}/{repository}/{rest}"),
        }
    }

    /// Sends, and sends again what may be; the answer is a success or one that `ask` accepts.
    pub async fn request(&self, ask: &Ask) -> Result<Response<Incoming>> {
        let mut attempt = 0;
        let mut challenged = false;
        loop {
            let last = attempt + 1 == if self.endpoint.namespace.is_some() { MIRROR_ATTEMPTS } else { ATTEMPTS };
            let answer = self.follow(ask).await;
            self.down.store(matches!(answer, Err(Error::Transport { .. })), Ordering::Relaxed);
            let wait = match answer {
                Ok((response, home)) => match response.status() {
                    status if status.is_success() || ask.accepted.contains(&status) => return Ok(response),
                    // Only the registry itself may ask for its credentials, not where it redirects to.
                    StatusCode::UNAUTHORIZED if !challenged && home => {
                        challenged = true;
                        self.answer_challenge(&ask.url, response).await?;
                        continue;
                    }
                    StatusCode::TOO_MANY_REQUESTS => {
                        let wait = asked_to_wait(&response);
                        if last || wait.is_some_and(|wait| wait > MAX_WAIT) {
                            let message = message_of(&ask.url, response, self.silence).await;
                            let wait = wait.unwrap_or_default();
                            return Err(Error::RateLimited { url: ask.url.clone(), message, wait });
                        }
                        wait
                    }
                    status if (status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT) && !last => {
                        asked_to_wait(&response)
                    }
                    _ => return Err(self.refusal(&ask.url, response).await),
                },
                Err(Error::Transport { url, source }) if connect::is_untrusted(&*source) => {
                    return Err(Error::Tls(format!(
                        "{url}: the registry's certificate is not trusted: {}",
                        root_cause(&*source)
                    )));
                }
                Err(error @ Error::Transport { .. }) if !last => {
                    tracing::debug!(url = ask.url, error = error.chain(), "registry request failed, trying again");
                    None
                }
                Err(error) => return Err(error),
            };
            tokio::time::sleep(wait.unwrap_or_else(|| back_off(attempt)).min(MAX_WAIT)).await;
            attempt += 1;
        }
    }

    async fn refusal(&self, url: &str, response: Response<Incoming>) -> Error {
        let status = response.status();
        let url = url.to_owned();
        let message = message_of(&url, response, self.silence).await;
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Unauthorized { url, message },
            StatusCode::NOT_FOUND => Error::Missing { url, message },
            status => Error::Registry { url, status: status.as_u16(), message },
        }
    }

    /// The answer at the end of all redirects, and whether the registry itself gave it.
    async fn follow(&self, ask: &Ask) -> Result<(Response<Incoming>, bool)> {
        let mut here: Uri = parse_uri(&ask.url)?;
        let home: Uri = parse_uri(&self.endpoint.base)?;
        for _ in 0..MAX_REDIRECTS {
            let at_home = here.authority() == home.authority() && here.scheme() == home.scheme();
            let response = self.send(&here, self.build(ask, &here, at_home).await?).await?;
            if !response.status().is_redirection() || !matches!(ask.method, Method::GET | Method::HEAD) {
                return Ok((response, at_home));
            }
            let refused = |message: &str| Error::Registry {
                url: here.to_string(),
                status: response.status().as_u16(),
                message: message.to_owned(),
            };
            let location =
                text_header(&response, LOCATION.as_str()).ok_or_else(|| refused("redirect without a location"))?;
            let next = resolve(&here, &location)?;
            if here.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(refused("redirect from HTTPS to plain HTTP refused"));
            }
            here = next;
        }
        Err(Error::Registry { url: ask.url.clone(), status: 310, message: "too many redirects".to_owned() })
    }

    async fn build(&self, ask: &Ask, url: &Uri, at_home: bool) -> Result<Request<UnsyncBoxBody<Bytes, BoxError>>> {
        let mut request = Request::builder().method(&ask.method).uri(url).header(USER_AGENT, AGENT);
        if let Some(accept) = &ask.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(offset) = ask.offset {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        if let Some(kind) = &ask.content_type {
            request = request.header(CONTENT_TYPE, kind);
        }
        if let Some(range) = &ask.content_range {
            request = request.header(CONTENT_RANGE, range);
        }
        if at_home {
            // Storage back ends must not see what is meant for the registry.
            for (name, value) in &self.endpoint.headers {
                request = request.header(name, value);
            }
            if let Some(credential) = self.credential.lock().clone() {
                request = request.header(AUTHORIZATION, credential);
            }
        }
        let body = match &ask.payload {
            Payload::Nothing => {
                if matches!(ask.method, Method::POST | Method::PUT | Method::PATCH) {
                    request = request.header(CONTENT_LENGTH, 0);
                }
                empty()
            }
            Payload::Bytes(bytes) => Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync(),
            Payload::File { path, from, length } => {
                request = request.header(CONTENT_LENGTH, *length);
                let open = |e| Error::io(format!("read {}", path.display()), e);
                let mut file = tokio::fs::File::open(path).await.map_err(open)?;
                file.seek(std::io::SeekFrom::Start(*from)).await.map_err(open)?;
                let pieces = tokio_util::io::ReaderStream::with_capacity(file.take(*length), 128 << 10);
                StreamBody::new(pieces.map_ok(Frame::data).map_err(BoxError::from)).boxed_unsync()
            }
            Payload::Opened { open, from, length } => {
                request = request.header(CONTENT_LENGTH, *length);
                let pieces = open(*from..*from + *length).await.map_err(|e| Error::io("read a blob", e))?;
                StreamBody::new(pieces.map_ok(Frame::data).map_err(BoxError::from)).boxed_unsync()
            }
        };
        request.body(body).map_err(|e| transport(url, e.into()))
    }

    pub(super) async fn send(
        &self,
        url: &Uri,
        request: Request<UnsyncBoxBody<Bytes, BoxError>>,
    ) -> Result<Response<Incoming>> {
        // A body takes as long as it takes; the connection notices when nobody reads it.
        let has_body = !hyper::body::Body::is_end_stream(request.body());
        let sent = self.client.request(request);
        let answer = if has_body {
            sent.await
        } else {
            let silent = |_| transport(url, format!("no answer within {} s", self.silence.as_secs()).into());
            tokio::time::timeout(self.silence, sent).await.map_err(silent)?
        };
        answer.map_err(|e| transport(url, e.into()))
    }
}

/// A registry on this very machine may do without TLS; whether it does is found by asking.
async fn speaks_tls(client: &HttpClient, base: &str) -> bool {
    let Ok(request) = Request::get(format!("{base}/")).body(empty()) else { return false };
    match tokio::time::timeout(Duration::from_secs(5), client.request(request)).await {
        Ok(Ok(_)) => true,
        Ok(Err(e)) => connect::is_untrusted(&e),
        Err(_) => false,
    }
}

pub(super) fn empty() -> UnsyncBoxBody<Bytes, BoxError> {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn back_off(attempt: u32) -> Duration {
    FIRST_BACKOFF * 2u32.pow(attempt.min(8))
}

pub(super) fn transport(url: &Uri, source: BoxError) -> Error {
    Error::Transport { url: url.to_string(), source }
}

/// `Retry-After` in seconds or as a date, or else when a rate limit's window ends.
fn asked_to_wait<B>(response: &Response<B>) -> Option<Duration> {
    let text = |name: &str| text_header(response, name);
    let seconds = |text: String| text.split([';', ',']).next()?.trim().parse::<u64>().ok();
    if let Some(value) = text(RETRY_AFTER.as_str()) {
        return match value.trim().parse::<u64>() {
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => Some(until(http_date(&value)?)),
        };
    }
    // The hub says it as a point in time, others as what is left of the window.
    if let Some(moment) = text("x-retry-after").and_then(seconds) {
        return Some(until(SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(moment))?));
    }
    if response.status() != StatusCode::TOO_MANY_REQUESTS {
        return None;
    }
    let reset = text("ratelimit-reset").or_else(|| text("x-ratelimit-reset")).and_then(seconds)?;
    match reset {
        moment @ 1_000_000_000.. => Some(until(SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(moment))?)),
        left => Some(Duration::from_secs(left)),
    }
}

fn until(moment: SystemTime) -> Duration {
    moment.duration_since(SystemTime::now()).unwrap_or_default()
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that servers still send.
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let parts: Vec<&str> = text.split([' ', ',', ':']).filter(|part| !part.is_empty()).collect();
    let [_, day, month, year, hour, minute, second, "GMT"] = parts.as_slice() else { return None };
    let number = |text: &str| text.parse::<u64>().ok();
    let month = MONTHS.iter().position(|name| name == month)? as u64 + 1;
    // Days since the epoch by counting in years that begin in March.
    let year = number(year)?.checked_sub(u64::from(month <= 2))?;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + number(day)?.checked_sub(1)?;
    let days = (year * 365 + year / 4 - year / 100 + year / 400 + day_of_year).checked_sub(719_468)?;
    let seconds = days * 86_400 + number(hour)? * 3600 + number(minute)? * 60 + number(second)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

fn root_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a dyn std::error::Error {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last
}

pub(super) fn header(value: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| Error::Credentials("they contain characters that cannot be sent".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

pub(super) fn text_header<B>(response: &Response<B>, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

pub(super) fn parse_uri(text: &str) -> Result<Uri> {
    let uri: Uri =
        text.parse().map_err(|e: http::uri::InvalidUri| Error::Transport { url: text.to_owned(), source: e.into() })?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.host().is_some() => Ok(uri),
        _ => Err(Error::Transport { url: text.to_owned(), source: "not an http or https address".into() }),
    }
}

pub(super) fn resolve(base: &Uri, location: &str) -> Result<Uri> {
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

pub(super) async fn read_body(
    url: &str,
    response: Response<Incoming>,
    limit: u64,
    silence: Duration,
) -> Result<Vec<u8>> {
    let limited = Limited::new(response.into_body(), usize::try_from(limit).unwrap_or(usize::MAX));
    let transport = |source| Error::Transport { url: url.to_owned(), source };
    match tokio::time::timeout(silence, limited.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
            let message = format!("answer is larger than {limit} bytes");
            Err(Error::Manifest { what: url.to_owned(), message })
        }
        Ok(Err(e)) => Err(transport(e)),
        Err(e) => Err(transport(e.into())),
    }
}

/// The registry's own words where it uses the standard error document.
pub(super) async fn message_of(url: &str, response: Response<Incoming>, silence: Duration) -> String {
    let status = response.status();
    let body = read_body(url, response, 64 << 10, silence).await.unwrap_or_default();
    let parsed: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    match parsed.as_ref().and_then(|v| v["errors"].get(0)) {
        Some(e) => {
            format!("{}: {}", e["code"].as_str().unwrap_or("UNKNOWN"), e["message"].as_str().unwrap_or_default())
        }
        None if body.is_empty() => status.canonical_reason().unwrap_or_default().to_owned(),
        None => String::from_utf8_lossy(&body[..body.len().min(200)]).trim().to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn waits_as_long_as_it_is_asked_to() {
        let answer = |status: u16, pairs: &[(&str, &str)]| {
            let mut response = Response::builder().status(status);
            for (name, value) in pairs {
                response = response.header(*name, *value);
            }
            asked_to_wait(&response.body(()).unwrap())
        };
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(answer(503, &[("retry-after", "7")]), seconds(7));
        assert_eq!(answer(429, &[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")]), seconds(0));
        assert_eq!(answer(429, &[("ratelimit-limit", "100;w=21600"), ("ratelimit-reset", "30;w=60")]), seconds(30));
        assert_eq!(answer(503, &[("ratelimit-reset", "30")]), None);
        assert_eq!(answer(429, &[]), None);
        let known = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(known));
    }
}
