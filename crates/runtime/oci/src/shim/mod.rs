//! The shim: one process per pod sandbox. It holds the sandbox's namespaces, makes the containers, writes their logs,
//! keeps their exit codes, and outlives the daemon.
//!
//! One thread and one loop around `poll`; every request is short. See [`crate::protocol`] for what it is asked.

mod child;
mod container;
mod document;
mod external;
pub mod log;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::net::SocketFlags;
use rustix::process::{DumpableBehavior, WaitOptions};

use crate::cgroup::{self, Cgroup};
use crate::error::{Context, Error, Result};
use crate::protocol::{Reply, Request};
use crate::setup::idmap::{self, Ids};
use crate::setup::sysctl;
use crate::spec::{IdRange, SandboxSpec, Status};
use crate::{sys, wire};
pub use container::exit_code;
use container::{Attached, Container};

/// First argument under which the binary is a shim.
pub const COMMAND: &str = "sandbox-shim";
/// How long killed processes get to disappear.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Without anything to do for so long, nothing is expected soon.
const QUIET: Duration = Duration::from_secs(2);

/// Runs the shim of the sandbox whose folder is the only argument; standard input is the listening socket.
/// Must be called before any thread exists.
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(dir) = args.next().map(PathBuf::from) else { return ExitCode::from(2) };
    match Shim::open(&dir).and_then(Shim::serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// The shim's own log is its standard error.
#[allow(clippy::print_stderr)]
fn complain(error: &Error) {
    eprintln!("{} {error}", jiff::Timestamp::now());
}

struct Shim {
    dir: PathBuf,
    listener: OwnedFd,
    signals: OwnedFd,
    /// Memory that the containers share as `/dev/shm`.
    shm: PathBuf,
    /// The host's mount namespace, for mounts that are shared with it.
    host_mounts: OwnedFd,
    /// The user namespace of a pod that has ids of its own.
    users: Option<(OwnedFd, IdRange)>,
    /// First process of a shared process namespace.
    init: Option<(i32, OwnedFd)>,
    containers: BTreeMap<String, Container>,
    execs: Vec<Exec>,
    /// Connections whose request has not come yet.
    clients: Vec<OwnedFd>,
    watchers: Vec<OwnedFd>,
}

/// A program that runs beside a container's first process.
struct Exec {
    pid: i32,
    connection: OwnedFd,
}

/// What became ready.
enum Source {
    Listener,
    Signals,
    Client(usize),
    Output(String, usize),
}

impl Shim {
    fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("sandbox.json");
        let text = std::fs::read(&path).step(format!("read {}", path.display()))?;
        let spec: SandboxSpec = serde_json::from_slice(&text)
            .map_err(|error| Error::Invalid(format!("{} is not a sandbox's specification: {error}", path.display())))?;
        // SAFETY: the daemon gives the listening socket as standard input, and nothing else here uses it.
        let stdin = unsafe { OwnedFd::from_raw_fd(0) };
        let listener = rustix::io::fcntl_dupfd_cloexec(&stdin, 3).step("keep the listening socket")?;
        let null = std::fs::File::open("/dev/null").step("open /dev/null")?;
        sys::install(null.as_fd(), 0).step("let go of standard input")?;
        std::mem::forget(stdin);

        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step("hide from inspection")?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).step("adopt orphans")?;
        // Best effort: without the shim its containers die, so it should be the last to go.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-998");
        let signals =
            sys::signal_file(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP]).step("listen for signals")?;
        let shm = dir.join("shm");
        let host_mounts = std::fs::File::open("/proc/self/ns/mnt").step("keep the host's mount namespace")?;
        let users = spec.users.map(|range| Ok((idmap::namespace(&Ids::of(range))?, range))).transpose()?;
        enter_namespaces(&spec, users.as_ref().map(|(users, _)| users.as_fd()), &shm)?;
        // What most containers will need.
        crate::setup::seccomp::warm_up();
        let mut this = Self {
            dir: dir.to_owned(),
            listener,
            signals,
            shm,
            host_mounts: host_mounts.into(),
            users,
            init: None,
            containers: BTreeMap::new(),
            execs: Vec::new(),
            clients: Vec::new(),
            watchers: Vec::new(),
        };
        // One that waits for its sandbox learns the rest later.
        if !spec.cgroup.is_empty() {
            this.configure(&spec)?;
        }
        Ok(this)
    }

    /// Everything of a sandbox that needs no new namespace but the processes'.
    fn configure(&mut self, spec: &SandboxSpec) -> Result<()> {
        if !cgroup::is_unified() {
            child::make_group(&Cgroup::new(&spec.cgroup))?;
        }
        if spec.network {
            rustix::system::sethostname(spec.hostname.as_bytes()).step(format!("set host name {:?}", spec.hostname))?;
        }
        spec.sysctls.iter().try_for_each(|(name, value)| sysctl::set(name, value))?;
        if spec.pid && self.init.is_none() {
            self.init = Some(child::pause()?);
        }
        Ok(())
    }

    fn serve(mut self) -> Result<()> {
        let mut used = Some(Instant::now());
        loop {
            let sources = self.wait(used.map(|used| QUIET.saturating_sub(used.elapsed())))?;
            if used.is_some_and(|used| used.elapsed() >= QUIET) {
                // There are as many shims as pods, and most of the time they wait.
                if let Err(error) = dhow_base::memory::unmap_code() {
                    complain(&Error::Invalid(format!("the program's code stays in memory: {error}")));
                }
                used = None;
            }
            if sources.iter().any(|source| !matches!(source, Source::Output(..))) {
                used = Some(Instant::now());
            }
            for source in sources {
                match source {
                    Source::Listener => self.accept(),
                    Source::Signals => self.bury(),
                    Source::Output(id, stream) => {
                        if let Some(path) = self.containers.get_mut(&id).and_then(|c| c.read(stream)) {
                            self.tell(&Reply::Rotated { path });
                        }
                    }
                    // Clients come last and from the back, so that their places stay right.
                    Source::Client(place) => {
                        let connection = self.clients.swap_remove(place);
                        if self.answer(connection) {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// Waits for something to happen. Clients are listed last, highest place first.
    fn wait(&self, limit: Option<Duration>) -> Result<Vec<Source>> {
        let mut sources = vec![Source::Listener, Source::Signals];
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        for (id, container) in &self.containers {
            for (stream, output) in container.outputs.iter().enumerate() {
                if let Some(output) = output {
                    sources.push(Source::Output(id.clone(), stream));
                    fds.push(PollFd::new(output, PollFlags::IN));
                }
            }
        }
        for (place, client) in self.clients.iter().enumerate().rev() {
            sources.push(Source::Client(place));
            fds.push(PollFd::new(client, PollFlags::IN));
        }
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).step("wait for something to do"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        Ok(sources.into_iter().zip(ready).filter(|(_, ready)| *ready).map(|(source, _)| source).collect())
    }

    fn accept(&mut self) {
        match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) {
            Ok(connection) => self.clients.push(connection),
            Err(error) => complain(&Error::System { step: "accept a connection".into(), source: error }),
        }
    }

    /// Takes the exit codes of all children that have ended.
    fn bury(&mut self) {
        let mut buffer = [0; 1024];
        while rustix::io::read(&self.signals, &mut buffer).is_ok_and(|count| count == buffer.len()) {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            if let Some(place) = self.execs.iter().position(|exec| exec.pid == pid) {
                let exec = self.execs.swap_remove(place);
                let code = container::exit_code(status);
                let _ = wire::send(exec.connection.as_fd(), &Reply::Exited { code }, &[]);
            } else if let Some(container) =
                self.containers.values_mut().find(|c| c.state.status != Status::Stopped && c.state.pid == pid)
            {
                container.ended(status);
                container.cgroup.kill();
                let state = container.state.clone();
                self.tell(&Reply::State(Box::new(state)));
            }
        }
    }

    /// Tells all watchers; those that are gone are forgotten.
    fn tell(&mut self, reply: &Reply) {
        self.watchers.retain(|watcher| wire::send(watcher.as_fd(), reply, &[]).is_ok());
    }

    /// Answers the connection's request; true if it was the last one.
    fn answer(&mut self, connection: OwnedFd) -> bool {
        let (request, fds) = match wire::receive::<Request>(connection.as_fd()) {
            Ok(Some(request)) => request,
            Ok(None) => return false,
            Err(error) => {
                let _ = wire::send(connection.as_fd(), &Reply::from(error), &[]);
                return false;
            }
        };
        let last = matches!(request, Request::Stop);
        let (reply, gift) = match self.carry_out(request, fds, &connection) {
            Ok(answer) => answer,
            Err(error) => (Reply::from(error), None),
        };
        let gifts: Vec<_> = gift.iter().map(AsFd::as_fd).collect();
        let stopped = last && matches!(reply, Reply::Done);
        let _ = wire::send(connection.as_fd(), &reply, &gifts);
        stopped
    }

    fn carry_out(
        &mut self,
        request: Request,
        fds: Vec<OwnedFd>,
        connection: &OwnedFd,
    ) -> Result<(Reply, Option<OwnedFd>)> {
        let keep = || rustix::io::fcntl_dupfd_cloexec(connection, 3).step("keep the connection");
        match request {
            Request::Hello => {
                return Ok((Reply::Ready { pid: rustix::process::getpid().as_raw_nonzero().get() }, None));
            }
            Request::Configure { spec } => self.configure(&spec)?,
            Request::Create { id } => {
                if self.containers.contains_key(&id) {
                    return Err(Error::Invalid(format!("container {id} exists")));
                }
                let folder = self.dir.join("containers").join(&id);
                let container = Container::create(&folder, |of| self.surroundings(of))?;
                self.containers.insert(id, container);
            }
            Request::Start { id } => {
                let container = self.container(&id)?;
                let result = container.start();
                let state = container.state.clone();
                if result.is_ok() || state.status == Status::Stopped {
                    self.tell(&Reply::State(Box::new(state)));
                }
                result?;
            }
            Request::Signal { id, signal, all } => {
                let container = self.container(&id)?;
                if container.signal(signal, all) {
                    let state = container.state.clone();
                    self.tell(&Reply::State(Box::new(state)));
                }
            }
            Request::SignalExec { pid, signal } => {
                if self.execs.iter().any(|exec| exec.pid == pid) {
                    sys::kill(pid, signal);
                }
            }
            Request::Remove { id } => self.remove(&id)?,
            Request::States => {
                return Ok((Reply::States(self.containers.values().map(|c| c.state.clone()).collect()), None));
            }
            Request::Exec { id, process, stdin, stdout, stderr } => {
                let Self { containers, users, shm, .. } = self;
                let container = containers.get_mut(&id).ok_or_else(|| Error::NotFound(id.clone()))?;
                if container.state.status != Status::Running {
                    return Err(Error::Invalid(format!("container {id} is not running")));
                }
                let mut fds = fds.into_iter();
                let streams = [stdin, stdout, stderr].map(|wanted| if wanted { fds.next() } else { None });
                let (pid, terminal) = container.exec(&process, &streams, users.as_ref(), shm)?;
                self.execs.push(Exec { pid, connection: keep()? });
                return Ok((Reply::Running { pid }, terminal));
            }
            Request::Attach { id, stdin } => {
                let mut fds = fds.into_iter();
                let attached = Attached { connection: keep()?, outputs: [fds.next(), fds.next()] };
                let container = self.container(&id)?;
                if container.state.status == Status::Stopped {
                    return Err(Error::Invalid(format!("container {id} is not running")));
                }
                return Ok((Reply::Running { pid: 0 }, container.attach(attached, stdin)?));
            }
            Request::Connect { port } => return Ok((Reply::Running { pid: 0 }, Some(connect(port)?))),
            Request::ReopenLog { id } => self.container(&id)?.reopen_log()?,
            Request::Watch => self.watchers.push(keep()?),
            Request::Stop => {
                let ids: Vec<String> = self.containers.keys().cloned().collect();
                ids.iter().try_for_each(|id| self.remove(id))?;
            }
        }
        Ok((Reply::Done, None))
    }

    /// What a container gets that shares the process namespace of the container `of`, else the sandbox's if any.
    fn surroundings(&self, of: Option<&str>) -> child::Surroundings<'_> {
        let (init, init_pid) = match of.map(|id| self.containers.get(id)) {
            Some(container) => (container.and_then(Container::process), container.map(|container| container.state.pid)),
            None => (self.init.as_ref().map(|(_, init)| init.as_fd()), self.init.as_ref().map(|(pid, _)| *pid)),
        };
        let (host_mounts, users) = (self.host_mounts.as_fd(), self.users.as_ref());
        child::Surroundings { shm: &self.shm, init, init_pid, host_mounts, users }
    }

    fn container(&mut self, id: &str) -> Result<&mut Container> {
        self.containers.get_mut(id).ok_or_else(|| Error::NotFound(id.to_owned()))
    }

    /// Kills what is left of a container, waits for its end, and frees its cgroup. One that is gone is fine.
    fn remove(&mut self, id: &str) -> Result<()> {
        let deadline = Instant::now() + KILL_LIMIT;
        loop {
            let Some(container) = self.containers.get_mut(id) else { return Ok(()) };
            let stopped = container.state.status == Status::Stopped;
            if stopped && container.cgroup.processes().is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                return Err(Error::Shim(format!("container {id} does not end, although it was killed")));
            }
            container.cgroup.kill();
            container.signal(libc::SIGKILL, false);
            // A container's end comes as a signal; orphans of others' process namespaces may not be our children.
            let mut fds = [PollFd::new(&self.signals, PollFlags::IN)];
            let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 }));
            self.bury();
        }
        if let Some(mut container) = self.containers.remove(id) {
            container.free();
        }
        Ok(())
    }
}

