//! A request's life, top to bottom. Every request for an object takes this road; there is no other to the store.
//!
//! 1. parse        what is asked, from method and URI (`info`)
//! 2. authenticate who asks, and as whom (`authenticate`, `impersonate`); the audit trail begins (`audit`)
//! 3. queue        is it their turn (`flow`)
//! 4. authorise    may they (`node_authorizer`, then `rbac`); only then does a `Request<Authorized>` exist
//! 5. dispatch     streams branch off here (`stream`), non-resource paths too (`paths`)
//!    and what extension servers (`aggregate`) and parts of the cloud answer, which takes the road up to here
//! 6. decode       the body is read only now; options and body to a tree (`options`, `body`)
//! 7. default, mutating admission, validate, validating admission, store: per verb (`read`, `watch`, `write`, `delete`,
//!    `subresource`; `admission`)
//! 8. encode       whole, Table or metadata, in JSON, YAML or protobuf (`encode`), packed if large (`compress`)

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use dhow_api::Status;
use dhow_client::Body;
use futures::FutureExt;
use http::{HeaderMap, Request as HttpRequest, Response, StatusCode};
use tracing::Instrument;

use crate::audit::{Source, Trail};
use crate::authenticate::Caller;
use crate::connections::Newcomer;
use crate::encode::Warnings;
use crate::flow::{Class, Seat};
use crate::identity::{ANONYMOUS, Peer, UserInfo};
use crate::info::{RequestInfo, ResourceTarget, Target};
use crate::metrics::Labels;
use crate::rbac::{self, Attributes, Selected};
use crate::{
    ApiServer, admission, aggregate, authenticate, body, compress, delete, encode, options, paths, read, stream,
    subresource, watch, write,
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
    /// What is recorded of it, if anything is.
    pub trail: Option<Trail>,
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

/// Answers a request. Never fails: an error is an answer too.
pub async fn handle(server: &Arc<ApiServer>, peer: Peer, request: HttpRequest<Body>) -> Response<Body> {
    if let Some(extension) = server.extension(request.uri().path()) {
        return relay(server, peer, Other::Part(extension), request).await;
    }
    if let Some(remote) = server.aggregator.claim(request.uri().path()) {
        return relay(server, peer, Other::Server(remote), request).await;
    }
    let span = tracing::debug_span!("request", method = %request.method(), path = request.uri().path());
    let accept = encode::Accept::of(request.headers());
    let gzip = compress::accepted(request.headers());
    let info = match RequestInfo::parse(&server.definitions.catalog(), request.method(), request.uri()) {
        Ok(info) => info,
        Err(status) => return encode::status(&status, &accept),
    };
    let accept = match accept.clone().including(info.query.get("includeObject")) {
        Ok(accept) => accept,
        Err(status) => return encode::status(&status, &accept),
    };
    let (labels, begun) = (Labels::of(&info), Instant::now());
    let _running = server.metrics.begin(&labels);
    let warnings = Warnings::default();
    let (mut trail, mut class) = (None, None);
    let running =
        run(server, peer, request, info, &accept, warnings.clone(), (&mut trail, &mut class)).instrument(span);
    // What breaks one request is not to take the connection of others with it.
    let result = AssertUnwindSafe(running).catch_unwind().await.unwrap_or_else(|_| {
        if let Some(trail) = &trail {
            trail.panicked();
        }
        Err(Status::internal_plain("This request caused the API server to panic. Look in the logs for details."))
    });
    let mut response = result.unwrap_or_else(|status| encode::status(&status, &accept));
    warnings.write(&mut response);
    if let Some(class) = class {
        class.write(&mut response);
    }
    if let Some(trail) = trail {
        response = trail.answered(response).await;
    }
    server.metrics.end(&labels, begun, response.status().as_u16());
    if gzip { compress::compress(response).await } else { response }
}

/// Who answers in the pipeline's place.
pub enum Other {
    Server(Arc<aggregate::Remote>),
    /// A part of this cloud.
    Part(Arc<dyn dhow_client::Extension>),
}

/// Answers a request that is another's to answer: the same road up to where that one takes over. Bodies
/// stream both ways, and the audit trail does not hold them.
pub async fn relay(server: &Arc<ApiServer>, peer: Peer, other: Other, request: HttpRequest<Body>) -> Response<Body> {
    let accept = encode::Accept::of(request.headers());
    let info = match RequestInfo::of_extension(request.method(), request.uri()) {
        Ok(info) => info,
        Err(status) => return encode::status(&status, &accept),
    };
    let (labels, begun) = (Labels::of(&info), Instant::now());
    let _running = server.metrics.begin(&labels);
    let (mut trail, mut class) = (None, None);
    let (parts, body) = request.into_parts();
    let attributes = Attributes::of(&info);
    let result = async {
        let entered = enter(server, &peer, &parts, (&info, &attributes), (&mut trail, &mut class)).await?;
        let request = HttpRequest::from_parts(parts, body);
        match &other {
            Other::Server(remote) => aggregate::pass_on(server, remote, &entered.user, request, trail.as_ref()).await,
            Other::Part(extension) => Ok(extension.answer(request).await),
        }
    }
    .await;
    let mut response = result.unwrap_or_else(|status| encode::status(&status, &accept));
    if let Some(class) = class {
        class.write(&mut response);
    }
    // The trail of a session ends with it.
    if let Some(trail) = trail.filter(|_| response.status() != StatusCode::SWITCHING_PROTOCOLS) {
        response = trail.answered(response).await;
    }
    server.metrics.end(&labels, begun, response.status().as_u16());
    response
}

/// Finds out who asks, and begins the audit trail, which is there even if they may not act as they want.
async fn identify(
    server: &ApiServer,
    peer: &Peer,
    parts: &http::request::Parts,
    (info, attributes): (&RequestInfo, &Attributes),
    trail: &mut Option<Trail>,
) -> Result<Caller, Status> {
    let begin = |caller: Option<&Caller>| {
        let source = parts.extensions.get::<Source>().copied();
        server.audit.as_ref()?.begin(info, attributes, caller, &parts.uri, &parts.headers, source)
    };
    let proven = authenticate::prove(server, peer, parts.uri.path(), &parts.headers).await.inspect_err(|status| {
        if let Some(trail) = begin(None) {
            trail.refused(status.code, "Authentication failed");
        }
    })?;
    // Whoever may speak is not counted any more among those who have said nothing.
    if let Some(newcomer) = parts.extensions.get::<Newcomer>().filter(|_| proven.name != ANONYMOUS) {
        newcomer.proven();
    }
    let caller = authenticate::act(server, &proven, &parts.headers);
    let known = caller.as_ref().ok().cloned().unwrap_or_else(|| Caller { acting: proven.clone(), proven });
    *trail = begin(Some(&known));
    if let Some(trail) = trail {
        trail.received();
    }
    caller
}

/// Whether the caller may; the trail is told.
fn authorize(
    server: &ApiServer,
    user: &UserInfo,
    (info, attributes): (&RequestInfo, &Attributes),
    trail: Option<&Trail>,
) -> Result<(), Status> {
    let verdict = server.authorizer.decide(user, attributes, &Selected::of(info));
    if let Some(trail) = trail {
        trail.annotate("authorization.k8s.io/decision", if verdict.allowed() { "allow" } else { "forbid" });
        trail.annotate("authorization.k8s.io/reason", verdict.reason());
    }
    if verdict.allowed() { Ok(()) } else { Err(rbac::refusal(user, attributes)) }
}

/// Who asks, and their turn: held until there is an answer, or for a watch its beginning.
struct Entered {
    user: Arc<UserInfo>,
    _seat: Option<Seat>,
}

/// The way in for everyone: identify, queue, authorise.
async fn enter(
    server: &ApiServer,
    peer: &Peer,
    parts: &http::request::Parts,
    (info, attributes): (&RequestInfo, &Attributes),
    (trail, class): (&mut Option<Trail>, &mut Option<Class>),
) -> Result<Entered, Status> {
    let user = identify(server, peer, parts, (info, attributes), trail).await?.acting;
    let _seat = match &server.flow {
        Some(flow) => Some(flow.enter(&user, attributes, class).await?),
        None => None,
    };
    authorize(server, &user, (info, attributes), trail.as_ref())?;
    Ok(Entered { user, _seat })
}

async fn run(
    server: &Arc<ApiServer>,
    peer: Peer,
    request: HttpRequest<Body>,
    info: RequestInfo,
    accept: &encode::Accept,
    warnings: Warnings,
    (trail, class): (&mut Option<Trail>, &mut Option<Class>),
) -> Result<Response<Body>, Status> {
    let (parts, body) = request.into_parts();
    let attributes = Attributes::of(&info);
    let admitted = enter(server, &peer, &parts, (&info, &attributes), (trail, class)).await;
    let Entered { user, _seat } = match admitted {
        Ok(entered) => entered,
        Err(status) => {
            // HTTP/2 can refuse a body; HTTP/1 can only hang up, which may cost the client the answer.
            if parts.version != http::Version::HTTP_2 {
                body::discard(body).await;
            }
            return Err(status);
        }
    };
    let body = body::read(body, &server.access.limits).await?;
    if let Some(trail) = trail {
        trail.body(&parts.headers, &body);
    }
    let target = match &info.target {
        Target::Path(path) => return paths::answer(server, path, &info.query, &parts.headers, accept).await,
        Target::Resource(target) => target.clone(),
        Target::Extension(_) => return Err(Status::no_such_resource()),
    };
    let state = Authorized { user, _made_here: () };
    let request = Request { info, target, headers: parts.headers, body, warnings, trail: trail.clone(), state };
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
    parts: &http::request::Parts,
) -> Result<Option<(stream::Destination, Option<Trail>)>, Status> {
    let info = RequestInfo::parse(&server.definitions.catalog(), &parts.method, &parts.uri)?;
    let Target::Resource(target) = &info.target else { return Ok(None) };
    if !stream::is_streaming(target) {
        return Ok(None);
    }
    let mut attributes = Attributes::of(&info);
    if let Attributes::Resource { verb, .. } = &mut attributes
        && stream::is_session(target)
    {
        // A session is a "create", also when a WebSocket has to open it with GET.
        *verb = "create".into();
    }
    let mut trail = None;
    let destination = async {
        let caller = identify(server, peer, parts, (&info, &attributes), &mut trail).await?;
        authorize(server, &caller.acting, (&info, &attributes), trail.as_ref())?;
        if stream::is_connection(target) {
            let warnings = Warnings::default();
            let mut connect = admission::Attributes::connect(target, &info.query, &caller.acting, &warnings);
            connect.trail = trail.clone();
            admission::admit(server, &mut connect).await?;
        }
        stream::destination(server, target, &parts.uri).await
    }
    .await;
    match destination {
        Ok(destination) => Ok(Some((destination, trail))),
        Err(status) => {
            if let Some(trail) = trail {
                trail.failed(&status);
            }
            Err(status)
        }
    }
}
