//! Garbage collection while everything goes on.
//!
//! First each repository gives up what its own manifests do not need: a plan made of its state, carried out in
//! transactions that fail if the repository changed. Then content that no repository has is deleted: it is marked, looked
//! for once more, deleted, unmarked; who wants to link to it meanwhile waits for these few system calls.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use dhow_image::Digest;
use futures::StreamExt;
use serde::Serialize;

use crate::catalog::{Record, State, seconds};
use crate::content::{key, of_key};
use crate::events::Event;
use crate::request::Who;
use crate::{Error, Registry, Result};

/// How often a repository that keeps changing is looked at anew.
const TRIES: usize = 5;
/// How much content is marked at a time: so long does a push of just that wait.
const MARKED: usize = 50;

/// What a collection took away.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Collected {
    pub tags: usize,
    pub manifests: usize,
    pub links: usize,
    pub blobs: usize,
    pub bytes: u64,
    pub uploads: usize,
}

/// What of a repository may go.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    manifests: Vec<Digest>,
    links: Vec<Digest>,
}

/// A function of the state alone. What is younger than `grace` stays: whoever pushed it may be about to refer to it.
fn plan(state: &State, now: SystemTime, grace: Duration, keep_untagged: Option<Duration>) -> Plan {
    let now = seconds(now);
    let old = |at: u64, limit: Duration| now.saturating_sub(at) >= limit.as_secs();
    let tagged: HashSet<&Digest> = state.tags.iter().map(|tag| &tag.digest).collect();
    let mut kept: HashSet<&Digest> = state
        .manifests
        .iter()
        .filter(|(digest, record)| {
            tagged.contains(digest) || keep_untagged.is_none_or(|limit| !old(record.at, limit.max(grace)))
        })
        .map(|(digest, _)| digest)
        .collect();
    // Parts of an index stay with it, what speaks of a manifest stays with that.
    loop {
        let before = kept.len();
        for (digest, record) in &state.manifests {
            if kept.contains(digest) {
                kept.extend(&record.manifests);
            }
            if record.subject.as_ref().is_some_and(|subject| kept.contains(subject)) {
                kept.insert(digest);
            }
        }
        if kept.len() == before {
            break;
        }
    }
    let mut needed: HashSet<&Digest> = HashSet::new();
    let mut plan = Plan::default();
    for (digest, record) in &state.manifests {
        if kept.contains(digest) {
            needed.insert(digest);
            needed.extend(&record.blobs);
        } else {
            plan.manifests.push(digest.clone());
        }
    }
    let gone: HashSet<&Digest> = plan.manifests.iter().collect();
    let doomed = state
        .links
        .iter()
        .filter(|(digest, link, _)| !needed.contains(digest) && !gone.contains(digest) && old(link.at, grace));
    plan.links = doomed.map(|(digest, ..)| digest.clone()).collect();
    plan
}

impl Registry {
    /// Takes away what retention, age and disuse say, while pushes and pulls go on.
    ///
    /// # Errors
    /// When the stores cannot be read or written. What was done until then stays done.
    pub async fn collect(&self) -> Result<Collected> {
        let mut collected = Collected::default();
        self.settle().await?;
        self.sweep_uploads(&mut collected).await?;
        for repository in self.0.catalog.all_repositories().await? {
            self.collect_repository(&repository, &mut collected).await?;
        }
        self.sweep_content(&mut collected).await?;
        self.0.metrics.collected(&collected);
        if collected != Collected::default() {
            tracing::info!(?collected, "collected garbage");
        }
        Ok(collected)
    }

