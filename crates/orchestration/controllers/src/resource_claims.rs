//! Claims on devices: made for pods by template, and given back when no pod needs them any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use dhow_api::resource_claims;
use dhow_client::{
    Change, Client, DeleteParams, Error, EventRecorder, EventType, Informer, Key, Outcome, Patch, Queue, Reconcile,
    controller_of, controller_reference, is_controlled_by, reference,
};
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim, PodResourceClaimStatus};
use k8s_openapi::api::resource::v1::{
    ResourceClaim, ResourceClaimConsumerReference, ResourceClaimStatus, ResourceClaimTemplate,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use serde_json::json;

use crate::common::{Finalizer, delete, in_ending_namespace, is_finished, node_name};

/// On a claim: which of its pod's claims it is.
const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// Holds a claim that devices are allocated to.
const ALLOCATED: Finalizer = Finalizer("resource.kubernetes.io/delete-protection");

/// Neither needs its devices nor ever will.
fn is_done(pod: &Pod) -> bool {
    is_finished(pod) || (pod.metadata.deletion_timestamp.is_some() && node_name(pod).is_none())
}

/// The name of a pod's claim, once it is known.
fn claim_name<'a>(pod: &'a Pod, claim: &'a PodResourceClaim) -> Option<&'a str> {
    resource_claims::name(pod, claim).ok()?.map(|(name, _)| name)
}

/// Makes the claims that pods bring along by template.
pub struct PodClaims {
    client: Client,
    recorder: EventRecorder,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    /// Claims that were made and that pods may not show yet, by the pod's uid and entry: none is made twice.
    made: Arc<Mutex<Made>>,
}

type Made = BTreeMap<(String, String), String>;

impl PodClaims {
    pub fn new(client: Client, pods: Informer<Pod>, claims: Informer<ResourceClaim>, queue: &Queue) -> Arc<Self> {
        let to = queue.clone();
        let made = Arc::<Mutex<Made>>::default();
        let forgotten = Arc::clone(&made);
        pods.on_change(move |change| {
            let pod = change.object();
            match change {
                _ if resource_claims::entries(pod).is_empty() => {}
                Change::Deleted(_) => forgotten.lock().retain(|(of, _), _| Some(of) != pod.metadata.uid.as_ref()),
                _ => to.add(Key::of(&pod.metadata)),
            }
        });
        let recorder = EventRecorder::new(client.clone(), "resource_claim");
        Arc::new(Self { client, recorder, pods, claims, made })
    }

    /// Nothing more is to be made for a pod.
    fn forget(&self, uid: &str) {
        self.made.lock().retain(|(of, _), _| of != uid);
    }

    /// The name of the claim that one entry of a pod stands for.
    async fn ensure(&self, pod: &Pod, entry: &PodResourceClaim, template: &str) -> Result<String, Error> {
        let own = self.claims.by_index("controller", pod.metadata.uid.as_deref().unwrap_or_default());
        let of_entry = |claim: &&Arc<ResourceClaim>| {
            claim.metadata.annotations.as_ref().and_then(|all| all.get(POD_CLAIM)) == Some(&entry.name)
        };
        if let Some(known) = own.iter().find(of_entry) {
            return Ok(known.metadata.name.clone().unwrap_or_default());
        }
        let made_as = (pod.metadata.uid.clone().unwrap_or_default(), entry.name.clone());
        if let Some(name) = self.made.lock().get(&made_as) {
            return Ok(name.clone());
        }
        let namespace = pod.metadata.namespace.as_deref();
        let template: ResourceClaimTemplate = self.client.get(namespace, template).await?;
        let given = template.spec.metadata.unwrap_or_default();
        let mut annotations = given.annotations.unwrap_or_default();
        annotations.insert(POD_CLAIM.into(), entry.name.clone());
        let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
        let claim = ResourceClaim {
            metadata: ObjectMeta {
                generate_name: Some(format!("{pod_name}-{}-", entry.name)),
                namespace: pod.metadata.namespace.clone(),
                labels: given.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![controller_reference(pod)]),
                ..ObjectMeta::default()
            },
            spec: template.spec.spec,
            status: None,
        };
        let name = self.client.create(&claim).await?.metadata.name.unwrap_or_default();
        self.made.lock().insert(made_as, name.clone());
        Ok(name)
    }
}

#[async_trait::async_trait]
impl Reconcile for PodClaims {
    fn name(&self) -> &'static str {
        "pod-resource-claims"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(pod) = self.pods.get(key) else { return Ok(Outcome::Done) };
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if is_done(&pod) || pod.metadata.deletion_timestamp.is_some() {
            self.forget(uid);
            return Ok(Outcome::Done);
        }
        let before = pod.status.as_ref().and_then(|status| status.resource_claim_statuses.clone()).unwrap_or_default();
        let mut now = before.clone();
        for entry in resource_claims::entries(&pod) {
            let Some(template) = entry.resource_claim_template_name.as_deref() else { continue };
            if claim_name(&pod, entry).is_some() {
                continue;
            }
            match self.ensure(&pod, entry, template).await {
                Ok(name) => {
                    now.push(PodResourceClaimStatus { name: entry.name.clone(), resource_claim_name: Some(name) });
                }
                Err(error) if in_ending_namespace(&self.client, &error, key.namespace()).await => {
                    return Ok(Outcome::Done);
                }
                Err(error) => {
                    let text = format!("PodResourceClaim {}: {error}", entry.name);
                    self.recorder.event(reference(&*pod), EventType::Warning, "FailedResourceClaimCreation", &text);
                    return Err(error);
                }
            }
        }
        if now != before {
            let seen = json!({"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version});
            let patch = Patch::Merge(json!({"metadata": seen, "status": {"resourceClaimStatuses": now}}));
            match self.client.patch::<Pod>(key.namespace(), &key.name, patch, Some("status")).await {
                Err(error) if error.is_not_found() => {}
                other => drop(other?),
            }
        } else {
            // It shows them all.
            self.forget(uid);
        }
        Ok(Outcome::Done)
    }
}

/// Gives claims back: reservations of pods that are done, then devices that nobody has reserved.
pub struct ResourceClaims {
    client: Client,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
}

impl ResourceClaims {
    pub fn new(client: Client, pods: Informer<Pod>, claims: Informer<ResourceClaim>, queue: &Queue) -> Arc<Self> {
        let to = queue.clone();
        claims.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        let to = queue.clone();
        pods.on_change(move |change| {
            let pod = change.object();
            if matches!(change, Change::Deleted(_)) || is_done(pod) {
                let names = resource_claims::entries(pod).iter().filter_map(|claim| claim_name(pod, claim));
                names.for_each(|name| to.add(Key::new(pod.metadata.namespace.as_deref(), name)));
            }
        });
        Arc::new(Self { client, pods, claims })
    }

