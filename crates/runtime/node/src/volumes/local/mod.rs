//! Volumes of the built-in provisioner that this node holds: directories below `<root>/volumes`, each of its volume's
//! name.
//!
//! One is made when a pod first mounts it. It goes when its volume is being deleted and is to be (`Delete`): first what is
//! in it, then the directory, then the finalizer. Whatever interrupts that, the finalizer is still there and it begins
//! again. With `Retain` only the finalizer goes.
//!
//! One that is to begin with the bytes of another, or of a snapshot, is made before that: what is copied lies under another
//! name until it is whole and on the disk, and only then the second finalizer goes, without which no claim is bound to it.

mod copy;
mod snapshots;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dhow_api::local_volumes::{CAPACITY, FILLED_FROM, FILLING, FINALIZER, NODE_LABEL, PATH, Source};
use dhow_client::{
    Error as ClientError, EventType, Informer, Key, ListParams, Outcome, Patch, Queue, Reconcile, reference,
    run_controller,
};
use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::copy::Copied;
use super::{bad, claim};
use crate::Error;
use crate::shared::Shared;

/// After so long a copy is looked at again that may be behind.
const BEHIND: Duration = Duration::from_secs(1);

fn folder(root: &Path) -> PathBuf {
    root.join("volumes")
}

/// The directory of a volume; none for a name that would lead elsewhere.
fn directory(root: &Path, name: &str) -> Option<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let valid = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain);
    valid.then(|| folder(root).join(name))
}

/// What the node says of itself: where its volumes lie, and what they may be promised in sum, which is the size of the
/// filesystem. It does not change as the disk fills, so that nothing is written while nothing happens.
pub fn announcement(root: &Path) -> Result<BTreeMap<&'static str, String>, Error> {
    let path = folder(root);
    let failed = || format!("make the folder of local volumes {}", path.display());
    std::fs::create_dir_all(&path).map_err(Error::io(failed()))?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o711)).map_err(Error::io(failed()))?;
    let size = rustix::fs::statvfs(&path).map_err(|errno| Error::io(failed())(errno.into()))?;
    let bytes = size.f_blocks * size.f_frsize;
    Ok(BTreeMap::from([(PATH, path.display().to_string()), (CAPACITY, format!("{}Ki", bytes >> 10))]))
}

/// Makes the directory of a volume unless it is there.
pub fn make(root: &Path, name: &str) -> Result<PathBuf, Error> {
    let path = directory(root, name).ok_or_else(|| bad(format!("volume name {name:?} is not valid")))?;
    let failed = || format!("make the directory of volume {name:?}");
    match std::fs::create_dir(&path) {
        // Whoever the pod runs as writes there.
        Ok(()) => std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).map_err(Error::io(failed()))?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::io(failed())(error)),
    }
    Ok(path)
}

/// Removes the directory of a volume with all that is in it; links in it are removed, not followed.
fn wipe(root: &Path, name: &str) -> std::io::Result<()> {
    directory(root, name).map_or(Ok(()), |path| remove(&path))
}

/// What something is called while it is being made: no volume or snapshot has such a name.
const UNFINISHED: &str = ".new-";

/// Makes a folder that is there wholly or not at all, whatever interrupts it. `None` if it was there.
fn whole<T>(to: &Path, make: impl FnOnce(&Path) -> std::io::Result<T>) -> std::io::Result<Option<T>> {
    if to.symlink_metadata().is_ok() {
        return Ok(None);
    }
    let (parent, name) = (to.parent().unwrap_or(to), to.file_name().unwrap_or_default());
    let new = parent.join(format!("{UNFINISHED}{}", name.to_string_lossy()));
    remove(&new)?;
    let made = make(&new).and_then(|made| std::fs::rename(&new, to).map(|()| made));
    if made.is_err() {
        remove(&new)?;
    }
    let made = made?;
    std::fs::File::open(parent)?.sync_all()?;
    Ok(Some(made))
}

/// Removes a folder with all that is in it, if it is there.
fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Takes away what was being made when the agent ended.
fn sweep(root: &Path) -> std::io::Result<()> {
    for folder in [folder(root), snapshots::folder(root)] {
        let entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                remove(&entry.path())?;
            }
        }
    }
    Ok(())
}

/// Runs what may take as long as a disk takes.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, std::io::Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

