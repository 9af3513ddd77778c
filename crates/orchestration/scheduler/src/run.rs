//! The thin loop: informers feed the engine, the queue asks it, and its answers become bindings, conditions and events.
//!
//! Nothing polls: a pod is decided when it appears and again when something changed that may help it.

use std::sync::Arc;
use std::time::Duration;

use dhow_client::{
    Change, Client, Error, EventRecorder, EventType, Informer, Key, ListParams, Patch, Queue, Reconcile, reference,
    run_controller,
};
use k8s_openapi::api::core::v1::{
    Binding, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod, PodCondition,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::volumes::Step;
use crate::volumes::matching::{BOUND_BY_CONTROLLER, SELECTED_NODE};
use crate::{Engine, Outcome, PodKey, Unschedulable};

#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// Pods whose `schedulerName` is another are left alone.
    pub name: String,
    /// Bindings under way at a time; decisions are made one after another.
    pub workers: usize,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self { name: "default-scheduler".to_owned(), workers: 16 }
    }
}

/// Schedules until `shutdown`. Exactly one may run in a cluster at a time.
pub async fn run(client: Client, config: SchedulerConfig, shutdown: CancellationToken) {
    let engine = Arc::new(Engine::new(&config.name));
    let queue = Queue::new("scheduler");
    let nodes = Informer::<Node>::start(client.clone(), ListParams::default(), None, shutdown.clone());
    let pods = Informer::<Pod>::start(client.clone(), ListParams::default(), None, shutdown.clone());
    let storage = StorageInformers::start(&client, &shutdown);
    let all = async {
        nodes.synced().await;
        pods.synced().await;
        storage.synced().await;
    };
    tokio::select! { () = all => {}, () = shutdown.cancelled() => return }
    // All that is known goes in before the first decision.
    follow_nodes(&nodes, &engine, &queue);
    storage.follow(&engine, &queue);
    follow_pods(&pods, &engine, &queue);
    let recorder = EventRecorder::new(client.clone(), &config.name);
    let scheduler = Scheduler { client, pods, storage, engine, queue: queue.clone(), recorder };
    run_controller(Arc::new(scheduler), queue, config.workers, shutdown).await;
}

/// What pods' volumes are decided from.
struct StorageInformers {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
}

impl StorageInformers {
    fn start(client: &Client, shutdown: &CancellationToken) -> Self {
        Self {
            claims: Informer::start(client.clone(), ListParams::default(), None, shutdown.clone()),
            volumes: Informer::start(client.clone(), ListParams::default(), None, shutdown.clone()),
            classes: Informer::start(client.clone(), ListParams::default(), None, shutdown.clone()),
        }
    }

    async fn synced(&self) {
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
    }

    /// A volume and the claim that it is bound to arrive in any order; each wakes those who wait for it.
    fn follow(&self, engine: &Arc<Engine>, queue: &Queue) {
        fn now<K>(change: &Change<K>) -> Option<Arc<K>> {
            (!matches!(change, Change::Deleted(_))).then(|| Arc::clone(change.object()))
        }
        fn name(metadata: &ObjectMeta) -> &str {
            metadata.name.as_deref().unwrap_or_default()
        }
        let (to, woken) = (Arc::clone(engine), queue.clone());
        self.classes.on_change(move |change| {
            wake(&woken, to.class_changed(name(&change.object().metadata), now(change)));
        });
        let (to, woken) = (Arc::clone(engine), queue.clone());
        self.volumes.on_change(move |change| {
            wake(&woken, to.volume_changed(name(&change.object().metadata), now(change)));
        });
        let (to, woken) = (Arc::clone(engine), queue.clone());
        self.claims.on_change(move |change| {
            wake(&woken, to.claim_changed(pod_key(&change.object().metadata), now(change)));
        });
    }
}

fn follow_nodes(nodes: &Informer<Node>, engine: &Arc<Engine>, queue: &Queue) {
    let (engine, queue) = (Arc::clone(engine), queue.clone());
    nodes.on_change(move |change| {
        let awake = match change {
            Change::Added(node) => engine.node_changed(None, Arc::clone(node)),
            Change::Updated { old, new } => engine.node_changed(Some(old), Arc::clone(new)),
            Change::Deleted(node) => {
                engine.node_removed(node.metadata.name.as_deref().unwrap_or_default());
                Vec::new()
            }
        };
        wake(&queue, awake);
    });
}

fn follow_pods(pods: &Informer<Pod>, engine: &Arc<Engine>, queue: &Queue) {
    let (engine, queue) = (Arc::clone(engine), queue.clone());
    pods.on_change(move |change| {
        let key = pod_key(&change.object().metadata);
        let awake = match change {
            Change::Added(pod) => engine.pod_changed(key, pod),
            Change::Updated { old, new } => {
                // A pod made anew under the same name is another pod.
                if old.metadata.uid != new.metadata.uid {
                    wake(&queue, engine.pod_removed(&key));
                }
                if old.spec != new.spec || old.metadata.labels != new.metadata.labels {
                    engine.pod_spec_changed(&key);
                }
                engine.pod_changed(key, new)
            }
            Change::Deleted(_) => engine.pod_removed(&key),
        };
        wake(&queue, awake);
    });
}

fn wake(queue: &Queue, keys: Vec<PodKey>) {
    for (namespace, name) in keys {
        queue.add(Key::new(Some(&namespace), &name));
    }
}

