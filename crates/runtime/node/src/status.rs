//! A pod's status, as a pure function of its spec and of what runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use dhow_cri::runtime::{ContainerState as Run, ContainerStatus as Seen, SandboxState, SandboxStatus};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::actions::{is_live, is_sidecar, latest};

/// What the worker knows beyond the runtime's own lists.
pub struct Facts<'a> {
    pub now: SystemTime,
    pub host_ip: &'a str,
    pub host_network: bool,
    pub sandbox: Option<&'a SandboxStatus>,
    pub containers: &'a [Seen],
    /// Waiting reason and message by container name.
    pub waiting: &'a BTreeMap<String, (String, String)>,
    pub started: &'a BTreeSet<String>,
    pub ready: &'a BTreeSet<String>,
    /// Termination messages by container id.
    pub messages: &'a BTreeMap<String, String>,
    pub finished: bool,
}

pub fn time(at: SystemTime) -> Time {
    let at = jiff::Timestamp::try_from(at).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    Time(jiff::Timestamp::from_second(at.as_second()).unwrap_or(at))
}

pub fn compute(pod: &Pod, facts: &Facts<'_>) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    let Some(spec) = &pod.spec else { return old };
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let init_statuses: Vec<_> =
        inits.iter().map(|c| container(c, old.init_container_statuses.as_deref(), facts, true)).collect();
    let statuses: Vec<_> =
        spec.containers.iter().map(|c| container(c, old.container_statuses.as_deref(), facts, false)).collect();
    let ended = |s: &ContainerStatus| s.state.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code);
    let any_started = statuses.iter().any(|s| s.container_id.is_some());
    let initialized = any_started
        || inits
            .iter()
            .zip(&init_statuses)
            .all(|(c, s)| if is_sidecar(c) { s.started == Some(true) } else { ended(s) == Some(0) });
    let phase = if facts.finished {
        let failed_init =
            inits.iter().zip(&init_statuses).any(|(c, s)| !is_sidecar(c) && ended(s).is_some_and(|c| c != 0));
        if failed_init || statuses.iter().any(|s| ended(s) != Some(0)) { "Failed" } else { "Succeeded" }
    } else if initialized && statuses.iter().all(|s| s.container_id.is_some()) {
        "Running"
    } else {
        "Pending"
    };
    let unready: Vec<&str> = statuses.iter().filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    let sidecars_ready = inits.iter().zip(&init_statuses).all(|(c, s)| !is_sidecar(c) || s.ready);
    let containers_ready = unready.is_empty() && sidecars_ready && !facts.finished;
    let gates_pass = spec
        .readiness_gates
        .iter()
        .flatten()
        .all(|gate| old.conditions.iter().flatten().any(|c| c.type_ == gate.condition_type && c.status == "True"));
    let not_ready = if facts.finished {
        Some(("PodCompleted".to_owned(), String::new()))
    } else if !containers_ready {
        Some(("ContainersNotReady".into(), format!("containers with unready status: [{}]", unready.join(" "))))
    } else {
        None
    };
    let gated = (!gates_pass).then(|| {
        ("ReadinessGatesNotReady".to_owned(), "corresponding condition of pod readiness gate is not True".to_owned())
    });
    let sandbox_ready = facts.sandbox.is_some_and(|s| s.state == SandboxState::Ready);

    let mut conditions = old.conditions.clone().unwrap_or_default();
    let now = time(facts.now);
    let mut set = |type_: &str, ok: bool, why: Option<(String, String)>| {
        let (reason, message) = why.unzip();
        set_condition(&mut conditions, type_, ok, reason, message.filter(|m| !m.is_empty()), &now);
    };
    set("PodReadyToStartContainers", sandbox_ready, None);
    let init_why = (!initialized).then(|| {
        let names: Vec<&str> = init_statuses.iter().filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
        ("ContainersNotInitialized".to_owned(), format!("containers with incomplete status: [{}]", names.join(" ")))
    });
    set("Initialized", initialized, init_why);
    set("Ready", containers_ready && gates_pass, not_ready.clone().or(gated));
    set("ContainersReady", containers_ready, not_ready);

    let ips: Vec<String> = if facts.host_network {
        vec![facts.host_ip.to_owned()]
    } else {
        facts.sandbox.map(|s| s.ips.iter().map(ToString::to_string).collect()).unwrap_or_default()
    };
    PodStatus {
        phase: Some(phase.into()),
        conditions: Some(conditions),
        host_ip: Some(facts.host_ip.into()),
        host_ips: Some(vec![HostIP { ip: facts.host_ip.into() }]),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: old.start_time.clone().or(Some(now)),
        qos_class: Some(crate::resources::qos(spec).into()),
        init_container_statuses: (!init_statuses.is_empty()).then_some(init_statuses),
        container_statuses: Some(statuses),
        observed_generation: pod.metadata.generation,
        ..old
    }
}

fn set_condition(
    all: &mut Vec<PodCondition>,
    type_: &str,
    ok: bool,
    reason: Option<String>,
    message: Option<String>,
    now: &Time,
) {
    let status = if ok { "True" } else { "False" };
    let changed_at = all
        .iter()
        .find(|c| c.type_ == type_ && c.status == status)
        .and_then(|c| c.last_transition_time.clone())
        .unwrap_or_else(|| now.clone());
    all.retain(|c| c.type_ != type_);
    all.push(PodCondition {
        type_: type_.into(),
        status: status.into(),
        reason,
        message,
        last_transition_time: Some(changed_at),
        ..Default::default()
    });
}

fn container(spec: &Container, old: Option<&[ContainerStatus]>, facts: &Facts<'_>, init: bool) -> ContainerStatus {
    let old = old.into_iter().flatten().find(|s| s.name == spec.name);
    let seen = latest(facts.containers, &spec.name);
    let waiting = facts.waiting.get(&spec.name);
    let waiting_state = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.into()), message }),
        ..Default::default()
    };
    let Some(seen) = seen else {
        let default = if init || facts.sandbox.is_none() { "ContainerCreating" } else { "PodInitializing" };
        let (reason, message) = waiting.map_or((default, None), |(r, m)| (r.as_str(), Some(m.clone())));
        return ContainerStatus {
            name: spec.name.clone(),
            image: spec.image.clone().unwrap_or_default(),
            state: Some(waiting_state(reason, message)),
            started: Some(false),
            restart_count: old.map_or(0, |o| o.restart_count),
            last_state: old.and_then(|o| o.last_state.clone()).or_else(|| Some(ContainerState::default())),
            ..Default::default()
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
    } else if let Some((reason, message)) = waiting {
        last = Some(terminated(seen, facts));
        waiting_state(reason, Some(message.clone()))
    } else {
        terminated(seen, facts)
    };
    let started = live && facts.started.contains(&seen.id);
    let completed = init && !is_sidecar(spec) && !live && seen.exit_code == 0;
    ContainerStatus {
        name: spec.name.clone(),
        image: seen.image.clone(),
        image_id: seen.image_ref.clone(),
        container_id: Some(format!("dhow://{}", seen.id)),
        ready: completed || (started && facts.ready.contains(&seen.id)),
        started: Some(started),
        restart_count: i32::try_from(seen.attempt).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: last.or_else(|| Some(ContainerState::default())),
        ..Default::default()
    }
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
            container_id: Some(format!("dhow://{}", seen.id)),
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
