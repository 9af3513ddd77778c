//! The life of a sandbox: made, adopted after a restart, stopped, removed.

use std::os::fd::AsFd;
use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;

use super::request::{CONTAINER, SANDBOX, SANDBOX_ID};
use super::{Inner, answer, api, request};
use crate::cgroups::{self, CgroupDriver};
use crate::embedded::specification::resolv_conf;
use crate::runtime::{NamespaceMode, SandboxConfig, SandboxState, SandboxStatus};
use crate::{Error, NetworkRequest};

/// Starts a sandbox. On error nothing is left behind.
pub async fn run(inner: &Inner, config: SandboxConfig) -> Result<String, Error> {
    if !config.runtime_handler.is_empty() {
        return Err(Error::InvalidArgument(format!(
            "no runtime for handler {:?} is configured",
            config.runtime_handler
        )));
    }
    let asked = request::sandbox(&config, &inner.groups());
    let made = inner.api.post("/containers/create", &asked).await.map_err(|failure| failure.on("sandbox", ""))?;
    let id = made["Id"].as_str().unwrap_or_default().to_owned();
    let started = start(inner, &id, config).await;
    if started.is_err()
        && let Err(error) = remove(inner, &id).await
    {
        tracing::warn!(sandbox = id, %error, "cannot clear a sandbox that failed to start");
    }
    started.map(|()| id)
}

async fn start(inner: &Inner, id: &str, config: SandboxConfig) -> Result<(), Error> {
    let path = format!("/containers/{id}/start");
    inner.api.post(&path, &Value::Null).await.map_err(|failure| failure.on("sandbox", id))?;
    let inspected = inner.inspect("sandbox", SANDBOX, id).await?;
    // Docker writes this file for every container's mount of it, and leaves it alone without a network of its own.
    if let (Some(dns), Some(file)) = (&config.dns, inspected["ResolvConfPath"].as_str()) {
        std::fs::write(file, resolv_conf(dns)).map_err(|error| Error::internal(format!("write {file}"), error))?;
    }
    connect(inner, id, &config, &inspected).await
}

/// Gives a running sandbox its network; one that has it already keeps it.
async fn connect(inner: &Inner, id: &str, config: &SandboxConfig, inspected: &Value) -> Result<(), Error> {
    let ips = if config.namespaces.network == NamespaceMode::Node {
        Vec::new()
    } else {
        let path = format!("/proc/{}/ns/net", inspected["State"]["Pid"]);
        let netns = std::fs::File::open(&path).map_err(|error| Error::internal("open the sandbox's network", error))?;
        let request = NetworkRequest {
            sandbox_id: id.to_owned(),
            pod: config.pod.clone(),
            port_mappings: config.port_mappings.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        };
        inner.config.network.attach(netns.as_fd(), &request).await?
    };
    inner.addresses.lock().insert(id.to_owned(), ips);
    Ok(())
}

/// Finds this cloud's sandboxes again, and their containers' logs.
pub async fn adopt_all(inner: &Arc<Inner>) -> Result<(), Error> {
    let mut live = Vec::new();
    for listed in inner.list(SANDBOX).await? {
        let Some(id) = listed["Id"].as_str() else { continue };
        let config = answer::sandbox_config(id, &listed["Labels"])?;
        if answer::sandbox_state(listed["State"].as_str().unwrap_or_default()) == SandboxState::NotReady {
            continue;
        }
        match adopt(inner, id, &config).await {
            Ok(()) => live.push(id.to_owned()),
            // One that ended since it was listed needs no network.
            Err(error) if runs(inner, id).await? => return Err(error),
            Err(error) => tracing::debug!(sandbox = id, %error, "pass over a sandbox that ended"),
        }
    }
    inner.config.network.retain(&live).await?;
    for listed in inner.list(CONTAINER).await? {
        // What it wrote since we last looked is read also when it has ended.
        if let Some(id) = listed["Id"].as_str().filter(|_| listed["State"] != "created") {
            let status = inner.inspect("container", CONTAINER, id).await?;
            inner.logs.follow(&status)?;
        }
    }
    Ok(())
}

async fn adopt(inner: &Inner, id: &str, config: &SandboxConfig) -> Result<(), Error> {
    let inspected = inner.inspect("sandbox", SANDBOX, id).await?;
    connect(inner, id, config, &inspected).await
}

