//! A SPDY/3.1 session: many streams on one connection, for either side of it.
//!
//! There is no flow control beyond the connection's own, as in upstream's implementation: a stream that nobody reads
//! holds up the others.

use std::collections::HashMap;
use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;

use flate2::{Decompress, FlushDecompress, Status};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

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
/// Why a stream is refused.
const REFUSED_STREAM: u32 = 3;

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

type Headers = HashMap<String, String>;

/// One stream of a session. Dropping or shutting down `writer` ends our direction; dropping `reader` throws away what
/// still comes.
pub struct Stream {
    /// What its opener said of it; names in lower case.
    pub headers: Headers,
    pub reader: DuplexStream,
    pub writer: DuplexStream,
}

/// Our side of a connection. Dropping it ends the connection with all its streams.
pub struct Session {
    shared: Arc<Shared>,
    _end: DropGuard,
}

struct Shared {
    out: tokio::sync::Mutex<Out>,
    /// Where received data goes, by stream.
    sinks: Mutex<HashMap<u32, DuplexStream>>,
    ended: CancellationToken,
    writers: TaskTracker,
}

/// The sending half.
struct Out {
    io: Box<dyn AsyncWrite + Send + Unpin>,
    /// Whether the header compression's own header has been sent.
    begun: bool,
    next_stream: u32,
}

impl Session {
    /// The side that opens streams.
    pub fn client(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        // The other side has no reason to open any.
        Self::start(io, 1).0
    }

    /// The side that takes streams; the receiver ends with the connection.
    pub fn server(io: impl AsyncRead + AsyncWrite + Send + 'static) -> (Self, mpsc::Receiver<Stream>) {
        Self::start(io, 2)
    }

    fn start<T>(io: T, next_stream: u32) -> (Self, mpsc::Receiver<Stream>)
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer): (ReadHalf<T>, WriteHalf<T>) = tokio::io::split(io);
        let ended = CancellationToken::new();
        let shared = Arc::new(Shared {
            out: tokio::sync::Mutex::new(Out { io: Box::new(writer), begun: false, next_stream }),
            sinks: Mutex::default(),
            ended: ended.clone(),
            writers: TaskTracker::new(),
        });
        let (opened, streams) = mpsc::channel(16);
        let receiving = Arc::clone(&shared);
        tokio::spawn(async move {
            let ended = receiving.ended.clone();
            let received = ended.run_until_cancelled(receive(&receiving, reader, opened)).await;
            if let Some(Err(error)) = received {
                tracing::debug!(%error, "a stream connection broke");
            }
            ended.cancel();
            receiving.sinks.lock().clear();
        });
        (Self { shared, _end: ended.drop_guard() }, streams)
    }

    /// Opens a stream with these headers.
    pub async fn open(&self, headers: &[(&str, &str)]) -> Result<Stream> {
        let mut out = self.shared.out.lock().await;
        let id = out.next_stream;
        out.next_stream += 2;
        let mut payload = [id.to_be_bytes(), [0; 4]].concat();
        payload.extend_from_slice(&[0, 0]);
        out.append_headers(&mut payload, headers);
        let (reader, writer) = self.shared.register(id);
        out.control(SYN_STREAM, &payload).await?;
        Ok(Stream { headers: Headers::new(), reader, writer })
    }

    /// Ends the connection once everything written to its streams is sent. Their writers must be dropped before.
    pub async fn finish(self) {
        self.shared.writers.close();
        self.shared.writers.wait().await;
        let mut out = self.shared.out.lock().await;
        // Whoever went away needs no end.
        let _ = out.io.shutdown().await;
    }
}

impl Shared {
    /// Makes the two pipes of a stream and what carries them.
    fn register(self: &Arc<Self>, id: u32) -> (DuplexStream, DuplexStream) {
        let (reader, sink) = tokio::io::duplex(BLOCK);
        let (writer, source) = tokio::io::duplex(BLOCK);
        self.sinks.lock().insert(id, sink);
        let (shared, ended) = (Arc::clone(self), self.ended.clone());
        self.writers.spawn(async move { ended.run_until_cancelled(shared.send(id, source)).await });
        (reader, writer)
    }

    /// Sends what is written to a stream, and its end.
    async fn send(&self, id: u32, mut source: DuplexStream) {
        let mut block = vec![0; BLOCK];
        loop {
            let count = source.read(&mut block).await.unwrap_or_default();
            let flags = if count == 0 { FIN } else { 0 };
            let sent = self.out.lock().await.data(id, flags, &block[..count]).await;
            if count == 0 || sent.is_err() {
                return;
            }
        }
    }

    /// Hands data to a stream's reader, if there still is one.
    async fn deliver(&self, id: u32, payload: &[u8], end: bool) {
        let Some(mut sink) = self.sinks.lock().remove(&id) else { return };
        if sink.write_all(payload).await.is_ok() && !end {
            self.sinks.lock().insert(id, sink);
        }
    }
}

impl Out {
    async fn put(&mut self, mut frame: Vec<u8>, payload: &[u8]) -> Result<()> {
        frame.extend_from_slice(payload);
        self.io.write_all(&frame).await?;
        self.io.flush().await
    }

