//! Port-forward as kubectl speaks it: SPDY/3.1 streams, inside a WebSocket or on the upgraded connection itself.

use std::collections::HashMap;
use std::io::{Error, ErrorKind};
use std::sync::Arc;

use bytes::Bytes;
use dhow_cri::Runtime;
use flate2::{Decompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use super::socket::{self, Receiver, Sender};

/// The WebSocket subprotocol that carries SPDY.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// What is spoken on the streams.
pub const PROTOCOL: &str = "portforward.k8s.io";

const BLOCK: usize = 32 * 1024;
const MAX_FRAME: usize = 1024 * 1024;
const MAX_HEADERS: usize = 16 * 1024;
const MAX_STREAMS: usize = 2000;
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

const PROTOCOL_ERROR: u32 = 1;

/// The words both sides' compression begins with, as SPDY/3 lays down; each is preceded by its length.
const WORDS: &str = "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|\
    accept-ranges|age|allow|authorization|cache-control|connection|content-base|content-encoding|content-language|\
    content-length|content-location|content-md5|content-range|content-type|date|etag|expect|expires|from|host|\
    if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|location|max-forwards|pragma|\
    proxy-authenticate|proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|upgrade|\
    user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|set-cookie|\
    keep-alive|origin";
/// And the text that follows them.
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug \
    Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
    charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut all = Vec::with_capacity(1423);
    for word in WORDS.split('|') {
        all.extend_from_slice(&u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        all.extend_from_slice(word.as_bytes());
    }
    all.extend_from_slice(TEXT.as_bytes());
    all
}

fn broken(message: &str) -> Error {
    Error::new(ErrorKind::InvalidData, message)
}

/// The client's headers; one compression context for all of a connection's frames.
struct Inflate(Decompress);

impl Inflate {
    fn headers(&mut self, mut input: &[u8]) -> Result<HashMap<String, String>, Error> {
        let mut plain = Vec::with_capacity(MAX_HEADERS);
        while !input.is_empty() {
            let before = self.0.total_in();
            let result = self.0.decompress_vec(input, &mut plain, FlushDecompress::Sync);
            let used = usize::try_from(self.0.total_in() - before).map_err(|_| broken("header block too long"))?;
            input = &input[used..];
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(Error::other)?;
                }
                Err(error) => return Err(Error::other(error)),
                Ok(Status::StreamEnd) => break,
                Ok(_) if used == 0 => return Err(broken("header block too long")),
                Ok(_) => {}
            }
        }
        pairs(&plain).ok_or_else(|| broken("malformed header block"))
    }
}

fn pairs(plain: &[u8]) -> Option<HashMap<String, String>> {
    fn number(from: &mut &[u8]) -> Option<usize> {
        let (head, rest) = from.split_first_chunk::<4>()?;
        *from = rest;
        usize::try_from(u32::from_be_bytes(*head)).ok()
    }
    fn text(from: &mut &[u8]) -> Option<String> {
        let length = number(from)?;
        let (head, rest) = from.split_at_checked(length)?;
        *from = rest;
        String::from_utf8(head.to_vec()).ok()
    }
    let mut rest = plain;
    let count = number(&mut rest)?;
    let mut all = HashMap::new();
    for _ in 0..count {
        all.insert(text(&mut rest)?.to_ascii_lowercase(), text(&mut rest)?);
    }
    Some(all)
}

/// The sending half of a connection, shared by its streams.
struct Wire<W> {
    out: W,
    /// Whether the header compression's own header has been sent.
    begun: bool,
}

impl<W: AsyncWrite + Unpin> Wire<W> {
    async fn put(&mut self, mut frame: Vec<u8>, payload: &[u8]) -> Result<(), Error> {
        frame.extend_from_slice(payload);
        self.out.write_all(&frame).await?;
        self.out.flush().await
    }

    async fn control(&mut self, kind: u16, payload: &[u8]) -> Result<(), Error> {
        let mut frame = vec![0x80, 3];
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&u32::try_from(payload.len()).unwrap_or_default().to_be_bytes());
        self.put(frame, payload).await
    }

    async fn data(&mut self, stream: u32, flags: u8, payload: &[u8]) -> Result<(), Error> {
        let mut frame = stream.to_be_bytes().to_vec();
        // Blocks are far below 2^24, so the flags have the length's highest byte to themselves.
        let length = u32::try_from(payload.len()).unwrap_or_default() | u32::from(flags) << 24;
        frame.extend_from_slice(&length.to_be_bytes());
        self.put(frame, payload).await
    }

    /// Accepts a stream, with no headers: a stored block of a zero count, then an empty one that flushes it.
    async fn reply(&mut self, stream: u32) -> Result<(), Error> {
        let mut payload = stream.to_be_bytes().to_vec();
        if !std::mem::replace(&mut self.begun, true) {
            payload.extend_from_slice(&[0x78, 0x01]);
        }
        payload.extend_from_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        self.control(SYN_REPLY, &payload).await
    }

    async fn reset(&mut self, stream: u32) -> Result<(), Error> {
        self.control(RST_STREAM, &[stream.to_be_bytes(), PROTOCOL_ERROR.to_be_bytes()].concat()).await
    }
}

