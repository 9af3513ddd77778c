//! The `Runtime` trait, method by method.

use std::collections::HashSet;
use std::time::Duration;

use dhow_oci::cgroup::Cgroup;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::request::{CLOUD, SANDBOX_CONFIG};
use super::{CriRuntime, Inner, answer, images, request, streams};
use crate::cgroups::{self, CgroupDriver, cgroup_parent};
use crate::proto;
use crate::runtime::{
    ContainerConfig, ContainerState, ContainerStats, ContainerStatus, DiskUsage, Duplex, ExecRequest, ExecResult,
    ImageAuth, ImageInfo, Reader, Resources, RuntimeEvent, RuntimeHandler, RuntimeVersion, SandboxConfig,
    SandboxStatus, Streams,
};
use crate::{Error, Runtime, socket};

impl Inner {
    fn cgroup(&self, parent: &str) -> String {
        format!("{}/{parent}", self.config.cgroup_root)
    }

    fn sandbox_request(&self, config: &SandboxConfig) -> proto::PodSandboxConfig {
        let parent = cgroup_parent(self.cgroup_driver, &self.cgroup(&config.cgroup_parent));
        request::sandbox(config, &self.config.cgroup_root, parent)
    }

    async fn raw_sandbox(&self, id: &str) -> Result<proto::PodSandboxStatus, Error> {
        let request = proto::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let status = self.runtime.clone().pod_sandbox_status(request).await;
        let status = status.map_err(|status| answer::failure("sandbox", id, status))?.into_inner().status;
        status.ok_or_else(|| Error::NotFound { kind: "sandbox", id: id.to_owned() })
    }

    /// What a sandbox was asked to be; `None` if it is none of ours.
    async fn sandbox_config(&self, id: &str) -> Result<Option<SandboxConfig>, Error> {
        if let Some(config) = self.sandboxes.lock().get(id) {
            return Ok(Some(config.clone()));
        }
        let annotations = self.raw_sandbox(id).await?.annotations;
        let config = annotations.get(SANDBOX_CONFIG).and_then(|text| serde_json::from_str::<SandboxConfig>(text).ok());
        if let Some(config) = &config {
            self.sandboxes.lock().insert(id.to_owned(), config.clone());
        }
        Ok(config)
    }

    pub async fn raw_container(&self, id: &str) -> Result<proto::ContainerStatus, Error> {
        let request = proto::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let status = self.runtime.clone().container_status(request).await;
        let status = status.map_err(|status| answer::failure("container", id, status))?.into_inner().status;
        status.ok_or_else(|| Error::NotFound { kind: "container", id: id.to_owned() })
    }

    pub async fn raw_containers(&self, id: &str) -> Result<Vec<proto::Container>, Error> {
        let filter = Some(proto::ContainerFilter { id: id.to_owned(), ..Default::default() });
        let list = self.runtime.clone().list_containers(proto::ListContainersRequest { filter }).await;
        Ok(list.map_err(|status| answer::failure("container", id, status))?.into_inner().containers)
    }

    /// The sandboxes of this cloud.
    pub async fn raw_sandboxes(&self) -> Result<Vec<proto::PodSandbox>, Error> {
        let ours = (CLOUD.to_owned(), self.config.cgroup_root.clone());
        let filter = Some(proto::PodSandboxFilter { label_selector: [ours].into(), ..Default::default() });
        let list = self.runtime.clone().list_pod_sandbox(proto::ListPodSandboxRequest { filter }).await;
        Ok(list.map_err(|status| answer::failure("sandbox", "", status))?.into_inner().items)
    }

    /// The status of a listed container. What was known of it holds until its state changes.
    pub async fn status_of(&self, listed: proto::Container) -> Result<ContainerStatus, Error> {
        let state = answer::container_state(listed.state());
        if let Some(known) = self.statuses.lock().get(&listed.id).filter(|known| known.state == state) {
            return Ok(known.clone());
        }
        let status = answer::container(listed.pod_sandbox_id, self.raw_container(&listed.id).await?);
        if matches!(status.state, ContainerState::Running | ContainerState::Exited) {
            self.statuses.lock().insert(listed.id, status.clone());
        }
        Ok(status)
    }

