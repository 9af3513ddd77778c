//! Pulling: resolve the reference, choose the platform, fetch what is missing, unpack.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use http_body_util::BodyExt;

use crate::content::{Content, Partial, Pin};
use crate::manifest::{Descriptor, Document, MAX_MANIFEST_BYTES, Manifest, Platform};
use crate::registry::{Auth, Registry, SILENCE};
use crate::store::{Image, ImageStore, blocking};
use crate::{Digest, Error, Reference, Result};

const PARALLEL: usize = 4;
/// Tries of one blob that bring nothing new before giving up.
const FRUITLESS: u32 = 6;

#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    pub auth: Auth,
    /// Registries (`host` or `host:port`) to talk to without TLS. Loopback is tried with TLS first, then without.
    pub plain_http_hosts: Vec<String>,
    /// PEM certificates trusted besides the system's.
    pub extra_ca_pem: Vec<String>,
    /// `http://[user:password@]host:port`. Default: what `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say.
    pub proxy: Option<String>,
    /// Default: this machine's.
    pub platform: Option<Platform>,
}

/// One step forward of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Resolved {
        digest: Digest,
        layers: usize,
        bytes: u64,
    },
    /// Here already; nothing to fetch.
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
    Unpacking,
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
    let platform = options.platform.unwrap_or_else(Platform::host);
    let registry = Registry::connect(
        &name,
        options.auth,
        &options.plain_http_hosts,
        &options.extra_ca_pem,
        options.proxy.as_deref(),
    )
    .await?;
    let content = &store.inner.content;
    let mut work = Pull { store, registry: &registry, content, pins: Vec::new() };

    let (top, descriptor, document) = work.document(name.target()).await?;
    let mut digests = BTreeSet::from([format!("{}@{top}", name.name())]);
    let mut indexes = Vec::new();
    let (descriptor, manifest) = match document {
        Document::Manifest(manifest) => (descriptor, manifest),
        Document::Index(index) => {
            indexes.push(descriptor);
            let chosen = platform.select(&index.manifests).ok_or_else(|| Error::NoPlatform {
                reference: name.to_string(),
                wanted: platform.to_string(),
                available: offered(&index.manifests),
            })?;
            let (digest, descriptor, document) = work.document(chosen.digest.as_str()).await?;
            digests.insert(format!("{}@{digest}", name.name()));
            match document {
                Document::Manifest(manifest) => (descriptor, manifest),
                Document::Index(_) => {
                    let message = "an index inside an index is not supported".to_owned();
                    return Err(Error::Manifest { what: name.to_string(), message });
                }
            }
        }
    };
    check_runnable(&name, &manifest, store.inner.limits.bytes)?;
    report(Progress::Resolved {
        digest: top,
        layers: manifest.layers.len(),
        bytes: manifest.layers.iter().map(|l| l.size).sum(),
    });

    let mut wanted: Vec<&Descriptor> = vec![&manifest.config];
    for layer in &manifest.layers {
        if wanted.iter().all(|w| w.digest != layer.digest) {
            wanted.push(layer);
        }
    }
    work.pins.extend(wanted.iter().map(|d| content.pin(&d.digest)));
    let wanted: Vec<Descriptor> = wanted.into_iter().cloned().collect();
    stream::iter(wanted)
        .map(|descriptor| fetch(&registry, content, descriptor, report.clone()))
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<()>>()
        .await?;

    let references = match (&name.tag, &name.digest) {
        (Some(tag), None) => BTreeSet::from([format!("{}:{tag}", name.name())]),
        _ => BTreeSet::new(),
    };
    let record = store.describe(descriptor.clone(), &manifest, indexes.clone(), references.clone(), digests.clone())?;
    report(Progress::Unpacking);
    store.unpack(&record).await?;
    let record = store.register(descriptor, &manifest, indexes, references, digests)?;
    let image = store.image(&record)?;
    report(Progress::Done { image: image.id.clone() });
    Ok(image)
}

struct Pull<'a> {
    store: &'a ImageStore,
    registry: &'a Registry,
    content: &'a Arc<Content>,
    /// What this pull fetched or found, safe from collection until it is done.
    pins: Vec<Pin>,
}

