//! Exec and attach on hijacked connections.

use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};

use super::request::{CONTAINER, SANDBOX};
use super::{Inner, api, forward};
use crate::Error;
use crate::runtime::{Duplex, ExecRequest, ExecResult, Reader, Streams};

const BLOCK: usize = 32 * 1024;
/// Most that `exec_sync` keeps of each stream.
const MAX_OUTPUT: u64 = 16 << 20;
/// What Docker writes in place of a command's output when it could not be started.
const NOT_STARTED: &str = "OCI runtime exec failed";
/// Docker books the end of a command a moment after its output ended, and has no event that could be waited for.
const BOOKING: Duration = Duration::from_millis(10);
/// How long a command that is to be ended may take to begin.
const STARTING: Duration = Duration::from_secs(30);

/// Makes a command ready to run; returns its id.
async fn create(inner: &Inner, id: &str, request: &ExecRequest) -> Result<String, Error> {
    inner.inspect("container", CONTAINER, id).await?;
    let asked = json!({
        "Cmd": request.command,
        "Tty": request.tty,
        "AttachStdin": request.stdin,
        "AttachStdout": request.stdout,
        "AttachStderr": request.stderr && !request.tty,
        "Env": if request.tty { json!(["TERM=xterm"]) } else { json!([]) },
    });
    let path = format!("/containers/{}/exec", api::escape(id));
    let made = inner.api.post(&path, &asked).await.map_err(|failure| failure.on("container", id))?;
    Ok(made["Id"].as_str().unwrap_or_default().to_owned())
}

pub async fn exec(inner: &Arc<Inner>, id: &str, request: ExecRequest) -> Result<Streams, Error> {
    let exec = create(inner, id, &request).await?;
    start(inner, id, exec, &request).await
}

async fn start(inner: &Arc<Inner>, id: &str, exec: String, request: &ExecRequest) -> Result<Streams, Error> {
    let begin = json!({"Detach": false, "Tty": request.tty});
    let io = inner.api.hijack(&format!("/exec/{exec}/start"), &begin).await;
    let io = io.map_err(|failure| failure.on("container", id))?;
    let resize = request.tty.then(|| resizer(inner, format!("/exec/{exec}/resize")));
    let inner = Arc::clone(inner);
    Ok(streams(io, request.stdin, request.tty, resize, async move { exit_of(&inner, &exec).await }))
}

/// The exit code of a command whose streams have ended.
async fn exit_of(inner: &Inner, exec: &str) -> Result<i32, Error> {
    loop {
        let state = inspect(inner, exec).await?;
        if state["Running"] != true {
            return Ok(state["ExitCode"].as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or(255));
        }
        tokio::time::sleep(BOOKING).await;
    }
}

async fn inspect(inner: &Inner, exec: &str) -> Result<Value, Error> {
    inner.api.get(&format!("/exec/{exec}/json")).await.map_err(|failure| failure.on("command", exec))
}

pub async fn exec_sync(
    inner: &Arc<Inner>,
    id: &str,
    command: &[String],
    timeout: Option<Duration>,
) -> Result<ExecResult, Error> {
    let request = ExecRequest { command: command.to_vec(), tty: false, stdin: false, stdout: true, stderr: true };
    let exec = create(inner, id, &request).await?;
    let streams = start(inner, id, exec.clone(), &request).await?;
    let run = async {
        let (stdout, stderr, exit) = tokio::join!(all(streams.stdout), all(streams.stderr), streams.exit);
        let exit_code = exit.map_err(|error| Error::internal("wait for a command", error))??;
        Ok::<_, Error>(ExecResult { stdout, stderr, exit_code })
    };
    let limit = timeout.unwrap_or(Duration::MAX);
    let Ok(result) = tokio::time::timeout(limit, run).await else {
        kill(inner, &exec).await?;
        return Err(Error::DeadlineExceeded(limit));
    };
    let result = result?;
    for output in [&result.stdout, &result.stderr] {
        if matches!(result.exit_code, 126 | 127) && output.starts_with(NOT_STARTED.as_bytes()) {
            return Err(Error::CannotRun(String::from_utf8_lossy(output).trim().to_owned()));
        }
    }
    Ok(result)
}

async fn all(reader: Option<Reader>) -> Vec<u8> {
    let mut output = Vec::new();
    if let Some(mut reader) = reader {
        // What came before a broken connection is still output.
        let _ = (&mut reader).take(MAX_OUTPUT).read_to_end(&mut output).await;
        let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
    }
    output
}

/// Docker cannot end a command, but says which process it is. One that is still being started is waited for.
async fn kill(inner: &Inner, exec: &str) -> Result<(), Error> {
    let begin = std::time::Instant::now();
    while begin.elapsed() < STARTING {
        let state = inspect(inner, exec).await?;
        if !state["ExitCode"].is_null() {
            return Ok(());
        }
        let Some(process) = state["Pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) else {
            tokio::time::sleep(BOOKING).await;
            continue;
        };
        let Ok(file) = rustix::process::pidfd_open(process, PidfdFlags::empty()) else { return Ok(()) };
        // Still running: then the open file is of that process and not of a later one with its number.
        if inspect(inner, exec).await?["Running"] == true {
            let _ = rustix::process::pidfd_send_signal(&file, Signal::KILL);
        }
        return Ok(());
    }
    Err(Error::DeadlineExceeded(STARTING))
}

