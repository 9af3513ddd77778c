//! A SPDY/3.1 session: many streams on one connection, for either side of it.
//!
//! There is no flow control beyond the connection's own, as in upstream's implementation: a stream that nobody reads
//! holds up the others.

use std::collections::HashMap;
use std::io::Result;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::frame::{
    self, BLOCK, FIN, Frame, GOAWAY, HEADERS, Headers, Inflate, MAX_STREAMS, PING, REFUSED_STREAM, RST_STREAM,
    SYN_REPLY, SYN_STREAM, Writer, broken,
};

/// One stream of a session. Dropping or shutting down `writer` ends our direction; dropping `reader` throws away what
/// still comes.
pub struct Stream {
    /// What its opener said of it.
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
    wire: Writer<Box<dyn AsyncWrite + Send + Unpin>>,
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
            out: tokio::sync::Mutex::new(Out { wire: Writer::new(Box::new(writer)), next_stream }),
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
        let (reader, writer) = self.shared.register(id);
        out.wire.open(id, headers).await?;
        Ok(Stream { headers: Headers::new(), reader, writer })
    }

    /// Ends the connection once everything written to its streams is sent. Their writers must be dropped before.
    pub async fn finish(self) {
        self.shared.writers.close();
        self.shared.writers.wait().await;
        let mut out = self.shared.out.lock().await;
        // Whoever went away needs no end.
        let _ = out.wire.shutdown().await;
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
            let sent = self.out.lock().await.wire.data(id, flags, &block[..count]).await;
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

/// Reads frames until the connection ends.
async fn receive(shared: &Arc<Shared>, mut reader: impl AsyncRead + Unpin, opened: mpsc::Sender<Stream>) -> Result<()> {
    let mut inflate = Inflate::default();
    while let Some(frame) = frame::read(&mut reader).await? {
        let (kind, stream, end, payload) = match frame {
            Frame::Data { stream, end, payload } => {
                shared.deliver(stream, &payload, end).await;
                continue;
            }
            Frame::Control { kind, stream, end, payload } => (kind, stream, end, payload),
        };
        match kind {
            SYN_STREAM => {
                let headers = inflate.headers(payload.get(10..).ok_or_else(|| broken("short SYN_STREAM"))?)?;
                if shared.sinks.lock().len() >= MAX_STREAMS {
                    shared.out.lock().await.wire.reset(stream, REFUSED_STREAM).await?;
                    continue;
                }
                let (reader, writer) = shared.register(stream);
                shared.out.lock().await.wire.reply(stream).await?;
                if end {
                    shared.sinks.lock().remove(&stream);
                }
                // Nobody takes streams: then this one ends at once.
                let _ = opened.send(Stream { headers, reader, writer }).await;
            }
            // Read for the sake of the compression's state only.
            SYN_REPLY | HEADERS => drop(inflate.headers(payload.get(4..).ok_or_else(|| broken("short headers"))?)?),
            RST_STREAM => drop(shared.sinks.lock().remove(&stream)),
            PING => shared.out.lock().await.wire.control(PING, &payload).await?,
            GOAWAY => return Ok(()),
            _ => {}
        }
    }
    Ok(())
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
