//! One task per pod: look at what runs, decide, act, write the status, wait for the next change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dhow_client::{EventType, Patch, reference};
use dhow_cri::runtime::{ContainerStatus, ImageInfo, SandboxState, SandboxStatus};
use k8s_openapi::api::core::v1::{Pod, PodSpec, ResourceRequirements};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::actions::{Actions, Observed, Why, compute_actions};
use crate::backoff::Backoff;
use crate::containers::{self, latest};
use crate::probes::{Around, Listener, Probes, Results};
use crate::pulls::Pulls;
use crate::shared::Shared;
use crate::start::{Outcome, Stage};
use crate::status::Ended;
use crate::{Error, config, csi, objects, resize, static_pods, status, volumes};

/// For a pod whose API object is gone.
pub const GONE_GRACE: Duration = Duration::from_secs(1);
/// What could not be done is tried again after this long.
const RETRY: Duration = Duration::from_secs(10);
/// Bytes of a container's last words that its status holds.
const MESSAGE_LIMIT: u64 = 4096;
/// Lines and bytes of a log that stand in for last words.
const LOG_TAIL: (usize, u64) = (80, 2048);

pub struct Worker {
    pub shared: Arc<Shared>,
    pub uid: String,
    /// `None` once the API object is gone.
    pub pod: watch::Receiver<Option<Arc<Pod>>>,
    pub wake: Arc<Notify>,
    /// Reason and message by container name.
    pub(crate) waiting: BTreeMap<String, (String, String)>,
    pub(crate) crashes: Backoff,
    pub(crate) pulls: Pulls,
    /// The images that are volumes of the pod, by volume.
    pub(crate) volumes_pulled: BTreeMap<String, Box<ImageInfo>>,
    probes: Probes,
    /// Requests and limits in force, where a resize made them differ from the runtime's first ones.
    pub(crate) allocated: BTreeMap<String, ResourceRequirements>,
    /// How a change of resources stands that is not through.
    pub(crate) resizing: Option<resize::Progress>,
    /// The pod as a whole has no limits, for while those of its containers change.
    pub(crate) widened: bool,
    ended: Option<Ended>,
    admitted: bool,
}

/// When to look again at the latest.
#[derive(Default)]
struct Next(Option<SystemTime>);

impl Next {
    fn at(&mut self, at: impl Into<Option<SystemTime>>) {
        if let Some(at) = at.into() {
            self.0 = Some(self.0.map_or(at, |old| old.min(at)));
        }
    }
}

