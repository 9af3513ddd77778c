//! Layers from other nodes: from a real store, and from nodes that misbehave; whatever they do, the image comes.
#![allow(clippy::unwrap_used)]

mod common;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use common::registry::{Behaviour, Registry};
use common::{TestImage, bulky, certificate};
use dhow_base::tls;
use dhow_image::api::Api;
use dhow_image::{Candidates, Digest, Error, ImageStore, NodePeers, PullOptions, Registries};
use http::header;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;

struct Fixed(Candidates);

impl NodePeers for Fixed {
    fn candidates(&self, repository: &str) -> Candidates {
        assert!(repository.ends_with("/team/app"), "{repository}");
        self.0.clone()
    }
}

/// A node's store and how it reaches others.
struct Node {
    _root: tempfile::TempDir,
    store: ImageStore,
    registries: Arc<Registries>,
}

impl Node {
    fn new(config: serde_json::Value) -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = ImageStore::open(root.path()).unwrap();
        Self { _root: root, store, registries: common::registries(config) }
    }

    /// One that asks these, and believes what `pem` says.
    fn beside(named: &[SocketAddr], others: &[SocketAddr], pem: &str) -> Self {
        let node = Self::new(json!({}));
        let found = Candidates { named: named.to_vec(), others: others.to_vec() };
        node.registries.set_nodes(Arc::new(Fixed(found)), &tls::client_config(pem, None).unwrap());
        node
    }

    async fn pull(&self, registry: &Registry) -> Result<dhow_image::Image, Error> {
        let options = PullOptions { registries: self.registries.clone(), ..PullOptions::default() };
        self.store.pull(&format!("{}/team/app:v1", registry.address), options, None).await
    }

    /// What it pulled is whole.
    async fn has(&self, pulled: Result<dhow_image::Image, Error>, image: &TestImage) {
        let pulled = pulled.unwrap();
        assert_eq!(pulled.id, image.id());
        let layers = self.store.layers(&pulled).await.unwrap();
        let (noise, small) = (std::fs::read(layers[1].join("noise")), std::fs::read(layers[0].join("small")));
        assert_eq!((noise.unwrap().len(), small.unwrap()), (300_000, b"s".to_vec()));
    }

    /// Serves its images as a node's server does once it knows the caller.
    async fn serve(&self, config: Arc<rustls::ServerConfig>) -> SocketAddr {
        let api = Api { store: self.store.clone(), registries: self.registries.clone() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (api, config) = (api.clone(), config.clone());
                tokio::spawn(async move {
                    let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(socket).await else { return };
                    let service = service_fn(move |request| {
                        let api = api.clone();
                        async move { Ok::<_, Infallible>(api.serve(request).await) }
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        address
    }
}

async fn registry_of(image: &TestImage) -> Registry {
    let registry = Registry::start(Behaviour::default(), None).await;
    registry.add("v1", image);
    registry
}

fn layer_requests(registry: &Registry, image: &TestImage) -> Vec<String> {
    let layers: Vec<Digest> = image.blobs.iter().map(|blob| Digest::of(blob)).collect();
    let mut log = registry.log();
    log.retain(|line| layers.iter().any(|layer| line.contains(layer.as_str())));
    log
}

fn bytes(image: &TestImage) -> u64 {
    image.blobs.iter().map(|blob| blob.len() as u64).sum()
}

#[tokio::test]
async fn layers_come_from_the_node_that_has_them() {
    let image = bulky(1);
    let registry = registry_of(&image).await;
    let (config, pem) = certificate("127.0.0.1");
    let first = Node::new(json!({}));
    first.has(first.pull(&registry).await, &image).await;
    let before = layer_requests(&registry, &image).len();
    let at = first.serve(config).await;
    // Whether they are known to have it or not.
    for node in [Node::beside(&[at], &[], &pem), Node::beside(&[], &[at], &pem)] {
        node.has(node.pull(&registry).await, &image).await;
        assert_eq!(layer_requests(&registry, &image).len(), before, "{:?}", registry.log());
        let (traffic, config) = (node.registries.traffic(), image.config.len() as u64);
        assert_eq!((traffic.from_nodes, traffic.from_registries), (bytes(&image), config));
    }
    assert_eq!(first.registries.traffic().to_nodes, 2 * bytes(&image));
    // Who is told to stay alone neither asks nor gives.
    let alone = Node::new(json!({"peers": false}));
    let found = Candidates { named: vec![at], others: Vec::new() };
    alone.registries.set_nodes(Arc::new(Fixed(found)), &tls::client_config(&pem, None).unwrap());
    alone.has(alone.pull(&registry).await, &image).await;
    assert_eq!(alone.registries.traffic().from_nodes, 0);
    let (config, pem) = certificate("127.0.0.1");
    let node = Node::beside(&[alone.serve(config).await], &[], &pem);
    node.has(node.pull(&registry).await, &image).await;
    assert_eq!(node.registries.traffic().from_nodes, 0);
}

#[tokio::test]
async fn a_node_gives_layers_of_the_repository_that_is_named_and_nothing_else() {
    let image = bulky(2);
    let registry = registry_of(&image).await;
    let node = Node::new(json!({}));
    node.pull(&registry).await.unwrap();
    let (config, pem) = certificate("127.0.0.1");
    let at = node.serve(config).await;
    let ca = written(&pem);
    let client = common::registries(json!({"hosts": {at.to_string(): {"ca": [ca.path()]}}}));
    let ask = async |digest: &Digest, repository: &str, range: Option<&str>| {
        let mut request = http::Request::get(format!("https://{at}/images/layers/{digest}?repository={repository}"));
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        let answer = client.send(request.body(bytes::Bytes::new()).unwrap()).await.unwrap();
        let (status, size) = (answer.status().as_u16(), answer.headers().get(header::CONTENT_LENGTH).cloned());
        (status, size.map(|size| size.to_str().unwrap().parse::<usize>().unwrap()).unwrap_or_default())
    };
    let (layer, own) = (Digest::of(&image.blobs[0]), format!("{}/team/app", registry.address));
    let size = image.blobs[0].len();
    assert_eq!(ask(&layer, &own, None).await, (200, size));
    assert_eq!(ask(&layer, &own, Some("bytes=100-")).await, (206, size - 100));
    assert_eq!(ask(&layer, &own, Some(&format!("bytes={size}-"))).await.0, 416);
    assert_eq!(ask(&layer, &own, Some("bytes=1-2")).await.0, 400);
    for repository in [format!("{}/team", registry.address), "127.0.0.1".to_owned(), "r.io/team/app".to_owned()] {
        assert_eq!(ask(&layer, &repository, None).await.0, 404, "{repository}");
    }
    assert_eq!(ask(&layer, "", None).await.0, 400);
    // They would say what an image consists of, which is the registry's to say.
    for digest in [image.manifest_digest(), Digest::of(&image.config), Digest::of(b"unknown")] {
        assert_eq!(ask(&digest, &own, None).await.0, 404, "{digest}");
    }
}

fn written(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[tokio::test]
async fn nodes_are_not_asked_for_what_the_registry_refuses() {
    let image = bulky(3);
    let registry = Registry::start(Behaviour { basic: Some("dXNlcjpwYXNz"), ..Behaviour::default() }, None).await;
    registry.add("v1", &image);
    let (config, pem) = certificate("127.0.0.1");
    let other = Registry::start(Behaviour::default(), Some(config)).await;
    other.add("v1", &image);
    let node = Node::beside(&[other.address], &[], &pem);
    let refused = node.pull(&registry).await.unwrap_err();
    assert!(matches!(refused, Error::Unauthorized { .. }), "{refused}");
    // Nor when it cannot be asked at all.
    let name = "127.0.0.1:1/team/app:v1";
    let options = PullOptions { registries: node.registries.clone(), ..PullOptions::default() };
    let away = node.store.pull(name, options, None).await.unwrap_err();
    assert!(matches!(away, Error::Transport { .. }), "{away}");
    assert_eq!(other.log(), [""; 0]);
}

/// Pulls beside a node that behaves so; what the node and the registry were asked for of layers, and how long it took.
async fn beside(behaviour: Behaviour, image: &TestImage) -> (Vec<String>, Vec<String>, Duration) {
    let registry = registry_of(image).await;
    let (config, pem) = certificate("127.0.0.1");
    let other = Registry::start(behaviour, Some(config)).await;
    other.add("v1", image);
    let node = Node::beside(&[other.address], &[], &pem);
    let begun = Instant::now();
    node.has(node.pull(&registry).await, image).await;
    let asked = other.log();
    assert!(!asked.is_empty() && asked.iter().all(|line| line.starts_with("/images/layers/sha256:")), "{asked:?}");
    (asked, layer_requests(&registry, image), begun.elapsed())
}

#[tokio::test]
async fn a_node_that_refuses_is_passed_over() {
    let image = bulky(4);
    let busy = Behaviour { limit: Some("60"), ..Behaviour::default() };
    let (_, registry, took) = beside(busy, &image).await;
    assert_eq!(registry.len(), 2, "{registry:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    // One where nothing listens, one that cannot be believed, and one that has it.
    let registry = registry_of(&image).await;
    let (config, pem) = certificate("127.0.0.1");
    let (stranger, _) = certificate("127.0.0.1");
    let (stranger, good) = (
        Registry::start(Behaviour::default(), Some(stranger)).await,
        Registry::start(Behaviour::default(), Some(config)).await,
    );
    stranger.add("v1", &image);
    good.add("v1", &image);
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let node = Node::beside(&[nowhere, stranger.address], &[good.address], &pem);
    node.has(node.pull(&registry).await, &image).await;
    assert_eq!(layer_requests(&registry, &image), [""; 0]);
    assert_eq!(stranger.log(), [""; 0]);
}

#[tokio::test]
async fn wrong_bytes_of_a_node_are_thrown_away() {
    let image = bulky(5);
    let (_, registry, _) = beside(Behaviour { corrupt: true, ..Behaviour::default() }, &image).await;
    assert!(registry.iter().any(|line| !line.contains("bytes=")), "{registry:?}");
}

#[tokio::test]
async fn the_registry_goes_on_where_a_node_was_cut_off() {
    let image = bulky(6);
    let cut = Behaviour { cut_after: Some(100_000), ..Behaviour::default() };
    let (asked, registry, _) = beside(cut, &image).await;
    assert!(registry.iter().any(|line| line.ends_with("bytes=100000-")), "{asked:?} {registry:?}");
}

#[tokio::test]
async fn another_node_goes_on_where_one_was_cut_off() {
    let image = bulky(7);
    let registry = registry_of(&image).await;
    let first = Node::new(json!({}));
    first.pull(&registry).await.unwrap();
    let before = layer_requests(&registry, &image).len();
    let (config, pem) = certificate("127.0.0.1");
    let cut = Behaviour { cut_after: Some(100_000), ..Behaviour::default() };
    let broken = Registry::start(cut, Some(config.clone())).await;
    broken.add("v1", &image);
    let node = Node::beside(&[broken.address], &[first.serve(config).await], &pem);
    node.has(node.pull(&registry).await, &image).await;
    assert_eq!(layer_requests(&registry, &image).len(), before);
    // Not a byte twice.
    assert_eq!(node.registries.traffic().from_nodes, bytes(&image));
    let given = first.registries.traffic().to_nodes;
    assert!(given >= bytes(&image) - 100_000 - image.blobs[1].len() as u64 && given < bytes(&image), "{given}");
}

#[tokio::test]
async fn wrong_bytes_of_a_node_that_was_cut_off_do_not_spoil_the_registry_s() {
    let image = bulky(8);
    let behaviour = Behaviour { corrupt: true, cut_after: Some(100_000), ..Behaviour::default() };
    let (_, registry, _) = beside(behaviour, &image).await;
    let large = Digest::of(&image.blobs[0]).to_string();
    let of_it: Vec<&String> = registry.iter().filter(|line| line.contains(&large)).collect();
    assert!(of_it.len() == 2 && of_it[0].ends_with("bytes=100000-") && of_it[1].ends_with(&large), "{registry:?}");
}

#[tokio::test]
async fn a_node_that_is_slow_or_silent_is_left() {
    let silent = Behaviour { stall: Some((100_000, AtomicUsize::new(99))), ..Behaviour::default() };
    let slow = Behaviour { trickle: Some(100_000), ..Behaviour::default() };
    let (one, other) = (bulky(9), bulky(10));
    let both = futures::future::join(beside(silent, &one), beside(slow, &other)).await;
    for (asked, registry, took) in [both.0, both.1] {
        let resumed = registry.iter().any(|line| line.contains("bytes=100"));
        assert!(resumed && took < Duration::from_secs(20), "{asked:?} {registry:?} {took:?}");
    }
}
