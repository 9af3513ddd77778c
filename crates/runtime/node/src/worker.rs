//! One task per pod: look at what runs, decide, act, write the status, wait for the next change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dhow_client::{DeleteParams, EventRecorder, EventType, Informer, Patch, reference};
use dhow_cri::runtime::{ContainerStatus, ImageInfo, SandboxStatus};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Service};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::actions::{self, Observed, compute_actions, latest};
use crate::probes::{Probes, Results};
use crate::{Error, NodeConfig, config, env, hooks, pull_secrets, status, volumes};

/// Mounted configuration and tokens are looked at this often.
const REFRESH: Duration = Duration::from_secs(60);
/// For a pod whose API object is gone.
const GONE_GRACE: Duration = Duration::from_secs(1);
const MIN_GRACE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(10);

pub struct Shared {
    pub config: NodeConfig,
    pub services: Informer<Service>,
    pub events: EventRecorder,
    pub memory: u64,
}

pub struct Worker {
    pub shared: Arc<Shared>,
    /// `None` once the API object is gone.
    pub pod: watch::Receiver<Option<Arc<Pod>>>,
    pub wake: Arc<Notify>,
    pub waiting: BTreeMap<String, (String, String)>,
    pub probes: Probes,
}

impl Worker {
    pub async fn run(mut self, uid: String, shutdown: CancellationToken) {
        loop {
            let pod = self.pod.borrow_and_update().clone();
            let result = match &pod {
                Some(pod) if pod.metadata.deletion_timestamp.is_none() => self.sync(pod, &uid).await,
                _ => match self.terminate(pod.as_deref(), &uid).await {
                    Ok(()) => return,
                    Err(error) => Err(error),
                },
            };
            let delay = match result {
                Ok(delay) => delay,
                Err(error) => {
                    tracing::warn!(%error, %uid, "cannot sync pod");
                    Some(RETRY)
                }
            };
            let timer = tokio::time::sleep(delay.unwrap_or(Duration::from_secs(86_400)));
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = self.pod.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                () = timer => {}
            }
        }
    }

    fn pod_dir(&self, uid: &str) -> PathBuf {
        self.shared.config.root_dir.join("pods").join(uid)
    }

    async fn observe(&self, uid: &str) -> Result<(Vec<SandboxStatus>, Vec<ContainerStatus>), Error> {
        let runtime = &self.shared.config.runtime;
        let mut sandboxes = runtime.list_sandboxes().await?;
        sandboxes.retain(|s| s.pod.uid == uid);
        sandboxes.sort_by_key(|s| s.pod.attempt);
        let mut containers = runtime.list_containers().await?;
        containers.retain(|c| sandboxes.iter().any(|s| s.id == c.sandbox_id));
        Ok((sandboxes, containers))
    }

    fn event(&self, pod: &Pod, kind: EventType, reason: &str, message: &str) {
        self.shared.events.event(reference(pod), kind, reason, message);
    }

    async fn sync(&mut self, pod: &Arc<Pod>, uid: &str) -> Result<Option<Duration>, Error> {
        let Some(spec) = &pod.spec else { return Ok(None) };
        let (sandboxes, containers) = self.observe(uid).await?;
        let health = self.health(spec, &sandboxes, &containers);
        let now = SystemTime::now();
        let seen = Observed {
            now,
            sandbox: sandboxes.last(),
            containers: &containers,
            unhealthy: &health.unhealthy,
            started: &health.started,
        };
        let todo = compute_actions(spec, &seen);
        for seen in containers.iter().filter(|c| todo.kill.contains(&c.id)) {
            self.stop(Some(pod), seen, &sandboxes, grace(pod), true).await?;
        }
        let mut delay = todo.wake.and_then(|at| at.duration_since(now).ok());
        self.waiting.retain(|name, _| todo.start.contains(name));
        if todo.finished {
            self.waiting.clear();
        } else if let Err((reason, message)) = self.act(pod, spec, uid, &todo, &sandboxes, &containers).await {
            self.event(pod, EventType::Warning, reason, &message);
            delay = Some(RETRY);
        }
        for name in &todo.backing_off {
            let message = format!("back-off restarting failed container={name}");
            self.waiting.insert(name.clone(), ("CrashLoopBackOff".into(), message.clone()));
            self.event(pod, EventType::Warning, "BackOff", &message);
        }
        self.write_status(pod, spec, uid, todo.finished).await?;
        if !self.waiting.is_empty() && todo.backing_off.is_empty() {
            delay = Some(delay.map_or(RETRY, |d| d.min(RETRY)));
        }
        let again = todo.new_sandbox.then_some(Duration::ZERO);
        let live_volumes = spec.volumes.iter().flatten().any(|v| v.empty_dir.is_none() && v.host_path.is_none());
        Ok([delay, again.filter(|_| delay.is_none()), (live_volumes && !todo.finished).then_some(REFRESH)]
            .into_iter()
            .flatten()
            .min())
    }

    /// On failure, the reason and message of the event that tells of it.
    async fn act(
        &mut self,
        pod: &Pod,
        spec: &PodSpec,
        uid: &str,
        todo: &actions::Actions,
        sandboxes: &[SandboxStatus],
        containers: &[ContainerStatus],
    ) -> Result<(), (&'static str, String)> {
        let shared = Arc::clone(&self.shared);
        let runtime = &shared.config.runtime;
        let dir = self.pod_dir(uid);
        let unmounted = |error: Error| ("FailedMount", error.to_string());
        std::fs::create_dir_all(&dir).map_err(|error| unmounted(Error::io("create pod directory")(error)))?;
        let paths = volumes::prepare(&shared.config.client, pod, &dir.join("volumes")).await.map_err(unmounted)?;
        if todo.new_sandbox {
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
            let unmade = |error| ("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {error}"));
            runtime.run_sandbox(config::sandbox(&shared.config, pod, spec, attempt)).await.map_err(unmade)?;
            return Ok(());
        }
        let Some(sandbox) = sandboxes.last() else { return Ok(()) };
        let all = spec.init_containers.iter().flatten().chain(&spec.containers);
        for container in all.filter(|c| todo.start.contains(&c.name)) {
            match self.start(pod, spec, container, sandbox, containers, &paths).await {
                Ok(()) => drop(self.waiting.remove(&container.name)),
                Err(error) => {
                    self.event(pod, EventType::Warning, "Failed", &format!("Error: {error}"));
                    self.waiting.insert(container.name.clone(), (error.reason().into(), error.to_string()));
                }
            }
        }
        Ok(())
    }

    async fn start(
        &self,
        pod: &Pod,
        spec: &PodSpec,
        container: &Container,
        sandbox: &SandboxStatus,
        containers: &[ContainerStatus],
        paths: &BTreeMap<String, PathBuf>,
    ) -> Result<(), Error> {
        let shared = &self.shared;
        let runtime = &shared.config.runtime;
        let image = self.image(pod, container).await?;
        let mut pod = pod.clone();
        let pod_status = pod.status.get_or_insert_default();
        pod_status.pod_ip = sandbox.ips.first().map(ToString::to_string);
        pod_status.host_ip = Some(shared.config.node_ip.clone());
        let vars = env::build(&shared.config.client, &shared.services.list(), &pod, container).await?;
        let attempt = latest(containers, &container.name).map_or(0, |c| c.attempt + 1);
        let dir = self.pod_dir(&sandbox.pod.uid);
        let files = dir.join("containers").join(&container.name);
        std::fs::create_dir_all(&files).map_err(Error::io("create container directory"))?;
        let termination_log = files.join(format!("termination-{attempt}"));
        std::fs::write(&termination_log, "").map_err(Error::io("create termination log"))?;
        let hosts = dir.join("hosts");
        if spec.host_network != Some(true) {
            std::fs::write(&hosts, hosts_file(&pod, spec, sandbox)).map_err(Error::io("write hosts file"))?;
        }
        let start = config::Start {
            attempt,
            image: &image,
            env: vars,
            volumes: paths,
            hosts: (spec.host_network != Some(true)).then_some(hosts),
            termination_log,
            node_memory: shared.memory,
        };
        let id = runtime.create_container(&sandbox.id, config::container(spec, container, start)?).await?;
        self.event(&pod, EventType::Normal, "Created", &format!("Container created: {}", container.name));
        runtime.start_container(&id).await?;
        self.event(&pod, EventType::Normal, "Started", &format!("Container started: {}", container.name));
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return Ok(()) };
        let ip = self.address(sandbox);
        let target = hooks::Target { runtime: runtime.as_ref(), id: &id, ip: &ip, container };
        let Err(message) = target.run(hook).await else { return Ok(()) };
        let message = format!("PostStartHook failed: {message}");
        self.event(&pod, EventType::Warning, "FailedPostStartHook", &message);
        runtime.stop_container(&id, grace(&pod)).await?;
        Err(Error::Spec { reason: "PostStartHookError", message })
    }

    /// Where a pod's ports are reached from the node.
    fn address(&self, sandbox: &SandboxStatus) -> String {
        sandbox.ips.first().map_or_else(|| self.shared.config.node_ip.clone(), ToString::to_string)
    }

    /// Runs the container's preStop hook, when `hook`, and stops it, all within `grace`.
    async fn stop(
        &self,
        pod: Option<&Pod>,
        seen: &ContainerStatus,
        sandboxes: &[SandboxStatus],
        grace: Duration,
        hook: bool,
    ) -> Result<(), Error> {
        let runtime = &self.shared.config.runtime;
        let begun = tokio::time::Instant::now();
        let spec = pod.and_then(|p| p.spec.as_ref());
        let container = spec
            .and_then(|s| s.containers.iter().chain(s.init_containers.iter().flatten()).find(|c| c.name == seen.name));
        let pre_stop = container.and_then(|c| Some((c, c.lifecycle.as_ref()?.pre_stop.as_ref()?)));
        let sandbox = sandboxes.iter().find(|s| s.id == seen.sandbox_id);
        if let (Some(pod), Some((container, handler)), Some(sandbox), true) =
            (pod, pre_stop, sandbox, hook && !grace.is_zero())
        {
            let ip = self.address(sandbox);
            let target = hooks::Target { runtime: runtime.as_ref(), id: &seen.id, ip: &ip, container };
            let result = tokio::time::timeout(grace, target.run(handler)).await;
            if let Err(message) = result.unwrap_or_else(|_| Err("it did not end within the grace period".into())) {
                let message = format!("PreStopHook failed: {message}");
                self.event(pod, EventType::Warning, "FailedPreStopHook", &message);
            }
        }
        // A hook that took it all still leaves the process a moment to end by itself.
        let left = grace.saturating_sub(begun.elapsed()).max(MIN_GRACE.min(grace));
        Ok(runtime.stop_container(&seen.id, left).await?)
    }

    async fn image(&self, pod: &Pod, container: &Container) -> Result<ImageInfo, Error> {
        let runtime = &self.shared.config.runtime;
        let name = container.image.as_deref().unwrap_or_default();
        let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
        let present = runtime.image_status(name).await?;
        match (present, policy) {
            (Some(image), "IfNotPresent" | "Never") => {
                let message = format!("Container image {name:?} already present on machine");
                self.event(pod, EventType::Normal, "Pulled", &message);
                return Ok(image);
            }
            (None, "Never") => {
                let message = format!("Container image {name:?} is not present with pull policy of Never");
                return Err(Error::Spec { reason: "ErrImageNeverPull", message });
            }
            _ => {}
        }
        self.event(pod, EventType::Normal, "Pulling", &format!("Pulling image {name:?}"));
        let auth = pull_secrets::auth(&self.shared.config.client, pod, name).await;
        runtime.pull_image(name, auth).await?;
        self.event(pod, EventType::Normal, "Pulled", &format!("Successfully pulled image {name:?}"));
        let gone = || Error::Spec { reason: "ErrImagePull", message: format!("image {name:?} is gone after its pull") };
        runtime.image_status(name).await?.ok_or_else(gone)
    }

    fn health(&mut self, spec: &PodSpec, sandboxes: &[SandboxStatus], containers: &[ContainerStatus]) -> Results {
        let ip = sandboxes.last().and_then(|s| s.ips.first()).map(ToString::to_string);
        let ip = ip.unwrap_or_else(|| self.shared.config.node_ip.clone());
        self.probes.update(&self.shared.config.runtime, spec, containers, &ip, &self.wake)
    }

    async fn write_status(&mut self, pod: &Pod, spec: &PodSpec, uid: &str, finished: bool) -> Result<(), Error> {
        let (sandboxes, containers) = self.observe(uid).await?;
        let live: BTreeSet<String> = containers.iter().filter(|c| actions::is_live(c)).map(|c| c.id.clone()).collect();
        let health = self.health(spec, &sandboxes, &containers);
        let files = self.pod_dir(uid).join("containers");
        let message = |c: &ContainerStatus| {
            let text = std::fs::read(files.join(&c.name).join(format!("termination-{}", c.attempt))).ok()?;
            let text = String::from_utf8_lossy(&text[..text.len().min(4096)]).into_owned();
            (!text.is_empty()).then(|| (c.id.clone(), text))
        };
        let messages = containers.iter().filter(|c| !live.contains(&c.id)).filter_map(message).collect();
        let facts = status::Facts {
            now: SystemTime::now(),
            host_ip: &self.shared.config.node_ip,
            host_network: spec.host_network == Some(true),
            sandbox: sandboxes.last(),
            containers: &containers,
            waiting: &self.waiting,
            started: &health.started,
            ready: &health.ready,
            messages: &messages,
            finished,
        };
        let new = status::compute(pod, &facts);
        if pod.status.as_ref() == Some(&new) {
            return Ok(());
        }
        let patch = serde_json::json!({"metadata": {"uid": uid}, "status": new});
        let meta = &pod.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        let client = &self.shared.config.client;
        match client.patch::<Pod>(meta.namespace.as_deref(), name, Patch::Merge(patch), Some("status")).await {
            Err(error) if !error.is_not_found() => Err(Error::client("write pod status")(error)),
            _ => Ok(()),
        }
    }

    /// Stops everything, frees it, then lets the API object go.
    async fn terminate(&mut self, pod: Option<&Pod>, uid: &str) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let runtime = &shared.config.runtime;
        let (sandboxes, containers) = self.observe(uid).await?;
        let live: Vec<_> = containers.iter().filter(|c| actions::is_live(c)).collect();
        if let Some(pod) = pod {
            for seen in &live {
                let message = format!("Stopping container {}", seen.name);
                self.event(pod, EventType::Normal, "Killing", &message);
            }
        }
        let mut changes = self.pod.clone();
        let mut grace = pod.map_or(GONE_GRACE, grace);
        let mut hook = true;
        loop {
            let stops = live.iter().map(|c| self.stop(pod, c, &sandboxes, grace, hook));
            tokio::select! {
                done = futures::future::try_join_all(stops) => break drop(done?),
                shorter = shortened(&mut changes, grace) => (grace, hook) = (shorter, false),
            }
        }
        if let Some((pod, spec)) = pod.and_then(|p| Some((p, p.spec.as_ref()?))) {
            self.write_status(pod, spec, uid, true).await?;
        }
        for sandbox in sandboxes {
            runtime.stop_sandbox(&sandbox.id).await?;
            runtime.remove_sandbox(&sandbox.id).await?;
            let _ = std::fs::remove_dir_all(config::log_directory(&self.shared.config.root_dir, &sandbox.pod));
        }
        volumes::remove(&self.pod_dir(uid))?;
        let Some(pod) = pod else { return Ok(()) };
        let params = DeleteParams { grace_period: Some(0), uid: Some(uid.into()), ..Default::default() };
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match self.shared.config.client.delete::<Pod>(pod.metadata.namespace.as_deref(), name, &params).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(Error::client("delete pod")(error)),
            _ => Ok(()),
        }
    }
}

