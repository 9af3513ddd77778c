//! Containers that another runtime program runs (runc, crun), driven by its command line.
//!
//! The shim stays what it is to the container: it stands in the sandbox's namespaces, which the program inherits, mounts
//! the root in a mount namespace of its own, and becomes the parent of what the program leaves behind, so that it learns
//! of exit codes, keeps logs and kills.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::UnmountFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::child::{Streams, Surroundings};
use super::document::{self, Around};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::setup::capabilities::CAPABILITIES;
use crate::setup::identity::{self, Identity};
use crate::setup::{layers, paths};
use crate::spec::{ContainerSpec, OciProgram, Process};
use crate::sys;

/// How long the program may take for one verb.
const LIMIT: Duration = Duration::from_secs(60);
/// Socket on which it hands terminals over, in the container's folder.
const CONSOLE: &str = "console.sock";

/// A container of another runtime's.
pub struct External {
    program: OciProgram,
    id: String,
    /// The bundle, which is the container's folder.
    folder: PathBuf,
    root: PathBuf,
    tty: bool,
    /// The program's ends of the streams, until it is started.
    streams: Option<Streams>,
    process: Option<OwnedFd>,
    /// The program may know of it.
    begun: bool,
}

/// A process that the program left to us.
pub struct Left {
    pub pid: i32,
    /// The terminal's master.
    pub terminal: Option<OwnedFd>,
}

impl External {
    /// Mounts the root and writes the bundle. The program itself comes in at the start, as with containerd.
    pub fn prepare(
        spec: &ContainerSpec,
        program: &OciProgram,
        folder: &Path,
        streams: Streams,
        surroundings: &Surroundings<'_>,
    ) -> Result<Self> {
        if surroundings.users.is_some() {
            return Err(Error::Invalid("user namespaces (hostUsers: false) need the default runtime handler".into()));
        }
        layers::stand(&spec.rootfs)?;
        let this = Self {
            program: program.clone(),
            id: spec.id.clone(),
            folder: folder.to_owned(),
            root: spec.rootfs.target.clone(),
            tty: spec.process.tty,
            streams: Some(streams),
            process: None,
            begun: false,
        };
        let identity = this.identity(&spec.process)?;
        let (capabilities, shm, init) = (own_capabilities()?, surroundings.shm, surroundings.init_pid);
        let document = document::container(spec, &identity, &around(&capabilities, shm, init))?;
        write(&folder.join("config.json"), &document)?;
        Ok(this)
    }

    /// Who runs it, from the files of its root.
    fn identity(&self, process: &Process) -> Result<Identity> {
        identity::resolve(paths::open_root(&self.root)?.as_fd(), &process.user)
    }

    pub fn process(&self) -> Option<BorrowedFd<'_>> {
        self.process.as_ref().map(AsFd::as_fd)
    }

    /// Makes the container and runs its program.
    pub fn start(&mut self) -> Result<Left> {
        let streams = self.streams.take().unwrap_or_default();
        let id = self.id.clone();
        self.begun = true;
        let left = self.leave(&["run", "--detach"], &[&id], self.tty, &streams)?;
        let pid = Pid::from_raw(left.pid).ok_or_else(|| Error::Shim("the runtime wrote no process id".into()))?;
        self.process = Some(pidfd_open(pid, PidfdFlags::empty()).step("open the container's process")?);
        Ok(left)
    }

    /// Runs a program beside the first one.
    pub fn exec(&self, process: &Process, shm: &Path, streams: &Streams) -> Result<Left> {
        let identity = self.identity(process)?;
        let document = document::process(process, &identity, &around(&own_capabilities()?, shm, None));
        let file = self.folder.join("exec.json");
        write(&file, &document)?;
        let file = file.display().to_string();
        let left = self.leave(&["exec", "--detach", "--process", &file], &[&self.id], process.tty, streams);
        let _ = fs::remove_file(&file);
        left
    }

    /// Has the program forget the container, and takes the root away. What cannot be done now goes with the shim.
    pub fn remove(&mut self) {
        self.streams = None;
        self.process = None;
        if self.begun
            && let Err(error) = self.run(&["delete", "--force", &self.id], &Streams::default())
        {
            super::complain(&error);
        }
        let _ = rustix::mount::unmount(&self.root, UnmountFlags::DETACH);
    }

    /// Runs a verb that leaves a process to us.
    fn leave(&self, verb: &[&str], object: &[&str], tty: bool, streams: &Streams) -> Result<Left> {
        let pid_file = self.folder.join("pid");
        let _ = fs::remove_file(&pid_file);
        let pid_text = pid_file.display().to_string();
        let mut args: Vec<&str> = verb.to_vec();
        args.extend(["--pid-file", &pid_text]);
        let console = if tty { Some(self.listen()?) } else { None };
        if console.is_some() {
            args.extend(["--console-socket", CONSOLE]);
        }
        args.extend(object);
        let done = self.run(&args, streams);
        let terminal = match (done, console) {
            (Ok(()), Some(console)) => receive_terminal(&console).map(Some),
            (done, _) => done.map(|()| None),
        };
        let _ = fs::remove_file(self.folder.join(CONSOLE));
        let terminal = terminal?;
        let text = fs::read_to_string(&pid_file).step("read the runtime's pid file")?;
        let pid = text.trim().parse().map_err(|_| Error::Shim("the runtime wrote no process id".into()))?;
        Ok(Left { pid, terminal })
    }

    /// Socket paths are short and folders may be long, so both sides name it from inside the folder.
    fn listen(&self) -> Result<UnixListener> {
        let _ = fs::remove_file(self.folder.join(CONSOLE));
        rustix::process::chdir(&self.folder).step("enter the container's folder")?;
        let listener = UnixListener::bind(CONSOLE).step("listen for the terminal");
        rustix::process::chdir("/").step("leave the container's folder")?;
        let listener = listener?;
        listener.set_nonblocking(true).step("listen for the terminal")?;
        Ok(listener)
    }

    /// Runs one verb to its end.
    fn run(&self, args: &[&str], streams: &Streams) -> Result<()> {
        let log = self.folder.join("runtime.log");
        let _ = fs::remove_file(&log);
        let stream = |stream: &Option<OwnedFd>| match stream {
            Some(file) => rustix::io::fcntl_dupfd_cloexec(file, 3).step("copy a stream").map(Stdio::from),
            None => Ok(Stdio::null()),
        };
        let [stdin, stdout, stderr] = streams;
        let name = self.program.path.display();
        let mut command = Command::new(&self.program.path);
        command
            .args(&self.program.options)
            .arg("--root")
            .arg(self.folder.join("runtime"))
            .arg("--log")
            .arg(&log)
            .args(["--log-format", "json"])
            .args(args)
            .current_dir(&self.folder)
            .stdin(stream(stdin)?)
            .stdout(stream(stdout)?)
            .stderr(stream(stderr)?);
        // SAFETY: the shim has one thread, so its child may do what it wants before exec.
        unsafe { command.pre_exec(hide_mixed_control_groups) };
        let mut child = command.spawn().step(format!("start {name}"))?;
        let ended = wait(Pid::from_child(&child));
        if !ended {
            let _ = child.kill();
        }
        let status = child.wait().step(format!("wait for {name}"))?;
        match (ended, status.success()) {
            (true, true) => Ok(()),
            (true, false) => Err(Error::CannotRun(last_words(&log).unwrap_or_else(|| format!("{name}: {status}")))),
            (false, _) => Err(Error::CannotRun(format!("{name} did not answer within {} s", LIMIT.as_secs()))),
        }
    }
}

