//! The certificates of a node that joined: asked for at the cluster, kept in the data folder, renewed while running.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use dhow_api::node_parts;
use dhow_base::files;
use dhow_base::pki::{self, CertPair, CertSpec};
use dhow_base::tls::{self, LiveCert};
use dhow_client::{Auth, Client, HttpsConfig, Informer, Key, ListParams};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::join::Join;
use crate::kubeconfig;
use crate::node_access::{Joined, NODES, NodeAccess, node_user};
use crate::place::Place;

/// Timers stand still while a machine sleeps, so the clock is looked at again at least this often.
const LOOK: Duration = Duration::from_secs(3600);
const RETRY: Duration = Duration::from_secs(30);

/// One certificate: its files' name, who signs it, and what for.
#[derive(Debug, Clone)]
pub struct Wanted {
    name: String,
    signer: &'static str,
    usage: &'static str,
    spec: CertSpec,
}

impl Wanted {
    pub fn node_client(place: &Place) -> Self {
        Self {
            name: "node-client".into(),
            signer: "kubernetes.io/kube-apiserver-client-kubelet",
            usage: "client auth",
            spec: CertSpec::client(&node_user(&place.node_name), &[NODES]),
        }
    }

    fn node_serving(place: &Place) -> Self {
        let spec = CertSpec::ServerOf {
            cn: node_user(&place.node_name),
            groups: vec![NODES.into()],
            sans: vec![place.node_name.clone(), place.node_ip.to_string()],
        };
        Self { name: "node-serving".into(), signer: "kubernetes.io/kubelet-serving", usage: "server auth", spec }
    }

    fn part(user: &str) -> Self {
        let name = user.trim_start_matches("system:").replace(':', "-");
        Self { name, signer: node_parts::SIGNER, usage: "client auth", spec: CertSpec::client(user, &[]) }
    }

    fn paths(&self, folder: &Path) -> (PathBuf, PathBuf) {
        (folder.join(format!("{}.crt", self.name)), folder.join(format!("{}.key", self.name)))
    }

    /// The pair that is kept, if it is for this and not over.
    pub fn held(&self, folder: &Path) -> Result<Option<CertPair>> {
        let (cert, key) = self.paths(folder);
        Ok(match (files::read_optional(&cert)?, files::read_optional(&key)?) {
            (Some(cert_pem), Some(key_pem)) if pki::serves(&cert_pem, &key_pem, &self.spec) => {
                Some(CertPair { cert_pem, key_pem })
            }
            _ => None,
        })
    }

    /// Asks the cluster for a new one, waits for it and keeps it.
    pub async fn ask(&self, client: &Client, folder: &Path) -> Result<CertPair> {
        let (request, key_pem) = pki::new_request(&self.spec).context("make a certificate request")?;
        let mut object = CertificateSigningRequest::default();
        let name = format!("node-csr-{}", uuid::Uuid::new_v4());
        object.metadata.name = Some(name.clone());
        object.spec.request = ByteString(request.into_bytes());
        object.spec.signer_name = self.signer.to_owned();
        object.spec.usages = Some(vec!["digital signature".into(), self.usage.into()]);
        client.create(&object).await.with_context(|| format!("ask for certificate {}", self.name))?;
        let cert_pem = answer(client, &name).await.with_context(|| format!("wait for certificate {}", self.name))?;
        if !pki::serves(&cert_pem, &key_pem, &self.spec) {
            bail!("the cluster signed something else than certificate {}", self.name);
        }
        files::create_private_dir(folder)?;
        let (cert, key) = self.paths(folder);
        files::write_private(&key, key_pem.as_bytes())?;
        files::write_private(&cert, cert_pem.as_bytes())?;
        Ok(CertPair { cert_pem, key_pem })
    }

    /// The one that is kept while it has life left, else a new one.
    async fn obtain(&self, client: &Client, folder: &Path) -> Result<CertPair> {
        match self.held(folder)? {
            Some(pair) if !pki::needs_renewal(&pair.cert_pem) => Ok(pair),
            _ => self.ask(client, folder).await,
        }
    }
}

/// Waits for what becomes of a request.
async fn answer(client: &Client, name: &str) -> Result<String> {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let own = ListParams { field_selector: Some(format!("metadata.name={name}")), ..ListParams::default() };
    let requests = Informer::<CertificateSigningRequest>::start(client.clone(), own, None, stop);
    let changed = Arc::new(Notify::new());
    let wake = changed.clone();
    requests.on_change(move |_| wake.notify_one());
    let mut told = false;
    loop {
        let wait = tokio::time::timeout(RETRY, changed.notified());
        if let Some(request) = requests.get(&Key::new(None, name)) {
            let status = request.status.clone().unwrap_or_default();
            let refused = status.conditions.iter().flatten().find(|one| one.type_ == "Denied" || one.type_ == "Failed");
            if let Some(refused) = refused {
                bail!("request {name} is refused: {}", refused.message.clone().unwrap_or_default());
            }
            if let Some(pem) = status.certificate.filter(|pem| !pem.0.is_empty()) {
                return String::from_utf8(pem.0).context("read the certificate");
            }
        }
        if wait.await.is_err() && !told {
            told = true;
            tracing::warn!(request = name, "nobody has approved it yet; `kubectl certificate approve {name}` does");
        }
    }
}

type Use = Box<dyn Fn(&CertPair) -> Result<()> + Send + Sync>;

/// A certificate in use.
struct Kept {
    wanted: Wanted,
    pair: CertPair,
    renewed: Use,
}

