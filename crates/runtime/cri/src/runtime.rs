//! The `Runtime` trait: what the kubelet asks of whatever runs containers, in the shape of CRI v1.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

pub use dhow_oci::spec::Ids;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Error;

/// Identifies a pod sandbox, unique on the node.
pub type SandboxId = String;
/// Identifies a container, unique on the node.
pub type ContainerId = String;

/// Which pod a sandbox belongs to. `attempt` grows each time the pod's sandbox is replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct PodIdentity {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub attempt: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum NamespaceMode {
    /// Own namespace of the pod.
    #[default]
    Pod,
    /// Own namespace of the container (pid only).
    Container,
    /// The host's.
    Node,
}

/// Whose user and group ids a pod has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum UserNamespace {
    /// The host's.
    #[default]
    Node,
    /// Own ids, which the runtime picks a range of the host's for.
    Pod,
    /// Own ids: 0 to `size` inside are `host` and following outside.
    Range { host: u32, size: u32 },
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct NamespaceOptions {
    pub network: NamespaceMode,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    #[serde(default)]
    pub user: UserNamespace,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct DnsConfig {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct PortMapping {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    pub container_port: u16,
    pub host_port: u16,
    pub host_ip: Option<IpAddr>,
}

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct SandboxConfig {
    pub pod: PodIdentity,
    pub hostname: String,
    /// Where the pod's container logs go: `<log_directory>/<container log_path>`.
    pub log_directory: PathBuf,
    pub dns: Option<DnsConfig>,
    pub port_mappings: Vec<PortMapping>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub namespaces: NamespaceOptions,
    pub sysctls: BTreeMap<String, String>,
    /// Parent cgroup below the runtime's root, e.g. `kubepods/burstable/pod<uid>`.
    pub cgroup_parent: String,
    /// Names an external OCI binary (RuntimeClass handler); empty is the runtime's default.
    pub runtime_handler: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum SandboxState {
    Ready,
    NotReady,
}

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct SandboxStatus {
    pub id: SandboxId,
    pub pod: PodIdentity,
    pub state: SandboxState,
    pub created_at: SystemTime,
    /// Primary address first; empty on the host network.
    pub ips: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum MountPropagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Mount {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    pub readonly: bool,
    pub propagation: MountPropagation,
    /// `readonly` holds for the mounts below it as well.
    #[serde(default)]
    pub recursive_readonly: bool,
    /// Mounts the files of this image, always read-only, in place of `host_path`; `image_sub_path` of them if set.
    #[serde(default)]
    pub image: Option<String>,
    #[serde(default)]
    pub image_sub_path: PathBuf,
}

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Device {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    /// Any of `rwm`.
    pub permissions: String,
}

/// Cgroup limits. `None` leaves the kernel's default.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Resources {
    /// Microseconds per `cpu_period` (100 ms unless set).
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<u64>,
    /// cgroup v1 scale, 2..=262144.
    pub cpu_shares: Option<u64>,
    /// Bytes.
    pub memory_limit: Option<i64>,
    pub oom_score_adj: Option<i32>,
    pub pids_limit: Option<i64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// Bytes by page size, such as `2MB`.
    #[serde(default)]
    pub hugepages: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum SeccompProfile {
    #[default]
    RuntimeDefault,
    Unconfined,
    /// An absolute path on the node.
    Localhost(PathBuf),
}

/// What AppArmor confines a container by, on a kernel that has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum AppArmorProfile {
    /// Nothing was asked for: what the runtime has by default, if anything.
    #[default]
    Unspecified,
    RuntimeDefault,
    Unconfined,
    /// A profile loaded in the kernel.
    Localhost(String),
}

/// Parts of an SELinux label; the empty ones are the runtime's usual. Without SELinux they mean nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SelinuxOptions {
    pub user: String,
    pub role: String,
    pub r#type: String,
    pub level: String,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct SecurityContext {
    pub privileged: bool,
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    /// A name from the image's `/etc/passwd`, when no numeric user is given.
    pub run_as_username: Option<String>,
    pub supplemental_groups: Vec<u32>,
    /// `supplemental_groups` only; none that the image's files give the user (`supplementalGroupsPolicy: Strict`).
    #[serde(default)]
    pub only_given_groups: bool,
    /// Names without or with `CAP_`; `ALL` stands for every capability.
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub readonly_rootfs: bool,
    pub no_new_privs: bool,
    pub seccomp: SeccompProfile,
    #[serde(default)]
    pub apparmor: AppArmorProfile,
    #[serde(default)]
    pub selinux: Option<SelinuxOptions>,
    pub masked_paths: Option<Vec<String>>,
    pub readonly_paths: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct ContainerConfig {
    /// The container's name in the pod.
    pub name: String,
    /// Grows with each restart of this container in the pod.
    pub attempt: u32,
    /// Reference or id of an image already pulled.
    pub image: String,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's cmd when not empty, or when `command` is set.
    pub args: Vec<String>,
    pub working_dir: Option<String>,
    /// Added to the image's environment, later ones win.
    pub envs: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Relative to the sandbox's log directory, CRI log format.
    pub log_path: PathBuf,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub resources: Resources,
    pub security: SecurityContext,
    /// Devices by their names in the Container Device Interface, such as `vendor.com/class=0`.
    #[serde(default)]
    pub cdi_devices: Vec<String>,
    /// Shares the process namespace of this container, for debugging it.
    #[serde(default)]
    pub target: Option<ContainerId>,
    /// `SIGUSR1` and the like; takes the place of the image's.
    #[serde(default)]
    pub stop_signal: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ContainerState {
    Created,
    Running,
    Exited,
    Unknown,
}

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct ContainerStatus {
    pub id: ContainerId,
    pub sandbox_id: SandboxId,
    pub name: String,
    pub attempt: u32,
    pub state: ContainerState,
    pub created_at: SystemTime,
    pub started_at: Option<SystemTime>,
    pub finished_at: Option<SystemTime>,
    /// 128 + signal when killed by one.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, …
    pub reason: String,
    pub message: String,
    /// What the container was made from, as asked.
    pub image: String,
    /// Content-addressed id of the image.
    pub image_ref: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub log_path: PathBuf,
    /// Who its program was started as; nothing from a runtime that does not tell.
    #[serde(default)]
    pub user: Option<Ids>,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct ContainerStats {
    pub id: ContainerId,
    pub cpu_usage_core_nanos: u64,
    pub memory_usage_bytes: u64,
    /// Usage less inactive file pages.
    pub memory_working_set_bytes: u64,
    pub pids: u64,
}

/// What something takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    pub bytes: u64,
    pub inodes: u64,
}

/// What a runtime can run pods with, by the name that runtime classes have for it; the default has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeHandler {
    pub name: String,
    pub user_namespaces: bool,
    /// [`Mount::recursive_readonly`].
    pub recursive_readonly_mounts: bool,
    /// [`Mount::image`].
    pub image_volumes: bool,
}

#[derive(Debug, Clone)]
pub struct RuntimeVersion {
    pub name: String,
    pub version: String,
}

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct ImageInfo {
    /// `sha256:…` of the image configuration.
    pub id: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    /// Bytes on disk.
    pub size: u64,
    /// The image's `USER`, split: numeric id or name.
    pub uid: Option<u32>,
    pub username: Option<String>,
}

/// A file system that holds images, in bytes and inodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageFsInfo {
    /// A directory on it.
    pub mountpoint: std::path::PathBuf,
    pub capacity_bytes: u64,
    /// What an unprivileged process could still write.
    pub available_bytes: u64,
    /// Taken by images: blobs and unpacked layers.
    pub used_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
    pub inodes_used: u64,
}

/// Registry credentials; never logged.
#[derive(Clone, Default)]
pub struct ImageAuth {
    pub username: String,
    pub password: String,
    pub identity_token: String,
}

/// What happened to a container, so that nobody polls.
#[derive(Debug, Clone)]
pub struct RuntimeEvent {
    pub pod: PodIdentity,
    pub sandbox_id: SandboxId,
    /// Empty when the sandbox itself changed.
    pub container_id: ContainerId,
    pub kind: RuntimeEventKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeEventKind {
    Started,
    Exited,
    Removed,
}

#[derive(Debug, Clone)]
pub struct ExecResult {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

#[derive(Debug, Clone)]
pub struct ExecRequest {
    pub command: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;
/// A byte stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The live streams of an exec or attach. Dropping it ends the exec'd process' stdin, not the process.
pub struct Streams {
    /// Closing it is end-of-file to the process.
    pub stdin: Option<Writer>,
    pub stdout: Option<Reader>,
    /// `None` with a tty: both come through `stdout`.
    pub stderr: Option<Reader>,
    /// Terminal sizes to apply, columns and rows.
    pub resize: Option<tokio::sync::mpsc::Sender<(u16, u16)>>,
    /// Resolves to the exit code once the process ended (attach: once the container ended).
    pub exit: tokio::sync::oneshot::Receiver<Result<i32, Error>>,
}

/// Runs pods' containers. Calls are idempotent where CRI's are: stopping what is stopped and removing
/// what is gone succeed.
#[async_trait::async_trait]
pub trait Runtime: Send + Sync + 'static {
    async fn version(&self) -> Result<RuntimeVersion, Error>;
    /// What pods can be run with; empty from a runtime that does not say.
    async fn handlers(&self) -> Result<Vec<RuntimeHandler>, Error> {
        Ok(Vec::new())
    }

    /// What it can do for containers of a handler (see [`SandboxConfig::runtime_handler`]): nothing that it does not tell.
    async fn features(&self, handler: &str) -> Result<RuntimeHandler, Error> {
        let told = self.handlers().await?.into_iter().find(|told| told.name == handler);
        Ok(told.unwrap_or_default())
    }

    /// Why pods cannot get a network of their own now, and whenever that changes; `None` from a runtime that does not say.
    fn network_problem(&self) -> Option<tokio::sync::watch::Receiver<Option<String>>> {
        None
    }

    /// Creates and starts a sandbox: namespaces, cgroup, network. On error nothing is left behind.
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxId, Error>;
    /// Kills what runs in the sandbox and frees its network; the sandbox can still be looked at.
    async fn stop_sandbox(&self, id: &str) -> Result<(), Error>;
    async fn remove_sandbox(&self, id: &str) -> Result<(), Error>;
    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus, Error>;
    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, Error>;

    async fn create_container(&self, sandbox: &str, config: ContainerConfig) -> Result<ContainerId, Error>;
    async fn start_container(&self, id: &str) -> Result<(), Error>;
    /// Sends the image's stop signal, waits up to `grace`, then kills. Returns once it has ended.
    async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Error>;
    async fn remove_container(&self, id: &str) -> Result<(), Error>;
    async fn container_status(&self, id: &str) -> Result<ContainerStatus, Error>;
    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, Error>;
    async fn update_container_resources(&self, id: &str, resources: Resources) -> Result<(), Error>;
    async fn container_stats(&self, id: &str) -> Result<ContainerStats, Error>;
    /// A process on this machine that is in the sandbox's network as long as the sandbox is ready; nothing from a runtime
    /// that does not tell.
    async fn sandbox_process(&self, id: &str) -> Result<Option<u32>, Error> {
        let _ = id;
        Ok(None)
    }
    /// The runtime's own processes, to measure what it takes itself; nothing from one that does not tell.
    async fn processes(&self) -> Vec<u32> {
        Vec::new()
    }
    /// What a container wrote to its own file system; nothing from a runtime that does not tell. May look at every file.
    async fn writable_layer(&self, id: &str) -> Result<Option<DiskUsage>, Error> {
        let _ = id;
        Ok(None)
    }
    /// What a sandbox was asked to be; nothing from a runtime that does not keep it.
    async fn sandbox_config(&self, id: &str) -> Result<Option<SandboxConfig>, Error> {
        let _ = id;
        Ok(None)
    }
    /// What a container was asked to be, with the limits it has now; nothing from a runtime that does not keep it.
    async fn container_config(&self, id: &str) -> Result<Option<ContainerConfig>, Error> {
        let _ = id;
        Ok(None)
    }
    /// Reopens the log file after rotation.
    async fn reopen_container_log(&self, id: &str) -> Result<(), Error>;

    /// Runs a command and collects its output (at most 16 MiB each); kills it after `timeout`.
    async fn exec_sync(&self, id: &str, command: &[String], timeout: Option<Duration>) -> Result<ExecResult, Error>;
    async fn exec(&self, id: &str, request: ExecRequest) -> Result<Streams, Error>;
    /// Follows a container's streams. Its input is taken only with `stdin`, and where the container says that it has input once,
    /// it ends with whoever took it.
    async fn attach(&self, id: &str, stdin: bool) -> Result<Streams, Error>;
    /// Connects to a TCP port on loopback inside the sandbox's network namespace. A refusal is an error here or of the
    /// first read: CRI's protocol has no word for success.
    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>, Error>;

    /// Events from now on; a receiver that falls behind gets a gap and must list again.
    fn events(&self) -> BoxStream<'static, RuntimeEvent>;

    /// Pulls by reference and returns the image's id. Concurrent pulls of one reference are one.
    async fn pull_image(&self, reference: &str, auth: Option<ImageAuth>) -> Result<String, Error>;
    async fn image_status(&self, reference: &str) -> Result<Option<ImageInfo>, Error>;
    async fn list_images(&self) -> Result<Vec<ImageInfo>, Error>;
    async fn remove_image(&self, reference: &str) -> Result<(), Error>;
    /// Loads a docker-archive or oci-archive (optionally gzip or zstd) and returns the names it held.
    async fn import_image(&self, archive: Reader) -> Result<Vec<String>, Error>;
    /// The file system that images and writable layers are on, and what images take of it.
    async fn image_fs_info(&self) -> Result<ImageFsInfo, Error> {
        Err(Error::FailedPrecondition("the runtime does not report on its image file system".to_owned()))
    }
    /// Removes images that no container and no pull under way uses and that were last used at least `minimum_age` ago,
    /// least recently used first, until `want_bytes` are free (`u64::MAX`: all of them). Returns the bytes freed, which
    /// may be fewer.
    async fn garbage_collect_images(&self, want_bytes: u64, minimum_age: Duration) -> Result<u64, Error> {
        let _ = (want_bytes, minimum_age);
        Err(Error::FailedPrecondition("the runtime collects its unused images itself".to_owned()))
    }
}
