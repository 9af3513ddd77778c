//! Users, capabilities, filters, devices, and the namespaces that are shared with the host.

use serde_json::{Map, Value, json};

use super::pod::Pod;
use super::project::Service;
use super::put;
use crate::error::Result;
use crate::view::View;

pub fn translate(service: &Service<'_>, pod: &mut Pod, container: &mut Map<String, Value>) -> Result<()> {
    let mut context = Map::new();
    user(service, &mut context)?;
    groups(service, pod)?;
    for (key, field) in [("privileged", "privileged"), ("read_only", "readOnlyRootFilesystem")] {
        if let Some(view) = service.get(key)
            && view.bool()?
        {
            context.insert(field.into(), json!(true));
        }
    }
    let mut capabilities = Map::new();
    for (key, field) in [("cap_add", "add"), ("cap_drop", "drop")] {
        let Some(view) = service.get(key) else { continue };
        let names = view.strings()?.into_iter().map(|(name, _)| {
            let name = name.to_uppercase();
            json!(name.strip_prefix("CAP_").unwrap_or(&name))
        });
        put(&mut capabilities, field, names.collect());
    }
    put(&mut context, "capabilities", Value::Object(capabilities));
    if let Some(view) = service.get("security_opt") {
        for (text, at) in view.strings()? {
            option(&text, &at, &mut context);
        }
    }
    put(container, "securityContext", Value::Object(context));
    devices(service, pod, container)?;
    if let Some(view) = service.get("sysctls") {
        let pairs = view.pairs()?.into_iter();
        let all: Vec<Value> =
            pairs.map(|(name, value, _)| json!({"name": name, "value": value.unwrap_or_default()})).collect();
        let known = pod.security.entry("sysctls").or_insert_with(|| json!([]));
        if let Some(list) = known.as_array_mut() {
            for one in all {
                list.retain(|other| other["name"] != one["name"]);
                list.push(one);
            }
        }
    }
    namespaces(service, pod)
}

fn user(service: &Service<'_>, context: &mut Map<String, Value>) -> Result<()> {
    let Some(view) = service.get("user") else { return Ok(()) };
    let text = view.text()?;
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    for (name, field) in [(Some(user), "runAsUser"), (group, "runAsGroup")] {
        let Some(name) = name.filter(|name| !name.is_empty()) else { continue };
        match if name == "root" { Ok(0) } else { name.parse::<i64>() } {
            Ok(id) => {
                context.insert(field.into(), json!(id));
            }
            Err(_) => view.warn(format!("Kubernetes takes numbers, not the name {name:?}: the image's user stays")),
        }
    }
    Ok(())
}

fn groups(service: &Service<'_>, pod: &mut Pod) -> Result<()> {
    let Some(view) = service.get("group_add") else { return Ok(()) };
    for (name, at) in view.strings()? {
        match name.parse::<i64>() {
            Ok(id) => {
                let all = pod.security.entry("supplementalGroups").or_insert_with(|| json!([]));
                if let Some(list) = all.as_array_mut().filter(|list| !list.contains(&json!(id))) {
                    list.push(json!(id));
                }
            }
            Err(_) => at.warn(format!("Kubernetes takes numbers, not the name {name:?}")),
        }
    }
    Ok(())
}

