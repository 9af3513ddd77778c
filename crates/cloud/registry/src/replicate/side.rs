//! The two sides of a replication, as far as both can be asked the same.

use std::collections::BTreeMap;

use dhow_image::media::MAX_MANIFEST_BYTES;
use dhow_image::{Digest, Peer, PeerOptions};

use super::{Direction, Run, elsewhere};
use crate::manifest::Parsed;
use crate::{Error, Inner, Result};

#[async_trait::async_trait]
pub trait Side: Send + Sync {
    async fn tags(&self) -> Result<Vec<String>>;

    /// Which manifest there is under a tag or digest.
    async fn digest(&self, target: &str) -> Result<Option<Digest>>;

    async fn manifest(&self, digest: &Digest) -> Result<(Parsed, Vec<u8>)>;

    async fn referrers(&self, subject: &Digest) -> Result<Vec<Digest>>;

    /// Of an image's config.
    async fn labels(&self, config: &Digest) -> Result<BTreeMap<String, String>>;
}

/// A repository of ours.
pub struct Ours<'a> {
    pub inner: &'a Inner,
    pub repository: String,
}

/// One of the other registry's.
pub struct Theirs {
    pub peer: Peer,
    /// Its name there.
    pub repository: String,
}

impl Theirs {
    pub async fn connect(run: &Run<'_>, repository: &str) -> Result<Self> {
        let task = run.task;
        let push = task.direction == Direction::Push;
        let options = PeerOptions { push, delete: push && task.delete, ..task.options.clone() };
        let reference = task.there(repository)?;
        let peer = Peer::connect(&run.inner.config.registries, &reference, &options).await;
        Ok(Self { peer: peer.map_err(|error| elsewhere(&error))?, repository: reference.repository })
    }

    pub async fn repositories(&self) -> Result<Vec<String>> {
        self.peer.repositories().await.map_err(|error| elsewhere(&error))
    }
}

fn labels_of(config: &[u8]) -> BTreeMap<String, String> {
    let config: serde_json::Value = serde_json::from_slice(config).unwrap_or_default();
    serde_json::from_value(config["config"]["Labels"].clone()).unwrap_or_default()
}

#[async_trait::async_trait]
impl Side for Ours<'_> {
    async fn tags(&self) -> Result<Vec<String>> {
        Ok(self.inner.catalog.tag_names(&self.repository, None, 0).await?.0)
    }

    async fn digest(&self, target: &str) -> Result<Option<Digest>> {
        let digest = match Digest::parse(target) {
            Ok(digest) => Some(digest),
            Err(_) => self.inner.catalog.tag(&self.repository, target).await?.map(|tag| tag.digest),
        };
        let Some(digest) = digest else { return Ok(None) };
        Ok(self.inner.catalog.manifest(&self.repository, &digest).await?.map(|_| digest))
    }

    async fn manifest(&self, digest: &Digest) -> Result<(Parsed, Vec<u8>)> {
        let record = self.inner.catalog.manifest(&self.repository, digest).await?;
        let record = record.ok_or_else(|| Error::manifest_unknown(digest.as_str()))?;
        let bytes = self.inner.whole(digest).await?.ok_or_else(|| Error::manifest_unknown(digest.as_str()))?;
        Ok((Parsed::parse(Some(&record.media_type), &bytes)?, bytes))
    }

    async fn referrers(&self, subject: &Digest) -> Result<Vec<Digest>> {
        let found = self.inner.catalog.referrers(&self.repository, subject, None, 0).await?.0;
        Ok(digests(&found))
    }

    async fn labels(&self, config: &Digest) -> Result<BTreeMap<String, String>> {
        Ok(self.inner.whole(config).await?.map(|bytes| labels_of(&bytes)).unwrap_or_default())
    }
}

pub fn digests(descriptors: &[serde_json::Value]) -> Vec<Digest> {
    let digest = |descriptor: &serde_json::Value| Digest::parse(descriptor["digest"].as_str()?).ok();
    descriptors.iter().filter_map(digest).collect()
}

#[async_trait::async_trait]
impl Side for Theirs {
    async fn tags(&self) -> Result<Vec<String>> {
        self.peer.tags().await.map_err(|error| elsewhere(&error))
    }

    async fn digest(&self, target: &str) -> Result<Option<Digest>> {
        self.peer.digest(target).await.map_err(|error| elsewhere(&error))
    }

    async fn manifest(&self, digest: &Digest) -> Result<(Parsed, Vec<u8>)> {
        let found = self.peer.manifest(digest.as_str()).await.map_err(|error| elsewhere(&error))?;
        let found = found.ok_or_else(|| Error::manifest_unknown(digest.as_str()))?;
        Ok((Parsed::parse(Some(&found.media_type), &found.bytes)?, found.bytes))
    }

    async fn referrers(&self, subject: &Digest) -> Result<Vec<Digest>> {
        Ok(digests(&self.peer.referrers(subject).await.map_err(|error| elsewhere(&error))?))
    }

    async fn labels(&self, config: &Digest) -> Result<BTreeMap<String, String>> {
        let (mut blob, _) = self.peer.blob(config, 0).await.map_err(|error| elsewhere(&error))?;
        let mut bytes = Vec::new();
        while let Some(piece) = blob.next().await.map_err(|error| elsewhere(&error))? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > MAX_MANIFEST_BYTES {
                return Err(Error::Internal(format!("the config {config} is too large to look for labels in it")));
            }
        }
        Ok(labels_of(&bytes))
    }
}
