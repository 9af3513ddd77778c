//! Replication to and from another registry: one of ours, and Debian's docker-registry.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dhow_image::{Digest, PeerOptions};
use dhow_registry::{Config, Direction, Everyone, Item, Pattern, Registry, Replication, Rules};
use dhow_store::{FjallKv, FsBlob};
use serde_json::{Value, json};

use crate::harness::{MANIFEST, Server, Web, descriptor, files, image, index, noise};

fn task(direction: Direction, other: &str) -> Replication {
    Replication {
        direction,
        registry: other.to_owned(),
        options: PeerOptions::default(),
        repositories: vec![Pattern("team/*".to_owned())],
        tags: vec![Pattern("*".to_owned())],
        labels: BTreeMap::new(),
        rename: ("team/".to_owned(), "mirror/".to_owned()),
        delete: false,
        bandwidth: None,
        user: "system:replication:test".to_owned(),
    }
}

fn about(subject: &Value, what: &str) -> Value {
    let mut manifest = image(&[what]);
    manifest["subject"] = descriptor(MANIFEST, subject.to_string().as_bytes());
    manifest["artifactType"] = json!(format!("application/vnd.example.{what}"));
    manifest
}

async fn put(web: &Web, repository: &str, reference: &str, manifest: &Value) -> Digest {
    web.put_manifest(repository, reference, manifest).await.expect(201);
    Digest::of(manifest.to_string().as_bytes())
}

/// Two platforms with an index, a signature of one of them, a report about the signature, and another tag.
struct Pushed {
    index: Value,
    platform: Value,
    signature: Digest,
    report: Digest,
}

async fn push_all(web: &Web) -> Pushed {
    let (one, other) = (image(&["one"]), image(&["other"]));
    for content in ["{}", "one", "other", "signature", "report", "plain"] {
        web.push_blob("team/app", content.as_bytes()).await;
    }
    put(web, "team/app", &Digest::of(one.to_string().as_bytes()).to_string(), &one).await;
    put(web, "team/app", &Digest::of(other.to_string().as_bytes()).to_string(), &other).await;
    let whole = index(&[&one, &other]);
    put(web, "team/app", "v1", &whole).await;
    put(web, "team/app", "latest", &image(&["plain"])).await;
    let signature = about(&one, "signature");
    let report = about(&signature, "report");
    let target = |manifest: &Value| Digest::of(manifest.to_string().as_bytes()).to_string();
    Pushed {
        signature: put(web, "team/app", &target(&signature), &signature).await,
        report: put(web, "team/app", &target(&report), &report).await,
        index: whole,
        platform: one,
    }
}

async fn has_all(web: &Web, repository: &str, pushed: &Pushed) {
    let found = web.get_manifest(repository, "v1").await.expect(200);
    assert_eq!(found.body, pushed.index.to_string());
    for entry in pushed.index["manifests"].as_array().unwrap() {
        let digest = entry["digest"].as_str().unwrap();
        let manifest = web.get_manifest(repository, digest).await.expect(200).json();
        for blob in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
            web.get(&format!("/v2/{repository}/blobs/{}", blob["digest"].as_str().unwrap())).await.expect(200);
        }
    }
    for digest in [&pushed.signature, &pushed.report] {
        web.get_manifest(repository, digest.as_str()).await.expect(200);
    }
}

#[tokio::test]
async fn all_that_matches_goes_over_once() {
    let (here, there) = (Server::new().await, Server::new().await);
    let pushed = push_all(&here.web).await;
    here.web.push_image("other/app", "1", "x").await;
    let task = task(Direction::Push, &there.address.to_string());
    let report = here.registry.replicate(&task, None).await;
    assert_eq!((report.images, report.copied, report.failed), (2, 2, 0), "{report:?}");
    has_all(&there.web, "mirror/app", &pushed).await;
    there.web.get("/v2/other/app/tags/list").await.expect(404);
    let platform = Digest::of(pushed.platform.to_string().as_bytes());
    let listed = there.web.get(&format!("/v2/mirror/app/referrers/{platform}")).await.expect(200).json();
    assert_eq!(listed["manifests"][0]["digest"], json!(pushed.signature));
    // Again: nothing is moved. A new referrer alone is.
    let again = here.registry.replicate(&task, None).await;
    assert_eq!((again.images, again.copied, again.bytes), (2, 0, 0), "{again:?}");
    here.web.push_blob("team/app", b"late").await;
    let late = about(&pushed.platform, "late");
    let late = put(&here.web, "team/app", &Digest::of(late.to_string().as_bytes()).to_string(), &late).await;
    let only = BTreeSet::from([Item::Referrer("team/app".to_owned(), platform, late.clone())]);
    let report = here.registry.replicate(&task, Some(&only)).await;
    assert_eq!((report.copied, report.failed), (1, 0), "{report:?}");
    there.web.get(&format!("/v2/mirror/app/manifests/{late}")).await.expect(200);
}

