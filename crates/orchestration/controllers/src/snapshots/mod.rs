//! Snapshots of volumes (`snapshot.storage.k8s.io`): binds each VolumeSnapshot to a VolumeSnapshotContent, which the
//! snapshotter beside a CSI driver fills, or the node that holds a volume of the built-in provisioner; and keeps both as
//! long as they are needed.
//!
//! Works while the definitions of the kinds are there, as upstream's snapshot controller does, which is not needed then.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use dhow_api::local_volumes::{CLASS, NODE_LABEL, PROVISIONER, parse_snapshot_handle};
use dhow_client::snapshots::{
    BEING_DELETED, BOUND_CONTENT, DEFINITIONS, Status, Trouble, VolumeSnapshot, VolumeSnapshotClass,
    VolumeSnapshotContent,
};
use dhow_client::{
    Change, Client, DeleteParams, Error, EventRecorder, EventType, Informer, Key, ListParams, Object, Outcome, Patch,
    Queue, Reconcile, reference, run_controller, while_served,
};
use dhow_scheduler::volumes::local::{self, Beginning};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::common::{Finalizer, delete};
use plan::{Refusal, Taken};

const BOUND: Finalizer = Finalizer("snapshot.storage.kubernetes.io/volumesnapshot-bound-protection");
const AS_SOURCE: Finalizer = Finalizer("snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection");
const CONTENT: Finalizer = Finalizer(BOUND_CONTENT);
const CLAIM: Finalizer = Finalizer("snapshot.storage.kubernetes.io/pvc-as-source-protection");

/// What is there before the kinds are.
#[derive(Clone)]
pub struct Around {
    pub claims: Informer<PersistentVolumeClaim>,
    pub volumes: Informer<PersistentVolume>,
    pub nodes: Informer<Node>,
    /// Looks at claims, which may wait for a snapshot.
    pub binder: Queue,
}

/// Runs while the definitions of the kinds are there, until `shutdown`.
pub async fn run(client: Client, around: Around, shutdown: CancellationToken) {
    let start = |stop| drop(tokio::spawn(run_kinds(client.clone(), around.clone(), stop)));
    while_served(&client, &DEFINITIONS, "v1", &shutdown, start).await;
}

async fn run_kinds(client: Client, around: Around, stop: CancellationToken) {
    fn all<K: Object>(client: &Client, stop: &CancellationToken) -> Informer<K> {
        Informer::start(client.clone(), ListParams::default(), None, stop.clone())
    }
    let copies =
        Copies { snapshots: all(&client, &stop), contents: all(&client, &stop), classes: all(&client, &stop), around };
    let synced = async {
        copies.snapshots.synced().await;
        copies.contents.synced().await;
        copies.classes.synced().await;
    };
    tokio::select! { () = synced => {}, () = stop.cancelled() => return }
    if let Err(error) = make_class(&client).await {
        tracing::warn!(%error, "cannot make the class of local snapshots");
    }
    let queue = Queue::new("snapshot-controller");
    let reconciler = Snapshots::new(client, copies, &queue);
    run_controller(reconciler, queue, 4, stop).await;
}

