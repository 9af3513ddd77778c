//! From a pod's spec to what the runtime is asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dhow_cri::runtime::{
    AppArmorProfile, ContainerConfig, Device, ImageInfo, Mount, MountPropagation, NamespaceMode, NamespaceOptions,
    PodIdentity, PortMapping, RuntimeHandler, SandboxConfig, SeccompProfile, SecurityContext, SelinuxOptions,
    UserNamespace,
};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, VolumeMount};

use crate::containers::is_sidecar;
use crate::resources::NodeLimits;
use crate::{Error, NodeConfig, hosts, resolver, resources, volumes};

pub fn identity(pod: &Pod, attempt: u32) -> PodIdentity {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let meta = &pod.metadata;
    PodIdentity { namespace: text(&meta.namespace), name: text(&meta.name), uid: text(&meta.uid), attempt }
}

pub fn log_directory(root: &Path, pod: &PodIdentity) -> PathBuf {
    root.join("logs").join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
}

pub fn sandbox(
    config: &NodeConfig,
    pod: &Pod,
    spec: &PodSpec,
    attempt: u32,
    runtime_handler: String,
) -> Result<SandboxConfig, String> {
    let pod_id = identity(pod, attempt);
    let mode = |host: Option<bool>| if host == Some(true) { NamespaceMode::Node } else { NamespaceMode::Pod };
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (Some(true), _) => NamespaceMode::Node,
        (_, Some(true)) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    let host_network = spec.host_network == Some(true);
    let port = |p: i32| u16::try_from(p).unwrap_or(0);
    let lasting = spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(|c| is_sidecar(c)));
    let ports = lasting.flat_map(|c| c.ports.iter().flatten()).filter(|_| !host_network);
    let port_mappings = ports
        .filter_map(|p| {
            Some(PortMapping {
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                container_port: port(p.container_port),
                host_port: p.host_port.map(port).filter(|p| *p != 0)?,
                host_ip: p.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
            })
        })
        .collect();
    let user = if spec.host_users == Some(false) { UserNamespace::Pod } else { UserNamespace::Node };
    let sysctls = spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
    Ok(SandboxConfig {
        hostname: hosts::hostname(pod, spec, &config.name, &config.cluster_domain)?,
        log_directory: log_directory(&config.root_dir, &pod_id),
        dns: resolver::of_pod(config, &pod_id.namespace, spec),
        port_mappings,
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        namespaces: NamespaceOptions { network: mode(spec.host_network), pid, ipc: mode(spec.host_ipc), user },
        sysctls: sysctls.map(|s| (s.name.replace('/', "."), s.value.clone())).collect(),
        cgroup_parent: resources::cgroup_parent(spec, &pod_id.uid),
        runtime_handler,
        pod: pod_id,
    })
}

/// Where a profile of `type: Localhost` lies; its path is relative and stays below the node's own folder.
fn seccomp_path(root: &Path, profile: Option<String>) -> Result<PathBuf, Error> {
    let profile = profile.filter(|path| !path.is_empty() && volumes::is_inside(path));
    let profile = profile.ok_or_else(|| Error::config("localhostProfile must be a path below the seccomp folder"))?;
    Ok(root.join("seccomp").join(profile))
}

