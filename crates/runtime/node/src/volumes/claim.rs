//! Volumes that a pod has through a claim: found once per pod, then remembered beside it.
//!
//! What was found is kept in a file, so that neither a restart of the agent nor an API that is away disturbs a pod that
//! runs. The volume is used where it lies: nothing is mounted below the pod's own directory, which is removed with the
//! pod, so that no mistake there can reach the data.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dhow_api::local_volumes::NODE_LABEL;
use dhow_client::EventType;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod, Volume};

use super::{bad, fs_group, host_path, is_block_device, is_inside, local, ownership};
use crate::shared::Shared;
use crate::{Error, csi};

/// A volume that could not grow is asked for again after this long.
const GROW_AGAIN: Duration = Duration::from_secs(60);

/// A claim of a pod.
pub struct Named {
    pub name: String,
    ephemeral: bool,
}

/// The claim that the volume is, if it is one.
pub fn named(pod: &Pod, volume: &Volume) -> Option<Named> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(Named { name: source.claim_name.clone(), ephemeral: false });
    }
    volume.ephemeral.as_ref()?;
    let name = format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name);
    Some(Named { name, ephemeral: true })
}

/// The host path of the claim's volume, and when to look again. `dir` is the pod's folder of volumes.
pub async fn prepare(
    shared: &Shared,
    pod: &Pod,
    volume: &Volume,
    claim: &Named,
    dir: &Path,
) -> Result<(PathBuf, Option<SystemTime>), Error> {
    let pod_dir = dir.parent().unwrap_or(dir);
    let driven = csi::record::of_pod(pod_dir).into_iter().find(|(_, own)| own.pod_volume == volume.name);
    // A volume that cannot grow is tried again, and used as it is.
    let again = match &driven {
        Some((_, own)) => csi::expand::check(shared, pod, own).await.err().map(|_| (shared.now)() + GROW_AGAIN),
        None => None,
    };
    let record = dir.with_file_name("claims").join(&volume.name);
    let gone = driven.is_some_and(|(_, own)| !csi::is_there(&own.target, own.block));
    if let Some(known) = known(pod_dir, &volume.name).filter(|_| !gone) {
        return Ok((known, again));
    }
    let found = bound(shared, pod, claim).await?;
    let read_only = volume.persistent_volume_claim.as_ref().is_some_and(|source| source.read_only == Some(true));
    if let Some(source) = csi::Source::of_volume(&found, &volume.name, read_only) {
        let (path, again) = csi::prepare(shared, pod, &source, pod_dir).await?;
        // One that its driver wants to see again is not settled.
        if again.is_none() {
            remember(&record, &path)?;
        }
        return Ok((path, again));
    }
    let path = source(shared, &found)?;
    let is_local = found.spec.as_ref().is_some_and(|spec| spec.local.is_some());
    if let Some(group) = fs_group(pod).filter(|_| is_local && !read_only && path.is_dir()) {
        let policy = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.fs_group_change_policy.clone());
        let root = path.clone();
        let always = policy.as_deref() != Some("OnRootMismatch");
        // A large tree takes long.
        let given = tokio::task::spawn_blocking(move || ownership::give(&root, group, always)).await;
        given.map_err(|error| bad(format!("set the owner of {}: {error}", path.display())))??;
    }
    remember(&record, &path)?;
    Ok((path, None))
}

/// Where a pod's volume was found.
pub fn known(pod_dir: &Path, volume: &str) -> Option<PathBuf> {
    std::fs::read_to_string(pod_dir.join("claims").join(volume)).ok().map(PathBuf::from)
}

/// Whole or not at all.
fn remember(record: &Path, path: &Path) -> Result<(), Error> {
    let failed = || format!("remember a volume in {}", record.display());
    let folder = record.parent().unwrap_or(record);
    std::fs::create_dir_all(folder).map_err(Error::io(failed()))?;
    let new = record.with_extension("new");
    std::fs::write(&new, path.as_os_str().as_encoded_bytes()).map_err(Error::io(failed()))?;
    std::fs::rename(&new, record).map_err(Error::io(failed()))
}

