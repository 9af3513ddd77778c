//! Removes Jobs some time after they finished (`ttlSecondsAfterFinished`).

use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, DeleteParams, Error, Informer, Key, Outcome, Queue, Reconcile};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::Timestamp;

use super::finished;

pub struct TtlAfterFinished {
    client: Client,
    jobs: Informer<Job>,
}

impl TtlAfterFinished {
    pub fn new(client: Client, jobs: Informer<Job>, queue: &Queue) -> Arc<Self> {
        let to = queue.clone();
        jobs.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        Arc::new(Self { client, jobs })
    }
}

/// How long a finished job has left; `None` if it stays.
fn left(job: &Job, now: Timestamp) -> Option<Duration> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let end = finished(job)?.last_transition_time.as_ref()?.0;
    let left = i64::from(ttl) * 1000 - (now.as_millisecond() - end.as_millisecond());
    Some(Duration::from_millis(u64::try_from(left).unwrap_or(0))).filter(|_| job.metadata.deletion_timestamp.is_none())
}

#[async_trait::async_trait]
impl Reconcile for TtlAfterFinished {
    fn name(&self) -> &'static str {
        "ttl-after-finished"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(job) = self.jobs.get(key) else { return Ok(Outcome::Done) };
        match left(&job, Timestamp::now()) {
            None => Ok(Outcome::Done),
            Some(left) if !left.is_zero() => Ok(Outcome::RequeueAfter(left)),
            Some(_) => {
                // Not one whose time was changed meanwhile: that is another version.
                let params = DeleteParams {
                    uid: job.metadata.uid.clone(),
                    resource_version: job.metadata.resource_version.clone(),
                    propagation: Some("Foreground".into()),
                    ..DeleteParams::default()
                };
                match self.client.delete::<Job>(key.namespace(), &key.name, &params).await {
                    Err(error) if error.is_not_found() => Ok(Outcome::Done),
                    other => other.map(|()| Outcome::Done),
                }
            }
        }
    }
}
