//! Rolls Deployments out by ReplicaSets: one set per template, sizes moved step by step.

mod plan;
#[cfg(test)]
mod tests;
mod undo;

use std::sync::Arc;

use dhow_client::{
    Client, DeleteParams, Error, EventRecorder, EventType, Informer, Key, Outcome, Patch, Queue, Reconcile,
    controller_of, controller_reference, is_controlled_by, reference,
};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::common::{Labels, in_ending_namespace, is_finished, selects, template_hash};
use crate::pods::claim;
use crate::rollback;
use plan::{Action, DESIRED, HASH, MAX, REVISION, REVISION_HISTORY, Snapshot, name, replicas, same_template, surge};

pub struct Deployments {
    client: Client,
    recorder: EventRecorder,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
}

impl Deployments {
    pub fn new(
        client: Client,
        deployments: Informer<Deployment>,
        sets: Informer<ReplicaSet>,
        pods: Informer<Pod>,
        queue: &Queue,
    ) -> Arc<Self> {
        let recorder = EventRecorder::new(client.clone(), "deployment-controller");
        let to = queue.clone();
        deployments.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        let (to, all) = (queue.clone(), deployments.clone());
        sets.on_change(move |change| {
            let set = change.object();
            match controller_of(&set.metadata).filter(|owner| owner.kind == "Deployment") {
                Some(owner) => to.add(Key::new(set.metadata.namespace.as_deref(), &owner.name)),
                None => {
                    for found in all.list() {
                        let spec = found.spec.as_ref();
                        if found.metadata.namespace == set.metadata.namespace
                            && spec.is_some_and(|spec| selects(&spec.selector, set.metadata.labels.as_ref()))
                        {
                            to.add(Key::of(&found.metadata));
                        }
                    }
                }
            }
        });
        // Recreate waits for old pods to go; a rollback does not wait for pods that keep ending.
        let (to, all) = (queue.clone(), sets.clone());
        pods.on_change(move |change| {
            let pod = change.object();
            let gone = matches!(change, dhow_client::Change::Deleted(_))
                || is_finished(pod)
                || rollback::is_crash_looping(pod);
            if let Some(owner) = controller_of(&pod.metadata).filter(|_| gone)
                && let Some(set) = all.get(&Key::new(pod.metadata.namespace.as_deref(), &owner.name))
                && let Some(owner) = controller_of(&set.metadata)
            {
                to.add(Key::new(set.metadata.namespace.as_deref(), &owner.name));
            }
        });
        Arc::new(Self { client, recorder, deployments, sets, pods })
    }

    /// Changes a set unless it moved on meanwhile.
    async fn patch(&self, set: &ReplicaSet, mut change: Value) -> Result<ReplicaSet, Error> {
        change["metadata"]["resourceVersion"] = json!(set.metadata.resource_version);
        self.client.patch(set.metadata.namespace.as_deref(), name(set), Patch::Merge(change), None).await
    }

    async fn act(&self, deployment: &Deployment, sets: &[Arc<ReplicaSet>], action: &Action) -> Result<(), Error> {
        let find = |wanted: &str| sets.iter().find(|set| name(set) == wanted);
        match action {
            Action::Create { replicas, revision } => self.create(deployment, *replicas, *revision).await,
            Action::Revise { set, revision } => {
                let Some(set) = find(set) else { return Ok(()) };
                let mut annotations = inherited(deployment);
                annotations.extend(recorded(deployment));
                annotations.insert(REVISION.into(), revision.to_string());
                let was = set.metadata.annotations.as_ref().and_then(|all| all.get(REVISION));
                if let Some(was) = was {
                    let past = set.metadata.annotations.as_ref().and_then(|all| all.get(REVISION_HISTORY));
                    let past = past.map_or_else(|| was.clone(), |past| format!("{past},{was}"));
                    annotations.insert(REVISION_HISTORY.into(), past);
                }
                // The scale that may follow is against the new version, so it waits for the informer.
                self.patch(set, json!({"metadata": {"annotations": annotations}})).await.map(drop)
            }
            Action::Scale { set, from, to } => {
                let Some(set) = find(set) else { return Ok(()) };
                let change = json!({"metadata": {"annotations": recorded(deployment)}, "spec": {"replicas": to}});
                self.patch(set, change).await?;
                if from != to {
                    let way = if to > from { "up" } else { "down" };
                    let message = format!("Scaled {way} replica set {} from {from} to {to}", name(set));
                    self.recorder.event(reference(deployment), EventType::Normal, "ScalingReplicaSet", &message);
                }
                Ok(())
            }
            Action::Delete { set } => {
                let Some(set) = find(set) else { return Ok(()) };
                let params = DeleteParams { uid: set.metadata.uid.clone(), ..DeleteParams::default() };
                let done =
                    self.client.delete::<ReplicaSet>(set.metadata.namespace.as_deref(), name(set), &params).await;
                match done {
                    Err(error) if error.is_not_found() => Ok(()),
                    other => other,
                }
            }
        }
    }

