//! Images made of layers that builds made: one manifest, or an index of several with what is stated about them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::content::Pin;
use crate::digest::Hasher;
use crate::index::{Layer, Whole};
use crate::manifest::{Descriptor, Index, Manifest, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Platform};
use crate::store::{ImageStore, blocking};
use crate::{Digest, Error, Image, Reference, Result};

/// What a statement in an attestation manifest is, and which kind each is.
const IN_TOTO: &str = "application/vnd.in-toto+json";
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
/// As docker's tools know attestations, in indexes and as referrers.
const ATTESTATION: &str = "application/vnd.docker.attestation.manifest.v1+json";
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

/// How a layer's archive is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    #[default]
    Uncompressed,
    Gzip,
    Zstd,
}

impl Compression {
    fn media_type(self) -> String {
        match self {
            Compression::Uncompressed => OCI_LAYER.to_owned(),
            Compression::Gzip => format!("{OCI_LAYER}+gzip"),
            Compression::Zstd => format!("{OCI_LAYER}+zstd"),
        }
    }
}

/// One image of several that make an index.
#[derive(Clone, Debug, Default)]
pub struct Variant {
    /// As it is to be written.
    pub config: Vec<u8>,
    /// Base first; here and kept.
    pub layers: Vec<Layer>,
    pub platform: Option<Platform>,
    pub statements: Vec<Statement>,
}

/// What is stated about an image, in-toto's way.
#[derive(Clone, Debug)]
pub struct Statement {
    pub predicate_type: String,
    /// The predicate alone; whom it is about is added.
    pub predicate: serde_json::Value,
}

/// A manifest that was written.
struct Written {
    descriptor: Descriptor,
    manifest: Manifest,
}

impl Written {
    fn blobs(&self) -> impl Iterator<Item = Digest> {
        let parts = self.manifest.layers.iter().chain([&self.manifest.config, &self.descriptor]);
        parts.map(|part| part.digest.clone())
    }
}

impl ImageStore {
    /// Makes an image of layers that are here and kept, under these names; with `compression` its own layers are packed
    /// so.
    pub async fn assemble(
        &self,
        config: Vec<u8>,
        layers: Vec<Layer>,
        names: &[String],
        compression: Compression,
    ) -> Result<Image> {
        self.assemble_all(vec![Variant { config, layers, ..Variant::default() }], names, compression).await
    }

    /// Makes images of one build. Several, or with statements, become an index, which leaves this machine in the place of
    /// the one that this machine knows by the names: the one for its own platform, else the first.
    pub async fn assemble_all(
        &self,
        variants: Vec<Variant>,
        names: &[String],
        compression: Compression,
    ) -> Result<Image> {
        let references = names
            .iter()
            .map(|name| {
                let parsed = Reference::parse(name)?;
                if parsed.digest.is_some() {
                    let reason = "an image is built under a tag";
                    return Err(Error::InvalidReference { reference: name.clone(), reason });
                }
                Ok(parsed)
            })
            .collect::<Result<Vec<_>>>()?;
        let store = self.clone();
        blocking(move || store.assemble_now(&variants, &references, compression)).await
    }

    fn assemble_now(&self, variants: &[Variant], references: &[Reference], compression: Compression) -> Result<Image> {
        let mut pins = Vec::new();
        let images = variants
            .iter()
            .map(|variant| self.write_image(variant, compression, &mut pins))
            .collect::<Result<Vec<_>>>()?;
        let host = Platform::host();
        let own = variants.iter().position(|variant| variant.platform.as_ref().is_some_and(|of| host.runs(of)));
        let own = own.unwrap_or(0);
        let Some(image) = images.get(own) else {
            return Err(Error::Archive("an image of nothing".to_owned()));
        };
        let whole = match variants {
            [only] if only.statements.is_empty() => None,
            all => Some(self.write_index(all, &images, references, &mut pins)?),
        };
        let tops = [Some(&image.descriptor), whole.as_ref().map(|whole| &whole.index)];
        let digests = tops.into_iter().flatten().flat_map(|top| {
            references.iter().map(|name| format!("{}@{}", name.name(), top.digest)).collect::<Vec<_>>()
        });
        let (digests, names) = (digests.collect(), references.iter().map(ToString::to_string).collect());
        let record =
            self.register_whole(image.descriptor.clone(), &image.manifest, Vec::new(), whole, names, digests)?;
        drop(pins);
        self.image(&record)
    }

    fn write_image(&self, variant: &Variant, compression: Compression, pins: &mut Vec<Pin>) -> Result<Written> {
        let mut descriptors = Vec::new();
        for layer in &variant.layers {
            let (pin, descriptor) = self.compressed(layer, compression)?;
            pins.push(pin);
            descriptors.push(descriptor);
        }
        let config = self.write_blob(OCI_CONFIG, &variant.config, pins)?;
        self.write_manifest(Manifest::image(config, descriptors), pins)
    }

