//! The registry's records: what each repository has.
//!
//! Keys, below the prefix; repositories' names have no `:`, so none is part of another's:
//! - `r/<repository>`: it exists; written anew by every change to its manifests and tags and by everything that is taken
//!   away from it, so that who decided by an older state fails;
//! - `b/<repository>:<digest>`: it has the blob; `l/<digest>:<repository>` says the same the other way round;
//! - `m/<repository>:<digest>`, `t/<repository>:<tag>`, `s/<repository>:<subject>:<digest>`: manifests, tags, referrers;
//! - `u/<repository>`: how often it was used, by day;
//! - `p/<project>`: bytes that count for its quota; absent when they must be counted anew;
//! - `d/<digest>`: its content is being deleted; nobody may link to it;
//! - `f/<digest>`: small content that has no file yet;
//! - `c/last`: when garbage was last collected; `k/tokens`: what signs tokens.
//!
//! No transaction has more operations than etcd takes.

mod change;
mod follow;
mod fresh;

pub use change::{Put, descriptor_of};
pub use follow::Changed;
pub use fresh::Fresh;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use dhow_image::Digest;
use dhow_store::{Compare, KeyRange, KeyValue, Kv, Op, Operator, RangeRequest, Revision, Target, Txn, WatchRequest};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::projects::project_of;
use crate::rules::Tag;
use crate::usage::Days;
use crate::{Code, Error, Result};

/// A sweep that is killed frees what it was about to delete after so long.
const DOOM_SECONDS: u64 = 300;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub size: u64,
    /// When it was last pushed or mounted, in seconds since the epoch.
    pub at: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub media_type: String,
    pub size: u64,
    pub at: u64,
    /// All that it needs or would keep: config, layers, foreign layers.
    pub blobs: Vec<Digest>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    pub digest: Digest,
    pub at: u64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Existence {
    at: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Usage {
    bytes: u64,
}

/// A repository's state that a decision was made by.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// 0: it does not exist.
    pub revision: Revision,
    at: u64,
}

#[cfg(test)]
impl Seen {
    pub fn for_tests() -> Self {
        Self { revision: 1, at: 0 }
    }
}

pub struct Catalog {
    kv: Arc<dyn Kv>,
    prefix: String,
}

pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

pub fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn now() -> u64 {
    seconds(SystemTime::now())
}

fn decode<T: DeserializeOwned>(kv: &KeyValue) -> Result<T> {
    serde_json::from_slice(&kv.value).map_err(|error| {
        Error::Internal(format!("the record {} is malformed: {error}", String::from_utf8_lossy(&kv.key)))
    })
}

fn encode<T: Serialize>(value: &T) -> Result<Bytes> {
    Ok(serde_json::to_vec(value).map_err(|error| Error::Internal(format!("write a record: {error}")))?.into())
}

fn put(key: String, value: Bytes) -> Op {
    Op::Put { key: key.into(), value, lease: 0 }
}

fn remove(key: String) -> Op {
    Op::Delete { range: KeyRange::key(key) }
}

fn absent(key: String) -> Compare {
    Compare::mod_revision(key, 0)
}

impl Catalog {
    pub fn new(kv: Arc<dyn Kv>, prefix: String) -> Self {
        Self { kv, prefix }
    }

    fn key(&self, kind: char, rest: &str) -> String {
        format!("{}{kind}/{rest}", self.prefix)
    }

    fn link_key(&self, repository: &str, digest: &Digest) -> String {
        self.key('b', &format!("{repository}:{digest}"))
    }

    fn holder_key(&self, repository: &str, digest: &Digest) -> String {
        self.key('l', &format!("{digest}:{repository}"))
    }

    fn fresh_key(&self, digest: &Digest) -> String {
        self.key('f', digest.as_str())
    }

    fn manifest_key(&self, repository: &str, digest: &Digest) -> String {
        self.key('m', &format!("{repository}:{digest}"))
    }

    fn tag_key(&self, repository: &str, tag: &str) -> String {
        self.key('t', &format!("{repository}:{tag}"))
    }

    fn referrer_key(&self, repository: &str, subject: &Digest, digest: &Digest) -> String {
        self.key('s', &format!("{repository}:{subject}:{digest}"))
    }

    fn usage_key(&self, repository: &str) -> String {
        self.key('p', project_of(repository))
    }

    async fn read(&self, range: KeyRange) -> Result<Vec<KeyValue>> {
        let response = self.kv.range(RangeRequest::new(range)).await;
        Ok(response.map_err(Error::store("read the registry's records"))?.kvs)
    }

    async fn one(&self, key: String) -> Result<Option<KeyValue>> {
        Ok(self.read(KeyRange::key(key)).await?.into_iter().next())
    }

