//! What volumes of the built-in provisioner begin with: another claim's files, or a snapshot's. Both lie on one node, and the
//! new volume is made there.

use dhow_api::local_volumes::{PROVISIONER, Source, parse_snapshot_handle};
use dhow_client::snapshots::{VolumeSnapshot, VolumeSnapshotContent};
use dhow_client::{Client, Error, Key};
use dhow_scheduler::volumes::local::{self, Beginning};
use dhow_scheduler::volumes::matching::{capacity, is_bound, requested, volume_name};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::Copies;

/// What a volume is to be filled from, and where that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub source: Source,
    pub node: String,
}

/// `Err` within is why the claim cannot be filled, now or ever; `None` if nothing is to be copied for it.
pub async fn find(
    client: &Client,
    copies: &Copies,
    claim: &PersistentVolumeClaim,
) -> Result<Result<Option<Found>, String>, Error> {
    let namespace = claim.metadata.namespace.as_deref();
    let referred = claim.spec.as_ref().and_then(|spec| spec.data_source_ref.as_ref()?.namespace.as_deref());
    if referred.is_some_and(|other| !other.is_empty() && Some(other) != namespace) {
        return Ok(Err("its data source is in another namespace, which is not supported".to_owned()));
    }
    match local::beginning(claim) {
        Beginning::Empty | Beginning::Others(..) => Ok(Ok(None)),
        Beginning::Claim(name) => {
            let other = copies.claims.get(&Key::new(namespace, name));
            let volume = other.as_deref().and_then(|other| copies.volume(volume_name(other)));
            Ok(of_claim(claim, name, other.as_deref(), volume.as_deref()).map(Some))
        }
        Beginning::Snapshot(name) => of_snapshot(client, claim, name).await,
    }
}

fn of_claim(
    claim: &PersistentVolumeClaim,
    name: &str,
    other: Option<&PersistentVolumeClaim>,
    volume: Option<&PersistentVolume>,
) -> Result<Found, String> {
    if claim.metadata.name.as_deref() == Some(name) {
        return Err("it names itself as its data source".to_owned());
    }
    let Some(other) = other else { return Err(format!("claim \"{name}\", its data source, does not exist")) };
    if other.metadata.deletion_timestamp.is_some() {
        return Err(format!("claim \"{name}\", its data source, is being deleted"));
    }
    let Some(volume) = volume.filter(|_| is_bound(other)) else {
        return Err(format!("claim \"{name}\", its data source, is not bound yet"));
    };
    let volume_name = volume.metadata.name.clone().unwrap_or_default();
    let Some(node) = local::node_of(volume) else {
        return Err(format!("volume {volume_name} of claim \"{name}\", its data source, is not of {PROVISIONER}"));
    };
    let (asked, has) = (requested(claim), capacity(volume));
    if asked < has {
        return Err(format!("it asks for {asked} bytes, and claim \"{name}\", its data source, has {has}"));
    }
    Ok(Found { source: Source::Volume(volume_name), node: node.to_owned() })
}

/// The server is asked, since what a claim may read must not hang on a copy that is behind.
async fn of_snapshot(
    client: &Client,
    claim: &PersistentVolumeClaim,
    name: &str,
) -> Result<Result<Option<Found>, String>, Error> {
    let namespace = claim.metadata.namespace.as_deref();
    let missing = || Ok(Err(format!("snapshot \"{name}\", its data source, does not exist")));
    let snapshot = match client.get::<VolumeSnapshot>(namespace, name).await {
        Err(error) if error.is_not_found() => return missing(),
        other => other?,
    };
    let bound = snapshot.status.as_ref().and_then(|status| status.bound_volume_snapshot_content_name.as_deref());
    let content = match bound {
        Some(bound) => match client.get::<VolumeSnapshotContent>(None, bound).await {
            Err(error) if error.is_not_found() => None,
            other => Some(other?),
        },
        None => None,
    };
    Ok(of_content(claim, name, &snapshot, content.as_ref()).map(Some))
}

