//! Changing what running containers may use: what a pod asks for now against what it was given.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use dhow_client::EventType;
use dhow_cri::runtime::ContainerStatus;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};

use crate::containers::{is_live, is_sidecar, latest};
use crate::resources::{self, List};
use crate::worker::Worker;
use crate::{Error, resources::amount};

/// Requests and limits by container name.
pub type Allocated = BTreeMap<String, ResourceRequirements>;

/// A condition that tells how a resize stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// `PodResizePending` or `PodResizeInProgress`.
    pub condition: &'static str,
    pub reason: &'static str,
    pub message: String,
}

/// A pod's limits that could not be lowered yet are tried again after this long.
const NARROW_AGAIN: std::time::Duration = std::time::Duration::from_secs(10);
const FILE: &str = "allocated.json";

/// What a pod was given before this run of the agent; nothing for a new pod.
pub fn load(pod_dir: &Path) -> Allocated {
    std::fs::read(pod_dir.join(FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn store(pod_dir: &Path, allocated: &Allocated) -> Result<(), Error> {
    let failed = || Error::io("record what a pod was given");
    let text = serde_json::to_vec(allocated).map_err(|error| failed()(error.into()))?;
    let fresh = pod_dir.join("allocated.new");
    std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, pod_dir.join(FILE))).map_err(failed())
}

/// Containers whose resources may change: the lasting ones.
fn resizable(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(|c| is_sidecar(c)))
}

/// What the containers ask for now.
pub fn wanted(spec: &PodSpec) -> Allocated {
    resizable(spec).map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect()
}

/// The spec with what its containers were given in the place of what they ask for.
pub fn with(spec: &PodSpec, allocated: &Allocated) -> PodSpec {
    let mut spec = spec.clone();
    let inits = spec.init_containers.iter_mut().flatten();
    for container in spec.containers.iter_mut().chain(inits) {
        if let Some(own) = allocated.get(&container.name) {
            container.resources = Some(own.clone());
        }
    }
    spec
}

/// Whether the node has room for what is asked; `others` are the pods beside it.
pub fn room(spec: &PodSpec, others: &[PodSpec], allocatable: &List) -> Result<(), Progress> {
    let pending = |reason, message| Progress { condition: "PodResizePending", reason, message };
    for name in ["cpu", "memory"] {
        let unit = if name == "cpu" { 1 } else { 1000 };
        let asked = resources::pod_request(spec, name);
        let capacity = amount(Some(allocatable), name).unwrap_or(0);
        let used: i128 = others.iter().map(|other| resources::pod_request(other, name)).sum();
        let (requested, used_units, total) = (asked / unit, used / unit, capacity / unit);
        if asked > capacity {
            let message =
                format!("Node didn't have enough capacity: {name}, requested: {requested}, capacity: {total}");
            return Err(pending("Infeasible", message));
        }
        if asked + used > capacity {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used_units}, capacity: {total}"
            );
            return Err(pending("Deferred", message));
        }
    }
    Ok(())
}

/// Whether the change asks for a new start of the container.
pub fn needs_restart(container: &Container, old: &ResourceRequirements, new: &ResourceRequirements) -> bool {
    let differs = |name: &str| {
        let of = |r: &ResourceRequirements| (amount(r.requests.as_ref(), name), amount(r.limits.as_ref(), name));
        of(old) != of(new)
    };
    let policies = container.resize_policy.iter().flatten();
    policies.into_iter().any(|p| p.restart_policy == "RestartContainer" && differs(&p.resource_name))
}

