//! Exec, attach and port-forward: the runtime names a URL, and the streams are spoken there.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::{mpsc, oneshot};

use super::request::STREAMS;
use super::{Inner, answer};
use crate::Error;
use crate::proto;
use crate::runtime::{ContainerState, Duplex, ExecRequest, RuntimeEvent, Streams};
use crate::streaming::spdy::Session;
use crate::streaming::{PORT_FORWARD, REMOTE_COMMAND, STREAM_TYPE, TerminalSize, dial};

/// How long the runtime may take to say how a container ended whose streams have ended.
const BOOKING: Duration = Duration::from_secs(10);
/// Most that is read of an error.
const MAX_ERROR: u64 = 64 * 1024;

pub async fn exec(inner: &Arc<Inner>, id: &str, request: ExecRequest) -> Result<Streams, Error> {
    let asked = proto::ExecRequest {
        container_id: id.to_owned(),
        cmd: request.command.clone(),
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        // A terminal has one stream for both.
        stderr: request.stderr && !request.tty,
    };
    let begun = inner.runtime.clone().exec(asked).await;
    let url = begun.map_err(|status| answer::failure("container", id, status))?.into_inner().url;
    let Opened { streams, exit, ended } =
        open(&url, request.stdin, request.stderr && !request.tty, request.tty).await?;
    tokio::spawn(async move {
        let _ = exit.send(ended.await);
    });
    Ok(streams)
}

pub async fn attach(inner: &Arc<Inner>, id: &str, stdin: bool) -> Result<Streams, Error> {
    let status = inner.raw_container(id).await?;
    if answer::container_state(status.state()) == ContainerState::Exited {
        return Err(Error::FailedPrecondition(format!("container {id} is not running")));
    }
    let ours = status.annotations.get(STREAMS).map(String::as_str).unwrap_or_default();
    let has = |name| ours.split(',').any(|stream| stream == name);
    let (stdin, tty) = (stdin && has("stdin"), has("tty"));
    let asked = proto::AttachRequest { container_id: id.to_owned(), stdin, tty, stdout: true, stderr: !tty };
    // Before the streams can end.
    let events = inner.events.subscribe();
    let begun = inner.runtime.clone().attach(asked).await;
    let url = begun.map_err(|status| answer::failure("container", id, status))?.into_inner().url;
    let Opened { streams, mut exit, ended } = open(&url, stdin, !tty, tty).await?;
    let (inner, id) = (Arc::clone(inner), id.to_owned());
    tokio::spawn(async move {
        let code = tokio::select! {
            ended = ended => match ended {
                // The end of an attachment says nothing of the container.
                Ok(_) => exit_code(&inner, &id, events).await,
                Err(error) => Err(error),
            },
            () = exit.closed() => return,
        };
        let _ = exit.send(code);
    });
    Ok(streams)
}

/// Waits for the end of a container whose streams have ended.
async fn exit_code(
    inner: &Inner,
    id: &str,
    mut events: tokio::sync::broadcast::Receiver<RuntimeEvent>,
) -> Result<i32, Error> {
    let wait = async {
        loop {
            let status = inner.status(id).await?;
            if status.state == ContainerState::Exited {
                return Ok(status.exit_code);
            }
            // A gap is a reason to look again, like any event.
            if matches!(events.recv().await, Err(tokio::sync::broadcast::error::RecvError::Closed)) {
                return Err(Error::FailedPrecondition("the runtime's events ended".into()));
            }
        }
    };
    let detached = || Error::FailedPrecondition(format!("detached from container {id}"));
    tokio::time::timeout(BOOKING, wait).await.map_err(|_| detached())?
}

/// The streams of a command, and what becomes of it.
struct Opened<F> {
    streams: Streams,
    exit: oneshot::Sender<Result<i32, Error>>,
    ended: F,
}

