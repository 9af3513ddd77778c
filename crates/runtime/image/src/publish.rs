//! Pushing an image: blobs the registry lacks, then the manifest under its name.

use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::content::Content;
use crate::credentials::Auth;
use crate::manifest::{Descriptor, Document};
use crate::pull::{Progress, ProgressFn};
use crate::registry::{self, Registries, Session, Source, Upload};
use crate::store::{ImageStore, blocking};
use crate::{Digest, Error, Reference, Result};

const PARALLEL: usize = 3;

#[derive(Clone, Debug, Default)]
pub struct PushOptions {
    pub auth: Auth,
    pub registries: Arc<Registries>,
    /// Send blobs in pieces of this many bytes instead of in one request each.
    pub chunk_bytes: Option<u64>,
}

pub(crate) async fn push(
    store: &ImageStore,
    image: &str,
    target: &str,
    options: PushOptions,
    progress: Option<ProgressFn>,
) -> Result<Digest> {
    let name = Reference::parse(target)?;
    if name.digest.is_some() {
        let reason = "an image is pushed under a tag";
        return Err(Error::InvalidReference { reference: target.to_owned(), reason });
    }
    let report: ProgressFn = progress.unwrap_or_else(|| Arc::new(|_| {}));
    // The pins keep the blobs should the image be removed meanwhile.
    let (record, _pins) = store.record(image)?;
    let content = &store.inner.content;
    let session = Session::open_for_push(&options.registries, &name, &options.auth).await?;
    // Where else in the same registry these blobs were seen.
    let prefix = format!("{}/", name.registry);
    let others = record.digests.iter().filter_map(|d| Some(d.strip_prefix(&prefix)?.split_once('@')?.0.to_owned()));
    let mount_from: Vec<String> = others.filter(|repository| *repository != name.repository).take(2).collect();
    let top = record.whole.as_ref().map_or(&record.manifest, |whole| &whole.index);
    let read = |descriptor: &Descriptor| -> Result<(Document, Vec<u8>)> {
        let bytes = content.read("manifest", &descriptor.digest)?;
        Ok((Document::parse(image, &descriptor.media_type, &bytes)?, bytes))
    };
    // What it consists of goes first, so that a registry never has an index of what it does not have.
    let (document, bytes) = read(top)?;
    let mut parts = Vec::new();
    if let Document::Index(index) = &document {
        for part in &index.manifests {
            let (document, bytes) = read(part)?;
            parts.push((document, part.clone(), part.digest.to_string(), bytes));
        }
    }
    parts.push((document, top.clone(), name.target().to_owned(), bytes));
    let mut blobs: Vec<Descriptor> = Vec::new();
    let mut layers = 0;
    for (document, ..) in &parts {
        let Document::Manifest(manifest) = document else { continue };
        layers += manifest.layers.len();
        for blob in manifest.blobs() {
            if blobs.iter().all(|known| known.digest != blob.digest) {
                blobs.push(blob.clone());
            }
        }
    }
    report(Progress::Resolved { digest: top.digest.clone(), layers, bytes: blobs.iter().map(|blob| blob.size).sum() });
    let digests: Vec<Digest> = blobs.iter().map(|blob| blob.digest.clone()).collect();
    send_blobs(&session, content, blobs, &mount_from, options.chunk_bytes, &report).await?;
    let (beside, host) = (Arc::clone(content), session.endpoint.host.clone());
    blocking(move || digests.iter().try_for_each(|digest| beside.share(&host, digest))).await?;
    for (_, descriptor, target, bytes) in parts {
        session.push_manifest(&target, &descriptor.media_type, bytes).await?;
    }
    report(Progress::Done { image: record.id.to_string() });
    Ok(top.digest.clone())
}

/// Sends what the registry lacks of these.
pub(crate) async fn send_blobs(
    session: &Session,
    content: &Content,
    blobs: Vec<Descriptor>,
    mount_from: &[String],
    chunk: Option<u64>,
    report: &ProgressFn,
) -> Result<()> {
    stream::iter(blobs)
        .map(|blob| {
            let source = Source {
                content: registry::Content::File(content.path(&blob.digest)),
                size: blob.size,
                mount_from: mount_from.to_owned(),
            };
            let report = report.clone();
            async move {
                let step = report.clone();
                let (digest, total) = (blob.digest.clone(), blob.size);
                let sent = move |done| step(Progress::Uploading { blob: digest.clone(), done, total });
                match session.push_blob(&blob.digest, &source, chunk, sent).await? {
                    Upload::Sent => report(Progress::Uploaded { blob: blob.digest, bytes: blob.size }),
                    Upload::Mounted => report(Progress::Mounted { blob: blob.digest, bytes: blob.size }),
                    Upload::Present => report(Progress::Present { blob: blob.digest, bytes: blob.size }),
                }
                Ok::<_, Error>(())
            }
        })
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<()>>()
        .await
        .map(drop)
}
