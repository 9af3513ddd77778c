//! What the trait answers, in the words of CRI. Pure.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::SystemTime;

use crate::cri_client::request as words;
use crate::links::LinkStats;
use crate::proto;
use crate::runtime::{
    ContainerConfig, ContainerState, ContainerStats, ContainerStatus, DiskUsage, ImageFsInfo, ImageInfo, PodIdentity,
    RuntimeEventKind, RuntimeHandler, SandboxConfig, SandboxState, SandboxStatus,
};

/// Nanoseconds since 1970; zero is "not yet".
pub fn nanos(time: Option<SystemTime>) -> i64 {
    let since = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn map(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.clone().into_iter().collect()
}

pub fn handler(handler: &RuntimeHandler) -> proto::RuntimeHandler {
    proto::RuntimeHandler {
        name: handler.name.clone(),
        features: Some(proto::RuntimeHandlerFeatures {
            recursive_read_only_mounts: handler.recursive_readonly_mounts,
            user_namespaces: handler.user_namespaces,
        }),
    }
}

fn metadata(pod: &PodIdentity) -> proto::PodSandboxMetadata {
    proto::PodSandboxMetadata {
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        attempt: pod.attempt,
    }
}

fn sandbox_state(state: SandboxState) -> proto::PodSandboxState {
    match state {
        SandboxState::Ready => proto::PodSandboxState::SandboxReady,
        SandboxState::NotReady => proto::PodSandboxState::SandboxNotready,
    }
}

/// With what it was asked to be, if that is known: a kubelet compares its namespaces with the pod's.
pub fn sandbox_status(status: &SandboxStatus, config: Option<&SandboxConfig>) -> proto::PodSandboxStatus {
    let mut ips = status.ips.iter().map(ToString::to_string);
    proto::PodSandboxStatus {
        id: status.id.clone(),
        metadata: Some(metadata(&status.pod)),
        state: sandbox_state(status.state).into(),
        created_at: nanos(Some(status.created_at)),
        network: Some(proto::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| proto::PodIp { ip }).collect(),
        }),
        linux: config.map(|config| proto::LinuxPodSandboxStatus {
            namespaces: Some(proto::Namespace { options: Some(words::namespaces(&config.namespaces)) }),
        }),
        labels: map(&status.labels),
        annotations: map(&status.annotations),
        runtime_handler: config.map(|config| config.runtime_handler.clone()).unwrap_or_default(),
    }
}

pub fn sandbox(status: &SandboxStatus, config: Option<&SandboxConfig>) -> proto::PodSandbox {
    proto::PodSandbox {
        id: status.id.clone(),
        metadata: Some(metadata(&status.pod)),
        state: sandbox_state(status.state).into(),
        created_at: nanos(Some(status.created_at)),
        labels: map(&status.labels),
        annotations: map(&status.annotations),
        runtime_handler: config.map(|config| config.runtime_handler.clone()).unwrap_or_default(),
    }
}

fn container_metadata(status: &ContainerStatus) -> proto::ContainerMetadata {
    proto::ContainerMetadata { name: status.name.clone(), attempt: status.attempt }
}

fn container_state(state: ContainerState) -> proto::ContainerState {
    match state {
        ContainerState::Created => proto::ContainerState::ContainerCreated,
        ContainerState::Running => proto::ContainerState::ContainerRunning,
        ContainerState::Exited => proto::ContainerState::ContainerExited,
        ContainerState::Unknown => proto::ContainerState::ContainerUnknown,
    }
}

fn spec(image: &str) -> proto::ImageSpec {
    proto::ImageSpec { image: image.to_owned(), user_specified_image: image.to_owned(), ..Default::default() }
}

/// With what it was asked to be, if that is known: a kubelet resizes by the limits it reads here.
pub fn container_status(status: &ContainerStatus, config: Option<&ContainerConfig>) -> proto::ContainerStatus {
    proto::ContainerStatus {
        id: status.id.clone(),
        metadata: Some(container_metadata(status)),
        state: container_state(status.state).into(),
        created_at: nanos(Some(status.created_at)),
        started_at: nanos(status.started_at),
        finished_at: nanos(status.finished_at),
        exit_code: status.exit_code,
        image: Some(spec(&status.image)),
        image_ref: status.image_ref.clone(),
        image_id: status.image_ref.clone(),
        reason: status.reason.clone(),
        message: status.message.clone(),
        labels: map(&status.labels),
        annotations: map(&status.annotations),
        log_path: status.log_path.to_string_lossy().into_owned(),
        user: status.user.as_ref().map(|user| proto::ContainerUser {
            linux: Some(proto::LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: user.groups.iter().map(|group| i64::from(*group)).collect(),
            }),
        }),
        mounts: config.map(words::mounts).unwrap_or_default(),
        resources: config.map(|config| proto::ContainerResources {
            linux: Some(words::resources(&config.resources, dhow_oci::cgroup::is_unified())),
        }),
        ..Default::default()
    }
}

