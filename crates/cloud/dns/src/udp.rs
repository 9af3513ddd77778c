//! Questions in datagrams.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::answer::{Next, Origin, Transport};
use crate::datagrams::{self, Inbox};
use crate::server::Shared;

pub async fn serve(socket: Arc<UdpSocket>, shared: Arc<Shared>, shutdown: CancellationToken) {
    let mut inbox = Inbox::new();
    let mut replies = Replies::default();
    loop {
        let received = tokio::select! {
            () = shutdown.cancelled() => return,
            received = socket.async_io(Interest::READABLE, || inbox.receive(socket.as_fd())) => received,
        };
        let received = match received {
            Ok(received) => received,
            Err(error) => {
                // The kernel reports a client that is gone here; the socket itself is fine.
                tracing::debug!(%error, "receive DNS questions");
                continue;
            }
        };
        replies.clear();
        let now = Instant::now();
        for (question, peer) in (0..received).filter_map(|index| inbox.question(index)) {
            let origin = Origin { peer: peer.ip().to_canonical(), transport: Transport::Udp, now };
            let begin = replies.bytes.len();
            match shared.view.answer(question, origin, &[], &mut replies.bytes) {
                Next::Send { kind, rcode, refresh } => {
                    replies.parts.push((begin..replies.bytes.len(), peer));
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
                    let bytes = question.to_vec();
                    tokio::spawn(async move {
                        let reply = tokio::select! {
                            () = shutdown.cancelled() => return,
                            reply = shared.finish(bytes, origin, first) => reply,
                        };
                        if let Err(error) = send_one(&socket, &reply, peer).await {
                            tracing::debug!(%peer, %error, "send a DNS reply");
                        }
                    });
                }
            }
        }
        replies.send(&socket).await;
        // Under load there is always more; other tasks get a turn.
        tokio::task::yield_now().await;
    }
}

async fn send_one(socket: &UdpSocket, bytes: &[u8], peer: SocketAddr) -> io::Result<()> {
    if !bytes.is_empty() {
        socket.send_to(bytes, peer).await?;
    }
    Ok(())
}

/// What is to be sent for one batch of questions.
#[derive(Default)]
struct Replies {
    bytes: Vec<u8>,
    parts: Vec<(Range<usize>, SocketAddr)>,
}

impl Replies {
    fn clear(&mut self) {
        self.bytes.clear();
        self.parts.clear();
    }

    async fn send(&self, socket: &UdpSocket) {
        let mut left = self.parts.as_slice();
        while let Some((_, peer)) = left.first() {
            let sent = match datagrams::send(socket.as_fd(), &self.bytes, left) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let send = || datagrams::send(socket.as_fd(), &self.bytes, left);
                    socket.async_io(Interest::WRITABLE, send).await
                }
                sent => sent,
            };
            // An error is about the first of them.
            let gone = sent.unwrap_or_else(|error| {
                tracing::debug!(%peer, %error, "send a DNS reply");
                1
            });
            left = &left[gone.clamp(1, left.len())..];
        }
    }
}
