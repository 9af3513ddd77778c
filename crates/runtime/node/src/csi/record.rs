//! What is known of each mounted volume, in a file beside its mount, named and placed as other kubelets do.
//!
//! ```text
//! pods/<uid>/volumes/kubernetes.io~csi/<name>/vol_data.json        and mount, which the driver makes
//! pods/<uid>/volumeDevices/kubernetes.io~csi/<name>/vol_data.json  of a block device
//! plugins/kubernetes.io/csi/<driver>/<sha256 of handle>/globalmount
//! plugins/kubernetes.io/csi/volumeDevices/staging/<name>
//! plugins/kubernetes.io/csi/volumeDevices/publish/<name>/<uid>
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;

const PLUGIN: &str = "kubernetes.io~csi";
const FILE: &str = "vol_data.json";

/// One volume of one pod. The first names are upstream's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    #[serde(rename = "specVolID")]
    pub name: String,
    pub volume_handle: String,
    pub driver_name: String,
    pub node_name: String,
    #[serde(rename = "attachmentID")]
    pub attachment: String,
    pub volume_lifecycle_mode: String,
    /// The volume's name in the pod.
    pub pod_volume: String,
    /// Namespace and name of its claim, if it has one.
    pub claim: Option<(String, String)>,
    pub block: bool,
    /// Where it was staged; empty if drivers of its kind do not stage.
    pub staging: PathBuf,
    pub target: PathBuf,
    pub published: bool,
    /// Whether the driver may have staged it for this pod or another: it did, or nobody knows.
    #[serde(default = "unknown")]
    pub maybe_staged: bool,
    /// The same of publishing it to this pod.
    #[serde(default = "unknown")]
    pub maybe_published: bool,
    /// The driver wants to publish it again from time to time.
    pub republish: bool,
}

/// What was written before this was noted.
fn unknown() -> bool {
    true
}

impl Record {
    /// What the volume is called in the node's status.
    pub fn unique_name(&self) -> String {
        unique_name(&self.driver_name, &self.volume_handle)
    }

    pub fn folder(pod_dir: &Path, name: &str, block: bool) -> PathBuf {
        pod_dir.join(if block { "volumeDevices" } else { "volumes" }).join(PLUGIN).join(name)
    }

    /// Whole or not at all.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let failed = || format!("remember a volume in {}", folder.display());
        std::fs::create_dir_all(folder).map_err(Error::io(failed()))?;
        let text = serde_json::to_vec(self).map_err(|error| Error::io(failed())(error.into()))?;
        let new = folder.join("vol_data.new");
        std::fs::write(&new, text).map_err(Error::io(failed()))?;
        std::fs::rename(&new, folder.join(FILE)).map_err(Error::io(failed()))
    }

    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()
    }
}

pub fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

pub fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where a volume is made ready once for all pods of the node.
pub fn staging(root: &Path, driver: &str, handle: &str, name: &str, block: bool) -> PathBuf {
    let plugin = root.join("plugins/kubernetes.io/csi");
    match block {
        true => plugin.join("volumeDevices/staging").join(name),
        false => plugin.join(driver).join(hash(handle)).join("globalmount"),
    }
}

/// Where a pod gets it.
pub fn target(root: &Path, pod_dir: &Path, name: &str, block: bool) -> PathBuf {
    let uid = pod_dir.file_name().unwrap_or_default();
    match block {
        true => root.join("plugins/kubernetes.io/csi/volumeDevices/publish").join(name).join(uid),
        false => Record::folder(pod_dir, name, false).join("mount"),
    }
}

/// The records of one pod, each with its folder.
pub fn of_pod(pod_dir: &Path) -> Vec<(PathBuf, Record)> {
    let folders = ["volumes", "volumeDevices"].map(|kind| pod_dir.join(kind).join(PLUGIN));
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
    entries.filter_map(|entry| Some((entry.path(), Record::read(&entry.path())?))).collect()
}

/// The records of all pods below the agent's folder, each with its pod's folder.
pub fn all(root: &Path) -> Vec<(PathBuf, Record)> {
    let pods = std::fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
    pods.flat_map(|pod| of_pod(&pod.path()).into_iter().map(move |(_, record)| (pod.path(), record))).collect()
}

/// Names of the attached volumes that pods use.
pub fn attached_below(root: &Path) -> BTreeSet<String> {
    let attached = all(root).into_iter().filter(|(_, record)| !record.attachment.is_empty());
    attached.map(|(_, record)| record.unique_name()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_is_found_again() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("pods/u1");
        let record = |name: &str, block, attachment: &str| Record {
            name: name.into(),
            volume_handle: format!("h-{name}"),
            driver_name: "d.example".into(),
            attachment: attachment.into(),
            block,
            ..Record::default()
        };
        let (one, two) = (record("a", false, "csi-1"), record("b", true, ""));
        one.write(&Record::folder(&pod, "a", false)).unwrap();
        two.write(&Record::folder(&pod, "b", true)).unwrap();
        let found: Vec<Record> = of_pod(&pod).into_iter().map(|(_, record)| record).collect();
        assert_eq!(found, [one, two]);
        let attached: Vec<String> = attached_below(root.path()).into_iter().collect();
        assert_eq!(attached, ["kubernetes.io/csi/d.example^h-a"]);
        assert!(of_pod(&root.path().join("pods/other")).is_empty());
    }

    #[test]
    fn paths_are_where_drivers_look_for_them() {
        let (root, pod) = (Path::new("/r"), Path::new("/r/pods/u"));
        let text = |path: PathBuf| path.display().to_string();
        assert_eq!(text(target(root, pod, "pv", false)), "/r/pods/u/volumes/kubernetes.io~csi/pv/mount");
        assert_eq!(text(target(root, pod, "pv", true)), "/r/plugins/kubernetes.io/csi/volumeDevices/publish/pv/u");
        let staged = text(staging(root, "d", "h", "pv", false));
        assert_eq!(staged, format!("/r/plugins/kubernetes.io/csi/d/{}/globalmount", hash("h")));
    }
}
