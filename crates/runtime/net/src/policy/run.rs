//! The policies' loop: wakes when a policy, pod or namespace changes and converges.

use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, ListParams};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::follow::{Custom, OnDemand, Watcher};
use super::{AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy, Objects, Policies};
use crate::Net;

/// Changes that arrive this close together become one transaction.
const SETTLE: Duration = Duration::from_millis(5);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Keeps the node's rules as the cluster's network policies ask, until shut down. What the kernel holds stays
/// there: policies hold on while we are gone.
///
/// From the call on, not from the first poll, new pods wait until what the policies say of them is in force.
pub fn run(
    client: Client,
    net: Arc<Net>,
    node_name: &str,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    net.gate.close();
    let node_name = node_name.to_owned();
    async move {
        let gate = Arc::clone(&net);
        let working = keep(&client, net, &node_name, &shutdown);
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = working => {}
        }
        gate.gate.open();
    }
}

async fn keep(client: &Client, net: Arc<Net>, node_name: &str, shutdown: &CancellationToken) {
    let changed = Arc::new(Notify::new());
    let watcher = Watcher { client: client.clone(), changed: Arc::clone(&changed), shutdown: shutdown.clone() };
    let policies = watcher.start::<NetworkPolicy>(ListParams::default(), shutdown.clone());
    let mut admin = Custom::<AdminNetworkPolicy>::follow(&watcher);
    let mut baseline = Custom::<BaselineAdminNetworkPolicy>::follow(&watcher);
    let mut cluster = Custom::<ClusterNetworkPolicy>::follow(&watcher);
    // Who the policies speak of. Watched only while there is a policy: most clusters have none.
    let mut pods = OnDemand::<Pod>::new(&watcher);
    let mut namespaces = OnDemand::<Namespace>::new(&watcher);
    let mut nodes = OnDemand::<Node>::new(&watcher);
    // An incomplete view would open what is only not listed yet.
    policies.synced().await;
    let mut enforced = Policies::open(Arc::clone(&net), node_name);
    let mut starting = net.gate.watch();
    let mut retry = FIRST_RETRY;
    loop {
        let mut objects = Objects {
            admin: admin.list().await,
            baseline: baseline.list().await,
            cluster: cluster.list().await,
            policies: policies.list(),
            ..Objects::default()
        };
        let any = !objects.no_policies();
        objects.pods = pods.list(any).await;
        objects.namespaces = namespaces.list(any).await;
        objects.nodes = nodes.list(objects.speak_of_nodes()).await;
        match enforced.sync(&objects).await {
            Ok(operations) => {
                retry = FIRST_RETRY;
                tracing::debug!(operations, "network policies are enforced");
            }
            Err(error) => {
                tracing::warn!(%error, "cannot enforce the network policies; trying again");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(LAST_RETRY);
                continue;
            }
        }
        // Without a policy, a new pod has nothing to wait for.
        match any {
            true => net.gate.close(),
            false => net.gate.open(),
        }
        tokio::select! {
            () = changed.notified() => tokio::time::sleep(SETTLE).await,
            // A pod waits for it.
            Ok(()) = starting.changed() => {}
        }
    }
}
