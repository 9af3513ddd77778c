//! Requests to one bucket: signed, tried again when that may help, and never waited for without end.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dhow_base::connect::{Connector, TlsOptions, is_untrusted, tls_config};
use http::header::{HOST, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use jiff::Timestamp;

use super::S3Config;
use super::sign::{Keyring, Signing, encode};
use super::xml::Element;
use crate::Error;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An answer that is read whole is a list of a thousand keys at most.
const LARGEST: usize = 16 << 20;
/// The first wait before another attempt; each further one is four times as long.
const BACKOFF: Duration = Duration::from_millis(150);
/// A body may take so much longer for each of these many bytes.
const BYTES_A_SECOND: u64 = 256 << 10;

pub struct Client {
    http: Pool<Connector, Full<Bytes>>,
    scheme: &'static str,
    authority: String,
    /// Before the key in a path: the bucket, unless it is in the host's name.
    root: String,
    keyring: Keyring,
    pub config: S3Config,
}

/// A request. `key` is below the prefix, empty for the bucket itself.
pub struct Call<'a> {
    /// What is done, for messages.
    pub verb: &'static str,
    pub method: Method,
    pub key: &'a str,
    pub query: Vec<(&'static str, String)>,
    pub headers: Vec<(HeaderName, String)>,
    pub body: Bytes,
    /// Work that takes the server longer than others, by so much.
    pub patience: u32,
}

impl<'a> Call<'a> {
    pub fn new(verb: &'static str, method: Method, key: &'a str) -> Self {
        let (query, headers) = Default::default();
        Self { verb, method, key, query, headers, body: Bytes::new(), patience: 1 }
    }
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{status}{message}{hint}")]
    Refused { status: StatusCode, code: String, message: String, hint: String },
    #[error("no answer within {} s; see whether the server is well", .0.as_secs_f32())]
    Silent(Duration),
    #[error("{hint}")]
    Unreachable {
        hint: &'static str,
        #[source]
        source: BoxError,
    },
    #[error("the answer makes no sense: {0}")]
    Nonsense(String),
    #[error("{0}")]
    Credentials(String),
}

impl Failure {
    /// Whether it may be over soon.
    fn passes(&self) -> bool {
        match self {
            Self::Refused { status, code, .. } => {
                status.is_server_error() && *status != StatusCode::NOT_IMPLEMENTED && !self.is_out_of_space()
                    || *status == StatusCode::TOO_MANY_REQUESTS
                    || matches!(code.as_str(), "SlowDown" | "RequestTimeout" | "InternalError" | "OperationAborted")
            }
            Self::Silent(_) | Self::Nonsense(_) => true,
            Self::Unreachable { source, .. } => !is_untrusted(&**source),
            Self::Credentials(_) => false,
        }
    }

    pub fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }

    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// There is no such object, in a bucket that is there.
    fn is_missing(&self) -> bool {
        self.status() == Some(StatusCode::NOT_FOUND) && !self.is("NoSuchBucket")
    }

    fn is_out_of_space(&self) -> bool {
        let full = ["XMinioStorageFull", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage"];
        self.status() == Some(StatusCode::INSUFFICIENT_STORAGE) || full.iter().any(|code| self.is(code))
    }
}

fn hint(code: &str, headers: &HeaderMap) -> String {
    let text = match code {
        "NoSuchBucket" => "; make the bucket, or correct its name",
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken" => {
            "; correct the access key and its secret"
        }
        "AccessDenied" | "403" => {
            "; allow s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject, s3:DeleteObject and \
             s3:AbortMultipartUpload on what is in it"
        }
        "RequestTimeTooSkewed" => "; set this machine's clock",
        "PermanentRedirect" | "AuthorizationHeaderMalformed" | "301" | "307" => {
            let region = headers.get("x-amz-bucket-region").and_then(|region| region.to_str().ok());
            return region.map_or_else(
                || "; correct the region and the endpoint".to_owned(),
                |region| format!("; set the region to {region}"),
            );
        }
        _ => "",
    };
    text.to_owned()
}

/// A configuration, understood.
struct Address {
    scheme: &'static str,
    authority: String,
    root: String,
    prefix: String,
}

