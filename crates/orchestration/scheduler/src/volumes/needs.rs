//! What a pod's claims ask of its node: worked out once per decision, then asked per node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dhow_api::local_volumes::PROVISIONER;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;

use super::attach::{Attachable, Inline, has_places};
use super::capacity::Roomy;
use super::matching::{
    NO_PROVISIONER, find, is_allowed_on, is_bound, is_held_for, reaches, requested, selected_node, serves, volume_name,
    waits_for_consumer,
};
use super::storage::{ClaimKey, Storage, Taken, used_by};
use super::{local, storage, zones};
use crate::counts::Slot;
use crate::snapshot::Snapshot;

pub(crate) const OTHER_NODE: &str = "node(s) didn't match PersistentVolume's node affinity";
pub(crate) const NONE_TO_BIND: &str = "node(s) didn't find available persistent volumes to bind";
pub(crate) const SOURCE_ELSEWHERE: &str = "node(s) didn't hold the data source of a volume";
pub(crate) const NO_SPACE: &str = "node(s) did not have enough free storage";
pub(crate) const NO_VOLUME: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
pub(crate) const OTHER_ZONE: &str = "node(s) had no available volume zone";
pub(crate) const DISK_IN_USE: &str = "node(s) had no available disk";
pub(crate) const TOO_MANY: &str = "node(s) exceed max volume count";
pub(crate) const USED_ALONE: &str =
    "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";

/// A claim that gets its volume with its first pod's node.
struct Waiting<'a> {
    key: ClaimKey,
    claim: &'a PersistentVolumeClaim,
    class: &'a StorageClass,
    /// Decided already, for another pod or by an earlier run.
    node: Option<&'a str>,
    /// Where what it is to be filled from lies.
    source: Option<&'a str>,
    /// Where its driver has room for it, if that says so.
    roomy: Option<Roomy<'a>>,
    candidates: Vec<&'a Arc<PersistentVolume>>,
}

impl Waiting<'_> {
    /// Whether there is a provisioner that may make a volume for the node.
    fn can_be_made(&self, node: &Node) -> bool {
        let possible = match self.class.provisioner.as_str() {
            NO_PROVISIONER => false,
            PROVISIONER => local::impossible(self.claim, self.class).is_none(),
            _ => true,
        };
        possible && is_allowed_on(self.class, node)
    }
}

#[derive(Default)]
pub(crate) struct Needs<'a> {
    bound: Vec<&'a PersistentVolume>,
    waiting: Vec<Waiting<'a>>,
    /// For every node.
    refusal: Option<&'static str>,
    inline: Inline,
    /// All that is to be attached.
    attachables: Vec<Attachable>,
    promised: BTreeMap<String, i64>,
}

/// What is to be written for a claim before its pod is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Say on the claim which node its volume is to be made for.
    Select { claim: ClaimKey, node: String },
    /// Hold a volume for the claim.
    Hold { claim: ClaimKey, volume: String },
}

impl<'a> Needs<'a> {
    /// Or why no node will do, in a sentence's words.
    pub fn new(snapshot: &'a Snapshot, pod: &Pod) -> Result<Self, String> {
        let inline = Inline::of(pod);
        let attachables = inline.attachables.clone();
        let mut needs = Self { inline, attachables, ..Self::default() };
        let used = used_by(pod);
        if used.is_empty() {
            return Ok(needs);
        }
        let known = snapshot.storage();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for used in used {
            let key = (namespace.to_owned(), used.claim);
            needs.attachables.extend(Attachable::of_claim(known, &key));
            needs.add(snapshot, known, pod, key, used.ephemeral)?;
        }
        // The smallest first, so that it does not take what only a larger one needs.
        needs.waiting.sort_by_key(|waiting| requested(waiting.claim));
        if needs.waiting.iter().any(|waiting| waiting.class.provisioner == PROVISIONER) {
            needs.promised = local::promised(known.volumes.values().map(|volume| &**volume), known.to_be_made());
        }
        Ok(needs)
    }

