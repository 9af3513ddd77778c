//! A request's life, top to bottom: route, who asks, may they, do it, answer.

use std::time::Instant;

use base64::Engine as _;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use serde_json::{Value, json};

use crate::access::{Actions, Credentials, User};
use crate::route::Route;
use crate::token::{Grant, Granted, scope};
use crate::{Code, Error, Inner, Result};

pub type Incoming = hyper::body::Incoming;
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// What is read of a body that nobody wants, so that the client gets to read why.
const DRAIN: u64 = 8 << 20;

/// A request under way.
pub struct Asked {
    pub method: Method,
    pub headers: HeaderMap,
    pub query: Vec<(String, String)>,
    /// Gone once somebody reads it.
    pub body: Option<Incoming>,
    pub who: Who,
    /// Whom the connection's certificate names.
    certified: Option<User>,
}

/// Who asks, as far as is known.
pub enum Who {
    Nobody,
    /// By password, by certificate, or by a token of the cloud's.
    User(User),
    /// By one of our own tokens, which says what it is for.
    Bearer(Granted),
}

impl Who {
    /// Empty for nobody in particular.
    pub fn name(&self) -> &str {
        match self {
            Who::Nobody => "",
            Who::User(user) => &user.name,
            Who::Bearer(granted) => granted.user.as_ref().map_or("", |user| &user.name),
        }
    }
}

impl Asked {
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// What the client says the body's length is.
    pub fn content_length(&self) -> Option<u64> {
        self.header(header::CONTENT_LENGTH)?.parse().ok()
    }
}

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer with these headers.
pub fn answer(status: StatusCode, headers: &[(&'static str, &str)], body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().append(*name, value);
        }
    }
    response
}

