//! A request's life, top to bottom. Every request for an object takes this road; there is no other to the store.
//!
//! 1. parse        what is asked, from method and URI (`info`)
//! 2. authenticate who asks (`authenticate`)
//! 3. authorise    may they (`rbac`); only then does a `Request<Authorized>` exist
//! 4. dispatch     streams branch off here (`stream`), non-resource paths too (`paths`)
//! 5. decode       options and body to a tree (`options`, `body`)
//! 6. default, mutating admission, validate, validating admission, store: per verb (`read`, `watch`, `write`, `delete`,
//!    `subresource`; `admission`)
//! 7. encode       whole, Table or metadata, in JSON, YAML or protobuf (`encode`), packed if large (`compress`)

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use dhow_api::Status;
use dhow_client::Body;
use http::{HeaderMap, Method, Request as HttpRequest, Response};
use tracing::Instrument;

use crate::encode::Warnings;
use crate::identity::{Peer, UserInfo};
use crate::info::{RequestInfo, ResourceTarget, Target};
use crate::metrics::Labels;
use crate::rbac::Attributes;
use crate::{
    ApiServer, admission, authenticate, compress, delete, encode, options, paths, read, stream, subresource, watch,
    write,
};

/// A request whose caller was allowed to make it. Made here only.
pub struct Authorized {
    user: Arc<UserInfo>,
    _made_here: (),
}

/// A request about objects, in a state of its life.
pub struct Request<S> {
    pub info: RequestInfo,
    pub target: ResourceTarget,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub warnings: Warnings,
    state: S,
}

impl Request<Authorized> {
    pub fn user(&self) -> &UserInfo {
        &self.state.user
    }

    pub fn dry_run(&self) -> bool {
        self.info.query.get("dryRun") == Some("All")
    }
}

/// Answers a request whose body has been read. Never fails: an error is an answer too.
pub async fn handle(server: &Arc<ApiServer>, peer: Peer, request: HttpRequest<Bytes>) -> Response<Body> {
    let span = tracing::debug_span!("request", method = %request.method(), path = request.uri().path());
    let accept = encode::Accept::of(request.headers());
    let gzip = compress::accepted(request.headers());
    let info = match RequestInfo::parse(&server.definitions.catalog(), request.method(), request.uri()) {
        Ok(info) => info,
        Err(status) => return encode::status(&status, &accept),
    };
    let (labels, begun) = (Labels::of(&info), Instant::now());
    let _running = server.metrics.begin(&labels);
    let warnings = Warnings::default();
    let result = run(server, peer, request, info, &accept, warnings.clone()).instrument(span).await;
    let mut response = result.unwrap_or_else(|status| encode::status(&status, &accept));
    warnings.write(&mut response);
    server.metrics.end(&labels, begun, response.status().as_u16());
    if gzip { compress::compress(response).await } else { response }
}

async fn run(
    server: &Arc<ApiServer>,
    peer: Peer,
    request: HttpRequest<Bytes>,
    info: RequestInfo,
    accept: &encode::Accept,
    warnings: Warnings,
) -> Result<Response<Body>, Status> {
    let (parts, body) = request.into_parts();
    let user = authenticate::user(server, &peer, &parts.headers).await?;
    server.authorizer.check(&user, &Attributes::of(&info))?;
    let target = match &info.target {
        Target::Path(path) => return paths::answer(server, path, &info.query, &parts.headers, accept).await,
        Target::Resource(target) => target.clone(),
    };
    let state = Authorized { user, _made_here: () };
    let request = Request { info, target, headers: parts.headers, body, warnings, state };
    accept.check()?;
    options::check(&request)?;
    if let Some(warning) = request.target.kind.custom.as_ref().and_then(|served| served.version.deprecation.as_ref()) {
        request.warnings.add(warning);
    }
    if request.target.subresource.is_some() {
        return subresource::handle(server, request, &parts.method, accept).await;
    }
    if !request.target.kind.allows(request.info.verb) {
        return Err(Status::method_not_allowed());
    }
    match request.info.verb {
        "get" => read::get(server, &request, accept).await,
        "list" => read::list(server, &request, accept).await,
        "watch" => watch::open(server, &request, accept).await,
        "create" => write::create(server, request, accept).await,
        "update" => write::update(server, request, accept).await,
        "patch" => write::patch(server, request, accept).await,
        "delete" => delete::one(server, request, accept).await,
        "deletecollection" => delete::collection(server, request, accept).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// Checks a request that wants to become a byte stream, and returns where it leads.
pub async fn authorize_stream(
    server: &Arc<ApiServer>,
    peer: &Peer,
    method: &Method,
    uri: &http::Uri,
    headers: &HeaderMap,
) -> Result<Option<stream::Destination>, Status> {
    let info = RequestInfo::parse(&server.definitions.catalog(), method, uri)?;
    let Target::Resource(target) = &info.target else { return Ok(None) };
    if !stream::is_streaming(target) {
        return Ok(None);
    }
    let user = authenticate::user(server, peer, headers).await?;
    let mut attributes = Attributes::of(&info);
    if let Attributes::Resource { verb, .. } = &mut attributes
        && stream::is_session(target)
    {
        // A session is a "create", also when a WebSocket has to open it with GET.
        *verb = "create".into();
    }
    server.authorizer.check(&user, &attributes)?;
    if stream::is_connection(target) {
        let warnings = Warnings::default();
        admission::admit(server, &mut admission::Attributes::connect(target, &info.query, &user, &warnings)).await?;
    }
    stream::destination(server, target, uri).await.map(Some)
}