/// The volume that the claim and that are bound to each other.
async fn bound(shared: &Shared, pod: &Pod, claim: &Named) -> Result<PersistentVolume, Error> {
    let (client, name) = (&shared.config.client, claim.name.as_str());
    let namespace = pod.metadata.namespace.as_deref();
    let failed = Error::client("failed to fetch PVC from API server");
    let found = client.get::<PersistentVolumeClaim>(namespace, name).await.map_err(failed)?;
    let owners = found.metadata.owner_references.as_deref().unwrap_or_default();
    let place = format!("{}/{name}", namespace.unwrap_or_default());
    if claim.ephemeral && !owners.iter().any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref()) {
        return Err(bad(format!("PVC {place} was not created for the pod (pod is not owner)")));
    }
    if found.metadata.deletion_timestamp.is_some() {
        return Err(bad(format!("can't start pod because PVC {place} is being deleted")));
    }
    let bound = found.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let volume = found.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|_| bound);
    let Some(volume) = volume else { return Err(bad(format!("PVC {place} is not bound"))) };
    let volume = client.get::<PersistentVolume>(None, volume).await;
    let volume = volume.map_err(Error::client("failed to get PV from API server"))?;
    let held = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()).and_then(|held| held.uid.as_ref());
    if held != found.metadata.uid.as_ref() {
        return Err(bad(format!("PV of PVC {place} is bound to another claim")));
    }
    Ok(volume)
}

fn source(shared: &Shared, volume: &PersistentVolume) -> Result<PathBuf, Error> {
    let empty = PersistentVolumeSpec::default();
    let spec = volume.spec.as_ref().unwrap_or(&empty);
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let block = spec.volume_mode.as_deref() == Some("Block");
    if let Some(host) = spec.host_path.as_ref().filter(|_| !block) {
        return host_path(&host.path, host.type_.as_deref().unwrap_or_default());
    }
    if let Some(source) = &spec.local {
        let own = volume.metadata.labels.as_ref().and_then(|labels| labels.get(NODE_LABEL));
        if let Some(own) = own {
            if *own != shared.config.name {
                return Err(bad(format!("volume {name:?} is on node {own:?}")));
            }
            if local::is_being_filled(volume, None) {
                return Err(bad(format!("volume {name:?} does not have all its files yet")));
            }
            return local::make(&shared.config.root_dir, name);
        }
        let path = PathBuf::from(&source.path);
        if !path.is_absolute() || !is_inside(source.path.trim_start_matches('/')) {
            return Err(bad(format!("path {:?} of volume {name:?} is not an absolute path without '..'", source.path)));
        }
        if !path.exists() {
            return Err(bad(format!("path {:?} does not exist", source.path)));
        }
        return match (block, is_block_device(&path)) {
            (true, false) => {
                Err(bad(format!("volume {name:?} has volumeMode Block, and {:?} is no block device", source.path)))
            }
            (false, true) => Err(bad(format!(
                "volume {name:?} has volumeMode Filesystem, and {:?} is a block device: make a filesystem on it, mount \
                 it, and let the volume's path be where it is mounted",
                source.path
            ))),
            _ => Ok(path),
        };
    }
    let kind = match spec {
        PersistentVolumeSpec { nfs: Some(_), .. } => {
            "nfs (mount it on the node and use a volume of type local or hostPath)"
        }
        PersistentVolumeSpec { host_path: Some(_), .. } => "hostPath with volumeMode Block",
        _ => "a type this node does not support",
    };
    Err(bad(format!("volume {name:?} is {kind}: this node mounts volumes of type local and hostPath")))
}

/// Tells of a volume what could not be done to it.
pub fn tell(shared: &Shared, volume: &PersistentVolume, reason: &str, message: &str) {
    shared.events.event(dhow_client::reference(volume), EventType::Warning, reason, message);
}
