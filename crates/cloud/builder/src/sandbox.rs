//! RUN: one program in a sandbox of its own, made by the same shim as a pod's.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;

use dhow_oci::cgroup::Cgroup;
use dhow_oci::client::{Program, Shim};
use dhow_oci::defaults;
use dhow_oci::protocol::{Reply, Request};
use dhow_oci::spec::{ContainerSpec, Limits, LogLimits, Mount, PidMode, Process, Rootfs, SandboxSpec, Seccomp, User};
use rustix::pipe::PipeFlags;
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use crate::copy::At;
use crate::error::{Error, Result, blocking};

/// Connects the sandboxes of steps that want a network of their own.
#[async_trait::async_trait]
pub trait Network: Send + Sync + 'static {
    /// Connects the namespace; on error nothing is left behind.
    async fn attach(&self, netns: BorrowedFd<'_>, sandbox: &str) -> Result<(), String>;
    /// Undoes it; repeating it is fine.
    async fn detach(&self, sandbox: &str) -> Result<(), String>;
}

/// How steps are run.
pub struct Sandboxes {
    /// A folder per sandbox.
    pub root: PathBuf,
    /// Sockets of the shims.
    pub run_dir: PathBuf,
    /// Control group above those of the steps.
    pub cgroup: String,
    pub program: Program,
    pub network: Arc<dyn Network>,
    /// Text of `/etc/resolv.conf` for steps with a network of their own.
    pub resolv_conf: String,
    /// What a step may use at most.
    pub limits: Limits,
    /// What all steps may use together.
    pub together: Limits,
}

/// A program to run over layers.
pub struct Step {
    /// Top first.
    pub lower: Vec<PathBuf>,
    /// A workspace on the layers' file system; `upper` in it gets what changes.
    pub workspace: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub user: String,
    pub mounts: Vec<Mount>,
    pub network: String,
    pub insecure: bool,
    /// Less than what any step may use.
    pub limits: Limits,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: i32,
    /// The kernel killed it, or a program that it started, for want of memory; how much it may have had.
    pub out_of_memory: Option<i64>,
}

/// What a program writes, as it comes: `true` for standard error.
pub type Sink = Arc<dyn Fn(bool, &[u8]) + Send + Sync>;

const CONTAINER: &str = "step";
/// A step's own log is kept for nobody.
const LOG: LogLimits = LogLimits { max_size: 1 << 20, max_files: 2 };

/// A sandbox that is there. Dropped without `close` it is stopped in the background.
struct Running {
    this: Arc<Sandboxes>,
    id: String,
    shim: Shim,
    child: Option<Child>,
    closed: bool,
}

/// A program that runs.
struct Begun {
    connection: OwnedFd,
    out: OwnedFd,
    err: OwnedFd,
}

impl Begun {
    /// Reads what it writes, until its end.
    async fn wait(self, sink: &Sink) -> Result<i32> {
        let exit = exit_code(self.connection);
        let (_, _, code) = tokio::join!(drain(self.out, false, sink), drain(self.err, true, sink), exit);
        code
    }
}

