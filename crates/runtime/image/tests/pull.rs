//! Pulling: from Debian's docker-registry, and from a registry that misbehaves.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Cursor;
use std::process::Command;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use common::docker_registry::{Setup, docker_registry};
use common::registry::{Behaviour, Registry};
use common::{Packing, TestImage, arch, bulky, certificate, reaching};
use dhow_image::{ArchiveFormat, Auth, Error, ImageStore, Progress, PullOptions};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn pulls_from_docker_registry() {
    let dir = tempfile::tempdir().unwrap();
    let (_registry, address) = docker_registry(dir.path(), &Setup::default());
    let image = TestImage::new(Packing::Gzip, "real");
    let archive = dir.path().join("image.tar");
    std::fs::write(&archive, image.oci_archive("app:1")).unwrap();
    for (format, tag) in [("oci", "oci"), ("v2s2", "docker")] {
        let pushed = Command::new("skopeo")
            .args(["copy", "--quiet", "--dest-tls-verify=false", "--format", format])
            .arg(format!("oci-archive:{}", archive.display()))
            .arg(format!("docker://{address}/team/app:{tag}"))
            .output()
            .unwrap();
        assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    }
    let store = ImageStore::open(&dir.path().join("store")).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let progress = Arc::new(move |p| sink.lock().unwrap().push(p));
    let pulled = store.pull(&format!("{address}/team/app:oci"), PullOptions::default(), Some(progress)).await.unwrap();
    assert_eq!(pulled.id, image.id());
    assert_eq!(pulled.references, [format!("{address}/team/app:oci")]);
    assert_eq!(pulled.digests, [format!("{address}/team/app@{}", image.manifest_digest())]);
    {
        let seen = seen.lock().unwrap();
        assert!(matches!(seen.first(), Some(Progress::Resolved { layers: 2, .. })), "{seen:?}");
        assert!(matches!(seen.last(), Some(Progress::Done { .. })));
        assert_eq!(seen.iter().filter(|p| matches!(p, Progress::Downloaded { .. })).count(), 3);
    }
    let docker = store.pull(&format!("{address}/team/app:docker"), PullOptions::default(), None).await.unwrap();
    let layers = store.layers(&docker).await.unwrap();
    assert_eq!(std::fs::read(layers[0].join("top/file")).unwrap(), b"real");
    // By digest, known already: nothing is asked of the registry but that must also work.
    let by_digest = format!("{address}/team/app@{}", image.manifest_digest());
    assert_eq!(store.pull(&by_digest, PullOptions::default(), None).await.unwrap().id, image.id());
    let missing = store.pull(&format!("{address}/team/app:none"), PullOptions::default(), None).await.unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
}

async fn pull_from(
    behaviour: Behaviour,
    image: &TestImage,
    options: PullOptions,
) -> (Result<dhow_image::Image, Error>, Vec<String>) {
    let registry = Registry::start(behaviour, None).await;
    registry.add("v1", image);
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let pulled = store.pull(&format!("{}/team/app:v1", registry.address), options, None).await;
    (pulled, registry.log())
}

#[tokio::test]
async fn resumes_cut_downloads_where_they_stopped() {
    let image = bulky(1);
    let (pulled, log) =
        pull_from(Behaviour { cut_after: Some(100_000), ..Behaviour::default() }, &image, PullOptions::default()).await;
    assert_eq!(pulled.unwrap().id, image.id());
    assert!(
        log.iter().any(|l| l.ends_with("bytes=100000-")) && log.iter().any(|l| l.ends_with("bytes=200000-")),
        "{log:?}"
    );
}

#[tokio::test]
async fn busy_registries_are_asked_again() {
    let image = bulky(2);
    let behaviour = Behaviour { refuse_first: AtomicUsize::new(4), ..Behaviour::default() };
    let (pulled, _) = pull_from(behaviour, &image, PullOptions::default()).await;
    assert_eq!(pulled.unwrap().id, image.id());
}

#[tokio::test]
async fn authenticates_with_tokens_and_with_passwords() {
    let image = bulky(3);
    let auth = Auth::Basic { username: "user".into(), password: "pass".into() };
    let with = |auth: &Auth| PullOptions { auth: auth.clone(), ..PullOptions::default() };
    let pair = "dXNlcjpwYXNz";
    let token = || Behaviour { token_for: Some(pair), ..Behaviour::default() };
    let basic = || Behaviour { basic: Some(pair), ..Behaviour::default() };
    assert!(pull_from(token(), &image, with(&auth)).await.0.is_ok());
    assert!(pull_from(basic(), &image, with(&auth)).await.0.is_ok());
    let denied = pull_from(token(), &image, PullOptions::default()).await.0.unwrap_err();
    assert!(matches!(denied, Error::Unauthorized { .. }), "{denied}");
    let wrong = Auth::Basic { username: "user".into(), password: "no".into() };
    assert!(matches!(pull_from(basic(), &image, with(&wrong)).await.0, Err(Error::Unauthorized { .. })));
}

