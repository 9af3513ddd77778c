//! The children of the shim: a container's first process, and programs beside it. Each ends in `exec` or `exit`.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use crate::birth::{self, Line, Made, adjust_oom, no_answer};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::setup::{idmap, program, rootfs, seccomp, terminal};
use crate::spec::{ContainerSpec, IdRange, Limits, PidMode, Process};
use crate::sys::{self, Forked};

/// Streams of a program without a terminal; `None` is `/dev/null`.
pub type Streams = [Option<OwnedFd>; 3];

/// What a container gets from its sandbox.
pub struct Surroundings<'a> {
    /// Folder that is its `/dev/shm`.
    pub shm: &'a Path,
    /// The process whose process namespace a container of a shared one joins.
    pub init: Option<BorrowedFd<'a>>,
    pub init_pid: Option<i32>,
    /// The host's mount namespace, for mounts that are shared with it.
    pub host_mounts: BorrowedFd<'a>,
    /// The user namespace, and what its ids are outside.
    pub users: Option<&'a (OwnedFd, IdRange)>,
}

/// Makes a container's first process and waits until it is set up.
pub fn container(
    spec: &ContainerSpec,
    cgroup: &Cgroup,
    streams: &Streams,
    surroundings: &Surroundings<'_>,
) -> Result<Made> {
    let Surroundings { shm, init, host_mounts, users, .. } = *surroundings;
    let filter = seccomp::compile(&spec.process.seccomp, &spec.process.capabilities)?;
    let doors = cgroup.doors()?;
    let born_into = doors.born_into.as_ref().map(AsFd::as_fd);
    let body = |line: &Line| -> Result<Infallible> {
        follow_shim();
        doors.enter()?;
        sys::unshare(libc::CLONE_NEWCGROUP).step("take a cgroup namespace")?;
        adjust_oom(spec.process.oom_score_adj);
        begin_session(&spec.id)?;
        rootfs::enter(spec, shm, host_mounts, users.map(|(users, range)| (users.as_fd(), *range)))?;
        let terminal = streams_or_terminal(&spec.process, streams, line)?;
        if let Some(slave) = &terminal {
            terminal::become_console(slave)?;
        }
        program::set_umask(&spec.process);
        let prepared = program::prepare(&spec.process, filter)?;
        program::own_streams(&prepared, users.map(|(_, range)| *range));
        if let Some((users, _)) = users {
            // File system and streams are as root made them; from here on it is root of its own ids alone.
            become_own_root(users)?;
            sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP).step("take namespaces of its own ids")?;
        }
        program::enter_folder(&spec.process.cwd)?;
        line.tell_ids(prepared.ids())?;
        line.ready()?;
        line.await_go();
        program::run(&spec.process, &prepared)
    };
    let pid = if spec.processes_of.is_some() { PidMode::Sandbox } else { spec.pid };
    match (pid, init) {
        (PidMode::Own, _) => birth::child(sys::NEW_PID | sys::NEW_MOUNTS, born_into, &mut no_answer, body),
        (PidMode::Host, _) => birth::child(sys::NEW_MOUNTS, born_into, &mut no_answer, body),
        (PidMode::Sandbox, Some(init)) => {
            let kinds = libc::CLONE_NEWPID as u64;
            let enter = |_: &Line| sys::join_namespaces(init, kinds).step("join the pod's processes");
            birth::sibling(sys::NEW_MOUNTS, born_into, &mut no_answer, enter, body)
        }
        (PidMode::Sandbox, None) => Err(Error::Invalid("the sandbox has no process namespace to share".into())),
    }
}

/// Runs a program beside the first process of a container. It runs when this returns.
pub fn beside(
    target: BorrowedFd<'_>,
    cgroup: &Cgroup,
    process: &Process,
    streams: &Streams,
    users: Option<&(OwnedFd, IdRange)>,
) -> Result<Made> {
    let filter = seccomp::compile(&process.seccomp, &process.capabilities)?;
    let doors = cgroup.doors()?;
    let born_into = doors.born_into.as_ref().map(AsFd::as_fd);
    let enter = |_: &Line| -> Result<()> {
        doors.enter()?;
        let kinds = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWCGROUP;
        adjust_oom(process.oom_score_adj);
        sys::join_namespaces(target, kinds as u64).step("join the container")
    };
    let body = |line: &Line| -> Result<Infallible> {
        follow_shim();
        begin_session("exec")?;
        streams_or_terminal(process, streams, line)?;
        program::set_umask(process);
        let prepared = program::prepare(process, filter)?;
        program::own_streams(&prepared, users.map(|(_, range)| *range));
        if let Some((users, _)) = users {
            become_own_root(users)?;
        }
        program::enter_folder(&process.cwd)?;
        line.ready()?;
        program::run(process, &prepared)
    };
    let made = birth::sibling(0, born_into, &mut no_answer, enter, body)?;
    let result = made.until_it_runs();
    if result.is_err() {
        birth::reap(made.pid);
    }
    result.map(|()| made)
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

/// Makes a group on cgroup v1, a folder in each of many trees, beside whatever else is done. Its end is of no interest.
pub fn make_group(cgroup: &Cgroup) -> Result<()> {
    // SAFETY: the shim has one thread; the child ends here.
    match unsafe { sys::fork(0, None) }.step("make a helper process")? {
        Forked::Child => {
            follow_shim();
            // Where it fails, making the container's own says why.
            let _ = cgroup.create(&Limits::default());
            sys::exit(0)
        }
        Forked::Parent { .. } => Ok(()),
    }
}

/// Becomes the root of a user namespace, with all rights there and none outside.
fn become_own_root(users: &OwnedFd) -> Result<()> {
    sys::join_namespaces(users.as_fd(), libc::CLONE_NEWUSER as u64).step("join the pod's user namespace")?;
    idmap::become_root()
}

/// A session, and keys, of one's own.
fn begin_session(name: &str) -> Result<()> {
    rustix::process::setsid().step("begin a session")?;
    program::leave_keys(name);
    Ok(())
}

/// Installs the streams, or makes a terminal, sends its master to the shim and returns its slave.
fn streams_or_terminal(process: &Process, streams: &Streams, line: &Line) -> Result<Option<OwnedFd>> {
    if process.tty {
        let (master, slave) = terminal::open()?;
        line.hand_over_terminal(&master)?;
        terminal::take(&slave)?;
        return Ok(Some(slave));
    }
    let null =
        rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step("open /dev/null")?;
    let [stdin, stdout, stderr] = streams;
    program::install_streams([stdin.as_ref(), stdout.as_ref(), stderr.as_ref()], null.as_fd())?;
    Ok(None)
}

/// A child never outlives the shim, whatever it is waiting for.
fn follow_shim() {
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
}
