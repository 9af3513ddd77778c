//! A shutdown of the machine in order: pods end by priority, each group within its time, before the machine goes on.

mod bus;
mod logind;
mod message;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{EventType, Informer};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use crate::settings::ShutdownGroup;
use crate::shared::Shared;
use crate::static_pods;
use crate::status::Ended;
use crate::worker::grace;
use logind::{Lock, Logind};

/// Before a lost connection is made anew.
const PAUSE: Duration = Duration::from_secs(5);
/// The longest wait for an answer at the end, when much is going down.
const QUESTION: Duration = Duration::from_secs(5);
/// What a group gets beyond its time, for what comes after a process' end.
const LINGER: Duration = Duration::from_secs(1);

const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
pub const REFUSED: &str = "Pod was rejected as the node is shutting down.";

/// Follows logind until `shutdown`. On a machine without it, nothing is done.
pub async fn run(shared: Arc<Shared>, pods: Informer<Pod>, shutdown: CancellationToken) {
    let Some(address) = shared.config.system_bus.clone() else { return };
    if shared.config.settings.shutdown.is_empty() {
        return;
    }
    let mut told = false;
    loop {
        let result = tokio::select! {
            () = shutdown.cancelled() => return,
            result = follow(&shared, &pods, &address) => result,
        };
        if let Err(error) = result
            && !std::mem::replace(&mut told, true)
        {
            tracing::warn!(%error, address, "cannot learn of the machine's shutdown; tried again from time to time");
        }
        tokio::select! { () = shutdown.cancelled() => return, () = tokio::time::sleep(PAUSE) => {} }
    }
}

/// Returns with what broke the connection.
async fn follow(shared: &Arc<Shared>, pods: &Informer<Pod>, address: &str) -> io::Result<()> {
    let mut logind = Logind::connect(address).await?;
    let wanted: Duration = shared.config.settings.shutdown.iter().map(|group| group.grace).sum();
    if logind.longest_wait().await? < wanted {
        logind.extend_wait(wanted).await?;
        let now = logind.longest_wait().await?;
        if now < wanted {
            let (now, wanted) = (now.as_secs(), wanted.as_secs());
            tracing::warn!("logind waits {now} s at a shutdown, pods want {wanted} s: see InhibitDelayMaxSec");
        }
    }
    let mut lock: Option<Lock> = Some(logind.inhibit().await?);
    tracing::info!("the machine's shutdown waits for the pods of this node");
    loop {
        if !logind.shutdown().await? {
            called_off(shared);
            lock = Some(logind.inhibit().await?);
            continue;
        }
        tracing::info!("the machine shuts down");
        shared.node_event(EventType::Normal, "NodeShutdown", "Shutdown manager detected shutdown event");
        tokio::select! {
            () = end_pods(shared, pods) => drop(lock.take()),
            changed = logind.shutdown() => if !changed? {
                called_off(shared);
                lock = Some(logind.inhibit().await?);
            },
        }
    }
}

fn called_off(shared: &Shared) {
    tracing::info!("the machine's shutdown was called off");
    shared.node_event(EventType::Normal, "NodeShutdown", "Shutdown manager detected shutdown cancellation");
    shared.set_shutting_down(false);
}

/// At the agent's own end: if that is because the machine stops, its pods are ended first.
pub async fn at_the_end(shared: &Arc<Shared>, pods: &Informer<Pod>) {
    let Some(address) = &shared.config.system_bus else { return };
    let stops = tokio::time::timeout(QUESTION, logind::machine_stops(address)).await;
    if !shared.config.settings.shutdown.is_empty() && matches!(stops, Ok(Ok(true))) {
        tracing::info!("the machine stops; ending the pods");
        end_pods(shared, pods).await;
    }
}

/// A pod that ends, and how long it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ending {
    uid: String,
    grace: Duration,
}

