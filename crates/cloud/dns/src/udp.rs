//! Questions in datagrams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::answer::{Next, Origin, Transport};
use crate::server::Shared;

/// Questions after which other tasks get a turn.
const BATCH: usize = 64;

pub async fn serve(socket: Arc<UdpSocket>, shared: Arc<Shared>, shutdown: CancellationToken) {
    let mut buffer = vec![0; 4096];
    let mut out = Vec::with_capacity(2048);
    loop {
        let readable = tokio::select! {
            () = shutdown.cancelled() => return,
            readable = socket.readable() => readable,
        };
        if let Err(error) = readable {
            tracing::debug!(%error, "wait for a DNS question");
            continue;
        }
        for _ in 0..BATCH {
            let (length, peer) = match socket.try_recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    // The kernel reports a client that is gone here; the socket itself is fine.
                    tracing::debug!(%error, "receive a DNS question");
                    continue;
                }
            };
            out.clear();
            let now = Instant::now();
            let origin = Origin { peer: peer.ip().to_canonical(), transport: Transport::Udp, now };
            match shared.view.answer(&buffer[..length], origin, &[], &mut out) {
                Next::Send { kind, rcode, refresh } => {
                    send(&socket, &out, peer).await;
                    shared.metrics.answered(Transport::Udp, kind, rcode, now.elapsed());
                    if let Some(ask) = refresh {
                        shared.view.forwarder.refresh(ask);
                    }
                }
                Next::Silent | Next::Transfer => {
                    shared.metrics.dropped.fetch_add(1, Ordering::Relaxed);
                }
                Next::Ask(first) => {
                    let (socket, shared, shutdown) = (Arc::clone(&socket), Arc::clone(&shared), shutdown.clone());
                    let bytes = buffer[..length].to_vec();
                    tokio::spawn(async move {
                        let reply = tokio::select! {
                            () = shutdown.cancelled() => return,
                            reply = shared.finish(bytes, origin, first) => reply,
                        };
                        send(&socket, &reply, peer).await;
                    });
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn send(socket: &UdpSocket, bytes: &[u8], peer: SocketAddr) {
    if bytes.is_empty() {
        return;
    }
    let sent = match socket.try_send_to(bytes, peer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => socket.send_to(bytes, peer).await,
        sent => sent,
    };
    if let Err(error) = sent {
        tracing::debug!(%peer, %error, "send a DNS reply");
    }
}
