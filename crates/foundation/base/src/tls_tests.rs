//! Real handshakes over loopback.
#![allow(clippy::unwrap_used)]

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::pki::ClusterCa;

struct Seen {
    peer: Option<Vec<u8>>,
    alpn: Option<Vec<u8>>,
}

/// One connection; gives what the server saw of the client and the server certificate the client saw.
async fn shake(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> std::io::Result<(Seen, Vec<u8>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let acceptor = TlsAcceptor::from(Arc::clone(server));
    let serving = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await?;
        let mut tls = acceptor.accept(tcp).await?;
        let (_, session) = tls.get_ref();
        let seen = Seen {
            peer: session.peer_certificates().map(|c| c[0].to_vec()),
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
        };
        tls.write_all(b"hello").await?;
        tls.shutdown().await?;
        Ok::<_, std::io::Error>(seen)
    });
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = TlsConnector::from(Arc::clone(client)).connect(name, tcp).await?;
    let mut text = String::new();
    tls.read_to_string(&mut text).await?;
    assert_eq!(text, "hello");
    let server_cert = tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    Ok((serving.await.unwrap()?, server_cert))
}

fn der(pair: &CertPair) -> Vec<u8> {
    CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).unwrap().to_vec()
}

#[tokio::test]
async fn clients_are_known_by_certificate_or_anonymous() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::load_or_create(dir.path()).unwrap();
    let server_pair = ca.issue_server("api", &["localhost".into()]).unwrap();
    let server = server_config(&server_pair, Some(ca.cert_pem())).unwrap();

    let admin = ca.issue_client("system:admin", &["system:masters"]).unwrap();
    let client = client_config(ca.cert_pem(), Some(&admin)).unwrap();
    let (seen, served) = shake(&server, &client).await.unwrap();
    assert_eq!(seen.peer, Some(der(&admin)));
    assert_eq!(seen.alpn.as_deref(), Some(&b"h2"[..]));
    assert_eq!(served, der(&server_pair));

    let anonymous = client_config(ca.cert_pem(), None).unwrap();
    let (seen, _) = shake(&server, &anonymous).await.unwrap();
    assert_eq!(seen.peer, None);
}

#[tokio::test]
async fn strangers_are_refused_on_both_sides() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ca = ClusterCa::load_or_create(dir.path()).unwrap();
    let other = ClusterCa::load_or_create(other_dir.path()).unwrap();
    let server = server_config(&ca.issue_server("api", &["localhost".into()]).unwrap(), Some(ca.cert_pem())).unwrap();

    let stranger = other.issue_client("system:admin", &["system:masters"]).unwrap();
    let client = client_config(ca.cert_pem(), Some(&stranger)).unwrap();
    assert!(shake(&server, &client).await.is_err(), "a certificate of another authority");

    // A server certificate must not pass for a user.
    let posing = ca.issue_server("system:admin", &["localhost".into()]).unwrap();
    let client = client_config(ca.cert_pem(), Some(&posing)).unwrap();
    assert!(shake(&server, &client).await.is_err(), "a server certificate used as a client's");

    let misled = client_config(other.cert_pem(), None).unwrap();
    assert!(shake(&server, &misled).await.is_err(), "a server of another authority");

    let elsewhere = server_config(&ca.issue_server("api", &["other.test".into()]).unwrap(), None).unwrap();
    let client = client_config(ca.cert_pem(), None).unwrap();
    assert!(shake(&elsewhere, &client).await.is_err(), "a server of another name");
}

#[tokio::test]
async fn a_renewed_certificate_is_served_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::load_or_create(dir.path()).unwrap();
    let old = ca.issue_server("api", &["localhost".into()]).unwrap();
    let new = ca.issue_server("api", &["localhost".into()]).unwrap();
    let cert = Arc::new(LiveCert::new(&old).unwrap());
    let server = server_config_with(Arc::clone(&cert), None).unwrap();
    let client = client_config(ca.cert_pem(), None).unwrap();
    assert_eq!(shake(&server, &client).await.unwrap().1, der(&old));
    cert.replace(&new).unwrap();
    // A fresh client: a resumed session would not show certificates again.
    let client = client_config(ca.cert_pem(), None).unwrap();
    assert_eq!(shake(&server, &client).await.unwrap().1, der(&new));
    assert!(cert.replace(&CertPair { cert_pem: String::new(), key_pem: String::new() }).is_err());
}
