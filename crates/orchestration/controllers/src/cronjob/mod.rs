//! Starts the Jobs of CronJobs at their times.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use dhow_client::{
    Client, DeleteParams, Error, EventRecorder, EventType, Informer, Key, Outcome, Queue, Reconcile, controller_of,
    controller_reference, is_controlled_by, reference,
};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::tz::TimeZone;

use crate::common::in_ending_namespace;
use crate::job::finished;

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Added to a timer, so that it does not fire before its time.
const SLACK: Duration = Duration::from_millis(100);

pub struct CronJobs {
    client: Client,
    recorder: EventRecorder,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
}

impl CronJobs {
    pub fn new(client: Client, crons: Informer<CronJob>, jobs: Informer<Job>, queue: &Queue) -> Arc<Self> {
        let recorder = EventRecorder::new(client.clone(), "cronjob-controller");
        let to = queue.clone();
        crons.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        let to = queue.clone();
        jobs.on_change(move |change| {
            let job = change.object();
            if let Some(owner) = controller_of(&job.metadata).filter(|owner| owner.kind == "CronJob") {
                to.add(Key::new(job.metadata.namespace.as_deref(), &owner.name));
            }
        });
        Arc::new(Self { client, recorder, crons, jobs })
    }

    fn tell(&self, cron: &CronJob, kind: EventType, reason: &str, message: &str) {
        self.recorder.event(reference(cron), kind, reason, message);
    }

    /// Brings the list of active jobs up to date.
    async fn observe(&self, cron: &CronJob, jobs: &[Arc<Job>], status: &mut CronJobStatus) -> Result<(), Error> {
        let mut active = status.active.take().unwrap_or_default();
        for job in jobs {
            let name = job.metadata.name.as_deref().unwrap_or_default();
            let listed = active.iter().position(|one| one.uid == job.metadata.uid);
            match (finished(job), listed) {
                (None, None) => {
                    // The copy may be behind; the server knows.
                    let now: CronJob = match self.client.get(cron.metadata.namespace.as_deref(), &cron_name(cron)).await
                    {
                        Err(error) if error.is_not_found() => return Ok(()),
                        other => other?,
                    };
                    let listed = now.status.and_then(|status| status.active).unwrap_or_default();
                    if listed.iter().any(|one| one.uid == job.metadata.uid) {
                        return Err(Error::Reconcile("the copy of the cron job is behind".into()));
                    }
                    let text = format!("Saw a job that the controller did not create or forgot: {name}");
                    self.tell(cron, EventType::Warning, "UnexpectedJob", &text);
                }
                (Some(end), Some(place)) => {
                    active.remove(place);
                    let text = format!("Saw completed job: {name}, condition: {}", end.type_);
                    self.tell(cron, EventType::Normal, "SawCompletedJob", &text);
                }
                _ => {}
            }
            let done = job.status.as_ref().and_then(|status| status.completion_time.clone());
            if finished(job).is_some_and(|end| end.type_ == "Complete") && done > status.last_successful_time {
                status.last_successful_time = done;
            }
        }
        let known = |one: &ObjectReference| jobs.iter().any(|job| job.metadata.uid == one.uid);
        let mut kept = Vec::new();
        for one in active {
            let name = one.name.clone().unwrap_or_default();
            if !known(&one) {
                // The copy may be behind; the server knows.
                match self.client.get::<Job>(cron.metadata.namespace.as_deref(), &name).await {
                    Ok(job) if job.metadata.uid == one.uid && is_controlled_by(&job.metadata, cron) => {}
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {
                        let text = format!("Active job went missing: {name}");
                        self.tell(cron, EventType::Normal, "MissingJob", &text);
                        continue;
                    }
                }
            }
            kept.push(one);
        }
        status.active = (!kept.is_empty()).then_some(kept);
        Ok(())
    }

    async fn delete(
        &self,
        cron: &CronJob,
        namespace: Option<&str>,
        name: &str,
        uid: &Option<String>,
    ) -> Result<(), Error> {
        let params =
            DeleteParams { uid: uid.clone(), propagation: Some("Background".into()), ..DeleteParams::default() };
        match self.client.delete::<Job>(namespace, name, &params).await {
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => {
                self.tell(cron, EventType::Warning, "FailedDelete", &format!("Deleted job: {error}"));
                Err(error)
            }
            Ok(()) => {
                self.tell(cron, EventType::Normal, "SuccessfulDelete", &format!("Deleted job {name}"));
                Ok(())
            }
        }
    }

