//! CRI v1 over any [`Runtime`], so that crictl and other kubelets can use the embedded one.
//!
//! gRPC is spoken on a socket for root only. Exec, attach and port-forward are handed out as URLs of a small HTTP server on
//! loopback; each is good once and for a minute, see [`streaming`].

mod answer;
mod images;
mod names;
mod request;
mod runtime;
mod streaming;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::proto::image_service_server::ImageServiceServer;
use crate::proto::runtime_service_server::RuntimeServiceServer;
use crate::{Error, Runtime, socket};
use names::Names;
use streaming::Tickets;

/// As the client side: lists of a full node are longer than gRPC's usual limit.
const MAX_MESSAGE: usize = 16 << 20;
/// Before accepting again when that failed, for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What the calls work on; one for all connections.
struct Service {
    runtime: Arc<dyn Runtime>,
    /// Names of sandboxes and containers that are being made.
    names: Names,
    tickets: Arc<Tickets>,
    /// A folder on the file system of the images.
    images_folder: PathBuf,
}

/// The service as the streams of its calls outlive them.
#[derive(Clone)]
struct Shared(Arc<Service>);

impl std::ops::Deref for Shared {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.0
    }
}

/// A bound server.
pub struct CriServer {
    listener: UnixListener,
    streams: TcpListener,
    service: Shared,
}

impl CriServer {
    /// Listens at `socket`, for root only.
    pub async fn bind(socket: &Path, runtime: Arc<dyn Runtime>, images_folder: PathBuf) -> Result<Self, Error> {
        let listener = socket::listen(socket)?;
        let streams = TcpListener::bind("127.0.0.1:0").await;
        let streams = streams.map_err(|error| Error::internal("listen for streams on loopback", error))?;
        let address = streams.local_addr().map_err(|error| Error::internal("listen for streams", error))?;
        let tickets = Arc::new(Tickets::new(address));
        let service = Service { runtime, names: Names::default(), tickets, images_folder };
        Ok(Self { listener, streams, service: Shared(Arc::new(service)) })
    }

    /// Serves until `shutdown`, then lets go of every connection.
    pub async fn run(self, shutdown: CancellationToken) {
        let streams = streaming::serve(self.streams, self.service.clone());
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = accept(&self.listener, &self.service, &shutdown) => {}
            () = streams => {}
        }
    }
}

async fn accept(listener: &UnixListener, service: &Shared, shutdown: &CancellationToken) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a CRI client");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let runtime = RuntimeServiceServer::new(service.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let images = ImageServiceServer::new(service.clone()).max_encoding_message_size(MAX_MESSAGE);
        let serve = service_fn(move |request: Request<Incoming>| {
            let (runtime, images) = (runtime.clone(), images.clone());
            async move {
                let path = request.uri().path();
                // Each answers "unimplemented" for calls that it does not know.
                let answer = if path.starts_with("/runtime.v1.ImageService/") {
                    images.oneshot(request).await
                } else {
                    runtime.oneshot(request).await
                };
                answer.map_err(|never: Infallible| never)
            }
        });
        let connection = async move {
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            if let Err(error) = http.serve_connection(TokioIo::new(stream), serve).await {
                tracing::debug!(%error, "a CRI connection ended");
            }
        };
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(connection));
    }
}

/// What a failure is on the wire.
fn status(error: Error) -> tonic::Status {
    use tonic::Status;
    let text = error.to_string();
    match error {
        Error::NotFound { .. } => Status::not_found(text),
        Error::AlreadyExists { .. } => Status::already_exists(text),
        Error::FailedPrecondition(_) => Status::failed_precondition(text),
        Error::InvalidArgument(_) => Status::invalid_argument(text),
        Error::DeadlineExceeded(_) => Status::deadline_exceeded(text),
        // Kubelets know this text from other runtimes.
        Error::CannotRun(message) => Status::unknown(format!("OCI runtime failed: {message}")),
        Error::ImagePull { .. } | Error::Network(_) => Status::unknown(text),
        Error::Internal { .. } => Status::internal(dhow_base::chain(&error)),
    }
}
