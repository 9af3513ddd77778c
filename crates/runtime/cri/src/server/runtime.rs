//! `RuntimeService`, call by call.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::streaming::Ticket;
use super::{Service, Shared, answer, request, status};
use crate::Error;
use crate::proto;
use crate::proto::runtime_service_server::RuntimeService;
use crate::runtime::{ContainerStatus, ExecRequest, RuntimeEvent, SandboxStatus};

type Answer<T> = Result<Response<T>, Status>;

/// Whether an object has all the labels that are asked for.
fn labelled(labels: &std::collections::BTreeMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// crictl allows the beginning of an id.
fn named(id: &str, wanted: &str) -> bool {
    wanted.is_empty() || id.starts_with(wanted)
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
                && filter.state.is_none_or(|wanted| answer::sandbox(sandbox).state == wanted.state)
        });
        Ok(all)
    }

    async fn stats_of(&self, container: &ContainerStatus) -> Result<proto::ContainerStats, Status> {
        let stats = self.runtime.container_stats(&container.id).await.map_err(status)?;
        Ok(answer::stats(container, &stats, now()))
    }

    async fn sandbox_stats_of(&self, sandbox: &SandboxStatus) -> Result<proto::PodSandboxStats, Status> {
        let mut all = Vec::new();
        for container in self.runtime.list_containers().await.map_err(status)? {
            if container.sandbox_id == sandbox.id {
                let stats = self.runtime.container_stats(&container.id).await.map_err(status)?;
                all.push((answer::stats(&container, &stats, now()), stats));
            }
        }
        Ok(answer::sandbox_stats(sandbox, all, now()))
    }

    /// What a client is told of an event: the pod as it is now.
    async fn describe(&self, event: RuntimeEvent) -> proto::ContainerEventResponse {
        // A pod that is gone has nothing more to tell.
        let sandbox = self.runtime.sandbox_status(&event.sandbox_id).await.ok();
        let containers = self.runtime.list_containers().await.unwrap_or_default();
        let own = containers.iter().filter(|container| container.sandbox_id == event.sandbox_id);
        proto::ContainerEventResponse {
            // The sandbox' own events carry its id, as with other runtimes.
            container_id: if event.container_id.is_empty() { event.sandbox_id.clone() } else { event.container_id },
            container_event_type: answer::event_kind(event.kind).into(),
            created_at: now(),
            pod_sandbox_status: sandbox.as_ref().map(answer::sandbox_status),
            containers_statuses: own.map(answer::container_status).collect(),
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
        let id = request.into_inner().pod_sandbox_id;
        let sandbox = self.runtime.sandbox_status(&id).await.map_err(status)?;
        let containers = self.runtime.list_containers().await.map_err(status)?;
        let own = containers.iter().filter(|container| container.sandbox_id == id);
        Ok(Response::new(proto::PodSandboxStatusResponse {
            status: Some(answer::sandbox_status(&sandbox)),
            containers_statuses: own.map(answer::container_status).collect(),
            timestamp: now(),
            ..Default::default()
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<proto::ListPodSandboxRequest>,
    ) -> Answer<proto::ListPodSandboxResponse> {
        let all = self.sandboxes(request.into_inner().filter).await?;
        Ok(Response::new(proto::ListPodSandboxResponse { items: all.iter().map(answer::sandbox).collect() }))
    }

    async fn create_container(
        &self,
        request: Request<proto::CreateContainerRequest>,
    ) -> Answer<proto::CreateContainerResponse> {
        let asked = request.into_inner();
        let config =
            asked.config.ok_or_else(|| Status::invalid_argument("the container's configuration is missing"))?;
        let config = request::container(config).map_err(status)?;
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
        let container = self.runtime.container_status(&request.into_inner().container_id).await.map_err(status)?;
        let status = Some(answer::container_status(&container));
        Ok(Response::new(proto::ContainerStatusResponse { status, ..Default::default() }))
    }

    async fn update_container_resources(
        &self,
        request: Request<proto::UpdateContainerResourcesRequest>,
    ) -> Answer<proto::UpdateContainerResourcesResponse> {
        let asked = request.into_inner();
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
        let container = self.runtime.container_status(&asked.container_id).await.map_err(status)?;
        if container.state != crate::runtime::ContainerState::Running {
            return Err(status(Error::FailedPrecondition(format!("container {} is not running", asked.container_id))));
        }
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
        self.runtime.container_status(&asked.container_id).await.map_err(status)?;
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
        let stats = Some(self.stats_of(&container).await?);
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
            stats.push(self.stats_of(&container).await?);
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

    async fn status(&self, _: Request<proto::StatusRequest>) -> Answer<proto::StatusResponse> {
        let ready = |kind: &str| proto::RuntimeCondition { r#type: kind.into(), status: true, ..Default::default() };
        let mut network = ready("NetworkReady");
        if let Some(problem) = self.runtime.network_problem().and_then(|problem| problem.borrow().clone()) {
            (network.status, network.reason, network.message) = (false, "NetworkPluginNotReady".into(), problem);
        }
        let conditions = vec![ready("RuntimeReady"), network];
        let handlers = self.runtime.handlers().await.map_err(status)?;
        Ok(Response::new(proto::StatusResponse {
            status: Some(proto::RuntimeStatus { conditions }),
            runtime_handlers: handlers.iter().map(answer::handler).collect(),
            features: Some(proto::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
            ..Default::default()
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

    /// What there is to measure is in the stats; no more is offered.
    async fn list_metric_descriptors(
        &self,
        _: Request<proto::ListMetricDescriptorsRequest>,
    ) -> Answer<proto::ListMetricDescriptorsResponse> {
        Ok(Response::new(proto::ListMetricDescriptorsResponse::default()))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<proto::ListPodSandboxMetricsRequest>,
    ) -> Answer<proto::ListPodSandboxMetricsResponse> {
        Ok(Response::new(proto::ListPodSandboxMetricsResponse::default()))
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
