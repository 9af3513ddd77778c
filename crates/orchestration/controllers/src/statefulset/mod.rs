//! Keeps StatefulSets: pods with a name, a place and claims of their own, made and replaced in order.

mod identity;
mod plan;
#[cfg(test)]
mod tests;
mod undo;

use std::collections::HashSet;
use std::sync::Arc;

use dhow_client::{
    Client, DeleteParams, Error, EventType, Informer, Key, Outcome, Patch, Queue, Reconcile, is_controlled_by,
    reference,
};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use crate::common::in_ending_namespace;
use crate::history::{self, History};
use crate::pods::{PodControl, claim};
use crate::rollback;
use plan::{Action, Snapshot, Why};

pub struct StatefulSets {
    control: PodControl,
    history: History,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
}

impl StatefulSets {
    pub fn new(
        client: Client,
        sets: Informer<StatefulSet>,
        pods: Informer<Pod>,
        claims: Informer<PersistentVolumeClaim>,
        revisions: Informer<ControllerRevision>,
        queue: &Queue,
    ) -> Arc<Self> {
        let control = PodControl::new(client.clone(), "statefulset-controller");
        let to = queue.clone();
        sets.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        control.watch(&pods, &sets, queue, |set: &StatefulSet| set.spec.as_ref().map(|spec| spec.selector.clone()));
        Arc::new(Self { control, history: History::new(client, revisions), sets, pods, claims })
    }

    async fn act(
        &self,
        set: &StatefulSet,
        revisions: &[Arc<ControllerRevision>],
        action: &Action,
    ) -> Result<(), Error> {
        match action {
            Action::Create { ordinal, revision } => {
                let template = revisions.iter().find(|one| history::name(one) == revision);
                let Some(template) = template.and_then(|one| history::template(one)) else {
                    return Err(Error::Reconcile(format!("revision {revision} holds no template")));
                };
                let pod = identity::new_pod(set, &template, revision, *ordinal);
                let result = match self.make_claims(set, *ordinal, &pod).await {
                    Ok(()) => self.make_pod(set, &pod).await,
                    Err(error) => Err(error),
                };
                match result {
                    Err(error)
                        if in_ending_namespace(&self.control.client, &error, set.metadata.namespace.as_deref())
                            .await =>
                    {
                        Ok(())
                    }
                    other => other,
                }
            }
            Action::Keep { pod, ordinal } => {
                let mut wanted = Pod::clone(pod);
                if identity::identify(set, &mut wanted, *ordinal) {
                    self.tell(set, "update", &format!("Pod {}", name(pod)), self.control.client.update(&wanted).await)?;
                }
                if crate::common::phase(pod) == "Pending" && pod.metadata.deletion_timestamp.is_none() {
                    self.make_claims(set, *ordinal, pod).await?;
                }
                self.own_claims(set, *ordinal, pod, false).await
            }
            Action::Release { pod, ordinal } => self.own_claims(set, *ordinal, pod, true).await,
            Action::Delete { pod, why } => {
                let about = |text: &str| format!("StatefulSet {} {text} {}", Key::of(&set.metadata), name(pod));
                let recorder = &self.control.recorder;
                match why {
                    Why::Failed => recorder.event(
                        reference(set),
                        EventType::Warning,
                        "RecreatingFailedPod",
                        &about("is recreating failed Pod"),
                    ),
                    Why::Succeeded => recorder.event(
                        reference(set),
                        EventType::Normal,
                        "RecreatingTerminatedPod",
                        &about("is recreating terminated Pod"),
                    ),
                    Why::Scale | Why::Update => {}
                }
                let params = DeleteParams { uid: pod.metadata.uid.clone(), ..DeleteParams::default() };
                let done =
                    self.control.client.delete::<Pod>(pod.metadata.namespace.as_deref(), name(pod), &params).await;
                match done {
                    Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
                    other => self.tell(set, "delete", &format!("Pod {}", name(pod)), other),
                }
            }
        }
    }

    async fn make_pod(&self, set: &StatefulSet, pod: &Pod) -> Result<(), Error> {
        match self.control.client.create(pod).await {
            Err(error) if error.is_already_exists() => {
                let there: Pod = self.control.client.get(pod.metadata.namespace.as_deref(), name(pod)).await?;
                if is_controlled_by(&there.metadata, set) {
                    // Only the copy is behind.
                    return Ok(());
                }
                self.tell::<()>(set, "create", &format!("Pod {}", name(pod)), Err(error))
            }
            other => self.tell(set, "create", &format!("Pod {}", name(pod)), other),
        }
    }

    async fn make_claims(&self, set: &StatefulSet, ordinal: i32, pod: &Pod) -> Result<(), Error> {
        for claim in identity::claims(set, ordinal) {
            let claim_name = claim.metadata.name.clone().unwrap_or_default();
            match self.claims.get(&Key::of(&claim.metadata)) {
                Some(there) if there.metadata.deletion_timestamp.is_some() => {
                    return Err(Error::Reconcile(format!("pvc {claim_name} is being deleted")));
                }
                Some(_) => continue,
                None => {}
            }
            match self.control.client.create(&claim).await {
                Err(error) if error.is_already_exists() => {}
                other => self.tell(set, "create", &format!("Claim {claim_name} Pod {}", name(pod)), other)?,
            }
        }
        Ok(())
    }