    /// Whether a pod that reserved a claim still needs it. The copy may be behind: absence is asked of the server.
    async fn is_needed(&self, namespace: Option<&str>, by: &ResourceClaimConsumerReference) -> Result<bool, Error> {
        if by.resource != "pods" || by.api_group.as_deref().is_some_and(|group| !group.is_empty()) {
            // Others see to theirs.
            return Ok(true);
        }
        let same = |pod: &Pod| pod.metadata.uid.as_ref() == Some(&by.uid);
        if let Some(pod) = self.pods.get(&Key::new(namespace, &by.name)).filter(|pod| same(pod)) {
            return Ok(!is_done(&pod));
        }
        match self.client.get::<Pod>(namespace, &by.name).await {
            Ok(pod) => Ok(same(&pod) && !is_done(&pod)),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the pod that a claim was made for is done, or gone.
    fn is_orphan(&self, claim: &ResourceClaim) -> bool {
        let Some(owner) = controller_of(&claim.metadata).filter(|owner| owner.kind == "Pod") else { return false };
        let pod = self.pods.get(&Key::new(claim.metadata.namespace.as_deref(), &owner.name));
        // One that is gone takes its claims along by itself.
        pod.is_some_and(|pod| is_controlled_by(&claim.metadata, &*pod) && is_done(&pod))
    }
}

/// The status without reservations that are over; devices that nobody has reserved are free.
fn released(status: &ResourceClaimStatus, needed: &[bool]) -> ResourceClaimStatus {
    let mut status = status.clone();
    let mut needed = needed.iter();
    if let Some(reserved) = &mut status.reserved_for {
        reserved.retain(|_| needed.next() == Some(&true));
    }
    status.reserved_for = status.reserved_for.filter(|reserved| !reserved.is_empty());
    if status.reserved_for.is_none() {
        (status.allocation, status.devices) = (None, None);
    }
    status
}

#[async_trait::async_trait]
impl Reconcile for ResourceClaims {
    fn name(&self) -> &'static str {
        "resource-claim"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(claim) = self.claims.get(key) else { return Ok(Outcome::Done) };
        let before = claim.status.clone().unwrap_or_default();
        let mut needed = Vec::new();
        for by in before.reserved_for.iter().flatten() {
            needed.push(self.is_needed(key.namespace(), by).await?);
        }
        // An allocation without a reservation is the scheduler's, on the way to a pod, until somebody had it.
        let had = needed.contains(&false) || claim.metadata.deletion_timestamp.is_some();
        let now = if had { released(&before, &needed) } else { before.clone() };
        if now != before {
            let changed = ResourceClaim { status: Some(now), ..ResourceClaim::clone(&claim) };
            match self.client.update_status(&changed).await {
                Err(error) if error.is_not_found() => {}
                other => drop(other?),
            }
            // The new version wakes us for the rest.
            return Ok(Outcome::Done);
        }
        if now.allocation.is_none() && ALLOCATED.is_on(&claim.metadata) {
            ALLOCATED.take(&self.client, &*claim).await?;
        }
        if self.is_orphan(&claim) && claim.metadata.deletion_timestamp.is_none() {
            delete(&self.client, &*claim, DeleteParams::default()).await?;
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn devices_are_free_once_nobody_needs_them() {
        let by = |name: &str| json!({"resource": "pods", "name": name, "uid": name});
        let status = json!({"allocation": {}, "reservedFor": [by("a"), by("b")]});
        let status: ResourceClaimStatus = serde_json::from_value(status).unwrap();
        let one = released(&status, &[false, true]);
        assert!(one.allocation.is_some() && one.reserved_for.unwrap()[0].name == "b");
        let none = released(&status, &[false, false]);
        assert!(none.allocation.is_none() && none.reserved_for.is_none());
    }

    #[test]
    fn a_pod_is_done_when_it_ended_or_will_never_begin() {
        let pod = |value| serde_json::from_value::<Pod>(value).unwrap();
        let going = "2026-01-01T00:00:00Z";
        assert!(is_done(&pod(json!({"status": {"phase": "Failed"}}))));
        assert!(is_done(&pod(json!({"metadata": {"deletionTimestamp": going}}))));
        let spec = json!({"nodeName": "n", "containers": []});
        assert!(!is_done(&pod(json!({"metadata": {"deletionTimestamp": going}, "spec": spec}))));
    }
}