async fn open(
    url: &str,
    stdin: bool,
    stderr: bool,
    tty: bool,
) -> Result<Opened<impl Future<Output = Result<i32, Error>> + Send + 'static>, Error> {
    let session = Session::client(dial::open(url, REMOTE_COMMAND).await?);
    let stream = async |kind: &str| {
        session.open(&[(STREAM_TYPE, kind)]).await.map_err(|error| Error::internal("open a stream", error))
    };
    // The order in which upstream's clients open them.
    let error = stream("error").await?;
    let stdin = if stdin { Some(stream("stdin").await?.writer) } else { None };
    let stdout = stream("stdout").await?.reader;
    let stderr = if stderr { Some(stream("stderr").await?.reader) } else { None };
    let resize = if tty { Some(resizer(stream("resize").await?.writer)) } else { None };
    let (exit, receiver) = oneshot::channel();
    let streams = Streams {
        stdin: stdin.map(|writer| Box::new(writer) as _),
        stdout: Some(Box::new(stdout)),
        stderr: stderr.map(|reader| Box::new(reader) as _),
        resize,
        exit: receiver,
    };
    let ended = async move {
        let mut text = Vec::new();
        let read = error.reader.take(MAX_ERROR).read_to_end(&mut text).await;
        read.map_err(|error| Error::internal("read a command's end", error))?;
        // Data that came before is in the pipes already; the connection has done its work.
        drop(session);
        outcome(&text)
    };
    Ok(Opened { streams, exit, ended })
}

/// Takes sizes, columns and rows, for as long as the stream is there.
fn resizer(mut stream: DuplexStream) -> mpsc::Sender<(u16, u16)> {
    let (sender, mut sizes) = mpsc::channel::<(u16, u16)>(4);
    tokio::spawn(async move {
        while let Some((width, height)) = sizes.recv().await {
            let size = serde_json::to_vec(&TerminalSize { width, height }).unwrap_or_default();
            if stream.write_all(&size).await.is_err() {
                return;
            }
        }
    });
    sender
}

/// A command's exit code from the `Status` that ends its error stream.
fn outcome(text: &[u8]) -> Result<i32, Error> {
    if text.is_empty() {
        return Err(Error::FailedPrecondition("the runtime ended the connection".into()));
    }
    let told = || String::from_utf8_lossy(text).into_owned();
    let status: serde_json::Value = serde_json::from_slice(text).map_err(|_| Error::CannotRun(told()))?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array();
    let code = causes.into_iter().flatten().find(|cause| cause["reason"] == "ExitCode");
    match code.and_then(|cause| cause["message"].as_str()?.parse().ok()) {
        Some(code) => Ok(code),
        None => Err(Error::CannotRun(status["message"].as_str().map_or_else(told, str::to_owned))),
    }
}

pub async fn port_forward(inner: &Inner, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>, Error> {
    let asked = proto::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: vec![port.into()] };
    let begun = inner.runtime.clone().port_forward(asked).await;
    let url = begun.map_err(|status| answer::failure("sandbox", sandbox, status))?.into_inner().url;
    let session = Session::client(dial::open(&url, PORT_FORWARD).await?);
    let port = port.to_string();
    let stream = async |kind: &str| {
        let headers = [(STREAM_TYPE, kind), ("port", &port), ("requestid", "0")];
        session.open(&headers).await.map_err(|error| Error::Network(format!("open a stream: {error}")))
    };
    let error = stream("error").await?;
    // We have nothing to say there, and the runtime waits for that.
    drop(error.writer);
    let data = stream("data").await?;
    let (failed, failure) = oneshot::channel();
    tokio::spawn(async move {
        let mut text = String::new();
        let _ = error.reader.take(MAX_ERROR).read_to_string(&mut text).await;
        let _ = failed.send(text);
    });
    Ok(Box::new(Forwarded {
        data: tokio::io::join(data.reader, data.writer),
        failure: Some(failure),
        _session: session,
    }))
}

/// A forwarded connection. The protocol has no word for success, so a refusal comes where the first bytes would.
struct Forwarded {
    data: tokio::io::Join<DuplexStream, DuplexStream>,
    failure: Option<oneshot::Receiver<String>>,
    _session: Session,
}

impl AsyncRead for Forwarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.data).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            return Poll::Ready(Ok(()));
        }
        // The end; whether it is one, the error stream tells.
        if let Some(failure) = &mut self.failure {
            let text = ready!(Pin::new(failure).poll(cx)).unwrap_or_default();
            self.failure = None;
            if !text.is_empty() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionRefused, text)));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.data).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.data).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.data).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn outcomes_are_read_from_the_status() {
        assert_eq!(outcome(br#"{"metadata":{},"status":"Success"}"#).unwrap(), 0);
        let failure = br#"{"status":"Failure","message":"command terminated","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(outcome(failure).unwrap(), 7);
        let failure = br#"{"status":"Failure","message":"no such program","reason":"InternalError"}"#;
        assert!(matches!(outcome(failure), Err(Error::CannotRun(message)) if message == "no such program"));
        assert!(outcome(b"").is_err());
    }
}
