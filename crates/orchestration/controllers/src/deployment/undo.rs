//! A Deployment's rollout that fails goes back by itself where that is asked for.

use std::sync::Arc;

use dhow_client::Error;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::jiff::Timestamp;

use super::Deployments;
use super::plan::{HASH, complete, name, revision, same_template};
use crate::rollback::{self, Good, Verdict};

impl Deployments {
    /// Marks a revision that is up, or puts the last such one back; tells whether it did the latter.
    pub(super) async fn undo(
        &self,
        deployment: &Deployment,
        sets: &[Arc<ReplicaSet>],
        status: &DeploymentStatus,
    ) -> Result<bool, Error> {
        let Some(new) = sets.iter().find(|set| same_template(deployment, set)) else { return Ok(false) };
        let paused = deployment.spec.as_ref().is_some_and(|spec| spec.paused == Some(true));
        if paused || deployment.metadata.deletion_timestamp.is_some() {
            return Ok(false);
        }
        if complete(deployment, status) {
            // The number of a set that was made anew comes with the next look.
            if revision(new) > 0 {
                rollback::mark(&self.client, &**new, revision(new)).await?;
            }
            return Ok(false);
        }
        let deadline = deployment.spec.as_ref().and_then(|spec| spec.progress_deadline_seconds).unwrap_or(600);
        let was_up = rollback::is_completed(&new.metadata, revision(new));
        let on_trial = rollback::is_on_trial(&new.metadata, revision(new), i64::from(deadline), Timestamp::now());
        if was_up && !on_trial || rollback::record(&deployment.metadata, name(new)).is_some() {
            return Ok(false);
        }
        let pods = self.pods.by_index("controller", new.metadata.uid.as_deref().unwrap_or_default());
        let progressing = status.conditions.iter().flatten().find(|one| one.type_ == "Progressing");
        let overdue = progressing.filter(|one| one.reason.as_deref() == Some(rollback::DEADLINE_EXCEEDED) && !was_up);
        let (reason, text) = match (overdue, rollback::judge(&pods, None, Timestamp::now())) {
            (_, Verdict::Failed(reason, text)) => (reason, text),
            (Some(condition), Verdict::Fine(_)) => {
                let said = condition.message.as_deref().unwrap_or_default().trim_end_matches('.');
                (rollback::DEADLINE_EXCEEDED, format!("{said}{}", rollback::complaints(&pods)))
            }
            (None, Verdict::Fine(_)) => return Ok(false),
        };
        let Some(good) = last_good(sets, new) else {
            rollback::tell_stuck(&self.recorder, deployment, name(new), &text);
            return Ok(false);
        };
        rollback::unmark(&self.client, &**new).await?;
        let from = (name(new), revision(new));
        rollback::put_back(&self.client, &self.recorder, deployment, from, good, (reason, text)).await?;
        Ok(true)
    }
}

/// The newest set, other than the present one, that was up or still is.
fn last_good(sets: &[Arc<ReplicaSet>], new: &ReplicaSet) -> Option<Good> {
    let serves = |set: &ReplicaSet| set.status.as_ref().is_some_and(|status| status.available_replicas > Some(0));
    let good = sets
        .iter()
        .filter(|set| name(set) != name(new) && (rollback::was_completed(&set.metadata) || serves(set)))
        .max_by_key(|set| revision(set))?;
    let mut template = good.spec.as_ref()?.template.clone()?;
    if let Some(labels) = template.metadata.as_mut().and_then(|metadata| metadata.labels.as_mut()) {
        labels.remove(HASH);
    }
    Some(Good { name: name(good).into(), number: revision(good), template })
}

/// The condition that tells of a rollback, as long as what was put back is the present template.
pub fn tell(deployment: &Deployment, sets: &[Arc<ReplicaSet>], status: &mut DeploymentStatus) {
    let new = sets.iter().find(|set| same_template(deployment, set));
    let record = new.and_then(|new| rollback::record(&deployment.metadata, name(new)));
    status.conditions.iter_mut().for_each(|all| all.retain(|one| one.type_ != rollback::CONDITION));
    if let Some(record) = record {
        status.conditions.get_or_insert_default().push(DeploymentCondition {
            type_: rollback::CONDITION.into(),
            status: "True".into(),
            reason: Some(record.reason),
            message: Some(record.message),
            last_update_time: Some(record.time.clone()),
            last_transition_time: Some(record.time),
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn set(number: i64, completed: bool, available: i32) -> Arc<ReplicaSet> {
        let mut annotations = json!({"deployment.kubernetes.io/revision": number.to_string()});
        if completed {
            annotations["dhow.io/completed"] = json!(number.to_string());
        }
        let template = json!({"metadata": {"labels": {"app": "w", HASH: "x"}}, "spec": {"containers": []}});
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": format!("w-{number}"), "annotations": annotations},
                "spec": {"selector": {}, "template": template},
                "status": {"replicas": available, "availableReplicas": available}
            }))
            .unwrap(),
        )
    }

    #[test]
    fn the_last_revision_that_was_up_is_good() {
        let sets = [set(1, true, 0), set(2, true, 0), set(3, false, 0), set(4, false, 0)];
        let good = last_good(&sets, &sets[3]).unwrap();
        assert_eq!((good.name.as_str(), good.number), ("w-2", 2));
        let labels = good.template.metadata.unwrap().labels.unwrap();
        assert_eq!(labels.into_keys().collect::<Vec<_>>(), ["app"], "the hash is the set's own");
        let sets = [set(1, false, 2), set(2, false, 0)];
        assert_eq!(last_good(&sets, &sets[1]).unwrap().name, "w-1", "it serves");
        assert!(last_good(&[set(1, false, 0), sets[1].clone()], &sets[1]).is_none());
        assert!(last_good(&sets[1..], &sets[1]).is_none());
    }
}
