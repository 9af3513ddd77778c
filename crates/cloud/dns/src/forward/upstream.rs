//! One resolver that we ask: by UDP, by TCP what is too long for it, or by TLS only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::message::{Ask, Limits, Reply, Unusable, read};
use crate::config::UpstreamAddress;
use crate::kind::{CLASS_IN, rtype};
use crate::request::{HEADER, MAX_UDP_PAYLOAD};
use crate::{Error, Result, random};

/// Failures after which an upstream is left alone for a while.
const PATIENCE: u32 = 2;
const LONGEST_REST: Duration = Duration::from_secs(10);
const MAX_IDLE: usize = 4;
/// Wrong answers to one question after which it is asked by TCP, where nobody can guess.
const MAX_UNRELATED: usize = 16;

pub struct Upstream {
    pub address: SocketAddr,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    failures: AtomicU32,
    rest_until: Mutex<Option<Instant>>,
    /// Whether it repeats questions in the letters they were asked in.
    keeps_case: AtomicBool,
    /// It asks us what we ask it.
    pub loops: AtomicBool,
    idle: Mutex<Vec<TlsStream<TcpStream>>>,
}

impl Upstream {
    pub fn new(address: &UpstreamAddress, roots: Option<&Arc<rustls::ClientConfig>>) -> Result<Self> {
        let tls = match (&address.tls, roots) {
            (None, _) => None,
            (Some(name), Some(config)) => {
                let parsed = ServerName::try_from(name.clone()).map_err(|_| Error::InvalidDomain(name.clone()))?;
                Some((TlsConnector::from(Arc::clone(config)), parsed))
            }
            (Some(_), None) => return Err(Error::NoRoots(address.address)),
        };
        Ok(Self {
            address: address.address,
            tls,
            failures: AtomicU32::new(0),
            rest_until: Mutex::new(None),
            keeps_case: AtomicBool::new(true),
            loops: AtomicBool::new(false),
            idle: Mutex::new(Vec::new()),
        })
    }

    /// Whether it is worth asking now.
    pub fn is_well(&self, now: Instant) -> bool {
        !self.loops.load(Ordering::Relaxed) && self.rest_until.lock().is_none_or(|until| until <= now)
    }

    pub fn succeeded(&self) {
        if self.failures.swap(0, Ordering::Relaxed) >= PATIENCE {
            tracing::info!(upstream = %self.address, "the resolver answers again");
        }
        *self.rest_until.lock() = None;
    }

