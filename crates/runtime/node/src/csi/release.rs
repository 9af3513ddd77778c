//! Taking a pod's volumes away: unpublished, and unstaged by the last pod that used them.

use std::path::Path;

use dhow_plugins::csi::{NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest};

use super::failed;
use super::mount::text;
use super::record::{self, Record};
use crate::Error;
use crate::shared::Shared;
use crate::volumes::mounts_below;

/// Takes all CSI volumes of a pod away. What fails is tried again by whoever calls.
pub async fn release(shared: &Shared, pod_dir: &Path) -> Result<(), Error> {
    for (folder, own) in record::of_pod(pod_dir) {
        let lock = shared.csi.lock_of(&own.driver_name, &own.volume_handle);
        let _held = lock.lock().await;
        one(shared, pod_dir, &folder, &own).await?;
        shared.csi.count_in_use();
    }
    Ok(())
}

async fn one(shared: &Shared, pod_dir: &Path, folder: &Path, own: &Record) -> Result<(), Error> {
    let others = record::all(&shared.config.root_dir);
    let same = |other: &Record| other.driver_name == own.driver_name && other.volume_handle == own.volume_handle;
    let last = !others.iter().any(|(pod, other)| pod != pod_dir && same(other) && other.maybe_staged);
    let unstages = last && own.maybe_staged && !own.staging.as_os_str().is_empty();
    if !own.maybe_published && !unstages {
        if last {
            remove_staging(own);
        }
        return forget(folder);
    }
    // Even if it was never published as far as is known here: the answer may have been lost.
    let driver = match shared.csi.driver(&own.driver_name) {
        Ok(driver) => driver,
        // Nothing was done yet: its driver was never there.
        Err(_) if !own.published && mounts_below(&own.target).is_empty() && mounts_below(&own.staging).is_empty() => {
            return forget(folder);
        }
        Err(error) => return Err(error),
    };
    if own.maybe_published {
        let request =
            NodeUnpublishVolumeRequest { volume_id: own.volume_handle.clone(), target_path: text(&own.target) };
        match driver.node().node_unpublish_volume(request).await {
            Err(status) if status.code() != tonic::Code::NotFound => {
                return Err(failed("NodeUnpublishVolume", &status));
            }
            _ => {}
        }
    }
    if !mounts_below(&own.target).is_empty() {
        return Err(super::bad(format!(
            "CSI driver {} left volume {:?} mounted at {}",
            own.driver_name,
            own.name,
            own.target.display()
        )));
    }
    // An empty folder or file that the driver left.
    let _ = std::fs::remove_dir(&own.target).or_else(|_| std::fs::remove_file(&own.target));
    if unstages {
        let request =
            NodeUnstageVolumeRequest { volume_id: own.volume_handle.clone(), staging_target_path: text(&own.staging) };
        match driver.node().node_unstage_volume(request).await {
            Err(status) if status.code() != tonic::Code::NotFound => {
                return Err(failed("NodeUnstageVolume", &status));
            }
            _ => {}
        }
        remove_staging(own);
    }
    if let Some(parent) = own.target.parent().filter(|_| own.block) {
        let _ = std::fs::remove_dir(parent);
    }
    forget(folder)
}

/// Empty folders only: what is still mounted there is not ours to remove.
fn remove_staging(own: &Record) {
    if own.staging.as_os_str().is_empty() {
        return;
    }
    let _ = std::fs::remove_dir(&own.staging);
    if let Some(parent) = own.staging.parent().filter(|_| !own.block) {
        let _ = std::fs::remove_dir(parent);
    }
}

fn forget(folder: &Path) -> Result<(), Error> {
    std::fs::remove_dir_all(folder).map_err(Error::io(format!("forget the volume in {}", folder.display())))
}
