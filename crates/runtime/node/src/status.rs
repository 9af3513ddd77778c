//! A pod's status, as a pure function of its spec and of what runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use dhow_cri::runtime::{ContainerState as Run, ContainerStatus as Seen, SandboxState, SandboxStatus};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, HostIP, LinuxContainerUser, Pod, PodIP, PodSpec, PodStatus, ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::conditions;
use crate::containers::{is_live, is_sidecar, latest, of_ephemeral};
use crate::resize::Progress;
use crate::start::IMAGE_DIGEST;

/// Why the node ended a pod, for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub reason: &'static str,
    pub message: String,
}

/// What the worker knows beyond the runtime's own lists.
pub struct Facts<'a> {
    pub now: SystemTime,
    /// What `containerID` begins with.
    pub runtime: &'a str,
    pub host_ips: &'a [String],
    pub sandbox: Option<&'a SandboxStatus>,
    pub containers: &'a [Seen],
    /// Waiting reason and message by container name.
    pub waiting: &'a BTreeMap<String, (String, String)>,
    pub started: &'a BTreeSet<String>,
    pub ready: &'a BTreeSet<String>,
    /// Termination messages by container id.
    pub messages: &'a BTreeMap<String, String>,
    /// Requests and limits in force by container name.
    pub resources: &'a BTreeMap<String, ResourceRequirements>,
    pub resizing: Option<&'a Progress>,
    /// Nothing of it runs or will run again.
    pub over: bool,
    pub ended: Option<&'a Ended>,
}

/// To the second, as the API has times.
pub fn time(at: SystemTime) -> Time {
    let at = jiff::Timestamp::try_from(at).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    Time(jiff::Timestamp::from_second(at.as_second()).unwrap_or(at))
}

pub fn compute(pod: &Pod, facts: &Facts<'_>) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    let Some(spec) = &pod.spec else { return old };
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let idle = if inits.is_empty() { "ContainerCreating" } else { "PodInitializing" };
    let of = |list: &[Container], old: Option<&Vec<ContainerStatus>>, init: bool| -> Vec<ContainerStatus> {
        let old = |name: &str| old.into_iter().flatten().find(|status| status.name == name);
        list.iter().map(|one| container(one, old(&one.name), facts, init, idle)).collect()
    };
    let init_statuses = of(inits, old.init_container_statuses.as_ref(), true);
    let statuses = of(&spec.containers, old.container_statuses.as_ref(), false);
    let debug: Vec<Container> = spec.ephemeral_containers.iter().flatten().map(of_ephemeral).collect();
    let debug = of(&debug, old.ephemeral_container_statuses.as_ref(), false);
    let phase = match (facts.ended, old.phase.as_deref()) {
        // What has ended once stays as it ended, also for an agent that does not know why.
        (Some(_), _) | (None, Some("Failed")) => "Failed",
        (None, Some("Succeeded")) => "Succeeded",
        (None, _) => conditions::phase(spec, &init_statuses, &statuses, facts.over),
    };
    let ips = addresses(spec, facts, &old);
    let sandbox_ready = facts.sandbox.is_some_and(|s| s.state == SandboxState::Ready);
    let now = time(facts.now);
    let mut status = PodStatus {
        phase: Some(phase.into()),
        reason: facts.ended.map(|e| e.reason.to_owned()).or(old.reason.clone()),
        message: facts.ended.map(|e| e.message.clone()).or(old.message.clone()),
        host_ip: facts.host_ips.first().cloned(),
        host_ips: Some(facts.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: old.start_time.clone().or_else(|| Some(now.clone())),
        qos_class: Some(crate::resources::qos(spec).into()),
        init_container_statuses: (!init_statuses.is_empty()).then_some(init_statuses),
        container_statuses: Some(statuses),
        ephemeral_container_statuses: (!debug.is_empty()).then_some(debug),
        observed_generation: pod.metadata.generation,
        ..old
    };
    conditions::update(pod, spec, &mut status, sandbox_ready, facts.resizing, &now);
    status
}

fn addresses(spec: &PodSpec, facts: &Facts<'_>, old: &PodStatus) -> Vec<String> {
    if spec.host_network == Some(true) {
        return facts.host_ips.to_vec();
    }
    match facts.sandbox {
        Some(sandbox) if !sandbox.ips.is_empty() => sandbox.ips.iter().map(ToString::to_string).collect(),
        // A pod that is over keeps the address it had.
        _ if facts.over => old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect(),
        _ => Vec::new(),
    }
}

fn waiting_state(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.into()), message }),
        ..Default::default()
    }
}

