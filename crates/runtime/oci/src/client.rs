//! The daemon's side: starts shims and talks to them. Every call blocks for as long as the shim needs.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, listen, socket_with};

use crate::error::{Context, Error, Result};
use crate::protocol::{Reply, Request};
use crate::spec::SandboxSpec;
use crate::{shim, wire};

/// Longest wait for an answer; killing an unwilling container takes longest.
const ANSWER_LIMIT: Duration = Duration::from_secs(150);

/// The program that shims run: this binary, through a mount that cannot be written to. A container that finds a way to
/// the shim's `/proc/<pid>/exe` still cannot change the host's binary.
#[derive(Debug)]
pub struct Program {
    file: OwnedFd,
}

impl Program {
    /// Of the running binary.
    pub fn own() -> Result<Self> {
        Self::of(Path::new("/proc/self/exe"))
    }

    pub fn of(path: &Path) -> Result<Self> {
        let tree =
            rustix::mount::open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
                .step("clone the binary's mount")?;
        crate::sys::make_readonly(tree.as_fd()).step("protect the binary")?;
        Ok(Self { file: tree })
    }

    /// Where it can be run from.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", rustix::fd::AsRawFd::as_raw_fd(&self.file))
    }

    /// Runs it in the place of this process, with the same arguments; returns only if that failed.
    pub(crate) fn replace_this_process(&self) -> std::io::Error {
        let mut args = std::env::args_os();
        let mut command = Command::new(self.path());
        if let Some(name) = args.next() {
            command.arg0(name);
        }
        command.args(args).exec()
    }
}

/// A shim that runs, or ran.
#[derive(Debug, Clone)]
pub struct Shim {
    socket: PathBuf,
}

impl Shim {
    /// The shim that listens at `socket`, whether it still does or not.
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Starts a shim for the sandbox in the folder `dir` and returns once its namespaces exist. The child has to be
    /// waited for by whoever keeps it; dropping it leaves the shim running.
    pub fn start(program: &Program, dir: &Path, socket: &Path, spec: &SandboxSpec) -> Result<(Self, Child, i32)> {
        fs::create_dir_all(dir.join("containers")).step(format!("create {}", dir.display()))?;
        let text = serde_json::to_vec(spec).map_err(|error| Error::Invalid(format!("encode the sandbox: {error}")))?;
        fs::write(dir.join("sandbox.json"), text).step("write the sandbox's specification")?;
        let listener = new_socket()?;
        let _ = fs::remove_file(socket);
        let address = SocketAddrUnix::new(socket).step(format!("name the socket {}", socket.display()))?;
        rustix::net::bind(&listener, &address).step(format!("open {}", socket.display()))?;
        listen(&listener, 64).step("listen")?;
        let log = fs::File::create(dir.join("shim.log")).step("open the shim's log")?;
        let child = Command::new(program.path())
            .arg0("dhow-shim")
            .arg(shim::COMMAND)
            .arg(dir)
            .env_clear()
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(log)
            .current_dir("/")
            .process_group(0)
            .spawn()
            .step("start the shim")?;
        let this = Self { socket: socket.to_owned() };
        match this.ask(&Request::Hello) {
            Ok(Reply::Ready { pid }) => Ok((this, child, pid)),
            Ok(_) => Err(Error::Shim("the shim gave an unexpected answer".into())),
            Err(error) => {
                let mut child = child;
                let _ = child.kill();
                let _ = child.wait();
                let _ = fs::remove_file(socket);
                let why = fs::read_to_string(dir.join("shim.log")).unwrap_or_default();
                Err(Error::Shim(format!("the shim did not start: {error}; {}", why.trim())))
            }
        }
    }

    /// One request with one answer.
    pub fn ask(&self, request: &Request) -> Result<Reply> {
        self.begin(request, &[]).map(|answer| answer.reply)
    }

    /// Asks for something that is simply done.
    pub fn tell(&self, request: &Request) -> Result<()> {
        self.ask(request).map(drop)
    }

    /// Sends a request with files and returns the first answer, with the connection on which more may come.
    pub fn begin(&self, request: &Request, files: &[BorrowedFd<'_>]) -> Result<Answer> {
        let gone = |source: std::io::Error| Error::Gone { dir: self.socket.clone(), source };
        let connection = new_socket()?;
        let address = SocketAddrUnix::new(&self.socket).step(format!("name the socket {}", self.socket.display()))?;
        connect(&connection, &address).map_err(|error| gone(error.into()))?;
        rustix::net::sockopt::set_socket_timeout(&connection, rustix::net::sockopt::Timeout::Recv, Some(ANSWER_LIMIT))
            .step("limit the wait for the shim")?;
        let closed = |error| match error {
            Error::System { source: source @ (Errno::CONNRESET | Errno::PIPE), .. } => gone(source.into()),
            other => other,
        };
        wire::send(connection.as_fd(), request, files).map_err(closed)?;
        match wire::receive::<Reply>(connection.as_fd()).map_err(closed)? {
            Some((Reply::Failed { kind, message }, _)) => Err(kind.into_error(message)),
            Some((reply, mut files)) => Ok(Answer { reply, file: files.pop(), connection }),
            None => Err(gone(std::io::ErrorKind::ConnectionAborted.into())),
        }
    }
}

/// The first answer to a request.
#[derive(Debug)]
pub struct Answer {
    pub reply: Reply,
    /// What the answer brought along.
    pub file: Option<OwnedFd>,
    /// Later answers come here, each readable in one go.
    pub connection: OwnedFd,
}

fn new_socket() -> Result<OwnedFd> {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).step("make a socket")?;
    // A message must fit whole; the default is about its size.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&socket, wire::MAX_MESSAGE * 2);
    Ok(socket)
}
