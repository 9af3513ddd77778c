//! HTTP requests of probes and hooks: plain or TLS without verification, following redirects on the same host.

use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Bytes of an answer that are read; what a server says beyond is not waited for.
const BODY_LIMIT: usize = 10 << 10;
const MAX_REDIRECTS: usize = 10;

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Where it sent the caller instead, when that is another host's matter.
    pub elsewhere: Option<String>,
}

/// A port by number, or by its name in the container.
pub fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    match port {
        IntOrString::Int(port) => u16::try_from(*port).map_err(|_| format!("invalid port number: {port}")),
        IntOrString::String(name) => {
            let found = container.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name));
            let number = found.and_then(|p| u16::try_from(p.container_port).ok());
            number.or_else(|| name.parse().ok()).ok_or_else(|| format!("couldn't find port: {name:?}"))
        }
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The request that an action asks for.
pub struct Asked {
    uri: Uri,
    headers: HeaderMap,
}

impl Asked {
    /// Where the action names no host, `ip` is asked. The error is for the pod's events.
    pub fn new(action: &HTTPGetAction, container: &Container, ip: &str) -> Result<Self, String> {
        let port = port(container, &action.port)?;
        let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(ip);
        let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
        let path = action.path.as_deref().unwrap_or("/");
        let slash = if path.starts_with('/') { "" } else { "/" };
        let uri = format!("{scheme}://{}{slash}{path}", authority(host, port));
        let uri = uri.parse().map_err(|error| format!("invalid URL {uri:?}: {error}"))?;
        Ok(Self { uri, headers: headers(action)? })
    }

    /// Whether the request goes over TLS.
    pub fn is_tls(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// The same request without TLS.
    pub fn plain(self) -> Self {
        let text = self.uri.to_string().replacen("https://", "http://", 1);
        Self { uri: text.parse().unwrap_or(self.uri), headers: self.headers }
    }

    /// Sends it. The error says which URL could not be asked, and why.
    pub async fn send(&self) -> Result<Answer, String> {
        let mut uri = self.uri.clone();
        for _ in 0..MAX_REDIRECTS {
            let failed = |error: &dyn fmt::Display| format!("Get {:?}: {error}", uri.to_string());
            let (status, location) = once(&uri, &self.headers).await.map_err(|error| failed(&error))?;
            let Some(next) = location.filter(|_| (300..400).contains(&status)) else {
                return Ok(Answer { status, elsewhere: None });
            };
            let next = resolve(&uri, &next).map_err(|error| failed(&error))?;
            if next.host() != uri.host() {
                return Ok(Answer { status, elsewhere: Some(next.to_string()) });
            }
            uri = next;
        }
        Err(format!("Get {:?}: stopped after {MAX_REDIRECTS} redirects", uri.to_string()))
    }
}

/// The spec's headers take the place of those sent by default; an empty one drops it.
fn headers(action: &HTTPGetAction) -> Result<HeaderMap, String> {
    let mut out = HeaderMap::new();
    out.insert(header::USER_AGENT, HeaderValue::from_static("kube-probe/1.35"));
    out.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    let own = || action.http_headers.iter().flatten();
    for own in own() {
        let name = HeaderName::from_bytes(own.name.as_bytes()).map_err(|e| format!("header {:?}: {e}", own.name))?;
        out.remove(name);
    }
    for own in own().filter(|h| !h.value.is_empty()) {
        let bad = |e: &dyn fmt::Display| format!("header {:?}: {e}", own.name);
        let name = HeaderName::from_bytes(own.name.as_bytes()).map_err(|e| bad(&e))?;
        out.append(name, HeaderValue::from_str(&own.value).map_err(|e| bad(&e))?);
    }
    Ok(out)
}

fn resolve(base: &Uri, location: &str) -> Result<Uri, String> {
    let text = if location.contains("://") {
        location.to_owned()
    } else {
        let (scheme, authority) = (base.scheme_str().unwrap_or("http"), base.authority().map_or("", |a| a.as_str()));
        let slash = if location.starts_with('/') { "" } else { "/" };
        format!("{scheme}://{authority}{slash}{location}")
    };
    text.parse().map_err(|error| format!("redirect to {location:?}: {error}"))
}

/// One request, one connection; the status, and where it redirects to.
async fn once(uri: &Uri, headers: &HeaderMap) -> Result<(u16, Option<String>), String> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let stream = connect(host, port).await?;
    let mut request = Request::get(uri.path_and_query().map_or("/", |p| p.as_str()));
    if let Some(map) = request.headers_mut() {
        let own = uri.authority().map_or("", |a| a.as_str());
        let own = HeaderValue::from_str(own).map_err(|error| error.to_string())?;
        map.insert(header::HOST, own);
        map.insert(header::CONNECTION, HeaderValue::from_static("close"));
        for name in headers.keys() {
            map.remove(name);
        }
        map.extend(headers.clone());
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    if !tls {
        return exchange(stream, request).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    // A probe asks whether something answers, not who; there is nothing to hold a certificate against.
    let config = dhow_base::tls::anonymous_unverified().map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|e| format!("tls: {e}"))?;
    exchange(stream, request).await
}

/// Connects; the error names the address as well.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let connected = TcpStream::connect((host, port)).await;
    connected.map_err(|error| format!("dial tcp {}: connect: {}", authority(host, port), plain_error(&error)))
}

