//! A registry of images: the OCI distribution protocol over [`dhow_store::Blob`] and [`dhow_store::Kv`].
//!
//! Bytes lie in the blob store under `blobs/<algorithm>/<hex>`, once however many repositories have them. What a
//! repository has, its manifests and tags, are records in the key-value store.
//!
//! Invariants:
//! - a repository has a blob exactly if there is a link record; content without any link is garbage;
//! - a link is written before the content gets its name, and never while that content is being deleted;
//! - manifests and tags of a repository change in transactions that fail if anything else changed there: what a manifest
//!   refers to is there when it is acknowledged, and nothing takes it away as long as the manifest is there;
//! - who may do what is decided before a request is acted upon, by [`Access`] alone.
//!
//! [`cloud`] ties it to the API: projects and robot accounts as kinds, users and rights as the API knows them.

mod access;
mod artifacts;
mod catalog;
pub mod cloud;
mod collect;
mod content;
mod error;
mod events;
mod fresh;
mod keeping;
mod listing;
mod locks;
mod manifest;
mod manifests;
mod metrics;
mod projects;
mod range;
mod reading;
mod replicate;
mod request;
mod route;
mod rules;
mod server;
pub mod signatures;
mod token;
mod uploads;
mod upstream;
mod usage;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use dhow_image::{Digest, Neighbour, Registries};
use dhow_store::{Blob, Kv};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::{Notify, broadcast};

pub use access::{AUTHENTICATED, Access, Actions, Credentials, Everyone, User};
pub use collect::Collected;
pub use error::{Code, Error, Result};
pub use events::{Action, Event};
pub use keeping::Keeping;
pub use projects::{Project, Projects, Role, Visibility, hash_secret};
pub use replicate::{Direction, Item, Replication, Report};
pub use rules::{Pattern, Retain, Rules, Tag};
pub use upstream::Upstream;

/// How a registry behaves.
#[derive(Clone)]
pub struct Config {
    /// Keys in the key-value store begin with it.
    pub prefix: String,
    /// Who the tokens are for, as clients are told.
    pub service: String,
    /// `https://host:port` as clients reach it; without, what they say in `Host` is believed.
    pub url: Option<String>,
    /// How long an upload may lie untouched, and what nothing refers to stays.
    pub grace: Duration,
    /// Manifests without a tag that nothing refers to are deleted after so long; `None` keeps them.
    pub keep_untagged: Option<Duration>,
    pub token_lifetime: Duration,
    /// A client that sends nothing for so long in the middle of a body is left.
    pub silence: Duration,
    /// How other registries are reached.
    pub registries: Arc<Registries>,
    /// Where it counts what it does.
    pub metrics: dhow_base::metrics::Registry,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            prefix: "/registry/".to_owned(),
            service: "dhow".to_owned(),
            url: None,
            grace: Duration::from_secs(24 * 3600),
            keep_untagged: None,
            token_lifetime: Duration::from_secs(600),
            silence: Duration::from_secs(60),
            registries: Arc::default(),
            metrics: dhow_base::metrics::Registry::default(),
        }
    }
}

/// Cheap to clone; clones are the same registry.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    config: Config,
    blobs: Arc<dyn Blob>,
    catalog: Arc<catalog::Catalog>,
    access: Arc<dyn Access>,
    tokens: token::Tokens,
    uploads: uploads::Uploads,
    usage: usage::Usage,
    waiting: Arc<fresh::Waiting>,
    /// One change of a repository at a time in this process; between processes the transactions decide.
    changing: locks::Locks,
    events: events::Events,
    metrics: metrics::Metrics,
    origins: upstream::Origins,
    me: Weak<Inner>,
    /// Told of blobs that came.
    grown: Notify,
}

impl Registry {
    /// # Errors
    /// When the key that signs tokens can neither be read nor made.
    pub async fn open(config: Config, kv: Arc<dyn Kv>, blobs: Arc<dyn Blob>, access: Arc<dyn Access>) -> Result<Self> {
        let catalog = Arc::new(catalog::Catalog::new(kv, config.prefix.clone()));
        let blobs = Arc::new(fresh::Overlay { files: blobs, catalog: catalog.clone() });
        let tokens = token::Tokens::load(&catalog, &config).await?;
        let uploads = uploads::Uploads::default();
        let metrics = metrics::Metrics::new(&config.metrics);
        let (changing, events, origins, grown, usage, waiting) = Default::default();
        let registry = Self(Arc::new_cyclic(|me| Inner {
            config,
            blobs,
            catalog,
            access,
            tokens,
            uploads,
            usage,
            waiting,
            changing,
            events,
            metrics,
            origins,
            me: me.clone(),
            grown,
        }));
        // What an earlier process left.
        if !registry.0.catalog.fresh_after(None, 1).await?.is_empty() {
            registry.0.waits(0);
        }
        Ok(registry)
    }

    /// For the image store of the same machine: pulls from this registry, known to references as these hosts, take its
    /// files.
    pub fn neighbour(&self, hosts: &[String]) -> Arc<dyn Neighbour> {
        Arc::new(Beside { blobs: self.0.blobs.clone(), hosts: hosts.to_vec() })
    }

    /// All changes from now on. Who is too slow misses some, and learns that.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.0.events.listen()
    }

    /// Tags that are set from now on, on all servers, as `repository:tag`. It ends when the store cannot tell any more.
    ///
    /// # Errors
    /// When the store cannot be watched.
    pub async fn tagged(&self) -> Result<BoxStream<'static, String>> {
        let changes = self.0.catalog.follow().await?;
        let tag = |change| match change {
            catalog::Changed::Tag { repository, tag } => Some(format!("{repository}:{tag}")),
            catalog::Changed::Referrer { .. } => None,
        };
        Ok(changes.filter_map(move |change| futures::future::ready(tag(change))).boxed())
    }

    /// How many repositories a project has, and what counts for its quota.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn usage(&self, project: &str) -> Result<(u64, u64)> {
        self.0.catalog.project(project).await
    }
}

struct Beside {
    blobs: Arc<dyn Blob>,
    hosts: Vec<String>,
}

impl Neighbour for Beside {
    fn file(&self, registry: &str, digest: &Digest) -> Option<PathBuf> {
        if self.hosts.iter().any(|host| host == registry) { self.blobs.file(&content::key(digest)) } else { None }
    }
}

/// For property tests and fuzzing: what reads clients' bytes.
#[doc(hidden)]
pub mod parse {
    pub use crate::manifest::Parsed;
    pub use crate::range::{ContentRange, Wanted};
    pub use crate::route::Route;
}
