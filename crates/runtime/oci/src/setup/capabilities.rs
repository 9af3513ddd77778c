//! Capabilities by name, and how a process ends up with exactly those it may have.

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{Context, Error, Result};
use crate::spec::Process;

/// The five sets of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sets {
    bounding: CapabilitySet,
    effective: CapabilitySet,
    permitted: CapabilitySet,
    inheritable: CapabilitySet,
    ambient: CapabilitySet,
}

impl Sets {
    pub fn of(process: &Process) -> Result<Self> {
        let Some(lists) = &process.capability_sets else {
            // Nothing inheritable or ambient: a program that changes its user does not carry capabilities along.
            let all = named(&process.capabilities)?;
            let none = CapabilitySet::empty();
            return Ok(Self { bounding: all, effective: all, permitted: all, inheritable: none, ambient: none });
        };
        Ok(Self {
            bounding: named(&lists.bounding)?,
            effective: named(&lists.effective)?,
            permitted: named(&lists.permitted)?,
            inheritable: named(&lists.inheritable)?,
            ambient: named(&lists.ambient)?,
        })
    }

    /// Gives up for good what is not in the bounding set.
    pub fn bound(&self) -> Result<()> {
        for number in 0..64 {
            let Some(bit) = CapabilitySet::from_bits(1 << number) else { break };
            if !self.bounding.contains(bit) {
                match rustix::thread::remove_capability_from_bounding_set(bit) {
                    // The kernel knows fewer than we.
                    Err(rustix::io::Errno::INVAL) => break,
                    result => result.step("give up a capability")?,
                }
            }
        }
        Ok(())
    }

    /// Takes the other four sets. What this machine does not have itself is left out: it cannot be given.
    pub fn apply(&self) -> Result<()> {
        let have = rustix::thread::capabilities(None).step("look at capabilities")?.permitted;
        let permitted = self.permitted & have;
        let sets = CapabilitySets {
            effective: self.effective & permitted,
            permitted,
            inheritable: self.inheritable & (have | permitted),
        };
        rustix::thread::set_capabilities(None, sets).step("set capabilities")?;
        for bit in self.ambient.iter() {
            // Only what is permitted and inheritable can be ambient.
            if sets.permitted.contains(bit) && sets.inheritable.contains(bit) {
                rustix::thread::configure_capability_in_ambient_set(bit, true).step("raise an ambient capability")?;
            }
        }
        Ok(())
    }
}

/// After a change of user: what is permitted is effective once more.
pub fn raise_effective() -> rustix::io::Result<()> {
    let sets = rustix::thread::capabilities(None)?;
    rustix::thread::set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets })
}

/// Names without `CAP_` to the kernel's set. Unknown names are refused.
fn named(names: &[String]) -> Result<CapabilitySet> {
    names.iter().try_fold(CapabilitySet::empty(), |set, name| {
        match CAPABILITIES.iter().position(|known| known == name) {
            Some(number) => Ok(set | CapabilitySet::from_bits_retain(1 << number)),
            None => Err(Error::Invalid(format!("unknown capability {name:?}"))),
        }
    })
}

/// All capabilities by number, without `CAP_`, as in `linux/capability.h`.
pub const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