    pub async fn status(&self, id: &str) -> Result<ContainerStatus, Error> {
        let listed = self.raw_containers(id).await?.into_iter().find(|container| container.id == id);
        let listed = listed.ok_or_else(|| Error::NotFound { kind: "container", id: id.to_owned() })?;
        Ok(answer::container(listed.pod_sandbox_id, self.raw_container(id).await?))
    }

    /// All containers of this cloud's sandboxes.
    pub async fn statuses(&self) -> Result<Vec<ContainerStatus>, Error> {
        let listed = self.raw_containers("").await?;
        let ours: HashSet<String> = self.raw_sandboxes().await?.into_iter().map(|sandbox| sandbox.id).collect();
        self.statuses.lock().retain(|id, _| listed.iter().any(|container| container.id == *id));
        let mut all = Vec::with_capacity(listed.len());
        for container in listed.into_iter().filter(|container| ours.contains(&container.pod_sandbox_id)) {
            match self.status_of(container).await {
                Ok(status) => all.push(status),
                // Removed since it was listed.
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }
}

/// Ends of what does not exist succeed.
fn gone_is_fine(kind: &'static str, id: &str, status: tonic::Status) -> Result<(), Error> {
    match answer::failure(kind, id, status) {
        Error::NotFound { .. } => Ok(()),
        error => Err(error),
    }
}

/// Whole seconds, as CRI counts them; a part of one is one.
fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(i64::MAX)
}

/// CRI has no word for that: an older runtime takes such a mount for one without a source.
fn mounts_images(name: &str, version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match name {
        "containerd" => version >= (2, 1),
        "cri-o" => version >= (1, 31),
        "dhow" => true,
        _ => false,
    }
}

#[async_trait::async_trait]
impl Runtime for CriRuntime {
    async fn version(&self) -> Result<RuntimeVersion, Error> {
        let version = &self.inner.version;
        Ok(RuntimeVersion { name: version.runtime_name.clone(), version: version.runtime_version.clone() })
    }

    async fn handlers(&self) -> Result<Vec<RuntimeHandler>, Error> {
        let status = self.inner.runtime.clone().status(proto::StatusRequest::default()).await;
        let status = status.map_err(|status| answer::failure("runtime", "", status))?.into_inner();
        let version = &self.inner.version;
        let image_volumes = mounts_images(&version.runtime_name, &version.runtime_version);
        let handler = |handler: proto::RuntimeHandler| {
            let features = handler.features.unwrap_or_default();
            RuntimeHandler {
                name: handler.name,
                user_namespaces: features.user_namespaces,
                recursive_readonly_mounts: features.recursive_read_only_mounts,
                image_volumes,
            }
        };
        Ok(status.runtime_handlers.into_iter().map(handler).collect())
    }