pub fn json_answer(status: StatusCode, headers: &[(&'static str, &str)], value: &Value) -> Response<Body> {
    let bytes = value.to_string();
    let mut response = answer(status, headers, full(bytes));
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().entry(header::CONTENT_TYPE).or_insert(kind);
    response
}

fn parse_query(query: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

/// What is needed for what is asked; `None`: the method is not for this.
fn needs(route: &Route, method: &Method) -> Option<Actions> {
    let read = matches!(*method, Method::GET | Method::HEAD);
    match route {
        Route::Token => (read || *method == Method::POST).then_some(Actions::NONE),
        Route::Base | Route::Catalog => read.then_some(Actions::NONE),
        Route::Tags { .. } | Route::Referrers { .. } | Route::Artifacts { .. } => read.then_some(Actions::PULL),
        Route::Manifest { .. } | Route::Blob { .. } if read => Some(Actions::PULL),
        Route::Manifest { .. } if *method == Method::PUT => Some(Actions::PUSH),
        Route::Manifest { .. } | Route::Blob { .. } => {
            (*method == Method::DELETE).then_some(Actions { delete: true, ..Actions::NONE })
        }
        Route::Uploads { .. } => (*method == Method::POST).then_some(Actions::PUSH),
        Route::Upload { .. } => {
            let known = [Method::GET, Method::PATCH, Method::PUT, Method::DELETE];
            (known.contains(method) || read).then_some(Actions::PUSH)
        }
    }
}

impl Inner {
    pub async fn answer(&self, request: Request<Incoming>, tls: bool, certified: Option<User>) -> Response<Body> {
        let begun = Instant::now();
        let (parts, body) = request.into_parts();
        let base = self.base_url(&parts, tls);
        let mut asked = Asked {
            method: parts.method,
            query: parse_query(parts.uri.query().unwrap_or_default()),
            headers: parts.headers,
            body: Some(body),
            who: Who::Nobody,
            certified,
        };
        let mut response = match self.act(parts.uri.path(), &mut asked).await {
            Ok(response) => response,
            Err(error) => self.refuse(&mut asked, &error, &base).await,
        };
        let version = HeaderValue::from_static("registry/2.0");
        response.headers_mut().insert("docker-distribution-api-version", version);
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        self.metrics.answered(&asked.method, response.status(), begun);
        response
    }

    async fn act(&self, path: &str, asked: &mut Asked) -> Result<Response<Body>> {
        let route = Route::parse(path)?;
        let Some(route) = route else {
            return Err(Error::new(Code::Unsupported, "there is nothing here").with_status(StatusCode::NOT_FOUND));
        };
        let Some(needed) = needs(&route, &asked.method) else {
            return Err(Error::new(Code::Unsupported, "the operation is unsupported"));
        };
        if route == Route::Token {
            return self.hand_out_token(asked).await;
        }
        asked.who = self.identify(asked).await?;
        match route.repository() {
            Some(repository) => self.authorise(&asked.who, repository, needed).await?,
            None if route == Route::Base && self.access.asks() && matches!(asked.who, Who::Nobody) => {
                return Err(challenge(None));
            }
            None => {}
        }
        if let Some(repository) = route.repository().filter(|_| needed.push) {
            self.access.admits(repository).await?;
        }
        match route {
            Route::Base => Ok(json_answer(StatusCode::OK, &[], &json!({}))),
            Route::Token | Route::Catalog => self.list_repositories(asked).await,
            Route::Tags { repository } => self.list_tags(asked, &repository).await,
            Route::Referrers { repository, digest } => self.list_referrers(asked, &repository, &digest).await,
            Route::Artifacts { repository } => self.list_artifacts(asked, &repository).await,
            Route::Manifest { repository, target } => match asked.method {
                Method::PUT => self.put_manifest(asked, &repository, target).await,
                Method::DELETE => self.delete_manifest(&asked.who, &repository, target).await,
                _ => self.get_manifest(asked, &repository, target).await,
            },
            Route::Blob { repository, digest } => match asked.method {
                Method::DELETE => self.delete_blob(&repository, &digest).await,
                _ => self.get_blob(asked, &repository, &digest).await,
            },
            Route::Uploads { repository } => self.begin_upload(asked, &repository).await,
            Route::Upload { repository, id } => self.upload(asked, &repository, &id).await,
        }
    }

    async fn identify(&self, asked: &Asked) -> Result<Who> {
        if !self.access.asks() {
            return Ok(Who::Nobody);
        }
        let Some(header) = asked.header(header::AUTHORIZATION) else {
            return Ok(asked.certified.clone().map_or(Who::Nobody, Who::User));
        };
        if let Some(token) = strip_scheme(header, "bearer") {
            if let Some(granted) = self.tokens.read(token) {
                return Ok(Who::Bearer(granted));
            }
            let user = self.access.authenticate(Credentials::Token(token)).await?;
            return user.map(Who::User).ok_or_else(|| challenge(None));
        }
        let user = self.by_password(header).await?;
        user.map(Who::User).ok_or_else(|| challenge(None))
    }

    /// Whose password a `Basic` header holds.
    async fn by_password(&self, header: &str) -> Result<Option<User>> {
        let decoded = strip_scheme(header, "basic")
            .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let Some((user, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) else { return Ok(None) };
        self.access.authenticate(Credentials::Password { user, password }).await
    }

    /// What who asks may do in a repository.
    pub async fn may(&self, who: &Who, repository: &str) -> Result<Actions> {
        match who {
            Who::Nobody => self.access.actions(None, repository).await,
            Who::User(user) => self.access.actions(Some(user), repository).await,
            // What everyone may needs no token for it.
            Who::Bearer(granted) => Ok(granted.actions(repository).or(self.access.actions(None, repository).await?)),
        }
    }

    async fn authorise(&self, who: &Who, repository: &str, needed: Actions) -> Result<()> {
        if self.may(who, repository).await?.covers(needed) {
            return Ok(());
        }
        match who {
            Who::User(user) => {
                let message = format!("{} may not {} in {repository}", user.name, needed.words().join(" and "));
                Err(Error::new(Code::Denied, message))
            }
            Who::Nobody | Who::Bearer(_) => Err(challenge(Some((repository, needed)))),
        }
    }

    /// `/token`: what of the scopes asked for this user has.
    async fn hand_out_token(&self, asked: &mut Asked) -> Result<Response<Body>> {
        let mut fields = asked.query.clone();
        if asked.method == Method::POST
            && let Some(mut body) = asked.body.take()
        {
            let mut form = Vec::new();
            while let Some(data) = crate::content::next(self, &mut body).await? {
                form.extend_from_slice(&data);
                if form.len() > 64 << 10 {
                    return Err(Error::new(Code::SizeInvalid, "the form is too large"));
                }
            }
            fields.extend(form_urlencoded::parse(&form).into_owned());
        }
        let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let mut refresh = None;
        let user = match (asked.header(header::AUTHORIZATION), field("grant_type")) {
            (Some(header), _) => match strip_scheme(header, "bearer") {
                Some(token) => {
                    let user = self.access.authenticate(Credentials::Token(token)).await?;
                    let user = user.ok_or_else(wrong_password)?;
                    refresh = match field("offline_token") {
                        Some("true") => Some(self.tokens.issue_refresh(&user)?),
                        _ => None,
                    };
                    Some(user)
                }
                None => Some(self.by_password(header).await?.ok_or_else(wrong_password)?),
            },
            (None, Some("password")) => {
                let (Some(user), Some(password)) = (field("username"), field("password")) else {
                    return Err(wrong_password());
                };
                let found = self.access.authenticate(Credentials::Password { user, password }).await?;
                Some(found.ok_or_else(wrong_password)?)
            }
            (None, Some("refresh_token")) => {
                let user = field("refresh_token").and_then(|token| self.tokens.read_refresh(token));
                Some(user.ok_or_else(wrong_password)?)
            }
            (None, Some(other)) => {
                let message = format!("tokens are not given for the grant type {other:?}");
                return Err(Error::new(Code::Unsupported, message).with_status(StatusCode::BAD_REQUEST));
            }
            (None, None) => {
                let user = asked.certified.clone().filter(|_| self.access.asks());
                // Whoever logs in with a password keeps that; a certificate stays where its key is.
                refresh = match (&user, field("offline_token")) {
                    (Some(user), Some("true")) => Some(self.tokens.issue_refresh(user)?),
                    _ => None,
                };
                user
            }
        };
        let scopes = fields.iter().filter(|(key, _)| key == "scope").flat_map(|(_, value)| value.split(' '));
        let mut grants = Vec::new();
        for (kind, name, wanted) in scopes.filter_map(scope).take(100) {
            if kind != "repository" || crate::route::repository(&name).is_err() {
                continue;
            }
            let actions = self.access.actions(user.as_ref(), &name).await?.and(wanted);
            if actions != Actions::NONE {
                let actions = actions.words().into_iter().map(str::to_owned).collect();
                grants.push(Grant { kind, name, actions });
            }
        }
        let (token, expires, issued) = self.tokens.issue(user.as_ref(), grants)?;
        let issued = jiff::Timestamp::from_second(issued).map(|time| time.to_string()).unwrap_or_default();
        let mut body = json!({
            "token": token, "access_token": token, "expires_in": expires, "issued_at": issued,
        });
        if let Some(refresh) = refresh {
            body["refresh_token"] = json!(refresh);
        }
        Ok(json_answer(StatusCode::OK, &[("cache-control", "no-store")], &body))
    }

    async fn refuse(&self, asked: &mut Asked, error: &Error, base: &str) -> Response<Body> {
        match error {
            Error::Store { .. } | Error::Internal(_) => {
                let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
                tracing::error!("{error}{cause}");
            }
            _ => tracing::debug!(%error, "refused"),
        }
        self.drain(asked).await;
        let mut response = json_answer(error.status(), &[], &error.body());
        if error.status() == StatusCode::UNAUTHORIZED {
            let Error::Refused { detail, .. } = error else { return response };
            let scope = detail.as_array().and_then(|scopes| scopes.first()).map(scope_words);
            let mut text = format!("Bearer realm=\"{base}/token\",service=\"{}\"", self.config.service);
            if let Some(scope) = scope {
                text += &format!(",scope=\"{scope}\"");
            }
            if detail == &json!("password") {
                text = format!("Basic realm=\"{}\"", self.config.service);
            } else if matches!(asked.who, Who::Bearer(_)) {
                text += ",error=\"insufficient_scope\"";
            }
            if let Ok(value) = HeaderValue::from_str(&text) {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
            }
        }
        response
    }

    /// Reads what the client still sends, up to a bound: who is cut off while sending does not read the answer.
    pub async fn drain(&self, asked: &mut Asked) {
        let Some(mut body) = asked.body.take() else { return };
        let mut left = DRAIN;
        while let Ok(Some(data)) = crate::content::next(self, &mut body).await {
            let Some(rest) = left.checked_sub(data.len() as u64) else { return };
            left = rest;
        }
    }

    /// How the client reaches us.
    fn base_url(&self, parts: &Parts, tls: bool) -> String {
        if let Some(url) = &self.config.url {
            return url.trim_end_matches('/').to_owned();
        }
        let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = host.or(parts.uri.authority().map(http::uri::Authority::as_str)).unwrap_or("localhost");
        // It ends up inside quotes.
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
        let host = if host.bytes().all(plain) { host } else { "localhost" };
        format!("{}://{host}", if tls { "https" } else { "http" })
    }
}

fn scope_words(scope: &Value) -> String {
    let actions: Vec<&str> = scope["Action"].as_str().map(|actions| actions.split(',').collect()).unwrap_or_default();
    format!("repository:{}:{}", scope["Name"].as_str().unwrap_or_default(), actions.join(","))
}

/// 401, with what is needed as registries tell it.
fn challenge(wanted: Option<(&str, Actions)>) -> Error {
    let detail = wanted.map(|(repository, actions)| {
        json!([{ "Type": "repository", "Class": "", "Name": repository, "Action": actions.words().join(",") }])
    });
    Error::new(Code::Unauthorized, "authentication required").detail(detail.unwrap_or(Value::Null))
}

fn wrong_password() -> Error {
    Error::new(Code::Unauthorized, "incorrect username or password").detail(json!("password"))
}

fn strip_scheme<'a>(header: &'a str, scheme: &str) -> Option<&'a str> {
    let (found, rest) = header.split_once(' ')?;
    found.eq_ignore_ascii_case(scheme).then(|| rest.trim())
}
