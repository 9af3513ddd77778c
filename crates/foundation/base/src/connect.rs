//! Connections of HTTP clients to servers outside of the cluster: TCP and TLS, directly or through a proxy, with the
//! machine's trust and whatever is given on top of it. Plain HTTP only where asked for.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{Error, Result};

const HANDSHAKE: Duration = Duration::from_secs(10);

/// How to make sure that a server is the one meant, and to prove who we are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsOptions {
    /// PEM files of authorities trusted besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// The same as text.
    pub ca_pem: Vec<String>,
    /// Certificate and key, PEM files; one file may hold both.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Believe any certificate.
    pub skip_verify: bool,
}

/// A client as [`TlsOptions`] say.
pub fn tls_config(options: &TlsOptions) -> Result<Arc<rustls::ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| Error::Tls { context: "protocol versions", source })?;
    let builder = if options.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(crate::tls::unverified())
    } else {
        builder.with_root_certificates(roots(options)?)
    };
    let config = match &options.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let bad = |file: &Path, e: &dyn std::fmt::Display| Error::BadFile {
                path: file.to_owned(),
                message: e.to_string(),
            };
            let chain = CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
                .map_err(|e| bad(certificate, &e))?;
            let private = PrivateKeyDer::from_pem_file(key).map_err(|e| bad(key, &e))?;
            builder.with_client_auth_cert(chain, private).map_err(|e| bad(certificate, &e))?
        }
    };
    Ok(Arc::new(config))
}

/// The machine's trusted roots and, on top of them, those of the options.
fn roots(options: &TlsOptions) -> Result<rustls::RootCertStore> {
    let mut roots = rustls::RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "read a system certificate");
    }
    roots.add_parsable_certificates(native.certs);
    let bad = |what: &Path, message: String| Error::BadFile { path: what.to_owned(), message };
    let mut add = |what: &Path, pem: &[u8]| {
        let mut found = false;
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|e| bad(what, format!("not PEM: {e:?}")))?;
            roots.add(certificate).map_err(|e| bad(what, e.to_string()))?;
            found = true;
        }
        if found { Ok(()) } else { Err(bad(what, "contains no certificate".to_owned())) }
    };
    for file in &options.ca_files {
        let pem = std::fs::read(file).map_err(|e| Error::io("read", file, e))?;
        add(file, &pem)?;
    }
    for pem in &options.ca_pem {
        add(Path::new("extra CA"), pem.as_bytes())?;
    }
    Ok(roots)
}

/// Makes the connections of a client; one for all of its hosts.
#[derive(Clone)]
pub struct Connector {
    tcp: HttpConnector,
    tls: TlsConnector,
    proxies: Arc<Matcher>,
    guarded: bool,
}

/// Whether an address is open to people who do not run the machine: its own services, and those of its link, are not.
pub fn is_open(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(ip) => {
            !(ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast())
        }
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast()),
    }
}

impl Connector {
    /// Through `proxy`, or through what `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say.
    pub fn new(tls: Arc<rustls::ClientConfig>, proxy: Option<&str>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(HANDSHAKE));
        let proxies = match proxy {
            Some(proxy) => Matcher::builder().all(proxy.to_owned()).build(),
            None => Matcher::from_env(),
        };
        Connector { tcp, tls: TlsConnector::from(tls), proxies: Arc::new(proxies), guarded: false }
    }

    /// One that goes through no proxy, whatever the environment says.
    pub fn direct(self) -> Self {
        Connector { proxies: Arc::new(Matcher::builder().build()), ..self }
    }

    /// One that speaks to nobody whose address is not open.
    pub fn guarded(self) -> Self {
        Connector { guarded: true, ..self }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let secure = uri.scheme_str() == Some("https");
        // What is on this machine is never behind a proxy.
        let proxy = if is_loopback(&host) { None } else { self.proxies.intercept(&uri) };
        let mut direct = self.tcp.clone();
        let (tls, guarded) = (self.tls.clone(), self.guarded);
        Box::pin(async move {
            let tcp = match proxy {
                None => {
                    let tcp = direct.call(uri).await?.into_inner();
                    // Not before: whatever the name leads to now is what counts.
                    let peer = tcp.peer_addr()?.ip();
                    if guarded && !is_open(peer) {
                        return Err(format!("{peer} is an address of the machine itself or of its link").into());
                    }
                    tcp
                }
                Some(proxy) if proxy.uri().scheme_str() != Some("http") => {
                    return Err(format!("unsupported proxy {}; only http:// proxies are", proxy.uri()).into());
                }
                Some(proxy) if secure => {
                    let mut tunnel = Tunnel::new(proxy.uri().clone(), direct);
                    if let Some(auth) = proxy.basic_auth() {
                        tunnel = tunnel.with_auth(auth.clone());
                    }
                    tokio::time::timeout(HANDSHAKE, tunnel.call(uri))
                        .await
                        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the proxy did not answer"))??
                        .into_inner()
                }
                Some(proxy) => {
                    let tcp = direct.call(proxy.uri().clone()).await?.into_inner();
                    return Ok(TokioIo::new(Stream::Proxied(tcp)));
                }
            };
            if !secure {
                return Ok(TokioIo::new(Stream::Plain(tcp)));
            }
            let name = ServerName::try_from(host)?;
            let stream = tokio::time::timeout(HANDSHAKE, tls.connect(name, tcp))
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "TLS handshake timed out"))??;
            Ok(TokioIo::new(Stream::Tls(Box::new(stream))))
        })
    }
}

/// A connection.
pub enum Stream {
    Plain(TcpStream),
    /// To a proxy that wants whole addresses in requests.
    Proxied(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(matches!(self, Stream::Proxied(_)))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(s) | Stream::Proxied(s) => Pin::new(s).poll_read(cx, buf),
            Stream::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(s) | Stream::Proxied(s) => Pin::new(s).poll_write(cx, buf),
            Stream::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(s) | Stream::Proxied(s) => Pin::new(s).poll_flush(cx),
            Stream::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(s) | Stream::Proxied(s) => Pin::new(s).poll_shutdown(cx),
            Stream::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

/// Whether a host, without its port, is this machine by its name or address.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether the peer spoke TLS but showed a certificate we do not trust; trying again does not help.
pub fn is_untrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if matches!(error.downcast_ref::<rustls::Error>(), Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        // An I/O error hides the error it wraps from `source`.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}
