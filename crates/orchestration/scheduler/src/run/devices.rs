//! What a decision writes on claims on devices: their devices and the pod that uses them, before the pod is bound.

use std::time::Duration;

use dhow_client::{Error, EventType, Patch, reference};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimStatus};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::writes::Writer;
use crate::dra::Progress;
use crate::volumes::ClaimKey;
use crate::{PodKey, Reservation};

/// Holds a claim that has devices.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// A claim that others write at the same time is tried so often.
const ATTEMPTS: usize = 5;

impl Writer {
    /// Writes all that was decided for the pod's claims; gives those that name the pod now.
    pub(super) async fn reserve(&self, id: &PodKey, pod: &Pod) -> Result<Vec<Reservation>, Error> {
        let mut done: Vec<Reservation> = Vec::new();
        for reservation in self.engine.reservations(id) {
            match self.reserve_one(pod, &reservation).await {
                Ok(claim) => {
                    self.engine.device_claim_written(&reservation.claim, claim);
                    done.push(reservation);
                }
                Err(error) => {
                    self.unreserve(pod, &done).await;
                    return Err(error);
                }
            }
        }
        Ok(done)
    }

    async fn reserve_one(&self, pod: &Pod, reservation: &Reservation) -> Result<ResourceClaim, Error> {
        let (namespace, name) = (Some(reservation.claim.0.as_str()), reservation.claim.1.as_str());
        let failed = |why: &str| Error::Reconcile(format!("claim {}/{name} {why}", reservation.claim.0));
        let mut attempt = 1;
        loop {
            let mut claim: ResourceClaim = self.client.get(namespace, name).await?;
            if claim.metadata.uid != reservation.uid {
                return Err(failed("is another one of this name"));
            }
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(failed("got deleted in the meantime"));
            }
            let written = async {
                let status = claim.status.get_or_insert_default();
                match &reservation.allocation {
                    // The answer to an earlier attempt may have been lost.
                    Some(own) if status.allocation.as_ref().is_some_and(|shown| shown == &**own) => {}
                    Some(_) if status.allocation.is_some() => {
                        return Err(failed("got allocated elsewhere in the meantime"));
                    }
                    Some(allocation) => {
                        let finalizers = claim.metadata.finalizers.get_or_insert_default();
                        if !finalizers.iter().any(|one| one == FINALIZER) {
                            finalizers.push(FINALIZER.to_owned());
                            claim = self.client.update(&claim).await?;
                        }
                        claim.status.get_or_insert_default().allocation = Some(allocation.as_ref().clone());
                    }
                    None => {}
                }
                let reserved = claim.status.get_or_insert_default().reserved_for.get_or_insert_default();
                let text = |value: &Option<String>| value.clone().unwrap_or_default();
                let own = ResourceClaimConsumerReference {
                    api_group: None,
                    resource: "pods".to_owned(),
                    name: text(&pod.metadata.name),
                    uid: text(&pod.metadata.uid),
                };
                if reserved.contains(&own) {
                    return Ok(claim);
                }
                reserved.push(own);
                self.client.update_status(&claim).await
            };
            match written.await {
                Err(error) if error.is_conflict() && attempt < ATTEMPTS => attempt += 1,
                other => return other,
            }
        }
    }

    /// Waits until all devices of the pod are prepared. If that fails or takes too long they are given back, so that the pod
    /// may get others.
    pub(super) async fn await_devices(&self, pod: &Pod) -> Result<(), Error> {
        let mut moved = self.engine.device_claims_moved();
        loop {
            moved.borrow_and_update();
            let now = Timestamp::now();
            let Some((key, progress)) = self.engine.unprepared(pod, now) else { return Ok(()) };
            let until = match progress {
                Progress::Ready => return Ok(()),
                Progress::Waits(until) => until,
                Progress::Lost => {
                    let why = format!("claim {}/{} is no longer reserved for the pod", key.0, key.1);
                    return Err(Error::Reconcile(why));
                }
                Progress::Failed(why) => {
                    let why = format!("claim {}/{}: {why}", key.0, key.1);
                    self.recorder.event(reference(pod), EventType::Warning, "FailedScheduling", &why);
                    self.give_devices_up(pod, &key).await?;
                    return Err(Error::Reconcile(why));
                }
            };
            let left = until.and_then(|until| Duration::try_from(until.duration_since(now)).ok());
            match left {
                // Late is found out in the next turn.
                Some(left) => drop(tokio::time::timeout(left, moved.changed()).await),
                None => drop(moved.changed().await),
            }
        }
    }

    /// Takes devices from a claim that nobody else has reserved.
    async fn give_devices_up(&self, pod: &Pod, key: &ClaimKey) -> Result<(), Error> {
        let mut claim: ResourceClaim = self.client.get(Some(&key.0), &key.1).await?;
        let status = claim.status.get_or_insert_default();
        let mut others = status.reserved_for.take().unwrap_or_default();
        others.retain(|by| Some(&by.uid) != pod.metadata.uid.as_ref());
        if others.is_empty() {
            *status = ResourceClaimStatus::default();
        } else {
            status.reserved_for = Some(others);
        }
        match self.client.update_status(&claim).await {
            Ok(claim) => self.engine.device_claim_written(key, claim),
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The pod is not bound after all: its claims no longer name it. They keep their devices for its next attempt.
    pub(super) async fn unreserve(&self, pod: &Pod, reserved: &[Reservation]) {
        for reservation in reserved {
            let (namespace, name) = (Some(reservation.claim.0.as_str()), reservation.claim.1.as_str());
            let gone = json!([{"$patch": "delete", "uid": pod.metadata.uid}]);
            let patch = json!({"metadata": {"uid": reservation.uid}, "status": {"reservedFor": gone}});
            match self.client.patch::<ResourceClaim>(namespace, name, Patch::Strategic(patch), Some("status")).await {
                Ok(claim) => self.engine.device_claim_written(&reservation.claim, claim),
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => tracing::warn!(claim = name, %error, "cannot take a pod's reservation back"),
            }
        }
    }

    /// Frees devices that a waiting pod cannot get at and nobody uses, so that its claim gets others.
    pub(super) async fn free_idle_claim(&self, id: &PodKey) {
        let Some((key, claim)) = self.engine.take_idle_claim(id) else { return };
        let mut claim = ResourceClaim::clone(&claim);
        claim.status = Some(ResourceClaimStatus::default());
        match self.client.update_status(&claim).await {
            Ok(claim) => self.engine.device_claim_changed(&key, Some(std::sync::Arc::new(claim))),
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => tracing::warn!(claim = key.1, %error, "cannot free the devices of an idle claim"),
        }
    }
}
