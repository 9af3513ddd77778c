//! Control groups: one unified tree (v2) or one tree per controller (v1 and hybrid), behind one type.

pub mod devices;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::error::{Context, Error, Result};
use crate::spec::{DeviceNode, Limits};

/// Where the kernel's trees are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Where the tree of v2 is mounted beside those of v1; it has the controllers that v1's lack.
const BESIDE: &str = "/sys/fs/cgroup/unified";
/// Controllers whose limits or counters we use, by their v1 names.
const V1: [&str; 8] = ["memory", "cpu", "cpuacct", "pids", "devices", "freezer", "cpuset", "hugetlb"];
/// The others, for those who ask for more than pods do.
const V1_OTHERS: [&str; 7] = ["blkio", "net_cls", "net_prio", "perf_event", "rdma", "misc", "systemd"];

/// One group, in every tree it has to be in.
#[derive(Debug, Clone)]
pub struct Cgroup {
    tree: Tree,
    path: String,
}

#[derive(Debug, Clone)]
enum Tree {
    Unified,
    /// Controllers that are mounted.
    Split(Vec<&'static str>),
}

impl Tree {
    fn find() -> Self {
        if Path::new(ROOT).join("cgroup.controllers").exists() {
            return Self::Unified;
        }
        Self::Split(mounted(&V1))
    }
}

fn mounted(controllers: &[&'static str]) -> Vec<&'static str> {
    controllers.iter().copied().filter(|name| Path::new(ROOT).join(name).join("tasks").exists()).collect()
}

/// A file of a controller and what is to be written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub controller: &'static str,
    pub file: String,
    pub value: String,
}

/// Whether there is the one tree of cgroup v2 only.
pub fn is_unified() -> bool {
    matches!(Tree::find(), Tree::Unified)
}

/// Controllers mounted as trees of their own.
pub fn controllers() -> Vec<&'static str> {
    match Tree::find() {
        Tree::Unified => Vec::new(),
        Tree::Split(controllers) => controllers,
    }
}

impl Cgroup {
    /// Names a group below the root; nothing is made yet.
    pub fn new(path: &str) -> Self {
        Self { tree: Tree::find(), path: path.trim_matches('/').to_owned() }
    }

    /// The group of that name in every tree there is, and not in those alone that pods need.
    pub fn everywhere(path: &str) -> Self {
        let mut group = Self::new(path);
        if let Tree::Split(controllers) = &mut group.tree {
            controllers.extend(mounted(&V1_OTHERS));
        }
        group
    }

    /// Where the group is, once for each tree.
    pub fn folders(&self) -> Vec<PathBuf> {
        match &self.tree {
            Tree::Unified => vec![Path::new(ROOT).join(&self.path)],
            Tree::Split(controllers) => {
                controllers.iter().map(|name| Path::new(ROOT).join(name).join(&self.path)).collect()
            }
        }
    }

    /// Where the group is in a controller's tree.
    pub fn folder(&self, controller: &str) -> Option<PathBuf> {
        match &self.tree {
            Tree::Unified => Some(Path::new(ROOT).join(&self.path)),
            Tree::Split(controllers) => {
                controllers.contains(&controller).then(|| Path::new(ROOT).join(controller).join(&self.path))
            }
        }
    }

    /// Makes the group with its parents and sets its limits.
    pub fn create(&self, limits: &Limits) -> Result<()> {
        match &self.tree {
            Tree::Unified => self.create_unified(Path::new(ROOT))?,
            Tree::Split(_) => {
                for folder in self.folders() {
                    fs::create_dir_all(&folder).step(format!("create cgroup {}", folder.display()))?;
                }
                self.inherit_cpuset()?;
                if !limits.hugepages.is_empty() && self.folder("hugetlb").is_none() && Path::new(BESIDE).exists() {
                    self.create_unified(Path::new(BESIDE))?;
                }
            }
        }
        self.apply(limits)
    }

    /// Where the group is in v2's tree on a machine that has most controllers in v1's.
    fn beside(&self) -> PathBuf {
        Path::new(BESIDE).join(&self.path)
    }

