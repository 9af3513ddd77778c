//! `dhow cri`: the embedded runtime alone, behind CRI v1, for crictl and other kubelets.

use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use dhow_cri::embedded::{EmbeddedConfig, EmbeddedRuntime};
use dhow_cri::server::CriServer;
use dhow_image::{ImageStore, PullOptions, Registries};
use dhow_net::{Cidr, Net, NetConfig};
use dhow_oci::client::Program;

use crate::cli::CriArgs;
use crate::settings::Settings;
use crate::{daemon, preflight};

/// Its own bridge, table and control group: a cloud may run beside it.
const NAME: &str = "dhow-cri";

pub async fn run(args: CriArgs) -> Result<()> {
    preflight::root("dhow cri")?;
    daemon::init_logging(args.log_format)?;
    let settings = args.config.as_deref().map(Settings::load).transpose()?.unwrap_or_default();
    ensure!(
        settings.cni.is_none(),
        "`cni` in the settings is for a cloud's node; `dhow cri` has a pod network of its own"
    );
    let registries = Registries::new(settings.registries.clone())?;
    let (images_dir, net_dir) = (args.data_dir.join("images"), args.data_dir.join("net"));
    let (root, run_dir) = (args.data_dir.join("runtime"), args.run_dir.join("shims"));
    for folder in [&images_dir, &net_dir, &root, &run_dir] {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let _lock = daemon::lock(&args.data_dir)?;
    let pods: Cidr = args.pod_cidr.parse().with_context(|| format!("network {}", args.pod_cidr))?;
    let mut network = NetConfig::new(pods, net_dir);
    network.bridge = NAME.to_owned();
    network.table = NAME.to_owned();
    network.cluster_cidr = pods;
    let network = Net::open(network).await.context("set up the pod network")?;
    let config = EmbeddedConfig {
        root,
        run_dir,
        cgroup_root: NAME.to_owned(),
        program: Program::own().context("prepare the shims' program")?,
        images: ImageStore::open(&images_dir).context("open the image store")?,
        pull: PullOptions { registries, ..PullOptions::default() },
        network,
        tuning: settings.tuning(None)?,
        handlers: settings.runtime_handlers,
    };
    let runtime = EmbeddedRuntime::open(config).await.context("open the container runtime")?;
    let socket = args.socket.unwrap_or_else(|| args.run_dir.join("cri.sock"));
    let server = CriServer::bind(&socket, Arc::clone(&runtime) as _, images_dir).await.context("serve CRI")?;
    tracing::info!(socket = %socket.display(), "ready");
    server.run(daemon::shutdown_signal()?).await;
    // Containers go on; whoever starts this again finds them.
    Ok(())
}