/// Fills volumes and takes away what is left of deleted ones, and takes snapshots of them, until `shutdown`.
pub async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    let root = shared.config.root_dir.clone();
    if let Err(error) = blocking(move || sweep(&root)).await {
        tracing::warn!(%error, "cannot remove what is left of unfinished volumes");
    }
    let scope =
        ListParams { label_selector: Some(format!("{NODE_LABEL}={}", shared.config.name)), ..Default::default() };
    let volumes = Informer::<PersistentVolume>::start(shared.config.client.clone(), scope, None, shutdown.clone());
    let queue = Queue::new("local-volumes");
    let to = queue.clone();
    volumes.on_change(move |change| {
        to.add(Key::of(&change.object().metadata));
        // What it is filled from may wait for that to go.
        if let Some(Source::Volume(name)) = filled_from(change.object()) {
            to.add(Key::new(None, &name));
        }
    });
    let snapshots = snapshots::run(Arc::clone(&shared), volumes.clone(), shutdown.clone());
    let volumes = run_controller(Arc::new(LocalVolumes { shared, volumes }), queue, 4, shutdown);
    tokio::join!(snapshots, volumes);
}

fn has(volume: &PersistentVolume, finalizer: &str) -> bool {
    volume.metadata.finalizers.iter().flatten().any(|name| name == finalizer)
}

fn filled_from(volume: &PersistentVolume) -> Option<Source> {
    Source::parse(volume.metadata.annotations.as_ref()?.get(FILLED_FROM)?)
}

/// Whether the volume is still being filled, from `source` or from anything.
pub fn is_being_filled(volume: &PersistentVolume, source: Option<&Source>) -> bool {
    has(volume, FILLING) && source.is_none_or(|source| filled_from(volume).as_ref() == Some(source))
}

struct LocalVolumes {
    shared: Arc<Shared>,
    volumes: Informer<PersistentVolume>,
}

#[async_trait::async_trait]
impl Reconcile for LocalVolumes {
    fn name(&self) -> &'static str {
        "local-volumes"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ClientError> {
        let Some(volume) = self.volumes.get(key) else { return Ok(Outcome::Done) };
        if volume.metadata.deletion_timestamp.is_some() {
            return if has(&volume, FINALIZER) { self.end(&volume).await } else { Ok(Outcome::Done) };
        }
        if has(&volume, FILLING) { self.fill(&volume).await } else { Ok(Outcome::Done) }
    }
}

impl LocalVolumes {
    /// Copies what the volume is to begin with.
    async fn fill(&self, volume: &PersistentVolume) -> Result<Outcome, ClientError> {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
        let about = claim.unwrap_or_else(|| reference(volume));
        let events = &self.shared.events;
        let copied = match self.source(volume) {
            Ok((source, from)) => {
                let text = format!("Copying {source} into volume {name}");
                events.event(about.clone(), EventType::Normal, "VolumeFilling", &text);
                let root = self.shared.config.root_dir.clone();
                let to = directory(&root, &name);
                let copied = blocking(move || match to {
                    Some(to) => whole(&to, |new| copy::tree(&from, new)),
                    None => Err(std::io::Error::other("its name is not valid")),
                });
                copied.await.map_err(|error| format!("copy {source}: {error}"))
            }
            Err(why) => Err(why),
        };
        match copied {
            Ok(copied) => {
                let Copied { files, written, shared } = copied.unwrap_or_default();
                let text = format!("Volume {name} has {files} files: {written} bytes were copied, {shared} are shared");
                // One that was there was told of before the agent ended.
                if copied.is_some() {
                    events.event(about, EventType::Normal, "VolumeFilled", &text);
                }
                self.take(volume, &[FILLING]).await
            }
            Err(why) => {
                let message = format!("fill volume {name}: {why}");
                events.event(about, EventType::Warning, "ProvisioningFailed", &message);
                Err(ClientError::Reconcile(message))
            }
        }
    }

