//! Lets a claim go once no pod uses it any more: until then its finalizer holds it.

use std::sync::Arc;

use dhow_client::{Change, Client, Error, Informer, Key, ListParams, Outcome, Queue, Reconcile};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use crate::common::{Finalizer, is_finished, node_name};

const FINALIZER: Finalizer = Finalizer("kubernetes.io/pvc-protection");

pub struct PvcProtection {
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
}

impl PvcProtection {
    pub fn new(
        client: Client,
        claims: Informer<PersistentVolumeClaim>,
        pods: Informer<Pod>,
        queue: &Queue,
    ) -> Arc<Self> {
        let to = queue.clone();
        claims.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        let to = queue.clone();
        pods.on_change(move |change| {
            // Only the end of a pod lets a claim go.
            let ended = matches!(change, Change::Deleted(_)) || is_finished(change.object());
            let namespace = change.object().metadata.namespace.as_deref();
            for claim in claims_of(change.object()).filter(|_| ended) {
                to.add(Key::new(namespace, &claim));
            }
        });
        Arc::new(Self { client, claims, pods })
    }

    /// Whether a pod uses the claim: by the copy at hand, and then by what the server says, which is not behind.
    async fn is_used(&self, claim: &PersistentVolumeClaim) -> Result<bool, Error> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        if self.pods.by_index("namespace", namespace).iter().any(|pod| uses(pod, claim)) {
            return Ok(true);
        }
        let pods = self.client.list::<Pod>(Some(namespace), &ListParams::default()).await?;
        Ok(pods.items.iter().any(|pod| uses(pod, claim)))
    }
}

/// The names of the claims that a pod's volumes are.
fn claims_of(pod: &Pod) -> impl Iterator<Item = String> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter_map(move |volume| {
        let named = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
        named.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{name}-{}", volume.name)))
    })
}

/// Whether a pod needs the claim. One that has no node yet will not be started with a claim that is going.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
    let made_for = || owners.iter().any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref());
    let ephemeral = |volume: &str| format!("{}-{volume}", pod.metadata.name.as_deref().unwrap_or_default());
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    node_name(pod).is_some()
        && volumes.any(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(named), _) => named.claim_name == name,
            (None, Some(_)) => ephemeral(&volume.name) == name && made_for() && !is_finished(pod),
            (None, None) => false,
        })
}

#[async_trait::async_trait]
impl Reconcile for PvcProtection {
    fn name(&self) -> &'static str {
        "pvc-protection"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(claim) = self.claims.get(key) else { return Ok(Outcome::Done) };
        let going = claim.metadata.deletion_timestamp.is_some();
        if going && FINALIZER.is_on(&claim.metadata) && !self.is_used(&claim).await? {
            FINALIZER.take(&self.client, &*claim).await?;
        } else if !going && !FINALIZER.is_on(&claim.metadata) {
            // Made before there was protection.
            FINALIZER.put(&self.client, &*claim).await?;
        }
        Ok(Outcome::Done)
    }
}
