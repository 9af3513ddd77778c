//! Builders of runtime answers for tests, and a runtime that gives them.

use std::time::{Duration, SystemTime};

use dhow_client::{Body, Client, Transport};
use dhow_cri::runtime::{
    ContainerConfig, ContainerState, ContainerStats, ContainerStatus, Duplex, ExecRequest, ExecResult, ImageAuth,
    ImageInfo, PodIdentity, Reader, Resources, RuntimeEvent, RuntimeEventKind, RuntimeVersion, SandboxConfig,
    SandboxState, SandboxStatus, Streams, Writer,
};
use dhow_cri::{Error, Runtime};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{NodeConfig, NodeSettings};

pub fn sandbox(id: &str) -> SandboxStatus {
    SandboxStatus {
        id: id.into(),
        pod: PodIdentity { namespace: "default".into(), name: "p".into(), uid: "u".into(), attempt: 0 },
        state: SandboxState::Ready,
        created_at: SystemTime::UNIX_EPOCH,
        ips: vec![[10, 42, 0, 5].into()],
        labels: Default::default(),
        annotations: Default::default(),
    }
}

/// `exit` of `None` is a running container; an ended one ended at second 990.
pub fn container(sandbox: &str, name: &str, attempt: u32, exit: Option<i32>) -> ContainerStatus {
    let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
    ContainerStatus {
        id: format!("{sandbox}-{name}-{attempt}"),
        sandbox_id: sandbox.into(),
        name: name.into(),
        attempt,
        state: if exit.is_some() { ContainerState::Exited } else { ContainerState::Running },
        created_at: at(980),
        started_at: Some(at(980)),
        finished_at: exit.map(|_| at(990)),
        exit_code: exit.unwrap_or(0),
        reason: String::new(),
        message: String::new(),
        image: "busybox".into(),
        image_ref: "sha256:0".into(),
        labels: Default::default(),
        annotations: Default::default(),
        log_path: Default::default(),
        user: None,
    }
}

/// A runtime that answers from a script: what exists, and what exec does. Anything else is an error.
#[derive(Default)]
pub struct FakeRuntime {
    pub sandboxes: parking_lot::Mutex<Vec<SandboxStatus>>,
    pub containers: parking_lot::Mutex<Vec<ContainerStatus>>,
    /// Sends to whoever listens to events.
    pub listeners: parking_lot::Mutex<Vec<tokio::sync::mpsc::UnboundedSender<RuntimeEvent>>>,
    pub execs: parking_lot::Mutex<Vec<Vec<String>>>,
    /// What `exec_sync` ends with; other than 0 it says `no`.
    pub exit_code: std::sync::atomic::AtomicI32,
    /// Images that are present once they are pulled; others cannot be.
    pub images: parking_lot::Mutex<std::collections::BTreeSet<String>>,
}

impl FakeRuntime {
    /// Ends a container as a runtime does: the state first, then the event.
    pub fn end(&self, id: &str, code: i32) {
        for container in self.containers.lock().iter_mut().filter(|c| c.id == id) {
            container.state = ContainerState::Exited;
            container.exit_code = code;
        }
        let event = RuntimeEvent {
            pod: sandbox("s").pod,
            sandbox_id: "s".into(),
            container_id: id.into(),
            kind: RuntimeEventKind::Exited,
        };
        self.listeners.lock().retain(|listener| listener.send(event.clone()).is_ok());
    }
}

/// An API that is not there.
struct NoApi;

#[async_trait::async_trait]
impl Transport for NoApi {
    async fn call(&self, _: http::Request<bytes::Bytes>) -> Result<http::Response<Body>, dhow_client::Error> {
        Err(dhow_client::Error::connection("call the API", "there is none"))
    }
}

/// A node `n` without an API.
pub fn config(root: &std::path::Path) -> NodeConfig {
    NodeConfig {
        name: "n".into(),
        client: Client::new(std::sync::Arc::new(NoApi)),
        runtime: std::sync::Arc::new(FakeRuntime::default()),
        root_dir: root.into(),
        node_ips: vec!["192.0.2.1".into()],
        pod_cidrs: Vec::new(),
        kubelet_port: 0,
        listen: ([127, 0, 0, 1], 0).into(),
        tls: None,
        cluster_dns: "10.43.0.10".into(),
        cluster_domain: "cluster.local".into(),
        labels: Default::default(),
        image_api: None,
        registries: Default::default(),
        system_bus: None,
        settings: NodeSettings::default(),
    }
}

fn unscripted<T>() -> Result<T, Error> {
    Err(Error::FailedPrecondition("not in the script".into()))
}

