//! Pods that this node runs by itself, from manifests in a directory, and the mirror pods that show them in the API.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dhow_base::directory::DirectoryWatch;
use dhow_client::{DeleteParams, Key};
use k8s_openapi::api::core::v1::{Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::shared::Shared;
use crate::{Error, NodeConfig};

pub const MIRROR: &str = "kubernetes.io/config.mirror";
const HASH: &str = "kubernetes.io/config.hash";
const SOURCE: &str = "kubernetes.io/config.source";

/// The mirror pods there are, by the uid of what they mirror.
#[derive(Default)]
pub struct Mirrors {
    known: Mutex<HashMap<String, Arc<Pod>>>,
}

/// The uid of the static pod that this one mirrors.
pub fn mirrored(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(MIRROR).map(String::as_str)
}

pub fn is_static(pod: &Pod) -> bool {
    let from_file = |a: &BTreeMap<String, String>| a.get(SOURCE).is_some_and(|source| source == "file");
    pod.metadata.annotations.as_ref().is_some_and(from_file) && mirrored(pod).is_none()
}

impl Mirrors {
    pub fn set(&self, of: &str, mirror: Option<Arc<Pod>>) {
        match mirror {
            Some(mirror) => drop(self.known.lock().insert(of.to_owned(), mirror)),
            None => drop(self.known.lock().remove(of)),
        }
    }

    pub fn get(&self, of: &str) -> Option<Arc<Pod>> {
        self.known.lock().get(of).cloned()
    }
}

/// The same for the same texts in every version of this program (FNV-1a): a pod goes on through an upgrade.
fn identity(texts: &[&str]) -> String {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0100_0000_0000_0000_0000_013b;
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0]));
    let hash = bytes.fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME));
    format!("{hash:032x}")
}

/// A manifest as the pod that runs. `text` is YAML or JSON; the error is for the log.
fn parse(text: &str, file: &str, config: &NodeConfig) -> Result<Pod, String> {
    // By way of plain values: a reader of YAML for each type that a pod is made of is a tenth of the program.
    let value: serde_json::Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let mut pod: Pod = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let Some(spec) = pod.spec.as_mut().filter(|spec| !spec.containers.is_empty()) else {
        return Err("it has no containers".into());
    };
    let uid = identity(&[config.name.as_str(), file, text]);
    spec.node_name = Some(config.name.clone());
    // It belongs to the node, whatever state that is in.
    let everything =
        Toleration { operator: Some("Exists".into()), effect: Some("NoExecute".into()), ..Toleration::default() };
    spec.tolerations.get_or_insert_default().push(everything);
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let latest = container.image.as_deref().is_some_and(|image| image.ends_with(":latest"));
        let usual = if latest { "Always" } else { "IfNotPresent" };
        container.image_pull_policy.get_or_insert_with(|| usual.into());
    }
    let meta = &mut pod.metadata;
    let name = meta.name.take().filter(|name| !name.is_empty()).ok_or("it has no name")?;
    meta.name = Some(format!("{name}-{}", config.name.to_lowercase()));
    meta.namespace.get_or_insert_with(|| "default".into());
    meta.uid = Some(uid.clone());
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(HASH.into(), uid);
    annotations.insert(SOURCE.into(), "file".into());
    pod.status = None;
    Ok(pod)
}

/// All manifests of the directory, by uid. One that cannot be read is told of and left out.
fn read(folder: &Path, config: &NodeConfig) -> BTreeMap<String, Arc<Pod>> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || ![".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end)) {
            continue;
        }
        let text = std::fs::read_to_string(entry.path()).map_err(|error| error.to_string());
        match text.and_then(|text| parse(&text, &name, config)) {
            Ok(pod) => drop(out.insert(pod.metadata.uid.clone().unwrap_or_default(), Arc::new(pod))),
            Err(error) => tracing::warn!(manifest = %entry.path().display(), error, "cannot read a static pod"),
        }
    }
    out
}

/// The folder of manifests, and the pods in it.
pub struct StaticPods {
    folder: PathBuf,
    config: NodeConfig,
    watch: DirectoryWatch,
    /// By uid.
    pub known: BTreeMap<String, Arc<Pod>>,
}

impl StaticPods {
    /// Looks at the folder, which is made if it is missing; `None` if the node has none.
    pub fn open(config: &NodeConfig) -> Result<Option<Self>, Error> {
        let Some(folder) = config.settings.static_pods.clone() else { return Ok(None) };
        std::fs::create_dir_all(&folder).map_err(Error::io("create the folder of static pods"))?;
        // Before the first look, so that nothing falls between.
        let watch = DirectoryWatch::new(&folder).map_err(Error::io("watch the folder of static pods"))?;
        let known = read(&folder, config);
        Ok(Some(Self { folder, config: config.clone(), watch, known }))
    }