impl Address {
    fn of(config: &S3Config) -> Result<Self, Error> {
        let bad = |message: &str| Error::Invalid(format!("bucket {:?}: {message}", config.bucket));
        let fine = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/'))
        };
        if config.bucket.is_empty() || config.bucket.contains('/') || !fine(&config.bucket) {
            return Err(bad("it has a name of letters, digits, dots and dashes"));
        }
        let prefix = match config.prefix.trim_matches('/') {
            "" => String::new(),
            prefix if fine(prefix) && prefix.split('/').all(|part| !part.is_empty() && !part.starts_with('.')) => {
                format!("{prefix}/")
            }
            _ => return Err(bad("its prefix is made of letters, digits, `.`, `_` and `-`")),
        };
        let amazon = format!("https://s3.{}.amazonaws.com", config.region);
        let endpoint = config.endpoint.as_deref().unwrap_or(&amazon);
        let endpoint: Uri = endpoint.parse().map_err(|_| bad("its endpoint is no address"))?;
        let scheme = match endpoint.scheme_str() {
            Some("https") => "https",
            Some("http") => "http",
            _ => return Err(bad("its endpoint begins with https:// or http://")),
        };
        let authority = endpoint.authority().map(Authority::as_str).unwrap_or_default();
        if !matches!(endpoint.path(), "" | "/") || endpoint.query().is_some() || authority.contains('@') {
            return Err(bad("its endpoint is a host and a port only"));
        }
        let (authority, root) = match config.path_style {
            true => (authority.to_owned(), format!("/{}/", config.bucket)),
            false => (format!("{}.{authority}", config.bucket), "/".to_owned()),
        };
        Ok(Self { scheme, authority, root, prefix })
    }
}

impl S3Config {
    /// Finds mistakes without asking anybody.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(&self) -> Result<(), Error> {
        Address::of(self).map(drop)
    }
}

