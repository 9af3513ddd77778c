//! `config.json`, read and checked: what we cannot do is refused here, before anything is made.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::error::{Error, Result};

/// The newest specification whose features are known here.
pub const SPECIFICATION: &str = "1.2.1";

/// Reads the configuration of the bundle in `folder`.
pub fn load(folder: &Path) -> Result<Spec> {
    let path = folder.join("config.json");
    let shown = path.display();
    let text = std::fs::read(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Error::Invalid(format!("{shown} does not exist: the bundle has no configuration"))
        }
        _ => Error::Io { step: format!("read {shown}"), source: error },
    })?;
    let spec: Spec =
        serde_json::from_slice(&text).map_err(|error| Error::Invalid(format!("{shown} is not valid: {error}")))?;
    check(&spec).map_err(|error| Error::Invalid(format!("{shown}: {error}")))?;
    Ok(spec)
}

/// The root file system, which the configuration names relative to its bundle.
pub fn rootfs(bundle: &Path, spec: &Spec) -> Result<PathBuf> {
    let root = spec.root().as_ref().ok_or_else(|| Error::Invalid("config.json: root is missing".into()))?;
    let path = bundle.join(root.path());
    let path = path
        .canonicalize()
        .map_err(|error| Error::Invalid(format!("root file system {} cannot be used: {error}", path.display())))?;
    if path.is_dir() {
        Ok(path)
    } else {
        Err(Error::Invalid(format!("root file system {} is no folder", path.display())))
    }
}

fn check(spec: &Spec) -> std::result::Result<(), String> {
    version(spec.version())?;
    if spec.root().is_none() {
        return Err("root is missing".into());
    }
    let process = spec.process().as_ref().ok_or("process is missing")?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err("process.args must not be empty".into());
    }
    if !process.cwd().is_absolute() {
        return Err(format!("process.cwd {:?} is not an absolute path", process.cwd()));
    }
    let linux = spec.linux().as_ref().ok_or("linux is missing: only Linux containers are run here")?;
    if linux.intel_rdt().is_some() {
        return Err("linux.intelRdt is not supported".into());
    }
    if linux.seccomp().as_ref().is_some_and(|seccomp| seccomp.listener_path().is_some()) {
        return Err("linux.seccomp.listenerPath is not supported".into());
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err("linux.netDevices is not supported".into());
    }
    let namespaces: Vec<_> = linux.namespaces().iter().flatten().map(|namespace| namespace.typ()).collect();
    for (place, kind) in namespaces.iter().enumerate() {
        if namespaces[..place].contains(kind) {
            return Err(format!("linux.namespaces has {kind} twice"));
        }
    }
    let has = |kind| namespaces.contains(&kind);
    if !has(LinuxNamespaceType::Mount) {
        return Err("linux.namespaces must have a mount namespace: containers never mount on the host".into());
    }
    if (spec.hostname().is_some() || spec.domainname().is_some()) && !has(LinuxNamespaceType::Uts) {
        return Err("hostname and domainname need a uts namespace".into());
    }
    let mapped = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let own_user =
        linux.namespaces().iter().flatten().any(|n| n.typ() == LinuxNamespaceType::User && n.path().is_none());
    if own_user && !(mapped(linux.uid_mappings()) && mapped(linux.gid_mappings())) {
        return Err("a new user namespace needs linux.uidMappings and linux.gidMappings".into());
    }
    if !has(LinuxNamespaceType::User) && (mapped(linux.uid_mappings()) || mapped(linux.gid_mappings())) {
        return Err("linux.uidMappings and linux.gidMappings need a user namespace".into());
    }
    if linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()) && !has(LinuxNamespaceType::Time) {
        return Err("linux.timeOffsets need a time namespace".into());
    }
    Ok(())
}

/// Any 1.x is understood: minor versions only add, and what they add is looked at by itself.
fn version(text: &str) -> std::result::Result<(), String> {
    let mut parts = text.split(['.', '-', '+']);
    let number = |part: Option<&str>| part.and_then(|part| part.parse::<u32>().ok());
    match (number(parts.next()), number(parts.next()), number(parts.next())) {
        (Some(1), Some(_), Some(_)) => Ok(()),
        (Some(_), Some(_), Some(_)) => {
            Err(format!("ociVersion {text:?} is not supported: this runtime knows 1.0 to {SPECIFICATION}"))
        }
        _ if text.is_empty() => Err("ociVersion is missing".into()),
        _ => Err(format!("ociVersion {text:?} is no version such as 1.0.2")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn with(change: impl FnOnce(&mut serde_json::Value)) -> std::result::Result<(), String> {
        let mut value = serde_json::json!({
            "ociVersion": "1.2.0", "root": {"path": "rootfs"},
            "process": {"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0}},
            "linux": {"namespaces": [{"type": "mount"}]},
        });
        change(&mut value);
        check(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn what_is_wrong_is_named() {
        with(|_| {}).unwrap();
        with(|spec| spec["ociVersion"] = "1.0.2-dev".into()).unwrap();
        for (named, result) in [
            ("ociVersion \"2.0.0\"", with(|spec| spec["ociVersion"] = "2.0.0".into())),
            ("ociVersion \"one\"", with(|spec| spec["ociVersion"] = "one".into())),
            ("ociVersion is missing", with(|spec| spec["ociVersion"] = "".into())),
            ("process.args", with(|spec| spec["process"]["args"] = serde_json::json!([]))),
            ("process.cwd", with(|spec| spec["process"]["cwd"] = "here".into())),
            ("mount namespace", with(|spec| spec["linux"]["namespaces"] = serde_json::json!([]))),
            ("uts namespace", with(|spec| spec["hostname"] = "box".into())),
            (
                "uidMappings",
                with(|spec| spec["linux"]["namespaces"] = serde_json::json!([{"type": "mount"}, {"type": "user"}])),
            ),
            (
                "twice",
                with(|spec| spec["linux"]["namespaces"] = serde_json::json!([{"type": "mount"}, {"type": "mount"}])),
            ),
        ] {
            let error = result.unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
