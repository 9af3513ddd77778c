//! What CRI clients ask, in the words of the trait. Pure.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::Error;
use crate::proto;
use crate::runtime::{
    AppArmorProfile, ContainerConfig, Device, DnsConfig, ImageAuth, Mount, MountPropagation, NamespaceMode,
    NamespaceOptions, PodIdentity, PortMapping, Resources, SandboxConfig, SeccompProfile, SecurityContext,
    SelinuxOptions, UserNamespace,
};

fn missing(what: &str) -> Error {
    Error::InvalidArgument(format!("{what} is missing"))
}

/// An empty string is an unset field.
fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

pub fn sandbox(config: proto::PodSandboxConfig, runtime_handler: String) -> Result<SandboxConfig, Error> {
    let metadata = config.metadata.ok_or_else(|| missing("the sandbox' metadata"))?;
    let linux = config.linux.unwrap_or_default();
    let namespaces = linux.security_context.unwrap_or_default().namespace_options.unwrap_or_default();
    Ok(SandboxConfig {
        pod: PodIdentity {
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            attempt: metadata.attempt,
        },
        hostname: config.hostname,
        log_directory: config.log_directory.into(),
        dns: config.dns_config.map(|dns| DnsConfig {
            servers: dns.servers,
            searches: dns.searches,
            options: dns.options,
        }),
        port_mappings: config.port_mappings.into_iter().filter_map(port_mapping).collect(),
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        namespaces: namespace_options(&namespaces)?,
        sysctls: linux.sysctls.into_iter().collect(),
        // A path below our own top group, wherever the client thinks its root is.
        cgroup_parent: linux.cgroup_parent.trim_matches('/').to_owned(),
        runtime_handler,
    })
}

/// One without a host port asks for nothing.
fn port_mapping(mapping: proto::PortMapping) -> Option<PortMapping> {
    let protocol = match mapping.protocol() {
        proto::Protocol::Tcp => "TCP",
        proto::Protocol::Udp => "UDP",
        proto::Protocol::Sctp => "SCTP",
    };
    let port = |port: i32| u16::try_from(port).ok().filter(|port| *port > 0);
    Some(PortMapping {
        protocol: protocol.to_owned(),
        container_port: port(mapping.container_port)?,
        host_port: port(mapping.host_port)?,
        host_ip: mapping.host_ip.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified()),
    })
}

fn namespace_options(options: &proto::NamespaceOption) -> Result<NamespaceOptions, Error> {
    let mode = |mode| match mode {
        proto::NamespaceMode::Pod => NamespaceMode::Pod,
        proto::NamespaceMode::Container | proto::NamespaceMode::Target => NamespaceMode::Container,
        proto::NamespaceMode::Node => NamespaceMode::Node,
    };
    let user = options.userns_options.as_ref().map_or(Ok(UserNamespace::Node), user_namespace)?;
    Ok(NamespaceOptions { network: mode(options.network()), pid: mode(options.pid()), ipc: mode(options.ipc()), user })
}

/// One range from id 0 on is what a pod can have, the same for users and groups.
fn user_namespace(asked: &proto::UserNamespace) -> Result<UserNamespace, Error> {
    let refused = |why: &str| Err(Error::InvalidArgument(format!("user namespace: {why}")));
    match (asked.mode(), asked.uids.as_slice()) {
        _ if asked.uids != asked.gids => refused("users and groups must be mapped alike"),
        (proto::NamespaceMode::Node, []) => Ok(UserNamespace::Node),
        (proto::NamespaceMode::Node, _) => refused("the node's maps nothing"),
        (proto::NamespaceMode::Pod, []) => Ok(UserNamespace::Pod),
        (proto::NamespaceMode::Pod, [range]) if range.container_id != 0 => refused("the mapping must begin with id 0"),
        (proto::NamespaceMode::Pod, [range]) => Ok(UserNamespace::Range { host: range.host_id, size: range.length }),
        (proto::NamespaceMode::Pod, _) => refused("more than one mapping is not supported"),
        (proto::NamespaceMode::Container | proto::NamespaceMode::Target, _) => refused("it is the pod's or the node's"),
    }
}