    async fn create(&self, deployment: &Deployment, replicas: i32, revision: i64) -> Result<(), Error> {
        let made = new_set(deployment, replicas, revision)?;
        match self.client.create(&made).await {
            Ok(_) => {
                let message = format!("Scaled up replica set {} from 0 to {replicas}", name(&made));
                self.recorder.event(reference(deployment), EventType::Normal, "ScalingReplicaSet", &message);
                Ok(())
            }
            Err(error) if error.is_already_exists() => {
                let there: ReplicaSet = self.client.get(deployment.metadata.namespace.as_deref(), name(&made)).await?;
                if is_controlled_by(&there.metadata, deployment) && same_template(deployment, &there) {
                    return Ok(());
                }
                // Another template has the same hash: take another name.
                let mut changed = deployment.clone();
                let status = changed.status.get_or_insert_default();
                status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                self.client.update_status(&changed).await.map(drop)
            }
            Err(error) if in_ending_namespace(&self.client, &error, made.metadata.namespace.as_deref()).await => Ok(()),
            Err(error) => {
                let message = format!("Failed to create new replica set \"{}\": {error}", name(&made));
                self.recorder.event(reference(deployment), EventType::Warning, "ReplicaSetCreateError", &message);
                Err(error)
            }
        }
    }

    async fn record_revision(&self, deployment: &Deployment, revision: i64) -> Result<Deployment, Error> {
        let revision = revision.to_string();
        let known = deployment.metadata.annotations.as_ref().and_then(|all| all.get(REVISION));
        if known == Some(&revision) {
            return Ok(deployment.clone());
        }
        let patch = json!({"metadata": {
            "resourceVersion": deployment.metadata.resource_version, "annotations": {REVISION: revision},
        }});
        let name = deployment.metadata.name.as_deref().unwrap_or_default();
        self.client.patch(deployment.metadata.namespace.as_deref(), name, Patch::Merge(patch), None).await
    }
}

#[async_trait::async_trait]
impl Reconcile for Deployments {
    fn name(&self) -> &'static str {
        "deployment"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(deployment) = self.deployments.get(key) else { return Ok(Outcome::Done) };
        let Some(spec) = &deployment.spec else { return Ok(Outcome::Done) };
        let sets = self.sets.by_index("namespace", key.namespace().unwrap_or_default());
        let sets = claim(&self.client, &*deployment, &spec.selector, sets, |_| true).await?;
        let old_pods = sets
            .iter()
            .filter(|set| !same_template(&deployment, set))
            .flat_map(|set| self.pods.by_index("controller", set.metadata.uid.as_deref().unwrap_or_default()))
            .filter(|pod| !is_finished(pod))
            .count();
        let snapshot = Snapshot { deployment: &deployment, sets: &sets, old_pods, now: Timestamp::now() };
        let mut plan = plan::plan(&snapshot);
        undo::tell(&deployment, &sets, &mut plan.status);
        if rollback::is_wanted(&deployment.metadata) && self.undo(&deployment, &sets, &plan.status).await? {
            // What changed comes back by the informer.
            return Ok(Outcome::Done);
        }
        let mut touched = Vec::new();
        for action in &plan.actions {
            if let Action::Revise { set, .. } | Action::Scale { set, .. } = action {
                // One write per set and round: the second would be against a version that is gone.
                if touched.contains(&set) {
                    continue;
                }
                touched.push(set);
            }
            self.act(&deployment, &sets, action).await?;
        }
        let mut written = match plan.revision {
            Some(revision) => self.record_revision(&deployment, revision).await?,
            None => Deployment::clone(&deployment),
        };
        if deployment.status.as_ref() != Some(&plan.status) {
            written.status = Some(plan.status);
            match self.client.update_status(&written).await {
                Err(error) if error.is_not_found() => {}
                other => drop(other?),
            }
        }
        Ok(plan.wait.map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}

/// The annotations of a deployment that its sets carry too.
fn inherited(deployment: &Deployment) -> Labels {
    let own = ["kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED, MAX];
    let mut annotations = deployment.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !own.contains(&key.as_str()) && key != "deprecated.deployment.rollback.to");
    annotations
}

/// The sizes a set was scaled for; a difference later means that the deployment was resized.
fn recorded(deployment: &Deployment) -> Labels {
    let wanted = replicas(deployment);
    Labels::from([(DESIRED.into(), wanted.to_string()), (MAX.into(), (wanted + surge(deployment)).to_string())])
}

fn new_set(deployment: &Deployment, replicas: i32, revision: i64) -> Result<ReplicaSet, Error> {
    let Some(spec) = &deployment.spec else { return Err(Error::Reconcile("a deployment without a spec".into())) };
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = template_hash(&spec.template, collisions)?;
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.into(), hash.clone());
    let mut annotations = inherited(deployment);
    annotations.extend(recorded(deployment));
    annotations.insert(REVISION.into(), revision.to_string());
    Ok(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: Some(replicas),
            selector,
            template: Some(template),
        }),
        status: None,
    })
}
