//! A pod's conditions and phase.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::containers::is_sidecar;
use crate::resize::Progress;

type Why = Option<(&'static str, String)>;

fn exit_code(status: &ContainerStatus) -> Option<i32> {
    status.state.as_ref()?.terminated.as_ref().map(|t| t.exit_code)
}

/// Ended once, even if it waits to run again.
fn has_ended(status: &ContainerStatus) -> bool {
    exit_code(status).is_some() || status.last_state.as_ref().is_some_and(|last| last.terminated.is_some())
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}

/// Whether all init containers are through: ended well, or for sidecars started.
pub fn is_initialized(spec: &PodSpec, inits: &[ContainerStatus], statuses: &[ContainerStatus]) -> bool {
    let any_started = statuses.iter().any(|s| s.container_id.is_some());
    let through = |(init, status): (_, &ContainerStatus)| match is_sidecar(init) {
        true => status.started == Some(true),
        false => exit_code(status) == Some(0),
    };
    any_started || spec.init_containers.iter().flatten().zip(inits).all(through)
}

/// `over` once nothing of the pod runs or will run again.
pub fn phase(spec: &PodSpec, inits: &[ContainerStatus], statuses: &[ContainerStatus], over: bool) -> &'static str {
    let init_failed = spec
        .init_containers
        .iter()
        .flatten()
        .zip(inits)
        .any(|(init, status)| !is_sidecar(init) && exit_code(status).is_some_and(|code| code != 0));
    if over {
        let well = !init_failed && statuses.iter().all(|s| exit_code(s) == Some(0));
        return if well { "Succeeded" } else { "Failed" };
    }
    let seen_once = |s: &ContainerStatus| is_running(s) || has_ended(s);
    match is_initialized(spec, inits, statuses) && statuses.iter().all(seen_once) {
        true => "Running",
        false => "Pending",
    }
}

/// Sets one condition; its transition time moves with its status only.
pub fn set(all: &mut Vec<PodCondition>, type_: &str, ok: bool, why: Why, generation: Option<i64>, now: &Time) {
    let status = if ok { "True" } else { "False" };
    let (reason, message) = why.unzip();
    let old = all.iter_mut().find(|c| c.type_ == type_);
    let same = old.as_ref().filter(|c| c.status == status);
    let new = PodCondition {
        type_: type_.into(),
        status: status.into(),
        reason: reason.map(str::to_owned),
        message: message.filter(|m| !m.is_empty()),
        last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(now.clone())),
        last_probe_time: None,
        observed_generation: generation,
    };
    match old {
        Some(old) => *old = new,
        None => all.push(new),
    }
}

fn ready(pod: &Pod, spec: &PodSpec, inits: &[ContainerStatus], statuses: &[ContainerStatus], phase: &str) -> [Why; 2] {
    if phase == "Succeeded" {
        return [Some(("PodCompleted", String::new())), Some(("PodCompleted", String::new()))];
    }
    if phase == "Failed" {
        return [Some(("PodFailed", String::new())), Some(("PodFailed", String::new()))];
    }
    let sidecars = spec.init_containers.iter().flatten().zip(inits).filter(|(c, _)| is_sidecar(c)).map(|(_, s)| s);
    let unready: Vec<&str> = sidecars.chain(statuses).filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    let containers = (!unready.is_empty()).then_some(("ContainersNotReady", message));
    let have: &[PodCondition] = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let gates = spec.readiness_gates.iter().flatten().filter_map(|gate| {
        let type_ = &gate.condition_type;
        match have.iter().find(|c| c.type_ == *type_) {
            None => Some(format!("corresponding condition of pod readiness gate {type_:?} does not exist.")),
            Some(c) if c.status != "True" => {
                Some(format!("the status of pod readiness gate {type_:?} is not \"True\", but {}", c.status))
            }
            Some(_) => None,
        }
    });
    let gates: Vec<String> = gates.collect();
    let gated = (!gates.is_empty()).then(|| ("ReadinessGatesNotReady", gates.join(", ")));
    [containers.clone(), containers.or(gated)]
}

/// Brings the conditions up to what the rest of the new status says. Those of others stay as they are.
pub fn update(
    pod: &Pod,
    spec: &PodSpec,
    status: &mut PodStatus,
    sandbox_ready: bool,
    resizing: Option<&Progress>,
    now: &Time,
) {
    let phase = status.phase.clone().unwrap_or_default();
    let inits = status.init_container_statuses.clone().unwrap_or_default();
    let statuses = status.container_statuses.clone().unwrap_or_default();
    let initialized: Why = if phase == "Succeeded" || is_initialized(spec, &inits, &statuses) {
        None
    } else {
        let pending: Vec<&str> = inits.iter().filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
        Some(("ContainersNotInitialized", format!("containers with incomplete status: [{}]", pending.join(" "))))
    };
    let completed = (phase == "Succeeded").then(|| ("PodCompleted", String::new()));
    let [containers_ready, ready] = ready(pod, spec, &inits, &statuses, &phase);
    let generation = pod.metadata.generation;
    let all = status.conditions.get_or_insert_default();
    let mut put = |type_, ok, why| set(&mut *all, type_, ok, why, generation, now);
    put("PodReadyToStartContainers", sandbox_ready, None);
    put("Initialized", initialized.is_none(), initialized.or(completed));
    put("Ready", ready.is_none(), ready);
    put("ContainersReady", containers_ready.is_none(), containers_ready);
    if let Some(reason) = status.reason.as_deref().filter(|reason| matches!(*reason, "Evicted" | "Terminated")) {
        let message = status.message.clone().unwrap_or_default();
        // Refused pods never ran, so nothing was disrupted.
        if reason == "Terminated" || !message.starts_with("The node had condition") {
            set(all, "DisruptionTarget", true, Some(("TerminationByKubelet", message)), generation, now);
        }
    }
    // These are there only while there is something to tell.
    for condition in ["PodResizePending", "PodResizeInProgress"] {
        match resizing.filter(|progress| progress.condition == condition) {
            Some(progress) => {
                set(all, condition, true, Some((progress.reason, progress.message.clone())), generation, now);
            }
            None => all.retain(|c| c.type_ != condition),
        }
    }
}
