//! Claims that ask for more than they have.
//!
//! A directory grows by its promise alone: the volume's capacity is raised if its node has the room, then the claim's.
//! What interrupts that is made good by the next look, for every step is one that is missing.

use dhow_api::local_volumes::PROVISIONER;
use dhow_scheduler::volumes::matching::{annotation, capacity, requested, storage};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use super::{PROVISIONED_BY, Told};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Growth {
    /// The claim has what it asks for.
    None,
    /// The class does not grow, or another controller grows its volumes.
    NotOurs(Option<Told>),
    /// The node has not the room.
    Refused(Option<Told>),
    /// Say that it begins.
    Begin,
    Raise,
    /// The volume is raised, the claim is to show it.
    Show,
}

/// Bytes that a bound claim has.
fn granted(claim: &PersistentVolumeClaim) -> i64 {
    storage(claim.status.as_ref().and_then(|status| status.capacity.as_ref()))
}

fn is_resizing(claim: &PersistentVolumeClaim) -> bool {
    let mut conditions = claim.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Resizing" && condition.status == "True")
}

/// Whether a claim asks for more than it has.
pub fn asks(claim: &PersistentVolumeClaim) -> bool {
    requested(claim) > granted(claim)
}

/// `left` bytes are not promised yet on the volume's node.
pub fn plan(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    class: Option<&StorageClass>,
    left: i64,
) -> Growth {
    let (asked, has) = (requested(claim), capacity(volume));
    // A volume may be larger than its claim asked for.
    if !asks(claim) {
        return if is_resizing(claim) { Growth::Show } else { Growth::None };
    }
    if annotation(&volume.metadata, PROVISIONED_BY) != Some(PROVISIONER) {
        let grows = class.is_some_and(|class| class.allow_volume_expansion == Some(true));
        let text = "waiting for an external controller to expand this PVC";
        return Growth::NotOurs(Told::normal("ExternalExpanding", text).filter(|_| grows));
    }
    if has >= asked {
        return Growth::Show;
    }
    let more = asked.saturating_sub(has);
    if more > left {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let text = format!(
            "error expanding volume \"{name}\": its node has {left} bytes left for local volumes, {more} more are asked for"
        );
        return Growth::Refused(Told::warning("VolumeResizeFailed", text));
    }
    if is_resizing(claim) { Growth::Raise } else { Growth::Begin }
}

/// The status of a claim while its volume grows.
pub fn begun(claim: &PersistentVolumeClaim, now: &str) -> Value {
    let mut conditions = others(claim);
    conditions.push(json!({"type": "Resizing", "status": "True", "lastTransitionTime": now}));
    json!({"status": {"conditions": conditions}})
}

/// The status of a claim whose volume has grown.
pub fn shown(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Value {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    json!({"status": {"conditions": others(claim), "capacity": capacity}})
}

/// Conditions that are not about the size.
fn others(claim: &PersistentVolumeClaim) -> Vec<Value> {
    let conditions = claim.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|condition| condition.type_ != "Resizing").map(|condition| json!(condition)).collect()
}
