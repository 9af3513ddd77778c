//! Binds the sockets and moves what is asked to where it is answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dhow_client::Client;
use parking_lot::RwLock;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::{Next, Origin, View};
use crate::cookies::Cookies;
use crate::forward::{Ask, Forwarder};
use crate::http::{self, Health};
use crate::limit::Limiter;
use crate::metrics::Metrics;
use crate::name::WireName;
use crate::names::Names;
use crate::watch::Watched;
use crate::zones::Zones;
use crate::zones::keeper::Keeper;
use crate::{DnsConfig, Error, Result, tcp, udp};

/// Questions to others that one answer may take: aliases, and steps of a search path.
const MAX_STEPS: usize = 12;

const ZONES_PATIENCE: Duration = Duration::from_secs(5);

/// A bound server; it answers once it is run.
pub struct Server {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    http: Option<TcpListener>,
    config: DnsConfig,
    shared: Arc<Shared>,
}

/// What the sockets' loops have in common.
pub struct Shared {
    pub view: Arc<View>,
    pub metrics: Arc<Metrics>,
}

impl Server {
    /// Listens on every address by UDP and TCP. With port 0 both get the same free port.
    pub async fn bind(addrs: &[SocketAddr], config: DnsConfig) -> Result<Self> {
        let names = Names::new(&config.domain, config.ttl)?;
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        for address in addrs {
            let failed = |source| Error::Bind { address: *address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            udp.push(UdpSocket::bind(bound).await.map_err(failed)?);
            tcp.push(listener);
        }
        let http = match config.http {
            None => None,
            // Somebody else may have the port; names matter more than being measured.
            Some(address) => TcpListener::bind(address)
                .await
                .inspect_err(|error| tracing::warn!(%address, %error, "cannot serve health and metrics of DNS"))
                .ok(),
        };
        let own: Vec<SocketAddr> = tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let domain = |domain: &String| WireName::parse(domain).ok_or_else(|| Error::InvalidDomain(domain.clone()));
        let search = match &config.search {
            Some(domains) => Some(domains.iter().map(domain).collect::<Result<_>>()?),
            None => None,
        };
        let view = View {
            zones: Zones::default(),
            forwarder: Forwarder::new(&config, &own)?,
            names: RwLock::new(names),
            search,
            cookies: Cookies::new()?,
            limiter: config.rate_limit.map(|limit| Limiter::new(limit, config.trusted.clone(), Instant::now())),
            rotation: AtomicUsize::new(0),
            loop_seen: tokio::sync::Notify::new(),
        };
        let shared = Arc::new(Shared { view: Arc::new(view), metrics: Arc::default() });
        Ok(Self { udp, tcp, http, config, shared })
    }

    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Watches the cluster through `client` and answers until shut down. Questions that arrive before the
    /// first complete view wait for it: an early "no such name" would be remembered by whoever asked.
    pub async fn run(mut self, client: Client, shutdown: CancellationToken) {
        let view = &self.shared.view;
        let health = Arc::new(Health {
            view: Arc::clone(view),
            metrics: Arc::clone(&self.shared.metrics),
            ready: AtomicBool::new(false),
        });
        let tasks = TaskTracker::new();
        if let Some(listener) = self.http.take() {
            tasks.spawn(http::serve(listener, Arc::clone(&health), shutdown.clone()));
        }
        let watched = Watched::start(&client, view, &self.config, &shutdown);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = watched.synced() => {}
        }
        if let Some(zones) = self.config.zones.clone() {
            let keeper = Keeper::start(client, Arc::clone(view), zones, &shutdown);
            let stop = shutdown.clone();
            let (known, wait) = tokio::sync::oneshot::channel();
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = keeper.synced() => {}
                }
                keeper.run(stop, known).await;
            });
            // The same for zones of users; but the cluster's own names do not wait for long.
            let _ = tokio::time::timeout(ZONES_PATIENCE, wait).await;
        }
        health.ready.store(true, Ordering::Release);
        self.serve(shutdown).await;
        tasks.close();
        tasks.wait().await;
    }

    /// Answers until shut down.
    async fn serve(self, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        for socket in self.udp {
            tasks.spawn(udp::serve(Arc::new(socket), Arc::clone(&self.shared), shutdown.clone()));
        }
        for listener in self.tcp {
            tasks.spawn(tcp::serve(listener, Arc::clone(&self.shared), shutdown.clone()));
        }
        let (view, stop) = (Arc::clone(&self.shared.view), shutdown.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = view.forwarder.detect_loops(&view.loop_seen) => {}
                () = stop.cancelled() => {}
            }
        });
        tasks.close();
        tasks.wait().await;
    }
}

impl Shared {
    /// The reply to a question that others are needed for, beginning with what `first` asks.
    pub async fn finish(&self, bytes: Vec<u8>, origin: Origin, first: Ask) -> Vec<u8> {
        let mut known = Vec::new();
        let mut ask = first;
        let mut out = Vec::new();
        for _ in 0..MAX_STEPS {
            let reply = self.view.forwarder.resolve(&ask).await;
            if reply.is_none() {
                tracing::debug!(name = %ask.name, "cannot resolve");
            }
            known.push((ask, reply));
            out.clear();
            match self.view.answer(&bytes, origin, &known, &mut out) {
                Next::Ask(next) => ask = next,
                Next::Send { kind, rcode, .. } => {
                    self.metrics.answered(origin.transport, kind, rcode, origin.now.elapsed());
                    return out;
                }
                Next::Silent | Next::Transfer => return Vec::new(),
            }
        }
        self.view.fail(&bytes, &mut out);
        out
    }
}