/// `idle` is why one waits of which nothing is known yet.
fn container(
    spec: &Container,
    old: Option<&ContainerStatus>,
    facts: &Facts<'_>,
    init: bool,
    idle: &str,
) -> ContainerStatus {
    let waiting = facts.waiting.get(&spec.name);
    let resources = facts.resources.get(&spec.name).or(spec.resources.as_ref()).cloned().unwrap_or_default();
    let base = ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        last_state: Some(ContainerState::default()),
        started: Some(false),
        allocated_resources: resources.requests.clone().filter(|requests| !requests.is_empty()),
        resources: Some(resources),
        volume_mounts: volume_mounts(spec),
        ..Default::default()
    };
    let Some(seen) = latest(facts.containers, &spec.name) else {
        // What ended is remembered when the runtime no longer knows of it.
        if let Some(old) = old.filter(|o| facts.over && o.state.as_ref().is_some_and(|s| s.terminated.is_some())) {
            return old.clone();
        }
        let (reason, message) = waiting.map_or((idle, None), |(r, m)| (r.as_str(), Some(m.clone())));
        return ContainerStatus {
            state: Some(waiting_state(reason, message.filter(|m| !m.is_empty()))),
            restart_count: old.map_or(0, |o| o.restart_count),
            last_state: old.and_then(|o| o.last_state.clone()).or(base.last_state),
            ..base
        };
    };
    let live = is_live(seen);
    let previous =
        facts.containers.iter().filter(|c| c.name == spec.name && c.attempt < seen.attempt).max_by_key(|c| c.attempt);
    let mut last = previous.map(|p| terminated(p, facts)).or_else(|| old.and_then(|o| o.last_state.clone()));
    let state = if live {
        match seen.started_at.filter(|_| seen.state == Run::Running) {
            Some(at) => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(time(at)) }),
                ..Default::default()
            },
            None => waiting_state("ContainerCreating", None),
        }
    } else if let Some((reason, message)) = waiting.filter(|_| !facts.over) {
        last = Some(terminated(seen, facts));
        waiting_state(reason, Some(message.clone()))
    } else {
        terminated(seen, facts)
    };
    let started = live && facts.started.contains(&seen.id);
    let completed = init && !is_sidecar(spec) && !live && seen.exit_code == 0;
    ContainerStatus {
        // The name in the spec stays what people see; the runtime may only know the image's id.
        image_id: seen.annotations.get(IMAGE_DIGEST).unwrap_or(&seen.image_ref).clone(),
        container_id: Some(format!("{}://{}", facts.runtime, seen.id)),
        ready: completed || (started && facts.ready.contains(&seen.id)),
        started: Some(started),
        restart_count: i32::try_from(seen.attempt).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: last.or_else(|| base.last_state.clone()),
        user: seen.user.as_ref().map(|user| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: Some(user.groups.iter().map(|group| i64::from(*group)).collect()),
            }),
        }),
        ..base
    }
}

fn volume_mounts(spec: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = spec.volume_mounts.as_ref()?.iter().map(|mount| {
        let read_only = mount.read_only.filter(|read_only| *read_only);
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only,
            recursive_read_only: read_only.map(|_| match mount.recursive_read_only.as_deref() {
                Some("Enabled" | "IfPossible") => "Enabled".to_owned(),
                _ => "Disabled".to_owned(),
            }),
        }
    });
    Some(mounts.collect())
}

