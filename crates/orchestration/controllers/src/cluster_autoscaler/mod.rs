//! The cluster autoscaler: adds nodes for pods that find no place, and removes nodes that nobody needs.
//!
//! A round takes a view of the cluster and of the provider's groups, decides what to do from nothing else, and does it.
//! Rounds follow changes of pods and nodes, at most one in a scan interval. A provider tells no news: while machines are
//! under way it is asked each scan interval, else once a minute.

mod config;
mod down;
mod drain;
mod external;
pub mod externalgrpc;
mod leave;
mod machines;
mod provider;
mod status;
#[cfg(test)]
mod tests;
mod up;
mod view;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{
    Change, Client, Error, EventRecorder, EventType, Informer, Key, Outcome, Queue, Reconcile, reference,
};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::resource::v1alpha3::DeviceTaintRule;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use config::{ClusterAutoscalerConfig, ClusterAutoscalerSettings, ExpanderName, ProviderConfig};
use down::Removal;
use external::External;
use leave::Leaving;
use machines::{Repair, Watched};
use provider::{InstanceState, NodeProvider};
use status::{Found, Status};
use view::{Group, TO_BE_DELETED, View, has_taint, is_ready, name, provider_id, since};

use crate::common::{delete, node_name};

/// How long changes are collected before a round.
const SETTLE: Duration = Duration::from_millis(500);
/// How often the provider is asked when nothing is under way.
const IDLE: Duration = Duration::from_secs(60);

/// The local copies that a view is made of.
pub struct Copies {
    pub nodes: Informer<Node>,
    pub pods: Informer<Pod>,
    pub daemon_sets: Informer<DaemonSet>,
    pub budgets: Informer<PodDisruptionBudget>,
    pub namespaces: Informer<Namespace>,
    pub claims: Informer<PersistentVolumeClaim>,
    pub volumes: Informer<PersistentVolume>,
    pub classes: Informer<StorageClass>,
    pub device_claims: Informer<ResourceClaim>,
    pub device_classes: Informer<DeviceClass>,
    pub slices: Informer<ResourceSlice>,
    pub taint_rules: Informer<DeviceTaintRule>,
}

/// What is remembered from round to round.
#[derive(Default)]
struct Memory {
    watched: Watched,
    unneeded: HashMap<String, Timestamp>,
    /// Nodes on their way out.
    going: HashSet<String>,
    last_up: Option<Timestamp>,
    last_down: Option<Timestamp>,
    last_failure: Option<Timestamp>,
    /// What pods were told, by uid.
    told: HashMap<String, String>,
    /// Groups of nodes without a provider id, by name.
    asked: HashMap<String, Option<String>>,
    status: Status,
    began: bool,
}

pub struct ClusterAutoscaler {
    copies: Copies,
    leaving: Leaving,
    queue: Queue,
    memory: Arc<Mutex<Memory>>,
    /// When the last round was.
    last: Arc<Mutex<Option<Instant>>>,
    shutdown: CancellationToken,
}

fn the_key() -> Key {
    Key::new(None, "cluster")
}

impl ClusterAutoscaler {
    pub fn new(
        client: Client,
        copies: Copies,
        settings: &ClusterAutoscalerSettings,
        queue: &Queue,
        shutdown: &CancellationToken,
    ) -> Result<Arc<Self>, Error> {
        let provider: Arc<dyn NodeProvider> = Arc::new(External::new(settings)?);
        let last = Arc::<Mutex<Option<Instant>>>::default();
        let (to, of, scan) = (queue.clone(), Arc::clone(&last), settings.scan);
        let wake = Arc::new(move || {
            let gone = of.lock().map_or(scan, |last| last.elapsed());
            to.add_after(the_key(), scan.saturating_sub(gone).max(SETTLE.min(scan)));
        });
        let pods_changed = Arc::new(Notify::new());
        let (changed, woken) = (Arc::clone(&pods_changed), Arc::clone(&wake));
        copies.pods.on_change(move |change| {
            changed.notify_waiters();
            let matters = match change {
                Change::Updated { old, new } => {
                    let conditions = |pod: &Pod| pod.status.as_ref().and_then(|status| status.conditions.clone());
                    let placed = node_name(old) != node_name(new);
                    placed || (node_name(new).is_none() && conditions(old) != conditions(new))
                }
                Change::Added(_) | Change::Deleted(_) => true,
            };
            if matters {
                woken();
            }
        });
        let woken = Arc::clone(&wake);
        copies.nodes.on_change(move |change| {
            let matters = match change {
                Change::Updated { old, new } => {
                    old.spec != new.spec
                        || old.metadata.labels != new.metadata.labels
                        || old.metadata.annotations != new.metadata.annotations
                        || is_ready(old) != is_ready(new)
                }
                Change::Added(_) | Change::Deleted(_) => true,
            };
            if matters {
                woken();
            }
        });
        copies.budgets.on_change(move |_| wake());
        let leaving = Leaving {
            recorder: EventRecorder::new(client.clone(), "cluster-autoscaler"),
            client,
            provider,
            settings: Arc::new(settings.clone()),
            pods: copies.pods.clone(),
            pods_changed,
        };
        queue.add(the_key());
        let (queue, shutdown) = (queue.clone(), shutdown.clone());
        Ok(Arc::new(Self { copies, leaving, queue, memory: Arc::default(), last, shutdown }))
    }

