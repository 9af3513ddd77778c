//! Pulling: resolve the reference, choose the platform, fetch what is missing, unpack while it comes.

use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::sync::Arc;

use futures::future::Either;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio_util::task::TaskTracker;

use crate::content::{Content, Pin};
use crate::credentials::Auth;
use crate::fetch::Fetcher;
use crate::growing::{Growing, Outcome};
use crate::index::Layer;
use crate::manifest::{DOCKER_CONFIG, Descriptor, Document, MAX_MANIFEST_BYTES, Manifest, OCI_CONFIG, Platform};
use crate::registry::{Registries, Registry};
use crate::store::{Image, ImageStore, blocking};
use crate::{Digest, Error, Reference, Result};

/// Indexes in indexes are allowed by the specification; more levels than this mean harm.
const MAX_INDEX_DEPTH: usize = 4;

#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// Credentials that come with the request, for the registry itself; else those that are configured.
    pub auth: Auth,
    pub registries: Arc<Registries>,
    /// Default: this machine's.
    pub platform: Option<Platform>,
}

/// One step forward of a pull or a push.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "camelCase")]
pub enum Progress {
    Resolved {
        digest: Digest,
        layers: usize,
        bytes: u64,
    },
    /// Where it is wanted already; nothing to transfer.
    Present {
        blob: Digest,
        bytes: u64,
    },
    Downloading {
        blob: Digest,
        done: u64,
        total: u64,
    },
    Downloaded {
        blob: Digest,
        bytes: u64,
    },
    Unpacked {
        blob: Digest,
    },
    Uploading {
        blob: Digest,
        done: u64,
        total: u64,
    },
    Uploaded {
        blob: Digest,
        bytes: u64,
    },
    /// The registry took it from another repository of its own.
    Mounted {
        blob: Digest,
        bytes: u64,
    },
    Done {
        image: String,
    },
}

pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

pub(crate) async fn pull(
    store: &ImageStore,
    reference: &str,
    options: PullOptions,
    progress: Option<ProgressFn>,
) -> Result<Image> {
    let name = Reference::parse(reference)?;
    let report: ProgressFn = progress.unwrap_or_else(|| Arc::new(|_| {}));
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let mut blobs = Vec::new();
    let pulled = attempt(store, &name, &platform, &options, report, &mut blobs).await;
    if let Err(error) = &pulled {
        // What came so far is worth keeping only if the rest may come.
        store.clear(if error.is_unavailable() { Vec::new() } else { blobs }).await;
    }
    // Also after a failure: the disk may be full.
    store.inner.grown.notify_one();
    pulled
}

/// `blobs` becomes what the image consists of, as soon as that is known.
async fn attempt(
    store: &ImageStore,
    name: &Reference,
    platform: &Platform,
    options: &PullOptions,
    report: ProgressFn,
    blobs: &mut Vec<Digest>,
) -> Result<Image> {
    let registries = &options.registries;
    let registry = Registry::connect(registries, name, &options.auth).await?;
    let content = &store.inner.content;
    let mut work = Resolve { store, registry: &registry, content, pins: Vec::new() };
    let resolved = work.resolve(name, platform).await?;
    let manifest = &resolved.manifest;
    check_runnable(name, manifest, store.inner.limits.bytes)?;
    report(Progress::Resolved {
        digest: resolved.top.clone(),
        layers: manifest.layers.len(),
        bytes: manifest.layers.iter().map(|l| l.size).sum(),
    });
    let top = resolved.descriptor.digest.clone();
    let parts = manifest.layers.iter().chain([&manifest.config]);
    blobs.extend(parts.map(|part| part.digest.clone()));
    work.pins.extend(blobs.iter().map(|blob| content.pin(blob)));
    blobs.push(top.clone());
    content.remember_pull(&top, blobs)?;
    let fetcher = Fetcher { registries, registry: &registry, content, report, writing: TaskTracker::new() };
    let pulled = complete(store, name, &fetcher, resolved).await;
    if pulled.as_ref().err().is_none_or(|error| !error.is_unavailable()) {
        content.forget_pull(&top);
    }
    fetcher.writing.close();
    fetcher.writing.wait().await;
    let image = pulled?;
    (fetcher.report)(Progress::Done { image: image.id.clone() });
    Ok(image)
}

