//! The policies' loop: wakes when a policy, pod or namespace changes and converges.

use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, Informer, ListParams};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Policies;
use crate::Net;

/// Changes that arrive this close together become one transaction.
const SETTLE: Duration = Duration::from_millis(5);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Who the policies speak of. Watched only while there is a policy: most clusters have none.
struct Peers {
    pods: Informer<Pod>,
    namespaces: Informer<Namespace>,
    /// Ends the watches when dropped.
    _watching: tokio_util::sync::DropGuard,
}

impl Peers {
    async fn watch(client: &Client, changed: &Arc<Notify>, shutdown: &CancellationToken) -> Self {
        let watching = shutdown.child_token();
        let pods = Informer::<Pod>::start(client.clone(), ListParams::default(), None, watching.clone());
        let namespaces = Informer::<Namespace>::start(client.clone(), ListParams::default(), None, watching.clone());
        pods.synced().await;
        namespaces.synced().await;
        let wake = Arc::clone(changed);
        pods.on_change(move |_| wake.notify_one());
        let wake = Arc::clone(changed);
        namespaces.on_change(move |_| wake.notify_one());
        Self { pods, namespaces, _watching: watching.drop_guard() }
    }
}

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
    let policies = Informer::<NetworkPolicy>::start(client.clone(), ListParams::default(), None, shutdown.clone());
    let changed = Arc::new(Notify::new());
    let wake = Arc::clone(&changed);
    policies.on_change(move |_| wake.notify_one());
    // An incomplete view would open what is only not listed yet.
    policies.synced().await;
    let mut enforced = Policies::open(Arc::clone(&net), node_name);
    let mut starting = net.gate.watch();
    let mut peers: Option<Peers> = None;
    let mut retry = FIRST_RETRY;
    loop {
        let listed = policies.list();
        let (pods, namespaces) = if listed.is_empty() {
            peers = None;
            (Vec::new(), Vec::new())
        } else {
            let peers = match peers.take() {
                Some(watched) => peers.insert(watched),
                None => peers.insert(Peers::watch(client, &changed, shutdown).await),
            };
            (peers.pods.list(), peers.namespaces.list())
        };
        match enforced.sync(&pods, &namespaces, &listed).await {
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
        match listed.is_empty() {
            true => net.gate.open(),
            false => net.gate.close(),
        }
        tokio::select! {
            () = changed.notified() => tokio::time::sleep(SETTLE).await,
            // A pod waits for it.
            Ok(()) = starting.changed() => {}
        }
    }
}