    /// Everything as it is now.
    async fn view(&self) -> Result<View, Error> {
        let (provider, settings) = (&self.leaving.provider, &self.leaving.settings);
        provider.refresh().await?;
        let mut groups = Vec::new();
        for bounds in provider.groups().await? {
            let id = bounds.id.as_str();
            groups.push(Group {
                target: provider.target(id).await?,
                instances: provider.instances(id).await?,
                template: provider.template(id).await?,
                options: provider.options(id, settings.options).await?.unwrap_or(settings.options),
                min: bounds.min,
                max: bounds.max,
                id: bounds.id,
            });
        }
        let nodes = self.copies.nodes.list();
        let group_of = self.membership(&nodes, &groups).await?;
        Ok(View {
            now: Timestamp::now(),
            nodes,
            pods: self.copies.pods.list(),
            daemon_sets: self.copies.daemon_sets.list(),
            budgets: self.copies.budgets.list(),
            namespaces: self.copies.namespaces.list(),
            claims: self.copies.claims.list(),
            volumes: self.copies.volumes.list(),
            classes: self.copies.classes.list(),
            device_claims: self.copies.device_claims.list(),
            device_classes: self.copies.device_classes.list(),
            slices: self.copies.slices.list(),
            taint_rules: self.copies.taint_rules.list(),
            groups,
            group_of,
        })
    }

    /// Which group each node belongs to. A node is the machine that its provider id names; of one without, the provider
    /// is asked once.
    async fn membership(&self, nodes: &[Arc<Node>], groups: &[Group]) -> Result<HashMap<String, usize>, Error> {
        let machines: HashMap<&str, usize> = groups
            .iter()
            .enumerate()
            .flat_map(|(index, group)| group.instances.iter().map(move |one| (one.id.as_str(), index)))
            .collect();
        let mut found = HashMap::new();
        for node in nodes {
            if let Some(group) = machines.get(provider_id(node)) {
                found.insert(name(node).to_owned(), *group);
                continue;
            }
            if !provider_id(node).is_empty() {
                continue;
            }
            let known = self.memory.lock().asked.get(name(node)).cloned();
            let id = match known {
                Some(id) => id,
                None => {
                    let id = self.leaving.provider.group_of(node).await?;
                    self.memory.lock().asked.insert(name(node).to_owned(), id.clone());
                    id
                }
            };
            if let Some(group) = id.and_then(|id| groups.iter().position(|group| group.id == id)) {
                found.insert(name(node).to_owned(), group);
            }
        }
        let present: HashSet<&str> = nodes.iter().map(|node| name(node)).collect();
        self.memory.lock().asked.retain(|node, _| present.contains(node.as_str()));
        Ok(found)
    }

    /// Nodes that an earlier autoscaler began to remove and did not.
    async fn begin(&self, view: &View) -> Result<(), Error> {
        if self.memory.lock().began {
            return Ok(());
        }
        for node in view.nodes.iter().filter(|node| has_taint(node, TO_BE_DELETED)) {
            let Some(group) = view.group_of.get(name(node)) else { continue };
            if view.instance(*group, node).is_none_or(|one| one.state != InstanceState::Deleting) {
                leave::unmark(&self.leaving.client, name(node)).await?;
            }
        }
        self.memory.lock().began = true;
        Ok(())
    }

