//! One container of the sandbox: its process, streams, log and recorded state.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::WaitStatus;

use super::child::{self, Streams, Surroundings};
use super::external::External;
use super::log::Log;
use crate::birth::Made;
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::protocol::Reply;
use crate::spec::{ContainerSpec, IdRange, Process, State, Status};
use crate::{sys, wire};

const STREAMS: [&str; 2] = ["stdout", "stderr"];
/// Read at one wake-up, so that a chatty container does not starve the others.
const CHUNKS: usize = 16;

pub struct Container {
    folder: PathBuf,
    pub spec: ContainerSpec,
    pub cgroup: Cgroup,
    pub state: State,
    body: Body,
    log: Log,
    /// The end we write to, until it is handed over or closed.
    stdin: Option<OwnedFd>,
    /// Stdout and stderr, or the terminal alone; `None` after their end.
    pub outputs: [Option<OwnedFd>; 2],
    attached: Vec<Attached>,
}

/// What there is of its process.
enum Body {
    Own(Made),
    /// Another runtime's.
    External(Box<External>),
}

/// Somebody who follows what the container prints.
pub struct Attached {
    /// Hears of the end.
    pub connection: OwnedFd,
    pub outputs: [Option<OwnedFd>; 2],
}

impl Container {
    /// Makes the container of the specification in `folder`, up to the point of running its program.
    /// `surroundings` finds what the sandbox gives one that shares the process namespace of another container, or of none.
    pub fn create<'a>(folder: &Path, surroundings: impl Fn(Option<&str>) -> Surroundings<'a>) -> Result<Self> {
        let path = folder.join("spec.json");
        let text = fs::read(&path).step(format!("read {}", path.display()))?;
        let spec: ContainerSpec = serde_json::from_slice(&text).map_err(|error| {
            Error::Invalid(format!("{} is not a container's specification: {error}", path.display()))
        })?;
        let log = Log::open(&spec.log_path, spec.log_limits)?;
        // Another runtime takes its groups in every tree there is.
        let cgroup = if spec.program.is_some() { Cgroup::everywhere(&spec.cgroup) } else { Cgroup::new(&spec.cgroup) };
        let made = Self::make(&spec, folder, &cgroup, &surroundings(spec.processes_of.as_deref()));
        let (body, stdin, outputs) = match made {
            Ok(made) => made,
            Err(error) => {
                if spec.program.is_some() {
                    let _ = rustix::mount::unmount(&spec.rootfs.target, rustix::mount::UnmountFlags::DETACH);
                }
                cgroup.remove_all();
                return Err(error);
            }
        };
        let (pid, user) = if let Body::Own(made) = &body { (made.pid, made.ids.clone()) } else { (0, None) };
        let state = State { id: spec.id.clone(), pid, created_at: now(), user, ..State::default() };
        let container =
            Self { folder: folder.to_owned(), spec, cgroup, state, body, log, stdin, outputs, attached: Vec::new() };
        container.record()?;
        Ok(container)
    }

    #[allow(clippy::type_complexity)]
    fn make(
        spec: &ContainerSpec,
        folder: &Path,
        cgroup: &Cgroup,
        surroundings: &Surroundings<'_>,
    ) -> Result<(Body, Option<OwnedFd>, [Option<OwnedFd>; 2])> {
        let (theirs, mut stdin, mut outputs) = streams(spec)?;
        if let Some(program) = &spec.program {
            let external = External::prepare(spec, program, folder, theirs, surroundings)?;
            return Ok((Body::External(Box::new(external)), stdin, outputs));
        }
        cgroup.create(&spec.limits)?;
        if !spec.privileged {
            cgroup.restrict_devices(&spec.devices)?;
        }
        let mut made = child::container(spec, cgroup, &theirs, surroundings)?;
        if let Some(terminal) = made.terminal.take() {
            (stdin, outputs) = ends_of(terminal)?;
        }
        Ok((Body::Own(made), stdin, outputs))
    }

    /// The first process, once there is one.
    pub fn process(&self) -> Option<BorrowedFd<'_>> {
        match &self.body {
            Body::Own(made) => Some(made.pidfd.as_fd()),
            Body::External(external) => external.process(),
        }
    }

    pub fn start(&mut self) -> Result<()> {
        if self.state.status != Status::Created {
            return Err(Error::Invalid(format!("container {} is not in created state", self.spec.id)));
        }
        let started = match &mut self.body {
            Body::Own(made) => made.start(),
            Body::External(external) => external.start().and_then(|left| {
                self.state.pid = left.pid;
                if let Some(terminal) = left.terminal {
                    (self.stdin, self.outputs) = ends_of(terminal)?;
                }
                Ok(())
            }),
        };
        match started {
            Ok(()) => {
                self.state.status = Status::Running;
                self.state.started_at = Some(now());
                self.record()
            }
            Err(error) => {
                self.state.error = Some(error.to_string());
                if self.state.pid == 0 {
                    // There is no process whose end would be noticed.
                    self.over(CANNOT_RUN);
                }
                Err(error)
            }
        }
    }

    /// Runs a program beside the first process; returns its number, and its terminal if it has one.
    pub fn exec(
        &self,
        process: &Process,
        streams: &Streams,
        users: Option<&(OwnedFd, IdRange)>,
        shm: &Path,
    ) -> Result<(i32, Option<OwnedFd>)> {
        match &self.body {
            Body::Own(made) => {
                let mut beside = child::beside(made.pidfd.as_fd(), &self.cgroup, process, streams, users)?;
                Ok((beside.pid, beside.terminal.take()))
            }
            Body::External(external) => {
                let left = external.exec(process, shm, streams)?;
                Ok((left.pid, left.terminal))
            }
        }
    }

    /// True if that ended a container that has no process yet.
    pub fn signal(&mut self, signal: i32, all: bool) -> bool {
        if self.state.status == Status::Stopped {
            return false;
        }
        if all {
            for pid in self.cgroup.processes() {
                sys::kill(pid, signal);
            }
        }
        if let Some(process) = self.process() {
            let _ = sys::pidfd_kill(process, signal);
            return false;
        }
        if signal == libc::SIGKILL {
            self.over(128 + signal);
        }
        signal == libc::SIGKILL
    }

    /// Frees what a container holds that has ended.
    pub fn free(&mut self) {
        if let Body::External(external) = &mut self.body {
            external.remove();
        }
        self.cgroup.remove_all();
    }

    /// Passes on what can be read now. After the end of a stream its place is empty. Returns the log's path if its file
    /// was put aside.
    pub fn read(&mut self, stream: usize) -> Option<PathBuf> {
        let mut buffer = [0; 16 * 1024];
        let mut rotated = None;
        for _ in 0..CHUNKS {
            let Some(output) = &self.outputs[stream] else { break };
            match rustix::io::read(output, &mut buffer) {
                Ok(0) | Err(Errno::IO) => {
                    self.outputs[stream] = None;
                    self.attached.iter_mut().for_each(|attached| attached.outputs[stream] = None);
                }
                Ok(count) => {
                    if self.log.write(STREAMS[stream], &buffer[..count]) {
                        rotated = Some(self.log.path().to_owned());
                    }
                    for attached in &mut self.attached {
                        attached.write(stream, &buffer[..count]);
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        rotated
    }

    /// Takes a follower in; returns what it may write to. One that only looks on must not end what another one, or a later
    /// one, writes.
    pub fn attach(&mut self, attached: Attached, stdin: bool) -> Result<Option<OwnedFd>> {
        let tty = self.spec.process.tty;
        let stdin = if !stdin && !tty {
            None
        } else if self.spec.stdin_once && !tty {
            self.stdin.take()
        } else {
            let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
            self.stdin.as_ref().filter(|_| self.spec.stdin).map(copy).transpose().step("copy stdin")?
        };
        self.attached.push(attached);
        Ok(stdin)
    }

    pub fn reopen_log(&mut self) -> Result<()> {
        self.log.reopen()
    }

    /// Notes that the first process has ended and tells the followers.
    pub fn ended(&mut self, status: WaitStatus) {
        for stream in 0..STREAMS.len() {
            // What is in the pipes is all there will be, unless somebody else holds them.
            for _ in 0..64 {
                self.read(stream);
            }
        }
        // It may have ended because its program could not be run.
        self.over(if self.state.error.is_some() { CANNOT_RUN } else { exit_code(status) });
    }

    /// Notes the end, and tells the followers.
    fn over(&mut self, code: i32) {
        self.stdin = None;
        self.state.exit_code = code;
        self.state.oom_killed = self.cgroup.oom_kills() > 0;
        self.state.status = Status::Stopped;
        self.state.pid = 0;
        self.state.finished_at = Some(now());
        for attached in self.attached.drain(..) {
            let _ = wire::send(attached.connection.as_fd(), &Reply::Exited { code }, &[]);
        }
        if let Err(error) = self.record() {
            super::complain(&error);
        }
    }

    /// Writes the state where a later daemon finds it, also when the shim is gone.
    fn record(&self) -> Result<()> {
        let (path, fresh) = (self.folder.join("state.json"), self.folder.join("state.json.new"));
        let text = serde_json::to_vec(&self.state).map_err(|error| Error::Shim(format!("encode state: {error}")))?;
        fs::File::create(&fresh).and_then(|mut file| file.write_all(&text)).step("write the container's state")?;
        fs::rename(&fresh, &path).step("write the container's state")
    }
}

impl Attached {
    /// A follower that does not keep up is let go rather than waited for.
    fn write(&mut self, stream: usize, mut bytes: &[u8]) {
        while let Some(output) = &self.outputs[stream] {
            match rustix::io::write(output, bytes) {
                Ok(count) if count < bytes.len() => bytes = &bytes[count..],
                Ok(_) => return,
                Err(Errno::INTR) => {}
                Err(_) => self.outputs[stream] = None,
            }
        }
    }
}

/// What Docker and containerd say of a container whose program could not be run.
const CANNOT_RUN: i32 = 128;

/// Our end of a terminal, to write to and to read from.
fn ends_of(terminal: OwnedFd) -> Result<(Option<OwnedFd>, [Option<OwnedFd>; 2])> {
    rustix::fs::fcntl_setfl(&terminal, OFlags::NONBLOCK | OFlags::RDWR).step("prepare the terminal")?;
    let stdin = rustix::io::fcntl_dupfd_cloexec(&terminal, 3).step("copy the terminal")?;
    Ok((Some(stdin), [Some(terminal), None]))
}

type Ends = (Streams, Option<OwnedFd>, [Option<OwnedFd>; 2]);

/// The container's ends and ours.
fn streams(spec: &ContainerSpec) -> Result<Ends> {
    if spec.process.tty {
        return Ok(([None, None, None], None, [None, None]));
    }
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step("make a pipe");
    let (stdin, our_stdin) = match spec.stdin {
        true => pipe().map(|(read, write)| (Some(read), Some(write)))?,
        false => (None, None),
    };
    let (our_stdout, stdout) = pipe()?;
    let (our_stderr, stderr) = pipe()?;
    for end in [&our_stdout, &our_stderr] {
        rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK).step("prepare a pipe")?;
    }
    Ok(([stdin, Some(stdout), Some(stderr)], our_stdin, [Some(our_stdout), Some(our_stderr)]))
}

/// As a shell reports it.
pub fn exit_code(status: WaitStatus) -> i32 {
    status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(0))
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}
