//! The namespaces a container is put into: new ones, and those of others by path.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};

use crate::birth::{Line, Question};
use crate::error::{Context, Result};
use crate::setup::idmap::{Ids, become_root};
use crate::sys;

/// `CLONE_NEWTIME`, which `libc` lacks.
const NEW_TIME: libc::c_int = 0x80;

/// What to join and what to make.
pub struct Namespaces {
    joined: Vec<(libc::c_int, File)>,
    new: libc::c_int,
    /// Lines for `timens_offsets`.
    time_offsets: Vec<String>,
    ids: Option<Ids>,
}

fn flag(kind: LinuxNamespaceType) -> libc::c_int {
    match kind {
        LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
        LinuxNamespaceType::User => libc::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
        LinuxNamespaceType::Network => libc::CLONE_NEWNET,
        LinuxNamespaceType::Time => NEW_TIME,
    }
}

impl Namespaces {
    /// Opens those given by path, so that a bad path is known before anything is made.
    pub fn open(linux: &Linux) -> Result<Self> {
        let mut this = Self { joined: Vec::new(), new: 0, time_offsets: Vec::new(), ids: None };
        for namespace in linux.namespaces().iter().flatten() {
            let flag = flag(namespace.typ());
            match namespace.path() {
                Some(path) if !path.as_os_str().is_empty() => {
                    let file =
                        File::open(path).step(format!("open {} namespace {}", namespace.typ(), path.display()))?;
                    this.joined.push((flag, file));
                }
                _ => this.new |= flag,
            }
        }
        // A user namespace decides what may be done in the others.
        this.joined.sort_by_key(|(flag, _)| *flag != libc::CLONE_NEWUSER);
        if this.new & libc::CLONE_NEWUSER != 0 {
            let list = |list: &Option<Vec<LinuxIdMapping>>| list.clone().unwrap_or_default();
            this.ids = Some(Ids::new(&list(linux.uid_mappings()), &list(linux.gid_mappings())));
        }
        for (clock, offset) in linux.time_offsets().iter().flatten() {
            this.time_offsets.push(format!(
                "{clock} {} {}",
                offset.secs().unwrap_or(0),
                offset.nanosecs().unwrap_or(0)
            ));
        }
        Ok(this)
    }

    pub fn makes(&self, kind: LinuxNamespaceType) -> bool {
        self.new & flag(kind) != 0
    }

    /// Whether the container has user ids of its own.
    pub fn has_user(&self) -> bool {
        self.makes(LinuxNamespaceType::User) || self.joined.iter().any(|(flag, _)| *flag == libc::CLONE_NEWUSER)
    }

    pub fn ids(&self) -> Option<&Ids> {
        self.ids.as_ref()
    }

    /// The flags with which the first process itself is made: a process namespace is for children only.
    pub fn at_fork(&self) -> u64 {
        u64::from((self.new & libc::CLONE_NEWPID).unsigned_abs())
    }

    /// Enters everything but new process namespaces. The process is a helper whose child will be the first process.
    pub fn enter(&self, line: &Line) -> Result<()> {
        for (flag, file) in self.joined.iter().filter(|(flag, _)| *flag == libc::CLONE_NEWUSER) {
            sys::join_namespaces(file.as_fd(), flag.unsigned_abs().into()).step("join the user namespace")?;
        }
        if self.ids.is_some() {
            sys::unshare(libc::CLONE_NEWUSER).step("take a user namespace")?;
            line.ask(Question::MapIds)?;
        }
        if self.has_user() {
            become_root()?;
        }
        for (flag, file) in self.joined.iter().filter(|(flag, _)| *flag != libc::CLONE_NEWUSER) {
            sys::join_namespaces(file.as_fd(), flag.unsigned_abs().into())
                .step(format!("join a namespace by file {}", file.as_raw_fd()))?;
        }
        sys::unshare(self.new & !(libc::CLONE_NEWUSER | libc::CLONE_NEWPID)).step("take namespaces")?;
        if !self.time_offsets.is_empty() {
            fs::write("/proc/self/timens_offsets", self.time_offsets.join("\n")).step("set the clocks' offsets")?;
        }
        Ok(())
    }
}
