//! Writes images as an oci-archive or a docker-archive, as a stream.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read, Write};

use serde::Serialize;
use tokio::io::AsyncWrite;
use tokio_util::io::SyncIoBridge;

use crate::compress::decompress;
use crate::content::{Content, Pin};
use crate::index::{Layer, Record};
use crate::manifest::{Descriptor, Index, OCI_INDEX};
use crate::store::{ImageStore, blocking};
use crate::{Digest, Error, Reference, Result};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// An OCI layout in a tar: layers as they are.
    #[default]
    Oci,
    /// What `docker load` has always read: layers uncompressed.
    Docker,
}

/// What says that a folder is an OCI layout.
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Of archives.
const BLOCK: u64 = 512;

/// One entry of a docker-archive's `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

pub(crate) async fn export(
    store: &ImageStore,
    references: &[String],
    format: ArchiveFormat,
    writer: impl AsyncWrite + Send + Unpin + 'static,
) -> Result<()> {
    // The pins keep the blobs should an image be removed meanwhile.
    let mut wanted = Vec::new();
    let mut pins = Vec::new();
    for reference in references {
        let (record, held) = store.record(reference)?;
        let names = names(&record, reference);
        wanted.push((record, names));
        pins.extend(held);
    }
    write(store, wanted, pins, format, writer).await
}

/// One image under other names than its own.
pub(crate) async fn export_as(
    store: &ImageStore,
    image: &str,
    names: Vec<String>,
    format: ArchiveFormat,
    writer: impl AsyncWrite + Send + Unpin + 'static,
) -> Result<()> {
    let (record, pins) = store.record(image)?;
    let names = names.iter().map(|name| Ok(Reference::parse(name)?.to_string())).collect::<Result<_>>()?;
    write(store, vec![(record, names)], pins, format, writer).await
}

async fn write(
    store: &ImageStore,
    wanted: Vec<(Record, Vec<String>)>,
    pins: Vec<Pin>,
    format: ArchiveFormat,
    writer: impl AsyncWrite + Send + Unpin + 'static,
) -> Result<()> {
    let content = store.inner.content.clone();
    let bridge = SyncIoBridge::new(writer);
    blocking(move || {
        let _pins = pins;
        let mut archive = Archive { tar: tar::Builder::new(bridge), content: &content, written: HashSet::new() };
        match format {
            ArchiveFormat::Oci => archive.oci(&wanted)?,
            ArchiveFormat::Docker => archive.docker(&wanted)?,
        }
        archive.end()
    })
    .await
}

/// The one name an image was asked for by, or all it has when it was asked for by id.
fn names(record: &Record, wanted: &str) -> Vec<String> {
    match Reference::parse(wanted).map(|r| r.to_string()) {
        Ok(name) if record.references.contains(&name) => vec![name],
        _ => record.references.iter().cloned().collect(),
    }
}

fn failed(error: io::Error) -> Error {
    Error::io("write archive", error)
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::Archive(e.to_string()))
}

pub(crate) struct Archive<'a, W: Write> {
    tar: tar::Builder<W>,
    content: &'a Content,
    /// Paths that are in it.
    written: HashSet<String>,
}

impl<'a, W: AsyncWrite + Unpin> Archive<'a, SyncIoBridge<W>> {
    /// Writes an OCI layout of an index and these blobs; `size` is told first how many bytes will come.
    pub(crate) fn layout(
        content: &'a Content,
        index: &Index,
        blobs: &[&Descriptor],
        size: impl FnOnce(u64),
        to: SyncIoBridge<W>,
    ) -> Result<()> {
        let index = json(index)?;
        let sizes = [LAYOUT.len() as u64, index.len() as u64].into_iter().chain(blobs.iter().map(|blob| blob.size));
        // A header each, whole blocks, and two blocks at the end.
        size(sizes.map(|bytes| BLOCK + bytes.next_multiple_of(BLOCK)).sum::<u64>() + 2 * BLOCK);
        let mut archive = Archive { tar: tar::Builder::new(to), content, written: HashSet::new() };
        archive.append("oci-layout", LAYOUT, LAYOUT.len() as u64)?;
        archive.append("index.json", &index[..], index.len() as u64)?;
        for blob in blobs {
            archive.blob(&blob.digest, &blob_path(&blob.digest))?;
        }
        archive.end()
    }

