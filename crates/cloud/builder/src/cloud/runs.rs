//! Runs: accepted once, begun when there is room, ended by what their node says.
//!
//! What is under way is known to one process alone: a run that the API calls running and that is not, was left by a server that
//! ended, and is begun anew. Its node stopped it when that server's connection broke.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use dhow_api::conditions;
use dhow_client::{
    Client, DeleteParams, Error, EventRecorder, EventType, Informer, Key, Outcome, Patch, Queue, Reconcile,
    controller_reference, reference,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Settings;
use super::deploy::{self, Undone};
use super::execute::{self, Failure, Report};
use super::kinds::{BUILD, Build, BuildRun, BuildSpec, Phase, RunStatus};
use super::turn::{Busy, Place, Turn, turn};

/// Attempts at a run that does not fail by its own fault. A server that starts again may take two: its node is not there yet.
const ATTEMPTS: u32 = 5;
/// Before the second attempt; before each further one twice as long.
const REST: Duration = Duration::from_secs(5);
/// Between attempts at writing down how a run ended.
const RETRY: Duration = Duration::from_secs(2);
const SUCCEEDED: &str = "Succeeded";
const DEPLOYED: &str = "Deployed";

pub struct Runs {
    pub client: Client,
    pub runs: Informer<BuildRun>,
    pub nodes: Informer<Node>,
    pub queue: Queue,
    pub recorder: EventRecorder,
    pub settings: Settings,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
    active: Mutex<BTreeMap<Key, Active>>,
    /// Until when runs rest after an attempt.
    resting: Mutex<HashMap<Key, Instant>>,
}

struct Active {
    uid: String,
    busy: Busy,
    stop: CancellationToken,
}

/// How a run ended.
enum End {
    Report(Box<Report>),
    Cancelled,
}

/// Reconciles runs.
pub struct Runner(pub Arc<Runs>);

#[async_trait::async_trait]
impl Reconcile for Runner {
    fn name(&self) -> &'static str {
        "build-runs"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        self.0.reconcile(key).await
    }
}

impl Runs {
    async fn reconcile(self: &Arc<Self>, key: &Key) -> Result<Outcome, Error> {
        let run = self.runs.get(key).filter(|run| run.metadata.deletion_timestamp.is_none());
        if let Some(active) = self.active.lock().get(key) {
            if !run.as_ref().is_some_and(|run| run.uid() == active.uid && !run.spec.cancel) {
                active.stop.cancel();
            }
            // Its end wakes the key.
            return Ok(Outcome::Done);
        }
        let Some(run) = run else { return Ok(Outcome::Done) };
        let status = run.status.clone().unwrap_or_default();
        if status.phase.is_over() {
            return self.outlive(&run, &status).await;
        }
        if run.spec.cancel {
            return self.refuse(&run, status, Phase::Cancelled, "Cancelled", "cancelled before it began").await;
        }
        let Some(spec) = status.spec.clone() else { return self.accept(&run, status).await };
        let rest = self.resting.lock().get(key).map(|until| until.saturating_duration_since(Instant::now()));
        if let Some(rest) = rest.filter(|rest| !rest.is_zero()) {
            return Ok(Outcome::RequeueAfter(rest));
        }
        if status.phase == Phase::Running && status.attempts >= ATTEMPTS {
            let message = format!("the server that ran it ended, {ATTEMPTS} times");
            return self.refuse(&run, status, Phase::Failed, "Interrupted", &message).await;
        }
        match self.turn_of(&run, &spec) {
            Turn::Go(node) => self.begin(key, &run, status, spec, node).await,
            Turn::Superseded(by) => {
                self.refuse(&run, status, Phase::Cancelled, "Superseded", &format!("{by} is newer")).await
            }
            Turn::Wait(why) => {
                let waiting =
                    RunStatus { phase: Phase::Pending, reason: "Queued".to_owned(), message: why, ..status.clone() };
                if waiting != status {
                    self.write(&run, &waiting).await?;
                }
                Ok(Outcome::Done)
            }
        }
    }

