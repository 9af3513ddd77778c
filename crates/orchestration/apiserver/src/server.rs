//! The listener: our own accept loop, TLS, HTTP/1.1 with upgrades and HTTP/2; and the same server in process.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dhow_api::Status;
use dhow_client::{Body, Client, Transport};
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::Source;
use crate::identity::{self, Peer, UserInfo};
use crate::{ApiServer, encode, pipeline, stream};

/// Largest body of a request, as upstream's: an etcd value and some room.
const MAX_BODY: usize = 3 << 20;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// All headers of a request: tokens that carry many groups are long.
const MAX_HEADERS: u32 = 256 << 10;
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
                    let (server, acceptor, shutdown) = (self.clone(), acceptor.clone(), shutdown.clone());
                    connections.spawn(async move { server.connection(tcp, from.ip(), acceptor, shutdown).await });
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
        from: IpAddr,
        acceptor: TlsAcceptor,
        shutdown: CancellationToken,
    ) {
        let _ = tcp.set_nodelay(true);
        let Ok(Ok(tls)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await else { return };
        let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let peer = match certificate.map(|der| identity::from_certificate(der)) {
            Some(Ok(user)) => Peer::Certificate(Arc::new(user)),
            _ => Peer::Unproven,
        };
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Source(from));
            let (server, peer) = (self.clone(), peer.clone());
            async move { Ok::<_, std::convert::Infallible>(server.answer(peer, request).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(256 << 10)
            .initial_connection_window_size(25 << 20)
            .max_concurrent_streams(1000)
            .max_header_list_size(MAX_HEADERS)
            .keep_alive_interval(Duration::from_secs(30));
        builder.http1().timer(TokioTimer::new());
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error, "connection ended");
        }
    }

    async fn answer(self: &Arc<Self>, peer: Peer, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        if let Some(remote) = self.aggregator.claim(parts.uri.path()) {
            let body = body.map_err(|error| dhow_client::Error::connection("the client's body broke off", error));
            return pipeline::relay(self, peer, &remote, Request::from_parts(parts, body.boxed_unsync())).await;
        }
        match pipeline::authorize_stream(self, &peer, &parts).await {
            Ok(Some((destination, trail))) => {
                return stream::forward(self, destination, Request::from_parts(parts, body), trail)
                    .await
                    .unwrap_or_else(|status| encode::status(&status, &encode::Accept::default()));
            }
            Ok(None) => {}
            Err(status) => return encode::status(&status, &encode::Accept::default()),
        }
        // What announces itself as too large is not read at all.
        if http_body::Body::size_hint(&body).lower() > MAX_BODY as u64 {
            return encode::status(&Status::too_large(MAX_BODY), &encode::Accept::default());
        }
        match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => pipeline::handle(self, peer, Request::from_parts(parts, body.to_bytes())).await,
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                encode::status(&Status::too_large(MAX_BODY), &encode::Accept::default())
            }
            Err(error) => {
                encode::status(&Status::bad_request(format!("read the body: {error}")), &encode::Accept::default())
            }
        }
    }

    /// A client inside the process, bound to an identity. It takes the same pipeline, authorisation included.
    pub fn client(self: &Arc<Self>, user: UserInfo) -> Client {
        Client::new(Arc::new(InProcess { server: self.clone(), user: Arc::new(user) }))
    }
}

struct InProcess {
    server: Arc<ApiServer>,
    user: Arc<UserInfo>,
}

#[async_trait::async_trait]
impl Transport for InProcess {
    async fn call(&self, request: Request<Bytes>) -> Result<Response<Body>, dhow_client::Error> {
        Ok(pipeline::handle(&self.server, Peer::Process(self.user.clone()), request).await)
    }
}