#[tokio::test]
async fn filters_deletions_and_failures_are_as_the_rule_says() {
    let (here, there) = (Server::new().await, Server::new().await);
    let mut labelled = image(&["labelled"]);
    let config = json!({"config": {"Labels": {"tier": "front"}}}).to_string();
    labelled["config"] = descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes());
    here.web.push_blob("team/app", config.as_bytes()).await;
    here.web.push_blob("team/app", b"labelled").await;
    let digest = put(&here.web, "team/app", "v2", &labelled).await;
    here.web.push_image("team/app", "v1", "unlabelled").await;
    // As cosign names what it signs.
    here.web.push_image("team/app", &format!("sha256-{}.sig", digest.hex()), "a signature").await;
    here.web.push_image("team/app", "sha256-nothing.sig", "another").await;
    let labels = BTreeMap::from([("tier".to_owned(), "front".to_owned())]);
    let other = there.address.to_string();
    let by_label = Replication { labels, ..task(Direction::Push, &other) };
    here.registry.replicate(&by_label, None).await;
    let tags = async |web: &Web| web.get("/v2/mirror/app/tags/list").await.expect(200).json()["tags"].clone();
    assert_eq!(tags(&there.web).await, json!(["v2"]));
    let by_tag = Replication { tags: vec![Pattern("v*".to_owned())], delete: true, ..task(Direction::Push, &other) };
    let report = here.registry.replicate(&by_tag, None).await;
    assert_eq!(report.failed, 0, "{report:?}");
    let signature = format!("sha256-{}.sig", digest.hex());
    assert_eq!(tags(&there.web).await, json!([signature, "v1", "v2"]));
    here.web.delete("/v2/team/app/manifests/v1").await.expect(202);
    there.web.push_image("mirror/app", "kept", "theirs").await;
    let only = BTreeSet::from([Item::Tag("team/app".to_owned(), "v1".to_owned())]);
    let report = here.registry.replicate(&by_tag, Some(&only)).await;
    assert_eq!((report.deleted, report.failed), (1, 0), "{report:?}");
    assert_eq!(tags(&there.web).await, json!(["kept", signature, "v2"]));

    // Nobody there: said of each, and left to be done.
    let only = BTreeSet::from([Item::Tag("team/app".to_owned(), "v2".to_owned())]);
    let none = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let report = here.registry.replicate(&task(Direction::Push, &none), Some(&only)).await;
    assert_eq!((report.failed, report.left), (1, only), "{:?}", report.failures);
    assert!(report.failures[0].1.contains("cannot reach"), "{:?}", report.failures);
}

#[tokio::test]
async fn what_another_registry_has_comes_here() {
    let (here, there) = (Server::new().await, Server::new().await);
    let pushed = push_all(&there.web).await;
    let mut task = task(Direction::Pull, &there.address.to_string());
    let mut events = here.registry.events();
    let report = here.registry.replicate(&task, None).await;
    assert_eq!((report.images, report.copied, report.failed), (2, 2, 0), "{report:?}");
    has_all(&here.web, "mirror/app", &pushed).await;
    assert_eq!(events.try_recv().unwrap().user, "system:replication:test");
    let again = here.registry.replicate(&task, None).await;
    assert_eq!((again.copied, again.bytes), (0, 0), "{again:?}");
    there.web.delete("/v2/team/app/manifests/latest").await.expect(202);
    here.registry.replicate(&task, None).await;
    here.web.get("/v2/mirror/app/manifests/latest").await.expect(200);
    task.delete = true;
    assert_eq!(here.registry.replicate(&task, None).await.deleted, 1);
    here.web.get("/v2/mirror/app/manifests/latest").await.expect(404);
    // The rules of the place it comes to hold.
    let rules = Rules { quota: Some(100), ..Rules::default() };
    let small = Server::with(Config::default(), Arc::new(Everyone(Arc::new(rules)))).await;
    let report = small.registry.replicate(&task, None).await;
    assert!(report.failed == 1 && report.failures[0].1.contains("quota"), "{report:?}");
}

