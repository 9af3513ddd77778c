//! The loop: wakes when a Node changes, or the host's own way to one may have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, Informer, ListParams};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Node;
use nlink::netlink::{NetworkEvent, RtnetlinkGroup};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Peer, plan};
use crate::error::KernelContext;
use crate::kernel::VETH_PREFIX;
use crate::{Net, Result};

const RETRY: Duration = Duration::from_secs(10);
/// Changes that arrive this close together are one.
const SETTLE: Duration = Duration::from_millis(20);

/// Keeps the ways to other nodes' pods as the cluster's Nodes and the host's routes say, until shut down. What the kernel
/// holds stays there.
pub async fn run(client: Client, net: Arc<Net>, node_name: &str, shutdown: CancellationToken) -> Result<()> {
    let nodes = Informer::<Node>::start(client, ListParams::default(), None, shutdown.clone());
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
    loop {
        let list = nodes.list();
        let peers = plan::peers(list.iter().map(AsRef::as_ref), node_name, net.v4().cluster);
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
    for peer in peers {
        on_link.insert(peer.address, net.on_link(peer.address).await);
    }
    let ways = plan::ways(peers, net.mode(), |address| on_link.get(&address).copied().flatten());
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
        .subscribe(&[RtnetlinkGroup::Link, RtnetlinkGroup::Ipv4Addr, RtnetlinkGroup::Ipv4Route])
        .doing(watching)?;
    let (bridge, tunnel) = (net.config().bridge.clone(), net.config().tunnel());
    let own_link =
        |name: Option<&str>| name.is_some_and(|name| name.starts_with(VETH_PREFIX) || name == bridge || name == tunnel);
    let cluster = net.v4().cluster;
    let mut events = connection.into_events().await;
    while let Some(event) = events.try_next().await.doing(watching)? {
        let ours = match &event {
            NetworkEvent::NewLink(link) => own_link(link.name()),
            // Whoever takes our tunnel away is undone.
            NetworkEvent::DelLink(link) => link.name().is_some_and(|name| name.starts_with(VETH_PREFIX)),
            NetworkEvent::NewRoute(route) => {
                matches!(route.destination(), Some(std::net::IpAddr::V4(to)) if cluster.contains(*to))
            }
            NetworkEvent::DelRoute(_) | NetworkEvent::NewAddress(_) | NetworkEvent::DelAddress(_) => false,
            _ => true,
        };
        if !ours {
            moved.notify_one();
        }
    }
    Ok(())
}