    /// Every group on the way has to hand its controllers down.
    fn create_unified(&self, root: &Path) -> Result<()> {
        let mut folder = root.to_owned();
        for part in self.path.split('/') {
            for controller in ["cpu", "memory", "pids", "cpuset", "io", "hugetlb"] {
                // A controller that the kernel lacks is missed when a limit needs it.
                let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
            }
            folder.push(part);
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).step(format!("create cgroup {}", folder.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A v1 cpuset takes no process before it has processors and memory nodes; they come from above.
    fn inherit_cpuset(&self) -> Result<()> {
        let Some(top) = self.folder("cpuset").map(|_| Path::new(ROOT).join("cpuset")) else { return Ok(()) };
        let mut folder = top;
        for part in self.path.split('/') {
            let above = folder.clone();
            folder.push(part);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let own = fs::read_to_string(folder.join(file)).unwrap_or_default();
                if own.trim().is_empty() {
                    let value = fs::read_to_string(above.join(file)).step(format!("read {file}"))?;
                    fs::write(folder.join(file), value.trim()).step(format!("set {file}"))?;
                }
            }
        }
        Ok(())
    }

    /// Sets what is given and leaves the rest as it is.
    pub fn apply(&self, limits: &Limits) -> Result<()> {
        let period = limits.cpu_period.unwrap_or(100_000);
        match &self.tree {
            Tree::Unified => {
                if let Some(bytes) = limits.memory {
                    self.set("memory", "memory.max", &bytes.to_string())?;
                }
                if let Some(quota) = limits.cpu_quota {
                    let quota = if quota < 0 { "max".to_owned() } else { quota.to_string() };
                    self.set("cpu", "cpu.max", &format!("{quota} {period}"))?;
                }
                if let Some(shares) = limits.cpu_shares {
                    // The conversion that runc and systemd agree on.
                    let weight = 1 + ((shares.clamp(2, 262_144) - 2) * 9999) / 262_142;
                    self.set("cpu", "cpu.weight", &weight.to_string())?;
                }
                if let Some(pids) = limits.pids {
                    self.set("pids", "pids.max", &most(pids))?;
                }
            }
            Tree::Split(_) => {
                if let Some(bytes) = limits.memory {
                    self.set("memory", "memory.limit_in_bytes", &bytes.to_string())?;
                }
                if let Some(quota) = limits.cpu_quota {
                    self.set("cpu", "cpu.cfs_period_us", &period.to_string())?;
                    self.set("cpu", "cpu.cfs_quota_us", &quota.to_string())?;
                }
                if let Some(shares) = limits.cpu_shares {
                    self.set("cpu", "cpu.shares", &shares.to_string())?;
                }
                if let Some(pids) = limits.pids {
                    self.set("pids", "pids.max", &most(pids))?;
                }
            }
        }
        if let Some(cpus) = &limits.cpuset_cpus {
            self.set("cpuset", "cpuset.cpus", cpus)?;
        }
        if let Some(mems) = &limits.cpuset_mems {
            self.set("cpuset", "cpuset.mems", mems)?;
        }
        self.limit_huge_pages(&limits.hugepages)
    }

    /// A size that the kernel lacks cannot be used either, so a limit of none is met there.
    fn limit_huge_pages(&self, limits: &BTreeMap<String, u64>) -> Result<()> {
        let unified = matches!(self.tree, Tree::Unified);
        for (size, bytes) in limits {
            let (folder, file) = match self.folder("hugetlb") {
                Some(folder) if !unified => (folder, format!("hugetlb.{size}.limit_in_bytes")),
                Some(folder) => (folder, format!("hugetlb.{size}.max")),
                None => (self.beside(), format!("hugetlb.{size}.max")),
            };
            let path = folder.join(&file);
            if path.exists() {
                fs::write(&path, bytes.to_string()).step(format!("set {file} to {bytes}"))?;
            } else if *bytes > 0 {
                return Err(Error::Invalid(format!("huge pages of {size} cannot be limited on this machine")));
            }
        }
        Ok(())
    }

    /// Writes what limits have no name for. A controller that this machine lacks is an error here: it was asked for.
    pub fn write(&self, settings: &[Setting]) -> Result<()> {
        for Setting { controller, file, value } in settings {
            if self.folder(controller).is_none() {
                return Err(Error::Invalid(format!("set {file}: there is no cgroup controller {controller} here")));
            }
            self.set(controller, file, value)?;
        }
        Ok(())
    }

    fn set(&self, controller: &str, file: &str, value: &str) -> Result<()> {
        let Some(folder) = self.folder(controller) else { return Ok(()) };
        fs::write(folder.join(file), value).step(format!("set {file} to {value}"))
    }

    /// Whether device access is confined by the kernel here. Where it is not, containers go without the capability to
    /// make device nodes.
    pub fn confines_devices() -> bool {
        match Tree::find() {
            Tree::Split(controllers) => controllers.contains(&"devices"),
            Tree::Unified => devices::supported(),
        }
    }

    /// Lets the group use the devices every container has, and those given.
    pub fn restrict_devices(&self, given: &[DeviceNode]) -> Result<()> {
        let mut rules = vec![devices::DENY_ALL];
        rules.extend(devices::standard());
        for device in given {
            rules.push(devices::of(device)?);
        }
        self.filter_devices(&rules)
    }

    /// Lets the group use what the rules say.
    pub fn filter_devices(&self, rules: &[devices::Rule]) -> Result<()> {
        match &self.tree {
            Tree::Split(_) => rules.iter().try_for_each(|rule| {
                let (file, line) = rule.v1();
                self.set("devices", file, &line)
            }),
            Tree::Unified if devices::supported() => {
                let folder = Path::new(ROOT).join(&self.path);
                let group =
                    rustix::fs::open(&folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                        .step(format!("open cgroup {}", folder.display()))?;
                devices::attach(group.as_fd(), rules)
            }
            Tree::Unified => Ok(()),
        }
    }

    /// The ways into the group.
    pub fn doors(&self) -> Result<Doors> {
        let open = |path: PathBuf, flags: OFlags| {
            rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty())
                .step(format!("open cgroup {}", path.display()))
        };
        match &self.tree {
            Tree::Unified => {
                let folder = open(Path::new(ROOT).join(&self.path), OFlags::RDONLY | OFlags::DIRECTORY)?;
                Ok(Doors { born_into: Some(folder), join: Vec::new() })
            }
            Tree::Split(_) => {
                let beside = Some(self.beside()).filter(|folder| folder.exists());
                // A whole process is moved only once all processors have passed a grace period, some 10 ms; a thread
                // that moves itself waits for nothing, and those who enter have no other.
                let files = self.folders().into_iter().map(|folder| folder.join("tasks"));
                let files = files.chain(beside.map(|folder| folder.join("cgroup.procs")));
                let files = files.map(|file| open(file, OFlags::WRONLY));
                Ok(Doors { born_into: None, join: files.collect::<Result<_>>()? })
            }
        }
    }

    /// Kills every process in the group. New ones may appear while it works; call it until `processes` is empty.
    pub fn kill(&self) {
        if matches!(self.tree, Tree::Unified)
            && let Some(folder) = self.folder("")
            && fs::write(folder.join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        for pid in self.processes() {
            crate::sys::kill(pid, libc::SIGKILL);
        }
    }

    /// Processes in the group itself.
    pub fn processes(&self) -> Vec<i32> {
        let Some(folder) = self.folders().into_iter().next() else { return Vec::new() };
        let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Processes in the group and the groups below it.
    pub fn all_processes(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        if let Some(folder) = self.folders().into_iter().next() {
            collect_processes(&folder, &mut pids);
        }
        pids
    }

    /// How often the kernel killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let file = match self.tree {
            Tree::Unified => "memory.events",
            Tree::Split(_) => "memory.oom_control",
        };
        self.counter("memory", file, "oom_kill")
    }

    fn counter(&self, controller: &str, file: &str, name: &str) -> u64 {
        let text = self.folder(controller).and_then(|folder| fs::read_to_string(folder.join(file)).ok());
        let text = text.unwrap_or_default();
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
    }

    fn number(&self, controller: &str, file: &str) -> u64 {
        let text = self.folder(controller).and_then(|folder| fs::read_to_string(folder.join(file)).ok());
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// What the group has used.
    pub fn usage(&self) -> Usage {
        let (cpu, memory, inactive) = match self.tree {
            Tree::Unified => (
                self.counter("cpu", "cpu.stat", "usage_usec") * 1000,
                self.number("memory", "memory.current"),
                self.counter("memory", "memory.stat", "inactive_file"),
            ),
            Tree::Split(_) => (
                self.number("cpuacct", "cpuacct.usage"),
                self.number("memory", "memory.usage_in_bytes"),
                self.counter("memory", "memory.stat", "total_inactive_file"),
            ),
        };
        Usage {
            cpu_nanos: cpu,
            memory_bytes: memory,
            working_set_bytes: memory.saturating_sub(inactive),
            pids: self.number("pids", "pids.current"),
        }
    }

    /// Removes the group itself if it is empty.
    pub fn remove(&self) {
        for folder in self.folders().into_iter().chain([self.beside()]) {
            let _ = fs::remove_dir(&folder);
        }
    }

    /// Removes everything below and including this group; the groups must hold no process.
    pub fn remove_all(&self) {
        for folder in self.folders().into_iter().chain([self.beside()]) {
            remove_tree(&folder);
        }
    }
}

/// Open ways into a group, for a process that is about to be made.
#[derive(Debug)]
pub struct Doors {
    /// On the unified tree a process is made inside: moving one there is slow.
    pub born_into: Option<OwnedFd>,
    join: Vec<OwnedFd>,
}

impl Doors {
    /// Moves the calling process, which has one thread, in where it was not born inside.
    pub fn enter(&self) -> Result<()> {
        self.join.iter().try_for_each(|file| rustix::io::write(file, b"0").map(drop).step("join the cgroup"))
    }
}

fn collect_processes(folder: &Path, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_processes(&entry.path(), pids);
        }
    }
}

fn remove_tree(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

fn most(number: i64) -> String {
    if number <= 0 { "max".into() } else { number.to_string() }
}

/// What a group has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_nanos: u64,
    pub memory_bytes: u64,
    /// Memory less inactive file pages.
    pub working_set_bytes: u64,
    pub pids: u64,
}
