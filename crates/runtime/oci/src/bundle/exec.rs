//! Programs beside the first process of a bundle's container.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{Linux, Process as Given};

use super::state::{Container, Status};
use super::{console, process};
use crate::birth::{self, Line, adjust_oom, no_answer};
use crate::error::{Context, Error, Result};
use crate::setup::{program, seccomp};
use crate::sys;

/// A program to run in a container.
#[derive(Debug, Clone)]
pub struct Beside {
    pub process: Given,
    pub preserve_fds: u32,
}

/// All kinds of namespaces but user; `CLONE_NEWTIME` is missing in `libc`.
const KINDS: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWPID
    | 0x80;

/// Runs a program; it runs when this returns its number, and the terminal's master if it has one.
/// The caller has one thread.
pub fn exec(container: &Container, beside: &Beside) -> Result<(i32, Option<OwnedFd>)> {
    let (Status::Running | Status::Created, Some(first)) = (container.status(), container.process()) else {
        return Err(Error::Invalid(format!("cannot exec in container {}: it is not running", container.id)));
    };
    let no_section = Linux::default();
    let linux = container.config.linux().as_ref().unwrap_or(&no_section);
    let mut wanted = process::resolve(&beside.process, linux, false)?;
    if wanted.args.is_empty() {
        return Err(Error::Invalid("process.args must not be empty".into()));
    }
    wanted.preserve_fds = beside.preserve_fds;
    sys::close_at_exec(3 + beside.preserve_fds).step("close files")?;
    let user = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).step("look at the user namespace");
    let own_users = user("self")? != user(&container.pid.to_string())?;
    let kinds = KINDS | if own_users { libc::CLONE_NEWUSER } else { 0 };
    let filter = seccomp::compile(&wanted.seccomp, &wanted.capabilities)?;
    let doors = container.cgroup().doors()?;
    let born_into = doors.born_into.as_ref().map(AsFd::as_fd);
    let enter = |_: &Line| -> Result<()> {
        doors.enter()?;
        adjust_oom(wanted.oom_score_adj);
        sys::join_namespaces(first.as_fd(), kinds.unsigned_abs().into()).step("join the container")
    };
    let body = |line: &Line| -> Result<Infallible> {
        rustix::process::setsid().step("begin a session")?;
        program::leave_keys(&container.id);
        if wanted.tty {
            console::make(line, beside.process.console_size())?;
        }
        program::set_umask(&wanted);
        let prepared = program::prepare(&wanted, filter)?;
        program::own_streams(&prepared, None);
        program::enter_folder(&wanted.cwd)?;
        line.ready()?;
        program::run(&wanted, &prepared)
    };
    let mut made = birth::sibling(0, born_into, &mut no_answer, enter, body)?;
    let result = made.until_it_runs();
    if result.is_err() {
        birth::reap(made.pid);
    }
    result.map(|()| (made.pid, made.terminal.take()))
}