    async fn repair(&self, view: &View, repair: &Repair) -> Result<(), Error> {
        let leaving = &self.leaving;
        let about = self.memory.lock().status.about();
        match repair {
            Repair::Remove { group, instance, why } => {
                let mut machine = Node {
                    metadata: ObjectMeta { name: Some(instance.clone()), ..ObjectMeta::default() },
                    ..Node::default()
                };
                machine.spec.get_or_insert_default().provider_id = Some(instance.clone());
                leaving.provider.delete(&view.groups[*group].id, &[machine]).await?;
                let text = format!("Removed unregistered node {instance}: {why}");
                leaving.recorder.event(about, EventType::Normal, "DeleteUnregistered", &text);
            }
            Repair::Decrease { group, by } => {
                let group = &view.groups[*group];
                leaving.provider.decrease(&group.id, *by).await?;
                let text = format!(
                    "Nodes added to group {} failed to register within {}s",
                    group.id,
                    group.options.provision.as_secs()
                );
                leaving.recorder.event(about, EventType::Warning, "ScaleUpTimedOut", &text);
            }
            Repair::Forget { node } => {
                if let Some(node) = view.nodes.iter().find(|one| name(one) == node) {
                    delete(&leaving.client, &**node, dhow_client::DeleteParams::default()).await?;
                }
            }
        }
        Ok(())
    }

    /// Makes groups larger. Returns whether there was anything to do.
    async fn scale_up(&self, view: &View, trial: &mut dhow_scheduler::Trial) -> Result<bool, Error> {
        let leaving = &self.leaving;
        let closed: HashMap<usize, &'static str> = {
            let memory = self.memory.lock();
            let in_backoff = |index: &usize| memory.watched.backoff(&view.groups[*index].id, view.now).is_some();
            (0..view.groups.len()).filter(in_backoff).map(|index| (index, "in backoff after failed scale-up")).collect()
        };
        let up = up::plan(view, &leaving.settings, trial, &closed);
        let mut failed = HashSet::new();
        for increase in &up.increases {
            let group = &view.groups[increase.group];
            let about = self.memory.lock().status.about();
            let done = leaving.provider.increase(&group.id, increase.to - increase.from).await;
            let mut memory = self.memory.lock();
            let (kind, reason, text) = match done {
                Ok(()) => {
                    memory.last_up = Some(view.now);
                    let text = format!(
                        "Scale-up: group {} size set to {} instead of {} (max: {})",
                        group.id, increase.to, increase.from, group.max
                    );
                    (EventType::Normal, "ScaledUpGroup", text)
                }
                Err(error) => {
                    memory.watched.failed(&group.id, view.now);
                    memory.last_failure = Some(view.now);
                    failed.insert(increase.group);
                    tracing::warn!(group = group.id, %error, "cannot make a node group larger");
                    (
                        EventType::Warning,
                        "FailedToScaleUpGroup",
                        format!("Scale-up failed for group {}: {error}", group.id),
                    )
                }
            };
            leaving.recorder.event(about, kind, reason, &text);
        }
        for (pod, group) in up.triggered.iter().filter(|(_, group)| !failed.contains(group)) {
            let Some(increase) = up.increases.iter().find(|one| one.group == *group) else { continue };
            let of = &view.groups[*group];
            let text =
                format!("pod triggered scale-up: [{{{} {}->{} (max: {})}}]", of.id, increase.from, increase.to, of.max);
            self.tell(pod, EventType::Normal, "TriggeredScaleUp", text);
        }
        for (pod, why) in &up.helpless {
            self.tell(pod, EventType::Normal, "NotTriggerScaleUp", format!("pod didn't trigger scale-up: {why}"));
        }
        let waiting: HashSet<&String> = view.pods.iter().filter_map(|pod| pod.metadata.uid.as_ref()).collect();
        self.memory.lock().told.retain(|uid, _| waiting.contains(uid));
        Ok(!up.increases.is_empty() || up.awaiting > 0)
    }

    /// Tells a pod something, unless it was told just that.
    fn tell(&self, pod: &Pod, kind: EventType, reason: &str, text: String) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let known = self.memory.lock().told.insert(uid, text.clone());
        if known.as_ref() != Some(&text) {
            self.leaving.recorder.event(reference(pod), kind, reason, &text);
        }
    }

    /// Whether nodes may go now, and when they may otherwise.
    fn may_shrink(&self, now: Timestamp) -> Option<Duration> {
        let (memory, settings) = (self.memory.lock(), &self.leaving.settings);
        let rules = [
            (memory.last_up, settings.after_add),
            (memory.last_down, settings.after_delete),
            (memory.last_failure, settings.after_failure),
        ];
        let left = rules.into_iter().filter_map(|(last, delay)| Some(delay.saturating_sub(since(now, last?))));
        left.filter(|left| !left.is_zero()).max()
    }

    /// Finds nodes that nobody needs; those whose time has come begin to go. Returns when to look again.
    fn scale_down(&self, view: &View, busy: bool) -> Option<Duration> {
        let settings = &self.leaving.settings;
        if !settings.scale_down {
            return None;
        }
        let (unneeded, going) = {
            let memory = self.memory.lock();
            (memory.unneeded.clone(), memory.going.clone())
        };
        let mut trial = view.trial();
        // Who waits may need what seems to be free.
        for pod in up::unschedulable(view, settings) {
            trial.place(&pod);
        }
        let cooling = self.may_shrink(view.now);
        let plan = down::plan(view, settings, &mut trial, &unneeded, &going, cooling.is_none() && !busy);
        for (node, why) in &plan.kept {
            tracing::debug!(node, why, "stays");
        }
        let waits = !plan.unneeded.is_empty();
        {
            let mut memory = self.memory.lock();
            memory.unneeded = plan.unneeded;
            for removal in &plan.removals {
                memory.going.insert(name(&removal.node).to_owned());
                memory.unneeded.remove(name(&removal.node));
            }
        }
        for removal in plan.removals {
            self.let_go(view, removal);
        }
        let cooling = cooling.filter(|_| waits);
        match (plan.wait, cooling) {
            (Some(wait), Some(cooling)) => Some(wait.max(cooling)),
            (wait, cooling) => wait.or(cooling),
        }
    }

    /// Begins to remove a node, beside the rounds. What is not done when this server ends, the next one takes back.
    fn let_go(&self, view: &View, removal: Removal) {
        let (leaving, memory, queue) = (self.leaving.clone(), Arc::clone(&self.memory), self.queue.clone());
        let group = view.groups[removal.group].id.clone();
        let (scan, shutdown) = (leaving.settings.scan, self.shutdown.clone());
        tokio::spawn(async move {
            let node = name(&removal.node).to_owned();
            let done = tokio::select! {
                done = leaving.remove(&group, &removal) => done,
                () = shutdown.cancelled() => return,
            };
            let now = Timestamp::now();
            let about = {
                let mut memory = memory.lock();
                memory.going.remove(&node);
                match &done {
                    Ok(()) => memory.last_down = Some(now),
                    Err(_) => memory.last_failure = Some(now),
                }
                memory.status.about()
            };
            match done {
                Ok(()) if removal.pods.is_empty() => {
                    let text = format!("Scale-down: empty node {node} removed");
                    leaving.recorder.event(about, EventType::Normal, "ScaleDownEmpty", &text);
                }
                Ok(()) => {
                    let text = format!("Scale-down: node {node} removed with drain");
                    leaving.recorder.event(about, EventType::Normal, "ScaleDown", &text);
                }
                Err(error) => tracing::warn!(node, %error, "the node stays"),
            }
            queue.add_after(the_key(), scan);
        });
    }

    async fn tell_status(&self, view: &View, healthy: bool) -> Result<(), Error> {
        let document = {
            let mut memory = self.memory.lock();
            let Memory { status, watched, unneeded, .. } = &mut *memory;
            let mut unneeded: Vec<String> = unneeded.keys().cloned().collect();
            unneeded.sort();
            let document = status.compose(view, &Found { healthy, watched, unneeded: &unneeded });
            if !status.is_news(&document) {
                return Ok(());
            }
            document
        };
        let map = status::write(&self.leaving.client, &document, view.now).await?;
        self.memory.lock().status.wrote(document, &map);
        Ok(())
    }
}

