//! Changes to what a repository has: each one transaction that fails if the repository changed since it was looked at.

use std::collections::BTreeMap;

use bytes::Bytes;
use dhow_image::Digest;
use dhow_store::{Compare, KeyRange, Op, Revision, Txn};
use serde_json::json;

use super::{Catalog, Existence, Record, Seen, TagRecord, absent, encode, now, put, remove};
use crate::manifest::Parsed;
use crate::rules::{Rules, Tag};
use crate::{Code, Error, Result};

/// A manifest that comes to a repository.
pub struct Put<'a> {
    pub digest: &'a Digest,
    pub record: &'a Record,
    /// Its content, to wait for a file; without, that has to be linked already.
    pub content: Option<&'a Bytes>,
    /// Blobs that have to be there, as the manifests that it refers to; `None`: nothing has to.
    pub needed: Option<&'a [Digest]>,
    pub tags: &'a [String],
}

impl Catalog {
    /// Makes the changes if nothing else changed the repository since `seen`. Gives the state that they made, so that
    /// further changes fail if anyone comes in between; `None`: someone did.
    async fn change(
        &self,
        repository: &str,
        seen: Seen,
        mut compare: Vec<Compare>,
        mut success: Vec<Op>,
    ) -> Result<Option<Seen>> {
        let key = self.key('r', repository);
        compare.push(Compare::mod_revision(key.clone(), seen.revision));
        success.push(put(key, encode(&Existence { at: seen.at })?));
        let txn = Txn { compare, success, ..Txn::default() };
        let response = self.kv.txn(txn).await.map_err(Error::store("write the registry's records"))?;
        Ok(response.succeeded.then_some(Seen { revision: response.revision, ..seen }))
    }

    /// Adds a manifest under its tags. `false`: its content is no longer linked.
    pub async fn put_manifest(&self, repository: &str, put_in: &Put<'_>, rules: &Rules) -> Result<bool> {
        let Put { digest, record, content, needed, tags } = *put_in;
        loop {
            // First: what is taken away after this makes the transaction fail. A repository that does not exist could come
            // and go unnoticed, so it is made.
            let seen = self.seen(repository).await?;
            if seen.revision == 0 {
                let key = self.key('r', repository);
                self.txn(vec![absent(key.clone())], vec![put(key, encode(&Existence { at: seen.at })?)]).await?;
                continue;
            }
            let (mut compare, mut ops) = (Vec::new(), Vec::new());
            match content {
                Some(content) => {
                    (compare, ops) = self.link_ops(repository, digest, content.len() as u64, rules.quota).await?;
                    ops.push(put(self.fresh_key(digest), content.clone()));
                }
                None if self.linked(repository, digest).await?.is_none() => return Ok(false),
                None => {}
            }
            let mut missing = Vec::new();
            for blob in needed.unwrap_or_default() {
                if self.one(self.link_key(repository, blob)).await?.is_none() {
                    missing.push(blob.clone());
                }
            }
            for child in record.manifests.iter().filter(|_| needed.is_some()) {
                if self.one(self.manifest_key(repository, child)).await?.is_none() {
                    missing.push(child.clone());
                }
            }
            if !missing.is_empty() {
                return Err(Error::Missing(missing));
            }
            ops.push(put(self.manifest_key(repository, digest), encode(record)?));
            if let Some(subject) = &record.subject {
                ops.push(put(self.referrer_key(repository, subject, digest), encode(&descriptor(digest, record))?));
            }
            for tag in tags {
                let current = self.tag(repository, tag).await?;
                let same = current.as_ref().is_some_and(|current| current.digest == *digest);
                if current.is_some() && !same && rules.is_immutable(tag) {
                    let message = format!("the tag {tag} of {repository} is immutable and names another manifest");
                    return Err(Error::new(Code::Denied, message));
                }
                let at = now();
                ops.push(put(self.tag_key(repository, tag), encode(&TagRecord { digest: digest.clone(), at })?));
            }
            if self.change(repository, seen, compare, ops).await?.is_some() {
                return Ok(true);
            }
            if content.is_some() {
                self.until_not_doomed(digest).await?;
            }
        }
    }

    pub async fn delete_tag(&self, repository: &str, tag: &str) -> Result<bool> {
        loop {
            let seen = self.seen(repository).await?;
            let key = self.tag_key(repository, tag);
            if self.one(key.clone()).await?.is_none() {
                return Ok(false);
            }
            if self.change(repository, seen, Vec::new(), vec![remove(key)]).await?.is_some() {
                return Ok(true);
            }
        }
    }

    /// Takes away a manifest and all its tags, unless an index needs it or a tag must stay.
    pub async fn delete_manifest(&self, repository: &str, digest: &Digest, rules: &Rules) -> Result<bool> {
        loop {
            let state = self.state(repository).await?;
            if !state.manifests.iter().any(|(known, _)| known == digest) {
                return Ok(false);
            }
            if let Some((index, _)) = state.manifests.iter().find(|(_, record)| record.manifests.contains(digest)) {
                let message = format!("{digest} is part of the index {index}; delete that first");
                return Err(Error::new(Code::Unsupported, message));
            }
            let tags: Vec<&Tag> = state.tags.iter().filter(|tag| tag.digest == *digest).collect();
            if let Some(tag) = tags.iter().find(|tag| rules.is_immutable(&tag.name)) {
                return Err(Error::new(Code::Denied, format!("the tag {} names it and is immutable", tag.name)));
            }
            let Some(seen) = self.forget_tags(repository, state.seen, &tags).await? else { continue };
            let record = state.manifests.iter().find(|(known, _)| known == digest).map(|(_, record)| record);
            let ops = record.map(|record| self.forget_ops(repository, digest, record)).unwrap_or_default();
            if self.change(repository, seen, Vec::new(), ops).await?.is_some() {
                return Ok(true);
            }
        }
    }

