//! The listener: HTTP/1.1 and HTTP/2, plain or over TLS.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::request::Incoming;
use crate::{Registry, User};

/// What open connections get to finish at shutdown.
const FAREWELL: Duration = Duration::from_secs(10);
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEAD: Duration = Duration::from_secs(30);

impl Registry {
    /// Serves until `shutdown`, then lets what is under way end.
    pub async fn serve(self, listener: TcpListener, tls: Option<Arc<ServerConfig>>, shutdown: CancellationToken) {
        let acceptor = tls.map(TlsAcceptor::from);
        let connections = TaskTracker::new();
        loop {
            let accepted =
                tokio::select! { accepted = listener.accept() => accepted, () = shutdown.cancelled() => break };
            let tcp = match accepted {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    // Usually "too many open files": give connections a moment to close.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let _ = tcp.set_nodelay(true);
            let (registry, acceptor, shutdown) = (self.clone(), acceptor.clone(), shutdown.clone());
            connections.spawn(async move {
                match acceptor {
                    None => registry.connection(tcp, false, None, shutdown).await,
                    Some(acceptor) => {
                        if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await {
                            let chain = stream.get_ref().1.peer_certificates();
                            let user = chain.and_then(|chain| User::of_certificate(chain.first()?));
                            registry.connection(stream, true, user, shutdown).await;
                        }
                    }
                }
            });
        }
        connections.close();
        let _ = tokio::time::timeout(FAREWELL, connections.wait()).await;
    }

    async fn connection(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        tls: bool,
        user: Option<User>,
        shutdown: CancellationToken,
    ) {
        let service = service_fn(move |request: Request<Incoming>| {
            let (registry, user) = (self.clone(), user.clone());
            async move { Ok::<_, Infallible>(registry.0.answer(request, tls, user).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(1 << 20);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(256 << 10)
            .max_concurrent_streams(250)
            .keep_alive_interval(Duration::from_secs(30));
        let connection = builder.serve_connection(TokioIo::new(stream), service);
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
}
