//! Volumes: claims, the node's folders, memory, images.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::pod::{Pod, label};
use super::project::{Project, Service};
use super::put;
use super::security::push;
use crate::error::Result;
use crate::load::FileKind;
use crate::names;
use crate::short;
use crate::units;
use crate::view::View;

/// What a claim asks for where the file does not say.
const STANDARD_SIZE: &str = "1Gi";

pub fn translate(
    project: &Project<'_>,
    service: &Service<'_>,
    pod: &mut Pod,
    container: &mut Map<String, Value>,
) -> Result<()> {
    for item in service.get("volumes").iter().flat_map(View::items) {
        mount(project, service, &item, false, pod, container)?;
    }
    if let Some(view) = service.get("volumes_from") {
        for item in view.items() {
            from_other(project, service, &item, pod, container)?;
        }
    }
    if let Some(view) = service.get("tmpfs") {
        for (text, at) in view.strings()? {
            let (target, options) = text.split_once(':').unwrap_or((&text, ""));
            memory(service, target, options, &at, pod, container)?;
        }
    }
    if let Some(view) = service.get("shm_size") {
        let name = volume_name(service, "/dev/shm");
        pod.volume(json!({"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": units::memory(view.bytes()?)}}));
        push(container, "volumeMounts", json!({"name": name, "mountPath": "/dev/shm"}));
    }
    Ok(())
}

/// A name for what only this container mounts there.
fn volume_name(service: &Service<'_>, target: &str) -> String {
    names::label(&format!("{}{}", service.dns, target.replace('/', "-")))
}

fn memory(
    service: &Service<'_>,
    target: &str,
    options: &str,
    at: &View<'_>,
    pod: &mut Pod,
    container: &mut Map<String, Value>,
) -> Result<()> {
    let mut volume = json!({"medium": "Memory"});
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", size)) => {
                let bytes = units::bytes(size).ok_or_else(|| at.invalid(format!("{size:?} is no size")))?;
                volume["sizeLimit"] = json!(units::memory(bytes));
            }
            _ => at.warn(format!("the option {option:?} of memory is not kept")),
        }
    }
    let name = volume_name(service, target);
    pod.volume(json!({"name": name, "emptyDir": volume}));
    push(container, "volumeMounts", json!({"name": name, "mountPath": target}));
    Ok(())
}

/// One entry of `volumes`.
fn mount(
    project: &Project<'_>,
    service: &Service<'_>,
    item: &View<'_>,
    only_read: bool,
    pod: &mut Pod,
    container: &mut Map<String, Value>,
) -> Result<()> {
    let (mount, source) =
        if item.is_map() { long(project, service, item)? } else { short_form(project, service, item)? };
    let (mut mount, Some(source)) = (mount, source) else { return Ok(()) };
    if only_read {
        mount["readOnly"] = json!(true);
    }
    let privileged = service.get("privileged").map(|view| view.bool()).transpose()?.unwrap_or(false);
    if mount["mountPropagation"] == "Bidirectional" && !privileged {
        mount["mountPropagation"] = json!("HostToContainer");
        item.warn("only a privileged container's mounts are seen on the node: it sees the node's, not the other way");
    }
    if source.claim && mount["readOnly"] != json!(true) {
        pod.writes_claim = true;
    }
    mount["name"] = source.volume["name"].clone();
    pod.volume(source.volume);
    push(container, "volumeMounts", mount);
    Ok(())
}

struct Source {
    volume: Value,
    claim: bool,
}

type Mount = (Value, Option<Source>);

