//! Images made on the spot, as archives and as registry content.
#![allow(dead_code, clippy::unwrap_used)]

pub mod docker_registry;
pub mod registry;

use std::io::Write;
use std::sync::Arc;

use dhow_image::{Digest, PullOptions, Registries, RegistriesConfig};
use serde_json::{Value, json};

#[derive(Clone, Copy)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    pub fn pack(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Packing::Plain => bytes.to_vec(),
            Packing::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Packing::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Packing::Plain => "application/vnd.oci.image.layer.v1.tar",
            Packing::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Packing::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        header.set_mtime(1);
        tar.append_data(&mut header, path, *data).unwrap();
    }
    tar.into_inner().unwrap()
}

/// An image of two layers: `base/file` and, on top, `top/file` and a whiteout of `base/file`.
pub struct TestImage {
    pub layers: Vec<Vec<u8>>,
    pub blobs: Vec<Vec<u8>>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl TestImage {
    pub fn new(packing: Packing, marker: &str) -> Self {
        Self::with_layers(
            packing,
            vec![
                tar_of(&[("base/file", b"base"), ("base/other", b"o")]),
                tar_of(&[("top/file", marker.as_bytes()), ("base/.wh.file", b"")]),
            ],
        )
    }

    pub fn with_layers(packing: Packing, layers: Vec<Vec<u8>>) -> Self {
        let blobs: Vec<Vec<u8>> = layers.iter().map(|l| packing.pack(l)).collect();
        let config = serde_json::to_vec(&json!({
            "architecture": arch(), "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "ExposedPorts": {"80/tcp": {}}, "Entrypoint": null},
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| Digest::of(l)).collect::<Vec<_>>()},
        }))
        .unwrap();
        let descriptor = |media: &str, bytes: &[u8]| -> Value {
            json!({"mediaType": media, "digest": Digest::of(bytes), "size": bytes.len()})
        };
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": blobs.iter().map(|b| descriptor(packing.media_type(), b)).collect::<Vec<_>>(),
        }))
        .unwrap();
        TestImage { layers, blobs, config, manifest }
    }

    pub fn id(&self) -> String {
        Digest::of(&self.config).to_string()
    }

    pub fn manifest_digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    pub fn oci_archive(&self, name: &str) -> Vec<u8> {
        let index = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": self.manifest_digest(), "size": self.manifest.len(),
                "annotations": {"org.opencontainers.image.ref.name": name},
            }],
        }))
        .unwrap();
        let path = |b: &[u8]| format!("blobs/sha256/{}", Digest::of(b).hex());
        let mut files = vec![
            ("oci-layout".to_owned(), &br#"{"imageLayoutVersion":"1.0.0"}"#[..]),
            (path(&self.config), &self.config),
            (path(&self.manifest), &self.manifest),
        ];
        files.extend(self.blobs.iter().map(|b| (path(b), &b[..])));
        files.push(("index.json".to_owned(), &index));
        let files: Vec<(&str, &[u8])> = files.iter().map(|(p, b)| (p.as_str(), *b)).collect();
        tar_of(&files)
    }

    /// As `docker save` of old: layers first, names last.
    pub fn docker_archive(&self, name: &str) -> Vec<u8> {
        let config = format!("{}.json", Digest::of(&self.config).hex());
        let paths: Vec<String> = (0..self.layers.len()).map(|i| format!("layer{i}/layer.tar")).collect();
        let manifest = serde_json::to_vec(&json!([{"Config": config, "RepoTags": [name], "Layers": paths}])).unwrap();
        let mut files: Vec<(&str, &[u8])> = paths.iter().zip(&self.layers).map(|(p, l)| (p.as_str(), &l[..])).collect();
        files.push((&config, &self.config));
        files.push(("manifest.json", &manifest));
        tar_of(&files)
    }
}

pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A layer that does not compress, so that there is something to transfer.
pub fn bulky(marker: u64) -> TestImage {
    let mut state = marker.wrapping_mul(2) + 1;
    let noise: Vec<u8> = (0..300_000)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .collect();
    TestImage::with_layers(Packing::Gzip, vec![tar_of(&[("noise", &noise)]), tar_of(&[("small", b"s")])])
}

/// A TLS set-up for `name`, and the certificate to trust.
pub fn certificate(name: &str) -> (Arc<rustls::ServerConfig>, String) {
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

/// How registries are reached, given the `hosts` of the configuration.
pub fn reaching(hosts: Value) -> PullOptions {
    PullOptions { registries: registries(json!({ "hosts": hosts })), ..PullOptions::default() }
}

/// As configured, but without what this machine may have in /etc.
pub fn registries(config: Value) -> Arc<Registries> {
    let mut config: RegistriesConfig = serde_json::from_value(config).unwrap();
    if config.certs_dirs == RegistriesConfig::default().certs_dirs {
        config.certs_dirs.clear();
    }
    Registries::new(config).unwrap()
}
