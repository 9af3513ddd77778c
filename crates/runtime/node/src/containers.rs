//! A pod's containers of all four kinds, and the order they end in.

use std::borrow::Cow;

use dhow_cri::runtime::{ContainerState, ContainerStatus};
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, PodSpec};

/// The newest run of a container.
pub fn latest<'a>(containers: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    containers.iter().filter(|c| c.name == name).max_by_key(|c| c.attempt)
}

pub fn is_live(container: &ContainerStatus) -> bool {
    matches!(container.state, ContainerState::Running | ContainerState::Created)
}

/// Whether an init container goes on beside the containers it precedes.
pub fn is_sidecar(init: &Container) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

/// A debug container, with the fields it shares with all others.
pub fn of_ephemeral(debug: &EphemeralContainer) -> Container {
    let debug = debug.clone();
    Container {
        name: debug.name,
        image: debug.image,
        image_pull_policy: debug.image_pull_policy,
        command: debug.command,
        args: debug.args,
        working_dir: debug.working_dir,
        env: debug.env,
        env_from: debug.env_from,
        resources: debug.resources,
        security_context: debug.security_context,
        stdin: debug.stdin,
        stdin_once: debug.stdin_once,
        tty: debug.tty,
        termination_message_path: debug.termination_message_path,
        termination_message_policy: debug.termination_message_policy,
        volume_mounts: debug.volume_mounts,
        ..Container::default()
    }
}

/// A container of any kind by name.
pub fn find<'a>(spec: &'a PodSpec, name: &str) -> Option<Cow<'a, Container>> {
    let lasting = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let debug = || spec.ephemeral_containers.iter().flatten().find(|c| c.name == name).map(of_ephemeral);
    lasting.into_iter().find(|c| c.name == name).map(Cow::Borrowed).or_else(|| debug().map(Cow::Owned))
}

/// Where events about a container point to.
pub fn field_path(spec: &PodSpec, name: &str) -> String {
    let list = if spec.containers.iter().any(|c| c.name == name) {
        "containers"
    } else if spec.init_containers.iter().flatten().any(|c| c.name == name) {
        "initContainers"
    } else {
        "ephemeralContainers"
    };
    format!("spec.{list}{{{name}}}")
}

/// Whether a container that ended starts again. A rule of its own that fits the exit code decides before its own
/// policy, which decides before the pod's.
pub fn restarts(pod_policy: &str, container: &Container, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        if rule.action == "Restart" && listed == (codes.operator == "In") {
            return true;
        }
    }
    match container.restart_policy.as_deref().unwrap_or(pod_policy) {
        "Always" => true,
        "OnFailure" => exit_code != 0,
        _ => false,
    }
}

/// Those that have to end before this one may: everything that a sidecar serves, the later sidecars among it.
pub fn ends_after(spec: &PodSpec, name: &str) -> Vec<String> {
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let Some(place) = inits.iter().position(|c| c.name == name && is_sidecar(c)) else { return Vec::new() };
    let later = inits[place + 1..].iter().filter(|c| is_sidecar(c)).map(|c| c.name.clone());
    spec.containers.iter().map(|c| c.name.clone()).chain(later).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spec() -> PodSpec {
        serde_json::from_value(serde_json::json!({
            "initContainers": [{"name": "i"}, {"name": "s1", "restartPolicy": "Always"},
                {"name": "s2", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}],
            "ephemeralContainers": [{"name": "d", "image": "busybox", "targetContainerName": "a"}],
        }))
        .unwrap()
    }

    #[test]
    fn sidecars_end_last_and_in_reverse() {
        assert!(ends_after(&spec(), "a").is_empty() && ends_after(&spec(), "i").is_empty());
        assert_eq!(ends_after(&spec(), "s1"), ["a", "s2"]);
        assert_eq!(ends_after(&spec(), "s2"), ["a"]);
    }

    #[test]
    fn containers_of_every_kind_are_found() {
        assert_eq!(find(&spec(), "d").unwrap().image.as_deref(), Some("busybox"));
        assert_eq!(field_path(&spec(), "d"), "spec.ephemeralContainers{d}");
        assert_eq!(field_path(&spec(), "s1"), "spec.initContainers{s1}");
        assert!(find(&spec(), "x").is_none());
    }

    #[test]
    fn own_rules_and_own_policy_precede_the_pods() {
        let container: Container = serde_json::from_value(serde_json::json!({"name": "a", "restartPolicy": "Never",
            "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}))
        .unwrap();
        assert!(restarts("Always", &container, 42));
        assert!(!restarts("Always", &container, 1));
        assert!(restarts("OnFailure", &Container::default(), 1));
        assert!(!restarts("OnFailure", &Container::default(), 0));
    }
}