    /// Lets claims go with the set or the pod, as the retention policy says.
    async fn own_claims(&self, set: &StatefulSet, ordinal: i32, pod: &Pod, condemned: bool) -> Result<(), Error> {
        for wanted in identity::claims(set, ordinal) {
            let Some(claim) = self.claims.get(&Key::of(&wanted.metadata)) else { continue };
            let owners = identity::claim_owners(set, &claim, pod, condemned);
            if claim.metadata.owner_references.as_deref().unwrap_or_default() == owners {
                continue;
            }
            let patch = json!({"metadata": {
                "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version, "ownerReferences": owners,
            }});
            let claim_name = claim.metadata.name.as_deref().unwrap_or_default();
            let done = self
                .control
                .client
                .patch::<PersistentVolumeClaim>(
                    claim.metadata.namespace.as_deref(),
                    claim_name,
                    Patch::Merge(patch),
                    None,
                )
                .await;
            match done {
                Err(error) if error.is_not_found() => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Records what was done to a pod or claim, or why it was not.
    fn tell<T>(&self, set: &StatefulSet, verb: &str, what: &str, result: Result<T, Error>) -> Result<(), Error> {
        let title = format!("{}{}", verb[..1].to_uppercase(), &verb[1..]);
        let (kind, reason, end) = match &result {
            Ok(_) => (EventType::Normal, format!("Successful{title}"), "successful".to_owned()),
            Err(error) => (EventType::Warning, format!("Failed{title}"), format!("failed error: {error}")),
        };
        let set_name = set.metadata.name.as_deref().unwrap_or_default();
        let message = format!("{verb} {what} in StatefulSet {set_name} {end}");
        self.control.recorder.event(reference(set), kind, &reason, &message);
        result.map(drop)
    }
}

#[async_trait::async_trait]
impl Reconcile for StatefulSets {
    fn name(&self) -> &'static str {
        "statefulset"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(set) = self.sets.get(key) else { return Ok(Outcome::Done) };
        let Some(spec) = &set.spec else { return Ok(Outcome::Done) };
        let all = self.pods.by_index("namespace", key.namespace().unwrap_or_default());
        let fits = |pod: &Pod| identity::ordinal(&set, pod).is_some();
        let pods = claim(&self.control.client, &*set, &spec.selector, all, fits).await?;
        let mut revisions = self.history.of(&*set, &spec.selector).await?;
        let status = set.status.clone().unwrap_or_default();
        let mut collisions = status.collision_count;
        let update = if set.metadata.deletion_timestamp.is_none() {
            self.history.advance(&*set, &revisions, &spec.template, &mut collisions).await?
        } else {
            match revisions.last() {
                Some(last) => last.clone(),
                None => return Ok(Outcome::Done),
            }
        };
        let update_name = history::name(&update).to_owned();
        if !revisions.iter().any(|one| history::name(one) == update_name) {
            revisions.push(update);
        }
        let known = |wanted: &String| revisions.iter().any(|one| history::name(one) == wanted);
        let current = status.current_revision.filter(known).unwrap_or_else(|| update_name.clone());
        let record = rollback::record(&set.metadata, &update_name);
        let snapshot = Snapshot {
            set: &set,
            undone: record.as_ref().map(|record| record.from.as_str()),
            pods: &pods,
            current: &current,
            update: &update_name,
            collisions,
            now: Timestamp::now(),
        };
        let mut plan = plan::plan(&snapshot);
        undo::tell(record.as_ref(), &mut plan.status);
        let mut look_again = None;
        if rollback::is_wanted(&set.metadata) {
            match self.undo(&snapshot, &plan.status, &revisions).await? {
                undo::Done::PutBack => return Ok(Outcome::Done),
                undo::Done::Wait(wait) => look_again = wait,
            }
        }
        let mut result = Ok(());
        for action in &plan.actions {
            let done = self.act(&set, &revisions, action).await;
            // One that fails stops those after it only where order counts.
            result = result.and(done);
            if result.is_err() && plan::ordered(&set) {
                break;
            }
        }
        if set.status.as_ref() != Some(&plan.status) {
            let changed = StatefulSet { status: Some(plan.status), ..StatefulSet::clone(&set) };
            match self.control.client.update_status(&changed).await {
                Err(error) if error.is_not_found() => {}
                other => drop(other?),
            }
        }
        result?;
        let mut live: HashSet<String> = pods.iter().map(|pod| identity::revision(pod).to_owned()).collect();
        live.extend([current, update_name]);
        self.history.prune(&history::surplus(&revisions, &live, spec.revision_history_limit)).await?;
        Ok(plan.wait.into_iter().chain(look_again).min().map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}