async fn runs(inner: &Inner, id: &str) -> Result<bool, Error> {
    match inner.inspect("sandbox", SANDBOX, id).await {
        Ok(inspected) => {
            Ok(answer::sandbox_state(inspected["State"]["Status"].as_str().unwrap_or_default()) == SandboxState::Ready)
        }
        Err(Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

pub async fn status(inner: &Inner, id: &str) -> Result<SandboxStatus, Error> {
    let inspected = inner.inspect("sandbox", SANDBOX, id).await?;
    let config = answer::sandbox_config(id, &inspected["Config"]["Labels"])?;
    let state = answer::sandbox_state(inspected["State"]["Status"].as_str().unwrap_or_default());
    Ok(describe(inner, id, config, state, answer::time(&inspected["Created"])))
}

pub async fn list(inner: &Inner) -> Result<Vec<SandboxStatus>, Error> {
    let describe = |listed: Value| {
        let id = listed["Id"].as_str().unwrap_or_default();
        let config = answer::sandbox_config(id, &listed["Labels"])?;
        let state = answer::sandbox_state(listed["State"].as_str().unwrap_or_default());
        let created = std::time::Duration::from_secs(listed["Created"].as_u64().unwrap_or_default());
        Ok(describe(inner, id, config, state, Some(std::time::SystemTime::UNIX_EPOCH + created)))
    };
    inner.list(SANDBOX).await?.into_iter().map(describe).collect()
}

fn describe(
    inner: &Inner,
    id: &str,
    config: SandboxConfig,
    state: SandboxState,
    created_at: Option<std::time::SystemTime>,
) -> SandboxStatus {
    let ips = inner.addresses.lock().get(id).cloned().unwrap_or_default();
    SandboxStatus {
        id: id.to_owned(),
        pod: config.pod,
        state,
        created_at: created_at.unwrap_or(std::time::SystemTime::UNIX_EPOCH),
        ips,
        labels: config.labels,
        annotations: config.annotations,
    }
}

/// The containers of a sandbox, by id.
async fn members(inner: &Inner, id: &str) -> Result<Vec<String>, Error> {
    let list = inner.list(&format!("{SANDBOX_ID}={id}")).await?;
    Ok(list.iter().filter_map(|container| container["Id"].as_str().map(str::to_owned)).collect())
}

/// Kills what runs in a sandbox. One that is gone is fine.
pub async fn stop(inner: &Inner, id: &str) -> Result<(), Error> {
    for container in members(inner, id).await? {
        kill(inner, &container).await?;
    }
    inner.config.network.detach(id).await?;
    kill(inner, id).await
}

async fn kill(inner: &Inner, id: &str) -> Result<(), Error> {
    let path = format!("/containers/{}/stop?t=0", api::escape(id));
    match inner.api.post(&path, &Value::Null).await {
        Err(failure) if failure.is(StatusCode::NOT_FOUND) => Ok(()),
        Err(failure) => Err(failure.on("container", id)),
        Ok(_) => Ok(()),
    }
}

/// Removes a sandbox with its containers. One that is gone is fine.
pub async fn remove(inner: &Inner, id: &str) -> Result<(), Error> {
    let config = match inner.inspect("sandbox", SANDBOX, id).await {
        Err(Error::NotFound { .. }) => return Ok(()),
        inspected => answer::sandbox_config(id, &inspected?["Config"]["Labels"])?,
    };
    for container in members(inner, id).await? {
        remove_container(inner, &container).await?;
    }
    inner.config.network.detach(id).await?;
    remove_container(inner, id).await?;
    inner.addresses.lock().remove(id);
    if inner.cgroup_driver == CgroupDriver::Cgroupfs {
        // The pod's own group is nobody else's to remove; one still in use stays.
        let path = format!("{}/{}", inner.config.cgroup_root, config.cgroup_parent);
        cgroups::remove(&path);
    }
    Ok(())
}

/// Kills and removes one container. One that is gone, or going, is fine.
pub async fn remove_container(inner: &Inner, id: &str) -> Result<(), Error> {
    let path = format!("/containers/{}?force=true&v=true", api::escape(id));
    match inner.api.delete(&path).await {
        Err(failure) if failure.is(StatusCode::NOT_FOUND) || failure.is(StatusCode::CONFLICT) => {}
        Err(failure) => return Err(failure.on("container", id)),
        Ok(_) => {}
    }
    inner.logs.forget(id);
    inner.statuses.lock().remove(id);
    Ok(())
}
