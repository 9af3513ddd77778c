//! The image store: the one door to images on a node.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::build::kept::Kept;
use crate::content::{Content, Neighbour, Pin};
use crate::error::At;
use crate::export::ArchiveFormat;
use crate::growing::Growing;
use crate::index::{Index, Layer, Record, Whole, chain_of, now};
use crate::manifest::{Descriptor, Manifest};
use crate::publish::PushOptions;
use crate::pull::{ProgressFn, PullOptions};
use crate::snapshot::{self, Snapshots};
use crate::unpack::Limits;
use crate::{Digest, Error, Reference, Result};

/// An image that is present, as of the time of asking.
#[derive(Clone, Debug)]
pub struct Image {
    /// `sha256:…` of the config.
    pub id: String,
    /// Normalised names with tags, such as `docker.io/library/nginx:latest`.
    pub references: Vec<String>,
    /// `name@digest` for each repository it was pulled from or tagged in.
    pub digests: Vec<String>,
    /// Stored (compressed) bytes of config, manifest and layers.
    pub size: u64,
    /// Digest and media type of the manifest.
    pub manifest: String,
    pub media_type: String,
    /// Containers and others that need it to stay.
    pub holders: Vec<String>,
    /// Seconds since the epoch.
    pub added: u64,
    pub used: u64,
    pub config: ImageConfiguration,
}

/// Cheap to clone; all clones share one store. One process at a time has a directory open.
#[derive(Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub content: Arc<Content>,
    pub root: PathBuf,
    pub snapshots: Snapshots,
    pub kept: Kept,
    pub index: Mutex<Index>,
    pub limits: Limits,
    /// Told when something came in.
    pub grown: tokio::sync::Notify,
    /// Turns of those who give layers to other nodes.
    pub giving: Arc<tokio::sync::Semaphore>,
    _lock: std::fs::File,
}

