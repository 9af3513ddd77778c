//! Publishes the cluster's own authority as the trust bundle of the API server's certificates.

use std::sync::Arc;

use dhow_api::trust_bundle;
use dhow_client::{Client, DeleteParams, Error, Informer, Key, Outcome, Queue, Reconcile};
use k8s_openapi::api::certificates::v1beta1::{ClusterTrustBundle, ClusterTrustBundleSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest, Sha256};

use crate::common;

/// Whose bundle it is.
pub const SERVING: &str = "kubernetes.io/kube-apiserver-serving";
/// Bytes of the authority's digest that its bundle's name ends in.
const DIGEST_BYTES: usize = 12;

pub struct Publisher {
    client: Client,
    /// Those of the signer.
    bundles: Informer<ClusterTrustBundle>,
    ca: String,
}

impl Publisher {
    pub fn new(client: Client, bundles: Informer<ClusterTrustBundle>, ca: String, queue: &Queue) -> Arc<Self> {
        // One key: what there is to do is the same whatever changed.
        let key = Key::new(None, SERVING);
        queue.add(key.clone());
        let to = queue.clone();
        bundles.on_change(move |_| to.add(key.clone()));
        Arc::new(Self { client, bundles, ca })
    }
}

/// Another authority gets another name, so that nobody reads half of each.
fn name(ca: &str) -> String {
    let digest = Sha256::digest(ca.as_bytes());
    let hex: String = digest.iter().take(DIGEST_BYTES).map(|byte| format!("{byte:02x}")).collect();
    format!("{}{hex}", trust_bundle::prefix(SERVING))
}

#[async_trait::async_trait]
impl Reconcile for Publisher {
    fn name(&self) -> &'static str {
        "kube-apiserver-serving-clustertrustbundle-publisher"
    }

    async fn reconcile(&self, _key: &Key) -> Result<Outcome, Error> {
        let name = name(&self.ca);
        match self.bundles.get(&Key::new(None, &name)) {
            Some(known) if known.spec.trust_bundle == self.ca => {}
            Some(known) => {
                let mut changed = ClusterTrustBundle::clone(&known);
                changed.spec.trust_bundle.clone_from(&self.ca);
                self.client.update(&changed).await?;
            }
            None => {
                let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
                let spec =
                    ClusterTrustBundleSpec { signer_name: Some(SERVING.to_owned()), trust_bundle: self.ca.clone() };
                match self.client.create(&ClusterTrustBundle { metadata, spec }).await {
                    Err(error) if !error.is_already_exists() => return Err(error),
                    _ => {}
                }
            }
        }
        for old in self.bundles.list().iter().filter(|bundle| bundle.metadata.name.as_ref() != Some(&name)) {
            common::delete(&self.client, old.as_ref(), DeleteParams::default()).await?;
        }
        Ok(Outcome::Done)
    }
}
