//! Persistent volumes: claims get volumes, volumes are made, grown and given up, pods get claims of their own.
//!
//! Plans decide from what is known; `binder` does what they say. A volume and its claim name each other; the volume is
//! written first, so that a claim that is complete always has its volume.

mod binder;
mod claim_plan;
mod ephemeral;
mod expand;
mod provision;
mod source;
#[cfg(test)]
mod tests;
mod volume_plan;

pub use binder::Binder;
pub use ephemeral::EphemeralVolumes;

use std::sync::Arc;

use dhow_client::{EventType, Informer, Key};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

/// Annotation of a volume: who made it.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Annotations of a claim: who is to make its volume.
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";

/// What a plan wants to be told about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    kind: EventType,
    reason: &'static str,
    message: String,
}

impl Told {
    fn normal(reason: &'static str, message: impl Into<String>) -> Option<Self> {
        Some(Self { kind: EventType::Normal, reason, message: message.into() })
    }

    fn warning(reason: &'static str, message: impl Into<String>) -> Option<Self> {
        Some(Self { kind: EventType::Warning, reason, message: message.into() })
    }
}

/// The local copies that plans look at.
#[derive(Clone)]
pub struct Copies {
    pub claims: Informer<PersistentVolumeClaim>,
    pub volumes: Informer<PersistentVolume>,
    pub classes: Informer<StorageClass>,
    pub nodes: Informer<Node>,
}

impl Copies {
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get(&Key::new(None, name))
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get(&Key::new(None, name))
    }

    fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.get(&Key::new(None, name))
    }
}
