//! Reads docker-archive and oci-archive as a stream: one pass, members in any order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::sync::Arc;

use serde::Deserialize;
use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

use crate::compress::decompress;
use crate::content::{Content, Pin};
use crate::manifest::{
    Descriptor, Document, Index, MAX_MANIFEST_BYTES, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Platform,
};
use crate::store::{Image, ImageStore, blocking};
use crate::unpack::tarball::{Kind, TarReader};
use crate::{Digest, Error, Reference, Result};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const MAX_MEMBERS: usize = 100_000;
/// All documents kept in memory together.
const MAX_DOCUMENT_BYTES: u64 = 64 << 20;

/// An image found in an archive, all its blobs stored.
struct Found {
    descriptor: Descriptor,
    manifest: Manifest,
    indexes: Vec<Descriptor>,
    names: BTreeSet<String>,
}

/// A task of its own: whoever stops waiting for it leaves nothing half done, either.
pub(crate) async fn import(store: &ImageStore, archive: impl AsyncRead + Send + Unpin + 'static) -> Result<Vec<Image>> {
    let store = store.clone();
    let work = tokio::spawn(async move {
        let imported = bring(&store, archive).await;
        if imported.is_err() {
            store.clear(Vec::new()).await;
        }
        imported
    });
    work.await.unwrap_or_else(|e| Err(Error::Interrupted(e.to_string())))
}

async fn bring(store: &ImageStore, archive: impl AsyncRead + Send + Unpin + 'static) -> Result<Vec<Image>> {
    let content = store.inner.content.clone();
    let limit = store.inner.limits.bytes;
    let bridge = SyncIoBridge::new(archive);
    let (found, _pins) = blocking(move || {
        let mut scan = Scan {
            content,
            limit,
            blobs: BTreeMap::new(),
            links: BTreeMap::new(),
            small: BTreeMap::new(),
            pins: Vec::new(),
        };
        scan.read(bridge)?;
        let found = scan.images()?;
        Ok((found, scan.pins))
    })
    .await?;
    if found.is_empty() {
        return Err(Error::Archive("no image for this machine's platform in the archive".to_owned()));
    }
    let mut images = Vec::new();
    for Found { descriptor, manifest, indexes, names } in found {
        let digests = names
            .iter()
            .filter_map(|n| Some(format!("{}@{}", Reference::parse(n).ok()?.name(), descriptor.digest)))
            .collect::<BTreeSet<_>>();
        let record = store.describe(descriptor.clone(), &manifest, indexes.clone(), names.clone(), digests.clone())?;
        let _lease = store.inner.snapshots.lease(&record.chain());
        store.unpack(&record, &HashMap::new(), &|_| {}).await?;
        let record = store.register(descriptor, &manifest, indexes, names, digests)?;
        images.push(store.image(&record)?);
    }
    Ok(images)
}

/// What the archive contains: large members are blobs in the store, small documents are also kept here.
struct Scan {
    content: Arc<Content>,
    /// Bytes an archive may bring, however small it is compressed.
    limit: u64,
    blobs: BTreeMap<String, (Digest, u64)>,
    links: BTreeMap<String, String>,
    small: BTreeMap<String, Vec<u8>>,
    pins: Vec<Pin>,
}

