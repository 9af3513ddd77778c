//! What a decision writes: bindings, what claims get, conditions, and the end of pods that make room.

use std::sync::Arc;

use dhow_client::{Client, DeleteParams, Error, EventRecorder, EventType, Key, Patch, reference};
use k8s_openapi::api::core::v1::{
    Binding, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod, PodCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::informers::StorageInformers;
use crate::extenders::Extenders;
use crate::volumes::Step;
use crate::volumes::matching::{BOUND_BY_CONTROLLER, SELECTED_NODE};
use crate::{Engine, Outcome, PodKey, Preemption, Unschedulable};

pub(super) struct Writer {
    pub client: Client,
    pub storage: StorageInformers,
    pub engine: Arc<Engine>,
    pub recorder: EventRecorder,
    pub extenders: Arc<Extenders>,
}

impl Writer {
    pub async fn write(&self, id: &PodKey, pod: &Pod, outcome: Outcome) {
        let written = match &outcome {
            Outcome::Ignore | Outcome::Ask { .. } | Outcome::AskRoom { .. } => Ok(()),
            Outcome::Fail(error) => self.tell_error(pod, error).await,
            Outcome::Bind { node } => self.bind(id, pod, node).await,
            Outcome::Provide { steps, .. } => self.provide(steps).await,
            Outcome::Wait(why) => self.tell(pod, why, None).await,
            Outcome::Preempt { why, preemption, denominated } => self.preempt(pod, why, preemption, denominated).await,
        };
        if matches!(outcome, Outcome::Wait(_)) {
            self.free_idle_claim(id).await;
        }
        let Err(error) = written else { return };
        let name = format!("{}/{}", id.0, id.1);
        // Something changed meanwhile; informers tell what.
        if error.is_not_found() || error.is_conflict() {
            tracing::debug!(pod = name, %error, "decision came too late");
        } else {
            tracing::warn!(pod = name, %error, "cannot write what was decided; trying again");
        }
        if matches!(outcome, Outcome::Bind { .. } | Outcome::Provide { .. }) {
            self.engine.bind_failed(id);
        }
    }

    /// Writes what was decided for a pod's claims; the pod goes on when they are bound.
    async fn provide(&self, steps: &[Step]) -> Result<(), Error> {
        for step in steps {
            match step {
                Step::Select { claim, node } => self.select(claim, node).await?,
                Step::Hold { claim, volume } => self.hold(claim, volume).await?,
            }
        }
        Ok(())
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

    async fn bind(&self, id: &PodKey, pod: &Pod, node: &str) -> Result<(), Error> {
        let reserved = self.reserve(id, pod).await?;
        let bound = match self.await_devices(pod).await {
            Ok(()) => self.bind_now(id, pod, node).await,
            Err(error) => Err(error),
        };
        if bound.is_err() {
            self.unreserve(pod, &reserved).await;
        }
        bound
    }

    async fn bind_now(&self, id: &PodKey, pod: &Pod, node: &str) -> Result<(), Error> {
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
        if self.extenders.binds(pod) {
            self.extenders.bind(pod, node).await.map_err(Error::Reconcile)?;
        } else {
            let (namespace, name) = (Some(id.0.as_str()), id.1.as_str());
            self.client.create_subresource::<Pod, _, Value>(namespace, name, "binding", &binding).await?;
        }
        let message = format!("Successfully assigned {}/{} to {node}", id.0, id.1);
        self.recorder.event(reference(pod), EventType::Normal, "Scheduled", &message);
        Ok(())
    }

    /// Sets the condition `PodScheduled` to False and records an event, unless the pod says so already.
    async fn tell(&self, pod: &Pod, why: &Unschedulable, nominated: Option<&str>) -> Result<(), Error> {
        let message = why.to_string();
        let status = pod.status.as_ref();
        let current = status.and_then(|s| s.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled"));
        let said = current.is_some_and(|condition| {
            condition.status == "False"
                && condition.reason.as_deref() == Some("Unschedulable")
                && condition.message.as_deref() == Some(message.as_str())
        });
        let had = status.and_then(|status| status.nominated_node_name.as_deref()).unwrap_or_default();
        // A pod that waits for its victims keeps what it was promised.
        let waits = why.preemption.as_deref().is_some_and(|text| text.contains("terminating pod"));
        let node = if waits { had } else { nominated.unwrap_or_default() };
        if said && had == node {
            return Ok(());
        }
        if !said {
            self.recorder.event(reference(pod), EventType::Warning, "FailedScheduling", &message);
        }
        let since = current.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
        let condition = PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "False".to_owned(),
            reason: Some("Unschedulable".to_owned()),
            message: Some(message),
            last_transition_time: since.or_else(|| Some(Time(Timestamp::now()))),
            ..PodCondition::default()
        };
        let mut status = json!({"conditions": [condition]});
        if had != node {
            status["nominatedNodeName"] = if node.is_empty() { Value::Null } else { json!(node) };
        }
        self.patch_status(pod, status).await
    }

    /// Something went wrong that the pod has no part in.
    async fn tell_error(&self, pod: &Pod, error: &str) -> Result<(), Error> {
        self.recorder.event(reference(pod), EventType::Warning, "FailedScheduling", error);
        let condition = PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "False".to_owned(),
            reason: Some("SchedulerError".to_owned()),
            message: Some(error.to_owned()),
            last_transition_time: Some(Time(Timestamp::now())),
            ..PodCondition::default()
        };
        self.patch_status(pod, json!({"conditions": [condition]})).await
    }

    async fn patch_status(&self, pod: &Pod, status: Value) -> Result<(), Error> {
        let patch = Patch::Strategic(json!({"metadata": {"uid": pod.metadata.uid}, "status": status}));
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match self.client.patch::<Pod>(pod.metadata.namespace.as_deref(), name, patch, Some("status")).await {
            // Gone, or another pod of this name.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Ends the victims and writes the promise. Room that is kept for less important pods there is theirs no longer.
    async fn preempt(
        &self,
        pod: &Pod,
        why: &Unschedulable,
        preemption: &Preemption,
        denominated: &[PodKey],
    ) -> Result<(), Error> {
        self.tell(pod, why, Some(&preemption.node)).await?;
        for victim in &preemption.victims {
            self.end(pod, victim, &preemption.node).await?;
        }
        for (namespace, name) in denominated {
            let patch = Patch::Merge(json!({"status": {"nominatedNodeName": null}}));
            match self.client.patch::<Pod>(Some(namespace), name, patch, Some("status")).await {
                Err(error) if error.is_not_found() => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    async fn end(&self, pod: &Pod, victim: &PodKey, node: &str) -> Result<(), Error> {
        let (namespace, name) = (Some(victim.0.as_str()), victim.1.as_str());
        let seen = match self.client.get::<Pod>(namespace, name).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        if seen.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let scheduler = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
        let scheduler = scheduler.unwrap_or(crate::profile::DEFAULT_NAME);
        let condition = PodCondition {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
            reason: Some("PreemptionByScheduler".to_owned()),
            message: Some(format!("{scheduler}: preempting to accommodate a higher priority pod")),
            last_transition_time: Some(Time(Timestamp::now())),
            ..PodCondition::default()
        };
        self.patch_status(&seen, json!({"conditions": [condition]})).await?;
        let params = DeleteParams { uid: seen.metadata.uid.clone(), ..DeleteParams::default() };
        match self.client.delete::<Pod>(namespace, name, &params).await {
            Err(error) if error.is_not_found() || error.is_conflict() => return Ok(()),
            other => other?,
        }
        let by = pod.metadata.uid.as_deref().unwrap_or_default();
        let message = format!("Preempted by pod {by} on node {node}");
        self.recorder.event(reference(&seen), EventType::Normal, "Preempted", &message);
        Ok(())
    }
}