    /// Sends every pod that comes from now on, and with a time of deletion every one that goes.
    pub async fn follow(mut self, pods: mpsc::UnboundedSender<Arc<Pod>>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = self.watch.changed() => if let Err(error) = changed {
                    return tracing::error!(%error, "changes of static pods are no longer seen");
                },
            }
            let now = read(&self.folder, &self.config);
            for (_, pod) in self.known.iter().filter(|(uid, _)| !now.contains_key(*uid)) {
                let mut gone = pod.as_ref().clone();
                gone.metadata.deletion_timestamp = Some(crate::status::time(std::time::SystemTime::now()));
                let _ = pods.send(Arc::new(gone));
            }
            for (_, pod) in now.iter().filter(|(uid, _)| !self.known.contains_key(*uid)) {
                let _ = pods.send(Arc::clone(pod));
            }
            self.known = now;
        }
    }
}

/// Shows a static pod in the API.
pub async fn create_mirror(shared: &Shared, pod: &Pod) -> Result<(), Error> {
    let mut mirror = pod.clone();
    let uid = mirror.metadata.uid.take().unwrap_or_default();
    mirror.metadata.annotations.get_or_insert_default().insert(MIRROR.into(), uid);
    let node = shared.node.get(&Key::new(None, &shared.config.name));
    mirror.metadata.owner_references = node.map(|node| {
        vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: shared.config.name.clone(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: None,
        }]
    });
    match shared.config.client.create(&mirror).await {
        Err(error) if !error.is_conflict() && !error.is_already_exists() => {
            Err(Error::client("create mirror pod")(error))
        }
        _ => Ok(()),
    }
}

/// Before what could not be deleted is tried again, and how often that is done.
const PAUSE: Duration = Duration::from_secs(1);
const ATTEMPTS: usize = 10;

/// Takes a mirror pod away at once; what it showed goes on or not, as its file says.
pub async fn delete_mirror(shared: &Shared, mirror: &Pod) {
    let meta = &mirror.metadata;
    let params = DeleteParams { grace_period: Some(0), uid: meta.uid.clone(), ..DeleteParams::default() };
    let name = meta.name.as_deref().unwrap_or_default();
    for _ in 0..ATTEMPTS {
        match shared.config.client.delete::<Pod>(meta.namespace.as_deref(), name, &params).await {
            Err(error) if !error.is_not_found() => {
                // A conflict is either another's change or another pod of that name; both show on the next try.
                tracing::warn!(%error, name, "cannot delete a mirror pod");
                let is_there = |uid| shared.mirrors.get(uid).is_some_and(|now| now.metadata.uid == meta.uid);
                if !mirrored(mirror).is_some_and(is_there) {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
            _ => return,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_becomes_a_pod_of_this_node_with_an_id_of_its_contents() {
        let config = crate::testing::config(Path::new("/nonexistent"));
        let text = "metadata: {name: web}\nspec: {containers: [{name: a, image: 'nginx:latest'}]}\n";
        let pod = parse(text, "web.yaml", &config).unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("web-n"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("n"));
        assert_eq!(spec.containers[0].image_pull_policy.as_deref(), Some("Always"));
        assert!(is_static(&pod));
        assert_eq!(parse(text, "web.yaml", &config).unwrap(), pod);
        let other = parse(&text.replace("nginx", "redis"), "web.yaml", &config).unwrap();
        assert_ne!(other.metadata.uid, pod.metadata.uid);
        for bad in ["spec: {containers: [{name: a}]}", "metadata: {name: x}", "{"] {
            assert!(parse(bad, "x.yaml", &config).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn files_that_come_and_go_are_pods_that_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = crate::testing::config(dir.path());
        config.settings.static_pods = Some(dir.path().join("manifests"));
        let (sender, mut pods) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let statics = StaticPods::open(&config).unwrap().unwrap();
        assert!(statics.known.is_empty());
        let following = tokio::spawn(statics.follow(sender, shutdown.clone()));
        let file = dir.path().join("manifests/a.yaml");
        std::fs::write(dir.path().join("whole"), "metadata: {name: a}\nspec: {containers: [{name: c, image: x}]}\n")
            .unwrap();
        std::fs::rename(dir.path().join("whole"), &file).unwrap();
        let come = pods.recv().await.unwrap();
        assert!(come.metadata.deletion_timestamp.is_none());
        std::fs::remove_file(&file).unwrap();
        let gone = pods.recv().await.unwrap();
        assert_eq!(gone.metadata.uid, come.metadata.uid);
        assert!(gone.metadata.deletion_timestamp.is_some());
        shutdown.cancel();
        following.await.unwrap();
    }
}
