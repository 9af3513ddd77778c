//! The aggregation layer: group versions that an APIService leads to another server. The kinds of such a server are
//! asked for here and answered there; the caller is proven, authorised and queued here all the same.

mod discovery;
mod follow;
mod local;
mod metrics;
mod proxy;
mod publish;
mod remote;
mod swagger;

use std::sync::Arc;

use arc_swap::ArcSwap;
use dhow_api::registry::builtin;
use dhow_api::{Kind, Status};
use dhow_base::tls::LiveCert;
use tokio::sync::Notify;

use crate::cache::Cache;

pub use discovery::{add_documents, add_groups, aggregated, group};
pub use follow::follow;
pub use local::ensure as ensure_local;
pub use proxy::pass_on;
pub use publish::ensure as publish;
pub use remote::Remote;

pub const GROUP: &str = "apiregistration.k8s.io";

/// How extension servers know that a request comes from this server and no other.
pub struct FrontProxy {
    /// Signs nothing but the certificate of this server, so that nobody else can speak for users.
    pub ca_pem: String,
    pub client: Arc<LiveCert>,
}

/// The name in the certificate.
pub const FRONT_PROXY_CLIENT: &str = "front-proxy-client";

/// The extension servers there are, the one within this server among them.
pub struct Aggregator {
    cache: Arc<Cache>,
    client: Option<Arc<LiveCert>>,
    remotes: ArcSwap<Vec<Arc<Remote>>>,
    /// An extension server did not answer.
    suspected: Notify,
    pub swagger: swagger::Swagger,
    summaries: metrics::Summaries,
}

impl Aggregator {
    pub fn new(cache: Arc<Cache>, front_proxy: Option<&FrontProxy>) -> Self {
        let client = front_proxy.map(|proxy| proxy.client.clone());
        Self {
            cache,
            client,
            remotes: ArcSwap::from_pointee(vec![Arc::new(Remote::here())]),
            suspected: Notify::new(),
            swagger: swagger::Swagger::default(),
            summaries: metrics::Summaries::default(),
        }
    }

    /// The extension servers, by group and version.
    pub fn remotes(&self) -> Arc<Vec<Arc<Remote>>> {
        self.remotes.load_full()
    }

    /// Who answers this path, if the pipeline for objects does not.
    pub fn claim(&self, path: &str) -> Option<Arc<Remote>> {
        let remotes = self.remotes.load();
        let mut parts = path.strip_prefix("/openapi/v3").unwrap_or(path).strip_prefix("/apis/")?.split('/');
        let (group, version) = (parts.next()?, parts.next()?);
        remotes.iter().find(|remote| remote.group == group && remote.version == version).cloned()
    }
}

/// The kind of APIServices.
fn row() -> Result<&'static Kind, Status> {
    builtin().by_kind(GROUP, "v1", "APIService").ok_or_else(Status::no_such_resource)
}
