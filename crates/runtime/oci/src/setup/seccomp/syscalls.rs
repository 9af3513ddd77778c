//! Numbers of system calls by name, for each architecture that a filter may meet.
//!
//! Generated from the kernel's `unistd` headers: a name and its numbers on x86_64, i386 and aarch64, one call a line.

use std::collections::HashMap;
use std::sync::OnceLock;

/// A set of system call numbers and how the kernel names it to a filter (`AUDIT_ARCH_…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    X86_64,
    X86,
    Aarch64,
}

impl Arch {
    pub const NATIVE: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// As `linux/audit.h` has it.
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
        }
    }

    /// By libseccomp's name. `None` for one that no process here can be of.
    pub fn from_profile(name: &str) -> Option<Self> {
        let arch = match name {
            "SCMP_ARCH_NATIVE" => Self::NATIVE,
            "SCMP_ARCH_X86_64" => Self::X86_64,
            "SCMP_ARCH_X86" => Self::X86,
            "SCMP_ARCH_AARCH64" => Self::Aarch64,
            _ => return None,
        };
        arch.runs_here().then_some(arch)
    }

    fn runs_here(self) -> bool {
        self == Self::NATIVE || (self == Self::X86 && Self::NATIVE == Self::X86_64)
    }

    /// The call's number; `None` if this architecture lacks it.
    pub fn number(self, name: &str) -> Option<u32> {
        static TABLE: OnceLock<HashMap<&str, [Option<u32>; 3]>> = OnceLock::new();
        let table = TABLE.get_or_init(|| include_str!("syscalls.txt").lines().filter_map(parse).collect());
        table.get(name)?[self as usize]
    }
}

fn parse(line: &'static str) -> Option<(&'static str, [Option<u32>; 3])> {
    let mut fields = line.split(' ');
    let name = fields.next()?;
    let mut number = || fields.next().and_then(|field| field.parse().ok());
    Some((name, [number(), number(), number()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernel_s() {
        assert_eq!(Arch::NATIVE.number("openat"), u32::try_from(libc::SYS_openat).ok());
        assert_eq!(Arch::NATIVE.number("close_range"), u32::try_from(libc::SYS_close_range).ok());
        assert_eq!(Arch::X86.number("socketcall"), Some(102));
        assert_eq!(Arch::X86_64.number("socketcall"), None);
        assert_eq!(Arch::NATIVE.number("from_the_future"), None);
    }
}
