//! A registry of the test's own and a client that shows everything.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use dhow_image::Digest;
use dhow_registry::{Access, Config, Everyone, Registry};
use dhow_store::{Blob, FsBlob, Kv, MemoryKv, S3Blob, S3Config, S3Credentials};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub struct Server {
    pub registry: Registry,
    pub address: SocketAddr,
    pub web: Web,
    pub folder: tempfile::TempDir,
    /// Where the blobs lie.
    pub blobs: PathBuf,
    _stop: DropGuard,
}

/// Runs a test on a registry over files, and on one over S3.
pub async fn everywhere(config: fn() -> Config, test: impl AsyncFn(Server)) {
    test(Server::with(config(), Arc::new(Everyone::default())).await).await;
    test(Server::in_s3(config(), Arc::new(Everyone::default())).await).await;
}

/// Blobs in a bucket that `s3` serves at this address.
pub fn bucket(url: String, credentials: PathBuf) -> Arc<dyn Blob> {
    let config = S3Config {
        endpoint: Some(url),
        path_style: true,
        prefix: "registry".to_owned(),
        ..S3Config::new(dhow_test_s3::BUCKET, S3Credentials::File(credentials))
    };
    Arc::new(S3Blob::new(config).unwrap())
}

impl Server {
    pub async fn new() -> Self {
        Self::with(Config::default(), Arc::new(Everyone::default())).await
    }

    pub async fn with(config: Config, access: Arc<dyn Access>) -> Self {
        Self::over(config, access, Arc::new(MemoryKv::new()), tempfile::tempdir().unwrap()).await
    }

    pub async fn over(config: Config, access: Arc<dyn Access>, kv: Arc<dyn Kv>, folder: tempfile::TempDir) -> Self {
        Self::start(config, access, kv, folder, None).await
    }

    pub async fn over_tls(access: Arc<dyn Access>, tls: Arc<rustls::ServerConfig>) -> Self {
        Self::start(Config::default(), access, Arc::new(MemoryKv::new()), tempfile::tempdir().unwrap(), Some(tls)).await
    }

    pub async fn in_s3(config: Config, access: Arc<dyn Access>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let s3 = dhow_test_s3::Server::start(folder.path(), None).await.unwrap();
        let files = s3.bucket.join("registry");
        let blobs = bucket(s3.url(), s3.credentials);
        Self::start_over(config, access, Arc::new(MemoryKv::new()), (blobs, files), folder, None).await
    }

    async fn start(
        config: Config,
        access: Arc<dyn Access>,
        kv: Arc<dyn Kv>,
        folder: tempfile::TempDir,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Self {
        let files = folder.path().join("registry");
        let blobs: Arc<dyn Blob> = Arc::new(FsBlob::open(&files).unwrap());
        Self::start_over(config, access, kv, (blobs, files), folder, tls).await
    }

    async fn start_over(
        config: Config,
        access: Arc<dyn Access>,
        kv: Arc<dyn Kv>,
        (store, blobs): (Arc<dyn Blob>, PathBuf),
        folder: tempfile::TempDir,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Self {
        let registry = Registry::open(config, kv, store, access).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(registry.clone().serve(listener, tls, stop.clone()));
        Self { registry, address, web: Web::new(&address.to_string()), folder, blobs, _stop: stop.drop_guard() }
    }

    pub fn blob_file(&self, digest: &Digest) -> std::path::PathBuf {
        self.blobs.join("blobs").join(digest.algorithm()).join(digest.hex())
    }
}

/// A client of one host.
#[derive(Clone)]
pub struct Web {
    client: Client<HttpConnector, http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>>,
    host: String,
    pub authorization: Option<String>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    /// The first error's code.
    pub fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{:?} {:?}", self.headers, self.body);
        self
    }
}

impl Web {
    pub fn new(host: &str) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { client, host: host.to_owned(), authorization: None }
    }

    pub fn with_authorization(&self, text: &str) -> Self {
        Self { authorization: Some(text.to_owned()), ..self.clone() }
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        self.send_body(method, path, headers, Full::new(body.into()).map_err(|never| match never {}).boxed_unsync())
            .await
    }

    /// As one with chunked encoding: the server does not know how much comes.
    pub async fn stream(&self, method: &str, path: &str, headers: &[(&str, &str)], pieces: Vec<Bytes>) -> Reply {
        let frames = futures::stream::iter(pieces.into_iter().map(|piece| Ok(http_body::Frame::data(piece))));
        self.send_body(method, path, headers, StreamBody::new(frames).boxed_unsync()).await
    }

    async fn send_body(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>,
    ) -> Reply {
        let uri = if path.starts_with("http") { path.to_owned() } else { format!("http://{}{path}", self.host) };
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let response: Response<_> = self.client.request(request.body(body).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], "").await
    }

    pub async fn head(&self, path: &str) -> Reply {
        self.send("HEAD", path, &[], "").await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path, &[], "").await
    }

    /// Where an upload goes on.
    pub async fn begin(&self, repository: &str) -> String {
        let reply = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], "").await.expect(202);
        reply.header("location").unwrap().to_owned()
    }

    pub async fn push_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let begun = self.send("POST", &path, &[], Bytes::copy_from_slice(bytes)).await;
        // Not every registry takes it in one request.
        if begun.status == StatusCode::ACCEPTED {
            let path = format!("{}&digest={digest}", begun.header("location").unwrap());
            self.send("PUT", &path, &[], Bytes::copy_from_slice(bytes)).await.expect(201);
        } else {
            begun.expect(201);
        }
        digest
    }

    /// A manifest of either kind, as registries want to be asked that do not say it unasked.
    pub async fn get_manifest(&self, repository: &str, reference: &str) -> Reply {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.send("GET", &path, &[("accept", &format!("{INDEX}, {MANIFEST}"))], "").await
    }

    pub async fn put_manifest(&self, repository: &str, reference: &str, manifest: &Value) -> Reply {
        let kind = manifest["mediaType"].as_str().unwrap().to_owned();
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.send("PUT", &path, &[("content-type", &kind)], manifest.to_string()).await
    }

    /// An image of a config and one layer, under a tag.
    pub async fn push_image(&self, repository: &str, tag: &str, content: &str) -> (Digest, Value) {
        let manifest = image(&[content]);
        self.push_blob(repository, b"{}").await;
        self.push_blob(repository, content.as_bytes()).await;
        self.put_manifest(repository, tag, &manifest).await.expect(201);
        (Digest::of(manifest.to_string().as_bytes()), manifest)
    }
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}

pub fn image(layers: &[&str]) -> Value {
    let layer = |content: &&str| descriptor("application/vnd.oci.image.layer.v1.tar", content.as_bytes());
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", b"{}"),
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

pub fn index(manifests: &[&Value]) -> Value {
    let entry = |manifest: &&Value| descriptor(MANIFEST, manifest.to_string().as_bytes());
    json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests.iter().map(entry).collect::<Vec<_>>(),
    })
}

/// Bytes that do not compress, another for each seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

/// How many files there are below a folder.
pub fn files(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.map(|entry| entry.unwrap().path()).map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}
