//! Health-check node ports: load balancers ask there whether this node has endpoints of a service whose external
//! traffic stays on the node.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dhow_client::Key;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::{Family, Net, Result};

/// Load balancers ask every few seconds on a connection each; more at once are not theirs.
const MAX_CONNECTIONS: usize = 64;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What the port of a service says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HealthCheck {
    pub port: u16,
    /// Ready endpoints on this node.
    pub local_endpoints: usize,
}

#[derive(Debug)]
struct Server {
    port: u16,
    local_endpoints: watch::Sender<usize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The open ports, by service. They close with this value.
#[derive(Debug, Default)]
pub(crate) struct HealthServers(BTreeMap<Key, Server>);

impl HealthServers {
    /// Opens, changes or closes the service's port. An error leaves it closed.
    pub async fn set(&mut self, net: &Net, service: &Key, wanted: Option<HealthCheck>) -> Result<()> {
        let Some(wanted) = wanted else {
            self.close(service).await;
            return Ok(());
        };
        if let Some(server) = self.0.get(service).filter(|server| server.port == wanted.port) {
            server.local_endpoints.send_replace(wanted.local_endpoints);
            return Ok(());
        }
        self.close(service).await;
        // One that is bound to all IPv6 addresses takes IPv4 connections as well.
        let any = match net.config().networks().any(|networks| networks.family() == Family::V6) {
            true => Ipv6Addr::UNSPECIFIED.into(),
            false => Ipv4Addr::UNSPECIFIED.into(),
        };
        let listener = net.kernel.listen(SocketAddr::new(any, wanted.port)).await?;
        let (local_endpoints, seen) = watch::channel(wanted.local_endpoints);
        let task = tokio::spawn(serve(listener, service.clone(), seen));
        self.0.insert(service.clone(), Server { port: wanted.port, local_endpoints, task });
        Ok(())
    }

    /// Returns when the port is free again.
    async fn close(&mut self, service: &Key) {
        if let Some(mut server) = self.0.remove(service) {
            server.task.abort();
            // Ends as cancelled, which is what was asked for.
            let _ = (&mut server.task).await;
        }
    }
}

async fn serve(listener: TcpListener, service: Key, local_endpoints: watch::Receiver<usize>) {
    let service = Arc::new(service);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => stream,
            Ok(_) => continue,
            Err(error) => {
                tracing::warn!(%error, %service, "cannot accept a health check");
                // Out of descriptors: waiting for one to come free is all there is to do.
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let (service, local_endpoints) = (Arc::clone(&service), local_endpoints.clone());
        let answering = hyper::service::service_fn(move |_| {
            let answer = answer(&service, *local_endpoints.borrow());
            async move { Ok::<_, Infallible>(answer) }
        });
        connections.spawn(async move {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT).keep_alive(false);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), answering).await {
                tracing::debug!(%error, "a health check broke off");
            }
        });
    }
}

/// What kube-proxy answers: load balancers' controllers read the weight, people the body.
fn answer(service: &Key, local_endpoints: usize) -> Response<Full<Bytes>> {
    let body = serde_json::json!({
        "service": {"namespace": service.namespace().unwrap_or_default(), "name": &*service.name},
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    if local_endpoints == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    headers.insert("x-load-balancing-endpoint-weight", local_endpoints.into());
    response
}
