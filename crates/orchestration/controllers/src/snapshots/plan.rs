//! What follows for a snapshot from what is there.

use std::sync::Arc;

use dhow_api::local_volumes::{NODE_LABEL, PROVISIONER};
use dhow_api::quantity::Quantity;
use dhow_client::reference;
use dhow_client::snapshots::{
    ContentSource, ContentSpec, Status, VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;

use dhow_scheduler::volumes::local;

/// Marks the class that snapshots get which name none.
pub const DEFAULT: &str = "snapshot.storage.kubernetes.io/is-default-class";
/// In the parameters of a class: the Secret that its driver needs.
const SECRET: &str = "csi.storage.k8s.io/snapshotter-secret-";
/// On a content: the same, for the end of the snapshot.
const DELETION_SECRET: &str = "snapshot.storage.kubernetes.io/deletion-secret-";

/// Why something cannot be, as a reason and in words.
pub type Refusal = (&'static str, String);

pub fn content_name(snapshot: &VolumeSnapshot) -> String {
    format!("snapcontent-{}", snapshot.metadata.uid.as_deref().unwrap_or_default())
}

/// Whether a content is this very snapshot's, or waits for one of its name.
pub fn is_of(content: &VolumeSnapshotContent, snapshot: &VolumeSnapshot) -> bool {
    let of = &content.spec.volume_snapshot_ref;
    let same_uid = of.uid.as_ref().is_none_or(|uid| uid.is_empty() || Some(uid) == snapshot.metadata.uid.as_ref());
    of.name == snapshot.metadata.name && of.namespace == snapshot.metadata.namespace && same_uid
}

/// The class that a snapshot of a driver's volume gets when it names none.
pub fn default_class(classes: &[Arc<VolumeSnapshotClass>], driver: &str) -> Result<Arc<VolumeSnapshotClass>, Refusal> {
    let is_default = |class: &&Arc<VolumeSnapshotClass>| {
        let annotation = class.metadata.annotations.as_ref().and_then(|all| all.get(DEFAULT));
        class.driver == driver && annotation.is_some_and(|text| text == "true")
    };
    let found: Vec<_> = classes.iter().filter(is_default).collect();
    match found.as_slice() {
        [one] => Ok(Arc::clone(one)),
        [] => Err(("SetDefaultSnapshotClassFailed", format!("cannot find default snapshot class for driver {driver}"))),
        all => {
            let text = format!("{} default snapshot classes were found for driver {driver}", all.len());
            Err(("SetDefaultSnapshotClassFailed", text))
        }
    }
}

/// A volume that a snapshot is to be taken of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub driver: String,
    pub handle: String,
    /// The node that takes snapshots of a volume of its own.
    pub node: Option<String>,
    pub mode: Option<String>,
}

/// The volume that a claim is bound to.
pub fn source(
    claim: Option<&PersistentVolumeClaim>,
    name: &str,
    volume: Option<&PersistentVolume>,
) -> Result<Taken, Refusal> {
    let refused = |text: String| Err(("CreateSnapshotContentFailed", text));
    let Some(claim) = claim else {
        return refused(format!(
            "snapshot controller failed to update {name}: persistentvolumeclaim \"{name}\" not found"
        ));
    };
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let Some(volume) = volume.filter(|_| bound) else {
        return refused(format!("the PVC {name} is not yet bound to a PV, will not attempt to take a snapshot"));
    };
    let mode = volume.spec.as_ref().and_then(|spec| spec.volume_mode.clone());
    let handle = volume.metadata.name.clone().unwrap_or_default();
    if let Some(csi) = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()) {
        return Ok(Taken { driver: csi.driver.clone(), handle: csi.volume_handle.clone(), node: None, mode });
    }
    match local::node_of(volume).map(str::to_owned) {
        Some(node) => Ok(Taken { driver: PROVISIONER.to_owned(), handle, node: Some(node), mode }),
        None => refused(format!(
            "volume {handle} is neither of a CSI driver nor of {PROVISIONER}: only those can be taken snapshots of"
        )),
    }
}

