//! Lets a volume go once no claim is bound to it any more: until then its finalizer holds it.

use std::sync::Arc;

use dhow_client::{Client, Error, Informer, Key, Outcome, Queue, Reconcile};
use k8s_openapi::api::core::v1::PersistentVolume;

use crate::common::Finalizer;

const FINALIZER: Finalizer = Finalizer("kubernetes.io/pv-protection");

pub struct PvProtection {
    client: Client,
    volumes: Informer<PersistentVolume>,
}

impl PvProtection {
    pub fn new(client: Client, volumes: Informer<PersistentVolume>, queue: &Queue) -> Arc<Self> {
        let to = queue.clone();
        volumes.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        Arc::new(Self { client, volumes })
    }
}

#[async_trait::async_trait]
impl Reconcile for PvProtection {
    fn name(&self) -> &'static str {
        "pv-protection"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(volume) = self.volumes.get(key) else { return Ok(Outcome::Done) };
        let going = volume.metadata.deletion_timestamp.is_some();
        let bound = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        if going && FINALIZER.is_on(&volume.metadata) && !bound {
            FINALIZER.take(&self.client, &*volume).await?;
        } else if !going && !FINALIZER.is_on(&volume.metadata) {
            FINALIZER.put(&self.client, &*volume).await?;
        }
        Ok(Outcome::Done)
    }
}
