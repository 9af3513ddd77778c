//! Questions for others: asked once for all who wait, remembered for as long as the answer allows.

mod cache;
mod message;
mod upstream;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

pub use cache::{Cache, Lookup, STALE_TTL};
pub use message::{Ask, Limits, Records, Reply};
use upstream::Upstream;

use crate::config::{DnsConfig, UpstreamAddress};
use crate::kind::rtype;
use crate::name::WireName;
use crate::{Error, Result, random};

/// RFC 8767: clients give up soon after; an old answer by then is better than a new one too late.
const STALE_AFTER: Duration = Duration::from_millis(1800);
/// Questions that wait for an upstream at one time; more fail at once.
const MAX_WAITING: usize = 1024;

type Waiting = Shared<BoxFuture<'static, Option<Arc<Reply>>>>;

/// Cheap to clone.
#[derive(Clone)]
pub struct Forwarder(Arc<Inner>);

struct Inner {
    routes: Vec<Route>,
    timeout: Duration,
    limits: Limits,
    cache: Cache,
    waiting: Mutex<HashMap<Box<[u8]>, Waiting>>,
    /// A name that nobody but us asks for, and only at the start: who asks us for it sends us our own questions.
    probe: WireName,
    pub counters: Counters,
}

#[derive(Default)]
pub struct Counters {
    pub hits: AtomicU64,
    pub stale: AtomicU64,
    pub misses: AtomicU64,
    pub prefetches: AtomicU64,
    pub coalesced: AtomicU64,
    pub failures: AtomicU64,
}

/// Who answers for the names below `zone`.
struct Route {
    zone: WireName,
    upstreams: Vec<Upstream>,
}

impl Forwarder {
    pub fn new(config: &DnsConfig, own: &[SocketAddr]) -> Result<Self> {
        let all = config.stub_domains.iter().flat_map(|(_, upstreams)| upstreams).chain(&config.upstreams);
        let roots = match all.clone().any(|upstream| upstream.tls.is_some()) {
            true => Some(roots(config)?),
            false => None,
        };
        let route = |zone, upstreams: &[UpstreamAddress]| {
            // Asking ourselves would never end.
            let others = upstreams.iter().filter(|upstream| !own.contains(&upstream.address));
            let upstreams = others.map(|upstream| Upstream::new(upstream, roots.as_ref())).collect::<Result<_>>()?;
            Ok(Route { zone, upstreams })
        };
        let mut routes = Vec::new();
        for (zone, upstreams) in &config.stub_domains {
            let zone = WireName::parse(zone).ok_or_else(|| Error::InvalidDomain(zone.clone()))?;
            routes.push(route(zone, upstreams)?);
        }
        routes.push(route(WireName::ROOT, &config.upstreams)?);
        // The longest zone that holds a name is the first that does.
        routes.sort_by_key(|route| std::cmp::Reverse(route.zone.labels().count()));
        let random: [u8; 12] = random::bytes().map_err(Error::Random)?;
        let label: String = random.iter().map(|byte| char::from(b'a' + byte % 26)).collect();
        let probe = WireName::parse(&format!("{label}.loop-probe.invalid")).unwrap_or(WireName::ROOT);
        Ok(Self(Arc::new(Inner {
            routes,
            timeout: config.upstream_timeout,
            limits: Limits { positive: config.max_ttl, negative: config.max_negative_ttl },
            cache: Cache::new(config.cache_bytes, config.serve_stale),
            waiting: Mutex::default(),
            probe,
            counters: Counters::default(),
        })))
    }

    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub fn cache_usage(&self) -> (usize, usize) {
        self.0.cache.usage()
    }

    /// Whether `name` is our own question coming back.
    pub fn is_probe(&self, name: &WireName) -> bool {
        *name == self.0.probe && !name.is_root()
    }