fn security(root: &Path, spec: &PodSpec, container: &Container, image: &ImageInfo) -> Result<SecurityContext, Error> {
    let pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let id = |v: Option<i64>| v.and_then(|v| u32::try_from(v).ok());
    let user = id(own.run_as_user.or(pod.run_as_user)).or(image.uid);
    let username = if user.is_none() { image.username.clone() } else { None };
    if own.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
        if user == Some(0) || (user.is_none() && username.is_none()) {
            let by = if own.run_as_user.or(pod.run_as_user) == Some(0) {
                "container's runAsUser breaks non-root policy"
            } else {
                "container has runAsNonRoot and image will run as root"
            };
            return Err(Error::config(by));
        }
        if user.is_none() {
            let name = username.unwrap_or_default();
            return Err(Error::config(format!(
                "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
            )));
        }
    }
    let privileged = own.privileged == Some(true);
    let seccomp = match own.seccomp_profile.or(pod.seccomp_profile) {
        Some(p) if p.type_ == "Unconfined" => SeccompProfile::Unconfined,
        Some(p) if p.type_ == "Localhost" => SeccompProfile::Localhost(seccomp_path(root, p.localhost_profile)?),
        _ if privileged => SeccompProfile::Unconfined,
        _ => SeccompProfile::RuntimeDefault,
    };
    let apparmor = match own.app_armor_profile.or(pod.app_armor_profile) {
        None => AppArmorProfile::Unspecified,
        Some(p) if p.type_ == "Unconfined" => AppArmorProfile::Unconfined,
        Some(p) if p.type_ == "Localhost" => AppArmorProfile::Localhost(p.localhost_profile.unwrap_or_default()),
        Some(_) => AppArmorProfile::RuntimeDefault,
    };
    let selinux = own.se_linux_options.or(pod.se_linux_options).map(|label| SelinuxOptions {
        user: label.user.unwrap_or_default(),
        role: label.role.unwrap_or_default(),
        r#type: label.type_.unwrap_or_default(),
        level: label.level.unwrap_or_default(),
    });
    let groups = pod.supplemental_groups.into_iter().flatten().chain(pod.fs_group);
    let capabilities = own.capabilities.unwrap_or_default();
    Ok(SecurityContext {
        privileged,
        run_as_user: user,
        run_as_group: id(own.run_as_group.or(pod.run_as_group)),
        run_as_username: username,
        supplemental_groups: groups.filter_map(|g| u32::try_from(g).ok()).collect(),
        only_given_groups: pod.supplemental_groups_policy.as_deref() == Some("Strict"),
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        seccomp,
        apparmor,
        selinux,
        masked_paths: (own.proc_mount.as_deref() == Some("Unmasked")).then(Vec::new),
        readonly_paths: (own.proc_mount.as_deref() == Some("Unmasked")).then(Vec::new),
    })
}

/// Whether the pod has the volume for reading only, whatever a container says.
fn is_read_only(spec: &PodSpec, name: &str) -> bool {
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == name);
    let claim = volume.and_then(|volume| volume.persistent_volume_claim.as_ref());
    let own = volume.and_then(|volume| volume.csi.as_ref());
    claim.is_some_and(|claim| claim.read_only == Some(true)) || own.is_some_and(|own| own.read_only == Some(true))
}

/// Volumes that are block devices, each at its path in the container.
fn devices(spec: &PodSpec, container: &Container, start: &Start<'_>) -> Result<Vec<Device>, Error> {
    let given = container.volume_devices.iter().flatten().map(|device| {
        let base = start.volumes.get(&device.name);
        let base = base.ok_or_else(|| Error::config(format!("volume {:?} not found", device.name)))?;
        if !volumes::is_block_device(base) {
            let why = format!("volume {:?} has volumeMode Filesystem, but is specified in volumeDevices", device.name);
            return Err(Error::config(why));
        }
        let permissions = if is_read_only(spec, &device.name) { "r" } else { "rwm" };
        Ok(Device {
            host_path: base.clone(),
            container_path: Path::new("/").join(&device.device_path),
            permissions: permissions.into(),
        })
    });
    given.collect()
}

fn mounts(spec: &PodSpec, container: &Container, start: &Start<'_>) -> Result<Vec<Mount>, Error> {
    let mut out = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let recursive_readonly = recursive_read_only(mount, &start.features)?;
        let sub = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(sub), _) if !sub.is_empty() => Some(sub.clone()),
            (_, Some(expression)) if !expression.is_empty() => Some(expand_all(expression, &start.env)?),
            _ => None,
        };
        let container_path = Path::new("/").join(&mount.mount_path);
        if let Some(image) = start.images.get(&mount.name) {
            let image_sub_path = PathBuf::from(sub.unwrap_or_default());
            let image = Some(image.clone());
            out.push(Mount {
                container_path,
                readonly: true,
                recursive_readonly,
                image,
                image_sub_path,
                ..Mount::default()
            });
            continue;
        }
        let base = start.volumes.get(&mount.name);
        let base = base.ok_or_else(|| Error::config(format!("volume {:?} not found", mount.name)))?;
        let place = start.subpaths.join(index.to_string());
        let host_path = match sub {
            Some(sub) => volumes::mount_sub_path(base, &sub, &place).map(|()| place)?,
            None => base.clone(),
        };
        let readonly = mount.read_only == Some(true) || is_read_only(spec, &mount.name);
        out.push(Mount {
            host_path,
            container_path,
            readonly,
            recursive_readonly,
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => MountPropagation::HostToContainer,
                Some("Bidirectional") => MountPropagation::Bidirectional,
                _ => MountPropagation::Private,
            },
            ..Mount::default()
        });
    }
    Ok(out)
}