/// Takes the sandbox's namespaces and prepares them.
fn enter_namespaces(spec: &SandboxSpec, users: Option<BorrowedFd<'_>>, shm: &Path) -> Result<()> {
    let mut kinds = 0;
    if spec.network {
        kinds |= libc::CLONE_NEWNET | libc::CLONE_NEWUTS;
    }
    if spec.ipc {
        kinds |= libc::CLONE_NEWIPC;
    }
    match users {
        Some(users) => idmap::take_namespaces(users, kinds)?,
        None => sys::unshare(kinds).step("take the sandbox's namespaces")?,
    }
    sys::unshare(libc::CLONE_NEWNS).step("take a mount namespace")?;
    // What the host mounts later is seen here; what is mounted here is not seen on the host.
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).step("isolate mounts")?;
    std::fs::create_dir_all(shm).step("create the folder of shared memory")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("shm", shm, "tmpfs", flags, Some(c"mode=1777,size=65536k")).step("mount shared memory")?;
    Ok(())
}

/// Opens a TCP connection on the sandbox's loopback.
fn connect(port: u16) -> Result<OwnedFd> {
    let limit = Duration::from_secs(5);
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&v4, limit)
        .or_else(|first| TcpStream::connect_timeout(&v6, limit).map_err(|_| first));
    Ok(stream.step(format!("connect to port {port} in the pod"))?.into())
}
