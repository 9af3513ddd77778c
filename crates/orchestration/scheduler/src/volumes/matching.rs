//! Which volume serves a claim: kube-controller-manager's rules, for the binder and the scheduler alike.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use dhow_api::quantity;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::affinity;
use crate::selecting::Selector;

/// Annotation of what a controller bound, not a person: it may be undone.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Annotation of a claim whose binding is complete on both sides.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Annotation of a claim: the node that its first pod goes to.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Annotation that named the class before there was a field.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// A provisioner that never provides anything.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

pub fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str)
}

/// Bytes of storage in a list of resources. The API refuses malformed quantities; one that gets here counts as nothing.
pub fn storage(list: Option<&BTreeMap<String, Quantity>>) -> i64 {
    let text = list.and_then(|list| list.get("storage"));
    text.and_then(|text| quantity::Quantity::from_str(&text.0).ok()).map_or(0, |size| size.units())
}

/// Bytes that a claim asks for.
pub fn requested(claim: &PersistentVolumeClaim) -> i64 {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    storage(resources.and_then(|resources| resources.requests.as_ref()))
}

/// Bytes of a volume.
pub fn capacity(volume: &PersistentVolume) -> i64 {
    storage(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()))
}

/// The name of a claim's class; empty for none.
pub fn class_of(claim: &PersistentVolumeClaim) -> &str {
    let field = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&claim.metadata, CLASS).or(field).unwrap_or_default()
}

/// The name of a volume's class; empty for none.
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let field = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&volume.metadata, CLASS).or(field).unwrap_or_default()
}

pub fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// The volume that a claim names; empty for none.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

/// Whether binding is complete: the claim may be used.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_name(claim).is_empty() && annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

/// The node that a claim's volume is to be made for.
pub fn selected_node(claim: &PersistentVolumeClaim) -> Option<&str> {
    annotation(&claim.metadata, SELECTED_NODE).filter(|node| !node.is_empty())
}

/// Whether claims of the class are bound when their first pod has a node.
pub fn waits_for_consumer(class: Option<&StorageClass>) -> bool {
    class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
}

/// Whether a volume is held for this claim, by its name or wholly.
pub fn is_held_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return false };
    let uid = reference.uid.as_deref().unwrap_or_default();
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
}

/// Whether the volume can be used on the node.
pub fn reaches(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    affinity.and_then(|affinity| affinity.required.as_ref()).is_none_or(|required| affinity::selected(required, node))
}

pub fn is_block(mode: Option<&str>) -> bool {
    mode == Some("Block")
}

/// Whether a volume has what the claim asks for, wherever it is.
pub fn serves(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(has), Some(asks)) = (&volume.spec, &claim.spec) else { return false };
    let modes = has.access_modes.as_deref().unwrap_or_default();
    volume.metadata.deletion_timestamp.is_none()
        && capacity(volume) >= requested(claim)
        && is_block(has.volume_mode.as_deref()) == is_block(asks.volume_mode.as_deref())
        && asks.access_modes.iter().flatten().all(|mode| modes.contains(mode))
}

/// Whether a free volume may be taken for the claim.
fn is_choice(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let empty = BTreeMap::new();
    volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none())
        && phase(volume) == "Available"
        && class_of_volume(volume) == class_of(claim)
        && selector
            .is_none_or(|selector| Selector::from(selector).matches(volume.metadata.labels.as_ref().unwrap_or(&empty)))
}

/// The volume held for the claim, or else the smallest free one that serves it; on `node`, if that is known. Without a
/// node, a claim that waits for one (`delayed`) gets only what is held for it.
pub fn find<'a>(
    volumes: impl Iterator<Item = &'a Arc<PersistentVolume>>,
    claim: &PersistentVolumeClaim,
    node: Option<&Node>,
    delayed: bool,
) -> Option<&'a Arc<PersistentVolume>> {
    let reached = |volume: &PersistentVolume| node.is_none_or(|node| reaches(volume, node));
    let mut best: Option<&Arc<PersistentVolume>> = None;
    for volume in volumes.filter(|volume| serves(volume, claim)) {
        if is_held_for(volume, claim) {
            return reached(volume).then_some(volume);
        }
        let open = node.is_some() || !delayed;
        let smaller = best.is_none_or(|best| capacity(volume) < capacity(best));
        if open && smaller && is_choice(volume, claim) && reached(volume) {
            best = Some(volume);
        }
    }
    best
}

/// Whether the class lets volumes be made for the node.
pub fn is_allowed_on(class: &StorageClass, node: &Node) -> bool {
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    terms.is_empty()
        || terms.iter().any(|term| {
            let mut asked = term.match_label_expressions.iter().flatten();
            asked.all(|one| label(&one.key).is_some_and(|value| one.values.contains(value)))
        })
}
