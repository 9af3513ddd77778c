//! What is to be done for a claim.

use std::sync::Arc;

use dhow_api::local_volumes;
use dhow_scheduler::volumes::local::{self, Beginning};
use dhow_scheduler::volumes::matching::{
    BIND_COMPLETED, NO_PROVISIONER, annotation, capacity, class_of, class_of_volume, find, is_block, is_held_for,
    requested, selected_node, volume_name, waits_for_consumer,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use super::Told;

/// What is known around a claim.
pub struct View<'a> {
    pub claim: &'a PersistentVolumeClaim,
    pub volumes: &'a [Arc<PersistentVolume>],
    /// The claim's class, if there is one of that name.
    pub class: Option<&'a StorageClass>,
    /// A pod that uses the claim and has no node yet.
    pub consumer: Option<&'a str>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    Nothing,
    /// Write both sides as far as they are not yet.
    Bind(Arc<PersistentVolume>),
    /// Make a volume on a node.
    Provision {
        node: String,
    },
    /// Name the provisioner on the claim; it does the rest.
    HandOver {
        provisioner: String,
    },
    /// Its volume is lost, and with it the data.
    Lose,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub act: Act,
    pub told: Option<Told>,
}

impl Plan {
    fn of(act: Act) -> Self {
        Self { act, told: None }
    }

    fn tell(told: Option<Told>) -> Self {
        Self { act: Act::Nothing, told }
    }

    fn lose(reason: &'static str, message: &str) -> Self {
        Self { act: Act::Lose, told: Told::warning(reason, message) }
    }
}

pub fn plan(view: &View<'_>) -> Plan {
    let claim = view.claim;
    let name = volume_name(claim);
    let volume = view.volumes.iter().find(|volume| volume.metadata.name.as_deref() == Some(name));
    let free = |volume: &PersistentVolume| volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none());
    if annotation(&claim.metadata, BIND_COMPLETED).is_some() {
        return match volume {
            _ if name.is_empty() => Plan::lose(
                "ClaimLost",
                "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
            ),
            None => Plan::lose("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!"),
            Some(volume) if free(volume) || is_held_for(volume, claim) => Plan::of(Act::Bind(Arc::clone(volume))),
            Some(_) => {
                Plan::lose("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
            }
        };
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Plan::of(Act::Nothing);
    }
    if name.is_empty() {
        return unbound(view);
    }
    match volume {
        // It may be made yet.
        None => Plan::of(Act::Nothing),
        Some(volume) if is_held_for(volume, claim) => Plan::of(Act::Bind(Arc::clone(volume))),
        Some(volume) if free(volume) => match misfit(volume, claim) {
            Some(why) => Plan::tell(Told::warning(
                "VolumeMismatch",
                format!("Cannot bind to requested volume \"{name}\": {why}"),
            )),
            None => Plan::of(Act::Bind(Arc::clone(volume))),
        },
        Some(_) => {
            Plan::tell(Told::warning("FailedBinding", format!("volume \"{name}\" already bound to a different claim.")))
        }
    }
}

/// Why a volume that the claim names itself does not serve it.
fn misfit(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<&'static str> {
    let (has, asks) = (volume.spec.as_ref()?, claim.spec.as_ref()?);
    let modes = has.access_modes.as_deref().unwrap_or_default();
    if capacity(volume) < requested(claim) {
        return Some("requested PV is too small");
    }
    if class_of_volume(volume) != class_of(claim) {
        return Some("storageClassName does not match");
    }
    if is_block(has.volume_mode.as_deref()) != is_block(asks.volume_mode.as_deref()) {
        return Some("incompatible volumeMode");
    }
    (!asks.access_modes.iter().flatten().all(|mode| modes.contains(mode))).then_some("incompatible accessMode")
}

fn unbound(view: &View<'_>) -> Plan {
    let claim = view.claim;
    let delayed = waits_for_consumer(view.class);
    let node = selected_node(claim);
    if let Some(volume) = find(view.volumes.iter(), claim, None, delayed) {
        // Whoever uses it would see half of what it is to begin with.
        if volume.metadata.finalizers.iter().flatten().any(|name| name == local_volumes::FILLING) {
            return Plan::of(Act::Nothing);
        }
        return Plan::of(Act::Bind(Arc::clone(volume)));
    }
    if let Some(class) = view.class.filter(|class| class.provisioner == local_volumes::PROVISIONER) {
        let binding =
            format!("storage class \"{}\" has to use volumeBindingMode WaitForFirstConsumer", class_of(claim));
        let why = local::impossible(claim, class).or_else(|| (!delayed).then_some(binding));
        if let Some(why) = why {
            let message = format!("failed to provision volume with StorageClass \"{}\": {why}", class_of(claim));
            return Plan::tell(Told::warning("ProvisioningFailed", message));
        }
    }
    if delayed && node.is_none() {
        return Plan::tell(match view.consumer {
            Some(pod) => Told::normal("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
            None => Told::normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
        });
    }
    let name = class_of(claim);
    if name.is_empty() {
        return Plan::tell(Told::normal(
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        ));
    }
    let Some(class) = view.class else {
        return Plan::tell(Told::warning(
            "ProvisioningFailed",
            format!("storageclass.storage.k8s.io \"{name}\" not found"),
        ));
    };
    match (class.provisioner.as_str(), node) {
        (NO_PROVISIONER, _) => Plan::tell(Told::normal(
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        )),
        (local_volumes::PROVISIONER, Some(_)) if let Beginning::Others(kind, name) = local::beginning(claim) => {
            Plan::tell(Told::normal(
                "Provisioning",
                format!("waiting for whoever fills volumes from {kind} \"{name}\""),
            ))
        }
        (local_volumes::PROVISIONER, Some(node)) => Plan::of(Act::Provision { node: node.to_owned() }),
        (provisioner, _) => Plan {
            act: Act::HandOver { provisioner: provisioner.to_owned() },
            told: Told::normal(
                "ExternalProvisioning",
                format!(
                    "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually \
                     by the system administrator. If volume creation is delayed, please verify that the provisioner is \
                     running and correctly registered."
                ),
            ),
        },
    }
}
