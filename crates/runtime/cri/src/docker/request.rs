//! What is asked of Docker: a sandbox is a container that does nothing and holds the namespaces of the others. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cgroups::{CgroupDriver, cgroup_parent};
use crate::embedded::specification::{MASKED_PATHS, NETWORK_SYSCTLS, READONLY_PATHS, paths};
use crate::runtime::{
    AppArmorProfile, ContainerConfig, Mount, MountPropagation, NamespaceMode, Resources, SandboxConfig, SeccompProfile,
};
use crate::{Error, pause};

/// Label: the cloud that a container belongs to, by its top control group.
pub const CLOUD: &str = "dhow.io/cloud";
/// Label of sandboxes: what was asked for, as JSON.
pub const SANDBOX: &str = "dhow.io/sandbox-config";
/// Label of the others: the sandbox they are in.
pub const SANDBOX_ID: &str = "dhow.io/sandbox";
/// Label of the others: a [`Remembered`] as JSON.
pub const CONTAINER: &str = "dhow.io/container";

/// Docker's own copy of what a container writes, which is read into the pod's log; bounded, for it is written twice.
const LOG: (&str, &str) = ("10m", "3");

/// What Docker would not give back of a container's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Remembered {
    pub name: String,
    pub attempt: u32,
    pub image: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub log_path: PathBuf,
    pub stdin: bool,
    pub tty: bool,
}

/// A control group's name for Docker.
pub struct Groups<'a> {
    pub driver: CgroupDriver,
    pub root: &'a str,
}

impl Groups<'_> {
    fn parent(&self, sandbox: &SandboxConfig) -> String {
        cgroup_parent(self.driver, &format!("{}/{}", self.root, sandbox.cgroup_parent))
    }
}

fn host(mode: NamespaceMode, own: &str) -> String {
    if mode == NamespaceMode::Node { "host".to_owned() } else { own.to_owned() }
}

