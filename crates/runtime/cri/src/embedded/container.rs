//! The life of a container.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dhow_image::Image;
use dhow_oci::cgroup::Cgroup;
use dhow_oci::protocol::Request;
use dhow_oci::spec::{ContainerSpec, Limits, Rootfs, State, Status};

use super::record::{self, Container, ContainerMeta, new_id};
use super::specification::ImageVolumes;
use super::{Inner, blocking, cdi, specification};
use crate::Error;
use crate::runtime::{ContainerConfig, ContainerStats, Resources, RuntimeEventKind, SandboxState};

/// How long a killed container gets to disappear.
const KILL_LIMIT: Duration = Duration::from_secs(20);

pub async fn create(inner: &Arc<Inner>, sandbox_id: &str, mut config: ContainerConfig) -> Result<String, Error> {
    cdi::resolve(&mut config)?;
    let sandbox = inner.sandbox(sandbox_id)?;
    if sandbox.state != SandboxState::Ready {
        return Err(Error::FailedPrecondition(format!("sandbox {sandbox_id} is not ready")));
    }
    let image = inner
        .config
        .images
        .get(&config.image)
        .ok_or_else(|| Error::NotFound { kind: "image", id: config.image.clone() })?;
    let id = new_id();
    let dir = inner.config.container_dir(sandbox_id, &id);
    hold_image(inner, &image, &id)?;
    let made = make(inner, &sandbox, &id, config, &image, &dir).await;
    if made.is_err() {
        let shim = sandbox.shim.clone();
        let request = Request::Remove { id: id.clone() };
        let _ = blocking(move || Ok(shim.tell(&request)?)).await;
        release_image(inner, &id);
        inner.containers.lock().remove(&id);
        record::remove_folder(&dir)?;
    }
    made.map(|()| id)
}

async fn make(
    inner: &Arc<Inner>,
    sandbox: &record::Sandbox,
    id: &str,
    config: ContainerConfig,
    image: &Image,
    dir: &Path,
) -> Result<(), Error> {
    let lower = inner.config.images.layers(image).await.map_err(|error| Error::internal("unpack the image", error))?;
    let rootfs = Rootfs {
        lower,
        upper: dir.join("upper"),
        work: dir.join("work"),
        target: dir.join("root"),
        readonly: config.security.readonly_rootfs,
    };
    let volumes = image_volumes(inner, &config, id).await?;
    let spec = specification::container(&inner.config, &sandbox.meta, id, &config, image, rootfs, &volumes)?;
    let meta = ContainerMeta {
        id: id.to_owned(),
        sandbox_id: sandbox.meta.id.clone(),
        image_ref: image.id.clone(),
        stop_signal: specification::stop_signal(&config, image),
        log_path: spec.log_path.clone(),
        cgroup: spec.cgroup.clone(),
        config,
    };
    for folder in [&spec.rootfs.upper, &spec.rootfs.work, &spec.rootfs.target] {
        fs::create_dir_all(folder).map_err(|error| Error::internal(format!("create {}", folder.display()), error))?;
    }
    if let Some(range) = sandbox.meta.users {
        std::os::unix::fs::chown(&spec.rootfs.upper, Some(range.host), Some(range.host))
            .map_err(|error| Error::internal("give the root folder to the pod's root", error))?;
    }
    // The top layer's folder is the container's `/`.
    fs::set_permissions(&spec.rootfs.upper, fs::Permissions::from_mode(0o755))
        .map_err(|error| Error::internal("prepare the root folder", error))?;
    record::write(&dir.join("spec.json"), &spec)?;
    record::write(&dir.join("meta.json"), &meta)?;
    // Known before it exists, so that no change of its state goes unnoticed.
    let state = State { id: id.to_owned(), ..State::default() };
    inner.containers.lock().insert(id.to_owned(), Container { meta, state });
    let (shim, request) = (sandbox.shim.clone(), Request::Create { id: id.to_owned() });
    blocking(move || Ok(shim.tell(&request)?)).await?;
    if let Some(state) = record::read::<State>(&dir.join("state.json"))
        && let Some(container) = inner.containers.lock().get_mut(id)
        && container.state.status == Status::Created
    {
        container.state = state;
    }
    Ok(())
}

pub async fn start(inner: &Arc<Inner>, id: &str) -> Result<(), Error> {
    let container = inner.container(id)?;
    let shim = inner.sandbox(&container.meta.sandbox_id)?.shim;
    let request = Request::Start { id: id.to_owned() };
    let started = blocking(move || Ok(shim.tell(&request)?)).await;
    // Now there is time to make the next pod's sandbox.
    inner.slots.refill();
    // The caller may look at once, also at what became of a program that cannot be run.
    let settled = inner.wait_until(|| inner.container(id).map_or(true, |c| c.state.status != Status::Created));
    let limit = if started.is_ok() { KILL_LIMIT } else { Duration::from_secs(2) };
    let _ = tokio::time::timeout(limit, settled).await;
    started
}

