//! What to do next for a pod, as a pure function of its spec and of what runs.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use dhow_cri::runtime::{ContainerState, ContainerStatus, SandboxState, SandboxStatus};
use k8s_openapi::api::core::v1::{Container, PodSpec};

const BACKOFF_FIRST: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A run this long forgives earlier crashes.
const BACKOFF_RESET: Duration = Duration::from_secs(600);

/// What is known about the pod's containers now.
pub struct Observed<'a> {
    pub now: SystemTime,
    /// The newest sandbox.
    pub sandbox: Option<&'a SandboxStatus>,
    pub containers: &'a [ContainerStatus],
    /// Containers whose liveness or startup probe failed.
    pub unhealthy: &'a BTreeSet<String>,
    /// Containers that passed their startup probe, or have none.
    pub started: &'a BTreeSet<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Actions {
    pub new_sandbox: bool,
    /// Names of containers to create and start, in order.
    pub start: Vec<String>,
    /// Container ids to stop.
    pub kill: Vec<String>,
    /// Names waiting for their crash back-off.
    pub backing_off: Vec<String>,
    /// When the next back-off ends.
    pub wake: Option<SystemTime>,
    /// The pod has run to its end; nothing is started any more.
    pub finished: bool,
}

pub fn latest<'a>(containers: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    containers.iter().filter(|c| c.name == name).max_by_key(|c| c.attempt)
}

pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub fn compute_actions(spec: &PodSpec, seen: &Observed<'_>) -> Actions {
    let mut actions = Actions::default();
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let sandbox = seen.sandbox.filter(|s| s.state == SandboxState::Ready);
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let ended = |name: &str| latest(seen.containers, name).filter(|c| !is_live(c));

    let init_failed =
        policy == "Never" && inits.iter().any(|i| !is_sidecar(i) && ended(&i.name).is_some_and(|c| c.exit_code != 0));
    let all_ended = spec.containers.iter().all(|c| ended(&c.name).is_some_and(|status| !wants_restart(policy, status)));
    if init_failed || all_ended {
        actions.finished = true;
        actions.kill = seen.containers.iter().filter(|c| is_live(c)).map(|c| c.id.clone()).collect();
        return actions;
    }

    for container in seen.containers.iter().filter(|c| is_live(c)) {
        let stale = sandbox.is_none_or(|s| s.id != container.sandbox_id);
        if stale || seen.unhealthy.contains(&container.id) {
            actions.kill.push(container.id.clone());
        }
    }
    let Some(sandbox) = sandbox else {
        actions.new_sandbox = true;
        return actions;
    };

    let here = |name: &str| latest(seen.containers, name).filter(|c| c.sandbox_id == sandbox.id);
    let initialized = spec.containers.iter().any(|c| here(&c.name).is_some());
    for init in inits {
        let Some(status) = here(&init.name) else {
            if !initialized || is_sidecar(init) {
                actions.start.push(init.name.clone());
            }
            if initialized {
                continue;
            }
            return actions;
        };
        let sidecar = is_sidecar(init);
        if is_live(status) {
            if initialized || (sidecar && seen.started.contains(&status.id)) {
                continue;
            }
            return actions;
        }
        if sidecar || (status.exit_code != 0 && !initialized) {
            restart(&mut actions, status, seen.now);
            if !initialized {
                return actions;
            }
        }
    }
    for container in &spec.containers {
        match latest(seen.containers, &container.name) {
            None => actions.start.push(container.name.clone()),
            Some(status) if is_live(status) => {}
            Some(status) if wants_restart(policy, status) => restart(&mut actions, status, seen.now),
            Some(_) => {}
        }
    }
    actions
}

fn restart(actions: &mut Actions, status: &ContainerStatus, now: SystemTime) {
    let ready_at = restart_at(status);
    if ready_at <= now {
        actions.start.push(status.name.clone());
    } else {
        actions.backing_off.push(status.name.clone());
        actions.wake = Some(actions.wake.map_or(ready_at, |wake| wake.min(ready_at)));
    }
}

