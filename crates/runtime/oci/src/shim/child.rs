//! The children of the shim: a container's first process, and programs beside it. Each ends in `exec` or `exit`.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::protocol::FailureKind;
use crate::setup::{paths, program, rootfs, terminal};
use crate::spec::{ContainerSpec, PidMode, Process};
use crate::sys::{self, Forked};
use crate::wire;

/// How long a child may take for its set-up before it is given up, in seconds.
const SETUP_LIMIT: i64 = 120;

/// What a child tells the shim before it runs its program. The end of the stream says that it runs.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// Its process id, as the shim sees it.
    Pid(i32),
    /// Brings the terminal's master.
    Terminal,
    /// Everything is set up; a container's first process waits for the shim's word now.
    Ready,
    Failed {
        kind: FailureKind,
        message: String,
    },
}

/// The shim's word to run the program.
#[derive(Debug, Serialize, Deserialize)]
struct Go;

/// Streams of a program without a terminal; `None` is `/dev/null`.
pub type Streams = [Option<OwnedFd>; 3];

/// A child that is set up.
pub struct Made {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The terminal's master.
    pub terminal: Option<OwnedFd>,
    line: OwnedFd,
}

impl Made {
    /// Lets the program run; returns once it does, or says why it cannot.
    pub fn start(&self) -> Result<()> {
        wire::send(self.line.as_fd(), &Go, &[])?;
        match listen(&self.line)? {
            None => Ok(()),
            Some((Word::Failed { kind, message }, _)) => Err(kind.into_error(message)),
            Some(_) => Err(Error::Shim("the container's process spoke out of turn".into())),
        }
    }
}

fn listen(line: &OwnedFd) -> Result<Option<(Word, Vec<OwnedFd>)>> {
    wire::receive(line.as_fd())
}

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .step("make a socket pair")?;
    let limit = std::time::Duration::from_secs(SETUP_LIMIT.unsigned_abs());
    rustix::net::sockopt::set_socket_timeout(&ours, rustix::net::sockopt::Timeout::Recv, Some(limit))
        .step("limit the wait for a child")?;
    Ok((ours, theirs))
}

/// Makes a container's first process and waits until it is set up.
/// `init` is the process whose process namespace a container of a shared one joins.
pub fn container(
    spec: &ContainerSpec,
    cgroup: &Cgroup,
    streams: &Streams,
    shm: &Path,
    init: Option<BorrowedFd<'_>>,
) -> Result<Made> {
    let doors = cgroup.doors()?;
    let born_into = doors.born_into.as_ref().map(AsFd::as_fd);
    let (ours, theirs) = pair()?;
    let body = |line: &OwnedFd| -> Result<Infallible> {
        follow_shim();
        doors.enter()?;
        sys::unshare(libc::CLONE_NEWCGROUP).step("take a cgroup namespace")?;
        adjust_oom(spec.process.oom_score_adj);
        rustix::process::setsid().step("begin a session")?;
        rootfs::enter(spec, shm)?;
        let terminal = streams_or_terminal(&spec.process, streams, line)?;
        if let Some(slave) = &terminal {
            console(slave)?;
        }
        program::reset_umask();
        let prepared = program::prepare(&spec.process)?;
        program::own_streams(&prepared);
        program::enter_folder(&spec.process.cwd)?;
        wire::send(line.as_fd(), &Word::Ready, &[])?;
        if wire::receive::<Go>(line.as_fd())?.is_none() {
            // The shim is gone or has changed its mind.
            sys::exit(1);
        }
        program::run(&spec.process, &prepared)
    };
    let pid = if spec.processes_of.is_some() { PidMode::Sandbox } else { spec.pid };
    let flags = match (pid, init) {
        (PidMode::Own, _) => sys::NEW_PID | sys::NEW_MOUNTS,
        (PidMode::Host, _) => sys::NEW_MOUNTS,
        (PidMode::Sandbox, Some(init)) => {
            let kinds = libc::CLONE_NEWPID as u64;
            let enter = |_: &OwnedFd| sys::join_namespaces(init, kinds).step("join the pod's processes");
            return sibling(ours, theirs, sys::NEW_MOUNTS, born_into, enter, body);
        }
        (PidMode::Sandbox, None) => {
            return Err(Error::Invalid("the sandbox has no process namespace to share".into()));
        }
    };
    // SAFETY: the shim has one thread; `run_body` never returns.
    match unsafe { sys::fork(flags, born_into) }.step("make the container's process")? {
        Forked::Child => run_body(&theirs, body),
        Forked::Parent { pid, pidfd } => {
            drop(theirs);
            await_words(ours, pid, pidfd, Vec::new())
        }
    }
}