    /// Where what the volume is filled from lies, or why it cannot be had.
    fn source(&self, volume: &PersistentVolume) -> Result<(Source, PathBuf), String> {
        let source = filled_from(volume).ok_or("it does not say from what")?;
        let root = &self.shared.config.root_dir;
        let from = match &source {
            Source::Volume(name) => {
                let known = self.volumes.get(&Key::new(None, name));
                if known.is_none_or(|known| known.metadata.deletion_timestamp.is_some()) {
                    return Err(format!("this node holds no volume {name}"));
                }
                // One that no pod has mounted yet is empty.
                make(root, name).map_err(|error| error.to_string())?
            }
            Source::Snapshot(name) => {
                snapshots::files(root, name).ok_or(format!("this node holds no snapshot {name}"))?
            }
        };
        Ok((source, from))
    }

    async fn end(&self, volume: &PersistentVolume) -> Result<Outcome, ClientError> {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let this = Source::Volume(name.clone());
        if self.volumes.list().iter().any(|other| is_being_filled(other, Some(&this))) {
            // It wakes us when it has all.
            return Ok(Outcome::Done);
        }
        let spec = volume.spec.as_ref();
        let policy = spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        if policy == Some("Delete") {
            let (root, wiped) = (self.shared.config.root_dir.clone(), name.clone());
            if let Err(error) = blocking(move || wipe(&root, &wiped)).await {
                let message = format!("remove the directory of volume {name}: {error}");
                claim::tell(&self.shared, volume, "VolumeFailedDelete", &message);
                return Err(ClientError::Reconcile(message));
            }
        }
        self.take(volume, &[FINALIZER, FILLING]).await
    }

    /// Takes finalizers of ours away.
    async fn take(&self, volume: &PersistentVolume, ours: &[&str]) -> Result<Outcome, ClientError> {
        let mut finalizers = volume.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|name| !ours.contains(&name.as_str()));
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let seen = json!({"finalizers": finalizers, "resourceVersion": volume.metadata.resource_version});
        let patch = Patch::Merge(json!({"metadata": seen}));
        match self.shared.config.client.patch::<PersistentVolume>(None, name, patch, None).await {
            Err(error) if error.is_not_found() => Ok(Outcome::Done),
            // A volume that is gone is nobody's: the copy at hand is behind.
            Err(error) if error.is_forbidden() => Ok(Outcome::RequeueAfter(BEHIND)),
            other => other.map(|_| Outcome::Done),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_made_once_and_wiped_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        announcement(dir.path()).unwrap();
        let outside = dir.path().join("outside");
        std::fs::write(&outside, "kept").unwrap();
        let path = make(dir.path(), "pvc-1").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
        std::fs::write(path.join("row"), "data").unwrap();
        std::os::unix::fs::symlink(dir.path(), path.join("link")).unwrap();
        assert_eq!(make(dir.path(), "pvc-1").unwrap(), path);
        assert!(path.join("row").exists(), "made again, it keeps what is in it");
        wipe(dir.path(), "pvc-1").unwrap();
        wipe(dir.path(), "pvc-1").unwrap();
        assert!(!path.exists() && outside.exists());
    }

    #[test]
    fn half_a_copy_is_never_a_volume() {
        let dir = tempfile::tempdir().unwrap();
        announcement(dir.path()).unwrap();
        std::fs::write(make(dir.path(), "from").unwrap().join("row"), "data").unwrap();
        let (from, to) = (directory(dir.path(), "from").unwrap(), directory(dir.path(), "to").unwrap());
        let failed = whole(&to, |new| {
            copy::tree(&from, new)?;
            Err::<(), _>(std::io::Error::other("interrupted"))
        });
        assert!(failed.is_err() && !to.exists());
        assert_eq!(std::fs::read_dir(folder(dir.path())).unwrap().count(), 1, "something is left behind");
        // An agent that ends has no time to clean up.
        copy::tree(&from, &folder(dir.path()).join(".new-to")).unwrap();
        std::fs::create_dir_all(snapshots::folder(dir.path()).join(".new-s/files")).unwrap();
        sweep(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(snapshots::folder(dir.path())).unwrap().count(), 0);
        assert!(whole(&to, |new| copy::tree(&from, new)).unwrap().is_some());
        assert_eq!(std::fs::read_to_string(to.join("row")).unwrap(), "data");
        assert!(whole(&to, |new| copy::tree(&from, new)).unwrap().is_none(), "it was there");
    }

    #[test]
    fn no_name_leads_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", ".", "..", "../x", "a/b", "/etc"] {
            assert!(make(dir.path(), name).is_err(), "{name}");
            assert!(directory(dir.path(), name).is_none(), "{name}");
        }
    }
}
