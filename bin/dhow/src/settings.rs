//! The configuration file: what is too much for flags. Unknown keys are errors.

use std::path::Path;

use anyhow::{Context, Result};
use dhow_base::config::Sources;
use dhow_controllers::LoadBalancerConfig;
use dhow_image::{GcConfig, RegistriesConfig};
use serde::{Deserialize, Serialize};

pub const DEFAULT_FILE: &str = "/etc/dhow/config.yaml";

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// How registries are reached.
    pub registries: RegistriesConfig,
    /// When images go.
    pub images: GcConfig,
    /// What addresses load balancers get.
    pub load_balancer: LoadBalancerConfig,
}

impl Settings {
    /// Reads the file and its `.d` folder, then variables such as `DHOW_IMAGES_GC_HIGH_THRESHOLD_PERCENT`. A file that is
    /// not there is fine if nobody asked for it.
    pub fn load(file: &Path) -> Result<Self> {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let ours = ["DHOW_IMAGES_", "DHOW_REGISTRIES_"].iter().any(|prefix| name.starts_with(prefix));
            Some((name, value.into_string().ok()?)).filter(|_| ours)
        });
        let settings: Self = Sources::new()
            .file(file, file != Path::new(DEFAULT_FILE))
            .environment("DHOW_", variables, &[])
            .load()
            .context("read the settings")?;
        settings.images.check()?;
        settings.load_balancer.pools().map_err(anyhow::Error::msg)?;
        Ok(settings)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_is_valid_and_typos_are_not() {
        let text = include_str!("../../../docs/images.md");
        let example = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, example).unwrap();
        let settings = Settings::load(&file).unwrap();
        assert_eq!(settings.registries.hosts["docker.io"].mirrors.len(), 1);
        assert_eq!(settings.images.gc_high_threshold_percent, 85);
        let text = include_str!("../../../docs/network.md");
        let pools = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        std::fs::write(&file, pools).unwrap();
        assert_eq!(Settings::load(&file).unwrap().load_balancer.pools.len(), 2);
        std::fs::write(&file, pools.replace("192.0.2.7", "everywhere")).unwrap();
        let error = format!("{:#}", Settings::load(&file).unwrap_err());
        assert!(error.contains("everywhere"), "{error}");
        std::fs::write(&file, example.replace("mirrors:", "mirror:")).unwrap();
        let error = format!("{:#}", Settings::load(&file).unwrap_err());
        assert!(error.contains("mirror"), "{error}");
        std::fs::write(&file, "image: {}\n").unwrap();
        let error = format!("{:#}", Settings::load(&file).unwrap_err());
        assert!(error.contains("unknown key \"image\""), "{error}");
        assert!(Settings::load(&folder.path().join("none")).is_err());
    }
}
