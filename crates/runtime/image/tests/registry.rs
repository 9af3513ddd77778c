//! Against Debian's docker-registry with TLS, client certificates and passwords: pull, push, and where credentials and
//! mirrors are configured.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Cursor;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::docker_registry::{Setup, docker_registry};
use common::{Packing, TestImage, bulky, registries};
use dhow_image::{Auth, Error, ImageStore, Progress, PullOptions, PushOptions, Registries};
use serde_json::json;

/// An authority of our own: a certificate for 127.0.0.1, one for a client, all as files.
fn authority(dir: &Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    std::fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
    for (name, usage) in
        [("server", rcgen::ExtendedKeyUsagePurpose::ServerAuth), ("client", rcgen::ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

fn tls(dir: &Path) -> Setup {
    authority(dir);
    Setup { tls: Some((dir.join("server.pem"), dir.join("server.key"))), ..Setup::default() }
}

/// A store that has `image` as `app:1`.
async fn store_with(dir: &Path, image: &TestImage) -> ImageStore {
    let store = ImageStore::open(&dir.join("store")).unwrap();
    store.import(Cursor::new(image.oci_archive("app:1"))).await.unwrap();
    store
}

fn pushing(registries: &Arc<Registries>) -> PushOptions {
    PushOptions { registries: registries.clone(), ..PushOptions::default() }
}

fn pulling(registries: &Arc<Registries>) -> PullOptions {
    PullOptions { registries: registries.clone(), ..PullOptions::default() }
}

#[tokio::test]
async fn pushes_in_one_piece_in_chunks_and_not_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (_registry, address) = docker_registry(dir.path(), &Setup::default());
    let image = bulky(1);
    let store = store_with(dir.path(), &image).await;
    let plain = registries(json!({}));
    let steps = Arc::new(Mutex::new(Vec::new()));
    let sink = steps.clone();
    let report: dhow_image::ProgressFn = Arc::new(move |step| sink.lock().unwrap().push(step));
    let push = async |target: &str| {
        store.push("app:1", &format!("{address}/{target}"), pushing(&plain), Some(report.clone())).await.unwrap()
    };
    let kinds = || {
        let steps = std::mem::take(&mut *steps.lock().unwrap());
        let count = |wanted: fn(&Progress) -> bool| steps.iter().filter(|s| wanted(s)).count();
        [
            count(|s| matches!(s, Progress::Uploaded { .. })),
            count(|s| matches!(s, Progress::Mounted { .. })),
            count(|s| matches!(s, Progress::Present { .. })),
            count(|s| matches!(s, Progress::Uploading { .. })),
        ]
    };
    assert_eq!(push("one/app:1").await, image.manifest_digest());
    assert_eq!(kinds()[..3], [3, 0, 0]);
    push("one/app:2").await;
    assert_eq!(kinds()[..3], [0, 0, 3], "it is there already");
    // The store knows where in this registry it has been, once it was pulled from there.
    store.pull(&format!("{address}/one/app:1"), pulling(&plain), None).await.unwrap();
    push("two/app:1").await;
    assert_eq!(kinds()[..3], [0, 3, 0], "mounted across repositories");
    let other = bulky(2);
    store.import(Cursor::new(other.oci_archive("other:1"))).await.unwrap();
    let options = PushOptions { chunk_bytes: Some(100_000), ..pushing(&plain) };
    store.push("other:1", &format!("{address}/three/app:1"), options, Some(report.clone())).await.unwrap();
    let [uploaded, .., uploading] = kinds();
    assert!(uploaded == 3 && uploading >= 6, "{uploading} pieces");
    for (target, image) in [("one/app:2", &image), ("two/app:1", &image), ("three/app:1", &other)] {
        let fresh = tempfile::tempdir().unwrap();
        let store = ImageStore::open(fresh.path()).unwrap();
        let name = format!("{address}/{target}");
        assert_eq!(store.pull(&name, pulling(&plain), None).await.unwrap().id, image.id());
        let seen = std::process::Command::new("skopeo")
            .args(["inspect", "--tls-verify=false", &format!("docker://{name}")])
            .output()
            .unwrap();
        let seen: serde_json::Value = serde_json::from_slice(&seen.stdout).unwrap();
        assert_eq!(seen["Digest"], image.manifest_digest().as_str());
    }
}

#[tokio::test]
async fn own_authority_client_certificate_and_skip_verify() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let setup = Setup { client_ca: Some(at("ca.pem")), ..tls(dir.path()) };
    let (_registry, address) = docker_registry(dir.path(), &setup);
    let image = TestImage::new(Packing::Zstd, "tls");
    let store = store_with(dir.path(), &image).await;
    let name = format!("{address}/team/app:1");
    let with = |host: serde_json::Value| registries(json!({"hosts": {address.clone(): host}}));
    let right = with(json!({"ca": [at("ca.pem")], "clientCert": at("client.pem"), "clientKey": at("client.key")}));
    store.push("app:1", &name, pushing(&right), None).await.unwrap();
    assert_eq!(store.pull(&name, pulling(&right), None).await.unwrap().id, image.id());
    let unknown = with(json!({"clientCert": at("client.pem"), "clientKey": at("client.key")}));
    let error = store.pull(&name, pulling(&unknown), None).await.unwrap_err();
    assert!(matches!(error, Error::Tls(_)), "{error}");
    let unverified = with(json!({"skipVerify": true, "clientCert": at("client.pem"), "clientKey": at("client.key")}));
    assert!(store.pull(&name, pulling(&unverified), None).await.is_ok());
    assert!(store.pull(&name, pulling(&with(json!({"ca": [at("ca.pem")]}))), None).await.is_err());
    // The same in containerd's words.
    let folder = at("certs.d").join(address.replace(':', "_") + "_");
    std::fs::create_dir_all(&folder).unwrap();
    let text = format!(
        "server = \"https://{address}\"\nca = \"{}\"\nclient = [[\"{}\", \"{}\"]]\n",
        at("ca.pem").display(),
        at("client.pem").display(),
        at("client.key").display()
    );
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
    let containerd = registries(json!({"certsDirs": [at("certs.d")]}));
    assert!(store.pull(&name, pulling(&containerd), None).await.is_ok());
}

#[tokio::test]
async fn passwords_from_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let setup = Setup { password: true, ..tls(dir.path()) };
    let (_registry, address) = docker_registry(dir.path(), &setup);
    let image = TestImage::new(Packing::Gzip, "password");
    let store = store_with(dir.path(), &image).await;
    let name = format!("{address}/team/app:1");
    let with = |mut config: serde_json::Value, host: serde_json::Value| {
        config["hosts"][&address] = json!({"ca": [at("ca.pem")]});
        for (key, value) in host.as_object().unwrap() {
            config["hosts"][&address][key] = value.clone();
        }
        registries(config)
    };
    let anonymous = with(json!({}), json!({}));
    let auth = Auth::Basic { username: "user".into(), password: "pass".into() };
    store.push("app:1", &name, PushOptions { auth: auth.clone(), ..pushing(&anonymous) }, None).await.unwrap();
    let denied = store.pull(&name, pulling(&anonymous), None).await.unwrap_err();
    assert!(denied.to_string().contains("pull access denied"), "{denied}");
    assert!(store.pull(&name, PullOptions { auth, ..pulling(&anonymous) }, None).await.is_ok());

    std::fs::write(at("password"), "pass\n").unwrap();
    let file = with(json!({}), json!({"username": "user", "passwordFile": at("password")}));
    assert!(store.pull(&name, pulling(&file), None).await.is_ok());

    let docker = at("config.json");
    let configured = with(json!({"dockerConfig": docker}), json!({}));
    std::fs::write(&docker, json!({"auths": {&address: {"auth": "dXNlcjpwYXNz"}}}).to_string()).unwrap();
    assert!(store.pull(&name, pulling(&configured), None).await.is_ok());
    std::fs::write(&docker, json!({"auths": {&address: {"auth": "dXNlcjpubw=="}}}).to_string()).unwrap();
    assert!(matches!(store.pull(&name, pulling(&configured), None).await, Err(Error::Unauthorized { .. })));

    let plugin = at("plugin");
    let answer = json!({
        "kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "cacheKeyType": "Registry", "auth": {&address: {"username": "user", "password": "pass"}},
    });
    std::fs::write(&plugin, format!("#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")).unwrap();
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
    let provider = json!({
        "apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
        "providers": [{"name": "plugin", "matchImages": [address], "defaultCacheDuration": "1m",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1"}],
    });
    std::fs::write(at("providers.yaml"), provider.to_string()).unwrap();
    let config = json!({"credentialProviderConfig": at("providers.yaml"), "credentialProviderBinDir": dir.path()});
    assert!(store.pull(&name, pulling(&with(config, json!({}))), None).await.is_ok());
}