impl Worker {
    pub fn new(shared: Arc<Shared>, uid: String, pod: watch::Receiver<Option<Arc<Pod>>>, wake: Arc<Notify>) -> Self {
        Self {
            allocated: resize::load(&shared.config.root_dir.join("pods").join(&uid)),
            shared,
            uid,
            pod,
            wake,
            waiting: BTreeMap::new(),
            crashes: Backoff::default(),
            pulls: Pulls::default(),
            volumes_pulled: BTreeMap::new(),
            probes: Probes::default(),
            resizing: None,
            widened: false,
            ended: None,
            admitted: false,
        }
    }

    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let pod = self.pod.borrow_and_update().clone();
            let pod = pod.map(|pod| self.with_status(pod));
            let result = match &pod {
                Some(pod) if pod.metadata.deletion_timestamp.is_none() => self.sync(pod).await,
                _ => match self.terminate(pod.as_deref()).await {
                    Ok(()) => {
                        self.shared.forget(&self.uid);
                        return;
                    }
                    Err(error) => Err(error),
                },
            };
            let now = (self.shared.now)();
            let next = result.unwrap_or_else(|error| {
                tracing::warn!(%error, uid = self.uid, "cannot sync pod");
                Some(now + RETRY)
            });
            let delay = next.map_or(Duration::from_secs(86_400), |at| at.duration_since(now).unwrap_or_default());
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = self.pod.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// A static pod's status is in the mirror that shows it.
    fn with_status(&self, pod: Arc<Pod>) -> Arc<Pod> {
        if !static_pods::is_static(&pod) {
            return pod;
        }
        let status = self.shared.mirrors.get(&self.uid).and_then(|mirror| mirror.status.clone());
        // What ended with the machine begins anew with it.
        let stays = |reason: Option<&str>| reason != Some("Terminated") || self.ended.is_some();
        let status = status.filter(|status| stays(status.reason.as_deref()));
        Arc::new(Pod { status, ..pod.as_ref().clone() })
    }

    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.shared.config.root_dir.join("pods").join(uid)
    }

    pub(crate) async fn observe(&self) -> Result<(Vec<SandboxStatus>, Vec<ContainerStatus>), Error> {
        let runtime = &self.shared.config.runtime;
        let mut sandboxes = runtime.list_sandboxes().await?;
        sandboxes.retain(|s| s.pod.uid == self.uid);
        sandboxes.sort_by_key(|s| s.pod.attempt);
        let mut containers = runtime.list_containers().await?;
        containers.retain(|c| sandboxes.iter().any(|s| s.id == c.sandbox_id));
        Ok((sandboxes, containers))
    }

    pub(crate) fn event(&self, pod: &Pod, kind: EventType, reason: &str, message: &str) {
        self.shared.events.event(reference(pod), kind, reason, message);
    }

    /// An event about one container of the pod.
    pub(crate) fn container_event(&self, pod: &Pod, name: &str, kind: EventType, reason: &str, message: &str) {
        let mut about = reference(pod);
        about.field_path = pod.spec.as_ref().map(|spec| containers::field_path(spec, name));
        self.shared.events.event(about, kind, reason, message);
    }

    /// Resolves once the pod is to end.
    pub(crate) async fn ending(&self) {
        let mut pod = self.pod.clone();
        let ends = |pod: &Option<Arc<Pod>>| pod.as_ref().is_none_or(|p| p.metadata.deletion_timestamp.is_some());
        if pod.wait_for(ends).await.is_err() {
            std::future::pending().await
        }
    }

    /// Whether the node, the pod's own deadline or its end before have decided that nothing of it runs any more.
    fn is_over(&mut self, pod: &Pod, now: SystemTime, next: &mut Next) -> bool {
        if self.ended.is_none() {
            self.ended = self.shared.verdict(&self.uid);
        }
        let status = pod.status.as_ref();
        if matches!(status.and_then(|s| s.phase.as_deref()), Some("Failed" | "Succeeded")) || self.ended.is_some() {
            return true;
        }
        let deadline = pod.spec.as_ref().and_then(|s| s.active_deadline_seconds);
        let started = status.and_then(|s| s.start_time.as_ref());
        if let (Some(seconds), Some(started)) = (deadline, started) {
            let at = SystemTime::from(started.0) + Duration::from_secs(seconds.unsigned_abs());
            if at <= now {
                let message = "Pod was active on the node longer than the specified deadline".to_owned();
                self.event(pod, EventType::Normal, "DeadlineExceeded", &message);
                self.ended = Some(Ended { reason: "DeadlineExceeded", message });
                return true;
            }
            next.at(at);
        }
        false
    }

    async fn sync(&mut self, pod: &Arc<Pod>) -> Result<Option<SystemTime>, Error> {
        let Some(spec) = &pod.spec else { return Ok(None) };
        let now = (self.shared.now)();
        let mut next = Next::default();
        let (sandboxes, containers) = self.observe().await?;
        let over = self.is_over(pod, now, &mut next);
        if !over && !self.admitted {
            // What runs already was let in before.
            let given = Pod { spec: Some(resize::with(spec, &self.allocated)), ..pod.as_ref().clone() };
            let admitted = match self.shared.devices.give(pod).await {
                Ok(()) => self.shared.admit(&given, !sandboxes.is_empty()),
                Err(message) => {
                    Err(Ended { reason: "UnexpectedAdmissionError", message: format!("Pod was rejected: {message}") })
                }
            };
            if let Err(ended) = admitted {
                self.shared.devices.take_back(&self.uid);
                self.event(pod, EventType::Warning, ended.reason, &ended.message);
                self.ended = Some(ended);
                self.write_status(pod, spec, true).await?;
                return Ok(None);
            }
            self.admitted = true;
        }
        let health = self.health(spec, &sandboxes, &containers);
        let seen = Observed {
            now,
            sandbox: sandboxes.last(),
            containers: &containers,
            unhealthy: &health.unhealthy,
            started: &health.started,
            crashes: &self.crashes,
            over,
        };
        let todo = compute_actions(spec, &seen);
        self.kill(pod, spec, &todo, &sandboxes, &containers, &health).await?;
        self.waiting.retain(|name, _| todo.start.contains(name));
        if todo.finished {
            self.waiting.clear();
            self.finish(pod, spec).await?;
            return Ok(None);
        }
        if let Err((reason, message)) = self.act(pod, spec, &todo, &sandboxes, &containers, &mut next).await {
            self.event(pod, EventType::Warning, reason, &message);
            next.at(now + RETRY);
        }
        for (name, until) in &todo.backing_off {
            let ended = latest(&containers, name).and_then(|c| c.finished_at);
            let delay = ended.and_then(|ended| until.duration_since(ended).ok()).unwrap_or_default();
            let full = full_name(pod);
            let message = format!("back-off {} restarting failed container={name} pod={full}", in_words(delay));
            self.waiting.insert(name.clone(), ("CrashLoopBackOff".into(), message));
            let message = format!("Back-off restarting failed container {name} in pod {full}");
            self.container_event(pod, name, EventType::Warning, "BackOff", &message);
            next.at(*until);
        }
        if !todo.new_sandbox {
            next.at(self.resize(pod, spec, &containers).await?);
        }
        self.write_status(pod, spec, false).await?;
        Ok(next.0)
    }

    async fn kill(
        &self,
        pod: &Pod,
        spec: &PodSpec,
        todo: &Actions,
        sandboxes: &[SandboxStatus],
        containers: &[ContainerStatus],
        health: &Results,
    ) -> Result<(), Error> {
        let mut stops = Vec::new();
        for (id, why) in &todo.kill {
            let Some(seen) = containers.iter().find(|c| c.id == *id) else { continue };
            let failure = health.unhealthy.get(id);
            let message = match (why, failure) {
                (Why::Probe, Some(failure)) => {
                    let probe = failure.kind.name().to_lowercase();
                    format!("Container {} failed {probe} probe, will be restarted", seen.name)
                }
                _ => format!("Stopping container {}", seen.name),
            };
            self.container_event(pod, &seen.name, EventType::Normal, "Killing", &message);
            let own = spec.termination_grace_period_seconds.and_then(|s| u64::try_from(s).ok());
            let usual = Duration::from_secs(own.unwrap_or(30));
            let grace = match why {
                Why::Probe => failure.and_then(|f| f.grace).unwrap_or(usual),
                Why::Sandbox => usual,
                Why::Finished => self.shared.verdict_grace(&self.uid).unwrap_or(usual),
            };
            stops.push((seen, grace));
        }
        let live: Vec<&ContainerStatus> = containers.iter().filter(|c| containers::is_live(c)).collect();
        let stops = stops.into_iter().map(|(seen, grace)| {
            // Only a pod that ends has an order to end in.
            let others = if todo.finished { live.as_slice() } else { &[] };
            self.stop(Some(pod), seen, sandboxes, others, grace, true)
        });
        tokio::select! {
            done = futures::future::try_join_all(stops) => done.map(drop),
            // Whoever deletes the pod says how much longer it may take.
            () = self.ending() => Ok(()),
        }
    }

    /// Frees what a pod that is over still holds. Its records and logs stay until it is deleted.
    async fn finish(&mut self, pod: &Pod, spec: &PodSpec) -> Result<(), Error> {
        let (sandboxes, containers) = self.observe().await?;
        if containers.iter().any(containers::is_live) {
            return Ok(());
        }
        for sandbox in sandboxes.iter().filter(|s| s.state == SandboxState::Ready) {
            self.shared.config.runtime.stop_sandbox(&sandbox.id).await?;
        }
        // Before the API shows its end, and others get the devices.
        self.unprepare(Some(pod)).await?;
        let dir = self.pod_dir(&self.uid);
        volumes::unmount(&dir);
        let released = csi::release(&self.shared, &dir).await;
        self.shared.objects.forget(&self.uid);
        self.shared.leave(&self.uid);
        self.write_status(pod, spec, true).await?;
        // Tried again; a driver that is away does not hide how the pod ended.
        released
    }

    /// Has undone what was prepared of the pod's devices.
    pub(crate) async fn unprepare(&self, pod: Option<&Pod>) -> Result<(), Error> {
        let undone = self.shared.dra.unprepare(&self.uid).await;
        if let (Some(pod), Err(error)) = (pod, &undone) {
            self.event(pod, EventType::Warning, "FailedUnprepareDynamicResources", &error.to_string());
        }
        undone
    }

    /// On failure, the reason and message of the event that tells of it.
    async fn act(
        &mut self,
        pod: &Pod,
        spec: &PodSpec,
        todo: &Actions,
        sandboxes: &[SandboxStatus],
        containers: &[ContainerStatus],
        next: &mut Next,
    ) -> Result<(), (&'static str, String)> {
        let shared = Arc::clone(&self.shared);
        let runtime = &shared.config.runtime;
        let dir = self.pod_dir(&self.uid);
        let unmounted = |error: Error| ("FailedMount", error.to_string());
        std::fs::create_dir_all(&dir).map_err(|error| unmounted(Error::io("create pod directory")(error)))?;
        let mut referred = objects::referred(pod);
        let claims = csi::record::of_pod(&dir).into_iter().filter_map(|(_, own)| own.claim);
        referred.extend(claims.map(|(namespace, name)| (objects::Kind::Claim, namespace, name)));
        shared.objects.follow(&self.uid, &referred, &self.wake);
        let prepared = match volumes::prepare(&shared, pod, &dir.join("volumes")).await {
            // Woken when the node's status says more.
            Err(error) if error.reason() == csi::attach::WAITS => {
                next.at((shared.now)() + RETRY);
                return Ok(());
            }
            prepared => prepared.map_err(unmounted)?,
        };
        next.at(prepared.refresh);
        if todo.new_sandbox {
            if !sandboxes.is_empty() {
                let message = "Pod sandbox changed, it will be killed and re-created.";
                self.event(pod, EventType::Normal, "SandboxChanged", message);
            }
            for old in sandboxes {
                let unkilled = |error| ("FailedKillPod", format!("error killing pod: {error}"));
                runtime.stop_sandbox(&old.id).await.map_err(unkilled)?;
                // The last run of each container is kept: for its log, and to go on counting from.
                let last = |c: &ContainerStatus| latest(containers, &c.name).is_some_and(|last| last.id == c.id);
                if !containers.iter().any(|c| c.sandbox_id == old.id && last(c)) {
                    runtime.remove_sandbox(&old.id).await.map_err(unkilled)?;
                }
            }
            let attempt = sandboxes.last().map_or(0, |s| s.pod.attempt + 1);
            let unmade = |error: String| ("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {error}"));
            if let Some(cgroups) = &shared.cgroups {
                let prepared = cgroups.prepare_pod(spec, &self.uid);
                prepared.map_err(|error| ("FailedCreatePodContainer", error.to_string()))?;
            }
            let problem = runtime.network_problem().and_then(|problem| problem.borrow().clone());
            if let Some(problem) = problem.filter(|_| spec.host_network != Some(true)) {
                let why = crate::register::network_not_ready(&problem);
                return Err(("NetworkNotReady", format!("network is not ready: {why}")));
            }
            let unprepared =
                |why: String| ("FailedPrepareDynamicResources", format!("Failed to prepare dynamic resources: {why}"));
            shared.dra.prepare(&shared.config.client, pod).await.map_err(unprepared)?;
            let handler = shared.runtime_handler(spec).await.map_err(unmade)?;
            let wanted = config::sandbox(&shared.config, pod, spec, attempt, handler).map_err(unmade)?;
            runtime.run_sandbox(wanted).await.map_err(|error| unmade(error.to_string()))?;
            next.at((shared.now)());
            return Ok(());
        }
        let Some(sandbox) = sandboxes.last() else { return Ok(()) };
        let now = (shared.now)();
        let stage = Stage { pod, spec, sandbox, containers, volumes: &prepared.paths, now };
        let mut held = false;
        for name in &todo.start {
            let Some(container) = containers::find(spec, name) else { continue };
            if held {
                // Its turn comes after the one whose image is awaited; its own image may come meanwhile.
                self.prefetch(&stage, &container).await;
                continue;
            }
            match self.bring_up(&stage, &container).await {
                Outcome::Started => self.prune(containers, name).await,
                // Debug containers hold nobody up.
                Outcome::Pulling => held = spec.ephemeral_containers.iter().flatten().all(|c| c.name != *name),
                Outcome::Waits(until) => next.at(until.unwrap_or(now + RETRY)),
            }
        }
        Ok(())
    }

    /// Begins the pull of an image that will be wanted soon.
    async fn prefetch(&mut self, stage: &Stage<'_>, container: &k8s_openapi::api::core::v1::Container) {
        if !self.pulls.is_running(&container.name) {
            // Whatever comes of it is found when it is the container's turn.
            self.begin_pull(stage, container).await;
        }
    }

    /// Of a container's runs that have ended, only the last is kept.
    async fn prune(&self, containers: &[ContainerStatus], name: &str) {
        let Some(last) = latest(containers, name) else { return };
        for old in containers.iter().filter(|c| c.name == name && c.id != last.id && !containers::is_live(c)) {
            if let Err(error) = self.shared.config.runtime.remove_container(&old.id).await {
                tracing::warn!(container = old.id, %error, "cannot remove a container's earlier run");
            }
        }
    }

    /// Where a pod's ports are reached from the node.
    pub(crate) fn address(&self, sandbox: &SandboxStatus) -> String {
        sandbox.ips.first().map_or_else(|| self.shared.config.node_ip().to_owned(), ToString::to_string)
    }

    fn health(&mut self, spec: &PodSpec, sandboxes: &[SandboxStatus], containers: &[ContainerStatus]) -> Results {
        let ip = sandboxes.last().map_or_else(|| self.shared.config.node_ip().to_owned(), |s| self.address(s));
        let pod = self.pod.borrow().clone();
        let told = pod.clone().map(|pod| self.with_status(pod));
        let (shared, about) = (Arc::clone(&self.shared), pod);
        let listener: Listener = Arc::new(move |report| {
            let Some(pod) = &about else { return };
            shared.count_probe(pod, report);
            let Err(message) = &report.outcome else { return };
            let mut about = reference(pod.as_ref());
            about.field_path = pod.spec.as_ref().map(|spec| containers::field_path(spec, &report.container));
            let message = format!("{} probe failed: {message}", report.kind.name());
            shared.events.event(about, EventType::Warning, "Unhealthy", &message);
        });
        let around = Around {
            runtime: &self.shared.config.runtime,
            ip: &ip,
            wake: &self.wake,
            listener: &listener,
            now: (self.shared.now)(),
            told: told.as_ref().and_then(|pod| pod.status.as_ref()),
        };
        self.probes.update(spec, containers, &around)
    }

    /// The last words of a container: what it wrote to its file, or where it asks for that, the end of its log.
    fn last_words(&self, pod: &Pod, spec: &PodSpec, seen: &ContainerStatus) -> Option<String> {
        let path = self.pod_dir(&self.uid).join("containers").join(&seen.name);
        let text = read_most(&path.join(format!("termination-{}", seen.attempt)), MESSAGE_LIMIT);
        if !text.is_empty() {
            return Some(text);
        }
        let container = containers::find(spec, &seen.name)?;
        let from_log = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        if !from_log || seen.exit_code == 0 {
            return None;
        }
        let logs = config::log_directory(&self.shared.config.root_dir, &config::identity(pod, 0));
        let text = crate::server::log_tail(&logs.join(&seen.log_path), LOG_TAIL.0, LOG_TAIL.1);
        Some(text).filter(|text| !text.is_empty())
    }

    /// Writes the status if it is not what the API has. `over` once nothing of the pod runs or will run again.
    pub(crate) async fn write_status(&mut self, pod: &Pod, spec: &PodSpec, over: bool) -> Result<(), Error> {
        let (sandboxes, containers) = self.observe().await?;
        let health = self.health(spec, &sandboxes, &containers);
        let ended: BTreeSet<&str> =
            containers.iter().filter(|c| !containers::is_live(c)).map(|c| c.id.as_str()).collect();
        let words = |c: &ContainerStatus| Some((c.id.clone(), self.last_words(pod, spec, c)?));
        let messages = containers.iter().filter(|c| ended.contains(c.id.as_str())).filter_map(words).collect();
        let facts = status::Facts {
            now: (self.shared.now)(),
            runtime: &self.shared.runtime_name,
            host_ips: &self.shared.config.node_ips,
            sandbox: sandboxes.last(),
            containers: &containers,
            waiting: &self.waiting,
            started: &health.started,
            ready: &health.ready,
            messages: &messages,
            resources: &self.allocated,
            resizing: self.resizing.as_ref(),
            over,
            ended: self.ended.as_ref(),
        };
        let mut new = status::compute(pod, &facts);
        self.shared.devices.show(&self.uid, &mut new);
        let shown = !static_pods::is_static(pod) || self.shared.mirrors.get(&self.uid).is_some();
        if shown && pod.status.as_ref() == Some(&new) {
            return Ok(());
        }
        let failed = |error: serde_json::Error| Error::config(format!("write pod status: {error}"));
        let old = serde_json::to_value(&pod.status).map_err(failed)?;
        let mut status = serde_json::to_value(&new).map_err(failed)?;
        // In a merge patch, what is to go has to be named.
        for (key, _) in old.as_object().into_iter().flatten() {
            if let Some(new) = status.as_object_mut().filter(|new| !new.contains_key(key)) {
                new.insert(key.clone(), serde_json::Value::Null);
            }
        }
        let uid = match static_pods::is_static(pod).then(|| self.shared.mirrors.get(&self.uid)) {
            None => Some(self.uid.clone()),
            Some(Some(mirror)) => mirror.metadata.uid.clone(),
            // Its coming brings us back here.
            Some(None) if pod.metadata.deletion_timestamp.is_none() => {
                return static_pods::create_mirror(&self.shared, pod).await;
            }
            Some(None) => return Ok(()),
        };
        let patch = serde_json::json!({"metadata": {"uid": uid}, "status": status});
        let meta = &pod.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        let client = &self.shared.config.client;
        match client.patch::<Pod>(meta.namespace.as_deref(), name, Patch::Merge(patch), Some("status")).await {
            Err(error) if !error.is_not_found() => Err(Error::client("write pod status")(error)),
            _ => Ok(()),
        }
    }
}

/// `name_namespace(uid)`, as messages name pods.
fn full_name(pod: &Pod) -> String {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let meta = &pod.metadata;
    format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid))
}

/// `10s`, `1m20s`, `5m0s`.
fn in_words(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

fn read_most(path: &std::path::Path, limit: u64) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // A file that cannot be read says nothing.
        let _ = file.take(limit).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How long a pod gets to end: what its deletion says, or else its spec.
pub fn grace(pod: &Pod) -> Duration {
    let asked = pod.metadata.deletion_grace_period_seconds;
    let spec = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    Duration::from_secs(asked.or(spec).and_then(|s| u64::try_from(s).ok()).unwrap_or(30))
}