/// Runs a program beside the first process of a container. It runs when this returns.
pub fn beside(target: BorrowedFd<'_>, cgroup: &Cgroup, process: &Process, streams: &Streams) -> Result<Made> {
    let doors = cgroup.doors()?;
    let born_into = doors.born_into.as_ref().map(AsFd::as_fd);
    let (ours, theirs) = pair()?;
    let enter = |_: &OwnedFd| -> Result<()> {
        doors.enter()?;
        let kinds = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWCGROUP;
        adjust_oom(process.oom_score_adj);
        sys::join_namespaces(target, kinds as u64).step("join the container")
    };
    let body = |line: &OwnedFd| -> Result<Infallible> {
        follow_shim();
        rustix::process::setsid().step("begin a session")?;
        streams_or_terminal(process, streams, line)?;
        program::reset_umask();
        let prepared = program::prepare(process)?;
        program::own_streams(&prepared);
        program::enter_folder(&process.cwd)?;
        wire::send(line.as_fd(), &Word::Ready, &[])?;
        program::run(process, &prepared)
    };
    let made = sibling(ours, theirs, 0, born_into, enter, body)?;
    match listen(&made.line)? {
        None => Ok(made),
        Some((Word::Failed { kind, message }, _)) => {
            reap(made.pid);
            Err(kind.into_error(message))
        }
        Some(_) => Err(Error::Shim("the program's process spoke out of turn".into())),
    }
}

/// The first process of a shared process namespace: does nothing but bury its orphans.
pub fn pause() -> Result<(i32, OwnedFd)> {
    // SAFETY: the shim has one thread; the child never returns.
    match unsafe { sys::fork(sys::NEW_PID, None) }.step("make the pod's first process")? {
        Forked::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Forked::Child => {
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            // Or it would keep the shim's socket open past the shim's end.
            // SAFETY: the loop below uses no file and never ends.
            let _ = unsafe { sys::close_all(3) };
            loop {
                if rustix::process::wait(rustix::process::WaitOptions::empty()).is_err() {
                    // No children now: a SIGCHLD, or the end, is what comes next.
                    sys::wait_for_child_signal();
                }
            }
        }
    }
}

/// Makes the next move between cgroups quick, beside whatever else is done. Its end is of no interest.
pub fn warm_up(cgroup: &Cgroup) -> Result<()> {
    // SAFETY: the shim has one thread; the child ends here.
    match unsafe { sys::fork(0, None) }.step("make a helper process")? {
        Forked::Child => {
            follow_shim();
            // Where it fails the container's own move says why.
            let _ = cgroup.warm_up();
            sys::exit(0)
        }
        Forked::Parent { .. } => Ok(()),
    }
}