pub fn sandbox(config: &SandboxConfig, groups: &Groups<'_>) -> Value {
    let own_network = config.namespaces.network != NamespaceMode::Node;
    let mut sysctls: BTreeMap<&str, &str> = BTreeMap::new();
    if own_network {
        sysctls.extend(NETWORK_SYSCTLS);
    }
    sysctls.extend(config.sysctls.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    json!({
        "Image": pause::NAME,
        "Hostname": if own_network { config.hostname.as_str() } else { "" },
        "Labels": {CLOUD: groups.root, SANDBOX: json!(config).to_string()},
        "HostConfig": {
            "NetworkMode": host(config.namespaces.network, "none"),
            "IpcMode": host(config.namespaces.ipc, "shareable"),
            "PidMode": if config.namespaces.pid == NamespaceMode::Node { "host" } else { "" },
            "CgroupParent": groups.parent(config),
            "Sysctls": sysctls,
            "ReadonlyRootfs": true,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "LogConfig": {"Type": "none"},
        },
    })
}

/// `seccomp` is the text of a Localhost profile.
pub fn container(
    config: &ContainerConfig,
    sandbox_id: &str,
    sandbox: &SandboxConfig,
    groups: &Groups<'_>,
    seccomp: Option<String>,
) -> Result<Value, Error> {
    let security = &config.security;
    let remembered = Remembered {
        name: config.name.clone(),
        attempt: config.attempt,
        image: config.image.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        log_path: sandbox.log_directory.join(&config.log_path),
        stdin: config.stdin,
        tty: config.tty,
    };
    let joined = format!("container:{sandbox_id}");
    let mut options = Vec::new();
    if security.no_new_privs {
        options.push("no-new-privileges".to_owned());
    }
    match (&security.seccomp, seccomp) {
        (SeccompProfile::Unconfined, _) => options.push("seccomp=unconfined".to_owned()),
        (_, Some(profile)) => options.push(format!("seccomp={profile}")),
        _ => {}
    }
    match &security.apparmor {
        AppArmorProfile::Unconfined => options.push("apparmor=unconfined".to_owned()),
        AppArmorProfile::Localhost(name) => options.push(format!("apparmor={name}")),
        // Docker has a default of its own.
        AppArmorProfile::Unspecified | AppArmorProfile::RuntimeDefault => {}
    }
    if let Some(label) = &security.selinux {
        let parts = [("user", &label.user), ("role", &label.role), ("type", &label.r#type), ("level", &label.level)];
        let given = parts.into_iter().filter(|(_, value)| !value.is_empty());
        options.extend(given.map(|(name, value)| format!("label={name}:{value}")));
    }
    let mut host_config = json!({
        "NetworkMode": joined,
        "IpcMode": host(sandbox.namespaces.ipc, &joined),
        "PidMode": match (&config.target, sandbox.namespaces.pid) {
            (Some(target), _) => format!("container:{target}"),
            (None, NamespaceMode::Node) => "host".to_owned(),
            (None, NamespaceMode::Pod) => joined.clone(),
            (None, NamespaceMode::Container) => String::new(),
        },
        "CgroupParent": groups.parent(sandbox),
        "Privileged": security.privileged,
        "ReadonlyRootfs": security.readonly_rootfs,
        "CapAdd": security.add_capabilities,
        "CapDrop": security.drop_capabilities,
        "GroupAdd": security.supplemental_groups.iter().map(u32::to_string).collect::<Vec<_>>(),
        "SecurityOpt": options,
        "Mounts": config.mounts.iter().map(mount).collect::<Vec<_>>(),
        "Devices": config.devices.iter().map(|device| json!({
            "PathOnHost": device.host_path,
            "PathInContainer": device.container_path,
            "CgroupPermissions": device.permissions,
        })).collect::<Vec<_>>(),
        "LogConfig": {"Type": "json-file", "Config": {"max-size": LOG.0, "max-file": LOG.1}},
    });
    if !config.cdi_devices.is_empty() {
        host_config["DeviceRequests"] = json!([{"Driver": "cdi", "DeviceIDs": config.cdi_devices}]);
    }
    if !security.privileged {
        host_config["MaskedPaths"] = json!(paths(security.masked_paths.as_deref(), &MASKED_PATHS));
        host_config["ReadonlyPaths"] = json!(paths(security.readonly_paths.as_deref(), &READONLY_PATHS));
    }
    if let (Value::Object(all), Value::Object(limits)) = (&mut host_config, resources(&config.resources)) {
        all.extend(limits);
        all.extend(config.resources.oom_score_adj.map(|score| ("OomScoreAdj".to_owned(), score.into())));
    }
    let mut asked = json!({
        "Image": config.image,
        "Env": config.envs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
        "OpenStdin": config.stdin,
        "StdinOnce": config.stdin_once,
        "Tty": config.tty,
        "Labels": {
            CLOUD: groups.root,
            SANDBOX_ID: sandbox_id,
            CONTAINER: json!(remembered).to_string(),
        },
        "HostConfig": host_config,
    });
    // What is left out is the image's.
    if !config.command.is_empty() {
        asked["Entrypoint"] = json!(config.command);
    }
    if !config.args.is_empty() {
        asked["Cmd"] = json!(config.args);
    }
    if let Some(signal) = &config.stop_signal {
        asked["StopSignal"] = json!(signal);
    }
    if let Some(folder) = config.working_dir.as_ref().filter(|folder| !folder.is_empty()) {
        asked["WorkingDir"] = json!(folder);
    }
    let user = match (security.run_as_user, &security.run_as_username) {
        (Some(uid), _) => Some(uid.to_string()),
        (None, name) => name.clone(),
    };
    match (user, security.run_as_group) {
        (Some(user), Some(group)) => asked["User"] = json!(format!("{user}:{group}")),
        (Some(user), None) => asked["User"] = json!(user),
        (None, Some(_)) => return Err(Error::InvalidArgument("runAsGroup needs runAsUser with Docker".into())),
        (None, None) => {}
    }
    Ok(asked)
}

fn mount(mount: &Mount) -> Value {
    let propagation = match mount.propagation {
        MountPropagation::Private => "rprivate",
        MountPropagation::HostToContainer => "rslave",
        MountPropagation::Bidirectional => "rshared",
    };
    let mut options = json!({ "Propagation": propagation });
    if mount.recursive_readonly {
        options["ReadOnlyForceRecursive"] = json!(true);
    }
    json!({
        "Type": "bind",
        "Source": mount.host_path,
        "Target": mount.container_path,
        "ReadOnly": mount.readonly,
        "BindOptions": options,
    })
}

/// Limits as part of a `HostConfig` or an update.
pub fn resources(limits: &Resources) -> Value {
    let mut all = serde_json::Map::new();
    let mut set = |name: &str, value: Option<Value>| all.extend(value.map(|value| (name.to_owned(), value)));
    set("CpuQuota", limits.cpu_quota.map(Value::from));
    set("CpuPeriod", limits.cpu_period.map(Value::from));
    set("CpuShares", limits.cpu_shares.map(Value::from));
    set("Memory", limits.memory_limit.map(Value::from));
    // No more than that with swap, either.
    set("MemorySwap", limits.memory_limit.map(Value::from));
    set("PidsLimit", limits.pids_limit.map(Value::from));
    set("CpusetCpus", limits.cpuset_cpus.clone().map(Value::from));
    set("CpusetMems", limits.cpuset_mems.clone().map(Value::from));
    Value::Object(all)
}

/// Reads a Localhost profile.
pub fn seccomp_text(profile: &SeccompProfile) -> Result<Option<String>, Error> {
    let SeccompProfile::Localhost(path) = profile else { return Ok(None) };
    let text = std::fs::read_to_string(path);
    text.map(Some).map_err(|error| Error::internal(format!("read seccomp profile {}", Path::display(path)), error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::runtime::{NamespaceOptions, PodIdentity, SecurityContext};

    fn pod() -> SandboxConfig {
        SandboxConfig {
            pod: PodIdentity { namespace: "n".into(), name: "p".into(), uid: "u".into(), attempt: 0 },
            hostname: "p".into(),
            log_directory: "/logs".into(),
            dns: None,
            port_mappings: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            namespaces: NamespaceOptions { pid: NamespaceMode::Pod, ..NamespaceOptions::default() },
            sysctls: BTreeMap::new(),
            cgroup_parent: "kubepods/pod1".into(),
            runtime_handler: String::new(),
        }
    }

    #[test]
    fn containers_join_their_sandbox() {
        let config: ContainerConfig = serde_json::from_value(json!({
            "name": "c", "attempt": 2, "image": "i", "command": ["/a"], "args": [], "working_dir": null,
            "envs": [["A", "b"]], "mounts": [], "devices": [], "labels": {}, "annotations": {}, "log_path": "c/2.log",
            "stdin": false, "stdin_once": false, "tty": false,
            "resources": Resources { memory_limit: Some(1 << 20), ..Resources::default() },
            "security": SecurityContext { run_as_user: Some(5), run_as_group: Some(6), ..SecurityContext::default() },
        }))
        .unwrap();
        let groups = Groups { driver: CgroupDriver::Cgroupfs, root: "dhow" };
        let asked = container(&config, "s1", &pod(), &groups, None).unwrap();
        assert_eq!(asked["HostConfig"]["NetworkMode"], "container:s1");
        assert_eq!(asked["HostConfig"]["PidMode"], "container:s1");
        assert_eq!(asked["HostConfig"]["CgroupParent"], "/dhow/kubepods/pod1");
        assert_eq!(asked["HostConfig"]["Memory"], 1 << 20);
        assert_eq!((&asked["User"], &asked["Entrypoint"][0]), (&json!("5:6"), &json!("/a")));
        assert!(asked.get("Cmd").is_none());
        let remembered: Remembered = serde_json::from_str(asked["Labels"][CONTAINER].as_str().unwrap()).unwrap();
        assert_eq!((remembered.attempt, remembered.log_path), (2, PathBuf::from("/logs/c/2.log")));
    }
}
