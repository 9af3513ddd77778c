//! Volumes of CSI drivers: which drivers there are on the node, and what is done through them.
//!
//! What is mounted is remembered in files beside the mounts (see [`record`]), written before a driver is asked for
//! anything, so that an agent that comes back knows what it has to undo.

pub mod attach;
mod driver;
pub mod expand;
mod mount;
pub mod record;
mod release;
mod source;
pub mod stats;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dhow_client::Patch;
use dhow_plugins::csi;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, VolumeNodeResources};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;

use crate::shared::Shared;
use crate::{Error, NodeConfig};
pub use driver::Driver;
pub use mount::{is_there, prepare};
pub use release::release;
pub use source::Source;

/// Annotation of a node: what each driver calls it, as JSON.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";

/// One turn after another, by driver and handle of a volume.
type Turns = HashMap<(String, String), Arc<tokio::sync::Mutex<()>>>;

/// The drivers of a node and the volumes that are theirs.
pub struct Csi {
    root: PathBuf,
    drivers: Mutex<BTreeMap<String, Arc<Driver>>>,
    /// Only one thing at a time is done to a volume.
    busy: Mutex<Turns>,
    /// Names of the attached volumes that pods use, for the node's status.
    in_use: watch::Sender<BTreeSet<String>>,
    /// Pods that wait for a volume to be attached.
    waiting: Mutex<BTreeSet<String>>,
}

impl Csi {
    pub fn new(root: &Path) -> Self {
        let known = record::attached_below(root);
        Self {
            root: root.to_owned(),
            drivers: Mutex::default(),
            busy: Mutex::default(),
            in_use: watch::Sender::new(known),
            waiting: Mutex::default(),
        }
    }

    pub fn driver(&self, name: &str) -> Result<Arc<Driver>, Error> {
        let found = self.drivers.lock().get(name).cloned();
        found.ok_or_else(|| bad(format!("driver name {name} not found in the list of registered CSI drivers")))
    }

    pub fn in_use(&self) -> watch::Receiver<BTreeSet<String>> {
        self.in_use.subscribe()
    }

    /// Looks again which attached volumes are used.
    fn count_in_use(&self) {
        let now = record::attached_below(&self.root);
        self.in_use.send_if_modified(|old| {
            let changed = *old != now;
            *old = now;
            changed
        });
    }

    fn lock_of(&self, driver: &str, handle: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.busy.lock();
        // Those that nobody holds are not needed.
        all.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(all.entry((driver.to_owned(), handle.to_owned())).or_default())
    }

    /// Takes a driver in, once it has told what it is and the cluster knows of it.
    pub async fn register(&self, config: &NodeConfig, name: &str, endpoint: &Path) -> Result<(), Error> {
        let driver = Driver::open(name, endpoint).await?;
        publish(config, name, Some(&driver)).await?;
        self.drivers.lock().insert(name.to_owned(), Arc::new(driver));
        Ok(())
    }

    /// A driver has gone.
    pub async fn deregister(&self, config: &NodeConfig, name: &str) -> Result<(), Error> {
        self.drivers.lock().remove(name);
        publish(config, name, None).await
    }
}

fn bad(message: impl Into<String>) -> Error {
    Error::Spec { reason: "ContainerCreating", message: message.into() }
}

fn failed(call: &str, status: &tonic::Status) -> Error {
    bad(format!("rpc error: code = {:?} desc = {} ({call})", status.code(), status.message()))
}

/// Tells the cluster of a driver, or that it is gone: in the node's CSINode, its annotation and its labels.
async fn publish(config: &NodeConfig, name: &str, driver: Option<&Driver>) -> Result<(), Error> {
    let (client, node_name) = (&config.client, config.name.as_str());
    let node: Node = client.get(None, node_name).await.map_err(Error::client("get node"))?;
    let known = node.metadata.annotations.as_ref().and_then(|all| all.get(NODE_IDS)).cloned().unwrap_or_default();
    let mut ids: BTreeMap<String, String> = serde_json::from_str(&known).unwrap_or_default();
    let labels = driver.map(|driver| driver.topology.clone()).unwrap_or_default();
    match driver {
        Some(driver) => drop(ids.insert(name.to_owned(), driver.node_id.clone())),
        None => drop(ids.remove(name)),
    }
    let ids = (!ids.is_empty()).then(|| json!(ids).to_string());
    let patch = Patch::Merge(json!({"metadata": {"annotations": {NODE_IDS: ids}, "labels": labels}}));
    client.patch::<Node>(None, node_name, patch, None).await.map_err(Error::client("label node"))?;

    let found = match client.get::<CSINode>(None, node_name).await {
        Ok(found) => Some(found),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(Error::client("get CSINode")(error)),
    };
    let is_new = found.is_none();
    let mut own = found.unwrap_or_default();
    own.metadata.name = Some(node_name.to_owned());
    if is_new {
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": node_name, "uid": node.metadata.uid}]);
        own.metadata.owner_references = serde_json::from_value(owner).ok();
    }
    let before = own.spec.drivers.clone();
    own.spec.drivers.retain(|one| one.name != name);
    if let Some(driver) = driver {
        own.spec.drivers.push(CSINodeDriver {
            name: name.to_owned(),
            node_id: driver.node_id.clone(),
            topology_keys: (!driver.topology.is_empty()).then(|| driver.topology.keys().cloned().collect()),
            allocatable: driver.max_volumes.map(|count| VolumeNodeResources { count: Some(count) }),
        });
    }
    own.spec.drivers.sort_by(|a, b| a.name.cmp(&b.name));
    if is_new {
        client.create(&own).await.map_err(Error::client("create CSINode"))?;
    } else if before != own.spec.drivers {
        client.update(&own).await.map_err(Error::client("update CSINode"))?;
    }
    Ok(())
}

/// Wakes pods that wait for their volumes whenever the node's status says more about those. Called once.
pub fn follow(shared: &Arc<Shared>) {
    let weak = Arc::downgrade(shared);
    shared.node.on_change(move |_| {
        let Some(shared) = weak.upgrade() else { return };
        let waiting = std::mem::take(&mut *shared.csi.waiting.lock());
        waiting.iter().for_each(|uid| shared.wake(uid));
    });
}

/// How a volume may be used, from what its claim says and what the driver knows.
fn access_mode(modes: &[String], driver: &Driver) -> i32 {
    use csi::volume_capability::access_mode::Mode;
    let has = |name: &str| modes.iter().any(|mode| mode == name);
    let fine = driver.can(csi::node_service_capability::rpc::Type::SingleNodeMultiWriter);
    let mode = match () {
        () if has("ReadWriteMany") => Mode::MultiNodeMultiWriter,
        () if has("ReadOnlyMany") && has("ReadWriteOnce") => Mode::MultiNodeSingleWriter,
        () if has("ReadOnlyMany") => Mode::MultiNodeReaderOnly,
        () if has("ReadWriteOncePod") && fine => Mode::SingleNodeSingleWriter,
        () if has("ReadWriteOnce") && fine => Mode::SingleNodeMultiWriter,
        () => Mode::SingleNodeWriter,
    };
    mode.into()
}
