//! From what is asked and what the image says to what the shim is told. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dhow_image::Image;
use dhow_oci::CAPABILITIES;
use dhow_oci::cgroup::Cgroup;
use dhow_oci::defaults;
pub use dhow_oci::defaults::{MASKED_PATHS, NETWORK_SYSCTLS, READONLY_PATHS};
use dhow_oci::spec::{ContainerSpec, DeviceNode, Limits, Mount, PidMode, Process, Propagation, Rootfs, Seccomp, User};

use super::EmbeddedConfig;
use super::record::SandboxMeta;
use crate::Error;
use crate::runtime::{
    AppArmorProfile, ContainerConfig, DnsConfig, MountPropagation, NamespaceMode, Resources, SeccompProfile,
    SecurityContext, SelinuxOptions,
};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The layers of images that are mounted as volumes, top first, by what they were asked for as.
pub type ImageVolumes = BTreeMap<String, Vec<PathBuf>>;

/// A container, ready to be made.
pub fn container(
    runtime: &EmbeddedConfig,
    sandbox: &SandboxMeta,
    id: &str,
    config: &ContainerConfig,
    image: &Image,
    rootfs: Rootfs,
    volumes: &ImageVolumes,
) -> Result<ContainerSpec, Error> {
    let security = &config.security;
    Ok(ContainerSpec {
        id: id.to_owned(),
        process: process(config, image)?,
        rootfs,
        mounts: mounts(runtime, sandbox, config, volumes),
        devices: config
            .devices
            .iter()
            .map(|device| DeviceNode {
                source: device.host_path.clone(),
                target: device.container_path.clone(),
                permissions: device.permissions.clone(),
            })
            .collect(),
        masked_paths: paths(security.masked_paths.as_deref(), &MASKED_PATHS),
        readonly_paths: paths(security.readonly_paths.as_deref(), &READONLY_PATHS),
        privileged: security.privileged,
        pid: match sandbox.config.namespaces.pid {
            NamespaceMode::Node => PidMode::Host,
            NamespaceMode::Pod => PidMode::Sandbox,
            NamespaceMode::Container => PidMode::Own,
        },
        processes_of: config.target.clone(),
        cgroup: format!("{}/{}/{id}", runtime.cgroup_root, sandbox.config.cgroup_parent),
        limits: Limits::from(&config.resources),
        log_path: log_path(&sandbox.config.log_directory, &config.log_path),
        log_limits: Some(runtime.tuning.logs),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        program: runtime.handlers.get(&sandbox.config.runtime_handler).cloned(),
    })
}

fn process(config: &ContainerConfig, image: &Image) -> Result<Process, Error> {
    let defaults = image.config.config().as_ref();
    let list = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    // A command of one's own drops the image's arguments with its entrypoint.
    let (entrypoint, arguments) = if config.command.is_empty() {
        let entrypoint = list(defaults.and_then(|c| c.entrypoint().as_ref()));
        let own = config.args.clone();
        let cmd = if own.is_empty() { list(defaults.and_then(|c| c.cmd().as_ref())) } else { own };
        (entrypoint, cmd)
    } else {
        (config.command.clone(), config.args.clone())
    };
    let args: Vec<String> = entrypoint.into_iter().chain(arguments).collect();
    if args.is_empty() {
        return Err(Error::InvalidArgument("no command specified".into()));
    }
    let mut env = list(defaults.and_then(|c| c.env().as_ref()));
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.insert(0, DEFAULT_PATH.to_owned());
    }
    if config.tty {
        set(&mut env, "TERM", "xterm");
    }
    for (name, value) in &config.envs {
        set(&mut env, name, value);
    }
    let image_folder = || defaults.and_then(|c| c.working_dir().clone()).filter(|folder| !folder.is_empty());
    Ok(Process {
        args,
        env,
        cwd: config.working_dir.clone().filter(|f| !f.is_empty()).or_else(image_folder).unwrap_or_else(|| "/".into()),
        user: user(&config.security, defaults.and_then(|c| c.user().as_deref()).unwrap_or_default()),
        tty: config.tty,
        capabilities: capabilities(&config.security)?,
        no_new_privs: config.security.no_new_privs,
        seccomp: match &config.security.seccomp {
            // As elsewhere, whatever was asked for.
            _ if config.security.privileged => Seccomp::Unconfined,
            SeccompProfile::RuntimeDefault => Seccomp::Default,
            SeccompProfile::Unconfined => Seccomp::Unconfined,
            SeccompProfile::Localhost(path) => Seccomp::Profile(path.clone()),
        },
        oom_score_adj: config.resources.oom_score_adj,
        apparmor: apparmor(&config.security.apparmor)?,
        selinux_label: config.security.selinux.as_ref().map(selinux),
        ..Process::default()
    })
}

/// Default profiles that runtimes load, any of which does.
const APPARMOR_DEFAULTS: [&str; 2] = ["cri-containerd.apparmor.d", "docker-default"];

