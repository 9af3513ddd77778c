//! The configuration file: what is too much for flags. Unknown keys are errors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::CommandFactory;
use dhow_base::config::Sources;
use dhow_controllers::{ClusterAutoscalerConfig, LoadBalancerConfig};
use dhow_cri::embedded::Tuning;
use dhow_image::{GcConfig, RegistriesConfig};
use dhow_node::NodeOptions;
use dhow_oci::spec::{LogLimits, OciProgram};
use dhow_scheduler::SchedulerConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backups::BackupSettings;
use crate::build_kinds::BuildRunSettings;
use crate::builds::BuildSettings;
use crate::dns_settings::DnsSettings;
use crate::registry_settings::RegistrySettings;

pub const DEFAULT_FILE: &str = "/etc/dhow/config.yaml";

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// What the node's agent does.
    pub node: NodeOptions,
    /// Programs that run containers in the place of our own, by the name that a runtime class has for them.
    pub runtime_handlers: BTreeMap<String, OciProgram>,
    /// How registries are reached.
    pub registries: RegistriesConfig,
    /// When images go.
    pub images: GcConfig,
    /// How images are built.
    pub builds: BuildSettings,
    /// How names are resolved.
    pub dns: DnsSettings,
    /// Upstream's `KubeSchedulerConfiguration`.
    pub scheduler: Option<serde_json::Value>,
    /// What addresses load balancers get.
    pub load_balancer: LoadBalancerConfig,
    /// Who makes more nodes, and when.
    pub cluster_autoscaler: ClusterAutoscalerConfig,
    /// The cluster's own registry of images.
    pub registry: RegistrySettings,
    /// What runs of Builds may take.
    pub build_runs: BuildRunSettings,
    /// Plugins that make the pods' network in the place of our own.
    pub cni: Option<CniSettings>,
    /// When backups of the state are made, and where.
    pub backups: BackupSettings,
}

/// Where standard CNI plugins and their configuration are.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CniSettings {
    /// The first configuration in it, by name, is the pods' network.
    pub conf_dir: PathBuf,
    /// Folders of the plugins, searched in order.
    pub bin_dirs: Vec<PathBuf>,
}

impl Default for CniSettings {
    fn default() -> Self {
        let bin_dirs = ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from).to_vec();
        Self { conf_dir: "/etc/cni/net.d".into(), bin_dirs }
    }
}

impl Settings {
    /// Reads the file and its `.d` folder, then variables such as `DHOW_IMAGES_GC_HIGH_THRESHOLD_PERCENT`. A file that is
    /// not there is fine if nobody asked for it.
    pub fn load(file: &Path) -> Result<Self> {
        let command = crate::cli::Cli::command();
        let flags = flag_variables(&command);
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let prefixes = [
                "DHOW_BUILDS_",
                "DHOW_BUILD_RUNS_",
                "DHOW_IMAGES_",
                "DHOW_REGISTRIES_",
                "DHOW_REGISTRY_",
                "DHOW_NODE_",
                "DHOW_DNS_",
                "DHOW_BACKUPS_",
            ];
            let ours = prefixes.iter().any(|prefix| name.starts_with(prefix));
            Some((name, value.into_string().ok()?)).filter(|(name, _)| ours && !flags.contains(name))
        });
        let settings: Self = Sources::new()
            .file(file, file != Path::new(DEFAULT_FILE))
            .environment("DHOW_", variables, &[])
            .load()
            .context("read the settings")?;
        settings.images.check()?;
        settings.builds.resolve().context("read the settings")?;
        settings.node.settings().map_err(anyhow::Error::msg).context("read the settings")?;
        for (name, program) in &settings.runtime_handlers {
            let of = format!("runtimeHandlers.{name}");
            ensure!(!name.is_empty() && name.len() <= 63, "read the settings: {of}: a name of 1 to 63 characters");
            ensure!(program.path.is_absolute(), "read the settings: {of}.path: an absolute path");
        }
        settings.load_balancer.pools().map_err(anyhow::Error::msg)?;
        settings.cluster_autoscaler.settings().map_err(anyhow::Error::msg).context("read the settings")?;
        settings.dns.check().context("read the settings")?;
        settings.registry.check().context("read the settings")?;
        settings.build_runs.resolve().context("read the settings")?;
        settings.backups.plan().context("read the settings")?;
        if let Some(cni) = &settings.cni {
            let absolute = cni.conf_dir.is_absolute() && cni.bin_dirs.iter().all(|dir| dir.is_absolute());
            ensure!(absolute, "read the settings: cni: confDir and binDirs are absolute paths");
            ensure!(!cni.bin_dirs.is_empty(), "read the settings: cni.binDirs: at least one folder of plugins");
        }
        Ok(settings)
    }

    /// What the embedded runtime is told; a flag has the last word on `slots`. Plugins want to know the pod from the first.
    pub fn tuning(&self, slots: Option<usize>) -> Result<Tuning> {
        let (max_size, max_files) = self.node.log_limits().map_err(anyhow::Error::msg)?;
        let slots = if self.cni.is_some() { Some(0) } else { slots };
        Ok(Tuning { slots: slots.unwrap_or(self.node.pod_slots), logs: LogLimits { max_size, max_files } })
    }
}

/// Variables that stand for flags of any command, and not for keys of the file.
fn flag_variables(command: &clap::Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter_map(|argument| Some(argument.get_env()?.to_str()?.to_owned()));
    own.chain(command.get_subcommands().flat_map(flag_variables)).collect()
}

