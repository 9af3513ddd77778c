//! Port-forward as kubectl speaks it: SPDY/3.1 streams, inside a WebSocket or on the upgraded connection itself.

use std::collections::HashMap;
use std::io::Error;
use std::sync::Arc;

use bytes::Bytes;
use dhow_cri::Runtime;
use dhow_cri::streaming::frame::{
    self, BLOCK, FIN, Frame, GOAWAY, HEADERS, Inflate, MAX_STREAMS, PING, PROTOCOL_ERROR, RST_STREAM, SYN_STREAM,
    broken,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use super::socket::{self, Receiver, Sender};

/// The WebSocket subprotocol that carries SPDY.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// What is spoken on the streams.
pub use dhow_cri::streaming::PORT_FORWARD as PROTOCOL;

/// The sending half of a connection, shared by its streams.
type Shared<W> = Arc<Mutex<frame::Writer<W>>>;

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
    let wire = Arc::new(Mutex::new(frame::Writer::new(writer)));
    let mut inflate = Inflate::default();
    let mut tasks = JoinSet::new();
    let mut inputs: HashMap<u32, Input> = HashMap::new();
    // Error streams by the request they belong to, until the request's data stream comes.
    let mut errors: HashMap<String, u32> = HashMap::new();
    while let Some(frame) = frame::read(&mut reader).await? {
        while tasks.try_join_next().is_some() {}
        inputs.retain(|_, input| !input.task.is_finished());
        let (kind, stream, payload) = match frame {
            Frame::Control { kind, stream, payload, .. } => (kind, stream, payload),
            Frame::Data { stream, end, payload } => {
                let Some(input) = inputs.get_mut(&stream) else { continue };
                if let Some(sender) = input.sender.as_ref().filter(|_| !payload.is_empty())
                    && sender.send(payload.into()).await.is_err()
                {
                    input.sender = None;
                }
                if end {
                    input.sender = None;
                }
                continue;
            }
        };
        match kind {
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
                    _ => out.reset(stream, PROTOCOL_ERROR).await?,
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
    Ok(())
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
            frame::Writer::new(&mut self.io).control(SYN_STREAM, &payload).await.unwrap();
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
        assert_eq!(
            deflate.set_dictionary(&frame::dictionary()).unwrap(),
            0xe3c6_a7c2,
            "the dictionary SPDY/3 lays down"
        );
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
        frame::Writer::new(&mut peer.io).data(3, FIN, b"hello").await.unwrap();
        assert_eq!(peer.next().await, (3, 0, b"hello".to_vec()));
        assert_eq!(peer.next().await, (3, FIN, Vec::new()));
        assert_eq!(peer.next().await, (1, FIN, Vec::new()));
        frame::Writer::new(&mut peer.io).control(PING, &[0, 0, 0, 9]).await.unwrap();
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
