//! From a pod's spec to what the runtime is asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dhow_cri::runtime::{
    ContainerConfig, DnsConfig, ImageInfo, Mount, MountPropagation, NamespaceMode, NamespaceOptions, PodIdentity,
    PortMapping, SandboxConfig, SeccompProfile, SecurityContext, UserNamespace,
};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::{Error, NodeConfig, resources, volumes};

pub fn identity(pod: &Pod, attempt: u32) -> PodIdentity {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let meta = &pod.metadata;
    PodIdentity { namespace: text(&meta.namespace), name: text(&meta.name), uid: text(&meta.uid), attempt }
}

pub fn log_directory(root: &Path, pod: &PodIdentity) -> PathBuf {
    root.join("logs").join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
}

fn dns(config: &NodeConfig, ns: &str, spec: &PodSpec) -> Option<DnsConfig> {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let on_host = spec.host_network == Some(true) && policy == "ClusterFirst";
    let mut dns = match policy {
        "None" => DnsConfig::default(),
        "Default" => return None,
        _ if on_host => return None,
        _ => DnsConfig {
            servers: vec![config.cluster_dns.clone()],
            searches: vec![
                format!("{ns}.svc.{}", config.cluster_domain),
                format!("svc.{}", config.cluster_domain),
                config.cluster_domain.clone(),
            ],
            options: vec!["ndots:5".into()],
        },
    };
    if let Some(more) = &spec.dns_config {
        dns.servers.extend(more.nameservers.iter().flatten().cloned());
        dns.searches.extend(more.searches.iter().flatten().cloned());
        for option in more.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            dns.options.retain(|o| o.split(':').next() != Some(&name));
            dns.options.push(option.value.as_ref().map_or(name.clone(), |v| format!("{name}:{v}")));
        }
    }
    Some(dns)
}

pub fn sandbox(config: &NodeConfig, pod: &Pod, spec: &PodSpec, attempt: u32) -> SandboxConfig {
    let pod_id = identity(pod, attempt);
    let mode = |host: Option<bool>| if host == Some(true) { NamespaceMode::Node } else { NamespaceMode::Pod };
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (Some(true), _) => NamespaceMode::Node,
        (_, Some(true)) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    let host_network = spec.host_network == Some(true);
    let port = |p: i32| u16::try_from(p).unwrap_or(0);
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten()).filter(|_| !host_network);
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
    let hostname = if host_network { &config.name } else { spec.hostname.as_ref().unwrap_or(&pod_id.name) };
    let user = if spec.host_users == Some(false) { UserNamespace::Pod } else { UserNamespace::Node };
    let sysctls = spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
    SandboxConfig {
        hostname: hostname.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).into(),
        log_directory: log_directory(&config.root_dir, &pod_id),
        dns: dns(config, &pod_id.namespace, spec),
        port_mappings,
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        namespaces: NamespaceOptions { network: mode(spec.host_network), pid, ipc: mode(spec.host_ipc), user },
        sysctls: sysctls.map(|s| (s.name.clone(), s.value.clone())).collect(),
        cgroup_parent: resources::cgroup_parent(spec, &pod_id.uid),
        runtime_handler: String::new(),
        pod: pod_id,
    }
}

