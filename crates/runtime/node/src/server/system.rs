//! What the node's own parts use: the agent, the container runtime, and all pods together.

use std::path::Path;
use std::time::{Duration, SystemTime};

use dhow_cri::Runtime;
use dhow_oci::cgroup::Cgroup;

/// One of them, by its name in the summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    pub name: &'static str,
    pub started: Option<SystemTime>,
    pub cpu_nanos: u64,
    pub memory_bytes: u64,
    pub working_set_bytes: u64,
}

/// All that can be measured. `pods` is the top group of the runtime's containers, where the node keeps groups.
pub async fn all(runtime: &dyn Runtime, pods: Option<&str>) -> Vec<System> {
    let runtime = runtime.processes().await;
    let pods = pods.map(|root| Cgroup::new(&format!("{root}/kubepods")));
    [
        of_processes("kubelet", &[std::process::id()]),
        of_processes("runtime", &runtime),
        pods.map(|group| of_group("pods", &group)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn of_group(name: &'static str, group: &Cgroup) -> System {
    let usage = group.usage();
    let folder = group.folders().into_iter().next();
    System {
        name,
        // The kernel says no other time of a group.
        started: folder.and_then(|folder| folder.join("cgroup.procs").metadata().ok()?.modified().ok()),
        cpu_nanos: usage.cpu_nanos,
        memory_bytes: usage.memory_bytes,
        working_set_bytes: usage.working_set_bytes,
    }
}

/// One process counts with all of its control group, as kubelets count, unless that is the whole machine's; more than one
/// count for themselves.
fn of_processes(name: &'static str, processes: &[u32]) -> Option<System> {
    let read = |pid: u32, file: &str| std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join(file)).ok();
    let mut all = processes.iter().filter_map(|pid| Process::parse(&read(*pid, "stat")?, &boot()?));
    let mut sum = all.next().map(|first| first.system(name))?;
    for other in all {
        sum.started = sum.started.min(Some(other.started));
        sum.cpu_nanos += other.cpu_nanos;
        sum.memory_bytes += other.memory_bytes;
        sum.working_set_bytes += other.memory_bytes;
    }
    let group = match processes {
        [one] => read(*one, "cgroup").and_then(|text| group_of(&text)),
        _ => None,
    };
    Some(match group {
        Some(group) => System { started: sum.started, ..of_group(name, &Cgroup::new(&group)) },
        None => sum,
    })
}

/// The one group that a process is in by memory and processors, from `/proc/<pid>/cgroup`; none where they differ, or for the
/// root.
fn group_of(text: &str) -> Option<String> {
    let path = |controller: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            controllers.split(',').any(|one| one == controller).then(|| fields.next())?
        })
    };
    // The tree of cgroup v2 has no name; beside those of v1 it has no such controllers.
    let path = match (path("memory"), path("cpuacct")) {
        (Some(memory), Some(cpu)) if memory == cpu => memory,
        (None, None) => path("")?,
        _ => return None,
    };
    (path != "/" && !path.starts_with("/..")).then(|| path.to_owned())
}

/// When the machine was started.
fn boot() -> Option<SystemTime> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.trim().parse().ok()?))
}

struct Process {
    started: SystemTime,
    cpu_nanos: u64,
    memory_bytes: u64,
}

impl Process {
    /// From `/proc/<pid>/stat`.
    fn parse(text: &str, boot: &SystemTime) -> Option<Self> {
        /// Billionths of a second in a tick, of which there are 100 a second on every architecture of ours.
        const TICK: u64 = 10_000_000;
        // The name is in parentheses and may hold anything. Behind it, the state is the third field of all.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            started: *boot + Duration::from_nanos(number(22)? * TICK),
            cpu_nanos: (number(14)? + number(15)?) * TICK,
            memory_bytes: number(24)? * rustix::param::page_size() as u64,
        })
    }

    fn system(&self, name: &'static str) -> System {
        System {
            name,
            started: Some(self.started),
            cpu_nanos: self.cpu_nanos,
            memory_bytes: self.memory_bytes,
            working_set_bytes: self.memory_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_has_one_group_or_counts_alone() {
        let own = "12:memory:/system.slice/d.service\n4:cpu,cpuacct:/system.slice/d.service\n0::/x\n";
        assert_eq!(group_of(own).unwrap(), "/system.slice/d.service");
        assert_eq!(group_of("0::/system.slice/d.service\n").unwrap(), "/system.slice/d.service");
        for none in
            ["12:memory:/a\n4:cpu,cpuacct:/b\n0::/\n", "0::/\n", "0::/../../a\n", "12:memory:/\n4:cpuacct:/\n", ""]
        {
            assert_eq!(group_of(none), None, "{none}");
        }
    }

    #[test]
    fn a_process_is_read_from_proc() {
        let text = "7 (a ) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 9 0 200 1000 3 18446744073709551615";
        let process = Process::parse(text, &SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(process.started, SystemTime::UNIX_EPOCH + Duration::from_secs(2));
        assert_eq!(process.cpu_nanos, 2_000_000_000);
        assert_eq!(process.memory_bytes, 3 * rustix::param::page_size() as u64);
    }

    #[test]
    fn this_process_can_be_measured() {
        let own = of_processes("kubelet", &[std::process::id()]).unwrap();
        assert!(own.memory_bytes > 0 && own.started.unwrap() < SystemTime::now());
        assert_eq!(of_processes("runtime", &[]), None);
    }
}