/// The class for volumes of the built-in provisioner, unless there is one of that name.
async fn make_class(client: &Client) -> Result<(), Error> {
    let class = VolumeSnapshotClass {
        metadata: ObjectMeta {
            name: Some(CLASS.to_owned()),
            annotations: Some([(plan::DEFAULT.to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        driver: PROVISIONER.to_owned(),
        deletion_policy: "Delete".to_owned(),
        parameters: BTreeMap::new(),
    };
    match client.create(&class).await {
        Err(error) if error.is_already_exists() => Ok(()),
        other => other.map(drop),
    }
}

struct Copies {
    snapshots: Informer<VolumeSnapshot>,
    contents: Informer<VolumeSnapshotContent>,
    classes: Informer<VolumeSnapshotClass>,
    around: Around,
}

/// Keys are those of snapshots; a content's changes are its snapshot's.
struct Snapshots {
    client: Client,
    recorder: EventRecorder,
    copies: Copies,
}

fn source_claim(snapshot: &VolumeSnapshot) -> Option<Key> {
    let claim = snapshot.spec.source.persistent_volume_claim_name.as_deref()?;
    Some(Key::new(snapshot.metadata.namespace.as_deref(), claim))
}

fn snapshot_of(content: &VolumeSnapshotContent) -> Key {
    let of = &content.spec.volume_snapshot_ref;
    Key::new(of.namespace.as_deref(), of.name.as_deref().unwrap_or_default())
}

fn is_ready(snapshot: &VolumeSnapshot) -> bool {
    snapshot.status.as_ref().is_some_and(|status| status.ready_to_use == Some(true))
}

/// The snapshot that a claim is to be filled from.
fn restores(claim: &PersistentVolumeClaim) -> Option<Key> {
    let spec = claim.spec.as_ref()?;
    let namespace = claim.metadata.namespace.as_deref();
    let plain = || {
        let source = spec.data_source.as_ref().filter(|source| source.kind == "VolumeSnapshot")?;
        Some(Key::new(namespace, &source.name))
    };
    let referred = spec.data_source_ref.as_ref().filter(|source| source.kind == "VolumeSnapshot");
    referred.map(|source| Key::new(source.namespace.as_deref().or(namespace), &source.name)).or_else(plain)
}

fn is_pending(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound")
}

impl Snapshots {
    fn new(client: Client, copies: Copies, queue: &Queue) -> Arc<Self> {
        copies.snapshots.add_index("claim", |one| source_claim(one).iter().map(ToString::to_string).collect());
        copies.contents.add_index("snapshot", |one| vec![snapshot_of(one).to_string()]);
        copies.contents.add_index("node", |one| {
            one.metadata
                .labels
                .iter()
                .flatten()
                .filter(|(name, _)| *name == NODE_LABEL)
                .map(|(_, node)| node.clone())
                .collect()
        });
        let (to, binder, claims) = (queue.clone(), copies.around.binder.clone(), copies.around.claims.clone());
        copies.snapshots.on_change(move |change| {
            let snapshot = change.object();
            to.add(Key::of(&snapshot.metadata));
            // Claims of the built-in provisioner may wait for it.
            for claim in claims.by_index("namespace", snapshot.metadata.namespace.as_deref().unwrap_or_default()) {
                let waits = is_pending(&claim)
                    && Some(local::beginning(&claim)) == snapshot.metadata.name.as_deref().map(Beginning::Snapshot);
                if waits {
                    binder.add(Key::of(&claim.metadata));
                }
            }
        });
        let to = queue.clone();
        copies.contents.on_change(move |change| to.add(snapshot_of(change.object())));
        let (to, contents) = (queue.clone(), copies.contents.clone());
        copies.around.nodes.on_change(move |change| {
            if let Change::Deleted(node) = change {
                let held = contents.by_index("node", node.metadata.name.as_deref().unwrap_or_default());
                held.iter().for_each(|content| to.add(snapshot_of(content)));
            }
        });
        let (to, all) = (queue.clone(), copies.snapshots.clone());
        copies.classes.on_change(move |change| {
            if !matches!(change, Change::Deleted(_)) {
                all.list().iter().filter(|one| !is_ready(one)).for_each(|one| to.add(Key::of(&one.metadata)));
            }
        });
        let (to, all) = (queue.clone(), copies.snapshots.clone());
        copies.around.claims.on_change(move |change| {
            let claim = change.object();
            let waiting = all.by_index("claim", &Key::of(&claim.metadata).to_string());
            waiting.iter().filter(|one| !is_ready(one)).for_each(|one| to.add(Key::of(&one.metadata)));
            if let Some(snapshot) = restores(claim) {
                to.add(snapshot);
            }
        });
        let recorder = EventRecorder::new(client.clone(), "snapshot-controller");
        Arc::new(Self { client, recorder, copies })
    }

    /// Writes the status, if it says something new.
    async fn show(&self, snapshot: &VolumeSnapshot, status: Status) -> Result<(), Error> {
        if snapshot.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let changed = VolumeSnapshot { status: Some(status), ..snapshot.clone() };
        match self.client.update_status(&changed).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }

    async fn refuse(&self, snapshot: &VolumeSnapshot, (reason, text): Refusal) -> Result<(), Error> {
        let mut status = snapshot.status.clone().unwrap_or_default();
        let known = status.error.as_ref().and_then(|error| error.message.as_ref()) == Some(&text);
        if known {
            return Ok(());
        }
        self.recorder.event(reference(snapshot), EventType::Warning, reason, &text);
        status.ready_to_use = Some(false);
        status.error = Some(Trouble { time: Some(Time(Timestamp::now())), message: Some(text) });
        self.show(snapshot, status).await
    }

    /// The content of a snapshot, made where there is none; `Err` within for what cannot be.
    async fn content(&self, snapshot: &VolumeSnapshot) -> Result<Result<Arc<VolumeSnapshotContent>, Refusal>, Error> {
        let misbound = |name: &str| {
            let text = format!("VolumeSnapshotContent [{name}] is bound to a different snapshot");
            Ok(Err(("SnapshotContentMisbound", text)))
        };
        let source = &snapshot.spec.source;
        match (&source.persistent_volume_claim_name, &source.volume_snapshot_content_name) {
            (Some(claim), None) => {
                let name = plan::content_name(snapshot);
                if let Some(known) = self.copies.contents.get(&Key::new(None, &name)) {
                    return if plan::is_of(&known, snapshot) { Ok(Ok(known)) } else { misbound(&name) };
                }
                self.ask(snapshot, claim).await
            }
            (None, Some(name)) => {
                let Some(known) = self.copies.contents.get(&Key::new(None, name)) else {
                    return Ok(Err(("SnapshotContentMissing", "VolumeSnapshotContent is missing".to_owned())));
                };
                if !plan::is_of(&known, snapshot) {
                    return misbound(name);
                }
                if known.spec.volume_snapshot_ref.uid == snapshot.metadata.uid {
                    return Ok(Ok(known));
                }
                // It waited for one of this name: from now on it is this one's.
                let uid = &snapshot.metadata.uid;
                let patch = json!({"metadata": {"resourceVersion": known.metadata.resource_version},
                    "spec": {"volumeSnapshotRef": {"uid": uid}}});
                self.client.patch(None, name, Patch::Merge(patch), None).await.map(|content| Ok(Arc::new(content)))
            }
            _ => {
                let text = "Exactly one of PersistentVolumeClaimName and VolumeSnapshotContentName should be specified";
                Ok(Err(("SnapshotValidationError", text.to_owned())))
            }
        }
    }

    /// Asks the driver of a claim's volume for a snapshot.
    async fn ask(
        &self,
        snapshot: &VolumeSnapshot,
        name: &str,
    ) -> Result<Result<Arc<VolumeSnapshotContent>, Refusal>, Error> {
        let claim = source_claim(snapshot).and_then(|key| self.copies.around.claims.get(&key));
        let spec = claim.as_ref().and_then(|claim| claim.spec.as_ref());
        let volume = spec.and_then(|spec| spec.volume_name.as_deref());
        let volume = volume.and_then(|volume| self.copies.around.volumes.get(&Key::new(None, volume)));
        let taken = match plan::source(claim.as_deref(), name, volume.as_deref()) {
            Ok(found) => found,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let class = match &snapshot.spec.volume_snapshot_class_name {
            Some(class) => match self.copies.classes.get(&Key::new(None, class)) {
                Some(found) if found.driver == taken.driver => found,
                Some(found) => {
                    let text = format!(
                        "VolumeSnapshotClass {class} is of driver {}, the volume of {}",
                        found.driver, taken.driver
                    );
                    return Ok(Err(("CreateSnapshotContentFailed", text)));
                }
                None => {
                    let text = format!(
                        "Failed to get snapshot class with error volumesnapshotclass.snapshot.storage.k8s.io \"{class}\" not found"
                    );
                    return Ok(Err(("GetSnapshotClassFailed", text)));
                }
            },
            None => match plan::default_class(&self.copies.classes.list(), &taken.driver) {
                Ok(class) => {
                    // It stays that one, whatever becomes the default.
                    let named = json!({"spec": {"volumeSnapshotClassName": class.metadata.name}});
                    self.patch(snapshot, named).await?;
                    return Ok(Ok(self.make(snapshot, claim.as_deref(), &class, taken).await?));
                }
                Err(refusal) => return Ok(Err(refusal)),
            },
        };
        Ok(Ok(self.make(snapshot, claim.as_deref(), &class, taken).await?))
    }

    async fn make(
        &self,
        snapshot: &VolumeSnapshot,
        claim: Option<&PersistentVolumeClaim>,
        class: &VolumeSnapshotClass,
        of: Taken,
    ) -> Result<Arc<VolumeSnapshotContent>, Error> {
        // The claim stays until its snapshot is taken.
        if let Some(claim) = claim.filter(|claim| !CLAIM.is_on(&claim.metadata)) {
            CLAIM.put(&self.client, claim).await?;
        }
        let (driver, wanted) = (of.driver.clone(), plan::content(snapshot, class, of));
        let name = plan::content_name(snapshot);
        match self.client.create(&wanted).await {
            Ok(made) => {
                let key = Key::of(&snapshot.metadata);
                let text = match driver.as_str() {
                    PROVISIONER => format!("Waiting for a snapshot {key} to be created by the volume's node."),
                    _ => format!("Waiting for a snapshot {key} to be created by the CSI driver."),
                };
                self.recorder.event(reference(snapshot), EventType::Normal, "CreatingSnapshot", &text);
                Ok(Arc::new(made))
            }
            Err(error) if error.is_already_exists() => self.client.get(None, &name).await.map(Arc::new),
            Err(error) => {
                let text = format!("Failed to create snapshot content with error {error}");
                self.recorder.event(reference(snapshot), EventType::Warning, "CreateSnapshotContentFailed", &text);
                Err(error)
            }
        }
    }

    async fn patch(&self, snapshot: &VolumeSnapshot, change: serde_json::Value) -> Result<(), Error> {
        let name = snapshot.metadata.name.as_deref().unwrap_or_default();
        let namespace = snapshot.metadata.namespace.as_deref();
        self.client.patch::<VolumeSnapshot>(namespace, name, Patch::Merge(change), None).await.map(drop)
    }

    /// Lets a claim go that no snapshot is being taken of any more.
    async fn release_claim(&self, snapshot: &VolumeSnapshot) -> Result<(), Error> {
        let Some(key) = source_claim(snapshot) else { return Ok(()) };
        let Some(claim) = self.copies.around.claims.get(&key).filter(|claim| CLAIM.is_on(&claim.metadata)) else {
            return Ok(());
        };
        let others = self.copies.snapshots.by_index("claim", &key.to_string());
        let taking = |other: &Arc<VolumeSnapshot>| {
            let same = other.metadata.uid == snapshot.metadata.uid;
            !same && !is_ready(other) && other.metadata.deletion_timestamp.is_none()
        };
        if others.iter().any(taking) { Ok(()) } else { CLAIM.take(&self.client, &*claim).await }
    }

    /// A content of the built-in provisioner is its node's, whoever made it.
    async fn label(&self, content: &VolumeSnapshotContent) -> Result<(), Error> {
        let labelled = content.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(NODE_LABEL));
        if content.spec.driver != PROVISIONER || labelled {
            return Ok(());
        }
        let source = &content.spec.source;
        let of_handle =
            source.snapshot_handle.as_deref().and_then(parse_snapshot_handle).map(|(node, _)| node.to_owned());
        let volume =
            source.volume_handle.as_deref().and_then(|name| self.copies.around.volumes.get(&Key::new(None, name)));
        let of_volume = || volume.as_deref().and_then(local::node_of).map(str::to_owned);
        let name = content.metadata.name.as_deref().unwrap_or_default();
        let Some(node) = of_handle.or_else(of_volume) else {
            let text = format!("nothing tells the node of content {name}: a snapshotHandle has to be <node>/<name>");
            self.recorder.event(reference(content), EventType::Warning, "SnapshotContentCheckandUpdateFailed", &text);
            return Ok(());
        };
        let patch = json!({"metadata": {"uid": content.metadata.uid, "labels": {NODE_LABEL: node}}});
        self.client.patch::<VolumeSnapshotContent>(None, name, Patch::Merge(patch), None).await.map(drop)
    }

    /// With a node that is gone, the snapshots that it held are gone.
    async fn forget_nodes(&self, key: &Key) -> Result<(), Error> {
        for content in self.copies.contents.by_index("snapshot", &key.to_string()) {
            let going = content.metadata.deletion_timestamp.is_some() && CONTENT.is_on(&content.metadata);
            let node = content.metadata.labels.as_ref().and_then(|labels| labels.get(NODE_LABEL));
            let Some(node) = node.filter(|_| going && content.spec.driver == PROVISIONER) else { continue };
            if self.copies.around.nodes.get(&Key::new(None, node)).is_some() {
                continue;
            }
            match self.client.get::<Node>(None, node).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() => CONTENT.take(&self.client, &*content).await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A snapshot that is to go: first what it is made of, where that is to go too.
    async fn end(&self, snapshot: &VolumeSnapshot) -> Result<(), Error> {
        let bound = snapshot.status.as_ref().and_then(|status| status.bound_volume_snapshot_content_name.clone());
        let name = bound.unwrap_or_else(|| plan::content_name(snapshot));
        let content = self.copies.contents.get(&Key::new(None, &name)).filter(|content| plan::is_of(content, snapshot));
        if let Some(content) = content {
            let key = Key::of(&snapshot.metadata);
            if self
                .copies
                .around
                .claims
                .list()
                .iter()
                .any(|claim| is_pending(claim) && restores(claim) == Some(key.clone()))
            {
                let text = "Snapshot is being used to restore a PVC";
                self.recorder.event(reference(snapshot), EventType::Warning, "SnapshotDeletePending", text);
                return Ok(());
            }
            let told = content.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(BEING_DELETED));
            if !told {
                let patch = json!({"metadata": {"uid": content.metadata.uid, "annotations": {BEING_DELETED: "yes"}}});
                match self.client.patch::<VolumeSnapshotContent>(None, &name, Patch::Merge(patch), None).await {
                    Err(error) if error.is_not_found() => {}
                    other => drop(other?),
                }
            }
            if content.spec.deletion_policy == "Delete" {
                if content.metadata.deletion_timestamp.is_none() {
                    delete(&self.client, &*content, DeleteParams::default()).await?;
                }
                // Its end wakes us.
                return Ok(());
            }
        }
        self.release_claim(snapshot).await?;
        let mut left = snapshot.clone();
        if let Some(all) = &mut left.metadata.finalizers {
            all.retain(|one| one != BOUND.0 && one != AS_SOURCE.0);
        }
        let seen = json!({"finalizers": left.metadata.finalizers, "uid": snapshot.metadata.uid,
            "resourceVersion": snapshot.metadata.resource_version});
        match self.patch(snapshot, json!({"metadata": seen})).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }
}

#[async_trait::async_trait]
impl Reconcile for Snapshots {
    fn name(&self) -> &'static str {
        "snapshot-controller"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        self.forget_nodes(key).await?;
        let Some(snapshot) = self.copies.snapshots.get(key) else { return Ok(Outcome::Done) };
        if snapshot.metadata.deletion_timestamp.is_some() {
            if BOUND.is_on(&snapshot.metadata) || AS_SOURCE.is_on(&snapshot.metadata) {
                self.end(&snapshot).await?;
            }
            return Ok(Outcome::Done);
        }
        for finalizer in [BOUND, AS_SOURCE] {
            if !finalizer.is_on(&snapshot.metadata) {
                finalizer.put(&self.client, &*snapshot).await?;
                // The new version wakes us.
                return Ok(Outcome::Done);
            }
        }
        let content = match self.content(&snapshot).await? {
            Ok(content) => content,
            Err(refusal) => {
                self.refuse(&snapshot, refusal).await?;
                return Ok(Outcome::Done);
            }
        };
        if content.metadata.deletion_timestamp.is_none() && !CONTENT.is_on(&content.metadata) {
            CONTENT.put(&self.client, &*content).await?;
        }
        self.label(&content).await?;
        let before = snapshot.status.clone().unwrap_or_default();
        let now = plan::status(&before, &content, Timestamp::now());
        let became_ready = now.ready_to_use == Some(true) && before.ready_to_use != Some(true);
        let current = self.client.get::<VolumeSnapshot>(key.namespace(), &key.name).await?;
        self.show(&current, now).await?;
        if became_ready {
            let text = format!("Snapshot {key} is ready to use.");
            self.recorder.event(reference(&*snapshot), EventType::Normal, "SnapshotReady", &text);
            self.release_claim(&snapshot).await?;
        }
        Ok(Outcome::Done)
    }
}
