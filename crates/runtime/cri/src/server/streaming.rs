//! The URLs of exec, attach and port-forward, and what is spoken there: SPDY/3.1 streams.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Shared;
use crate::Error;
use crate::runtime::{ExecRequest, Streams};
use crate::streaming::spdy::{Session, Stream};
use crate::streaming::{PORT_FORWARD, REMOTE_COMMAND, STREAM_TYPE, TerminalSize, UPGRADE, VERSION, status};

/// How long an issued URL is good.
const LIFETIME: Duration = Duration::from_secs(60);
/// Unused URLs at a time; more are an attack or a broken client.
const MAX_TICKETS: usize = 1000;
/// How long a client may take to open the streams that it asked for, and for a request's header.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a URL stands for.
pub enum Ticket {
    Exec { id: String, request: ExecRequest },
    Attach { id: String, request: ExecRequest },
    PortForward { sandbox: String },
}

/// Issued URLs, each good once.
pub struct Tickets {
    address: SocketAddr,
    open: Mutex<HashMap<String, (Instant, Ticket)>>,
}

impl Tickets {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, open: Mutex::default() }
    }

    pub fn issue(&self, ticket: Ticket) -> String {
        let kind = match &ticket {
            Ticket::Exec { .. } => "exec",
            Ticket::Attach { .. } => "attach",
            Ticket::PortForward { .. } => "portforward",
        };
        // 122 random bits: whoever has the token was given it.
        let token = uuid::Uuid::new_v4().simple().to_string();
        let mut open = self.open.lock();
        open.retain(|_, (issued, _)| issued.elapsed() < LIFETIME);
        if open.len() >= MAX_TICKETS
            && let Some(oldest) = open.iter().min_by_key(|(_, (issued, _))| *issued).map(|(token, _)| token.clone())
        {
            open.remove(&oldest);
        }
        open.insert(token.clone(), (Instant::now(), ticket));
        format!("http://{}/{kind}/{token}", self.address)
    }

    fn take(&self, path: &str) -> Option<Ticket> {
        let (_, token) = path.rsplit_once('/')?;
        let (issued, ticket) = self.open.lock().remove(token)?;
        (issued.elapsed() < LIFETIME).then_some(ticket)
    }
}

/// Answers until dropped.
pub async fn serve(listener: TcpListener, service: Shared) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a stream");
                tokio::time::sleep(super::PAUSE).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let service = service.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let service = service.clone();
                async move { Ok::<_, Infallible>(answer(&service, request)) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), answer).with_upgrades().await {
                tracing::debug!(%error, "a stream connection ended");
            }
        });
    }
}

fn answer(service: &Shared, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let refuse = |status: StatusCode, text: &str| {
        let mut answer = Response::new(Full::from(format!("{text}\n")));
        *answer.status_mut() = status;
        answer
    };
    let Some(ticket) = service.tickets.take(request.uri().path()) else {
        return refuse(StatusCode::NOT_FOUND, "this URL was used, is too old, or was never given out");
    };
    let protocol = match &ticket {
        Ticket::PortForward { .. } => PORT_FORWARD,
        _ => REMOTE_COMMAND,
    };
    if !asks_for(request.headers(), header::UPGRADE.as_str(), UPGRADE) {
        return refuse(StatusCode::BAD_REQUEST, "only an upgrade to SPDY/3.1 is answered here");
    }
    if !asks_for(request.headers(), VERSION, protocol) {
        return refuse(StatusCode::FORBIDDEN, &format!("the supported stream protocol is {protocol}"));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let service = service.clone();
    tokio::spawn(async move {
        let done = match upgrade.await {
            Ok(io) => run(&service, ticket, TokioIo::new(io)).await,
            Err(error) => Err(Error::internal("take over a connection", error)),
        };
        if let Err(error) = done {
            tracing::debug!(%error, "a stream ended");
        }
    });
    let answer = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, UPGRADE)
        .header(VERSION, protocol)
        .body(Full::default());
    answer.unwrap_or_else(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()))
}

fn asks_for(headers: &HeaderMap, name: &str, wanted: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(wanted))
}

async fn run(service: &Shared, ticket: Ticket, io: TokioIo<hyper::upgrade::Upgraded>) -> Result<(), Error> {
    let (session, mut opened) = Session::server(io);
    match ticket {
        Ticket::PortForward { sandbox } => {
            port_forward(service, &sandbox, &mut opened).await;
        }
        Ticket::Exec { id, request } => {
            let client = Client::collect(&request, &mut opened).await?;
            let streams = service.runtime.exec(&id, request).await;
            client.serve(streams, true).await;
        }
        Ticket::Attach { id, request } => {
            let client = Client::collect(&request, &mut opened).await?;
            let streams = service.runtime.attach(&id, request.stdin).await;
            client.serve(streams, false).await;
        }
    }
    session.finish().await;
    Ok(())
}