fn short_form(project: &Project<'_>, service: &Service<'_>, item: &View<'_>) -> Result<Mount> {
    let volume = short::volume(item.text()?).map_err(|problem| item.invalid(problem))?;
    let mut mount = json!({"name": "", "mountPath": volume.target});
    for option in &volume.options {
        match option.as_str() {
            "ro" => mount["readOnly"] = json!(true),
            "rw" => {}
            "rshared" | "shared" => mount["mountPropagation"] = json!("Bidirectional"),
            "rslave" | "slave" => mount["mountPropagation"] = json!("HostToContainer"),
            "rprivate" | "private" => {}
            // Nothing is copied into a claim.
            "nocopy" => {}
            "z" | "Z" => item.warn("folders of the node are not labelled for SELinux"),
            "cached" | "delegated" | "consistent" => item.warn(format!("the option {option} is the desktop's")),
            other => item.warn(format!("the option {other:?} is not kept")),
        }
    }
    let source = match &volume.source {
        None => Source { volume: json!({"name": volume_name(service, &volume.target), "emptyDir": {}}), claim: false },
        Some(path) if volume.is_bind() => bind(project, item, path, true),
        Some(name) => named(project, item, name)?,
    };
    Ok((mount, Some(source)))
}

fn long(project: &Project<'_>, service: &Service<'_>, item: &View<'_>) -> Result<Mount> {
    let text = |key: &str| item.get(key).map(|view| view.text().map(str::to_owned)).transpose();
    let target = text("target")?.ok_or_else(|| item.invalid("has no target"))?;
    let source = text("source")?;
    let kind = text("type")?.ok_or_else(|| item.invalid("has no type: bind, volume, tmpfs or image"))?;
    let mut mount = json!({"name": "", "mountPath": target});
    if let Some(view) = item.get("read_only")
        && view.bool()?
    {
        mount["readOnly"] = json!(true);
    }
    if let Some(view) = item.get("consistency") {
        view.warn("is the desktop's");
    }
    for part in ["bind", "volume", "tmpfs", "image"] {
        if part != kind
            && let Some(view) = item.get(part)
        {
            view.warn(format!("does not count for the type {kind}"));
        }
    }
    let needed = || source.clone().ok_or_else(|| item.invalid("has no source"));
    let source = match kind.as_str() {
        "bind" => {
            let options = item.get("bind");
            let create = match options.as_ref().and_then(|bind| bind.get("create_host_path")) {
                Some(view) => view.bool()?,
                None => true,
            };
            if let Some(options) = &options {
                bind_options(options, &mut mount)?;
            }
            bind(project, item, &needed()?, create)
        }
        "volume" => {
            let options = item.get("volume");
            if let Some(view) = options.as_ref().and_then(|options| options.get("subpath")) {
                mount["subPath"] = json!(view.text()?);
            }
            if let Some(view) = options.as_ref().and_then(|options| options.get("nocopy"))
                && !view.bool()?
            {
                view.warn("what the image has there is not copied into a new volume");
            } else if let Some(view) = options.as_ref().and_then(|options| options.get("nocopy")) {
                // So it is always.
                view.node.read.set(true);
                view.warn("is always so: nothing is copied into a new volume");
            }
            if let Some(view) = options.as_ref().and_then(|options| options.get("labels")) {
                view.warn("labels belong to the volume at the end of the file");
            }
            match &source {
                Some(name) => named(project, item, name)?,
                None => Source { volume: json!({"name": volume_name(service, &target), "emptyDir": {}}), claim: false },
            }
        }
        "tmpfs" => {
            let mut volume = json!({"medium": "Memory"});
            if let Some(options) = item.get("tmpfs") {
                if let Some(view) = options.get("size") {
                    volume["sizeLimit"] = json!(units::memory(view.bytes()?));
                }
                if let Some(view) = options.get("mode") {
                    view.warn("memory belongs to all: mode 1777");
                }
            }
            Source { volume: json!({"name": volume_name(service, &target), "emptyDir": volume}), claim: false }
        }
        "image" => {
            if let Some(view) = item.get("image").and_then(|options| options.get("subpath")) {
                mount["subPath"] = json!(view.text()?);
            }
            let image = json!({"reference": needed()?, "pullPolicy": "IfNotPresent"});
            Source { volume: json!({"name": volume_name(service, &target), "image": image}), claim: false }
        }
        "cluster" => named(project, item, &needed()?)?,
        other => {
            item.warn(format!("volumes of the type {other} are Windows': left out"));
            return Ok((mount, None));
        }
    };
    Ok((mount, Some(source)))
}

