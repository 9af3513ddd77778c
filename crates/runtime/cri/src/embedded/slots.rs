//! Sandboxes made ahead of time, so that a pod's start does no work on namespaces and links.
//!
//! A slot is a sandbox whose pod is not known yet: a shim that waits in namespaces of its own, connected to the pod
//! network. It has a sandbox's folder without a record, so a daemon that finds it after a crash clears it away as it does
//! any sandbox that never became whole. New ones are made when a container has started, not while one is being started.

use std::fs;
use std::os::fd::AsFd;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dhow_oci::client::Shim;
use dhow_oci::protocol::Request;
use dhow_oci::spec::SandboxSpec;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::record::{make_private_folder, new_id};
use super::{Inner, blocking, sandbox};
use crate::Error;
use crate::runtime::{NamespaceMode, SandboxConfig, UserNamespace};

/// A sandbox that waits.
pub struct Slot {
    pub id: String,
    pub shim: Shim,
    pub child: Child,
    pub pid: i32,
}

pub struct Slots {
    wanted: AtomicUsize,
    ready: Mutex<Vec<Slot>>,
    /// Held while slots are made or cleared away.
    filling: tokio::sync::Mutex<()>,
    used: Notify,
}

impl Slots {
    pub fn new(wanted: usize) -> Arc<Self> {
        let (ready, filling, used) = (Mutex::default(), tokio::sync::Mutex::default(), Notify::new());
        Arc::new(Self { wanted: AtomicUsize::new(wanted), ready, filling, used })
    }

    /// A slot for such a sandbox, if one waits.
    pub fn take(&self, config: &SandboxConfig) -> Option<Slot> {
        let namespaces = &config.namespaces;
        let fits = namespaces.network != NamespaceMode::Node
            && namespaces.ipc != NamespaceMode::Node
            && namespaces.user == UserNamespace::Node;
        if !fits {
            return None;
        }
        let slot = self.ready.lock().pop();
        if slot.is_none() {
            self.refill();
        }
        slot
    }

    /// Has those that were used replaced.
    pub fn refill(&self) {
        self.used.notify_one();
    }

    fn missing(&self) -> bool {
        self.ready.lock().len() < self.wanted.load(Ordering::Relaxed)
    }
}

/// Keeps slots ready for as long as the runtime is there.
pub fn keep_filled(inner: &Arc<Inner>) {
    let (slots, weak) = (Arc::clone(&inner.slots), Arc::downgrade(inner));
    tokio::spawn(async move {
        loop {
            {
                let Some(inner) = weak.upgrade() else { return };
                let _filling = slots.filling.lock().await;
                while slots.missing() {
                    match make(&inner).await {
                        Ok(slot) => slots.ready.lock().push(slot),
                        Err(error) => {
                            // Pods start without; the next one that does brings another attempt.
                            tracing::warn!(%error, "cannot make a sandbox ahead of time");
                            break;
                        }
                    }
                }
            }
            slots.used.notified().await;
        }
    });
}

async fn make(inner: &Arc<Inner>) -> Result<Slot, Error> {
    let id = new_id()[..32].to_owned();
    let made = start(inner, &id).await;
    if made.is_err()
        && let Err(error) = sandbox::discard(inner, &id).await
    {
        tracing::warn!(sandbox = id, %error, "cannot clear a sandbox that was made ahead of time");
    }
    made
}

async fn start(inner: &Arc<Inner>, id: &str) -> Result<Slot, Error> {
    make_private_folder(&inner.config.sandbox_dir(id))?;
    let spec = SandboxSpec {
        id: id.to_owned(),
        hostname: String::new(),
        network: true,
        ipc: true,
        pid: false,
        cgroup: String::new(),
        sysctls: Vec::new(),
        users: None,
    };
    let (shim, child, pid) = sandbox::start_shim(inner, id, spec).await?;
    let netns = fs::File::open(format!("/proc/{pid}/ns/net"))
        .map_err(|error| Error::internal("open the sandbox's network", error))?;
    inner.config.network.prepare(netns.as_fd(), id).await?;
    Ok(Slot { id: id.to_owned(), shim, child, pid })
}

/// Makes the slot the sandbox that it is now used for.
pub async fn configure(slot: &Slot, spec: SandboxSpec) -> Result<(), Error> {
    let (shim, request) = (slot.shim.clone(), Request::Configure { spec: Box::new(spec) });
    blocking(move || Ok(shim.tell(&request)?)).await
}

/// Ends one that cannot be used.
pub async fn discard(inner: &Arc<Inner>, slot: Slot) {
    if let Err(error) = sandbox::discard(inner, &slot.id).await {
        tracing::warn!(sandbox = slot.id, %error, "cannot clear a sandbox that was made ahead of time");
    }
    let mut child = slot.child;
    let ended = blocking(move || child.wait().map_err(|error| Error::internal("wait for a shim", error))).await;
    if let Err(error) = ended {
        tracing::warn!(sandbox = slot.id, %error, "a shim does not end");
    }
}

/// Ends those that wait; none is made any more.
pub async fn close(inner: &Arc<Inner>) -> Result<(), Error> {
    inner.slots.wanted.store(0, Ordering::Relaxed);
    let _filling = inner.slots.filling.lock().await;
    let ready = std::mem::take(&mut *inner.slots.ready.lock());
    for slot in ready {
        discard(inner, slot).await;
    }
    Ok(())
}
