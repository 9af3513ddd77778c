//! One group version that another server answers: the way there, and whether it can be taken.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use dhow_api::{meta, registry};
use dhow_base::chain;
use dhow_base::tls::{self, LiveCert};
use dhow_client::{Body, full};
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Pool;
use parking_lot::Mutex;
use serde_json::Value;

use super::{metrics, swagger};
use crate::cache::Cache;
use crate::webhook::{Connector, Place, Service, authorities, connections, endpoints};

/// What an extension server gets to answer a check.
const PATIENCE: Duration = Duration::from_secs(5);
/// Before one that failed is checked again although nothing changed.
pub const AGAIN: Duration = Duration::from_secs(30);
/// Largest list of resources that is read.
const MAX_DISCOVERY: usize = 4 << 20;

pub struct Remote {
    pub group: String,
    pub version: String,
    pub version_priority: i64,
    pub service: Service,
    port: u16,
    /// The object's uid and specification.
    made_of: (String, Value),
    pools: Result<Pools, String>,
    state: Mutex<State>,
}

/// Connections to an extension server.
struct Pools {
    usual: Pool<Connector, Body>,
    /// Of HTTP/1.1, which can switch to another protocol.
    switching: Pool<Connector, Body>,
}

/// What is known of an extension server.
#[derive(Clone, Default)]
pub struct State {
    pub available: bool,
    pub reason: &'static str,
    pub message: String,
    /// Its `APIResourceList`, as it was last.
    pub resources: Option<Arc<Value>>,
    /// Where its OpenAPI document is, if it has one.
    pub openapi: Option<String>,
    /// What its OpenAPI document of version 2 says of the group version.
    pub swagger: Option<Arc<Value>>,
    /// Revisions of the service and its endpoints.
    basis: String,
    checked: Option<Instant>,
    suspect: bool,
}