    fn add(
        &mut self,
        snapshot: &Snapshot,
        known: &'a Storage,
        pod: &Pod,
        key: ClaimKey,
        ephemeral: bool,
    ) -> Result<(), String> {
        let name = key.1.clone();
        let Some(claim) = known.claims.get(&key) else {
            return Err(match ephemeral {
                true => {
                    format!("waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\"")
                }
                false => format!("persistentvolumeclaim \"{name}\" not found"),
            });
        };
        let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
        if ephemeral && !owners.iter().any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref()) {
            let (namespace, pod) = (&key.0, pod.metadata.name.as_deref().unwrap_or_default());
            return Err(format!("PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        }
        if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
            let volume = volume_name(claim);
            return Err(format!(
                "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
            ));
        }
        let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
        if modes.iter().any(|mode| mode == "ReadWriteOncePod") && snapshot.uses(&key) {
            self.refusal = Some(USED_ALONE);
        }
        if is_bound(claim) {
            match known.volumes.get(volume_name(claim)) {
                Some(volume) => self.bound.push(volume),
                None => self.refusal = Some(NO_VOLUME),
            }
            return Ok(());
        }
        let class = known.class(claim).filter(|class| waits_for_consumer(Some(class)));
        let Some(class) = class.filter(|_| volume_name(claim).is_empty()) else {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        };
        let elsewhere: BTreeSet<&String> =
            known.taken.iter().filter(|(other, _)| **other != key).filter_map(|(_, t)| t.volume.as_ref()).collect();
        let own = known.taken.get(&key).and_then(|taken| taken.volume.as_ref());
        let candidates = known.volumes.iter().filter(|(name, volume)| {
            own.is_none_or(|own| own == *name) && !elsewhere.contains(name) && serves(volume, claim)
        });
        let node = known.chosen_node(&key, claim);
        let source = if class.provisioner == PROVISIONER { local::source_node(claim)? } else { None };
        let candidates = candidates.map(|(_, volume)| volume).collect();
        // A volume that is being made already may be what takes the room.
        let roomy = if node.is_none() { Roomy::of(known, claim, class) } else { None };
        self.waiting.push(Waiting { key, claim, class, node, source, roomy, candidates });
        Ok(())
    }

    /// Whether nodes differ in what they can offer.
    pub fn restricts(&self) -> bool {
        self.refusal.is_some() || !self.bound.is_empty() || !self.waiting.is_empty() || !self.inline.is_empty()
    }

    /// The only nodes that can do, where that is known without asking them all.
    pub fn only_nodes(&self) -> Option<Vec<&str>> {
        if let Some(node) = self.waiting.iter().find_map(|waiting| waiting.node.or(waiting.source)) {
            return Some(vec![node]);
        }
        self.bound.iter().find_map(|volume| named_nodes(volume))
    }

    /// Whether claims get their volumes with this decision.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Asked in upstream's order: who else uses it, room to attach it, where it can be had.
    pub fn refuses(&self, snapshot: &Snapshot, slot: Slot) -> Option<&'static str> {
        let node = snapshot.row(slot).node.as_deref()?;
        if self.inline.clashes(snapshot, slot) {
            return Some(DISK_IN_USE);
        }
        if let Some(refusal) = self.refusal.filter(|refusal| *refusal == USED_ALONE) {
            return Some(refusal);
        }
        if !self.attachables.is_empty() && !has_places(snapshot, slot, &self.attachables) {
            return Some(TOO_MANY);
        }
        if let Err(refusal) = self.assign(node) {
            return Some(refusal);
        }
        self.bound.iter().any(|volume| !zones::holds(volume, node)).then_some(OTHER_ZONE)
    }

    /// What each waiting claim gets on the node, or why one gets nothing.
    pub fn assign(&self, node: &Node) -> Result<Vec<(ClaimKey, Taken)>, &'static str> {
        if let Some(refusal) = self.refusal {
            return Err(refusal);
        }
        if self.bound.iter().any(|volume| !reaches(volume, node)) {
            return Err(OTHER_NODE);
        }
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let mut used = BTreeSet::new();
        let mut left = local::room(node).saturating_sub(self.promised.get(name).copied().unwrap_or(0));
        let mut given = Vec::new();
        for waiting in &self.waiting {
            if waiting.node.is_some_and(|chosen| chosen != name) {
                return Err(NONE_TO_BIND);
            }
            if waiting.source.is_some_and(|source| source != name) {
                return Err(SOURCE_ELSEWHERE);
            }
            let free = waiting.candidates.iter().copied().filter(|volume| !used.contains(&volume.metadata.name));
            let volume = find(free, waiting.claim, Some(node), true);
            if let Some(volume) = volume {
                used.insert(volume.metadata.name.clone());
            } else if !waiting.can_be_made(node) {
                return Err(NONE_TO_BIND);
            } else if waiting.roomy.as_ref().is_some_and(|roomy| !roomy.reached_from(node)) {
                return Err(NO_SPACE);
            } else if waiting.class.provisioner == PROVISIONER && waiting.node.is_none() {
                left = left.saturating_sub(requested(waiting.claim));
                if left < 0 {
                    return Err(NO_SPACE);
                }
            }
            let volume = volume.and_then(|volume| volume.metadata.name.clone());
            given.push((waiting.key.clone(), Taken { node: name.to_owned(), volume }));
        }
        Ok(given)
    }
}

/// The nodes that a volume's affinity lists by their host names, which are node names unless someone changed the label.
fn named_nodes(volume: &PersistentVolume) -> Option<Vec<&str>> {
    let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let [term] = required.node_selector_terms.as_slice() else { return None };
    let hosts = term.match_expressions.iter().flatten().find(|one| one.key == "kubernetes.io/hostname");
    let hosts = hosts.filter(|one| one.operator == "In")?;
    Some(hosts.values.iter().flatten().map(String::as_str).collect())
}

/// What has to be written so that claims get what was decided; nothing for what the API shows already.
pub(crate) fn steps(known: &Storage, given: &[(ClaimKey, Taken)]) -> Vec<Step> {
    let steps = given.iter().filter_map(|(key, taken)| {
        let claim = known.claims.get(key)?;
        match &taken.volume {
            Some(name) => {
                let volume = known.volumes.get(name)?;
                let uid = volume.spec.as_ref()?.claim_ref.as_ref().and_then(|reference| reference.uid.as_ref());
                let held = is_held_for(volume, claim) && uid.is_some();
                (!held).then(|| Step::Hold { claim: key.clone(), volume: name.clone() })
            }
            None => {
                let shown = selected_node(claim) == Some(taken.node.as_str());
                (!shown).then(|| Step::Select { claim: key.clone(), node: taken.node.clone() })
            }
        }
    });
    steps.collect()
}

/// The names of the claims a pod uses, to be kept with it once it is placed.
pub(crate) fn claim_names(pod: &Pod) -> Vec<String> {
    storage::used_by(pod).into_iter().map(|used| used.claim).collect()
}
