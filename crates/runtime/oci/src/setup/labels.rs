//! Labels of security modules, for the program that a process is about to run.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use crate::error::{Context, Error, Result};
use crate::spec::Process;

/// Where the labels are to be written: opened while the container's `/proc` can be relied on.
pub struct Labels(Vec<(File, String)>);

impl Labels {
    pub fn open(process: &Process) -> Result<Self> {
        let mut labels = Vec::new();
        if let Some(profile) = process.apparmor.as_deref().filter(|profile| !profile.is_empty()) {
            if !apparmor() {
                return Err(Error::Invalid(format!(
                    "AppArmor profile {profile:?} cannot be applied: this kernel has no AppArmor"
                )));
            }
            let own = Path::new("/proc/thread-self/attr/apparmor/exec");
            let path = if own.exists() { own } else { Path::new("/proc/thread-self/attr/exec") };
            labels.push((write_to(path)?, format!("exec {profile}")));
        }
        // Without SELinux a label has no meaning, and tools set it whether there is one or not.
        if let Some(label) = process.selinux_label.as_deref().filter(|label| !label.is_empty() && selinux()) {
            labels.push((write_to(Path::new("/proc/thread-self/attr/exec"))?, label.to_owned()));
        }
        Ok(Self(labels))
    }

    /// Takes effect when the program is run.
    pub fn apply(&self) -> Result<()> {
        self.0.iter().try_for_each(|(file, label)| {
            let mut file = file;
            file.write_all(label.as_bytes()).step(format!("apply security label {label:?}"))
        })
    }
}

fn write_to(path: &Path) -> Result<File> {
    OpenOptions::new().write(true).open(path).step(format!("open {}", path.display()))
}

fn apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// Whether the kernel labels with SELinux. Its file system is seen before and after the change of root.
pub fn selinux() -> bool {
    std::fs::read_to_string("/proc/filesystems")
        .is_ok_and(|text| text.lines().any(|line| line.ends_with("\tselinuxfs")))
        && std::fs::read_to_string("/proc/thread-self/attr/current")
            .is_ok_and(|text| !text.trim_matches('\0').is_empty())
}
