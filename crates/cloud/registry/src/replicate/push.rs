//! From here to another registry.

use std::sync::Arc;

use dhow_image::media::{MAX_MANIFEST_BYTES, OCI_INDEX};
use dhow_image::{Digest, Opener, Pushed};
use futures::StreamExt;
use serde_json::{Value, json};

use super::side::{Ours, Theirs};
use super::{Run, elsewhere};
use crate::content::key;
use crate::manifest::Parsed;
use crate::{Error, Result};

impl Run<'_> {
    pub(super) async fn send_blob(&self, ours: &Ours<'_>, theirs: &Theirs, digest: &Digest) -> Result<()> {
        if ours.inner.catalog.linked(&ours.repository, digest).await?.is_none() {
            return Err(Error::blob_unknown(digest));
        }
        let size = ours.inner.size(digest).await?.ok_or_else(|| Error::blob_unknown(digest))?;
        let elsewhere_there = self.sent.lock().get(digest).filter(|name| **name != theirs.repository).cloned();
        let mount_from: Vec<String> = elsewhere_there.into_iter().collect();
        let pushed = theirs.peer.push_blob(digest, size, self.opener(digest), &mount_from).await;
        match pushed.map_err(|error| elsewhere(&error))? {
            Pushed::Sent => self.report.lock().bytes += size,
            Pushed::Mounted | Pushed::Present => {}
        }
        self.sent.lock().insert(digest.clone(), theirs.repository.clone());
        Ok(())
    }

    /// The bytes of a blob of ours, no faster than they may go.
    fn opener(&self, digest: &Digest) -> Opener {
        let (blobs, key, throttle) = (self.inner.blobs.clone(), key(digest), self.throttle.clone());
        Arc::new(move |range| {
            let (blobs, key, throttle) = (blobs.clone(), key.clone(), throttle.clone());
            Box::pin(async move {
                let stream = blobs.get(&key, range).await.map_err(std::io::Error::other)?;
                let stream = stream.ok_or_else(|| std::io::Error::other("the blob is gone"))?;
                let stream = stream.then(move |piece| {
                    let throttle = throttle.clone();
                    async move {
                        let piece = piece.map_err(std::io::Error::other)?;
                        throttle.pass(piece.len()).await;
                        Ok(piece)
                    }
                });
                Ok(stream.boxed())
            })
        })
    }

    pub(super) async fn put_there(
        &self,
        theirs: &Theirs,
        digest: &Digest,
        tag: Option<&str>,
        parsed: &Parsed,
        bytes: Vec<u8>,
    ) -> Result<()> {
        self.throttle.pass(bytes.len()).await;
        let size = bytes.len();
        let target = tag.unwrap_or(digest.as_str());
        let listed = theirs.peer.push_manifest(target, &parsed.media_type, bytes).await.map_err(|e| elsewhere(&e))?;
        self.report.lock().bytes += size as u64;
        match &parsed.subject {
            Some(subject) if !listed => {
                list_by_tag(theirs, subject, &crate::catalog::descriptor_of(digest, parsed, size)).await
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn delete_there(&self, theirs: &Theirs, tag: &str) -> Result<bool> {
        let peer = &theirs.peer;
        let failed = |error: dhow_image::Error| elsewhere(&error);
        if peer.delete_manifest(tag).await.map_err(failed)? {
            return Ok(true);
        }
        // Registries from before tags could be deleted delete manifests, with all their tags.
        let Some(digest) = peer.digest(tag).await.map_err(failed)? else { return Ok(false) };
        for other in peer.tags().await.map_err(failed)?.iter().filter(|other| *other != tag) {
            if peer.digest(other).await.map_err(failed)?.as_ref() == Some(&digest) {
                let why = format!("the registry deletes no tags, and {other} names the same manifest");
                return Err(Error::Internal(why));
            }
        }
        match peer.delete_manifest(digest.as_str()).await.map_err(failed)? {
            true => Ok(true),
            false => Err(Error::Internal("the registry lets nothing be deleted".to_owned())),
        }
    }
}

/// Names a manifest among the referrers of its subject, where the registry does not do it: in the index under the tag that
/// stands for the list.
async fn list_by_tag(theirs: &Theirs, subject: &Digest, descriptor: &Value) -> Result<()> {
    let tag = format!("{}-{}", subject.algorithm(), subject.hex());
    let found = theirs.peer.manifest(&tag).await.map_err(|error| elsewhere(&error))?;
    let mut index: Value = match found {
        Some(found) => serde_json::from_slice(&found.bytes)
            .map_err(|error| Error::Internal(format!("the manifest {tag} there is no index: {error}")))?,
        None => json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] }),
    };
    let Some(entries) = index["manifests"].as_array_mut() else {
        return Err(Error::Internal(format!("the manifest {tag} there is no index")));
    };
    if entries.iter().any(|entry| entry["digest"] == descriptor["digest"]) {
        return Ok(());
    }
    entries.push(descriptor.clone());
    let bytes = index.to_string().into_bytes();
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(Error::Internal(format!("the index {tag} would become too large")));
    }
    theirs.peer.push_manifest(&tag, OCI_INDEX, bytes).await.map(drop).map_err(|error| elsewhere(&error))
}