/// The content that asks a driver, or a node, for a snapshot.
pub fn content(snapshot: &VolumeSnapshot, class: &VolumeSnapshotClass, of: Taken) -> VolumeSnapshotContent {
    let mut metadata = ObjectMeta { name: Some(content_name(snapshot)), ..ObjectMeta::default() };
    metadata.labels = of.node.map(|node| [(NODE_LABEL.to_owned(), node)].into());
    for part in ["name", "namespace"] {
        if let Some(value) = class.parameters.get(&format!("{SECRET}{part}")) {
            metadata.annotations.get_or_insert_default().insert(format!("{DELETION_SECRET}{part}"), value.clone());
        }
    }
    let spec = ContentSpec {
        volume_snapshot_ref: reference(snapshot),
        deletion_policy: class.deletion_policy.clone(),
        driver: class.driver.clone(),
        volume_snapshot_class_name: class.metadata.name.clone(),
        source: ContentSource { volume_handle: Some(of.handle), snapshot_handle: None },
        source_volume_mode: of.mode,
    };
    VolumeSnapshotContent { metadata, spec, status: None }
}

/// What a snapshot shows of its content. What it once showed stays, so that it never seems to become unready.
pub fn status(before: &Status, content: &VolumeSnapshotContent, now: Timestamp) -> Status {
    let seen = content.status.clone().unwrap_or_default();
    let made = seen.creation_time.and_then(|nanoseconds| Timestamp::from_nanosecond(i128::from(nanoseconds)).ok());
    let ready = seen.ready_to_use.unwrap_or(false) || before.ready_to_use == Some(true);
    let mut error = seen.error.filter(|_| !ready);
    if let (Some(error), Some(known)) = (&mut error, &before.error)
        && error.message == known.message
    {
        // The same words again are no news.
        error.time.clone_from(&known.time);
    } else if let Some(error) = &mut error {
        error.time.get_or_insert(Time(now));
    }
    Status {
        bound_volume_snapshot_content_name: content.metadata.name.clone(),
        creation_time: made.map(Time).or_else(|| before.creation_time.clone()),
        ready_to_use: Some(ready),
        restore_size: seen.restore_size.map(bytes).or_else(|| before.restore_size.clone()),
        error,
    }
}