type Shared<W> = Arc<Mutex<Wire<W>>>;

/// One forwarded connection and the streams it has.
struct Forward {
    port: u16,
    data: u32,
    error: u32,
}

impl Forward {
    async fn run<W: AsyncWrite + Unpin>(
        self,
        runtime: Arc<dyn Runtime>,
        sandbox: String,
        wire: Shared<W>,
        mut input: mpsc::Receiver<Bytes>,
    ) -> Result<(), Error> {
        let stream = match runtime.port_forward(&sandbox, self.port).await {
            Ok(stream) => stream,
            Err(error) => {
                let message = format!("error forwarding port {} to pod {sandbox}: {error}", self.port);
                let mut wire = wire.lock().await;
                wire.data(self.error, FIN, message.as_bytes()).await?;
                return wire.data(self.data, FIN, &[]).await;
            }
        };
        let (mut reader, mut writer) = tokio::io::split(stream);
        let out = async {
            let mut block = vec![0; BLOCK];
            while let Ok(count) = reader.read(&mut block).await {
                if count == 0 {
                    break;
                }
                wire.lock().await.data(self.data, 0, &block[..count]).await?;
            }
            let mut wire = wire.lock().await;
            wire.data(self.data, FIN, &[]).await?;
            wire.data(self.error, FIN, &[]).await
        };
        let put = async {
            while let Some(bytes) = input.recv().await {
                if writer.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            let _ = writer.shutdown().await;
            // The pod may have more to say; its end is the connection's.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            result = out => result,
            () = put => Ok(()),
        }
    }
}

struct Input {
    sender: Option<mpsc::Sender<Bytes>>,
    task: AbortHandle,
}

/// Runs until the client went away; its connections into the pod end with it.
pub async fn serve<S>(runtime: Arc<dyn Runtime>, sandbox: String, io: S) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reader, writer) = tokio::io::split(io);
    let wire = Arc::new(Mutex::new(Wire { out: writer, begun: false }));
    let mut inflate = Inflate(Decompress::new(true));
    let mut tasks = JoinSet::new();
    let mut inputs: HashMap<u32, Input> = HashMap::new();
    // Error streams by the request they belong to, until the request's data stream comes.
    let mut errors: HashMap<String, u32> = HashMap::new();
    loop {
        let mut head = [0; 8];
        match reader.read_exact(&mut head).await {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            other => drop(other?),
        }
        let [a, b, c, d, flags, lengths @ ..] = head;
        let length = usize::from(lengths[0]) << 16 | usize::from(lengths[1]) << 8 | usize::from(lengths[2]);
        if length > MAX_FRAME {
            return Err(broken("frame too long"));
        }
        let mut payload = vec![0; length];
        reader.read_exact(&mut payload).await?;
        while tasks.try_join_next().is_some() {}
        inputs.retain(|_, input| !input.task.is_finished());
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            let Some(input) = inputs.get_mut(&stream) else { continue };
            if let Some(sender) = input.sender.as_ref().filter(|_| length > 0)
                && sender.send(payload.into()).await.is_err()
            {
                input.sender = None;
            }
            if flags & FIN != 0 {
                input.sender = None;
            }
            continue;
        }
        let stream = payload.first_chunk::<4>().map_or(0, |id| u32::from_be_bytes(*id) & 0x7fff_ffff);
        match u16::from_be_bytes([c, d]) {
            SYN_STREAM => {
                let block = payload.get(10..).ok_or_else(|| broken("short SYN_STREAM"))?;
                let headers = inflate.headers(block)?;
                let header = |name: &str| headers.get(name).map(String::as_str).unwrap_or_default();
                let port = header("port").parse().ok().filter(|port: &u16| *port > 0);
                let request = header("requestid").to_owned();
                let full = errors.len() + inputs.len() >= MAX_STREAMS;
                let mut out = wire.lock().await;
                match (header("streamtype"), port) {
                    ("error", Some(_)) if !full => {
                        out.reply(stream).await?;
                        errors.insert(request, stream);
                    }
                    ("data", Some(port)) if !full && errors.contains_key(&request) => {
                        out.reply(stream).await?;
                        let error = errors.remove(&request).unwrap_or_default();
                        let (sender, input) = mpsc::channel(64);
                        let forward = Forward { port, data: stream, error };
                        let task = forward.run(Arc::clone(&runtime), sandbox.clone(), Arc::clone(&wire), input);
                        let task = tasks.spawn(task);
                        inputs.insert(stream, Input { sender: Some(sender), task });
                    }
                    _ => out.reset(stream).await?,
                }
            }
            // Read for the sake of the compression's state only.
            HEADERS => drop(inflate.headers(payload.get(4..).ok_or_else(|| broken("short HEADERS"))?)?),
            RST_STREAM => {
                errors.retain(|_, error| *error != stream);
                if let Some(input) = inputs.remove(&stream) {
                    input.task.abort();
                }
            }
            PING => wire.lock().await.control(PING, &payload).await?,
            GOAWAY => return Ok(()),
            _ => {}
        }
    }
}

