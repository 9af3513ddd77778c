//! Lets a VolumeAttributesClass go once no claim and no volume has it or is to get it: until then its finalizer holds it.

use std::sync::Arc;

use dhow_client::{Change, Client, Error, Informer, Key, Outcome, Queue, Reconcile};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;

use crate::common::Finalizer;

const FINALIZER: Finalizer = Finalizer("kubernetes.io/vac-protection");
const INDEX: &str = "attributes class";

pub struct VacProtection {
    client: Client,
    classes: Informer<VolumeAttributesClass>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
}

/// What a claim asks for, has, and is on its way to.
fn of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let asked = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone());
    let status = claim.status.as_ref();
    let has = status.and_then(|status| status.current_volume_attributes_class_name.clone());
    let next =
        status.and_then(|status| status.modify_volume_status.as_ref()?.target_volume_attributes_class_name.clone());
    [asked, has, next].into_iter().flatten().filter(|name| !name.is_empty()).collect()
}

fn of_volume(volume: &PersistentVolume) -> Vec<String> {
    volume.spec.iter().filter_map(|spec| spec.volume_attributes_class_name.clone()).collect()
}

impl VacProtection {
    pub fn new(
        client: Client,
        classes: Informer<VolumeAttributesClass>,
        claims: Informer<PersistentVolumeClaim>,
        volumes: Informer<PersistentVolume>,
        queue: &Queue,
    ) -> Arc<Self> {
        claims.add_index(INDEX, of_claim);
        volumes.add_index(INDEX, of_volume);
        let to = queue.clone();
        classes.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        let to = queue.clone();
        claims.on_change(move |change| left(change, of_claim).iter().for_each(|name| to.add(Key::new(None, name))));
        let to = queue.clone();
        volumes.on_change(move |change| left(change, of_volume).iter().for_each(|name| to.add(Key::new(None, name))));
        Arc::new(Self { client, classes, claims, volumes })
    }
}

/// The classes that an object no longer has.
fn left<K>(change: &Change<K>, of: fn(&K) -> Vec<String>) -> Vec<String> {
    match change {
        Change::Added(_) => Vec::new(),
        Change::Deleted(old) => of(old),
        Change::Updated { old, new } => {
            let now = of(new);
            of(old).into_iter().filter(|name| !now.contains(name)).collect()
        }
    }
}

#[async_trait::async_trait]
impl Reconcile for VacProtection {
    fn name(&self) -> &'static str {
        "vac-protection"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(class) = self.classes.get(key) else { return Ok(Outcome::Done) };
        let going = class.metadata.deletion_timestamp.is_some();
        let used =
            !self.claims.by_index(INDEX, &key.name).is_empty() || !self.volumes.by_index(INDEX, &key.name).is_empty();
        if going && FINALIZER.is_on(&class.metadata) && !used {
            FINALIZER.take(&self.client, &*class).await?;
        } else if !going && !FINALIZER.is_on(&class.metadata) {
            FINALIZER.put(&self.client, &*class).await?;
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn a_class_is_used_until_nobody_has_it_or_is_to_get_it() {
        let claim = |asked: &str, has: &str, next: &str| {
            let status = json!({"currentVolumeAttributesClassName": has,
                "modifyVolumeStatus": {"status": "Pending", "targetVolumeAttributesClassName": next}});
            Arc::new(
                serde_json::from_value(json!({"spec": {"volumeAttributesClassName": asked}, "status": status}))
                    .unwrap(),
            )
        };
        let change = Change::Updated { old: claim("gold", "silver", ""), new: claim("gold", "gold", "") };
        assert_eq!(left(&change, of_claim), ["silver"]);
        let change = Change::Updated { old: claim("gold", "silver", "gold"), new: claim("silver", "silver", "gold") };
        assert!(left(&change, of_claim).is_empty(), "it may still become gold");
        assert_eq!(left(&Change::Deleted(claim("gold", "", "")), of_claim), ["gold"]);
    }
}
