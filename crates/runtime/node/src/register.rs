//! The Node object and its heartbeat.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use dhow_client::{Informer, Key, Patch};
use dhow_cri::runtime::{ImageInfo, RuntimeHandler};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::devices::Counts;
use crate::resources::List;
use crate::volumes::local;
use crate::{Error, NodeConfig, capacity, status};

const HEARTBEAT: Duration = Duration::from_secs(10);
const STATUS_EVERY: u32 = 30;

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Names of one image that the node's object lists, and images of all.
const MAX_NAMES: usize = 5;
const MAX_IMAGES: usize = 50;

/// The largest images, as the scheduler wants to know them.
fn images(mut all: Vec<ImageInfo>) -> Vec<Value> {
    all.sort_by_key(|image| std::cmp::Reverse(image.size));
    let named = all.into_iter().filter_map(|image| {
        let names: Vec<String> = image.repo_digests.into_iter().chain(image.repo_tags).take(MAX_NAMES).collect();
        (!names.is_empty()).then(|| json!({"names": names, "sizeBytes": image.size}))
    });
    named.take(MAX_IMAGES).collect()
}

/// What is measured or asked for the node's status.
#[derive(Default)]
pub struct Facts {
    pub version: String,
    pub images: Vec<ImageInfo>,
    pub pressures: BTreeSet<&'static str>,
    pub in_use: BTreeSet<String>,
    pub devices: Counts,
    pub shutting_down: bool,
    pub handlers: Vec<RuntimeHandler>,
    /// Why pods get no network.
    pub network: Option<String>,
}

/// What changes while the node runs.
pub struct Changing {
    pub pressures: watch::Receiver<BTreeSet<&'static str>>,
    /// Attached volumes that pods use.
    pub in_use: watch::Receiver<BTreeSet<String>>,
    pub devices: watch::Receiver<Counts>,
    pub shutting_down: watch::Receiver<bool>,
    /// Of the runtime; see [`dhow_cri::Runtime::network_problem`].
    pub network: Option<watch::Receiver<Option<String>>>,
}

impl Changing {
    async fn changed(&mut self) {
        let gone = tokio::select! {
            changed = self.pressures.changed() => changed,
            changed = self.in_use.changed() => changed,
            changed = self.devices.changed() => changed,
            changed = self.shutting_down.changed() => changed,
            changed = changed_if_any(self.network.as_mut()) => changed,
        };
        if gone.is_err() {
            std::future::pending().await
        }
    }
}

async fn changed_if_any<T>(watched: Option<&mut watch::Receiver<T>>) -> Result<(), watch::error::RecvError> {
    match watched {
        Some(watched) => watched.changed().await,
        None => std::future::pending().await,
    }
}

/// As upstream has it, for the node's condition and for pods that wait.
pub fn network_not_ready(problem: &str) -> String {
    format!("container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{problem}")
}

