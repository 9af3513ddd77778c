//! The persisted index: which images there are, what they are called and what they consist of.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::content::{write_atomic, write_whole};
use crate::digest::chain_ids;
use crate::error::At;
use crate::manifest::Descriptor;
use crate::{Digest, Error, Reference, Result};

/// A layer as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Of the archive as it is packed.
    pub blob: Digest,
    pub size: u64,
    pub media_type: String,
    /// Of the archive itself.
    pub diff_id: Digest,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Digest of the config: the image's id.
    pub id: Digest,
    pub manifest: Descriptor,
    /// Indexes the manifest was reached through; kept so that a pull by their digest is known.
    #[serde(default)]
    pub indexes: Vec<Descriptor>,
    /// The index that goes in the image's place when it leaves this machine: it was built with more than itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<Whole>,
    /// Normalised, with tag.
    #[serde(default)]
    pub references: BTreeSet<String>,
    /// `name@digest`, for each repository it came from.
    #[serde(default)]
    pub digests: BTreeSet<String>,
    /// Base layer first.
    pub layers: Vec<Layer>,
    /// Who needs the layers to stay although the image may lose its names.
    #[serde(default)]
    pub holds: BTreeSet<String>,
    /// When the image came here, and when it was last pulled, started or stopped; seconds since the epoch.
    #[serde(default)]
    pub added: u64,
    #[serde(default)]
    pub used: u64,
}

/// An index that was made here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Whole {
    pub index: Descriptor,
    /// The index's own, and those of all that it speaks of but the image.
    pub blobs: BTreeSet<Digest>,
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

pub(crate) fn chain_of(layers: &[Layer]) -> Vec<Digest> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    chain_ids(&diff_ids)
}

impl Record {
    pub fn chain(&self) -> Vec<Digest> {
        chain_of(&self.layers)
    }

    pub fn blobs(&self) -> impl Iterator<Item = &Digest> {
        [&self.id, &self.manifest.digest]
            .into_iter()
            .chain(self.indexes.iter().map(|d| &d.digest))
            .chain(self.layers.iter().map(|l| &l.blob))
            .chain(self.whole.iter().flat_map(|whole| &whole.blobs))
    }

    /// Whether it has a name in this repository, `registry/repository`.
    pub fn is_of(&self, repository: &str) -> bool {
        self.references.iter().chain(&self.digests).any(|name| Reference::is_in(name, repository))
    }

    fn unused(&self) -> bool {
        self.references.is_empty() && self.digests.is_empty() && self.holds.is_empty()
    }
}

#[derive(Default, Serialize, Deserialize)]
struct File {
    version: u32,
    images: Vec<Record>,
}

/// In memory; `save` makes it last.
#[derive(Default)]
pub(crate) struct Index {
    path: PathBuf,
    images: BTreeMap<Digest, Record>,
}

