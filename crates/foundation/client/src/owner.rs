//! Owner references: who made an object, and who manages it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::key::Object;

/// The reference by which `owner` manages another object; deletion of the owner in the foreground waits for it.
pub fn controller_reference<K: Object>(owner: &K) -> OwnerReference {
    let metadata = owner.metadata();
    OwnerReference {
        api_version: K::API_VERSION.into(),
        kind: K::KIND.into(),
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The owner that manages the object. There is at most one.
pub fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether `owner` manages the object of `metadata`. Names do not count: an owner may have been made anew.
pub fn is_controlled_by<K: Object>(metadata: &ObjectMeta, owner: &K) -> bool {
    controller_of(metadata).is_some_and(|reference| Some(&reference.uid) == owner.metadata().uid.as_ref())
}
