//! A runtime's daemon of the test's own: private folders and sockets, killed and cleaned up after.
//!
//! Its start and end offer no event to wait for, so they are looked for.

use std::fs;
use std::io::{Error, Result};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Short: sockets' paths have 107 bytes.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Result<Self> {
        Ok(Self(tempfile::Builder::new().prefix("dhow-rt").tempdir_in("/var/tmp")?))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Runs a daemon until dropped; then ends it and unmounts what it left.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    folder: PathBuf,
}

impl Daemon {
    /// Starts it, and waits until somebody listens at `socket`.
    pub fn start(mut command: Command, name: &str, folder: &Path, socket: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = fs::File::create(&log)?;
        let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
        let mut daemon = Self { child, log, folder: folder.to_owned() };
        let begin = Instant::now();
        while UnixStream::connect(socket).is_err() {
            let ended = daemon.child.try_wait()?;
            if ended.is_some() || begin.elapsed() > Duration::from_secs(60) {
                return Err(Error::other(format!("{name} did not start ({ended:?}): {}", daemon.log())));
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(daemon)
    }

    /// The end of what it said.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begin.elapsed() < Duration::from_secs(15) {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(point).starts_with(&self.folder) {
                let _ = Command::new("umount").args(["-l", point]).status();
            }
        }
    }
}