/// The same inside a WebSocket, whose frames are pieces of the byte stream.
pub async fn tunnel(runtime: Arc<dyn Runtime>, sandbox: String, to: Sender, mut from: Receiver) {
    let (near, far) = tokio::io::duplex(2 * BLOCK);
    let (mut reader, mut writer) = tokio::io::split(far);
    let session = serve(runtime, sandbox, near);
    let put = async {
        while let Some(bytes) = socket::next_raw(&mut from).await {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let out = async {
        let mut block = vec![0; BLOCK];
        while let Ok(count) = reader.read(&mut block).await {
            if count == 0 || !to.send_raw(Bytes::copy_from_slice(&block[..count])).await {
                return;
            }
        }
    };
    tokio::select! {
        result = session => if let Err(error) = result { tracing::debug!(%error, "port-forward ended") },
        () = put => {}
        () = out => {}
    }
    to.close().await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::FakeRuntime;

    /// A client's side: frames as they come, and streams opened with compressed headers.
    struct Peer {
        io: tokio::io::DuplexStream,
        deflate: flate2::Compress,
    }

    impl Peer {
        async fn open(&mut self, stream: u32, kind: &str, port: &str) {
            let mut plain = 3u32.to_be_bytes().to_vec();
            for text in ["streamtype", kind, "port", port, "requestid", "0"] {
                plain.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
                plain.extend_from_slice(text.as_bytes());
            }
            let mut block = Vec::with_capacity(4096);
            self.deflate.compress_vec(&plain, &mut block, flate2::FlushCompress::Sync).unwrap();
            let mut payload = [stream.to_be_bytes(), [0; 4]].concat();
            payload.extend_from_slice(&[0, 0]);
            payload.extend_from_slice(&block);
            let mut wire = Wire { out: &mut self.io, begun: true };
            wire.control(SYN_STREAM, &payload).await.unwrap();
        }

        async fn next(&mut self) -> (u32, u8, Vec<u8>) {
            let head = (self.io.read_u32().await.unwrap(), self.io.read_u32().await.unwrap());
            let mut payload = vec![0; usize::try_from(head.1 & 0x00ff_ffff).unwrap()];
            self.io.read_exact(&mut payload).await.unwrap();
            (head.0, u8::try_from(head.1 >> 24).unwrap(), payload)
        }
    }

    fn peer() -> Peer {
        let (near, io) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve(Arc::new(FakeRuntime::default()), "s".into(), near));
        let mut deflate = flate2::Compress::new(flate2::Compression::best(), true);
        assert_eq!(deflate.set_dictionary(&dictionary()).unwrap(), 0xe3c6_a7c2, "the dictionary SPDY/3 lays down");
        Peer { io, deflate }
    }

    #[tokio::test]
    async fn a_connection_is_forwarded_with_half_close() {
        let mut peer = peer();
        peer.open(1, "error", "80").await;
        peer.open(3, "data", "80").await;
        for (stream, zlib) in [(1u8, &[0x78, 0x01][..]), (3, &[])] {
            let (kind, _, payload) = peer.next().await;
            assert_eq!((kind, payload[3]), (0x8003_0002, stream));
            assert!(payload[4..].starts_with(zlib));
        }
        Wire { out: &mut peer.io, begun: true }.data(3, FIN, b"hello").await.unwrap();
        assert_eq!(peer.next().await, (3, 0, b"hello".to_vec()));
        assert_eq!(peer.next().await, (3, FIN, Vec::new()));
        assert_eq!(peer.next().await, (1, FIN, Vec::new()));
        Wire { out: &mut peer.io, begun: true }.control(PING, &[0, 0, 0, 9]).await.unwrap();
        assert_eq!(peer.next().await, (0x8003_0006, 0, vec![0, 0, 0, 9]));
    }

    #[tokio::test]
    async fn a_refused_port_is_told_on_the_error_stream_and_a_stray_stream_is_reset() {
        let mut peer = peer();
        peer.open(1, "data", "80").await;
        assert_eq!(peer.next().await.0, 0x8003_0003);
        peer.open(3, "error", "1").await;
        peer.open(5, "data", "1").await;
        let _replies = (peer.next().await, peer.next().await);
        let (stream, flags, message) = peer.next().await;
        assert_eq!((stream, flags), (3, FIN));
        assert!(String::from_utf8(message).unwrap().contains("connection refused"));
        assert_eq!(peer.next().await, (5, FIN, Vec::new()));
    }
}