pub fn container(config: proto::ContainerConfig) -> Result<ContainerConfig, Error> {
    let stop_signal = config.stop_signal();
    let metadata = config.metadata.ok_or_else(|| missing("the container's metadata"))?;
    let image = config.image.ok_or_else(|| missing("the container's image"))?.image;
    let linux = config.linux.unwrap_or_default();
    let env = |pair: proto::KeyValue| {
        let value = String::from_utf8(pair.value);
        value
            .map(|value| (pair.key, value))
            .map_err(|_| Error::InvalidArgument("an environment value is no text".into()))
    };
    let options = linux.security_context.as_ref().and_then(|security| security.namespace_options.as_ref());
    let target = options.filter(|options| options.pid() == proto::NamespaceMode::Target);
    let target = target.map(|options| options.target_id.clone());
    Ok(ContainerConfig {
        name: metadata.name,
        attempt: metadata.attempt,
        image,
        command: config.command,
        args: config.args,
        working_dir: some(config.working_dir),
        envs: config.envs.into_iter().map(env).collect::<Result<_, _>>()?,
        mounts: config.mounts.into_iter().map(mount).collect::<Result<_, _>>()?,
        devices: config
            .devices
            .into_iter()
            .map(|device| Device {
                host_path: device.host_path.into(),
                container_path: device.container_path.into(),
                permissions: device.permissions,
            })
            .collect(),
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        log_path: config.log_path.into(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: resources(linux.resources.unwrap_or_default()),
        cdi_devices: config.cdi_devices.into_iter().map(|device| device.name).collect(),
        target,
        stop_signal: Some(stop_signal)
            .filter(|signal| *signal != proto::Signal::RuntimeDefault)
            .map(|signal| signal.as_str_name().to_owned()),
        security: security(linux.security_context.unwrap_or_default())?,
    })
}

fn mount(mount: proto::Mount) -> Result<Mount, Error> {
    let propagation = match mount.propagation() {
        proto::MountPropagation::PropagationPrivate => MountPropagation::Private,
        proto::MountPropagation::PropagationHostToContainer => MountPropagation::HostToContainer,
        proto::MountPropagation::PropagationBidirectional => MountPropagation::Bidirectional,
    };
    let refused = |why: &str| Err(Error::InvalidArgument(format!("mount {}: {why}", mount.container_path)));
    if mount.recursive_read_only && !mount.readonly {
        return refused("recursively read-only is more than read-only, which it is not");
    }
    if mount.recursive_read_only && propagation != MountPropagation::Private {
        return refused("recursively read-only, it can only be private");
    }
    let image = mount.image.as_ref().map(|image| image.image.clone()).filter(|image| !image.is_empty());
    if image.is_some() && !mount.readonly {
        return refused("an image can be mounted read-only only");
    }
    Ok(Mount {
        host_path: mount.host_path.into(),
        container_path: mount.container_path.into(),
        readonly: mount.readonly,
        propagation,
        recursive_readonly: mount.recursive_read_only,
        image,
        image_sub_path: mount.image_sub_path.into(),
    })
}

/// Zero is an unset field.
pub fn resources(limits: proto::LinuxContainerResources) -> Resources {
    let set = |value: i64| Some(value).filter(|value| *value != 0);
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    Resources {
        cpu_quota: set(limits.cpu_quota),
        cpu_period: positive(limits.cpu_period),
        cpu_shares: positive(limits.cpu_shares),
        memory_limit: set(limits.memory_limit_in_bytes),
        oom_score_adj: set(limits.oom_score_adj).and_then(|score| i32::try_from(score).ok()),
        pids_limit: limits.unified.get("pids.max").and_then(|limit| limit.parse().ok()),
        cpuset_cpus: some(limits.cpuset_cpus),
        cpuset_mems: some(limits.cpuset_mems),
        hugepages: limits.hugepage_limits.into_iter().map(|limit| (limit.page_size, limit.limit)).collect(),
    }
}

fn security(security: proto::LinuxContainerSecurityContext) -> Result<SecurityContext, Error> {
    use proto::security_profile::ProfileType;
    let id =
        |value: i64| u32::try_from(value).map_err(|_| Error::InvalidArgument(format!("{value} is no user or group")));
    let only_given_groups = security.supplemental_groups_policy() == proto::SupplementalGroupsPolicy::Strict;
    let capabilities = security.capabilities.unwrap_or_default();
    let seccomp = match security.seccomp {
        // Kubelets have a word for each; who says nothing is left alone.
        None => SeccompProfile::Unconfined,
        Some(profile) => match profile.profile_type() {
            ProfileType::RuntimeDefault => SeccompProfile::RuntimeDefault,
            ProfileType::Unconfined => SeccompProfile::Unconfined,
            ProfileType::Localhost => SeccompProfile::Localhost(PathBuf::from(profile.localhost_ref)),
        },
    };
    let apparmor = match security.apparmor {
        None => AppArmorProfile::Unspecified,
        Some(profile) => match profile.profile_type() {
            ProfileType::RuntimeDefault => AppArmorProfile::RuntimeDefault,
            ProfileType::Unconfined => AppArmorProfile::Unconfined,
            ProfileType::Localhost => AppArmorProfile::Localhost(profile.localhost_ref),
        },
    };
    let selinux = security.selinux_options.map(|label| SelinuxOptions {
        user: label.user,
        role: label.role,
        r#type: label.r#type,
        level: label.level,
    });
    if security.run_as_group.is_some() && security.run_as_user.is_none() && security.run_as_username.is_empty() {
        return Err(Error::InvalidArgument("a group is given without a user".into()));
    }
    let paths = |list: Vec<String>| Some(list).filter(|list| !list.is_empty());
    Ok(SecurityContext {
        privileged: security.privileged,
        run_as_user: security.run_as_user.map(|user| id(user.value)).transpose()?,
        run_as_group: security.run_as_group.map(|group| id(group.value)).transpose()?,
        run_as_username: some(security.run_as_username),
        only_given_groups,
        supplemental_groups: security.supplemental_groups.into_iter().map(id).collect::<Result<_, _>>()?,
        add_capabilities: capabilities.add_capabilities,
        drop_capabilities: capabilities.drop_capabilities,
        readonly_rootfs: security.readonly_rootfs,
        no_new_privs: security.no_new_privs,
        seccomp,
        apparmor,
        selinux,
        masked_paths: paths(security.masked_paths),
        readonly_paths: paths(security.readonly_paths),
    })
}

pub fn auth(auth: proto::AuthConfig) -> Result<ImageAuth, Error> {
    use base64::Engine as _;
    let (mut username, mut password) = (auth.username, auth.password);
    // Both at once, as a client's configuration file has them.
    if username.is_empty() && !auth.auth.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD.decode(&auth.auth).ok();
        let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = text.as_deref().and_then(|text| text.split_once(':'));
        let (user, secret) =
            pair.ok_or_else(|| Error::InvalidArgument("the auth field is not base64 of user:password".into()))?;
        (username, password) = (user.to_owned(), secret.trim_end_matches('\0').to_owned());
    }
    let identity_token = if auth.registry_token.is_empty() { auth.identity_token } else { auth.registry_token };
    Ok(ImageAuth { username, password, identity_token })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_client_of_ours_asks_comes_out_as_it_went_in() {
        use crate::cri_client::request as client;
        let asked: ContainerConfig = serde_json::from_value(serde_json::json!({
            "name": "c", "attempt": 3, "image": "i", "command": ["/a"], "args": ["b"], "working_dir": "/w",
            "envs": [["A", "b"]], "labels": {"l": "1"}, "annotations": {}, "log_path": "c/3.log",
            "mounts": [
                {"host_path": "/h", "container_path": "/c", "readonly": true, "propagation": "Private",
                    "recursive_readonly": true},
                {"host_path": "/h", "container_path": "/d", "readonly": true, "propagation": "HostToContainer"},
                {"host_path": "", "container_path": "/i", "readonly": true, "propagation": "Private", "image": "v",
                    "image_sub_path": "etc"},
            ],
            "devices": [{"host_path": "/dev/x", "container_path": "/dev/y", "permissions": "rw"}],
            "stdin": true, "stdin_once": true, "tty": false,
            "resources": Resources { cpu_quota: Some(5000), memory_limit: Some(1 << 24), ..Resources::default() },
            "security": SecurityContext {
                run_as_user: Some(0), supplemental_groups: vec![7], drop_capabilities: vec!["ALL".into()],
                seccomp: SeccompProfile::Unconfined, apparmor: AppArmorProfile::Localhost("p".into()),
                selinux: Some(SelinuxOptions { level: "s0:c1".into(), ..SelinuxOptions::default() }), masked_paths: Some(vec!["/m".into()]),
                readonly_paths: Some(vec!["/r".into()]), ..SecurityContext::default()
            },
        }))
        .unwrap();
        let pod = SandboxConfig {
            pod: PodIdentity { namespace: "n".into(), name: "p".into(), uid: "u".into(), attempt: 1 },
            hostname: "p".into(),
            log_directory: "/logs".into(),
            dns: Some(DnsConfig { servers: vec!["10.0.0.1".into()], ..DnsConfig::default() }),
            port_mappings: vec![PortMapping {
                protocol: "UDP".into(),
                container_port: 53,
                host_port: 5353,
                host_ip: Some([127, 0, 0, 1].into()),
            }],
            labels: [("app".to_owned(), "x".to_owned())].into(),
            annotations: Default::default(),
            namespaces: NamespaceOptions { pid: NamespaceMode::Node, ..NamespaceOptions::default() },
            sysctls: Default::default(),
            cgroup_parent: "kubepods/pod1".into(),
            runtime_handler: "h".into(),
        };
        let mut there = container(client::container(&asked, &pod, false)).unwrap();
        there.annotations.clear();
        assert_eq!(serde_json::to_value(&there).unwrap(), serde_json::to_value(&asked).unwrap());
        let mut there = sandbox(client::sandbox(&pod, "cloud", "/kubepods/pod1".into()), "h".into()).unwrap();
        there.annotations.clear();
        there.labels.remove(client::CLOUD);
        there.sysctls.clear();
        assert_eq!(serde_json::to_value(&there).unwrap(), serde_json::to_value(&pod).unwrap());
    }

    #[test]
    fn a_user_namespace_is_one_range_from_zero_on() {
        use proto::NamespaceMode::{Container, Node, Pod, Target};
        let range = |container_id, host_id| proto::IdMapping { host_id, container_id, length: 65_536 };
        let of = |mode: proto::NamespaceMode, uids: &[proto::IdMapping], gids: &[proto::IdMapping]| {
            user_namespace(&proto::UserNamespace { mode: mode.into(), uids: uids.to_vec(), gids: gids.to_vec() })
        };
        let one = [range(0, 100_000)];
        assert_eq!(of(Node, &[], &[]).unwrap(), UserNamespace::Node);
        assert_eq!(of(Pod, &[], &[]).unwrap(), UserNamespace::Pod);
        assert_eq!(of(Pod, &one, &one).unwrap(), UserNamespace::Range { host: 100_000, size: 65_536 });
        let (two, late) = ([one[0], range(0, 200_000)], [range(1, 100_000)]);
        for (mode, uids, gids) in [
            (Pod, &two[..], &two[..]),
            (Pod, &late, &late),
            (Pod, &one, &[]),
            (Node, &one, &one),
            (Container, &[], &[]),
            (Target, &[], &[]),
        ] {
            assert!(of(mode, uids, gids).is_err(), "{mode:?} {uids:?} {gids:?}");
        }
    }

    #[test]
    fn credentials_may_be_one_field() {
        let given = proto::AuthConfig { auth: "dTpwOng=".into(), ..Default::default() };
        let auth = auth(given).unwrap();
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("u", "p:x"));
    }
}
