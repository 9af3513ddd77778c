//! How other runtimes name control groups, and the removal of what they leave of them.
//!
//! They make a pod's groups in every hierarchy of the machine, also in those that we never use, and take away the
//! containers' only.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Who makes a runtime's control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    Cgroupfs,
    Systemd,
}

/// A cgroup parent as the driver wants it: `/dhow/kubepods/pod1`, or `dhow-kubepods-pod1.slice`, whose name says the path.
pub fn cgroup_parent(driver: CgroupDriver, path: &str) -> String {
    let path = path.trim_matches('/');
    match driver {
        CgroupDriver::Cgroupfs => format!("/{path}"),
        CgroupDriver::Systemd => {
            let parts: Vec<String> = path.split('/').map(|part| part.replace('-', "_")).collect();
            format!("{}.slice", parts.join("-"))
        }
    }
}

/// Removes a group that is empty from all hierarchies; one in use stays.
pub fn remove(path: &str) {
    for root in hierarchies() {
        let _ = fs::remove_dir(root.join(path.trim_matches('/')));
    }
}

/// Removes a group with those below it.
pub fn remove_all(path: &str) {
    for root in hierarchies() {
        remove_tree(&root.join(path.trim_matches('/')));
    }
}

/// Kills whatever is in a group or below it and removes the groups; returns how many processes are left after
/// `patience`. For what a runtime that is away can no longer end itself. Blocks.
pub fn end_all(path: &str, patience: Duration) -> usize {
    let names = [path.trim_matches('/').to_owned(), cgroup_parent(CgroupDriver::Systemd, path)];
    let groups: Vec<PathBuf> = hierarchies().iter().flat_map(|root| names.iter().map(|name| root.join(name))).collect();
    let deadline = Instant::now() + patience;
    let left = loop {
        let mut left = BTreeSet::new();
        groups.iter().for_each(|group| processes(group, &mut left));
        if left.is_empty() || Instant::now() >= deadline {
            break left.len();
        }
        for pid in left.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            // Gone meanwhile is fine.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        // Others' children: their end offers nothing to wait for.
        std::thread::park_timeout(Duration::from_millis(20));
    };
    groups.iter().for_each(|group| remove_tree(group));
    left
}

fn processes(group: &Path, found: &mut BTreeSet<i32>) {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            processes(&entry.path(), found);
        }
    }
}

/// The one of cgroup v2, or all that are mounted beside each other.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let is_one = |path: &Path| path.join("cgroup.procs").exists();
    if is_one(root) {
        return vec![root.to_owned()];
    }
    let mounted = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    mounted.filter(|path| is_one(path)).collect()
}

/// Groups hold files that cannot be removed, and go without.
fn remove_tree(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_parents_follow_the_driver() {
        let path = "dhow/kubepods/burstable/pod1-2";
        assert_eq!(cgroup_parent(CgroupDriver::Cgroupfs, path), "/dhow/kubepods/burstable/pod1-2");
        assert_eq!(cgroup_parent(CgroupDriver::Systemd, path), "dhow-kubepods-burstable-pod1_2.slice");
    }
}
