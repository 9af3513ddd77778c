//! Devices by their names in the Container Device Interface: what the machine's descriptions say a container needs for
//! them. A description is a file in one of two folders, the later of which wins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Error;
use crate::runtime::{ContainerConfig, Device, Mount};

const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Description {
    /// `vendor.com/class`.
    kind: String,
    #[serde(default)]
    devices: Vec<Named>,
    /// For any of the devices.
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Bind>,
    hooks: Vec<serde_json::Value>,
    additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
    permissions: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bind {
    host_path: PathBuf,
    container_path: PathBuf,
    #[serde(default)]
    options: Vec<String>,
}

/// Adds to a container what the devices that it names need.
pub fn resolve(config: &mut ContainerConfig) -> Result<(), Error> {
    if config.cdi_devices.is_empty() {
        return Ok(());
    }
    resolve_in(&FOLDERS.map(Path::new), config)
}

fn resolve_in(folders: &[&Path], config: &mut ContainerConfig) -> Result<(), Error> {
    let known = read(folders);
    for name in config.cdi_devices.clone() {
        let edits = known.get(&name);
        let edits = edits.ok_or_else(|| Error::InvalidArgument(format!("unresolvable CDI devices {name}")))?;
        edits.iter().try_for_each(|edits| apply(&name, edits, config))?;
    }
    Ok(())
}

/// What is to be done for each device, by its full name.
fn read(folders: &[&Path]) -> BTreeMap<String, [Edits; 2]> {
    let mut known = BTreeMap::new();
    for folder in folders {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files.iter().filter(|file| file.extension().is_some_and(|kind| kind == "json")) {
            let text = std::fs::read(file).unwrap_or_default();
            let found: Description = match serde_json::from_slice(&text) {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(file = %file.display(), %error, "a description of devices is damaged");
                    continue;
                }
            };
            for device in found.devices {
                let name = format!("{}={}", found.kind, device.name);
                known.insert(name, [found.container_edits.clone(), device.container_edits]);
            }
        }
    }
    known
}

fn apply(name: &str, edits: &Edits, config: &mut ContainerConfig) -> Result<(), Error> {
    if !edits.hooks.is_empty() {
        let why = format!("CDI device {name} asks for programs to be run on the host, which this runtime does not do");
        return Err(Error::FailedPrecondition(why));
    }
    for (key, value) in edits.env.iter().filter_map(|variable| variable.split_once('=')) {
        if !config.envs.iter().any(|(known, _)| known == key) {
            config.envs.push((key.to_owned(), value.to_owned()));
        }
    }
    config.devices.extend(edits.device_nodes.iter().map(|node| Device {
        host_path: node.host_path.clone().unwrap_or_else(|| node.path.clone()),
        container_path: node.path.clone(),
        permissions: node.permissions.clone().unwrap_or_else(|| "rwm".to_owned()),
    }));
    config.mounts.extend(edits.mounts.iter().map(|bind| Mount {
        host_path: bind.host_path.clone(),
        container_path: bind.container_path.clone(),
        readonly: bind.options.iter().any(|option| option == "ro"),
        ..Mount::default()
    }));
    config.security.supplemental_groups.extend(&edits.additional_gids);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_device_brings_what_it_needs() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let of = |host: &str| {
            serde_json::json!({"cdiVersion": "0.6.0", "kind": "example.com/null",
                "containerEdits": {"env": ["ALL=1"]},
                "devices": [{"name": "0", "containerEdits": {"env": ["ONE=1", "OWN=theirs"],
                    "deviceNodes": [{"path": "/dev/n0", "hostPath": host, "permissions": "rw"}],
                    "mounts": [{"hostPath": "/etc", "containerPath": "/m", "options": ["ro", "bind"]}],
                    "additionalGids": [7]}},
                    {"name": "hooked", "containerEdits": {"hooks": [{"hookName": "createRuntime", "path": "/x"}]}}]})
            .to_string()
        };
        std::fs::write(old.path().join("a.json"), of("/dev/zero")).unwrap();
        std::fs::write(new.path().join("a.json"), of("/dev/null")).unwrap();
        std::fs::write(new.path().join("damaged.json"), "{").unwrap();
        let resolve = |name: &str| {
            let mut config = ContainerConfig {
                cdi_devices: vec![name.into()],
                envs: vec![("OWN".into(), "mine".into())],
                ..ContainerConfig::default()
            };
            resolve_in(&[old.path(), new.path()], &mut config).map(|()| config)
        };
        let config = resolve("example.com/null=0").unwrap();
        let envs: Vec<String> = config.envs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(envs, ["OWN=mine", "ALL=1", "ONE=1"]);
        assert_eq!(config.devices[0].host_path, Path::new("/dev/null"));
        assert!(config.mounts[0].readonly);
        assert_eq!(config.security.supplemental_groups, [7]);
        assert!(resolve("example.com/null=1").unwrap_err().to_string().contains("unresolvable CDI devices"));
        assert!(resolve("example.com/null=hooked").is_err());
    }
}