    async fn run_sandbox(&self, config: SandboxConfig) -> Result<String, Error> {
        let request = proto::RunPodSandboxRequest {
            config: Some(self.inner.sandbox_request(&config)),
            runtime_handler: config.runtime_handler.clone(),
        };
        let made = self.inner.runtime.clone().run_pod_sandbox(request).await;
        let id = made.map_err(|status| match answer::failure("sandbox", "", status) {
            Error::Internal { context, .. } if context.contains("network") || context.contains("cni") => {
                Error::Network(context)
            }
            error => error,
        })?;
        let id = id.into_inner().pod_sandbox_id;
        self.inner.sandboxes.lock().insert(id.clone(), config);
        Ok(id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), Error> {
        let request = proto::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        match self.inner.runtime.clone().stop_pod_sandbox(request).await {
            Ok(_) => Ok(()),
            Err(status) => gone_is_fine("sandbox", id, status),
        }
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), Error> {
        let config = match self.inner.sandbox_config(id).await {
            Err(Error::NotFound { .. }) => return Ok(()),
            config => config?,
        };
        self.stop_sandbox(id).await?;
        let request = proto::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        if let Err(status) = self.inner.runtime.clone().remove_pod_sandbox(request).await {
            gone_is_fine("sandbox", id, status)?;
        }
        self.inner.sandboxes.lock().remove(id);
        if let Some(config) = config.filter(|_| self.inner.cgroup_driver == CgroupDriver::Cgroupfs) {
            // The pod's own group is nobody else's to remove; one still in use stays.
            cgroups::remove(&self.inner.cgroup(&config.cgroup_parent));
        }
        Ok(())
    }

    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus, Error> {
        Ok(answer::sandbox(self.inner.raw_sandbox(id).await?))
    }

    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, Error> {
        let mut all = Vec::new();
        for sandbox in self.inner.raw_sandboxes().await? {
            // The list lacks the addresses.
            match self.inner.raw_sandbox(&sandbox.id).await {
                Ok(status) => all.push(answer::sandbox(status)),
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    async fn create_container(&self, sandbox: &str, config: ContainerConfig) -> Result<String, Error> {
        let sandbox_config = self.inner.sandbox_config(sandbox).await?;
        let sandbox_config = sandbox_config
            .ok_or_else(|| Error::FailedPrecondition(format!("sandbox {sandbox} was not made by dhow")))?;
        let log = sandbox_config.log_directory.join(&config.log_path);
        if let Some(folder) = log.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|error| Error::internal(format!("create {}", folder.display()), error))?;
        }
        let request = proto::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(request::container(&config, &sandbox_config, dhow_oci::cgroup::is_unified())),
            sandbox_config: Some(self.inner.sandbox_request(&sandbox_config)),
        };
        match self.inner.runtime.clone().create_container(request).await {
            Ok(made) => Ok(made.into_inner().container_id),
            Err(status) if status.code() == tonic::Code::NotFound && status.message().contains("image") => {
                Err(Error::NotFound { kind: "image", id: config.image })
            }
            Err(status) => Err(answer::failure("sandbox", sandbox, status)),
        }
    }

    async fn start_container(&self, id: &str) -> Result<(), Error> {
        let request = proto::StartContainerRequest { container_id: id.to_owned() };
        match self.inner.runtime.clone().start_container(request).await {
            Ok(_) => Ok(()),
            Err(status) => Err(answer::failure("container", id, status)),
        }
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Error> {
        let request = proto::StopContainerRequest { container_id: id.to_owned(), timeout: seconds(grace) };
        match self.inner.runtime.clone().stop_container(request).await {
            Ok(_) => Ok(()),
            Err(status) => gone_is_fine("container", id, status),
        }
    }

    async fn remove_container(&self, id: &str) -> Result<(), Error> {
        self.stop_container(id, Duration::ZERO).await?;
        let request = proto::RemoveContainerRequest { container_id: id.to_owned() };
        match self.inner.runtime.clone().remove_container(request).await {
            Ok(_) => Ok(()),
            Err(status) => gone_is_fine("container", id, status),
        }
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus, Error> {
        self.inner.status(id).await
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, Error> {
        self.inner.statuses().await
    }

    async fn update_container_resources(&self, id: &str, resources: Resources) -> Result<(), Error> {
        let request = proto::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(request::resources(&resources, dhow_oci::cgroup::is_unified())),
            ..Default::default()
        };
        match self.inner.runtime.clone().update_container_resources(request).await {
            Ok(_) => Ok(()),
            Err(status) => Err(answer::failure("container", id, status)),
        }
    }

    async fn container_stats(&self, id: &str) -> Result<ContainerStats, Error> {
        let status = self.inner.status(id).await?;
        let pids = match self.inner.sandbox_config(&status.sandbox_id).await? {
            Some(config) => Cgroup::new(&format!("{}/{id}", self.inner.cgroup(&config.cgroup_parent))).usage().pids,
            None => 0,
        };
        let request = proto::ContainerStatsRequest { container_id: id.to_owned() };
        let stats = self.inner.runtime.clone().container_stats(request).await;
        let stats = match stats {
            Ok(stats) => stats.into_inner().stats.unwrap_or_default(),
            // One that does not run uses nothing; containerd calls that an error.
            Err(_) if status.state != ContainerState::Running => proto::ContainerStats::default(),
            Err(failed) => return Err(answer::failure("container", id, failed)),
        };
        Ok(ContainerStats { id: id.to_owned(), ..answer::stats(stats, pids) })
    }

    /// Who holds the sandbox's namespaces, which the runtime tells those who ask for everything.
    async fn sandbox_process(&self, id: &str) -> Result<Option<u32>, Error> {
        let request = proto::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let answer = self.inner.runtime.clone().pod_sandbox_status(request).await;
        let answer = answer.map_err(|status| answer::failure("sandbox", id, status))?.into_inner();
        let info = answer.info.get("info").and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        let pid = info.and_then(|info| u32::try_from(info["pid"].as_u64()?).ok());
        Ok(pid.filter(|pid| *pid > 0))
    }

    async fn processes(&self) -> Vec<u32> {
        socket::peer(&self.inner.config.socket).await.into_iter().collect()
    }

    async fn writable_layer(&self, id: &str) -> Result<Option<DiskUsage>, Error> {
        let request = proto::ContainerStatsRequest { container_id: id.to_owned() };
        // One that does not run has no stats to containerd.
        let Ok(answer) = self.inner.runtime.clone().container_stats(request).await else { return Ok(None) };
        let value = |value: Option<proto::UInt64Value>| value.map_or(0, |value| value.value);
        let layer = answer.into_inner().stats.and_then(|stats| stats.writable_layer);
        Ok(layer.map(|layer| DiskUsage { bytes: value(layer.used_bytes), inodes: value(layer.inodes_used) }))
    }

    async fn reopen_container_log(&self, id: &str) -> Result<(), Error> {
        let request = proto::ReopenContainerLogRequest { container_id: id.to_owned() };
        match self.inner.runtime.clone().reopen_container_log(request).await {
            Ok(_) => Ok(()),
            Err(status) => Err(answer::failure("container", id, status)),
        }
    }

    async fn exec_sync(&self, id: &str, command: &[String], timeout: Option<Duration>) -> Result<ExecResult, Error> {
        let request = proto::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            timeout: timeout.map_or(0, seconds),
        };
        match self.inner.runtime.clone().exec_sync(request).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                Ok(ExecResult { stdout: answer.stdout, stderr: answer.stderr, exit_code: answer.exit_code })
            }
            Err(status) if status.code() == tonic::Code::DeadlineExceeded => {
                Err(Error::DeadlineExceeded(timeout.unwrap_or_default()))
            }
            Err(status) => Err(answer::failure("container", id, status)),
        }
    }

    async fn exec(&self, id: &str, request: ExecRequest) -> Result<Streams, Error> {
        streams::exec(&self.inner, id, request).await
    }

    async fn attach(&self, id: &str, stdin: bool) -> Result<Streams, Error> {
        streams::attach(&self.inner, id, stdin).await
    }

    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>, Error> {
        streams::port_forward(&self.inner, sandbox, port).await
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        let receiver = self.inner.events.subscribe();
        // Ends at a gap, so that the listener lists again.
        futures::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await.ok()?, receiver))).boxed()
    }

    async fn pull_image(&self, reference: &str, auth: Option<ImageAuth>) -> Result<String, Error> {
        images::pull(&self.inner, reference, auth).await
    }

    async fn image_status(&self, reference: &str) -> Result<Option<ImageInfo>, Error> {
        images::status(&self.inner, reference).await
    }

    async fn list_images(&self) -> Result<Vec<ImageInfo>, Error> {
        images::list(&self.inner).await
    }

    async fn remove_image(&self, reference: &str) -> Result<(), Error> {
        images::remove(&self.inner, reference).await
    }

    async fn import_image(&self, archive: Reader) -> Result<Vec<String>, Error> {
        images::import(&self.inner, archive).await
    }
}
