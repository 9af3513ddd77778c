//! `--cache-from` and `--cache-to`: what they say, and the folder that steps are written to.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use dhow_builder::CacheMode;
use dhow_builder::api::{CacheTarget, CacheTo};
use dhow_client::Body;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::output::Destination;

/// Where a local cache has no other name.
const TAG: &str = "latest";

/// Where steps come from.
pub enum Source {
    Registry(String),
    Folder(PathBuf, Option<String>),
}

/// `type=registry,ref=NAME`, `type=local,src=FOLDER[,tag=TAG]`, or a name.
pub fn from(text: &str) -> Result<Source> {
    if !text.contains('=') {
        return Ok(Source::Registry(text.to_owned()));
    }
    let (mut kind, mut name, mut folder, mut tag) = ("registry", None, None, None);
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("type", value)) => kind = value,
            Some(("ref", value)) => name = Some(value.to_owned()),
            Some(("src", value)) => folder = Some(PathBuf::from(value)),
            Some(("tag", value)) => tag = Some(value.to_owned()),
            _ => bail!("--cache-from {text}: {field:?} is none of type=, ref=, src= and tag="),
        }
    }
    match kind {
        "registry" => Ok(Source::Registry(name.with_context(|| format!("--cache-from {text}: ref= is missing"))?)),
        "local" => Ok(Source::Folder(folder.with_context(|| format!("--cache-from {text}: src= is missing"))?, tag)),
        other => bail!("--cache-from {text}: type {other:?} is neither registry nor local"),
    }
}

/// `type=registry,ref=NAME`, `type=local,dest=FOLDER[,tag=TAG]`, `type=inline`, or a name; and the folder if it is one.
pub fn to(text: &str) -> Result<(CacheTo, Option<PathBuf>)> {
    let (mut kind, mut name, mut folder, mut tag) = ("registry", None, None, TAG.to_owned());
    let (mut mode, mut compression, mut ignore_error) = (CacheMode::Min, None, false);
    if text == "inline" {
        kind = "inline";
    } else if !text.contains('=') {
        name = Some(text.to_owned());
    } else {
        for field in text.split(',') {
            match field.split_once('=') {
                Some(("type", value)) => kind = value,
                Some(("ref", value)) => name = Some(value.to_owned()),
                Some(("dest", value)) => folder = Some(PathBuf::from(value)),
                Some(("tag", value)) => value.clone_into(&mut tag),
                Some(("mode", "min")) => mode = CacheMode::Min,
                Some(("mode", "max")) => mode = CacheMode::Max,
                Some(("compression", value)) => {
                    compression = Some(Destination::compression(value).with_context(|| format!("--cache-to {text}"))?);
                }
                Some(("ignore-error", value)) => ignore_error = value == "true",
                // Ours is always written so.
                Some(("oci-mediatypes" | "image-manifest", "true")) => {}
                _ => bail!(
                    "--cache-to {text}: {field:?} is none of type=, ref=, dest=, tag=, mode=min|max, compression= and \
                     ignore-error="
                ),
            }
        }
    }
    let (to, folder) = match kind {
        "registry" => {
            (CacheTarget::Registry(name.with_context(|| format!("--cache-to {text}: ref= is missing"))?), None)
        }
        "local" => {
            let folder = folder.with_context(|| format!("--cache-to {text}: dest= is missing"))?;
            (CacheTarget::Folder(tag), Some(folder))
        }
        "inline" if mode == CacheMode::Max => bail!("--cache-to {text}: an image has its own layers only: mode=min"),
        "inline" => (CacheTarget::Inline, None),
        other => bail!("--cache-to {text}: type {other:?} is none of registry, local and inline"),
    };
    Ok((CacheTo { to, mode, compression, ignore_error }, folder))
}

/// Takes an archive of so many bytes, which begins in the buffer, into a folder.
pub async fn take(folder: &Path, bytes: u64, buffer: &mut BytesMut, body: &mut Body) -> Result<()> {
    let (sender, mut receiver) = mpsc::channel::<io::Result<Bytes>>(4);
    let into = folder.to_owned();
    let pieces = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    let mut reader = SyncIoBridge::new(StreamReader::new(pieces));
    let writing = tokio::task::spawn_blocking(move || write(&into, &mut reader));
    let mut left = bytes;
    while left > 0 {
        if buffer.is_empty() {
            let frame = body.frame().await.context("the node ended the conversation before the cache was there")?;
            let Ok(data) = frame.context("read the cache")?.into_data() else { continue };
            buffer.extend_from_slice(&data);
        }
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        left -= count as u64;
        // Why nobody reads any more, the writer says itself.
        let _ = sender.send(Ok(buffer.split_to(count).freeze())).await;
    }
    drop(sender);
    writing.await.context("write the cache")?.with_context(|| format!("write the cache to {}", folder.display()))
}