    pub fn new(
        client: Client,
        (runs, nodes): (Informer<BuildRun>, Informer<Node>),
        settings: Settings,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let recorder = EventRecorder::new(client.clone(), "build-controller");
        Arc::new(Self {
            client,
            runs,
            nodes,
            queue: Queue::new("build-runs"),
            recorder,
            settings,
            tasks: TaskTracker::new(),
            stop,
            active: Mutex::default(),
            resting: Mutex::default(),
        })
    }

    /// Wakes all that wait, in their order: there may be room.
    pub fn wake(&self) {
        let mut waiting: Vec<Arc<BuildRun>> =
            self.runs.list().into_iter().filter(|run| !run.phase().is_over()).collect();
        waiting.sort_by(|a, b| a.age().cmp(&b.age()));
        waiting.iter().for_each(|run| self.queue.add(Key::of(&run.metadata)));
    }

    /// Takes away what a deleted run left on its node.
    pub fn forget(self: &Arc<Self>, run: &BuildRun) {
        self.resting.lock().remove(&Key::of(&run.metadata));
        let node = run.status.as_ref().and_then(|status| status.node_name.clone());
        let log = node.map(|node| (node, format!("logs/{}", run.uid())));
        let paths: Vec<(String, String)> = log.into_iter().chain(upload_of(run)).collect();
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            for (node, path) in paths {
                this.remove(&node, &path).await;
            }
        });
    }

    /// What is not removed now goes when the node needs room.
    async fn remove(&self, node: &str, path: &str) {
        let uri = format!("/api/v1/nodes/{node}/proxy{}/{path}", crate::api::PATH);
        let Ok(request) = http::Request::delete(uri).body(bytes::Bytes::new()) else { return };
        if let Err(error) = self.client.request(request).await {
            tracing::debug!(%error, node, path, "remove what a run left");
        }
    }

    fn turn_of(&self, run: &BuildRun, spec: &BuildSpec) -> Turn {
        let all = self.runs.list();
        let active = self.active.lock();
        let waits = |other: &&Arc<BuildRun>| {
            !other.phase().is_over()
                && other.metadata.deletion_timestamp.is_none()
                && !other.spec.cancel
                && !active.contains_key(&Key::of(&other.metadata))
        };
        let waiting: Vec<&BuildRun> = all.iter().filter(waits).map(AsRef::as_ref).collect();
        let busy: Vec<Busy> = active.values().map(|active| active.busy.clone()).collect();
        let places: Vec<Place> = self.nodes.list().iter().filter_map(|node| Place::of(node)).collect();
        turn(run, spec, &waiting, &busy, &places, self.settings.room)
    }

    /// Takes down what is to be built, as it is now.
    async fn accept(&self, run: &BuildRun, status: RunStatus) -> Result<Outcome, Error> {
        // The watch may not have brought it yet.
        let build = match self.client.get::<Build>(Some(run.namespace()), &run.spec.build).await {
            Ok(build) => build,
            Err(error) if error.is_not_found() => {
                let message = format!("there is no Build {}", run.spec.build);
                return self.refuse(run, status, Phase::Failed, "BuildNotFound", &message).await;
            }
            Err(error) => return Err(error),
        };
        if let Err(why) = build.spec.check() {
            return self.refuse(run, status, Phase::Failed, "InvalidBuild", &why).await;
        }
        let source = &build.spec.source;
        if source.upload.is_some() != run.spec.upload.is_some() {
            let message = match source.upload {
                Some(_) => "it is built from what is sent: dhow builds start NAME --from FOLDER",
                None => "it is not built from what is sent",
            };
            return self.refuse(run, status, Phase::Failed, "InvalidRun", message).await;
        }
        if run.spec.revision.is_some() && source.git.is_none() {
            let message = "only what is built from git has revisions";
            return self.refuse(run, status, Phase::Failed, "InvalidRun", message).await;
        }
        let owners = run.metadata.owner_references.iter().flatten();
        let owned = owners.clone().any(|owner| Some(&owner.uid) == build.metadata.uid.as_ref());
        let labelled =
            run.metadata.labels.iter().flatten().any(|(key, value)| key == BUILD && *value == run.spec.build);
        if !owned || !labelled {
            let mut owners: Vec<_> = owners.cloned().collect();
            if !owned {
                let mut own = controller_reference(&build);
                own.controller = owners.iter().all(|owner| owner.controller != Some(true)).then_some(true);
                owners.push(own);
            }
            let patch = json!({"metadata": {
                "resourceVersion": run.metadata.resource_version,
                "labels": {BUILD: run.spec.build}, "ownerReferences": owners,
            }});
            // The change brings the run back here.
            self.patch(run, patch, None).await?;
            return Ok(Outcome::Done);
        }
        let names = match build.spec.output.images.as_slice() {
            [] => vec![format!("{}/{}/{}:latest", self.settings.registry, run.namespace(), run.spec.build)],
            names => names.iter().map(|name| name.replace("$(run)", run.name())).collect(),
        };
        let accepted = RunStatus {
            reason: "Queued".to_owned(),
            message: String::new(),
            names,
            conditions: conditions_of(&status, SUCCEEDED, "Unknown", "Queued", ""),
            spec: Some(build.spec),
            ..status
        };
        self.write(run, &accepted).await?;
        Ok(Outcome::Done)
    }

    async fn begin(
        self: &Arc<Self>,
        key: &Key,
        run: &Arc<BuildRun>,
        status: RunStatus,
        spec: BuildSpec,
        node: String,
    ) -> Result<Outcome, Error> {
        let again = status.phase == Phase::Running;
        let running = RunStatus {
            phase: Phase::Running,
            reason: "Running".to_owned(),
            message: String::new(),
            attempts: status.attempts + 1,
            node_name: Some(node.clone()),
            start_time: Some(Time(Timestamp::now())),
            conditions: conditions_of(&status, SUCCEEDED, "Unknown", "Running", ""),
            ..status
        };
        // Fails if anything about the run changed since: then another look is taken.
        self.write(run, &running).await?;
        let what = if again { "is run again, as the server that ran it ended" } else { "is run" };
        let message = format!("{} {what} on {node}", spec.source.shown());
        self.recorder.event(reference(run.as_ref()), EventType::Normal, "Started", &message);
        let stop = self.stop.child_token();
        let busy = Busy {
            namespace: run.namespace().to_owned(),
            name: run.name().to_owned(),
            build: run.spec.build.clone(),
            node: node.clone(),
        };
        self.active.lock().insert(key.clone(), Active { uid: run.uid().to_owned(), busy, stop: stop.clone() });
        let (this, key, run) = (Arc::clone(self), key.clone(), Arc::clone(run));
        self.tasks.spawn(async move {
            if let Some(end) = this.run(&run, &running, &spec, &node, &stop).await {
                this.finish(&key, &run, running, &spec, end).await;
            }
            this.active.lock().remove(&key);
            this.queue.add(key);
            this.wake();
        });
        Ok(Outcome::Done)
    }

    /// `None`: this server ends.
    async fn run(
        &self,
        run: &BuildRun,
        status: &RunStatus,
        spec: &BuildSpec,
        node: &str,
        stop: &CancellationToken,
    ) -> Option<End> {
        let limit = spec.deadline().unwrap_or(Duration::from_secs(3600));
        let work = execute::execute(&self.client, run, node, &status.names, spec, self.settings.most);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            () = stop.cancelled() => Some(End::Cancelled),
            done = tokio::time::timeout(limit, work) => Some(End::Report(Box::new(done.unwrap_or_else(|_| {
                Report::failed(Failure::new("Timeout", format!("not done within {}", spec.timeout)))
            })))),
        }
    }

    async fn finish(&self, key: &Key, run: &BuildRun, mut status: RunStatus, spec: &BuildSpec, end: End) {
        let report = match end {
            End::Report(report) => *report,
            End::Cancelled => {
                conclude(&mut status, Phase::Cancelled, "Cancelled", "");
                return self.conclude(run, status).await;
            }
        };
        if let Some((commit, author, subject)) = report.commit {
            (status.commit, status.author, status.commit_message) = (Some(commit), Some(author), Some(subject));
        }
        status.bases = report.bases;
        match report.failure {
            Some(failure) if failure.passing && status.attempts < ATTEMPTS => {
                let rest = REST * 2_u32.pow(status.attempts - 1);
                self.resting.lock().insert(key.clone(), Instant::now() + rest);
                status.phase = Phase::Pending;
                (status.reason, status.message) = ("Retrying".to_owned(), failure.message);
                self.conclude(run, status).await;
                self.queue.add_after(key.clone(), rest);
            }
            Some(failure) => {
                (status.step, status.line) = (failure.step, failure.line);
                conclude(&mut status, Phase::Failed, failure.reason, &failure.message);
                self.conclude(run, status).await;
            }
            None => {
                // All names are of one image; the first one is what it is known by.
                if let Some((name, digest)) = report.pushed.first() {
                    status.image = Some(by_digest(name, digest));
                    status.digest = Some(digest.clone());
                }
                status.names = report.pushed.into_iter().map(|(name, _)| name).collect();
                conclude(&mut status, Phase::Succeeded, "Succeeded", "");
                self.deploy(run, &mut status, spec).await;
                self.conclude(run, status).await;
            }
        }
    }

    /// Gives the image to those who are to run it, unless a newer run did.
    async fn deploy(&self, run: &BuildRun, status: &mut RunStatus, spec: &BuildSpec) {
        let Some(image) = status.image.clone().filter(|_| !spec.deploy.is_empty()) else { return };
        let newer = self.runs.list().into_iter().find(|other| {
            other.namespace() == run.namespace()
                && other.spec.build == run.spec.build
                && other.phase() == Phase::Succeeded
                && other.age() > run.age()
        });
        if let Some(newer) = newer {
            let message = format!("{} is newer, and done", newer.name());
            status.conditions = conditions_of(status, DEPLOYED, "False", "Superseded", &message);
            return;
        }
        let mut problems = Vec::new();
        for target in &spec.deploy {
            loop {
                match deploy::deploy(&self.client, run.namespace(), target, &image).await {
                    Ok(called) => {
                        self.recorder.event(
                            reference(run),
                            EventType::Normal,
                            "Deployed",
                            &format!("{called} gets {image}"),
                        );
                        status.deployed.push(called);
                    }
                    Err(Undone::Refused(why)) => {
                        self.recorder.event(reference(run), EventType::Warning, "DeployFailed", &why);
                        problems.push(why);
                    }
                    Err(Undone::Failed(error)) => {
                        tracing::warn!(run = %run.name(), %error, "deploy what was built; trying again");
                        tokio::select! {
                            () = tokio::time::sleep(RETRY) => continue,
                            () = self.stop.cancelled() => return,
                        }
                    }
                }
                break;
            }
        }
        status.conditions = match problems.is_empty() {
            true => conditions_of(status, DEPLOYED, "True", "Deployed", &status.deployed.join(", ")),
            false => conditions_of(status, DEPLOYED, "False", "DeployFailed", &problems.join("; ")),
        };
    }

    /// Writes down how an attempt ended, whatever it takes.
    async fn conclude(&self, run: &BuildRun, status: RunStatus) {
        if status.phase.is_over() {
            let (kind, text) = match status.phase {
                Phase::Failed => (EventType::Warning, status.message.lines().next().unwrap_or_default().to_owned()),
                _ => (EventType::Normal, status.image.clone().unwrap_or_default()),
            };
            self.recorder.event(reference(run), kind, &status.reason, &text);
            if let Some((node, path)) = upload_of(run) {
                self.remove(&node, &path).await;
            }
        }
        loop {
            // Without a version: nobody else says how it went. The name may be another run's by now, hence the uid.
            let patch = json!({"metadata": {"uid": run.metadata.uid}, "status": status});
            match self.patch(run, patch, Some("status")).await {
                Ok(()) => return,
                Err(error) if error.is_conflict() || error.is_not_found() || error.is_invalid() => {
                    tracing::debug!(run = %run.name(), %error, "the run is gone");
                    return;
                }
                Err(error) => tracing::warn!(run = %run.name(), %error, "write how a run ended; trying again"),
            }
            tokio::select! { () = tokio::time::sleep(RETRY) => {}, () = self.stop.cancelled() => return }
        }
    }

    /// Ends a run that did not begin.
    async fn refuse(
        &self,
        run: &BuildRun,
        mut status: RunStatus,
        phase: Phase,
        reason: &str,
        message: &str,
    ) -> Result<Outcome, Error> {
        conclude(&mut status, phase, reason, message);
        self.write(run, &status).await?;
        let kind = if phase == Phase::Failed { EventType::Warning } else { EventType::Normal };
        self.recorder.event(reference(run), kind, reason, message);
        if let Some((node, path)) = upload_of(run) {
            self.remove(&node, &path).await;
        }
        Ok(Outcome::Done)
    }

    /// Runs that are over go when their time has come.
    async fn outlive(&self, run: &BuildRun, status: &RunStatus) -> Result<Outcome, Error> {
        self.resting.lock().remove(&Key::of(&run.metadata));
        let kept = status.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished);
        let (Some(kept), Some(ended)) = (kept, &status.completion_time) else { return Ok(Outcome::Done) };
        let passed = u64::try_from(Timestamp::now().as_second() - ended.0.as_second()).unwrap_or(0);
        if passed < kept {
            return Ok(Outcome::RequeueAfter(Duration::from_secs(kept - passed)));
        }
        let params = DeleteParams { uid: run.metadata.uid.clone(), ..DeleteParams::default() };
        match self.client.delete::<BuildRun>(Some(run.namespace()), run.name(), &params).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(Outcome::Done),
        }
    }

    /// Writes a status, if the run is still as it was seen.
    async fn write(&self, run: &BuildRun, status: &RunStatus) -> Result<(), Error> {
        let seen = json!({"resourceVersion": run.metadata.resource_version, "uid": run.metadata.uid});
        match self.patch(run, json!({"metadata": seen, "status": status}), Some("status")).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    async fn patch(&self, run: &BuildRun, patch: serde_json::Value, subresource: Option<&str>) -> Result<(), Error> {
        let patch = Patch::Merge(patch);
        self.client.patch::<BuildRun>(Some(run.namespace()), run.name(), patch, subresource).await.map(drop)
    }
}

