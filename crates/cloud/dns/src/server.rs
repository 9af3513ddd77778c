//! Sockets and the life of a question: parse, ask the zone, else ask upstream, reply.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::Client;
use hickory_proto::op::{Message, Query, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::forward::Forwarder;
use crate::watch::Watched;
use crate::wire::{Incoming, Question, encode, parse};
use crate::zone::{Answer, Zone};
use crate::{Cluster, DnsConfig, Error, Result};

/// Questions that wait for an upstream at one time; more are answered with a failure at once.
const MAX_FORWARDED: usize = 1024;
const MAX_CONNECTIONS: usize = 256;
/// How long a TCP client may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Aliases followed inside the zone before we stop believing them.
const MAX_ALIASES: usize = 8;

/// A bound server; it answers once it is run.
pub struct Server {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    zone: Zone,
    forwarder: Forwarder,
}

impl Server {
    /// Listens on every address by UDP and TCP. With port 0 both get the same free port.
    pub async fn bind(addrs: &[SocketAddr], config: DnsConfig) -> Result<Self> {
        let zone = Zone::new(&config.domain, config.ttl)?;
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        for address in addrs {
            let failed = |source| Error::Bind { address: *address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            udp.push(UdpSocket::bind(bound).await.map_err(failed)?);
            tcp.push(listener);
        }
        let own: Vec<SocketAddr> = tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        Ok(Self { udp, tcp, forwarder: Forwarder::new(&config, &own), zone })
    }

    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Watches the cluster through `client` and answers until shut down. Questions that arrive before the
    /// first complete view wait for it: an early "no such name" would be remembered by whoever asked.
    pub async fn run(self, client: Client, shutdown: CancellationToken) {
        let watched = Watched::start(client, &shutdown);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = watched.synced() => {}
        }
        self.serve(Arc::new(watched), shutdown).await;
    }

    /// Answers from `cluster` until shut down.
    pub async fn serve(self, cluster: Arc<dyn Cluster>, shutdown: CancellationToken) {
        let state = Arc::new(State {
            zone: self.zone,
            forwarder: self.forwarder,
            cluster,
            forwarded: Semaphore::new(MAX_FORWARDED),
        });
        let tasks = TaskTracker::new();
        for socket in self.udp {
            tasks.spawn(serve_udp(Arc::new(socket), state.clone(), shutdown.clone()));
        }
        for listener in self.tcp {
            tasks.spawn(serve_tcp(listener, state.clone(), shutdown.clone()));
        }
        tasks.close();
        tasks.wait().await;
    }
}

struct State {
    zone: Zone,
    forwarder: Forwarder,
    cluster: Arc<dyn Cluster>,
    forwarded: Semaphore,
}

/// The zone's part of an answer, and what is left to ask elsewhere.
enum Local {
    Done(Message),
    /// Ask upstream about the query and add what it says to the message.
    Elsewhere(Message, Query),
}

impl State {
    fn local(&self, question: &Question) -> Local {
        let mut message = question.reply(ResponseCode::NoError);
        let mut query = question.query.clone();
        for _ in 0..MAX_ALIASES {
            match self.zone.answer(query.name(), query.query_type(), self.cluster.as_ref()) {
                Answer::NotOurs => return Local::Elsewhere(message, query),
                Answer::NoName => {
                    message.metadata.authoritative = true;
                    message.metadata.response_code = ResponseCode::NXDomain;
                    message.add_authority(self.zone.soa());
                    return Local::Done(message);
                }
                Answer::Records { answers, additionals } => {
                    message.metadata.authoritative = true;
                    if answers.is_empty() {
                        message.add_authority(self.zone.soa());
                    }
                    message.add_answers(answers);
                    message.add_additionals(additionals);
                    return Local::Done(message);
                }
                Answer::Alias { alias, target } => {
                    message.metadata.authoritative = true;
                    message.add_answer(*alias);
                    query.set_name(target);
                }
            }
        }
        Local::Done(question.reply(ResponseCode::ServFail))
    }

    async fn finish(&self, mut message: Message, query: Query, recurse: bool) -> Message {
        let failed = |mut message: Message| {
            // An alias without its target is still a useful answer.
            if message.answers.is_empty() {
                message.metadata.response_code = ResponseCode::ServFail;
            }
            message
        };
        if !recurse {
            if message.answers.is_empty() {
                message.metadata.response_code = ResponseCode::Refused;
            }
            return message;
        }
        let Ok(_permit) = self.forwarded.try_acquire() else { return failed(message) };
        match self.forwarder.resolve(&query).await {
            Ok(answer) => {
                message.metadata.response_code = answer.metadata.response_code;
                message.metadata.authoritative &= !message.answers.is_empty();
                message.add_answers(answer.answers);
                message.add_authorities(answer.authorities);
                message.add_additionals(answer.additionals);
                message
            }
            Err(error) => {
                tracing::debug!(name = %query.name(), %error, "cannot resolve");
                failed(message)
            }
        }
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, state: Arc<State>, shutdown: CancellationToken) {
    let mut buffer = vec![0; 4096];
    loop {
        let received = tokio::select! {
            () = shutdown.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, peer) = match received {
            Ok(received) => received,
            Err(error) => {
                // The kernel reports a client that is gone here; the socket itself is fine.
                tracing::debug!(%error, "receive a DNS question");
                continue;
            }
        };
        let question = match parse(&buffer[..length]) {
            Incoming::Ignore => continue,
            Incoming::Reply(bytes) => {
                send(&socket, &bytes, peer).await;
                continue;
            }
            Incoming::Question(question) => question,
        };
        let limit = question.payload_limit();
        match state.local(&question) {
            Local::Done(message) => send(&socket, &encode(&message, limit), peer).await,
            Local::Elsewhere(message, query) => {
                let (socket, state, shutdown) = (socket.clone(), state.clone(), shutdown.clone());
                let recurse = question.recursion_desired();
                tokio::spawn(async move {
                    let message = tokio::select! {
                        () = shutdown.cancelled() => return,
                        message = state.finish(message, query, recurse) => message,
                    };
                    send(&socket, &encode(&message, limit), peer).await;
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, bytes: &[u8], peer: SocketAddr) {
    if let Err(error) = socket.send_to(bytes, peer).await {
        tracing::debug!(%peer, %error, "send a DNS reply");
    }
}

async fn serve_tcp(listener: TcpListener, state: Arc<State>, shutdown: CancellationToken) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept a DNS connection");
                // Out of descriptors, most likely; a moment's patience keeps this from spinning.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
        let (state, shutdown) = (state.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = shutdown.cancelled() => {}
                ended = serve_connection(stream, &state) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a DNS connection ended");
                    }
                }
            }
        });
    }
}

async fn serve_connection(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    let idle = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    loop {
        let frame = async {
            let length = stream.read_u16().await?;
            let mut frame = vec![0; usize::from(length)];
            stream.read_exact(&mut frame).await?;
            Ok::<_, std::io::Error>(frame)
        };
        let frame = match tokio::time::timeout(IDLE, frame).await.map_err(idle)? {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            frame => frame?,
        };
        let limit = usize::from(u16::MAX);
        let reply = match parse(&frame) {
            Incoming::Ignore => return Ok(()),
            Incoming::Reply(bytes) => bytes,
            Incoming::Question(question) => match state.local(&question) {
                Local::Done(message) => encode(&message, limit),
                Local::Elsewhere(message, query) => {
                    encode(&state.finish(message, query, question.recursion_desired()).await, limit)
                }
            },
        };
        let length = u16::try_from(reply.len()).map_err(std::io::Error::other)?;
        let framed = [&length.to_be_bytes(), reply.as_slice()].concat();
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await.map_err(idle)??;
    }
}