impl Worker {
    /// Brings running containers to what the spec asks for now, as far as the node has room.
    pub(crate) async fn resize(
        &mut self,
        pod: &Pod,
        spec: &PodSpec,
        containers: &[ContainerStatus],
    ) -> Result<Option<SystemTime>, Error> {
        let wanted = wanted(spec);
        let dir = self.pod_dir(&self.uid);
        if self.allocated.is_empty() {
            self.allocated = wanted;
            return store(&dir, &self.allocated).map(|()| None);
        }
        if self.allocated == wanted {
            self.resizing = None;
            return Ok(self.narrow(spec));
        }
        let shared = std::sync::Arc::clone(&self.shared);
        if let Err(progress) = room(spec, &shared.others(&self.uid), &shared.allocatable()) {
            // Another pod's end wakes this one.
            self.resizing = Some(progress);
            return Ok(None);
        }
        let old = std::mem::replace(&mut self.allocated, wanted);
        store(&dir, &self.allocated)?;
        shared.give(&self.uid, spec.clone());
        self.resizing = None;
        // The pod's own limit must never be the lesser one meanwhile: it is raised first and lowered last.
        if let Some(cgroups) = &shared.cgroups {
            cgroups.widen_pod(spec, &self.uid)?;
        }
        for container in resizable(spec) {
            let (Some(before), Some(now)) = (old.get(&container.name), self.allocated.get(&container.name)) else {
                continue;
            };
            let Some(run) = latest(containers, &container.name).filter(|run| before != now && is_live(run)) else {
                continue;
            };
            let name = &container.name;
            if needs_restart(container, before, now) {
                let message = format!("Container {name} resize requires restart");
                self.container_event(pod, name, EventType::Normal, "Killing", &message);
                self.stop(Some(pod), run, &[], &[], crate::worker::grace(pod), false).await?;
                self.wake.notify_one();
                continue;
            }
            let limits = resources::of(spec, container, &shared.limits);
            if let Err(error) = shared.config.runtime.update_container_resources(&run.id, limits).await {
                let message = format!("resize container {name}: {error}");
                self.event(pod, EventType::Warning, "ResizeError", &message);
                self.resizing = Some(Progress { condition: "PodResizeInProgress", reason: "Error", message });
            }
        }
        self.widened = true;
        if self.resizing.is_none() {
            self.event(pod, EventType::Normal, "ResizeCompleted", "Pod resize completed");
        }
        Ok(self.narrow(spec))
    }

    /// Gives the pod as a whole its limits again; later, if what it uses or a run that has ended is still above them.
    fn narrow(&mut self, spec: &PodSpec) -> Option<SystemTime> {
        let cgroups = self.shared.cgroups.as_ref().filter(|_| self.widened)?;
        match cgroups.prepare_pod(spec, &self.uid) {
            Ok(()) => {
                self.widened = false;
                None
            }
            Err(error) => {
                tracing::debug!(%error, uid = self.uid, "the pod's limits wait for what is above them");
                Some((self.shared.now)() + NARROW_AGAIN)
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spec(cpu: &str, policy: &str) -> PodSpec {
        serde_json::from_value(serde_json::json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}},
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": policy},
                {"resourceName": "memory", "restartPolicy": "RestartContainer"}]}]}))
        .unwrap()
    }

    #[test]
    fn room_is_there_now_or_later_or_never() {
        let allocatable: List = serde_json::from_value(serde_json::json!({"cpu": "2", "memory": "1Gi"})).unwrap();
        let reason = |cpu: &str| room(&spec(cpu, ""), &[spec("1", "")], &allocatable).err().map(|p| p.reason);
        assert_eq!((reason("1"), reason("1500m"), reason("3")), (None, Some("Deferred"), Some("Infeasible")));
    }

    #[test]
    fn only_a_change_of_what_the_policy_names_restarts() {
        for (policy, to, restarts) in
            [("NotRequired", "2", false), ("RestartContainer", "2", true), ("RestartContainer", "1000m", false)]
        {
            let (old, new) = (spec("1", policy), spec(to, policy));
            let of = |spec: &PodSpec| spec.containers[0].resources.clone().unwrap();
            assert_eq!(needs_restart(&new.containers[0], &of(&old), &of(&new)), restarts, "{policy} {to}");
        }
    }

    #[test]
    fn what_was_given_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).is_empty());
        let given = wanted(&spec("1", ""));
        store(dir.path(), &given).unwrap();
        assert_eq!(load(dir.path()), given);
        assert_eq!(with(&spec("2", ""), &given), spec("1", ""));
    }
}