#[tokio::test]
async fn corrupt_content_is_never_accepted() {
    let behaviour = Behaviour { corrupt: true, ..Behaviour::default() };
    let (pulled, _) = pull_from(behaviour, &bulky(4), PullOptions::default()).await;
    assert!(matches!(pulled, Err(Error::DigestMismatch { .. })), "{pulled:?}");
}

#[tokio::test]
async fn chooses_this_platform_and_names_the_others() {
    let registry = Registry::start(Behaviour::default(), None).await;
    let (mine, other) = (bulky(5), bulky(6));
    registry.add("mine", &mine);
    registry.add("other", &other);
    let entry = |image: &TestImage, arch: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": image.manifest_digest(), "size": image.manifest.len(),
            "platform": {"os": "linux", "architecture": arch},
        })
    };
    let media = "application/vnd.oci.image.index.v1+json";
    let index =
        json!({"schemaVersion": 2, "mediaType": media, "manifests": [entry(&other, "s390x"), entry(&mine, arch())]});
    let index = serde_json::to_vec(&index).unwrap();
    registry.add_manifest("multi", media, &index);
    let foreign = json!({"schemaVersion": 2, "mediaType": media, "manifests": [entry(&other, "s390x")]});
    registry.add_manifest("foreign", media, &serde_json::to_vec(&foreign).unwrap());
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let name = format!("{}/team/app", registry.address);
    let pulled = store.pull(&format!("{name}:multi"), PullOptions::default(), None).await.unwrap();
    assert_eq!(pulled.id, mine.id());
    let by_index = format!("{name}@{}", dhow_image::Digest::of(&index));
    assert_eq!(store.get(&by_index).unwrap().id, mine.id());
    let error = store.pull(&format!("{name}:foreign"), PullOptions::default(), None).await.unwrap_err();
    assert!(error.to_string().contains("linux/s390x"), "{error}");
}

#[tokio::test]
async fn trusts_a_configured_authority_and_no_other() {
    let (tls, pem) = certificate("127.0.0.1");
    let registry = Registry::start(Behaviour::default(), Some(tls)).await;
    let image = bulky(7);
    registry.add("v1", &image);
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let name = format!("{}/team/app:v1", registry.address);
    let ca = root.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let options = reaching(json!({registry.address.to_string(): {"ca": [ca]}}));
    assert_eq!(store.pull(&name, options, None).await.unwrap().id, image.id());
    store.remove(&name).unwrap();
    let error = store.pull(&name, PullOptions::default(), None).await.unwrap_err();
    assert!(matches!(error, Error::Tls(_)), "{error}");
}

#[tokio::test]
async fn goes_through_a_proxy_with_its_password() {
    let (tls, pem) = certificate("registry.test");
    let registry = Registry::start(Behaviour::default(), Some(tls)).await;
    let image = bulky(9);
    registry.add("v1", &image);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap();
    let target = registry.address;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                assert!(head.starts_with("CONNECT registry.test:443 "), "{head}");
                assert!(head.contains("Basic dXNlcjpwYXNz"), "{head}");
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let mut server = tokio::net::TcpStream::connect(target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let ca = root.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let options = reaching(json!({"registry.test": {"ca": [ca], "proxy": format!("http://user:pass@{proxy}")}}));
    assert_eq!(store.pull("registry.test/team/app:v1", options, None).await.unwrap().id, image.id());
}

#[tokio::test]
async fn simultaneous_pulls_download_once() {
    let registry = Registry::start(Behaviour::default(), None).await;
    let image = bulky(8);
    registry.add("v1", &image);
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let name = format!("{}/team/app:v1", registry.address);
    let pulls = (0..5).map(|_| store.pull(&name, PullOptions::default(), None));
    for pulled in futures::future::join_all(pulls).await {
        assert_eq!(pulled.unwrap().id, image.id());
    }
    let blobs = registry.log().iter().filter(|l| l.contains("/blobs/")).count();
    assert_eq!(blobs, 3, "{:?}", registry.log());
    // And what is here can leave again.
    let mut out = tempfile::NamedTempFile::new().unwrap();
    let file = tokio::fs::File::from_std(out.reopen().unwrap());
    store.export(&[name], ArchiveFormat::Oci, file).await.unwrap();
    let mut archive = Vec::new();
    std::io::Read::read_to_end(&mut out, &mut archive).unwrap();
    assert_eq!(store.import(Cursor::new(archive)).await.unwrap()[0].id, image.id());
}

/// A store, and a reference to what `image` is called at `registry`.
fn place(registry: &Registry) -> (tempfile::TempDir, ImageStore, String) {
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    (root, store, format!("{}/team/app:v1", registry.address))
}

#[tokio::test]
async fn a_registry_that_hangs_is_given_up_named_and_resumed() {
    let impatient =
        || PullOptions { registries: common::registries(json!({"stallTimeoutSeconds": 1})), ..PullOptions::default() };
    let image = bulky(10);
    let once = Behaviour { stall: Some((100_000, AtomicUsize::new(1))), ..Behaviour::default() };
    let (pulled, log) = pull_from(once, &image, impatient()).await;
    assert_eq!(pulled.unwrap().id, image.id());
    assert!(log.iter().any(|l| l.ends_with("bytes=100000-")) || log.len() < 6, "{log:?}");
    let always = Behaviour { stall: Some((1000, AtomicUsize::new(99))), ..Behaviour::default() };
    let (pulled, _) = pull_from(always, &image, impatient()).await;
    let error = pulled.unwrap_err();
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("127.0.0.1:") && text.contains("sha256:") && text.contains("sent nothing for 1 s"), "{text}");
}