fn pod_key(metadata: &ObjectMeta) -> PodKey {
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

struct Scheduler {
    client: Client,
    pods: Informer<Pod>,
    storage: StorageInformers,
    engine: Arc<Engine>,
    queue: Queue,
    recorder: EventRecorder,
}

#[async_trait::async_trait]
impl Reconcile for Scheduler {
    fn name(&self) -> &'static str {
        "scheduler"
    }

    async fn reconcile(&self, key: &Key) -> Result<dhow_client::Outcome, Error> {
        let Some(pod) = self.pods.get(key) else { return Ok(dhow_client::Outcome::Done) };
        let id = pod_key(&pod.metadata);
        match self.engine.decide(&id, &pod) {
            Outcome::Ignore => Ok(dhow_client::Outcome::Done),
            Outcome::Bind { node } => self.bind(&id, &pod, &node).await,
            Outcome::Provide { node, steps } => self.provide(&id, &node, &steps).await,
            Outcome::Wait(why) => {
                // The pod waits in the engine already; a retry of this write alone keeps no one waiting.
                self.tell(&pod, &why).await
            }
        }
    }
}

impl Scheduler {
    /// Writes what was decided for a pod's claims; the pod goes on when they are bound.
    async fn provide(&self, id: &PodKey, node: &str, steps: &[Step]) -> Result<dhow_client::Outcome, Error> {
        for step in steps {
            let written = match step {
                Step::Select { claim, node } => self.select(claim, node).await,
                Step::Hold { claim, volume } => self.hold(claim, volume).await,
            };
            if let Err(error) = written {
                wake(&self.queue, self.engine.bind_failed(id));
                if error.is_not_found() || error.is_conflict() {
                    tracing::debug!(pod = %format!("{}/{}", id.0, id.1), node, %error, "volumes changed meanwhile");
                    return Ok(dhow_client::Outcome::RequeueAfter(Duration::from_secs(1)));
                }
                return Err(error);
            }
        }
        Ok(dhow_client::Outcome::Done)
    }

    async fn select(&self, claim: &PodKey, node: &str) -> Result<(), Error> {
        let (namespace, name) = (Some(claim.0.as_str()), claim.1.as_str());
        let uid = self.storage.claims.get(&Key::new(namespace, name)).and_then(|claim| claim.metadata.uid.clone());
        let patch = json!({"metadata": {"uid": uid, "annotations": {SELECTED_NODE: node}}});
        self.client.patch::<PersistentVolumeClaim>(namespace, name, Patch::Merge(patch), None).await.map(drop)
    }

    /// The volume is written only as it was seen: another claim may take it at the same moment.
    async fn hold(&self, claim: &PodKey, volume: &str) -> Result<(), Error> {
        let key = Key::new(Some(&claim.0), &claim.1);
        let (Some(claim), Some(seen)) =
            (self.storage.claims.get(&key), self.storage.volumes.get(&Key::new(None, volume)))
        else {
            return Err(Error::Reconcile(format!("claim {key} or volume {volume} is gone")));
        };
        let free = seen.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none());
        let mut patch = json!({
            "metadata": {"resourceVersion": seen.metadata.resource_version},
            "spec": {"claimRef": reference(&*claim)},
        });
        if free {
            patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
        }
        self.client.patch::<PersistentVolume>(None, volume, Patch::Merge(patch), None).await.map(drop)
    }

    async fn bind(&self, id: &PodKey, pod: &Pod, node: &str) -> Result<dhow_client::Outcome, Error> {
        let binding = Binding {
            metadata: ObjectMeta {
                namespace: pod.metadata.namespace.clone(),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let (namespace, name) = (Some(id.0.as_str()), id.1.as_str());
        let bound = self.client.create_subresource::<Pod, _, serde_json::Value>(namespace, name, "binding", &binding);
        if let Err(error) = bound.await {
            wake(&self.queue, self.engine.bind_failed(id));
            // The pod is gone or someone placed it; the informer tells which.
            if error.is_not_found() || error.is_conflict() {
                tracing::debug!(pod = %format!("{}/{}", id.0, id.1), node, %error, "binding came too late");
                return Ok(dhow_client::Outcome::RequeueAfter(Duration::from_secs(1)));
            }
            return Err(error);
        }
        let message = format!("Successfully assigned {}/{} to {node}", id.0, id.1);
        self.recorder.event(reference(pod), EventType::Normal, "Scheduled", &message);
        Ok(dhow_client::Outcome::Done)
    }

    /// Sets the condition `PodScheduled` to False and records an event, unless the pod says so already.
    async fn tell(&self, pod: &Pod, why: &Unschedulable) -> Result<dhow_client::Outcome, Error> {
        let message = why.to_string();
        let current = pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == "PodScheduled");
        if let Some(condition) = current
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
            && condition.message.as_deref() == Some(message.as_str())
        {
            return Ok(dhow_client::Outcome::Done);
        }
        let since = current.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
        let condition = PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "False".to_owned(),
            reason: Some("Unschedulable".to_owned()),
            message: Some(message.clone()),
            last_transition_time: since.or_else(|| Some(Time(Timestamp::now()))),
            ..PodCondition::default()
        };
        self.recorder.event(reference(pod), EventType::Warning, "FailedScheduling", &message);
        let patch =
            Patch::Strategic(json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}}));
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match self.client.patch::<Pod>(pod.metadata.namespace.as_deref(), name, patch, Some("status")).await {
            // Gone, or another pod of this name.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(dhow_client::Outcome::Done),
            other => other.map(|_| dhow_client::Outcome::Done),
        }
    }
}
