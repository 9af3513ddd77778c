//! A registry that misbehaves on demand: it answers late, cuts connections, wants tokens, lies. It passes for a node, too.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use dhow_image::Digest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use super::TestImage;

#[derive(Default)]
pub struct Behaviour {
    /// Answer this many requests with 503 and 429 first.
    pub refuse_first: AtomicUsize,
    /// Send at most this many bytes of a blob per connection.
    pub cut_after: Option<usize>,
    pub ignore_range: bool,
    /// Want a bearer token, given for these credentials (`user:password` in base64).
    pub token_for: Option<&'static str>,
    pub basic: Option<&'static str>,
    pub corrupt: bool,
    /// Fall silent after this many bytes of a blob, for the first so many requests.
    pub stall: Option<(usize, AtomicUsize)>,
    /// Send blobs' askers to this address.
    pub redirect_blobs: Option<String>,
    /// A token is good for so many requests.
    pub token_uses: Option<usize>,
    /// Refuse everything, and say how long to wait.
    pub limit: Option<&'static str>,
    /// Send a blob's first so many bytes, and the others one by one.
    pub trickle: Option<usize>,
}

pub struct Registry {
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    behaviour: Behaviour,
    manifests: Mutex<HashMap<String, (String, Vec<u8>)>>,
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    log: Mutex<Vec<String>>,
    /// Paths that came with credentials.
    authorized: Mutex<Vec<String>>,
    tokens: AtomicUsize,
    uses: AtomicUsize,
    host: Mutex<String>,
}

impl Registry {
    pub async fn start(behaviour: Behaviour, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { behaviour, ..State::default() });
        *state.host.lock().unwrap() = format!("http://{address}");
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (state, tls) = (shared.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => state.serve(socket).await,
                        Some(config) => {
                            if let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(socket).await {
                                state.serve(stream).await;
                            }
                        }
                    }
                });
            }
        });
        Registry { address, state }
    }

    /// Paths asked for with credentials.
    pub fn authorized(&self) -> Vec<String> {
        self.state.authorized.lock().unwrap().clone()
    }

    pub fn add_blob(&self, bytes: &[u8]) {
        self.state.blobs.lock().unwrap().insert(Digest::of(bytes).to_string(), bytes.to_vec());
    }

    pub fn add(&self, tag: &str, image: &TestImage) {
        let media = "application/vnd.oci.image.manifest.v1+json";
        self.add_manifest(tag, media, &image.manifest);
        let mut blobs = self.state.blobs.lock().unwrap();
        for blob in image.blobs.iter().chain([&image.config]) {
            let mut content = blob.clone();
            if self.state.behaviour.corrupt && blob != &image.config {
                content[0] ^= 0xff;
            }
            blobs.insert(Digest::of(blob).to_string(), content);
        }
    }

    pub fn add_manifest(&self, tag: &str, media: &str, bytes: &[u8]) {
        let mut manifests = self.state.manifests.lock().unwrap();
        for target in [tag.to_owned(), Digest::of(bytes).to_string()] {
            manifests.insert(target, (media.to_owned(), bytes.to_vec()));
        }
    }

    /// Request lines so far, with the range if any.
    pub fn log(&self) -> Vec<String> {
        self.state.log.lock().unwrap().clone()
    }
}

