//! Steps of builds for other builders: a manifest whose layers are the steps' layers and whose configuration says which keys they
//! belong to. Any registry and any OCI layout keeps it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWrite;
use tokio_util::io::SyncIoBridge;
use tokio_util::task::TaskTracker;

use super::assemble::json;
use super::{Compression, ImageStore};
use crate::content::Pin;
use crate::export::Archive;
use crate::fetch::Fetcher;
use crate::growing::Growing;
use crate::index::{Layer, chain_of};
use crate::manifest::{
    Descriptor, Document, Index, MAX_MANIFEST_BYTES, Manifest, OCI_EMPTY, OCI_INDEX, OCI_MANIFEST, Platform,
};
use crate::publish::{PushOptions, send_blobs};
use crate::pull::PullOptions;
use crate::registry::{Registries, Registry, Session};
use crate::store::blocking;
use crate::{Digest, Error, Reference, Result};

const CACHE: &str = "application/vnd.dhow.build.cache.v1";
const CONFIG: &str = "application/vnd.dhow.build.cache.config.v1+json";
/// Where an image's configuration has the keys of its own layers.
pub const INLINE: &str = "io.dhow.build.cache.v1";
/// More layers in one manifest than this are refused by ourselves and by others.
const MAX_LAYERS: usize = 500;
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The configuration.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Steps {
    version: u32,
    /// What the manifest's layers unpack to, in their order.
    diff_ids: Vec<Digest>,
    steps: Vec<Step>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Step {
    key: Digest,
    /// By number, base first.
    layers: Vec<usize>,
}

impl Steps {
    /// Those of which all layers are there: either all of `diff_ids`, or found on the way until there are too many.
    fn gather(steps: &[(Digest, Vec<Layer>)]) -> (Self, Vec<Layer>) {
        let (mut all, mut layers) = (Steps { version: 1, ..Steps::default() }, Vec::<Layer>::new());
        let mut numbers: HashMap<Digest, usize> = HashMap::new();
        for (key, own) in steps {
            let new = own.iter().filter(|layer| !numbers.contains_key(&layer.diff_id)).count();
            if layers.len() + new > MAX_LAYERS || all.steps.iter().any(|step| step.key == *key) {
                continue;
            }
            let number = |layer: &Layer| {
                *numbers.entry(layer.diff_id.clone()).or_insert_with(|| {
                    layers.push(layer.clone());
                    layers.len() - 1
                })
            };
            all.steps.push(Step { key: key.clone(), layers: own.iter().map(number).collect() });
        }
        all.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        (all, layers)
    }

    fn read(self, what: &str, layers: &[Descriptor]) -> Result<HashMap<Digest, Vec<Layer>>> {
        let wrong = |message: &str| Error::Manifest { what: what.to_owned(), message: message.to_owned() };
        if self.version != 1 {
            return Err(wrong("a cache of builds of another version of the program"));
        }
        if self.diff_ids.len() != layers.len() {
            return Err(wrong("a cache of builds whose layers are not those that it lists"));
        }
        let layer = |number: &usize| {
            let (packed, diff_id) = (layers.get(*number)?, self.diff_ids.get(*number)?);
            let (blob, media_type) = (packed.digest.clone(), packed.media_type.clone());
            Some(Layer { blob, size: packed.size, media_type, diff_id: diff_id.clone() })
        };
        let step = |step: &Step| {
            let layers: Option<Vec<Layer>> = step.layers.iter().map(layer).collect();
            let layers = layers.ok_or_else(|| wrong("a cache of builds with a step of layers that are not there"))?;
            Ok((step.key.clone(), layers))
        };
        self.steps.iter().map(step).collect()
    }
}

/// What an image's configuration says under [`INLINE`]: the keys that its own layers are known by.
pub fn inline(steps: &[(Digest, Vec<Layer>)], layers: &[Layer]) -> serde_json::Value {
    let number = |layer: &Layer| layers.iter().position(|own| own.diff_id == layer.diff_id);
    let steps = steps.iter().filter_map(|(key, own)| {
        let layers = own.iter().map(number).collect::<Option<Vec<_>>>()?;
        Some(Step { key: key.clone(), layers })
    });
    let diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    serde_json::to_value(Steps { version: 1, diff_ids, steps: steps.collect() }).unwrap_or_default()
}

/// A cache that is elsewhere.
pub struct RemoteSteps {
    steps: HashMap<Digest, Vec<Layer>>,
    from: From,
}

enum From {
    Registry { registries: Arc<Registries>, registry: Registry },
    Folder(PathBuf),
}

impl RemoteSteps {
    /// What a key was made into there.
    pub fn get(&self, key: &Digest) -> Option<&[Layer]> {
        self.steps.get(key).map(Vec::as_slice)
    }

    /// How many steps it has.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// A cache that was written: its manifest, and everything the manifest speaks of.
struct Written {
    manifest: Descriptor,
    bytes: Vec<u8>,
    blobs: Vec<Descriptor>,
    _pins: Vec<Pin>,
}

impl ImageStore {
    fn write_steps(&self, steps: &[(Digest, Vec<Layer>)], compression: Compression) -> Result<Written> {
        let (config, layers) = Steps::gather(steps);
        let mut pins = Vec::new();
        let mut descriptors = Vec::new();
        for layer in &layers {
            let (pin, descriptor) = self.compressed(layer, compression)?;
            pins.push(pin);
            descriptors.push(descriptor);
        }
        let config = self.write_blob(CONFIG, &json(&config)?, &mut pins)?;
        // An image manifest has at least one layer.
        if descriptors.is_empty() {
            descriptors.push(self.write_blob(OCI_EMPTY, b"{}", &mut pins)?);
        }
        let manifest = Manifest { artifact_type: Some(CACHE.to_owned()), ..Manifest::image(config, descriptors) };
        let bytes = json(&manifest)?;
        let descriptor = self.write_blob(OCI_MANIFEST, &bytes, &mut pins)?;
        Ok(Written { manifest: descriptor, bytes, blobs: manifest.blobs().into_iter().cloned().collect(), _pins: pins })
    }

    /// Sends steps, their layers packed as wanted, to a registry under a name.
    pub async fn push_steps(
        &self,
        steps: Vec<(Digest, Vec<Layer>)>,
        target: &str,
        options: PushOptions,
        compression: Compression,
    ) -> Result<Digest> {
        let name = Reference::parse(target)?;
        let store = self.clone();
        let written = blocking(move || store.write_steps(&steps, compression)).await?;
        let session = Session::open_for_push(&options.registries, &name, &options.auth).await?;
        let (content, blobs) = (&self.inner.content, written.blobs.clone());
        send_blobs(&session, content, blobs, &[], options.chunk_bytes, &(Arc::new(|_| {}) as _)).await?;
        session.push_manifest(name.target(), OCI_MANIFEST, written.bytes.clone()).await?;
        Ok(written.manifest.digest.clone())
    }

    /// Writes steps as an archive of an OCI layout, under a tag; `size` is told first how many bytes will come.
    pub async fn export_steps(
        &self,
        steps: Vec<(Digest, Vec<Layer>)>,
        tag: String,
        compression: Compression,
        size: impl FnOnce(u64) + Send + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Result<()> {
        let (store, bridge) = (self.clone(), SyncIoBridge::new(writer));
        blocking(move || {
            let written = store.write_steps(&steps, compression)?;
            let manifest = Descriptor {
                annotations: Some(BTreeMap::from([(REF_NAME.to_owned(), tag)])),
                ..written.manifest.clone()
            };
            let index = Index { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests: vec![manifest] };
            let blobs: Vec<&Descriptor> = written.blobs.iter().chain([&written.manifest]).collect();
            Archive::layout(&store.inner.content, &index, &blobs, size, bridge)
        })
        .await
    }

    /// Reads which steps a registry has under a name: a cache, or an image that has the keys of its layers with it.
    pub async fn remote_steps(&self, name: &str, options: PullOptions) -> Result<RemoteSteps> {
        let reference = Reference::parse(name)?;
        let registries = options.registries;
        let registry = Registry::connect(&registries, &reference, &options.auth).await?;
        let fetched = registry.manifest(reference.target()).await?;
        let document = Document::parse(name, &fetched.media_type, &fetched.bytes)?;
        let manifest = match document {
            Document::Manifest(manifest) => manifest,
            Document::Index(index) => {
                let platform = options.platform.unwrap_or_else(Platform::host);
                let chosen = choose(&index, &platform).ok_or_else(|| nothing(name))?;
                let fetched = registry.manifest(chosen.digest.as_str()).await?;
                match Document::parse(name, &fetched.media_type, &fetched.bytes)? {
                    Document::Manifest(manifest) => manifest,
                    Document::Index(_) => return Err(nothing(name)),
                }
            }
        };
        let _pin = self.inner.content.pin(&manifest.config.digest);
        if manifest.config.size > MAX_MANIFEST_BYTES {
            return Err(nothing(name));
        }
        self.fetch_blob(&registries, &registry, &manifest.config).await?;
        let config = self.inner.content.read("the configuration", &manifest.config.digest)?;
        let steps = steps_of(name, &manifest, &config)?;
        Ok(RemoteSteps { steps, from: From::Registry { registries, registry } })
    }

    /// Reads which steps an OCI layout has, under a tag if one is said. Blocks.
    pub fn steps_in(&self, folder: &Path, tag: Option<&str>) -> Result<RemoteSteps> {
        let what = "the cache's folder";
        let read = |path: PathBuf| -> Result<Vec<u8>> {
            let size = std::fs::metadata(&path).map_err(|e| Error::io(format!("read {what}"), e))?.len();
            if size > MAX_MANIFEST_BYTES {
                return Err(nothing(what));
            }
            std::fs::read(&path).map_err(|e| Error::io(format!("read {what}"), e))
        };
        let blob = |descriptor: &Descriptor| -> Result<Vec<u8>> {
            let bytes = read(blob_path(folder, &descriptor.digest))?;
            descriptor.digest.verify(what, &bytes)?;
            Ok(bytes)
        };
        let Document::Index(index) = Document::parse(what, OCI_INDEX, &read(folder.join("index.json"))?)? else {
            return Err(nothing(what));
        };
        let tagged = |of: &&Descriptor| tag.is_none_or(|tag| of.annotation(REF_NAME) == Some(tag));
        let mut chosen = index.manifests.iter().find(tagged).cloned().ok_or_else(|| nothing(what))?;
        let manifest = loop {
            match Document::parse(what, &chosen.media_type, &blob(&chosen)?)? {
                Document::Manifest(manifest) => break manifest,
                Document::Index(index) => {
                    let inner = choose(&index, &Platform::host()).ok_or_else(|| nothing(what))?;
                    if inner.media_type == OCI_INDEX {
                        return Err(nothing(what));
                    }
                    chosen = inner.clone();
                }
            }
        };
        let steps = steps_of(what, &manifest, &blob(&manifest.config)?)?;
        Ok(RemoteSteps { steps, from: From::Folder(folder.to_owned()) })
    }

    /// Brings what a key was made into elsewhere, and keeps it. Layers that are here already, packed in whatever way, begin
    /// `known`, and are not brought.
    pub async fn take_step(&self, from: &RemoteSteps, key: &Digest, known: &[Layer]) -> Result<Option<Vec<Layer>>> {
        let Some(there) = from.get(key) else { return Ok(None) };
        let same = there.iter().zip(known).take_while(|(one, other)| one.diff_id == other.diff_id).count();
        let layers: Vec<Layer> = known[..same].iter().chain(&there[same..]).cloned().collect();
        let content = &self.inner.content;
        let _pins: Vec<Pin> = layers.iter().map(|layer| content.pin(&layer.blob)).collect();
        let _lease = self.inner.snapshots.lease(&chain_of(&layers));
        for layer in &layers[same..] {
            let descriptor = Descriptor::new(&layer.media_type, layer.blob.clone(), layer.size);
            match &from.from {
                From::Registry { registries, registry } => self.fetch_blob(registries, registry, &descriptor).await?,
                From::Folder(folder) if !content.has(&layer.blob) => {
                    let (content, path, blob) = (content.clone(), blob_path(folder, &layer.blob), layer.blob.clone());
                    blocking(move || {
                        let file = std::fs::File::open(&path)
                            .map_err(|e| Error::io("open a layer of the cache".to_owned(), e))?;
                        content.ingest("a layer of the cache", file, Some(&blob)).map(drop)
                    })
                    .await?;
                }
                From::Folder(_) => {}
            }
        }
        // Unpacked, they are known to be what they are said to be.
        self.folders(&layers).await?;
        self.keep(key, &layers)?;
        Ok(Some(layers))
    }

    async fn fetch_blob(&self, registries: &Arc<Registries>, registry: &Registry, blob: &Descriptor) -> Result<()> {
        let report = Arc::new(|_| {});
        let content = &self.inner.content;
        let fetcher = Fetcher { registries, registry, content, report, writing: TaskTracker::new() };
        let fetched = fetcher.fetch(blob, &Growing::new()).await;
        fetcher.writing.close();
        fetcher.writing.wait().await;
        fetched
    }
}

fn steps_of(what: &str, manifest: &Manifest, config: &[u8]) -> Result<HashMap<Digest, Vec<Layer>>> {
    let wrong = |e: serde_json::Error| Error::Manifest { what: what.to_owned(), message: format!("malformed: {e}") };
    if manifest.config.media_type == CONFIG {
        let steps: Steps = serde_json::from_slice(config).map_err(wrong)?;
        let layers = if steps.diff_ids.is_empty() { &[][..] } else { &manifest.layers };
        return steps.read(what, layers);
    }
    let mut config: serde_json::Value = serde_json::from_slice(config).map_err(wrong)?;
    match config.get_mut(INLINE).map(serde_json::Value::take) {
        Some(steps) => serde_json::from_value::<Steps>(steps).map_err(wrong)?.read(what, &manifest.layers),
        None => Err(nothing(what)),
    }
}

fn nothing(what: &str) -> Error {
    let message = "neither a cache of builds nor an image that has one with it".to_owned();
    Error::Manifest { what: what.to_owned(), message }
}

fn choose<'a>(index: &'a Index, platform: &Platform) -> Option<&'a Descriptor> {
    platform.select(&index.manifests)
}

fn blob_path(folder: &Path, digest: &Digest) -> PathBuf {
    folder.join("blobs").join(digest.algorithm()).join(digest.hex())
}
