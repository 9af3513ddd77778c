//! The last steps before a program runs: identity, privileges, system call filter, exec.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, Mode};
use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::{Gid, Uid};

use super::identity::Identity;
use super::{capabilities, identity, labels, limits, paths, seccomp};
use crate::error::{Context, Error, Result};
use crate::spec::{IdRange, Ids, Process};
use crate::sys;

/// A program whose user and folder are settled, inside the container's root.
pub struct Prepared {
    identity: Identity,
    env: Vec<CString>,
    args: Vec<CString>,
    path: String,
    filter: Option<Arc<seccomp::Filter>>,
    capabilities: capabilities::Sets,
    labels: labels::Labels,
}

/// Settles everything that can fail because of the specification, but for the filter, which is made outside. The process is
/// inside the container already.
pub fn prepare(process: &Process, filter: Option<Arc<seccomp::Filter>>) -> Result<Prepared> {
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
        filter,
        capabilities: capabilities::Sets::of(process)?,
        labels: labels::Labels::open(process)?,
        identity,
    })
}

impl Prepared {
    /// Who the program will run as.
    pub fn ids(&self) -> Ids {
        let Identity { uid, gid, groups, .. } = &self.identity;
        Ids { uid: *uid, gid: *gid, groups: groups.clone() }
    }
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
///
/// `users` says what the user's id is outside, for a process that has not joined its user namespace yet.
pub fn own_streams(prepared: &Prepared, users: Option<IdRange>) {
    let uid = users.map_or(0, |range| range.host) + prepared.identity.uid;
    for fd in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let Ok(stat) = rustix::fs::fstat(fd) else { continue };
        let null = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (1, 3);
        if !null && stat.st_uid != uid {
            // Not all kinds of files can be given away; the program can still use what it has.
            let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None);
        }
    }
}

/// Gives up privileges and runs the program. Returns only if that failed.
pub fn run(process: &Process, prepared: &Prepared) -> Result<Infallible> {
    sys::close_at_exec(3 + process.preserve_fds).step("close files")?;
    limits::apply(process)?;
    let who = &prepared.identity;
    prepared.capabilities.bound()?;
    let groups: Vec<Gid> = who.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_keep_capabilities(true).step("keep capabilities")?;
    match rustix::thread::set_thread_groups(&groups) {
        // A user namespace may forbid it; without groups nothing is missed.
        Err(rustix::io::Errno::PERM) if groups.is_empty() => {}
        result => result.step("set groups")?,
    }
    let gid = Gid::from_raw(who.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).step("set group")?;
    let uid = Uid::from_raw(who.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).step("set user")?;
    // Changing the user made the process inspectable again by whoever has its user id.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step("hide from inspection")?;
    if !process.detached {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).step("follow the shim's end")?;
    }
    prepared.labels.apply()?;
    if process.no_new_privs {
        rustix::thread::set_no_new_privs(true).step("set no_new_privs")?;
        prepared.capabilities.apply()?;
        install(prepared)?;
    } else {
        // Without no_new_privs the kernel wants CAP_SYS_ADMIN for a filter, so capabilities go after it.
        capabilities::raise_effective().step("use capabilities once more")?;
        install(prepared)?;
        prepared.capabilities.apply()?;
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

/// The filter is last but for what the program itself does.
fn install(prepared: &Prepared) -> Result<()> {
    prepared.filter.as_ref().map_or(Ok(()), |filter| filter.install())
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

/// Installs stdin, stdout and stderr; those that are missing become `/dev/null`.
pub fn install_streams(streams: [Option<&OwnedFd>; 3], null: BorrowedFd<'_>) -> Result<()> {
    for (number, stream) in (0..).zip(streams) {
        let source = stream.map_or(null, |stream| stream.as_fd());
        sys::install(source, number).step("install a stream")?;
    }
    Ok(())
}

/// How open new files are, unless the specification says otherwise.
pub fn set_umask(process: &Process) {
    rustix::process::umask(Mode::from_raw_mode(process.umask.unwrap_or(0o022)));
}

/// The container's processes share no keys with the host's.
pub fn leave_keys(name: &str) {
    // A kernel without keys has none to share; a quota that is used up leaves an anonymous keyring to the next exec.
    let name = CString::new(format!("_ses.{name}")).unwrap_or_default();
    let _ = sys::new_keyring(&name);
}
