//! What a runtime answers by CRI, in the words of the trait. Pure.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use super::request::{CLOUD, SANDBOX_CONFIG, STREAMS};
use crate::Error;
use crate::proto;
use crate::runtime::{
    ContainerState, ContainerStats, ContainerStatus, Ids, ImageInfo, PodIdentity, SandboxState, SandboxStatus,
};

pub fn sandbox(status: proto::PodSandboxStatus) -> SandboxStatus {
    let network = status.network.clone().unwrap_or_default();
    let ips = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    SandboxStatus {
        state: sandbox_state(status.state()),
        id: status.id,
        pod: pod(status.metadata),
        created_at: time(status.created_at),
        ips: ips.filter_map(|ip| ip.parse().ok()).collect(),
        labels: visible(status.labels),
        annotations: visible(status.annotations),
    }
}

pub fn sandbox_state(state: proto::PodSandboxState) -> SandboxState {
    match state {
        proto::PodSandboxState::SandboxReady => SandboxState::Ready,
        proto::PodSandboxState::SandboxNotready => SandboxState::NotReady,
    }
}

pub fn pod(metadata: Option<proto::PodSandboxMetadata>) -> PodIdentity {
    let metadata = metadata.unwrap_or_default();
    PodIdentity { namespace: metadata.namespace, name: metadata.name, uid: metadata.uid, attempt: metadata.attempt }
}

pub fn container(sandbox_id: String, status: proto::ContainerStatus) -> ContainerStatus {
    let state = container_state(status.state());
    let metadata = status.metadata.unwrap_or_default();
    let image = status.image.unwrap_or_default();
    let finished_at = some_time(status.finished_at);
    // containerd notes a start after it happened, so that a short life may have ended before.
    let started_at = some_time(status.started_at).map(|started| finished_at.map_or(started, |end| end.min(started)));
    ContainerStatus {
        id: status.id,
        sandbox_id,
        name: metadata.name,
        attempt: metadata.attempt,
        state,
        created_at: time(status.created_at),
        started_at,
        finished_at,
        exit_code: status.exit_code,
        reason: status.reason,
        message: status.message,
        image: if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image },
        image_ref: status.image_ref,
        labels: visible(status.labels),
        annotations: visible(status.annotations),
        log_path: status.log_path.into(),
        user: status.user.and_then(|user| user.linux).map(|user| {
            let id = |id: i64| u32::try_from(id).unwrap_or_default();
            let groups = user.supplemental_groups.into_iter().map(id).collect();
            Ids { uid: id(user.uid), gid: id(user.gid), groups }
        }),
    }
}

pub fn container_state(state: proto::ContainerState) -> ContainerState {
    match state {
        proto::ContainerState::ContainerCreated => ContainerState::Created,
        proto::ContainerState::ContainerRunning => ContainerState::Running,
        proto::ContainerState::ContainerExited => ContainerState::Exited,
        proto::ContainerState::ContainerUnknown => ContainerState::Unknown,
    }
}

/// `pids` is CRI's one gap and the caller's to fill.
pub fn stats(stats: proto::ContainerStats, pids: u64) -> ContainerStats {
    let value = |value: Option<proto::UInt64Value>| value.map_or(0, |value| value.value);
    let memory = stats.memory.unwrap_or_default();
    ContainerStats {
        id: stats.attributes.unwrap_or_default().id,
        cpu_usage_core_nanos: value(stats.cpu.unwrap_or_default().usage_core_nano_seconds),
        memory_usage_bytes: value(memory.usage_bytes),
        memory_working_set_bytes: value(memory.working_set_bytes),
        pids,
    }
}

pub fn image(image: proto::Image) -> ImageInfo {
    ImageInfo {
        id: image.id,
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
        size: image.size,
        uid: image.uid.and_then(|uid| u32::try_from(uid.value).ok()),
        username: Some(image.username).filter(|name| !name.is_empty()),
    }
}

/// Labels and annotations without our own, which are nobody else's concern.
fn visible(all: HashMap<String, String>) -> BTreeMap<String, String> {
    all.into_iter().filter(|(name, _)| ![CLOUD, SANDBOX_CONFIG, STREAMS].contains(&name.as_str())).collect()
}

/// CRI counts nanoseconds since 1970.
fn time(nanos: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

/// Zero is "not yet"; containerd says year 1 for it, which is negative.
fn some_time(nanos: i64) -> Option<SystemTime> {
    (nanos > 0).then(|| time(nanos))
}

/// What a failed call on an object means. Runtimes use few codes, so some of it is in the text only.
pub fn failure(kind: &'static str, id: &str, status: tonic::Status) -> Error {
    use tonic::Code;
    let text = status.message();
    match status.code() {
        Code::NotFound => Error::NotFound { kind, id: id.to_owned() },
        Code::AlreadyExists => Error::AlreadyExists { kind, id: id.to_owned() },
        Code::InvalidArgument => Error::InvalidArgument(text.to_owned()),
        Code::FailedPrecondition => Error::FailedPrecondition(text.to_owned()),
        Code::Unavailable => Error::internal("reach the container runtime", status),
        _ if text.contains("is in CONTAINER_") || text.contains("is not running") => {
            Error::FailedPrecondition(text.to_owned())
        }
        _ if kind == "container" && text.contains("OCI runtime") => Error::CannotRun(text.to_owned()),
        _ => Error::Internal { context: text.to_owned(), source: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_before_it_begins() {
        let of = |started_at, finished_at| {
            let status =
                container(String::new(), proto::ContainerStatus { started_at, finished_at, ..Default::default() });
            (status.started_at, status.finished_at)
        };
        assert_eq!(of(30, 20), (Some(time(20)), Some(time(20))));
        assert_eq!(of(10, 20), (Some(time(10)), Some(time(20))));
        assert_eq!(of(10, 0), (Some(time(10)), None));
        // Year 1, as containerd says "never".
        assert_eq!(of(i64::MIN, 0), (None, None));
    }
}
