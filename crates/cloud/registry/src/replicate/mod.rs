//! Keeping repositories here and in another registry the same: what matches is copied with all its platforms and all that
//! refers to it, to there or from there.
//!
//! What the other side has already is not sent again, so whatever breaks a replication off, the next one goes on where it
//! ended; a blob that was under way is fetched from where it broke off.

mod pull;
mod push;
mod side;
mod throttle;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dhow_image::{Digest, PeerOptions, Reference};
use futures::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;

use crate::rules::Pattern;
use crate::{Code, Error, Inner, Registry, Result};
pub use side::digests;
use side::{Ours, Side, Theirs};
use throttle::Throttle;

/// Tags that are looked at, and blobs of one that are sent, at a time.
const TAGS: usize = 4;
const BLOBS: usize = 3;
/// How deep indexes and referrers may lie in one another.
const DEPTH: usize = 8;
/// Failures that are told one by one.
const TOLD: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From here to the other registry.
    Push,
    /// From the other registry to here.
    Pull,
}

/// What is to be the same here and there.
#[derive(Debug, Clone)]
pub struct Replication {
    pub direction: Direction,
    /// Host and port of the other registry.
    pub registry: String,
    pub options: PeerOptions,
    /// By their names where they come from.
    pub repositories: Vec<Pattern>,
    pub tags: Vec<Pattern>,
    /// Of the images' configs, or annotations of manifests; all of them.
    pub labels: BTreeMap<String, String>,
    /// What a name begins with where it comes from, and what with where it goes.
    pub rename: (String, String),
    /// Whether tags that are gone where they come from are deleted where they went.
    pub delete: bool,
    /// Bytes in a second.
    pub bandwidth: Option<u64>,
    /// Who did it, as events tell.
    pub user: String,
}

/// What a replication looks at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// By their names where they come from.
    Repository(String),
    Tag(String, String),
    /// A manifest that refers to another one, with that one.
    Referrer(String, Digest, Digest),
}

impl Item {
    pub fn repository(&self) -> &str {
        match self {
            Item::Repository(name) | Item::Tag(name, _) | Item::Referrer(name, ..) => name,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Tags and referrers that matched.
    pub images: u64,
    /// Of these, what the other side had not, or not like this.
    pub copied: u64,
    pub deleted: u64,
    pub failed: u64,
    pub bytes: u64,
    /// The first of them: what, and why.
    pub failures: Vec<(String, String)>,
    /// What had better be tried again.
    pub left: BTreeSet<Item>,
}

impl Replication {
    /// Whether a repository is one of those, by its name where it comes from.
    pub fn wants_repository(&self, name: &str) -> bool {
        self.repositories.iter().any(|pattern| pattern.matches(name))
    }

    fn wants_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|pattern| pattern.matches(tag))
    }

    /// What a repository is called where it goes.
    pub fn renamed(&self, name: &str) -> String {
        let (from, to) = &self.rename;
        name.strip_prefix(from.as_str()).map_or_else(|| name.to_owned(), |rest| format!("{to}{rest}"))
    }

    /// # Errors
    /// When the other registry cannot have a repository of that name.
    fn there(&self, name: &str) -> Result<Reference> {
        let reference = Reference::parse(&format!("{}/{name}", self.registry));
        let reference = reference.map_err(|error| Error::Internal(error.to_string()))?;
        let hub = reference.registry == "docker.io" && self.registry.ends_with("docker.io");
        if reference.registry != self.registry && !hub {
            return Err(Error::Internal(format!("{:?} is no host of a registry", self.registry)));
        }
        Ok(reference)
    }
}

/// The manifest that a tag is about by its own name, as cosign names signatures: `sha256-<hex>.sig`.
fn subject_of_tag(tag: &str) -> Option<Digest> {
    let (digest, _kind) = tag.split_once('.')?;
    Digest::parse(&digest.replacen('-', ":", 1)).ok()
}

/// Whether a tag is the list of what refers to a manifest, in registries that keep no other: only one side may need it.
fn stands_for_referrers(tag: &str) -> bool {
    Digest::parse(&tag.replacen('-', ":", 1)).is_ok()
}