/// Fetches and unpacks what a manifest speaks of, and gives it its names.
async fn complete(store: &ImageStore, name: &Reference, fetcher: &Fetcher<'_>, resolved: Resolved) -> Result<Image> {
    let Resolved { descriptor, manifest, indexes, digests, .. } = resolved;
    // The config first: it says what the layers unpack to.
    fetcher.fetch(&manifest.config, &Growing::new()).await?;
    let references = match (&name.tag, &name.digest) {
        (Some(tag), None) => BTreeSet::from([format!("{}:{tag}", name.name())]),
        _ => BTreeSet::new(),
    };
    let record = store.describe(descriptor.clone(), &manifest, indexes.clone(), references.clone(), digests.clone())?;
    let _lease = store.inner.snapshots.lease(&record.chain());

    let mut feeds = Feeds(HashMap::new());
    let mut layers: Vec<(Descriptor, Arc<Growing>)> = Vec::new();
    for layer in &manifest.layers {
        if !feeds.0.contains_key(&layer.digest) {
            let feed = Growing::new();
            feeds.0.insert(layer.digest.clone(), Arc::clone(&feed));
            layers.push((layer.clone(), feed));
        }
    }
    let fetching = stream::iter(layers)
        .map(|(layer, feed)| async move { fetcher.fetch_layer(&layer, &feed).await })
        .buffer_unordered(fetcher.registries.parallel())
        .try_collect::<Vec<()>>();
    let unpacked = |layer: &Layer| (fetcher.report)(Progress::Unpacked { blob: layer.blob.clone() });
    let unpacking = store.unpack(&record, &feeds.0, &unpacked);
    match futures::future::select(pin!(fetching), pin!(unpacking)).await {
        Either::Left((fetched, unpacking)) => {
            if fetched.is_err() {
                feeds.close();
            }
            let unpacked = unpacking.await;
            fetched?;
            unpacked?;
        }
        // A layer that cannot be unpacked ends the downloads, unless it is the downloads that failed.
        Either::Right((Err(error), fetching)) => {
            if feeds.0.values().any(|feed| feed.failed()) {
                fetching.await?;
            }
            return Err(error);
        }
        Either::Right((Ok(_), fetching)) => drop(fetching.await?),
    }
    let record = store.register(descriptor, &manifest, indexes, references, digests)?;
    store.image(&record)
}

/// The downloads of a pull. However it ends, nobody is left waiting for bytes.
struct Feeds(HashMap<Digest, Arc<Growing>>);

impl Feeds {
    fn close(&self) {
        self.0.values().for_each(|feed| feed.end(Outcome::Failed));
    }
}

impl Drop for Feeds {
    fn drop(&mut self) {
        self.close();
    }
}

struct Resolve<'a> {
    store: &'a ImageStore,
    registry: &'a Registry,
    content: &'a Arc<Content>,
    /// What this pull fetched or found, safe from collection until it is done.
    pins: Vec<Pin>,
}

struct Resolved {
    /// What the name stands for: an index or a manifest.
    top: Digest,
    descriptor: Descriptor,
    manifest: Manifest,
    indexes: Vec<Descriptor>,
    digests: BTreeSet<String>,
}

