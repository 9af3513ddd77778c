//! The proxy's loop: wakes when a Service or EndpointSlice changes and converges.

use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, Informer, ListParams};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Proxy;
use crate::{Net, Result};

/// Changes that arrive this close together become one transaction.
const SETTLE: Duration = Duration::from_millis(10);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Keeps the node's tables as the cluster's services ask, until shut down. What the kernel holds stays
/// there: services work on while we are gone.
pub async fn run(client: Client, net: Arc<Net>, node_name: &str, shutdown: CancellationToken) -> Result<()> {
    let services = Informer::<Service>::start(client.clone(), ListParams::default(), None, shutdown.clone());
    let slices = Informer::<EndpointSlice>::start(client, ListParams::default(), None, shutdown.clone());
    let changed = Arc::new(Notify::new());
    let wake = changed.clone();
    services.on_change(move |_| wake.notify_one());
    let wake = changed.clone();
    slices.on_change(move |_| wake.notify_one());
    let mut proxy = Proxy::open(net, node_name).await?;
    // An incomplete view would remove services that are only not listed yet.
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = async { services.synced().await; slices.synced().await } => {}
    }
    let mut retry = FIRST_RETRY;
    loop {
        match proxy.sync(&services.list(), &slices.list()).await {
            Ok(0) => retry = FIRST_RETRY,
            Ok(operations) => {
                retry = FIRST_RETRY;
                tracing::debug!(operations, "service tables changed");
            }
            Err(error) => {
                tracing::warn!(%error, "cannot change the service tables; trying again");
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    () = tokio::time::sleep(retry) => {}
                }
                retry = (retry * 2).min(LAST_RETRY);
                continue;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = changed.notified() => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(SETTLE) => {}
        }
    }
}
