//! Marks nodes that went silent, and taints nodes as their conditions ask: at once so that no pod comes, and zone by zone,
//! one node after the other, so that pods leave.

mod taints;
mod zones;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{
    Change, Client, Error, EventRecorder, EventType, Informer, Key, Outcome, Patch, Queue, Reconcile, reference,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

pub use zones::is_ready;
use zones::{Limiter, pace, zone_of};

/// A node whose lease was not renewed for this long is unreachable.
pub const GRACE: Duration = Duration::from_secs(40);
/// When a node that may not lose its pods now is looked at again, if nothing happens before.
const HELD: Duration = Duration::from_secs(60);

pub struct NodeLifecycle {
    client: Client,
    recorder: EventRecorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    /// When this process last saw a node's lease move: clocks of nodes are not trusted.
    seen: Arc<Mutex<HashMap<Key, Instant>>>,
    turns: Mutex<Limiter>,
}

impl NodeLifecycle {
    pub fn new(
        client: Client,
        nodes: Informer<Node>,
        leases: &Informer<Lease>,
        pods: Informer<Pod>,
        queue: &Queue,
    ) -> Arc<Self> {
        let recorder = EventRecorder::new(client.clone(), "node-controller");
        let seen = Arc::<Mutex<HashMap<Key, Instant>>>::default();
        let (to, known, all) = (queue.clone(), seen.clone(), nodes.clone());
        nodes.on_change(move |change| {
            let key = Key::of(&change.object().metadata);
            match change {
                Change::Deleted(_) => drop(known.lock().remove(&key)),
                // Also one that was known before under this name: what its lease did last says nothing of it.
                Change::Added(_) => drop(known.lock().insert(key.clone(), Instant::now())),
                // Whoever writes its status lives: an agent that comes back does so before it renews its lease.
                Change::Updated { old, new } if heartbeat(old) != heartbeat(new) => {
                    known.lock().insert(key.clone(), Instant::now());
                }
                _ => drop(known.lock().entry(key.clone()).or_insert_with(Instant::now)),
            }
            // How fast pods leave a zone depends on all of its nodes.
            if matches!(change, Change::Updated { old, new } if is_ready(old) != is_ready(new)) {
                for node in all.list().iter().filter(|node| !is_ready(node)) {
                    to.add(Key::of(&node.metadata));
                }
            }
            to.add(key);
        });
        let (to, known) = (queue.clone(), seen.clone());
        leases.on_change(move |change| {
            if matches!(change, Change::Deleted(_)) {
                return;
            }
            let key = Key::new(None, change.object().metadata.name.as_deref().unwrap_or_default());
            // The last look still waits in the queue; only a node that came back needs one now.
            let late = known.lock().insert(key.clone(), Instant::now()).is_none_or(|last| last.elapsed() >= GRACE);
            if late {
                to.add(key);
            }
        });
        Arc::new(Self { client, recorder, nodes, pods, seen, turns: Mutex::default() })
    }

    async fn mark_unknown(&self, node: &Node) -> Result<(), Error> {
        let now = Time(Timestamp::now());
        let mut changed = node.clone();
        let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
        if !conditions.iter().any(|condition| condition.type_ == "Ready") {
            conditions.push(NodeCondition { type_: "Ready".into(), ..NodeCondition::default() });
        }
        // What others say of the node is theirs to say.
        const OF_AGENT: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
        let of_agent = |condition: &&mut NodeCondition| OF_AGENT.contains(&condition.type_.as_str());
        for condition in conditions.iter_mut().filter(of_agent).filter(|condition| condition.status != "Unknown") {
            condition.status = "Unknown".into();
            condition.reason = Some("NodeStatusUnknown".into());
            condition.message = Some("Kubelet stopped posting node status.".into());
            condition.last_transition_time = Some(now.clone());
        }
        self.client.update_status(&changed).await?;
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let message = format!("Node {name} status is now: NodeNotReady");
        self.recorder.event(reference(node), EventType::Normal, "NodeNotReady", &message);
        Ok(())
    }

    /// Nobody sends requests to pods of a node that went silent, whatever its agent said of them last.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<(), Error> {
        for pod in self.pods.by_index("node", node) {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
            if !conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True") {
                continue;
            }
            let mut changed = Pod::clone(&pod);
            let now = Time(Timestamp::now());
            for condition in changed.status.get_or_insert_default().conditions.iter_mut().flatten() {
                if condition.type_ == "Ready" {
                    condition.status = "False".into();
                    condition.last_transition_time = Some(now.clone());
                }
            }
            match self.client.update_status(&changed).await {
                Ok(_) => {
                    self.recorder.event(reference(&*pod), EventType::Warning, "NodeNotReady", "Node is not ready");
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The taints that the node is to have now, and when to look again because its zone lets none go at the moment.
    fn wanted(&self, node: &Node, now: Timestamp) -> (Vec<Taint>, Option<Duration>) {
        let kept = taints::keeping_away(node);
        // A node that is yet to speak for the first time has no pods to lose.
        let key = taints::silence(taints::ready(node)).filter(|_| taints::has_spoken(node));
        let Some(key) = key else { return (taints::driving_away(&kept, None, now), None) };
        let zone = zone_of(node);
        let all = self.nodes.list();
        let Some(pace) = pace(&zone, all.iter().map(AsRef::as_ref)) else {
            // It is not sure that the node is at fault: pods that were about to leave stay.
            return (taints::driving_away(&kept, None, now), Some(HELD));
        };
        if taints::is_driving_away(&kept) {
            return (taints::driving_away(&kept, Some(key), now), None);
        }
        match self.turns.lock().take(&zone, pace, Instant::now()) {
            Ok(()) => (taints::driving_away(&kept, Some(key), now), None),
            Err(wait) => (kept, Some(wait)),
        }
    }
}

/// When the node's agent last spoke of its readiness. Marking a node leaves it alone.
fn heartbeat(node: &Node) -> Option<&Time> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready")?.last_heartbeat_time.as_ref()
}

#[async_trait::async_trait]
impl Reconcile for NodeLifecycle {
    fn name(&self) -> &'static str {
        "node-lifecycle"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(node) = self.nodes.get(key) else { return Ok(Outcome::Done) };
        let silent = self.seen.lock().entry(key.clone()).or_insert_with(Instant::now).elapsed();
        let ready = taints::ready(&node);
        if silent >= GRACE && ready != "Unknown" {
            // The change comes back as an event, and the taints follow then.
            self.mark_unknown(&node).await?;
            return Ok(Outcome::Done);
        }
        if ready == "Unknown" {
            self.mark_pods_not_ready(&key.name).await?;
        }
        let (wanted, wait) = self.wanted(&node, Timestamp::now());
        if taints::held(&node) != wanted {
            let patch =
                json!({"metadata": {"resourceVersion": node.metadata.resource_version}, "spec": {"taints": wanted}});
            self.client.patch::<Node>(None, &key.name, Patch::Merge(patch), None).await?;
        }
        // A node already marked is woken by its lease.
        let silence = GRACE.saturating_sub(silent);
        let again = wait.into_iter().chain((!silence.is_zero()).then_some(silence)).min();
        Ok(again.map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}
