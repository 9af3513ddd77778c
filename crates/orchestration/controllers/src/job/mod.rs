//! Runs Jobs: pods until enough of them have succeeded, or too many failed.

mod count;
mod indexes;
mod manage;
mod plan;
mod policy;
mod template;
#[cfg(test)]
mod tests;
pub mod ttl;

use std::sync::Arc;

use dhow_client::{
    Client, Error, Informer, Key, Outcome, Patch, Queue, Reconcile, controller_of, is_controlled_by, reference,
};
use futures::future::join_all;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use crate::common::is_active;
use crate::pods::{PodControl, claim};
pub use plan::finished;
use plan::{Plan, Snapshot};
use template::{FINALIZER, new_pod, tracked};

/// Jobs that say someone else looks after them are not ours.
const MANAGER: &str = "kubernetes.io/job-controller";

pub struct Jobs {
    control: PodControl,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
}

impl Jobs {
    pub fn new(client: Client, jobs: Informer<Job>, pods: Informer<Pod>, queue: &Queue) -> Arc<Self> {
        let control = PodControl::new(client, "job-controller");
        let to = queue.clone();
        jobs.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        control.watch(&pods, &jobs, queue, |job: &Job| job.spec.as_ref()?.selector.clone());
        Arc::new(Self { control, jobs, pods })
    }

    /// Takes the finalizer off pods.
    async fn release(&self, pods: &[Arc<Pod>]) -> Result<(), Error> {
        let results = join_all(pods.iter().map(|pod| async {
            let finalizers: Vec<_> = pod.metadata.finalizers.iter().flatten().filter(|one| *one != FINALIZER).collect();
            let patch = json!({"metadata": {
                "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "finalizers": finalizers,
            }});
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let client = &self.control.client;
            match client.patch::<Pod>(pod.metadata.namespace.as_deref(), name, Patch::Merge(patch), None).await {
                Err(error) if error.is_not_found() => Ok(()),
                other => other.map(drop),
            }
        }))
        .await;
        results.into_iter().collect()
    }

    /// Lets pods go whose job is gone, or another of the same name now: nobody will count them.
    async fn release_orphans(&self, key: &Key, job: Option<&Job>) -> Result<(), Error> {
        let orphans: Vec<_> = self
            .pods
            .by_index("namespace", key.namespace().unwrap_or_default())
            .into_iter()
            .filter(|pod| {
                let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == "Job");
                owner.is_some_and(|owner| *owner.name == *key.name)
                    && tracked(pod)
                    && job.is_none_or(|job| !is_controlled_by(&pod.metadata, job))
            })
            .collect();
        if orphans.is_empty() {
            return Ok(());
        }
        // The copy may be behind; the server knows.
        match self.control.client.get::<Job>(key.namespace(), &key.name).await {
            Ok(job) => {
                let lost: Vec<_> = orphans.into_iter().filter(|pod| !is_controlled_by(&pod.metadata, &job)).collect();
                self.release(&lost).await
            }
            Err(error) if error.is_not_found() => self.release(&orphans).await,
            Err(error) => Err(error),
        }
    }

    async fn act(&self, key: &Key, job: &Job, plan: &Plan) -> Result<(), Error> {
        let doomed: Vec<_> = plan.kill.iter().chain(&plan.withdraw).cloned().collect();
        if doomed.is_empty() && plan.create.is_empty() {
            return Ok(());
        }
        // Withdrawn pods do not count: nothing holds them.
        let held: Vec<_> = plan.withdraw.iter().filter(|pod| tracked(pod)).cloned().collect();
        self.release(&held).await?;
        let pods: Vec<_> = plan.create.iter().map(|new| new_pod(job, new)).collect();
        self.control.expect(key, pods.len(), &doomed);
        let deleted = self.control.delete(key, job, &doomed).await;
        self.control.create(key, job, &pods).await.and(deleted)
    }
}

#[async_trait::async_trait]
impl Reconcile for Jobs {
    fn name(&self) -> &'static str {
        "job"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(job) = self.jobs.get(key) else {
            self.control.expectations.forget(key);
            return self.release_orphans(key, None).await.map(|()| Outcome::Done);
        };
        let Some(spec) = &job.spec else { return Ok(Outcome::Done) };
        if spec.managed_by.as_deref().is_some_and(|manager| manager != MANAGER) {
            return Ok(Outcome::Done);
        }
        let Some(selector) = &spec.selector else { return Ok(Outcome::Done) };
        self.release_orphans(key, Some(&job)).await?;
        let settled = self.control.expectations.satisfied(key);
        let all = self.pods.by_index("namespace", key.namespace().unwrap_or_default());
        let pods = claim(&self.control.client, &*job, selector, all, is_active).await?;
        let plan = plan::plan(&Snapshot { job: &job, pods: &pods, settled, now: Timestamp::now() });
        let result = self.act(key, &job, &plan).await;
        let mut status = plan.status.clone();
        if result.is_err() {
            // What was not done is not told of.
            let active = pods.iter().filter(|pod| is_active(pod)).count();
            status.active = plan::nonzero(active);
            status.ready = status.ready.map(|ready| ready.min(plan::int(active)));
            status.terminating = job.status.as_ref().and_then(|status| status.terminating);
            let ends = ["Complete", "Failed"];
            if status.conditions.iter().flatten().any(|one| ends.contains(&one.type_.as_str())) {
                result?;
                return Ok(Outcome::Done);
            }
        }
        if job.status.as_ref() != Some(&status) {
            let changed = Job { status: Some(status), ..Job::clone(&job) };
            match self.control.client.update_status(&changed).await {
                Err(error) if error.is_not_found() => return Ok(Outcome::Done),
                other => drop(other?),
            }
            for (kind, reason, message) in &plan.events {
                self.control.recorder.event(reference(&*job), *kind, reason, message);
            }
        }
        // Only what is written down is let go.
        self.release(&plan.release).await?;
        result?;
        Ok(plan.wait.map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}
