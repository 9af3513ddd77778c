//! Volumes that grew where they are stored: their file systems follow on the node.

use dhow_client::{EventType, Patch, reference};
use dhow_plugins::csi;
use dhow_plugins::csi::node_service_capability::rpc::Type as Can;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

use super::mount::{capability, secrets, text};
use super::record::Record;
use super::{Source, access_mode, failed};
use crate::Error;
use crate::shared::Shared;

const PENDING: &str = "FileSystemResizePending";

/// Whether a claim waits for its node.
fn waits(claim: &PersistentVolumeClaim) -> bool {
    let status = claim.status.as_ref();
    let mut conditions = status.iter().flat_map(|status| status.conditions.iter().flatten());
    let stage = status.and_then(|status| status.allocated_resource_statuses.as_ref()?.get("storage"));
    conditions.any(|one| one.type_ == PENDING && one.status == "True")
        || stage.is_some_and(|stage| matches!(stage.as_str(), "NodeResizePending" | "NodeResizeInProgress"))
}

/// Lets a mounted volume grow if its claim waits for that. What fails is told by event.
pub async fn check(shared: &Shared, pod: &Pod, own: &Record) -> Result<(), Error> {
    let Some((namespace, name)) = own.claim.as_ref().filter(|_| own.published) else { return Ok(()) };
    let Some(claim) = shared.objects.claim(namespace, name) else { return Ok(()) };
    if !waits(&claim) {
        return Ok(());
    }
    let volume: PersistentVolume =
        shared.config.client.get(None, &own.name).await.map_err(Error::client("failed to get PV from API server"))?;
    let Some(source) = Source::of_volume(&volume, &own.pod_volume, false) else { return Ok(()) };
    if let Err(error) = grow(shared, own, &source).await {
        let message = format!("NodeExpandVolume.NodeExpandVolume failed for volume {:?} : {error}", own.name);
        shared.events.event(reference(claim.as_ref()), EventType::Warning, "VolumeResizeFailed", &message);
        return Err(error);
    }
    let patch = Patch::Merge(grown(&claim, &volume));
    let sent = shared.config.client.patch::<PersistentVolumeClaim>(Some(namespace), name, patch, Some("status")).await;
    sent.map_err(Error::client("write the status of a claim that grew"))?;
    let message = format!("MountVolume.NodeExpandVolume succeeded for volume {:?} {}", own.name, shared.config.name);
    shared.events.event(reference(pod), EventType::Normal, "FileSystemResizeSuccessful", &message);
    shared.events.event(reference(claim.as_ref()), EventType::Normal, "FileSystemResizeSuccessful", &message);
    Ok(())
}

async fn grow(shared: &Shared, own: &Record, source: &Source) -> Result<(), Error> {
    let lock = shared.csi.lock_of(&own.driver_name, &own.volume_handle);
    let _held = lock.lock().await;
    let driver = shared.csi.driver(&own.driver_name)?;
    if !driver.can(Can::ExpandVolume) {
        return Ok(());
    }
    let bytes = source.capacity.and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(0);
    let request = csi::NodeExpandVolumeRequest {
        volume_id: own.volume_handle.clone(),
        volume_path: text(&own.target),
        capacity_range: Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
        staging_target_path: text(&own.staging),
        volume_capability: Some(capability(source, None, access_mode(&source.access_modes, &driver))),
        secrets: secrets(shared, source.expand_secret.as_ref()).await?,
    };
    driver.node().node_expand_volume(request).await.map(drop).map_err(|status| failed("NodeExpandVolume", &status))
}

/// The status of a claim whose file system has grown.
fn grown(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Value {
    let conditions = claim.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let others: Vec<_> = conditions.filter(|one| one.type_ != PENDING && one.type_ != "Resizing").collect();
    let storage = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage"));
    json!({
        "metadata": {"resourceVersion": claim.metadata.resource_version},
        "status": {
            "capacity": {"storage": storage},
            "conditions": others,
            "allocatedResourceStatuses": {"storage": null},
        },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_waits_until_its_file_system_has_grown() {
        let mut claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {}, "status": {
            "conditions": [{"type": PENDING, "status": "True"}, {"type": "Mine", "status": "True"}]}}))
        .unwrap();
        assert!(waits(&claim));
        let volume: PersistentVolume =
            serde_json::from_value(json!({"metadata": {}, "spec": {"capacity": {"storage": "2Gi"}}})).unwrap();
        let patch = grown(&claim, &volume);
        assert_eq!(patch["status"]["capacity"]["storage"], "2Gi");
        assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 1);
        claim.status.as_mut().unwrap().conditions = None;
        assert!(!waits(&claim));
    }
}