impl Settings {
    /// The schedulers of this cluster.
    pub fn schedulers(&self) -> Result<SchedulerConfig> {
        let mut config = SchedulerConfig::default();
        if let Some(document) = &self.scheduler {
            config.profiles = dhow_scheduler::profiles(document)?;
            config.extenders = dhow_scheduler::extenders(document)?;
        }
        Ok(config)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::registry_settings::Storage;

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
        let cni = text.split("```yaml\n").nth(3).and_then(|rest| rest.split("```").next()).unwrap();
        std::fs::write(&file, cni).unwrap();
        let settings = Settings::load(&file).unwrap();
        assert_eq!(settings.cni.as_ref().unwrap().bin_dirs, [Path::new("/usr/lib/cni")]);
        assert_eq!(settings.tuning(Some(5)).unwrap().slots, 0);
        std::fs::write(&file, "cni: {}\n").unwrap();
        assert_eq!(Settings::load(&file).unwrap().cni.unwrap().conf_dir, Path::new("/etc/cni/net.d"));
        std::fs::write(&file, "cni: {confDir: here}\n").unwrap();
        assert!(format!("{:#}", Settings::load(&file).unwrap_err()).contains("absolute"));
        let text = include_str!("../../../docs/cluster-autoscaler.md");
        let example = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        std::fs::write(&file, example).unwrap();
        let autoscaler = Settings::load(&file).unwrap().cluster_autoscaler.settings().unwrap().unwrap();
        assert_eq!((autoscaler.most_nodes, autoscaler.priorities[0].0), (40, 50));
        std::fs::write(&file, example.replace("10m", "soon")).unwrap();
        let error = format!("{:#}", Settings::load(&file).unwrap_err());
        assert!(error.contains("clusterAutoscaler.scaleDownUnneededTime"), "{error}");
        let text = include_str!("../../../docs/operations.md");
        let example = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        std::fs::write(&file, example).unwrap();
        assert!(Settings::load(&file).unwrap().backups.plan().unwrap().is_some());
        std::fs::write(&file, example.replace("30 3", "30 33")).unwrap();
        let error = format!("{:#}", Settings::load(&file).unwrap_err());
        assert!(error.contains("backups.schedule"), "{error}");
        let text = include_str!("../../../docs/scheduling.md");
        let example = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        std::fs::write(&file, example).unwrap();
        assert_eq!(Settings::load(&file).unwrap().schedulers().unwrap().profiles.len(), 2);
    }

    #[test]
    fn the_node_s_documented_example_is_valid_and_mistakes_show_with_their_line() {
        let text = include_str!("../../../docs/nodes.md");
        let example = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.yaml");
        let load = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Settings::load(&file).map_err(|error| format!("{error:#}"))
        };
        let settings = load(example).unwrap();
        assert_eq!(settings.node.max_pods, 200);
        assert_eq!(settings.runtime_handlers["crun"].path, Path::new("/usr/bin/crun"));
        assert_eq!(settings.tuning(None).unwrap().logs.max_size, 20 << 20);
        assert_eq!(settings.tuning(Some(7)).unwrap().slots, 7);
        let line = |what: &str| example.lines().position(|line| line.contains(what)).unwrap() + 1;
        for (from, to, says) in [
            ("maxPods:", "maxPod:", "unknown key \"node.maxPod\""),
            ("maxPods: 200", "maxPods: many", "node.maxPods: invalid type"),
        ] {
            let error = load(&example.replace(from, to)).unwrap_err();
            let place = format!("config.yaml:{}: ", line("maxPods:"));
            assert!(error.contains(&place) && error.contains(says), "{error}");
        }
        let error = load("node: {shutdownGracePeriod: soon}\n").unwrap_err();
        assert!(error.contains("node.shutdownGracePeriod"), "{error}");
        assert!(load("runtimeHandlers: {crun: {path: crun}}\n").unwrap_err().contains("absolute"));
        assert!(load("runtimeHandlers: {crun: {pth: /crun}}\n").unwrap_err().contains("config.yaml:1"));
    }

    #[test]
    fn the_registry_s_documented_example_is_valid() {
        let text = include_str!("../../../docs/registry.md");
        let example = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, example).unwrap();
        assert_eq!(Settings::load(&file).unwrap().registry.port, Some(5443));
        std::fs::write(&file, "registry: {collectEvery: soon}\n").unwrap();
        assert!(format!("{:#}", Settings::load(&file).unwrap_err()).contains("registry.collectEvery"));
        let bucket = text.split("```yaml\n").nth(2).and_then(|rest| rest.split("```").next()).unwrap();
        std::fs::write(&file, bucket).unwrap();
        assert!(matches!(Settings::load(&file).unwrap().registry.storage, Some(Storage::S3(_))));
        for (from, to, says) in [
            ("region:", "regoin:", "regoin"),
            ("bucket: images", "bucket: ''", "registry.storage.s3"),
            ("s3:", "s4:", "s4"),
        ] {
            std::fs::write(&file, bucket.replace(from, to)).unwrap();
            let error = format!("{:#}", Settings::load(&file).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn variables_of_flags_are_not_keys() {
        let flags = flag_variables(&crate::cli::Cli::command());
        assert!(flags.contains("DHOW_NODE_NAME") && !flags.contains("DHOW_NODE_MAX_PODS"));
    }
}
