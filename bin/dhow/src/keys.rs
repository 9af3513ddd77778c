//! The cluster's keys and certificates: made at the first start, kept in the data folder, renewed while running.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use dhow_base::files;
use dhow_base::pki::{self, CertPair, CertSpec, ClusterCa, SaKey};
use dhow_base::tls::{self, LiveCert};
use dhow_store::SealingKeys;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::kubeconfig;
use crate::place::{CLUSTER_DOMAIN, Place};

/// Below the folder of keys: what seals Secrets in the store, one key a line.
pub const SEALING: &str = "sealing.keys";

/// As the node's server knows the API server.
const API_SERVER: &str = "dhow-apiserver";
pub const MASTERS: &str = "system:masters";

/// Everything that proves who is who in the cluster, for its server.
pub struct Keys {
    pub ca: Arc<ClusterCa>,
    /// The API server's end, for everyone.
    pub api_tls: Arc<ServerConfig>,
    /// The API server as a client of nodes.
    pub to_nodes: Arc<ClientConfig>,
    /// The authority that extension servers believe, whose one certificate is the API server's.
    pub front_proxy_ca: Arc<ClusterCa>,
    pub front_proxy: Arc<LiveCert>,
    kept: Vec<Kept>,
}

/// What proves the node of this machine.
pub struct NodeKeys {
    /// The node's end, for the API server.
    pub tls: Arc<ServerConfig>,
    /// The node as a client of other nodes.
    pub to_nodes: Arc<ClientConfig>,
    /// Told when the name server's kubeconfig has a new certificate.
    pub nameserver_renewed: Arc<Notify>,
}

type Renewed = Box<dyn Fn(&CertPair) -> Result<()> + Send + Sync>;

/// A certificate on disk, what it is for, and who is told of a new one.
struct Kept {
    name: &'static str,
    spec: CertSpec,
    pair: CertPair,
    /// The authority, where that is not the cluster's.
    other_ca: Option<Arc<ClusterCa>>,
    renewed: Renewed,
}

impl Keys {
    /// Reads or makes the server's, and writes the administrator's kubeconfig. The key that signs tokens is for the API
    /// server alone.
    pub fn open(place: &Place) -> Result<(Self, SaKey)> {
        let folder = place.pki_dir();
        let ca = Arc::new(ca(&folder)?);
        let sa_key = sa_key(&folder)?;
        let (api, mut kept_api) = live(place, &ca, "apiserver", CertSpec::server(API_SERVER, &api_names(place)))?;
        // It shows its authority, too: a machine that is to join knows that one by its digest and by nothing else.
        let (shown, authority) = (Arc::clone(&api), ca.cert_pem().to_owned());
        let whole = move |pair: &CertPair| {
            let cert_pem = format!("{}{authority}", pair.cert_pem);
            Ok(shown.replace(&CertPair { cert_pem, key_pem: pair.key_pem.clone() })?)
        };
        whole(&kept_api.pair)?;
        kept_api.renewed = Box::new(whole);
        let (caller, kept_caller) = live(place, &ca, "apiserver-to-node", CertSpec::client(API_SERVER, &[]))?;
        // An authority of its own: whoever gets a certificate of the cluster's cannot speak for others with it.
        let front_proxy_ca = Arc::new(front_proxy_ca(&folder)?);
        let spec = CertSpec::client(dhow_apiserver::FRONT_PROXY_CLIENT, &[]);
        let (front_proxy, mut kept_proxy) = live(place, &front_proxy_ca, "front-proxy-client", spec)?;
        kept_proxy.other_ca = Some(Arc::clone(&front_proxy_ca));
        let admin = CertSpec::client("dhow-admin", &[MASTERS]);
        let kept_admin = in_kubeconfig(place, &ca, "admin", admin, place.admin_kubeconfig(), Arc::default())?;
        let keys = Self {
            api_tls: tls::server_config_with(api, Some(ca.cert_pem()))?,
            to_nodes: tls::client_config_with(ca.cert_pem(), Some(caller))?,
            ca,
            front_proxy_ca,
            front_proxy,
            kept: vec![kept_api, kept_caller, kept_admin, kept_proxy],
        };
        Ok((keys, sa_key))
    }

    /// Reads or makes those of this machine's node. They are renewed with the others.
    pub fn open_node(&mut self, place: &Place) -> Result<NodeKeys> {
        let user = format!("system:node:{}", place.node_name);
        let mut sans = vec![place.node_name.clone(), Ipv4Addr::LOCALHOST.to_string()];
        sans.extend(place.node_ips.iter().map(ToString::to_string));
        let spec = CertSpec::Peer { user, groups: vec!["system:nodes".into()], sans };
        let (node, kept_node) = live(place, &self.ca, "node", spec)?;
        let nameserver_renewed = Arc::<Notify>::default();
        let dns = CertSpec::client("system:kube-dns", &[]);
        let path = place.dns_kubeconfig();
        let kept_dns = in_kubeconfig(place, &self.ca, "dns", dns, path, Arc::clone(&nameserver_renewed))?;
        self.kept.extend([kept_node, kept_dns]);
        let to_nodes = tls::client_config_with(self.ca.cert_pem(), Some(Arc::clone(&node)))?;
        let tls = tls::server_config_with(node, Some(self.ca.cert_pem()))?;
        Ok(NodeKeys { tls, to_nodes, nameserver_renewed })
    }

    /// Reads or makes that of the cluster's registry, which serves under these names. Clients may show their own.
    pub fn open_registry(&mut self, place: &Place, names: &[String]) -> Result<Arc<ServerConfig>> {
        let (live, kept) = live(place, &self.ca, "registry", CertSpec::server("dhow-registry", names))?;
        self.kept.push(kept);
        Ok(tls::server_config_with(live, Some(self.ca.cert_pem()))?)
    }