/// All certificates of the agent.
pub struct AgentKeys {
    folder: PathBuf,
    pub access: NodeAccess,
    /// The node's end for the API server.
    pub tls: Arc<ServerConfig>,
    /// The node as a client of other nodes.
    pub to_nodes: Arc<ClientConfig>,
    /// Told when the name server's kubeconfig has a new certificate.
    pub nameserver_renewed: Arc<Notify>,
    kept: Vec<Kept>,
}

/// The node's own client: all that is needed to get the rest.
pub fn node_client(place: &Place, join: &Join) -> Result<(Client, CertPair, Use)> {
    let held = Wanted::node_client(place).held(&join.folder)?;
    let pair = held.with_context(|| {
        format!(
            "the certificate of node {} is missing, of another node, or expired: join again with a new token \
             (`dhow token create` on a server)",
            place.node_name
        )
    })?;
    let (client, renewed) = client_with(join, &pair)?;
    Ok((client, pair, renewed))
}

fn client_with(join: &Join, pair: &CertPair) -> Result<(Client, Use)> {
    let (server, ca_pem) = (join.server.clone(), join.ca_pem.clone());
    let config = move |pair: &CertPair| HttpsConfig {
        server: server.clone(),
        ca_pem: ca_pem.clone(),
        auth: Auth::ClientCert { cert_pem: pair.cert_pem.clone(), key_pem: pair.key_pem.clone() },
    };
    let (client, replace) = Client::replaceable_among(Arc::clone(&join.servers), config(pair))?;
    Ok((client, Box::new(move |pair: &CertPair| Ok(replace.replace(config(pair))?))))
}

impl AgentKeys {
    /// Gets whatever is missing.
    pub async fn open(place: &Place, join: &Join, node: (Client, CertPair, Use)) -> Result<Self> {
        let folder = join.folder.clone();
        let (client, pair, renewed) = node;
        let caller = Arc::new(LiveCert::new(&pair)?);
        let to_nodes = tls::client_config_with(&join.ca_pem, Some(Arc::clone(&caller)))?;
        let renewed: Use = Box::new(move |pair| {
            renewed(pair)?;
            Ok(caller.replace(pair)?)
        });
        let mut kept = vec![Kept { wanted: Wanted::node_client(place), pair, renewed }];

        let wanted = Wanted::node_serving(place);
        let pair = wanted.obtain(&client, &folder).await?;
        let live = Arc::new(LiveCert::new(&pair)?);
        let tls = tls::server_config_with(Arc::clone(&live), Some(&join.ca_pem))?;
        kept.push(Kept { wanted, pair, renewed: Box::new(move |pair| Ok(live.replace(pair)?)) });

        let nameserver_renewed = Arc::<Notify>::default();
        let mut parts = std::collections::BTreeMap::new();
        for user in node_parts::USERS {
            let wanted = Wanted::part(user);
            let pair = wanted.obtain(&client, &folder).await?;
            let (part, renewed) = client_with(join, &pair)?;
            parts.insert(user.to_owned(), part);
            let renewed: Use = if user == crate::place::DNS_USER {
                let (server, ca_pem, path) = (join.server.clone(), join.ca_pem.clone(), place.dns_kubeconfig());
                let told = Arc::clone(&nameserver_renewed);
                let write = move |pair: &CertPair| {
                    let config = kubeconfig::with_certificate(&server, &ca_pem, &pair.cert_pem, &pair.key_pem);
                    kubeconfig::write(&path, &config, None)
                };
                write(&pair)?;
                Box::new(move |pair| {
                    renewed(pair)?;
                    write(pair)?;
                    told.notify_one();
                    Ok(())
                })
            } else {
                renewed
            };
            kept.push(Kept { wanted, pair, renewed });
        }
        let access = NodeAccess::Joined(Arc::new(Joined { node: client, parts }));
        Ok(Self { folder, access, tls, to_nodes, nameserver_renewed, kept })
    }

    /// Renews each certificate when a third of its life is left, and all at once whenever `now` changes.
    pub async fn keep_renewed(self, now: watch::Receiver<u64>, shutdown: CancellationToken) -> Result<()> {
        let client = match &self.access {
            NodeAccess::Joined(joined) => joined.node.clone(),
            NodeAccess::Here(_) => return Err(anyhow!("this node did not join")),
        };
        let all = self.kept.into_iter().map(|kept| renew(client.clone(), &self.folder, kept, now.clone(), &shutdown));
        futures::future::join_all(all).await;
        Ok(())
    }
}

async fn renew(
    client: Client,
    folder: &Path,
    mut kept: Kept,
    mut now: watch::Receiver<u64>,
    shutdown: &CancellationToken,
) {
    let mut asked = false;
    loop {
        let due = pki::renewal_time(&kept.pair.cert_pem).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut pause = due.duration_since(SystemTime::now()).unwrap_or_default().min(LOOK);
        if pause.is_zero() || asked {
            let renewed = tokio::select! {
                renewed = kept.wanted.ask(&client, folder) => renewed,
                () = shutdown.cancelled() => return,
            };
            match renewed.and_then(|pair| (kept.renewed)(&pair).map(|()| pair)) {
                Ok(pair) => {
                    tracing::info!(certificate = kept.wanted.name, "renewed");
                    kept.pair = pair;
                    asked = false;
                    continue;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(certificate = kept.wanted.name, error, "renew; trying again");
                    pause = RETRY;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Ok(()) = now.changed() => asked = true,
            () = shutdown.cancelled() => return,
        }
    }
}
