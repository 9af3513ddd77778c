//! `dhow exec`: runs a command in a container, by the protocol `v5.channel.k8s.io` over a WebSocket. The command's exit code is
//! that of `dhow`.
#![allow(clippy::print_stderr)]

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use dhow_client::{Client, HttpsConfig, ListParams};
use dhow_cri::streaming::channel::{CLOSE, ERROR, RESIZE, STDERR, STDIN, STDOUT, V5};
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, header};
use k8s_openapi::api::core::v1::Pod;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::{kubeconfig_path, logs};
use crate::cli::ExecArgs;
use crate::exit::{ChildFailed, NotFound};

type Socket = WebSocketStream<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>;

pub async fn run(args: ExecArgs) -> Result<()> {
    let (file, context) = kubeconfig_path(&args.connect)?;
    let config = HttpsConfig::from_kubeconfig(&file, context).with_context(|| format!("use {}", file.display()))?;
    let client = Client::https(config.clone())?;
    let pod = pod(&client, &args).await?;
    let terminal = args.tty && std::io::stdin().is_terminal();
    if args.tty && !terminal {
        eprintln!("warning: standard input is no terminal, so the command gets none");
    }
    let socket = open(&config, &path(&args, &pod, terminal)).await?;
    let raw = if terminal { Some(RawTerminal::enter()?) } else { None };
    let ended = attend(socket, args.stdin, terminal).await;
    drop(raw);
    outcome(&ended?)
}

/// The named pod, or one of the workload that runs and stays.
async fn pod(client: &Client, args: &ExecArgs) -> Result<Pod> {
    let scope: ListParams = logs::scope(client, &args.namespace, &args.target).await?;
    let pods = client.list::<Pod>(Some(&args.namespace), &scope).await?.items;
    let runs = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    let (going, staying): (Vec<Pod>, Vec<Pod>) =
        pods.into_iter().filter(runs).partition(|pod| pod.metadata.deletion_timestamp.is_some());
    match staying.into_iter().chain(going).next() {
        Some(pod) => Ok(pod),
        None => bail!(NotFound(format!("no pod of {} runs", args.target))),
    }
}

/// As kubectl chooses: the one named, or that of the annotation, or the first.
fn container<'a>(args: &'a ExecArgs, pod: &'a Pod) -> Option<&'a str> {
    let annotations = pod.metadata.annotations.as_ref();
    let annotated = annotations.and_then(|all| all.get("kubectl.kubernetes.io/default-container")).map(String::as_str);
    let first = pod.spec.as_ref().and_then(|spec| spec.containers.first()).map(|container| container.name.as_str());
    args.container.as_deref().or(annotated).or(first)
}

fn path(args: &ExecArgs, pod: &Pod, terminal: bool) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    if let Some(container) = container(args, pod) {
        query.append_pair("container", container);
    }
    for word in &args.command {
        query.append_pair("command", word);
    }
    // With a terminal, both outputs are one.
    let streams = [("stdin", args.stdin), ("stdout", true), ("stderr", !terminal), ("tty", terminal)];
    for (name, wanted) in streams {
        query.append_pair(name, if wanted { "true" } else { "false" });
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    format!("/api/v1/namespaces/{}/pods/{name}/exec?{}", args.namespace, query.finish())
}

async fn open(config: &HttpsConfig, path: &str) -> Result<Socket> {
    let (stream, authorization) = config.connect().await?;
    let address = config.server.replacen("https://", "wss://", 1);
    let mut request =
        format!("{}{path}", address.trim_end_matches('/')).into_client_request().context("make the request")?;
    request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(V5));
    if let Some(value) = authorization {
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    match client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(answer)) => {
            let body = answer.body().clone().unwrap_or_default();
            Err(dhow_client::status_error(answer.status().as_u16(), &body).into())
        }
        Err(error) => Err(error).context("open the command's streams"),
    }
}

/// Carries the streams until the command ended; returns its `Status`.
async fn attend(socket: Socket, stdin: bool, terminal: bool) -> Result<Value> {
    let (mut sink, mut frames) = socket.split();
    let mut input = tokio::io::stdin();
    let mut resized = signal(SignalKind::window_change()).context("listen for SIGWINCH")?;
    let (mut reading, mut piece) = (stdin, vec![0_u8; 16 << 10]);
    if terminal {
        tell_size(&mut sink).await?;
    }
    loop {
        tokio::select! {
            frame = frames.next() => {
                let data = match frame {
                    Some(Ok(Message::Binary(data))) => data,
                    Some(Ok(Message::Close(_))) | None => bail!("the connection ended before the command did"),
                    Some(Ok(_)) => continue,
                    Some(Err(error)) => return Err(error).context("read what the command says"),
                };
                let Some((channel, bytes)) = data.split_first() else { continue };
                match *channel {
                    STDOUT => write(&mut std::io::stdout(), bytes)?,
                    STDERR => write(&mut std::io::stderr(), bytes)?,
                    ERROR => return serde_json::from_slice(bytes).context("read how the command ended"),
                    _ => {}
                }
            }
            count = input.read(&mut piece), if reading => {
                let count = count.context("read standard input")?;
                reading = count > 0;
                let frame = if reading { framed(STDIN, &piece[..count]) } else { framed(CLOSE, &[STDIN]) };
                // A command that ended reads no more; how it ended is on its way.
                reading &= sink.send(frame).await.is_ok();
            }
            _ = resized.recv(), if terminal => tell_size(&mut sink).await?,
        }
    }
}

fn framed(channel: u8, bytes: &[u8]) -> Message {
    Message::Binary(Bytes::from([&[channel], bytes].concat()))
}

async fn tell_size(sink: &mut SplitSink<Socket, Message>) -> Result<()> {
    let size = tcgetwinsize(std::io::stdin()).context("ask for the terminal's size")?;
    let text = serde_json::json!({"Width": size.ws_col, "Height": size.ws_row}).to_string();
    sink.send(framed(RESIZE, text.as_bytes())).await.context("tell the terminal's size")
}

fn write(to: &mut impl Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes).and_then(|()| to.flush()).context("write what the command says")
}

/// What a command's `Status` means for us: its exit code, by upstream's `ExitCode` cause.
fn outcome(status: &Value) -> Result<()> {
    if status["status"] == "Success" {
        return Ok(());
    }
    let causes = status["details"]["causes"].as_array();
    let code = causes.into_iter().flatten().find(|cause| cause["reason"] == "ExitCode");
    match code.and_then(|cause| cause["message"].as_str()?.parse::<u8>().ok()) {
        Some(code) => bail!(ChildFailed(code)),
        None => bail!("{}", status["message"].as_str().unwrap_or("the command failed")),
    }
}

/// The terminal without echo and line editing; as it was once dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd()).context("read the terminal's modes")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).context("set the terminal's modes")?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &self.0) {
            eprintln!("warning: the terminal stays as it is: {error}; `reset` helps");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_command_s_exit_code_is_ours() {
        assert!(outcome(&json!({"status": "Success"})).is_ok());
        let failed = json!({"status": "Failure", "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "42"}]}});
        assert_eq!(outcome(&failed).unwrap_err().downcast_ref::<ChildFailed>().unwrap().0, 42);
        let broken = json!({"status": "Failure", "message": "no such file"});
        assert_eq!(outcome(&broken).unwrap_err().to_string(), "no such file");
    }
}
