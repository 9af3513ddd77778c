//! Ends pods before the node runs out of memory, disk, inodes or processes, and pods that use more disk than they may.

mod decide;
mod usage;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{EventType, Informer, reference};
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use crate::disk::{self, Disks};
use crate::settings::Signal;
use crate::shared::Shared;
use crate::status::Ended;
use decide::{Evict, Manager};

/// How often the node's resources are looked at, as upstream does. The kernel has no event for a threshold of free
/// memory or disk that holds on every kernel we run on.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Images that came this short a while ago may be about to be used, by a pod whose other images are still on their way.
const YOUNG: Duration = Duration::from_secs(120);
/// What a pod gets to end that is over a limit of its own.
const IMMEDIATE: Duration = Duration::from_secs(1);

/// Looks after the node until `shutdown`.
pub async fn run(shared: Arc<Shared>, pods: Informer<Pod>, shutdown: CancellationToken) {
    let mut manager = Manager::default();
    let mut timer = tokio::time::interval(LOOK_EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! { () = shutdown.cancelled() => return, _ = timer.tick() => {} }
        let active: Vec<Arc<Pod>> = pods.list().into_iter().filter(|pod| is_active(pod)).collect();
        let settings = &shared.config.settings;
        let mut verdict = manager.look(&settings.eviction, &usage::readings(&shared).await, (shared.now)());
        let of_disk = |signal: Signal| signal.condition() == "DiskPressure";
        if let Some(need) = &verdict.evict {
            let message = format!("Attempting to reclaim {}", need.signal.resource());
            shared.node_event(EventType::Warning, "EvictionThresholdMet", &message);
        }
        if verdict.evict.as_ref().is_some_and(|need| of_disk(need.signal)) && reclaim(&shared).await {
            // What nobody uses went first; that may have been enough.
            verdict = manager.look(&settings.eviction, &usage::readings(&shared).await, (shared.now)());
        }
        let lasting = manager.pressures((shared.now)(), settings.pressure_transition);
        for reason in turns(&shared.pressures().borrow(), &lasting) {
            let message = format!("Node {} status is now: {reason}", shared.config.name);
            shared.node_event(EventType::Normal, reason, &message);
        }
        shared.set_pressures(lasting);
        let short_of_disk = verdict.evict.as_ref().is_some_and(|need| of_disk(need.signal));
        let counted = active.iter().filter(|pod| short_of_disk || usage::limits_disk(pod));
        let disks = disk::look(&shared, &counted.cloned().collect::<Vec<_>>()).await;
        if let Some(need) = &verdict.evict {
            let by = usage::compared_by(&shared, need.signal).await;
            evict_one(&shared, &active, need, by, &disks);
        }
        for pod in &active {
            if let Some(message) = usage::over_its_limit(pod, &disks) {
                end(&shared, pod, message, IMMEDIATE);
            }
        }
    }
}

/// What events tell of pressures that come and go.
fn turns(old: &BTreeSet<&'static str>, new: &BTreeSet<&'static str>) -> Vec<&'static str> {
    let reasons = [
        ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
        ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
        ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
    ];
    let turned = reasons.into_iter().filter(|(condition, ..)| old.contains(condition) != new.contains(condition));
    turned.map(|(condition, comes, goes)| if new.contains(condition) { comes } else { goes }).collect()
}

fn is_active(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Failed" | "Succeeded"))
}

/// Frees what nobody uses; returns whether anything was freed.
async fn reclaim(shared: &Shared) -> bool {
    match shared.config.runtime.garbage_collect_images(u64::MAX, YOUNG).await {
        Ok(freed) => {
            tracing::info!(freed, "collected unused images for want of disk");
            freed > 0
        }
        Err(error) => {
            tracing::warn!(%error, "cannot collect unused images");
            false
        }
    }
}

/// Ends the one pod whose end helps most and hurts least.
fn evict_one(shared: &Shared, active: &[Arc<Pod>], need: &Evict, by: Signal, disks: &Disks) {
    let candidates =
        active.iter().filter(|pod| shared.verdict(pod.metadata.uid.as_deref().unwrap_or_default()).is_none());
    let mut candidates: Vec<decide::Candidate<'_>> =
        candidates.filter_map(|pod| usage::candidate(shared, pod, by, disks)).collect();
    decide::rank(&mut candidates);
    let Some(first) = candidates.first() else {
        tracing::warn!(resource = need.signal.resource(), "the node is short, but no pod may be evicted");
        return;
    };
    let grace = match need.hard {
        true => Duration::ZERO,
        false => crate::worker::grace(first.pod).min(shared.config.settings.eviction_grace),
    };
    end(shared, first.pod, decide::message(need, first), grace);
}

fn end(shared: &Shared, pod: &Pod, message: String, grace: Duration) {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if shared.verdict(uid).is_some() {
        return;
    }
    tracing::info!(pod = pod.metadata.name, message, "evicting a pod");
    shared.events.event(reference(pod), EventType::Warning, "Evicted", &message);
    shared.end(uid, Ended { reason: "Evicted", message }, Some(grace));
}

impl Signal {
    /// The resource in the words of users.
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::DiskAvailable | Self::ImageDiskAvailable => "ephemeral-storage",
            Self::InodesFree | Self::ImageInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// The node's condition while it is short.
    pub fn condition(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "MemoryPressure",
            Self::DiskAvailable | Self::InodesFree | Self::ImageDiskAvailable | Self::ImageInodesFree => "DiskPressure",
            Self::PidAvailable => "PIDPressure",
        }
    }
}