impl Scan {
    fn read(&mut self, archive: impl Read + Send) -> Result<()> {
        let broken = |e: std::io::Error| Error::Archive(e.to_string());
        let mut tar = TarReader::new(decompress(archive).map_err(broken)?);
        let (mut count, mut total, mut in_memory) = (0, 0u64, 0u64);
        while let Some(member) = tar.next_member().map_err(broken)? {
            count += 1;
            if count > MAX_MEMBERS {
                return Err(Error::Archive(format!("more than {MAX_MEMBERS} members")));
            }
            total = total.saturating_add(member.size);
            if total > self.limit {
                return Err(Error::Archive(format!("more than {} bytes", self.limit)));
            }
            let path = member_name(&member.path)?;
            match member.kind {
                Kind::File if is_document(&path) => {
                    in_memory = in_memory.saturating_add(member.size);
                    if in_memory > MAX_DOCUMENT_BYTES {
                        return Err(Error::Archive(format!("more than {MAX_DOCUMENT_BYTES} bytes of JSON documents")));
                    }
                    if member.size > MAX_MANIFEST_BYTES {
                        return Err(Error::Archive(format!("{path} is larger than {MAX_MANIFEST_BYTES} bytes")));
                    }
                    let mut bytes = Vec::new();
                    tar.read_to_end(&mut bytes).map_err(broken)?;
                    if path.ends_with(".json") && path != "index.json" && path != "manifest.json" {
                        // A docker-archive's config: also a blob.
                        let pin = self.content.put(&path, &bytes, None)?;
                        self.found(path.clone(), pin, bytes.len() as u64);
                    }
                    self.small.insert(path, bytes);
                }
                Kind::File => {
                    let expected = blob_digest(&path);
                    let (pin, size) = self.content.ingest(&path, &mut tar, expected.as_ref())?;
                    if size != member.size {
                        let (expected, actual) = (member.size, size);
                        return Err(Error::SizeMismatch { what: path, expected, actual });
                    }
                    self.found(path, pin, size);
                }
                Kind::Symlink | Kind::HardLink => {
                    let target = String::from_utf8_lossy(&member.link).into_owned();
                    let base = path.rsplit_once('/').map_or("", |(dir, _)| dir);
                    let target =
                        if member.kind == Kind::Symlink { clean(&format!("{base}/{target}")) } else { clean(&target) };
                    self.links.insert(path, target);
                }
                _ => {}
            }
        }
        // Let the decompressor reach its end, so that a truncated archive is noticed.
        std::io::copy(&mut tar.into_inner(), &mut std::io::sink()).map_err(broken)?;
        Ok(())
    }

    fn found(&mut self, path: String, pin: Pin, size: u64) {
        self.blobs.insert(path, (pin.digest().clone(), size));
        self.pins.push(pin);
    }

    fn blob(&self, path: &str) -> Result<(Digest, u64)> {
        let mut path = path;
        for _ in 0..8 {
            if let Some(found) = self.blobs.get(path) {
                return Ok(found.clone());
            }
            match self.links.get(path) {
                Some(target) => path = target,
                None => break,
            }
        }
        Err(Error::Archive(format!("{path} is missing")))
    }

    fn images(&mut self) -> Result<Vec<Found>> {
        // Recent `docker save` writes both layouts; manifest.json has the names as people know them.
        let mut found = match self.small.get("index.json") {
            Some(index) => self.oci(index)?,
            None => Vec::new(),
        };
        if let Some(manifest) = self.small.get("manifest.json") {
            let pins = self.docker(manifest, &mut found)?;
            self.pins.extend(pins);
        } else if !self.small.contains_key("index.json") {
            return Err(Error::Archive(
                "neither an oci-archive (index.json) nor a docker-archive (manifest.json)".into(),
            ));
        }
        Ok(found)
    }

    fn oci(&self, index: &[u8]) -> Result<Vec<Found>> {
        let index: Index =
            serde_json::from_slice(index).map_err(|e| Error::Archive(format!("malformed index.json: {e}")))?;
        let mut found = Vec::new();
        for descriptor in index.manifests {
            let names = annotated_names(&descriptor);
            let what = descriptor.digest.to_string();
            let Document::Index(nested) = self.document(&descriptor)? else {
                found.extend(self.manifest(descriptor, Vec::new(), names)?);
                continue;
            };
            // A multi-platform image may be saved with only some of its platforms present.
            let chosen = Platform::host().select(&nested.manifests).filter(|d| self.content_has(d)).cloned();
            match chosen {
                Some(chosen) => {
                    let mut indexes = vec![descriptor];
                    for index in &mut indexes {
                        index.annotations = None;
                    }
                    found.extend(self.manifest(chosen, indexes, names)?);
                }
                None => tracing::info!(index = %what, "skip image without a variant for this platform"),
            }
        }
        Ok(found)
    }

