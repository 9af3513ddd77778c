//! A container's devices, put into what the runtime is asked for.

use std::path::PathBuf;

use dhow_cri::runtime::{ContainerConfig, Device, Mount};

use super::Devices;
use super::checkpoint::Answer;
use crate::Error;

impl Devices {
    /// Tells plugins that want to know that the container starts, and adds what it needs for its devices.
    pub async fn equip(&self, uid: &str, config: &mut ContainerConfig) -> Result<(), Error> {
        let shares = {
            let state = self.state.lock();
            let Some(own) = state.given.pods.get(uid).and_then(|pod| pod.get(&config.name)) else { return Ok(()) };
            let with_plugin = |(name, share): (&String, &super::Share)| {
                let plugin = state.resources.get(name).and_then(|resource| resource.plugin.clone());
                (name.clone(), share.clone(), plugin)
            };
            own.iter().map(with_plugin).collect::<Vec<_>>()
        };
        for (resource, share, plugin) in shares {
            if let Some(plugin) = plugin.filter(|plugin| plugin.options.pre_start_required) {
                let told = plugin.pre_start(&share.ids).await;
                told.map_err(|error| Error::Spec {
                    reason: "CreateContainerError",
                    message: format!("device plugin PreStartContainer rpc failed with err: {error} ({resource})"),
                })?;
            }
            add(&share.answer, config);
        }
        Ok(())
    }
}

/// What the pod itself says comes after, and wins.
fn add(answer: &Answer, config: &mut ContainerConfig) {
    for (name, value) in &answer.envs {
        if !config.envs.iter().any(|(known, _)| known == name) {
            config.envs.push((name.clone(), value.clone()));
        }
    }
    for (inside, outside, readonly) in &answer.mounts {
        let container_path = PathBuf::from(inside);
        if !config.mounts.iter().any(|mount| mount.container_path == container_path) {
            config.mounts.push(Mount {
                host_path: outside.into(),
                container_path,
                readonly: *readonly,
                ..Mount::default()
            });
        }
    }
    for (inside, outside, permissions) in &answer.devices {
        let container_path = PathBuf::from(inside);
        if !config.devices.iter().any(|device| device.container_path == container_path) {
            config.devices.push(Device { host_path: outside.into(), container_path, permissions: permissions.clone() });
        }
    }
    for (name, value) in &answer.annotations {
        config.annotations.entry(name.clone()).or_insert_with(|| value.clone());
    }
    for name in &answer.cdi {
        if !config.cdi_devices.contains(name) {
            config.cdi_devices.push(name.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_s_own_words_win() {
        let mut config = ContainerConfig { envs: vec![("A".into(), "own".into())], ..ContainerConfig::default() };
        let answer = Answer {
            envs: [("A".into(), "plugin".into()), ("B".into(), "plugin".into())].into(),
            devices: vec![("/dev/x".into(), "/dev/null".into(), "rw".into())],
            cdi: vec!["v/c=1".into()],
            ..Answer::default()
        };
        add(&answer, &mut config);
        add(&answer, &mut config);
        assert_eq!(config.envs, [("A".into(), "own".into()), ("B".into(), "plugin".into())]);
        assert_eq!((config.devices.len(), config.cdi_devices.len()), (1, 1));
    }
}