/// Beside what is there, so that a cache that is cut off leaves the one before it; what no tag needs any more goes.
fn write(folder: &Path, archive: &mut impl io::Read) -> Result<()> {
    std::fs::create_dir_all(folder).context("create the folder")?;
    let new = tempfile::tempdir_in(folder).context("create a folder")?;
    tar::Archive::new(&mut *archive).unpack(new.path()).context("unpack")?;
    io::copy(archive, &mut io::sink()).context("read to the end")?;
    let index = |path: &Path| -> Result<Value> {
        let text = std::fs::read(path.join("index.json")).context("read index.json")?;
        serde_json::from_slice(&text).context("read index.json")
    };
    let mut whole = index(new.path())?;
    let mut named: Vec<Value> = whole["manifests"].as_array().cloned().unwrap_or_default();
    let tag = |manifest: &Value| manifest["annotations"]["org.opencontainers.image.ref.name"].clone();
    let own: Vec<Value> = named.iter().map(tag).collect();
    if let Ok(before) = index(folder) {
        let others = before["manifests"].as_array().into_iter().flatten();
        named.extend(others.filter(|manifest| !own.contains(&tag(manifest))).cloned());
    }
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).context("create the folder of blobs")?;
    for entry in std::fs::read_dir(new.path().join("blobs/sha256")).context("list what came")? {
        let entry = entry.context("list what came")?;
        std::fs::rename(entry.path(), blobs.join(entry.file_name())).context("take a blob")?;
    }
    whole["manifests"] = Value::Array(named.clone());
    std::fs::write(new.path().join("index.json"), whole.to_string()).context("write index.json")?;
    for name in ["oci-layout", "index.json"] {
        std::fs::rename(new.path().join(name), folder.join(name)).context("take the index")?;
    }
    let mut needed = BTreeSet::new();
    for manifest in &named {
        let Some(digest) = hex(manifest) else { continue };
        let text = std::fs::read(blobs.join(digest)).context("read a manifest")?;
        let manifest: Value = serde_json::from_slice(&text).context("read a manifest")?;
        ensure!(manifest["layers"].is_array(), "the folder has other things than caches; nothing was removed");
        let parts = manifest["layers"].as_array().into_iter().flatten().chain([&manifest["config"]]);
        needed.extend(parts.filter_map(hex).map(str::to_owned));
        needed.insert(digest.to_owned());
    }
    for entry in std::fs::read_dir(&blobs).context("list the blobs")? {
        let entry = entry.context("list the blobs")?;
        if !needed.contains(entry.file_name().to_string_lossy().as_ref()) {
            std::fs::remove_file(entry.path()).context("remove what no tag needs any more")?;
        }
    }
    Ok(())
}

fn hex(descriptor: &Value) -> Option<&str> {
    descriptor["digest"].as_str()?.strip_prefix("sha256:")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_read_as_people_write_them() {
        let (registry, folder) = to("type=registry,ref=r/a:1,mode=max,compression=zstd").unwrap();
        assert_eq!((registry.to, folder), (CacheTarget::Registry("r/a:1".into()), None));
        assert_eq!(registry.mode, CacheMode::Max);
        let (local, folder) = to("type=local,dest=/c").unwrap();
        assert_eq!((local.to, folder), (CacheTarget::Folder("latest".into()), Some("/c".into())));
        assert_eq!(to("inline").unwrap().0.to, CacheTarget::Inline);
        assert_eq!(to("r/a:1").unwrap().0.to, CacheTarget::Registry("r/a:1".into()));
        assert!(matches!(from("type=local,src=c,tag=t").unwrap(), Source::Folder(_, Some(_))));
        for wrong in ["type=gha", "type=local", "mode=most", "type=inline,mode=max"] {
            assert!(to(wrong).is_err(), "{wrong}");
        }
    }
}
