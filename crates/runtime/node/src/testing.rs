//! Builders of runtime answers for tests.

use std::time::{Duration, SystemTime};

use dhow_cri::runtime::{ContainerState, ContainerStatus, PodIdentity, SandboxState, SandboxStatus};

pub fn sandbox(id: &str) -> SandboxStatus {
    SandboxStatus {
        id: id.into(),
        pod: PodIdentity { namespace: "default".into(), name: "p".into(), uid: "u".into(), attempt: 0 },
        state: SandboxState::Ready,
        created_at: SystemTime::UNIX_EPOCH,
        ips: vec![[10, 42, 0, 5].into()],
        labels: Default::default(),
        annotations: Default::default(),
    }
}

/// `exit` of `None` is a running container; an ended one ended at second 990.
pub fn container(sandbox: &str, name: &str, attempt: u32, exit: Option<i32>) -> ContainerStatus {
    let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
    ContainerStatus {
        id: format!("{sandbox}-{name}-{attempt}"),
        sandbox_id: sandbox.into(),
        name: name.into(),
        attempt,
        state: if exit.is_some() { ContainerState::Exited } else { ContainerState::Running },
        created_at: at(980),
        started_at: Some(at(980)),
        finished_at: exit.map(|_| at(990)),
        exit_code: exit.unwrap_or(0),
        reason: String::new(),
        message: String::new(),
        image: "busybox".into(),
        image_ref: "sha256:0".into(),
        labels: Default::default(),
        annotations: Default::default(),
        log_path: Default::default(),
    }
}