/// Forks a helper that enters namespaces and makes the real child there as a sibling of itself, a child of the shim.
fn sibling(
    ours: OwnedFd,
    theirs: OwnedFd,
    flags: u64,
    born_into: Option<BorrowedFd<'_>>,
    enter: impl FnOnce(&OwnedFd) -> Result<()>,
    body: impl FnOnce(&OwnedFd) -> Result<Infallible>,
) -> Result<Made> {
    // SAFETY: the shim has one thread; `run_body` never returns.
    match unsafe { sys::fork(0, born_into) }.step("make a helper process")? {
        Forked::Child => run_body(&theirs, |line| {
            enter(line)?;
            // SAFETY: the helper has one thread, too.
            match unsafe { sys::fork(flags | sys::SIBLING, None) }.step("make the process")? {
                Forked::Child => run_body(line, body),
                Forked::Parent { pid, .. } => {
                    wire::send(line.as_fd(), &Word::Pid(pid), &[])?;
                    sys::exit(0)
                }
            }
        }),
        Forked::Parent { pid: helper, .. } => {
            drop(theirs);
            reap(helper);
            // The child may speak before its helper names it.
            let mut words = Vec::new();
            let mut pid = None;
            while pid.is_none() {
                match listen(&ours)? {
                    Some((Word::Pid(number), _)) => pid = Some(number),
                    Some((Word::Failed { kind, message }, _)) => return Err(kind.into_error(message)),
                    Some(other) => words.push(other),
                    None => return Err(Error::Shim("a helper process ended without a word".into())),
                }
            }
            let pid = pid.unwrap_or(0);
            let raw = rustix::process::Pid::from_raw(pid).ok_or_else(|| Error::Shim("no process id".into()))?;
            let pidfd =
                rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).step("open the process")?;
            await_words(ours, pid, pidfd, words)
        }
    }
}

/// Waits until the child is set up; `heard` is what it has said already.
fn await_words(line: OwnedFd, pid: i32, pidfd: OwnedFd, heard: Vec<(Word, Vec<OwnedFd>)>) -> Result<Made> {
    let mut terminal = None;
    let mut heard = heard.into_iter();
    let failed = loop {
        let word = match heard.next() {
            Some(word) => Ok(Some(word)),
            None => listen(&line),
        };
        match word {
            Ok(Some((Word::Terminal, mut fds))) => terminal = fds.pop(),
            Ok(Some((Word::Ready, _))) => return Ok(Made { pid, pidfd, terminal, line }),
            Ok(Some((Word::Failed { kind, message }, _))) => break kind.into_error(message),
            Ok(Some((Word::Pid(_), _))) => {}
            Ok(None) => break Error::Shim("the container's process ended during its set-up".into()),
            Err(error) => break error,
        }
    };
    sys::kill(pid, libc::SIGKILL);
    reap(pid);
    Err(failed)
}

/// Waits for a child that is about to end.
fn reap(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ =
            rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()));
    }
}

/// Runs a child's life; whatever goes wrong is told to the shim.
fn run_body(line: &OwnedFd, body: impl FnOnce(&OwnedFd) -> Result<Infallible>) -> ! {
    let message = match catch_unwind(AssertUnwindSafe(|| body(line))) {
        Ok(Err(error)) => match error.into() {
            crate::protocol::Reply::Failed { kind, message } => Word::Failed { kind, message },
            _ => sys::exit(1),
        },
        Err(_) => Word::Failed { kind: FailureKind::Other, message: "the container's set-up panicked".into() },
    };
    let _ = wire::send(line.as_fd(), &message, &[]);
    sys::exit(1)
}

/// Where the machine does not let us protect a process more, it stays as likely to be killed as it was.
fn adjust_oom(score: Option<i32>) {
    if let Some(score) = score {
        let _ = std::fs::write("/proc/self/oom_score_adj", score.to_string());
    }
}

/// Installs the streams, or makes a terminal, sends its master to the shim and returns its slave.
fn streams_or_terminal(process: &Process, streams: &Streams, line: &OwnedFd) -> Result<Option<OwnedFd>> {
    if process.tty {
        let (master, slave) = terminal::open()?;
        wire::send(line.as_fd(), &Word::Terminal, &[master.as_fd()])?;
        terminal::take(&slave)?;
        return Ok(Some(slave));
    }
    let null =
        rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step("open /dev/null")?;
    let [stdin, stdout, stderr] = streams;
    program::install_streams([stdin.as_ref(), stdout.as_ref(), stderr.as_ref()], null.as_fd())?;
    Ok(None)
}

/// The terminal is also `/dev/console`.
fn console(slave: &OwnedFd) -> Result<()> {
    let root = paths::open_root(Path::new("/"))?;
    let place = paths::mount_point(root.as_fd(), Path::new("/dev/console"), false)?;
    rustix::mount::mount_bind(paths::by_fd(slave), paths::by_fd(&place)).step("make /dev/console")
}

/// A child never outlives the shim, whatever it is waiting for.
fn follow_shim() {
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
}
