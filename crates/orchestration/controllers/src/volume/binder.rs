//! Binds volumes and claims: looks at one of them, asks its plan, and writes what that says.
//!
//! Keys without a namespace are volumes.

use std::sync::Arc;

use dhow_api::local_volumes::{FILLED_FROM, FILLING, FINALIZER, PROVISIONER as LOCAL, SOURCE_NODE};
use dhow_client::{
    Change, Client, DeleteParams, Error, EventRecorder, Informer, Key, Outcome, Patch, Queue, Reconcile, reference,
};
use dhow_scheduler::volumes::local::{self, Beginning};
use dhow_scheduler::volumes::matching::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE, annotation, class_of, is_bound, phase, selected_node,
    volume_name,
};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::expand::{self, Growth};
use super::source::Found;
use super::{Copies, PROVISIONER, PROVISIONER_BETA, Told, claim_plan, provision, source, volume_plan};
use crate::common::{Finalizer, delete, is_active, node_name};

pub struct Binder {
    client: Client,
    copies: Copies,
    pods: Informer<Pod>,
    queue: Queue,
    recorder: EventRecorder,
}

impl Binder {
    pub fn new(client: Client, copies: Copies, pods: Informer<Pod>, queue: &Queue) -> Arc<Self> {
        let recorder = EventRecorder::new(client.clone(), "persistentvolume-controller");
        let binder = Arc::new(Self { client, copies, pods, queue: queue.clone(), recorder });
        let (to, claims) = (queue.clone(), binder.copies.claims.clone());
        binder.copies.claims.add_index("clone of", |claim| match local::beginning(claim) {
            Beginning::Claim(name) => vec![Key::new(claim.metadata.namespace.as_deref(), name).to_string()],
            _ => Vec::new(),
        });
        binder.copies.claims.on_change(move |change| {
            let claim = change.object();
            let key = Key::of(&claim.metadata);
            let clones = claims.by_index("clone of", &key.to_string());
            clones.iter().filter(|clone| !is_bound(clone)).for_each(|clone| to.add(Key::of(&clone.metadata)));
            to.add(key);
            if !volume_name(claim).is_empty() {
                to.add(Key::new(None, volume_name(claim)));
            }
        });
        let (to, claims) = (queue.clone(), binder.copies.claims.clone());
        binder.copies.volumes.on_change(move |change| {
            let volume = change.object();
            to.add(Key::of(&volume.metadata));
            match volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
                Some(held) => to.add(Key::new(held.namespace.as_deref(), held.name.as_deref().unwrap_or_default())),
                None => unbound(&claims, &to, |_| true),
            }
            if matches!(change, Change::Deleted(_)) {
                // What it took of its node is free.
                claims
                    .list()
                    .iter()
                    .filter(|claim| expand::asks(claim))
                    .for_each(|claim| to.add(Key::of(&claim.metadata)));
            }
        });
        let (to, claims) = (queue.clone(), binder.copies.claims.clone());
        binder.copies.classes.on_change(move |change| {
            let name = change.object().metadata.name.clone().unwrap_or_default();
            unbound(&claims, &to, |claim| class_of(claim) == name);
        });
        let (to, volumes) = (queue.clone(), binder.copies.volumes.clone());
        binder.copies.nodes.on_change(move |change| {
            if let Change::Deleted(node) = change {
                let held = volumes.list();
                let held = held.iter().filter(|volume| local::node_of(volume) == node.metadata.name.as_deref());
                held.for_each(|volume| to.add(Key::of(&volume.metadata)));
            }
        });
        binder
    }

    async fn claim(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let class = self.copies.class(class_of(claim));
        let volumes = self.copies.volumes.list();
        let consumer = self.consumer(claim);
        let (class_ref, consumer) = (class.as_deref(), consumer.as_deref());
        let plan = claim_plan::plan(&claim_plan::View { claim, volumes: &volumes, class: class_ref, consumer });
        let source = match self.source(claim, class_ref).await? {
            Ok(source) => source,
            Err(told) => {
                self.tell(reference(claim), told.as_ref());
                return Ok(());
            }
        };
        let tell = phase_of(claim) != "Lost" || !matches!(plan.act, claim_plan::Act::Lose);
        if tell {
            self.tell(reference(claim), plan.told.as_ref());
        }
        match plan.act {
            claim_plan::Act::Nothing => Ok(()),
            claim_plan::Act::Bind(volume) => {
                if !is_bound(claim) && annotation(&volume.metadata, FILLED_FROM).is_some() {
                    self.tell(reference(claim), provisioned(&volume).as_ref());
                }
                self.bind(claim, &volume).await?;
                self.grow(claim, &volume, class_ref).await
            }
            claim_plan::Act::Provision { node } => match class_ref {
                Some(class) => self.provision(claim, class, &node, source).await,
                None => Ok(()),
            },
            claim_plan::Act::HandOver { provisioner } => {
                let patch =
                    json!({"metadata": {"annotations": {PROVISIONER: provisioner, PROVISIONER_BETA: provisioner}}});
                let named = claim.metadata.annotations.as_ref().and_then(|all| all.get(PROVISIONER));
                if named == Some(&provisioner) { Ok(()) } else { self.patch(claim, patch, None).await.map(drop) }
            }
            claim_plan::Act::Lose if phase_of(claim) == "Lost" => Ok(()),
            claim_plan::Act::Lose => {
                let lost = json!({"status": {"phase": "Lost", "accessModes": null, "capacity": null}});
                self.patch(claim, lost, Some("status")).await.map(drop)
            }
        }
    }

    /// What a claim's volume, yet to be made, is to be filled from. The scheduler is told where that is. `Err` within: there
    /// is nothing more to be done for the claim now.
    async fn source(
        &self,
        claim: &PersistentVolumeClaim,
        class: Option<&StorageClass>,
    ) -> Result<Result<Option<Found>, Option<Told>>, Error> {
        let ours = class.is_some_and(|class| class.provisioner == LOCAL && local::impossible(claim, class).is_none());
        let unmade = volume_name(claim).is_empty() && claim.metadata.deletion_timestamp.is_none();
        if !ours || !unmade || self.copies.volume(&local::name(claim)).is_some() {
            return Ok(Ok(None));
        }
        match source::find(&self.client, &self.copies, claim).await? {
            Ok(Some(found)) if annotation(&claim.metadata, SOURCE_NODE) != Some(found.node.as_str()) => {
                // The new version wakes us.
                let patch = json!({"metadata": {"annotations": {SOURCE_NODE: found.node}}});
                self.patch(claim, patch, None).await.map(|_| Err(None))
            }
            Ok(found) => Ok(Ok(found)),
            Err(why) => Ok(Err(refused(claim, &why))),
        }
    }

    /// A pod that waits for the claim and for its own node.
    fn consumer(&self, claim: &PersistentVolumeClaim) -> Option<String> {
        if selected_node(claim).is_some() || is_bound(claim) {
            return None;
        }
        let name = claim.metadata.name.as_deref()?;
        let pods = self.pods.by_index("namespace", claim.metadata.namespace.as_deref().unwrap_or_default());
        let uses = |pod: &Pod| {
            let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
            let mut named = volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref());
            named.any(|source| source.claim_name == name)
        };
        let pod = pods.into_iter().find(|pod| is_active(pod) && node_name(pod).is_none() && uses(pod))?;
        pod.metadata.name.clone()
    }

    /// The volume's side is written first, and whole, so that whatever is interrupted is found unfinished.
    async fn bind(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), Error> {
        let held = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let mut bound = volume.clone();
        if held.is_none_or(|held| held.uid != claim.metadata.uid) {
            let mut patch = json!({"spec": {"claimRef": reference(claim)}});
            if held.is_none() && volume_name(claim).is_empty() {
                patch["metadata"] = json!({"annotations": {BOUND_BY_CONTROLLER: "yes"}});
            }
            bound = self.patch_volume(volume, patch, None).await?;
        }
        if phase(&bound) != "Bound" {
            bound = self.patch_volume(&bound, json!({"status": {"phase": "Bound"}}), Some("status")).await?;
        }
        let mut seen = claim.clone();
        if !is_bound(claim) {
            let mut annotations = json!({BIND_COMPLETED: "yes"});
            if volume_name(claim).is_empty() {
                annotations[BOUND_BY_CONTROLLER] = json!("yes");
            }
            let patch = json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": bound.metadata.name}});
            seen = self.patch(claim, patch, None).await?;
        }
        if phase_of(&seen) == "Bound" {
            return Ok(());
        }
        let spec = bound.spec.as_ref();
        let status = json!({"status": {
            "phase": "Bound",
            "accessModes": spec.and_then(|spec| spec.access_modes.clone()),
            "capacity": spec.and_then(|spec| spec.capacity.clone()),
        }});
        self.patch(&seen, status, Some("status")).await.map(drop)
    }

    /// Bytes promised on a node, but for what is promised to the claim itself before it has a volume.
    fn promised(&self, node: &str, but: &PersistentVolumeClaim) -> i64 {
        let (volumes, claims) = (self.copies.volumes.list(), self.copies.claims.list());
        let other = |claim: &PersistentVolumeClaim| claim.metadata.uid != but.metadata.uid;
        let to_be_made = claims.iter().filter_map(|claim| {
            let local = self.copies.class(class_of(claim)).is_some_and(|class| class.provisioner == LOCAL);
            let unmade = volume_name(claim).is_empty() && self.copies.volume(&local::name(claim)).is_none();
            let node = selected_node(claim).filter(|_| local && unmade && other(claim))?;
            Some((&**claim, node))
        });
        let sums = local::promised(volumes.iter().map(|volume| &**volume), to_be_made);
        sums.get(node).copied().unwrap_or(0)
    }

    async fn provision(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        node: &str,
        source: Option<Found>,
    ) -> Result<(), Error> {
        let found = self.copies.node(node);
        let elsewhere = source.as_ref().filter(|source| source.node != node);
        let elsewhere =
            elsewhere.map(|source| format!("its data source lies on node \"{}\", not on \"{node}\"", source.node));
        let refusal = elsewhere.or_else(|| provision::refusal(claim, found.as_deref(), self.promised(node, claim)));
        let (None, Some(found)) = (&refusal, found) else {
            let why = refusal.unwrap_or_default();
            self.tell(reference(claim), refused(claim, &why).as_ref());
            // The scheduler looks for another node.
            let patch = json!({"metadata": {"annotations": {SELECTED_NODE: null}}});
            return self.patch(claim, patch, None).await.map(drop);
        };
        let volume = provision::volume(claim, class, &found, source.as_ref().map(|found| &found.source))?;
        let volume = match self.client.create(&volume).await {
            // The copy is behind; the claim is looked at again when it shows.
            Err(error) if error.is_already_exists() => return Ok(()),
            made => made?,
        };
        if Finalizer(FILLING).is_on(&volume.metadata) {
            // Its node wakes us when all is copied.
            return Ok(());
        }
        self.tell(reference(claim), provisioned(&volume).as_ref());
        self.bind(claim, &volume).await
    }

    async fn grow(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
        class: Option<&StorageClass>,
    ) -> Result<(), Error> {
        if !is_bound(claim) || phase_of(claim) != "Bound" {
            return Ok(());
        }
        let node = local::node_of(volume).and_then(|node| self.copies.node(node));
        let room = |node: &Node| {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            local::room(node).saturating_sub(self.promised(name, claim))
        };
        let left = if expand::asks(claim) { node.as_deref().map_or(0, room) } else { 0 };
        match expand::plan(claim, volume, class, left) {
            Growth::None => Ok(()),
            Growth::NotOurs(told) | Growth::Refused(told) => {
                self.tell(reference(claim), told.as_ref());
                Ok(())
            }
            Growth::Begin => {
                let now = Timestamp::now().to_string();
                let message = format!("resizing volume {}", volume.metadata.name.as_deref().unwrap_or_default());
                self.tell(reference(claim), Told::normal("Resizing", message).as_ref());
                self.patch(claim, expand::begun(claim, &now), Some("status")).await.map(drop)
            }
            Growth::Raise => {
                let asked = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage"));
                self.patch_volume(volume, json!({"spec": {"capacity": {"storage": asked}}}), None).await.map(drop)
            }
            Growth::Show => {
                self.patch(claim, expand::shown(claim, volume), Some("status")).await?;
                self.tell(reference(claim), Told::normal("VolumeResizeSuccessful", "Resize volume succeeded").as_ref());
                Ok(())
            }
        }
    }

    async fn volume(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let held = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let key = held.map(|held| Key::new(held.namespace.as_deref(), held.name.as_deref().unwrap_or_default()));
        let claim = key.as_ref().and_then(|key| self.copies.claims.get(key));
        self.forget_node(volume).await?;
        let plan = volume_plan::plan(volume, claim.as_deref());
        self.tell(reference(volume), plan.told.as_ref());
        match (plan.act, key) {
            (volume_plan::Act::Nothing, _) => Ok(()),
            (volume_plan::Act::Phase(phase, why), _) => {
                let (reason, message) = why.unzip();
                let status = json!({"status": {"phase": phase, "reason": reason, "message": message}});
                self.patch_volume(volume, status, Some("status")).await.map(drop)
            }
            (volume_plan::Act::Release, Some(key)) => self.release(volume, &key).await,
            (volume_plan::Act::WakeClaim, Some(key)) => {
                self.queue.add(key);
                Ok(())
            }
            (volume_plan::Act::Unbind, _) => {
                let patch = match volume_plan::was_chosen(volume) {
                    true => json!({
                        "spec": {"claimRef": null}, "metadata": {"annotations": {BOUND_BY_CONTROLLER: null}},
                    }),
                    // Somebody holds it for a claim of that name: it waits for the next one.
                    false => json!({"spec": {"claimRef": {"uid": null, "resourceVersion": null}}}),
                };
                let free = self.patch_volume(volume, patch, None).await?;
                let available = json!({"status": {"phase": "Available"}});
                self.patch_volume(&free, available, Some("status")).await.map(drop)
            }
            (volume_plan::Act::Delete, _) => delete(&self.client, volume, DeleteParams::default()).await,
            (volume_plan::Act::Release | volume_plan::Act::WakeClaim, None) => Ok(()),
        }
    }

    /// A volume is given up only if the server, which is not behind, has no such claim either.
    async fn release(&self, volume: &PersistentVolume, key: &Key) -> Result<(), Error> {
        let held = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        match self.client.get::<PersistentVolumeClaim>(key.namespace(), &key.name).await {
            Ok(claim) if held.is_some_and(|held| held.uid == claim.metadata.uid) => {
                if volume_name(&claim) == volume.metadata.name.as_deref().unwrap_or_default() {
                    return Ok(());
                }
            }
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        self.patch_volume(volume, json!({"status": {"phase": "Released"}}), Some("status")).await.map(drop)
    }

    /// With a node that is gone, its directories are gone.
    async fn forget_node(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let finalizer = Finalizer(FINALIZER);
        let going = volume.metadata.deletion_timestamp.is_some() && finalizer.is_on(&volume.metadata);
        let Some(node) = local::node_of(volume).filter(|_| going) else { return Ok(()) };
        if self.copies.node(node).is_some() {
            return Ok(());
        }
        match self.client.get::<Node>(None, node).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => {
                let filling = Finalizer(FILLING);
                if filling.is_on(&volume.metadata) {
                    // The new version wakes us.
                    return filling.take(&self.client, volume).await;
                }
                finalizer.take(&self.client, volume).await
            }
            Err(error) => Err(error),
        }
    }

    fn tell(&self, about: k8s_openapi::api::core::v1::ObjectReference, told: Option<&Told>) {
        if let Some(told) = told {
            self.recorder.event(about, told.kind, told.reason, &told.message);
        }
    }

    /// Only as the claim was seen.
    async fn patch(
        &self,
        claim: &PersistentVolumeClaim,
        mut patch: Value,
        part: Option<&str>,
    ) -> Result<PersistentVolumeClaim, Error> {
        patch["metadata"]["resourceVersion"] = json!(claim.metadata.resource_version);
        let (namespace, name) = (claim.metadata.namespace.as_deref(), claim.metadata.name.as_deref());
        self.client.patch(namespace, name.unwrap_or_default(), Patch::Merge(patch), part).await
    }

    /// Only as the volume was seen.
    async fn patch_volume(
        &self,
        volume: &PersistentVolume,
        mut patch: Value,
        part: Option<&str>,
    ) -> Result<PersistentVolume, Error> {
        patch["metadata"]["resourceVersion"] = json!(volume.metadata.resource_version);
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        self.client.patch(None, name, Patch::Merge(patch), part).await
    }
}

