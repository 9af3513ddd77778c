//! What is to be done with a volume.

use dhow_api::local_volumes;
use dhow_scheduler::volumes::matching::{BOUND_BY_CONTROLLER, annotation, phase, volume_name};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::{PROVISIONED_BY, Told};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    Nothing,
    /// Write the phase, with a reason and message for a failure.
    Phase(&'static str, Option<(&'static str, String)>),
    /// Its claim is gone: say so, after asking the server once more.
    Release,
    /// Take back a claim that a controller had chosen it for, and that took another.
    Unbind,
    /// Let whoever holds its data give it up.
    Delete,
    /// Its claim looks at it next.
    WakeClaim,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub act: Act,
    pub told: Option<Told>,
}

/// The claim of the name that the volume is held for is `claim`, if there is one.
pub fn plan(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> Plan {
    let plain = |act| Plan { act, told: None };
    let to = |wanted: &'static str| match phase(volume) == wanted {
        true => plain(Act::Nothing),
        false => plain(Act::Phase(wanted, None)),
    };
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else {
        return to("Available");
    };
    let uid = reference.uid.as_deref().unwrap_or_default();
    if uid.is_empty() {
        // Held by name for a claim that may be yet to come.
        return match claim {
            Some(_) if phase(volume) == "Available" => plain(Act::WakeClaim),
            _ => to("Available"),
        };
    }
    let claim = claim.filter(|claim| claim.metadata.uid.as_deref() == Some(uid));
    let Some(claim) = claim else { return given_up(volume) };
    let named = volume_name(claim);
    if named.is_empty() {
        return plain(Act::WakeClaim);
    }
    if Some(named) == volume.metadata.name.as_deref() {
        return to("Bound");
    }
    // Its claim took another volume.
    let made = annotation(&volume.metadata, PROVISIONED_BY).is_some();
    if made && policy(volume) == "Delete" {
        return given_up(volume);
    }
    plain(Act::Unbind)
}

fn policy(volume: &PersistentVolume) -> &str {
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    policy.unwrap_or("Retain")
}

fn given_up(volume: &PersistentVolume) -> Plan {
    let plain = |act| Plan { act, told: None };
    match phase(volume) {
        "Released" => {}
        "Failed" => return plain(Act::Nothing),
        _ => return plain(Act::Release),
    }
    if volume.metadata.deletion_timestamp.is_some() {
        return plain(Act::Nothing);
    }
    let fail = |reason: &'static str, why: String| Plan {
        told: Told::warning(reason, why.clone()),
        act: Act::Phase("Failed", Some((reason, why))),
    };
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    match (policy(volume), annotation(&volume.metadata, PROVISIONED_BY)) {
        ("Delete", Some(local_volumes::PROVISIONER)) => plain(Act::Delete),
        // Another provisioner deletes what it made.
        ("Delete", Some(_)) => plain(Act::Nothing),
        ("Delete", None) if volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some()) => plain(Act::Nothing),
        ("Delete", None) => fail(
            "VolumeFailedDelete",
            format!("error getting deleter volume plugin for volume \"{name}\": no deletable volume plugin matched"),
        ),
        ("Recycle", _) => fail(
            "VolumeFailedRecycle",
            "no volume plugin recycles; use the reclaim policy Delete with a provisioner, or Retain".to_owned(),
        ),
        _ => plain(Act::Nothing),
    }
}

/// Whether a controller chose the volume for its claim.
pub fn was_chosen(volume: &PersistentVolume) -> bool {
    annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_some()
}