impl Sandboxes {
    /// Clears what an earlier daemon left.
    pub async fn open(self) -> Result<Arc<Self>> {
        for folder in [&self.root, &self.run_dir] {
            fs::create_dir_all(folder).at("make a folder for steps")?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).at("close a folder")?;
        }
        let this = Arc::new(self);
        for entry in fs::read_dir(&this.root).at("list steps")?.flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            let left =
                Running { shim: Shim::at(this.socket(&id)), this: Arc::clone(&this), id, child: None, closed: false };
            left.close().await?;
        }
        let (group, together) = (this.cgroup.clone(), this.together.clone());
        blocking(move || Ok(Cgroup::new(&group).create(&together)?)).await?;
        Ok(this)
    }

    fn socket(&self, id: &str) -> PathBuf {
        self.run_dir.join(format!("{id}.sock"))
    }

    /// Runs a step to its end. Whoever stops waiting stops it; `held` is let go once nothing of it
    /// runs any more.
    pub async fn run(self: &Arc<Self>, step: Step, sink: Sink, held: impl Send + 'static) -> Result<Ended> {
        let abandoned = CancellationToken::new();
        let _guard = abandoned.clone().drop_guard();
        let this = Arc::clone(self);
        // A task of its own: what is being started is stopped in order, too.
        let work = tokio::spawn(async move {
            let _held = held;
            let id = uuid::Uuid::new_v4().simple().to_string();
            let running = this.start(&id, &step).await?;
            let limits = this.limits(&step);
            let memory = limits.memory.or(this.together.memory);
            let ended = match running.begin(step, limits).await {
                Ok(begun) => tokio::select! {
                    code = begun.wait(&sink) => code,
                    () = abandoned.cancelled() => Err(Error::Interrupted("nobody waits for it".into())),
                },
                Err(error) => Err(error),
            };
            let ended = match ended {
                Ok(0) => Ok(Ended { code: 0, out_of_memory: None }),
                Ok(code) => running
                    .starved()
                    .await
                    .map(|starved| Ended { code, out_of_memory: starved.then_some(memory.unwrap_or_default()) }),
                Err(error) => Err(error),
            };
            let closed = running.close().await;
            let ended = ended?;
            closed.map(|()| ended)
        });
        work.await.unwrap_or_else(|error| Err(Error::Interrupted(error.to_string())))
    }

    async fn start(self: &Arc<Self>, id: &str, step: &Step) -> Result<Running> {
        let own = step.network != "host";
        let sysctls = defaults::NETWORK_SYSCTLS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let spec = SandboxSpec {
            id: id.to_owned(),
            hostname: "build".to_owned(),
            network: own,
            ipc: true,
            pid: false,
            cgroup: format!("{}/{id}", self.cgroup),
            sysctls: if own { sysctls.collect() } else { Vec::new() },
            users: None,
        };
        let (this, name) = (Arc::clone(self), id.to_owned());
        let (shim, child, pid) = blocking(move || {
            let dir = this.root.join(&name);
            Ok(Shim::start(&this.program, &dir, &this.socket(&name), &spec)?)
        })
        .await?;
        let running = Running { this: Arc::clone(self), id: id.to_owned(), shim, child: Some(child), closed: false };
        if step.network == "default" {
            let netns = fs::File::open(format!("/proc/{pid}/ns/net")).at("open the step's network")?;
            self.network.attach(netns.as_fd(), id).await.map_err(Error::Network)?;
        }
        Ok(running)
    }
}

impl Running {
    /// Whether the kernel killed something of the program that ended for want of memory.
    async fn starved(&self) -> Result<bool> {
        let shim = self.shim.clone();
        blocking(move || match shim.ask(&Request::States)? {
            Reply::States(states) => Ok(states.iter().any(|state| state.id == CONTAINER && state.oom_killed)),
            _ => Ok(false),
        })
        .await
    }

    /// Starts the program.
    async fn begin(&self, step: Step, limits: Limits) -> Result<Begun> {
        let (this, id, shim) = (Arc::clone(&self.this), self.id.clone(), self.shim.clone());
        blocking(move || {
            let dir = this.root.join(&id);
            // Beside the other steps it counts as a whole, so its weight is that of the group above it.
            let group = Cgroup::new(&format!("{}/{id}", this.cgroup));
            group.create(&Limits { cpu_shares: step.limits.cpu_shares, ..Limits::default() })?;
            this.prepare(&dir, &id, step, limits)?;
            shim.tell(&Request::Create { id: CONTAINER.to_owned() })?;
            let [(out, their_out), (err, their_err)] = [new_pipe()?, new_pipe()?];
            let request = Request::Attach { id: CONTAINER.to_owned(), stdin: false };
            let answer = shim.begin(&request, &[their_out.as_fd(), their_err.as_fd()])?;
            shim.tell(&Request::Start { id: CONTAINER.to_owned() })?;
            Ok(Begun { connection: answer.connection, out, err })
        })
        .await
    }

    /// Kills what is left and removes all traces.
    async fn close(mut self) -> Result<()> {
        self.closed = true;
        let (this, id, child) = (Arc::clone(&self.this), self.id.clone(), self.child.take());
        close(this, id, child).await
    }
}

async fn close(this: Arc<Sandboxes>, id: String, child: Option<Child>) -> Result<()> {
    let (stopping, name) = (Arc::clone(&this), id.clone());
    blocking(move || {
        // One that ended is stopped.
        if let Err(error @ (dhow_oci::Error::Invalid(_) | dhow_oci::Error::Shim(_))) =
            Shim::at(stopping.socket(&name)).tell(&Request::Stop)
        {
            return Err(error.into());
        }
        if let Some(mut child) = child {
            child.wait().at("wait for a shim")?;
        }
        Ok(())
    })
    .await?;
    this.network.detach(&id).await.map_err(Error::Network)?;
    blocking(move || {
        Cgroup::everywhere(&format!("{}/{id}", this.cgroup)).remove_all();
        let _ = fs::remove_file(this.socket(&id));
        match fs::remove_dir_all(this.root.join(&id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove a step's folder"),
            _ => Ok(()),
        }
    })
    .await
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        // Whoever waited for the build is gone: nobody else would stop it.
        let (this, id, child) = (Arc::clone(&self.this), self.id.clone(), self.child.take());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = close(this, id, child).await {
                    tracing::warn!(%error, "stop an abandoned step");
                }
            });
        }
    }
}

