//! The listener: our own accept loop, TLS, HTTP/1.1 with upgrades and HTTP/2; and the same server in process.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dhow_client::{Body, Client, Extension, Transport};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::Source;
use crate::connections::{Activity, Limits, Newcomer};
use crate::identity::{self, Peer, UserInfo};
use crate::{ApiServer, encode, pipeline, stream};

/// All headers of a request: tokens that carry many groups are long.
const MAX_HEADERS: u32 = 256 << 10;
/// Streams a client may have given up before we looked at them; one with more is cut off.
const RESETS: usize = 50;
/// What open connections get to finish at shutdown.
const FAREWELL: Duration = Duration::from_secs(5);

impl ApiServer {
    /// Serves until `shutdown`. A broken connection or handshake concerns that client only.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: Arc<ServerConfig>, shutdown: CancellationToken) {
        let acceptor = TlsAcceptor::from(tls);
        let connections = TaskTracker::new();
        loop {
            let accepted =
                tokio::select! { accepted = listener.accept() => accepted, () = shutdown.cancelled() => break };
            match accepted {
                Ok((tcp, from)) => {
                    let Some(newcomer) = self.door.enter(from.ip(), &self.access.limits) else {
                        tracing::debug!(from = %from.ip(), "refuse a connection: too many have not said who they are");
                        continue;
                    };
                    let (server, acceptor, shutdown) = (self.clone(), acceptor.clone(), shutdown.clone());
                    connections
                        .spawn(async move { server.connection(tcp, (from.ip(), newcomer), acceptor, shutdown).await });
                }
                Err(error) => {
                    // Usually "too many open files": give connections a moment to close.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        connections.close();
        self.tasks.close();
        let _ = tokio::time::timeout(FAREWELL, async { tokio::join!(connections.wait(), self.tasks.wait()) }).await;
    }

    async fn connection(
        self: Arc<Self>,
        tcp: TcpStream,
        (from, newcomer): (IpAddr, Newcomer),
        acceptor: TlsAcceptor,
        shutdown: CancellationToken,
    ) {
        let limits = self.access.limits.clone();
        let _ = tcp.set_nodelay(true);
        let Ok(Ok(tls)) = tokio::time::timeout(limits.handshake, acceptor.accept(tcp)).await else { return };
        let builder = protocol(tls.get_ref().1.alpn_protocol(), &limits);
        let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let peer = match certificate.map(|der| identity::from_certificate(der)) {
            Some(Ok(user)) => {
                newcomer.proven();
                Peer::Certificate(Arc::new(user))
            }
            _ => Peer::Unproven,
        };
        let activity = Activity::new();
        let requests = activity.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Source(from));
            request.extensions_mut().insert(newcomer.clone());
            let (server, peer, busy) = (self.clone(), peer.clone(), requests.begin());
            async move {
                let response = server.answer(peer, request).await;
                Ok::<_, std::convert::Infallible>(response.map(|body| busy.hold(body)))
            }
        });
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
        tokio::pin!(connection);
        let mut look = Instant::now() + limits.head.min(limits.idle);
        let ended = loop {
            tokio::select! {
                ended = connection.as_mut() => break ended,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    break connection.await;
                }
                () = tokio::time::sleep_until(look) => match activity.look_again(&limits, Instant::now()) {
                    Some(again) => look = again,
                    None => {
                        connection.as_mut().graceful_shutdown();
                        // Whoever does not even take the farewell is left.
                        break tokio::time::timeout(FAREWELL, connection).await.unwrap_or(Ok(()));
                    }
                },
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error, "connection ended");
        }
    }

    async fn answer(self: &Arc<Self>, peer: Peer, request: Request<Incoming>) -> Response<Body> {
        match self.stream(&peer, request).await {
            Ok(answer) => answer,
            Err(request) => {
                let broken = |error| dhow_client::Error::connection("the client's body broke off", error);
                pipeline::handle(self, peer, request.map(|body| body.map_err(broken).boxed_unsync())).await
            }
        }
    }

    /// Answers a request for a stream of bytes; gives back any other.
    async fn stream<B>(self: &Arc<Self>, peer: &Peer, request: Request<B>) -> Result<Response<Body>, Request<B>>
    where
        B: hyper::body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let path = request.uri().path();
        if self.extension(path).is_some() || self.aggregator.claim(path).is_some() {
            return Err(request);
        }
        let (parts, body) = request.into_parts();
        let refused = |status| encode::status(&status, &encode::Accept::default());
        match pipeline::authorize_stream(self, peer, &parts).await {
            Ok(Some((destination, trail))) => {
                let request = Request::from_parts(parts, body);
                Ok(stream::forward(self, destination, request, trail).await.unwrap_or_else(refused))
            }
            Ok(None) => Err(Request::from_parts(parts, body)),
            Err(status) => Ok(refused(status)),
        }
    }

    /// Lets a part of the cloud answer paths of its own from now on.
    pub fn extend(&self, extension: Arc<dyn Extension>) {
        self.extensions.rcu(|known| known.iter().cloned().chain([Arc::clone(&extension)]).collect::<Vec<_>>());
    }

    /// Whose path it is, if a part of the cloud answers it.
    pub(crate) fn extension(&self, path: &str) -> Option<Arc<dyn Extension>> {
        self.extensions.load().iter().find(|extension| extension.claims(path)).cloned()
    }

    /// A client inside the process, bound to an identity. It takes the same pipeline, authorisation included.
    pub fn client(self: &Arc<Self>, user: UserInfo) -> Client {
        Client::new(Arc::new(InProcess { server: self.clone(), user: Arc::new(user) }))
    }

    /// What `/metrics` prints; parts that run beside the server put theirs into it.
    pub fn metrics(&self) -> &dhow_base::metrics::Registry {
        self.metrics.registry()
    }
}

/// HTTP as it was agreed on during the handshake. Flow control, limits of streams and resets guard against those who
/// open more than they read.
fn protocol(agreed: Option<&[u8]>, limits: &Limits) -> auto::Builder<TokioExecutor> {
    let builder = auto::Builder::new(TokioExecutor::new());
    // Without an agreement the first bytes tell.
    let mut builder = match agreed {
        Some(b"h2") => builder.http2_only(),
        Some(_) => builder.http1_only(),
        None => builder,
    };
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(25 << 20)
        .max_concurrent_streams(1000)
        .max_pending_accept_reset_streams(RESETS)
        .max_send_buf_size(256 << 10)
        .max_header_list_size(MAX_HEADERS)
        .keep_alive_interval(Duration::from_secs(30));
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.head);
    builder
}

struct InProcess {
    server: Arc<ApiServer>,
    user: Arc<UserInfo>,
}

#[async_trait::async_trait]
impl Transport for InProcess {
    async fn call(&self, request: Request<Bytes>) -> Result<Response<Body>, dhow_client::Error> {
        self.upload(request.map(dhow_client::full)).await
    }

    async fn upload(&self, request: Request<Body>) -> Result<Response<Body>, dhow_client::Error> {
        let peer = Peer::Process(self.user.clone());
        if !may_stream(request.uri().path()) {
            return Ok(pipeline::handle(&self.server, peer, request).await);
        }
        Ok(match self.server.stream(&peer, request).await {
            Ok(answer) => answer,
            Err(request) => pipeline::handle(&self.server, peer, request).await,
        })
    }
}

/// Whether a path needs a closer look: parts of the process ask for objects much more often than for streams.
fn may_stream(path: &str) -> bool {
    path.contains("/proxy/") || path.ends_with("/log")
}
