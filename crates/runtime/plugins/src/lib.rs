//! The wire between a node agent and its plugins: the messages, clients and servers of CSI v1, of device plugins, of drivers
//! of dynamic resource allocation and of plugin registration, and how a socket is reached.
//!
//! What is made of the definitions in `proto/` is checked in. What holds passwords is never printed.

pub mod csi;
mod csi_debug;
pub mod device;
pub mod dra;
pub mod dra_client;
pub mod registration;

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// A socket that nobody answers at is given up after this long.
const CONNECT: Duration = Duration::from_secs(10);

/// Connects to a plugin's socket. Each call that follows may take `limit`, where one is given.
pub async fn connect(socket: &Path, limit: Option<Duration>) -> Result<Channel, tonic::transport::Error> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The name is never resolved; gRPC wants some.
    let mut endpoint = Endpoint::from_static("http://localhost").connect_timeout(CONNECT);
    if let Some(limit) = limit {
        endpoint = endpoint.timeout(limit);
    }
    endpoint.connect_with_connector(connector).await
}
