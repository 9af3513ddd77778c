//! Byte streams of exec, attach and port-forward.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use dhow_oci::client::Answer;
use dhow_oci::protocol::{Reply, Request};
use dhow_oci::spec::Status;
use rustix::pipe::PipeFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::container::specification_of;
use super::{Inner, blocking, watch};
use crate::Error;
use crate::runtime::{Duplex, ExecRequest, ExecResult, Reader, Streams, Writer};

/// Most that `exec_sync` keeps of each stream.
const MAX_OUTPUT: usize = 16 << 20;
/// How long output is waited for after a program's end, in case something it started holds the stream open.
const LINGER: Duration = Duration::from_millis(500);

/// Ends of a program's streams on our side.
struct Begun {
    answer: Answer,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

async fn begin(inner: &Arc<Inner>, id: &str, request: &ExecRequest) -> Result<Begun, Error> {
    let container = inner.container(id)?;
    if container.state.status != Status::Running {
        return Err(Error::FailedPrecondition(format!("container {id} is not running")));
    }
    let shim = inner.sandbox(&container.meta.sandbox_id)?.shim;
    let path = inner.config.container_dir(&container.meta.sandbox_id, id).join("spec.json");
    let (id, wanted) = (id.to_owned(), request.clone());
    blocking(move || {
        let mut process = specification_of(&path)?.process;
        process.args.clone_from(&wanted.command);
        process.tty = wanted.tty;
        if wanted.tty && !process.env.iter().any(|variable| variable.starts_with("TERM=")) {
            process.env.push("TERM=xterm".into());
        }
        let (mut ours, mut theirs) = ([None, None, None], Vec::new());
        let plain = !wanted.tty;
        let asked = [wanted.stdin && plain, wanted.stdout && plain, wanted.stderr && plain];
        for (stream, _) in asked.iter().enumerate().filter(|(_, asked)| **asked) {
            let (read, write) = new_pipe()?;
            let (our, their) = if stream == 0 { (write, read) } else { (read, write) };
            ours[stream] = Some(our);
            theirs.push(their);
        }
        let [stdin, stdout, stderr] = asked;
        let request = Request::Exec { id, process: Box::new(process), stdin, stdout, stderr };
        let files: Vec<BorrowedFd<'_>> = theirs.iter().map(AsFd::as_fd).collect();
        let answer = shim.begin(&request, &files)?;
        let [stdin, stdout, stderr] = ours;
        Ok(Begun { answer, stdin, stdout, stderr })
    })
    .await
}

pub async fn exec(inner: &Arc<Inner>, id: &str, request: ExecRequest) -> Result<Streams, Error> {
    let mut begun = begin(inner, id, &request).await?;
    let exit = exit_of(begun.answer.connection)?;
    if let Some(terminal) = begun.answer.file.take() {
        let terminal = Terminal::new(terminal)?;
        return Ok(Streams {
            stdin: request.stdin.then(|| Box::new(terminal.clone()) as Writer),
            resize: Some(terminal.resizer()),
            stdout: Some(Box::new(terminal)),
            stderr: None,
            exit,
        });
    }
    Ok(Streams {
        stdin: begun.stdin.map(writer).transpose()?,
        stdout: begun.stdout.map(reader).transpose()?,
        stderr: begun.stderr.map(reader).transpose()?,
        resize: None,
        exit,
    })
}

pub async fn exec_sync(
    inner: &Arc<Inner>,
    id: &str,
    command: &[String],
    timeout: Option<Duration>,
) -> Result<ExecResult, Error> {
    let request = ExecRequest { command: command.to_vec(), tty: false, stdin: false, stdout: true, stderr: true };
    let begun = begin(inner, id, &request).await?;
    let Reply::Running { pid } = begun.answer.reply else {
        return Err(Error::internal("run a command", "unexpected answer of the shim"));
    };
    let exit = exit_of(begun.answer.connection)?;
    let (stdout, stderr) = (Collected::default(), Collected::default());
    let mut collectors = tokio::task::JoinSet::new();
    for (end, kept) in [(begun.stdout, &stdout), (begun.stderr, &stderr)] {
        if let Some(end) = end {
            collectors.spawn(collect(reader(end)?, Arc::clone(kept)));
        }
    }
    let limit = timeout.unwrap_or(Duration::MAX);
    let Ok(exit_code) = tokio::time::timeout(limit, exit).await else {
        let shim = inner.sandbox(&inner.container(id)?.meta.sandbox_id)?.shim;
        let signal = rustix::process::Signal::KILL.as_raw();
        blocking(move || Ok(shim.tell(&Request::SignalExec { pid, signal })?)).await?;
        return Err(Error::DeadlineExceeded(limit));
    };
    let exit_code = exit_code.map_err(|error| Error::internal("wait for a command", error))??;
    let _ = tokio::time::timeout(LINGER, async { while collectors.join_next().await.is_some() {} }).await;
    let take = |kept: Collected| std::mem::take(&mut *kept.lock());
    Ok(ExecResult { stdout: take(stdout), stderr: take(stderr), exit_code })
}

/// What came of a stream so far.
type Collected = Arc<parking_lot::Mutex<Vec<u8>>>;

async fn collect(mut stream: Reader, kept: Collected) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let mut kept = kept.lock();
        let room = MAX_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
}

