//! The way to a webhook: TLS to a URL or to a Service's endpoints, connections kept for the next time.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use dhow_api::{meta, registry};
use dhow_base::tls;
use dhow_client::TlsConnection;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt};

use super::Failure;
use super::hook::{Hook, Place, Service};
use crate::cache::Cache;

/// Largest answer that is read: an object's worth of patches.
const MAX_ANSWER: usize = 3 << 20;
/// Seconds a connection waits for the next write.
const IDLE: u64 = 90;

type Connector = BoxCloneSyncService<Uri, TlsConnection, BoxError>;

/// Connections to one place, made when first needed.
pub struct Client {
    place: Place,
    cache: Arc<Cache>,
    pool: Mutex<Option<Pool<Connector, Full<Bytes>>>>,
}

impl Client {
    pub fn new(place: Place, cache: Arc<Cache>) -> Self {
        Self { place, cache, pool: Mutex::new(None) }
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    fn pool(&self) -> Result<Pool<Connector, Full<Bytes>>, String> {
        let mut pool = self.pool.lock();
        if let Some(pool) = &*pool {
            return Ok(pool.clone());
        }
        let config = tls::client_config(&authorities(&self.place)?, None).map_err(|error| error.to_string())?;
        let (tls, place, cache) = (TlsConnector::from(config), Arc::new(self.place.clone()), self.cache.clone());
        let connect = tower::service_fn(move |_: Uri| {
            let (tls, place, cache) = (tls.clone(), place.clone(), cache.clone());
            async move {
                let name = ServerName::try_from(place.host.clone())?;
                let tcp = dial(&place, &cache).await?;
                tcp.set_nodelay(true)?;
                Ok::<_, BoxError>(TlsConnection::new(tls.connect(name, tcp).await?))
            }
        });
        let made = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(std::time::Duration::from_secs(IDLE))
            .build(BoxCloneSyncService::new(connect.map_err(BoxError::from)));
        Ok(pool.insert(made).clone())
    }
}

/// Whom to believe: the bundle, else whom the system believes.
pub fn authorities(place: &Place) -> Result<String, String> {
    if !place.ca.trim().is_empty() {
        return Ok(place.ca.clone());
    }
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err("there is no caBundle, and the system has no authorities".into());
    }
    let encode = |der: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    let pem = |der: &[u8]| format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", encode(der));
    Ok(found.certs.iter().map(|certificate| pem(certificate)).collect())
}

/// Posts a review and reads the answer whole.
pub async fn post(hook: &Hook, review: &Value) -> Result<Bytes, Failure> {
    let failed = |why: String| Failure::Call(format!("failed to call webhook: {why}"));
    let uri = hook.uri.as_ref().map_err(|why| failed(why.clone()))?;
    let posted = |why: String| failed(format!("Post \"{uri}\": {why}"));
    let request = Request::post(uri.clone())
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json, */*")
        .header(header::USER_AGENT, "kube-apiserver-admission")
        .body(Full::new(Bytes::from(review.to_string())))
        .map_err(|error| failed(error.to_string()))?;
    let pool = hook.client.pool().map_err(failed)?;
    let exchange = async {
        let answer = pool.request(request).await.map_err(|error| posted(chain(&error)))?;
        let code = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| posted(error.to_string()))?.to_bytes();
        if code.is_success() {
            return Ok(body);
        }
        if code.as_u16() == 404 {
            return Err(failed("the server could not find the requested resource".into()));
        }
        let said = String::from_utf8_lossy(&body[..body.len().min(1024)]).trim().to_owned();
        Err(failed(format!("an error on the server ({said:?}) has prevented the request from succeeding")))
    };
    match tokio::time::timeout(hook.timeout, exchange).await {
        Ok(result) => result,
        Err(_) => Err(posted("context deadline exceeded".into())),
    }
}

/// An error with what caused it: the outermost alone says nothing.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !texts.last().is_some_and(|last| last.contains(&text)) {
            texts.push(text);
        }
        source = inner.source();
    }
    texts.join(": ")
}

pub async fn dial(place: &Place, cache: &Cache) -> Result<TcpStream, BoxError> {
    let targets = match &place.service {
        Some(service) => endpoints(service, place.port, cache)?,
        None => vec![(place.host.clone(), place.port)],
    };
    let mut last = None;
    for (host, port) in &targets {
        match TcpStream::connect((host.as_str(), *port)).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = Some(io::Error::new(error.kind(), format!("dial tcp {host}:{port}: {error}"))),
        }
    }
    Err(last.map_or_else(|| BoxError::from("no address"), BoxError::from))
}

/// Addresses behind a port of a Service: ready endpoints, each its turn first.
pub fn endpoints(wanted: &Service, port: u16, cache: &Cache) -> Result<Vec<(String, u16)>, BoxError> {
    let Service { namespace, name } = wanted;
    let missing = || BoxError::from(format!("service \"{name}\" not found"));
    let services = registry::builtin().get("", "v1", "services").ok_or_else(missing)?;
    let service = cache.get(services, &services.storage_key(Some(namespace), name)).ok_or_else(missing)?;
    let service = service.value()?;
    if meta::text(&service, &["spec", "type"]) == "ExternalName" {
        return Ok(vec![(meta::text(&service, &["spec", "externalName"]).to_owned(), port)]);
    }
    let ports = meta::items(&service, &["spec", "ports"]);
    let found = ports.iter().find(|entry| entry["port"] == port);
    let entry = found.ok_or_else(|| BoxError::from(format!("no service port {port} found for service \"{name}\"")))?;
    let title = entry["name"].as_str().unwrap_or_default();
    let slices = registry::builtin().get("discovery.k8s.io", "v1", "endpointslices").ok_or_else(missing)?;
    let mut targets = Vec::new();
    for slice in cache.objects(slices)?.values() {
        let of_service = slice.header.labels.get("kubernetes.io/service-name") == Some(name);
        if slice.header.namespace != *namespace || !of_service {
            continue;
        }
        let slice = slice.value()?;
        let named = |entry: &&Value| entry["name"].as_str().unwrap_or_default() == title;
        let number = meta::items(&slice, &["ports"]).iter().find(named).and_then(|entry| entry["port"].as_u64());
        let Some(number) = number.and_then(|number| u16::try_from(number).ok()) else { continue };
        for endpoint in meta::items(&slice, &["endpoints"]) {
            if endpoint["conditions"]["ready"] == false {
                continue;
            }
            let addresses = meta::items(endpoint, &["addresses"]).iter().filter_map(Value::as_str);
            targets
                .extend(addresses.filter(|text| text.parse::<IpAddr>().is_ok()).map(|text| (text.to_owned(), number)));
        }
    }
    if targets.is_empty() {
        return Err(BoxError::from(format!("no endpoints available for service \"{name}\"")));
    }
    let turn = usize::try_from(uuid::Uuid::new_v4().as_u128() % targets.len() as u128).unwrap_or(0);
    targets.rotate_left(turn);
    Ok(targets)
}
