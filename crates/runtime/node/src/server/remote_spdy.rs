//! Exec and attach over SPDY/3.1, as kubectl before 1.31 and many programs speak them: one stream each for errors, input,
//! outputs and the terminal's size.

use std::collections::HashMap;
use std::io::Error;
use std::time::Duration;

use dhow_cri::runtime::{ExecRequest, Reader, Streams, Writer};
use dhow_cri::streaming::frame::{
    self, BLOCK, FIN, Frame, GOAWAY, HEADERS, Inflate, PING, PROTOCOL_ERROR, RST_STREAM, SYN_STREAM, broken,
};
use dhow_cri::streaming::{STREAM_TYPE, TerminalSize, status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, mpsc};

/// What is spoken on the streams.
pub use dhow_cri::streaming::REMOTE_COMMAND as PROTOCOL;

/// How long the client may take to open its streams, as upstream's kubelet waits.
const OPENING: Duration = Duration::from_secs(30);
/// Sizes are a few dozen bytes; a client that sends more without an end is broken.
const MAX_SIZE: usize = 4096;

/// The streams that a client opens for what it asked.
fn wanted(asked: &ExecRequest) -> Vec<&'static str> {
    let kinds = [
        ("error", true),
        ("stdin", asked.stdin),
        ("stdout", asked.stdout),
        ("stderr", asked.stderr && !asked.tty),
        ("resize", asked.tty),
    ];
    kinds.into_iter().filter(|(_, wanted)| *wanted).map(|(kind, _)| kind).collect()
}

/// What comes from the client.
struct Incoming<R> {
    reader: R,
    inflate: Inflate,
    /// Streams that are wanted and open, by what they are for.
    open: HashMap<&'static str, u32>,
    wanted: Vec<&'static str>,
    stdin: Option<Writer>,
    resize: Option<mpsc::Sender<(u16, u16)>>,
    /// Bytes of a size that is not whole yet.
    size: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// Takes one frame; false at the connection's end.
    async fn step<W: AsyncWrite + Unpin>(&mut self, wire: &Mutex<frame::Writer<W>>) -> Result<bool, Error> {
        let Some(frame) = frame::read(&mut self.reader).await? else { return Ok(false) };
        match frame {
            Frame::Data { stream, end, payload } => self.data(stream, end, &payload).await,
            Frame::Control { kind: SYN_STREAM, stream, payload, .. } => {
                let block = payload.get(10..).ok_or_else(|| broken("short SYN_STREAM"))?;
                let headers = self.inflate.headers(block)?;
                let kind = headers.get(STREAM_TYPE).map(String::as_str).unwrap_or_default();
                let kind =
                    self.wanted.iter().copied().find(|wanted| *wanted == kind && !self.open.contains_key(wanted));
                let mut wire = wire.lock().await;
                match kind {
                    Some(kind) => {
                        self.open.insert(kind, stream);
                        wire.reply(stream).await?;
                    }
                    None => wire.reset(stream, PROTOCOL_ERROR).await?,
                }
            }
            // Read for the sake of the compression's state only.
            Frame::Control { kind: HEADERS, payload, .. } => {
                self.inflate.headers(payload.get(4..).ok_or_else(|| broken("short HEADERS"))?)?;
            }
            Frame::Control { kind: RST_STREAM, stream, .. } if self.open.get("stdin") == Some(&stream) => {
                self.stdin = None;
            }
            Frame::Control { kind: PING, payload, .. } => wire.lock().await.control(PING, &payload).await?,
            Frame::Control { kind: GOAWAY, .. } => return Ok(false),
            Frame::Control { .. } => {}
        }
        Ok(true)
    }

    async fn data(&mut self, stream: u32, end: bool, payload: &[u8]) {
        if self.open.get("stdin") == Some(&stream) {
            if let Some(writer) = &mut self.stdin
                && !payload.is_empty()
                && (writer.write_all(payload).await.is_err() || writer.flush().await.is_err())
            {
                self.stdin = None;
            }
            if end && let Some(mut writer) = self.stdin.take() {
                let _ = writer.shutdown().await;
            }
        } else if self.open.get("resize") == Some(&stream) {
            self.size.extend_from_slice(payload);
            let mut sizes = serde_json::Deserializer::from_slice(&self.size).into_iter::<TerminalSize>();
            let whole: Vec<TerminalSize> = sizes.by_ref().map_while(Result::ok).collect();
            let used = sizes.byte_offset();
            self.size.drain(..used);
            if self.size.len() > MAX_SIZE {
                self.size.clear();
            }
            // Only the last one counts.
            if let (Some(size), Some(resize)) = (whole.last(), &self.resize) {
                let _ = resize.send((size.width, size.height)).await;
            }
        }
    }
}

/// Copies until the process closed its output; then the stream ends.
async fn output<W: AsyncWrite + Unpin>(
    reader: Option<Reader>,
    stream: Option<&u32>,
    wire: &Mutex<frame::Writer<W>>,
) -> Result<(), Error> {
    let Some(stream) = stream else { return Ok(()) };
    if let Some(mut reader) = reader {
        let mut block = vec![0; BLOCK];
        while let Ok(count) = reader.read(&mut block).await {
            if count == 0 {
                break;
            }
            wire.lock().await.data(*stream, 0, &block[..count]).await?;
        }
    }
    wire.lock().await.data(*stream, FIN, &[]).await
}

