//! What the node's pods refer to: config maps, secrets and claims each watched by itself, trust bundles and requests for
//! certificates together, for as long as a pod names them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, Informer, Key, ListParams};
use k8s_openapi::api::certificates::v1beta1::{ClusterTrustBundle, PodCertificateRequest};
use k8s_openapi::api::core::v1::{ConfigMap, Container, PersistentVolumeClaim, Pod, Secret};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::Error;

/// How long a first look at an object may take before the pod tries again later.
const FIRST_LOOK: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    ConfigMap,
    Secret,
    /// Of volumes that may grow while they are mounted.
    Claim,
    /// All there are: a volume may choose them by signer and labels.
    TrustBundles,
    /// All of the node's pods: only who made them knows their names.
    CertificateRequests,
}

/// An object in a pod's namespace.
pub type Name = (Kind, String, String);

#[derive(Clone)]
enum Copy {
    ConfigMap(Informer<ConfigMap>),
    Secret(Informer<Secret>),
    Claim(Informer<PersistentVolumeClaim>),
    TrustBundles(Informer<ClusterTrustBundle>),
    CertificateRequests(Informer<PodCertificateRequest>),
}

struct Entry {
    copy: Copy,
    /// Woken by every change, by the uid of their pods.
    users: Arc<Mutex<HashMap<String, Arc<Notify>>>>,
    stop: CancellationToken,
}

/// What is watched now.
pub struct Objects {
    client: Client,
    node: String,
    shutdown: CancellationToken,
    entries: Mutex<BTreeMap<Name, Entry>>,
}

/// Everything a pod's volumes and environment come from.
pub fn referred(pod: &Pod) -> BTreeSet<Name> {
    let ns = pod.metadata.namespace.clone().unwrap_or_default();
    let mut out = BTreeSet::new();
    let mut add = |kind, name: &str| {
        out.insert((kind, ns.clone(), name.to_owned()));
    };
    let (mut bundles, mut certificates) = (false, false);
    let Some(spec) = &pod.spec else { return out };
    for volume in spec.volumes.iter().flatten() {
        if let Some(source) = &volume.config_map {
            add(Kind::ConfigMap, &source.name);
        }
        if let Some(name) = volume.secret.as_ref().and_then(|s| s.secret_name.as_ref()) {
            add(Kind::Secret, name);
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            if let Some(source) = &source.config_map {
                add(Kind::ConfigMap, &source.name);
            }
            if let Some(source) = &source.secret {
                add(Kind::Secret, &source.name);
            }
            bundles |= source.cluster_trust_bundle.is_some();
            certificates |= source.pod_certificate.is_some();
        }
    }
    let debug: Vec<Container> =
        spec.ephemeral_containers.iter().flatten().map(crate::containers::of_ephemeral).collect();
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()).chain(&debug) {
        for from in container.env_from.iter().flatten() {
            if let Some(source) = &from.config_map_ref {
                add(Kind::ConfigMap, &source.name);
            }
            if let Some(source) = &from.secret_ref {
                add(Kind::Secret, &source.name);
            }
        }
        for from in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
            if let Some(source) = &from.config_map_key_ref {
                add(Kind::ConfigMap, &source.name);
            }
            if let Some(source) = &from.secret_key_ref {
                add(Kind::Secret, &source.name);
            }
        }
    }
    if bundles {
        out.insert((Kind::TrustBundles, String::new(), String::new()));
    }
    if certificates {
        out.insert((Kind::CertificateRequests, String::new(), String::new()));
    }
    out
}

impl Objects {
    pub fn new(client: Client, node: &str, shutdown: CancellationToken) -> Self {
        Self { client, node: node.to_owned(), shutdown, entries: Mutex::default() }
    }

    /// Watches exactly these for a pod, and wakes it when one of them changes.
    pub fn follow(&self, uid: &str, names: &BTreeSet<Name>, wake: &Arc<Notify>) {
        let mut entries = self.entries.lock();
        for name in names {
            let entry = entries.entry(name.clone()).or_insert_with(|| self.watch(name));
            entry.users.lock().entry(uid.to_owned()).or_insert_with(|| Arc::clone(wake));
        }
        entries.retain(|name, entry| {
            let mut users = entry.users.lock();
            if !names.contains(name) {
                users.remove(uid);
            }
            if users.is_empty() {
                entry.stop.cancel();
            }
            !users.is_empty()
        });
    }

    /// Ends what was watched for a pod only.
    pub fn forget(&self, uid: &str) {
        self.follow(uid, &BTreeSet::new(), &Arc::default());
    }