    pub fn failed(&self, now: Instant) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures == PATIENCE {
            tracing::warn!(upstream = %self.address, "the resolver does not answer; others are asked first");
        }
        if failures >= PATIENCE {
            let rest = Duration::from_millis(500) * 2u32.saturating_pow((failures - PATIENCE).min(8));
            *self.rest_until.lock() = Some(now + rest.min(LONGEST_REST));
        }
    }

    /// Asks it; `timeout` is for each way of asking.
    pub async fn ask(&self, ask: &Ask, timeout: Duration, limits: Limits) -> std::io::Result<Result<Reply, Unusable>> {
        if self.tls.is_some() {
            return within(timeout, self.by_tls(ask, limits)).await;
        }
        let mixed = self.keeps_case.load(Ordering::Relaxed);
        match within(timeout, self.by_udp(&Query::new(ask, mixed)?, ask, limits)).await? {
            Err(Unusable::Truncated | Unusable::Unrelated) => {
                within(timeout, self.by_tcp(&Query::new(ask, mixed)?, ask, limits)).await
            }
            Err(Unusable::Case) => {
                let answer = within(timeout, self.by_tcp(&Query::new(ask, false)?, ask, limits)).await?;
                if answer.is_ok() {
                    tracing::debug!(upstream = %self.address, "the resolver does not keep the case of names");
                    self.keeps_case.store(false, Ordering::Relaxed);
                }
                Ok(answer)
            }
            other => Ok(other),
        }
    }

    async fn by_udp(&self, query: &Query, ask: &Ask, limits: Limits) -> std::io::Result<Result<Reply, Unusable>> {
        // A socket of its own for each question: its random port is half of what protects the answer.
        let any: IpAddr = match self.address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(self.address).await?;
        socket.send(&query.bytes).await?;
        let mut buffer = vec![0; 4096];
        for _ in 0..MAX_UNRELATED {
            let length = socket.recv(&mut buffer).await?;
            match read(&buffer[..length], query.id, query.question(), ask, limits) {
                Err(Unusable::Unrelated) => {}
                other => return Ok(other),
            }
        }
        tracing::warn!(upstream = %self.address, "many answers to other questions: somebody may be guessing");
        Ok(Err(Unusable::Unrelated))
    }

    async fn by_tcp(&self, query: &Query, ask: &Ask, limits: Limits) -> std::io::Result<Result<Reply, Unusable>> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        exchange(&mut stream, query, ask, limits).await
    }

    async fn by_tls(&self, ask: &Ask, limits: Limits) -> std::io::Result<Result<Reply, Unusable>> {
        let query = Query::new(ask, false)?;
        let kept = self.idle.lock().pop();
        if let Some(mut stream) = kept
            && let Ok(answer) = exchange(&mut stream, &query, ask, limits).await
        {
            self.keep(stream);
            return Ok(answer);
        }
        // Servers close idle connections; a new one tells whether there is more to it.
        let Some((connector, name)) = &self.tls else { return Err(std::io::ErrorKind::Unsupported.into()) };
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let mut stream = connector.connect(name.clone(), stream).await?;
        let answer = exchange(&mut stream, &query, ask, limits).await?;
        self.keep(stream);
        Ok(answer)
    }

    fn keep(&self, stream: TlsStream<TcpStream>) {
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(stream);
        }
    }
}

async fn within<T>(timeout: Duration, work: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    tokio::time::timeout(timeout, work).await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
}

/// Sends a framed question and reads one framed answer.
async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    query: &Query,
    ask: &Ask,
    limits: Limits,
) -> std::io::Result<Result<Reply, Unusable>> {
    let length = u16::try_from(query.bytes.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query.bytes.as_slice()].concat()).await?;
    stream.flush().await?;
    let mut frame = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut frame).await?;
    Ok(read(&frame, query.id, query.question(), ask, limits))
}

struct Query {
    id: u16,
    bytes: Vec<u8>,
    question_end: usize,
}

impl Query {
    /// `mixed` writes the name in random letters (0x20), which an answer must repeat.
    fn new(ask: &Ask, mixed: bool) -> std::io::Result<Self> {
        let random = random::bytes::<34>()?;
        let id = u16::from_be_bytes([random[0], random[1]]);
        let mut bytes = Vec::with_capacity(HEADER + ask.name.as_bytes().len() + 15);
        bytes.extend(id.to_be_bytes());
        // Recursion desired; we want to know whether upstream believes the answer (AD).
        bytes.extend([1, 0x20 | if ask.cd { 0x10 } else { 0 }, 0, 1, 0, 0, 0, 0, 0, 1]);
        for (index, byte) in ask.name.as_bytes().iter().enumerate() {
            let upper = mixed && random[2 + index / 8] >> (index % 8) & 1 == 1;
            bytes.push(if upper { byte.to_ascii_uppercase() } else { *byte });
        }
        bytes.extend(ask.kind.to_be_bytes());
        bytes.extend(CLASS_IN.to_be_bytes());
        let question_end = bytes.len();
        bytes.push(0);
        bytes.extend(rtype::OPT.to_be_bytes());
        bytes.extend(MAX_UDP_PAYLOAD.to_be_bytes());
        bytes.extend([0, 0, if ask.dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
        Ok(Self { id, bytes, question_end })
    }

    fn question(&self) -> &[u8] {
        &self.bytes[HEADER..self.question_end]
    }
}