/// `name`, `name:value` or `name=value`.
fn option(text: &str, at: &View<'_>, context: &mut Map<String, Value>) {
    let (name, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
    match (name, value) {
        ("no-new-privileges", "" | "true") => {
            context.insert("allowPrivilegeEscalation".into(), json!(false));
        }
        ("no-new-privileges", "false") => {}
        ("seccomp" | "apparmor", "unconfined") => {
            context.insert(format!("{}Profile", camel(name)), json!({"type": "Unconfined"}));
        }
        ("apparmor", "docker-default" | "runtime/default") => {
            context.insert("appArmorProfile".into(), json!({"type": "RuntimeDefault"}));
        }
        ("apparmor", profile) if !profile.is_empty() => {
            context.insert("appArmorProfile".into(), json!({"type": "Localhost", "localhostProfile": profile}));
        }
        ("seccomp", "builtin") => {
            context.insert("seccompProfile".into(), json!({"type": "RuntimeDefault"}));
        }
        ("seccomp", profile) if !profile.is_empty() => {
            let name = profile.rsplit('/').next().unwrap_or(profile);
            context.insert("seccompProfile".into(), json!({"type": "Localhost", "localhostProfile": name}));
            at.warn(format!("put the profile into the node's folder of seccomp profiles as {name}"));
        }
        ("label", "disable") => {
            context.insert("seLinuxOptions".into(), json!({"type": "spc_t"}));
        }
        ("label", pair) => match pair.split_once(':') {
            Some((part @ ("user" | "role" | "type" | "level"), value)) => {
                let options = context.entry("seLinuxOptions").or_insert_with(|| json!({}));
                options[part] = json!(value);
            }
            _ => at.warn("is not understood"),
        },
        ("systempaths", "unconfined") => {
            // Kubernetes lets go of the masks only in a user namespace, or altogether.
            at.warn("paths of the system stay masked; `privileged` opens them");
        }
        _ => at.warn("has nothing like it in Kubernetes"),
    }
}

fn camel(name: &str) -> &str {
    if name == "apparmor" { "appArmor" } else { name }
}

fn devices(service: &Service<'_>, pod: &mut Pod, container: &mut Map<String, Value>) -> Result<()> {
    let Some(view) = service.get("devices") else { return Ok(()) };
    for item in view.items() {
        let (source, target, permissions) = if item.is_map() {
            let text = |key| item.get(key).map(|view| view.text().map(str::to_owned)).transpose();
            let source = text("source")?.ok_or_else(|| item.invalid("names no device: `source` is missing"))?;
            (source.clone(), text("target")?.unwrap_or(source), text("permissions")?)
        } else {
            let mut parts = item.text()?.split(':');
            let source = parts.next().unwrap_or_default().to_owned();
            let target = parts.next().map_or_else(|| source.clone(), str::to_owned);
            (source, target, parts.next().map(str::to_owned))
        };
        if !source.starts_with('/') {
            item.warn("devices by CDI names need a resource claim (DeviceClass): left out");
            continue;
        }
        let name = crate::names::label(&format!("device{}", source.replace('/', "-")));
        pod.volume(json!({"name": name, "hostPath": {"path": source}}));
        push(container, "volumeMounts", json!({"name": name, "mountPath": target}));
        let told =
            permissions.map_or(String::new(), |permissions| format!("; the permissions {permissions} are not set"));
        item.warn(format!("the node's device is mounted; only a privileged container may open it{told}"));
    }
    Ok(())
}

fn namespaces(service: &Service<'_>, pod: &mut Pod) -> Result<()> {
    for (key, field) in [("pid", "hostPID"), ("ipc", "hostIPC")] {
        let Some(view) = service.get(key) else { continue };
        match view.text()? {
            "host" => {
                pod.spec.insert(field.into(), json!(true));
            }
            text if text.starts_with("service:") => {
                if key == "pid" {
                    pod.spec.insert("shareProcessNamespace".into(), json!(true));
                }
            }
            // A pod has one of its own, which its containers share.
            "private" | "shareable" => {}
            _ => view.warn("containers outside of the project cannot be joined"),
        }
    }
    if let Some(view) = service.get("uts") {
        match view.text()? {
            "host" if service.network_mode() == Some("host") => {}
            _ => view.warn("a pod has the node's host name only together with its network (network_mode: host)"),
        }
    }
    if let Some(view) = service.get("userns_mode") {
        match view.text()? {
            "host" => {
                pod.spec.insert("hostUsers".into(), json!(true));
            }
            "private" => {
                pod.spec.insert("hostUsers".into(), json!(false));
            }
            _ => view.warn("is not understood: `host` or `private`"),
        }
    }
    if let Some(view) = service.get("cgroup")
        && view.text()? == "host"
    {
        view.warn("a pod's control group is its own");
    }
    if let Some(view) = service.get("runtime") {
        match view.text()? {
            "runc" | "io.containerd.runc.v2" => view.warn("the node's own runtime is used"),
            name => {
                pod.spec.insert("runtimeClassName".into(), json!(name));
            }
        }
    }
    Ok(())
}

/// Adds to a list of the container.
pub fn push(container: &mut Map<String, Value>, field: &str, value: Value) {
    if let Some(list) = container.entry(field).or_insert_with(|| json!([])).as_array_mut() {
        list.push(value);
    }
}