pub async fn attach(inner: &Arc<Inner>, id: &str, stdin: bool) -> Result<Streams, Error> {
    let inspected = inner.inspect("container", CONTAINER, id).await?;
    if inspected["State"]["Running"] != true && inspected["State"]["Status"] != "created" {
        return Err(Error::FailedPrecondition(format!("container {id} is not running")));
    }
    let (stdin, tty) = (stdin && inspected["Config"]["OpenStdin"] == true, inspected["Config"]["Tty"] == true);
    let path = format!("/containers/{id}/attach?stream=true&stdout=true&stderr=true&stdin={stdin}");
    let io = inner.api.hijack(&path, &Value::Null).await.map_err(|failure| failure.on("container", id))?;
    let resize = tty.then(|| resizer(inner, format!("/containers/{id}/resize")));
    let (inner, id) = (Arc::clone(inner), id.to_owned());
    let exit = async move {
        let ended = inner.api.post(&format!("/containers/{id}/wait"), &Value::Null).await;
        let code = ended.map_err(|failure| failure.on("container", &id))?["StatusCode"].as_i64();
        Ok(code.and_then(|code| i32::try_from(code).ok()).unwrap_or(255))
    };
    Ok(streams(io, stdin, tty, resize, exit))
}

/// Both directions of a hijacked connection; `exit` is asked once its output has ended.
fn streams(
    io: TokioIo<Upgraded>,
    stdin: bool,
    tty: bool,
    resize: Option<mpsc::Sender<(u16, u16)>>,
    exit: impl Future<Output = Result<i32, Error>> + Send + 'static,
) -> Streams {
    let (mut from, mut to) = tokio::io::split(io);
    let (stdout, mut stdout_sink) = tokio::io::duplex(BLOCK);
    let (stderr, mut stderr_sink) = tokio::io::duplex(BLOCK);
    let (mut tell, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let output = async {
            if tty {
                let _ = tokio::io::copy(&mut from, &mut stdout_sink).await;
            } else {
                demultiplex(&mut from, &mut stdout_sink, &mut stderr_sink).await;
            }
            drop((stdout_sink, stderr_sink));
            exit.await
        };
        tokio::select! {
            code = output => drop(tell.send(code)),
            // Whoever held the streams went away.
            () = tell.closed() => {}
        }
    });
    let stdin = stdin.then(|| {
        let (writer, mut source) = tokio::io::duplex(BLOCK);
        tokio::spawn(async move {
            // A program that reads no more is no error of ours.
            let _ = tokio::io::copy(&mut source, &mut to).await;
            let _ = to.shutdown().await;
        });
        Box::new(writer) as _
    });
    Streams {
        stdin,
        stdout: Some(Box::new(stdout)),
        stderr: if tty { None } else { Some(Box::new(stderr)) },
        resize,
        exit: receiver,
    }
}

/// Frames of `[stream, 0, 0, 0, length]` and that many bytes.
async fn demultiplex(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    stdout: &mut DuplexStream,
    stderr: &mut DuplexStream,
) {
    let mut head = [0; 8];
    while from.read_exact(&mut head).await.is_ok() {
        let [kind, _, _, _, length @ ..] = head;
        let mut frame = from.take(u32::from_be_bytes(length).into());
        let sink = if kind == 2 { &mut *stderr } else { &mut *stdout };
        // Of a stream that nobody reads the rest is thrown away, for the sake of the other.
        if tokio::io::copy(&mut frame, sink).await.is_err() {
            let _ = tokio::io::copy(&mut frame, &mut tokio::io::sink()).await;
        }
    }
}

/// Takes sizes, columns and rows, for as long as somebody sends them.
fn resizer(inner: &Arc<Inner>, path: String) -> mpsc::Sender<(u16, u16)> {
    let (sender, mut sizes) = mpsc::channel::<(u16, u16)>(4);
    let api = inner.api.clone();
    tokio::spawn(async move {
        while let Some((columns, rows)) = sizes.recv().await {
            if let Err(error) = api.post(&format!("{path}?w={columns}&h={rows}"), &Value::Null).await {
                tracing::debug!(%error, "cannot resize a terminal");
            }
        }
    });
    sender
}

pub async fn port_forward(inner: &Inner, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>, Error> {
    match process(inner, sandbox).await? {
        Some(pid) => forward::open(pid, port).await,
        None => Err(Error::FailedPrecondition(format!("sandbox {sandbox} is not ready"))),
    }
}

/// The sandbox's pause container.
pub async fn process(inner: &Inner, sandbox: &str) -> Result<Option<u32>, Error> {
    let inspected = inner.inspect("sandbox", SANDBOX, sandbox).await?;
    let pid = inspected["State"]["Pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    Ok(pid.filter(|pid| *pid > 0))
}