fn bind_options(options: &View<'_>, mount: &mut Value) -> Result<()> {
    if let Some(view) = options.get("propagation") {
        match view.text()? {
            "rshared" | "shared" => mount["mountPropagation"] = json!("Bidirectional"),
            "rslave" | "slave" => mount["mountPropagation"] = json!("HostToContainer"),
            "rprivate" | "private" => mount["mountPropagation"] = json!("None"),
            other => return Err(view.invalid(format!("unknown propagation {other:?}"))),
        }
    }
    if let Some(view) = options.get("recursive") {
        match view.text()? {
            "readonly" => {
                mount["readOnly"] = json!(true);
                mount["recursiveReadOnly"] = json!("Enabled");
                mount["mountPropagation"] = json!("None");
            }
            "writable" => mount["recursiveReadOnly"] = json!("Disabled"),
            "enabled" => view.warn("mounts below the folder always come along"),
            _ => view.warn("mounts below the folder come along"),
        }
    }
    if let Some(view) = options.get("selinux") {
        view.warn("folders of the node are not labelled for SELinux");
    }
    Ok(())
}

/// A folder or file of whichever node the pod is on.
fn bind(project: &Project<'_>, item: &View<'_>, path: &str, create: bool) -> Source {
    let name = names::label(&format!("host{}", path.replace('/', "-")));
    let mut host = json!({"path": path});
    // A file stays one; a folder that is missing is made, as Docker does.
    if create && project.files.kind(Path::new(path)) != FileKind::File {
        host["type"] = json!("DirectoryOrCreate");
    }
    item.warn(format!("{path} is taken from the node that the pod runs on; `configs` and named volumes move with it"));
    Source { volume: json!({"name": name, "hostPath": host}), claim: false }
}

fn named(project: &Project<'_>, item: &View<'_>, name: &str) -> Result<Source> {
    let Some(entry) = project.entry("volumes", name) else {
        return Err(item.invalid(format!("there is no volume {name:?}: name it under `volumes` of the file")));
    };
    let volume = names::label(&format!("volume-{name}"));
    if let Some((kind, source)) = special(&entry)? {
        return Ok(Source { volume: json!({"name": volume, kind: source}), claim: false });
    }
    let claim = claim_name(name, &entry)?;
    Ok(Source { volume: json!({"name": volume, "persistentVolumeClaim": {"claimName": claim}}), claim: true })
}

fn claim_name(name: &str, entry: &View<'_>) -> Result<String> {
    let own = entry.get("name").or_else(|| entry.get("external").and_then(|external| external.get("name")));
    let chosen = own.map(|view| view.text().map(str::to_owned)).transpose()?.unwrap_or_else(|| name.to_owned());
    Ok(names::subdomain(&chosen))
}

/// What Docker's `local` driver makes of its options: NFS, a folder, memory.
fn special(entry: &View<'_>) -> Result<Option<(&'static str, Value)>> {
    let Some(options) = entry.get("driver_opts") else { return Ok(None) };
    let option = |key: &str| options.node.get(key).and_then(|node| node.scalar());
    let mount: Vec<(&str, &str)> =
        option("o").unwrap_or_default().split(',').map(|one| one.split_once('=').unwrap_or((one, ""))).collect();
    let found = |key: &str| mount.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
    let device = option("device").unwrap_or_default();
    let read = || ["type", "o", "device"].iter().for_each(|key| drop(options.get(key)));
    match option("type") {
        Some("nfs" | "nfs4") => {
            read();
            let server = found("addr").ok_or_else(|| options.invalid("an NFS volume needs `o: addr=…`"))?;
            for (name, _) in mount.iter().filter(|(name, _)| !matches!(*name, "addr" | "ro" | "rw" | "")) {
                options.notes.add(crate::Warning {
                    place: options.node.place.clone(),
                    path: format!("{}.o", options.path),
                    message: format!("the option {name} of NFS is not kept"),
                });
            }
            let mut source = json!({"server": server, "path": device.trim_start_matches(':')});
            if found("ro").is_some() {
                source["readOnly"] = json!(true);
            }
            Ok(Some(("nfs", source)))
        }
        Some("none") if found("bind").is_some() => {
            read();
            options.notes.add(crate::Warning {
                place: options.node.place.clone(),
                path: format!("{}.device", options.path),
                message: format!("{device} is taken from the node that the pod runs on"),
            });
            Ok(Some(("hostPath", json!({"path": device}))))
        }
        Some("tmpfs") => {
            read();
            let mut source = json!({"medium": "Memory"});
            if let Some(bytes) = found("size").and_then(units::bytes) {
                source["sizeLimit"] = json!(units::memory(bytes));
            }
            options.notes.add(crate::Warning {
                place: options.node.place.clone(),
                path: options.path.clone(),
                message: "each pod has memory of its own, which goes with it".into(),
            });
            Ok(Some(("emptyDir", source)))
        }
        _ => Ok(None),
    }
}

