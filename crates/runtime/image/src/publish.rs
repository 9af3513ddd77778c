//! Pushing an image: blobs the registry lacks, then the manifest under its name.

use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::credentials::Auth;
use crate::manifest::{Descriptor, Document};
use crate::pull::{Progress, ProgressFn};
use crate::registry::{Content, Registries, Session, Source, Upload};
use crate::store::ImageStore;
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
    let bytes = content.read("manifest", &record.manifest.digest)?;
    let Document::Manifest(manifest) = Document::parse(image, &record.manifest.media_type, &bytes)? else {
        return Err(Error::Manifest { what: image.to_owned(), message: "its manifest is an index".to_owned() });
    };
    let session = Session::open_for_push(&options.registries, &name, &options.auth).await?;
    // Where else in the same registry these blobs were seen.
    let prefix = format!("{}/", name.registry);
    let others = record.digests.iter().filter_map(|d| Some(d.strip_prefix(&prefix)?.split_once('@')?.0.to_owned()));
    let mount_from: Vec<String> = others.filter(|repository| *repository != name.repository).take(2).collect();

    let mut blobs: Vec<Descriptor> = Vec::new();
    for blob in manifest.layers.iter().filter(|layer| !layer.is_foreign()).chain([&manifest.config]) {
        if blobs.iter().all(|known| known.digest != blob.digest) {
            blobs.push(blob.clone());
        }
    }
    report(Progress::Resolved {
        digest: record.manifest.digest.clone(),
        layers: manifest.layers.len(),
        bytes: blobs.iter().map(|blob| blob.size).sum(),
    });
    stream::iter(blobs)
        .map(|blob| {
            let source = Source {
                content: Content::File(content.path(&blob.digest)),
                size: blob.size,
                mount_from: mount_from.clone(),
            };
            let (session, report, chunk) = (&session, report.clone(), options.chunk_bytes);
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
        .await?;
    session.push_manifest(name.target(), &record.manifest.media_type, bytes).await?;
    report(Progress::Done { image: record.id.to_string() });
    Ok(record.manifest.digest)
}