    /// What is known without asking anyone; `true` if it should be fetched again now.
    pub fn cached(&self, ask: &Ask, now: Instant) -> Option<(Arc<Reply>, u32, bool)> {
        let counters = &self.0.counters;
        match self.0.cache.get(ask, now) {
            Lookup::Fresh { reply, age, refresh } => {
                counters.hits.fetch_add(1, Ordering::Relaxed);
                Some((reply, age, refresh))
            }
            Lookup::Stale { reply, only: true } => {
                counters.stale.fetch_add(1, Ordering::Relaxed);
                Some((stale(&reply), 0, false))
            }
            Lookup::Stale { .. } | Lookup::Miss => {
                counters.misses.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Fetches again what will soon be asked for.
    pub fn refresh(&self, ask: Ask) {
        self.0.counters.prefetches.fetch_add(1, Ordering::Relaxed);
        self.begin(&ask);
    }

    /// The answer of whoever is responsible, or the old one if nobody answers; `None` if there is neither.
    pub async fn resolve(&self, ask: &Ask) -> Option<Arc<Reply>> {
        let old = match self.0.cache.get(ask, Instant::now()) {
            Lookup::Stale { reply, .. } => Some(reply),
            _ => None,
        };
        let asking = self.begin(ask)?;
        let Some(old) = old else { return asking.await };
        let counters = &self.0.counters;
        match tokio::time::timeout(STALE_AFTER, asking).await {
            Ok(Some(reply)) => return Some(reply),
            Ok(None) => self.0.cache.failed(ask, Instant::now()),
            // It goes on, for those who ask later.
            Err(_) => {}
        }
        counters.stale.fetch_add(1, Ordering::Relaxed);
        Some(stale(&old))
    }

    /// Starts to ask, or joins who asks already.
    fn begin(&self, ask: &Ask) -> Option<Waiting> {
        let mut buffer = [0; 258];
        let key = ask.key(&mut buffer);
        let mut waiting = self.0.waiting.lock();
        if let Some(asking) = waiting.get(key) {
            self.0.counters.coalesced.fetch_add(1, Ordering::Relaxed);
            return Some(asking.clone());
        }
        if waiting.len() >= MAX_WAITING {
            return None;
        }
        let (inner, ask, own_key) = (Arc::clone(&self.0), *ask, Box::<[u8]>::from(key));
        let running = tokio::spawn(async move {
            let reply = inner.ask(&ask).await.map(Arc::new);
            if let Some(reply) = &reply {
                inner.cache.insert(&ask, Arc::clone(reply), Instant::now());
            }
            inner.waiting.lock().remove(&own_key);
            reply
        });
        let asking: Waiting = async move { running.await.ok().flatten() }.boxed().shared();
        waiting.insert(key.into(), asking.clone());
        Some(asking)
    }

    /// Asks every upstream for a name that only we know. Returns once they answered or did not.
    pub async fn detect_loops(&self, arrived: &tokio::sync::Notify) {
        let ask = Ask { name: self.0.probe, kind: rtype::HINFO, dnssec_ok: false, cd: false };
        for upstream in self.0.routes.iter().flat_map(|route| &route.upstreams) {
            let asking = upstream.ask(&ask, self.0.timeout, self.0.limits);
            tokio::select! {
                biased;
                () = arrived.notified() => {
                    tracing::error!(upstream = %upstream.address,
                        "this resolver sends our questions back to us; it is not asked any more: configure another");
                    upstream.loops.store(true, Ordering::Relaxed);
                }
                _ = asking => {}
            }
        }
    }
}

impl Inner {
    async fn ask(&self, ask: &Ask) -> Option<Reply> {
        let route = self.routes.iter().find(|route| ask.name.under(&route.zone).is_some())?;
        let now = Instant::now();
        let (well, unwell): (Vec<_>, Vec<_>) = route.upstreams.iter().partition(|upstream| upstream.is_well(now));
        // Those that seem down are asked when all are.
        let order = well.into_iter().chain(unwell).filter(|upstream| !upstream.loops.load(Ordering::Relaxed));
        let order: Vec<&Upstream> = order.collect();
        // Two rounds of half the patience: a lost packet should not cost as much as a dead server.
        for upstream in order.iter().chain(&order) {
            match upstream.ask(ask, self.timeout / 2, self.limits).await {
                Ok(Ok(reply)) => {
                    upstream.succeeded();
                    return Some(reply);
                }
                // A broken or unwilling resolver; the next one may know.
                Ok(Err(reason)) => {
                    tracing::debug!(upstream = %upstream.address, name = %ask.name, ?reason, "upstream cannot answer");
                }
                Err(error) => {
                    upstream.failed(Instant::now());
                    tracing::debug!(upstream = %upstream.address, name = %ask.name, %error, "upstream does not answer");
                }
            }
        }
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        None
    }
}

/// The same, saying of itself that it is old.
fn stale(reply: &Arc<Reply>) -> Arc<Reply> {
    Arc::new(Reply { stale: true, ..Reply::clone(reply) })
}

/// Whom to believe that a resolver is who it says.
fn roots(config: &DnsConfig) -> Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    match &config.tls_ca {
        Some(path) => {
            let failed = |error: String| Error::Roots { path: path.clone(), error };
            let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
            for certificate in
                <rustls_pki_types::CertificateDer<'_> as rustls_pki_types::pem::PemObject>::pem_slice_iter(&pem)
            {
                let certificate = certificate.map_err(|error| failed(error.to_string()))?;
                roots.add(certificate).map_err(|error| failed(error.to_string()))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Error::Tls(error.to_string()))?;
    let mut client = builder.with_root_certificates(roots).with_no_client_auth();
    client.alpn_protocols = vec![b"dot".to_vec()];
    Ok(Arc::new(client))
}