fn of_content(
    claim: &PersistentVolumeClaim,
    name: &str,
    snapshot: &VolumeSnapshot,
    content: Option<&VolumeSnapshotContent>,
) -> Result<Found, String> {
    if snapshot.metadata.deletion_timestamp.is_some() {
        return Err(format!("snapshot \"{name}\", its data source, is being deleted"));
    }
    let ready = snapshot.status.as_ref().is_some_and(|status| status.ready_to_use == Some(true));
    let Some(content) = content.filter(|_| ready) else {
        return Err(format!("snapshot \"{name}\", its data source, is not ready to be used"));
    };
    // Both name each other, or a snapshot could name the content of somebody else's.
    if content.spec.volume_snapshot_ref.uid != snapshot.metadata.uid {
        return Err(format!("snapshot \"{name}\", its data source, does not have the content it names"));
    }
    if content.spec.driver != PROVISIONER {
        return Err(format!(
            "snapshot \"{name}\", its data source, is of {}, not of {PROVISIONER}",
            content.spec.driver
        ));
    }
    let status = content.status.clone().unwrap_or_default();
    let handle = status.snapshot_handle.unwrap_or_default();
    let Some((node, held)) = parse_snapshot_handle(&handle) else {
        return Err(format!("snapshot \"{name}\", its data source, has the handle {handle:?}, which names no node"));
    };
    let (asked, least) = (requested(claim), status.restore_size.unwrap_or(0));
    if asked < least {
        return Err(format!("it asks for {asked} bytes, and snapshot \"{name}\", its data source, needs {least}"));
    }
    Ok(Found { source: Source::Snapshot(held.to_owned()), node: node.to_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn claim(size: &str, more: Value) -> PersistentVolumeClaim {
        let mut claim = json!({"metadata": {"name": "new", "namespace": "a"},
            "spec": {"resources": {"requests": {"storage": size}}}});
        claim.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(claim).unwrap()
    }

    fn volume(labels: Value) -> PersistentVolume {
        serde_json::from_value(
            json!({"metadata": {"name": "v", "labels": labels}, "spec": {"capacity": {"storage": "2Gi"}}}),
        )
        .unwrap()
    }

    #[test]
    fn a_clone_is_made_of_a_bound_claim_of_ours() {
        let completed = json!({"name": "old", "annotations": {"pv.kubernetes.io/bind-completed": "yes"}});
        let other = claim("2Gi", json!({"metadata": completed, "spec": {"volumeName": "v"}}));
        let ours = volume(json!({"dhow.io/node": "n1"}));
        let found = of_claim(&claim("2Gi", json!({})), "old", Some(&other), Some(&ours)).unwrap();
        assert_eq!(found, Found { source: Source::Volume("v".into()), node: "n1".into() });
        let why = |size: &str, other: Option<&PersistentVolumeClaim>, volume: &PersistentVolume, name: &str| {
            of_claim(&claim(size, json!({})), name, other, Some(volume)).unwrap_err()
        };
        assert!(why("1Gi", Some(&other), &ours, "old").contains("asks for 1073741824 bytes"));
        assert!(why("2Gi", None, &ours, "old").contains("does not exist"));
        assert!(why("2Gi", Some(&other), &ours, "new").contains("names itself"));
        assert!(why("2Gi", Some(&claim("2Gi", json!({}))), &ours, "old").contains("not bound yet"));
        assert!(why("2Gi", Some(&other), &volume(json!({})), "old").contains("is not of dhow.io/local"));
    }

    #[test]
    fn a_snapshot_is_restored_where_it_lies_if_it_is_one_s_own() {
        let snapshot = |ready: bool| -> VolumeSnapshot {
            let status = json!({"readyToUse": ready, "boundVolumeSnapshotContentName": "c"});
            serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"source": {}}, "status": status})).unwrap()
        };
        let content = |uid: &str, driver: &str, handle: &str| -> VolumeSnapshotContent {
            let spec =
                json!({"volumeSnapshotRef": {"uid": uid}, "driver": driver, "deletionPolicy": "Delete", "source": {}});
            let status = json!({"snapshotHandle": handle, "restoreSize": 1 << 30});
            serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status})).unwrap()
        };
        let tried = |size: &str, ready: bool, content: &VolumeSnapshotContent| {
            of_content(&claim(size, json!({})), "s", &snapshot(ready), Some(content))
        };
        let good = content("u", "dhow.io/local", "n1/c");
        assert_eq!(tried("1Gi", true, &good), Ok(Found { source: Source::Snapshot("c".into()), node: "n1".into() }));
        assert!(tried("1Gi", false, &good).unwrap_err().contains("not ready"));
        assert!(tried("1Mi", true, &good).unwrap_err().contains("needs 1073741824"));
        for (odd, why) in [
            (content("other", "dhow.io/local", "n1/c"), "does not have the content"),
            (content("u", "d.example.com", "h"), "is of d.example.com"),
            (content("u", "dhow.io/local", "h"), "names no node"),
        ] {
            assert!(tried("1Gi", true, &odd).unwrap_err().contains(why), "{why}");
        }
    }
}