    fn write_index(
        &self,
        variants: &[Variant],
        images: &[Written],
        references: &[Reference],
        pins: &mut Vec<Pin>,
    ) -> Result<Whole> {
        let mut manifests = Vec::new();
        let mut blobs = BTreeSet::new();
        for (variant, image) in variants.iter().zip(images) {
            manifests.push(Descriptor { platform: variant.platform.clone(), ..image.descriptor.clone() });
            blobs.extend(image.blobs());
        }
        for (variant, image) in variants.iter().zip(images).filter(|(variant, _)| !variant.statements.is_empty()) {
            let attested = self.write_statements(variant, image, references, pins)?;
            blobs.extend(attested.blobs());
            let unknown = "unknown".to_owned();
            manifests.push(Descriptor {
                platform: Some(Platform { os: unknown.clone(), architecture: unknown, variant: None }),
                annotations: Some(BTreeMap::from([
                    (REFERENCE_DIGEST.to_owned(), image.descriptor.digest.to_string()),
                    (REFERENCE_TYPE.to_owned(), "attestation-manifest".to_owned()),
                ])),
                ..attested.descriptor
            });
        }
        let index = Index { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests };
        let index = self.write_blob(OCI_INDEX, &json(&index)?, pins)?;
        blobs.insert(index.digest.clone());
        Ok(Whole { index, blobs })
    }

    /// Statements as layers of a manifest whose configuration is that of an image for no machine: registries that know
    /// nothing else take it, and those that know referrers list it.
    fn write_statements(
        &self,
        variant: &Variant,
        about: &Written,
        references: &[Reference],
        pins: &mut Vec<Pin>,
    ) -> Result<Written> {
        let digest = &about.descriptor.digest;
        let (algorithm, hex) = (digest.algorithm().to_string(), digest.hex());
        let named = references.iter().map(|name| {
            let tag = name.tag.as_deref().unwrap_or("latest");
            let platform =
                variant.platform.as_ref().map(|of| format!("?platform={}", of.to_string().replace('/', "%2F")));
            format!("pkg:docker/{}@{tag}{}", familiar(&name.name()), platform.unwrap_or_default())
        });
        let names: Vec<String> = if references.is_empty() { vec!["_".to_owned()] } else { named.collect() };
        let subjects: Vec<_> =
            names.iter().map(|name| serde_json::json!({"name": name, "digest": {&algorithm: hex}})).collect();
        let mut layers = Vec::new();
        for Statement { predicate_type, predicate } in &variant.statements {
            let statement = serde_json::json!({
                "_type": "https://in-toto.io/Statement/v1",
                "subject": subjects,
                "predicateType": predicate_type,
                "predicate": predicate,
            });
            let mut layer = self.write_blob(IN_TOTO, &json(&statement)?, pins)?;
            layer.annotations = Some(BTreeMap::from([(PREDICATE_TYPE.to_owned(), predicate_type.clone())]));
            layers.push(layer);
        }
        let diff_ids: Vec<&Digest> = layers.iter().map(|layer| &layer.digest).collect();
        let config = serde_json::json!({
            "architecture": "unknown", "os": "unknown", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.write_blob(OCI_CONFIG, &json(&config)?, pins)?;
        let mut manifest = Manifest::image(config, layers);
        manifest.artifact_type = Some(ATTESTATION.to_owned());
        manifest.subject = Some(about.descriptor.clone());
        self.write_manifest(manifest, pins)
    }

    fn write_manifest(&self, manifest: Manifest, pins: &mut Vec<Pin>) -> Result<Written> {
        let descriptor = self.write_blob(OCI_MANIFEST, &json(&manifest)?, pins)?;
        Ok(Written { descriptor, manifest })
    }

    pub(super) fn write_blob(&self, media_type: &str, bytes: &[u8], pins: &mut Vec<Pin>) -> Result<Descriptor> {
        let pin = self.inner.content.put(media_type, bytes, None)?;
        let descriptor = Descriptor::new(media_type, pin.digest().clone(), bytes.len() as u64);
        pins.push(pin);
        Ok(descriptor)
    }

    /// A layer as it is, or packed as wanted.
    pub(super) fn compressed(&self, layer: &Layer, wanted: Compression) -> Result<(Pin, Descriptor)> {
        let content = &self.inner.content;
        let pin = content.pin(&layer.blob);
        let plain = layer.blob == layer.diff_id;
        if wanted == Compression::Uncompressed || !plain {
            let media_type = if layer.media_type.is_empty() { OCI_LAYER } else { &layer.media_type };
            return Ok((pin, Descriptor::new(media_type, layer.blob.clone(), layer.size)));
        }
        let blob = content.writer(Hasher::sha256())?;
        let failed = |e| Error::io(format!("compress layer {}", layer.blob), e);
        let mut from = content.open_blob(&layer.blob)?;
        let blob = match wanted {
            Compression::Zstd => {
                let mut to = zstd::stream::write::Encoder::new(blob, 3).map_err(failed)?;
                io::copy(&mut from, &mut to).map_err(failed)?;
                to.finish().map_err(failed)?
            }
            _ => {
                let mut to = flate2::GzBuilder::new().write(blob, flate2::Compression::new(4));
                io::copy(&mut from, &mut to).map_err(failed)?;
                to.finish().map_err(failed)?
            }
        };
        let (pin, size) = blob.finish()?;
        let descriptor = Descriptor::new(&wanted.media_type(), pin.digest().clone(), size);
        Ok((pin, descriptor))
    }
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::Archive(e.to_string()))
}

/// A repository as docker writes it: its hub goes without saying.
fn familiar(name: &str) -> &str {
    let short = name.strip_prefix("docker.io/").unwrap_or(name);
    short.strip_prefix("library/").filter(|_| short != name).unwrap_or(short)
}
