//! Puts layers and a configuration together as an oci-archive.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, Header};

use super::build::Built;
use super::recipes::Image;
use super::tarball::hex;

/// The same for every build, so that unchanged inputs give the same image id.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Writes the archive unless it is up to date already; says whether it did.
pub fn write(target: &Path, image: &Image, layers: &[Built]) -> Result<bool> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = serde_json::to_vec(&json!({
        "created": CREATED,
        "architecture": architecture,
        "os": "linux",
        "config": image.config,
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| &l.facts.diff_id).collect::<Vec<_>>()},
        "history": layers.iter().map(|l| json!({"created": CREATED, "created_by": format!("layer {}", l.name)})).collect::<Vec<_>>(),
    }))?;
    let config_digest = digest(&config);
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest,
            "size": config.len(),
        },
        "layers": layers.iter().map(|l| json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
            "digest": l.facts.digest,
            "size": l.facts.size,
        })).collect::<Vec<_>>(),
    }))?;
    let manifest_digest = digest(&manifest);
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest_digest,
            "size": manifest.len(),
            "platform": {"os": "linux", "architecture": architecture},
            "annotations": {
                "org.opencontainers.image.ref.name": image.reference,
                "io.containerd.image.name": image.reference,
            },
        }],
    }))?;

    let stamp = target.with_file_name(".cache").join(format!("{}.stamp", image.file));
    let wanted = digest(&index);
    if target.is_file() && fs::read_to_string(&stamp).is_ok_and(|s| s == wanted) {
        return Ok(false);
    }
    let temporary = target.with_extension("tar.new");
    let file = File::create(&temporary).with_context(|| format!("create {}", temporary.display()))?;
    let mut tar = Builder::new(BufWriter::with_capacity(1 << 20, file));
    append(&mut tar, "oci-layout", &br#"{"imageLayoutVersion":"1.0.0"}"#[..], 30)?;
    append(&mut tar, "index.json", &index[..], index.len() as u64)?;
    append(&mut tar, &blob_path(&manifest_digest), &manifest[..], manifest.len() as u64)?;
    append(&mut tar, &blob_path(&config_digest), &config[..], config.len() as u64)?;
    for layer in layers {
        let blob = File::open(&layer.blob).with_context(|| format!("open {}", layer.blob.display()))?;
        append(&mut tar, &blob_path(&layer.facts.digest), blob, layer.facts.size)?;
    }
    tar.into_inner()?.flush()?;
    fs::rename(&temporary, target)?;
    fs::write(&stamp, wanted)?;
    Ok(true)
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn append<W: Write>(tar: &mut Builder<W>, path: &str, data: impl Read, size: u64) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(size);
    header.set_mtime(0);
    tar.append_data(&mut header, path, data).with_context(|| format!("append {path}"))
}
