//! Questions for others: asked upstream, remembered for as long as the answer allows.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::wire::MAX_UDP_PAYLOAD;
use crate::{DnsConfig, Error, Result};

/// A name that came to be is seen soon, however long upstream would remember that it is not.
const LONGEST_NEGATIVE: u32 = 30;
const LONGEST: u32 = 300;

type Key = (Name, RecordType, DNSClass);

pub(crate) struct Forwarder {
    upstreams: Vec<SocketAddr>,
    timeout: Duration,
    capacity: usize,
    cache: Mutex<HashMap<Key, Cached>>,
}

struct Cached {
    answer: Message,
    stored: Instant,
    expires: Instant,
}

impl Forwarder {
    pub fn new(config: &DnsConfig, own: &[SocketAddr]) -> Self {
        let upstreams = config.upstreams.iter().filter(|upstream| !own.contains(upstream)).copied().collect();
        let (timeout, capacity) = (config.upstream_timeout, config.cache_entries);
        Self { upstreams, timeout, capacity, cache: Mutex::new(HashMap::new()) }
    }

    /// The answer from the cache or the first upstream that has one. Its id means nothing.
    pub async fn resolve(&self, query: &Query) -> Result<Message> {
        let key = (query.name().to_lowercase(), query.query_type(), query.query_class());
        if let Some(answer) = self.cached(&key, Instant::now()) {
            return Ok(answer);
        }
        let mut last = Error::NoUpstream;
        for upstream in &self.upstreams {
            match self.ask(*upstream, query).await {
                Ok(answer) => match answer.metadata.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => {
                        self.remember(key, &answer, Instant::now());
                        return Ok(answer);
                    }
                    // A broken or unwilling resolver; the next one may know.
                    code => tracing::debug!(%upstream, ?code, "upstream cannot answer"),
                },
                Err(source) => {
                    tracing::debug!(%upstream, error = %source, "upstream does not answer");
                    last = Error::Upstream { upstream: *upstream, source };
                }
            }
        }
        Err(last)
    }

    async fn ask(&self, upstream: SocketAddr, query: &Query) -> std::io::Result<Message> {
        let mut question = Message::query();
        question.metadata.op_code = OpCode::Query;
        question.metadata.recursion_desired = true;
        question.add_query(query.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_PAYLOAD);
        question.set_edns(edns);
        let bytes = question.to_vec().map_err(std::io::Error::other)?;
        let timed_out = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
        let by_udp = tokio::time::timeout(self.timeout, ask_udp(upstream, &bytes, &question));
        let answer = by_udp.await.map_err(timed_out)??;
        if !answer.metadata.truncation {
            return Ok(answer);
        }
        tokio::time::timeout(self.timeout, ask_tcp(upstream, &bytes, &question)).await.map_err(timed_out)?
    }

    fn cached(&self, key: &Key, now: Instant) -> Option<Message> {
        let mut cache = self.cache.lock();
        let entry = cache.get(key)?;
        if entry.expires <= now {
            cache.remove(key);
            return None;
        }
        let age = u32::try_from(now.duration_since(entry.stored).as_secs()).unwrap_or(u32::MAX);
        let mut answer = entry.answer.clone();
        for record in answer.answers.iter_mut().chain(&mut answer.authorities).chain(&mut answer.additionals) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(answer)
    }

    fn remember(&self, key: Key, answer: &Message, now: Instant) {
        let ttl = lifetime(answer);
        if ttl == 0 || self.capacity == 0 {
            return;
        }
        let mut cache = self.cache.lock();
        if cache.len() >= self.capacity {
            cache.retain(|_, entry| entry.expires > now);
        }
        if cache.len() >= self.capacity {
            // Full of answers that still hold: half of them go, whichever; this is rare and cheap to repair.
            let mut keep = false;
            cache.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
        let expires = now + Duration::from_secs(u64::from(ttl));
        cache.insert(key, Cached { answer: answer.clone(), stored: now, expires });
    }
}

/// How many seconds an answer may be repeated.
fn lifetime(answer: &Message) -> u32 {
    if let Some(shortest) = answer.answers.iter().map(|record| record.ttl).min() {
        return shortest.min(LONGEST);
    }
    let negative = answer.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    });
    negative.unwrap_or(0).min(LONGEST_NEGATIVE)
}

async fn ask_udp(upstream: SocketAddr, bytes: &[u8], question: &Message) -> std::io::Result<Message> {
    // A socket of its own for each question: its random port is half of what protects the answer.
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What does not belong to our question is somebody's attempt, or late: keep waiting.
        if let Ok(answer) = Message::from_vec(&buffer[..length])
            && answers(question, &answer)
        {
            return Ok(answer);
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, bytes: &[u8], question: &Message) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
    let framed = [&length.to_be_bytes(), bytes].concat();
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    let answer = Message::from_vec(&buffer).map_err(std::io::Error::other)?;
    answers(question, &answer).then_some(answer).ok_or_else(|| std::io::Error::other("an answer to another question"))
}

fn answers(question: &Message, answer: &Message) -> bool {
    let same_query = match (question.queries.as_slice(), answer.queries.as_slice()) {
        ([asked], [repeated]) => {
            asked.name() == repeated.name()
                && asked.query_type() == repeated.query_type()
                && asked.query_class() == repeated.query_class()
        }
        _ => false,
    };
    same_query
        && answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == hickory_proto::op::MessageType::Response
}