type Problem = (&'static str, String);

impl Remote {
    /// The metrics of nodes and pods, which this server answers itself.
    pub fn here() -> Self {
        let state = State {
            available: true,
            reason: "Local",
            message: "Local APIServices are always available".into(),
            resources: Some(Arc::new(metrics::resources())),
            ..State::default()
        };
        Self {
            group: metrics::GROUP.into(),
            version: metrics::VERSION.into(),
            version_priority: 100,
            service: Service { namespace: String::new(), name: String::new() },
            port: 0,
            made_of: (String::new(), Value::Null),
            pools: Err("answered by this server".into()),
            state: Mutex::new(state),
        }
    }

    /// Whether this server answers it itself.
    pub fn is_here(&self) -> bool {
        self.made_of.1.is_null()
    }

    /// From an APIService; `None` if that is a local one.
    pub fn of(object: &Value, cache: &Arc<Cache>, client: Option<&Arc<LiveCert>>) -> Option<Self> {
        let spec = object.get("spec")?;
        let service = spec.get("service").filter(|service| !service.is_null())?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let service = Service { namespace: text(&service["namespace"]), name: text(&service["name"]) };
        let port = u16::try_from(meta::int(object, &["spec", "service", "port"])).ok().filter(|port| *port > 0);
        let port = port.unwrap_or(443);
        let bundle = base64::engine::general_purpose::STANDARD.decode(text(&spec["caBundle"])).unwrap_or_default();
        let place = Place {
            host: format!("{}.{}.svc", service.name, service.namespace),
            port,
            service: Some(service.clone()),
            ca: String::from_utf8_lossy(&bundle).into_owned(),
        };
        let careless = spec["insecureSkipTLSVerify"] == true;
        Some(Self {
            group: text(&spec["group"]),
            version: text(&spec["version"]),
            version_priority: meta::int(object, &["spec", "versionPriority"]),
            service,
            port,
            made_of: made_of(object),
            pools: pools(place, careless, cache.clone(), client.cloned()),
            state: Mutex::default(),
        })
    }

    /// Whether it is what the object says.
    pub fn is_of(&self, object: &Value) -> bool {
        self.made_of == made_of(object)
    }

    pub fn state(&self) -> State {
        self.state.lock().clone()
    }

    /// It did not answer: the next check is not to wait for a change.
    pub fn suspect(&self) {
        self.state.lock().suspect = true;
    }

    /// How long until it is checked again without a change; `None` if it is available.
    pub fn due_in(&self) -> Option<Duration> {
        let state = self.state.lock();
        let waited = state.checked.map_or(AGAIN, |checked| checked.elapsed());
        (!state.available).then(|| AGAIN.saturating_sub(waited))
    }

    /// Checks it, if something changed or it failed a while ago.
    pub async fn check(&self, cache: &Cache) {
        let basis = self.basis(cache);
        {
            let mut state = self.state.lock();
            let fresh = state.checked.is_some_and(|checked| state.available || checked.elapsed() < AGAIN);
            if fresh && state.basis == basis && !state.suspect {
                return;
            }
            state.suspect = false;
        }
        let found = match self.backend(cache) {
            Ok(()) => self.discover().await,
            Err(problem) => Err(problem),
        };
        let (openapi, swagger) = match &found {
            Ok(_) => (self.openapi().await, self.swagger().await),
            Err(_) => (None, None),
        };
        let mut state = self.state.lock();
        (state.basis, state.checked) = (basis, Some(Instant::now()));
        match found {
            Ok(resources) => {
                (state.available, state.reason, state.message) = (true, "Passed", "all checks passed".into());
                (state.resources, state.openapi) = (Some(Arc::new(resources)), openapi);
                // Whoever has the whole document keeps it while the parts are the same.
                if state.swagger.as_deref() != swagger.as_ref() {
                    state.swagger = swagger.map(Arc::new);
                }
            }
            Err((reason, message)) => (state.available, state.reason, state.message) = (false, reason, message),
        }
    }

    /// What a check depends on.
    fn basis(&self, cache: &Cache) -> String {
        let mut all = Vec::new();
        let service = cache.find("", "services", Some(&self.service.namespace), &self.service.name);
        all.extend(service.map(|stored| stored.revision));
        if let Some(slices) = registry::builtin().get("discovery.k8s.io", "v1", "endpointslices") {
            let objects = cache.objects(slices).unwrap_or_default();
            let own = objects.values().filter(|slice| self.has(&slice.header));
            all.extend(own.map(|slice| slice.revision));
        }
        format!("{all:?}")
    }

    /// Whether an EndpointSlice is of its service.
    pub fn has(&self, slice: &dhow_api::ObjectHeader) -> bool {
        slice.namespace == self.service.namespace
            && slice.labels.get("kubernetes.io/service-name") == Some(self.service.name.as_str())
    }

    /// Looks for the service and for somebody behind it.
    fn backend(&self, cache: &Cache) -> Result<(), Problem> {
        let Service { namespace, name } = &self.service;
        let missing = || ("ServiceNotFound", format!("service/{name} in {namespace:?} is not present"));
        let service = cache.find("", "services", Some(namespace), name).ok_or_else(missing)?;
        let service = service.value().map_err(|status| ("ServiceAccessError", status.message))?;
        if meta::text(&service, &["spec", "type"]) == "ExternalName" {
            return Ok(());
        }
        let ports = meta::items(&service, &["spec", "ports"]);
        let Some(port) = ports.iter().find(|entry| entry["port"] == self.port) else {
            let message = format!("service/{name} in {namespace:?} is not listening on port {}", self.port);
            return Err(("ServicePortError", message));
        };
        let none = || ("EndpointsNotFound", format!("cannot find endpoints for service/{name} in {namespace:?}"));
        let slices = registry::builtin().get("discovery.k8s.io", "v1", "endpointslices").ok_or_else(none)?;
        let objects = cache.objects(slices).map_err(|_| none())?;
        if !objects.values().any(|slice| self.has(&slice.header)) {
            return Err(none());
        }
        endpoints(&self.service, self.port, cache).map(drop).map_err(|_| {
            let title = port["name"].as_str().unwrap_or_default();
            let text =
                format!("endpoints for service/{name} in {namespace:?} have no addresses with port name {title:?}");
            ("MissingEndpoints", text)
        })
    }

    /// Asks for its resources, which shows that it works.
    async fn discover(&self) -> Result<Value, Problem> {
        let path = format!("/apis/{}/{}", self.group, self.version);
        let url = format!("https://{}{path}", self.authority());
        let failed = |why: String| ("FailedDiscoveryCheck", format!("failing or missing response from {url}: {why}"));
        let (code, body) = self.ask(&path).await.map_err(|why| failed(format!("Get \"{url}\": {why}")))?;
        if !(200..300).contains(&code) {
            return Err(failed(format!("bad status from {url}: {code}")));
        }
        serde_json::from_slice(&body).map_err(|error| failed(error.to_string()))
    }

    /// Where its server says that the OpenAPI document of the group version is.
    async fn openapi(&self) -> Option<String> {
        let (code, body) = self.ask("/openapi/v3").await.ok()?;
        let root: Value = serde_json::from_slice(&body).ok().filter(|_| code == 200)?;
        let own = format!("apis/{}/{}", self.group, self.version);
        let url = root["paths"][own.as_str()]["serverRelativeURL"].as_str()?;
        url.starts_with(&format!("/openapi/v3/{own}")).then(|| url.to_owned())
    }

    /// Its part of the document of version 2, if it has one.
    async fn swagger(&self) -> Option<Value> {
        let (code, body) = self.ask("/openapi/v2").await.ok()?;
        let document: Value = serde_json::from_slice(&body).ok().filter(|_| code == 200)?;
        swagger::own(&document, &self.group, &self.version)
    }

    /// One GET by this server itself.
    async fn ask(&self, path: &str) -> Result<(u16, Bytes), String> {
        let mut request = Request::get(path).body(full(Bytes::new())).map_err(|error| error.to_string())?;
        let headers = request.headers_mut();
        headers.insert("x-remote-user", HeaderValue::from_static("system:kube-aggregator"));
        headers.insert("x-remote-group", HeaderValue::from_static(crate::identity::MASTERS));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let exchange = async {
            let answer = self.send(request).await?;
            let code = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), MAX_DISCOVERY).collect().await;
            Ok((code, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err("context deadline exceeded".into()),
        }
    }

    fn authority(&self) -> String {
        format!("{}.{}.svc:{}", self.service.name, self.service.namespace, self.port)
    }

    /// Sends a request whose URI is a path.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, String> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let uri = format!("https://{}{path}", self.authority()).parse();
        *request.uri_mut() = uri.map_err(|error: http::uri::InvalidUri| error.to_string())?;
        *request.version_mut() = http::Version::HTTP_11;
        let pools = self.pools.as_ref().map_err(Clone::clone)?;
        let switches = request.headers().contains_key(header::UPGRADE);
        let pool = if switches { &pools.switching } else { &pools.usual };
        pool.request(request).await.map_err(|error| chain(&error))
    }
}

fn made_of(object: &Value) -> (String, Value) {
    (meta::uid(object).to_owned(), object["spec"].clone())
}

fn pools(place: Place, careless: bool, cache: Arc<Cache>, client: Option<Arc<LiveCert>>) -> Result<Pools, String> {
    let config = match careless {
        true => tls::client_config_unverified(client),
        false => tls::client_config_with(&authorities(&place)?, client),
    };
    let config = config.map_err(|error| error.to_string())?;
    let mut plain = (*config).clone();
    plain.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Pools {
        usual: connections(place.clone(), config, cache.clone()),
        switching: connections(place, Arc::new(plain), cache),
    })
}
