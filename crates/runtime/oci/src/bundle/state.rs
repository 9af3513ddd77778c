//! What is known of bundles' containers, one folder each, and what can be done by that alone.
//!
//! ```text
//! <root>/<id>/state.json     written when the container is whole; without it the folder is a leftover
//!            /start          socket of a container that waits to be started; gone once it was
//! ```

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::Spec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::hooks::{self, Point};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::sys;

/// How long killed processes get to disappear.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Containers below one folder.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// A container as it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Container {
    pub id: String,
    #[serde(skip)]
    pub folder: PathBuf,
    /// Its first process.
    pub pid: i32,
    /// When that began, in the kernel's ticks: tells it from a later process of the same number.
    pub start_time: u64,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub cgroup: String,
    /// RFC 3339.
    pub created: String,
    pub config: Box<Spec>,
}

/// As the specification names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
        })
    }
}

/// The specification's state, with what runc adds to it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State<'a> {
    pub oci_version: &'a str,
    pub id: &'a str,
    pub pid: i32,
    pub status: Status,
    pub bundle: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<&'a HashMap<String, String>>,
    pub rootfs: &'a Path,
    pub created: &'a str,
    pub owner: &'static str,
}

impl Store {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Makes a container's folder; its name is taken then.
    pub fn claim(&self, id: &str) -> Result<PathBuf> {
        check_id(id)?;
        let folder = self.root.join(id);
        fs::create_dir_all(&self.root).step(format!("create {}", self.root.display()))?;
        match rustix::fs::mkdir(&folder, rustix::fs::Mode::from_raw_mode(0o711)) {
            Err(rustix::io::Errno::EXIST) => Err(Error::Invalid(format!("container with id exists: {id}"))),
            result => result.step(format!("create {}", folder.display())).map(|()| folder),
        }
    }

    pub fn open(&self, id: &str) -> Result<Container> {
        check_id(id)?;
        let folder = self.root.join(id);
        let text = match fs::read(folder.join("state.json")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Error::NotFound(id.to_owned())),
            text => text.step(format!("read the state of container {id}"))?,
        };
        let mut container: Container = serde_json::from_slice(&text)
            .map_err(|error| Error::Shim(format!("the state of container {id} cannot be read: {error}")))?;
        container.folder = folder;
        Ok(container)
    }

    /// All whole containers, by id.
    pub fn list(&self) -> Result<Vec<Container>> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.step(format!("list {}", self.root.display()))?,
        };
        let mut all: Vec<Container> =
            entries.flatten().filter_map(|entry| self.open(&entry.file_name().to_string_lossy()).ok()).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// Frees the name of a container that never became whole. One that did is left alone.
    pub fn discard(&self, id: &str) -> Result<bool> {
        check_id(id)?;
        let folder = self.root.join(id);
        if folder.join("state.json").exists() || !folder.exists() {
            return Ok(false);
        }
        fs::remove_dir_all(&folder).step(format!("remove {}", folder.display())).map(|()| true)
    }
}

/// Names become folders.
fn check_id(id: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id.len() > 255 || id == "." || id == ".." || !id.chars().all(fine) {
        return Err(Error::Invalid(format!("invalid container id {id:?}: it is made of letters, digits and _+-.")));
    }
    Ok(())
}

impl Container {
    /// Writes it down by renaming a finished file into place.
    pub fn record(&self) -> Result<()> {
        let (path, fresh) = (self.folder.join("state.json"), self.folder.join("state.json.new"));
        let text = serde_json::to_vec(self).map_err(|error| Error::Shim(format!("encode state: {error}")))?;
        fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path)).step("write the container's state")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("start")
    }

    pub fn status(&self) -> Status {
        match process(self.pid) {
            Some(process) if process.start_time == self.start_time && process.alive => {
                if self.socket().exists() {
                    Status::Created
                } else {
                    Status::Running
                }
            }
            _ => Status::Stopped,
        }
    }

    /// The specification's view of it. `pid` is given for a viewer in another process namespace.
    pub fn state(&self, status: Status, pid: i32) -> State<'_> {
        State {
            oci_version: self.config.version(),
            id: &self.id,
            pid: if status == Status::Stopped { 0 } else { pid },
            status,
            bundle: &self.bundle,
            annotations: self.config.annotations().as_ref(),
            rootfs: &self.rootfs,
            created: &self.created,
            owner: "",
        }
    }

    /// The same as a hook reads it.
    pub fn state_text(&self, status: Status, pid: i32) -> Vec<u8> {
        serde_json::to_vec(&self.state(status, pid)).unwrap_or_default()
    }

    pub fn cgroup(&self) -> Cgroup {
        Cgroup::everywhere(&self.cgroup)
    }

    /// The first process, if it is still the same.
    pub fn process(&self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Looked at after it was opened: now the number cannot change hands unnoticed.
        (self.status() != Status::Stopped).then_some(pidfd)
    }
}

