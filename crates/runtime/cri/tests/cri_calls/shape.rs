//! What of an answer is alike on every runtime: no times, ids or figures, but whether they are there.

use std::collections::{BTreeMap, HashMap};

use dhow_cri::proto;
use serde_json::{Value, json};

fn sorted(map: &HashMap<String, String>) -> BTreeMap<&String, &String> {
    map.iter().collect()
}

fn is_id(id: &str) -> bool {
    id.len() >= 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn above_zero(value: Option<proto::UInt64Value>) -> bool {
    value.is_some_and(|value| value.value > 0)
}

pub fn version(answer: proto::VersionResponse) -> Value {
    json!([
        answer.version,
        answer.runtime_api_version,
        answer.runtime_name.is_empty(),
        answer.runtime_version.is_empty()
    ])
}

pub fn status(answer: proto::StatusResponse) -> Value {
    let conditions = answer.status.unwrap_or_default().conditions;
    let conditions: BTreeMap<String, bool> = conditions.into_iter().map(|one| (one.r#type, one.status)).collect();
    json!({"conditions": conditions, "info": answer.info.contains_key("config")})
}

pub fn id(id: &str) -> Value {
    json!({ "is an id": is_id(id) })
}

fn pod(metadata: Option<proto::PodSandboxMetadata>) -> Value {
    let pod = metadata.unwrap_or_default();
    json!([pod.namespace, pod.name, pod.uid, pod.attempt])
}

pub fn sandbox_status(answer: proto::PodSandboxStatusResponse) -> Value {
    let status = answer.status.unwrap_or_default();
    let options = status.linux.clone().unwrap_or_default().namespaces.unwrap_or_default().options.unwrap_or_default();
    let network = status.network.clone().unwrap_or_default();
    json!({
        "id": is_id(&status.id), "pod": pod(status.metadata.clone()), "state": status.state, "created": status.created_at > 0,
        "namespaces": [options.network, options.pid, options.ipc], "labels": sorted(&status.labels),
        "annotations": sorted(&status.annotations), "handler": status.runtime_handler, "address": network.ip,
        "info": !answer.info.is_empty(),
    })
}

pub fn sandboxes(answer: proto::ListPodSandboxResponse) -> Value {
    let one = |one: proto::PodSandbox| {
        json!([
            is_id(&one.id),
            pod(one.metadata.clone()),
            one.state,
            one.created_at > 0,
            sorted(&one.labels),
            sorted(&one.annotations),
            one.runtime_handler
        ])
    };
    let mut all: Vec<Value> = answer.items.into_iter().map(one).collect();
    all.sort_by_key(Value::to_string);
    json!(all)
}

fn container_name(metadata: Option<proto::ContainerMetadata>) -> Value {
    let metadata = metadata.unwrap_or_default();
    json!([metadata.name, metadata.attempt])
}

pub fn container_status(answer: proto::ContainerStatusResponse) -> Value {
    let status = answer.status.unwrap_or_default();
    let mounts: Vec<Value> = status
        .mounts
        .iter()
        .map(|mount| json!([mount.container_path, mount.host_path.is_empty(), mount.readonly, mount.propagation]))
        .collect();
    json!({
        "id": is_id(&status.id), "container": container_name(status.metadata.clone()), "state": status.state,
        "created": status.created_at > 0, "started": status.started_at > 0, "finished": status.finished_at > 0,
        "code": status.exit_code, "reason": status.reason, "image": status.image.unwrap_or_default().image,
        "image ref": status.image_ref.starts_with("sha256:"), "labels": sorted(&status.labels),
        "annotations": sorted(&status.annotations), "mounts": mounts,
        "log": status.log_path.rsplit('/').next(), "info": !answer.info.is_empty(),
    })
}

pub fn containers(answer: proto::ListContainersResponse) -> Value {
    let one = |one: proto::Container| {
        json!([
            is_id(&one.id),
            is_id(&one.pod_sandbox_id),
            container_name(one.metadata.clone()),
            one.state,
            one.image.clone().unwrap_or_default().image,
            one.image_ref.starts_with("sha256:"),
            sorted(&one.labels),
            sorted(&one.annotations)
        ])
    };
    let mut all: Vec<Value> = answer.containers.into_iter().map(one).collect();
    all.sort_by_key(Value::to_string);
    json!(all)
}

fn measured(stats: proto::ContainerStats) -> Value {
    let attributes = stats.attributes.unwrap_or_default();
    let (cpu, memory) = (stats.cpu.unwrap_or_default(), stats.memory.unwrap_or_default());
    let layer = stats.writable_layer.unwrap_or_default();
    json!({
        "container": container_name(attributes.metadata), "labels": sorted(&attributes.labels),
        "cpu": above_zero(cpu.usage_core_nano_seconds), "memory": above_zero(memory.working_set_bytes),
        "layer": [layer.timestamp > 0, layer.fs_id.is_some(), layer.used_bytes.is_some(), layer.inodes_used.is_some()],
    })
}

pub fn container_stats(answer: proto::ContainerStatsResponse) -> Value {
    answer.stats.map_or(Value::Null, measured)
}

pub fn all_container_stats(answer: proto::ListContainerStatsResponse) -> Value {
    let mut all: Vec<Value> = answer.stats.into_iter().map(measured).collect();
    all.sort_by_key(Value::to_string);
    json!(all)
}

fn sandbox_measured(stats: proto::PodSandboxStats) -> Value {
    let attributes = stats.attributes.unwrap_or_default();
    let linux = stats.linux.unwrap_or_default();
    json!({
        "pod": pod(attributes.metadata), "labels": sorted(&attributes.labels), "containers": linux.containers.len(),
        "cpu": above_zero(linux.cpu.unwrap_or_default().usage_core_nano_seconds),
        "memory": above_zero(linux.memory.unwrap_or_default().working_set_bytes),
        "processes": above_zero(linux.process.unwrap_or_default().process_count),
    })
}

pub fn sandbox_stats(answer: proto::PodSandboxStatsResponse) -> Value {
    answer.stats.map_or(Value::Null, sandbox_measured)
}

pub fn all_sandbox_stats(answer: proto::ListPodSandboxStatsResponse) -> Value {
    let mut all: Vec<Value> = answer.stats.into_iter().map(sandbox_measured).collect();
    all.sort_by_key(Value::to_string);
    json!(all)
}

pub fn url(url: &str) -> Value {
    json!({ "is a URL of loopback": url.starts_with("http://127.0.0.1:") })
}

pub fn executed(answer: proto::ExecSyncResponse) -> Value {
    json!([String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr), answer.exit_code])
}

fn described(image: proto::Image) -> Value {
    let mut tags = image.repo_tags;
    tags.sort();
    json!([
        image.id.starts_with("sha256:"),
        tags,
        image.size > 0,
        image.uid.map(|uid| uid.value),
        image.username,
        image.pinned
    ])
}

pub fn image(answer: proto::ImageStatusResponse) -> Value {
    json!({"image": answer.image.map(described), "info": !answer.info.is_empty()})
}

/// Of those that were brought for the test; others may be there as well.
pub fn images(answer: proto::ListImagesResponse) -> Value {
    let ours = |image: &proto::Image| image.repo_tags.iter().any(|tag| tag.contains("busybox"));
    let all: Vec<Value> = answer.images.into_iter().filter(ours).map(described).collect();
    json!(all)
}

pub fn file_systems(answer: proto::ImageFsInfoResponse) -> Value {
    let one = |usage: &proto::FilesystemUsage| {
        let folder = usage.fs_id.clone().unwrap_or_default().mountpoint;
        json!({
            "time": usage.timestamp > 0, "folder": std::path::Path::new(&folder).is_dir(),
            "bytes": above_zero(usage.used_bytes), "inodes": above_zero(usage.inodes_used),
        })
    };
    json!(answer.image_filesystems.iter().map(one).collect::<Vec<_>>())
}
