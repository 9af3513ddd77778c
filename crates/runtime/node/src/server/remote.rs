//! Exec and attach: a process' streams as channels of one WebSocket.

use dhow_cri::runtime::{ExecRequest, Reader, Streams};
use dhow_cri::streaming::channel::{CLOSE, ERROR, RESIZE, STDERR, STDIN, STDOUT, V5};
use dhow_cri::streaming::{TerminalSize, status};
use http::Request;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::socket::{self, Receiver, Sender};
use super::{Answer, Refusal, remote_spdy};

/// The first version: its error channel has a text, and nothing where all went well.
const V1: &str = "channel.k8s.io";
pub const PROTOCOLS: [&str; 3] = [V5, "v4.channel.k8s.io", V1];

/// Reads the query of exec and attach, in the words of the public API or of the kubelet's own.
pub fn request(query: &[(String, String)]) -> ExecRequest {
    let is = |names: [&str; 2]| {
        let mut found = query.iter().filter(|(name, _)| names.contains(&name.as_str()));
        found.any(|(_, value)| matches!(value.as_str(), "true" | "1"))
    };
    ExecRequest {
        command: query.iter().filter(|(name, _)| name == "command").map(|(_, value)| value.clone()).collect(),
        tty: is(["tty", "tty"]),
        stdin: is(["stdin", "input"]),
        stdout: is(["stdout", "output"]),
        stderr: is(["stderr", "error"]),
    }
}

/// How a client wants the streams carried.
pub enum Way {
    Socket(socket::Handshake),
    Spdy(socket::Spdy),
}

impl Way {
    pub fn of(request: &mut Request<Incoming>) -> Result<Self, Refusal> {
        match socket::Spdy::accept(request, remote_spdy::PROTOCOL)? {
            Some(upgrade) => Ok(Self::Spdy(upgrade)),
            None => Ok(Self::Socket(socket::Handshake::accept(request, &PROTOCOLS)?)),
        }
    }

    /// Splits off the answer to be returned; the streams that `begin` gives are carried once it has been sent. In a socket the
    /// process begins only then: clients make room for its output when the answer comes, and some lose what is there before.
    pub async fn run(
        self,
        asked: ExecRequest,
        begin: impl Future<Output = Result<Streams, dhow_cri::Error>> + Send + 'static,
    ) -> Result<Answer, Refusal> {
        match self {
            Self::Socket(handshake) => {
                let protocol = handshake.protocol;
                Ok(handshake.run(move |to, from| async move {
                    match begin.await {
                        Ok(streams) => serve(asked, streams, protocol, to, from).await,
                        Err(error) => finish(protocol, Err(error.to_string()), &to).await,
                    }
                }))
            }
            Self::Spdy(upgrade) => {
                let streams = begin.await?;
                Ok(upgrade.run(|io| async move {
                    if let Err(error) = remote_spdy::serve(&asked, streams, io).await {
                        tracing::debug!(%error, "a command's streams ended");
                    }
                }))
            }
        }
    }
}

/// Says how it ended, in the protocol's words, and that nothing follows.
async fn finish(protocol: &str, exit: Result<i32, String>, to: &Sender) {
    match (protocol, exit) {
        (V1, Ok(0)) => {}
        (V1, exit) => {
            let status = status(exit);
            to.send(ERROR, status["message"].as_str().unwrap_or_default().as_bytes()).await;
        }
        (_, exit) => drop(to.send(ERROR, status(exit).to_string().as_bytes()).await),
    }
    to.close().await;
}

async fn output(reader: Option<Reader>, channel: u8, to: &Sender) {
    let Some(mut reader) = reader else { return };
    let mut block = vec![0; 32 * 1024];
    while let Ok(count) = reader.read(&mut block).await {
        if count == 0 || !to.send(channel, &block[..count]).await {
            return;
        }
    }
}

async fn input(
    mut stdin: Option<dhow_cri::runtime::Writer>,
    resize: Option<tokio::sync::mpsc::Sender<(u16, u16)>>,
    v5: bool,
    from: &mut Receiver,
) {
    while let Some((channel, data)) = socket::next(from).await {
        match channel {
            STDIN => {
                if let Some(writer) = &mut stdin
                    && (writer.write_all(&data).await.is_err() || writer.flush().await.is_err())
                {
                    stdin = None;
                }
            }
            RESIZE => {
                if let (Some(resize), Ok(size)) = (&resize, serde_json::from_slice::<TerminalSize>(&data)) {
                    let _ = resize.send((size.width, size.height)).await;
                }
            }
            CLOSE if v5 && data.first() == Some(&STDIN) => {
                if let Some(mut writer) = stdin.take() {
                    let _ = writer.shutdown().await;
                }
            }
            _ => {}
        }
    }
}

/// Runs until the process ended and its output was sent, or the client went away.
async fn serve(asked: ExecRequest, streams: Streams, protocol: &str, to: Sender, mut from: Receiver) {
    let Streams { stdin, stdout, stderr, resize, exit } = streams;
    // An empty frame tells the client that the process is there.
    let first = if asked.stdout {
        STDOUT
    } else if asked.stderr && !asked.tty {
        STDERR
    } else {
        ERROR
    };
    to.send(first, &[]).await;
    let stdin = stdin.filter(|_| asked.stdin);
    let end = async {
        let out = output(stdout.filter(|_| asked.stdout), STDOUT, &to);
        let err = output(stderr.filter(|_| asked.stderr && !asked.tty), STDERR, &to);
        let (exit, (), ()) = tokio::join!(exit, out, err);
        let exit = match exit {
            Ok(exit) => exit.map_err(|error| error.to_string()),
            Err(_) => Err("the runtime lost the process".to_owned()),
        };
        finish(protocol, exit, &to).await;
    };
    tokio::select! {
        () = end => {}
        () = input(stdin, resize, protocol == V5, &mut from) => {}
    }
}