    fn manifest(
        &self,
        mut descriptor: Descriptor,
        indexes: Vec<Descriptor>,
        names: BTreeSet<String>,
    ) -> Result<Option<Found>> {
        let Document::Manifest(manifest) = self.document(&descriptor)? else {
            return Err(Error::Archive(format!("{} is an index inside an index", descriptor.digest)));
        };
        if descriptor.annotation("vnd.docker.reference.type").is_some() {
            return Ok(None); // build attestations
        }
        for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
            let (_, size) = self.blob(&blob_path(&blob.digest))?;
            if size != blob.size {
                let what = blob.digest.to_string();
                return Err(Error::SizeMismatch { what, expected: blob.size, actual: size });
            }
        }
        descriptor.annotations = None;
        Ok(Some(Found { descriptor, manifest, indexes, names }))
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        let what = descriptor.digest.to_string();
        let (digest, size) = self.blob(&blob_path(&descriptor.digest))?;
        if size > MAX_MANIFEST_BYTES {
            return Err(Error::Archive(format!("manifest {what} is larger than {MAX_MANIFEST_BYTES} bytes")));
        }
        Document::parse(&what, &descriptor.media_type, &self.content.read(&what, &digest)?)
    }

    fn content_has(&self, descriptor: &Descriptor) -> bool {
        self.blobs.contains_key(&blob_path(&descriptor.digest))
    }

    fn docker(&self, manifest: &[u8], found: &mut Vec<Found>) -> Result<Vec<Pin>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Entry {
            config: String,
            #[serde(default)]
            repo_tags: Option<Vec<String>>,
            #[serde(default)]
            layers: Option<Vec<String>>,
        }
        let entries: Vec<Entry> =
            serde_json::from_slice(manifest).map_err(|e| Error::Archive(format!("malformed manifest.json: {e}")))?;
        let mut pins = Vec::new();
        for entry in entries {
            let names = entry
                .repo_tags
                .unwrap_or_default()
                .iter()
                .map(|t| Ok(Reference::parse(t)?.to_string()))
                .collect::<Result<BTreeSet<_>>>()?;
            let (config, config_size) = self.blob(&clean(&entry.config))?;
            if let Some(known) = found.iter_mut().find(|f| f.manifest.config.digest == config) {
                known.names.extend(names);
                continue;
            }
            let mut layers = Vec::new();
            for path in entry.layers.unwrap_or_default() {
                let (digest, size) = self.blob(&clean(&path))?;
                layers.push(Descriptor::new(OCI_LAYER, digest, size));
            }
            // A docker-archive has no manifest of its own; this one makes the image exportable and addressable.
            let manifest = Manifest::image(Descriptor::new(OCI_CONFIG, config, config_size), layers);
            let bytes = serde_json::to_vec(&manifest).map_err(|e| Error::Archive(e.to_string()))?;
            let pin = self.content.put("manifest", &bytes, None)?;
            let descriptor = Descriptor::new(OCI_MANIFEST, pin.digest().clone(), bytes.len() as u64);
            pins.push(pin);
            found.push(Found { descriptor, manifest, indexes: Vec::new(), names });
        }
        Ok(pins)
    }
}

/// Full names only: a bare tag such as `latest` in `ref.name` does not say of what.
fn annotated_names(descriptor: &Descriptor) -> BTreeSet<String> {
    [descriptor.annotation(CONTAINERD_NAME), descriptor.annotation(REF_NAME).filter(|n| n.contains(['/', ':']))]
        .into_iter()
        .flatten()
        .filter_map(|name| Reference::parse(name).ok())
        .filter(|reference| reference.digest.is_none())
        .map(|reference| reference.to_string())
        .collect()
}

fn is_document(path: &str) -> bool {
    path == "oci-layout"
        || path == "repositories"
        || (!path.starts_with("blobs/") && !path.contains('/') && path.ends_with(".json"))
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

fn blob_digest(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    Digest::parse(&format!("{algorithm}:{hex}")).ok()
}

fn member_name(path: &[u8]) -> Result<String> {
    match std::str::from_utf8(path) {
        Ok(path) => Ok(clean(path)),
        Err(_) => Err(Error::Archive("member name is not UTF-8".to_owned())),
    }
}

/// A path without `.`, `..` and doubled slashes, relative to its root. Lexical: nothing is looked up on disk.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
