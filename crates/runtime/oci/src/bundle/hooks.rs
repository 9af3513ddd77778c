//! Programs that run at points of a container's life, with its state on their standard input.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use oci_spec::runtime::{Hook, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Context, Error, Result};

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Point {
    fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// Deprecated as `prestart` is, engines still use it.
    #[allow(deprecated)]
    fn of(self, spec: &Spec) -> &[Hook] {
        let Some(hooks) = spec.hooks() else { return &[] };
        let list = match self {
            Self::Prestart => hooks.prestart(),
            Self::CreateRuntime => hooks.create_runtime(),
            Self::CreateContainer => hooks.create_container(),
            Self::StartContainer => hooks.start_container(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        };
        list.as_deref().unwrap_or_default()
    }
}

/// Runs the hooks of one point in their order; the first that fails ends it.
pub fn run(spec: &Spec, point: Point, state: &[u8]) -> Result<()> {
    point.of(spec).iter().enumerate().try_for_each(|(place, hook)| {
        one(hook, state).map_err(|error| {
            let path = hook.path().display();
            Error::Shim(format!("{} hook #{place} ({path}): {error}", point.name()))
        })
    })
}

/// Runs all hooks of one point, whatever becomes of each; tells what went wrong.
pub fn run_all(spec: &Spec, point: Point, state: &[u8]) -> Vec<Error> {
    let failed = |(place, hook): (usize, &Hook)| {
        let error = one(hook, state).err()?;
        Some(Error::Shim(format!("{} hook #{place} ({}): {error}", point.name(), hook.path().display())))
    };
    point.of(spec).iter().enumerate().filter_map(failed).collect()
}

fn one(hook: &Hook, state: &[u8]) -> Result<()> {
    let args = hook.args().clone().unwrap_or_default();
    let mut command = Command::new(hook.path());
    if let Some((name, rest)) = args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear();
    for variable in hook.env().iter().flatten() {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        command.env(name, value);
    }
    let errors = tempfile_in_memory()?;
    let stderr = errors.try_clone().step("keep what a hook complains about")?;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(stderr)
        .process_group(0)
        .spawn()
        .step(format!("run {}", hook.path().display()))?;
    // A hook that does not read is no reason to wait; the state is far smaller than a pipe.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(state);
    }
    let timeout = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    if !ends_within(&child, timeout)? {
        let _ = child.kill();
        let _ = child.wait();
        return Err(Error::Shim(format!("timed out after {} s", timeout.unwrap_or_default().as_secs())));
    }
    let status = child.wait().step("wait for a hook")?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Shim(format!("{status}: {}", complaint(errors))))
}

/// Waits for the end of a child, for as long as it may take.
fn ends_within(child: &Child, limit: Option<Duration>) -> Result<bool> {
    let pid = rustix::process::Pid::from_child(child);
    let pidfd =
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).step("open the hook's process")?;
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| poll(&mut fds, limit.as_ref())).step("wait for a hook")? > 0)
}

fn tempfile_in_memory() -> Result<File> {
    let file = rustix::fs::memfd_create("hook", rustix::fs::MemfdFlags::CLOEXEC).step("make a file in memory")?;
    Ok(file.into())
}

/// The last of what a hook wrote to its standard error.
fn complaint(mut file: File) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut text = Vec::new();
    let length = file.seek(SeekFrom::End(0)).unwrap_or(0);
    let _ = file.seek(SeekFrom::Start(length.saturating_sub(2048)));
    let _ = file.read_to_end(&mut text);
    String::from_utf8_lossy(&text).trim().to_owned()
}