    /// Records of each kind.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn counts(&self) -> Result<serde_json::Value> {
        self.0.catalog.counts().await
    }

    async fn sweep_uploads(&self, collected: &mut Collected) -> Result<()> {
        let inner = &self.0;
        collected.uploads += inner.uploads.forget_older(inner.config.grace);
        for pending in inner.blobs.uploads().await.map_err(Error::store("list uploads"))? {
            let untouched = pending.touched.elapsed().is_ok_and(|age| age >= inner.config.grace);
            if !untouched || inner.uploads.writing.busy(&pending.id) {
                continue;
            }
            let _held = inner.uploads.writing.exclusive(&pending.id).await;
            match inner.blobs.resume(&pending.id).await {
                Ok(Some(upload)) => upload.abort().await.map_err(Error::store("give up an upload"))?,
                // Committed meanwhile, or not one of ours.
                Ok(None) | Err(dhow_store::Error::Invalid(_)) => continue,
                Err(error) => return Err(Error::store("open an upload")(error)),
            }
            inner.uploads.forget(&pending.id);
            collected.uploads += 1;
        }
        Ok(())
    }

    async fn collect_repository(&self, repository: &str, collected: &mut Collected) -> Result<()> {
        let (inner, catalog) = (&self.0, &self.0.catalog);
        let rules = match inner.access.rules(repository).await {
            Ok(rules) => rules,
            // What cannot be understood takes nothing away.
            Err(error @ Error::Refused { .. }) => {
                tracing::warn!(repository, %error, "not collected");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        // Whoever changes it now has the word; the next collection comes.
        for _ in 0..TRIES {
            let now = SystemTime::now();
            let mut state = catalog.state(repository).await?;
            let expired = rules.expired(&state.tags, now);
            let names: HashSet<String> = expired.iter().map(|tag| tag.name.clone()).collect();
            let Some(seen) = catalog.forget_tags(repository, state.seen, &expired).await? else { continue };
            collected.tags += names.len();
            for tag in expired {
                let (digest, tags) = (Some(tag.digest.clone()), vec![tag.name.clone()]);
                inner.events.tell(Event::gone(repository, digest, tags, &Who::Nobody));
            }
            state.tags.retain(|tag| !names.contains(&tag.name));
            let plan = plan(&state, now, inner.config.grace, inner.config.keep_untagged);
            let record = |digest: &Digest| state.manifests.iter().find(|(known, _)| known == digest);
            let manifests: Vec<(&Digest, &Record)> =
                plan.manifests.iter().filter_map(record).map(|(digest, record)| (digest, record)).collect();
            let Some(seen) = catalog.forget_manifests(repository, seen, &manifests).await? else { continue };
            collected.manifests += manifests.len();
            let doomed: HashSet<&Digest> = plan.links.iter().collect();
            let links: Vec<_> = state
                .links
                .iter()
                .filter(|(digest, ..)| doomed.contains(digest))
                .map(|(digest, _, revision)| (digest, *revision))
                .collect();
            let Some(seen) = catalog.forget_links(repository, seen, &links).await? else { continue };
            collected.links += links.len();
            let gone = links.len() + manifests.len();
            if state.tags.is_empty() && state.manifests.len() == manifests.len() && state.links.len() == gone {
                catalog.forget_repository(repository, seen).await?;
            }
            if !manifests.is_empty() || !links.is_empty() {
                inner.events.tell(Event::gone(repository, None, Vec::new(), &Who::Nobody));
            }
            return Ok(());
        }
        tracing::debug!(repository, "too busy to be collected now");
        Ok(())
    }

    /// Deletes content that nobody links to.
    async fn sweep_content(&self, collected: &mut Collected) -> Result<()> {
        let (inner, catalog) = (&self.0, &self.0.catalog);
        let mut all = inner.blobs.list("blobs/").await.map_err(Error::store("list blobs"))?;
        let mut suspects = Vec::new();
        loop {
            let meta = all.next().await.transpose().map_err(Error::store("list blobs"))?;
            let ended = meta.is_none();
            if let Some(meta) = meta
                && let Some(digest) = of_key(&meta.key)
                && catalog.holders(&digest, 1).await?.is_empty()
            {
                suspects.push((digest, meta.size));
            }
            if suspects.len() >= MARKED || ended && !suspects.is_empty() {
                self.sweep(std::mem::take(&mut suspects), collected).await?;
            }
            if ended {
                return Ok(());
            }
        }
    }

    async fn sweep(&self, suspects: Vec<(Digest, u64)>, collected: &mut Collected) -> Result<()> {
        let catalog = &self.0.catalog;
        let digests: Vec<Digest> = suspects.iter().map(|(digest, _)| digest.clone()).collect();
        catalog.doom(&digests).await?;
        let swept = self.delete_unlinked(suspects, collected).await;
        catalog.spare(&digests).await?;
        swept
    }

    async fn delete_unlinked(&self, doomed: Vec<(Digest, u64)>, collected: &mut Collected) -> Result<()> {
        for (digest, size) in doomed {
            // Linked between the first look and the mark.
            if !self.0.catalog.holders(&digest, 1).await?.is_empty() {
                continue;
            }
            if self.0.blobs.delete(&key(&digest)).await.map_err(Error::store("delete a blob"))? {
                collected.blobs += 1;
                collected.bytes += size;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Link, Seen};
    use crate::rules::Tag;

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn manifest(name: &str, at: u64, blobs: &[&str], parts: &[&str], subject: Option<&str>) -> (Digest, Record) {
        let record = Record {
            media_type: String::new(),
            size: 1,
            at,
            blobs: blobs.iter().map(|name| digest(name)).collect(),
            manifests: parts.iter().map(|name| digest(name)).collect(),
            subject: subject.map(digest),
            artifact_type: None,
            annotations: std::collections::BTreeMap::new(),
        };
        (digest(name), record)
    }

    fn names(digests: &[Digest], known: &[&str]) -> Vec<String> {
        digests.iter().map(|d| known.iter().find(|name| digest(name) == *d).map_or("?", |n| n).to_owned()).collect()
    }

    #[test]
    fn keeps_what_is_reached_or_young() {
        let all = ["index", "part", "signature", "orphan", "lost", "fresh", "layer", "stray", "new"];
        let manifests = vec![
            manifest("index", 0, &[], &["part"], None),
            manifest("part", 0, &["layer"], &[], None),
            manifest("signature", 0, &[], &[], Some("index")),
            manifest("orphan", 0, &["stray"], &[], None),
            manifest("lost", 0, &[], &[], Some("orphan")),
            manifest("fresh", 995, &[], &[], None),
        ];
        let links = all
            .iter()
            .map(|name| (digest(name), Link { size: 1, at: if *name == "new" { 995 } else { 0 } }, 1))
            .collect();
        let tags = vec![Tag { name: "1".to_owned(), digest: digest("index"), pushed: SystemTime::UNIX_EPOCH }];
        let state = State { seen: Seen::for_tests(), links, manifests, tags };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let grace = Duration::from_secs(10);
        // Untagged manifests stay unless told otherwise, and with them what they need.
        let gentle = plan(&state, now, grace, None);
        assert!(gentle.manifests.is_empty() && gentle.links.is_empty(), "{gentle:?}");
        let strict = plan(&state, now, grace, Some(Duration::ZERO));
        assert_eq!(names(&strict.manifests, &all), ["orphan", "lost"]);
        assert_eq!(names(&strict.links, &all), ["stray"]);
        let later = plan(&state, now + grace, grace, Some(Duration::ZERO));
        assert_eq!(names(&later.manifests, &all), ["orphan", "lost", "fresh"]);
        assert_eq!(names(&later.links, &all), ["stray", "new"]);
    }
}