    fn forget_ops(&self, repository: &str, digest: &Digest, record: &Record) -> Vec<Op> {
        let mut ops = vec![
            remove(self.manifest_key(repository, digest)),
            remove(self.link_key(repository, digest)),
            remove(self.holder_key(repository, digest)),
            remove(self.usage_key(repository)),
        ];
        if let Some(subject) = &record.subject {
            ops.push(remove(self.referrer_key(repository, subject, digest)));
        }
        ops
    }

    /// `None`: the repository changed meanwhile.
    pub async fn forget_tags(&self, repository: &str, seen: Seen, tags: &[&Tag]) -> Result<Option<Seen>> {
        let mut seen = seen;
        for chunk in tags.chunks(100) {
            let ops = chunk.iter().map(|tag| remove(self.tag_key(repository, &tag.name))).collect();
            match self.change(repository, seen, Vec::new(), ops).await? {
                Some(made) => seen = made,
                None => return Ok(None),
            }
        }
        Ok(Some(seen))
    }

    /// As [`Catalog::forget_tags`], for manifests.
    pub async fn forget_manifests(
        &self,
        repository: &str,
        seen: Seen,
        manifests: &[(&Digest, &Record)],
    ) -> Result<Option<Seen>> {
        let mut seen = seen;
        for chunk in manifests.chunks(20) {
            let mut ops: Vec<Op> =
                chunk.iter().flat_map(|(digest, record)| self.forget_ops(repository, digest, record)).collect();
            // Once is enough; the same key twice is no transaction.
            let usage = KeyRange::key(self.usage_key(repository));
            ops.retain(|op| !matches!(op, Op::Delete { range } if *range == usage));
            ops.push(Op::Delete { range: usage });
            match self.change(repository, seen, Vec::new(), ops).await? {
                Some(made) => seen = made,
                None => return Ok(None),
            }
        }
        Ok(Some(seen))
    }

    /// As [`Catalog::forget_tags`], for links that stand as they were read.
    pub async fn forget_links(
        &self,
        repository: &str,
        seen: Seen,
        links: &[(&Digest, Revision)],
    ) -> Result<Option<Seen>> {
        let mut seen = seen;
        for chunk in links.chunks(50) {
            let same = |(digest, revision): &(&Digest, Revision)| {
                Compare::mod_revision(self.link_key(repository, digest), *revision)
            };
            let compare = chunk.iter().map(same).collect();
            let mut ops: Vec<Op> = chunk
                .iter()
                .flat_map(|(digest, _)| {
                    [remove(self.link_key(repository, digest)), remove(self.holder_key(repository, digest))]
                })
                .collect();
            ops.push(remove(self.usage_key(repository)));
            match self.change(repository, seen, compare, ops).await? {
                Some(made) => seen = made,
                None => return Ok(None),
            }
        }
        Ok(Some(seen))
    }

    /// Takes a blob from the repository, unless a manifest needs it.
    pub async fn delete_link(&self, repository: &str, digest: &Digest) -> Result<bool> {
        loop {
            let state = self.state(repository).await?;
            let Some((_, _, revision)) = state.links.iter().find(|(known, ..)| known == digest) else {
                return Ok(false);
            };
            let user = state.manifests.iter().find(|(own, record)| own == digest || record.blobs.contains(digest));
            if let Some((manifest, _)) = user {
                let message = format!("{digest} is needed by the manifest {manifest}; delete that first");
                return Err(Error::new(Code::Unsupported, message));
            }
            if self.forget_links(repository, state.seen, &[(digest, *revision)]).await?.is_some() {
                return Ok(true);
            }
        }
    }

    /// The repository has nothing any more.
    pub async fn forget_repository(&self, repository: &str, seen: Seen) -> Result<bool> {
        let key = self.key('r', repository);
        let used = remove(self.key('u', repository));
        self.txn(vec![Compare::mod_revision(key.clone(), seen.revision)], vec![remove(key), used]).await
    }
}

/// How a manifest is shown among the referrers of its subject.
fn descriptor(digest: &Digest, record: &Record) -> serde_json::Value {
    shown(digest, &record.media_type, record.size, record.artifact_type.as_ref(), &record.annotations)
}

/// The same of a manifest that is not here.
pub fn descriptor_of(digest: &Digest, parsed: &Parsed, size: usize) -> serde_json::Value {
    shown(digest, &parsed.media_type, size as u64, parsed.artifact_type.as_ref(), &parsed.annotations)
}

fn shown(
    digest: &Digest,
    media_type: &str,
    size: u64,
    artifact_type: Option<&String>,
    annotations: &BTreeMap<String, String>,
) -> serde_json::Value {
    let mut descriptor = json!({ "mediaType": media_type, "digest": digest, "size": size });
    if let Some(kind) = artifact_type {
        descriptor["artifactType"] = json!(kind);
    }
    if !annotations.is_empty() {
        descriptor["annotations"] = json!(annotations);
    }
    descriptor
}