impl Sandboxes {
    /// What a step asks for, but no more than it may have.
    fn limits(&self, step: &Step) -> Limits {
        let least = |one: Option<i64>, other: Option<i64>| one.into_iter().chain(other).min();
        Limits {
            memory: least(self.limits.memory, step.limits.memory),
            pids: least(self.limits.pids, step.limits.pids),
            cpu_shares: None,
            ..step.limits.clone()
        }
    }

    /// Writes down what the shim is to make.
    fn prepare(&self, dir: &Path, id: &str, step: Step, limits: Limits) -> Result<()> {
        let resolv = match step.network.as_str() {
            "default" => self.resolv_conf.clone(),
            _ => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        };
        let hosts = "127.0.0.1\tlocalhost build\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        let mut mounts = Vec::new();
        for (name, text) in [("resolv.conf", resolv.as_str()), ("hosts", hosts)] {
            let source = dir.join(name);
            fs::write(&source, text).at("write a file of the step")?;
            mounts.push(Mount { source, target: Path::new("/etc").join(name), readonly: true, ..Mount::default() });
        }
        mounts.extend(step.mounts);
        // One below another comes after it.
        mounts.sort_by_key(|mount| mount.target.components().count());
        let capabilities = match step.insecure {
            true => dhow_oci::CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
            false => defaults::capabilities(),
        };
        let own = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
        let spec = ContainerSpec {
            id: CONTAINER.to_owned(),
            process: Process {
                args: step.args,
                env: step.env,
                cwd: step.cwd,
                user: User { name: step.user, ..User::default() },
                capabilities,
                seccomp: if step.insecure { Seccomp::Unconfined } else { Seccomp::Default },
                ..Process::default()
            },
            rootfs: Rootfs {
                lower: step.lower,
                upper: step.workspace.join("upper"),
                work: step.workspace.join("work"),
                target: step.workspace.join("root"),
                readonly: false,
            },
            mounts,
            devices: Vec::new(),
            masked_paths: if step.insecure { Vec::new() } else { own(&defaults::MASKED_PATHS) },
            readonly_paths: if step.insecure { Vec::new() } else { own(&defaults::READONLY_PATHS) },
            privileged: step.insecure,
            pid: PidMode::Own,
            processes_of: None,
            cgroup: format!("{}/{id}/{CONTAINER}", self.cgroup),
            limits,
            log_path: dir.join("output.log"),
            log_limits: Some(LOG),
            stdin: false,
            stdin_once: false,
            program: None,
        };
        let folder = dir.join("containers").join(CONTAINER);
        fs::create_dir_all(&folder).at("make a step's folder")?;
        let text = serde_json::to_vec(&spec)
            .map_err(|error| Error::Io { doing: "write a step's specification".into(), source: error.into() })?;
        fs::write(folder.join("spec.json"), text).at("write a step's specification")
    }
}

fn new_pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(std::io::Error::from).at("make a pipe")
}

/// Reads until nobody writes any more. The other end waits while nobody reads, so nothing is lost.
async fn drain(end: OwnedFd, stderr: bool, sink: &Sink) {
    let Ok(mut receiver) = pipe::Receiver::from_owned_fd(end) else { return };
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = receiver.read(&mut buffer).await {
        sink(stderr, &buffer[..count]);
    }
}

/// What the shim says once the program has ended.
async fn exit_code(connection: OwnedFd) -> Result<i32> {
    rustix::io::ioctl_fionbio(&connection, true).map_err(std::io::Error::from).at("wait for a step")?;
    // Deprecated for types that close their file early, which an `OwnedFd` does not.
    #[allow(deprecated)]
    let connection = AsyncFd::new(connection).at("wait for a step")?;
    loop {
        let mut ready = connection.readable().await.at("wait for a step")?;
        let received = ready.try_io(|fd| {
            let message = dhow_oci::wire::receive::<Reply>(fd.get_ref().as_fd());
            match message {
                Err(dhow_oci::Error::System { source: rustix::io::Errno::AGAIN, .. }) => {
                    Err(std::io::ErrorKind::WouldBlock.into())
                }
                other => Ok(other),
            }
        });
        match received {
            Err(_would_block) => {}
            Ok(Err(error)) => return Err(error).at("wait for a step"),
            Ok(Ok(Ok(Some((Reply::Exited { code }, _))))) => return Ok(code),
            Ok(Ok(Ok(_))) => return Err(Error::Interrupted("the sandbox of a step ended".into())),
            Ok(Ok(Err(error))) => return Err(error.into()),
        }
    }
}