    async fn control(&mut self, kind: u16, payload: &[u8]) -> Result<()> {
        let mut frame = vec![0x80, 3];
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&number(payload.len()).to_be_bytes());
        self.put(frame, payload).await
    }

    async fn data(&mut self, stream: u32, flags: u8, payload: &[u8]) -> Result<()> {
        let mut frame = stream.to_be_bytes().to_vec();
        // Blocks are far below 2^24, so the flags have the length's highest byte to themselves.
        frame.extend_from_slice(&(number(payload.len()) | u32::from(flags) << 24).to_be_bytes());
        self.put(frame, payload).await
    }

    /// Headers as one stored block of the compression, then an empty one that flushes it.
    fn append_headers(&mut self, payload: &mut Vec<u8>, headers: &[(&str, &str)]) {
        if !std::mem::replace(&mut self.begun, true) {
            payload.extend_from_slice(&[0x78, 0x01]);
        }
        let mut plain = number(headers.len()).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&number(text.len()).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let length = u16::try_from(plain.len()).unwrap_or(u16::MAX);
        payload.push(0);
        payload.extend_from_slice(&length.to_le_bytes());
        payload.extend_from_slice(&(!length).to_le_bytes());
        payload.extend_from_slice(&plain);
        payload.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
    }
}

/// Reads frames until the connection ends.
async fn receive(shared: &Arc<Shared>, mut reader: impl AsyncRead + Unpin, opened: mpsc::Sender<Stream>) -> Result<()> {
    let mut inflate = Inflate(Decompress::new(true));
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
        if a & 0x80 == 0 {
            shared.deliver(u32::from_be_bytes([a, b, c, d]), &payload, flags & FIN != 0).await;
            continue;
        }
        let stream = payload.first_chunk::<4>().map_or(0, |id| u32::from_be_bytes(*id) & 0x7fff_ffff);
        match u16::from_be_bytes([c, d]) {
            SYN_STREAM => {
                let headers = inflate.headers(payload.get(10..).ok_or_else(|| broken("short SYN_STREAM"))?)?;
                if shared.sinks.lock().len() >= MAX_STREAMS {
                    let refusal = [stream.to_be_bytes(), REFUSED_STREAM.to_be_bytes()].concat();
                    shared.out.lock().await.control(RST_STREAM, &refusal).await?;
                    continue;
                }
                let (reader, writer) = shared.register(stream);
                {
                    let mut out = shared.out.lock().await;
                    let mut reply = stream.to_be_bytes().to_vec();
                    out.append_headers(&mut reply, &[]);
                    out.control(SYN_REPLY, &reply).await?;
                }
                if flags & FIN != 0 {
                    shared.sinks.lock().remove(&stream);
                }
                // Nobody takes streams: then this one ends at once.
                let _ = opened.send(Stream { headers, reader, writer }).await;
            }
            // Read for the sake of the compression's state only.
            SYN_REPLY | HEADERS => drop(inflate.headers(payload.get(4..).ok_or_else(|| broken("short headers"))?)?),
            RST_STREAM => drop(shared.sinks.lock().remove(&stream)),
            PING => shared.out.lock().await.control(PING, &payload).await?,
            GOAWAY => return Ok(()),
            _ => {}
        }
    }
}

/// The other side's headers; one compression context for all of a connection's frames.
struct Inflate(Decompress);

impl Inflate {
    fn headers(&mut self, mut input: &[u8]) -> Result<Headers> {
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

fn pairs(plain: &[u8]) -> Option<Headers> {
    fn length(from: &mut &[u8]) -> Option<usize> {
        let (head, rest) = from.split_first_chunk::<4>()?;
        *from = rest;
        usize::try_from(u32::from_be_bytes(*head)).ok()
    }
    fn text(from: &mut &[u8]) -> Option<String> {
        let length = length(from)?;
        let (head, rest) = from.split_at_checked(length)?;
        *from = rest;
        String::from_utf8(head.to_vec()).ok()
    }
    let mut rest = plain;
    let count = length(&mut rest)?;
    let mut all = Headers::new();
    for _ in 0..count {
        all.insert(text(&mut rest)?.to_ascii_lowercase(), text(&mut rest)?);
    }
    Some(all)
}

fn dictionary() -> Vec<u8> {
    let mut all = Vec::with_capacity(1423);
    for word in WORDS.split('|') {
        all.extend_from_slice(&number(word.len()).to_be_bytes());
        all.extend_from_slice(word.as_bytes());
    }
    all.extend_from_slice(TEXT.as_bytes());
    all
}

/// Lengths on the wire; ours are far below the limit.
fn number(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn broken(message: &str) -> Error {
    Error::new(ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn streams_carry_bytes_both_ways_and_end_by_direction() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let client = Session::client(near);
        let (server, mut streams) = Session::server(far);
        let mut ours = client.open(&[("streamType", "stdin"), ("requestID", "7")]).await.unwrap();
        let second = client.open(&[("streamType", "error")]).await.unwrap();
        let mut theirs = streams.recv().await.unwrap();
        assert_eq!(theirs.headers["streamtype"], "stdin");
        assert_eq!(theirs.headers["requestid"], "7");
        assert_eq!(streams.recv().await.unwrap().headers["streamtype"], "error");
        ours.writer.write_all(b"question").await.unwrap();
        drop(ours.writer);
        let mut text = String::new();
        theirs.reader.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        let long = vec![b'x'; 300_000];
        let (sent, answer) = (long.clone(), theirs.writer);
        let send = async move {
            let mut answer = answer;
            answer.write_all(&sent).await.unwrap();
        };
        let mut got = Vec::new();
        let (_, count) = tokio::join!(send, ours.reader.read_to_end(&mut got));
        assert_eq!(count.unwrap(), long.len());
        drop(second);
        server.finish().await;
    }

    #[tokio::test]
    async fn the_end_of_a_session_ends_its_streams() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let client = Session::client(near);
        let (server, mut streams) = Session::server(far);
        let mut ours = client.open(&[("streamType", "stdout")]).await.unwrap();
        let _theirs = streams.recv().await.unwrap();
        drop(server);
        assert_eq!(ours.reader.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
