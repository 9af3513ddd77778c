//! Brings volumes of CSI drivers to the nodes whose pods want them, and takes them away again.
//!
//! A `VolumeAttachment` asks for that; the driver's own attacher does it and says so there. The node's status then lists
//! the volume, which is what the node waits for. A volume is taken away once its node no longer says that it uses it,
//! first in the node's status, then in fact.

mod plan;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{
    Change, Client, DeleteParams, Error, EventRecorder, EventType, Informer, Key, Outcome, Patch, Queue, Reconcile,
    reference,
};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::common::node_name;
use plan::{Plan, View, Wanted};

pub struct Copies {
    pub pods: Informer<Pod>,
    pub nodes: Informer<Node>,
    pub claims: Informer<PersistentVolumeClaim>,
    pub volumes: Informer<PersistentVolume>,
    pub drivers: Informer<CSIDriver>,
    pub attachments: Informer<VolumeAttachment>,
}

pub struct AttachDetach {
    client: Client,
    copies: Copies,
    recorder: EventRecorder,
    /// Since when a volume is not wanted any more, by attachment.
    unwanted: Mutex<HashMap<String, Instant>>,
}

/// Nodes of the pods that use a claim.
fn nodes_of_claim(pods: &Informer<Pod>, namespace: &str, name: &str) -> BTreeSet<String> {
    let users = pods.by_index("namespace", namespace).into_iter().filter(|pod| plan::claims(pod).any(|c| c == name));
    users.filter_map(|pod| node_name(&pod).map(str::to_owned)).collect()
}

fn nodes_of_volume(pods: &Informer<Pod>, volume: &PersistentVolume) -> BTreeSet<String> {
    let held = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    held.map(|held| nodes_of_claim(pods, &text(held.namespace.as_ref()), &text(held.name.as_ref()))).unwrap_or_default()
}

/// A volume, and the pods that want it.
type PodsOfVolume = (Wanted, Vec<Arc<Pod>>);

impl AttachDetach {
    pub fn new(client: Client, copies: Copies, queue: &Queue) -> Arc<Self> {
        let recorder = EventRecorder::new(client.clone(), "attachdetach-controller");
        let to = queue.clone();
        copies.pods.on_change(move |change| {
            let pod = change.object();
            if let Some(node) = node_name(pod).filter(|_| plan::claims(pod).next().is_some()) {
                to.add(Key::new(None, node));
            }
        });
        let to = queue.clone();
        copies.nodes.on_change(move |change| {
            let relevant = match change {
                Change::Updated { old, new } => {
                    let used = |node: &Node| node.status.as_ref().and_then(|status| status.volumes_in_use.clone());
                    let shown = |node: &Node| node.status.as_ref().and_then(|status| status.volumes_attached.clone());
                    let ready = |node: &Node| {
                        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
                        conditions.into_iter().find(|one| one.type_ == "Ready").map(|one| one.status.clone())
                    };
                    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
                    used(old) != used(new)
                        || shown(old) != shown(new)
                        || ready(old) != ready(new)
                        || taints(old) != taints(new)
                }
                _ => true,
            };
            if relevant {
                to.add(Key::of(&change.object().metadata));
            }
        });
        let (to, pods) = (queue.clone(), copies.pods.clone());
        copies.claims.on_change(move |change| {
            let meta = &change.object().metadata;
            let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
            let nodes = nodes_of_claim(&pods, namespace.unwrap_or_default(), name.unwrap_or_default());
            nodes.iter().for_each(|node| to.add(Key::new(None, node)));
        });
        let (to, pods) = (queue.clone(), copies.pods.clone());
        copies.volumes.on_change(move |change| {
            nodes_of_volume(&pods, change.object()).iter().for_each(|node| to.add(Key::new(None, node)));
        });
        let (to, nodes) = (queue.clone(), copies.nodes.clone());
        copies.drivers.on_change(move |_| nodes.list().iter().for_each(|node| to.add(Key::of(&node.metadata))));
        let (to, pods, volumes) = (queue.clone(), copies.pods.clone(), copies.volumes.clone());
        copies.attachments.on_change(move |change| {
            let attachment = change.object();
            to.add(Key::new(None, &attachment.spec.node_name));
            let volume = attachment.spec.source.persistent_volume_name.as_deref().map(|name| Key::new(None, name));
            if let (Change::Deleted(_), Some(volume)) = (change, volume.and_then(|key| volumes.get(&key))) {
                // Another node may wait for it.
                nodes_of_volume(&pods, &volume).iter().for_each(|node| to.add(Key::new(None, node)));
            }
        });
        Arc::new(Self { client, copies, recorder, unwanted: Mutex::default() })
    }

