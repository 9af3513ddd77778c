//! A gRPC service on a socket of the test's own.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::task::AbortHandle;

/// Ends the service and removes its socket.
pub struct Stop {
    task: AbortHandle,
    socket: PathBuf,
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Serves until the answer is dropped. Has to be called inside a runtime.
pub fn serve<S>(socket: &Path, service: S) -> Stop
where
    S: tower::Service<
            http::Request<hyper::body::Incoming>,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
        > + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    let _ = std::fs::remove_file(socket);
    // Ready before it has its name: who watches the folder finds it listening.
    let hidden = socket.with_file_name(format!(".{}", socket.file_name().unwrap().to_string_lossy()));
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).unwrap();
    std::fs::rename(&hidden, socket).unwrap();
    let task = tokio::spawn(async move {
        let mut all = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            all.spawn(async move { http.serve_connection(TokioIo::new(stream), service).await });
        }
    });
    Stop { task: task.abort_handle(), socket: socket.to_owned() }
}