/// Some programs refuse a machine that has both kinds of control groups mounted; they are shown one kind.
fn hide_mixed_control_groups() -> std::io::Result<()> {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if unified.join("cgroup.procs").exists() {
        sys::unshare(libc::CLONE_NEWNS)?;
        rustix::mount::unmount(unified, UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// Waits for a child's end, but not for ever.
fn wait(child: Pid) -> bool {
    let Ok(ending) = pidfd_open(child, PidfdFlags::empty()) else { return true };
    let limit = Timespec { tv_sec: LIMIT.as_secs().cast_signed(), tv_nsec: 0 };
    let mut fds = [PollFd::new(&ending, PollFlags::IN)];
    !matches!(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit))), Ok(0))
}

/// The last error in the program's log.
fn last_words(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut errors = lines.filter(|line| line["level"] == "error" || line["level"] == "fatal");
    errors.next_back().and_then(|line| line["msg"].as_str().map(str::to_owned))
}

fn receive_terminal(listener: &UnixListener) -> Result<OwnedFd> {
    // The program has ended well, so it has sent what it had to.
    let (stream, _) = listener.accept().step("wait for the terminal")?;
    stream.set_nonblocking(true).step("wait for the terminal")?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    let mut parts = [std::io::IoSliceMut::new(&mut name)];
    recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).step("receive the terminal")?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut files) = message
            && let Some(terminal) = files.next()
        {
            return Ok(terminal);
        }
    }
    Err(Error::Shim("the runtime sent no terminal".into()))
}

fn around<'a>(capabilities: &'a [String], shm: &'a Path, init: Option<i32>) -> Around<'a> {
    Around {
        shm,
        init,
        capabilities,
        least_oom_score: least_oom_score(capabilities),
        limits_huge_pages: Cgroup::new("").folder("hugetlb").is_some(),
    }
}

/// What this process may give on.
fn own_capabilities() -> Result<Vec<String>> {
    let have = rustix::thread::capabilities(None).step("look at capabilities")?.permitted.bits();
    let known = CAPABILITIES.iter().enumerate().filter(|(number, _)| have & (1 << number) != 0);
    Ok(known.map(|(_, name)| (*name).to_owned()).collect())
}

/// Without the capability for it a process cannot be protected more than we are.
fn least_oom_score(capabilities: &[String]) -> i32 {
    if capabilities.iter().any(|name| name == "SYS_RESOURCE") {
        return -1000;
    }
    let own = fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok());
    own.unwrap_or(0)
}

fn write(path: &Path, document: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_vec(document).map_err(|error| Error::Shim(format!("encode a document: {error}")))?;
    fs::write(path, text).step(format!("write {}", path.display()))
}
