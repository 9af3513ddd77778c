//! The life of a sandbox: made, adopted after a restart, stopped, removed.

use std::fs;
use std::os::fd::AsFd;
use std::process::Child;
use std::sync::Arc;
use std::time::SystemTime;

use dhow_oci::cgroup::Cgroup;
use dhow_oci::client::Shim;
use dhow_oci::protocol::{Reply, Request};
use dhow_oci::spec::{IdRange, SandboxSpec};

use super::record::{self, Container, ContainerMeta, Sandbox, SandboxMeta, make_private_folder, new_id};
use super::slots::{self, Slot};
use super::specification::{NETWORK_SYSCTLS, resolv_conf};
use super::{Inner, blocking, container, users, watch};
use crate::runtime::{NamespaceMode, RuntimeEventKind, SandboxConfig, SandboxState, UserNamespace};
use crate::{Error, NetworkRequest};

/// Starts a sandbox. On error nothing is left behind.
pub async fn run(inner: &Arc<Inner>, config: SandboxConfig) -> Result<String, Error> {
    check_handler(inner, &config)?;
    let slot = inner.slots.take(&config);
    // Half the length of a container's id: it is part of a socket's path, which has 107 bytes.
    let id = slot.as_ref().map_or_else(|| new_id()[..32].to_owned(), |slot| slot.id.clone());
    let made = make(inner, &id, config, slot).await;
    if made.is_err()
        && let Err(error) = discard(inner, &id).await
    {
        tracing::warn!(sandbox = id, %error, "cannot clear a sandbox that failed to start");
    }
    made.map(|()| id)
}

/// Whether the handler that is asked for can run such a sandbox.
fn check_handler(inner: &Inner, config: &SandboxConfig) -> Result<(), Error> {
    let name = &config.runtime_handler;
    if name.is_empty() {
        return Ok(());
    }
    let refused = |why: String| Error::InvalidArgument(format!("failed to get sandbox runtime: {why}"));
    let program = inner.config.handlers.get(name);
    let program = program.ok_or_else(|| refused(format!("no runtime for {name:?} is configured")))?;
    fs::metadata(&program.path).map_err(|error| {
        refused(format!("runtime handler {name:?}: cannot find {}: {error}", program.path.display()))
    })?;
    match config.namespaces.user {
        UserNamespace::Node => Ok(()),
        _ => Err(Error::InvalidArgument(format!("RuntimeClass handler {name:?} does not support user namespaces"))),
    }
}

async fn make(inner: &Arc<Inner>, id: &str, config: SandboxConfig, slot: Option<Slot>) -> Result<(), Error> {
    let dir = inner.config.sandbox_dir(id);
    make_private_folder(&dir)?;
    write_files(inner, id, &config)?;
    let claim = users::claim(inner, id, config.namespaces.user)?;
    let spec = specification(id, &config, &inner.config.cgroup_root, claim.range);
    let (shim, child, pid) = match slot {
        None => start_shim(inner, id, spec).await?,
        Some(slot) => {
            if let Err(error) = slots::configure(&slot, spec.clone()).await {
                // It ended while it waited; its name serves another.
                tracing::warn!(sandbox = id, %error, "a sandbox made ahead of time cannot be used");
                slots::discard(inner, slot).await;
                make_private_folder(&dir)?;
                write_files(inner, id, &config)?;
                start_shim(inner, id, spec).await?
            } else {
                (slot.shim, slot.child, slot.pid)
            }
        }
    };
    let ips = if config.namespaces.network == NamespaceMode::Node {
        Vec::new()
    } else {
        let path = format!("/proc/{pid}/ns/net");
        let netns = fs::File::open(&path).map_err(|error| Error::internal("open the sandbox's network", error))?;
        let request = NetworkRequest {
            sandbox_id: id.to_owned(),
            pod: config.pod.clone(),
            port_mappings: config.port_mappings.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        };
        inner.config.network.attach(netns.as_fd(), &request).await?
    };
    let users = claim.range;
    let meta = SandboxMeta { id: id.to_owned(), config, created_at: SystemTime::now(), ips, users };
    record::write(&dir.join("meta.json"), &meta)?;
    let sandbox = Sandbox { meta, state: SandboxState::Ready, shim };
    inner.sandboxes.lock().insert(id.to_owned(), sandbox.clone());
    drop(claim);
    watch::follow(inner, &sandbox, Some(child)).await?;
    inner.announce(&sandbox, "", RuntimeEventKind::Started);
    Ok(())
}

/// Starts a shim in the sandbox's folder; returns it with its process.
pub async fn start_shim(inner: &Arc<Inner>, id: &str, spec: SandboxSpec) -> Result<(Shim, Child, i32), Error> {
    let (inner, id) = (Arc::clone(inner), id.to_owned());
    blocking(move || {
        let dir = inner.config.sandbox_dir(&id);
        Ok(Shim::start(&inner.config.program, &dir, &inner.config.socket(&id), &spec)?)
    })
    .await
}