    fn end(self) -> Result<()> {
        let mut bridge = self.tar.into_inner().map_err(failed)?;
        bridge.flush().map_err(failed)?;
        bridge.shutdown().map_err(failed)
    }
}

impl<W: Write> Archive<'_, W> {
    fn oci(&mut self, images: &[(Record, Vec<String>)]) -> Result<()> {
        let mut manifests = Vec::new();
        for (record, names) in images {
            let top = record.whole.as_ref().map_or(&record.manifest, |whole| &whole.index);
            let plain = Descriptor { platform: None, annotations: None, ..top.clone() };
            if names.is_empty() {
                manifests.push(plain.clone());
            }
            manifests.extend(names.iter().map(|name| Descriptor {
                annotations: Some(BTreeMap::from([
                    ("org.opencontainers.image.ref.name".to_owned(), name.clone()),
                    ("io.containerd.image.name".to_owned(), name.clone()),
                ])),
                ..plain.clone()
            }));
        }
        let index = Index { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests };
        self.append("oci-layout", LAYOUT, LAYOUT.len() as u64)?;
        let index = json(&index)?;
        self.append("index.json", &index[..], index.len() as u64)?;
        for (record, _) in images {
            let blobs = [&record.manifest.digest, &record.id].into_iter().chain(record.layers.iter().map(|l| &l.blob));
            for digest in blobs.chain(record.whole.iter().flat_map(|whole| &whole.blobs)) {
                self.blob(digest, &blob_path(digest))?;
            }
        }
        Ok(())
    }

    fn docker(&mut self, images: &[(Record, Vec<String>)]) -> Result<()> {
        let mut entries = Vec::new();
        for (record, names) in images {
            for layer in &record.layers {
                self.unpacked(layer)?;
            }
            let config = format!("{}.json", record.id.hex());
            self.blob(&record.id, &config)?;
            let layers = record.layers.iter().map(|layer| layer_path(&layer.diff_id)).collect();
            entries.push(Entry { config, repo_tags: names.iter().map(|name| familiar(name)).collect(), layers });
        }
        let manifest = json(&entries)?;
        self.append("manifest.json", &manifest[..], manifest.len() as u64)
    }

    fn blob(&mut self, digest: &Digest, path: &str) -> Result<()> {
        let (file, size) = (self.content.open_blob(digest)?, self.content.size(digest)?);
        self.append(path, file, size)
    }

    /// Unpacked twice: a tar wants the size first, and the disk is not for copies.
    fn unpacked(&mut self, layer: &Layer) -> Result<()> {
        let path = layer_path(&layer.diff_id);
        if self.written.contains(&path) {
            return Ok(());
        }
        let open = || {
            decompress(self.content.open_blob(&layer.blob)?)
                .map_err(|e| Error::io(format!("decompress layer {}", layer.blob), e))
        };
        let size = io::copy(&mut open()?, &mut io::sink()).map_err(failed)?;
        let data = open()?;
        self.append(&path, data, size)
    }

    fn append(&mut self, path: &str, data: impl Read, size: u64) -> Result<()> {
        if !self.written.insert(path.to_owned()) {
            return Ok(());
        }
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(size);
        header.set_mtime(0);
        self.tar.append_data(&mut header, path, data).map_err(failed)
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

fn layer_path(diff_id: &Digest) -> String {
    format!("{}/layer.tar", diff_id.hex())
}

/// As docker writes names: its hub goes without saying.
fn familiar(name: &str) -> String {
    let short = name.strip_prefix("docker.io/").unwrap_or(name);
    short.strip_prefix("library/").filter(|_| short != name).unwrap_or(short).to_owned()
}
