//! What to do next for a pod, as a pure function of its spec and of what runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use dhow_cri::runtime::{ContainerStatus, SandboxState, SandboxStatus};
use k8s_openapi::api::core::v1::{Container, PodSpec};

use crate::backoff::Backoff;
use crate::containers::{is_live, is_sidecar, latest, restarts};
use crate::probes::Failure;

/// What is known about the pod's containers now.
pub struct Observed<'a> {
    pub now: SystemTime,
    /// The newest sandbox.
    pub sandbox: Option<&'a SandboxStatus>,
    pub containers: &'a [ContainerStatus],
    /// Containers whose liveness or startup probe failed, by id.
    pub unhealthy: &'a BTreeMap<String, Failure>,
    /// Containers that passed their startup probe, or have none, by id.
    pub started: &'a BTreeSet<String>,
    /// Crashes so far, by container name.
    pub crashes: &'a Backoff,
    /// The pod was ended by the node or ran to its end before; nothing of it may run.
    pub over: bool,
}

/// Why a container is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its sandbox is gone, or is to be replaced.
    Sandbox,
    Probe,
    /// The pod is over.
    Finished,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Actions {
    pub new_sandbox: bool,
    /// Names of containers to create and start, in order.
    pub start: Vec<String>,
    /// Container ids to stop.
    pub kill: Vec<(String, Why)>,
    /// Names waiting for their crash back-off, and when it ends.
    pub backing_off: Vec<(String, SystemTime)>,
    /// The pod has run to its end; nothing is started any more.
    pub finished: bool,
}

pub fn compute_actions(spec: &PodSpec, seen: &Observed<'_>) -> Actions {
    let mut actions = Actions::default();
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let sandbox = seen.sandbox.filter(|s| s.state == SandboxState::Ready);
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let done = |container: &Container| {
        let ended = latest(seen.containers, &container.name).filter(|c| !is_live(c));
        ended.filter(|status| !restarts(policy, container, status.exit_code))
    };

    let init_failed = inits.iter().any(|init| !is_sidecar(init) && done(init).is_some_and(|c| c.exit_code != 0));
    if seen.over || init_failed || spec.containers.iter().all(|c| done(c).is_some()) {
        actions.finished = true;
        let live = seen.containers.iter().filter(|c| is_live(c));
        actions.kill = live.map(|c| (c.id.clone(), Why::Finished)).collect();
        return actions;
    }

    for container in seen.containers.iter().filter(|c| is_live(c)) {
        if sandbox.is_none_or(|s| s.id != container.sandbox_id) {
            actions.kill.push((container.id.clone(), Why::Sandbox));
        } else if seen.unhealthy.contains_key(&container.id) {
            actions.kill.push((container.id.clone(), Why::Probe));
        }
    }
    let Some(sandbox) = sandbox else {
        actions.new_sandbox = true;
        return actions;
    };

    // Debug containers start whenever there is a sandbox, and once only.
    for debug in spec.ephemeral_containers.iter().flatten() {
        if latest(seen.containers, &debug.name).is_none() {
            actions.start.push(debug.name.clone());
        }
    }
    let here = |name: &str| latest(seen.containers, name).filter(|c| c.sandbox_id == sandbox.id);
    let initialized = spec.containers.iter().any(|c| here(&c.name).is_some());
    for init in inits {
        let sidecar = is_sidecar(init);
        let Some(status) = here(&init.name) else {
            if !initialized || sidecar {
                actions.start.push(init.name.clone());
            }
            if initialized {
                continue;
            }
            return actions;
        };
        if is_live(status) {
            if initialized || (sidecar && seen.started.contains(&status.id)) {
                continue;
            }
            return actions;
        }
        if sidecar || (status.exit_code != 0 && !initialized) {
            actions.restart(status, seen);
            if !initialized {
                return actions;
            }
        }
    }
    for container in &spec.containers {
        match latest(seen.containers, &container.name) {
            None => actions.start.push(container.name.clone()),
            Some(status) if is_live(status) => {}
            Some(status) if restarts(policy, container, status.exit_code) => actions.restart(status, seen),
            Some(_) => {}
        }
    }
    actions
}

