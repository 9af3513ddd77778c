//! The builder of a node with the embedded runtime: where it works, and how its steps reach the network.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use dhow_builder::{Builder, Network, Sandboxes};
use dhow_cri::runtime::PodIdentity;
use dhow_cri::{NetworkRequest, PodNetwork};
use dhow_oci::client::Program;
use dhow_oci::spec::Limits;

use crate::builtins::Images;
use crate::place::{self, Place};

/// Whom network policies see: no namespace of anybody's.
const NAMESPACE: &str = "dhow-build";
/// Kept steps of builds; the oldest go first.
const KEEP_BYTES: u64 = 20 << 30;
/// Processes of one step: more are a mistake.
const PIDS: i64 = 32_768;

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
pub async fn sandboxes(place: &Place, network: Arc<dyn PodNetwork>) -> Result<Arc<Sandboxes>> {
    let server = place.networks.dns_service_ip();
    let sandboxes = Sandboxes {
        root: folder(place).join("sandboxes"),
        run_dir: place.run_dir.join("builds"),
        cgroup: format!("{}/builds", place.cgroup()),
        program: Program::own().context("prepare the shims' program")?,
        network: Arc::new(AsPods(network)),
        resolv_conf: format!("search {}\nnameserver {server}\n", place::CLUSTER_DOMAIN),
        limits: Limits { pids: Some(PIDS), ..Limits::default() },
    };
    sandboxes.open().await.context("clear steps of builds")
}

/// The builder beside the node's images.
pub async fn open(place: &Place, images: &Images, network: Arc<dyn PodNetwork>) -> Result<Builder> {
    let config = dhow_builder::Config {
        store: images.store.clone(),
        registries: Arc::clone(&images.registries),
        root: folder(place),
        sandboxes: sandboxes(place, network).await?,
        keep_bytes: KEEP_BYTES,
        parallel: std::thread::available_parallelism().map_or(2, usize::from).max(2),
    };
    Builder::open(config).context("open the builder")
}
