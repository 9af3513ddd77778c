//! Real clients: skopeo, containerd, Docker, podman, and our own image store.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use dhow_image::{Digest, ImageStore, PullOptions, PushOptions};
use dhow_registry::{Config, Everyone};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::busybox;
use crate::daemon::Folder;
use crate::dockerd;
use crate::harness::{INDEX, MANIFEST, Server, files};

const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What a command that succeeds prints.
async fn run(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).env("NO_PROXY", "*").output().await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// What one that fails says.
async fn fails(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).env("NO_PROXY", "*").output().await.unwrap();
    assert!(!output.status.success(), "{program} {arguments:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn archive(folder: &Path) -> String {
    let path = folder.join("busybox.tar");
    std::fs::write(&path, busybox::archive().unwrap()).unwrap();
    format!("docker-archive:{}", path.display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_copies_in_and_out_in_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let source = archive(folder.path());
    for (name, format, compression, kind, layer) in [
        ("oci", "oci", "gzip", MANIFEST, "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("zstd", "oci", "zstd", MANIFEST, "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("docker", "v2s2", "gzip", DOCKER, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ] {
        // A registry each: where it knows of the same layer packed otherwise, skopeo takes that.
        let server = match name {
            "zstd" => Server::in_s3(Config::default(), Arc::new(Everyone::default())).await,
            _ => Server::new().await,
        };
        let at = |name: &str| format!("docker://{}/{name}", server.address);
        let target = at(&format!("skopeo/{name}:1"));
        run(
            "skopeo",
            &[
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                "--format",
                format,
                "--dest-compress-format",
                compression,
                &source,
                &target,
            ],
        )
        .await;
        let raw = run("skopeo", &["inspect", "--raw", "--tls-verify=false", &target]).await;
        let manifest: Value = serde_json::from_str(&raw).unwrap();
        assert_eq!((&manifest["mediaType"], &manifest["layers"][0]["mediaType"]), (&json!(kind), &json!(layer)));
        let out = folder.path().join(name);
        run("skopeo", &["copy", "--quiet", "--src-tls-verify=false", &target, &format!("dir:{}", out.display())]).await;
        assert_eq!(std::fs::read_to_string(out.join("manifest.json")).unwrap(), raw);
        let digest = manifest["layers"][0]["digest"].as_str().unwrap();
        let bytes = std::fs::read(out.join(digest.split_once(':').unwrap().1)).unwrap();
        assert_eq!(Digest::of(&bytes).as_str(), digest);
        // From repository to repository nothing new comes to lie here.
        let before = files(&server.blobs);
        let copy = at(&format!("skopeo/{name}-copy:2"));
        run("skopeo", &["copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", &target, &copy]).await;
        assert_eq!(files(&server.blobs), before);
        let tags = run("skopeo", &["list-tags", "--tls-verify=false", &at(&format!("skopeo/{name}-copy"))]).await;
        assert_eq!(serde_json::from_str::<Value>(&tags).unwrap()["Tags"], json!(["2"]));
        run("skopeo", &["delete", "--tls-verify=false", &copy]).await;
        fails("skopeo", &["inspect", "--tls-verify=false", &copy]).await;
    }
}

/// The registry has `multi:1`: an index of the busybox for this machine and another image for a machine that is not.
async fn push_multi(server: &Server, source: &str) -> Value {
    let target = format!("docker://{}/multi:own", server.address);
    run("skopeo", &["copy", "--quiet", "--dest-tls-verify=false", "--format", "oci", source, &target]).await;
    let own: Value = serde_json::from_slice(&server.web.get("/v2/multi/manifests/own").await.expect(200).body).unwrap();
    let text = server.web.get("/v2/multi/manifests/own").await.body;
    let config = server.web.get(&format!("/v2/multi/blobs/{}", own["config"]["digest"].as_str().unwrap())).await.body;
    let mut other_config: Value = serde_json::from_slice(&config).unwrap();
    other_config["architecture"] = json!("s390x");
    let other_config = other_config.to_string();
    server.web.push_blob("multi", other_config.as_bytes()).await;
    let mut other = own.clone();
    other["config"]["digest"] = json!(Digest::of(other_config.as_bytes()));
    other["config"]["size"] = json!(other_config.len());
    let other_text = other.to_string();
    let other_digest = Digest::of(other_text.as_bytes());
    let kind = [("content-type", MANIFEST)];
    server.web.send("PUT", &format!("/v2/multi/manifests/{other_digest}"), &kind, other_text.clone()).await.expect(201);
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let entry = |text: &[u8], architecture: &str| {
        json!({"mediaType": MANIFEST, "digest": Digest::of(text), "size": text.len(),
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": INDEX,
        "manifests": [entry(&text, architecture), entry(other_text.as_bytes(), "s390x")]});
    server.web.put_manifest("multi", "1", &index).await.expect(201);
    index
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_copies_images_for_many_machines() {
    let server = Server::new().await;
    let folder = tempfile::tempdir().unwrap();
    let index = push_multi(&server, &archive(folder.path())).await;
    let at = |name: &str| format!("docker://{}/{name}", server.address);
    let both = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    run(
        "skopeo",
        &["copy", "--quiet", "--all", "--preserve-digests", both[0], both[1], &at("multi:1"), &at("there/multi:2")],
    )
    .await;
    let copied = run("skopeo", &["inspect", "--raw", "--tls-verify=false", &at("there/multi:2")]).await;
    assert_eq!(copied, index.to_string());
    let layout = format!("oci:{}:x", folder.path().join("layout").display());
    run("skopeo", &["copy", "--quiet", "--all", both[0], &at("there/multi:2"), &layout]).await;
    run("skopeo", &["copy", "--quiet", "--all", both[1], &layout, &at("back/multi:3")]).await;
    let back: Value =
        serde_json::from_str(&run("skopeo", &["inspect", "--raw", "--tls-verify=false", &at("back/multi:3")]).await)
            .unwrap();
    assert_eq!(back["manifests"].as_array().unwrap().len(), 2);
    let list = ["copy", "--quiet", "--all", "--format", "v2s2", both[0], both[1]];
    let (from, to) = (at("multi:1"), at("docker/multi:4"));
    run("skopeo", &[&list[..], &[&from, &to]].concat()).await;
    let list: Value =
        serde_json::from_str(&run("skopeo", &["inspect", "--raw", "--tls-verify=false", &to]).await).unwrap();
    assert_eq!(list["mediaType"], "application/vnd.docker.distribution.manifest.list.v2+json");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_logs_in_over_tls() {
    let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    // Go's clients then speak HTTP/2.
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let server = Server::over_tls(Arc::new(crate::tokens::table()), Arc::new(tls)).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.crt"), key.cert.pem()).unwrap();
    let trust = folder.path().display().to_string();
    let (source, target) = (archive(folder.path()), format!("docker://{}/mine/app:1", server.address));
    let to = ["copy", "--quiet", "--dest-cert-dir", &trust];
    fails("skopeo", &["copy", "--quiet", &source, &target]).await;
    fails("skopeo", &[&to[..], &[&source, &target]].concat()).await;
    run("skopeo", &[&to[..], &["--dest-creds", "ci:ci-secret", &source, &target]].concat()).await;
    let out = format!("dir:{}", folder.path().join("out").display());
    let from = ["copy", "--quiet", "--src-cert-dir", &trust, "--src-creds"];
    fails("skopeo", &[&from[..], &["guest:guest-secret", &target, &out]].concat()).await;
    run("skopeo", &[&from[..], &["ci:ci-secret", &target, &out]].concat()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_pulls_and_pushes() {
    let server = Server::with(Config::default(), Arc::new(crate::tokens::table())).await;
    let folder = Folder::new().unwrap();
    let _containerd = dockerd::containerd(|program| std::process::Command::new(program), folder.path()).unwrap();
    let source = archive(folder.path());
    let socket = folder.path().join("c.sock").display().to_string();
    let image = |name: &str| format!("{}/{name}", server.address);
    run(
        "skopeo",
        &[
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            "--dest-creds",
            "ci:ci-secret",
            &source,
            &format!("docker://{}", image("mine/app:1")),
        ],
    )
    .await;
    let ctr = |arguments: &[&str]| {
        let all: Vec<String> =
            ["--address", &socket, "images"].iter().chain(arguments).map(|a| (*a).to_owned()).collect();
        all
    };
    let ok =
        async |arguments: &[&str]| run("ctr", &ctr(arguments).iter().map(String::as_str).collect::<Vec<_>>()).await;
    let no =
        async |arguments: &[&str]| fails("ctr", &ctr(arguments).iter().map(String::as_str).collect::<Vec<_>>()).await;
    let refused = no(&["pull", "--plain-http", &image("mine/app:1")]).await;
    assert!(refused.contains("authorization failed") || refused.contains("401"), "{refused}");
    ok(&["pull", "--plain-http", "--user", "ci:ci-secret", &image("mine/app:1")]).await;
    ok(&["tag", &image("mine/app:1"), &image("open/app:2")]).await;
    no(&["push", "--plain-http", "--user", "guest:guest-secret", &image("open/app:2")]).await;
    ok(&["push", "--plain-http", "--user", "ci:ci-secret", &image("open/app:2")]).await;
    ok(&["remove", "--sync", &image("mine/app:1"), &image("open/app:2")]).await;
    // Anyone pulls what is public.
    ok(&["pull", "--plain-http", &image("open/app:2")]).await;
    assert!(ok(&["list", "--quiet"]).await.contains("open/app:2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_logs_in_pushes_and_pulls() {
    let server = Server::in_s3(Config::default(), Arc::new(crate::tokens::table())).await;
    let folder = Folder::new().unwrap();
    let (_containerd, _docker) = dockerd::start(|program| std::process::Command::new(program), folder.path()).unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("busybox.tar"), busybox::archive().unwrap()).unwrap();
    let (host, config) = (format!("unix://{}", at("d.sock")), at("client"));
    let ok =
        async |arguments: &[&str]| run("docker", &[&["--config", &config, "--host", &host], arguments].concat()).await;
    let no = async |arguments: &[&str]| {
        fails("docker", &[&["--config", &config, "--host", &host], arguments].concat()).await
    };
    let address = server.address.to_string();
    let image = |name: &str| format!("{address}/{name}");
    ok(&["load", "--input", &at("busybox.tar")]).await;
    ok(&["tag", "busybox:test", &image("mine/busybox:1")]).await;
    no(&["push", &image("mine/busybox:1")]).await;
    no(&["login", "--username", "ci", "--password", "wrong", &address]).await;
    ok(&["login", "--username", "ci", "--password", "ci-secret", &address]).await;
    ok(&["push", &image("mine/busybox:1")]).await;
    // The second push mounts its layers.
    ok(&["tag", "busybox:test", &image("open/busybox:1")]).await;
    let before = files(&server.blobs);
    ok(&["push", &image("open/busybox:1")]).await;
    assert_eq!(files(&server.blobs), before);
    ok(&["logout", &address]).await;
    ok(&["rmi", &image("mine/busybox:1"), &image("open/busybox:1"), "busybox:test"]).await;
    let denied = no(&["pull", &image("mine/busybox:1")]).await;
    assert!(
        denied.contains("denied") || denied.contains("unauthorized") || denied.contains("authentication required"),
        "{denied}"
    );
    ok(&["pull", &image("open/busybox:1")]).await;
    assert!(ok(&["images", "--quiet", &image("open/busybox")]).await.trim().len() >= 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_logs_in_pushes_and_pulls() {
    let server = Server::with(Config::default(), Arc::new(crate::tokens::table())).await;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("busybox.tar"), busybox::archive().unwrap()).unwrap();
    let (root, state, temporary, login) = (at("root"), at("run"), at("tmp"), at("auth.json"));
    let own = ["--root", &root, "--runroot", &state, "--tmpdir", &temporary, "--storage-driver", "vfs"];
    let own = [&own[..], &["--cgroup-manager", "cgroupfs", "--events-backend", "none"]].concat();
    let ok = async |arguments: &[&str]| run("podman", &[&own[..], arguments].concat()).await;
    let no = async |arguments: &[&str]| fails("podman", &[&own[..], arguments].concat()).await;
    let address = server.address.to_string();
    let image = |name: &str| format!("{address}/{name}");
    let (plain, login) = ("--tls-verify=false", ["--authfile", &login]);
    ok(&["load", "--quiet", "--input", &at("busybox.tar")]).await;
    let loaded = ok(&["images", "--quiet", "--no-trunc"]).await;
    ok(&["tag", loaded.trim(), &image("mine/busybox:1")]).await;
    no(&["push", plain, &image("mine/busybox:1")]).await;
    let logging_in = [&["login", plain, "--username", "ci", "--password"], &["wrong"][..], &login[..], &[&address]];
    no(&logging_in.concat()).await;
    let logging_in = [&["login", plain, "--username", "ci", "--password"], &["ci-secret"][..], &login[..], &[&address]];
    ok(&logging_in.concat()).await;
    ok(&[&["push", plain], &login[..], &[&image("mine/busybox:1")]].concat()).await;
    // As its own format has it, and as Docker's.
    let docker = image("open/busybox:1");
    ok(&[&["push", plain, "--format", "v2s2"], &login[..], &[&image("mine/busybox:1"), &docker]].concat()).await;
    ok(&["rmi", "--force", loaded.trim()]).await;
    let denied = no(&["pull", plain, &image("mine/busybox:1")]).await;
    assert!(denied.contains("unauthorized") || denied.contains("denied"), "{denied}");
    ok(&[&["pull", "--quiet", plain], &login[..], &[&image("mine/busybox:1")]].concat()).await;
    ok(&["pull", "--quiet", plain, &docker]).await;
    let pulled = ok(&["images", "--quiet", "--no-trunc"]).await;
    assert!(pulled.lines().all(|id| id == loaded.trim()), "{pulled} is not {loaded}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_image_store_takes_the_files_as_they_are() {
    let server = Server::new().await;
    let folder = tempfile::tempdir().unwrap();
    push_multi(&server, &archive(folder.path())).await;
    let store = ImageStore::open(&server.folder.path().join("images")).unwrap();
    let host = server.address.to_string();
    let name = format!("{host}/multi:1");
    let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
    let layer = {
        let text = server.web.get("/v2/multi/manifests/own").await.json();
        Digest::parse(text["layers"][0]["digest"].as_str().unwrap()).unwrap()
    };
    let ours = |store: &ImageStore| store.root().join("blobs/sha256").join(layer.hex());
    // Without the neighbour it is a copy like any other.
    store.pull(&name, PullOptions::default(), None).await.unwrap();
    assert_ne!(inode(&ours(&store)), inode(&server.blob_file(&layer)));
    store.remove(&name).unwrap();
    assert!(!ours(&store).exists());
    store.live_beside(server.registry.neighbour(&["another.example:5000".to_owned()]));
    store.pull(&name, PullOptions::default(), None).await.unwrap();
    assert_ne!(inode(&ours(&store)), inode(&server.blob_file(&layer)));
    store.remove(&name).unwrap();
    store.live_beside(server.registry.neighbour(std::slice::from_ref(&host)));
    let image = store.pull(&name, PullOptions::default(), None).await.unwrap();
    assert_eq!(inode(&ours(&store)), inode(&server.blob_file(&layer)));
    let layers = store.layers(&image).await.unwrap();
    assert!(layers[0].join("bin/busybox").exists());
    // Each has its own name for it: one's removal is none of the other's business.
    store.remove(&name).unwrap();
    assert!(server.blob_file(&layer).exists());
    let image = store.pull(&name, PullOptions::default(), None).await.unwrap();
    std::fs::remove_file(server.blob_file(&layer)).unwrap();
    assert!(store.layers(&image).await.is_ok());
    // And back: what is pushed from here is whole there.
    store.push(&name, &format!("{host}/pushed/app:2"), PushOptions::default(), None).await.unwrap();
    let pushed = server.web.get("/v2/pushed/app/manifests/2").await.expect(200).json();
    assert_eq!(pushed["layers"][0]["digest"], json!(layer));
}
