//! containerd, CRI-O and whatever else speaks CRI v1 on a socket, behind the `Runtime` trait.
//!
//! What exists is known by the runtime; nothing is remembered here that it could not tell again. Two annotations of ours
//! carry what CRI does not give back: see [`request`].

mod answer;
mod events;
mod images;
pub(crate) mod request;
mod runtime;
mod streams;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::cgroups::CgroupDriver;
use crate::proto;
use crate::proto::image_service_client::ImageServiceClient;
use crate::proto::runtime_service_client::RuntimeServiceClient;
use crate::runtime::{ContainerStatus, RuntimeEvent, SandboxConfig};
use crate::{Error, look};

/// Lists of a full node are longer than gRPC's usual limit; upstream's kubelet allows as much.
const MAX_MESSAGE: usize = 16 << 20;
/// Events a slow listener may fall behind before it has to list again.
const EVENT_BACKLOG: usize = 1024;

/// What the adapter is told once, at start.
pub struct CriConfig {
    pub socket: PathBuf,
    /// Top control group of all pods, such as `dhow`.
    pub cgroup_root: String,
}

/// Runs containers in another runtime on this machine.
#[derive(Clone)]
pub struct CriRuntime {
    inner: Arc<Inner>,
    /// Ends the following of events with the last clone.
    _end: Arc<DropGuard>,
}

struct Inner {
    config: CriConfig,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    channel: Channel,
    version: proto::VersionResponse,
    cgroup_driver: CgroupDriver,
    /// What sandboxes were asked to be; filled again from their annotations.
    sandboxes: Mutex<HashMap<String, SandboxConfig>>,
    /// Statuses that hold for as long as the state they tell of.
    statuses: Mutex<HashMap<String, ContainerStatus>>,
    events: broadcast::Sender<RuntimeEvent>,
    /// Where signs of changes come from: the best that this runtime has.
    source: Arc<Mutex<events::Source>>,
}

/// Where a CNI runtime looks for network configuration and plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniFolders {
    pub configuration: PathBuf,
    pub plugins: PathBuf,
}

impl CriRuntime {
    /// Connects and asks who is there. Fails with what to do if nobody is, or if it is too old for CRI v1.
    pub async fn open(config: CriConfig) -> Result<Arc<Self>, Error> {
        let channel = connect(&config.socket).await?;
        let mut runtime = RuntimeServiceClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let images = ImageServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let version = match runtime.version(proto::VersionRequest { version: "v1".into() }).await {
            Ok(version) => version.into_inner(),
            Err(status) if status.code() == tonic::Code::Unimplemented => {
                return Err(Error::FailedPrecondition(format!(
                    "the runtime at {} does not speak CRI v1: use containerd 1.6 or CRI-O 1.23 or newer, and do not \
                     list \"cri\" in containerd's disabled_plugins",
                    config.socket.display()
                )));
            }
            Err(status) => return Err(Error::internal("ask the container runtime for its version", status)),
        };
        let cgroup_driver = cgroup_driver(&mut runtime).await?;
        let end = CancellationToken::new();
        let inner = Arc::new(Inner {
            config,
            runtime,
            images,
            channel,
            version,
            cgroup_driver,
            sandboxes: Mutex::default(),
            statuses: Mutex::default(),
            events: broadcast::channel(EVENT_BACKLOG).0,
            source: Arc::new(Mutex::new(events::Source::Cri)),
        });
        images::ensure_pause(&inner).await?;
        look::follow(&inner, end.clone()).await?;
        Ok(Arc::new(Self { inner, _end: Arc::new(end.drop_guard()) }))
    }

    /// Where this runtime looks for CNI, as far as it tells; else where everybody does.
    pub async fn cni_folders(&self) -> Result<CniFolders, Error> {
        let config = runtime_info(&mut self.inner.runtime.clone()).await?;
        let folder = |name: &str, usual: &str| match config["cni"][name].as_str() {
            Some(folder) if !folder.is_empty() => PathBuf::from(folder),
            _ => PathBuf::from(usual),
        };
        Ok(CniFolders { configuration: folder("confDir", "/etc/cni/net.d"), plugins: folder("binDir", "/opt/cni/bin") })
    }

    /// Where this runtime looks for certificates of registries, a folder each; `None`: nowhere.
    pub async fn certs_folders(&self) -> Result<Option<PathBuf>, Error> {
        let version = self.inner.runtime.clone().version(proto::VersionRequest::default()).await;
        let version = version.map_err(|status| Error::internal("ask the container runtime for its version", status))?;
        if version.into_inner().runtime_name == "cri-o" {
            return Ok(Some("/etc/containers/certs.d".into()));
        }
        // containerd, which takes several, separated like those of PATH.
        let config = runtime_info(&mut self.inner.runtime.clone()).await?;
        let folders = config["registry"]["configPath"].as_str().unwrap_or_default();
        Ok(folders.split(':').find(|folder| !folder.is_empty()).map(PathBuf::from))
    }
}

async fn connect(socket: &Path) -> Result<Channel, Error> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The name is never resolved; gRPC wants some.
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(Duration::from_secs(5));
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|error| Error::internal(format!("connect to the container runtime at {}", socket.display()), error))
}

/// Asked outright where there is such a call, else read from what the runtime says of its configuration.
async fn cgroup_driver(runtime: &mut RuntimeServiceClient<Channel>) -> Result<CgroupDriver, Error> {
    if let Ok(answer) = runtime.runtime_config(proto::RuntimeConfigRequest {}).await {
        let linux = answer.into_inner().linux.unwrap_or_default();
        return Ok(match linux.cgroup_driver() {
            proto::CgroupDriver::Systemd => CgroupDriver::Systemd,
            proto::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
        });
    }
    let config = runtime_info(runtime).await?;
    let name = config["containerd"]["defaultRuntimeName"].as_str().unwrap_or("runc").to_owned();
    let systemd = &config["containerd"]["runtimes"][&name]["options"]["SystemdCgroup"];
    Ok(if systemd.as_bool() == Some(true) { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs })
}

/// containerd's own configuration; `null` from others.
pub async fn runtime_info(runtime: &mut RuntimeServiceClient<Channel>) -> Result<serde_json::Value, Error> {
    let status = runtime.status(proto::StatusRequest { verbose: true }).await;
    let info = status.map_err(|status| Error::internal("ask the container runtime for its status", status))?;
    let config = info.into_inner().info.remove("config").unwrap_or_default();
    Ok(serde_json::from_str(&config).unwrap_or_default())
}