fn from_other(
    project: &Project<'_>,
    service: &Service<'_>,
    item: &View<'_>,
    pod: &mut Pod,
    container: &mut Map<String, Value>,
) -> Result<()> {
    let text = item.text()?;
    if text.starts_with("container:") {
        item.warn("containers outside of the project have no volumes to share");
        return Ok(());
    }
    let (name, mode) = text.split_once(':').unwrap_or((text, "rw"));
    let Some(other) = project.service(name) else {
        return Err(item.invalid(format!("there is no service {name:?}")));
    };
    if other.name == service.name {
        return Err(item.invalid("takes its own volumes"));
    }
    for volume in other.get("volumes").iter().flat_map(View::items) {
        let anonymous = volume.node.scalar().is_some_and(|text| !text.contains(':'));
        if anonymous && other.leader != service.leader {
            item.warn(format!("{} has no name, and is {name}'s alone", volume.node.scalar().unwrap_or_default()));
            continue;
        }
        mount(project, service, &volume, mode == "ro", pod, container)?;
    }
    Ok(())
}

/// The claims of the file's volumes.
pub fn claims(project: &Project<'_>) -> Result<Vec<Value>> {
    let mut claims = Vec::new();
    for (name, entry) in project.section("volumes") {
        if special(&entry)?.is_some() {
            unused_keys(&entry, "has no claim");
            continue;
        }
        let claim = claim_name(name, &entry)?;
        let external = entry.get("external").is_some_and(|view| view.is_map() || view.bool().unwrap_or(false));
        if external {
            unused_keys(&entry, "is the volume's that is there already");
            continue;
        }
        let mut metadata = project.metadata(&claim, None);
        let mut labels = metadata["labels"].as_object().cloned().unwrap_or_default();
        let mut annotations = std::collections::BTreeMap::new();
        if let Some(view) = entry.get("labels") {
            for (name, value, at) in view.pairs()? {
                label(&at, &name, &value.unwrap_or_default(), &mut labels, &mut annotations);
            }
        }
        metadata.insert("labels".into(), Value::Object(labels));
        put(&mut metadata, "annotations", json!(annotations));
        let size = entry.get("driver_opts").and_then(|options| options.get("size"));
        let size = match size {
            Some(view) => units::memory(view.bytes()?),
            None => match entry.node.get("x-size").and_then(|node| node.scalar()) {
                Some(text) if units::bytes(text).is_some() => units::bytes(text).map(units::memory).unwrap_or_default(),
                Some(text) => return Err(entry.invalid(format!("x-size: {text:?} is no size"))),
                None => STANDARD_SIZE.to_owned(),
            },
        };
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}});
        if let Some(view) = entry.get("driver")
            && view.text()? != "local"
        {
            spec["storageClassName"] = json!(names::subdomain(view.text()?));
        }
        claims.push(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}));
    }
    Ok(claims)
}

fn unused_keys(entry: &View<'_>, why: &str) {
    for key in ["driver", "driver_opts", "labels", "name"] {
        let external_name = key == "name" && why.contains("there already");
        // What was read by then is kept.
        if !external_name
            && !entry.node.get(key).is_none_or(|node| node.read.get())
            && let Some(view) = entry.get(key)
        {
            view.warn(why);
        }
    }
}
