//! The calls, one after another, as a kubelet or crictl makes them, and as nobody should.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dhow_cri::proto;
use dhow_cri::proto::image_service_client::ImageServiceClient;
use dhow_cri::proto::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use libtest_mimic::Failed;
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::{busybox, shape};

type Outcome<T> = Result<Response<T>, Status>;

/// No runtime takes longer than this for anything here.
const LIMIT: Duration = Duration::from_secs(60);

/// A client, and what it was answered.
pub struct Caller {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
    pub channel: Channel,
    pub folder: PathBuf,
    group: String,
    pub seen: BTreeMap<String, Value>,
}

impl Caller {
    pub async fn connect(socket: &Path, folder: &Path, group: &str) -> Self {
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost").timeout(LIMIT);
        let channel = endpoint.connect_with_connector(connector).await.unwrap();
        Self {
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel.clone()),
            channel,
            folder: folder.to_owned(),
            group: group.to_owned(),
            seen: BTreeMap::new(),
        }
    }

    /// Writes an answer down; returns it if it is one.
    fn note<T: Clone>(&mut self, step: &str, answer: Outcome<T>, shape: impl FnOnce(T) -> Value) -> Option<T> {
        let (value, answer) = match answer {
            Ok(answer) => {
                let answer = answer.into_inner();
                (shape(answer.clone()), Some(answer))
            }
            Err(status) => {
                eprintln!("{step}: {:?}: {}", status.code(), status.message());
                (json!({ "code": format!("{:?}", status.code()) }), None)
            }
        };
        let before = self.seen.insert(step.to_owned(), value);
        assert!(before.is_none(), "two steps are called {step:?}");
        answer
    }

    pub fn sandbox_config(&self, name: &str) -> proto::PodSandboxConfig {
        let options = proto::NamespaceOption {
            network: proto::NamespaceMode::Pod.into(),
            pid: proto::NamespaceMode::Container.into(),
            ipc: proto::NamespaceMode::Pod.into(),
            ..Default::default()
        };
        proto::PodSandboxConfig {
            metadata: Some(proto::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.folder.join("logs").join(name).display().to_string(),
            labels: HashMap::from([("app".to_owned(), name.to_owned())]),
            annotations: HashMap::from([("note".to_owned(), "of the pod".to_owned())]),
            linux: Some(proto::LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}/pod{name}", self.group),
                security_context: Some(proto::LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub fn container_config(&self, name: &str, script: &str) -> proto::ContainerConfig {
        let volume = self.folder.join("volume");
        std::fs::create_dir_all(&volume).unwrap();
        proto::ContainerConfig {
            metadata: Some(proto::ContainerMetadata { name: name.to_owned(), attempt: 2 }),
            image: Some(proto::ImageSpec { image: busybox::NAME.to_owned(), ..Default::default() }),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            labels: HashMap::from([("part".to_owned(), name.to_owned())]),
            annotations: HashMap::from([("note".to_owned(), "of the container".to_owned())]),
            log_path: format!("{name}.log"),
            mounts: vec![proto::Mount {
                container_path: "/volume".to_owned(),
                host_path: volume.display().to_string(),
                readonly: true,
                ..Default::default()
            }],
            linux: Some(proto::LinuxContainerConfig {
                resources: Some(proto::LinuxContainerResources {
                    memory_limit_in_bytes: 64 << 20,
                    ..Default::default()
                }),
                security_context: Some(proto::LinuxContainerSecurityContext {
                    namespace_options: Some(proto::NamespaceOption {
                        pid: proto::NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }

    pub async fn run(&mut self, config: proto::PodSandboxConfig) -> Outcome<proto::RunPodSandboxResponse> {
        std::fs::create_dir_all(&config.log_directory).unwrap();
        self.runtime.run_pod_sandbox(proto::RunPodSandboxRequest { config: Some(config), ..Default::default() }).await
    }

    pub async fn create(
        &mut self,
        sandbox: &str,
        config: Option<proto::ContainerConfig>,
        of: &proto::PodSandboxConfig,
    ) -> Outcome<proto::CreateContainerResponse> {
        let request = proto::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config,
            sandbox_config: Some(of.clone()),
        };
        self.runtime.create_container(request).await
    }

    pub async fn status_of(&mut self, id: &str, verbose: bool) -> Outcome<proto::ContainerStatusResponse> {
        self.runtime.container_status(proto::ContainerStatusRequest { container_id: id.to_owned(), verbose }).await
    }

    /// Waits until a container ended; runtimes say so in its status alone, all of them.
    pub async fn ended(&mut self, id: &str) {
        let begin = std::time::Instant::now();
        loop {
            let status = self.status_of(id, false).await.unwrap().into_inner().status.unwrap_or_default();
            if status.state() == proto::ContainerState::ContainerExited {
                return;
            }
            assert!(begin.elapsed() < LIMIT, "{id} does not end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the runtime looked at what a container wrote: some do so now and then.
    async fn measured(&mut self, id: &str) {
        let begin = std::time::Instant::now();
        while begin.elapsed() < Duration::from_secs(20) {
            let request = proto::ContainerStatsRequest { container_id: id.to_owned() };
            let stats = self.runtime.container_stats(request).await.ok().and_then(|answer| answer.into_inner().stats);
            if stats.and_then(|stats| stats.writable_layer).is_some_and(|layer| layer.used_bytes.is_some()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn images_measured(&mut self) {
        let begin = std::time::Instant::now();
        while begin.elapsed() < Duration::from_secs(20) {
            let answer = self.images.image_fs_info(proto::ImageFsInfoRequest {}).await;
            let all = answer.map(|answer| answer.into_inner().image_filesystems).unwrap_or_default();
            if all.iter().any(|usage| usage.used_bytes.is_some_and(|bytes| bytes.value > 0)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub async fn exec_sync(&mut self, id: &str, script: &str, timeout: i64) -> Outcome<proto::ExecSyncResponse> {
        let cmd = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        self.runtime.exec_sync(proto::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout }).await
    }

    /// Takes away all sandboxes.
    pub async fn clear(&mut self) {
        let all = self.runtime.list_pod_sandbox(proto::ListPodSandboxRequest::default()).await;
        for sandbox in all.map(|all| all.into_inner().items).unwrap_or_default() {
            let request = proto::StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            let _ = self.runtime.stop_pod_sandbox(request).await;
            let request = proto::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id };
            let _ = self.runtime.remove_pod_sandbox(request).await;
        }
    }
}

fn done<T>(_: T) -> Value {
    json!("done")
}

const NOBODY: &str = "0000000000000000000000000000000000000000000000000000000000000000";

pub async fn all(caller: &mut Caller) -> Result<(), Failed> {
    of_itself(caller).await;
    images(caller).await;
    let config = caller.sandbox_config("one");
    let sandbox = sandboxes(caller, &config).await?;
    let container = containers(caller, &sandbox, &config).await?;
    runs(caller, &sandbox, &container).await;
    measures(caller, &sandbox, &container).await;
    streams(caller, &sandbox, &container).await;
    ends(caller, &sandbox, &container, &config).await?;
    Ok(())
}

async fn of_itself(caller: &mut Caller) {
    let answer = caller.runtime.version(proto::VersionRequest::default()).await;
    caller.note("Version", answer, shape::version);
    for (step, verbose) in [("Status", false), ("Status, verbose", true)] {
        let answer = caller.runtime.status(proto::StatusRequest { verbose }).await;
        caller.note(step, answer, shape::status);
    }
    let answer = caller.runtime.runtime_config(proto::RuntimeConfigRequest {}).await;
    caller.note("RuntimeConfig", answer, |answer| json!(answer.linux.unwrap_or_default().cgroup_driver));
    let network = proto::NetworkConfig { pod_cidr: "10.9.0.0/24".to_owned() };
    let runtime_config = Some(proto::RuntimeConfig { network_config: Some(network) });
    for (step, runtime_config) in [("UpdateRuntimeConfig", runtime_config), ("UpdateRuntimeConfig, empty", None)] {
        let answer = caller.runtime.update_runtime_config(proto::UpdateRuntimeConfigRequest { runtime_config }).await;
        caller.note(step, answer, done);
    }
    let answer = caller.runtime.list_metric_descriptors(proto::ListMetricDescriptorsRequest {}).await;
    caller.note("ListMetricDescriptors", answer, done);
    let answer = caller.runtime.list_pod_sandbox_metrics(proto::ListPodSandboxMetricsRequest {}).await;
    caller.note("ListPodSandboxMetrics", answer, done);
    let answer = caller.runtime.get_container_events(proto::GetEventsRequest {}).await;
    let answer = match answer {
        // A server that does not know streams says so with the first message.
        Ok(stream) => match tokio::time::timeout(Duration::from_millis(500), stream.into_inner().message()).await {
            Ok(Err(status)) => Err(status),
            _ => Ok(Response::new(())),
        },
        Err(status) => Err(status),
    };
    caller.note("GetContainerEvents", answer, done);
    // Not among our messages: a container's id is its first field, as in others.
    let mut client = tonic::client::Grpc::new(caller.channel.clone());
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/runtime.v1.RuntimeService/CheckpointContainer");
    let request = tonic::Request::new(proto::ReopenContainerLogRequest { container_id: NOBODY.to_owned() });
    let codec = tonic_prost::ProstCodec::<_, proto::ReopenContainerLogResponse>::default();
    let answer = client.unary(request, path, codec).await;
    caller.note("CheckpointContainer", answer, done);
    let answer = caller.runtime.update_pod_sandbox_resources(proto::UpdatePodSandboxResourcesRequest::default()).await;
    caller.note("UpdatePodSandboxResources", answer, done);
}

async fn images(caller: &mut Caller) {
    let spec = |image: &str| Some(proto::ImageSpec { image: image.to_owned(), ..Default::default() });
    let list = |image: Option<proto::ImageSpec>| {
        let filter = Some(proto::ImageFilter { image });
        proto::ListImagesRequest { filter }
    };
    let answer = caller.images.list_images(proto::ListImagesRequest::default()).await;
    let all = caller.note("ListImages", answer, shape::images).map(|all| all.images).unwrap_or_default();
    let id = all.iter().find(|image| image.repo_tags.iter().any(|tag| tag.contains("busybox")));
    let id = id.map(|image| image.id.clone()).unwrap_or_default();
    let short = id.trim_start_matches("sha256:").get(..12).unwrap_or_default().to_owned();
    for (step, name) in
        [("", busybox::NAME), (", short", "busybox:test"), (", by id", id.as_str()), (", absent", "absent:1")]
    {
        let answer = caller.images.list_images(list(spec(name))).await;
        caller.note(&format!("ListImages{step} of one"), answer, shape::images);
        let answer = caller.images.image_status(proto::ImageStatusRequest { image: spec(name), verbose: false }).await;
        caller.note(&format!("ImageStatus{step}"), answer, shape::image);
    }
    for (step, image) in [("by short id", spec(&short)), ("of nothing", None), ("of an empty name", spec(""))] {
        let answer = caller.images.image_status(proto::ImageStatusRequest { image, verbose: false }).await;
        caller.note(&format!("ImageStatus {step}"), answer, shape::image);
    }
    let request = proto::ImageStatusRequest { image: spec(busybox::NAME), verbose: true };
    let answer = caller.images.image_status(request).await;
    caller.note("ImageStatus, verbose", answer, shape::image);
    for (step, image) in [("from nowhere", spec("127.0.0.1:1/absent:1")), ("of no name", spec("Not A Name"))] {
        let answer = caller.images.pull_image(proto::PullImageRequest { image, ..Default::default() }).await;
        caller.note(&format!("PullImage {step}"), answer, done);
    }
    caller.images_measured().await;
    let answer = caller.images.image_fs_info(proto::ImageFsInfoRequest {}).await;
    caller.note("ImageFsInfo", answer, shape::file_systems);
    let answer = caller.images.remove_image(proto::RemoveImageRequest { image: spec("absent:1") }).await;
    caller.note("RemoveImage, absent", answer, done);
}

async fn sandboxes(caller: &mut Caller, config: &proto::PodSandboxConfig) -> Result<String, Failed> {
    let answer = caller.runtime.run_pod_sandbox(proto::RunPodSandboxRequest::default()).await;
    caller.note("RunPodSandbox without a configuration", answer, |answer| shape::id(&answer.pod_sandbox_id));
    let strange = proto::RunPodSandboxRequest {
        config: Some(caller.sandbox_config("strange")),
        runtime_handler: "strange".to_owned(),
    };
    let answer = caller.runtime.run_pod_sandbox(strange).await;
    caller.note("RunPodSandbox of an unknown handler", answer, |answer| shape::id(&answer.pod_sandbox_id));
    let answer = caller.run(config.clone()).await;
    let made = caller.note("RunPodSandbox", answer, |answer| shape::id(&answer.pod_sandbox_id));
    let sandbox = made.ok_or("no sandbox")?.pod_sandbox_id;
    let answer = caller.run(config.clone()).await;
    caller.note("RunPodSandbox of the same name", answer, |answer| shape::id(&answer.pod_sandbox_id));
    let mut of_host = caller.sandbox_config("host");
    // The name is the host's, too.
    of_host.hostname.clear();
    if let Some(options) = of_host.linux.as_mut().and_then(|l| l.security_context.as_mut()?.namespace_options.as_mut())
    {
        options.network = proto::NamespaceMode::Node.into();
    }
    let answer = caller.run(of_host).await;
    let of_host =
        caller.note("RunPodSandbox on the host's network", answer, |answer| shape::id(&answer.pod_sandbox_id));
    let of_host = of_host.map(|made| made.pod_sandbox_id).unwrap_or_default();
    for (step, id, verbose) in [
        ("", sandbox.as_str(), false),
        (", verbose", sandbox.as_str(), true),
        (" on the host's network", of_host.as_str(), false),
        (" of nobody", NOBODY, false),
    ] {
        let request = proto::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose };
        let answer = caller.runtime.pod_sandbox_status(request).await;
        caller.note(&format!("PodSandboxStatus{step}"), answer, shape::sandbox_status);
    }
    let state = |state: proto::PodSandboxState| Some(proto::PodSandboxStateValue { state: state.into() });
    let labels = |value: &str| HashMap::from([("app".to_owned(), value.to_owned())]);
    let filters = [
        ("", proto::PodSandboxFilter::default()),
        (" by id", proto::PodSandboxFilter { id: sandbox.clone(), ..Default::default() }),
        (" by half an id", proto::PodSandboxFilter { id: sandbox[..13].to_owned(), ..Default::default() }),
        (" of nobody", proto::PodSandboxFilter { id: NOBODY.to_owned(), ..Default::default() }),
        (
            " that are ready",
            proto::PodSandboxFilter { state: state(proto::PodSandboxState::SandboxReady), ..Default::default() },
        ),
        (
            " that are not",
            proto::PodSandboxFilter { state: state(proto::PodSandboxState::SandboxNotready), ..Default::default() },
        ),
        (" by label", proto::PodSandboxFilter { label_selector: labels("one"), ..Default::default() }),
        (" by another label", proto::PodSandboxFilter { label_selector: labels("two"), ..Default::default() }),
    ];
    for (step, filter) in filters {
        let answer = caller.runtime.list_pod_sandbox(proto::ListPodSandboxRequest { filter: Some(filter) }).await;
        caller.note(&format!("ListPodSandbox{step}"), answer, shape::sandboxes);
    }
    for (step, id) in [("", of_host.as_str()), (" again", of_host.as_str()), (" of nobody", NOBODY)] {
        let answer =
            caller.runtime.stop_pod_sandbox(proto::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await;
        caller.note(&format!("StopPodSandbox{step}"), answer, done);
    }
    let request = proto::PodSandboxStatusRequest { pod_sandbox_id: of_host.clone(), verbose: false };
    let answer = caller.runtime.pod_sandbox_status(request).await;
    caller.note("PodSandboxStatus, stopped", answer, shape::sandbox_status);
    for (step, id) in [("", of_host.as_str()), (" again", of_host.as_str()), (" of nobody", NOBODY)] {
        let request = proto::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let answer = caller.runtime.remove_pod_sandbox(request).await;
        caller.note(&format!("RemovePodSandbox{step}"), answer, done);
    }
    Ok(sandbox)
}

async fn containers(caller: &mut Caller, sandbox: &str, config: &proto::PodSandboxConfig) -> Result<String, Failed> {
    let script = "echo started; trap 'exit 7' TERM; dd if=/dev/zero of=/written bs=64k count=4 2>/dev/null; \
                  while :; do sleep 0.1; done";
    let good = caller.container_config("main", script);
    let absent = proto::ImageSpec { image: "absent:1".to_owned(), ..Default::default() };
    let of_absent = proto::ContainerConfig { image: Some(absent), ..good.clone() };
    let id = |answer: proto::CreateContainerResponse| shape::id(&answer.container_id);
    for (step, sandbox, wanted) in [
        ("without a configuration", sandbox, None),
        ("in no sandbox", NOBODY, Some(good.clone())),
        ("of no image", sandbox, Some(of_absent)),
    ] {
        let answer = caller.create(sandbox, wanted, config).await;
        caller.note(&format!("CreateContainer {step}"), answer, id);
    }
    let answer = caller.create(sandbox, Some(good.clone()), config).await;
    let made = caller.note("CreateContainer", answer, id);
    let container = made.ok_or("no container")?.container_id;
    let answer = caller.create(sandbox, Some(good), config).await;
    caller.note("CreateContainer of the same name", answer, id);
    let answer = caller.status_of(&container, false).await;
    caller.note("ContainerStatus, created", answer, shape::container_status);
    let answer = caller.status_of(NOBODY, false).await;
    caller.note("ContainerStatus of nobody", answer, shape::container_status);
    let answer = caller.exec_sync(&container, "true", 0).await;
    caller.note("ExecSync, created", answer, shape::executed);
    for (step, id) in [("", container.as_str()), (" again", container.as_str()), (" of nobody", NOBODY)] {
        let answer = caller.runtime.start_container(proto::StartContainerRequest { container_id: id.to_owned() }).await;
        caller.note(&format!("StartContainer{step}"), answer, done);
    }
    Ok(container)
}

async fn runs(caller: &mut Caller, sandbox: &str, container: &str) {
    for (step, verbose) in [("running", false), ("running, verbose", true)] {
        let answer = caller.status_of(container, verbose).await;
        caller.note(&format!("ContainerStatus, {step}"), answer, shape::container_status);
    }
    let state = |state: proto::ContainerState| Some(proto::ContainerStateValue { state: state.into() });
    let labels = |value: &str| HashMap::from([("part".to_owned(), value.to_owned())]);
    let empty = proto::ContainerFilter::default;
    let filters = [
        ("", empty()),
        (" by id", proto::ContainerFilter { id: container.to_owned(), ..empty() }),
        (" by half an id", proto::ContainerFilter { id: container[..13].to_owned(), ..empty() }),
        (" of nobody", proto::ContainerFilter { id: NOBODY.to_owned(), ..empty() }),
        (" of a sandbox", proto::ContainerFilter { pod_sandbox_id: sandbox.to_owned(), ..empty() }),
        (" of half a sandbox", proto::ContainerFilter { pod_sandbox_id: sandbox[..13].to_owned(), ..empty() }),
        (" of no sandbox", proto::ContainerFilter { pod_sandbox_id: NOBODY.to_owned(), ..empty() }),
        (" that run", proto::ContainerFilter { state: state(proto::ContainerState::ContainerRunning), ..empty() }),
        (" that ended", proto::ContainerFilter { state: state(proto::ContainerState::ContainerExited), ..empty() }),
        (" by label", proto::ContainerFilter { label_selector: labels("main"), ..empty() }),
        (" by another label", proto::ContainerFilter { label_selector: labels("side"), ..empty() }),
        (
            " by id and another sandbox",
            proto::ContainerFilter { id: container.to_owned(), pod_sandbox_id: NOBODY.to_owned(), ..empty() },
        ),
    ];
    for (step, filter) in filters {
        let answer = caller.runtime.list_containers(proto::ListContainersRequest { filter: Some(filter) }).await;
        caller.note(&format!("ListContainers{step}"), answer, shape::containers);
    }
    for (step, id, script, timeout) in [
        ("", container, "echo out; echo err >&2; exit 3", 0),
        (" of what takes too long", container, "sleep 30", 1),
        (" in nobody", NOBODY, "true", 0),
    ] {
        let answer = caller.exec_sync(id, script, timeout).await;
        caller.note(&format!("ExecSync{step}"), answer, shape::executed);
    }
    let request = proto::ExecSyncRequest { container_id: container.to_owned(), ..Default::default() };
    let answer = caller.runtime.exec_sync(request.clone()).await;
    caller.note("ExecSync of no command", answer, shape::executed);
    let request = proto::ExecSyncRequest { cmd: vec!["/no/such/program".to_owned()], ..request };
    let answer = caller.runtime.exec_sync(request).await;
    caller.note("ExecSync of no program", answer, shape::executed);
    let linux =
        proto::LinuxContainerResources { memory_limit_in_bytes: 96 << 20, cpu_shares: 512, ..Default::default() };
    for (step, id) in [("", container), (" of nobody", NOBODY)] {
        let request = proto::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux.clone()),
            ..Default::default()
        };
        let answer = caller.runtime.update_container_resources(request).await;
        caller.note(&format!("UpdateContainerResources{step}"), answer, done);
    }
    for (step, id) in [("", container), (" of nobody", NOBODY)] {
        let request = proto::ReopenContainerLogRequest { container_id: id.to_owned() };
        let answer = caller.runtime.reopen_container_log(request).await;
        caller.note(&format!("ReopenContainerLog{step}"), answer, done);
    }
}

async fn measures(caller: &mut Caller, sandbox: &str, container: &str) {
    caller.measured(container).await;
    for (step, id) in [("", container), (" of nobody", NOBODY)] {
        let answer = caller.runtime.container_stats(proto::ContainerStatsRequest { container_id: id.to_owned() }).await;
        caller.note(&format!("ContainerStats{step}"), answer, shape::container_stats);
    }
    let empty = proto::ContainerStatsFilter::default;
    let filters = [
        ("", empty()),
        (" by id", proto::ContainerStatsFilter { id: container.to_owned(), ..empty() }),
        (" of nobody", proto::ContainerStatsFilter { id: NOBODY.to_owned(), ..empty() }),
        (" of a sandbox", proto::ContainerStatsFilter { pod_sandbox_id: sandbox.to_owned(), ..empty() }),
    ];
    for (step, filter) in filters {
        let answer =
            caller.runtime.list_container_stats(proto::ListContainerStatsRequest { filter: Some(filter) }).await;
        caller.note(&format!("ListContainerStats{step}"), answer, shape::all_container_stats);
    }
    for (step, id) in [("", sandbox), (" of nobody", NOBODY)] {
        let request = proto::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
        let answer = caller.runtime.pod_sandbox_stats(request).await;
        caller.note(&format!("PodSandboxStats{step}"), answer, shape::sandbox_stats);
    }
    let empty = proto::PodSandboxStatsFilter::default;
    let filters = [
        ("", empty()),
        (" by id", proto::PodSandboxStatsFilter { id: sandbox.to_owned(), ..empty() }),
        (" of nobody", proto::PodSandboxStatsFilter { id: NOBODY.to_owned(), ..empty() }),
    ];
    for (step, filter) in filters {
        let request = proto::ListPodSandboxStatsRequest { filter: Some(filter) };
        let answer = caller.runtime.list_pod_sandbox_stats(request).await;
        caller.note(&format!("ListPodSandboxStats{step}"), answer, shape::all_sandbox_stats);
    }
}

async fn streams(caller: &mut Caller, sandbox: &str, container: &str) {
    let exec = |id: &str, tty, stdin, stdout, stderr| proto::ExecRequest {
        container_id: id.to_owned(),
        cmd: vec!["true".to_owned()],
        tty,
        stdin,
        stdout,
        stderr,
    };
    for (step, request) in [
        ("", exec(container, false, false, true, true)),
        (" with a terminal", exec(container, true, true, true, false)),
        (" with a terminal and stderr", exec(container, true, true, true, true)),
        (" without any stream", exec(container, false, false, false, false)),
        (" in nobody", exec(NOBODY, false, false, true, true)),
    ] {
        let answer = caller.runtime.exec(request).await;
        caller.note(&format!("Exec{step}"), answer, |answer| shape::url(&answer.url));
    }
    for (step, id) in [("", container), (" to nobody", NOBODY)] {
        let request = proto::AttachRequest { container_id: id.to_owned(), stdout: true, ..Default::default() };
        let answer = caller.runtime.attach(request).await;
        caller.note(&format!("Attach{step}"), answer, |answer| shape::url(&answer.url));
    }
    for (step, id) in [("", sandbox), (" to nobody", NOBODY)] {
        let request = proto::PortForwardRequest { pod_sandbox_id: id.to_owned(), port: vec![80] };
        let answer = caller.runtime.port_forward(request).await;
        caller.note(&format!("PortForward{step}"), answer, |answer| shape::url(&answer.url));
    }
}

async fn ends(
    caller: &mut Caller,
    sandbox: &str,
    container: &str,
    config: &proto::PodSandboxConfig,
) -> Result<(), Failed> {
    for (step, id) in [("", container), (" again", container), (" of nobody", NOBODY)] {
        let request = proto::StopContainerRequest { container_id: id.to_owned(), timeout: 20 };
        let answer = caller.runtime.stop_container(request).await;
        caller.note(&format!("StopContainer{step}"), answer, done);
    }
    let answer = caller.status_of(container, false).await;
    caller.note("ContainerStatus, stopped", answer, shape::container_status);
    let answer =
        caller.runtime.start_container(proto::StartContainerRequest { container_id: container.to_owned() }).await;
    caller.note("StartContainer, stopped", answer, done);
    let answer = caller.exec_sync(container, "true", 0).await;
    caller.note("ExecSync, stopped", answer, shape::executed);
    let request = proto::ExecRequest { container_id: container.to_owned(), stdout: true, ..Default::default() };
    let answer = caller.runtime.exec(request).await;
    caller.note("Exec, stopped", answer, |answer| shape::url(&answer.url));
    let request = proto::AttachRequest { container_id: container.to_owned(), stdout: true, ..Default::default() };
    let answer = caller.runtime.attach(request).await;
    caller.note("Attach, stopped", answer, |answer| shape::url(&answer.url));
    let request = proto::ReopenContainerLogRequest { container_id: container.to_owned() };
    let answer = caller.runtime.reopen_container_log(request).await;
    caller.note("ReopenContainerLog, stopped", answer, done);
    let request = proto::UpdateContainerResourcesRequest {
        container_id: container.to_owned(),
        linux: Some(proto::LinuxContainerResources { cpu_shares: 512, ..Default::default() }),
        ..Default::default()
    };
    let answer = caller.runtime.update_container_resources(request).await;
    caller.note("UpdateContainerResources, stopped", answer, done);

    // Ends of other kinds.
    for (name, script) in [("well", "exit 0"), ("killed", "kill -9 $$")] {
        let wanted = caller.container_config(name, script);
        let made = caller.create(sandbox, Some(wanted), config).await.map_err(|status| status.to_string())?;
        let id = made.into_inner().container_id;
        let request = proto::StartContainerRequest { container_id: id.clone() };
        caller.runtime.start_container(request).await.map_err(|status| status.to_string())?;
        caller.ended(&id).await;
        let answer = caller.status_of(&id, false).await;
        caller.note(&format!("ContainerStatus, {name}"), answer, shape::container_status);
    }
    let mut wanted = caller.container_config("programless", "");
    wanted.command = vec!["/no/such/program".to_owned()];
    let made = caller.create(sandbox, Some(wanted), config).await.map_err(|status| status.to_string())?;
    let id = made.into_inner().container_id;
    let answer = caller.runtime.start_container(proto::StartContainerRequest { container_id: id.clone() }).await;
    caller.note("StartContainer of no program", answer, done);
    let answer = caller.status_of(&id, false).await;
    caller.note("ContainerStatus of no program", answer, shape::container_status);

    // One that runs is removed all the same, by itself and with its sandbox.
    let wanted = caller.container_config("runs", "sleep 1000");
    let made = caller.create(sandbox, Some(wanted), config).await.map_err(|status| status.to_string())?;
    let runs = made.into_inner().container_id;
    let request = proto::StartContainerRequest { container_id: runs.clone() };
    caller.runtime.start_container(request).await.map_err(|status| status.to_string())?;
    for (step, id) in [("", container), (" again", container), (" of nobody", NOBODY), (", running", runs.as_str())] {
        let request = proto::RemoveContainerRequest { container_id: id.to_owned() };
        let answer = caller.runtime.remove_container(request).await;
        caller.note(&format!("RemoveContainer{step}"), answer, done);
    }
    let answer = caller.status_of(container, false).await;
    caller.note("ContainerStatus, removed", answer, shape::container_status);
    let request = proto::RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
    let answer = caller.runtime.remove_pod_sandbox(request).await;
    caller.note("RemovePodSandbox, ready", answer, done);
    let answer = caller.runtime.list_containers(proto::ListContainersRequest::default()).await;
    caller.note("ListContainers, all removed", answer, shape::containers);
    let image = Some(proto::ImageSpec { image: busybox::NAME.to_owned(), ..Default::default() });
    let answer = caller.images.remove_image(proto::RemoveImageRequest { image }).await;
    caller.note("RemoveImage", answer, done);
    let answer = caller.images.list_images(proto::ListImagesRequest::default()).await;
    caller.note("ListImages, removed", answer, shape::images);
    Ok(())
}
