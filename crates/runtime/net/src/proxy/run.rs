//! The proxy's loop: wakes when a Service or EndpointSlice changes and converges.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Change, Client, Informer, Key, ListParams};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Proxy;
use super::plan::service_of;
use crate::{Net, Result};

/// Changes that arrive this close together become one transaction.
const SETTLE: Duration = Duration::from_millis(10);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Index of EndpointSlices by the service they belong to.
const BY_SERVICE: &str = "service";

/// Services to look at again.
#[derive(Default)]
struct Pending {
    keys: Mutex<BTreeSet<Key>>,
    changed: Notify,
}

impl Pending {
    fn add(&self, keys: impl IntoIterator<Item = Key>) {
        self.keys.lock().extend(keys);
        self.changed.notify_one();
    }
}

/// Keeps the node's tables as the cluster's services ask, until shut down. What the kernel holds stays
/// there: services work on while we are gone.
pub async fn run(client: Client, net: Arc<Net>, node_name: &str, shutdown: CancellationToken) -> Result<()> {
    let services = Informer::<Service>::start(client.clone(), ListParams::default(), None, shutdown.clone());
    let slices = Informer::<EndpointSlice>::start(client.clone(), ListParams::default(), None, shutdown.clone());
    let myself = ListParams { field_selector: Some(format!("metadata.name={node_name}")), ..ListParams::default() };
    let nodes = Informer::<Node>::start(client, myself, None, shutdown.clone());
    slices.add_index(BY_SERVICE, |slice| service_of(slice).map(|key| key.to_string()).into_iter().collect());
    let mut proxy = Proxy::open(net, node_name);
    // An incomplete view would remove services that are only not listed yet.
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = async { services.synced().await; slices.synced().await } => {}
    }
    let pending = Arc::new(Pending::default());
    let wake = Arc::clone(&pending);
    services.on_change(move |change| wake.add([Key::of(&change.object().metadata)]));
    let wake = Arc::clone(&pending);
    slices.on_change(move |change| {
        let old = match change {
            Change::Updated { old, .. } => service_of(old),
            _ => None,
        };
        wake.add(old.into_iter().chain(service_of(change.object())));
    });
    let wake = Arc::clone(&pending);
    nodes.on_change(move |_| wake.add([]));
    let mut retry = FIRST_RETRY;
    loop {
        let node = nodes.get(&Key::new(None, node_name));
        if proxy.set_zone(node.as_ref().and_then(|node| node.metadata.labels.as_ref()?.get(ZONE_LABEL).cloned())) {
            pending.keys.lock().extend(services.list().iter().map(|service| Key::of(&service.metadata)));
        }
        let keys = std::mem::take(&mut *pending.keys.lock());
        let now = |key: &Key| {
            let service = services.get(key)?;
            Some((service, slices.by_index(BY_SERVICE, &key.to_string())))
        };
        let changed: BTreeMap<Key, _> = keys.into_iter().map(|key| (key.clone(), now(&key))).collect();
        match proxy.update(changed).await {
            Ok(operations) => {
                retry = FIRST_RETRY;
                tracing::debug!(operations, "service tables are as asked");
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
            () = pending.changed.notified() => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(SETTLE) => {}
        }
    }
}