#[async_trait::async_trait]
impl Runtime for FakeRuntime {
    async fn version(&self) -> Result<RuntimeVersion, Error> {
        unscripted()
    }
    async fn run_sandbox(&self, _: SandboxConfig) -> Result<String, Error> {
        unscripted()
    }
    async fn stop_sandbox(&self, _: &str) -> Result<(), Error> {
        unscripted()
    }
    async fn remove_sandbox(&self, _: &str) -> Result<(), Error> {
        unscripted()
    }
    async fn sandbox_status(&self, _: &str) -> Result<SandboxStatus, Error> {
        unscripted()
    }
    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, Error> {
        Ok(self.sandboxes.lock().clone())
    }
    async fn create_container(&self, _: &str, _: ContainerConfig) -> Result<String, Error> {
        unscripted()
    }
    async fn start_container(&self, _: &str) -> Result<(), Error> {
        unscripted()
    }
    async fn stop_container(&self, _: &str, _: Duration) -> Result<(), Error> {
        unscripted()
    }
    async fn remove_container(&self, _: &str) -> Result<(), Error> {
        unscripted()
    }
    async fn container_status(&self, id: &str) -> Result<ContainerStatus, Error> {
        let found = self.containers.lock().iter().find(|c| c.id == id).cloned();
        found.ok_or_else(|| Error::NotFound { kind: "container", id: id.into() })
    }
    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, Error> {
        Ok(self.containers.lock().clone())
    }
    async fn update_container_resources(&self, _: &str, _: Resources) -> Result<(), Error> {
        unscripted()
    }
    async fn container_stats(&self, id: &str) -> Result<ContainerStats, Error> {
        Ok(ContainerStats { id: id.into(), cpu_usage_core_nanos: 5, memory_working_set_bytes: 7, ..Default::default() })
    }
    /// The tests' own.
    async fn sandbox_process(&self, _: &str) -> Result<Option<u32>, Error> {
        Ok(Some(std::process::id()))
    }
    async fn reopen_container_log(&self, _: &str) -> Result<(), Error> {
        unscripted()
    }
    async fn exec_sync(&self, _: &str, command: &[String], _: Option<Duration>) -> Result<ExecResult, Error> {
        self.execs.lock().push(command.to_vec());
        let exit_code = self.exit_code.load(std::sync::atomic::Ordering::Relaxed);
        let stdout = if exit_code == 0 { Vec::new() } else { b"no\n".to_vec() };
        Ok(ExecResult { stdout, stderr: Vec::new(), exit_code })
    }
    /// Says its command on stderr and every terminal size, echoes stdin to stdout until its end, then exits with 7.
    async fn exec(&self, _: &str, request: ExecRequest) -> Result<Streams, Error> {
        let (stdin, mut input) = tokio::io::duplex(1024);
        let (stdout, mut output) = tokio::io::duplex(1024);
        let (stderr, mut errors) = tokio::io::duplex(1024);
        let (resize, mut sizes) = tokio::sync::mpsc::channel(4);
        let (done, exit) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let _ = errors.write_all(request.command.join(" ").as_bytes()).await;
            let _ = tokio::io::copy(&mut input, &mut output).await;
            while let Ok((width, height)) = sizes.try_recv() {
                let _ = output.write_all(format!("[{width}x{height}]").as_bytes()).await;
            }
            let _ = done.send(Ok(7));
        });
        Ok(Streams {
            stdin: request.stdin.then(|| Box::new(stdin) as Writer),
            stdout: Some(Box::new(stdout)),
            stderr: Some(Box::new(stderr)),
            resize: Some(resize),
            exit,
        })
    }
    async fn attach(&self, _: &str, _: bool) -> Result<Streams, Error> {
        unscripted()
    }
    /// Echoes; port 1 refuses.
    async fn port_forward(&self, _: &str, port: u16) -> Result<Box<dyn Duplex>, Error> {
        if port == 1 {
            return Err(Error::Network("connection refused".into()));
        }
        let (near, far) = tokio::io::duplex(1024);
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(far);
            tokio::io::copy(&mut reader, &mut writer).await
        });
        Ok(Box::new(near))
    }
    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        self.listeners.lock().push(sender);
        futures::stream::unfold(receiver, async |mut r| Some((r.recv().await?, r))).boxed()
    }
    async fn pull_image(&self, name: &str, _: Option<ImageAuth>) -> Result<String, Error> {
        match self.images.lock().contains(name) {
            true => Ok("sha256:0".into()),
            false => Err(Error::ImagePull { reference: name.into(), message: "not found".into() }),
        }
    }
    async fn image_status(&self, name: &str) -> Result<Option<ImageInfo>, Error> {
        let info = || ImageInfo {
            id: "sha256:0".into(),
            repo_tags: vec![name.into()],
            repo_digests: vec!["r.example/a@sha256:1".into()],
            size: 7,
            uid: None,
            username: None,
        };
        Ok(self.images.lock().contains(name).then(info))
    }
    async fn list_images(&self) -> Result<Vec<ImageInfo>, Error> {
        Ok(Vec::new())
    }
    async fn remove_image(&self, _: &str) -> Result<(), Error> {
        unscripted()
    }
    /// The archive's text is the image's name.
    async fn import_image(&self, mut archive: Reader) -> Result<Vec<String>, Error> {
        let mut name = String::new();
        archive.read_to_string(&mut name).await.map_err(|e| Error::internal("read archive", e))?;
        Ok(vec![name])
    }
}