impl Client {
    pub fn new(config: S3Config) -> Result<Self, Error> {
        let Address { scheme, authority, root, prefix } = Address::of(&config)?;
        let options = TlsOptions { ca_files: config.ca_file.iter().cloned().collect(), ..TlsOptions::default() };
        let tls = tls_config(&options).map_err(|error| Error::Backend {
            context: format!("trust the server of bucket {:?}", config.bucket),
            source: error.into(),
        })?;
        let http = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(15))
            .build(Connector::new(tls, None));
        let keyring = Keyring::new(config.credentials.clone());
        let config = S3Config { prefix, ..config };
        Ok(Self { http, scheme, authority, root, keyring, config })
    }

    /// What an object is called in messages.
    pub fn name(&self, key: &str) -> String {
        let S3Config { bucket, prefix, .. } = &self.config;
        format!("s3://{bucket}/{prefix}{key} at {}://{}", self.scheme, self.authority)
    }

    pub fn error(&self, verb: &str, key: &str, failure: Failure) -> Error {
        let context = format!("{verb} {}", self.name(key));
        let source: BoxError = match failure.is_out_of_space() {
            true => std::io::Error::new(std::io::ErrorKind::StorageFull, failure).into(),
            false => failure.into(),
        };
        Error::Backend { context, source }
    }

    /// An answer whose body is still to be read.
    pub async fn open(&self, call: &Call<'_>) -> Result<Response<Incoming>, Failure> {
        self.again(|| self.once(call)).await
    }

    /// The same; `None`: there is no such object.
    pub async fn find(&self, call: &Call<'_>) -> Result<Option<Response<Incoming>>, Error> {
        match self.open(call).await {
            Ok(response) => Ok(Some(response)),
            Err(failure) if failure.is_missing() => Ok(None),
            Err(failure) => Err(self.error(call.verb, call.key, failure)),
        }
    }

    /// An answer whose body is all there. One that says later that it failed counts as failed.
    pub async fn ask(&self, call: &Call<'_>) -> Result<(HeaderMap, Bytes), Failure> {
        self.again(|| async {
            let (parts, mut body) = self.once(call).await?.into_parts();
            let mut whole = BytesMut::new();
            while let Some(data) = self.next(&mut body).await? {
                if whole.len() + data.len() > LARGEST {
                    return Err(Failure::Nonsense("it does not end".to_owned()));
                }
                whole.extend_from_slice(&data);
            }
            match Element::parse(&whole).filter(|root| root.name == "Error") {
                Some(error) => Err(refused(StatusCode::INTERNAL_SERVER_ERROR, Some(&error), &parts.headers)),
                None => Ok((parts.headers, whole.freeze())),
            }
        })
        .await
    }

    /// The same, as XML.
    pub async fn ask_xml(&self, call: &Call<'_>) -> Result<Element, Failure> {
        let (_, body) = self.ask(call).await?;
        let text = || String::from_utf8_lossy(body.get(..body.len().min(200)).unwrap_or_default()).into_owned();
        Element::parse(&body).ok_or_else(|| Failure::Nonsense(text()))
    }

    /// The next bytes of a body, unless none come for too long.
    pub async fn next(&self, body: &mut Incoming) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = tokio::time::timeout(self.config.timeout, body.frame());
            match frame.await.map_err(|_| Failure::Silent(self.config.timeout))? {
                None => return Ok(None),
                Some(Err(source)) => {
                    return Err(Failure::Unreachable { hint: "the answer broke off", source: source.into() });
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    async fn again<T, F: Future<Output = Result<T, Failure>>>(&self, work: impl Fn() -> F) -> Result<T, Failure> {
        let mut attempt = 1;
        loop {
            let failure = match work().await {
                Ok(done) => return Ok(done),
                Err(failure) if attempt >= self.config.attempts || !failure.passes() => return Err(failure),
                Err(failure) => failure,
            };
            tracing::debug!(error = %dhow_base::chain(&failure), attempt, "an S3 request is tried again");
            self.pause(attempt).await;
            attempt += 1;
        }
    }

    /// Before another attempt: others of ours must not all come at the same moment again.
    pub async fn pause(&self, attempt: u32) {
        let full = BACKOFF * 4u32.saturating_pow(attempt.saturating_sub(1).min(3));
        let nanos =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        tokio::time::sleep(full.mul_f64(0.5 + f64::from(nanos % 1000) / 1000.0)).await;
    }

    async fn once(&self, call: &Call<'_>) -> Result<Response<Incoming>, Failure> {
        let request = self.request(call)?;
        let limit = self.config.timeout * call.patience + Duration::from_secs(call.body.len() as u64 / BYTES_A_SECOND);
        let answer = tokio::time::timeout(limit, self.http.request(request));
        let answer = answer.await.map_err(|_| Failure::Silent(limit))?.map_err(|source| {
            let hint = match (is_untrusted(&source), source.is_connect()) {
                (true, _) => "its certificate is not trusted; name its authority as caFile",
                (_, true) => "it cannot be reached; see whether the endpoint is right and the server runs",
                _ => "the connection broke off",
            };
            Failure::Unreachable { hint, source: source.into() }
        })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (parts, mut body) = answer.into_parts();
        let mut text = BytesMut::new();
        while text.len() < 64 << 10
            && let Some(data) = self.next(&mut body).await?
        {
            text.extend_from_slice(&data);
        }
        Err(refused(parts.status, Element::parse(&text).as_ref(), &parts.headers))
    }

    fn request(&self, call: &Call<'_>) -> Result<Request<Full<Bytes>>, Failure> {
        let nonsense = |error: &dyn std::error::Error| Failure::Nonsense(format!("the request: {error}"));
        let secret = self.keyring.secret().map_err(Failure::Credentials)?;
        let key = if call.key.is_empty() { String::new() } else { format!("{}{}", self.config.prefix, call.key) };
        let path = match key.is_empty() {
            true if self.root.len() > 1 => self.root.trim_end_matches('/').to_owned(),
            _ => format!("{}{}", self.root, encode(&key, true)),
        };
        let mut pairs: Vec<String> =
            call.query.iter().map(|(name, value)| format!("{name}={}", encode(value, false))).collect();
        pairs.sort_unstable();
        let query = pairs.join("&");
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(&self.authority).map_err(|error| nonsense(&error))?);
        for (name, value) in &call.headers {
            headers.insert(name, HeaderValue::from_str(value).map_err(|error| nonsense(&error))?);
        }
        let signing = Signing {
            method: &call.method,
            path: &path,
            query: &query,
            body: &call.body,
            region: &self.config.region,
            now: Timestamp::now(),
        };
        signing.sign(&secret, &mut headers).map_err(|error| nonsense(&error))?;
        let question = if query.is_empty() { "" } else { "?" };
        let uri = format!("{}://{}{path}{question}{query}", self.scheme, self.authority);
        let request = Request::builder().method(call.method.clone()).uri(uri).body(Full::new(call.body.clone()));
        let mut request = request.map_err(|error| nonsense(&error))?;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

fn refused(status: StatusCode, error: Option<&Element>, headers: &HeaderMap) -> Failure {
    let code = error.and_then(|error| error.get("Code")).map_or_else(|| status.as_str().to_owned(), str::to_owned);
    // Answers to HEAD have no text.
    let message = match error.map(|error| error.get("Message").unwrap_or_default()) {
        Some(message) => format!(" {code}: {}", message.trim_end_matches('.')),
        None => String::new(),
    };
    let hint = hint(&code, headers);
    Failure::Refused { status, code, message, hint }
}