#[tokio::test]
async fn docker_registry_takes_it_and_gives_it() {
    let folder = tempfile::tempdir().unwrap();
    let (_killed, other) = crate::compare::reference(folder.path());
    let (here, back) = (Server::new().await, Server::new().await);
    let pushed = push_all(&here.web).await;
    let push = Replication { delete: true, ..task(Direction::Push, &other) };
    let report = here.registry.replicate(&push, None).await;
    assert_eq!((report.copied, report.failed), (2, 0), "{report:?}");
    let theirs = Web::new(&other);
    has_all(&theirs, "mirror/app", &pushed).await;
    // It keeps no list of referrers, so there is one under a tag.
    let platform = Digest::of(pushed.platform.to_string().as_bytes());
    let list = theirs.get_manifest("mirror/app", &format!("sha256-{}", platform.hex())).await.expect(200).json();
    assert_eq!(list["manifests"][0]["digest"], json!(pushed.signature));
    assert_eq!(list["manifests"][0]["artifactType"], "application/vnd.example.signature");

    let pull = Replication {
        repositories: vec![Pattern("mirror/*".to_owned())],
        tags: vec![Pattern("v*".to_owned()), Pattern("latest".to_owned())],
        rename: Default::default(),
        ..task(Direction::Pull, &other)
    };
    let report = back.registry.replicate(&pull, None).await;
    assert_eq!((report.copied, report.failed), (2, 0), "{report:?}");
    has_all(&back.web, "mirror/app", &pushed).await;
    let listed = back.web.get(&format!("/v2/mirror/app/referrers/{platform}")).await.expect(200).json();
    assert_eq!(listed["manifests"][0]["digest"], json!(pushed.signature));

    // It deletes manifests, not tags; and none that another tag names.
    here.web.put_manifest("team/app", "also", &image(&["plain"])).await.expect(201);
    here.registry.replicate(&push, None).await;
    here.web.delete("/v2/team/app/manifests/also").await.expect(202);
    let only = BTreeSet::from([Item::Tag("team/app".to_owned(), "also".to_owned())]);
    let report = here.registry.replicate(&push, Some(&only)).await;
    let shared = report.failed == 1 && report.failures[0].1.contains("names the same manifest");
    assert!(shared || report.deleted == 1, "{report:?}");
    theirs.get_manifest("mirror/app", "latest").await.expect(200);
}

#[tokio::test]
async fn no_faster_than_it_may() {
    let (here, there) = (Server::new().await, Server::new().await);
    let content: String = noise(7, 300_000).iter().map(|byte| char::from(byte % 26 + 97)).collect();
    here.web.push_image("team/app", "1", &content).await;
    let task = Replication { bandwidth: Some(200_000), ..task(Direction::Push, &there.address.to_string()) };
    let begun = Instant::now();
    assert_eq!(here.registry.replicate(&task, None).await.failed, 0);
    assert!(begun.elapsed() > Duration::from_millis(500), "{:?}", begun.elapsed());
}

const ROOT: &str = "DHOW_TEST_REPLICA_ROOT";
const ORIGIN: &str = "DHOW_TEST_REPLICA_ORIGIN";

async fn open(root: &Path) -> Registry {
    let kv = Arc::new(FjallKv::open(root.join("kv")).unwrap());
    let blobs = Arc::new(FsBlob::open(root.join("registry")).unwrap());
    Registry::open(Config::default(), kv, blobs, Arc::new(Everyone::default())).await.unwrap()
}

/// Not a test of its own: the process that gets killed. Slow enough for that.
#[tokio::test]
#[ignore = "run by a_pull_that_is_killed_goes_on_where_it_was"]
async fn victim() {
    let root = PathBuf::from(std::env::var_os(ROOT).unwrap());
    let origin = std::env::var(ORIGIN).unwrap();
    let task = Replication { bandwidth: Some(1 << 20), ..task(Direction::Pull, &origin) };
    open(&root).await.replicate(&task, None).await;
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn fetched(root: &Path) -> u64 {
    let uploads = std::fs::read_dir(root.join("registry/.uploads")).into_iter().flatten();
    uploads.filter_map(|entry| entry.ok()?.metadata().ok()).map(|meta| meta.len()).max().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_is_killed_goes_on_where_it_was() {
    let origin = Server::new().await;
    let content: String = noise(3, 8 << 20).iter().map(|byte| char::from(byte % 26 + 97)).collect();
    let (_, manifest) = origin.web.push_image("team/app", "1", &content).await;
    let root = tempfile::tempdir().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "replicate::victim", "--ignored"])
        .env(ROOT, root.path())
        .env(ORIGIN, origin.address.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let begun = Instant::now();
    while fetched(root.path()) < 1 << 20 {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing comes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let have = fetched(root.path());
    let registry = open(root.path()).await;
    let report = registry.replicate(&task(Direction::Pull, &origin.address.to_string()), None).await;
    assert_eq!((report.copied, report.failed), (1, 0), "{report:?}");
    assert!(report.bytes <= content.len() as u64 - have + manifest.to_string().len() as u64 + 10, "{report:?} {have}");
    assert_eq!(files(&root.path().join("registry/.uploads")), 0);
}
