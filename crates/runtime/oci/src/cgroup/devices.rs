//! Which devices a group's processes may use: rules written to v1's controller, or a small BPF program on v2.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::FileType;

use crate::error::{Context, Error, Result};
use crate::spec::DeviceNode;
use crate::sys;

/// One rule; of several that speak of a device the last counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    /// `None` is both.
    pub kind: Option<Kind>,
    /// `None` is any.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Block = 1,
    Character = 2,
}

/// The kernel's `BPF_DEVCG_ACC_…` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access(u8);

impl Access {
    const MKNOD: Self = Self(1);
    const ALL: Self = Self(7);

    /// From any of `rwm`; nothing is all of them.
    pub fn parse(text: &str) -> Result<Self> {
        let bits = text.chars().try_fold(0, |bits, letter| match letter {
            'm' => Ok(bits | 1),
            'r' => Ok(bits | 2),
            'w' => Ok(bits | 4),
            _ => Err(Error::Invalid(format!("device access {text:?} is not made of r, w and m"))),
        })?;
        Ok(if bits == 0 { Self::ALL } else { Self(bits) })
    }

    fn text(self) -> String {
        [(2, 'r'), (4, 'w'), (1, 'm')].iter().filter(|(bit, _)| self.0 & bit != 0).map(|(_, letter)| *letter).collect()
    }
}

/// What every container may use: any node may be made, but only these can be opened.
pub fn standard() -> Vec<Rule> {
    let rule = |kind, major, minor, access| Rule { allow: true, kind: Some(kind), major, minor, access };
    let mut rules = vec![
        rule(Kind::Character, None, None, Access::MKNOD),
        rule(Kind::Block, None, None, Access::MKNOD),
        // Slaves of terminals.
        rule(Kind::Character, Some(136), None, Access::ALL),
    ];
    // null, zero, full, random, urandom; tty, console, ptmx.
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(rule(Kind::Character, Some(major), Some(minor), Access::ALL));
    }
    rules
}

/// Nothing at all.
pub const DENY_ALL: Rule = Rule { allow: false, kind: None, major: None, minor: None, access: Access::ALL };

/// The rule for a device of the host.
pub fn of(device: &DeviceNode) -> Result<Rule> {
    let node = rustix::fs::stat(&device.source).step(format!("look at {}", device.source.display()))?;
    let block = FileType::from_raw_mode(node.st_mode).is_block_device();
    Ok(Rule {
        allow: true,
        kind: Some(if block { Kind::Block } else { Kind::Character }),
        major: Some(rustix::fs::major(node.st_rdev)),
        minor: Some(rustix::fs::minor(node.st_rdev)),
        access: Access::parse(&device.permissions)?,
    })
}

impl Rule {
    /// File and line for v1's controller.
    pub fn v1(&self) -> (&'static str, String) {
        let kind = match self.kind {
            None => "a",
            Some(Kind::Block) => "b",
            Some(Kind::Character) => "c",
        };
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let line = format!("{kind} {}:{} {}", number(self.major), number(self.minor), self.access.text());
        (if self.allow { "devices.allow" } else { "devices.deny" }, line)
    }
}

/// One instruction of (extended) BPF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | target, offset, immediate }
}