/// One replication under way.
struct Run<'a> {
    inner: &'a Inner,
    task: &'a Replication,
    throttle: Throttle,
    report: Mutex<Report>,
    /// Blobs that the other side has by now, and in which repository.
    sent: Mutex<HashMap<Digest, String>>,
}

/// What is between two repositories.
struct Pair<'a> {
    ours: Ours<'a>,
    theirs: Theirs,
}

impl Registry {
    /// Makes the other side have what this one has: all that matches, or only these of it.
    pub async fn replicate(&self, task: &Replication, only: Option<&BTreeSet<Item>>) -> Report {
        let run = Run {
            inner: &self.0,
            task,
            throttle: Throttle::new(task.bandwidth),
            report: Mutex::default(),
            sent: Mutex::default(),
        };
        let items = match only {
            Some(items) => Ok(items.iter().filter(|item| task.wants_repository(item.repository())).cloned().collect()),
            None => run.everything().await,
        };
        match items {
            Ok(items) => run.all(items).await,
            Err(error) => run.failed(&task.registry, &error, None),
        }
        run.report.into_inner()
    }
}

impl Run<'_> {
    async fn everything(&self) -> Result<Vec<Item>> {
        let names = match self.task.direction {
            Direction::Push => self.inner.catalog.repositories(None, 0).await?.0,
            Direction::Pull => {
                let patterns = self.task.repositories.iter().map(|pattern| pattern.0.as_str());
                match patterns.clone().all(|name| !name.contains('*')) {
                    true => patterns.map(str::to_owned).collect(),
                    // A name is needed to ask for names.
                    false => Theirs::connect(self, "any").await?.repositories().await?,
                }
            }
        };
        Ok(names.into_iter().filter(|name| self.task.wants_repository(name)).map(Item::Repository).collect())
    }

    async fn all(&self, items: Vec<Item>) {
        let mut by_name: BTreeMap<String, Vec<Item>> = BTreeMap::new();
        items.into_iter().for_each(|item| by_name.entry(item.repository().to_owned()).or_default().push(item));
        for (name, items) in by_name {
            let pair = match self.pair(&name).await {
                Ok(Some(pair)) => pair,
                Ok(None) => continue,
                Err(error) => {
                    self.failed(&name, &error, Some(Item::Repository(name.clone())));
                    continue;
                }
            };
            for item in items {
                self.item(&pair, item).await;
            }
        }
    }

    /// `None`: it is not for this repository.
    async fn pair(&self, name: &str) -> Result<Option<Pair<'_>>> {
        let there = self.task.renamed(name);
        let (here, there) = match self.task.direction {
            Direction::Push => (name, there.as_str()),
            Direction::Pull => (there.as_str(), name),
        };
        let is_cache = self.inner.access.upstream(here).await?.is_some();
        match self.task.direction {
            // Much of what a cache names it does not have.
            Direction::Push if is_cache => return Ok(None),
            Direction::Push => {}
            Direction::Pull => {
                crate::route::repository(here)?;
                self.inner.access.admits(here).await?;
            }
        }
        Ok(Some(Pair {
            ours: Ours { inner: self.inner, repository: here.to_owned() },
            theirs: Theirs::connect(self, there).await?,
        }))
    }

    async fn item(&self, pair: &Pair<'_>, item: Item) {
        let done = match &item {
            Item::Repository(name) => self.repository(pair, name).await,
            Item::Tag(name, tag) => {
                self.tag(pair, name, tag).await;
                Ok(())
            }
            Item::Referrer(name, subject, digest) => {
                self.referrer(pair, name, subject, digest).await;
                Ok(())
            }
        };
        if let Err(error) = done {
            self.failed(item.repository(), &error, Some(item.clone()));
        }
    }

    async fn repository(&self, pair: &Pair<'_>, name: &str) -> Result<()> {
        let tags = self.source(pair).tags().await?;
        let wanted = tags.iter().filter(|tag| self.task.wants_tag(tag));
        stream::iter(wanted).for_each_concurrent(TAGS, |tag| self.tag(pair, name, tag)).await;
        // What is about an image, by its tag, goes with it.
        let about = tags.iter().filter(|tag| !self.task.wants_tag(tag) && subject_of_tag(tag).is_some());
        stream::iter(about).for_each_concurrent(TAGS, |tag| self.tag(pair, name, tag)).await;
        if self.task.delete {
            let known: BTreeSet<String> = tags.into_iter().collect();
            let there = self.target(pair).tags().await?;
            for tag in there.iter().filter(|tag| self.task.wants_tag(tag) && !known.contains(*tag)) {
                self.gone(pair, name, tag).await;
            }
        }
        Ok(())
    }

    fn source<'p>(&self, pair: &'p Pair<'_>) -> &'p dyn Side {
        match self.task.direction {
            Direction::Push => &pair.ours,
            Direction::Pull => &pair.theirs,
        }
    }

    fn target<'p>(&self, pair: &'p Pair<'_>) -> &'p dyn Side {
        match self.task.direction {
            Direction::Push => &pair.theirs,
            Direction::Pull => &pair.ours,
        }
    }

    async fn tag(&self, pair: &Pair<'_>, name: &str, tag: &str) {
        let image = format!("{name}:{tag}");
        match self.try_tag(pair, name, tag).await {
            Ok(()) => {}
            Err(error) => self.failed(&image, &error, Some(Item::Tag(name.to_owned(), tag.to_owned()))),
        }
    }

    async fn try_tag(&self, pair: &Pair<'_>, name: &str, tag: &str) -> Result<()> {
        let (source, target) = (self.source(pair), self.target(pair));
        if !self.task.wants_tag(tag) {
            // A tag about an image that is there.
            let Some(subject) = subject_of_tag(tag) else { return Ok(()) };
            if target.digest(subject.as_str()).await?.is_none() {
                return Ok(());
            }
        }
        let Some(digest) = source.digest(tag).await? else {
            if self.task.delete && self.task.wants_tag(tag) {
                self.gone(pair, name, tag).await;
            }
            return Ok(());
        };
        if !self.has_labels(source, &digest).await? {
            return Ok(());
        }
        self.report.lock().images += 1;
        let same = target.digest(tag).await?.as_ref() == Some(&digest);
        let mut copied = !same;
        if !same {
            self.copy(pair, &digest, Some(tag), 0).await?;
        }
        copied |= self.copy_referrers(pair, &digest, 0).await?;
        if copied {
            self.report.lock().copied += 1;
        }
        Ok(())
    }

    async fn referrer(&self, pair: &Pair<'_>, name: &str, subject: &Digest, digest: &Digest) {
        let copied = async {
            // What is not there is not spoken of either.
            let target = self.target(pair);
            if target.digest(subject.as_str()).await?.is_none() || target.digest(digest.as_str()).await?.is_some() {
                return Ok(());
            }
            {
                let mut report = self.report.lock();
                report.images += 1;
                report.copied += 1;
            }
            self.copy(pair, digest, None, 0).await
        };
        if let Err(error) = copied.await {
            let item = Item::Referrer(name.to_owned(), subject.clone(), digest.clone());
            self.failed(&format!("{name}@{digest}"), &error, Some(item));
        }
    }

    /// Brings over a manifest and all that it needs.
    fn copy<'s>(
        &'s self,
        pair: &'s Pair<'_>,
        digest: &'s Digest,
        tag: Option<&'s str>,
        depth: usize,
    ) -> futures::future::BoxFuture<'s, Result<()>> {
        Box::pin(async move {
            if depth > DEPTH {
                return Err(Error::Internal(format!("{digest} lies too deep in others")));
            }
            let target = self.target(pair);
            if tag.is_none() && target.digest(digest.as_str()).await?.is_some() {
                return Ok(());
            }
            let (parsed, bytes) = self.source(pair).manifest(digest).await?;
            for child in &parsed.manifests {
                self.copy(pair, child, None, depth + 1).await?;
                self.copy_referrers(pair, child, depth + 1).await?;
            }
            let blobs: BTreeSet<Digest> = parsed.blobs.iter().cloned().collect();
            let moves = blobs.into_iter().map(|blob| async move { self.blob(pair, &blob).await });
            stream::iter(moves).buffer_unordered(BLOBS).try_collect::<Vec<()>>().await?;
            match self.task.direction {
                Direction::Push => self.put_there(&pair.theirs, digest, tag, &parsed, bytes).await,
                Direction::Pull => self.put_here(&pair.ours, digest, tag, &parsed, bytes).await,
            }
        })
    }

    /// Whether there were any that the other side had not.
    fn copy_referrers<'s>(
        &'s self,
        pair: &'s Pair<'_>,
        subject: &'s Digest,
        depth: usize,
    ) -> futures::future::BoxFuture<'s, Result<bool>> {
        Box::pin(async move {
            let mut any = false;
            if depth > DEPTH {
                return Ok(any);
            }
            for referrer in self.source(pair).referrers(subject).await? {
                if self.target(pair).digest(referrer.as_str()).await?.is_none() {
                    any = true;
                    self.copy(pair, &referrer, None, depth + 1).await?;
                }
                any |= self.copy_referrers(pair, &referrer, depth + 1).await?;
            }
            Ok(any)
        })
    }

    async fn blob(&self, pair: &Pair<'_>, digest: &Digest) -> Result<()> {
        match self.task.direction {
            Direction::Push => self.send_blob(&pair.ours, &pair.theirs, digest).await,
            Direction::Pull => self.fetch_blob(&pair.ours, &pair.theirs, digest).await,
        }
    }

    async fn has_labels(&self, source: &dyn Side, digest: &Digest) -> Result<bool> {
        if self.task.labels.is_empty() {
            return Ok(true);
        }
        let mut found = BTreeMap::new();
        let (parsed, bytes) = source.manifest(digest).await?;
        let mut all = vec![(parsed, bytes)];
        for child in all[0].0.manifests.clone() {
            all.push(source.manifest(&child).await?);
        }
        for (parsed, bytes) in all {
            found.extend(parsed.annotations.clone());
            if let Some(config) = crate::manifest::config(&bytes) {
                found.extend(source.labels(&config).await?);
            }
        }
        Ok(self.task.labels.iter().all(|(key, value)| found.get(key) == Some(value)))
    }

    async fn gone(&self, pair: &Pair<'_>, name: &str, tag: &str) {
        if stands_for_referrers(tag) {
            return;
        }
        let gone = match self.task.direction {
            Direction::Push => self.delete_there(&pair.theirs, tag).await,
            Direction::Pull => self.delete_here(&pair.ours, tag).await,
        };
        match gone {
            Ok(true) => self.report.lock().deleted += 1,
            Ok(false) => {}
            Err(error) => self.failed(&format!("{name}:{tag}"), &error, None),
        }
    }

    fn failed(&self, what: &str, error: &Error, left: Option<Item>) {
        let mut reason = match error {
            Error::Refused { code: Code::Unknown, message, .. } => message.clone(),
            other => other.to_string(),
        };
        reason.truncate(reason.floor_char_boundary(500));
        tracing::debug!(image = what, reason, "not replicated");
        let mut report = self.report.lock();
        report.failed += 1;
        report.left.extend(left);
        if report.failures.len() < TOLD {
            report.failures.push((what.to_owned(), reason));
        }
    }
}

