//! The Kubernetes API server: one request pipeline over a `Kv` store.
//!
//! Start reading at [`pipeline`], the list of what happens to every request.

mod access;
mod admission;
mod aggregate;
mod allocate;
mod audit;
mod authenticate;
mod backup;
mod body;
mod bootstrap;
mod bootstrap_token;
mod cache;
mod changes;
mod compress;
mod connections;
mod convert;
mod definitions;
mod delete;
mod encode;
mod error;
mod escalation;
mod eviction;
mod families;
mod flow;
mod graft;
mod health;
mod held;
mod identity;
mod impersonate;
mod info;
mod legacy_tokens;
mod members;
mod metrics;
mod node_authorizer;
mod object;
mod offload;
mod oidc;
mod options;
mod paths;
mod pipeline;
mod policy;
mod proxy;
mod rbac;
mod read;
mod reconcile;
mod review;
mod revision;
mod server;
mod service_cidrs;
mod store;
mod stream;
mod subresource;
mod token_request;
mod tokens;
mod watch;
mod webhook;
mod write;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use arc_swap::ArcSwap;
use dhow_base::pki::SaKey;
use dhow_client::Extension;
use dhow_store::Kv;
use rustls::ClientConfig;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use access::AccessConfig;
pub use admission::images::{ImageJudge, ImageVerdict, PodImages};
pub use aggregate::{FRONT_PROXY_CLIENT, FrontProxy};
pub use allocate::ServiceRange;
pub use audit::{AuditConfig, AuditFile, AuditWebhook, Policy as AuditPolicy};
pub use bootstrap::NETWORKS;
pub use connections::Limits;
pub use error::Error;
pub use identity::UserInfo;
pub use members::PREFIX as MEMBERS;
pub use oidc::AuthenticationConfig;
pub use store::SENSITIVE;

/// What the server is told once, at start.
pub struct Config {
    /// Where clients inside the cluster reach this server, behind `default/kubernetes`.
    pub advertise: SocketAddr,
    /// One range of each address family, the default one first.
    pub service_ranges: Vec<ServiceRange>,
    /// Address of `default/kubernetes`.
    pub api_service_ip: IpAddr,
    pub node_ports: RangeInclusive<u16>,
    /// Signs service-account tokens.
    pub sa_key: SaKey,
    /// How the server proves itself to node agents, and whom it believes.
    pub node_tls: Arc<ClientConfig>,
    /// Seconds after which a server that went silent is no longer an endpoint of `default/kubernetes`; `None` if the
    /// store is this server's alone.
    pub member_ttl: Option<u64>,
    /// Writes a backup of the store, if the store's backups are ours to make.
    pub backup: Option<BackupSource>,
    /// Says which images pods may run; `None`: all.
    pub image_judge: Option<Arc<dyn ImageJudge>>,
    pub access: AccessConfig,
}

/// Writes a consistent backup of the store; blocks for as long as the writer takes.
pub type BackupSource = Arc<dyn Fn(&mut dyn io::Write) -> io::Result<()> + Send + Sync>;

/// A running API server. Shared by its connections and in-process clients.
pub struct ApiServer {
    store: store::ObjectStore,
    definitions: definitions::Definitions,
    authorizer: Arc<rbac::Authorizer>,
    policies: policy::Policies,
    allocator: allocate::Allocator,
    tokens: tokens::Tokens,
    access: AccessConfig,
    issuers: Option<oidc::Issuers>,
    audit: Option<Arc<audit::Log>>,
    flow: Option<Arc<flow::Flow>>,
    /// Where clients inside the cluster find this server.
    advertise: SocketAddr,
    node_tls: TlsConnector,
    backup: Option<BackupSource>,
    image_judge: Option<Arc<dyn ImageJudge>>,
    metrics: metrics::Metrics,
    quotas: admission::quota::Quotas,
    webhooks: admission::webhooks::Webhooks,
    aggregator: aggregate::Aggregator,
    /// Parts of the cloud that answer for themselves.
    extensions: ArcSwap<Vec<Arc<dyn Extension>>>,
    legacy_uses: legacy_tokens::Uses,
    /// What has to be finished before the server has ended.
    tasks: TaskTracker,
    door: Arc<connections::Door>,
    shutdown: CancellationToken,
}

impl ApiServer {
    /// Loads the state, and creates the objects every cluster has. Does not listen yet.
    pub async fn new(kv: Arc<dyn Kv>, mut config: Config, shutdown: CancellationToken) -> Result<Arc<Self>, Error> {
        let mut access = std::mem::take(&mut config.access);
        let metrics = metrics::Metrics::new();
        let audit = access.audit.take().map(|audit| audit::Log::open(audit, &metrics)).transpose()?;
        let cache = cache::Cache::start(kv.clone(), shutdown.clone()).await?;
        let seats = access.seats.unwrap_or(flow::SEATS);
        let flow = (seats > 0).then(|| flow::Flow::new(cache.clone(), seats, metrics.registry()));
        let allocator =
            allocate::Allocator::new(cache.clone(), config.service_ranges.clone(), config.node_ports.clone());
        let server = Arc::new(Self {
            definitions: definitions::Definitions::load(&cache),
            store: store::ObjectStore::new(kv.clone(), cache.clone()),
            authorizer: Arc::new(rbac::Authorizer::new(cache.clone())),
            policies: policy::Policies::new(cache.clone()),
            allocator,
            tokens: tokens::Tokens::new(&config.sa_key, access.issuer.as_deref(), &access.verification_keys)?,
            issuers: access.issuers()?,
            audit,
            flow,
            aggregator: aggregate::Aggregator::new(cache.clone(), access.front_proxy.as_ref()),
            extensions: ArcSwap::default(),
            access,
            advertise: config.advertise,
            node_tls: TlsConnector::from(config.node_tls.clone()),
            backup: config.backup.clone(),
            image_judge: config.image_judge.clone(),
            metrics,
            quotas: admission::quota::Quotas::default(),
            webhooks: admission::webhooks::Webhooks::new(cache),
            legacy_uses: legacy_tokens::Uses::default(),
            tasks: TaskTracker::new(),
            door: Arc::default(),
            shutdown,
        });
        bootstrap::ensure(&server, &config).await.map_err(Error::Bootstrap)?;
        aggregate::publish(&server).await.map_err(Error::Bootstrap)?;
        aggregate::ensure_local(&server).await.map_err(Error::Bootstrap)?;
        legacy_tokens::start(&server).map_err(Error::Bootstrap)?;
        if let Some(ttl) = config.member_ttl {
            let member = members::Member::join(kv, config.advertise, ttl).await.map_err(Error::Store)?;
            let client = server.client(UserInfo::new(bootstrap::SERVER, &[identity::MASTERS]));
            server.tasks.spawn(member.stay(client, server.shutdown.clone()));
        }
        tokio::spawn(admission::quota::follow(server.clone()));
        tokio::spawn(definitions::follow(server.clone()));
        tokio::spawn(policy::follow(server.clone()));
        tokio::spawn(aggregate::follow(server.clone()));
        Ok(server)
    }
}
