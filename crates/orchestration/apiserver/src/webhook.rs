//! The way to a webhook: TLS to a URL or to a Service's endpoints, connections kept for the next time.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use dhow_api::{meta, registry};
use dhow_base::{chain, tls};
use dhow_client::TlsConnection;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt};

use crate::cache::Cache;

/// How long a connection waits for the next request.
const IDLE: Duration = Duration::from_secs(90);

pub type Connector = BoxCloneSyncService<Uri, TlsConnection, BoxError>;

/// A webhook as its `clientConfig` says.
pub struct Endpoint {
    timeout: Duration,
    /// Where to post, with the timeout as a parameter.
    uri: Result<Uri, String>,
    client: Arc<Client>,
}

/// Where a webhook is and whom it has to be: hooks that agree on it share connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub host: String,
    pub port: u16,
    pub service: Option<Service>,
    /// Authorities in PEM; the system's when there are none.
    pub ca: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub namespace: String,
    pub name: String,
}

/// Connections to one place, made when first needed.
struct Client {
    place: Place,
    cache: Arc<Cache>,
    pool: Mutex<Option<Pool<Connector, Full<Bytes>>>>,
}

impl Client {
    fn pool(&self) -> Result<Pool<Connector, Full<Bytes>>, String> {
        let mut pool = self.pool.lock();
        if let Some(pool) = &*pool {
            return Ok(pool.clone());
        }
        let config = tls::client_config(&authorities(&self.place)?, None).map_err(|error| error.to_string())?;
        let made = connections(self.place.clone(), config, self.cache.clone());
        Ok(pool.insert(made).clone())
    }
}

/// Connections over TLS to one place, made when needed and kept for a while.
pub fn connections<B>(place: Place, config: Arc<ClientConfig>, cache: Arc<Cache>) -> Pool<Connector, B>
where
    B: http_body::Body<Data: Send> + Send,
{
    let (tls, place) = (TlsConnector::from(config), Arc::new(place));
    let connect = tower::service_fn(move |_: Uri| {
        let (tls, place, cache) = (tls.clone(), place.clone(), cache.clone());
        async move {
            let name = ServerName::try_from(place.host.clone())?;
            let tcp = dial(&place, &cache).await?;
            tcp.set_nodelay(true)?;
            Ok::<_, BoxError>(TlsConnection::new(tls.connect(name, tcp).await?))
        }
    });
    Pool::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .build(BoxCloneSyncService::new(connect.map_err(BoxError::from)))
}

/// Whom to believe: the bundle, else whom the system believes.
pub fn authorities(place: &Place) -> Result<String, String> {
    if !place.ca.trim().is_empty() {
        return Ok(place.ca.clone());
    }
    match system_authorities() {
        none if none.is_empty() => Err("there is no caBundle, and the system has no authorities".into()),
        pem => Ok(pem),
    }
}

/// The authorities that the system trusts, as PEM.
pub fn system_authorities() -> String {
    let encode = |der: &[u8]| base64::engine::general_purpose::STANDARD.encode(der);
    rustls_native_certs::load_native_certs()
        .certs
        .iter()
        .map(|der| format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", encode(der)))
        .collect()
}

impl Endpoint {
    /// Reads a `clientConfig`. Who is known at the same place lends its connections.
    pub fn read(config: &Value, seconds: u64, cache: &Arc<Cache>, known: &[&Self]) -> Self {
        let ca = config["caBundle"].as_str().unwrap_or_default();
        let ca = base64::engine::general_purpose::STANDARD.decode(ca).unwrap_or_default();
        let (place, uri) = place(config, String::from_utf8_lossy(&ca).into_owned(), seconds);
        let shared = known.iter().map(|endpoint| &endpoint.client).find(|client| client.place == place);
        let client = match shared {
            Some(client) => client.clone(),
            None => Arc::new(Client { place, cache: cache.clone(), pool: Mutex::new(None) }),
        };
        Self { timeout: Duration::from_secs(seconds), uri, client }
    }

    /// Posts a review and reads the answer whole, if it has at most `limit` bytes.
    pub async fn post(&self, review: &Value, limit: usize) -> Result<Bytes, String> {
        let uri = self.uri.clone()?;
        let posted = |why: String| format!("Post \"{uri}\": {why}");
        let request = Request::post(uri.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(Full::new(Bytes::from(review.to_string())))
            .map_err(|error| error.to_string())?;
        let pool = self.client.pool()?;
        let exchange = async {
            let answer = pool.request(request).await.map_err(|error| posted(chain(&error)))?;
            let code = answer.status();
            let body = Limited::new(answer.into_body(), limit).collect().await;
            let body = body.map_err(|error| posted(error.to_string()))?.to_bytes();
            if code.is_success() {
                return Ok(body);
            }
            if code.as_u16() == 404 {
                return Err("the server could not find the requested resource".into());
            }
            let said = String::from_utf8_lossy(&body[..body.len().min(1024)]).trim().to_owned();
            Err(format!("an error on the server ({said:?}) has prevented the request from succeeding"))
        };
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(result) => result,
            Err(_) => Err(posted("context deadline exceeded".into())),
        }
    }
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
    let service = cache.find("", "services", Some(namespace), name).ok_or_else(missing)?.value()?;
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

fn place(config: &Value, ca: String, seconds: u64) -> (Place, Result<Uri, String>) {
    let service = &config["service"];
    if service.is_object() {
        let text = |field: &str| service[field].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
        let host = format!("{name}.{namespace}.svc");
        let path = text("path");
        let uri = with_timeout(&format!("https://{host}:{port}/{}", path.trim_start_matches('/')), seconds);
        return (Place { host, port, service: Some(Service { namespace, name }), ca }, uri);
    }
    let uri = with_timeout(config["url"].as_str().unwrap_or_default(), seconds);
    let host = uri.as_ref().ok().and_then(Uri::host).unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.as_ref().ok().and_then(Uri::port_u16).unwrap_or(443);
    (Place { host, port, service: None, ca }, uri)
}

fn with_timeout(url: &str, seconds: u64) -> Result<Uri, String> {
    let separator = if url.contains('?') { '&' } else { '?' };
    let uri: Uri =
        format!("{url}{separator}timeout={seconds}s").parse().map_err(|error| format!("{url:?}: {error}"))?;
    if uri.scheme_str() == Some("https") && uri.host().is_some() {
        Ok(uri)
    } else {
        Err(format!("{url:?} is not https"))
    }
}
