//! The members of the cluster: one lazy connection each, and calls that move on to the next when one fails.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use super::EtcdConfig;
use crate::Error;

const CONNECT: Duration = Duration::from_secs(2);
/// etcd cuts off clients that ping more often than every 5 s, or ping without a call running.
const PING: Duration = Duration::from_secs(10);
/// Between rounds through all members while none answers.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Members {
    channels: Vec<Channel>,
    /// The one that answered last.
    current: AtomicUsize,
    timeout: Duration,
    patience: Duration,
}

/// A failed call, and whether the request may have been carried out all the same.
pub(super) struct Failure {
    pub status: Status,
    pub maybe_done: bool,
}

impl Members {
    pub fn new(config: &EtcdConfig) -> Result<Self, Error> {
        if config.endpoints.is_empty() {
            return Err(Error::Invalid("no etcd endpoint is given".to_owned()));
        }
        let channels = config.endpoints.iter().map(|url| connect(url, config)).collect::<Result<_, _>>()?;
        Ok(Self {
            channels,
            current: AtomicUsize::new(0),
            timeout: config.request_timeout,
            patience: config.request_timeout * 3,
        })
    }

    fn client(&self, index: usize) -> Grpc<Channel> {
        // A list is as long as it is; the limit is etcd's.
        Grpc::new(self.channels[index].clone()).max_decoding_message_size(usize::MAX)
    }

    /// Makes the next call start at another member, unless someone else moved on already.
    fn leave(&self, index: usize) {
        let next = (index + 1) % self.channels.len();
        let _ = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// One request, one answer. `repeatable` requests are sent again even if they may have been carried out.
    pub async fn call<Q, A>(&self, path: &'static str, request: Q, repeatable: bool) -> Result<A, Failure>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let once = |mut client: Grpc<Channel>| {
            let request = request.clone();
            async move {
                client.ready().await.map_err(|e| Status::from_error(e.into()))?;
                let codec = ProstCodec::<Q, A>::default();
                let path = PathAndQuery::from_static(path);
                client.unary(wrap(request), path, codec).await.map(tonic::Response::into_inner)
            }
        };
        self.until_answered(repeatable, once).await
    }

    /// A request on a stream of its own, answered once.
    pub async fn call_streamed<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Failure>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let once = |client| {
            let request = request.clone();
            async move {
                let (mut answers, _) = open::<Q, A>(client, path, request).await?;
                answers.message().await?.ok_or_else(|| Status::unavailable("the stream ended without an answer"))
            }
        };
        self.until_answered(true, once).await
    }

    /// Opens a stream with its first request; later ones go through the sender.
    pub async fn stream<Q, A>(&self, path: &'static str, first: Q) -> Result<Open<Q, A>, Failure>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.until_answered(true, |client| open(client, path, first.clone())).await
    }

    async fn until_answered<T, F>(&self, repeatable: bool, once: impl Fn(Grpc<Channel>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let deadline = Instant::now() + self.patience;
        let mut maybe_done = false;
        for attempt in 1.. {
            let index = self.current.load(Ordering::Relaxed);
            let status = match tokio::time::timeout(self.timeout, once(self.client(index))).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("no answer within {:?}", self.timeout)),
            };
            let Some(harmless) = temporary(&status) else { return Err(Failure { status, maybe_done }) };
            maybe_done |= !harmless;
            self.leave(index);
            if (maybe_done && !repeatable) || Instant::now() >= deadline {
                return Err(Failure { status, maybe_done });
            }
            tracing::debug!(member = index, error = %status, "etcd member failed, trying the next");
            if attempt % self.channels.len() == 0 {
                tokio::time::sleep(PAUSE).await;
            }
        }
        unreachable!("the loop ends by returning")
    }
}

/// Answers, and where further requests go.
type Open<Q, A> = (Streaming<A>, tokio::sync::mpsc::Sender<Q>);

async fn open<Q, A>(mut client: Grpc<Channel>, path: &'static str, first: Q) -> Result<Open<Q, A>, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let _ = sender.try_send(first);
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    client.ready().await.map_err(|e| Status::from_error(e.into()))?;
    let codec = ProstCodec::<Q, A>::default();
    let answers = client.streaming(wrap(requests), PathAndQuery::from_static(path), codec).await?;
    Ok((answers.into_inner(), sender))
}

/// Asks the member to refuse, rather than wait, while it sees no leader.
fn wrap<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    request
}

/// `None` for an answer that another member would give as well; else whether the request surely was not carried out.
fn temporary(status: &Status) -> Option<bool> {
    match status.code() {
        Code::Unavailable => {
            let refused =
                ["no leader", "too many requests", "server stopped"].iter().any(|w| status.message().contains(w));
            Some(refused || never_sent(status))
        }
        // "too many requests" is an overload; other exhaustion (space, message size) is there to stay.
        Code::ResourceExhausted if status.message().contains("too many requests") => Some(true),
        Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal => Some(false),
        _ => None,
    }
}

/// No connection came about, so nothing of the request left this process.
fn never_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn connect(url: &str, config: &EtcdConfig) -> Result<Channel, Error> {
    let wrong = |source: tonic::transport::Error| Error::Backend {
        context: format!("use etcd endpoint {url:?} (expected https://host:port)"),
        source: source.into(),
    };
    let mut endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(wrong)?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(config.request_timeout)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20);
    if url.starts_with("https:") {
        let ca = config.ca_pem.as_ref().ok_or_else(|| {
            Error::Invalid(format!("etcd endpoint {url} uses TLS: the certificate authority to trust is missing"))
        })?;
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        if let Some((cert, key)) = &config.client_pem {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        endpoint = endpoint.tls_config(tls).map_err(wrong)?;
    }
    Ok(endpoint.connect_lazy())
}
