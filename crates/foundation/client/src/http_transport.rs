//! The transport over HTTPS: pooled HTTP/2 connections, the cluster's CA, certificates or tokens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::tls_connector::TlsConnector;
use crate::transport::{Body, Transport, full};
use crate::{Error, kubeconfig};

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
        let host = transport.server.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = transport.server.port_u16().unwrap_or(443);
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
    server: Uri,
    auth: Auth,
    pool: Pool<TlsConnector, Body>,
}

impl HttpsTransport {
    pub(crate) fn new(config: HttpsConfig) -> Result<Self, Error> {
        let server: Uri = config
            .server
            .parse()
            .map_err(|error| Error::Configuration(format!("server address {:?}: {error}", config.server)))?;
        if server.scheme_str() != Some("https") || server.authority().is_none() {
            return Err(Error::Configuration(format!("server address {:?} is not https://host:port", config.server)));
        }
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let tls = TlsConnector::new(connector, Arc::new(tls_config(&config)?));
        let pool = Pool::builder(TokioExecutor::new())
            .http2_adaptive_window(false)
            .http2_initial_stream_window_size(256 << 10)
            .http2_initial_connection_window_size(25 << 20)
            .build(tls);
        Ok(Self { server, auth: config.auth, pool })
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
        self.upload(request.map(full)).await
    }

    async fn upload(&self, request: Request<Body>) -> Result<Response<Body>, Error> {
        let (mut parts, body) = request.into_parts();
        let mut uri = self.server.clone().into_parts();
        uri.path_and_query = parts.uri.path_and_query().cloned().or(Some(PathAndQuery::from_static("/")));
        parts.uri = Uri::from_parts(uri).map_err(|error| Error::Configuration(format!("request path: {error}")))?;
        if let Some(value) = self.authorization().await? {
            parts.headers.insert(header::AUTHORIZATION, value);
        }
        let response = self
            .pool
            .request(Request::from_parts(parts, body))
            .await
            .map_err(|error| Error::connection(format!("cannot reach {}", self.server), error))?;
        Ok(response.map(|body| {
            body.map_err(|error| Error::connection("the connection broke while reading the answer", error))
                .boxed_unsync()
        }))
    }
}
