//! Which container has which devices, kept in a file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;

const FILE: &str = "kubelet_internal_checkpoint";

/// What a plugin wants a container to have with its devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    pub envs: BTreeMap<String, String>,
    pub mounts: Vec<(String, String, bool)>,
    /// In the container, on the host, and any of `rwm`.
    pub devices: Vec<(String, String, String)>,
    pub annotations: BTreeMap<String, String>,
    pub cdi: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub ids: BTreeSet<String>,
    pub answer: Answer,
}

/// By pod's uid, container and kind of device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Given {
    pub pods: BTreeMap<String, BTreeMap<String, BTreeMap<String, Share>>>,
    /// Kinds that were ever there.
    pub resources: BTreeSet<String>,
}

impl Given {
    /// A file that cannot be read gives nothing: what is not known to be given is asked for anew.
    pub fn read(folder: &Path) -> Self {
        let Ok(bytes) = std::fs::read(folder.join(FILE)) else { return Self::default() };
        serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(%error, "the file of given devices is damaged");
            Self::default()
        })
    }

    /// Whole or not at all.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let failed = || format!("write {}", folder.join(FILE).display());
        std::fs::create_dir_all(folder).map_err(Error::io(failed()))?;
        let text = serde_json::to_vec(self).map_err(|error| Error::io(failed())(error.into()))?;
        let new = folder.join("kubelet_internal_checkpoint.new");
        std::fs::write(&new, text).map_err(Error::io(failed()))?;
        std::fs::rename(&new, folder.join(FILE)).map_err(Error::io(failed()))
    }

    pub fn share(&self, uid: &str, container: &str, resource: &str) -> Option<&Share> {
        self.pods.get(uid)?.get(container)?.get(resource)
    }

    pub fn add(&mut self, uid: &str, container: &str, resource: &str, share: Share) {
        let pod = self.pods.entry(uid.to_owned()).or_default();
        pod.entry(container.to_owned()).or_default().insert(resource.to_owned(), share);
    }

    fn shares<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = (&'a String, &'a Share)> {
        let pods = self.pods.iter();
        pods.flat_map(move |(uid, pod)| pod.values().filter_map(move |own| Some((uid, own.get(resource)?))))
    }

    /// Devices of a kind that somebody has.
    pub fn used(&self, resource: &str) -> BTreeSet<String> {
        self.shares(resource).flat_map(|(_, share)| share.ids.iter().cloned()).collect()
    }

    /// Pods that have one of these.
    pub fn holders(&self, resource: &str, ids: &BTreeSet<String>) -> BTreeSet<String> {
        let held = self.shares(resource).filter(|(_, share)| !share.ids.is_disjoint(ids));
        held.map(|(uid, _)| uid.clone()).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Given::read(folder.path()), Given::default());
        let mut given = Given::default();
        let ids = |ids: &[&str]| -> BTreeSet<String> { ids.iter().map(|id| (*id).to_owned()).collect() };
        given.add("u1", "a", "x.io/d", Share { ids: ids(&["1", "2"]), answer: Answer::default() });
        given.add("u2", "b", "x.io/d", Share { ids: ids(&["3"]), answer: Answer::default() });
        given.write(folder.path()).unwrap();
        let again = Given::read(folder.path());
        assert_eq!(again, given);
        assert_eq!(again.used("x.io/d"), ids(&["1", "2", "3"]));
        assert_eq!(again.holders("x.io/d", &ids(&["2"])), ids(&["u1"]));
        assert!(again.used("x.io/other").is_empty());
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert_eq!(Given::read(folder.path()), Given::default());
    }
}