struct Process {
    start_time: u64,
    alive: bool,
}

/// What the kernel says of a process.
fn process(pid: i32) -> Option<Process> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything; fields after it are plain. State is the third, start the 22nd.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let state = fields.first()?.chars().next()?;
    Some(Process { start_time: fields.get(19)?.parse().ok()?, alive: !['Z', 'X', 'x'].contains(&state) })
}

/// When a process began, in the kernel's ticks.
pub fn start_time(pid: i32) -> Result<u64> {
    process(pid).map(|process| process.start_time).ok_or_else(|| Error::Shim(format!("process {pid} is gone")))
}

/// Sends a signal to the first process, or with `all` to every process of the container.
pub fn kill(container: &Container, signal: i32, all: bool) -> Result<()> {
    if all {
        container.cgroup().all_processes().into_iter().for_each(|pid| sys::kill(pid, signal));
        return Ok(());
    }
    let Some(process) = container.process() else {
        return Err(Error::Invalid("container not running".into()));
    };
    match sys::pidfd_kill(process.as_fd(), signal) {
        Err(rustix::io::Errno::SRCH) => Err(Error::Invalid("container not running".into())),
        result => result.step(format!("send signal {signal}")),
    }
}

/// Frees everything of a container; one that runs only with `force`. Returns what its last hooks complained about.
pub fn delete(container: &Container, force: bool) -> Result<Vec<Error>> {
    let status = container.status();
    if status == Status::Running && !force {
        let id = &container.id;
        return Err(Error::Invalid(format!("cannot delete container {id} that is not stopped: {status}")));
    }
    let deadline = Instant::now() + KILL_LIMIT;
    if let Some(process) = container.process() {
        let _ = sys::pidfd_kill(process.as_fd(), libc::SIGKILL);
        await_end(&process, deadline)?;
    }
    clear_group(&container.cgroup(), deadline)?;
    let complaints = hooks::run_all(&container.config, Point::Poststop, &container.state_text(Status::Stopped, 0));
    fs::remove_dir_all(&container.folder).step(format!("remove {}", container.folder.display()))?;
    Ok(complaints)
}

/// Kills what is left in a group, waits for its end, and removes the group.
pub fn clear_group(group: &Cgroup, deadline: Instant) -> Result<()> {
    loop {
        let left = group.all_processes();
        if left.is_empty() {
            break;
        }
        for pid in left {
            let Some(process) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
                continue;
            };
            let _ = sys::pidfd_kill(process.as_fd(), libc::SIGKILL);
            await_end(&process, deadline)?;
        }
    }
    group.remove_all();
    Ok(())
}

fn await_end(process: &OwnedFd, deadline: Instant) -> Result<()> {
    let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| poll(&mut fds, left.as_ref())).step("wait for a process to end")? {
        0 => Err(Error::Shim(format!("a process does not end, although it was killed {} s ago", KILL_LIMIT.as_secs()))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ids_are_names_of_folders() {
        for id in ["", ".", "..", "a/b", "a b", "ü"] {
            assert!(check_id(id).is_err(), "{id}");
        }
        check_id("web_1.0+x-y").unwrap();
    }

    #[test]
    fn a_folder_without_state_is_a_leftover() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        store.claim("one").unwrap();
        assert!(store.claim("one").unwrap_err().to_string().contains("exists"));
        assert!(matches!(store.open("one"), Err(Error::NotFound(_))));
        assert!(store.list().unwrap().is_empty());
        assert!(store.discard("one").unwrap() && !store.discard("one").unwrap());
    }

    #[test]
    fn processes_have_a_beginning() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(own).unwrap() > 0);
        assert!(process(own).unwrap().alive);
        assert!(start_time(0).is_err());
    }
}
