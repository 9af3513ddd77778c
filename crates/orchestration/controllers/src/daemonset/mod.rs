//! Keeps one pod of every DaemonSet on each node that it is meant for.

pub mod placement;
mod plan;
#[cfg(test)]
mod tests;
mod undo;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Change, Client, Error, EventType, Informer, Key, Outcome, Queue, Reconcile, reference};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::common::{is_finished, phase};
use crate::history::{self, History, POD_REVISION};
use crate::pods::{PodControl, claim};
use crate::rollback;
use plan::{Plan, Snapshot};

/// Back-off of failing daemons on one node, and when it is forgotten.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(15 * 60);

pub struct DaemonSets {
    control: PodControl,
    history: History,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    failures: Mutex<HashMap<(Key, String), Failure>>,
}

/// How often a set's pod ended on a node, and when it was last replaced.
struct Failure {
    delay: Duration,
    last: Instant,
}

impl DaemonSets {
    pub fn new(
        client: Client,
        sets: Informer<DaemonSet>,
        pods: Informer<Pod>,
        nodes: Informer<Node>,
        revisions: Informer<ControllerRevision>,
        queue: &Queue,
    ) -> Arc<Self> {
        let control = PodControl::new(client.clone(), "daemonset-controller");
        let to = queue.clone();
        sets.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        control.watch(&pods, &sets, queue, |set: &DaemonSet| set.spec.as_ref().map(|spec| spec.selector.clone()));
        let (to, all) = (queue.clone(), sets.clone());
        nodes.on_change(move |change| {
            // Heartbeats change no placement.
            let matters = match change {
                Change::Updated { old, new } => old.metadata.labels != new.metadata.labels || old.spec != new.spec,
                _ => true,
            };
            if matters {
                all.list().iter().for_each(|set| to.add(Key::of(&set.metadata)));
            }
        });
        Arc::new(Self {
            control,
            history: History::new(client, revisions),
            sets,
            pods,
            nodes,
            failures: Mutex::default(),
        })
    }

    /// The ended pods whose time has come, and when the next one's does.
    fn due(&self, key: &Key, ended: Vec<(String, Arc<Pod>)>) -> (Vec<Arc<Pod>>, Option<Duration>) {
        let mut failures = self.failures.lock();
        failures.retain(|_, failure| failure.last.elapsed() < 2 * LONGEST_BACKOFF);
        let (mut due, mut wait) = (Vec::new(), None::<Duration>);
        for (node, pod) in ended {
            let place = (key.clone(), node);
            let delay = failures.get(&place).map_or(Duration::ZERO, |known| known.delay);
            let left = failures.get(&place).map_or(Duration::ZERO, |known| delay.saturating_sub(known.last.elapsed()));
            if left.is_zero() {
                let delay = (delay * 2).clamp(FIRST_BACKOFF, LONGEST_BACKOFF);
                failures.insert(place, Failure { delay, last: Instant::now() });
                due.push(pod);
            } else {
                wait = Some(wait.map_or(left, |known| known.min(left)));
            }
        }
        (due, wait)
    }

    async fn act(&self, key: &Key, set: &DaemonSet, plan: &Plan, ended: &[Arc<Pod>], hash: &str) -> Result<(), Error> {
        for pod in ended {
            let (kind, reason, word) = if phase(pod) == "Failed" {
                (EventType::Warning, "FailedDaemonPod", "failed")
            } else {
                (EventType::Normal, "SucceededDaemonPod", "succeeded")
            };
            let node = placement::target(pod).unwrap_or_default();
            let act = if word == "failed" { "kill" } else { "delete" };
            let text =
                format!("Found {word} daemon pod {} on node {node}, will try to {act} it", Key::of(&pod.metadata));
            self.control.recorder.event(reference(set), kind, reason, &text);
        }
        let doomed: Vec<_> = plan.delete.iter().chain(ended).cloned().collect();
        if doomed.is_empty() && plan.create.is_empty() {
            return Ok(());
        }
        let pods: Vec<_> = plan.create.iter().map(|node| placement::new_pod(set, node, hash)).collect();
        self.control.expect(key, pods.len(), &doomed);
        let created = self.control.create(key, set, &pods).await;
        let deleted = self.control.delete(key, set, &doomed).await;
        created.and(deleted)
    }
}

#[async_trait::async_trait]
impl Reconcile for DaemonSets {
    fn name(&self) -> &'static str {
        "daemonset"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(set) = self.sets.get(key) else {
            self.control.expectations.forget(key);
            self.failures.lock().retain(|(of, _), _| of != key);
            return Ok(Outcome::Done);
        };
        let Some(spec) = &set.spec else { return Ok(Outcome::Done) };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let settled = self.control.expectations.satisfied(key);
        let all = self.pods.by_index("namespace", key.namespace().unwrap_or_default());
        let pods = claim(&self.control.client, &*set, &spec.selector, all, |pod: &Pod| !is_finished(pod)).await?;
        let revisions = self.history.of(&*set, &spec.selector).await?;
        let mut collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let current = self.history.advance(&*set, &revisions, &spec.template, &mut collisions).await?;
        let hash = history::hash(&current).to_owned();
        let nodes = self.nodes.list();
        let snapshot =
            Snapshot { set: &set, nodes: &nodes, pods: &pods, hash: &hash, collisions, now: Timestamp::now() };
        let mut plan = plan::plan(&snapshot);
        let record = rollback::record(&set.metadata, history::name(&current));
        undo::tell(record.as_ref(), &mut plan.status);
        let mut result = Ok(());
        let mut wait = plan.wait;
        if rollback::is_wanted(&set.metadata) && record.is_none() {
            match self.undo(&snapshot, &plan.status, &revisions, &current).await? {
                undo::Done::PutBack => return Ok(Outcome::Done),
                undo::Done::Wait(again) => wait = wait.into_iter().chain(again).min(),
            }
        }
        if settled {
            let (ended, next) = self.due(key, std::mem::take(&mut plan.ended));
            wait = wait.into_iter().chain(next).min();
            result = self.act(key, &set, &plan, &ended, &hash).await;
        }
        if set.status.as_ref() != Some(&plan.status) {
            let changed = DaemonSet { status: Some(plan.status), ..DaemonSet::clone(&set) };
            match self.control.client.update_status(&changed).await {
                Err(error) if error.is_not_found() => {}
                other => drop(other?),
            }
        }
        result?;
        let mut live: HashSet<String> =
            pods.iter().filter_map(|pod| pod.metadata.labels.as_ref()?.get(POD_REVISION).cloned()).collect();
        live.insert(hash);
        self.history.prune(&history::surplus(&revisions, &live, spec.revision_history_limit)).await?;
        Ok(wait.map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}
