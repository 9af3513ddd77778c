//! The way to one extender: HTTP or HTTPS, connections kept for the next time, never longer than it may take.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dhow_client::TlsConnection;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_rustls::TlsConnector;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt};

use super::settings::ExtenderConfig;
use crate::ConfigError;

/// Answers name nodes, perhaps with the whole objects of a large cluster.
const MOST: usize = 256 << 20;

type Secure = BoxCloneSyncService<Uri, TlsConnection, BoxError>;

enum Connections {
    Plain(Pool<HttpConnector, Full<Bytes>>),
    Tls(Pool<Secure, Full<Bytes>>),
}

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    #[error("it answered {code} to {verb}")]
    Status { verb: String, code: u16 },
    #[error("{0}")]
    Answer(String),
}

/// Requests to one extender under way at a time.
const AT_ONCE: usize = 32;

pub struct Caller {
    /// Without the verb.
    prefix: String,
    timeout: Duration,
    connections: Connections,
    turns: Semaphore,
}

impl Caller {
    pub fn new(config: &ExtenderConfig) -> Result<Self, ConfigError> {
        let invalid = |why: String| ConfigError::Invalid(format!("extender {}: {why}", config.url_prefix));
        let uri: Uri = config.url_prefix.parse().map_err(|error| invalid(format!("urlPrefix: {error}")))?;
        let host = uri.host().ok_or_else(|| invalid("urlPrefix names no host".to_owned()))?.to_owned();
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(invalid("urlPrefix is neither http:// nor https://".to_owned())),
        };
        let connections = if secure {
            let name = config.tls_config.server_name.clone().filter(|name| !name.is_empty()).unwrap_or(host);
            let tls = config.tls().map_err(invalid)?;
            Connections::Tls(Pool::builder(TokioExecutor::new()).build(connector(name, tls)))
        } else {
            let mut tcp = HttpConnector::new();
            tcp.set_nodelay(true);
            Connections::Plain(Pool::builder(TokioExecutor::new()).build(tcp))
        };
        Ok(Self {
            prefix: config.url_prefix.trim_end_matches('/').to_owned(),
            timeout: config.timeout().map_err(invalid)?,
            connections,
            turns: Semaphore::new(AT_ONCE),
        })
    }

    /// To be had before a question is put together; waiting for it is not the extender's time.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.acquire().await.ok()
    }

    pub async fn post(&self, verb: &str, body: &Value) -> Result<Value, CallError> {
        let uri = format!("{}/{}", self.prefix, verb.trim_start_matches('/'));
        let request = Request::post(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|error| CallError::Unreachable(error.to_string()))?;
        let exchange = async {
            let answer = match &self.connections {
                Connections::Plain(pool) => pool.request(request).await,
                Connections::Tls(pool) => pool.request(request).await,
            };
            let answer = answer.map_err(|error| CallError::Unreachable(dhow_base::chain(&error)))?;
            if answer.status() != http::StatusCode::OK {
                return Err(CallError::Status { verb: verb.to_owned(), code: answer.status().as_u16() });
            }
            let body = Limited::new(answer.into_body(), MOST).collect().await;
            let body = body.map_err(|error| CallError::Answer(format!("its answer broke off: {error}")))?.to_bytes();
            serde_json::from_slice(&body).map_err(|error| CallError::Answer(format!("its answer is not JSON: {error}")))
        };
        tokio::time::timeout(self.timeout, exchange).await.unwrap_or(Err(CallError::Late(self.timeout)))
    }
}

fn connector(name: String, config: Arc<ClientConfig>) -> Secure {
    let (tls, name) = (TlsConnector::from(config), Arc::new(name));
    let connect = tower::service_fn(move |uri: Uri| {
        let (tls, name) = (tls.clone(), Arc::clone(&name));
        async move {
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
            let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from(name.trim_start_matches('[').trim_end_matches(']').to_owned())?;
            Ok::<_, BoxError>(TlsConnection::new(tls.connect(name, tcp).await?))
        }
    });
    BoxCloneSyncService::new(connect.map_err(BoxError::from))
}
