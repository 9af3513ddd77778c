//! Snapshots of this node's volumes, as a driver's snapshotter takes them: what a VolumeSnapshotContent asks for is copied
//! to a folder beside the volumes, and the content says so.
//!
//! The volume's files are copied one after the other while its pods go on: each file is as it was at some moment of the
//! copy. A folder `files` and what is known of the snapshot appear together, or not at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dhow_api::local_volumes::{NODE_LABEL, PROVISIONER, Source, parse_snapshot_handle, snapshot_handle};
use dhow_api::quantity::Quantity;
use dhow_client::snapshots::{BEING_DELETED, BOUND_CONTENT, CONTENTS, ContentStatus, VolumeSnapshotContent};
use dhow_client::{
    Error as ClientError, EventType, Informer, Key, ListParams, Outcome, Patch, Queue, Reconcile, reference,
    run_controller, while_served,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolume;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{BEHIND, blocking, copy, is_being_filled, make, remove, whole};
use crate::shared::Shared;

/// Where snapshots lie: on the filesystem of the volumes, so that they can share bytes with them.
pub fn folder(root: &Path) -> PathBuf {
    super::folder(root).join(".snapshots")
}

/// The folder of one; none for a name that would lead elsewhere.
fn place(root: &Path, name: &str) -> Option<PathBuf> {
    super::directory(root, name).map(|_| folder(root).join(name))
}

/// The files that a snapshot has, if it is there.
pub fn files(root: &Path, name: &str) -> Option<PathBuf> {
    place(root, name).map(|place| place.join("files")).filter(|files| files.is_dir())
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    /// Nanoseconds since 1970.
    created: i64,
    /// Bytes that a volume needs to be filled from it.
    size: i64,
}

/// Copies a volume's files into a snapshot, unless it was taken before.
fn take(root: &Path, name: &str, volume: &Path, size: i64) -> std::io::Result<Record> {
    let place = place(root, name).ok_or_else(|| std::io::Error::other("its name is not valid"))?;
    std::fs::create_dir_all(folder(root))?;
    std::fs::set_permissions(folder(root), std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    whole(&place, |new| {
        std::fs::create_dir(new)?;
        let created = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
        let record = serde_json::to_vec(&Record { created, size })?;
        std::fs::write(new.join("record"), record)?;
        // It brings all of this to the disk.
        copy::tree(volume, &new.join("files"))
    })?;
    read(&place)
}

fn read(place: &Path) -> std::io::Result<Record> {
    Ok(serde_json::from_slice(&std::fs::read(place.join("record"))?)?)
}

/// Works while the kind is served, until `shutdown`.
pub async fn run(shared: Arc<Shared>, volumes: Informer<PersistentVolume>, shutdown: CancellationToken) {
    let client = shared.config.client.clone();
    let start = |stop| drop(tokio::spawn(run_kind(Arc::clone(&shared), volumes.clone(), stop)));
    while_served(&client, &[CONTENTS], "v1", &shutdown, start).await;
}

async fn run_kind(shared: Arc<Shared>, volumes: Informer<PersistentVolume>, stop: CancellationToken) {
    let scope =
        ListParams { label_selector: Some(format!("{NODE_LABEL}={}", shared.config.name)), ..ListParams::default() };
    let contents = Informer::<VolumeSnapshotContent>::start(shared.config.client.clone(), scope, None, stop.clone());
    let queue = Queue::new("local-snapshots");
    let to = queue.clone();
    contents.on_change(move |change| to.add(Key::of(&change.object().metadata)));
    run_controller(Arc::new(Snapshots { shared, volumes, contents }), queue, 2, stop).await;
}

struct Snapshots {
    shared: Arc<Shared>,
    volumes: Informer<PersistentVolume>,
    contents: Informer<VolumeSnapshotContent>,
}

/// The name of a content's snapshot on this node.
fn name_of(content: &VolumeSnapshotContent, node: &str) -> Result<String, String> {
    let shown = content.status.as_ref().and_then(|status| status.snapshot_handle.as_deref());
    let Some(handle) = shown.or(content.spec.source.snapshot_handle.as_deref()) else {
        return Ok(content.metadata.name.clone().unwrap_or_default());
    };
    match parse_snapshot_handle(handle) {
        Some((at, name)) if at == node => Ok(name.to_owned()),
        _ => Err(format!("handle {handle:?} names no snapshot of node {node}: it has to be {node}/<name>")),
    }
}

impl Snapshots {
    /// What a content asks for, taken or found.
    async fn obtain(&self, content: &VolumeSnapshotContent) -> Result<(String, Record), String> {
        let (root, node) = (self.shared.config.root_dir.clone(), self.shared.config.name.as_str());
        let name = name_of(content, node)?;
        let handle = snapshot_handle(node, &name);
        let found = place(&root, &name).filter(|_| files(&root, &name).is_some());
        let record = match (found, &content.spec.source.volume_handle) {
            (Some(found), _) => blocking(move || read(&found)).await.map_err(|error| error.to_string())?,
            (None, Some(volume)) => {
                let known = self.volumes.get(&Key::new(None, volume));
                let known = known.filter(|known| known.metadata.deletion_timestamp.is_none());
                let known = known.ok_or_else(|| format!("this node holds no volume {volume}"))?;
                if is_being_filled(&known, None) {
                    return Err(format!("volume {volume} does not have all its files yet"));
                }
                let path = make(&root, volume).map_err(|error| error.to_string())?;
                let capacity = known.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage"));
                let size = capacity.and_then(|text| text.0.parse::<Quantity>().ok()).map_or(0, |size| size.units());
                let taken = blocking(move || take(&root, &name, &path, size)).await;
                taken.map_err(|error| format!("copy volume {volume}: {error}"))?
            }
            (None, None) => return Err(format!("snapshot {handle} is not there")),
        };
        Ok((handle, record))
    }

    async fn show(&self, name: &str, status: serde_json::Value) -> Result<Outcome, ClientError> {
        let patch = Patch::Merge(json!({"status": status}));
        let client = &self.shared.config.client;
        match client.patch::<VolumeSnapshotContent>(None, name, patch, Some("status")).await {
            Err(error) if error.is_not_found() => Ok(Outcome::Done),
            other => other.map(|_| Outcome::Done),
        }
    }

    fn tell(&self, content: &VolumeSnapshotContent, reason: &str, message: &str) {
        self.shared.events.event(reference(content), EventType::Warning, reason, message);
    }

    /// The content goes: with it what it stands for, unless that is to stay.
    async fn end(&self, content: &VolumeSnapshotContent) -> Result<Outcome, ClientError> {
        let told = content.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(BEING_DELETED));
        let bound = content.spec.volume_snapshot_ref.uid.as_deref().is_some_and(|uid| !uid.is_empty());
        let mut finalizers = content.metadata.finalizers.clone().unwrap_or_default();
        if (bound && !told) || !finalizers.iter().any(|name| name == BOUND_CONTENT) {
            return Ok(Outcome::Done);
        }
        let node = self.shared.config.name.as_str();
        if let Ok(name) = name_of(content, node)
            && content.spec.deletion_policy == "Delete"
        {
            let this = Source::Snapshot(name.clone());
            if self.volumes.list().iter().any(|other| is_being_filled(other, Some(&this))) {
                return Ok(Outcome::RequeueAfter(BEHIND));
            }
            let root = self.shared.config.root_dir.clone();
            if let Err(error) = blocking(move || place(&root, &name).map_or(Ok(()), |place| remove(&place))).await {
                let message = format!("Failed to delete snapshot: {error}");
                self.tell(content, "SnapshotDeleteError", &message);
                return Err(ClientError::Reconcile(message));
            }
        }
        finalizers.retain(|name| name != BOUND_CONTENT);
        let seen = json!({"finalizers": finalizers, "resourceVersion": content.metadata.resource_version});
        let (client, name) = (&self.shared.config.client, content.metadata.name.as_deref().unwrap_or_default());
        match client.patch::<VolumeSnapshotContent>(None, name, Patch::Merge(json!({"metadata": seen})), None).await {
            Err(error) if error.is_not_found() => Ok(Outcome::Done),
            // A content that is gone is nobody's: the copy at hand is behind.
            Err(error) if error.is_forbidden() => Ok(Outcome::RequeueAfter(BEHIND)),
            other => other.map(|_| Outcome::Done),
        }
    }
}

#[async_trait::async_trait]
impl Reconcile for Snapshots {
    fn name(&self) -> &'static str {
        "local-snapshots"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ClientError> {
        let Some(content) = self.contents.get(key).filter(|content| content.spec.driver == PROVISIONER) else {
            return Ok(Outcome::Done);
        };
        if content.metadata.deletion_timestamp.is_some() {
            return self.end(&content).await;
        }
        let shown = content.status.clone().unwrap_or_default();
        if shown.ready_to_use == Some(true) {
            return Ok(Outcome::Done);
        }
        match self.obtain(&content).await {
            Ok((handle, record)) => {
                let status = ContentStatus {
                    snapshot_handle: Some(handle),
                    creation_time: Some(record.created),
                    restore_size: Some(record.size),
                    ready_to_use: Some(true),
                    error: None,
                };
                let mut status = json!(status);
                status["error"] = json!(null);
                self.show(&key.name, status).await
            }
            Err(why) => {
                let message = format!("Failed to create snapshot: {why}");
                let known = shown.error.and_then(|error| error.message);
                if known.as_ref() != Some(&message) {
                    self.tell(&content, "SnapshotCreationFailed", &message);
                    let error = json!({"time": Timestamp::now().to_string(), "message": message});
                    self.show(&key.name, json!({"readyToUse": false, "error": error})).await?;
                }
                Err(ClientError::Reconcile(message))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_taken_once_and_keeps_what_it_saw() {
        let dir = tempfile::tempdir().unwrap();
        super::super::announcement(dir.path()).unwrap();
        let volume = make(dir.path(), "pvc-1").unwrap();
        std::fs::write(volume.join("row"), "before").unwrap();
        let first = take(dir.path(), "s", &volume, 7).unwrap();
        std::fs::write(volume.join("row"), "after").unwrap();
        assert_eq!(take(dir.path(), "s", &volume, 8).unwrap(), first, "taken twice");
        let kept = files(dir.path(), "s").unwrap();
        assert_eq!(std::fs::read_to_string(kept.join("row")).unwrap(), "before");
        assert!(files(dir.path(), "../pvc-1").is_none() && take(dir.path(), "..", &volume, 1).is_err());
    }

    #[test]
    fn handles_name_the_node() {
        let content = |handle: Option<&str>| {
            let source = json!({"snapshotHandle": handle});
            let spec =
                json!({"volumeSnapshotRef": {}, "deletionPolicy": "Delete", "driver": PROVISIONER, "source": source});
            serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": spec})).unwrap()
        };
        assert_eq!(name_of(&content(None), "n1").as_deref(), Ok("c"));
        assert_eq!(name_of(&content(Some("n1/s")), "n1").as_deref(), Ok("s"));
        assert!(name_of(&content(Some("n2/s")), "n1").unwrap_err().contains("n1/<name>"));
        assert!(name_of(&content(Some("s")), "n1").is_err());
    }
}