/// Which pods end together, the least important group first.
fn plan(groups: &[ShutdownGroup], pods: &[Arc<Pod>]) -> Vec<(Duration, Vec<Ending>)> {
    let mut out: Vec<(Duration, Vec<Ending>)> = groups.iter().map(|group| (group.grace, Vec::new())).collect();
    for pod in pods {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Failed" | "Succeeded")) {
            continue;
        }
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        // Those below the first group go with it.
        let place = groups.iter().rposition(|group| group.priority <= priority).unwrap_or(0);
        let Some((most, members)) = out.get_mut(place) else { continue };
        let uid = static_pods::mirrored(pod).or(pod.metadata.uid.as_deref()).unwrap_or_default().to_owned();
        members.push(Ending { uid, grace: grace(pod).min(*most) });
    }
    out.retain(|(_, members)| !members.is_empty());
    out
}

/// Ends the pods, group by group; nothing new comes in meanwhile.
async fn end_pods(shared: &Arc<Shared>, pods: &Informer<Pod>) {
    shared.set_shutting_down(true);
    for (most, members) in plan(&shared.config.settings.shutdown, &pods.list()) {
        tracing::info!(pods = members.len(), seconds = most.as_secs(), "ending a group of pods");
        for member in &members {
            let ended = Ended { reason: "Terminated", message: MESSAGE.to_owned() };
            shared.end(&member.uid, ended, Some(member.grace));
        }
        let uids: BTreeSet<&str> = members.iter().map(|member| member.uid.as_str()).collect();
        if tokio::time::timeout(most + LINGER, over(shared, pods, &uids)).await.is_err() {
            tracing::warn!(seconds = most.as_secs(), "not all pods ended in time");
        }
    }
}

/// Resolves once nothing of these pods runs and the API knows of their end.
async fn over(shared: &Shared, pods: &Informer<Pod>, uids: &BTreeSet<&str>) {
    let changed = Arc::new(tokio::sync::Notify::new());
    let wake = Arc::clone(&changed);
    pods.on_change(move |_| wake.notify_one());
    loop {
        let mut events = shared.config.runtime.events();
        let known = |uid: &str| {
            pods.list().iter().any(|pod| {
                let own = static_pods::mirrored(pod).or(pod.metadata.uid.as_deref()) == Some(uid);
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                own && !matches!(phase, Some("Failed" | "Succeeded"))
            })
        };
        if !is_live(shared, uids).await && !uids.iter().any(|uid| known(uid)) {
            return;
        }
        tokio::select! { _ = events.next() => {}, () = changed.notified() => {} }
    }
}

async fn is_live(shared: &Shared, uids: &BTreeSet<&str>) -> bool {
    let runtime = &shared.config.runtime;
    let (Ok(sandboxes), Ok(containers)) = (runtime.list_sandboxes().await, runtime.list_containers().await) else {
        return true;
    };
    let own: BTreeSet<&str> =
        sandboxes.iter().filter(|s| uids.contains(s.pod.uid.as_str())).map(|s| s.id.as_str()).collect();
    containers.iter().any(|c| own.contains(c.sandbox_id.as_str()) && crate::containers::is_live(c))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pod(uid: &str, priority: i32, grace: i64, phase: &str) -> Arc<Pod> {
        let pod = serde_json::json!({
            "metadata": {"uid": uid},
            "spec": {"containers": [], "priority": priority, "terminationGracePeriodSeconds": grace},
            "status": {"phase": phase}
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn the_least_important_end_first_and_none_gets_more_than_its_group() {
        let group = |priority, seconds| ShutdownGroup { priority, grace: Duration::from_secs(seconds) };
        let groups = [group(0, 20), group(1000, 10), group(2_000_000_000, 5)];
        let pods = [
            pod("critical", 2_000_001_000, 30, "Running"),
            pod("low", -5, 3, "Running"),
            pod("usual", 0, 60, "Pending"),
            pod("high", 5000, 30, "Running"),
            pod("over", 0, 30, "Succeeded"),
        ];
        let got = plan(&groups, &pods);
        let shown: Vec<(u64, Vec<(&str, u64)>)> = got
            .iter()
            .map(|(most, members)| {
                (most.as_secs(), members.iter().map(|m| (m.uid.as_str(), m.grace.as_secs())).collect())
            })
            .collect();
        assert_eq!(
            shown,
            [(20, vec![("low", 3), ("usual", 20)]), (10, vec![("high", 10)]), (5, vec![("critical", 5)])]
        );
        assert!(plan(&[], &pods).is_empty());
    }
}
