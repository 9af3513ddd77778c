//! What a sandbox and its containers are made of, resolved: nothing here needs an image or an API to understand.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::setup::seccomp::Profile;

/// A pod sandbox: the namespaces its containers share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxSpec {
    pub id: String,
    pub hostname: String,
    /// Own network namespace; false shares the host's.
    pub network: bool,
    /// Own System V IPC and message queues; false shares the host's.
    pub ipc: bool,
    /// One process namespace for all containers of the sandbox (`shareProcessNamespace`).
    pub pid: bool,
    /// Control group above those of its containers, below the cgroup root.
    pub cgroup: String,
    /// `net.…`, `kernel.shm…`: written inside the sandbox's namespaces.
    pub sysctls: Vec<(String, String)>,
    /// User and group ids of its own; its network, IPC and host name belong to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<IdRange>,
}

/// Ids 0 to `size` inside are `host` and following outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    pub host: u32,
    pub size: u32,
}

/// A container, ready to be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub id: String,
    pub process: Process,
    pub rootfs: Rootfs,
    pub mounts: Vec<Mount>,
    pub devices: Vec<DeviceNode>,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    /// Sees all of the host's devices, files and kernel settings.
    pub privileged: bool,
    pub pid: PidMode,
    /// Joins the process namespace of this container of the sandbox, whatever `pid` says.
    #[serde(default)]
    pub processes_of: Option<String>,
    /// Below the cgroup root, such as `dhow/kubepods/burstable/pod<uid>/<id>`.
    pub cgroup: String,
    pub limits: Limits,
    /// Absolute path of the log file, in CRI's format.
    pub log_path: PathBuf,
    /// When the log file is put aside and a new one begun; never if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_limits: Option<LogLimits>,
    /// A pipe or terminal stays open for input.
    pub stdin: bool,
    pub stdin_once: bool,
    /// Runs the container in our place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<OciProgram>,
}

/// A program with runc's command line, such as runc and crun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OciProgram {
    pub path: PathBuf,
    /// Given before every verb.
    #[serde(default)]
    pub options: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Bytes.
    pub max_size: u64,
    /// Kept at most, the one that is written to among them.
    pub max_files: usize,
}

/// Whose process namespace a container lives in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidMode {
    #[default]
    Own,
    Sandbox,
    Host,
}

/// A program to run in a container, as its first process or beside it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Process {
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub cwd: String,
    pub user: User,
    pub tty: bool,
    /// Bounding, permitted and effective set, without the `CAP_` prefix.
    pub capabilities: Vec<String>,
    /// Each set by itself, in the place of `capabilities`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability_sets: Option<Box<CapabilityLists>>,
    pub no_new_privs: bool,
    pub seccomp: Seccomp,
    pub oom_score_adj: Option<i32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// Octal 022 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// A profile loaded in the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apparmor: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux_label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduling: Option<Box<Scheduling>>,
    /// `personality(2)`'s argument.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personality: Option<u32>,
    /// Files from number 3 on that the program gets.
    #[serde(default)]
    pub preserve_fds: u32,
    /// Outlives whoever made it; else it is killed with them.
    #[serde(default)]
    pub detached: bool,
}

/// The five capability sets of a process, without the `CAP_` prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityLists {
    pub bounding: Vec<String>,
    pub effective: Vec<String>,
    pub permitted: Vec<String>,
    pub inheritable: Vec<String>,
    pub ambient: Vec<String>,
}

/// A limit of `setrlimit(2)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// By the kernel's number (`RLIMIT_…`).
    pub resource: u32,
    /// All ones is no limit.
    pub soft: u64,
    pub hard: u64,
}

/// How a process is given processors and disks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    pub cpu: Option<CpuScheduling>,
    /// `ioprio_set(2)`'s class and level in one number.
    pub io_priority: Option<u16>,
    /// Numbers of processors.
    pub affinity: Option<Vec<usize>>,
}

/// The attributes of `sched_setattr(2)`; times in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuScheduling {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// Who runs it. A name is looked up in the container's own files.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct User {
    /// As in a Dockerfile's USER: `name`, `uid`, `name:group`, `uid:gid`; empty is root.
    pub name: String,
    /// Takes the place of the name's.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub additional_gids: Vec<u32>,
    /// Groups that the container's files give the user are left out.
    #[serde(default)]
    pub only_given_groups: bool,
    /// Its group is among the supplementary ones, too: a program that leaves it for another does not shed what it is denied.
    #[serde(default)]
    pub keeps_group: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    #[default]
    Default,
    Unconfined,
    /// A profile in Docker's JSON format, by absolute path on the host.
    Profile(PathBuf),
    Inline(Box<Profile>),
}

/// Layers and the place for changes. The mount itself lives in the container's mount namespace only.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rootfs {
    /// Read-only layers, top first.
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// An empty folder to mount on.
    pub target: PathBuf,
    pub readonly: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    /// Inside the container; resolved beneath its root.
    pub target: PathBuf,
    pub readonly: bool,
    pub propagation: Propagation,
    /// `readonly` holds for the mounts below it as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recursive_readonly: bool,
    /// Read-only layers, top first, whose files are mounted: `source` is then a path among them, resolved beneath them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    /// Mounts made later on the host appear inside.
    Slave,
    /// And mounts made inside appear on the host.
    Shared,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceNode {
    pub source: PathBuf,
    pub target: PathBuf,
    /// Any of `rwm`.
    pub permissions: String,
}

/// Cgroup limits; `None` leaves the kernel's default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Microseconds per period.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// 2..=262144.
    pub cpu_shares: Option<u64>,
    /// Bytes.
    pub memory: Option<i64>,
    pub pids: Option<i64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// Bytes by page size in the kernel's spelling, such as `2MB`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hugepages: BTreeMap<String, u64>,
}

/// A container's life so far, kept on disk so that whoever asks later finds it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub id: String,
    pub status: Status,
    /// On the host; 0 once it has ended.
    pub pid: i32,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    pub started_at: Option<i64>,
    pub finished_at: Option<i64>,
    /// 128 + signal when killed by one.
    pub exit_code: i32,
    pub oom_killed: bool,
    /// Why the program could not be started, if it could not.
    pub error: Option<String>,
    /// Who the program was started as, by the container's own ids; not known of another runtime's.
    pub user: Option<Ids>,
}

/// A process' ids.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary ones.
    pub groups: Vec<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    #[default]
    Created,
    Running,
    Stopped,
}
