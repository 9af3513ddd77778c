//! The audit log: who asked for what, as whom, and what became of it. Without a policy there is no work.

mod policy;
mod sink;
mod webhook;

use std::sync::Arc;

use bytes::Bytes;
use dhow_api::{cbor, meta, protobuf};
use dhow_base::metrics::{Counter, Counters};
use dhow_client::{Body, full};
use http::{HeaderMap, HeaderName, HeaderValue, Response, Uri};
use http_body::Body as _;
use http_body_util::BodyExt;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

pub use policy::Policy;
use policy::{Decision, Level, Stage};
pub use sink::AuditFile;
use sink::Sink;
pub use webhook::AuditWebhook;

use crate::authenticate::Caller;
use crate::held::Held;
use crate::identity::UserInfo;
use crate::info::{RequestInfo, Target};
use crate::metrics::Metrics;
use crate::rbac::Attributes;
use crate::{Error, body};

/// What is recorded, and where.
pub struct AuditConfig {
    pub policy: Policy,
    pub file: Option<AuditFile>,
    pub webhook: Option<AuditWebhook>,
}

pub struct Log {
    policy: Policy,
    file: Option<Sink>,
    webhook: Option<webhook::Sender>,
    written: Counter,
    levels: Counters,
}

/// The address a request came from, as an extension of the request.
#[derive(Debug, Clone, Copy)]
pub struct Source(pub std::net::IpAddr);

/// One request's trail. Cheap to clone; clones are the same trail.
#[derive(Clone)]
pub struct Trail(Arc<Inner>);

struct Inner {
    log: Arc<Log>,
    decision: Decision,
    /// What is known so far.
    event: Mutex<Map<String, Value>>,
    watch: bool,
}

impl Log {
    pub fn open(config: AuditConfig, metrics: &Metrics) -> Result<Arc<Self>, Error> {
        let lost = |plugin: &str| metrics.audit_lost.with(&[plugin]);
        Ok(Arc::new(Self {
            policy: config.policy,
            file: config.file.map(|file| Sink::open(file, lost("log"))).transpose()?,
            webhook: config.webhook.map(|webhook| webhook.start(lost("webhook"))),
            written: metrics.audit_events.clone(),
            levels: metrics.audit_levels.clone(),
        }))
    }

    /// Begins a request's trail, if the policy wants one. `caller` is `None` if nobody was proven.
    pub fn begin(
        self: &Arc<Self>,
        info: &RequestInfo,
        attributes: &Attributes,
        caller: Option<&Caller>,
        uri: &Uri,
        headers: &HeaderMap,
        source: Option<Source>,
    ) -> Option<Trail> {
        let nobody =
            UserInfo { name: String::new(), uid: String::new(), groups: Vec::new(), extra: Default::default() };
        let user = caller.map_or(&nobody, |caller| &caller.proven);
        let decision = self.policy.decide(user, attributes);
        self.levels.with(&[decision.level.name()]).inc();
        if decision.level == Level::None {
            return None;
        }
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let id = header("audit-id").filter(|id| !id.is_empty() && id.len() <= 64).map(str::to_owned);
        let verb = match attributes {
            Attributes::Resource { verb, .. } | Attributes::Path { verb, .. } => verb,
        };
        let mut event = Map::new();
        event.insert("kind".into(), json!("Event"));
        event.insert("apiVersion".into(), json!("audit.k8s.io/v1"));
        event.insert("level".into(), json!(decision.level.name()));
        event.insert("auditID".into(), json!(id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string())));
        event.insert("stage".into(), Value::Null);
        event.insert("requestURI".into(), json!(uri.path_and_query().map_or(uri.path(), |whole| whole.as_str())));
        event.insert("verb".into(), json!(verb));
        event.insert("user".into(), user_info(user));
        if let Some(caller) = caller.filter(|caller| !Arc::ptr_eq(&caller.proven, &caller.acting)) {
            event.insert("impersonatedUser".into(), user_info(&caller.acting));
        }
        let forwarded = header("x-forwarded-for").unwrap_or_default().split(',').map(|ip| ip.trim().to_owned());
        let direct = source.map(|Source(ip)| ip.to_string());
        let sources: Vec<String> = forwarded.filter(|ip| !ip.is_empty()).chain(direct).collect();
        if !sources.is_empty() {
            event.insert("sourceIPs".into(), json!(sources));
        }
        if let Some(agent) = header("user-agent") {
            event.insert("userAgent".into(), json!(agent));
        }
        let version = match &info.target {
            Target::Resource(target) => Some(target.kind.version),
            Target::Extension(target) => Some(target.version.as_str()),
            Target::Path(_) => None,
        };
        if let Some(version) = version {
            event.insert("objectRef".into(), reference(attributes, version));
        }
        event.insert("requestReceivedTimestamp".into(), now());
        let watch = info.verb == "watch";
        Some(Trail(Arc::new(Inner { log: self.clone(), decision, event: Mutex::new(event), watch })))
    }

    fn write(&self, event: &Map<String, Value>) {
        if let Ok(line) = serde_json::to_vec(event) {
            self.written.inc();
            let line = Bytes::from(line);
            if let Some(file) = &self.file {
                file.write(line.clone());
            }
            if let Some(webhook) = &self.webhook {
                webhook.write(line);
            }
        }
    }
}

impl Trail {
    /// The request is there, but for its body.
    pub fn received(&self) {
        self.emit(Stage::RequestReceived);
    }