    /// Renews every certificate for as long as the process runs; new connections see the new ones.
    pub fn keep_renewed(&mut self, place: &Place, shutdown: &CancellationToken) -> impl Future<Output = ()> + 'static {
        let renewals = self.kept.drain(..).map(|kept| {
            let ca = kept.other_ca.clone().unwrap_or_else(|| Arc::clone(&self.ca));
            let (folder, shutdown) = (place.pki_dir(), shutdown.clone());
            async move {
                let renewed = |pair: &CertPair| {
                    if let Err(error) = (kept.renewed)(pair) {
                        tracing::error!(certificate = kept.name, error = format!("{error:#}"), "use the renewed one");
                    }
                };
                pki::keep_renewed(&ca, &folder, kept.name, &kept.spec, kept.pair, renewed, shutdown).await;
            }
        });
        let all = futures::future::join_all(renewals.collect::<Vec<_>>());
        async move {
            all.await;
        }
    }
}

fn ca(folder: &Path) -> Result<ClusterCa> {
    ClusterCa::load_or_create(folder).context("open the cluster's certificate authority")
}

fn front_proxy_ca(folder: &Path) -> Result<ClusterCa> {
    ClusterCa::load_or_create(&folder.join("front-proxy")).context("open the front proxy's authority")
}

fn sa_key(folder: &Path) -> Result<SaKey> {
    SaKey::load_or_create(&folder.join("sa.key")).context("open the key of service accounts")
}

/// Makes what is missing of the keys that all servers of a cluster have, in a folder of keys.
pub fn make_shared(folder: &Path) -> Result<()> {
    ca(folder)?;
    front_proxy_ca(folder)?;
    sa_key(folder)?;
    sealing_in(folder).map(drop)
}

/// The keys that seal Secrets in the store, one a line, the first of which seals. Returns whether they were made just
/// now, which means that whatever is in the store is not sealed yet.
pub fn sealing(place: &Place) -> Result<(SealingKeys, bool)> {
    sealing_in(&place.pki_dir())
}

fn sealing_in(folder: &Path) -> Result<(SealingKeys, bool)> {
    files::create_private_dir(folder)?;
    let path = folder.join(SEALING);
    let known = files::read_optional(&path)?;
    let made = known.is_none();
    let text = match known {
        Some(text) => text,
        None => {
            let text = format!("{}\n", SealingKeys::generate().context("make a sealing key")?);
            files::write_private(&path, text.as_bytes())?;
            text
        }
    };
    let keys = SealingKeys::parse(&text).with_context(|| format!("read {}", path.display()))?;
    Ok((keys, made))
}

/// Puts a new key before the others: what is written from then on is sealed with it.
pub fn add_sealing_key(place: &Place) -> Result<()> {
    let path = place.sealing_keys();
    let others = files::read_optional(&path)?.unwrap_or_default();
    let text = format!("{}\n{others}", SealingKeys::generate().context("make a sealing key")?);
    Ok(files::write_private(&path, text.as_bytes())?)
}

/// Forgets all keys but the first.
pub fn keep_first_sealing_key(place: &Place) -> Result<()> {
    let path = place.sealing_keys();
    let text = files::read_optional(&path)?.unwrap_or_default();
    let first = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let first = first.with_context(|| format!("{} holds no key", path.display()))?;
    Ok(files::write_private(&path, format!("{first}\n").as_bytes())?)
}

/// A certificate that connections take from memory; a renewed one replaces it there.
fn live(place: &Place, ca: &ClusterCa, name: &'static str, spec: CertSpec) -> Result<(Arc<LiveCert>, Kept)> {
    let pair = ca.load_or_issue(&place.pki_dir(), name, &spec).with_context(|| format!("issue certificate {name}"))?;
    let shown = Arc::new(LiveCert::new(&pair)?);
    let live = Arc::clone(&shown);
    let renewed = Box::new(move |pair: &CertPair| Ok(live.replace(pair)?));
    Ok((shown, Kept { name, spec, pair, other_ca: None, renewed }))
}

/// A client's certificate that lives in a kubeconfig; `told` hears of a new one.
fn in_kubeconfig(
    place: &Place,
    ca: &ClusterCa,
    name: &'static str,
    spec: CertSpec,
    path: PathBuf,
    told: Arc<Notify>,
) -> Result<Kept> {
    let pair = ca.load_or_issue(&place.pki_dir(), name, &spec).with_context(|| format!("issue certificate {name}"))?;
    let (server, ca_pem) = (place.api_url(), ca.cert_pem().to_owned());
    let write = move |pair: &CertPair| {
        let config = kubeconfig::with_certificate(&server, &ca_pem, &pair.cert_pem, &pair.key_pem);
        kubeconfig::write(&path, &config, None)
    };
    write(&pair)?;
    let renewed = move |pair: &CertPair| {
        write(pair)?;
        told.notify_one();
        Ok(())
    };
    Ok(Kept { name, spec, pair, other_ca: None, renewed: Box::new(renewed) })
}

/// Every name and address under which the API server is reached.
fn api_names(place: &Place) -> Vec<String> {
    let service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned);
    let mut names = vec!["localhost".to_owned(), place.node_name.clone()];
    names.extend(service);
    names.push(format!("kubernetes.default.svc.{CLUSTER_DOMAIN}"));
    names.extend(place.tls_sans.iter().cloned());
    names.extend(place.node_ips.iter().map(ToString::to_string));
    names.extend([Ipv4Addr::LOCALHOST.to_string(), Ipv6Addr::LOCALHOST.to_string()]);
    names.push(place.networks.api_service_ip().to_string());
    names.dedup();
    names
}
