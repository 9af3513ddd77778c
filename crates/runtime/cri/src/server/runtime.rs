//! `RuntimeService`, call by call.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::streaming::Ticket;
use super::{Service, Shared, answer, request, status};
use crate::proto;
use crate::proto::runtime_service_server::RuntimeService;
use crate::runtime::{
    ContainerConfig, ContainerState, ContainerStats, ContainerStatus, ExecRequest, PodIdentity, RuntimeEvent,
    SandboxStatus,
};
use crate::{Error, links};

type Answer<T> = Result<Response<T>, Status>;

/// Whether an object has all the labels that are asked for.
fn labelled(labels: &std::collections::BTreeMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// crictl allows the beginning of an id.
fn named(id: &str, wanted: &str) -> bool {
    wanted.is_empty() || id.starts_with(wanted)
}

fn taken(kind: &str, name: &str) -> Status {
    Status::already_exists(format!("failed to reserve {kind} name {name:?}: it is taken"))
}

fn now() -> i64 {
    answer::nanos(Some(SystemTime::now()))
}

impl Service {
    async fn containers(&self, filter: Option<proto::ContainerFilter>) -> Result<Vec<ContainerStatus>, Status> {
        let filter = filter.unwrap_or_default();
        let mut all = self.runtime.list_containers().await.map_err(status)?;
        all.retain(|container| {
            named(&container.id, &filter.id)
                && named(&container.sandbox_id, &filter.pod_sandbox_id)
                && labelled(&container.labels, &filter.label_selector)
                && filter.state.is_none_or(|wanted| answer::container(container).state == wanted.state)
        });
        Ok(all)
    }

    async fn sandboxes(&self, filter: Option<proto::PodSandboxFilter>) -> Result<Vec<SandboxStatus>, Status> {
        let filter = filter.unwrap_or_default();
        let mut all = self.runtime.list_sandboxes().await.map_err(status)?;
        all.retain(|sandbox| {
            named(&sandbox.id, &filter.id)
                && labelled(&sandbox.labels, &filter.label_selector)
                && filter.state.is_none_or(|wanted| answer::sandbox(sandbox, None).state == wanted.state)
        });
        Ok(all)
    }

    async fn stats_of(&self, container: &ContainerStatus) -> Result<(proto::ContainerStats, ContainerStats), Status> {
        let stats = self.runtime.container_stats(&container.id).await.map_err(status)?;
        let layer = self.runtime.writable_layer(&container.id).await.map_err(status)?;
        let layer = layer.map(|layer| answer::part(&self.images_folder, layer, now()));
        Ok((answer::stats(container, &stats, layer, now()), stats))
    }

    /// All that is known of a container that may go at any moment.
    async fn container_status_of(&self, container: &ContainerStatus) -> proto::ContainerStatus {
        let config = self.runtime.container_config(&container.id).await.ok().flatten();
        answer::container_status(container, config.as_ref())
    }

    /// Whether there is such a container, and it runs.
    async fn runs(&self, id: &str) -> Result<(), Status> {
        let container = self.runtime.container_status(id).await.map_err(status)?;
        if container.state != ContainerState::Running {
            return Err(status(Error::FailedPrecondition(format!("container {id} is not running"))));
        }
        Ok(())
    }

    async fn container_statuses(&self, sandbox: &str) -> Vec<proto::ContainerStatus> {
        let containers = self.runtime.list_containers().await.unwrap_or_default();
        let mut own = Vec::new();
        for container in containers.iter().filter(|container| container.sandbox_id == sandbox) {
            own.push(self.container_status_of(container).await);
        }
        own
    }

    async fn sandbox_stats_of(&self, sandbox: &SandboxStatus) -> Result<proto::PodSandboxStats, Status> {
        let mut all = Vec::new();
        for container in self.runtime.list_containers().await.map_err(status)? {
            if container.sandbox_id == sandbox.id && container.state == ContainerState::Running {
                all.push(self.stats_of(&container).await?);
            }
        }
        // One on the host's network has no addresses, and no links of its own.
        let process = if sandbox.ips.is_empty() { None } else { self.runtime.sandbox_process(&sandbox.id).await.ok() };
        let links = process.flatten().map(links::of_process);
        Ok(answer::sandbox_stats(sandbox, all, links, now()))
    }

    /// What a client is told of an event: the pod as it is now.
    async fn describe(&self, event: RuntimeEvent) -> proto::ContainerEventResponse {
        // A pod that is gone has nothing more to tell.
        let sandbox = self.runtime.sandbox_status(&event.sandbox_id).await.ok();
        let config = self.runtime.sandbox_config(&event.sandbox_id).await.ok().flatten();
        proto::ContainerEventResponse {
            // The sandbox' own events carry its id, as with other runtimes.
            container_id: if event.container_id.is_empty() { event.sandbox_id.clone() } else { event.container_id },
            container_event_type: answer::event_kind(event.kind).into(),
            created_at: now(),
            pod_sandbox_status: sandbox.map(|sandbox| answer::sandbox_status(&sandbox, config.as_ref())),
            containers_statuses: self.container_statuses(&event.sandbox_id).await,
        }
    }
}

#[tonic::async_trait]
impl RuntimeService for Shared {
    type GetContainerEventsStream = BoxStream<'static, Result<proto::ContainerEventResponse, Status>>;

    async fn version(&self, _: Request<proto::VersionRequest>) -> Answer<proto::VersionResponse> {
        let version = self.runtime.version().await.map_err(status)?;
        Ok(Response::new(proto::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: version.name,
            runtime_version: version.version,
            runtime_api_version: "v1".into(),
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<proto::RunPodSandboxRequest>,
    ) -> Answer<proto::RunPodSandboxResponse> {
        let asked = request.into_inner();
        let config = asked.config.ok_or_else(|| Status::invalid_argument("the sandbox' configuration is missing"))?;
        let config = request::sandbox(config, asked.runtime_handler).map_err(status)?;
        let pod = &config.pod;
        let name = format!("{}_{}_{}_{}", pod.name, pod.namespace, pod.uid, pod.attempt);
        let _reserved = self.names.reserve(name.clone()).ok_or_else(|| taken("sandbox", &name))?;
        let sandboxes = self.runtime.list_sandboxes().await.map_err(status)?;
        let same = |known: &PodIdentity| {
            (&known.name, &known.namespace, &known.uid, known.attempt)
                == (&pod.name, &pod.namespace, &pod.uid, pod.attempt)
        };
        if sandboxes.iter().any(|known| same(&known.pod)) {
            return Err(taken("sandbox", &name));
        }
        let pod_sandbox_id = self.runtime.run_sandbox(config).await.map_err(status)?;
        Ok(Response::new(proto::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<proto::StopPodSandboxRequest>,
    ) -> Answer<proto::StopPodSandboxResponse> {
        self.runtime.stop_sandbox(&request.into_inner().pod_sandbox_id).await.map_err(status)?;
        Ok(Response::new(proto::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<proto::RemovePodSandboxRequest>,
    ) -> Answer<proto::RemovePodSandboxResponse> {
        self.runtime.remove_sandbox(&request.into_inner().pod_sandbox_id).await.map_err(status)?;
        Ok(Response::new(proto::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<proto::PodSandboxStatusRequest>,
    ) -> Answer<proto::PodSandboxStatusResponse> {
        let asked = request.into_inner();
        let sandbox = self.runtime.sandbox_status(&asked.pod_sandbox_id).await.map_err(status)?;
        let config = self.runtime.sandbox_config(&asked.pod_sandbox_id).await.map_err(status)?;
        let document = serde_json::json!({ "config": config });
        let info = if asked.verbose { answer::info(&document) } else { HashMap::new() };
        Ok(Response::new(proto::PodSandboxStatusResponse {
            status: Some(answer::sandbox_status(&sandbox, config.as_ref())),
            info,
            containers_statuses: self.container_statuses(&sandbox.id).await,
            timestamp: now(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<proto::ListPodSandboxRequest>,
    ) -> Answer<proto::ListPodSandboxResponse> {
        let mut items = Vec::new();
        for sandbox in self.sandboxes(request.into_inner().filter).await? {
            // One that went meanwhile is told as it was.
            let config = self.runtime.sandbox_config(&sandbox.id).await.ok().flatten();
            items.push(answer::sandbox(&sandbox, config.as_ref()));
        }
        Ok(Response::new(proto::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<proto::CreateContainerRequest>,
    ) -> Answer<proto::CreateContainerResponse> {
        let asked = request.into_inner();
        let config =
            asked.config.ok_or_else(|| Status::invalid_argument("the container's configuration is missing"))?;
        let config = request::container(config).map_err(status)?;
        let name = format!("{}_{}_{}", config.name, asked.pod_sandbox_id, config.attempt);
        let _reserved = self.names.reserve(name.clone()).ok_or_else(|| taken("container", &name))?;
        let containers = self.runtime.list_containers().await.map_err(status)?;
        let same = |known: &ContainerStatus| {
            known.sandbox_id == asked.pod_sandbox_id && known.name == config.name && known.attempt == config.attempt
        };
        if containers.iter().any(same) {
            return Err(taken("container", &name));
        }
        let container_id = self.runtime.create_container(&asked.pod_sandbox_id, config).await.map_err(status)?;
        Ok(Response::new(proto::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<proto::StartContainerRequest>,
    ) -> Answer<proto::StartContainerResponse> {
        self.runtime.start_container(&request.into_inner().container_id).await.map_err(status)?;
        Ok(Response::new(proto::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<proto::StopContainerRequest>,
    ) -> Answer<proto::StopContainerResponse> {
        let asked = request.into_inner();
        let grace = Duration::from_secs(u64::try_from(asked.timeout).unwrap_or_default());
        self.runtime.stop_container(&asked.container_id, grace).await.map_err(status)?;
        Ok(Response::new(proto::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<proto::RemoveContainerRequest>,
    ) -> Answer<proto::RemoveContainerResponse> {
        self.runtime.remove_container(&request.into_inner().container_id).await.map_err(status)?;
        Ok(Response::new(proto::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<proto::ListContainersRequest>,
    ) -> Answer<proto::ListContainersResponse> {
        let all = self.containers(request.into_inner().filter).await?;
        Ok(Response::new(proto::ListContainersResponse { containers: all.iter().map(answer::container).collect() }))
    }

    async fn container_status(
        &self,
        request: Request<proto::ContainerStatusRequest>,
    ) -> Answer<proto::ContainerStatusResponse> {
        let asked = request.into_inner();
        let container = self.runtime.container_status(&asked.container_id).await.map_err(status)?;
        let config = self.runtime.container_config(&asked.container_id).await.map_err(status)?;
        let told = Some(answer::container_status(&container, config.as_ref()));
        // Environment variables may be secrets, and stay here.
        let config = config.map(|config| ContainerConfig { envs: Vec::new(), ..config });
        let document = serde_json::json!({ "sandboxID": container.sandbox_id, "config": config });
        let info = if asked.verbose { answer::info(&document) } else { HashMap::new() };
        Ok(Response::new(proto::ContainerStatusResponse { status: told, info }))
    }

    async fn update_container_resources(
        &self,
        request: Request<proto::UpdateContainerResourcesRequest>,
    ) -> Answer<proto::UpdateContainerResourcesResponse> {
        let asked = request.into_inner();
        let container = self.runtime.container_status(&asked.container_id).await.map_err(status)?;
        if container.state == ContainerState::Exited {
            return Err(status(Error::FailedPrecondition(format!("container {} has ended", asked.container_id))));
        }
        let limits = request::resources(asked.linux.unwrap_or_default());
        self.runtime.update_container_resources(&asked.container_id, limits).await.map_err(status)?;
        Ok(Response::new(proto::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<proto::ReopenContainerLogRequest>,
    ) -> Answer<proto::ReopenContainerLogResponse> {
        self.runtime.reopen_container_log(&request.into_inner().container_id).await.map_err(status)?;
        Ok(Response::new(proto::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<proto::ExecSyncRequest>) -> Answer<proto::ExecSyncResponse> {
        let asked = request.into_inner();
        self.runs(&asked.container_id).await?;
        let timeout = u64::try_from(asked.timeout).ok().filter(|timeout| *timeout > 0).map(Duration::from_secs);
        let result = self.runtime.exec_sync(&asked.container_id, &asked.cmd, timeout).await.map_err(status)?;
        Ok(Response::new(proto::ExecSyncResponse {
            stdout: result.stdout,
            stderr: result.stderr,
            exit_code: result.exit_code,
        }))
    }

    async fn exec(&self, request: Request<proto::ExecRequest>) -> Answer<proto::ExecResponse> {
        let asked = request.into_inner();
        if asked.tty && asked.stderr {
            return Err(Status::invalid_argument("a terminal has no stderr of its own"));
        }
        if !(asked.stdin || asked.stdout || asked.stderr) {
            return Err(Status::invalid_argument("one of stdin, stdout and stderr must be asked for"));
        }
        // Now, while the client can be told in its own call.
        self.runs(&asked.container_id).await?;
        let request = ExecRequest {
            command: asked.cmd,
            tty: asked.tty,
            stdin: asked.stdin,
            stdout: asked.stdout,
            stderr: asked.stderr,
        };
        let url = self.tickets.issue(Ticket::Exec { id: asked.container_id, request });
        Ok(Response::new(proto::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<proto::AttachRequest>) -> Answer<proto::AttachResponse> {
        let asked = request.into_inner();
        self.runs(&asked.container_id).await?;
        let request = ExecRequest {
            command: Vec::new(),
            tty: asked.tty,
            stdin: asked.stdin,
            stdout: asked.stdout,
            stderr: asked.stderr,
        };
        let url = self.tickets.issue(Ticket::Attach { id: asked.container_id, request });
        Ok(Response::new(proto::AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<proto::PortForwardRequest>) -> Answer<proto::PortForwardResponse> {
        let sandbox = request.into_inner().pod_sandbox_id;
        self.runtime.sandbox_status(&sandbox).await.map_err(status)?;
        let url = self.tickets.issue(Ticket::PortForward { sandbox });
        Ok(Response::new(proto::PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<proto::ContainerStatsRequest>,
    ) -> Answer<proto::ContainerStatsResponse> {
        let container = self.runtime.container_status(&request.into_inner().container_id).await.map_err(status)?;
        let stats = Some(self.stats_of(&container).await?.0);
        Ok(Response::new(proto::ContainerStatsResponse { stats }))
    }

    async fn list_container_stats(
        &self,
        request: Request<proto::ListContainerStatsRequest>,
    ) -> Answer<proto::ListContainerStatsResponse> {
        let filter = request.into_inner().filter.map(|filter| proto::ContainerFilter {
            id: filter.id,
            pod_sandbox_id: filter.pod_sandbox_id,
            label_selector: filter.label_selector,
            state: None,
        });
        let mut stats = Vec::new();
        for container in self.containers(filter).await? {
            // One that ended meanwhile is left out.
            match self.stats_of(&container).await {
                Err(gone) if gone.code() == tonic::Code::NotFound => {}
                told => stats.push(told?.0),
            }
        }
        Ok(Response::new(proto::ListContainerStatsResponse { stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<proto::PodSandboxStatsRequest>,
    ) -> Answer<proto::PodSandboxStatsResponse> {
        let sandbox = self.runtime.sandbox_status(&request.into_inner().pod_sandbox_id).await.map_err(status)?;
        let stats = Some(self.sandbox_stats_of(&sandbox).await?);
        Ok(Response::new(proto::PodSandboxStatsResponse { stats }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<proto::ListPodSandboxStatsRequest>,
    ) -> Answer<proto::ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter.map(|filter| proto::PodSandboxFilter {
            id: filter.id,
            label_selector: filter.label_selector,
            state: None,
        });
        let mut stats = Vec::new();
        for sandbox in self.sandboxes(filter).await? {
            stats.push(self.sandbox_stats_of(&sandbox).await?);
        }
        Ok(Response::new(proto::ListPodSandboxStatsResponse { stats }))
    }

    /// The pods' address range is ours to choose, so a client's is only heard.
    async fn update_runtime_config(
        &self,
        _: Request<proto::UpdateRuntimeConfigRequest>,
    ) -> Answer<proto::UpdateRuntimeConfigResponse> {
        Ok(Response::new(proto::UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<proto::StatusRequest>) -> Answer<proto::StatusResponse> {
        let ready = |kind: &str| proto::RuntimeCondition { r#type: kind.into(), status: true, ..Default::default() };
        let mut network = ready("NetworkReady");
        if let Some(problem) = self.runtime.network_problem().and_then(|problem| problem.borrow().clone()) {
            (network.status, network.reason, network.message) = (false, "NetworkPluginNotReady".into(), problem);
        }
        let conditions = vec![ready("RuntimeReady"), network];
        let handlers = self.runtime.handlers().await.map_err(status)?;
        let mut info = HashMap::new();
        if request.into_inner().verbose {
            let names: Vec<&str> = handlers.iter().map(|handler| handler.name.as_str()).collect();
            let config = serde_json::json!({ "imagesFolder": self.images_folder, "runtimeHandlers": names });
            info.insert("config".to_owned(), config.to_string());
        }
        Ok(Response::new(proto::StatusResponse {
            status: Some(proto::RuntimeStatus { conditions }),
            runtime_handlers: handlers.iter().map(answer::handler).collect(),
            features: Some(proto::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
            info,
        }))
    }

    async fn get_container_events(
        &self,
        _: Request<proto::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let service = self.clone();
        let events = self.runtime.events().then(move |event| {
            let service = service.clone();
            async move { Ok(service.describe(event).await) }
        });
        Ok(Response::new(events.boxed()))
    }

    /// What there is to measure is in the stats; a kubelet that is told so looks there.
    async fn list_metric_descriptors(
        &self,
        _: Request<proto::ListMetricDescriptorsRequest>,
    ) -> Answer<proto::ListMetricDescriptorsResponse> {
        Err(Status::unimplemented("metrics are in the stats of containers and sandboxes"))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<proto::ListPodSandboxMetricsRequest>,
    ) -> Answer<proto::ListPodSandboxMetricsResponse> {
        Err(Status::unimplemented("metrics are in the stats of containers and sandboxes"))
    }

    async fn runtime_config(&self, _: Request<proto::RuntimeConfigRequest>) -> Answer<proto::RuntimeConfigResponse> {
        let cgroup_driver = proto::CgroupDriver::Cgroupfs.into();
        let linux = Some(proto::LinuxRuntimeConfiguration { cgroup_driver });
        Ok(Response::new(proto::RuntimeConfigResponse { linux }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        _: Request<proto::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<proto::UpdatePodSandboxResourcesResponse> {
        // A notice of what the client did to the pod's group itself.
        Ok(Response::new(proto::UpdatePodSandboxResourcesResponse {}))
    }
}