/// As a quantity of bytes is written.
fn bytes(amount: i64) -> String {
    let units = [("Gi", 1_i64 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    let fits = units.iter().find(|(_, size)| amount > 0 && amount % size == 0);
    let text = fits.map_or_else(|| amount.to_string(), |(unit, size)| format!("{}{unit}", amount / size));
    debug_assert!(text.parse::<Quantity>().is_ok());
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dhow_client::snapshots::{ContentStatus, Trouble};
    use serde_json::json;

    fn class(name: &str, driver: &str, default: bool) -> Arc<VolumeSnapshotClass> {
        let annotations = json!({DEFAULT: default.to_string()});
        let parameters = json!({"csi.storage.k8s.io/snapshotter-secret-name": "s"});
        let class = json!({"metadata": {"name": name, "annotations": annotations}, "driver": driver,
            "deletionPolicy": "Delete", "parameters": parameters});
        Arc::new(serde_json::from_value(class).unwrap())
    }

    fn of(driver: &str, handle: &str, node: Option<&str>) -> Taken {
        Taken { driver: driver.into(), handle: handle.into(), node: node.map(Into::into), mode: None }
    }

    #[test]
    fn the_default_class_is_the_driver_s_own() {
        let classes = [class("a", "x", true), class("b", "y", true), class("c", "y", false)];
        assert_eq!(default_class(&classes, "y").unwrap().metadata.name.as_deref(), Some("b"));
        assert!(default_class(&classes, "z").unwrap_err().1.contains("cannot find"));
        let two = [class("a", "x", true), class("b", "x", true)];
        assert!(default_class(&two, "x").unwrap_err().1.starts_with("2 default snapshot classes"));
    }

    #[test]
    fn only_bound_volumes_of_drivers_have_snapshots() {
        let claim = |phase: &str| serde_json::from_value(json!({"status": {"phase": phase}})).unwrap();
        let csi: PersistentVolume =
            serde_json::from_value(json!({"spec": {"csi": {"driver": "d", "volumeHandle": "h"}}})).unwrap();
        let local =
            serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": {"local": {"path": "/"}}})).unwrap();
        assert_eq!(source(Some(&claim("Bound")), "c", Some(&csi)), Ok(of("d", "h", None)));
        let ours =
            json!({"metadata": {"name": "v", "labels": {"dhow.io/node": "n1"}}, "spec": {"local": {"path": "/"}}});
        let ours = serde_json::from_value(ours).unwrap();
        assert_eq!(source(Some(&claim("Bound")), "c", Some(&ours)), Ok(of("dhow.io/local", "v", Some("n1"))));
        let text = |claim: Option<&PersistentVolumeClaim>, volume| source(claim, "c", volume).unwrap_err().1;
        assert!(text(None, Some(&csi)).contains("not found"));
        assert!(text(Some(&claim("Pending")), Some(&csi)).contains("not yet bound"));
        assert!(text(Some(&claim("Bound")), Some(&local)).contains("volume v is neither of a CSI driver nor"));
    }

    #[test]
    fn a_snapshot_shows_what_its_content_has() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let seen = |status: ContentStatus| VolumeSnapshotContent {
            metadata: ObjectMeta { name: Some("c".into()), ..ObjectMeta::default() },
            status: Some(status),
            ..VolumeSnapshotContent::default()
        };
        let failed = ContentStatus {
            error: Some(Trouble { time: None, message: Some("no room".into()) }),
            ..ContentStatus::default()
        };
        let first = status(&Status::default(), &seen(failed.clone()), now);
        assert_eq!((first.ready_to_use, first.error.as_ref().unwrap().time.clone()), (Some(false), Some(Time(now))));
        let later = now + std::time::Duration::from_secs(9);
        assert_eq!(status(&first, &seen(failed), later), first, "nothing new");
        let done = ContentStatus {
            ready_to_use: Some(true),
            creation_time: Some(1_000_000_000),
            restore_size: Some(5 << 30),
            ..ContentStatus::default()
        };
        let ready = status(&first, &seen(done), now);
        assert_eq!(ready.restore_size.as_deref(), Some("5Gi"));
        assert_eq!(ready.creation_time.unwrap().0.to_string(), "1970-01-01T00:00:01Z");
        assert!(ready.error.is_none() && ready.ready_to_use == Some(true));
    }

    #[test]
    fn a_content_carries_what_its_end_needs() {
        let snapshot = json!({"metadata": {"name": "s", "namespace": "n", "uid": "u"}, "spec": {"source": {}}});
        let snapshot: VolumeSnapshot = serde_json::from_value(snapshot).unwrap();
        let mut made = content(&snapshot, &class("a", "x", true), of("x", "h", Some("n1")));
        assert_eq!(made.metadata.labels.as_ref().unwrap()["dhow.io/node"], "n1");
        assert_eq!(made.metadata.name.as_deref(), Some("snapcontent-u"));
        assert_eq!(
            made.metadata.annotations.as_ref().unwrap()["snapshot.storage.kubernetes.io/deletion-secret-name"],
            "s"
        );
        assert!(is_of(&made, &snapshot));
        made.spec.volume_snapshot_ref.uid = Some("other".into());
        assert!(!is_of(&made, &snapshot));
        made.spec.volume_snapshot_ref.uid = None;
        assert!(is_of(&made, &snapshot), "it waits for one of that name");
    }
}