impl Actions {
    /// Starts it again, now or after its back-off.
    fn restart(&mut self, status: &ContainerStatus, seen: &Observed<'_>) {
        let ended = status.finished_at.unwrap_or(status.created_at);
        let ready_at = ended + seen.crashes.delay(&status.name, ended);
        if ready_at <= seen.now {
            self.start.push(status.name.clone());
        } else {
            self.backing_off.push((status.name.clone(), ready_at));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{container, sandbox};

    fn spec(json: serde_json::Value) -> PodSpec {
        serde_json::from_value(json).unwrap()
    }

    /// At second 1000, with crashes that began at 980.
    fn decide_after(
        spec: &PodSpec,
        sandbox: Option<&SandboxStatus>,
        containers: &[ContainerStatus],
        crashes: u32,
    ) -> Actions {
        let started = containers.iter().map(|c| c.id.clone()).collect();
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let mut backoff = Backoff::default();
        (0..crashes).for_each(|_| backoff.grow("a", at(980), at(980)));
        compute_actions(
            spec,
            &Observed {
                now: at(1000),
                sandbox,
                containers,
                unhealthy: &BTreeMap::new(),
                started: &started,
                crashes: &backoff,
                over: false,
            },
        )
    }

    fn decide(spec: &PodSpec, sandbox: Option<&SandboxStatus>, containers: &[ContainerStatus]) -> Actions {
        decide_after(spec, sandbox, containers, 0)
    }

    #[test]
    fn a_new_pod_gets_a_sandbox_then_its_init_containers_in_order_then_its_containers() {
        let spec =
            spec(serde_json::json!({"initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}, {"name": "b"}], "ephemeralContainers": [{"name": "d"}]}));
        assert!(decide(&spec, None, &[]).new_sandbox);
        let s = sandbox("s1");
        assert_eq!(decide(&spec, Some(&s), &[]).start, ["d", "i"]);
        let mut have = vec![container("s1", "d", 0, Some(1)), container("s1", "i", 0, Some(0))];
        assert_eq!(decide(&spec, Some(&s), &have).start, ["s"]);
        have.push(container("s1", "s", 0, None));
        assert_eq!(decide(&spec, Some(&s), &have).start, ["a", "b"]);
    }

    #[test]
    fn restart_policy_and_back_off_decide_restarts() {
        let s = sandbox("s1");
        for (policy, crashes, code, start, backing, finished) in [
            ("Always", 0, 0, 1, 0, false),
            ("Always", 1, 0, 1, 0, false),
            ("Always", 2, 1, 0, 1, false),
            ("OnFailure", 0, 0, 0, 0, true),
            ("OnFailure", 0, 3, 1, 0, false),
            ("Never", 0, 3, 0, 0, true),
        ] {
            let spec = spec(serde_json::json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
            let got = decide_after(&spec, Some(&s), &[container("s1", "a", 9, Some(code))], crashes);
            assert_eq!((got.start.len(), got.backing_off.len(), got.finished), (start, backing, finished), "{policy}");
        }
    }

    #[test]
    fn a_failed_init_container_ends_a_pod_that_does_not_restart() {
        let s = sandbox("s1");
        for (policy, finished, start) in [("Never", true, 0), ("OnFailure", false, 1), ("Always", false, 1)] {
            let json = serde_json::json!({"restartPolicy": policy, "initContainers": [{"name": "i"}],
                "containers": [{"name": "a"}]});
            let got = decide(&spec(json), Some(&s), &[container("s1", "i", 0, Some(1))]);
            assert_eq!((got.finished, got.start.len()), (finished, start), "{policy}");
        }
    }

    #[test]
    fn a_sidecar_restarts_even_in_a_pod_that_never_does_and_ends_with_the_containers() {
        let s = sandbox("s1");
        let spec = spec(serde_json::json!({"restartPolicy": "Never", "containers": [{"name": "m"}],
            "initContainers": [{"name": "s", "restartPolicy": "Always"}]}));
        let mut have = vec![container("s1", "s", 0, Some(1)), container("s1", "m", 0, None)];
        assert_eq!(decide(&spec, Some(&s), &have).start, ["s"]);
        have = vec![container("s1", "s", 1, None), container("s1", "m", 0, Some(0))];
        let got = decide(&spec, Some(&s), &have);
        assert!(got.finished);
        assert_eq!(got.kill, [(have[0].id.clone(), Why::Finished)]);
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
        assert_eq!(got.kill, [(have[0].id.clone(), Why::Sandbox)]);
    }
}
