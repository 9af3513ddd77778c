//! The loop: wakes when a Node changes, or the host's own way to one may have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::Informer;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Node;
use nlink::netlink::{NetworkEvent, RtnetlinkGroup};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Peer, plan};
use crate::error::KernelContext;
use crate::kernel::VETH_PREFIX;
use crate::{Cidr, Family, Net, Result};

const RETRY: Duration = Duration::from_secs(10);
/// Changes that arrive this close together are one.
const SETTLE: Duration = Duration::from_millis(20);

/// Keeps the ways to other nodes' pods as the cluster's Nodes, all of them, and the host's routes say, until shut down. What
/// the kernel holds stays there.
pub async fn run(nodes: Informer<Node>, net: Arc<Net>, node_name: &str, shutdown: CancellationToken) -> Result<()> {
    let (changed, moved) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let wake = changed.clone();
    nodes.on_change(move |_| wake.notify_one());
    let watching = watch_host(Arc::clone(&net), moved.clone(), shutdown.clone());
    let watching = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(watching));
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = nodes.synced() => {}
    }
    // Nodes report their health every few seconds; only what changes a way matters here.
    let mut done: Option<Vec<Peer>> = None;
    let clusters: Vec<Cidr> = net.config().networks().map(|networks| networks.cluster).collect();
    loop {
        let list = nodes.list();
        let peers = plan::peers(list.iter().map(AsRef::as_ref), node_name, &clusters);
        if done.as_ref() != Some(&peers) {
            match converge(&net, &peers).await {
                Ok(0) => done = Some(peers),
                Ok(_) => done = None,
                Err(error) => {
                    tracing::warn!(%error, "cannot change the ways to other nodes' pods; trying again");
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
            () = shutdown.cancelled() => break,
            () = changed.notified() => {}
            () = moved.notified() => {
                tokio::time::sleep(SETTLE).await;
                done = None;
            }
            () = retry => {}
        }
    }
    drop(watching);
    Ok(())
}

/// Looks up how each peer is reached now; returns how many ways could not be set.
async fn converge(net: &Net, peers: &[Peer]) -> Result<usize> {
    let mut on_link = BTreeMap::new();
    for address in peers.iter().flat_map(|peer| &peer.addresses) {
        on_link.insert(*address, net.on_link(*address).await);
    }
    let families: Vec<Family> = net.config().node_ips.iter().map(|address| Family::of(*address)).collect();
    let here = plan::Here { mode: net.mode(), outer: net.outer(), families: &families };
    let ways = plan::ways(peers, here, |address| on_link.get(&address).copied().flatten());
    let failed = net.set_peers(&ways).await?;
    tracing::debug!(ways = ways.len(), failed, "ways to other nodes' pods are as asked");
    Ok(failed)
}

/// Tells `moved` of every change of the host's links, addresses and routes that is not our own doing.
async fn watch_host(net: Arc<Net>, moved: Arc<Notify>, shutdown: CancellationToken) {
    loop {
        if let Err(error) = follow(&net, &moved).await {
            tracing::warn!(%error, "lost track of the host's routes; looking again");
        }
        // Whatever happened meanwhile is looked at.
        moved.notify_one();
        tokio::select! { () = tokio::time::sleep(RETRY) => {}, () = shutdown.cancelled() => return }
    }
}

async fn follow(net: &Net, moved: &Notify) -> Result<()> {
    let watching = || "watch the host's routes".to_owned();
    let connection = net.kernel.another_route_connection()?;
    connection
        .subscribe(&[
            RtnetlinkGroup::Link,
            RtnetlinkGroup::Ipv4Addr,
            RtnetlinkGroup::Ipv4Route,
            RtnetlinkGroup::Ipv6Addr,
            RtnetlinkGroup::Ipv6Route,
        ])
        .doing(watching)?;
    let (bridge, tunnel) = (net.config().bridge.clone(), net.config().tunnel());
    let own_link =
        |name: Option<&str>| name.is_some_and(|name| name.starts_with(VETH_PREFIX) || name == bridge || name == tunnel);
    let clusters: Vec<Cidr> = net.config().networks().map(|networks| networks.cluster).collect();
    let in_cluster = |to: &IpAddr| clusters.iter().any(|cluster| cluster.contains(*to));
    let mut events = connection.into_events().await;
    // One whose lifetime alone changes is told of again and again.
    let mut addresses: BTreeSet<(u32, IpAddr)> = BTreeSet::new();
    while let Some(event) = events.try_next().await.doing(watching)? {
        let ours = match &event {
            NetworkEvent::NewLink(link) => own_link(link.name()),
            // Whoever takes our tunnel away is undone.
            NetworkEvent::DelLink(link) => link.name().is_some_and(|name| name.starts_with(VETH_PREFIX)),
            NetworkEvent::NewRoute(route) => route.destination().is_some_and(|to| in_cluster(to) || of_a_link(to)),
            NetworkEvent::DelRoute(route) => route.destination().is_some_and(of_a_link),
            NetworkEvent::NewAddress(held) => held
                .primary_address()
                .is_some_and(|address| of_a_link(address) || !addresses.insert((held.ifindex(), *address))),
            NetworkEvent::DelAddress(held) => held.primary_address().is_some_and(|address| {
                addresses.remove(&(held.ifindex(), *address));
                of_a_link(address)
            }),
            _ => true,
        };
        if !ours {
            moved.notify_one();
        }
    }
    Ok(())
}

/// Addresses that each link has for itself, a pod's too: no node is reached by them.
fn of_a_link(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(six) if six.is_unicast_link_local() || six.is_multicast())
}