fn phase_of(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

fn refused(claim: &PersistentVolumeClaim, why: &str) -> Option<Told> {
    let message = format!("failed to provision volume with StorageClass \"{}\": {why}", class_of(claim));
    Told::warning("ProvisioningFailed", message)
}

fn provisioned(volume: &PersistentVolume) -> Option<Told> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    Told::normal("ProvisioningSucceeded", format!("Successfully provisioned volume {name}"))
}

/// Wakes claims without a volume.
fn unbound(claims: &Informer<PersistentVolumeClaim>, queue: &Queue, wanted: impl Fn(&PersistentVolumeClaim) -> bool) {
    let all = claims.list();
    let waiting = all.iter().filter(|claim| volume_name(claim).is_empty() && wanted(claim));
    waiting.for_each(|claim| queue.add(Key::of(&claim.metadata)));
}

#[async_trait::async_trait]
impl Reconcile for Binder {
    fn name(&self) -> &'static str {
        "persistentvolume-binder"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let done = if key.namespace().is_some() {
            match self.copies.claims.get(key) {
                Some(claim) => self.claim(&claim).await,
                None => Ok(()),
            }
        } else {
            match self.copies.volumes.get(key) {
                Some(volume) => self.volume(&volume).await,
                None => Ok(()),
            }
        };
        match done {
            // Gone meanwhile.
            Err(error) if error.is_not_found() => Ok(Outcome::Done),
            other => other.map(|()| Outcome::Done),
        }
    }
}
