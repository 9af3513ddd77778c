//! SPDY/3.1 on the wire: frames, and the headers compressed in them. Which streams there are is for others to know.

use std::collections::HashMap;
use std::io::{Error, ErrorKind, Result};

use flate2::{Decompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of a stream that go into one frame at the most.
pub const BLOCK: usize = 32 * 1024;
/// Streams of one connection at a time.
pub const MAX_STREAMS: usize = 2000;
const MAX_FRAME: usize = 1024 * 1024;
const MAX_HEADERS: usize = 16 * 1024;

pub const FIN: u8 = 1;
pub const SYN_STREAM: u16 = 1;
pub const SYN_REPLY: u16 = 2;
pub const RST_STREAM: u16 = 3;
pub const PING: u16 = 6;
pub const GOAWAY: u16 = 7;
pub const HEADERS: u16 = 8;

/// Why a stream is reset.
pub const PROTOCOL_ERROR: u32 = 1;
pub const REFUSED_STREAM: u32 = 3;

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

/// What the opener of a stream says of it; names in lower case.
pub type Headers = HashMap<String, String>;

/// What comes in. `end` is the sender's last word on a stream.
pub enum Frame {
    Data {
        stream: u32,
        end: bool,
        payload: Vec<u8>,
    },
    /// `stream` is the one that the payload begins with, where the kind has one.
    Control {
        kind: u16,
        stream: u32,
        end: bool,
        payload: Vec<u8>,
    },
}

/// The next frame; `None` at the connection's end.
pub async fn read(reader: &mut (impl AsyncRead + Unpin)) -> Result<Option<Frame>> {
    let mut head = [0; 8];
    match reader.read_exact(&mut head).await {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => drop(other?),
    }
    let [a, b, c, d, flags, lengths @ ..] = head;
    let length = usize::from(lengths[0]) << 16 | usize::from(lengths[1]) << 8 | usize::from(lengths[2]);
    if length > MAX_FRAME {
        return Err(broken("frame too long"));
    }
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).await?;
    let end = flags & FIN != 0;
    if a & 0x80 == 0 {
        return Ok(Some(Frame::Data { stream: u32::from_be_bytes([a, b, c, d]), end, payload }));
    }
    let stream = payload.first_chunk::<4>().map_or(0, |id| u32::from_be_bytes(*id) & 0x7fff_ffff);
    Ok(Some(Frame::Control { kind: u16::from_be_bytes([c, d]), stream, end, payload }))
}

/// The sending half of a connection.
pub struct Writer<W> {
    io: W,
    /// Whether the header compression's own header has been sent.
    begun: bool,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    pub fn new(io: W) -> Self {
        Self { io, begun: false }
    }

    async fn put(&mut self, mut frame: Vec<u8>, payload: &[u8]) -> Result<()> {
        frame.extend_from_slice(payload);
        self.io.write_all(&frame).await?;
        self.io.flush().await
    }

    pub async fn control(&mut self, kind: u16, payload: &[u8]) -> Result<()> {
        let mut frame = vec![0x80, 3];
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&number(payload.len()).to_be_bytes());
        self.put(frame, payload).await
    }

    pub async fn data(&mut self, stream: u32, flags: u8, payload: &[u8]) -> Result<()> {
        let mut frame = stream.to_be_bytes().to_vec();
        // Blocks are far below 2^24, so the flags have the length's highest byte to themselves.
        frame.extend_from_slice(&(number(payload.len()) | u32::from(flags) << 24).to_be_bytes());
        self.put(frame, payload).await
    }

    /// Opens a stream with these headers.
    pub async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) -> Result<()> {
        let mut payload = [stream.to_be_bytes(), [0; 4]].concat();
        payload.extend_from_slice(&[0, 0]);
        self.append_headers(&mut payload, headers);
        self.control(SYN_STREAM, &payload).await
    }

    /// Takes a stream that the other side opened.
    pub async fn reply(&mut self, stream: u32) -> Result<()> {
        let mut payload = stream.to_be_bytes().to_vec();
        self.append_headers(&mut payload, &[]);
        self.control(SYN_REPLY, &payload).await
    }

    pub async fn reset(&mut self, stream: u32, why: u32) -> Result<()> {
        self.control(RST_STREAM, &[stream.to_be_bytes(), why.to_be_bytes()].concat()).await
    }

    pub async fn shutdown(&mut self) -> Result<()> {
        self.io.shutdown().await
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

/// The other side's headers; one compression context for all of a connection's frames.
pub struct Inflate(Decompress);

impl Default for Inflate {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflate {
    /// Of a block, all headers that it holds; each block of a connection has to come by here, in order.
    pub fn headers(&mut self, mut input: &[u8]) -> Result<Headers> {
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

/// What both sides' compression begins with, as SPDY/3 lays it down.
pub fn dictionary() -> Vec<u8> {
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

pub fn broken(message: &str) -> Error {
    Error::new(ErrorKind::InvalidData, message)
}
