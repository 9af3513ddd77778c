//! Pid files of our long-running processes, kept open and locked while they live: whether one does cannot be told from
//! a number that another process may have by now.

use std::io::{Read, Write};
use std::path::Path;
use std::{fs, io};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long a process may take to end before it is killed, in seconds.
const PATIENCE: i64 = 30;

/// Held by the process that the file names; it is gone with the process.
pub struct PidFile {
    _locked: fs::File,
}

impl PidFile {
    /// Writes the own number, or fails because another process holds the file.
    pub fn take(path: &Path) -> Result<Self> {
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("write {}", path.display()))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another dhow already uses {}", path.display());
        }
        file.set_len(0)
            .and_then(|()| write!(file, "{}", std::process::id()))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(Self { _locked: file })
    }
}

/// The process that holds the file.
pub fn holder(path: &Path) -> Option<Pid> {
    let mut file = fs::File::open(path).ok()?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok().and_then(Pid::from_raw)
}

/// Asks the holder to end and waits for it; kills it if it does not. Returns whether there was one.
pub fn stop(path: &Path) -> Result<bool> {
    let Some(pid) = holder(path) else { return Ok(false) };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(false) };
    pidfd_send_signal(&handle, Signal::TERM).context("ask the process to end")?;
    let wait = Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&wait)).context("wait for the process")?;
    if ended == 0 {
        tracing::warn!(pid = pid.as_raw_nonzero().get(), "it did not end within {PATIENCE} s; killing it");
        pidfd_send_signal(&handle, Signal::KILL).context("kill the process")?;
        poll(&mut [PollFd::new(&handle, PollFlags::IN)], None).context("wait for the process")?;
    }
    Ok(true)
}

/// Resolves when the process has ended, whoever its parent is.
pub async fn ended(pid: Pid) -> io::Result<()> {
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    // Deprecated for types that close their file early, which an `OwnedFd` does not.
    #[allow(deprecated)]
    let handle = AsyncFd::with_interest(handle, Interest::READABLE)?;
    handle.readable().await.map(drop)
}
