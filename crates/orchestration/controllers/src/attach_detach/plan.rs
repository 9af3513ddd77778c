//! Which volumes are to be attached to a node, and which no longer. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use sha2::{Digest, Sha256};

use crate::common::is_finished;

/// A node that is not ready may hold on to a volume for so long.
pub const UNMOUNT_LIMIT: Duration = Duration::from_secs(6 * 60);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A volume that has to be brought to a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    pub volume: String,
    pub driver: String,
    pub handle: String,
}

impl Wanted {
    /// The volume as one that is attached; `None` if its driver does not do that. A driver that nobody described does.
    pub fn of(volume: &PersistentVolume, drivers: &[CSIDriver]) -> Option<Self> {
        let csi = volume.spec.as_ref()?.csi.as_ref()?;
        let driver = drivers.iter().find(|driver| driver.metadata.name.as_deref() == Some(&csi.driver));
        let attaches = driver.is_none_or(|driver| driver.spec.attach_required != Some(false));
        attaches.then(|| Self {
            volume: volume.metadata.name.clone().unwrap_or_default(),
            driver: csi.driver.clone(),
            handle: csi.volume_handle.clone(),
        })
    }

    /// What the node's status calls it.
    pub fn unique_name(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }

    /// The object that asks for it to be on a node.
    pub fn attachment(&self, node: &str) -> String {
        let hash = Sha256::digest(format!("{}{}{node}", self.handle, self.driver).as_bytes());
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("csi-{hash}")
    }
}

/// Names of the claims that a pod's volumes have.
pub fn claims(pod: &Pod) -> impl Iterator<Item = String> + '_ {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(source.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name)),
        _ => None,
    })
}

/// The volume of a claim, once each is bound to the other.
pub fn bound<'a>(claim: &PersistentVolumeClaim, volume: Option<&'a PersistentVolume>) -> Option<&'a PersistentVolume> {
    let held = volume?.spec.as_ref()?.claim_ref.as_ref()?;
    (held.uid == claim.metadata.uid).then_some(volume).flatten()
}

/// Whether a pod still needs its volumes on its node.
pub fn uses_volumes(pod: &Pod) -> bool {
    !is_finished(pod)
}

/// Everything that decides for one node.
pub struct View<'a> {
    pub name: &'a str,
    /// `None` once it is gone.
    pub node: Option<&'a Node>,
    /// What its pods want, each with the pods that want it.
    pub wanted: &'a BTreeMap<Wanted, Vec<&'a Pod>>,
    /// Volumes as far as there are such, by name.
    pub known: &'a BTreeMap<String, (Wanted, bool)>,
    /// All attachments of these volumes and of this node.
    pub attachments: &'a [VolumeAttachment],
    /// For how long each of the node's volumes has not been wanted any more, by attachment.
    pub unwanted_for: &'a BTreeMap<String, Duration>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub attach: Vec<Wanted>,
    /// Volumes that are on another node, and may be on one only.
    pub held_elsewhere: Vec<Wanted>,
    /// Attachments to delete.
    pub detach: Vec<String>,
    /// What the node's status is to say is attached.
    pub attached: BTreeSet<String>,
    /// Attachments whose volumes are not wanted.
    pub unwanted: BTreeSet<String>,
    pub again: Option<Duration>,
}

