//! What is asked, in the words of CRI. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use crate::embedded::specification::{MASKED_PATHS, NETWORK_SYSCTLS, READONLY_PATHS, paths};
use crate::proto;
use crate::runtime::{
    AppArmorProfile, ContainerConfig, ImageAuth, Mount, MountPropagation, NamespaceMode, NamespaceOptions, Resources,
    SandboxConfig, SeccompProfile, UserNamespace,
};

/// Label of everything that is ours, so that several clouds can share a runtime: the cloud's top control group.
pub const CLOUD: &str = "dhow.io/cloud";
/// Annotation of a sandbox: what it was asked to be, for creating containers in it after a restart.
pub const SANDBOX_CONFIG: &str = "dhow.io/sandbox-config";
/// Annotation of a container: its streams, as `stdin` and `tty` in a list.
pub const STREAMS: &str = "dhow.io/streams";

pub fn sandbox(config: &SandboxConfig, cloud: &str, cgroup_parent: String) -> proto::PodSandboxConfig {
    let mut sysctls: BTreeMap<String, String> = BTreeMap::new();
    if config.namespaces.network != NamespaceMode::Node {
        sysctls.extend(NETWORK_SYSCTLS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    }
    sysctls.extend(config.sysctls.clone());
    let mut labels = config.labels.clone();
    labels.insert(CLOUD.to_owned(), cloud.to_owned());
    let mut annotations = config.annotations.clone();
    // Structs of strings and numbers always become JSON.
    annotations.insert(SANDBOX_CONFIG.to_owned(), serde_json::to_string(config).unwrap_or_default());
    proto::PodSandboxConfig {
        metadata: Some(proto::PodSandboxMetadata {
            name: config.pod.name.clone(),
            uid: config.pod.uid.clone(),
            namespace: config.pod.namespace.clone(),
            attempt: config.pod.attempt,
        }),
        // On the host's network the name is the host's, too.
        hostname: match config.namespaces.network {
            NamespaceMode::Node => String::new(),
            _ => config.hostname.clone(),
        },
        log_directory: text(&config.log_directory),
        dns_config: config.dns.as_ref().map(|dns| proto::DnsConfig {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        port_mappings: config
            .port_mappings
            .iter()
            .map(|mapping| proto::PortMapping {
                protocol: match mapping.protocol.as_str() {
                    "UDP" => proto::Protocol::Udp,
                    "SCTP" => proto::Protocol::Sctp,
                    _ => proto::Protocol::Tcp,
                }
                .into(),
                container_port: mapping.container_port.into(),
                host_port: mapping.host_port.into(),
                host_ip: mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            })
            .collect(),
        labels: labels.into_iter().collect(),
        annotations: annotations.into_iter().collect(),
        linux: Some(proto::LinuxPodSandboxConfig {
            cgroup_parent,
            security_context: Some(proto::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(&config.namespaces)),
                seccomp: Some(seccomp(&SeccompProfile::RuntimeDefault)),
                ..Default::default()
            }),
            sysctls: sysctls.into_iter().collect(),
            ..Default::default()
        }),
    }
}

pub fn namespaces(options: &NamespaceOptions) -> proto::NamespaceOption {
    let mode = |mode| match mode {
        NamespaceMode::Pod => proto::NamespaceMode::Pod,
        NamespaceMode::Container => proto::NamespaceMode::Container,
        NamespaceMode::Node => proto::NamespaceMode::Node,
    };
    proto::NamespaceOption {
        network: mode(options.network).into(),
        pid: mode(options.pid).into(),
        ipc: mode(options.ipc).into(),
        userns_options: users(options.user),
        ..Default::default()
    }
}

/// Such runtimes want to be told the ids; one that is not answers so.
fn users(users: UserNamespace) -> Option<proto::UserNamespace> {
    let ids: Vec<proto::IdMapping> = match users {
        UserNamespace::Node => return None,
        UserNamespace::Pod => Vec::new(),
        UserNamespace::Range { host, size } => {
            vec![proto::IdMapping { host_id: host, container_id: 0, length: size }]
        }
    };
    Some(proto::UserNamespace { mode: proto::NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids })
}

pub fn container(config: &ContainerConfig, sandbox: &SandboxConfig, unified: bool) -> proto::ContainerConfig {
    let mut annotations = config.annotations.clone();
    let streams = [(config.stdin, "stdin"), (config.tty, "tty")];
    let streams: Vec<&str> = streams.into_iter().filter_map(|(there, name)| there.then_some(name)).collect();
    annotations.insert(STREAMS.to_owned(), streams.join(","));
    proto::ContainerConfig {
        metadata: Some(proto::ContainerMetadata { name: config.name.clone(), attempt: config.attempt }),
        image: Some(image(&config.image)),
        command: config.command.clone(),
        args: config.args.clone(),
        working_dir: config.working_dir.clone().unwrap_or_default(),
        envs: config
            .envs
            .iter()
            .map(|(key, value)| proto::KeyValue { key: key.clone(), value: value.clone().into_bytes() })
            .collect(),
        mounts: mounts(config),
        devices: config
            .devices
            .iter()
            .map(|device| proto::Device {
                container_path: text(&device.container_path),
                host_path: text(&device.host_path),
                permissions: device.permissions.clone(),
            })
            .collect(),
        labels: config.labels.clone().into_iter().collect(),
        annotations: annotations.into_iter().collect(),
        log_path: text(&config.log_path),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        cdi_devices: config.cdi_devices.iter().map(|name| proto::CdiDevice { name: name.clone() }).collect(),
        stop_signal: config.stop_signal.as_deref().and_then(proto::Signal::from_str_name).unwrap_or_default().into(),
        linux: Some(proto::LinuxContainerConfig {
            resources: Some(resources(&config.resources, unified)),
            security_context: Some(security(config, &sandbox.namespaces)),
        }),
    }
}

pub fn mounts(config: &ContainerConfig) -> Vec<proto::Mount> {
    let propagation = |propagation| match propagation {
        MountPropagation::Private => proto::MountPropagation::PropagationPrivate,
        MountPropagation::HostToContainer => proto::MountPropagation::PropagationHostToContainer,
        MountPropagation::Bidirectional => proto::MountPropagation::PropagationBidirectional,
    };
    let one = |mount: &Mount| proto::Mount {
        container_path: text(&mount.container_path),
        host_path: text(&mount.host_path),
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_readonly,
        propagation: propagation(mount.propagation).into(),
        image: mount.image.as_deref().map(image),
        image_sub_path: text(&mount.image_sub_path),
        ..Default::default()
    };
    config.mounts.iter().map(one).collect()
}

/// Limits; zero leaves the kernel's default. `unified` says that the machine has cgroup v2 alone.
pub fn resources(limits: &Resources, unified: bool) -> proto::LinuxContainerResources {
    let mut extra = BTreeMap::new();
    // CRI has no field for it. On cgroup v1 only the runtime's own configuration can set it.
    if let Some(pids) = limits.pids_limit.filter(|_| unified) {
        extra.insert("pids.max".to_owned(), if pids > 0 { pids.to_string() } else { "max".to_owned() });
    }
    proto::LinuxContainerResources {
        cpu_period: limits.cpu_period.map_or(0, |period| i64::try_from(period).unwrap_or(i64::MAX)),
        cpu_quota: limits.cpu_quota.unwrap_or_default(),
        cpu_shares: limits.cpu_shares.map_or(0, |shares| i64::try_from(shares).unwrap_or(i64::MAX)),
        memory_limit_in_bytes: limits.memory_limit.unwrap_or_default(),
        oom_score_adj: limits.oom_score_adj.unwrap_or_default().into(),
        cpuset_cpus: limits.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: limits.cpuset_mems.clone().unwrap_or_default(),
        hugepage_limits: limits
            .hugepages
            .iter()
            .map(|(size, limit)| proto::HugepageLimit { page_size: size.clone(), limit: *limit })
            .collect(),
        unified: extra.into_iter().collect(),
        ..Default::default()
    }
}

fn security(config: &ContainerConfig, options: &NamespaceOptions) -> proto::LinuxContainerSecurityContext {
    let security = &config.security;
    let mut namespaces = namespaces(options);
    if let Some(target) = &config.target {
        namespaces.pid = proto::NamespaceMode::Target.into();
        namespaces.target_id = target.clone();
    }
    let id = |id: Option<u32>| id.map(|id| proto::Int64Value { value: id.into() });
    proto::LinuxContainerSecurityContext {
        capabilities: Some(proto::Capability {
            add_capabilities: security.add_capabilities.iter().map(|name| capability(name)).collect(),
            drop_capabilities: security.drop_capabilities.iter().map(|name| capability(name)).collect(),
            ..Default::default()
        }),
        privileged: security.privileged,
        namespace_options: Some(namespaces),
        run_as_user: id(security.run_as_user),
        run_as_group: id(security.run_as_group),
        run_as_username: match security.run_as_user {
            Some(_) => String::new(),
            None => security.run_as_username.clone().unwrap_or_default(),
        },
        readonly_rootfs: security.readonly_rootfs,
        supplemental_groups: security.supplemental_groups.iter().map(|group| i64::from(*group)).collect(),
        supplemental_groups_policy: match security.only_given_groups {
            true => proto::SupplementalGroupsPolicy::Strict,
            false => proto::SupplementalGroupsPolicy::Merge,
        }
        .into(),
        no_new_privs: security.no_new_privs,
        masked_paths: paths(security.masked_paths.as_deref(), &MASKED_PATHS),
        readonly_paths: paths(security.readonly_paths.as_deref(), &READONLY_PATHS),
        seccomp: Some(seccomp(&security.seccomp)),
        apparmor: apparmor(&security.apparmor),
        selinux_options: security.selinux.as_ref().map(|label| proto::SeLinuxOption {
            user: label.user.clone(),
            role: label.role.clone(),
            r#type: label.r#type.clone(),
            level: label.level.clone(),
        }),
        ..Default::default()
    }
}

fn apparmor(profile: &AppArmorProfile) -> Option<proto::SecurityProfile> {
    use proto::security_profile::ProfileType;
    let (kind, name) = match profile {
        AppArmorProfile::Unspecified => return None,
        AppArmorProfile::RuntimeDefault => (ProfileType::RuntimeDefault, ""),
        AppArmorProfile::Unconfined => (ProfileType::Unconfined, ""),
        AppArmorProfile::Localhost(name) => (ProfileType::Localhost, name.as_str()),
    };
    Some(proto::SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() })
}

/// CRI's names have no `CAP_` before them.
fn capability(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").map_or(upper.clone(), str::to_owned)
}

fn seccomp(profile: &SeccompProfile) -> proto::SecurityProfile {
    use proto::security_profile::ProfileType;
    let (kind, path) = match profile {
        SeccompProfile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        SeccompProfile::Unconfined => (ProfileType::Unconfined, String::new()),
        SeccompProfile::Localhost(path) => (ProfileType::Localhost, text(path)),
    };
    proto::SecurityProfile { profile_type: kind.into(), localhost_ref: path }
}

pub fn image(reference: &str) -> proto::ImageSpec {
    proto::ImageSpec { image: reference.to_owned(), ..Default::default() }
}

pub fn auth(auth: ImageAuth) -> proto::AuthConfig {
    proto::AuthConfig {
        username: auth.username,
        password: auth.password,
        identity_token: auth.identity_token,
        ..Default::default()
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_lose_their_prefix() {
        assert_eq!([capability("cap_net_admin"), capability("ALL")], ["NET_ADMIN", "ALL"]);
    }
}
