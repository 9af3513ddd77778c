//! What there is in a runtime, and what changed since it was last looked at. Pure.

use std::collections::BTreeMap;

use crate::runtime::{ContainerState, PodIdentity, RuntimeEvent, RuntimeEventKind, SandboxState};

/// One look: every container's state by id, with its sandbox, and every sandbox.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Look {
    pub sandboxes: BTreeMap<String, (PodIdentity, SandboxState)>,
    pub containers: BTreeMap<String, (String, ContainerState)>,
}

/// What happened between two looks, oldest first for each object.
pub fn difference(before: &Look, after: &Look) -> Vec<RuntimeEvent> {
    let mut all = Vec::new();
    let mut tell = |sandbox: &str, container: &str, kind| {
        let known = after.sandboxes.get(sandbox).or_else(|| before.sandboxes.get(sandbox));
        if let Some((pod, _)) = known {
            all.push(RuntimeEvent {
                pod: pod.clone(),
                sandbox_id: sandbox.to_owned(),
                container_id: container.to_owned(),
                kind,
            });
        }
    };
    for (id, (_, state)) in &after.sandboxes {
        let was = before.sandboxes.get(id).map(|(_, state)| *state);
        if was.is_none() {
            tell(id, "", RuntimeEventKind::Started);
        }
        if was != Some(*state) && *state == SandboxState::NotReady {
            tell(id, "", RuntimeEventKind::Exited);
        }
    }
    for (id, (sandbox, state)) in &after.containers {
        let was = before.containers.get(id).map(|(_, state)| *state);
        if was == Some(*state) {
            continue;
        }
        let begun = matches!(state, ContainerState::Running | ContainerState::Exited);
        if begun && was != Some(ContainerState::Running) {
            tell(sandbox, id, RuntimeEventKind::Started);
        }
        if *state == ContainerState::Exited {
            tell(sandbox, id, RuntimeEventKind::Exited);
        }
    }
    for (id, (sandbox, _)) in before.containers.iter().filter(|(id, _)| !after.containers.contains_key(*id)) {
        tell(sandbox, id, RuntimeEventKind::Removed);
    }
    for id in before.sandboxes.keys().filter(|id| !after.sandboxes.contains_key(*id)) {
        tell(id, "", RuntimeEventKind::Removed);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(sandbox: Option<SandboxState>, container: Option<ContainerState>) -> Look {
        let pod = PodIdentity { namespace: "ns".into(), name: "pod".into(), uid: "u".into(), attempt: 0 };
        Look {
            sandboxes: sandbox.into_iter().map(|state| ("s".to_owned(), (pod.clone(), state))).collect(),
            containers: container.into_iter().map(|state| ("c".to_owned(), ("s".to_owned(), state))).collect(),
        }
    }

    fn kinds(before: &Look, after: &Look) -> Vec<(String, RuntimeEventKind)> {
        difference(before, after).into_iter().map(|event| (event.container_id, event.kind)).collect()
    }

    #[test]
    fn a_container_that_ran_between_two_looks_started_and_exited() {
        use RuntimeEventKind::{Exited, Removed, Started};
        let ready = Some(SandboxState::Ready);
        let nothing = Look::default();
        let created = look(ready, Some(ContainerState::Created));
        let running = look(ready, Some(ContainerState::Running));
        let exited = look(ready, Some(ContainerState::Exited));
        let own = |kind| ("c".to_owned(), kind);
        let pod = |kind| (String::new(), kind);
        assert_eq!(kinds(&nothing, &created), [pod(Started)]);
        assert_eq!(kinds(&created, &running), [own(Started)]);
        assert_eq!(kinds(&running, &exited), [own(Exited)]);
        assert_eq!(kinds(&created, &exited), [own(Started), own(Exited)]);
        assert_eq!(kinds(&exited, &nothing), [own(Removed), pod(Removed)]);
        assert_eq!(kinds(&running, &running), []);
        assert_eq!(kinds(&running, &look(Some(SandboxState::NotReady), None)), [pod(Exited), own(Removed)]);
    }
}