    async fn get<T: DeserializeOwned>(&self, key: String) -> Result<Option<T>> {
        self.one(key).await?.as_ref().map(decode).transpose()
    }

    /// What comes after `after` in the order of keys, and whether there is more. With the part of the key behind the
    /// prefix.
    async fn page(
        &self,
        kind: char,
        start: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<(String, KeyValue)>, bool)> {
        let prefix = self.key(kind, start);
        let mut range = KeyRange::prefix(prefix.clone());
        if let Some(after) = after {
            range.start = format!("{prefix}{after}\0").into();
        }
        if range.is_empty() {
            return Ok((Vec::new(), false));
        }
        let response = self.kv.range(RangeRequest { limit, ..RangeRequest::new(range) }).await;
        let response = response.map_err(Error::store("list the registry's records"))?;
        let name = |kv: KeyValue| (String::from_utf8_lossy(&kv.key[prefix.len()..]).into_owned(), kv);
        Ok((response.kvs.into_iter().map(name).collect(), response.more))
    }

    async fn txn(&self, compare: Vec<Compare>, success: Vec<Op>) -> Result<bool> {
        let txn = Txn { compare, success, ..Txn::default() };
        Ok(self.kv.txn(txn).await.map_err(Error::store("write the registry's records"))?.succeeded)
    }

    /// The key that tokens are signed with: the one there is, or else `fresh`.
    pub async fn token_key(&self, fresh: &[u8]) -> Result<Vec<u8>> {
        let key = self.key('k', "tokens");
        self.txn(vec![absent(key.clone())], vec![put(key.clone(), Bytes::copy_from_slice(fresh))]).await?;
        let found = self.one(key).await?;
        Ok(found.ok_or_else(|| Error::Internal("the key of tokens was removed meanwhile".to_owned()))?.value.to_vec())
    }

    // Blobs.

    pub async fn linked(&self, repository: &str, digest: &Digest) -> Result<Option<Link>> {
        self.get(self.link_key(repository, digest)).await
    }

    /// Repositories that have the blob, at most `limit`.
    pub async fn holders(&self, digest: &Digest, limit: usize) -> Result<Vec<String>> {
        Ok(self.page('l', &format!("{digest}:"), None, limit).await?.0.into_iter().map(|(name, _)| name).collect())
    }

    /// Gives the repository a blob whose content is there or about to come.
    pub async fn link(&self, repository: &str, digest: &Digest, size: u64, quota: Option<u64>) -> Result<()> {
        self.link_with(repository, digest, size, quota, None).await
    }

    /// As [`Catalog::link`], as long as the repository `from` has it; `false`: it has not.
    pub async fn link_from(
        &self,
        from: &str,
        repository: &str,
        digest: &Digest,
        size: u64,
        quota: Option<u64>,
    ) -> Result<bool> {
        let source = self.link_key(from, digest);
        loop {
            let (mut compare, ops) = self.link_ops(repository, digest, size, quota).await?;
            if self.one(source.clone()).await?.is_none() {
                return Ok(false);
            }
            compare.push(Compare::new(source.clone(), Operator::NotEqual, Target::Version(0)));
            if self.txn(compare, ops).await? {
                return Ok(true);
            }
            self.until_not_doomed(digest).await?;
        }
    }

    /// As [`Catalog::link`], with the content itself, which gets a file later.
    pub async fn link_fresh(
        &self,
        repository: &str,
        digest: &Digest,
        content: &Bytes,
        quota: Option<u64>,
    ) -> Result<()> {
        let fresh = put(self.fresh_key(digest), content.clone());
        self.link_with(repository, digest, content.len() as u64, quota, Some(fresh)).await
    }

    async fn link_with(
        &self,
        repository: &str,
        digest: &Digest,
        size: u64,
        quota: Option<u64>,
        more: Option<Op>,
    ) -> Result<()> {
        loop {
            let (compare, mut ops) = self.link_ops(repository, digest, size, quota).await?;
            ops.extend(more.clone());
            if self.txn(compare, ops).await? {
                return Ok(());
            }
            self.until_not_doomed(digest).await?;
        }
    }

