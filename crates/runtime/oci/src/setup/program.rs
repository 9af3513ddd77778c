//! The last steps before a program runs: identity, privileges, system call filter, exec.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, Mode};
use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use super::identity::Identity;
use super::{identity, paths, seccomp};
use crate::error::{Context, Error, Result};
use crate::spec::Process;
use crate::sys;

/// A program whose user and folder are settled, inside the container's root.
pub struct Prepared {
    identity: Identity,
    env: Vec<CString>,
    args: Vec<CString>,
    path: String,
    filters: Vec<seccomp::Filter>,
    caps: CapabilitySet,
}

/// Settles everything that can fail because of the specification. The process is inside the container already.
pub fn prepare(process: &Process) -> Result<Prepared> {
    let root = paths::open_root(Path::new("/"))?;
    let identity = identity::resolve(root.as_fd(), &process.user)?;
    let mut env = process.env.clone();
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", identity.home));
    }
    let path = env.iter().rev().find_map(|v| v.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH).to_owned();
    let text = |what: &str, s: &str| {
        CString::new(s).map_err(|_| Error::CannotRun(format!("{what} {s:?} contains a NUL byte")))
    };
    Ok(Prepared {
        env: env.iter().map(|variable| text("environment variable", variable)).collect::<Result<_>>()?,
        args: process.args.iter().map(|argument| text("argument", argument)).collect::<Result<_>>()?,
        path,
        filters: seccomp::compile(&process.seccomp, &process.capabilities)?,
        caps: capabilities(&process.capabilities)?,
        identity,
    })
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Enters the working folder, making it if it is missing.
pub fn enter_folder(cwd: &str) -> Result<()> {
    let folder = Path::new(if cwd.is_empty() { "/" } else { cwd });
    if !folder.is_absolute() {
        return Err(Error::Invalid(format!("working directory {cwd:?} is not absolute")));
    }
    if !folder.exists() {
        std::fs::create_dir_all(folder).step(format!("create working directory {cwd}"))?;
    }
    rustix::process::chdir(folder).map_err(|error| Error::CannotRun(format!("chdir to cwd ({cwd:?}): {error}")))?;
    // A folder that lies outside the root would be a way out (a leaked file as `/proc/self/fd/…`).
    let here =
        rustix::process::getcwd(Vec::new()).map_err(|_| Error::CannotRun("working directory is unreachable".into()))?;
    if here.as_bytes().first() != Some(&b'/') {
        return Err(Error::CannotRun("current working directory is outside of container mount namespace root".into()));
    }
    Ok(())
}

/// Gives stdin, stdout and stderr to the user, so that `/dev/stdout` can be opened again.
pub fn own_streams(prepared: &Prepared) {
    for fd in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let Ok(stat) = rustix::fs::fstat(fd) else { continue };
        let null = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (1, 3);
        if !null && stat.st_uid != prepared.identity.uid {
            // Not all kinds of files can be given away; the program can still use what it has.
            let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(prepared.identity.uid)), None);
        }
    }
}

/// Gives up privileges and runs the program. Returns only if that failed.
pub fn run(process: &Process, prepared: &Prepared) -> Result<Infallible> {
    sys::close_at_exec(3).step("close files")?;
    let who = &prepared.identity;
    for number in 0..64 {
        let Some(bit) = CapabilitySet::from_bits(1 << number) else { break };
        if !prepared.caps.contains(bit) {
            match rustix::thread::remove_capability_from_bounding_set(bit) {
                // The kernel knows fewer than we.
                Err(rustix::io::Errno::INVAL) => break,
                result => result.step("give up a capability")?,
            }
        }
    }
    let groups: Vec<Gid> = who.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_keep_capabilities(true).step("keep capabilities")?;
    rustix::thread::set_thread_groups(&groups).step("set groups")?;
    let gid = Gid::from_raw(who.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).step("set group")?;
    let uid = Uid::from_raw(who.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).step("set user")?;
    // Changing the user made the process inspectable again by whoever has its user id.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step("hide from inspection")?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).step("follow the shim's end")?;
    if process.no_new_privs {
        rustix::thread::set_no_new_privs(true).step("set no_new_privs")?;
        drop_capabilities(prepared)?;
        install(prepared)?;
    } else {
        // Without no_new_privs the kernel wants CAP_SYS_ADMIN for a filter, so capabilities go after it.
        raise_effective().step("use capabilities once more")?;
        install(prepared)?;
        drop_capabilities(prepared)?;
    }
    let program = find(prepared)?;
    let program_text = CString::new(program.as_os_str().as_bytes()).unwrap_or_default();
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(&prepared.args), pointers(&prepared.env));
    sys::reset_signals();
    // SAFETY: the lists are ended by null, and their strings live until exec.
    unsafe { libc::execve(program_text.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Err(Error::CannotRun(format!("exec {}: {}", program.display(), described(sys::last_error()))))
}

fn raise_effective() -> rustix::io::Result<()> {
    let sets = rustix::thread::capabilities(None)?;
    rustix::thread::set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets })
}

/// The filter is last but for what the program itself does.
fn install(prepared: &Prepared) -> Result<()> {
    prepared.filters.iter().try_for_each(seccomp::Filter::install)
}

/// Nothing inheritable or ambient: a program that changes its user does not carry capabilities along.
fn drop_capabilities(prepared: &Prepared) -> Result<()> {
    let keep = if prepared.identity.uid == 0 { prepared.caps } else { CapabilitySet::empty() };
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).step("set capabilities")
}

/// The program's file: as given if it names a folder, else from PATH.
fn find(prepared: &Prepared) -> Result<PathBuf> {
    let name = prepared.args.first().map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned());
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Err(Error::CannotRun("no command specified".into()));
    };
    if name.contains('/') {
        return match rustix::fs::stat(&*name) {
            Ok(_) => Ok(PathBuf::from(name)),
            Err(error) => Err(Error::CannotRun(format!("exec: {name:?}: stat {name}: {}", described(error)))),
        };
    }
    let mut denied = false;
    for folder in prepared.path.split(':') {
        let candidate = Path::new(if folder.is_empty() { "." } else { folder }).join(&name);
        let Ok(stat) = rustix::fs::stat(&candidate) else { continue };
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            continue;
        }
        match rustix::fs::access(&candidate, Access::EXEC_OK) {
            Ok(()) => return Ok(candidate),
            Err(_) => denied = true,
        }
    }
    let why = if denied { "permission denied" } else { "executable file not found in $PATH" };
    Err(Error::CannotRun(format!("exec: {name:?}: {why}")))
}

fn described(error: rustix::io::Errno) -> String {
    match error {
        rustix::io::Errno::NOENT => "no such file or directory".into(),
        rustix::io::Errno::ACCESS => "permission denied".into(),
        rustix::io::Errno::NOEXEC => "exec format error".into(),
        other => other.to_string(),
    }
}

/// Names without `CAP_` to the kernel's set. Unknown names are refused.
fn capabilities(names: &[String]) -> Result<CapabilitySet> {
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

/// Installs stdin, stdout and stderr; those that are missing become `/dev/null`.
pub fn install_streams(streams: [Option<&OwnedFd>; 3], null: BorrowedFd<'_>) -> Result<()> {
    for (number, stream) in (0..).zip(streams) {
        let source = stream.map_or(null, |stream| stream.as_fd());
        sys::install(source, number).step("install a stream")?;
    }
    Ok(())
}

/// New files are as open as the program makes them.
pub fn reset_umask() {
    rustix::process::umask(Mode::from_raw_mode(0o022));
}