fn node_status(config: &NodeConfig, old: &Node, facts: Facts) -> Value {
    let now = json!(status::time(SystemTime::now()));
    let old_conditions = old.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let condition = |type_: &str, status: &str, reason: &str, message: &str| {
        let same = old_conditions.clone().find(|c| c.type_ == type_ && c.status == status);
        let since = same.map_or(now.clone(), |c| json!(c.last_transition_time));
        json!({"type": type_, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": since})
    };
    let Facts { version, images: list, pressures, in_use, devices, shutting_down, handlers, network } = facts;
    let pressure = |type_: &str, under: [&str; 2], fine: [&str; 2]| {
        let held = pressures.contains(type_);
        let [reason, message] = if held { under } else { fine };
        condition(type_, if held { "True" } else { "False" }, reason, message)
    };
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let os = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"');
    json!({
        "capacity": with(capacity::capacity(config), devices.capacity),
        "allocatable": with(capacity::allocatable(config), devices.allocatable),
        "volumesInUse": (!in_use.is_empty()).then_some(in_use),
        "addresses": addresses(config),
        "images": images(list),
        "runtimeHandlers": handlers_shown(&handlers),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": config.kubelet_port}},
        "nodeInfo": {"machineID": read("/etc/machine-id"), "systemUUID": system_uuid(),
            "bootID": read("/proc/sys/kernel/random/boot_id"), "kernelVersion": read("/proc/sys/kernel/osrelease"),
            "osImage": os, "containerRuntimeVersion": version, "kubeletVersion": "v1.35.0",
            "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": arch()},
        "conditions": [
            pressure("MemoryPressure", ["KubeletHasInsufficientMemory", "kubelet has insufficient memory available"],
                ["KubeletHasSufficientMemory", "kubelet has sufficient memory available"]),
            pressure("DiskPressure", ["KubeletHasDiskPressure", "kubelet has disk pressure"],
                ["KubeletHasNoDiskPressure", "kubelet has no disk pressure"]),
            pressure("PIDPressure", ["KubeletHasInsufficientPID", "kubelet has insufficient PID available"],
                ["KubeletHasSufficientPID", "kubelet has sufficient PID available"]),
            match (shutting_down, network) {
                (true, _) => condition("Ready", "False", "KubeletNotReady", "node is shutting down"),
                (false, Some(problem)) => condition("Ready", "False", "KubeletNotReady", &network_not_ready(&problem)),
                (false, None) => condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
            },
        ],
    })
}

fn with(mut list: List, more: List) -> List {
    list.extend(more);
    list
}

/// Nothing of a runtime that does not say.
fn handlers_shown(handlers: &[RuntimeHandler]) -> Value {
    let one = |handler: &RuntimeHandler| {
        let (recursive, users) = (handler.recursive_readonly_mounts, handler.user_namespaces);
        json!({"name": handler.name, "features": {"recursiveReadOnlyMounts": recursive, "userNamespaces": users}})
    };
    let all: Vec<Value> = handlers.iter().map(one).collect();
    if all.is_empty() { Value::Null } else { all.into() }
}

fn addresses(config: &NodeConfig) -> Vec<Value> {
    let internal = config.node_ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip}));
    internal.chain([json!({"type": "Hostname", "address": config.name})]).collect()
}

/// The machine's own id, where its firmware gives one.
fn system_uuid() -> String {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    read("/sys/class/dmi/id/product_uuid").or_else(|_| read("/etc/machine-id")).unwrap_or_default()
}

/// Makes or finds the node's object and writes its status; returns what the API has then.
pub async fn register(config: &NodeConfig) -> Result<Node, Error> {
    let mut labels = config.labels.clone();
    for (key, value) in [("hostname", config.name.as_str()), ("os", "linux"), ("arch", arch())] {
        labels.insert(format!("kubernetes.io/{key}"), value.into());
    }
    let client = &config.client;
    let existing = match client.get::<Node>(None, &config.name).await {
        Ok(node) => node,
        Err(error) if error.is_not_found() => {
            let mut node = Node::default();
            node.metadata.name = Some(config.name.clone());
            node.metadata.labels = Some(labels.clone());
            let spec = node.spec.get_or_insert_default();
            spec.pod_cidr = config.pod_cidrs.first().cloned();
            spec.pod_cidrs = (!config.pod_cidrs.is_empty()).then(|| config.pod_cidrs.clone());
            client.create(&node).await.map_err(Error::client("create node"))?
        }
        Err(error) => return Err(Error::client("get node")(error)),
    };
    let annotations = local::announcement(&config.root_dir)?;
    let patch = Patch::Merge(json!({"metadata": {"labels": labels, "annotations": annotations}}));
    client.patch::<Node>(None, &config.name, patch, None).await.map_err(Error::client("label node"))?;
    let facts = Facts { in_use: crate::csi::record::attached_below(&config.root_dir), ..Facts::default() };
    let status = measure(config, &existing, facts).await?;
    write_status(config, status).await
}

/// The node's status as it is now; `old` says since when conditions hold.
async fn measure(config: &NodeConfig, old: &Node, known: Facts) -> Result<Value, Error> {
    let version = config.runtime.version().await?;
    let version = format!("{}://{}", version.name, version.version);
    let images = config.runtime.list_images().await?;
    let handlers = config.runtime.handlers().await?;
    let network = config.runtime.network_problem().and_then(|problem| problem.borrow().clone());
    Ok(node_status(config, old, Facts { version, images, handlers, network, ..known }))
}

async fn write_status(config: &NodeConfig, status: Value) -> Result<Node, Error> {
    let patch = Patch::Merge(json!({"status": status}));
    let sent = config.client.patch::<Node>(None, &config.name, patch, Some("status")).await;
    sent.map_err(Error::client("write node status"))
}

