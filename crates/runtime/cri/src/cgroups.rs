//! How other runtimes name control groups.

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