pub fn is_live(container: &ContainerStatus) -> bool {
    matches!(container.state, ContainerState::Running | ContainerState::Created)
}

fn wants_restart(policy: &str, status: &ContainerStatus) -> bool {
    match policy {
        "Always" => true,
        "OnFailure" => status.exit_code != 0,
        _ => false,
    }
}

/// The first restart is at once; then 10 s doubling to 5 min, counted from the end of the last run.
pub fn restart_at(status: &ContainerStatus) -> SystemTime {
    let ended = status.finished_at.unwrap_or(status.created_at);
    let ran = status.started_at.and_then(|start| ended.duration_since(start).ok()).unwrap_or_default();
    ended + crash_delay(status.attempt, ran)
}

pub fn crash_delay(attempt: u32, ran: Duration) -> Duration {
    if attempt == 0 || ran >= BACKOFF_RESET {
        return Duration::ZERO;
    }
    (BACKOFF_FIRST * (1 << (attempt - 1).min(6))).min(BACKOFF_MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{container, sandbox};

    fn spec(json: serde_json::Value) -> PodSpec {
        serde_json::from_value(json).unwrap()
    }

    fn decide(spec: &PodSpec, sandbox: Option<&SandboxStatus>, containers: &[ContainerStatus]) -> Actions {
        let none = BTreeSet::new();
        let started = containers.iter().map(|c| c.id.clone()).collect();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        compute_actions(spec, &Observed { now, sandbox, containers, unhealthy: &none, started: &started })
    }

    #[test]
    fn a_new_pod_gets_a_sandbox_then_its_init_containers_in_order_then_its_containers() {
        let spec =
            spec(serde_json::json!({"initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}, {"name": "b"}]}));
        assert!(decide(&spec, None, &[]).new_sandbox);
        let s = sandbox("s1");
        assert_eq!(decide(&spec, Some(&s), &[]).start, ["i"]);
        let mut have = vec![container("s1", "i", 0, Some(0))];
        assert_eq!(decide(&spec, Some(&s), &have).start, ["s"]);
        have.push(container("s1", "s", 0, None));
        assert_eq!(decide(&spec, Some(&s), &have).start, ["a", "b"]);
    }

    #[test]
    fn restart_policy_and_back_off_decide_restarts() {
        let s = sandbox("s1");
        for (policy, attempt, code, start, backing, finished) in [
            ("Always", 0, 0, 1, 0, false),
            ("Always", 6, 1, 0, 1, false),
            ("OnFailure", 0, 0, 0, 0, true),
            ("OnFailure", 0, 3, 1, 0, false),
            ("Never", 0, 3, 0, 0, true),
        ] {
            let spec = spec(serde_json::json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
            let got = decide(&spec, Some(&s), &[container("s1", "a", attempt, Some(code))]);
            assert_eq!((got.start.len(), got.backing_off.len(), got.finished), (start, backing, finished), "{policy}");
        }
    }

    #[test]
    fn a_dead_sandbox_is_replaced_and_running_containers_are_left_alone() {
        let spec = spec(serde_json::json!({"containers": [{"name": "a"}]}));
        let have = [container("s1", "a", 0, None)];
        assert_eq!(decide(&spec, Some(&sandbox("s1")), &have), Actions::default());
        let mut dead = sandbox("s1");
        dead.state = SandboxState::NotReady;
        let got = decide(&spec, Some(&dead), &have);
        assert!(got.new_sandbox);
        assert_eq!(got.kill, [have[0].id.clone()]);
    }

    #[test]
    fn crash_delay_doubles_to_five_minutes() {
        let delays: Vec<u64> = (0..8).map(|n| crash_delay(n, Duration::ZERO).as_secs()).collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(crash_delay(7, BACKOFF_RESET), Duration::ZERO);
    }
}
