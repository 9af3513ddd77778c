//! Questions on connections: many on one, answered as soon as each can be (RFC 7766), and transfers of zones.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::answer::{Next, Origin, Transport, unix_time};
use crate::server::Shared;

const MAX_CONNECTIONS: usize = 256;
/// Of one client.
const MAX_OF_ONE: usize = 64;
/// Questions of one connection that wait for others.
const MAX_WAITING: usize = 64;
/// How long a client may be silent, and how long it may take to read.
const IDLE: Duration = Duration::from_secs(10);
const BREATH: Duration = Duration::from_millis(50);

type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

pub async fn serve(listener: TcpListener, shared: Arc<Shared>, shutdown: CancellationToken) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let counts = Counts::default();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, peer.ip().to_canonical()),
            Err(error) => {
                tracing::warn!(%error, "accept a DNS connection");
                // Out of descriptors, most likely; a moment's patience keeps this from spinning.
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else { continue };
        let Some(place) = Place::take(&counts, peer) else { continue };
        let (shared, shutdown) = (Arc::clone(&shared), shutdown.clone());
        tokio::spawn(async move {
            let _held = (permit, place);
            tokio::select! {
                () = shutdown.cancelled() => {}
                ended = connection(stream, peer, &shared) => {
                    if let Err(error) = ended {
                        tracing::debug!(%peer, %error, "a DNS connection ended");
                    }
                }
            }
        });
    }
}

/// One of the connections that a client may have.
struct Place {
    counts: Counts,
    peer: IpAddr,
}

impl Place {
    fn take(counts: &Counts, peer: IpAddr) -> Option<Self> {
        let mut held = counts.lock();
        let count = held.entry(peer).or_default();
        if *count >= MAX_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Self { counts: Arc::clone(counts), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.counts.lock();
        if let Some(count) = held.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.peer);
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: IpAddr, shared: &Arc<Shared>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.into_split();
    let (replies, mut queue) = mpsc::channel::<Vec<u8>>(MAX_WAITING);
    let writing = async move {
        while let Some(reply) = queue.recv().await {
            let length = u16::try_from(reply.len()).map_err(std::io::Error::other)?;
            let framed = [&length.to_be_bytes(), reply.as_slice()].concat();
            timely(writer.write_all(&framed)).await?;
        }
        Ok(())
    };
    let reading = read(BufReader::with_capacity(2048, reader), peer, shared, replies);
    tokio::try_join!(reading, writing).map(drop)
}

async fn read(
    mut reader: impl AsyncReadExt + Unpin,
    peer: IpAddr,
    shared: &Arc<Shared>,
    replies: mpsc::Sender<Vec<u8>>,
) -> std::io::Result<()> {
    let waiting = Arc::new(Semaphore::new(MAX_WAITING));
    loop {
        let frame = async {
            let mut frame = vec![0; usize::from(reader.read_u16().await?)];
            reader.read_exact(&mut frame).await?;
            Ok(frame)
        };
        let frame: Vec<u8> = match timely(frame).await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            frame => frame?,
        };
        let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let now = Instant::now();
        let origin = Origin { peer, transport: Transport::Tcp, now };
        let mut reply = Vec::new();
        match shared.view.answer(&frame, origin, &[], &mut reply) {
            Next::Send { kind, rcode, refresh } => {
                replies.send(reply).await.map_err(gone)?;
                shared.metrics.answered(Transport::Tcp, kind, rcode, now.elapsed());
                if let Some(ask) = refresh {
                    shared.view.forwarder.refresh(ask);
                }
            }
            Next::Silent => return Ok(()),
            Next::Ask(first) => {
                let closed = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
                let permit = Arc::clone(&waiting).acquire_owned().await.map_err(closed)?;
                let (shared, replies) = (Arc::clone(shared), replies.clone());
                tokio::spawn(async move {
                    let reply = shared.finish(frame, origin, first).await;
                    let _ = replies.send(reply).await;
                    drop(permit);
                });
            }
            Next::Transfer => {
                for message in shared.view.zones.transfer(&frame, unix_time().into()) {
                    replies.send(message).await.map_err(gone)?;
                }
                shared.metrics.transfers.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

async fn timely<T>(work: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    tokio::time::timeout(IDLE, work).await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
}