/// The kernel refuses a profile that is not loaded.
fn apparmor(profile: &AppArmorProfile) -> Result<Option<String>, Error> {
    match profile {
        AppArmorProfile::Unspecified | AppArmorProfile::Unconfined => Ok(None),
        AppArmorProfile::Localhost(name) => Ok(Some(name.clone())),
        AppArmorProfile::RuntimeDefault => {
            let loaded = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
            let known = |name: &&str| loaded.lines().any(|line| line.split(' ').next() == Some(*name));
            let found = APPARMOR_DEFAULTS.into_iter().find(known);
            found.map(|name| Some(name.to_owned())).ok_or_else(|| {
                let names = APPARMOR_DEFAULTS.join(" or ");
                Error::InvalidArgument(format!("no default AppArmor profile is loaded in the kernel: load {names}"))
            })
        }
    }
}

fn selinux(options: &SelinuxOptions) -> String {
    let or = |text: &str, usual: &str| if text.is_empty() { usual.to_owned() } else { text.to_owned() };
    [
        or(&options.user, "system_u"),
        or(&options.role, "system_r"),
        or(&options.r#type, "container_t"),
        or(&options.level, "s0"),
    ]
    .join(":")
}

fn set(env: &mut Vec<String>, name: &str, value: &str) {
    let wanted = format!("{name}={value}");
    match env.iter_mut().find(|variable| variable.split('=').next() == Some(name)) {
        Some(variable) => *variable = wanted,
        None => env.push(wanted),
    }
}

fn user(security: &SecurityContext, image_user: &str) -> User {
    let name = match (security.run_as_user, &security.run_as_username) {
        // The image's group belongs to the image's user.
        (Some(uid), _) => match image_user.split_once(':') {
            Some((own, _)) if own.parse() == Ok(uid) => image_user.to_owned(),
            _ => String::new(),
        },
        (None, Some(name)) if !image_user.starts_with(&format!("{name}:")) => name.clone(),
        (None, _) => image_user.to_owned(),
    };
    User {
        name,
        uid: security.run_as_user,
        gid: security.run_as_group,
        additional_gids: security.supplemental_groups.clone(),
        only_given_groups: security.only_given_groups,
        keeps_group: true,
    }
}

fn capabilities(security: &SecurityContext) -> Result<Vec<String>, Error> {
    let own = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    if security.privileged {
        return Ok(own(&CAPABILITIES));
    }
    let normal = |name: &String| {
        let upper = name.to_ascii_uppercase();
        upper.strip_prefix("CAP_").map_or(upper.clone(), str::to_owned)
    };
    let dropped: Vec<String> = security.drop_capabilities.iter().map(normal).collect();
    let added: Vec<String> = security.add_capabilities.iter().map(normal).collect();
    if let Some(unknown) = added.iter().find(|n| *n != "ALL" && !CAPABILITIES.contains(&n.as_str())) {
        return Err(Error::InvalidArgument(format!("unknown capability \"CAP_{unknown}\"")));
    }
    let everything = |list: &[String]| list.iter().any(|name| name == "ALL");
    let mut set = match (everything(&added), everything(&dropped)) {
        (true, _) => own(&CAPABILITIES),
        (false, true) => Vec::new(),
        (false, false) => own(&defaults::CAPABILITIES),
    };
    set.retain(|name| !dropped.contains(name));
    for name in added.into_iter().filter(|name| name != "ALL") {
        if !set.contains(&name) {
            set.push(name);
        }
    }
    // Where the kernel does not confine the use of device nodes, nobody may make them.
    if !Cgroup::confines_devices() && !security.add_capabilities.iter().any(|name| normal(name) == "MKNOD") {
        set.retain(|name| name != "MKNOD");
    }
    Ok(set)
}

pub fn paths(given: Option<&[String]>, default: &[&str]) -> Vec<String> {
    match given {
        Some(list) => list.to_vec(),
        None => default.iter().map(|path| (*path).to_owned()).collect(),
    }
}

/// The sandbox's files, then what is asked for; a mount below another comes after it.
fn mounts(
    runtime: &EmbeddedConfig,
    sandbox: &SandboxMeta,
    config: &ContainerConfig,
    volumes: &ImageVolumes,
) -> Vec<Mount> {
    let dir = runtime.sandbox_dir(&sandbox.id);
    let mut all: Vec<Mount> = Vec::new();
    for name in ["resolv.conf", "hostname"] {
        let target = PathBuf::from(format!("/etc/{name}"));
        if !config.mounts.iter().any(|mount| mount.container_path == target) {
            all.push(Mount { source: dir.join(name), target, ..Mount::default() });
        }
    }
    for mount in &config.mounts {
        let layers = mount.image.as_ref().and_then(|image| volumes.get(image));
        all.push(Mount {
            source: if layers.is_some() { mount.image_sub_path.clone() } else { mount.host_path.clone() },
            target: mount.container_path.clone(),
            readonly: mount.readonly,
            propagation: match mount.propagation {
                MountPropagation::Private => Propagation::Private,
                MountPropagation::HostToContainer => Propagation::Slave,
                MountPropagation::Bidirectional => Propagation::Shared,
            },
            recursive_readonly: mount.recursive_readonly,
            layers: layers.cloned().unwrap_or_default(),
        });
    }
    all.sort_by_key(|mount| mount.target.components().count());
    all
}

impl From<&Resources> for Limits {
    fn from(resources: &Resources) -> Self {
        Self {
            cpu_quota: resources.cpu_quota,
            cpu_period: resources.cpu_period,
            cpu_shares: resources.cpu_shares,
            memory: resources.memory_limit,
            pids: resources.pids_limit,
            cpuset_cpus: resources.cpuset_cpus.clone(),
            cpuset_mems: resources.cpuset_mems.clone(),
            hugepages: resources.hugepages.clone(),
        }
    }
}

/// The container's own stop signal or the image's, by number; SIGTERM without one, or for one that does not exist.
pub fn stop_signal(config: &ContainerConfig, image: &Image) -> i32 {
    let of_image = || image.config.config().as_ref().and_then(|config| config.stop_signal().clone());
    let text = config.stop_signal.clone().or_else(of_image);
    text.as_deref().and_then(parse_signal).unwrap_or(rustix::process::Signal::TERM.as_raw())
}

/// `SIGQUIT`, `QUIT`, `3` or `RTMIN+3`.
fn parse_signal(text: &str) -> Option<i32> {
    use rustix::process::Signal;
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    // Where the C library's real-time signals begin and end.
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        return offset.parse::<i32>().ok().filter(|offset| (0..=30).contains(offset)).map(|offset| 34 + offset);
    }
    let known = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("KILL", Signal::KILL),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("PIPE", Signal::PIPE),
        ("ALRM", Signal::ALARM),
        ("TERM", Signal::TERM),
        ("CHLD", Signal::CHILD),
        ("CONT", Signal::CONT),
        ("STOP", Signal::STOP),
        ("TSTP", Signal::TSTP),
        ("WINCH", Signal::WINCH),
        ("PWR", Signal::POWER),
    ];
    known.iter().find(|(known, _)| *known == name).map(|(_, signal)| signal.as_raw())
}

