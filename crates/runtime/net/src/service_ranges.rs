//! The host's way to Services of ranges beyond the first: a route into the bridge for each ServiceCIDR, also on a machine
//! without a default route. Where packets go from there the service tables say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, Informer, ListParams};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use nlink::netlink::types::route::RouteProtocol;
use nlink::{Ipv4Route, Ipv6Route};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::error::KernelContext;
use crate::kernel::{Kernel, MAIN_TABLE};
use crate::{Cidr, Family, Net, Result};

const RETRY: Duration = Duration::from_secs(10);

/// Keeps the routes as the cluster's ServiceCIDRs say, until shut down. What the kernel holds stays there.
pub async fn run(client: Client, net: Arc<Net>, shutdown: CancellationToken) -> Result<()> {
    let ranges = Informer::<ServiceCIDR>::start(client, ListParams::default(), None, shutdown.clone());
    let changed = Arc::new(Notify::new());
    let wake = changed.clone();
    ranges.on_change(move |_| wake.notify_one());
    // An incomplete view would cut off ranges that are only not listed yet.
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = ranges.synced() => {}
    }
    loop {
        let list = ranges.list();
        let all = list.iter().filter_map(|range| range.spec.as_ref()?.cidrs.as_ref()).flatten();
        let wanted: BTreeSet<Cidr> = all.filter_map(|text| text.parse().ok()).collect();
        let done = net.set_service_ranges(&wanted).await;
        if let Err(error) = &done {
            tracing::warn!(%error, "cannot change the ways to services; trying again");
        }
        let retry = async {
            match done {
                Ok(()) => std::future::pending().await,
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = changed.notified() => {}
            () = retry => {}
        }
    }
}

impl Net {
    /// Routes these ranges into the bridge, of the families that the node has, beside those that it was opened with; removes
    /// such routes to all others.
    pub async fn set_service_ranges(&self, wanted: &BTreeSet<Cidr>) -> Result<()> {
        let gateways: BTreeMap<Family, IpAddr> = self.config.networks().map(|n| (n.family(), n.gateway())).collect();
        let own: BTreeSet<Cidr> = self.config.networks().map(|networks| networks.services).collect();
        let held = self.kernel.ranges_of(self.bridge_index).await?;
        for stale in held.iter().filter(|range| !own.contains(range) && !wanted.contains(range)) {
            self.kernel.remove_link_route(*stale, self.bridge_index).await?;
        }
        for range in wanted.iter().filter(|range| !own.contains(range) && !held.contains(range)) {
            if let Some(gateway) = gateways.get(&range.family()) {
                self.kernel.ensure_link_route(*range, self.bridge_index, *gateway).await?;
            }
        }
        Ok(())
    }
}

impl Kernel {
    /// Where routes of ours lead into the link. Those of its addresses are the kernel's own.
    async fn ranges_of(&self, link: u32) -> Result<BTreeSet<Cidr>> {
        let routes = self.route.get_routes_for_table(MAIN_TABLE).await.doing(|| "list routes".to_owned())?;
        let ours = routes.iter().filter(|route| {
            route.oif() == Some(link) && route.gateway().is_none() && route.protocol() != RouteProtocol::Kernel
        });
        Ok(ours.filter_map(|route| Cidr::new(*route.destination()?, route.dst_len())).collect())
    }

    async fn remove_link_route(&self, range: Cidr, link: u32) -> Result<()> {
        let removed = match range.network() {
            IpAddr::V4(to) => self.route.del_route_if_exists(Ipv4Route::new(to, range.prefix()).dev_index(link)).await,
            IpAddr::V6(to) => self.route.del_route_if_exists(Ipv6Route::new(to, range.prefix()).dev_index(link)).await,
        };
        removed.map(drop).doing(|| format!("remove route to {range}"))
    }
}