#[async_trait::async_trait]
impl Reconcile for ClusterAutoscaler {
    fn name(&self) -> &'static str {
        "cluster-autoscaler"
    }

    async fn reconcile(&self, _key: &Key) -> Result<Outcome, Error> {
        *self.last.lock() = Some(Instant::now());
        let settings = Arc::clone(&self.leaving.settings);
        let view = self.view().await?;
        self.begin(&view).await?;
        let repairs = self.memory.lock().watched.look(&view);
        for repair in &repairs {
            self.repair(&view, repair).await?;
        }
        let healthy = view.is_healthy(settings.unready_count, settings.unready_percentage);
        let mut wait = None;
        if healthy && repairs.is_empty() {
            let busy = self.scale_up(&view, &mut view.trial()).await?;
            wait = self.scale_down(&view, busy);
        }
        self.tell_status(&view, healthy).await?;
        let under_way = {
            let memory = self.memory.lock();
            let recent = memory.last_up.is_some_and(|last| last == view.now);
            recent || memory.watched.waits() || !repairs.is_empty()
        } || (0..view.groups.len()).any(|group| view.upcoming(group) > 0)
            || view.nodes.iter().any(|node| has_taint(node, TO_BE_DELETED));
        let most = if under_way { settings.scan } else { IDLE };
        Ok(Outcome::RequeueAfter(wait.map_or(most, |wait| wait.min(most)).max(SETTLE.min(settings.scan))))
    }
}