/// Whether a mount's reading only holds for what is mounted below it, too.
fn recursive_read_only(mount: &VolumeMount, features: &RuntimeHandler) -> Result<bool, Error> {
    let name = &mount.name;
    let mode = match mount.recursive_read_only.as_deref() {
        None | Some("" | "Disabled") => return Ok(false),
        Some(mode) => mode,
    };
    let refuse = |why: String| {
        Err(Error::config(format!("volume {name:?} requested recursive read-only mode, but it is not {why}")))
    };
    if mount.read_only != Some(true) {
        return refuse("read-only".into());
    }
    match mount.mount_propagation.as_deref() {
        None | Some("None") => {}
        Some(other) => return refuse(format!("compatible with propagation {other:?}")),
    }
    match (mode, features.recursive_readonly_mounts) {
        ("IfPossible", supported) => Ok(supported),
        (_, true) => Ok(true),
        (_, false) => refuse("supported by the runtime".into()),
    }
}

/// As [`crate::env::expand`], but every name has to be there.
fn expand_all(text: &str, env: &BTreeMap<String, String>) -> Result<String, Error> {
    let expanded = crate::env::expand(text, env);
    let missing = || Error::config(format!("missing value for a variable of subPathExpr {text:?}"));
    if expanded.contains("$(") { Err(missing()) } else { Ok(expanded) }
}

/// What varies between two starts of one container.
pub struct Start<'a> {
    pub attempt: u32,
    pub image: &'a ImageInfo,
    pub env: BTreeMap<String, String>,
    pub volumes: &'a BTreeMap<String, PathBuf>,
    /// Volumes that are images, by name: the images' ids.
    pub images: &'a BTreeMap<String, String>,
    /// What the runtime can do.
    pub features: RuntimeHandler,
    pub hosts: Option<PathBuf>,
    pub termination_log: PathBuf,
    /// A folder for the parts of volumes that this container mounts.
    pub subpaths: PathBuf,
    pub node: &'a NodeLimits,
    /// The container whose processes this one sees.
    pub target: Option<String>,
}

pub fn container(
    config: &NodeConfig,
    spec: &PodSpec,
    container: &Container,
    start: Start<'_>,
) -> Result<ContainerConfig, Error> {
    let expand =
        |list: &Option<Vec<String>>| list.iter().flatten().map(|a| crate::env::expand(a, &start.env)).collect();
    let security = security(&config.root_dir, spec, container, start.image)?;
    let mut mounts = mounts(spec, container, &start)?;
    let devices = devices(spec, container, &start)?;
    let mut file = |host_path: PathBuf, container_path: &str| {
        if !mounts.iter().any(|m| m.container_path == Path::new(container_path)) {
            let propagation = MountPropagation::Private;
            mounts.push(Mount { host_path, container_path: container_path.into(), propagation, ..Mount::default() });
        }
    };
    if let Some(hosts) = start.hosts {
        file(hosts, "/etc/hosts");
    }
    file(start.termination_log, container.termination_message_path.as_deref().unwrap_or("/dev/termination-log"));
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt: start.attempt,
        image: start.image.id.clone(),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone(),
        mounts,
        devices,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: Path::new(&container.name).join(format!("{}.log", start.attempt)),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        resources: resources::of(spec, container, start.node),
        security,
        cdi_devices: Vec::new(),
        target: start.target,
        stop_signal: container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()),
        envs: start.env.into_iter().collect(),
    })
}
