//! The transport over HTTPS: pooled HTTP/2 connections, the cluster's CA, certificates or tokens.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::servers::Servers;
use crate::tls_connector::TlsConnector;
use crate::transport::{Body, Transport, full};
use crate::{Error, kubeconfig};

/// A machine that is gone says nothing: so long is waited for a connection to it…
const CONNECT: Duration = Duration::from_secs(5);
/// … and so long on one that is silent, before it is asked whether it is still there, and for the answer.
const SILENCE: Duration = Duration::from_secs(10);

/// Where and as whom to connect.
#[derive(Clone)]
pub struct HttpsConfig {
    /// `https://host:port`.
    pub server: String,
    pub ca_pem: String,
    pub auth: Auth,
}

impl HttpsConfig {
    /// What a context of a kubeconfig file describes; `None` is its current context.
    pub fn from_kubeconfig(path: &Path, context: Option<&str>) -> Result<Self, Error> {
        kubeconfig::load(path, context)
    }

    /// A connection of its own that speaks HTTP/1.1, for requests that switch to another protocol; and the value of the
    /// header `Authorization`, if one is needed.
    pub async fn connect(&self) -> Result<(TlsStream<TcpStream>, Option<HeaderValue>), Error> {
        let transport = HttpsTransport::new(self.clone())?;
        let server = transport.servers.current();
        let host = server.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = server.port_u16().unwrap_or(443);
        let away = |error: std::io::Error| Error::connection(format!("cannot reach {}", self.server), error);
        let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(away)?;
        tcp.set_nodelay(true).map_err(away)?;
        let name = ServerName::try_from(host)
            .map_err(|error| Error::Configuration(format!("server address {:?}: {error}", self.server)))?;
        let mut tls = tls_config(self)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.map_err(away)?;
        Ok((stream, transport.authorization().await?))
    }
}

#[derive(Clone)]
pub enum Auth {
    ClientCert {
        cert_pem: String,
        key_pem: String,
    },
    Token(String),
    /// Read again for each request, so that a rotated token is used.
    TokenFile(PathBuf),
    None,
}

pub(crate) struct HttpsTransport {
    servers: Arc<Servers>,
    auth: Auth,
    pool: Pool<TlsConnector, Body>,
}

impl HttpsTransport {
    pub(crate) fn new(config: HttpsConfig) -> Result<Self, Error> {
        let servers = Servers::new([&config.server])?;
        Self::among(Arc::new(servers), config)
    }

    /// To whichever of these servers answers; that of `config` is none of them unless it is named there, too.
    pub(crate) fn among(servers: Arc<Servers>, config: HttpsConfig) -> Result<Self, Error> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        let tls = TlsConnector::new(connector, Arc::new(tls_config(&config)?));
        let pool = Pool::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(SILENCE)
            .http2_keep_alive_timeout(SILENCE)
            .http2_keep_alive_while_idle(true)
            .http2_adaptive_window(false)
            .http2_initial_stream_window_size(256 << 10)
            .http2_initial_connection_window_size(25 << 20)
            .build(tls);
        Ok(Self { servers, auth: config.auth, pool })
    }

    /// Sends a request to this server. The second of an error says whether it cannot have arrived.
    async fn send(&self, server: &Uri, request: Request<Body>) -> Result<Response<Body>, (Error, bool)> {
        let sure = |error| (error, false);
        let (mut parts, body) = request.into_parts();
        let mut uri = server.clone().into_parts();
        uri.path_and_query = parts.uri.path_and_query().cloned().or(Some(PathAndQuery::from_static("/")));
        parts.uri =
            Uri::from_parts(uri).map_err(|error| sure(Error::Configuration(format!("request path: {error}"))))?;
        if let Some(value) = self.authorization().await.map_err(sure)? {
            parts.headers.insert(header::AUTHORIZATION, value);
        }
        let response = self.pool.request(Request::from_parts(parts, body)).await.map_err(|error| {
            let unsent = error.is_connect();
            (Error::connection(format!("cannot reach {server}"), error), unsent)
        })?;
        Ok(response.map(|body| {
            body.map_err(|error| Error::connection("the connection broke while reading the answer", error))
                .boxed_unsync()
        }))
    }

    async fn authorization(&self) -> Result<Option<HeaderValue>, Error> {
        let token = match &self.auth {
            Auth::Token(token) => token.clone(),
            Auth::TokenFile(path) => tokio::fs::read_to_string(path)
                .await
                .map_err(|error| Error::Configuration(format!("read token {}: {error}", path.display())))?,
            Auth::ClientCert { .. } | Auth::None => return Ok(None),
        };
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
            .map_err(|_| Error::Configuration("the token holds characters that no header can".into()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

fn tls_config(config: &HttpsConfig) -> Result<rustls::ClientConfig, Error> {
    let bad = |what: &str, error: &dyn std::fmt::Display| Error::Configuration(format!("{what}: {error}"));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(config.ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| bad("CA certificate", &error))?;
        roots.add(certificate).map_err(|error| bad("CA certificate", &error))?;
    }
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| bad("TLS versions", &error))?
        .with_root_certificates(roots);
    let mut tls = match &config.auth {
        Auth::ClientCert { cert_pem, key_pem } => {
            let chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| bad("client certificate", &error))?;
            let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| bad("client key", &error))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| bad("client certificate", &error))?
        }
        Auth::Token(_) | Auth::TokenFile(_) | Auth::None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

#[async_trait::async_trait]
impl Transport for HttpsTransport {
    async fn call(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        // Each server is asked once; what may have arrived somewhere is not sent again.
        let mut tried = 0;
        loop {
            let server = self.servers.current();
            tried += 1;
            match self.send(&server, request.clone().map(full)).await {
                Ok(response) => return Ok(response),
                Err((error, unsent)) => {
                    let all = self.servers.failed(&server);
                    if !unsent || tried >= all {
                        return Err(error);
                    }
                }
            }
        }
    }

    async fn upload(&self, request: Request<Body>) -> Result<Response<Body>, Error> {
        let server = self.servers.current();
        self.send(&server, request).await.map_err(|(error, _)| {
            self.servers.failed(&server);
            error
        })
    }
}