impl Resolve<'_> {
    async fn resolve(&mut self, name: &Reference, platform: &Platform) -> Result<Resolved> {
        let (mut descriptor, mut document) = self.document(name.target()).await?;
        let top = descriptor.digest.clone();
        let mut digests = BTreeSet::from([format!("{}@{top}", name.name())]);
        let mut indexes = Vec::new();
        loop {
            let index = match document {
                Document::Manifest(manifest) => return Ok(Resolved { top, descriptor, manifest, indexes, digests }),
                Document::Index(index) => index,
            };
            indexes.push(descriptor);
            if indexes.len() > MAX_INDEX_DEPTH {
                let message = format!("more than {MAX_INDEX_DEPTH} indexes inside each other");
                return Err(Error::Manifest { what: name.to_string(), message });
            }
            let chosen = platform.select(&index.manifests).ok_or_else(|| Error::NoPlatform {
                reference: name.to_string(),
                wanted: platform.to_string(),
                available: offered(&index.manifests),
            })?;
            (descriptor, document) = self.document(chosen.digest.as_str()).await?;
            if descriptor.size != chosen.size {
                let what = descriptor.digest.to_string();
                return Err(Error::SizeMismatch { what, expected: chosen.size, actual: descriptor.size });
            }
            digests.insert(format!("{}@{}", name.name(), descriptor.digest));
        }
    }

    /// A manifest or index, from here if asked for by digest and known, stored otherwise.
    async fn document(&mut self, target: &str) -> Result<(Descriptor, Document)> {
        if let Ok(digest) = Digest::parse(target) {
            self.pins.push(self.content.pin(&digest));
            if self.content.has(&digest) {
                let bytes = self.store.inner.content.read(target, &digest)?;
                let document = Document::parse(target, "", &bytes)?;
                return Ok((describe(&document, "", digest, bytes.len()), document));
            }
        }
        let fetched = self.registry.manifest(target).await?;
        let document = Document::parse(target, &fetched.media_type, &fetched.bytes)?;
        self.pins.push(self.content.pin(&fetched.digest));
        let descriptor = describe(&document, &fetched.media_type, fetched.digest.clone(), fetched.bytes.len());
        let content = self.content.clone();
        let stored = blocking(move || content.put("manifest", &fetched.bytes, Some(&fetched.digest))).await?;
        self.pins.push(stored);
        Ok((descriptor, document))
    }
}

fn describe(document: &Document, transport: &str, digest: Digest, size: usize) -> Descriptor {
    let (own, fallback) = match document {
        Document::Manifest(m) => (&m.media_type, crate::manifest::OCI_MANIFEST),
        Document::Index(i) => (&i.media_type, crate::manifest::OCI_INDEX),
    };
    let media_type = match (own.as_str(), transport) {
        ("", "") => fallback,
        ("", transport) => transport,
        (own, _) => own,
    };
    Descriptor::new(media_type, digest, size as u64)
}

fn offered(manifests: &[Descriptor]) -> String {
    let all: BTreeSet<String> = manifests.iter().filter_map(|d| Some(d.platform.as_ref()?.to_string())).collect();
    all.into_iter().collect::<Vec<_>>().join(", ")
}

/// Charts, signatures and the like are valid OCI manifests, but there is nothing in them to run.
fn check_runnable(name: &Reference, manifest: &Manifest, limit: u64) -> Result<()> {
    let refuse = |message: String| Err(Error::Manifest { what: name.to_string(), message });
    let config = manifest.config.media_type.as_str();
    if !matches!(config, "" | OCI_CONFIG | DOCKER_CONFIG) {
        return refuse(format!("this is not a container image (its config is {config})"));
    }
    if manifest.config.size > MAX_MANIFEST_BYTES {
        return refuse(format!("config of {} bytes is too large", manifest.config.size));
    }
    for layer in &manifest.layers {
        let kind = layer.media_type.as_str();
        let known = kind.starts_with("application/vnd.oci.image.layer.")
            || kind.starts_with("application/vnd.docker.image.rootfs.")
            || kind.is_empty();
        if !known || kind.contains("encrypted") {
            return refuse(format!("layer {} is of media type {kind}, which is not supported", layer.digest));
        }
    }
    let total = manifest.layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.size));
    if total > limit {
        return refuse(format!("layers of {total} bytes; the limit is {limit}"));
    }
    Ok(())
}
