//! The embedded runtime: our own shims, image store and pod network behind the `Runtime` trait.
//!
//! What exists is on disk, one folder per sandbox (see [`record`]); what runs is known by the shims. A daemon that comes
//! back reads the folders, asks the shims, and goes on.

mod cdi;
mod container;
mod images;
mod logs;
mod record;
mod runtime;
mod sandbox;
mod slots;
pub(crate) mod specification;
mod streams;
mod users;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use dhow_image::{ImageStore, PullOptions};
use dhow_oci::client::Program;
use dhow_oci::spec::{IdRange, LogLimits, OciProgram};
use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::runtime::{RuntimeEvent, RuntimeEventKind};
use crate::{Error, PodNetwork};
use record::{Container, Sandbox};

/// What the embedded runtime is told once, at start.
pub struct EmbeddedConfig {
    /// Sandboxes and containers, kept across restarts of the daemon.
    pub root: PathBuf,
    /// Sockets of the shims.
    pub run_dir: PathBuf,
    /// Top control group of everything it runs, such as `dhow`.
    pub cgroup_root: String,
    /// What shims run: the binary itself unless a test brings another.
    pub program: Program,
    pub images: ImageStore,
    /// How registries are reached.
    pub pull: PullOptions,
    pub network: Arc<dyn PodNetwork>,
    pub tuning: Tuning,
    /// Programs that run containers in our place, by the handler that a runtime class names.
    pub handlers: BTreeMap<String, OciProgram>,
}

/// What may be turned up or down.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Sandboxes that wait, ready made, for pods: a pod that finds one starts sooner. Each holds a small process, a
    /// network link and an address.
    pub slots: usize,
    /// A container's log file is put aside at this many bytes, and this many are kept.
    pub logs: LogLimits,
}

impl Default for Tuning {
    fn default() -> Self {
        // The kubelet's `containerLogMaxSize` and `containerLogMaxFiles`.
        Self { slots: 2, logs: LogLimits { max_size: 10 << 20, max_files: 5 } }
    }
}

/// Runs containers in shims of our own. Dropping it leaves them running.
#[derive(Clone)]
pub struct EmbeddedRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    config: EmbeddedConfig,
    sandboxes: Mutex<BTreeMap<String, Sandbox>>,
    containers: Mutex<BTreeMap<String, Container>>,
    slots: Arc<slots::Slots>,
    /// Ranges of user ids given to sandboxes that are being made.
    claimed_users: Mutex<Vec<IdRange>>,
    events: broadcast::Sender<RuntimeEvent>,
    /// Counts changes of state, for whoever waits for one.
    changes: tokio::sync::watch::Sender<u64>,
}

/// Events a slow listener may fall behind before it has to list again.
const EVENT_BACKLOG: usize = 1024;

impl EmbeddedRuntime {
    /// Finds again what runs already, and clears what a crash left half-made.
    pub async fn open(config: EmbeddedConfig) -> Result<Arc<Self>, Error> {
        for folder in [config.root.join("sandboxes"), config.run_dir.clone()] {
            record::make_private_folder(&folder)?;
        }
        let this = Arc::new(Self {
            inner: Arc::new(Inner {
                slots: slots::Slots::new(config.tuning.slots),
                config,
                claimed_users: Mutex::default(),
                sandboxes: Mutex::default(),
                containers: Mutex::default(),
                events: broadcast::channel(EVENT_BACKLOG).0,
                changes: tokio::sync::watch::channel(0).0,
            }),
        });
        sandbox::adopt_all(&this.inner).await?;
        slots::keep_filled(&this.inner);
        Ok(this)
    }

    /// What connects its sandboxes.
    pub fn network(&self) -> Arc<dyn PodNetwork> {
        Arc::clone(&self.inner.config.network)
    }

    /// Stops every sandbox and frees what it holds; returns how many there were.
    pub async fn stop_all(&self) -> Result<usize, Error> {
        slots::close(&self.inner).await?;
        let ids: Vec<String> = self.inner.sandboxes.lock().keys().cloned().collect();
        for id in &ids {
            sandbox::stop(&self.inner, id).await?;
        }
        Ok(ids.len())
    }

    /// Removes every sandbox with its containers; returns how many there were.
    pub async fn remove_all(&self) -> Result<usize, Error> {
        slots::close(&self.inner).await?;
        let ids: Vec<String> = self.inner.sandboxes.lock().keys().cloned().collect();
        for id in &ids {
            sandbox::remove(&self.inner, id).await?;
        }
        dhow_oci::cgroup::Cgroup::everywhere(&self.inner.config.cgroup_root).remove_all();
        Ok(ids.len())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Whoever keeps the slots filled looks once more, and finds nobody to do it for.
        self.slots.refill();
    }
}

impl Inner {
    fn sandbox(&self, id: &str) -> Result<Sandbox, Error> {
        let found = self.sandboxes.lock().get(id).cloned();
        found.ok_or_else(|| Error::NotFound { kind: "sandbox", id: id.to_owned() })
    }

    fn container(&self, id: &str) -> Result<Container, Error> {
        let found = self.containers.lock().get(id).cloned();
        found.ok_or_else(|| Error::NotFound { kind: "container", id: id.to_owned() })
    }

    /// Tells listeners and those who wait.
    fn announce(&self, sandbox: &Sandbox, container_id: &str, kind: RuntimeEventKind) {
        self.changes.send_modify(|count| *count += 1);
        // Nobody listening is fine.
        let _ = self.events.send(RuntimeEvent {
            pod: sandbox.meta.config.pod.clone(),
            sandbox_id: sandbox.meta.id.clone(),
            container_id: container_id.to_owned(),
            kind,
        });
    }

    /// Waits until `done` says so; it is asked again after each change of state.
    async fn wait_until(&self, mut done: impl FnMut() -> bool) {
        let mut changes = self.changes.subscribe();
        while !done() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Runs what blocks off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal("run a blocking step", error)),
    }
}

impl From<dhow_oci::Error> for Error {
    fn from(error: dhow_oci::Error) -> Self {
        use dhow_oci::Error as Oci;
        match error {
            Oci::NotFound(id) => Self::NotFound { kind: "container", id },
            Oci::CannotRun(message) => Self::CannotRun(message),
            Oci::Invalid(message) => Self::InvalidArgument(message),
            other => {
                let context = other.to_string();
                Self::Internal { context, source: Some(Box::new(other)) }
            }
        }
    }
}
