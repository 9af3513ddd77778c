//! The claims on devices that a pod has.

use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};

/// The entries of a pod that stand for claims.
pub fn entries(pod: &Pod) -> &[PodResourceClaim] {
    pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default()
}

/// The name of the claim that an entry stands for, and whether it was made for the pod. No name: no claim is needed.
///
/// # Errors
/// In upstream's words, when a claim has still to be made.
pub fn name<'a>(pod: &'a Pod, entry: &'a PodResourceClaim) -> Result<Option<(&'a str, bool)>, String> {
    if let Some(name) = entry.resource_claim_name.as_deref() {
        return Ok(Some((name, false)));
    }
    let made = pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_deref()).unwrap_or_default();
    match made.iter().find(|one| one.name == entry.name) {
        Some(one) => Ok(one.resource_claim_name.as_deref().map(|name| (name, true))),
        None => {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let (namespace, name) = (text(&pod.metadata.namespace), text(&pod.metadata.name));
            Err(format!("pod \"{namespace}/{name}\": ResourceClaim not created yet"))
        }
    }
}
