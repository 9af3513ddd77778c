//! Gives every namespace its `default` ServiceAccount and the cluster's CA certificate.

use std::collections::BTreeMap;
use std::sync::Arc;

use dhow_client::{Client, Error, Informer, Key, Outcome, Queue, Reconcile};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub const ROOT_CA: &str = "kube-root-ca.crt";

pub struct NamespaceDefaults {
    client: Client,
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
    maps: Informer<ConfigMap>,
    root_ca: String,
}

impl NamespaceDefaults {
    pub fn new(
        client: Client,
        namespaces: Informer<Namespace>,
        accounts: Informer<ServiceAccount>,
        maps: Informer<ConfigMap>,
        root_ca: String,
        queue: &Queue,
    ) -> Arc<Self> {
        let to = queue.clone();
        namespaces.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        let to = queue.clone();
        accounts.on_change(move |change| wake(&to, &change.object().metadata));
        let to = queue.clone();
        maps.on_change(move |change| wake(&to, &change.object().metadata));
        Arc::new(Self { client, namespaces, accounts, maps, root_ca })
    }

    async fn root_ca(&self, namespace: &str) -> Result<(), Error> {
        let data = BTreeMap::from([("ca.crt".to_owned(), self.root_ca.clone())]);
        match self.maps.get(&Key::new(Some(namespace), ROOT_CA)) {
            Some(map) if map.data.as_ref() == Some(&data) => Ok(()),
            Some(map) => {
                let mut changed = ConfigMap::clone(&map);
                changed.data = Some(data);
                self.client.update(&changed).await.map(drop)
            }
            None => {
                let mut metadata = named(namespace, ROOT_CA);
                let text = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";
                metadata.annotations =
                    Some(BTreeMap::from([("kubernetes.io/description".to_owned(), text.to_owned())]));
                made(self.client.create(&ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }).await)
            }
        }
    }
}

#[async_trait::async_trait]
impl Reconcile for NamespaceDefaults {
    fn name(&self) -> &'static str {
        "namespace-defaults"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(Outcome::Done) };
        if namespace.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        if self.accounts.get(&Key::new(Some(&key.name), "default")).is_none() {
            let account = ServiceAccount { metadata: named(&key.name, "default"), ..ServiceAccount::default() };
            made(self.client.create(&account).await)?;
        }
        self.root_ca(&key.name).await?;
        Ok(Outcome::Done)
    }
}

fn wake(queue: &Queue, metadata: &ObjectMeta) {
    if let Some(namespace) = &metadata.namespace {
        queue.add(Key::new(None, namespace));
    }
}

fn named(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta { namespace: Some(namespace.into()), name: Some(name.into()), ..ObjectMeta::default() }
}

/// What is there already is as good as made.
fn made<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_already_exists() => Ok(()),
        other => other.map(drop),
    }
}