/// The client's streams of an exec or attach.
struct Client {
    error: Stream,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Client {
    /// Waits for the streams that were asked for.
    async fn collect(request: &ExecRequest, opened: &mut mpsc::Receiver<Stream>) -> Result<Self, Error> {
        let wanted = [
            ("error", true),
            ("stdin", request.stdin),
            ("stdout", request.stdout),
            ("stderr", request.stderr),
            ("resize", request.tty),
        ];
        let mut missing: Vec<&str> = wanted.into_iter().filter_map(|(kind, asked)| asked.then_some(kind)).collect();
        let mut found = HashMap::new();
        while !missing.is_empty() {
            let stream = tokio::time::timeout(PATIENCE, opened.recv()).await;
            let stream = stream.ok().flatten().ok_or_else(|| {
                Error::InvalidArgument(format!("the client never opened its streams {}", missing.join(", ")))
            })?;
            let kind = stream.headers.get(STREAM_TYPE).cloned().unwrap_or_default();
            missing.retain(|missing| *missing != kind);
            found.insert(kind, stream);
        }
        let error = found.remove("error").ok_or_else(|| Error::InvalidArgument("there is no error stream".into()))?;
        Ok(Self {
            error,
            stdin: found.remove("stdin"),
            stdout: found.remove("stdout"),
            stderr: found.remove("stderr"),
            resize: found.remove("resize"),
        })
    }

    /// Carries bytes until the process ended and its output was sent, then says how it ended.
    async fn serve(self, streams: Result<Streams, Error>, tell_code: bool) {
        let Self { mut error, stdin, stdout, stderr, resize } = self;
        let outcome = match streams {
            Err(failed) => Err(failed),
            Ok(streams) => {
                let mut inputs = JoinSet::new();
                if let (Some(from), Some(mut to)) = (stdin, streams.stdin) {
                    inputs.spawn(async move {
                        // The whole stream: clients take the end of our half for the program's, and say no more.
                        let mut from = from;
                        // A program that reads no more is no error of ours.
                        let _ = tokio::io::copy(&mut from.reader, &mut to).await;
                        let _ = to.shutdown().await;
                    });
                }
                if let (Some(from), Some(to)) = (resize, streams.resize) {
                    inputs.spawn(resizes(from, to));
                }
                let ((), (), exit) =
                    tokio::join!(output(streams.stdout, stdout), output(streams.stderr, stderr), streams.exit);
                exit.unwrap_or_else(|_| Err(Error::FailedPrecondition("the runtime lost the process".into())))
            }
        };
        let told = outcome.map(|code| if tell_code { code } else { 0 }).map_err(|error| error.to_string());
        // Whoever went away needs no outcome.
        let _ = error.writer.write_all(status(told).to_string().as_bytes()).await;
        let _ = error.writer.shutdown().await;
    }
}

async fn output(from: Option<crate::runtime::Reader>, to: Option<Stream>) {
    if let (Some(mut from), Some(mut to)) = (from, to) {
        let _ = tokio::io::copy(&mut from, &mut to.writer).await;
        let _ = to.writer.shutdown().await;
    }
}

/// Sizes come as JSON documents, one after another.
async fn resizes(mut from: Stream, to: mpsc::Sender<(u16, u16)>) {
    let (mut text, mut block) = (Vec::new(), [0; 512]);
    while let Ok(count @ 1..) = from.reader.read(&mut block).await {
        text.extend_from_slice(&block[..count]);
        let mut documents = serde_json::Deserializer::from_slice(&text).into_iter::<TerminalSize>();
        while let Some(Ok(size)) = documents.next() {
            if to.send((size.width, size.height)).await.is_err() {
                return;
            }
        }
        let used = documents.byte_offset();
        text.drain(..used);
        if text.len() > block.len() {
            return;
        }
    }
}

/// Connections into a sandbox until the client went away: each is a pair of streams, `error` and `data`, of one request.
async fn port_forward(service: &Shared, sandbox: &str, opened: &mut mpsc::Receiver<Stream>) {
    let mut tasks = JoinSet::new();
    let mut errors: HashMap<String, Stream> = HashMap::new();
    while let Some(stream) = opened.recv().await {
        while tasks.try_join_next().is_some() {}
        let header = |name: &str| stream.headers.get(name).cloned().unwrap_or_default();
        let request = header("requestid");
        match header(STREAM_TYPE).as_str() {
            "error" => drop(errors.insert(request, stream)),
            "data" => {
                let (port, error) = (header("port").parse::<u16>(), errors.remove(&request));
                if let (Ok(port), Some(error)) = (port, error) {
                    tasks.spawn(forward(service.clone(), sandbox.to_owned(), port, stream, error));
                }
            }
            _ => {}
        }
    }
}

async fn forward(service: Shared, sandbox: String, port: u16, data: Stream, mut error: Stream) {
    match service.runtime.port_forward(&sandbox, port).await {
        Ok(mut connection) => {
            let mut client = tokio::io::join(data.reader, data.writer);
            let _ = tokio::io::copy_bidirectional(&mut client, &mut connection).await;
        }
        Err(failed) => {
            let text = format!("error forwarding port {port} to pod {sandbox}: {failed}");
            let _ = error.writer.write_all(text.as_bytes()).await;
        }
    }
    let _ = error.writer.shutdown().await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_url_is_good_once() {
        let tickets = Tickets::new(([127, 0, 0, 1], 1234).into());
        let url = tickets.issue(Ticket::PortForward { sandbox: "s".into() });
        let path = url.strip_prefix("http://127.0.0.1:1234").unwrap();
        assert!(tickets.take("/portforward/guess").is_none());
        assert!(matches!(tickets.take(path), Some(Ticket::PortForward { sandbox }) if sandbox == "s"));
        assert!(tickets.take(path).is_none());
    }
}
