//! Projects that are caches of another registry.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dhow_image::{Auth, Digest, Reference};
use dhow_registry::{Access, Actions, Code, Config, Credentials, Error, Rules, Upstream, User};
use parking_lot::Mutex;
use serde_json::Value;

use crate::harness::{MANIFEST, Server, descriptor, image, index, noise};

/// All repositories below `hub/` are those of the origin's `team/`.
struct Cache {
    origin: String,
    check_after: Mutex<Duration>,
    rules: Arc<Rules>,
}

#[async_trait]
impl Access for Cache {
    fn asks(&self) -> bool {
        false
    }

    async fn authenticate(&self, _: Credentials<'_>) -> dhow_registry::Result<Option<User>> {
        Ok(None)
    }

    async fn actions(&self, _: Option<&User>, _: &str) -> dhow_registry::Result<Actions> {
        Ok(Actions::ALL)
    }

    async fn rules(&self, _: &str) -> dhow_registry::Result<Arc<Rules>> {
        Ok(self.rules.clone())
    }

    async fn upstream(&self, repository: &str) -> dhow_registry::Result<Option<Upstream>> {
        let Some(below) = repository.strip_prefix("hub/") else { return Ok(None) };
        let reference = Reference::parse(&format!("{}/team/{below}", self.origin)).unwrap();
        Ok(Some(Upstream { reference, auth: Auth::Anonymous, check_after: *self.check_after.lock() }))
    }

    async fn admits(&self, repository: &str) -> dhow_registry::Result<()> {
        match self.upstream(repository).await? {
            Some(_) => Err(Error::new(Code::Denied, "a cache")),
            None => Ok(()),
        }
    }
}

async fn cache_of(origin: &Server, check_after: Duration, rules: Rules) -> (Server, Arc<Cache>) {
    let (check_after, rules) = (Mutex::new(check_after), Arc::new(rules));
    let access = Arc::new(Cache { origin: origin.address.to_string(), check_after, rules });
    (Server::with(Config::default(), access.clone()).await, access)
}

/// Waits until the cache has it on disk, which may be a moment after the client has it.
async fn until_kept(cache: &Server, digest: &Digest) {
    let kept = async {
        while !cache.blob_file(digest).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), kept).await.unwrap();
}

#[tokio::test]
async fn what_is_asked_for_is_fetched_once_and_kept() {
    let origin = Server::new().await;
    let large = String::from_utf8(noise(1, 3 << 20).iter().map(|byte| byte % 64 + 32).collect()).unwrap();
    let (digest, manifest) = origin.web.push_image("team/app", "1", &large).await;
    let (cache, _) = cache_of(&origin, Duration::from_secs(600), Rules::default()).await;
    let layer = Digest::of(large.as_bytes());

    let reply = cache.web.get("/v2/hub/app/manifests/1").await.expect(200);
    assert_eq!(reply.body, manifest.to_string());
    assert_eq!(reply.header("docker-content-digest"), Some(digest.as_str()));
    let path = format!("/v2/hub/app/blobs/{layer}");
    let head = cache.web.head(&path).await.expect(200);
    assert_eq!(head.header("content-length"), Some(large.len().to_string().as_str()));
    // Two at once each get it whole.
    let (one, other) = tokio::join!(cache.web.get(&path), cache.web.get(&path));
    assert!(one.expect(200).body == large && other.expect(200).body == large);
    until_kept(&cache, &layer).await;
    cache.web.get(&format!("/v2/hub/app/blobs/{}", Digest::of(b"{}"))).await.expect(200);
    until_kept(&cache, &Digest::of(b"{}")).await;

    // From here on the origin is not needed.
    drop(origin);
    cache.web.get("/v2/hub/app/manifests/1").await.expect(200);
    cache.web.get(&format!("/v2/hub/app/manifests/{digest}")).await.expect(200);
    assert!(cache.web.get(&path).await.expect(200).body == large);
    let part = cache.web.send("GET", &path, &[("range", "bytes=5-9")], "").await.expect(206);
    assert_eq!(part.body, large.as_bytes()[5..10]);
    cache.web.get("/v2/hub/app/manifests/2").await.expect(502);
    // Nothing is pushed into it; elsewhere all is as ever.
    let push = cache.web.send("POST", "/v2/hub/app/blobs/uploads/", &[], "").await.expect(403);
    assert_eq!(push.code(), "DENIED");
    cache.web.push_image("own/app", "1", "x").await;
}

#[tokio::test]
async fn tags_are_looked_after_and_old_ones_are_better_than_none() {
    let origin = Server::new().await;
    let (first, _) = origin.web.push_image("team/app", "1", "first").await;
    let (cache, access) = cache_of(&origin, Duration::from_secs(600), Rules::default()).await;
    let seen = async || {
        let reply = cache.web.head("/v2/hub/app/manifests/1").await.expect(200);
        reply.header("docker-content-digest").unwrap().to_owned()
    };
    assert_eq!(seen().await, first.as_str());
    let (second, _) = origin.web.push_image("team/app", "1", "second").await;
    assert_eq!(seen().await, first.as_str());
    *access.check_after.lock() = Duration::ZERO;
    assert_eq!(seen().await, second.as_str());
    let none = cache.web.get("/v2/hub/none/manifests/1").await.expect(404);
    assert_eq!(none.code(), "NAME_UNKNOWN");
    cache.web.get("/v2/hub/app/manifests/2").await.expect(404);
    cache.web.get(&format!("/v2/hub/app/blobs/{}", Digest::of(b"nothing"))).await.expect(404);
    drop(origin);
    assert_eq!(seen().await, second.as_str());
}

