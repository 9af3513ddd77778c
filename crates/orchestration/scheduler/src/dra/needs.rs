//! All of a pod's claims on devices: what keeps it from nodes, and what is to be written when it gets one.

use std::sync::Arc;

use dhow_api::resource_claims::{entries, name};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim, ResourceClaimConsumerReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::allocate::allocate;
use super::binding::is_conditional;
use super::known::{ClaimKey, Devices, allocation};
use super::requests;
use crate::affinity;
use crate::snapshot::Snapshot;

pub(crate) const NOT_ALL: &str = "cannot allocate all claims";
pub(crate) const ELSEWHERE: &str = "resourceclaim not available on the node";
/// Pods that may share a claim.
const MOST_CONSUMERS: usize = 256;

/// What is to be written on a claim before its pod is bound.
#[derive(Debug, Clone, PartialEq)]
pub struct Reservation {
    pub claim: ClaimKey,
    pub uid: Option<String>,
    /// `None` if the claim has its devices already.
    pub allocation: Option<Arc<AllocationResult>>,
}

#[derive(Default)]
pub(crate) struct Needs<'a> {
    known: Option<&'a Devices>,
    /// Claims that have their devices.
    allocated: Vec<&'a AllocationResult>,
    /// Those that get them with this decision.
    open: Vec<(ClaimKey, &'a ResourceClaim)>,
    /// Those that do not name the pod yet.
    unreserved: Vec<(ClaimKey, &'a ResourceClaim)>,
}

/// The claims of a pod that are known by name.
pub(crate) fn keys(pod: &Pod) -> Vec<ClaimKey> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let names = entries(pod).iter().filter_map(|entry| name(pod, entry).ok()?);
    names.map(|(name, _)| (namespace.clone(), name.to_owned())).collect()
}

fn consumers(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or_default()
}

impl<'a> Needs<'a> {
    /// Or why no node will do, in a sentence's words.
    pub fn new(snapshot: &'a Snapshot, pod: &Pod) -> Result<Self, String> {
        let mut needs = Self::default();
        if entries(pod).is_empty() {
            return Ok(needs);
        }
        let known = snapshot.devices();
        needs.known = Some(known);
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        for entry in entries(pod) {
            if let Some((name, own)) = name(pod, entry)? {
                needs.add(known, pod, (namespace.clone(), name.to_owned()), own)?;
            }
        }
        Ok(needs)
    }

    fn add(&mut self, known: &'a Devices, pod: &Pod, key: ClaimKey, own: bool) -> Result<(), String> {
        let (namespace, name) = (&key.0, &key.1);
        let claim = known.claim(&key).ok_or_else(|| format!("resourceclaim \"{name}\" not found"))?;
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("resourceclaim \"{name}\" is being deleted"));
        }
        let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
        if own && !owners.iter().any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref()) {
            let pod = pod.metadata.name.as_deref().unwrap_or_default();
            return Err(format!(
                "ResourceClaim {namespace}/{name} was not created for Pod {namespace}/{pod} (Pod is not owner)"
            ));
        }
        // Two entries may name one claim.
        if self.unreserved.iter().any(|(other, _)| *other == key) {
            return Ok(());
        }
        let reserved = consumers(claim).iter().any(|by| Some(&by.uid) == pod.metadata.uid.as_ref());
        match allocation(claim) {
            Some(_) if !reserved && consumers(claim).len() >= MOST_CONSUMERS => {
                return Err("resourceclaim in use".to_owned());
            }
            Some(allocation) => self.allocated.push(allocation),
            None if known.is_taken(&key) => {
                return Err(format!("resource claim {namespace}/{name} is in the process of being allocated"));
            }
            None => {
                requests::asked(known, claim)?;
                self.open.push((key.clone(), claim));
            }
        }
        if !reserved {
            self.unreserved.push((key, claim));
        }
        Ok(())
    }

    /// Whether nodes differ in what they can offer.
    pub fn restricts(&self) -> bool {
        !self.open.is_empty() || self.allocated.iter().any(|allocation| allocation.node_selector.is_some())
    }

    pub fn refuses(&self, node: &Node) -> Option<String> {
        self.assign(node).err()
    }

    /// What each open claim gets on the node, or why that cannot be.
    fn assign(&self, node: &Node) -> Result<Vec<AllocationResult>, String> {
        let selectors = self.allocated.iter().filter_map(|allocation| allocation.node_selector.as_ref());
        if !selectors.clone().all(|selector| affinity::selected(selector, node)) {
            return Err(ELSEWHERE.to_owned());
        }
        let Some(known) = self.known.filter(|_| !self.open.is_empty()) else { return Ok(Vec::new()) };
        let claims: Vec<&ResourceClaim> = self.open.iter().map(|(_, claim)| *claim).collect();
        allocate(known, node, &claims)?.ok_or_else(|| NOT_ALL.to_owned())
    }

    /// What is to be written when the pod gets the node.
    pub fn reservations(&self, node: &Node) -> Result<Vec<Reservation>, String> {
        let mut given = self.assign(node)?;
        for allocation in given.iter_mut().filter(|allocation| is_conditional(allocation)) {
            allocation.allocation_timestamp = Some(Time(Timestamp::now()));
        }
        let given: Vec<(&ClaimKey, Arc<AllocationResult>)> =
            self.open.iter().map(|(key, _)| key).zip(given.into_iter().map(Arc::new)).collect();
        let unreserved = self.unreserved.iter().map(|(key, claim)| Reservation {
            claim: key.clone(),
            uid: claim.metadata.uid.clone(),
            allocation: given.iter().find(|(other, _)| *other == key).map(|(_, allocation)| Arc::clone(allocation)),
        });
        Ok(unreserved.collect())
    }

    /// A claim that has devices which the pod cannot get at, and which nobody else uses.
    pub fn idle(&self, snapshot: &Snapshot, pod: &Pod) -> Option<ClaimKey> {
        let known = self.known?;
        let unusable = |claim: &ResourceClaim| {
            let selector = allocation(claim).and_then(|allocation| allocation.node_selector.as_ref());
            let nodes = || snapshot.nodes().map(|(_, _, node)| node);
            selector.is_some_and(|selector| nodes().any(|node| !affinity::selected(selector, node)))
        };
        let ours = |claim: &ResourceClaim| consumers(claim).iter().all(|by| Some(&by.uid) == pod.metadata.uid.as_ref());
        let mut keys = keys(pod).into_iter();
        keys.find(|key| known.claim(key).is_some_and(|claim| unusable(claim) && ours(claim)))
    }
}
