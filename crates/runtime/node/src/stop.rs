//! Ending containers and pods: hooks, grace, order, and what is freed after.

use std::sync::Arc;
use std::time::Duration;

use dhow_client::{DeleteParams, EventType};
use dhow_cri::runtime::{ContainerStatus, RuntimeEventKind, SandboxStatus};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use crate::containers::{self, ends_after};
use crate::worker::{GONE_GRACE, Worker, grace};
use crate::{Error, config, csi, hooks, static_pods, volumes};

/// What a process gets at least between its signal and its kill.
const MIN_GRACE: Duration = Duration::from_secs(2);

impl Worker {
    /// Runs the container's preStop hook, when `hook`, waits until those of `others` that have to end before it have,
    /// and stops it, all within `grace`.
    pub(crate) async fn stop(
        &self,
        pod: Option<&Pod>,
        seen: &ContainerStatus,
        sandboxes: &[SandboxStatus],
        others: &[&ContainerStatus],
        grace: Duration,
        hook: bool,
    ) -> Result<(), Error> {
        let runtime = &self.shared.config.runtime;
        let begun = tokio::time::Instant::now();
        let spec = pod.and_then(|p| p.spec.as_ref());
        let container = spec.and_then(|s| containers::find(s, &seen.name));
        let pre_stop = container.as_ref().and_then(|c| Some((c, c.lifecycle.as_ref()?.pre_stop.as_ref()?)));
        let sandbox = sandboxes.iter().find(|s| s.id == seen.sandbox_id);
        if let (Some(pod), Some((container, handler)), Some(sandbox), true) =
            (pod, pre_stop, sandbox, hook && !grace.is_zero())
        {
            let ip = self.address(sandbox);
            let target = hooks::Target { runtime: runtime.as_ref(), id: &seen.id, ip: &ip, container };
            let result = tokio::time::timeout(grace, target.run(handler)).await;
            if let Err(message) = result.unwrap_or_else(|_| Err("it did not end within the grace period".into())) {
                let message = format!("PreStopHook failed: {message}");
                self.container_event(pod, &seen.name, EventType::Warning, "FailedPreStopHook", &message);
            }
        }
        let first = spec.map(|spec| ends_after(spec, &seen.name)).unwrap_or_default();
        let first: Vec<String> = others.iter().filter(|c| first.contains(&c.name)).map(|c| c.id.clone()).collect();
        if !first.is_empty() {
            // Those that take too long are no longer waited for.
            let _ = tokio::time::timeout(grace.saturating_sub(begun.elapsed()), self.ended(first)).await;
        }
        // A hook that took it all still leaves the process a moment to end by itself.
        let left = grace.saturating_sub(begun.elapsed()).max(MIN_GRACE.min(grace));
        let stopped = runtime.stop_container(&seen.id, left).await;
        if let (Some(pod), Err(error)) = (pod, &stopped) {
            let name = &seen.name;
            let message = format!(
                "error killing pod: failed to \"KillContainer\" for {name:?} with KillContainerError: \"{error}\""
            );
            self.event(pod, EventType::Warning, "FailedKillPod", &message);
        }
        Ok(stopped?)
    }

    /// Resolves once all of these have ended.
    async fn ended(&self, mut ids: Vec<String>) {
        let runtime = &self.shared.config.runtime;
        loop {
            let mut events = runtime.events();
            // Subscribed before looking, so that no end falls between.
            let Ok(all) = runtime.list_containers().await else { return };
            ids.retain(|id| all.iter().any(|c| c.id == *id && containers::is_live(c)));
            while !ids.is_empty() {
                let Some(event) = events.next().await else { break };
                if event.kind != RuntimeEventKind::Started {
                    ids.retain(|id| *id != event.container_id);
                }
            }
            if ids.is_empty() {
                return;
            }
        }
    }

    /// Stops everything, frees it, then lets the API object go.
    pub(crate) async fn terminate(&mut self, pod: Option<&Pod>) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let runtime = &shared.config.runtime;
        self.pulls = Default::default();
        let (sandboxes, all) = self.observe().await?;
        let live: Vec<_> = all.iter().filter(|c| containers::is_live(c)).collect();
        if let Some(pod) = pod {
            for seen in &live {
                let message = format!("Stopping container {}", seen.name);
                self.container_event(pod, &seen.name, EventType::Normal, "Killing", &message);
            }
        }
        let mut changes = self.pod.clone();
        let mut grace = pod.map_or(GONE_GRACE, grace);
        let mut hook = true;
        loop {
            let stops = live.iter().map(|c| self.stop(pod, c, &sandboxes, &live, grace, hook));
            tokio::select! {
                done = futures::future::try_join_all(stops) => break drop(done?),
                shorter = shortened(&mut changes, grace) => (grace, hook) = (shorter, false),
            }
        }
        self.unprepare(pod).await?;
        if let Some((pod, spec)) = pod.and_then(|p| Some((p, p.spec.as_ref()?))) {
            self.waiting.clear();
            self.write_status(pod, spec, true).await?;
        }
        for sandbox in sandboxes {
            runtime.stop_sandbox(&sandbox.id).await?;
            runtime.remove_sandbox(&sandbox.id).await?;
            let _ = std::fs::remove_dir_all(config::log_directory(&self.shared.config.root_dir, &sandbox.pod));
        }
        let dir = self.pod_dir(&self.uid);
        volumes::unmount(&dir);
        csi::release(&shared, &dir).await?;
        volumes::remove(&dir)?;
        if let (Some(cgroups), Some(spec)) = (&shared.cgroups, pod.and_then(|p| p.spec.as_ref())) {
            cgroups.remove_pod(spec, &self.uid);
        }
        let Some(pod) = pod else { return Ok(()) };
        if static_pods::is_static(pod) {
            if let Some(mirror) = shared.mirrors.get(&self.uid) {
                static_pods::delete_mirror(&shared, &mirror).await;
            }
            return Ok(());
        }
        let params = DeleteParams { grace_period: Some(0), uid: Some(self.uid.clone()), ..Default::default() };
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
