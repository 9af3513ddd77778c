//! Load balancer addresses: one node answers for each of them in the local network, by ARP or neighbour discovery.
//!
//! An address that is ours is on the link of its network, so the kernel answers for it; a rule of our table keeps all that
//! is no service of it away from the node's own sockets. A cluster of several nodes has a Lease for each address, and its
//! holder answers. A node alone needs none. What is held by a Lease is on the link for no longer than the Lease lasts
//! unless it is renewed, and the kernel keeps that time: a node whose daemon dies stops answering before another begins.

mod frames;
mod link;
mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::leader::{self, LeaseSpec, LeaseTiming};
use dhow_client::{Client, Informer, Key, ListParams};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::proxy::service_of;
use crate::{Net, Result};

const NAMESPACE: &str = "kube-system";
const BY_SERVICE: &str = "service";
/// Changes that arrive this close together are looked at once.
const SETTLE: Duration = Duration::from_millis(20);
/// A switch that was just learning may miss the first announcement.
const AGAIN: Duration = Duration::from_secs(1);
const TIMING: LeaseTiming = LeaseTiming {
    duration: Duration::from_secs(10),
    renew_deadline: Duration::from_secs(6),
    retry: Duration::from_secs(3),
};

/// Of an address that is held by a lease, how often it is given to the link anew.
const RENEW: Duration = Duration::from_secs(2);

enum Event {
    Take(IpAddr),
    Drop(IpAddr),
}

/// Says that the address is not ours any more, however its holder ends.
struct Holding {
    address: IpAddr,
    events: mpsc::UnboundedSender<Event>,
}

impl Holding {
    fn new(address: IpAddr, events: mpsc::UnboundedSender<Event>) -> Self {
        // The loop that listens lives longer than all holders.
        let _ = events.send(Event::Take(address));
        Self { address, events }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let _ = self.events.send(Event::Drop(self.address));
    }
}

/// Answers for the addresses that are this node's, until shut down. A node that is alone keeps them then: services work
/// on while we are gone.
pub async fn run(client: Client, net: Arc<Net>, node_name: &str, shutdown: CancellationToken) -> Result<()> {
    let services = Informer::<Service>::start(client.clone(), ListParams::default(), None, shutdown.clone());
    let slices = Informer::<EndpointSlice>::start(client.clone(), ListParams::default(), None, shutdown.clone());
    let nodes = Informer::<Node>::start(client.clone(), ListParams::default(), None, shutdown.clone());
    slices.add_index(BY_SERVICE, |slice| service_of(slice).map(|key| key.to_string()).into_iter().collect());
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = async { services.synced().await; slices.synced().await; nodes.synced().await } => {}
    }
    let changed = Arc::new(Notify::new());
    let wake = Arc::clone(&changed);
    services.on_change(move |_| wake.notify_one());
    let wake = Arc::clone(&changed);
    slices.on_change(move |_| wake.notify_one());
    let wake = Arc::clone(&changed);
    nodes.on_change(move |_| wake.notify_one());

    let (events, mut received) = mpsc::unbounded_channel();
    let mut announcer = Announcer { client, net, node: node_name.to_owned(), events, tasks: BTreeMap::new() };
    let mut alone = true;
    let candidates = |alone: &mut bool| {
        let nodes = nodes.list();
        *alone = nodes.len() <= 1;
        let of = |key: &Key| slices.by_index(BY_SERVICE, &key.to_string());
        plan::candidates(&services.list(), of, &nodes, node_name)
    };
    // What an earlier run answered for and this one does not.
    let wanted = candidates(&mut alone);
    for address in announcer.net.balancer_addresses().await? {
        if !wanted.contains(&address) || !announcer.is_ours(address, alone).await {
            announcer.give_up(address).await;
        }
    }
    // Of one that ends and its successor, the words may come in either order.
    let mut holders: BTreeMap<IpAddr, i32> = BTreeMap::new();
    let mut repeat: BTreeSet<IpAddr> = BTreeSet::new();
    let mut renew = tokio::time::interval(RENEW);
    renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wanted = candidates(&mut alone);
        announcer.follow(&wanted, alone, &shutdown);
        let life = (!alone).then_some(TIMING.duration);
        let held: BTreeSet<IpAddr> = holders.iter().filter(|(_, count)| **count > 0).map(|(ip, _)| *ip).collect();
        let again = async {
            match repeat.is_empty() {
                true => std::future::pending().await,
                false => tokio::time::sleep(AGAIN).await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = changed.notified() => tokio::time::sleep(SETTLE).await,
            Some(event) = received.recv() => match event {
                Event::Take(address) => {
                    *holders.entry(address).or_default() += 1;
                    announcer.take(address, life).await;
                    repeat.insert(address);
                }
                Event::Drop(address) => {
                    let left = holders.entry(address).or_default();
                    *left -= 1;
                    if *left <= 0 {
                        repeat.remove(&address);
                        announcer.give_up(address).await;
                    }
                }
            },
            _ = renew.tick(), if !alone && !held.is_empty() => {
                if let Err(error) = announcer.net.renew_balancer_addresses(&held, TIMING.duration).await {
                    tracing::warn!(%error, "cannot go on answering for load balancers");
                }
            }
            () = again => {
                for address in std::mem::take(&mut repeat) {
                    if let Err(error) = announcer.net.repeat_announcement(address).await {
                        tracing::warn!(%error, %address, "cannot announce a load balancer's address");
                    }
                }
            }
        }
    }
    if !alone {
        for address in announcer.net.balancer_addresses().await? {
            announcer.give_up(address).await;
        }
    }
    Ok(())
}