/// The last rule that speaks of a request decides; none is a refusal.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    /// `r0` answers, `r1` points at the request, then its type, access, major and minor.
    const ANSWER: u8 = 0;
    const REQUEST: u8 = 1;
    const TYPE: u8 = 2;
    const ACCESS: u8 = 3;
    const MAJOR: u8 = 4;
    const MINOR: u8 = 5;
    const SCRATCH: u8 = 6;
    const LOAD_WORD: u8 = 0x61;
    const AND: u8 = 0x57;
    const SHIFT_RIGHT: u8 = 0x77;
    const COPY: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const JUMP_IF_NOT: u8 = 0x55;
    const JUMP_IF: u8 = 0x15;
    const END: u8 = 0x95;
    let mut code = vec![
        instruction(LOAD_WORD, TYPE, REQUEST, 0, 0),
        instruction(AND, TYPE, 0, 0, 0xffff),
        instruction(LOAD_WORD, ACCESS, REQUEST, 0, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, REQUEST, 4, 0),
        instruction(LOAD_WORD, MINOR, REQUEST, 8, 0),
    ];
    for rule in rules.iter().rev() {
        // Tests, each with its jump to the next rule; the distance is filled in when the length is known.
        let mut tests: Vec<Instruction> = Vec::new();
        let number = |number: u32| i32::from_ne_bytes(number.to_ne_bytes());
        if let Some(kind) = rule.kind {
            tests.push(instruction(JUMP_IF_NOT, TYPE, 0, 0, kind as i32));
        }
        if rule.access != Access::ALL {
            let (mask, jump) = if rule.allow { (!rule.access.0 & 7, JUMP_IF_NOT) } else { (rule.access.0, JUMP_IF) };
            tests.push(instruction(COPY, SCRATCH, ACCESS, 0, 0));
            tests.push(instruction(AND, SCRATCH, 0, 0, i32::from(mask)));
            tests.push(instruction(jump, SCRATCH, 0, 0, 0));
        }
        tests.extend(rule.major.map(|major| instruction(JUMP_IF_NOT, MAJOR, 0, 0, number(major))));
        tests.extend(rule.minor.map(|minor| instruction(JUMP_IF_NOT, MINOR, 0, 0, number(minor))));
        let unconditional = tests.is_empty();
        tests.push(instruction(SET, ANSWER, 0, 0, i32::from(rule.allow)));
        tests.push(instruction(END, 0, 0, 0, 0));
        let length = tests.len();
        for (place, test) in tests.iter_mut().enumerate() {
            if [JUMP_IF, JUMP_IF_NOT].contains(&test.code) {
                test.offset = i16::try_from(length - place - 1).unwrap_or(i16::MAX);
            }
        }
        code.extend(tests);
        if unconditional {
            // The kernel refuses programs with parts that nothing reaches.
            return code;
        }
    }
    code.extend([instruction(SET, ANSWER, 0, 0, 0), instruction(END, 0, 0, 0, 0)]);
    code
}

/// Attaches the rules to a group of the unified tree, for as long as the group exists.
pub fn attach(group: BorrowedFd<'_>, rules: &[Rule]) -> Result<()> {
    let program = load(rules).step("load the device filter")?;
    let attributes = Attach {
        target: group.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    bpf(PROGRAM_ATTACH, &attributes).map(drop).step("attach the device filter")
}

/// Whether the kernel takes such programs from us.
pub fn supported() -> bool {
    static SUPPORTED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *SUPPORTED.get_or_init(|| load(&[DENY_ALL]).is_ok())
}

const PROGRAM_LOAD: libc::c_int = 5;
const PROGRAM_ATTACH: libc::c_int = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// The first fields of `union bpf_attr` for a load.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// The fields of `union bpf_attr` for an attachment.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn load(rules: &[Rule]) -> rustix::io::Result<OwnedFd> {
    let code = program(rules);
    let attributes = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: u32::try_from(code.len()).unwrap_or(u32::MAX),
        instructions: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    let fd = bpf(PROGRAM_LOAD, &attributes)?;
    // SAFETY: the kernel has just made this file for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> rustix::io::Result<i32> {
    // SAFETY: the attributes, and what they point at, live through the call, and say how long they are.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result >= 0 { Ok(i32::try_from(result).unwrap_or(-1)) } else { Err(sys::last_error()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_of_v1() {
        assert_eq!(DENY_ALL.v1(), ("devices.deny", "a *:* rwm".into()));
        let lines: Vec<String> = standard().iter().map(|rule| rule.v1().1).collect();
        assert!(["c *:* m", "b *:* m", "c 136:* rwm", "c 1:3 rwm"].iter().all(|line| lines.contains(&(*line).into())));
        assert!(Access::parse("rx").is_err());
    }

    #[test]
    fn the_kernel_takes_every_kind_of_rule() {
        if !supported() {
            assert!(!rustix::process::geteuid().is_root(), "root cannot load device filters here");
            return;
        }
        let read = Access::parse("r").unwrap();
        let deny_some = Rule { allow: false, kind: Some(Kind::Block), major: Some(8), minor: Some(0), access: read };
        for rules in [vec![], standard(), [vec![DENY_ALL], standard(), vec![deny_some]].concat()] {
            load(&rules).unwrap();
        }
    }
}
