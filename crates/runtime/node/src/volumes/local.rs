//! Volumes of the built-in provisioner that this node holds: directories below `<root>/volumes`, each of its volume's
//! name.
//!
//! One is made when a pod first mounts it. It goes when its volume is being deleted and is to be (`Delete`): first what is
//! in it, then the directory, then the finalizer. Whatever interrupts that, the finalizer is still there and it begins
//! again. With `Retain` only the finalizer goes.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dhow_api::local_volumes::{CAPACITY, FINALIZER, NODE_LABEL, PATH};
use dhow_client::{Error as ClientError, Informer, Key, ListParams, Outcome, Patch, Queue, Reconcile, run_controller};
use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::json;
use tokio_util::sync::CancellationToken;

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
    let Some(path) = directory(root, name) else { return Ok(()) };
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Takes away what is left of deleted volumes until `shutdown`.
pub async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    let scope =
        ListParams { label_selector: Some(format!("{NODE_LABEL}={}", shared.config.name)), ..Default::default() };
    let volumes = Informer::<PersistentVolume>::start(shared.config.client.clone(), scope, None, shutdown.clone());
    let queue = Queue::new("local-volumes");
    let to = queue.clone();
    volumes.on_change(move |change| to.add(Key::of(&change.object().metadata)));
    run_controller(Arc::new(LocalVolumes { shared, volumes }), queue, 2, shutdown).await;
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
        let mut finalizers = volume.metadata.finalizers.clone().unwrap_or_default();
        if volume.metadata.deletion_timestamp.is_none() || !finalizers.iter().any(|name| name == FINALIZER) {
            return Ok(Outcome::Done);
        }
        let spec = volume.spec.as_ref();
        let policy = spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        if policy == Some("Delete") {
            let (root, name) = (self.shared.config.root_dir.clone(), key.name.to_string());
            let wiped = tokio::task::spawn_blocking(move || wipe(&root, &name)).await;
            let wiped = wiped.map_err(|error| error.to_string()).and_then(|wiped| wiped.map_err(|e| e.to_string()));
            if let Err(error) = wiped {
                let message = format!("remove the directory of volume {}: {error}", key.name);
                claim::tell(&self.shared, &volume, "VolumeFailedDelete", &message);
                return Err(ClientError::Reconcile(message));
            }
        }
        finalizers.retain(|name| name != FINALIZER);
        let seen = json!({"finalizers": finalizers, "resourceVersion": volume.metadata.resource_version});
        let patch = Patch::Merge(json!({"metadata": seen}));
        match self.shared.config.client.patch::<PersistentVolume>(None, &key.name, patch, None).await {
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
    fn no_name_leads_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", ".", "..", "../x", "a/b", "/etc"] {
            assert!(make(dir.path(), name).is_err(), "{name}");
            assert!(directory(dir.path(), name).is_none(), "{name}");
        }
    }
}