impl Index {
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Index { path: path.to_owned(), images: BTreeMap::new() });
            }
            Err(e) => return Err(e).at("read", path),
        };
        let file: File = serde_json::from_slice(&bytes).map_err(|e| Error::Manifest {
            what: path.display().to_string(),
            message: format!("damaged index: {e}"),
        })?;
        if file.version != 1 {
            let message = format!("written by another version of the program (format {})", file.version);
            return Err(Error::Manifest { what: path.display().to_string(), message });
        }
        let images = file.images.into_iter().map(|r| (r.id.clone(), r)).collect();
        Ok(Index { path: path.to_owned(), images })
    }

    /// Makes a change that lasts; one that cannot be written down is taken back.
    pub fn change(&mut self, change: impl FnOnce(&mut Self)) -> Result<()> {
        self.change_and(Self::save, change)
    }

    /// As `change`, written as `save_soon` does.
    pub fn change_soon(&mut self, change: impl FnOnce(&mut Self)) -> Result<()> {
        self.change_and(Self::save_soon, change)
    }

    fn change_and(&mut self, save: fn(&Self) -> Result<()>, change: impl FnOnce(&mut Self)) -> Result<()> {
        let before = self.images.clone();
        change(self);
        save(self).inspect_err(|_| self.images = before)
    }

    pub fn save(&self) -> Result<()> {
        write_atomic(&self.path, &self.encode()?)
    }

    /// As `save`, but after a power loss the file may be the one before. Enough for holds: their containers are gone
    /// then, too.
    pub fn save_soon(&self) -> Result<()> {
        write_whole(&self.path, &self.encode()?)
    }

    fn encode(&self) -> Result<Vec<u8>> {
        let file = File { version: 1, images: self.images.values().cloned().collect() };
        serde_json::to_vec_pretty(&file)
            .map_err(|e| Error::Manifest { what: self.path.display().to_string(), message: e.to_string() })
    }

    pub fn images(&self) -> impl Iterator<Item = &Record> {
        self.images.values()
    }

    pub fn get_mut(&mut self, id: &Digest) -> Option<&mut Record> {
        self.images.get_mut(id)
    }

    pub fn by_id(&self, id: &Digest) -> Option<&Record> {
        self.images.get(id)
    }

    pub fn forget(&mut self, id: &Digest) {
        self.images.remove(id);
    }

    /// Adds an image or the new names of a known one; its names leave whichever image had them.
    pub fn insert(&mut self, record: Record) {
        for other in self.images.values_mut().filter(|o| o.id != record.id) {
            other.references.retain(|r| !record.references.contains(r));
        }
        match self.images.get_mut(&record.id) {
            None => {
                self.images.insert(record.id.clone(), record);
            }
            Some(known) => {
                known.references.extend(record.references);
                known.digests.extend(record.digests);
                known.holds.extend(record.holds);
                known.used = known.used.max(record.used);
                for index in record.indexes {
                    if known.indexes.iter().all(|i| i.digest != index.digest) {
                        known.indexes.push(index);
                    }
                }
                // The same config may be packed anew (another compression): the newest packing counts.
                known.manifest = record.manifest;
                known.whole = record.whole;
                known.layers = record.layers;
            }
        }
    }

    /// By id, id without algorithm, id prefix of at least 6 digits, reference, or `name@digest`.
    pub fn find(&self, wanted: &str) -> Result<Option<&Record>> {
        if let Ok(id) = Digest::parse(wanted) {
            return Ok(self.images.get(&id));
        }
        if let Ok(reference) = Reference::parse(wanted) {
            let found = match &reference.digest {
                Some(digest) => {
                    let full = format!("{}@{digest}", reference.name());
                    self.images.values().find(|r| r.digests.contains(&full))
                }
                None => {
                    let full = reference.to_string();
                    self.images.values().find(|r| r.references.contains(&full))
                }
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
        if hex.len() < 6 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let mut matches = self.images.values().filter(|r| r.id.hex().starts_with(hex));
        match (matches.next(), matches.next()) {
            (Some(_), Some(_)) => Err(Error::Ambiguous(wanted.to_owned())),
            (found, _) => Ok(found),
        }
    }

    /// Takes one name away; returns whether the image went with it.
    pub fn untag(&mut self, id: &Digest, reference: &str) -> bool {
        let Some(record) = self.images.get_mut(id) else { return false };
        if let Ok(parsed) = Reference::parse(reference) {
            let by_digest = parsed.digest.as_ref().map(|d| format!("{}@{d}", parsed.name()));
            match by_digest {
                Some(full) => {
                    record.digests.remove(&full);
                }
                None => {
                    record.references.remove(&parsed.to_string());
                }
            }
            // A repository's last tag takes the repository's digests along.
            let prefix = format!("{}:", parsed.name());
            if !record.references.iter().any(|r| r.starts_with(&prefix)) {
                let prefix = format!("{}@", parsed.name());
                record.digests.retain(|d| !d.starts_with(&prefix));
            }
        }
        self.drop_if_unused(id)
    }

    pub fn drop_if_unused(&mut self, id: &Digest) -> bool {
        let unused = self.images.get(id).is_some_and(Record::unused);
        if unused {
            self.images.remove(id);
        }
        unused
    }

    /// Blobs and chains that must stay.
    pub fn live(&self) -> (HashSet<Digest>, HashSet<Digest>) {
        let blobs = self.images.values().flat_map(Record::blobs).cloned().collect();
        let chains = self.images.values().flat_map(Record::chain).collect();
        (blobs, chains)
    }
}