/// Resolves when the pod is to end sooner than it was said before.
async fn shortened(changes: &mut watch::Receiver<Option<Arc<Pod>>>, than: Duration) -> Duration {
    let sooner = |pod: &Option<Arc<Pod>>| pod.as_ref().map_or(GONE_GRACE, |pod| grace(pod));
    let found = changes.wait_for(|pod| sooner(pod) < than).await.map(|pod| sooner(&pod)).ok();
    match found {
        Some(grace) => grace,
        None => std::future::pending().await,
    }
}

fn grace(pod: &Pod) -> Duration {
    let asked = pod.metadata.deletion_grace_period_seconds;
    let spec = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    Duration::from_secs(asked.or(spec).and_then(|s| u64::try_from(s).ok()).unwrap_or(30))
}

fn hosts_file(pod: &Pod, spec: &PodSpec, sandbox: &SandboxStatus) -> String {
    let mut text =
        String::from("# Managed by Dhow.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let name = spec.hostname.as_deref().or(pod.metadata.name.as_deref()).unwrap_or_default();
    for ip in &sandbox.ips {
        let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
        let full = spec.subdomain.as_ref().map(|s| format!("{name}.{s}.{ns}.svc.cluster.local\t")).unwrap_or_default();
        text.push_str(&format!("{ip}\t{full}{name}\n"));
    }
    for alias in spec.host_aliases.iter().flatten() {
        text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(seconds: i64) -> Option<Arc<Pod>> {
        let mut pod = Pod::default();
        pod.metadata.deletion_grace_period_seconds = Some(seconds);
        Some(Arc::new(pod))
    }

    #[tokio::test]
    async fn only_a_shorter_grace_or_a_gone_pod_hurries_the_end() {
        let (sender, mut receiver) = watch::channel(ending(30));
        let thirty = Duration::from_secs(30);
        let poll = futures::poll!(std::pin::pin!(shortened(&mut receiver, thirty)));
        assert!(poll.is_pending());
        sender.send_replace(ending(60));
        sender.send_replace(ending(5));
        assert_eq!(shortened(&mut receiver, thirty).await, Duration::from_secs(5));
        sender.send_replace(None);
        assert_eq!(shortened(&mut receiver, Duration::from_secs(5)).await, GONE_GRACE);
    }
}