    /// The body is there: that is recorded, or only says which object it is about.
    pub fn body(&self, headers: &HeaderMap, body: &[u8]) {
        let recorded = self.wants_bodies();
        let unnamed = || {
            let event = self.0.event.lock();
            event.get("objectRef").is_some_and(|reference| reference.is_object() && reference["name"].is_null())
        };
        if body.is_empty() || !recorded && !unnamed() {
            return;
        }
        let Some(object) = self.tree(body::media_type(headers), body) else { return };
        let mut event = self.0.event.lock();
        if let Some(reference) = event.get_mut("objectRef").and_then(Value::as_object_mut) {
            for field in ["name", "namespace", "uid", "resourceVersion"] {
                let known = meta::text(&object, &["metadata", field]);
                if !known.is_empty() {
                    reference.entry(field).or_insert_with(|| json!(known));
                }
            }
        }
        if recorded {
            event.insert("requestObject".into(), object);
        }
    }

    /// Adds an annotation. The first of a name stays, so that nobody hides what another has found.
    pub fn annotate(&self, key: &str, value: &str) {
        let mut event = self.0.event.lock();
        if let Some(annotations) = event.entry("annotations").or_insert_with(|| json!({})).as_object_mut() {
            annotations.entry(key).or_insert_with(|| json!(value));
        }
    }

    /// Whether bodies of requests are recorded.
    pub fn wants_bodies(&self) -> bool {
        self.0.decision.level >= Level::Request
    }

    /// The answer is there. A stream's trail ends with the stream.
    pub async fn answered(self, response: Response<Body>) -> Response<Body> {
        let code = response.status();
        let whole = response.body().size_hint().exact().is_some();
        let wanted = self.0.decision.level >= Level::RequestResponse || !code.is_success();
        let mut response = if whole && wanted && !(self.0.watch && code.is_success()) {
            let (parts, body) = response.into_parts();
            let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let object = self.tree(body::media_type(&parts.headers), &bytes);
            self.status(code.as_u16(), object.as_ref());
            if let Some(object) = object.filter(|_| self.0.decision.level >= Level::RequestResponse) {
                self.0.event.lock().insert("responseObject".into(), object);
            }
            Response::from_parts(parts, full(bytes))
        } else {
            self.status(code.as_u16(), None);
            response
        };
        let id =
            self.0.event.lock().get("auditID").and_then(Value::as_str).and_then(|id| HeaderValue::from_str(id).ok());
        response.headers_mut().extend(id.map(|id| (HeaderName::from_static("audit-id"), id)));
        if whole {
            self.emit(Stage::ResponseComplete);
            return response;
        }
        let open = self.started();
        response.map(|body| Held::new(body, open).boxed_unsync())
    }

    /// A stream has begun; it is complete when what this returns is dropped.
    pub fn started(self) -> Open {
        self.emit(Stage::ResponseStarted);
        Open(self)
    }

    /// The answer to somebody who could not be proven.
    pub fn refused(self, code: u16, message: &str) {
        self.status(code, Some(&json!({"kind": "Status", "status": "Failure", "message": message})));
        self.emit(Stage::ResponseStarted);
    }

    /// An error is the answer.
    pub fn failed(self, status: &dhow_api::Status) {
        let object = status.to_value();
        self.status(status.code, Some(&object));
        if self.0.decision.level >= Level::RequestResponse {
            self.0.event.lock().insert("responseObject".into(), object);
        }
        self.emit(Stage::ResponseComplete);
    }

    pub fn panicked(&self) {
        self.status(500, Some(&json!({"kind": "Status", "status": "Failure", "reason": "InternalError"})));
        self.emit(Stage::Panic);
    }

    /// Notes the answer's code, and what a `Status` says.
    pub fn status(&self, code: u16, object: Option<&Value>) {
        let mut status = json!({"metadata": {}, "code": code});
        if let Some(object) = object.filter(|object| object["kind"] == "Status") {
            for field in ["status", "message", "reason", "details"] {
                if let Some(value) = object.get(field).filter(|value| !value.is_null()) {
                    status[field] = value.clone();
                }
            }
        }
        self.0.event.lock().insert("responseStatus".into(), status);
    }

    fn emit(&self, stage: Stage) {
        if self.0.decision.omitted.contains(&stage) {
            return;
        }
        let mut event = self.0.event.lock();
        event.insert("stage".into(), json!(stage.name()));
        event.insert("stageTimestamp".into(), now());
        self.0.log.write(&event);
    }

    /// A body as a tree, without managed fields if they are omitted; `None` for what is none.
    fn tree(&self, media_type: &str, bytes: &[u8]) -> Option<Value> {
        let mut tree: Value = match media_type {
            "application/vnd.kubernetes.protobuf" => protobuf::decode(bytes).ok()?,
            "application/cbor" => cbor::decode(bytes).ok()?,
            yaml if yaml.ends_with("yaml") => serde_saphyr::from_str(std::str::from_utf8(bytes).ok()?).ok()?,
            _ => serde_json::from_slice(bytes).ok()?,
        };
        if self.0.decision.omit_managed_fields {
            let strip = |object: &mut Value| {
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("managedFields");
                }
            };
            strip(&mut tree);
            tree.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(strip);
        }
        Some(tree)
    }
}

/// A stream that goes on. Dropped, it is complete.
pub struct Open(Trail);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.emit(Stage::ResponseComplete);
    }
}

fn now() -> Value {
    json!(format!("{:.6}", Timestamp::now()))
}

fn user_info(user: &UserInfo) -> Value {
    let mut info = json!({});
    if !user.name.is_empty() {
        info["username"] = json!(user.name);
    }
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn reference(attributes: &Attributes, version: &str) -> Value {
    let Attributes::Resource { group, resource, subresource, namespace, name, .. } = attributes else {
        return Value::Null;
    };
    let fields = [
        ("resource", resource.as_str()),
        ("namespace", namespace),
        ("name", name),
        ("apiGroup", group),
        ("apiVersion", version),
        ("subresource", subresource),
    ];
    fields
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.to_owned(), json!(value)))
        .collect()
}
