//! Writes an image as an oci-archive.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use tokio::io::AsyncWrite;
use tokio_util::io::SyncIoBridge;

use crate::manifest::{Descriptor, Index, OCI_INDEX};
use crate::store::{ImageStore, blocking};
use crate::{Error, Reference, Result};

pub(crate) async fn export(
    store: &ImageStore,
    reference: &str,
    writer: impl AsyncWrite + Send + Unpin + 'static,
) -> Result<()> {
    // The pins keep the blobs should the image be removed meanwhile.
    let (record, pins) = store.record(reference)?;
    let name = Reference::parse(reference)
        .ok()
        .map(|r| r.to_string())
        .filter(|r| record.references.contains(r))
        .or_else(|| record.references.first().cloned());
    let content = store.inner.content.clone();
    let bridge = SyncIoBridge::new(writer);
    blocking(move || {
        let _pins = pins;
        let failed = |e| Error::io("write archive", e);
        let mut manifest: Descriptor = record.manifest.clone();
        manifest.annotations = name.map(|name| {
            BTreeMap::from([
                ("org.opencontainers.image.ref.name".to_owned(), name.clone()),
                ("io.containerd.image.name".to_owned(), name),
            ])
        });
        let mut index = Index { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests: vec![manifest] };
        index.manifests[0].platform = None;
        let index = serde_json::to_vec(&index).map_err(|e| Error::Archive(e.to_string()))?;
        let mut tar = tar::Builder::new(bridge);
        append(&mut tar, "oci-layout", &br#"{"imageLayoutVersion":"1.0.0"}"#[..], 30).map_err(failed)?;
        append(&mut tar, "index.json", &index[..], index.len() as u64).map_err(failed)?;
        let mut written = std::collections::HashSet::new();
        let blobs = [&record.manifest.digest, &record.id].into_iter().chain(record.layers.iter().map(|l| &l.blob));
        for digest in blobs {
            if !written.insert(digest.clone()) {
                continue;
            }
            let file = content.open_blob(digest)?;
            let size = content.size(digest)?;
            let path = format!("blobs/{}/{}", digest.algorithm(), digest.hex());
            append(&mut tar, &path, file, size).map_err(failed)?;
        }
        let mut bridge = tar.into_inner().map_err(failed)?;
        bridge.flush().map_err(failed)?;
        bridge.shutdown().map_err(failed)
    })
    .await
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, data: impl Read, size: u64) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(size);
    header.set_mtime(0);
    tar.append_data(&mut header, path, data)
}