    /// What links the blob, in a transaction that fails if its content is being deleted or the quota's use changed.
    async fn link_ops(
        &self,
        repository: &str,
        digest: &Digest,
        size: u64,
        quota: Option<u64>,
    ) -> Result<(Vec<Compare>, Vec<Op>)> {
        let key = self.link_key(repository, digest);
        let mut compare = vec![absent(self.key('d', digest.as_str()))];
        let mut ops = vec![
            put(key.clone(), encode(&Link { size, at: now() })?),
            put(self.holder_key(repository, digest), Bytes::new()),
        ];
        let Some(quota) = quota else { return Ok((compare, ops)) };
        if self.one(key.clone()).await?.is_none() {
            let (used, revision) = self.usage(repository).await?;
            let bytes = used.saturating_add(size);
            if bytes > quota {
                let message = format!(
                    "the quota of project {} is {quota} bytes: {used} are used and {size} more are needed",
                    project_of(repository)
                );
                return Err(Error::new(Code::Denied, message));
            }
            compare.push(absent(key));
            compare.push(Compare::mod_revision(self.usage_key(repository), revision));
            ops.push(put(self.usage_key(repository), encode(&Usage { bytes })?));
        }
        Ok((compare, ops))
    }

    /// What counts for the quota of the repository's project, and the revision of that record (0: counted just now).
    async fn usage(&self, repository: &str) -> Result<(u64, Revision)> {
        if let Some(kv) = self.one(self.usage_key(repository)).await? {
            return Ok((decode::<Usage>(&kv)?.bytes, kv.mod_revision));
        }
        let project = project_of(repository);
        let mut bytes = 0u64;
        for below in ["/", ":"] {
            for kv in self.read(KeyRange::prefix(self.key('b', &format!("{project}{below}")))).await? {
                bytes = bytes.saturating_add(decode::<Link>(&kv)?.size);
            }
        }
        Ok((bytes, 0))
    }

    // Manifests and tags.

    pub async fn seen(&self, repository: &str) -> Result<Seen> {
        match self.one(self.key('r', repository)).await? {
            Some(kv) => Ok(Seen { revision: kv.mod_revision, at: decode::<Existence>(&kv)?.at }),
            None => Ok(Seen { revision: 0, at: now() }),
        }
    }

    /// Whether there is anything under this name.
    pub async fn exists(&self, repository: &str) -> Result<bool> {
        if self.seen(repository).await?.revision != 0 {
            return Ok(true);
        }
        Ok(!self.page('b', &format!("{repository}:"), None, 1).await?.0.is_empty())
    }

    pub async fn manifest(&self, repository: &str, digest: &Digest) -> Result<Option<Record>> {
        self.get(self.manifest_key(repository, digest)).await
    }

    pub async fn tag(&self, repository: &str, tag: &str) -> Result<Option<TagRecord>> {
        self.get(self.tag_key(repository, tag)).await
    }

    /// Names of tags after `after`, in order; and whether there are more.
    pub async fn tag_names(&self, repository: &str, after: Option<&str>, limit: usize) -> Result<(Vec<String>, bool)> {
        let (page, more) = self.page('t', &format!("{repository}:"), after, limit).await?;
        Ok((page.into_iter().map(|(name, _)| name).collect(), more))
    }

    pub async fn repositories(&self, after: Option<&str>, limit: usize) -> Result<(Vec<String>, bool)> {
        let (page, more) = self.page('r', "", after, limit).await?;
        Ok((page.into_iter().map(|(name, _)| name).collect(), more))
    }

    /// Descriptors of what refers to `subject`, in order of digests, after `after`.
    pub async fn referrers(
        &self,
        repository: &str,
        subject: &Digest,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<serde_json::Value>, bool)> {
        let (page, more) = self.page('s', &format!("{repository}:{subject}:"), after, limit).await?;
        Ok((page.iter().map(|(_, kv)| decode(kv)).collect::<Result<_>>()?, more))
    }

    // Use.

    pub async fn used(&self, repository: &str) -> Result<Days> {
        Ok(self.get(self.key('u', repository)).await?.unwrap_or_default())
    }

    pub async fn add_use(&self, repository: &str, days: &Days) -> Result<()> {
        let key = self.key('u', repository);
        // One that is gone is used no more.
        if self.seen(repository).await?.revision == 0 {
            return Ok(());
        }
        loop {
            let known = self.one(key.clone()).await?;
            let revision = known.as_ref().map_or(0, |kv| kv.mod_revision);
            let mut all: Days = known.as_ref().map(decode).transpose()?.unwrap_or_default();
            days.0.iter().for_each(|(day, count)| all.add(day, *count));
            let compare = vec![Compare::mod_revision(key.clone(), revision)];
            if self.txn(compare, vec![put(key.clone(), encode(&all)?)]).await? {
                return Ok(());
            }
        }
    }

    // Collection.

