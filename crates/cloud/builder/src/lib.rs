//! Builds images from Dockerfiles.
//!
//! - [`dockerfile`] reads the language; pure.
//! - `plan` puts variables in and works out steps and configuration; pure.
//! - `build` runs the steps that nobody ran before, stages beside each other: files are copied by `copy`, programs run in
//!   a `sandbox`; each step becomes a layer of the node's image store.
//! - [`api`] is how a client asks for all this.
//! - `contexts` keeps what clients sent, so that they send what changed.
//! - `run` and `log` are what a node keeps of builds for people who do not run it, `source` and `git` bring their files here.
//! - [`cloud`] makes builds a kind of the API.
//!
//! Invariants: a step's key says everything that its result depends on; what a step made is found by its key until room is
//! needed; a build that ends, in any way, leaves nothing but images and kept steps.

mod add;
pub mod api;
mod attest;
mod build;
mod cache;
pub mod cloud;
mod config;
mod contexts;
mod copy;
pub mod dockerfile;
mod error;
mod event;
mod foreign;
mod fulfil;
mod git;
mod glob;
mod log;
mod mounts;
mod owner;
mod plan;
mod program;
mod report;
mod run;
mod sandbox;
mod source;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use dhow_image::{Auth, ImageStore, Registries};
use dhow_oci::spec::Limits;

pub use attest::{Attest, ProvenanceMode};
pub use cache::{CacheMode, CacheSource};
pub use contexts::{Digests, Listed, Listing};
pub use error::{Error, Result};
pub use event::{Event, Events};
pub use git::{Login, Repository};
pub use glob::Ignore;
pub use plan::{Wanted, size};
pub use report::{Material, Report};
pub use run::{Run, Tenant};
pub use sandbox::{Network, Sandboxes};
pub use source::{Bucket, Origin};

/// What a builder is told once.
pub struct Config {
    pub store: ImageStore,
    pub registries: Arc<Registries>,
    /// Contexts while they are built, and caches of `RUN --mount=type=cache`.
    pub root: PathBuf,
    pub sandboxes: Arc<Sandboxes>,
    /// Bytes of kept steps above which the oldest go.
    pub keep_bytes: u64,
    /// Programs that run at the same time.
    pub parallel: usize,
}

/// Builds images. Clones share everything.
#[derive(Clone)]
pub struct Builder {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    /// One permit for each program that may run.
    running: tokio::sync::Semaphore,
    caches: mounts::Caches,
    runs: Arc<run::Runs>,
    contexts: contexts::Keeper,
}

/// A context's files.
#[derive(Clone, Debug)]
pub struct Folder {
    pub path: PathBuf,
    /// Those that are known without reading.
    pub digests: Arc<Digests>,
}

impl Folder {
    /// Of whose files nothing is known.
    pub fn unknown(path: PathBuf) -> Self {
        Folder { path, digests: Arc::default() }
    }
}

impl From<&contexts::Lease> for Folder {
    fn from(lease: &contexts::Lease) -> Self {
        Folder { path: lease.folder.clone(), digests: Arc::clone(&lease.digests) }
    }
}

/// Where a context's files are.
#[derive(Clone, Debug)]
pub enum ContextSource {
    Folder(Folder),
    /// By name or id, in the store or to be pulled.
    Image(String),
}

/// One build.
#[derive(Clone)]
pub struct Job {
    /// The Dockerfile's text, and what it is called in messages.
    pub dockerfile: String,
    pub file: String,
    pub wanted: Wanted,
    /// By name; the build's own has none.
    pub contexts: HashMap<String, ContextSource>,
    pub secrets: HashMap<String, Vec<u8>>,
    /// Sockets of SSH agents.
    pub agents: HashMap<String, PathBuf>,
    /// Nothing that was made before is used: for all stages, or for these.
    pub no_cache: bool,
    pub no_cache_stages: Vec<String>,
    /// Base images are asked for at their registry, even if they are here.
    pub pull: bool,
    pub network: Option<String>,
    /// Of the image and the newest of its files; the clock decides otherwise.
    pub epoch: Option<i64>,
    pub auth: HashMap<String, Auth>,
    /// Steps that others made, looked through in this order.
    pub cache_from: Vec<CacheSource>,
    /// What each step may use, if less than any may.
    pub limits: Limits,
    /// What tells its steps from those of builds beside it.
    pub shown_as: Option<String>,
    /// Whom it is done for, unless it is whoever runs the machine.
    pub tenant: Option<Tenant>,
}

impl Builder {
    /// Ready to build; clears what an earlier daemon left.
    pub fn open(config: Config) -> Result<Self> {
        use copy::At as _;
        let contexts = config.root.join("contexts");
        match std::fs::remove_dir_all(&contexts) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).at("clear old contexts"),
            _ => {}
        }
        std::fs::create_dir_all(&contexts).at("make a folder for contexts")?;
        let kept = contexts::Keeper::open(config.root.join("kept"))?;
        for image in config.store.list() {
            for holder in image.holders.iter().filter(|holder| holder.starts_with(build::HOLDER)) {
                config.store.release(holder)?;
            }
        }
        let running = tokio::sync::Semaphore::new(config.parallel.max(1));
        let caches = mounts::Caches::new(config.root.join("caches"));
        let runs = Arc::new(run::Runs::open(&config.root)?);
        Ok(Builder { inner: Arc::new(Inner { config, running, caches, runs, contexts: kept }) })
    }
}