    /// What the pods of a node want, each with the pods that want it.
    fn wanted<'a>(&self, pods: &'a [Arc<Pod>], drivers: &[CSIDriver]) -> BTreeMap<Wanted, Vec<&'a Pod>> {
        let mut wanted: BTreeMap<Wanted, Vec<&Pod>> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| plan::uses_volumes(pod)) {
            for name in plan::claims(pod) {
                let key = Key::new(pod.metadata.namespace.as_deref(), &name);
                let Some(claim) = self.copies.claims.get(&key) else { continue };
                let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
                let volume = volume.and_then(|name| self.copies.volumes.get(&Key::new(None, name)));
                let found = plan::bound(&claim, volume.as_deref()).and_then(|volume| Wanted::of(volume, drivers));
                if let Some(found) = found {
                    wanted.entry(found).or_default().push(pod);
                }
            }
        }
        wanted
    }

    fn plan(&self, key: &Key) -> (Plan, Vec<PodsOfVolume>, Vec<VolumeAttachment>) {
        let drivers: Vec<CSIDriver> = self.copies.drivers.list().iter().map(|driver| (**driver).clone()).collect();
        let pods = self.copies.pods.by_index("node", &key.name);
        let wanted = self.wanted(&pods, &drivers);
        let all = self.copies.attachments.list();
        let concerns = |one: &VolumeAttachment| {
            let volume = one.spec.source.persistent_volume_name.as_deref();
            *one.spec.node_name == *key.name || wanted.keys().any(|wanted| Some(wanted.volume.as_str()) == volume)
        };
        let attachments: Vec<VolumeAttachment> =
            all.iter().filter(|one| concerns(one)).map(|one| (**one).clone()).collect();
        let names = attachments.iter().filter_map(|one| one.spec.source.persistent_volume_name.clone());
        let names: BTreeSet<String> = names.chain(wanted.keys().map(|wanted| wanted.volume.clone())).collect();
        // A driver that stops to attach still has to let go of what it attached.
        let known = names.into_iter().filter_map(|name| {
            let volume = self.copies.volumes.get(&Key::new(None, &name))?;
            Some((name, (Wanted::of(&volume, &[])?, plan::is_alone(&volume))))
        });
        let known = known.collect();
        let unwanted_for = self.unwanted.lock().iter().map(|(name, since)| (name.clone(), since.elapsed())).collect();
        let node = self.copies.nodes.get(key);
        let view = View {
            name: &key.name,
            node: node.as_deref(),
            wanted: &wanted,
            known: &known,
            attachments: &attachments,
            unwanted_for: &unwanted_for,
        };
        let plan = plan::plan(&view);
        let owned = |(wanted, users): (&Wanted, &Vec<&Pod>)| {
            let users = users.iter().map(|pod| Arc::new((*pod).clone())).collect();
            (wanted.clone(), users)
        };
        let wanted = wanted.iter().map(owned).collect();
        (plan, wanted, attachments)
    }

    /// What attachers said of the volumes that pods wait for.
    fn tell(&self, key: &Key, plan: &Plan, wanted: &[(Wanted, Vec<Arc<Pod>>)], attachments: &[VolumeAttachment]) {
        let shown = self.copies.nodes.get(key).and_then(|node| node.status.as_ref()?.volumes_attached.clone());
        let was_shown = |unique: &str| shown.iter().flatten().any(|one| one.name == unique);
        for (volume, users) in wanted {
            let name = &volume.volume;
            let own = volume.attachment(&key.name);
            let own = attachments.iter().find(|one| one.metadata.name.as_deref() == Some(&own));
            let error = own.and_then(|one| one.status.as_ref()?.attach_error.as_ref()?.message.clone());
            let unique = volume.unique_name();
            let (kind, reason, message) = if plan.held_elsewhere.contains(volume) {
                let text = format!(
                    "Multi-Attach error for volume {name:?} Volume is already exclusively attached to one node and \
                     can't be attached to another"
                );
                (EventType::Warning, "FailedAttachVolume", text)
            } else if plan.attached.contains(&unique) && !was_shown(&unique) {
                let text = format!("AttachVolume.Attach succeeded for volume {name:?} ");
                (EventType::Normal, "SuccessfulAttachVolume", text)
            } else if let Some(error) = error {
                let text = format!("AttachVolume.Attach failed for volume {name:?} : {error}");
                (EventType::Warning, "FailedAttachVolume", text)
            } else {
                continue;
            };
            users.iter().for_each(|pod| self.recorder.event(reference(&**pod), kind, reason, &message));
        }
    }

    /// Lists in the node's status what is attached.
    async fn show(&self, key: &Key, attached: &BTreeSet<String>) -> Result<(), Error> {
        let Some(node) = self.copies.nodes.get(key) else { return Ok(()) };
        let shown = node.status.iter().flat_map(|status| status.volumes_attached.iter().flatten());
        // Of others only what is not ours to say.
        let (ours, others): (Vec<_>, Vec<_>) = shown.partition(|one| one.name.starts_with("kubernetes.io/csi/"));
        let ours: BTreeSet<String> = ours.into_iter().map(|one| one.name.clone()).collect();
        if ours == *attached {
            return Ok(());
        }
        let mut all: Vec<_> = others.into_iter().map(|one| json!(one)).collect();
        all.extend(attached.iter().map(|name| json!({"name": name, "devicePath": ""})));
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "status": {"volumesAttached": all},
        });
        self.client.patch::<Node>(None, &key.name, Patch::Merge(patch), Some("status")).await.map(drop)
    }

    async fn attach(&self, node: &str, wanted: &Wanted) -> Result<(), Error> {
        let object = json!({
            "metadata": {"name": wanted.attachment(node)},
            "spec": {
                "attacher": wanted.driver,
                "nodeName": node,
                "source": {"persistentVolumeName": wanted.volume},
            },
        });
        let object: VolumeAttachment = serde_json::from_value(object)
            .map_err(|source| Error::Decode { context: "make a volume attachment".into(), source })?;
        match self.client.create(&object).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }
}