pub async fn attach(inner: &Arc<Inner>, id: &str, stdin: bool) -> Result<Streams, Error> {
    let container = inner.container(id)?;
    if container.state.status == Status::Stopped {
        return Err(Error::FailedPrecondition(format!("container {id} is not running")));
    }
    let shim = inner.sandbox(&container.meta.sandbox_id)?.shim;
    let (id, tty) = (id.to_owned(), container.meta.config.tty);
    let (answer, stdout, stderr) = blocking(move || {
        let (stdout, their_stdout) = new_pipe()?;
        let (stderr, their_stderr) = new_pipe()?;
        for end in [&their_stdout, &their_stderr] {
            rustix::io::ioctl_fionbio(end, true).map_err(|error| Error::internal("prepare a pipe", error))?;
        }
        let files = [their_stdout.as_fd(), their_stderr.as_fd()];
        Ok((shim.begin(&Request::Attach { id, stdin }, &files)?, stdout, stderr))
    })
    .await?;
    let exit = exit_of(answer.connection)?;
    let (mut input, mut resize) = (None, None);
    match answer.file {
        Some(file) if tty => {
            let terminal = Terminal::new(file)?;
            resize = Some(terminal.resizer());
            input = stdin.then(|| Box::new(terminal) as Writer);
        }
        Some(file) => input = Some(writer(file)?),
        None => {}
    }
    let stderr = if tty { None } else { Some(reader(stderr)?) };
    Ok(Streams { stdin: input, stdout: Some(reader(stdout)?), stderr, resize, exit })
}

pub async fn port_forward(inner: &Arc<Inner>, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>, Error> {
    let shim = inner.sandbox(sandbox)?.shim;
    let answer = blocking(move || {
        shim.begin(&Request::Connect { port }, &[]).map_err(|error| Error::Network(error.to_string()))
    })
    .await?;
    let file = answer.file.ok_or_else(|| Error::Network("the shim sent no connection".into()))?;
    let stream = std::net::TcpStream::from(file);
    let prepared = stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream));
    Ok(Box::new(prepared.map_err(|error| Error::internal("use a connection", error))?))
}

/// Resolves to the exit code that the shim will send.
fn exit_of(connection: OwnedFd) -> Result<oneshot::Receiver<Result<i32, Error>>, Error> {
    let connection = watch::nonblocking(connection)?;
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let code = match watch::receive::<Reply>(&connection).await {
            Ok(Some((Reply::Exited { code }, _))) => Ok(code),
            Ok(_) => Err(Error::FailedPrecondition("the sandbox ended".into())),
            Err(error) => Err(error),
        };
        // Whoever asked may have gone.
        let _ = sender.send(code);
    });
    Ok(receiver)
}

fn new_pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| Error::internal("make a pipe", error))
}

fn reader(end: OwnedFd) -> Result<Reader, Error> {
    let receiver = pipe::Receiver::from_owned_fd(end).map_err(|error| Error::internal("read a pipe", error))?;
    Ok(Box::new(receiver))
}

fn writer(end: OwnedFd) -> Result<Writer, Error> {
    let sender = pipe::Sender::from_owned_fd(end).map_err(|error| Error::internal("write a pipe", error))?;
    Ok(Box::new(sender))
}

/// The master of a terminal. Clones share it.
#[derive(Clone)]
struct Terminal {
    master: Arc<AsyncFd<OwnedFd>>,
}

impl Terminal {
    fn new(master: OwnedFd) -> Result<Self, Error> {
        rustix::io::ioctl_fionbio(&master, true).map_err(|error| Error::internal("prepare a terminal", error))?;
        // Deprecated for types that close their file early, which an `OwnedFd` does not.
        #[allow(deprecated)]
        let master = AsyncFd::new(master).map_err(|error| Error::internal("watch a terminal", error))?;
        Ok(Self { master: Arc::new(master) })
    }

    /// Takes sizes, columns and rows, for as long as the terminal is there.
    fn resizer(&self) -> mpsc::Sender<(u16, u16)> {
        let (sender, mut sizes) = mpsc::channel::<(u16, u16)>(4);
        let master = Arc::downgrade(&self.master);
        tokio::spawn(async move {
            while let Some((columns, rows)) = sizes.recv().await {
                let Some(master) = master.upgrade() else { return };
                let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                if let Err(error) = rustix::termios::tcsetwinsize(master.get_ref(), size) {
                    tracing::debug!(%error, "cannot resize a terminal");
                }
            }
        });
        sender
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.master.poll_read_ready(cx))?;
            let space = buffer.initialize_unfilled();
            match guard.try_io(|master| Ok(rustix::io::read(master.get_ref(), space)?)) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // How a terminal says that nobody is left at the other end.
                Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.master.poll_write_ready(cx))?;
            match guard.try_io(|master| Ok(rustix::io::write(master.get_ref(), bytes)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
