//! A StatefulSet's rollout that fails goes back by itself where that is asked for.

use std::sync::Arc;
use std::time::Duration;

use dhow_client::Error;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSetCondition, StatefulSetStatus};

use super::StatefulSets;
use super::identity::revision;
use super::plan::{Snapshot, is_serving, replicas, rolls};
use crate::history;
use crate::rollback::{self, Good, Record, Verdict};

/// What came of it.
pub enum Done {
    PutBack,
    /// Nothing, and when to look again.
    Wait(Option<Duration>),
}

impl StatefulSets {
    /// Marks a revision that is up, or puts the last such one back.
    pub(super) async fn undo(
        &self,
        snapshot: &Snapshot<'_>,
        status: &StatefulSetStatus,
        revisions: &[Arc<ControllerRevision>],
    ) -> Result<Done, Error> {
        let (set, client) = (snapshot.set, &self.control.client);
        let find = |wanted: &str| revisions.iter().find(|one| history::name(one) == wanted);
        let nothing = Ok(Done::Wait(None));
        if set.metadata.deletion_timestamp.is_some() || !rolls(set) {
            return nothing;
        }
        let Some(new) = find(snapshot.update) else { return nothing };
        let deadline = rollback::deadline(&set.metadata);
        let over = status.current_revision == status.update_revision;
        if over && status.available_replicas == Some(replicas(set)) {
            rollback::mark(client, &**new, new.revision).await?;
            return nothing;
        }
        if over && !rollback::is_on_trial(&new.metadata, new.revision, deadline, snapshot.now) {
            return nothing;
        }
        if snapshot.undone.is_some() {
            return nothing;
        }
        let pods: Vec<_> = snapshot.pods.iter().filter(|pod| revision(pod) == snapshot.update).cloned().collect();
        // One that was up is judged by its crashes alone.
        let (reason, text) = match rollback::judge(&pods, (!over).then_some(deadline), snapshot.now) {
            Verdict::Fine(wait) => return Ok(Done::Wait(wait)),
            Verdict::Failed(reason, text) => (reason, text),
        };
        // What the rollout began with, if it was ever up.
        let serves = || snapshot.pods.iter().any(|pod| revision(pod) == snapshot.current && is_serving(snapshot, pod));
        let begun = || find(snapshot.current).filter(|one| rollback::was_completed(&one.metadata) || serves());
        let good = if over { last_good(revisions, snapshot.update) } else { begun() };
        let Some((good, template)) = good.and_then(|one| Some((one, history::template(one)?))) else {
            rollback::tell_stuck(&self.control.recorder, set, snapshot.update, &text);
            return nothing;
        };
        let good = Good { name: history::name(good).into(), number: good.revision, template };
        rollback::unmark(client, &**new).await?;
        let from = (snapshot.update, new.revision);
        rollback::put_back(client, &self.control.recorder, set, from, good, (reason, text)).await?;
        Ok(Done::PutBack)
    }
}

/// The newest revision, other than the present one, that was up.
fn last_good<'a>(revisions: &'a [Arc<ControllerRevision>], present: &str) -> Option<&'a Arc<ControllerRevision>> {
    let good = revisions.iter().filter(|one| history::name(one) != present && rollback::was_completed(&one.metadata));
    good.max_by_key(|one| one.revision)
}

/// The condition that tells of a rollback, as long as what was put back is the present template.
pub fn tell(record: Option<&Record>, status: &mut StatefulSetStatus) {
    status.conditions.iter_mut().for_each(|all| all.retain(|one| one.type_ != rollback::CONDITION));
    if let Some(record) = record {
        status.conditions.get_or_insert_default().push(StatefulSetCondition {
            type_: rollback::CONDITION.into(),
            status: "True".into(),
            reason: Some(record.reason.clone()),
            message: Some(record.message.clone()),
            last_transition_time: Some(record.time.clone()),
        });
    }
}