impl State {
    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(0x16) if head.is_empty() => return, // a TLS greeting on a plain port
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let (status, headers, body, cut) = self.answer(&head);
        let mut text = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let _ = stream.write_all(text.as_bytes()).await;
        let cut = cut.min(body.len());
        let at_once = self.behaviour.trickle.unwrap_or(cut).min(cut);
        let _ = stream.write_all(&body[..at_once]).await;
        for byte in &body[at_once..cut] {
            let _ = stream.flush().await;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            if stream.write_u8(*byte).await.is_err() {
                return;
            }
        }
        if (head.contains("/blobs/") || head.contains("/layers/"))
            && let Some((_, times)) = &self.behaviour.stall
            && cut < body.len()
            && times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
        {
            let _ = stream.flush().await;
            std::future::pending::<()>().await;
        }
        let _ = stream.shutdown().await;
    }

    fn answer(&self, head: &str) -> (u16, Vec<(&'static str, String)>, Vec<u8>, usize) {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let header = |name: &str| {
            head.lines().find_map(|l| l.split_once(": ").filter(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v))
        };
        let range = header("range");
        self.log.lock().unwrap().push(format!("{path} {}", range.unwrap_or_default()).trim().to_owned());
        let whole = usize::MAX;
        if header("authorization").is_some() {
            self.authorized.lock().unwrap().push(path.to_owned());
        }
        if let Some(wait) = self.behaviour.limit {
            let error = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit"}]}"#;
            return (429, vec![("retry-after", wait.into())], error.to_vec(), whole);
        }
        let refuse = &self.behaviour.refuse_first;
        if refuse.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            let status = if refuse.load(Ordering::SeqCst).is_multiple_of(2) { 503 } else { 429 };
            return (status, vec![("retry-after", "0".into())], Vec::new(), whole);
        }
        if let Some(rest) = path.strip_prefix("/token?") {
            let wanted = self.behaviour.token_for.map(|pair| format!("Basic {pair}"));
            if !rest.contains("scope=repository%3Ateam%2Fapp%3Apull") || header("authorization") != wanted.as_deref() {
                return (401, Vec::new(), Vec::new(), whole);
            }
            self.uses.store(0, Ordering::SeqCst);
            let token = format!("good{}", self.tokens.fetch_add(1, Ordering::SeqCst) + 1);
            return (200, Vec::new(), format!("{{\"token\":\"{token}\"}}").into_bytes(), whole);
        }
        let good = format!("Bearer good{}", self.tokens.load(Ordering::SeqCst));
        let expired = || self.behaviour.token_uses.is_some_and(|n| self.uses.fetch_add(1, Ordering::SeqCst) >= n);
        if self.behaviour.token_for.is_some() && (header("authorization") != Some(&good) || expired()) {
            let realm = self.host.lock().unwrap().clone();
            let challenge =
                format!("Bearer realm=\"{realm}/token\",service=\"test\",scope=\"repository:team/app:pull\"");
            return (401, vec![("www-authenticate", challenge)], Vec::new(), whole);
        }
        if let Some(pair) = self.behaviour.basic
            && header("authorization") != Some(&format!("Basic {pair}"))
        {
            return (401, vec![("www-authenticate", "Basic realm=\"x\"".into())], Vec::new(), whole);
        }
        let path = path.split('?').next().unwrap_or_default();
        if let Some(target) = path.strip_prefix("/v2/team/app/manifests/")
            && let Some((media, bytes)) = self.manifests.lock().unwrap().get(target)
        {
            return (200, vec![("content-type", media.clone())], bytes.clone(), whole);
        }
        // As a registry has blobs, and as a node has layers.
        if let Some(digest) = path.strip_prefix("/v2/team/app/blobs/").or(path.strip_prefix("/images/layers/"))
            && let Some(bytes) = self.blobs.lock().unwrap().get(digest)
        {
            if let Some(elsewhere) = &self.behaviour.redirect_blobs {
                return (307, vec![("location", format!("{elsewhere}{path}"))], Vec::new(), whole);
            }
            let stall = self.behaviour.stall.as_ref().filter(|(_, n)| n.load(Ordering::SeqCst) > 0).map(|(at, _)| *at);
            let cut = self.behaviour.cut_after.or(stall).unwrap_or(whole);
            let from = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
            return match from {
                Some(from) if !self.behaviour.ignore_range => {
                    let content_range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                    (206, vec![("content-range", content_range)], bytes[from..].to_vec(), cut)
                }
                _ => (200, Vec::new(), bytes.clone(), cut),
            };
        }
        let error = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        (404, Vec::new(), error.to_vec(), whole)
    }
}