impl Pull<'_> {
    /// A manifest or index, from here if asked for by digest and known, stored otherwise.
    async fn document(&mut self, target: &str) -> Result<(Digest, Descriptor, Document)> {
        if let Ok(digest) = Digest::parse(target) {
            self.pins.push(self.content.pin(&digest));
            if self.content.has(&digest) {
                let bytes = self.store.inner.content.read(target, &digest)?;
                let document = Document::parse(target, "", &bytes)?;
                return Ok((digest.clone(), describe(&document, "", digest, bytes.len()), document));
            }
        }
        let fetched = self.registry.manifest(target).await?;
        let document = Document::parse(target, &fetched.media_type, &fetched.bytes)?;
        self.pins.push(self.content.pin(&fetched.digest));
        let descriptor = describe(&document, &fetched.media_type, fetched.digest.clone(), fetched.bytes.len());
        let (content, digest) = (self.content.clone(), fetched.digest.clone());
        let stored = blocking(move || content.put("manifest", &fetched.bytes, Some(&fetched.digest))).await?;
        self.pins.push(stored);
        Ok((digest, descriptor, document))
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
    let config = manifest.config.media_type.as_str();
    let known = matches!(config, "" | crate::manifest::OCI_CONFIG | "application/vnd.docker.container.image.v1+json");
    if !known {
        let message = format!("this is not a container image (its config is {config})");
        return Err(Error::Manifest { what: name.to_string(), message });
    }
    if manifest.config.size > MAX_MANIFEST_BYTES {
        let message = format!("config of {} bytes is too large", manifest.config.size);
        return Err(Error::Manifest { what: name.to_string(), message });
    }
    let total = manifest.layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.size));
    if total > limit {
        let message = format!("layers of {total} bytes; the limit is {limit}");
        return Err(Error::Manifest { what: name.to_string(), message });
    }
    Ok(())
}

async fn fetch(registry: &Registry, content: &Arc<Content>, want: Descriptor, report: ProgressFn) -> Result<()> {
    let _one = content.exclusive(&want.digest).await;
    if content.has(&want.digest) {
        let actual = content.size(&want.digest)?;
        if actual != want.size {
            return Err(Error::SizeMismatch { what: want.digest.to_string(), expected: want.size, actual });
        }
        report(Progress::Present { blob: want.digest, bytes: want.size });
        return Ok(());
    }
    let mut fruitless = 0;
    loop {
        let (opener, digest, size) = (content.clone(), want.digest.clone(), want.size);
        let partial = blocking(move || opener.resume(&digest, size)).await?;
        let before = partial.have();
        match download(registry, &want, partial, &report).await {
            Ok(()) => {
                report(Progress::Downloaded { blob: want.digest, bytes: want.size });
                return Ok(());
            }
            Err(Failure { error, have }) => {
                fruitless = if have > before { 0 } else { fruitless + 1 };
                if !matches!(error, Error::Transport { .. }) || fruitless >= FRUITLESS {
                    return Err(error);
                }
                tracing::debug!(blob = %want.digest, have, error = ?error, "download interrupted, resuming");
                tokio::time::sleep(Duration::from_millis(200) * 2u32.pow(fruitless)).await;
            }
        }
    }
}

/// How far a download got before it failed.
struct Failure {
    error: Error,
    have: u64,
}

async fn download(
    registry: &Registry,
    want: &Descriptor,
    partial: Partial,
    report: &ProgressFn,
) -> Result<(), Failure> {
    let at = |have| move |error| Failure { error, have };
    let mut have = partial.have();
    if partial.complete() {
        return blocking(move || partial.commit()).await.map_err(at(have));
    }
    let (response, resumed) = registry.blob(&want.digest, have).await.map_err(at(have))?;
    // The disk has its own thread; the channel keeps it at most a few pieces behind the network.
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<bytes::Bytes>(16);
    let restart = have > 0 && !resumed;
    let writer = tokio::spawn(blocking(move || {
        let mut partial = partial;
        if restart {
            partial.restart()?;
        }
        while let Some(bytes) = receiver.blocking_recv() {
            partial.write(&bytes)?;
        }
        Ok(partial)
    }));
    if restart {
        have = 0;
    }
    let url = registry.blob_url(&want.digest);
    let mut body = response.into_body();
    let mut trouble = None;
    loop {
        let frame = match tokio::time::timeout(SILENCE, body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(e))) => {
                trouble = Some(Error::Transport { url: url.clone(), source: e.into() });
                break;
            }
            Err(e) => {
                trouble = Some(Error::Transport { url: url.clone(), source: e.into() });
                break;
            }
        };
        if let Ok(bytes) = frame.into_data() {
            have += bytes.len() as u64;
            if sender.send(bytes).await.is_err() {
                break; // the writer failed and says why below
            }
            report(Progress::Downloading { blob: want.digest.clone(), done: have, total: want.size });
        }
    }
    drop(sender);
    let partial = match writer.await {
        Ok(result) => result.map_err(at(have))?,
        Err(e) => return Err(Failure { error: Error::Interrupted(e.to_string()), have }),
    };
    let have = partial.have();
    if let Some(error) = trouble {
        return Err(Failure { error, have });
    }
    if !partial.complete() {
        let source = format!("connection closed after {have} of {} bytes", want.size).into();
        return Err(Failure { error: Error::Transport { url, source }, have });
    }
    blocking(move || partial.commit()).await.map_err(at(have))
}