fn security(spec: &PodSpec, container: &Container, image: &ImageInfo) -> Result<SecurityContext, Error> {
    let pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let id = |v: Option<i64>| v.and_then(|v| u32::try_from(v).ok());
    let user = id(own.run_as_user.or(pod.run_as_user)).or(image.uid);
    let username = if user.is_none() { image.username.clone() } else { None };
    if own.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
        if user == Some(0) || (user.is_none() && username.is_none()) {
            return Err(Error::config("container has runAsNonRoot and image will run as root"));
        }
        if user.is_none() {
            return Err(Error::config(
                "container has runAsNonRoot and image has non-numeric user, cannot verify user is non-root",
            ));
        }
    }
    let privileged = own.privileged == Some(true);
    let seccomp = match own.seccomp_profile.or(pod.seccomp_profile) {
        Some(p) if p.type_ == "Unconfined" => SeccompProfile::Unconfined,
        Some(p) if p.type_ == "Localhost" => SeccompProfile::Localhost(p.localhost_profile.unwrap_or_default().into()),
        _ if privileged => SeccompProfile::Unconfined,
        _ => SeccompProfile::RuntimeDefault,
    };
    let groups = pod.supplemental_groups.into_iter().flatten().chain(pod.fs_group);
    let capabilities = own.capabilities.unwrap_or_default();
    Ok(SecurityContext {
        privileged,
        run_as_user: user,
        run_as_group: id(own.run_as_group.or(pod.run_as_group)),
        run_as_username: username,
        supplemental_groups: groups.filter_map(|g| u32::try_from(g).ok()).collect(),
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        seccomp,
        masked_paths: (own.proc_mount.as_deref() == Some("Unmasked")).then(Vec::new),
        readonly_paths: (own.proc_mount.as_deref() == Some("Unmasked")).then(Vec::new),
    })
}

fn mounts(
    container: &Container,
    paths: &BTreeMap<String, PathBuf>,
    env: &BTreeMap<String, String>,
) -> Result<Vec<Mount>, Error> {
    let mut out = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let base = paths.get(&mount.name).ok_or_else(|| Error::config(format!("volume {:?} not found", mount.name)))?;
        let sub = mount.sub_path.clone().or_else(|| mount.sub_path_expr.as_ref().map(|e| crate::env::expand(e, env)));
        let mut host_path = base.clone();
        if let Some(sub) = sub.filter(|s| !s.is_empty()) {
            let escape = || Error::config(format!("subPath {sub:?} leaves the volume"));
            if !volumes::is_inside(&sub) {
                return Err(escape());
            }
            // Links made by a container must not lead outside: every step is resolved before the next is made.
            let root = base.canonicalize().map_err(Error::io("resolve volume"))?;
            host_path.clone_from(&root);
            for part in Path::new(&sub).components() {
                let next = host_path.join(part);
                if std::fs::symlink_metadata(&next).is_err() {
                    std::fs::create_dir(&next).map_err(Error::io("create subPath"))?;
                }
                host_path = next.canonicalize().map_err(Error::io("resolve subPath"))?;
                if !host_path.starts_with(&root) {
                    return Err(escape());
                }
            }
        }
        out.push(Mount {
            host_path,
            container_path: mount.mount_path.clone().into(),
            readonly: mount.read_only == Some(true),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => MountPropagation::HostToContainer,
                Some("Bidirectional") => MountPropagation::Bidirectional,
                _ => MountPropagation::Private,
            },
        });
    }
    Ok(out)
}

/// What varies between two starts of one container.
pub struct Start<'a> {
    pub attempt: u32,
    pub image: &'a ImageInfo,
    pub env: BTreeMap<String, String>,
    pub volumes: &'a BTreeMap<String, PathBuf>,
    pub hosts: Option<PathBuf>,
    pub termination_log: PathBuf,
    pub node_memory: u64,
}

pub fn container(spec: &PodSpec, container: &Container, start: Start<'_>) -> Result<ContainerConfig, Error> {
    let expand =
        |list: &Option<Vec<String>>| list.iter().flatten().map(|a| crate::env::expand(a, &start.env)).collect();
    let mut mounts = mounts(container, start.volumes, &start.env)?;
    let mut file = |host_path: PathBuf, container_path: &str| {
        if !mounts.iter().any(|m| m.container_path == Path::new(container_path)) {
            let propagation = MountPropagation::Private;
            mounts.push(Mount { host_path, container_path: container_path.into(), readonly: false, propagation });
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
        devices: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: Path::new(&container.name).join(format!("{}.log", start.attempt)),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        resources: resources::of(spec, container, start.node_memory),
        security: security(spec, container, start.image)?,
        envs: start.env.into_iter().collect(),
    })
}