    /// Repositories that have anything, also if it is blobs alone.
    pub async fn all_repositories(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = self.page('r', "", None, 0).await?.0.into_iter().map(|(name, _)| name).collect();
        let request = RangeRequest { keys_only: true, ..RangeRequest::new(KeyRange::prefix(self.key('b', ""))) };
        let prefix = self.key('b', "").len();
        let links = self.kv.range(request).await.map_err(Error::store("list the registry's records"))?.kvs;
        for kv in links {
            let key = String::from_utf8_lossy(&kv.key[prefix..]).into_owned();
            let name = key.split(':').next().unwrap_or_default();
            if names.last().is_none_or(|last| last != name) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    pub async fn state(&self, repository: &str) -> Result<State> {
        let start = format!("{repository}:");
        // First, as everywhere: what changes after it makes the transaction fail.
        let seen = self.seen(repository).await?;
        let digest = |name: &str| {
            Digest::parse(name)
                .map_err(|_| Error::Internal(format!("a record of {repository} names no digest: {name}")))
        };
        let mut state = State { seen, links: Vec::new(), manifests: Vec::new(), tags: Vec::new() };
        for (name, kv) in self.page('b', &start, None, 0).await?.0 {
            state.links.push((digest(&name)?, decode(&kv)?, kv.mod_revision));
        }
        for (name, kv) in self.page('m', &start, None, 0).await?.0 {
            state.manifests.push((digest(&name)?, decode(&kv)?));
        }
        for (name, kv) in self.page('t', &start, None, 0).await?.0 {
            let TagRecord { digest, at } = decode(&kv)?;
            state.tags.push(Tag { name, digest, pushed: time(at) });
        }
        Ok(state)
    }

    /// From here on nobody links to these, until [`Catalog::spare`].
    pub async fn doom(&self, digests: &[Digest]) -> Result<()> {
        let lease = self.kv.lease_grant(DOOM_SECONDS).await.map_err(Error::store("get a lease"))?;
        let mark = |digest: &Digest| Op::Put { key: self.key('d', digest.as_str()).into(), value: Bytes::new(), lease };
        self.txn(Vec::new(), digests.iter().map(mark).collect()).await.map(drop)
    }

    pub async fn spare(&self, digests: &[Digest]) -> Result<()> {
        let unmark = |digest: &Digest| remove(self.key('d', digest.as_str()));
        self.txn(Vec::new(), digests.iter().map(unmark).collect()).await.map(drop)
    }

    async fn until_not_doomed(&self, digest: &Digest) -> Result<()> {
        let range = KeyRange::key(self.key('d', digest.as_str()));
        // The watch comes first, so that no change is missed between looking and waiting.
        let mut changes = self
            .kv
            .watch(WatchRequest { range: range.clone(), start_revision: 0 })
            .await
            .map_err(Error::store("watch a record"))?;
        while !self.read(range.clone()).await?.is_empty() {
            if changes.next().await.is_none_or(|message| message.is_err()) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// When a collection last began, and the revision of that record.
    pub async fn last_collection(&self) -> Result<(Option<u64>, Revision)> {
        match self.one(self.key('c', "last")).await? {
            Some(kv) => Ok((Some(decode::<Existence>(&kv)?.at), kv.mod_revision)),
            None => Ok((None, 0)),
        }
    }

    /// `false`: another server began one since.
    pub async fn begin_collection(&self, known: Revision, at: u64) -> Result<bool> {
        let key = self.key('c', "last");
        self.txn(vec![Compare::mod_revision(key.clone(), known)], vec![put(key, encode(&Existence { at })?)]).await
    }

    /// How many repositories a project has, and what counts for its quota.
    pub async fn project(&self, project: &str) -> Result<(u64, u64)> {
        let mut repositories = 0;
        for range in [KeyRange::key(self.key('r', project)), KeyRange::prefix(self.key('r', &format!("{project}/")))] {
            let request = RangeRequest { count_only: true, ..RangeRequest::new(range) };
            repositories += self.kv.range(request).await.map_err(Error::store("count the registry's records"))?.count;
        }
        Ok((repositories as u64, self.usage(project).await?.0))
    }

    /// How many records there are of each kind.
    pub async fn counts(&self) -> Result<serde_json::Value> {
        let mut counts = json!({});
        for (kind, name) in [('r', "repositories"), ('b', "links"), ('m', "manifests"), ('t', "tags"), ('d', "doomed")]
        {
            let range = KeyRange::prefix(self.key(kind, ""));
            let request = RangeRequest { count_only: true, ..RangeRequest::new(range) };
            let found = self.kv.range(request).await.map_err(Error::store("count the registry's records"))?;
            counts[name] = json!(found.count);
        }
        Ok(counts)
    }
}

/// All that a repository has.
#[derive(Debug)]
pub struct State {
    pub seen: Seen,
    pub links: Vec<(Digest, Link, Revision)>,
    pub manifests: Vec<(Digest, Record)>,
    pub tags: Vec<Tag>,
}