pub async fn stop(inner: &Arc<Inner>, id: &str, grace: Duration) -> Result<(), Error> {
    let Ok(container) = inner.container(id) else { return Ok(()) };
    let stopped = || inner.container(id).map_or(true, |c| c.state.status == Status::Stopped);
    if stopped() {
        return Ok(());
    }
    if container.state.status == Status::Running && !grace.is_zero() {
        signal(inner, &container, container.meta.stop_signal, false).await?;
        if tokio::time::timeout(grace, inner.wait_until(stopped)).await.is_ok() {
            return Ok(());
        }
    }
    signal(inner, &container, rustix::process::Signal::KILL.as_raw(), true).await?;
    match tokio::time::timeout(KILL_LIMIT, inner.wait_until(stopped)).await {
        Ok(()) => Ok(()),
        Err(_) => {
            let seconds = KILL_LIMIT.as_secs();
            let context =
                format!("container {id} was killed {seconds} s ago and has not ended; it may wait for a device");
            Err(Error::Internal { context, source: None })
        }
    }
}

async fn signal(inner: &Arc<Inner>, container: &Container, signal: i32, all: bool) -> Result<(), Error> {
    let shim = inner.sandbox(&container.meta.sandbox_id)?.shim;
    let request = Request::Signal { id: container.meta.id.clone(), signal, all };
    blocking(move || match shim.tell(&request) {
        // Gone with its shim; the watch says so too.
        Err(dhow_oci::Error::Gone { .. } | dhow_oci::Error::NotFound(_)) => Ok(()),
        result => Ok(result?),
    })
    .await
}

/// Kills what runs and removes everything of a container. One that is gone is fine.
pub async fn remove(inner: &Arc<Inner>, id: &str) -> Result<(), Error> {
    let Ok(container) = inner.container(id) else { return Ok(()) };
    let sandbox = inner.sandbox(&container.meta.sandbox_id)?;
    let (shim, request) = (sandbox.shim.clone(), Request::Remove { id: id.to_owned() });
    let dir = inner.config.container_dir(&container.meta.sandbox_id, id);
    let cgroup = Cgroup::everywhere(&container.meta.cgroup);
    blocking(move || {
        match shim.tell(&request) {
            Err(dhow_oci::Error::Gone { .. } | dhow_oci::Error::NotFound(_)) => cgroup.remove_all(),
            result => result?,
        }
        record::remove_folder(&dir)
    })
    .await?;
    release_image(inner, id);
    inner.containers.lock().remove(id);
    inner.announce(&sandbox, id, RuntimeEventKind::Removed);
    Ok(())
}

pub async fn update(inner: &Arc<Inner>, id: &str, resources: Resources) -> Result<(), Error> {
    let container = inner.container(id)?;
    let limits = Limits::from(&resources);
    let path = inner.config.container_dir(&container.meta.sandbox_id, id).join("spec.json");
    Cgroup::new(&container.meta.cgroup).apply(&limits)?;
    let mut spec = specification_of(&path)?;
    spec.limits = limits;
    record::write(&path, &spec)?;
    if let Some(container) = inner.containers.lock().get_mut(id) {
        container.meta.config.resources = resources;
        let meta = path.with_file_name("meta.json");
        record::write(&meta, &container.meta)?;
    }
    Ok(())
}

/// The specification a container was made from.
pub fn specification_of(path: &Path) -> Result<ContainerSpec, Error> {
    record::read(path).ok_or_else(|| Error::internal("read a container's specification", path.display().to_string()))
}

pub fn stats(inner: &Inner, id: &str) -> Result<ContainerStats, Error> {
    let container = inner.container(id)?;
    if container.state.status != Status::Running {
        return Ok(ContainerStats { id: id.to_owned(), ..ContainerStats::default() });
    }
    let usage = Cgroup::new(&container.meta.cgroup).usage();
    Ok(ContainerStats {
        id: id.to_owned(),
        cpu_usage_core_nanos: usage.cpu_nanos,
        memory_usage_bytes: usage.memory_bytes,
        memory_working_set_bytes: usage.working_set_bytes,
        pids: usage.pids,
    })
}

/// The layers of the images that the container has as volumes, held as its own are.
async fn image_volumes(inner: &Inner, config: &ContainerConfig, id: &str) -> Result<ImageVolumes, Error> {
    let mut volumes = ImageVolumes::new();
    for name in config.mounts.iter().filter_map(|mount| mount.image.as_ref()) {
        let found = inner.config.images.get(name);
        let image = found.ok_or_else(|| Error::NotFound { kind: "image", id: name.clone() })?;
        hold_image(inner, &image, id)?;
        let layers = inner.config.images.layers(&image).await;
        let layers = layers.map_err(|error| Error::internal("unpack the image of a volume", error))?;
        if layers.is_empty() {
            return Err(Error::InvalidArgument(format!("image {name} has no files to mount")));
        }
        volumes.insert(name.clone(), layers);
    }
    Ok(volumes)
}

/// While the container exists its layers stay, also when the image loses its names.
fn hold_image(inner: &Inner, image: &Image, container: &str) -> Result<(), Error> {
    inner.config.images.hold(&image.id, container).map_err(|error| Error::internal("hold the image", error))
}

pub fn release_image(inner: &Inner, container: &str) {
    if let Err(error) = inner.config.images.release(container) {
        tracing::warn!(container, %error, "cannot release a container's image");
    }
}
