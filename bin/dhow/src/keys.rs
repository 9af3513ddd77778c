//! The cluster's keys and certificates: made at the first start, kept in the data folder, renewed while running.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use dhow_base::pki::{self, CertPair, CertSpec, ClusterCa, SaKey};
use dhow_base::tls::{self, ServerCert};
use rustls::{ClientConfig, ServerConfig};
use tokio_util::sync::CancellationToken;

use crate::kubeconfig;
use crate::place::{API_SERVICE_IP, CLUSTER_DOMAIN, Place};

/// As the node's server knows the API server.
const API_SERVER: &str = "dhow-apiserver";
pub const MASTERS: &str = "system:masters";

/// Everything that proves who is who on this machine.
pub struct Keys {
    pub ca: Arc<ClusterCa>,
    /// The API server's end, for everyone.
    pub api_tls: Arc<ServerConfig>,
    /// The node's end, for the API server.
    pub node_tls: Arc<ServerConfig>,
    /// The API server as a client of nodes.
    pub to_nodes: Arc<ClientConfig>,
    api: Kept,
    node: Kept,
}

/// A server certificate on disk and the one presented at the moment.
struct Kept {
    name: &'static str,
    spec: CertSpec,
    pair: CertPair,
    shown: Arc<ServerCert>,
}

impl Keys {
    /// Reads or makes all of them, and writes the administrator's kubeconfig. The key that signs tokens is for the API
    /// server alone.
    pub fn open(place: &Place) -> Result<(Self, SaKey)> {
        let folder = folder(place);
        let ca = Arc::new(ClusterCa::load_or_create(&folder).context("open the cluster's certificate authority")?);
        let sa_key = SaKey::load_or_create(&folder.join("sa.key")).context("open the key of service accounts")?;
        let kept = |name: &'static str, spec: CertSpec| -> Result<Kept> {
            let pair = ca.load_or_issue(&folder, name, &spec).with_context(|| format!("issue certificate {name}"))?;
            let shown = Arc::new(ServerCert::new(&pair)?);
            Ok(Kept { name, spec, pair, shown })
        };
        let api = kept("apiserver", CertSpec::server("dhow-apiserver", &api_names(place)))?;
        let user = format!("system:node:{}", place.node_name);
        let sans = vec![place.node_name.clone(), place.node_ip.to_string(), Ipv4Addr::LOCALHOST.to_string()];
        let node = kept("node", CertSpec::Peer { user, groups: vec!["system:nodes".into()], sans })?;
        let client = |name, spec| ca.load_or_issue(&folder, name, &spec);
        let caller = client("apiserver-to-node", CertSpec::client(API_SERVER, &[])).context("issue certificate")?;
        let admin = client("admin", CertSpec::client("dhow-admin", &[MASTERS])).context("issue certificate")?;
        let config = kubeconfig::administrator(&place.api_url(), ca.cert_pem(), &admin.cert_pem, &admin.key_pem);
        kubeconfig::write(&place.admin_kubeconfig(), &config, None)?;
        let keys = Self {
            api_tls: tls::server_config_with(Arc::clone(&api.shown), Some(ca.cert_pem()))?,
            node_tls: tls::server_config_with(Arc::clone(&node.shown), Some(ca.cert_pem()))?,
            to_nodes: tls::client_config(ca.cert_pem(), Some(&caller))?,
            ca,
            api,
            node,
        };
        Ok((keys, sa_key))
    }

    /// Renews the server certificates for as long as the process runs; new connections see the new ones.
    pub fn keep_renewed(&self, place: &Place, shutdown: &CancellationToken) -> impl Future<Output = ()> + 'static {
        let renew = |kept: &Kept| {
            let (ca, folder, name, spec) = (Arc::clone(&self.ca), folder(place), kept.name, kept.spec.clone());
            let (pair, shown, shutdown) = (kept.pair.clone(), Arc::clone(&kept.shown), shutdown.clone());
            async move {
                let renewed = |pair: &CertPair| {
                    if let Err(error) = shown.replace(pair) {
                        tracing::error!(certificate = name, %error, "cannot present the renewed certificate");
                    }
                };
                pki::keep_renewed(&ca, &folder, name, &spec, pair, renewed, shutdown).await;
            }
        };
        let (api, node) = (renew(&self.api), renew(&self.node));
        async move {
            tokio::join!(api, node);
        }
    }
}

fn folder(place: &Place) -> PathBuf {
    place.data_dir.join("pki")
}

/// Every name and address under which the API server is reached.
fn api_names(place: &Place) -> Vec<String> {
    let service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned);
    let mut names = vec!["localhost".to_owned(), place.node_name.clone()];
    names.extend(service);
    names.push(format!("kubernetes.default.svc.{CLUSTER_DOMAIN}"));
    names.extend([place.node_ip.to_string(), Ipv4Addr::LOCALHOST.to_string(), API_SERVICE_IP.to_string()]);
    names.dedup();
    names
}