/// What the other registry did not do.
fn elsewhere(error: &dhow_image::Error) -> Error {
    Error::Internal(error.chain())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_go_over_as_the_rule_says() {
        let task = Replication {
            direction: Direction::Push,
            registry: "r.io".to_owned(),
            options: PeerOptions::default(),
            repositories: vec![Pattern("team/*".to_owned())],
            tags: vec![Pattern("v*".to_owned())],
            labels: BTreeMap::new(),
            rename: ("team/".to_owned(), "mirror/of-team/".to_owned()),
            delete: false,
            bandwidth: None,
            user: String::new(),
        };
        assert_eq!(task.renamed("team/app"), "mirror/of-team/app");
        assert_eq!(task.renamed("other/app"), "other/app");
        assert!(task.wants_repository("team/a/b") && !task.wants_repository("teams/a"));
        assert_eq!(task.there("a/b").unwrap().name(), "r.io/a/b");
        assert!(Replication { registry: "plain".to_owned(), ..task }.there("a").is_err());
    }

    #[test]
    fn signatures_by_tag_say_what_they_sign() {
        let digest = Digest::of(b"x");
        let tag = format!("sha256-{}.sig", digest.hex());
        assert!(stands_for_referrers(&tag[..tag.len() - 4]) && !stands_for_referrers(&tag));
        assert_eq!(subject_of_tag(&tag), Some(digest));
        assert_eq!(subject_of_tag("v1.2"), None);
        assert_eq!(subject_of_tag("latest"), None);
    }
}
