//! kill -9 in the middle of pushes: what was acknowledged is there, what was not is swept away.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dhow_image::Digest;
use dhow_registry::{Config, Everyone, Registry};
use dhow_store::{Blob, FjallKv, FsBlob};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::harness::{Web, bucket, files, image, noise};

const ROOT: &str = "DHOW_TEST_REGISTRY_ROOT";
/// Where the S3 server is whose bucket has the blobs, if they are in one.
const S3: &str = "DHOW_TEST_REGISTRY_S3";

async fn open(root: &Path, s3: Option<String>, config: Config) -> Registry {
    let kv = Arc::new(FjallKv::open(root.join("kv")).unwrap());
    let blobs: Arc<dyn Blob> = match s3 {
        Some(url) => bucket(url, root.join("credentials")),
        None => Arc::new(FsBlob::open(root.join("registry")).unwrap()),
    };
    Registry::open(config, kv, blobs, Arc::new(Everyone::default())).await.unwrap()
}

/// Not a test of its own: the process that gets killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by pushes_survive_being_killed"]
async fn victim() {
    let root = PathBuf::from(std::env::var_os(ROOT).unwrap());
    let registry = open(&root, std::env::var(S3).ok(), Config::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    writeln!(std::io::stderr(), "serving {}", listener.local_addr().unwrap()).unwrap();
    registry.serve(listener, None, CancellationToken::new()).await;
}

struct Victim(Child, String);

impl Victim {
    fn start(root: &Path, s3: Option<&String>) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::victim", "--ignored", "--nocapture"])
            .env(ROOT, root)
            .envs(s3.map(|url| (S3, url)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.split_once("serving ").map(|(_, address)| address.to_owned()));
        Self(child, address.expect("the victim says where it serves"))
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the registry has said yes to.
#[derive(Default)]
struct Acknowledged {
    blobs: BTreeMap<Digest, Vec<u8>>,
    tags: BTreeMap<String, String>,
}

/// Pushes until the connection fails.
async fn push(web: Web, seed: u64, acknowledged: Arc<Mutex<Acknowledged>>, count: Arc<AtomicUsize>) {
    for round in 0.. {
        let layer: String = noise(seed + round, 40_000).iter().map(|b| char::from(b % 26 + 97)).collect();
        let manifest = image(&[&layer]).to_string();
        let tag = format!("t{seed}-{round}");
        for blob in [&b"{}"[..], layer.as_bytes()] {
            let digest = Digest::of(blob);
            let path = format!("/v2/app/blobs/uploads/?digest={digest}");
            let pushing = tokio::spawn({
                let (web, blob) = (web.clone(), bytes::Bytes::copy_from_slice(blob));
                async move { web.send("POST", &path, &[], blob).await.status.as_u16() }
            });
            if pushing.await.ok() != Some(201) {
                return;
            }
            acknowledged.lock().blobs.insert(digest, blob.to_vec());
            count.fetch_add(1, Ordering::AcqRel);
        }
        let putting = tokio::spawn({
            let (web, manifest, tag) = (web.clone(), manifest.clone(), tag.clone());
            async move {
                let kind = [("content-type", crate::harness::MANIFEST)];
                web.send("PUT", &format!("/v2/app/manifests/{tag}"), &kind, manifest).await.status.as_u16()
            }
        });
        if putting.await.ok() != Some(201) {
            return;
        }
        acknowledged.lock().tags.insert(tag, manifest);
        count.fetch_add(1, Ordering::AcqRel);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_survive_being_killed() {
    let root = tempfile::tempdir().unwrap();
    survives(root.path(), &root.path().join("registry"), None, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_into_s3_survive_being_killed() {
    let root = tempfile::tempdir().unwrap();
    let s3 = dhow_test_s3::Server::start(root.path(), None).await.unwrap();
    survives(root.path(), &s3.bucket.join("registry"), Some(s3.url()), 5).await;
}

/// The blobs are the files in `stored`.
async fn survives(root: &Path, stored: &Path, s3: Option<String>, rounds: u64) {
    let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
    let mut begun: Option<(String, usize)> = None;
    for round in 0..rounds {
        let mut victim = Victim::start(root, s3.as_ref());
        let web = Web::new(&victim.1);
        let (blobs, tags) = {
            let known = acknowledged.lock();
            (known.blobs.clone(), known.tags.clone())
        };
        for (digest, bytes) in blobs {
            assert!(web.get(&format!("/v2/app/blobs/{digest}")).await.expect(200).body == bytes);
        }
        for (tag, manifest) in tags {
            assert!(web.get(&format!("/v2/app/manifests/{tag}")).await.expect(200).body == manifest);
        }
        // An upload goes on where the killed server had got to.
        if let Some((location, length)) = begun.take() {
            let status = web.get(&location).await.expect(204);
            assert_eq!(status.header("range").unwrap(), format!("0-{}", length - 1));
            let (rest, all) = (noise(99, 2 * length).split_off(length), noise(99, 2 * length));
            let digest = Digest::of(&all);
            web.send("PUT", &format!("{location}?digest={digest}"), &[], rest).await.expect(201);
            assert!(web.get(&format!("/v2/app/blobs/{digest}")).await.expect(200).body == all);
            acknowledged.lock().blobs.insert(digest, all);
        }
        let location = web.begin("app").await;
        web.send("PATCH", &location, &[], noise(99, 2 * 50_000)[..50_000].to_vec()).await.expect(202);
        begun = Some((location, 50_000));
        let count = Arc::new(AtomicUsize::new(0));
        let pushers: Vec<_> = (0..3)
            .map(|n| tokio::spawn(push(web.clone(), round * 1_000_000 + n * 1000, acknowledged.clone(), count.clone())))
            .collect();
        // After a number of steps that differs, wherever it happens to be then.
        let enough = usize::try_from(round * 5 + 3).unwrap();
        tokio::task::spawn_blocking(move || {
            while count.load(Ordering::Acquire) < enough {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            victim.kill();
        })
        .await
        .unwrap();
        for pusher in pushers {
            pusher.await.unwrap();
        }
    }
    let config = Config { grace: Duration::ZERO, keep_untagged: Some(Duration::ZERO), ..Config::default() };
    let registry = open(root, s3, config).await;
    registry.collect().await.unwrap();
    assert_eq!(files(&stored.join(".uploads")), 0);
    // Each tag's manifest and layer, and the config that all share; also of pushes whose answer got lost.
    let counts = registry.counts().await.unwrap();
    let tags = usize::try_from(counts["tags"].as_u64().unwrap()).unwrap();
    assert!(tags >= acknowledged.lock().tags.len());
    assert_eq!(files(&stored.join("blobs")), 2 * tags + 1);
}
