//! TLS ends: one server shape, one client shape, and a certificate that can be swapped while serving.
//!
//! The `ring` provider is named explicitly, so nothing here depends on a process-wide default.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WantsClientCert};
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::pki::CertPair;
use crate::{Error, Result};

/// Offered by every server of ours, best first.
pub const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A server that presents `cert`. With `client_ca`, client certificates are optional, and one that is sent must come
/// from that authority; without, they are not asked for.
pub fn server_config(cert: &CertPair, client_ca: Option<&str>) -> Result<Arc<ServerConfig>> {
    server_config_with(Arc::new(LiveCert::new(cert)?), client_ca)
}

/// As [`server_config`], with a certificate that can be replaced later.
pub fn server_config_with(cert: Arc<LiveCert>, client_ca: Option<&str>) -> Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|source| Error::Tls { context: "protocol versions", source })?;
    let builder = match client_ca {
        Some(pem) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pem)?), provider())
                .allow_unauthenticated()
                .build()
                .map_err(|e| Error::Certificate(format!("client authority: {e}")))?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(cert);
    config.alpn_protocols = ALPN.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A client that trusts `ca_pem` only and, with `client`, says who it is.
pub fn client_config(ca_pem: &str, client: Option<&CertPair>) -> Result<Arc<ClientConfig>> {
    client_config_with(ca_pem, client.map(LiveCert::new).transpose()?.map(Arc::new))
}

/// As [`client_config`], with a certificate that can be replaced later.
pub fn client_config_with(ca_pem: &str, client: Option<Arc<LiveCert>>) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|source| Error::Tls { context: "protocol versions", source })?
        .with_root_certificates(roots(ca_pem)?);
    Ok(presenting(builder, client))
}

/// A client that takes any server's certificate, for those who ask for that by name.
pub fn client_config_unverified(client: Option<Arc<LiveCert>>) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|source| Error::Tls { context: "protocol versions", source })?
        .dangerous()
        .with_custom_certificate_verifier(unverified());
    Ok(presenting(builder, client))
}

/// As [`client_config_unverified`] without a certificate of one's own and for HTTP/1.1, made once: for asking programs in
/// pods, which nobody vouches for.
pub fn anonymous_unverified() -> Result<Arc<ClientConfig>> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let mut config = client_config_unverified(None)?.as_ref().clone();
    config.alpn_protocols.clear();
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}

fn presenting(
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    client: Option<Arc<LiveCert>>,
) -> Arc<ClientConfig> {
    let mut config = match client {
        Some(cert) => builder.with_client_cert_resolver(cert),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = ALPN.iter().map(|p| p.to_vec()).collect();
    Arc::new(config)
}

/// Believes every certificate whose key the server has: signatures of the handshake are looked at, nothing else is.
pub fn unverified() -> Arc<dyn ServerCertVerifier> {
    Arc::new(Unverified(provider()))
}

#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificates that a server shows, in PEM, its own first. Nothing of it is believed: it is for who knows by other
/// means which of them to believe.
pub async fn presented(host: &str, port: u16) -> Result<Vec<String>> {
    let failed = |error: &dyn std::fmt::Display| Error::Certificate(format!("connect to {host}:{port}: {error}"));
    let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(&error))?;
    let tcp = tokio::net::TcpStream::connect((host, port)).await.map_err(|error| failed(&error))?;
    let connector = tokio_rustls::TlsConnector::from(client_config_unverified(None)?);
    let stream = connector.connect(name, tcp).await.map_err(|error| failed(&error))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    Ok(chain.iter().map(|der| pem("CERTIFICATE", der)).collect())
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn roots(pem: &str) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let cert = cert.map_err(|e| Error::Certificate(format!("authority: {e}")))?;
        store.add(cert).map_err(|source| Error::Tls { context: "authority certificate", source })?;
    }
    if store.is_empty() {
        return Err(Error::Certificate("the authority's PEM holds no certificate".to_owned()));
    }
    Ok(store)
}

fn parse(pair: &CertPair) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_slice_iter(pair.cert_pem.as_bytes())
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|e| Error::Certificate(format!("certificate chain: {e}")))?;
    if chain.is_empty() {
        return Err(Error::Certificate("the PEM holds no certificate".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes())
        .map_err(|e| Error::Certificate(format!("private key: {e}")))?;
    Ok((chain, key))
}

/// The certificate a server or client presents; connections made after [`LiveCert::replace`] see the new one.
#[derive(Debug)]
pub struct LiveCert {
    current: RwLock<Arc<CertifiedKey>>,
}

impl LiveCert {
    pub fn new(pair: &CertPair) -> Result<Self> {
        Ok(Self { current: RwLock::new(certified(pair)?) })
    }

    pub fn replace(&self, pair: &CertPair) -> Result<()> {
        let new = certified(pair)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }
}

impl LiveCert {
    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for LiveCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for LiveCert {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(pair: &CertPair) -> Result<Arc<CertifiedKey>> {
    let (chain, key) = parse(pair)?;
    CertifiedKey::from_der(chain, key, &provider())
        .map(Arc::new)
        .map_err(|source| Error::Tls { context: "certificate", source })
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
