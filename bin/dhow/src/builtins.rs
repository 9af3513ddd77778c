//! The only place where parts are plugged together.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use dhow_apiserver::{ApiServer, UserInfo};
use dhow_base::pki::{CertSpec, ClusterCa, SaKey};
use dhow_base::tls;
use dhow_client::Client;
use dhow_controllers::ControllersConfig;
use dhow_cri::Runtime;
use dhow_cri::embedded::{EmbeddedConfig, EmbeddedRuntime};
use dhow_dns::DnsConfig;
use dhow_image::ImageStore;
use dhow_net::{Cidr, Net, NetConfig};
use dhow_node::{Node, NodeConfig};
use dhow_scheduler::SchedulerConfig;
use dhow_store::FjallKv;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::place::{self, Place};
use crate::{cluster_dns, kubeconfig};

/// Runs server and node on this machine until `shutdown`; calls `ready` once the node takes pods.
pub async fn run(place: &Place, shutdown: CancellationToken, ready: impl FnOnce()) -> Result<()> {
    let mut parts: JoinSet<Result<()>> = JoinSet::new();
    let server = start_server(place, &shutdown, &mut parts).await?;
    start_node(place, &server, &shutdown, &mut parts).await?;
    ready();
    tracing::info!(api = place.api_url(), node = place.node_name, "ready");
    while let Some(ended) = parts.join_next().await {
        let result = ended.context("a part panicked").and_then(|result| result);
        if !shutdown.is_cancelled() {
            // Without one of its parts the cloud only seems to run.
            shutdown.cancel();
            result.and_then(|()| Err(anyhow::anyhow!("a part ended by itself")))?;
        }
    }
    Ok(())
}
