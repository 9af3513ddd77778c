//! The builder of a node with the embedded runtime: where it works, and how its steps reach the network.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use dhow_builder::{Builder, Network, Sandboxes};
use dhow_cri::runtime::PodIdentity;
use dhow_cri::{NetworkRequest, PodNetwork};
use dhow_oci::client::Program;
use dhow_oci::spec::Limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::builtins::Images;
use crate::place::{self, Place};

/// Whom network policies see: no namespace of anybody's.
const NAMESPACE: &str = "dhow-build";

/// The `builds` section of the settings: what builds may use of the node.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BuildSettings {
    /// Memory of all steps together, such as `4Gi`. Three quarters of what the machine has if unset.
    pub memory: Option<String>,
    /// Memory of one step; that of all if unset.
    pub step_memory: Option<String>,
    /// Processes and threads of one step: more are a mistake.
    pub step_pids: i64,
    /// Weight of all steps together beside the node's pods, which have 1024 for each processor that they ask for.
    pub cpu_shares: u64,
    /// Steps that run at the same time; one for each processor, and at least two, if unset.
    pub parallel: Option<usize>,
    /// Bytes of steps that are kept; the oldest go first.
    pub keep: String,
}

impl Default for BuildSettings {
    fn default() -> Self {
        BuildSettings {
            memory: None,
            step_memory: None,
            step_pids: 32_768,
            cpu_shares: 512,
            parallel: None,
            keep: "20Gi".to_owned(),
        }
    }
}

/// The same, understood.
pub struct Resolved {
    step: Limits,
    together: Limits,
    parallel: usize,
    keep_bytes: u64,
}

impl BuildSettings {
    /// Understands them.
    pub fn resolve(&self) -> Result<Resolved> {
        let size = |key: &str, text: &str| {
            dhow_builder::size(text)
                .filter(|bytes| *bytes > 0)
                .with_context(|| format!("builds.{key}: a size such as 4Gi"))
        };
        let memory = |key: &str, text: &Option<String>| -> Result<Option<i64>> {
            let bytes = text.as_deref().map(|text| size(key, text)).transpose()?;
            bytes.map(|bytes| i64::try_from(bytes).with_context(|| format!("builds.{key}: too much"))).transpose()
        };
        ensure!(self.step_pids > 0, "builds.stepPids: at least 1");
        ensure!((2..=262_144).contains(&self.cpu_shares), "builds.cpuShares: from 2 to 262144");
        ensure!(self.parallel != Some(0), "builds.parallel: at least 1");
        let own = rustix::system::sysinfo();
        let all = own.totalram.saturating_mul(u64::from(own.mem_unit.max(1)));
        let most = i64::try_from(all / 4 * 3).ok().filter(|bytes| *bytes > 0);
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        Ok(Resolved {
            step: Limits {
                memory: memory("stepMemory", &self.step_memory)?,
                pids: Some(self.step_pids),
                ..Limits::default()
            },
            together: Limits {
                memory: memory("memory", &self.memory)?.or(most),
                cpu_shares: Some(self.cpu_shares),
                ..Limits::default()
            },
            parallel: self.parallel.unwrap_or_else(|| cpus.max(2)),
            keep_bytes: size("keep", &self.keep)?,
        })
    }
}

/// Steps are connected as pods are.
struct AsPods(Arc<dyn PodNetwork>);

#[async_trait::async_trait]
impl Network for AsPods {
    async fn attach(&self, netns: BorrowedFd<'_>, sandbox: &str) -> Result<(), String> {
        let pod = PodIdentity { namespace: NAMESPACE.to_owned(), name: sandbox.to_owned(), ..PodIdentity::default() };
        let request = NetworkRequest { sandbox_id: sandbox.to_owned(), pod, ..NetworkRequest::default() };
        let attached: Result<Vec<IpAddr>, _> = self.0.attach(netns, &request).await;
        attached.map(drop).map_err(|error| error.to_string())
    }

    async fn detach(&self, sandbox: &str) -> Result<(), String> {
        self.0.detach(sandbox).await.map_err(|error| error.to_string())
    }
}

/// Where the builder keeps contexts, caches and steps under way.
pub fn folder(place: &Place) -> PathBuf {
    place.data_dir.join("builds")
}

/// How steps are run; what an earlier daemon left of them is cleared.
pub async fn sandboxes(
    place: &Place,
    network: Arc<dyn PodNetwork>,
    settings: &BuildSettings,
) -> Result<Arc<Sandboxes>> {
    let Resolved { step, together, .. } = settings.resolve()?;
    let server = place.networks.dns_service_ip();
    let sandboxes = Sandboxes {
        root: folder(place).join("sandboxes"),
        run_dir: place.run_dir.join("builds"),
        cgroup: format!("{}/builds", place.cgroup()),
        program: Program::own().context("prepare the shims' program")?,
        network: Arc::new(AsPods(network)),
        resolv_conf: format!("search {}\nnameserver {server}\n", place::CLUSTER_DOMAIN),
        limits: step,
        together,
    };
    sandboxes.open().await.context("clear steps of builds")
}

/// The builder beside the node's images.
pub async fn open(place: &Place, images: &Images, network: Arc<dyn PodNetwork>) -> Result<Builder> {
    let settings = &images.settings.builds;
    let Resolved { parallel, keep_bytes, .. } = settings.resolve()?;
    let config = dhow_builder::Config {
        store: images.store.clone(),
        registries: Arc::clone(&images.registries),
        root: folder(place),
        sandboxes: sandboxes(place, network, settings).await?,
        keep_bytes,
        parallel,
    };
    Builder::open(config).context("open the builder")
}