/// Where an archive is that was sent for a run, below the builder's path.
fn upload_of(run: &BuildRun) -> Option<(String, String)> {
    let sent = run.spec.upload.as_ref()?;
    Some((sent.node.clone(), format!("uploads/{}/{}", run.namespace(), sent.id)))
}

fn conclude(status: &mut RunStatus, phase: Phase, reason: &str, message: &str) {
    let verdict = if phase == Phase::Succeeded { "True" } else { "False" };
    status.conditions = conditions_of(status, SUCCEEDED, verdict, reason, message);
    status.phase = phase;
    (status.reason, status.message) = (reason.to_owned(), message.to_owned());
    status.completion_time = Some(Time(Timestamp::now()));
}

/// The conditions with one of them as it is now.
fn conditions_of(status: &RunStatus, kind: &str, verdict: &str, reason: &str, message: &str) -> Vec<Condition> {
    let new = Condition {
        type_: kind.to_owned(),
        status: verdict.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: conditions::since(&status.conditions, kind, verdict, Timestamp::now()),
        observed_generation: None,
    };
    let others = status.conditions.iter().filter(|one| one.type_ != kind).cloned();
    others.chain([new]).collect()
}

/// `name` without its tag, by the digest.
fn by_digest(name: &str, digest: &str) -> String {
    match dhow_image::Reference::parse(name) {
        Ok(parsed) => format!("{}@{digest}", parsed.name()),
        Err(_) => format!("{name}@{digest}"),
    }
}