struct Announcer {
    client: Client,
    net: Arc<Net>,
    node: String,
    events: mpsc::UnboundedSender<Event>,
    /// Who holds, or wants, each address; alone or by lease.
    tasks: BTreeMap<IpAddr, (bool, CancellationToken)>,
}

impl Announcer {
    /// Starts and ends holders as the candidates come and go.
    fn follow(&mut self, wanted: &BTreeSet<IpAddr>, alone: bool, shutdown: &CancellationToken) {
        self.tasks.retain(|address, (by_itself, stop)| {
            let stays = wanted.contains(address) && *by_itself == alone;
            if !stays {
                stop.cancel();
            }
            stays
        });
        for address in wanted {
            if self.tasks.contains_key(address) {
                continue;
            }
            let stop = shutdown.child_token();
            self.tasks.insert(*address, (alone, stop.clone()));
            let (address, events) = (*address, self.events.clone());
            if alone {
                tokio::spawn(async move {
                    let _holding = Holding::new(address, events);
                    stop.cancelled().await;
                });
                continue;
            }
            let spec = LeaseSpec {
                namespace: NAMESPACE.to_owned(),
                name: lease_name(address),
                identity: self.node.clone(),
                timing: TIMING,
            };
            let holding = move |stop: CancellationToken| {
                let events = events.clone();
                async move {
                    let _holding = Holding::new(address, events);
                    stop.cancelled().await;
                }
            };
            tokio::spawn(leader::lead(self.client.clone(), spec, stop, holding));
        }
    }

    /// Whether an address that the kernel has may stay until its lease is renewed.
    async fn is_ours(&self, address: IpAddr, alone: bool) -> bool {
        if alone {
            return true;
        }
        let lease = self.client.get::<Lease>(Some(NAMESPACE), &lease_name(address)).await.ok();
        let holder = lease.and_then(|lease| lease.spec?.holder_identity);
        holder.as_deref() == Some(&self.node)
    }

    async fn take(&self, address: IpAddr, life: Option<Duration>) {
        match self.net.take_balancer_address(address, life).await {
            Ok(()) => tracing::info!(%address, "answering for a load balancer"),
            Err(error) => tracing::warn!(%error, %address, "cannot answer for a load balancer"),
        }
    }

    async fn give_up(&self, address: IpAddr) {
        if let Err(error) = self.net.drop_balancer_address(address).await {
            tracing::warn!(%error, %address, "cannot stop answering for a load balancer");
        }
    }
}

fn lease_name(address: IpAddr) -> String {
    // Object names have no colons, and begin and end with a letter or digit; addresses may end in colons.
    let text = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("{:032x}", address.to_bits()),
    };
    format!("dhow-balancer-{text}")
}
