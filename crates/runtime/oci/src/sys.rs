//! System calls that neither std nor rustix offers safely.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

pub const NEW_PID: u64 = libc::CLONE_NEWPID as u64;
pub const NEW_MOUNTS: u64 = libc::CLONE_NEWNS as u64;
/// The child becomes a sibling, not a child, of its maker.
pub const SIBLING: u64 = libc::CLONE_PARENT as u64;

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Who one is after a fork.
pub enum Forked {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// The child begins its life in the cgroup (v2) it is given.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// `fork`, with namespaces and, on cgroup v2, right into a group.
///
/// # Safety
/// The process must have one thread, and the child must end in `exec` or `_exit` without returning to its caller's
/// callers.
pub unsafe fn fork(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> rustix::io::Result<Forked> {
    let mut pidfd: i32 = -1;
    let into = if cgroup.is_some() { INTO_CGROUP } else { 0 };
    let args = CloneArgs {
        flags: flags | into | libc::CLONE_PIDFD as u64,
        cgroup: cgroup.map_or(0, |cgroup| u64::try_from(cgroup.as_raw_fd()).unwrap_or(0)),
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        // A sibling inherits its maker's signal, and the kernel wants it said so.
        exit_signal: if flags & SIBLING == 0 { libc::SIGCHLD as u64 } else { 0 },
        ..CloneArgs::default()
    };
    // SAFETY: the arguments live through the call; without CLONE_VM the child has its own copy of all memory.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_ref(&args), size_of::<CloneArgs>()) };
    match pid {
        0 => Ok(Forked::Child),
        pid if pid > 0 => {
            // SAFETY: the kernel has just made this file for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pid: i32::try_from(pid).unwrap_or(0), pidfd })
        }
        _ => Err(last_error()),
    }
}

pub fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Ends the process at once: no destructors, no exit handlers.
pub fn exit(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Joins namespaces of the process behind `pidfd`.
pub fn join_namespaces(pidfd: BorrowedFd<'_>, kinds: u64) -> rustix::io::Result<()> {
    // SAFETY: changes namespaces of this single-threaded process only; no memory is involved.
    let result = unsafe { libc::setns(pidfd.as_raw_fd(), kinds as i32) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Takes namespaces of its own. Only for processes with one thread.
pub fn unshare(kinds: i32) -> rustix::io::Result<()> {
    // SAFETY: no namespace kind given here shares or splits memory or files of other threads.
    let result = unsafe { libc::unshare(kinds) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Marks every file from `first` on to be closed at exec.
pub fn close_at_exec(first: u32) -> rustix::io::Result<()> {
    // SAFETY: changes flags only.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Closes every file from `first` on.
///
/// # Safety
/// Nothing of the process may use, or later drop, one of these files.
pub unsafe fn close_all(first: u32) -> rustix::io::Result<()> {
    // SAFETY: up to the caller.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Blocks the given signals and returns a file that reads them.
pub fn signal_file(signals: &[i32]) -> rustix::io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use and lives through the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(last_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// The signals that wait in a file of [`signal_file`].
pub fn read_signals(file: &OwnedFd) -> Vec<i32> {
    let mut signals = Vec::new();
    let mut buffer = [0; size_of::<libc::signalfd_siginfo>()];
    while rustix::io::read(file, &mut buffer).is_ok_and(|count| count == buffer.len()) {
        // The number is the first field, `ssi_signo`.
        signals.push(i32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]));
    }
    signals
}

/// As a program expects to find signals: none blocked, none ignored.
pub fn reset_signals() {
    // SAFETY: sets default dispositions; no handler of ours is installed anywhere.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        for signal in 1..=64 {
            if signal != libc::SIGKILL && signal != libc::SIGSTOP {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

/// Makes a terminal the controlling one of this session.
pub fn take_terminal(terminal: BorrowedFd<'_>) -> rustix::io::Result<()> {
    // SAFETY: the call takes an integer.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Puts `source` at the number `target` (0, 1 or 2), open across exec.
pub fn install(source: BorrowedFd<'_>, target: i32) -> rustix::io::Result<()> {
    // SAFETY: numbers 0 to 2 belong to nobody else in this process.
    let result = unsafe { libc::dup2(source.as_raw_fd(), target) };
    if result >= 0 { Ok(()) } else { Err(last_error()) }
}

/// Sends a signal; a process that is gone is fine.
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: no memory is involved.
    unsafe { libc::kill(pid, signal) };
}

/// Sleeps until a child ends, for a process that has SIGCHLD blocked.
pub fn wait_for_child_signal() {
    // SAFETY: the set is initialised before use and lives through the call.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        let mut signal = 0;
        libc::sigwait(&set, &mut signal);
    }
}

/// Sleeps until a signal ends the process.
pub fn wait_for_end() {
    // SAFETY: no memory is involved.
    unsafe { libc::pause() };
}

/// Sends a signal through a file, so that it never reaches another process with the same number.
pub fn pidfd_kill(pidfd: BorrowedFd<'_>, signal: i32) -> rustix::io::Result<()> {
    // SAFETY: no memory is involved.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0, 0) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Makes a mount that only we hold read-only.
pub fn make_readonly(mount: BorrowedFd<'_>) -> rustix::io::Result<()> {
    mount_setattr(mount, libc::MOUNT_ATTR_RDONLY, 0, 0, None, false)
}

/// Changes attributes and propagation (`MS_PRIVATE` and so on, or 0) of a mount, and with `below` of all mounts
/// beneath it. With a user namespace the mount shows its files with ids translated by it.
pub fn mount_setattr(
    mount: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    propagation: u64,
    ids: Option<BorrowedFd<'_>>,
    below: bool,
) -> rustix::io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set | if ids.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: clear,
        propagation,
        userns_fd: ids.map_or(0, |ids| u64::try_from(ids.as_raw_fd()).unwrap_or(0)),
    };
    // SAFETY: the path is a constant, and the attributes live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | if below { libc::AT_RECURSIVE } else { 0 },
            std::ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Leaves the caller's keys behind: the process gets a session keyring of its own.
pub fn new_keyring(name: &std::ffi::CStr) -> rustix::io::Result<()> {
    // SAFETY: the name lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    if result >= 0 { Ok(()) } else { Err(last_error()) }
}

/// Sets class and level (`IOPRIO_PRIO_VALUE`) of this process for disks.
pub fn set_io_priority(value: u16) -> rustix::io::Result<()> {
    const PROCESS: libc::c_int = 1;
    // SAFETY: no memory is involved.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0, libc::c_int::from(value)) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Sets how this process is given processors.
pub fn set_scheduling(wanted: &crate::spec::CpuScheduling) -> rustix::io::Result<()> {
    /// `struct sched_attr`.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: wanted.policy,
        flags: wanted.flags,
        nice: wanted.nice,
        priority: wanted.priority,
        runtime: wanted.runtime,
        deadline: wanted.deadline,
        period: wanted.period,
    };
    // SAFETY: the attributes live through the call and say their own size.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(&attributes), 0) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Sets the execution domain of this process.
pub fn set_personality(value: u32) -> rustix::io::Result<()> {
    // SAFETY: no memory is involved.
    let result = unsafe { libc::personality(libc::c_ulong::from(value)) };
    if result >= 0 { Ok(()) } else { Err(last_error()) }
}

/// Sets a limit of this process by the kernel's number.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> rustix::io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the limit lives through the call.
    let result = unsafe { libc::setrlimit(resource as _, &limit) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// The hard limit of this process by the kernel's number.
pub fn hard_limit(resource: u32) -> rustix::io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the place for the answer lives through the call.
    let result = unsafe { libc::getrlimit(resource as _, &mut limit) };
    if result == 0 { Ok(limit.rlim_max) } else { Err(last_error()) }
}
