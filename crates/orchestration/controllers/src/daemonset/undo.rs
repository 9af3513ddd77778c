//! A DaemonSet's rollout that fails goes back by itself where that is asked for.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::Error;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSetCondition, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::DaemonSets;
use super::placement::target;
use super::plan::Snapshot;
use crate::common::is_ready;
use crate::history::{self, POD_REVISION};
use crate::rollback::{self, Good, Record, Verdict};

/// What came of it.
pub enum Done {
    PutBack,
    /// Nothing, and when to look again.
    Wait(Option<Duration>),
}

fn hash(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(POD_REVISION)).map_or("", String::as_str)
}

fn is_up(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

impl DaemonSets {
    /// Marks a revision that is up, or puts the last such one back.
    pub(super) async fn undo(
        &self,
        snapshot: &Snapshot<'_>,
        status: &DaemonSetStatus,
        revisions: &[Arc<ControllerRevision>],
        current: &ControllerRevision,
    ) -> Result<Done, Error> {
        let wanted = status.desired_number_scheduled;
        if wanted > 0 && status.updated_number_scheduled == Some(wanted) && status.number_available == Some(wanted) {
            rollback::mark(&self.control.client, current, current.revision).await?;
        }
        let deadline = rollback::deadline(&snapshot.set.metadata);
        let was_up = rollback::is_completed(&current.metadata, current.revision);
        if was_up && !rollback::is_on_trial(&current.metadata, current.revision, deadline, snapshot.now) {
            return Ok(Done::Wait(None));
        }
        // A node that is away proves nothing of the revision.
        let up = snapshot.nodes.iter().filter(|node| is_up(node));
        let up: HashSet<&str> = up.filter_map(|node| node.metadata.name.as_deref()).collect();
        let new = snapshot.pods.iter().filter(|pod| hash(pod) == snapshot.hash);
        let new: Vec<_> = new.filter(|pod| target(pod).is_some_and(|node| up.contains(node))).cloned().collect();
        // One that was up is judged by its crashes alone.
        let (reason, text) = match rollback::judge(&new, (!was_up).then_some(deadline), snapshot.now) {
            Verdict::Fine(wait) => return Ok(Done::Wait(wait)),
            Verdict::Failed(reason, text) => (reason, text),
        };
        let Some(good) = last_good(revisions, current, snapshot.pods) else {
            rollback::tell_stuck(&self.control.recorder, snapshot.set, history::name(current), &text);
            return Ok(Done::Wait(None));
        };
        rollback::unmark(&self.control.client, current).await?;
        let from = (history::name(current), current.revision);
        let (client, recorder) = (&self.control.client, &self.control.recorder);
        rollback::put_back(client, recorder, snapshot.set, from, good, (reason, text)).await?;
        Ok(Done::PutBack)
    }
}

/// The newest revision, other than the present one, that was up or still has a pod that is.
fn last_good(revisions: &[Arc<ControllerRevision>], current: &ControllerRevision, pods: &[Arc<Pod>]) -> Option<Good> {
    let serving: HashSet<&str> = pods.iter().filter(|pod| is_ready(pod)).map(|pod| hash(pod)).collect();
    let good = revisions
        .iter()
        .filter(|one| history::name(one) != history::name(current))
        .filter(|one| rollback::was_completed(&one.metadata) || serving.contains(history::hash(one)))
        .max_by_key(|one| one.revision)?;
    Some(Good { name: history::name(good).into(), number: good.revision, template: history::template(good)? })
}

/// The condition that tells of a rollback, as long as what was put back is the present template.
pub fn tell(record: Option<&Record>, status: &mut DaemonSetStatus) {
    status.conditions.iter_mut().for_each(|all| all.retain(|one| one.type_ != rollback::CONDITION));
    if let Some(record) = record {
        status.conditions.get_or_insert_default().push(DaemonSetCondition {
            type_: rollback::CONDITION.into(),
            status: "True".into(),
            reason: Some(record.reason.clone()),
            message: Some(record.message.clone()),
            last_transition_time: Some(record.time.clone()),
        });
    }
}