#[tokio::test]
async fn a_half_fetched_layer_is_resumed_after_a_restart() {
    let image = bulky(11);
    let behaviour = Behaviour { stall: Some((150_000, AtomicUsize::new(99))), ..Behaviour::default() };
    let registry = Registry::start(behaviour, None).await;
    registry.add("v1", &image);
    // The config is small and comes whole; the layer stops half way.
    let (root, store, name) = place(&registry);
    let pull = store.pull(&name, PullOptions::default(), None);
    let ingest = root.path().join("ingest");
    let half = async {
        loop {
            let sizes = std::fs::read_dir(&ingest).unwrap().flatten().filter_map(|e| e.metadata().ok());
            // Manifest, config and the small layer.
            let whole = std::fs::read_dir(root.path().join("blobs/sha256")).unwrap().count() == 3;
            if whole && sizes.map(|m| m.len()).any(|n| n == 150_000) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = pull => panic!("{result:?}"),
        () = half => {}
    }
    drop(store);
    // Work that was given up ends by itself, a thread at a time.
    let store = loop {
        match ImageStore::open(root.path()) {
            Err(Error::InUse(_)) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            opened => break opened.unwrap(),
        }
    };
    store.collect_garbage(0, std::time::Duration::ZERO).unwrap();
    let healthy = Registry::start(Behaviour::default(), None).await;
    healthy.add("v1", &image);
    let name = format!("{}/team/app:v1", healthy.address);
    assert_eq!(store.pull(&name, PullOptions::default(), None).await.unwrap().id, image.id());
    let log = healthy.log();
    assert!(log.iter().any(|l| l.ends_with("bytes=150000-")), "{log:?}");
    // The small layer and the config came whole the first time.
    assert_eq!(log.iter().filter(|l| l.contains("/blobs/")).count(), 1, "{log:?}");
    assert_eq!(std::fs::read_dir(&ingest).unwrap().count(), 0);
}

#[tokio::test]
async fn credentials_stay_at_home_when_blobs_are_elsewhere() {
    let storage = Registry::start(Behaviour::default(), None).await;
    let image = bulky(12);
    storage.add("v1", &image);
    let pair = "dXNlcjpwYXNz";
    let behaviour = Behaviour {
        basic: Some(pair),
        redirect_blobs: Some(format!("http://{}", storage.address)),
        ..Behaviour::default()
    };
    let auth = Auth::Basic { username: "user".into(), password: "pass".into() };
    let (pulled, _) = pull_from(behaviour, &image, PullOptions { auth, ..PullOptions::default() }).await;
    assert_eq!(pulled.unwrap().id, image.id());
    assert!(storage.log().len() >= 3 && storage.authorized().is_empty(), "{:?}", storage.authorized());
}

#[tokio::test]
async fn tokens_that_expire_are_renewed() {
    let image = bulky(13);
    let behaviour = Behaviour { token_for: Some("dXNlcjpwYXNz"), token_uses: Some(2), ..Behaviour::default() };
    let auth = Auth::Basic { username: "user".into(), password: "pass".into() };
    let registries = common::registries(json!({"parallelDownloads": 1}));
    let options = PullOptions { auth, registries, ..PullOptions::default() };
    let (pulled, log) = pull_from(behaviour, &image, options).await;
    assert_eq!(pulled.unwrap().id, image.id());
    assert!(log.iter().filter(|l| l.starts_with("/token")).count() >= 2, "{log:?}");
}

#[tokio::test]
async fn a_long_rate_limit_is_told_at_once() {
    let behaviour = Behaviour { limit: Some("3600"), ..Behaviour::default() };
    let (pulled, log) = pull_from(behaviour, &bulky(14), PullOptions::default()).await;
    let error = pulled.unwrap_err().to_string();
    assert!(error.contains("toomanyrequests") && error.contains("3600 s") && error.contains("rate limit"), "{error}");
    assert!(log.len() <= 2, "{log:?}");
}

#[tokio::test]
async fn mirrors_are_asked_first_and_a_bad_one_does_no_harm() {
    let image = bulky(15);
    let corrupt = Registry::start(Behaviour { corrupt: true, ..Behaviour::default() }, None).await;
    let origin = Registry::start(Behaviour::default(), None).await;
    corrupt.add("v1", &image);
    origin.add("v1", &image);
    let options = reaching(json!({"registry.test": {
        "mirrors": [{"endpoint": "http://127.0.0.1:1"}, {"endpoint": format!("http://{}", corrupt.address)}],
        "endpoint": format!("http://{}", origin.address),
    }}));
    let (_root, store, _) = place(&origin);
    let pulled = store.pull("registry.test/team/app:v1", options, None).await.unwrap();
    assert_eq!(pulled.id, image.id());
    assert_eq!(pulled.references, ["registry.test/team/app:v1"]);
    assert!(corrupt.log().iter().any(|l| l.ends_with("?ns=registry.test")), "{:?}", corrupt.log());
    let origin = origin.log();
    assert!(
        origin.iter().all(|l| l.contains("/blobs/")) && origin.len() == 2,
        "only what the mirror has wrong: {origin:?}"
    );
    assert_eq!(std::fs::read(store.layers(&pulled).await.unwrap()[0].join("small")).unwrap(), b"s");
}

#[tokio::test]
async fn foreign_layers_come_from_where_they_say() {
    let elsewhere = Registry::start(Behaviour::default(), None).await;
    let registry = Registry::start(Behaviour::default(), None).await;
    let image = bulky(16);
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    manifest["layers"][0]["mediaType"] = kind.into();
    let digest = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    manifest["layers"][0]["urls"] = json!([format!("http://{}/v2/team/app/blobs/{digest}", elsewhere.address)]);
    elsewhere.add_blob(&image.blobs[0]);
    registry.add_blob(&image.blobs[1]);
    registry.add_blob(&image.config);
    let media = "application/vnd.oci.image.manifest.v1+json";
    registry.add_manifest("v1", media, &serde_json::to_vec(&manifest).unwrap());
    let (_root, store, name) = place(&registry);
    assert_eq!(store.pull(&name, PullOptions::default(), None).await.unwrap().id, image.id());
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_by_name() {
    let registry = Registry::start(Behaviour::default(), None).await;
    let schema1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    registry.add_manifest("old", schema1, br#"{"schemaVersion":1,"name":"x"}"#);
    let media = "application/vnd.oci.image.manifest.v1+json";
    let mut secret: serde_json::Value = serde_json::from_slice(&bulky(17).manifest).unwrap();
    secret["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".into();
    registry.add_manifest("secret", media, &serde_json::to_vec(&secret).unwrap());
    let mut chart: serde_json::Value = serde_json::from_slice(&bulky(17).manifest).unwrap();
    chart["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into();
    registry.add_manifest("chart", media, &serde_json::to_vec(&chart).unwrap());
    registry.add_manifest("huge", media, &vec![b' '; (4 << 20) + 1]);
    let (root, store, _) = place(&registry);
    for (tag, words) in [
        ("old", "no longer supported"),
        ("secret", "encrypted"),
        ("chart", "not a container image"),
        ("huge", "larger than 4194304"),
        ("none", "not found"),
    ] {
        let name = format!("{}/team/app:{tag}", registry.address);
        let error = store.pull(&name, PullOptions::default(), None).await.unwrap_err().chain();
        assert!(error.contains(words), "{tag}: {error}");
    }
    store.collect_garbage(0, std::time::Duration::ZERO).unwrap();
    assert_eq!(std::fs::read_dir(root.path().join("blobs/sha256")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_hostile_layer_ends_the_pull_and_leaves_nothing() {
    let registry = Registry::start(Behaviour::default(), None).await;
    let image = TestImage::with_layers(Packing::Gzip, vec![common::tar_of(&[("ok", b"1")]), escaping()]);
    registry.add("v1", &image);
    let (root, store, name) = place(&registry);
    let error = store.pull(&name, PullOptions::default(), None).await.unwrap_err().to_string();
    assert!(error.contains("failed to extract layer sha256:") && error.contains("'..'"), "{error}");
    store.collect_garbage(1, std::time::Duration::ZERO).unwrap();
    for dir in ["blobs/sha256", "ingest", "work", "layers"] {
        assert_eq!(std::fs::read_dir(root.path().join(dir)).unwrap().count(), 0, "{dir}");
    }
}

fn escaping() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..9].copy_from_slice(b"../escape");
    header.set_mode(0o644);
    header.set_size(0);
    header.set_cksum();
    tar.append(&header, &b""[..]).unwrap();
    tar.into_inner().unwrap()
}