fn terminated(seen: &Seen, facts: &Facts<'_>) -> ContainerState {
    let message = facts.messages.get(&seen.id).cloned().or_else(|| Some(seen.message.clone()));
    let reason = match seen.reason.as_str() {
        "" if seen.exit_code == 0 => "Completed",
        "" => "Error",
        other => other,
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("{}://{}", facts.runtime, seen.id)),
            exit_code: seen.exit_code,
            reason: Some(reason.into()),
            message: message.filter(|m| !m.is_empty()),
            started_at: seen.started_at.map(time),
            finished_at: seen.finished_at.map(time),
            signal: None,
        }),
        ..Default::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{container as run, sandbox};

    fn status(pod: serde_json::Value, containers: &[Seen], waiting: &[(&str, &str)], over: bool) -> PodStatus {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let waiting = waiting.iter().map(|(n, r)| ((*n).to_owned(), ((*r).to_owned(), "m".to_owned()))).collect();
        let ids: BTreeSet<String> = containers.iter().map(|c| c.id.clone()).collect();
        let sandbox = sandbox("s");
        let facts = Facts {
            now: SystemTime::UNIX_EPOCH,
            runtime: "dhow",
            host_ips: &["192.0.2.1".to_owned()],
            sandbox: Some(&sandbox),
            containers,
            waiting: &waiting,
            started: &ids,
            ready: &ids,
            messages: &BTreeMap::new(),
            resources: &BTreeMap::new(),
            resizing: None,
            over,
            ended: None,
        };
        compute(&pod, &facts)
    }

    fn condition<'a>(status: &'a PodStatus, type_: &str) -> (&'a str, &'a str) {
        let found = status.conditions.iter().flatten().find(|c| c.type_ == type_).unwrap();
        (&found.status, found.reason.as_deref().unwrap_or_default())
    }

    #[test]
    fn a_crash_loop_waits_with_its_last_end_and_its_pod_runs() {
        let pod = serde_json::json!({"metadata": {"generation": 3}, "spec": {"containers": [{"name": "a"}]}});
        let got = status(pod, &[run("s", "a", 4, Some(2))], &[("a", "CrashLoopBackOff")], false);
        assert_eq!((got.phase.as_deref(), got.observed_generation), (Some("Running"), Some(3)));
        let own = &got.container_statuses.as_ref().unwrap()[0];
        assert_eq!(own.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(), Some("CrashLoopBackOff"));
        assert_eq!(own.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 2);
        assert_eq!(own.restart_count, 4);
        assert_eq!(condition(&got, "Ready"), ("False", "ContainersNotReady"));
        assert!(got.conditions.unwrap().iter().all(|c| c.observed_generation == Some(3)));
    }

    #[test]
    fn a_pull_that_fails_leaves_the_pod_pending() {
        let pod = serde_json::json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        let got = status(pod, &[run("s", "b", 0, None)], &[("a", "ImagePullBackOff")], false);
        assert_eq!(got.phase.as_deref(), Some("Pending"));
        assert_eq!(condition(&got, "PodReadyToStartContainers"), ("True", ""));
        assert_eq!((got.pod_ip.as_deref(), got.host_ip.as_deref()), (Some("10.42.0.5"), Some("192.0.2.1")));
    }

    #[test]
    fn those_whose_turn_has_not_come_say_what_the_pod_does() {
        let waits = |pod| {
            let got = status(pod, &[], &[], false);
            let all = [got.init_container_statuses.unwrap_or_default(), got.container_statuses.unwrap()].concat();
            let reasons = all.into_iter().map(|one| one.state.unwrap().waiting.unwrap().reason.unwrap());
            reasons.collect::<Vec<_>>()
        };
        assert_eq!(waits(serde_json::json!({"spec": {"containers": [{"name": "a"}]}})), ["ContainerCreating"]);
        let with_init = serde_json::json!({"spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}});
        assert_eq!(waits(with_init), ["PodInitializing"; 2]);
    }

    #[test]
    fn ends_decide_the_phase_of_a_pod_that_is_over() {
        for (code, phase, reason) in [(0, "Succeeded", "PodCompleted"), (1, "Failed", "PodFailed")] {
            let pod = serde_json::json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "a"}]}});
            let got = status(pod, &[run("s", "a", 0, Some(code))], &[], true);
            assert_eq!(got.phase.as_deref(), Some(phase));
            assert_eq!(condition(&got, "ContainersReady"), ("False", reason));
            assert_eq!(condition(&got, "Initialized").0, "True");
        }
    }

    #[test]
    fn readiness_gates_hold_the_pod_back_but_not_its_containers() {
        let pod = serde_json::json!({"spec": {"containers": [{"name": "a"}],
            "readinessGates": [{"conditionType": "example.com/in"}]}});
        let got = status(pod, &[run("s", "a", 0, None)], &[], false);
        assert_eq!(condition(&got, "ContainersReady"), ("True", ""));
        assert_eq!(condition(&got, "Ready"), ("False", "ReadinessGatesNotReady"));
    }

    #[test]
    fn debug_containers_have_statuses_of_their_own() {
        let pod = serde_json::json!({"spec": {"containers": [{"name": "a"}],
            "ephemeralContainers": [{"name": "d", "image": "busybox"}]}});
        let got = status(pod, &[run("s", "a", 0, None), run("s", "d", 0, None)], &[], false);
        assert_eq!(condition(&got, "Ready").0, "True");
        assert!(got.ephemeral_container_statuses.unwrap()[0].state.as_ref().unwrap().running.is_some());
    }
}