    fn watch(&self, (kind, ns, name): &Name) -> Entry {
        let stop = self.shutdown.child_token();
        let users = Arc::<Mutex<HashMap<String, Arc<Notify>>>>::default();
        let scope = ListParams { field_selector: Some(format!("metadata.name={name}")), ..Default::default() };
        let told = Arc::clone(&users);
        let wake = move || told.lock().values().for_each(|user| user.notify_one());
        let client = self.client.clone();
        let copy = match kind {
            Kind::ConfigMap => {
                let informer = Informer::start(client, scope, Some(ns), stop.clone());
                informer.on_change(move |_| wake());
                Copy::ConfigMap(informer)
            }
            Kind::Secret => {
                let informer = Informer::start(client, scope, Some(ns), stop.clone());
                informer.on_change(move |_| wake());
                Copy::Secret(informer)
            }
            Kind::Claim => {
                let informer = Informer::start(client, scope, Some(ns), stop.clone());
                informer.on_change(move |_| wake());
                Copy::Claim(informer)
            }
            Kind::TrustBundles => {
                let informer = Informer::start(client, ListParams::default(), None, stop.clone());
                informer.on_change(move |_| wake());
                Copy::TrustBundles(informer)
            }
            Kind::CertificateRequests => {
                let own = Some(format!("spec.nodeName={}", self.node));
                let scope = ListParams { field_selector: own, ..Default::default() };
                let informer = Informer::start(client, scope, None, stop.clone());
                informer.on_change(move |_| wake());
                Copy::CertificateRequests(informer)
            }
        };
        Entry { copy, users, stop }
    }

    async fn copy(&self, kind: Kind, ns: &str, name: &str) -> Result<Copy, Error> {
        let what = match kind {
            Kind::ConfigMap => "configmap",
            Kind::Secret => "secret",
            Kind::Claim => "persistentvolumeclaim",
            Kind::TrustBundles => "clustertrustbundle",
            Kind::CertificateRequests => "podcertificaterequest",
        };
        let found = self.entries.lock().get(&(kind, ns.to_owned(), name.to_owned())).map(|entry| entry.copy.clone());
        let copy = found.ok_or_else(|| Error::config(format!("{what} \"{ns}/{name}\" not registered")))?;
        let first = async {
            match &copy {
                Copy::ConfigMap(informer) => informer.synced().await,
                Copy::Secret(informer) => informer.synced().await,
                Copy::Claim(informer) => informer.synced().await,
                Copy::TrustBundles(informer) => informer.synced().await,
                Copy::CertificateRequests(informer) => informer.synced().await,
            }
        };
        let late = |_| Error::config(format!("failed to sync {what} cache: timed out waiting for {ns}/{name}"));
        tokio::time::timeout(FIRST_LOOK, first).await.map_err(late)?;
        Ok(copy)
    }

    /// `None` if it does not exist and may be missing.
    pub async fn config_map(&self, ns: &str, name: &str, optional: bool) -> Result<Option<Arc<ConfigMap>>, Error> {
        match self.copy(Kind::ConfigMap, ns, name).await? {
            Copy::ConfigMap(informer) => only(&informer, optional, || format!("configmap {name:?} not found")),
            _ => Ok(None),
        }
    }

    /// A claim as far as it is watched and known.
    pub fn claim(&self, ns: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        let entries = self.entries.lock();
        match &entries.get(&(Kind::Claim, ns.to_owned(), name.to_owned()))?.copy {
            Copy::Claim(informer) => informer.list().into_iter().next(),
            _ => None,
        }
    }

    /// `None` if it does not exist and may be missing.
    pub async fn secret(&self, ns: &str, name: &str, optional: bool) -> Result<Option<Arc<Secret>>, Error> {
        match self.copy(Kind::Secret, ns, name).await? {
            Copy::Secret(informer) => only(&informer, optional, || format!("secret {name:?} not found")),
            _ => Ok(None),
        }
    }

    /// A request for a certificate, as far as it is known; for pods that show some.
    pub async fn certificate_request(&self, ns: &str, name: &str) -> Result<Option<Arc<PodCertificateRequest>>, Error> {
        match self.copy(Kind::CertificateRequests, "", "").await? {
            Copy::CertificateRequests(informer) => Ok(informer.get(&Key::new(Some(ns), name))),
            _ => Ok(None),
        }
    }

    /// All trust bundles; for pods that refer to some.
    pub async fn trust_bundles(&self) -> Result<Vec<Arc<ClusterTrustBundle>>, Error> {
        match self.copy(Kind::TrustBundles, "", "").await? {
            Copy::TrustBundles(informer) => Ok(informer.list()),
            _ => Ok(Vec::new()),
        }
    }
}

/// The one object that such an informer has.
fn only<K: dhow_client::Object>(
    informer: &Informer<K>,
    optional: bool,
    missing: impl FnOnce() -> String,
) -> Result<Option<Arc<K>>, Error> {
    match informer.list().into_iter().next() {
        None if !optional => Err(Error::config(missing())),
        found => Ok(found),
    }
}