pub fn container(status: &ContainerStatus) -> proto::Container {
    proto::Container {
        id: status.id.clone(),
        pod_sandbox_id: status.sandbox_id.clone(),
        metadata: Some(container_metadata(status)),
        image: Some(spec(&status.image)),
        image_ref: status.image_ref.clone(),
        image_id: status.image_ref.clone(),
        state: container_state(status.state).into(),
        created_at: nanos(Some(status.created_at)),
        labels: map(&status.labels),
        annotations: map(&status.annotations),
    }
}

pub fn stats(
    status: &ContainerStatus,
    stats: &ContainerStats,
    layer: Option<proto::FilesystemUsage>,
    now: i64,
) -> proto::ContainerStats {
    let value = |value| Some(proto::UInt64Value { value });
    proto::ContainerStats {
        attributes: Some(proto::ContainerAttributes {
            id: status.id.clone(),
            metadata: Some(container_metadata(status)),
            labels: map(&status.labels),
            annotations: map(&status.annotations),
        }),
        cpu: Some(proto::CpuUsage {
            timestamp: now,
            usage_core_nano_seconds: value(stats.cpu_usage_core_nanos),
            ..Default::default()
        }),
        memory: Some(proto::MemoryUsage {
            timestamp: now,
            working_set_bytes: value(stats.memory_working_set_bytes),
            usage_bytes: value(stats.memory_usage_bytes),
            ..Default::default()
        }),
        writable_layer: layer,
        ..Default::default()
    }
}

/// Part of a file system, which a folder on it names.
pub fn part(mountpoint: &Path, usage: DiskUsage, now: i64) -> proto::FilesystemUsage {
    let value = |value| Some(proto::UInt64Value { value });
    proto::FilesystemUsage {
        timestamp: now,
        fs_id: Some(proto::FilesystemIdentifier { mountpoint: mountpoint.to_string_lossy().into_owned() }),
        used_bytes: value(usage.bytes),
        inodes_used: value(usage.inodes),
    }
}

pub fn image_file_system(info: &ImageFsInfo, now: i64) -> proto::FilesystemUsage {
    part(&info.mountpoint, DiskUsage { bytes: info.used_bytes, inodes: info.inodes_used }, now)
}

/// What a verbose answer says beyond CRI: JSON under `info`.
pub fn info(document: &serde_json::Value) -> HashMap<String, String> {
    HashMap::from([("info".to_owned(), document.to_string())])
}

/// A sandbox' numbers are the sums of its containers'.
pub fn sandbox_stats(
    status: &SandboxStatus,
    containers: Vec<(proto::ContainerStats, ContainerStats)>,
    links: Option<Vec<LinkStats>>,
    now: i64,
) -> proto::PodSandboxStats {
    let sum = |of: fn(&ContainerStats) -> u64| {
        Some(proto::UInt64Value { value: containers.iter().map(|(_, stats)| of(stats)).sum() })
    };
    proto::PodSandboxStats {
        attributes: Some(proto::PodSandboxAttributes {
            id: status.id.clone(),
            metadata: Some(metadata(&status.pod)),
            labels: map(&status.labels),
            annotations: map(&status.annotations),
        }),
        linux: Some(proto::LinuxPodSandboxStats {
            cpu: Some(proto::CpuUsage {
                timestamp: now,
                usage_core_nano_seconds: sum(|stats| stats.cpu_usage_core_nanos),
                ..Default::default()
            }),
            memory: Some(proto::MemoryUsage {
                timestamp: now,
                working_set_bytes: sum(|stats| stats.memory_working_set_bytes),
                usage_bytes: sum(|stats| stats.memory_usage_bytes),
                ..Default::default()
            }),
            process: Some(proto::ProcessUsage { timestamp: now, process_count: sum(|stats| stats.pids) }),
            network: links.map(|links| network(links, now)),
            containers: containers.iter().map(|(stats, _)| stats.clone()).collect(),
            ..Default::default()
        }),
    }
}

/// A pod's own link is `eth0`, whoever made it.
fn network(links: Vec<LinkStats>, now: i64) -> proto::NetworkUsage {
    let value = |value| Some(proto::UInt64Value { value });
    let usage = |link: LinkStats| proto::NetworkInterfaceUsage {
        rx_bytes: value(link.received_bytes),
        rx_errors: value(link.received_errors),
        tx_bytes: value(link.sent_bytes),
        tx_errors: value(link.sent_errors),
        name: link.name,
    };
    let (own, others): (Vec<_>, Vec<_>) = links.into_iter().map(usage).partition(|link| link.name == "eth0");
    proto::NetworkUsage { timestamp: now, default_interface: own.into_iter().next(), interfaces: others }
}

pub fn image(image: ImageInfo) -> proto::Image {
    proto::Image {
        id: image.id,
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
        size: image.size,
        uid: image.uid.map(|uid| proto::Int64Value { value: uid.into() }),
        username: image.username.unwrap_or_default(),
        spec: Some(proto::ImageSpec::default()),
        ..Default::default()
    }
}

pub fn event_kind(kind: RuntimeEventKind) -> proto::ContainerEventType {
    match kind {
        RuntimeEventKind::Started => proto::ContainerEventType::ContainerStartedEvent,
        RuntimeEventKind::Exited => proto::ContainerEventType::ContainerStoppedEvent,
        RuntimeEventKind::Removed => proto::ContainerEventType::ContainerDeletedEvent,
    }
}