/// Whether the API already has all of that, but for the times of heartbeats.
fn is_written(status: &Value, node: &Node) -> bool {
    let strip = |status: &Value| {
        let mut status = status.clone();
        for condition in status["conditions"].as_array_mut().into_iter().flatten() {
            condition.as_object_mut().map(|condition| condition.remove("lastHeartbeatTime"));
        }
        status
    };
    let Ok(have) = serde_json::to_value(&node.status) else { return false };
    let (new, have) = (strip(status), strip(&have));
    new.as_object().into_iter().flatten().all(|(field, value)| match field.as_str() {
        // Others add conditions of their own.
        "conditions" => {
            let all = have[field].as_array();
            value.as_array().into_iter().flatten().all(|one| all.is_some_and(|all| all.contains(one)))
        }
        _ => have[field] == *value,
    })
}

async fn renew(config: &NodeConfig) -> Result<(), Error> {
    const NAMESPACE: Option<&str> = Some("kube-node-lease");
    let now = jiff::Timestamp::now();
    let now = format!("{:.6}", now);
    let spec = json!({"holderIdentity": config.name, "leaseDurationSeconds": 40, "renewTime": now});
    let patch = Patch::Merge(json!({"spec": spec}));
    match config.client.patch::<Lease>(NAMESPACE, &config.name, patch, None).await {
        Err(error) if error.is_not_found() => {
            let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec,
                "metadata": {"name": config.name, "namespace": NAMESPACE}});
            let lease: Lease = serde_json::from_value(lease).map_err(|e| Error::config(e.to_string()))?;
            config.client.create(&lease).await.map(drop).map_err(Error::client("create lease"))
        }
        other => other.map(drop).map_err(Error::client("renew lease")),
    }
}

/// Renews the lease, and writes the status whenever something of it changed, and from time to time all the same.
///
/// `own` is what everybody else sees of the node: whoever took it for lost while it could not be heard is set right.
pub async fn heartbeat(
    config: NodeConfig,
    mut known: Node,
    own: Informer<Node>,
    mut changing: Changing,
    shutdown: CancellationToken,
) {
    let mut beats = 0_u32;
    let mut timer = tokio::time::interval(HEARTBEAT);
    loop {
        let beat = tokio::select! {
            () = shutdown.cancelled() => return,
            _ = timer.tick() => true,
            () = changing.changed() => false,
        };
        if beat {
            if let Err(error) = renew(&config).await {
                tracing::warn!(%error, "cannot renew the node's lease");
            }
            beats += 1;
            if let Some(seen) = own.get(&Key::new(None, &config.name)) {
                known = Node::clone(&seen);
            }
        }
        // Asked of the runtime itself below.
        changing.network.as_mut().map(watch::Receiver::mark_unchanged);
        let now = Facts {
            pressures: changing.pressures.borrow_and_update().clone(),
            in_use: changing.in_use.borrow_and_update().clone(),
            devices: changing.devices.borrow_and_update().clone(),
            shutting_down: *changing.shutting_down.borrow_and_update(),
            ..Facts::default()
        };
        let result = match measure(&config, &known, now).await {
            Ok(status) if is_written(&status, &known) && !beats.is_multiple_of(STATUS_EVERY) => continue,
            Ok(status) => write_status(&config, status).await,
            Err(error) => Err(error),
        };
        let result = match result {
            Err(Error::Client { source, .. }) if source.is_not_found() => register(&config).await,
            other => other,
        };
        match result {
            Ok(node) => known = node,
            Err(error) => tracing::warn!(%error, "cannot write the node's status"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_beyond_the_heartbeat_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::testing::config(dir.path());
        let image = ImageInfo {
            id: "sha256:0".into(),
            repo_tags: vec!["a:1".into()],
            repo_digests: Vec::new(),
            size: 1,
            uid: None,
            username: None,
        };
        let facts = |images: Vec<ImageInfo>, pressures| Facts {
            version: "dhow://1".into(),
            images,
            pressures,
            ..Facts::default()
        };
        let status = node_status(&config, &Node::default(), facts(vec![image.clone()], BTreeSet::new()));
        let mut node: Node = serde_json::from_value(json!({"status": status})).unwrap();
        let others = json!({"type": "NetworkUnavailable", "status": "False"});
        let conditions = node.status.as_mut().unwrap().conditions.as_mut().unwrap();
        conditions.push(serde_json::from_value(others).unwrap());
        conditions[0].last_heartbeat_time = None;
        let again = |facts| is_written(&node_status(&config, &node, facts), &node);
        assert!(again(facts(vec![image.clone()], BTreeSet::new())));
        assert!(!again(facts(Vec::new(), BTreeSet::new())));
        assert!(!again(facts(vec![image], ["DiskPressure"].into())));
    }
}