pub fn plan(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    let name_of = |one: &VolumeAttachment| one.metadata.name.clone().unwrap_or_default();
    let volume_of = |one: &VolumeAttachment| one.spec.source.persistent_volume_name.clone().unwrap_or_default();
    let status = view.node.and_then(|node| node.status.as_ref());
    let in_use = |unique: &str| {
        status.iter().flat_map(|status| status.volumes_in_use.iter().flatten()).any(|name| name == unique)
    };
    for wanted in view.wanted.keys().filter(|_| view.node.is_some()) {
        let own = wanted.attachment(view.name);
        if view.attachments.iter().any(|one| name_of(one) == own) {
            continue;
        }
        let alone = view.known.get(&wanted.volume).is_some_and(|(_, alone)| *alone);
        let elsewhere =
            view.attachments.iter().any(|one| volume_of(one) == wanted.volume && one.spec.node_name != view.name);
        match alone && elsewhere {
            true => plan.held_elsewhere.push(wanted.clone()),
            false => plan.attach.push(wanted.clone()),
        }
    }
    for one in view.attachments.iter().filter(|one| one.spec.node_name == view.name) {
        let name = name_of(one);
        // One that somebody else made is theirs.
        let Some((volume, _)) = view.known.get(&volume_of(one)).filter(|(own, _)| own.attachment(view.name) == name)
        else {
            continue;
        };
        let unique = volume.unique_name();
        let attached = one.status.as_ref().is_some_and(|status| status.attached);
        if one.metadata.deletion_timestamp.is_some() {
            continue;
        }
        if view.wanted.contains_key(volume) {
            if attached {
                plan.attached.insert(unique);
            }
            continue;
        }
        plan.unwanted.insert(name.clone());
        let waited = view.unwanted_for.get(&name).copied().unwrap_or_default();
        let left = UNMOUNT_LIMIT.saturating_sub(waited);
        let lost = view.node.is_none_or(|node| is_out_of_service(node) || (!is_ready(node) && left.is_zero()));
        if !in_use(&unique) || lost {
            plan.detach.push(name);
            continue;
        }
        // The node says when it has let go; a node that is not ready may never say so.
        if attached {
            plan.attached.insert(unique);
        }
        if view.node.is_some_and(|node| !is_ready(node)) {
            plan.again = Some(plan.again.map_or(left, |again| again.min(left)));
        }
    }
    plan
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.into_iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// Whether a volume may be on one node only.
pub fn is_alone(volume: &PersistentVolume) -> bool {
    let modes = volume.spec.iter().flat_map(|spec| spec.access_modes.iter().flatten());
    !modes.into_iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn volume() -> Wanted {
        Wanted { volume: "pv".into(), driver: "d.example".into(), handle: "h".into() }
    }

    fn attachment(node: &str, attached: bool) -> VolumeAttachment {
        serde_json::from_value(json!({
            "metadata": {"name": volume().attachment(node)},
            "spec": {"attacher": "d.example", "nodeName": node, "source": {"persistentVolumeName": "pv"}},
            "status": {"attached": attached},
        }))
        .unwrap()
    }

    fn node(ready: bool, in_use: bool, taint: bool) -> Node {
        let taints = if taint { json!([{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]) } else { json!([]) };
        let in_use: Vec<String> = if in_use { vec![volume().unique_name()] } else { Vec::new() };
        let ready = if ready { "True" } else { "Unknown" };
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}], "volumesInUse": in_use}}))
        .unwrap()
    }

    fn decide(node: Option<&Node>, wanted: bool, attachments: &[VolumeAttachment], waited: u64) -> Plan {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}})).unwrap();
        let wanted = if wanted { BTreeMap::from([(volume(), vec![&pod])]) } else { BTreeMap::new() };
        let known = BTreeMap::from([("pv".to_owned(), (volume(), true))]);
        let unwanted_for = BTreeMap::from([(volume().attachment("n"), Duration::from_secs(waited))]);
        plan(&View { name: "n", node, wanted: &wanted, known: &known, attachments, unwanted_for: &unwanted_for })
    }

    #[test]
    fn a_volume_that_is_wanted_is_attached_and_then_shown() {
        let ready = node(true, false, false);
        assert_eq!(decide(Some(&ready), true, &[], 0).attach, [volume()]);
        let waits = decide(Some(&ready), true, &[attachment("n", false)], 0);
        assert_eq!(waits, Plan::default());
        let there = decide(Some(&ready), true, &[attachment("n", true)], 0);
        assert_eq!(there.attached, BTreeSet::from([volume().unique_name()]));
        assert!(there.detach.is_empty() && there.attach.is_empty());
    }

    #[test]
    fn a_volume_of_one_node_waits_for_the_other_node() {
        let plan = decide(Some(&node(true, false, false)), true, &[attachment("other", true)], 0);
        assert_eq!((plan.attach.len(), plan.held_elsewhere), (0, vec![volume()]));
    }

    #[test]
    fn a_volume_is_taken_away_when_its_node_lets_go_or_is_lost() {
        let here = [attachment("n", true)];
        let name = volume().attachment("n");
        // Node, seconds since it is not wanted, whether it goes, and when it is looked at again.
        for (node, waited, goes, again) in [
            (Some(node(true, false, false)), 0, true, None),
            (Some(node(true, true, false)), 9999, false, None),
            (Some(node(false, true, false)), 60, false, Some(300)),
            (Some(node(false, true, false)), 360, true, None),
            (Some(node(false, true, true)), 0, true, None),
            (None, 0, true, None),
        ] {
            let plan = decide(node.as_ref(), false, &here, waited);
            let expected: Vec<String> = if goes { vec![name.clone()] } else { Vec::new() };
            assert_eq!(plan.detach, expected, "{node:?} {waited}");
            assert_eq!(plan.again, again.map(Duration::from_secs), "{node:?} {waited}");
            assert_eq!(plan.attached.is_empty(), goes, "what goes is not shown first: {node:?}");
        }
    }

    #[test]
    fn what_others_made_is_left_alone() {
        let mut other = attachment("n", true);
        other.metadata.name = Some("mine".into());
        assert_eq!(decide(Some(&node(true, false, false)), false, &[other], 0), Plan::default());
    }

    #[test]
    fn drivers_say_whether_they_attach() {
        let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "pv"},
            "spec": {"csi": {"driver": "d.example", "volumeHandle": "h"}}}))
        .unwrap();
        let driver = |attach: Value| -> CSIDriver {
            serde_json::from_value(json!({"metadata": {"name": "d.example"}, "spec": {"attachRequired": attach}}))
                .unwrap()
        };
        assert_eq!(Wanted::of(&volume, &[]), Some(super::tests::volume()));
        assert!(Wanted::of(&volume, &[driver(json!(true))]).is_some());
        assert!(Wanted::of(&volume, &[driver(json!(false))]).is_none());
    }
}
