//! Garbage collection, also in the middle of pushes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dhow_image::Digest;
use dhow_registry::{
    Access, Actions, Collected, Config, Credentials, Everyone, Pattern, Project, Projects, Registry, Result, Retain,
    Rules, User, Visibility,
};
use dhow_store::{FsBlob, MemoryKv};
use serde_json::json;

use crate::harness::{Server, everywhere, files, image, index, noise};

fn eager() -> Config {
    Config { grace: Duration::ZERO, keep_untagged: Some(Duration::ZERO), ..Config::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takes_what_nothing_refers_to_and_nothing_else() {
    everywhere(eager, async |server| {
        let web = &server.web;
        let (_, part) = web.push_image("a", "old", "layer").await;
        let whole = index(&[&part]);
        web.put_manifest("a", "multi", &whole).await.expect(201);
        web.delete("/v2/a/manifests/old").await.expect(202);
        let (gone, _) = web.push_image("a", "gone", "gone").await;
        web.push_image("b", "kept", "gone").await;
        web.delete("/v2/a/manifests/gone").await.expect(202);
        let stray = web.push_blob("c", b"stray").await;
        let began = web.begin("c").await;
        let collected = server.registry.collect().await.unwrap();
        assert_eq!(
            (collected.manifests, collected.links, collected.blobs, collected.uploads),
            (1, 2, 1, 1),
            "{collected:?}"
        );
        web.get(&format!("/v2/a/manifests/{gone}")).await.expect(404);
        web.get(&format!("/v2/c/blobs/{stray}")).await.expect(404);
        web.get(&began).await.expect(404);
        assert!(!server.blob_file(&stray).exists());
        let layer = Digest::of(b"gone");
        web.get(&format!("/v2/a/blobs/{layer}")).await.expect(404);
        web.get(&format!("/v2/b/blobs/{layer}")).await.expect(200);
        web.get("/v2/a/manifests/multi").await.expect(200);
        web.get(&format!("/v2/a/manifests/{}", Digest::of(part.to_string().as_bytes()))).await.expect(200);
        web.get(&format!("/v2/a/blobs/{}", Digest::of(b"layer"))).await.expect(200);
        assert_eq!(web.get("/v2/_catalog").await.json()["repositories"], json!(["a", "b"]));
        for tag in ["/v2/a/manifests/multi", "/v2/b/manifests/kept"] {
            web.delete(tag).await.expect(202);
        }
        server.registry.collect().await.unwrap();
        assert_eq!(files(&server.blobs), 0);
        let nothing = json!({"repositories": 0, "links": 0, "manifests": 0, "tags": 0, "doomed": 0});
        assert_eq!(server.registry.counts().await.unwrap(), nothing);
    })
    .await;
}

#[tokio::test]
async fn what_is_young_stays() {
    let config = Config { keep_untagged: Some(Duration::ZERO), ..Config::default() };
    let server = Server::with(config, Arc::new(Everyone::default())).await;
    let web = &server.web;
    let (digest, _) = web.push_image("a", "x", "layer").await;
    web.delete("/v2/a/manifests/x").await.expect(202);
    let stray = web.push_blob("a", b"stray").await;
    let upload = web.begin("a").await;
    assert_eq!(server.registry.collect().await.unwrap(), Collected::default());
    web.get(&format!("/v2/a/manifests/{digest}")).await.expect(200);
    web.get(&format!("/v2/a/blobs/{stray}")).await.expect(200);
    web.get(&upload).await.expect(204);
}

#[tokio::test]
async fn retention_takes_tags() {
    let access = Projects::default();
    let retain = Retain { tags: Pattern("v*".to_owned()), newest: None, younger: None };
    let rules = Rules { retain: vec![retain], immutable: vec![Pattern("*-lts".to_owned())], ..Rules::default() };
    access.set("a", Project { visibility: Visibility::Public, rules: Arc::new(rules), ..Project::default() });
    let table = Arc::new(access);
    let server = Server::with(eager(), Arc::new(Retaining(table))).await;
    let web = &server.web;
    for tag in ["v1", "v2", "dev", "old-lts"] {
        web.push_image("a/app", tag, tag).await;
    }
    let collected = server.registry.collect().await.unwrap();
    assert_eq!((collected.tags, collected.manifests), (1, 1), "{collected:?}");
    assert_eq!(web.get("/v2/a/app/tags/list").await.json()["tags"], json!(["old-lts", "v1", "v2"]));
}

/// The rules of a table, without asking who it is.
struct Retaining(Arc<Projects>);

#[async_trait::async_trait]
impl Access for Retaining {
    fn asks(&self) -> bool {
        false
    }

    async fn authenticate(&self, _: Credentials<'_>) -> Result<Option<User>> {
        Ok(None)
    }

    async fn actions(&self, _: Option<&User>, _: &str) -> Result<Actions> {
        Ok(Actions::ALL)
    }

    async fn rules(&self, repository: &str) -> Result<Arc<Rules>> {
        self.0.rules(repository).await
    }
}

/// Next to no grace, collections without a pause: whatever is acknowledged with a tag must be whole ever after.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pushes_and_collections_do_not_hurt_each_other() {
    let kv = Arc::new(MemoryKv::new());
    let hasty = Config { grace: Duration::from_secs(2), ..eager() };
    let folder = tempfile::tempdir().unwrap();
    let server = Arc::new(Server::over(hasty, Arc::new(Everyone::default()), kv.clone(), folder).await);
    let (ended, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let collector = tokio::spawn({
        let (server, ended, taken) = (server.clone(), ended.clone(), taken.clone());
        async move {
            let mut rounds = 0;
            while !ended.load(Ordering::Acquire) {
                taken.fetch_add(server.registry.collect().await.unwrap().blobs, Ordering::AcqRel);
                rounds += 1;
            }
            rounds
        }
    });
    let pushers: Vec<_> = (0..4u64).map(|pusher| tokio::spawn(push(server.clone(), pusher, taken.clone()))).collect();
    let mut again = 0;
    for pusher in pushers {
        again += pusher.await.unwrap();
    }
    ended.store(true, Ordering::Release);
    let (rounds, blobs) = (collector.await.unwrap(), taken.load(Ordering::Acquire));
    println!("{rounds} collections took {blobs} blobs; {again} pushes were told to come again");
    for pusher in 0..4 {
        server.web.delete(&format!("/v2/team/app{}/manifests/p{pusher}", pusher % 2)).await.expect(202);
    }
    let blobs = Arc::new(FsBlob::open(server.folder.path().join("registry")).unwrap());
    let last = Registry::open(eager(), kv, blobs, Arc::new(Everyone::default())).await.unwrap();
    last.collect().await.unwrap();
    assert_eq!(files(server.folder.path()), 0);
}

/// Moves a tag from image to image until collections have taken much, and looks at everything each time.
async fn push(server: Arc<Server>, pusher: u64, taken: Arc<AtomicUsize>) -> usize {
    let web = &server.web;
    let repository = format!("team/app{}", pusher % 2);
    let (mut again, mut round) = (0, 0u64);
    while round < 10 || taken.load(Ordering::Acquire) < 20 {
        round += 1;
        // Everyone pushes the same layers, so that some are collected just then.
        let shared = format!("layer {}", round % 5);
        let own: String = noise(round * 10 + pusher, 40).iter().map(|b| char::from(b % 26 + 97)).collect();
        let layers = [shared.as_str(), own.as_str()];
        let manifest = image(&layers);
        let tag = format!("p{pusher}");
        // A blob that waited longer than the grace may go before its manifest comes: the client is told, and pushes again.
        loop {
            for blob in layers.into_iter().chain(["{}"]) {
                web.push_blob(&repository, blob.as_bytes()).await;
            }
            let reply = web.put_manifest(&repository, &tag, &manifest).await;
            if reply.status.as_u16() == 201 {
                break;
            }
            assert_eq!(reply.expect(404).code(), "MANIFEST_BLOB_UNKNOWN");
            again += 1;
        }
        let got = web.get(&format!("/v2/{repository}/manifests/{tag}")).await.expect(200);
        assert_eq!(&got.body[..], manifest.to_string().as_bytes());
        for blob in layers.into_iter().chain(["{}"]) {
            let path = format!("/v2/{repository}/blobs/{}", Digest::of(blob.as_bytes()));
            assert_eq!(&web.get(&path).await.expect(200).body[..], blob.as_bytes());
        }
    }
    again
}
