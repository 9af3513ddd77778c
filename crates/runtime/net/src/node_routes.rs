//! Routes to the pods of other nodes, directly through those nodes.
//!
//! Every route with a gateway and a destination inside the cluster's pod network is ours; that is how they
//! are found again after a restart, and by purge. Nodes must share a link: there is no tunnel yet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, Informer, ListParams};
use k8s_openapi::api::core::v1::Node;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{Cidr, Net, Result};

const RETRY: Duration = Duration::from_secs(10);

impl Net {
    /// Makes the routes to other nodes' pods exactly these: pod network to node address. One that cannot be
    /// set (its node is not on our link) is reported and left out; returns how many were.
    pub async fn set_node_routes(&self, wanted: &BTreeMap<Cidr, IpAddr>) -> Result<usize> {
        let mut held = BTreeMap::new();
        for networks in self.config.networks() {
            held.extend(self.kernel.gateway_routes_inside(networks.cluster).await?);
        }
        for (cidr, gateway) in held.iter().filter(|(cidr, _)| !wanted.contains_key(cidr)) {
            self.kernel.remove_gateway_route(*cidr, *gateway).await?;
        }
        let mut failed = 0;
        for (cidr, gateway) in wanted.iter().filter(|(cidr, gateway)| held.get(cidr) != Some(gateway)) {
            if let Err(error) = self.kernel.ensure_gateway_route(*cidr, *gateway).await {
                tracing::warn!(%error, "cannot route to another node's pods");
                failed += 1;
            }
        }
        Ok(failed)
    }
}

/// The routes these nodes ask for on the node called `here`.
fn routes<'a>(nodes: impl Iterator<Item = &'a Node>, here: &str, clusters: &[Cidr]) -> BTreeMap<Cidr, IpAddr> {
    let others = nodes.filter(|node| node.metadata.name.as_deref() != Some(here));
    let mut routes = BTreeMap::new();
    for node in others {
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let internal = addresses.filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse::<IpAddr>().ok());
        let internal: Vec<IpAddr> = internal.collect();
        let Some(spec) = &node.spec else { continue };
        let cidrs = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr).filter_map(|c| c.parse::<Cidr>().ok());
        let ours = |c: &Cidr| clusters.iter().any(|all| all.contains(c.network()) && c.prefix() > all.prefix());
        for cidr in cidrs.filter(ours) {
            let gateway = internal.iter().find(|gateway| gateway.is_ipv6() == cidr.is_ipv6());
            routes.extend(gateway.map(|gateway| (cidr, *gateway)));
        }
    }
    routes
}

/// Keeps the routes as the cluster's Nodes say, until shut down.
pub async fn run(client: Client, net: Arc<Net>, node_name: &str, shutdown: CancellationToken) -> Result<()> {
    let nodes = Informer::<Node>::start(client, ListParams::default(), None, shutdown.clone());
    let changed = Arc::new(Notify::new());
    let wake = changed.clone();
    nodes.on_change(move |_| wake.notify_one());
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = nodes.synced() => {}
    }
    // Nodes report their health every few seconds; only what changes a route matters here.
    let mut done = None;
    loop {
        let list = nodes.list();
        let clusters: Vec<Cidr> = net.config().networks().map(|networks| networks.cluster).collect();
        let wanted = routes(list.iter().map(AsRef::as_ref), node_name, &clusters);
        if done.as_ref() != Some(&wanted) {
            match net.set_node_routes(&wanted).await {
                Ok(0) => done = Some(wanted),
                Ok(_) => done = None,
                Err(error) => {
                    tracing::warn!(%error, "cannot change the routes to other nodes");
                    done = None;
                }
            }
        }
        let retry = async {
            match done {
                Some(_) => std::future::pending().await,
                None => tokio::time::sleep(RETRY).await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = changed.notified() => {}
            () = retry => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn other_nodes_only_and_inside_the_cluster_only() {
        let node = |name: &str, ip: &str, cidr: &str| -> Node {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": name}, "spec": {"podCIDR": cidr},
                "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip}]},
            }))
            .unwrap()
        };
        let nodes = [
            node("here", "192.0.2.1", "10.42.0.0/24"),
            node("there", "192.0.2.2", "10.42.1.0/24"),
            node("liar", "192.0.2.3", "10.0.0.0/8"),
            node("six", "2001:db8::1", "10.42.2.0/24"),
        ];
        let routes = routes(nodes.iter(), "here", &["10.42.0.0/16".parse().unwrap()]);
        let expected = BTreeMap::from([("10.42.1.0/24".parse().unwrap(), "192.0.2.2".parse().unwrap())]);
        assert_eq!(routes, expected);
    }
}