/// Runs until the process ended and its output was sent, or the client went away.
pub async fn serve<S>(asked: &ExecRequest, streams: Streams, io: S) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let Streams { stdin, stdout, stderr, resize, exit } = streams;
    let (reader, writer) = tokio::io::split(io);
    let wire = Mutex::new(frame::Writer::new(writer));
    let mut incoming = Incoming {
        reader,
        inflate: Inflate::default(),
        open: HashMap::new(),
        wanted: wanted(asked),
        stdin,
        resize,
        size: Vec::new(),
    };
    let opening = async {
        while incoming.open.len() < incoming.wanted.len() {
            if !incoming.step(&wire).await? {
                return Err(broken("the client went away before it had opened its streams"));
            }
        }
        Ok(())
    };
    tokio::time::timeout(OPENING, opening).await.map_err(|_| broken("the client did not open its streams"))??;
    let open = incoming.open.clone();
    let end = async {
        let out = output(stdout, open.get("stdout"), &wire);
        let err = output(stderr, open.get("stderr"), &wire);
        let (exit, out, err) = tokio::join!(exit, out, err);
        let exit = match exit {
            Ok(exit) => exit.map_err(|error| error.to_string()),
            Err(_) => Err("the runtime lost the process".to_owned()),
        };
        let mut wire = wire.lock().await;
        if let Some(error) = open.get("error") {
            wire.data(*error, FIN, status(exit).to_string().as_bytes()).await?;
        }
        out.and(err)?;
        wire.shutdown().await
    };
    let input = async {
        while incoming.step(&wire).await? {}
        Ok(())
    };
    tokio::select! {
        result = end => result,
        result = input => result,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::FakeRuntime;
    use dhow_cri::Runtime;

    struct Peer {
        io: tokio::io::DuplexStream,
    }

    impl Peer {
        async fn next(&mut self) -> (u32, u8, Vec<u8>) {
            let head = (self.io.read_u32().await.unwrap(), self.io.read_u32().await.unwrap());
            let mut payload = vec![0; usize::try_from(head.1 & 0x00ff_ffff).unwrap()];
            self.io.read_exact(&mut payload).await.unwrap();
            (head.0, u8::try_from(head.1 >> 24).unwrap(), payload)
        }
    }

    async fn start(asked: ExecRequest) -> (Peer, tokio::task::JoinHandle<Result<(), Error>>) {
        let (near, io) = tokio::io::duplex(64 * 1024);
        let streams = FakeRuntime::default().exec("c", asked.clone()).await.unwrap();
        (Peer { io }, tokio::spawn(async move { serve(&asked, streams, near).await }))
    }

    #[tokio::test]
    async fn a_command_has_its_streams_and_its_exit_code() {
        let asked = ExecRequest {
            command: vec!["sh".into(), "-c".into()],
            tty: false,
            stdin: true,
            stdout: true,
            stderr: true,
        };
        let (peer, serving) = start(asked).await;
        // One connection, one compression: the writer lives as long.
        let (mut reader, writer) = tokio::io::split(peer.io);
        let mut wire = frame::Writer::new(writer);
        for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
            wire.open(stream, &[(STREAM_TYPE, kind)]).await.unwrap();
        }
        // A second stream of a kind, and one that nobody knows, are refused.
        wire.open(9, &[(STREAM_TYPE, "stdin")]).await.unwrap();
        wire.data(3, 0, b"hello ").await.unwrap();
        wire.data(3, FIN, &[]).await.unwrap();
        let mut said: HashMap<u32, String> = HashMap::new();
        let (mut replies, mut resets) = (0, 0);
        while let Ok(Some(frame)) = frame::read(&mut reader).await {
            match frame {
                Frame::Data { stream, payload, .. } => {
                    said.entry(stream).or_default().push_str(std::str::from_utf8(&payload).unwrap());
                }
                Frame::Control { kind: frame::SYN_REPLY, .. } => replies += 1,
                Frame::Control { kind: RST_STREAM, .. } => resets += 1,
                Frame::Control { .. } => {}
            }
        }
        assert_eq!((replies, resets), (4, 1));
        assert!(said[&5].starts_with("hello "), "{said:?}");
        assert_eq!(said[&7], "sh -c");
        let status: serde_json::Value = serde_json::from_str(&said[&1]).unwrap();
        assert_eq!(status["details"]["causes"][0], serde_json::json!({"reason": "ExitCode", "message": "7"}));
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn sizes_may_come_in_pieces() {
        let asked = ExecRequest { command: vec!["top".into()], tty: true, stdin: true, stdout: true, stderr: true };
        assert_eq!(wanted(&asked), ["error", "stdin", "stdout", "resize"]);
        let (mut peer, _serving) = start(asked).await;
        {
            let mut wire = frame::Writer::new(&mut peer.io);
            for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "resize")] {
                wire.open(stream, &[(STREAM_TYPE, kind)]).await.unwrap();
            }
            wire.data(7, 0, br#"{"Width":80,"#).await.unwrap();
            wire.data(7, 0, b"\"Height\":24}\n").await.unwrap();
            wire.data(3, FIN, b"x ").await.unwrap();
        }
        loop {
            let (stream, _, payload) = peer.next().await;
            if stream == 5 && String::from_utf8_lossy(&payload).contains("[80x24]") {
                break;
            }
        }
    }
}