#[async_trait::async_trait]
impl Reconcile for AttachDetach {
    fn name(&self) -> &'static str {
        "attachdetach"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let (plan, wanted, attachments) = self.plan(key);
        {
            let mut unwanted = self.unwanted.lock();
            let own = |name: &String| {
                attachments
                    .iter()
                    .any(|one| one.metadata.name.as_ref() == Some(name) && *one.spec.node_name == *key.name)
            };
            let known: BTreeSet<String> =
                self.copies.attachments.list().iter().filter_map(|one| one.metadata.name.clone()).collect();
            unwanted.retain(|name, _| known.contains(name) && (!own(name) || plan.unwanted.contains(name)));
            for name in &plan.unwanted {
                unwanted.entry(name.clone()).or_insert_with(Instant::now);
            }
        }
        self.tell(key, &plan, &wanted, &attachments);
        // Before they go in fact.
        self.show(key, &plan.attached).await?;
        for name in &plan.detach {
            match self.client.delete::<VolumeAttachment>(None, name, &DeleteParams::default()).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        for one in &plan.attach {
            self.attach(&key.name, one).await?;
        }
        Ok(match plan.again {
            Some(left) => Outcome::RequeueAfter(left.max(Duration::from_secs(1))),
            None => Outcome::Done,
        })
    }
}