impl ImageStore {
    /// Opens or creates the store in `root` and clears what a crash left behind.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_with(root, Limits::default())
    }

    /// As [`ImageStore::open`], with other bounds on what a layer may unpack to.
    pub fn open_with(root: &Path, limits: Limits) -> Result<Self> {
        std::fs::create_dir_all(root).at("create", root)?;
        let lock_path = root.join("lock");
        let lock = std::fs::File::create(&lock_path).at("create", &lock_path)?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::InUse(root.display().to_string())),
            Err(e) => return Err(e).at("lock", &lock_path),
        }
        let content = Content::open(root)?;
        let snapshots = Snapshots::open(root)?;
        let mut index = Index::load(&root.join("index.json"))?;
        let incomplete: Vec<Digest> =
            index.images().filter(|r| !r.blobs().all(|b| content.has(b))).map(|r| r.id.clone()).collect();
        for id in &incomplete {
            tracing::warn!(image = %id, "forget image whose content is missing; pull it again");
            index.forget(id);
        }
        if !incomplete.is_empty() {
            index.save()?;
        }
        let kept = Kept::open(root, &content)?;
        let (mut blobs, mut chains) = index.live();
        kept.live(&mut blobs, &mut chains);
        content.collect(&blobs)?;
        for layer in snapshots.retire(&chains)? {
            snapshot::remove_any(&layer)?;
        }
        let inner = Inner {
            content,
            root: root.to_owned(),
            snapshots,
            kept,
            index: Mutex::new(index),
            limits,
            grown: tokio::sync::Notify::new(),
            giving: Arc::new(tokio::sync::Semaphore::new(crate::give::AT_ONCE)),
            _lock: lock,
        };
        Ok(ImageStore { inner: Arc::new(inner) })
    }

    /// The directory it is in.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Lets pulls from the registry on this machine take its files as they are, without a second copy.
    pub fn live_beside(&self, neighbour: Arc<dyn Neighbour>) {
        *self.inner.content.neighbour.write() = Some(neighbour);
    }

    /// Downloads, verifies and unpacks an image. Content already here is not fetched again.
    pub async fn pull(&self, reference: &str, options: PullOptions, progress: Option<ProgressFn>) -> Result<Image> {
        crate::pull::pull(self, reference, options, progress).await
    }

    /// Reads a docker-archive or oci-archive, plain or compressed, as a stream.
    pub async fn import(&self, archive: impl AsyncRead + Send + Unpin + 'static) -> Result<Vec<Image>> {
        crate::import::import(self, archive).await
    }

    /// Writes an archive with these images as a stream; blobs they share are in it once.
    pub async fn export(
        &self,
        references: &[String],
        format: ArchiveFormat,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Result<()> {
        crate::export::export(self, references, format, writer).await
    }

    /// Writes an archive of one image under these names, whatever the store calls it.
    pub async fn export_as(
        &self,
        image: &str,
        names: Vec<String>,
        format: ArchiveFormat,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Result<()> {
        crate::export::export_as(self, image, names, format, writer).await
    }

    /// Sends an image to the registry of `target`, which may be another name than the image's own.
    pub async fn push(
        &self,
        image: &str,
        target: &str,
        options: PushOptions,
        progress: Option<ProgressFn>,
    ) -> Result<Digest> {
        crate::publish::push(self, image, target, options, progress).await
    }

    /// By reference, id, or unambiguous id prefix.
    pub fn get(&self, reference_or_id: &str) -> Option<Image> {
        let record = self.inner.index.lock().find(reference_or_id).ok().flatten()?.clone();
        self.image(&record).ok()
    }

    pub fn list(&self) -> Vec<Image> {
        let records: Vec<Record> = self.inner.index.lock().images().cloned().collect();
        records
            .iter()
            .filter_map(|r| self.image(r).inspect_err(|e| tracing::warn!(image = %r.id, error = %e, "read image")).ok())
            .collect()
    }

    /// Gives an image another name.
    pub fn tag(&self, reference_or_id: &str, new_reference: &str) -> Result<()> {
        let name = Reference::parse(new_reference)?;
        if name.digest.is_some() {
            let reason = "a tag cannot carry a digest";
            return Err(Error::InvalidReference { reference: new_reference.to_owned(), reason });
        }
        let mut index = self.inner.index.lock();
        let mut record = find(&index, reference_or_id)?;
        record.references = BTreeSet::from([name.to_string()]);
        record.digests = BTreeSet::from([format!("{}@{}", name.name(), record.manifest.digest)]);
        index.change(|index| index.insert(record))
    }

    /// Takes a name away, or all names when given an id. Content goes when the last user of it goes.
    pub fn remove(&self, reference_or_id: &str) -> Result<()> {
        let mut index = self.inner.index.lock();
        let record = find(&index, reference_or_id)?;
        let by_id = Reference::parse(reference_or_id).is_err() || !self.named(&record, reference_or_id);
        if by_id {
            if let Some(known) = index.get_mut(&record.id) {
                known.references.clear();
                known.digests.clear();
            }
            index.drop_if_unused(&record.id);
        } else {
            index.untag(&record.id, reference_or_id);
        }
        self.save_and_collect(index).map(drop)
    }

    /// Keeps an image's layers until [`ImageStore::release`] by the same owner, even if the image is
    /// removed meanwhile. Survives restarts.
    pub fn hold(&self, image_id: &str, owner: &str) -> Result<()> {
        let mut index = self.inner.index.lock();
        let id = find(&index, image_id)?.id;
        if index.by_id(&id).is_none_or(|record| record.holds.contains(owner)) {
            return Ok(());
        }
        index.change_soon(|index| {
            if let Some(record) = index.get_mut(&id) {
                record.holds.insert(owner.to_owned());
                record.used = now();
            }
        })
    }

    /// Ends every hold of `owner`. An unknown owner holds nothing, which is fine.
    pub fn release(&self, owner: &str) -> Result<()> {
        let mut index = self.inner.index.lock();
        let held: Vec<Digest> = index.images().filter(|r| r.holds.contains(owner)).map(|r| r.id.clone()).collect();
        if held.is_empty() {
            return Ok(());
        }
        let mut dropped = false;
        for id in held {
            if let Some(record) = index.get_mut(&id) {
                record.holds.remove(owner);
                record.used = now();
            }
            dropped |= index.drop_if_unused(&id);
        }
        if dropped {
            return self.save_and_collect(index).map(drop);
        }
        index.save_soon()
    }

    /// The image's unpacked layers, top first, ready as overlayfs `lowerdir`s. Unpacks what is not yet.
    pub async fn layers(&self, image: &Image) -> Result<Vec<PathBuf>> {
        let id = Digest::parse(&image.id)?;
        let record = self.inner.index.lock().by_id(&id).cloned();
        let record = record.ok_or_else(|| Error::NotFound(image.id.clone()))?;
        self.unpack(&record, &HashMap::new(), &|_| {}).await
    }

    /// Unpacks what is not yet, base layer first; a layer in `growing` is read while it is being downloaded. Returns the
    /// layers, top first.
    pub(crate) async fn unpack(
        &self,
        record: &Record,
        growing: &HashMap<Digest, Arc<Growing>>,
        done: &(dyn Fn(&Layer) + Send + Sync),
    ) -> Result<Vec<PathBuf>> {
        self.unpack_layers(&record.layers, growing, done).await
    }

    pub(crate) async fn unpack_layers(
        &self,
        layers: &[Layer],
        growing: &HashMap<Digest, Arc<Growing>>,
        done: &(dyn Fn(&Layer) + Send + Sync),
    ) -> Result<Vec<PathBuf>> {
        let inner = &self.inner;
        let chain = chain_of(layers);
        let _lease = inner.snapshots.lease(&chain);
        let mut dirs: Vec<PathBuf> = Vec::with_capacity(chain.len());
        for (layer, chain) in layers.iter().zip(&chain) {
            if inner.snapshots.has(chain) {
                dirs.insert(0, inner.snapshots.path(chain));
                done(layer);
                continue;
            }
            let _one = inner.snapshots.making.exclusive(chain).await;
            let early = match growing.get(&layer.blob) {
                Some(blob) => match self.make(layer, chain, &dirs, blob.reader(layer.size)).await {
                    Ok(made) => Some(made),
                    // They may have been wrong bytes; once the blob is whole, its verified ones decide.
                    Err(_) if blob.whole().await => None,
                    Err(error) => return Err(error),
                },
                None => None,
            };
            let made = match early {
                Some(made) => made,
                None => self.make(layer, chain, &dirs, inner.content.open_blob(&layer.blob)?).await?,
            };
            dirs.insert(0, made);
            done(layer);
        }
        Ok(dirs)
    }

    async fn make(
        &self,
        layer: &Layer,
        chain: &Digest,
        lowers: &[PathBuf],
        blob: impl Read + Send + 'static,
    ) -> Result<PathBuf> {
        let (inner, layer, chain, lowers) = (self.inner.clone(), layer.clone(), chain.clone(), lowers.to_vec());
        blocking(move || inner.snapshots.make(blob, &layer, &chain, &lowers, &inner.limits)).await
    }

    /// Checks manifest against config and adds the image under its names. All its blobs are here and pinned.
    pub(crate) fn register(
        &self,
        manifest_descriptor: Descriptor,
        manifest: &Manifest,
        indexes: Vec<Descriptor>,
        references: BTreeSet<String>,
        digests: BTreeSet<String>,
    ) -> Result<Record> {
        self.register_whole(manifest_descriptor, manifest, indexes, None, references, digests)
    }

    /// The same, of an image that leaves this machine as part of a whole only.
    pub(crate) fn register_whole(
        &self,
        manifest_descriptor: Descriptor,
        manifest: &Manifest,
        indexes: Vec<Descriptor>,
        whole: Option<Whole>,
        references: BTreeSet<String>,
        digests: BTreeSet<String>,
    ) -> Result<Record> {
        let mut record = self.describe(manifest_descriptor, manifest, indexes, references, digests)?;
        record.whole = whole;
        let mut index = self.inner.index.lock();
        index.change(|index| index.insert(record.clone()))?;
        self.inner.grown.notify_one();
        index.by_id(&record.id).cloned().ok_or_else(|| Error::NotFound(record.id.to_string()))
    }

    pub(crate) fn describe(
        &self,
        manifest_descriptor: Descriptor,
        manifest: &Manifest,
        indexes: Vec<Descriptor>,
        references: BTreeSet<String>,
        digests: BTreeSet<String>,
    ) -> Result<Record> {
        let what =
            references.first().or(digests.first()).cloned().unwrap_or_else(|| manifest.config.digest.to_string());
        let config = self.config(&manifest.config.digest)?;
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != manifest.layers.len() {
            let message = format!("{} layers, but the config lists {}", manifest.layers.len(), diff_ids.len());
            return Err(Error::Manifest { what, message });
        }
        let layers = manifest
            .layers
            .iter()
            .zip(diff_ids)
            .map(|(d, diff_id)| {
                Ok(Layer {
                    blob: d.digest.clone(),
                    size: d.size,
                    media_type: d.media_type.clone(),
                    diff_id: Digest::parse(diff_id)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Record {
            id: manifest.config.digest.clone(),
            manifest: manifest_descriptor,
            indexes,
            whole: None,
            references,
            digests,
            layers,
            holds: BTreeSet::new(),
            added: now(),
            used: now(),
        })
    }

    /// A layer of an image that has a name in this repository (`registry/repository`), and its bytes.
    pub(crate) fn layer_of(&self, repository: &str, layer: &Digest) -> Result<(std::fs::File, u64)> {
        let index = self.inner.index.lock();
        let known = index.images().any(|r| r.layers.iter().any(|l| l.blob == *layer) && r.is_of(repository));
        drop(index);
        if !known {
            return Err(Error::NotFound(format!("{repository}@{layer}")));
        }
        // Held open, it stays whatever becomes of the image.
        Ok((self.inner.content.open_blob(layer)?, self.inner.content.size(layer)?))
    }

    pub(crate) fn record(&self, reference_or_id: &str) -> Result<(Record, Vec<Pin>)> {
        let index = self.inner.index.lock();
        let record = find(&index, reference_or_id)?;
        let pins = record.blobs().map(|b| self.inner.content.pin(b)).collect();
        Ok((record, pins))
    }

    pub(crate) fn image(&self, record: &Record) -> Result<Image> {
        Ok(Image {
            id: record.id.to_string(),
            references: record.references.iter().cloned().collect(),
            digests: record.digests.iter().cloned().collect(),
            size: record.layers.iter().map(|l| l.size).sum::<u64>()
                + record.manifest.size
                + self.inner.content.size(&record.id)?,
            manifest: record.manifest.digest.to_string(),
            media_type: record.manifest.media_type.clone(),
            holders: record.holds.iter().cloned().collect(),
            added: record.added,
            used: record.used,
            config: self.config(&record.id)?,
        })
    }

    fn config(&self, id: &Digest) -> Result<ImageConfiguration> {
        let bytes = self.inner.content.read("image config", id)?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::Manifest { what: format!("config {id}"), message: format!("malformed: {e}") })
    }

    fn named(&self, record: &Record, wanted: &str) -> bool {
        let Ok(parsed) = Reference::parse(wanted) else { return false };
        match &parsed.digest {
            Some(digest) => record.digests.contains(&format!("{}@{digest}", parsed.name())),
            None => record.references.contains(&parsed.to_string()),
        }
    }

    /// Names first, content second: a crash in between leaves garbage for the next open, never a hole. But on a full disk
    /// the content has to make room for the names; an image without its content is forgotten by the next open, too.
    pub(crate) fn save_and_collect(&self, index: MutexGuard<'_, Index>) -> Result<u64> {
        match index.save() {
            Ok(()) => self.collect(index),
            Err(error) if error.is_full() => {
                let freed = self.collect(index)?;
                self.inner.index.lock().save()?;
                Ok(freed)
            }
            Err(error) => Err(error),
        }
    }

    /// After work that failed: takes away what it brought, and what it has of blobs that nobody will go on fetching.
    pub(crate) async fn clear(&self, given_up: Vec<Digest>) {
        let store = self.clone();
        let cleared = blocking(move || {
            store.inner.content.discard(&given_up)?;
            store.collect(store.inner.index.lock())
        });
        if let Err(error) = cleared.await {
            tracing::warn!(error = error.chain(), "clear up after an image that could not be had");
        }
    }

    /// Deletes what no image and no work under way needs; returns the bytes freed. Blocks, but lets go of the index
    /// before the slow part.
    pub(crate) fn collect(&self, index: MutexGuard<'_, Index>) -> Result<u64> {
        let (mut blobs, mut chains) = index.live();
        self.inner.kept.live(&mut blobs, &mut chains);
        let mut freed = self.inner.content.collect(&blobs)?;
        let doomed = self.inner.snapshots.retire(&chains)?;
        drop(index);
        for layer in &doomed {
            freed += snapshot::disk_usage(layer).bytes;
            snapshot::remove_any(layer)?;
        }
        tracing::debug!(freed, layers = doomed.len(), "collected unreferenced content");
        Ok(freed)
    }
}

fn find(index: &Index, wanted: &str) -> Result<Record> {
    index.find(wanted)?.cloned().ok_or_else(|| Error::NotFound(wanted.to_owned()))
}

/// Runs file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::Interrupted(e.to_string())),
    }
}