/// The system's words without the number that Rust adds.
fn plain_error(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<(u16, Option<String>), String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (head, body) = answer.into_parts();
        // A body that is too long is no failure; it is just not read.
        let _ = Limited::new(body, BODY_LIMIT).collect().await;
        let location = head.headers.get(header::LOCATION).and_then(|v| v.to_str().ok()).map(str::to_owned);
        Ok((head.status.as_u16(), location))
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may end before its last answer is taken.
        _ = &mut connection => answer.await,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn action(json: serde_json::Value) -> HTTPGetAction {
        serde_json::from_value(json).unwrap()
    }

    /// Answers each connection with the next of these, and hands out what it was asked.
    async fn server(answers: Vec<String>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut block = vec![0; 4096];
                let count = stream.read(&mut block).await.unwrap();
                asked.push(String::from_utf8_lossy(&block[..count]).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        (port, asked)
    }

    async fn get(json: serde_json::Value) -> Result<Answer, String> {
        Asked::new(&action(json), &Container::default(), "127.0.0.1").unwrap().send().await
    }

    #[tokio::test]
    async fn headers_of_the_spec_replace_the_default_ones() {
        let (port, asked) = server(vec!["HTTP/1.1 204 No Content\r\n\r\n".into()]).await;
        let answer = get(serde_json::json!({"port": port, "path": "/a?b=c", "httpHeaders": [
            {"name": "host", "value": "a.example"}, {"name": "Accept", "value": ""}, {"name": "X", "value": "1"}]}))
        .await;
        assert_eq!(answer.unwrap().status, 204);
        let asked = asked.await.unwrap().remove(0).to_lowercase();
        assert!(asked.starts_with("get /a?b=c http/1.1\r\n") && asked.contains("user-agent: kube-probe/1.35\r\n"));
        assert!(asked.contains("host: a.example\r\n") && asked.contains("x: 1\r\n") && !asked.contains("accept"));
        assert_eq!(asked.matches("host:").count(), 1);
    }

    #[tokio::test]
    async fn redirects_are_followed_on_the_same_host_only() {
        let to = |place: &str| format!("HTTP/1.1 302 Found\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n");
        let (port, _) = server(vec![to("/next"), "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n".into()]).await;
        assert_eq!(get(serde_json::json!({"port": port})).await.unwrap().status, 500);
        let (port, _) = server(vec![to("http://elsewhere.example/")]).await;
        let answer = get(serde_json::json!({"port": port})).await.unwrap();
        assert_eq!((answer.status, answer.elsewhere.as_deref()), (302, Some("http://elsewhere.example/")));
    }

    #[tokio::test]
    async fn what_cannot_be_reached_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = get(serde_json::json!({"port": port})).await.unwrap_err();
        let url = format!("http://127.0.0.1:{port}/");
        assert_eq!(error, format!("Get {url:?}: dial tcp 127.0.0.1:{port}: connect: connection refused"));
    }

    #[test]
    fn ports_are_found_by_name_and_bad_ones_are_named() {
        let container: Container =
            serde_json::from_value(serde_json::json!({"name": "a", "ports": [{"name": "web", "containerPort": 80}]}))
                .unwrap();
        assert_eq!(port(&container, &IntOrString::String("web".into())), Ok(80));
        assert_eq!(port(&container, &IntOrString::String("x".into())), Err("couldn't find port: \"x\"".into()));
        assert!(port(&container, &IntOrString::Int(70000)).is_err());
    }
}