/// The text of a pod's `/etc/resolv.conf`.
pub fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// Whoever names no folder or no file wants no log.
fn log_path(folder: &Path, file: &Path) -> PathBuf {
    if folder.as_os_str().is_empty() || file.as_os_str().is_empty() { PathBuf::new() } else { folder.join(file) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn capabilities_are_added_and_dropped() {
        let of = |add: &[&str], drop: &[&str]| {
            let list = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            let security =
                SecurityContext { add_capabilities: list(add), drop_capabilities: list(drop), ..Default::default() };
            capabilities(&security)
        };
        assert_eq!(of(&["NET_BIND_SERVICE"], &["ALL"]).unwrap(), ["NET_BIND_SERVICE"]);
        assert!(of(&["cap_net_admin"], &[]).unwrap().contains(&"NET_ADMIN".to_owned()));
        assert!(!of(&[], &["CAP_NET_RAW"]).unwrap().contains(&"NET_RAW".to_owned()));
        let all = of(&["ALL"], &["SYS_ADMIN"]).unwrap();
        assert!(all.contains(&"BPF".to_owned()) && !all.contains(&"SYS_ADMIN".to_owned()));
        assert!(of(&["NONSENSE"], &[]).is_err());
    }

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [("SIGQUIT", 3), ("quit", 3), ("15", 15), ("SIGRTMIN+3", 37)] {
            assert_eq!(parse_signal(text), Some(number), "{text}");
        }
        for text in ["", "0", "65", "SIGNONE"] {
            assert_eq!(parse_signal(text), None, "{text}");
        }
    }

    #[test]
    fn security_labels_have_all_their_parts() {
        let label = SelinuxOptions { level: "s0:c1,c2".into(), ..SelinuxOptions::default() };
        assert_eq!(selinux(&label), "system_u:system_r:container_t:s0:c1,c2");
        assert_eq!(apparmor(&AppArmorProfile::Localhost("mine".into())).unwrap().as_deref(), Some("mine"));
        assert_eq!(apparmor(&AppArmorProfile::Unspecified).unwrap(), None);
    }

    #[test]
    fn the_image_s_group_stays_with_the_image_s_user() {
        let of = |uid, name: Option<&str>, image: &str| {
            let security =
                SecurityContext { run_as_user: uid, run_as_username: name.map(str::to_owned), ..Default::default() };
            user(&security, image).name
        };
        assert_eq!(of(None, Some("web"), "web:www"), "web:www");
        assert_eq!(of(Some(33), None, "33:40"), "33:40");
        assert_eq!(of(Some(7), None, "33:40"), "");
        assert_eq!(of(None, None, ""), "");
    }
}