#[tokio::test]
async fn parts_of_an_index_come_when_they_are_wanted() {
    let origin = Server::new().await;
    let (ours, theirs) = (image(&["ours"]), image(&["theirs"]));
    for (name, content) in [("ours", &ours), ("theirs", &theirs)] {
        origin.web.push_blob("team/multi", b"{}").await;
        origin.web.push_blob("team/multi", name.as_bytes()).await;
        origin.web.put_manifest("team/multi", name, content).await.expect(201);
    }
    let whole = index(&[&ours, &theirs]);
    origin.web.put_manifest("team/multi", "1", &whole).await.expect(201);
    let (cache, _) = cache_of(&origin, Duration::from_secs(600), Rules::default()).await;
    cache.web.get("/v2/hub/multi/manifests/1").await.expect(200);
    let entry = descriptor(MANIFEST, ours.to_string().as_bytes());
    let path = format!("/v2/hub/multi/manifests/{}", entry["digest"].as_str().unwrap());
    let reply: Value = cache.web.get(&path).await.expect(200).json();
    assert_eq!(reply, ours);
    // A collection takes nothing that is tagged, however much of it never came.
    cache.registry.collect().await.unwrap();
    drop(origin);
    cache.web.get("/v2/hub/multi/manifests/1").await.expect(200);
    cache.web.get(&path).await.expect(200);
}

#[tokio::test]
async fn what_the_quota_has_no_room_for_is_passed_on() {
    let origin = Server::new().await;
    let content = "x".repeat(5000);
    let (_, manifest) = origin.web.push_image("team/app", "1", &content).await;
    let room = manifest.to_string().len() as u64 + 100;
    let (cache, _) = cache_of(&origin, Duration::ZERO, Rules { quota: Some(room), ..Rules::default() }).await;
    cache.web.get("/v2/hub/app/manifests/1").await.expect(200);
    let layer = Digest::of(content.as_bytes());
    for _ in 0..2 {
        assert_eq!(cache.web.get(&format!("/v2/hub/app/blobs/{layer}")).await.expect(200).body, content);
    }
    assert!(!cache.blob_file(&layer).exists());
}

/// What refers to an image, and through the cache.
fn signature(of: &Value) -> Value {
    let mut signature = image(&["signature"]);
    signature["subject"] = descriptor(MANIFEST, of.to_string().as_bytes());
    signature["artifactType"] = "application/vnd.example.signature".into();
    signature
}

async fn referrers(server: &Server, subject: &Digest) -> Vec<String> {
    let reply = server.web.get(&format!("/v2/hub/app/referrers/{subject}")).await.expect(200).json();
    let entries = reply["manifests"].as_array().unwrap();
    entries.iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_refers_to_an_image_comes_through_and_stays() {
    let origin = Server::new().await;
    let (digest, manifest) = origin.web.push_image("team/app", "1", "x").await;
    let (cache, access) = cache_of(&origin, Duration::from_secs(600), Rules::default()).await;
    cache.web.get("/v2/hub/app/manifests/1").await.expect(200);
    assert!(referrers(&cache, &digest).await.is_empty());
    let signature = signature(&manifest);
    let signed = Digest::of(signature.to_string().as_bytes());
    origin.web.push_blob("team/app", b"signature").await;
    origin.web.put_manifest("team/app", signed.as_str(), &signature).await.expect(201);
    // Believed for a while, then looked for again.
    assert!(referrers(&cache, &digest).await.is_empty());
    *access.check_after.lock() = Duration::ZERO;
    assert_eq!(referrers(&cache, &digest).await, [signed.as_str()]);
    let filtered = cache.web.get(&format!("/v2/hub/app/referrers/{digest}?artifactType=other")).await.expect(200);
    assert!(filtered.json()["manifests"].as_array().unwrap().is_empty());
    drop(origin);
    assert_eq!(referrers(&cache, &digest).await, [signed.as_str()]);
    assert_eq!(cache.web.get(&format!("/v2/hub/app/manifests/{signed}")).await.expect(200).json(), signature);
    // Nobody can say that there are none.
    cache.web.get(&format!("/v2/hub/app/referrers/{}", Digest::of(b"other"))).await.expect(502);
}

#[tokio::test]
async fn an_origin_without_a_list_of_referrers_has_them_by_tag() {
    let folder = tempfile::tempdir().unwrap();
    let (_killed, address) = crate::compare::reference(folder.path());
    let origin = crate::harness::Web::new(&address);
    let (digest, manifest) = origin.push_image("team/app", "1", "x").await;
    let signature = signature(&manifest);
    let signed = Digest::of(signature.to_string().as_bytes());
    origin.push_blob("team/app", b"signature").await;
    origin.put_manifest("team/app", signed.as_str(), &signature).await.expect(201);
    let list = index(&[&signature]);
    origin.put_manifest("team/app", &format!("sha256-{}", digest.hex()), &list).await.expect(201);
    let check_after = Mutex::new(Duration::ZERO);
    let access = Arc::new(Cache { origin: address, check_after, rules: Arc::default() });
    let cache = Server::with(Config::default(), access).await;
    assert_eq!(referrers(&cache, &digest).await, [signed.as_str()]);
    // Taken back there, it is gone here.
    origin.put_manifest("team/app", &format!("sha256-{}", digest.hex()), &index(&[])).await.expect(201);
    assert!(referrers(&cache, &digest).await.is_empty());
}