fn specification(id: &str, config: &SandboxConfig, cgroup_root: &str, users: Option<IdRange>) -> SandboxSpec {
    let own_network = config.namespaces.network != NamespaceMode::Node;
    let mut sysctls: Vec<(String, String)> = Vec::new();
    if own_network {
        sysctls.extend(NETWORK_SYSCTLS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    }
    sysctls.extend(config.sysctls.iter().map(|(name, value)| (name.clone(), value.clone())));
    SandboxSpec {
        id: id.to_owned(),
        hostname: config.hostname.clone(),
        network: own_network,
        ipc: config.namespaces.ipc != NamespaceMode::Node,
        pid: config.namespaces.pid == NamespaceMode::Pod,
        cgroup: format!("{cgroup_root}/{}", config.cgroup_parent),
        sysctls,
        users,
    }
}

/// Files that all containers of the sandbox see below `/etc`.
fn write_files(inner: &Inner, id: &str, config: &SandboxConfig) -> Result<(), Error> {
    let dir = inner.config.sandbox_dir(id);
    let resolv = match &config.dns {
        Some(dns) => resolv_conf(dns),
        None => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    for (name, text) in [("resolv.conf", resolv), ("hostname", format!("{}\n", config.hostname))] {
        let path = dir.join(name);
        fs::write(&path, text).map_err(|error| Error::internal(format!("write {}", path.display()), error))?;
    }
    Ok(())
}

/// Reads all folders. Sandboxes that were being made when the daemon ended are cleared away.
pub async fn adopt_all(inner: &Arc<Inner>) -> Result<(), Error> {
    let root = inner.config.root.join("sandboxes");
    let entries = fs::read_dir(&root).map_err(|error| Error::internal(format!("list {}", root.display()), error))?;
    let mut ids = Vec::new();
    for entry in entries.flatten() {
        ids.push(entry.file_name().to_string_lossy().into_owned());
    }
    let mut live = Vec::new();
    for id in ids {
        let Some(meta) = record::read::<SandboxMeta>(&inner.config.sandbox_dir(&id).join("meta.json")) else {
            // What cannot be cleared now is found again at the next start.
            if let Err(error) = discard(inner, &id).await {
                tracing::warn!(sandbox = id, %error, "cannot clear a sandbox that never became whole");
            }
            continue;
        };
        let sandbox = Sandbox { meta, state: SandboxState::Ready, shim: Shim::at(inner.config.socket(&id)) };
        inner.sandboxes.lock().insert(id.clone(), sandbox.clone());
        adopt_containers(inner, &id)?;
        match watch::follow(inner, &sandbox, None).await {
            Ok(()) => live.push(id),
            Err(_) => watch::gone(inner, &id),
        }
    }
    inner.config.network.retain(&live).await
}

fn adopt_containers(inner: &Inner, sandbox: &str) -> Result<(), Error> {
    let dir = inner.config.sandbox_dir(sandbox).join("containers");
    for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
        let meta: Option<ContainerMeta> = record::read(&entry.path().join("meta.json"));
        let state = record::read(&entry.path().join("state.json"));
        match (meta, state) {
            (Some(meta), Some(state)) => {
                inner.containers.lock().insert(meta.id.clone(), Container { meta, state });
            }
            // The daemon ended while it was being made; the pod's worker makes another.
            (meta, _) => {
                if let Some(meta) = meta {
                    let _ = Shim::at(inner.config.socket(sandbox)).tell(&Request::Remove { id: meta.id.clone() });
                    container::release_image(inner, &meta.id);
                }
                record::remove_folder(&entry.path())?;
            }
        }
    }
    Ok(())
}

/// Kills what runs and frees the network. Repeating it is fine.
pub async fn stop(inner: &Arc<Inner>, id: &str) -> Result<(), Error> {
    let Ok(sandbox) = inner.sandbox(id) else { return Ok(()) };
    if sandbox.state == SandboxState::Ready {
        let shim = sandbox.shim.clone();
        blocking(move || match shim.tell(&Request::Stop) {
            Err(dhow_oci::Error::Gone { .. }) => Ok(()),
            result => Ok(result?),
        })
        .await?;
        // The watch sees the shim's end and writes down the rest.
        inner.wait_until(|| inner.sandbox(id).is_ok_and(|sandbox| sandbox.state == SandboxState::NotReady)).await;
    }
    inner.config.network.detach(id).await
}

/// Removes a sandbox with its containers. One that is gone is fine.
pub async fn remove(inner: &Arc<Inner>, id: &str) -> Result<(), Error> {
    let Ok(sandbox) = inner.sandbox(id) else { return Ok(()) };
    stop(inner, id).await?;
    let containers: Vec<String> = {
        let containers = inner.containers.lock();
        containers.values().filter(|c| c.meta.sandbox_id == id).map(|c| c.meta.id.clone()).collect()
    };
    for container in containers {
        container::remove(inner, &container).await?;
    }
    let dir = inner.config.sandbox_dir(id);
    blocking(move || record::remove_folder(&dir)).await?;
    let _ = fs::remove_file(inner.config.socket(id));
    let group = format!("{}/{}", inner.config.cgroup_root, sandbox.meta.config.cgroup_parent);
    // Other programs make groups in every tree there is.
    let own = sandbox.meta.config.runtime_handler.is_empty();
    let group = if own { Cgroup::new(&group) } else { Cgroup::everywhere(&group) };
    group.remove();
    inner.sandboxes.lock().remove(id);
    inner.announce(&sandbox, "", RuntimeEventKind::Removed);
    Ok(())
}

/// The sandbox's shim, which is in its network.
pub async fn process(inner: &Inner, id: &str) -> Result<Option<u32>, Error> {
    let sandbox = inner.sandbox(id)?;
    if sandbox.state != SandboxState::Ready {
        return Ok(None);
    }
    blocking(move || match sandbox.shim.ask(&Request::Hello)? {
        Reply::Ready { pid } => Ok(u32::try_from(pid).ok()),
        _ => Ok(None),
    })
    .await
}

/// Clears a sandbox that never became whole.
pub async fn discard(inner: &Arc<Inner>, id: &str) -> Result<(), Error> {
    let shim = Shim::at(inner.config.socket(id));
    blocking(move || {
        // No shim may have been started yet.
        let _ = shim.tell(&Request::Stop);
        Ok(())
    })
    .await?;
    inner.config.network.detach(id).await?;
    let _ = fs::remove_file(inner.config.socket(id));
    record::remove_folder(&inner.config.sandbox_dir(id))
}