    /// Starts the job of a time; `None` where that was done before.
    async fn start(&self, cron: &CronJob, at: Timestamp, zone: &TimeZone) -> Result<Option<ObjectReference>, Error> {
        let made = new_job(cron, at, zone);
        let name = made.metadata.name.clone().unwrap_or_default();
        match self.client.create(&made).await {
            Ok(job) => {
                self.tell(cron, EventType::Normal, "SuccessfulCreate", &format!("Created job {name}"));
                Ok(Some(reference(&job)))
            }
            Err(error) if error.is_already_exists() => {
                let there: Job = self.client.get(cron.metadata.namespace.as_deref(), &name).await?;
                // Made by us before a status was written.
                let ours = is_controlled_by(&there.metadata, cron) && finished(&there).is_none();
                Ok(ours.then(|| reference(&there)))
            }
            Err(error) if in_ending_namespace(&self.client, &error, cron.metadata.namespace.as_deref()).await => {
                Ok(None)
            }
            Err(error) => {
                self.tell(cron, EventType::Warning, "FailedCreate", &format!("Error creating job: {error}"));
                Err(error)
            }
        }
    }

    /// Runs what is due; returns when to look again.
    async fn run(&self, cron: &CronJob, status: &mut CronJobStatus) -> Result<Option<Duration>, Error> {
        let Some(spec) = &cron.spec else { return Ok(None) };
        if spec.suspend == Some(true) || cron.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let zone = match spec.time_zone.as_deref() {
            None => TimeZone::system(),
            Some(name) => match TimeZone::get(name) {
                Ok(zone) => zone,
                Err(error) => {
                    let text = format!("invalid timeZone: \"{name}\": {error}");
                    self.tell(cron, EventType::Warning, "UnknownTimeZone", &text);
                    return Ok(None);
                }
            },
        };
        let schedule = match dhow_base::schedule::parse(&spec.schedule) {
            Ok(schedule) => schedule,
            Err(error) => {
                let text = format!("unparseable schedule: \"{}\" : {error}", spec.schedule);
                self.tell(cron, EventType::Warning, "UnparseableSchedule", &text);
                return Ok(None);
            }
        };
        let due = plan::due(cron, &schedule, &zone, Timestamp::now());
        let wait = due.wait.map(|wait| wait + SLACK);
        if due.too_many {
            let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.tell(cron, EventType::Warning, "TooManyMissedTimes", text);
        }
        let Some(at) = due.at else { return Ok(wait) };
        if due.too_late {
            let text = format!("Missed scheduled time to start a job: {}", at.strftime("%a, %d %b %Y %H:%M:%S +0000"));
            self.tell(cron, EventType::Warning, "MissSchedule", &text);
            return Ok(wait);
        }
        let active = status.active.clone().unwrap_or_default();
        if active.iter().any(|one| one.name.as_deref() == Some(&job_name(cron, at))) {
            status.last_schedule_time = Some(Time(at));
            return Ok(wait);
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.tell(cron, EventType::Normal, "JobAlreadyActive", text);
                return Ok(wait);
            }
            Some("Replace") => {
                for one in &active {
                    let name = one.name.as_deref().unwrap_or_default();
                    self.delete(cron, cron.metadata.namespace.as_deref(), name, &one.uid).await?;
                }
                status.active = None;
            }
            _ => {}
        }
        if let Some(started) = self.start(cron, at, &zone).await? {
            status.active.get_or_insert_default().push(started);
        }
        status.last_schedule_time = Some(Time(at));
        Ok(wait)
    }
}

#[async_trait::async_trait]
impl Reconcile for CronJobs {
    fn name(&self) -> &'static str {
        "cronjob"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(cron) = self.crons.get(key) else { return Ok(Outcome::Done) };
        let jobs: Vec<_> = self.jobs.by_index("controller", cron.metadata.uid.as_deref().unwrap_or_default());
        let mut status = cron.status.clone().unwrap_or_default();
        self.observe(&cron, &jobs, &mut status).await?;
        let wait = self.run(&cron, &mut status).await;
        if cron.status.clone().unwrap_or_default() != status {
            let changed = CronJob { status: Some(status), ..CronJob::clone(&cron) };
            match self.client.update_status(&changed).await {
                Err(error) if error.is_not_found() => {}
                other => drop(other?),
            }
        }
        if cron.metadata.deletion_timestamp.is_none() {
            for job in plan::surplus(&cron, &jobs).iter().filter(|job| job.metadata.deletion_timestamp.is_none()) {
                let name = job.metadata.name.as_deref().unwrap_or_default();
                self.delete(&cron, key.namespace(), name, &job.metadata.uid).await?;
            }
        }
        Ok(wait?.map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}

fn cron_name(cron: &CronJob) -> String {
    cron.metadata.name.clone().unwrap_or_default()
}

/// The same time makes the same name, so that no run starts twice.
fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron_name(cron), at.as_second() / 60)
}

fn new_job(cron: &CronJob, at: Timestamp, zone: &TimeZone) -> Job {
    let template = cron.spec.as_ref().map(|spec| spec.job_template.clone()).unwrap_or_default();
    let given = template.metadata.unwrap_or_default();
    let mut annotations = given.annotations.unwrap_or_default();
    let stamp = at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    annotations
        .insert(SCHEDULED.into(), stamp.strip_suffix("+00:00").map_or_else(|| stamp.clone(), |utc| format!("{utc}Z")));
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron, at)),
            namespace: cron.metadata.namespace.clone(),
            labels: given.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}
