//! Pulling: from Debian's docker-registry, and from a registry that misbehaves.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Cursor};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use common::registry::{Behaviour, Registry};
use common::{Packing, TestImage, arch, tar_of};
use dhow_image::{Auth, Error, ImageStore, Progress, PullOptions};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A layer that does not compress, so that there is something to transfer.
fn bulky(marker: u64) -> TestImage {
    let mut state = marker.wrapping_mul(2) + 1;
    let noise: Vec<u8> = (0..300_000)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .collect();
    TestImage::with_layers(Packing::Gzip, vec![tar_of(&[("noise", &noise)]), tar_of(&[("small", b"s")])])
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the real thing on a port of its choice.
fn docker_registry(dir: &std::path::Path) -> (Killed, String) {
    let config = dir.join("config.yml");
    let storage = dir.join("storage");
    let text = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n",
        storage.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = lines
        .by_ref()
        .map_while(Result::ok)
        .find_map(|l| Some(l.split_once("listening on ")?.1.split(['"', ' ', ',']).next()?.to_owned()))
        .expect("the registry says where it listens");
    std::thread::spawn(move || lines.for_each(drop));
    (Killed(child), address)
}

#[tokio::test]
async fn pulls_from_docker_registry() {
    let dir = tempfile::tempdir().unwrap();
    let (_registry, address) = docker_registry(dir.path());
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
    let options = PullOptions { plain_http_hosts: vec![registry.address.to_string()], ..options };
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

/// A TLS set-up for `name`, and the certificate to trust.
fn certificate(name: &str) -> (Arc<rustls::ServerConfig>, String) {
    let key = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    (Arc::new(tls), key.cert.pem())
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
    let options = PullOptions { extra_ca_pem: vec![pem], ..PullOptions::default() };
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
    let proxy = Some(format!("http://user:pass@{proxy}"));
    let options = PullOptions { extra_ca_pem: vec![pem], proxy, ..PullOptions::default() };
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
    store.export(&name, tokio::fs::File::from_std(out.reopen().unwrap())).await.unwrap();
    let mut archive = Vec::new();
    std::io::Read::read_to_end(&mut out, &mut archive).unwrap();
    assert_eq!(store.import(Cursor::new(archive)).await.unwrap()[0].id, image.id());
}
