//! What another runtime is told of a container: `config.json` in the words of the runtime specification. Pure, but for
//! a look at the host's devices.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::setup::devices::{self, Node};
use crate::setup::identity::Identity;
use crate::setup::seccomp;
use crate::spec::{ContainerSpec, Limits, Mount, PidMode, Process, Propagation};

/// What of the machine and the sandbox a container's document depends on.
pub struct Around<'a> {
    /// Folder that is its `/dev/shm`.
    pub shm: &'a Path,
    /// A process of the process namespace that it shares.
    pub init: Option<i32>,
    /// What this machine has to give, without `CAP_`.
    pub capabilities: &'a [String],
    /// No lower score can be given here.
    pub least_oom_score: i32,
    /// Whether huge pages can be limited here.
    pub limits_huge_pages: bool,
}

/// The whole document.
pub fn container(spec: &ContainerSpec, identity: &Identity, around: &Around<'_>) -> Result<Value> {
    let shared = spec.mounts.iter().any(|mount| mount.propagation == Propagation::Shared);
    if shared {
        return Err(Error::Invalid("mounts that are shared with the host need the default runtime handler".into()));
    }
    let follows = spec.mounts.iter().any(|mount| mount.propagation == Propagation::Slave);
    let mut linux = json!({
        "cgroupsPath": format!("/{}", spec.cgroup.trim_start_matches('/')),
        "namespaces": namespaces(spec, around)?,
        "resources": resources(spec, around)?,
        "devices": nodes(spec)?.iter().map(node).collect::<Vec<_>>(),
        "maskedPaths": if spec.privileged { &[] } else { spec.masked_paths.as_slice() },
        "readonlyPaths": if spec.privileged { &[] } else { spec.readonly_paths.as_slice() },
        "rootfsPropagation": if follows { "rslave" } else { "private" },
    });
    if let Some(filter) = seccomp::document(&spec.process.seccomp, &spec.process.capabilities)? {
        linux["seccomp"] = filter;
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process(&spec.process, identity, around),
        "root": {"path": spec.rootfs.target, "readonly": spec.rootfs.readonly},
        "mounts": mounts(spec, around),
        "linux": linux,
    }))
}

/// A program, as a container's first or beside it.
pub fn process(process: &Process, identity: &Identity, around: &Around<'_>) -> Value {
    let mut env = process.env.clone();
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", identity.home));
    }
    // What the machine lacks cannot be given.
    let have = process.capabilities.iter().filter(|name| around.capabilities.contains(name));
    let have: Vec<String> = have.map(|name| format!("CAP_{name}")).collect();
    json!({
        "terminal": process.tty,
        "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups},
        "args": process.args,
        "env": env,
        "cwd": if process.cwd.is_empty() { "/" } else { &process.cwd },
        "capabilities": {"bounding": have, "effective": have, "permitted": have},
        "noNewPrivileges": process.no_new_privs,
        "oomScoreAdj": process.oom_score_adj.unwrap_or(0).max(around.least_oom_score),
    })
}

/// Those that are not named are the shim's, which are the sandbox's.
fn namespaces(spec: &ContainerSpec, around: &Around<'_>) -> Result<Vec<Value>> {
    let mut all = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    let pid = if spec.processes_of.is_some() { PidMode::Sandbox } else { spec.pid };
    match (pid, around.init) {
        (PidMode::Own, _) => all.push(json!({"type": "pid"})),
        (PidMode::Host, _) => {}
        (PidMode::Sandbox, Some(init)) => all.push(json!({"type": "pid", "path": format!("/proc/{init}/ns/pid")})),
        (PidMode::Sandbox, None) => {
            return Err(Error::Invalid("the sandbox has no process namespace to share".into()));
        }
    }
    Ok(all)
}

fn mounts(spec: &ContainerSpec, around: &Around<'_>) -> Vec<Value> {
    let kernel = |kind: &str, target: &str, options: &[&str]| json!({"type": kind, "source": kind, "destination": target, "options": options});
    let mode = if spec.privileged { "rw" } else { "ro" };
    let mut all = vec![
        kernel("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        kernel("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        kernel("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        kernel("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        kernel("sysfs", "/sys", &["nosuid", "noexec", "nodev", mode]),
        kernel("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", mode]),
        bind(around.shm, Path::new("/dev/shm"), &["rbind", "rw", "rprivate"]),
    ];
    all.extend(spec.mounts.iter().map(|mount: &Mount| {
        let propagation = if mount.propagation == Propagation::Slave { "rslave" } else { "rprivate" };
        let mode = if mount.readonly { "ro" } else { "rw" };
        bind(&mount.source, &mount.target, &["rbind", mode, propagation])
    }));
    all
}

fn bind(source: &Path, target: &Path, options: &[&str]) -> Value {
    json!({"type": "bind", "source": source, "destination": target, "options": options})
}

fn nodes(spec: &ContainerSpec) -> Result<Vec<Node>> {
    let mut all = if spec.privileged { devices::host_nodes()? } else { Vec::new() };
    for device in &spec.devices {
        let found = devices::look(&device.source, &device.target);
        all.push(found.ok_or_else(|| Error::Invalid(format!("{} is not a device", device.source.display())))?);
    }
    Ok(all)
}

fn kind(node: &Node) -> &'static str {
    if node.kind.is_block_device() { "b" } else { "c" }
}

fn node(node: &Node) -> Value {
    json!({
        "path": node.path, "type": kind(node), "major": node.major, "minor": node.minor,
        "fileMode": node.mode & 0o7777, "uid": node.uid, "gid": node.gid,
    })
}

fn resources(spec: &ContainerSpec, around: &Around<'_>) -> Result<Value> {
    let Limits { cpu_quota, cpu_period, cpu_shares, memory, pids, cpuset_cpus, cpuset_mems, hugepages } = &spec.limits;
    let mut rules = vec![json!({"allow": spec.privileged, "access": "rwm"})];
    for device in &spec.devices {
        let found = devices::look(&device.source, &device.target);
        let found = found.ok_or_else(|| Error::Invalid(format!("{} is not a device", device.source.display())))?;
        rules.push(json!({"allow": true, "type": kind(&found), "major": found.major, "minor": found.minor,
            "access": device.permissions}));
    }
    let mut all = json!({"devices": rules, "cpu": {}});
    let mut set = |part: &str, name: &str, value: Option<Value>| {
        if let Some(value) = value {
            all[part][name] = value;
        }
    };
    set("memory", "limit", memory.map(Value::from));
    set("pids", "limit", pids.map(Value::from));
    set("cpu", "shares", cpu_shares.map(Value::from));
    set("cpu", "quota", cpu_quota.map(Value::from));
    set("cpu", "period", cpu_period.or(cpu_quota.map(|_| 100_000)).map(Value::from));
    set("cpu", "cpus", cpuset_cpus.clone().map(Value::from));
    set("cpu", "mems", cpuset_mems.clone().map(Value::from));
    // None of a size that cannot be limited is what a container gets anyway.
    let pages = hugepages.iter().filter(|(_, bytes)| around.limits_huge_pages || **bytes > 0);
    let pages: Vec<Value> = pages.map(|(size, bytes)| json!({"pageSize": size, "limit": bytes})).collect();
    if !pages.is_empty() {
        all["hugepageLimits"] = pages.into();
    }
    Ok(all)
}
