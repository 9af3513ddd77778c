//! Gives Services of type LoadBalancer their addresses: from configured pools, else those of the nodes.
//!
//! Who answers for a pool's address in the local network is the nodes' business; here it is only given.

mod assign;
mod pool;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use dhow_client::{
    Client, Error, EventRecorder, EventType, Informer, Key, Outcome, Patch, Queue, Reconcile, reference,
};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use serde_json::json;

use assign::{Decision, Supply, assign, held, is_ours};
pub use pool::{LoadBalancerConfig, Pool, PoolConfig};

/// All of them are judged together, because one's address is another's obstacle.
const ALL: &str = "all";

pub struct LoadBalancers {
    client: Client,
    services: Informer<Service>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    pools: Vec<Pool>,
    events: EventRecorder,
    /// What was refused last, so that it is said once.
    refused: Mutex<BTreeMap<Key, String>>,
}

impl LoadBalancers {
    pub fn new(
        client: Client,
        services: Informer<Service>,
        nodes: Informer<Node>,
        slices: Informer<EndpointSlice>,
        pools: Vec<Pool>,
        queue: &Queue,
    ) -> Arc<Self> {
        let wake = || {
            let to = queue.clone();
            move || to.add(Key::new(None, ALL))
        };
        let to = wake();
        services.on_change(move |change| {
            let before = match change {
                dhow_client::Change::Updated { old, .. } => concerns_us(old),
                _ => false,
            };
            if before || concerns_us(change.object()) {
                to();
            }
        });
        // The nodes' addresses matter only where they are what is given.
        if pools.is_empty() {
            let (to, known) = (wake(), services.clone());
            nodes.on_change(move |change| {
                let same = match change {
                    dhow_client::Change::Updated { old, new } => facts(old) == facts(new),
                    _ => false,
                };
                if !same && known.list().iter().any(|service| is_ours(service)) {
                    to();
                }
            });
            let (to, known) = (wake(), services.clone());
            slices.on_change(move |change| {
                let metadata = &change.object().metadata;
                let name = metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
                let service = name.and_then(|name| known.get(&Key::new(metadata.namespace.as_deref(), name)));
                if service.is_some_and(|service| is_ours(&service) && is_local(&service)) {
                    to();
                }
            });
        }
        let events = EventRecorder::new(client.clone(), "load-balancer");
        Arc::new(Self { client, services, nodes, slices, pools, events, refused: Mutex::default() })
    }

    /// What a Service may have of the nodes: where traffic stays on the node that gets it, those with endpoints.
    fn node_addresses(&self, service: &Service) -> Vec<IpAddr> {
        let key = Key::of(&service.metadata);
        let mut serving = BTreeSet::new();
        if is_local(service) {
            for slice in self.slices.by_index("namespace", key.namespace().unwrap_or_default()) {
                let labels = slice.metadata.labels.as_ref();
                if labels.and_then(|labels| labels.get("kubernetes.io/service-name")).is_none_or(|n| **n != *key.name) {
                    continue;
                }
                let ready = |e: &&k8s_openapi::api::discovery::v1::Endpoint| {
                    e.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
                };
                serving.extend(slice.endpoints.iter().filter(ready).filter_map(|e| e.node_name.clone()));
            }
        }
        let admitted = |node: &&Arc<Node>| {
            !is_local(service) || node.metadata.name.as_ref().is_some_and(|name| serving.contains(name))
        };
        let nodes = self.nodes.list();
        let addresses: BTreeSet<IpAddr> = nodes
            .iter()
            .filter(admitted)
            .map(|node| facts(node))
            .filter(|facts| facts.ready)
            .flat_map(|f| f.addresses)
            .collect();
        addresses.into_iter().collect()
    }

    /// Ports of the API server and the node agents: a balancer must not take them.
    fn reserved(&self) -> BTreeSet<u16> {
        let api = self.services.get(&Key::new(Some("default"), "kubernetes"));
        let ports = api.iter().filter_map(|service| service.spec.as_ref()).flat_map(|spec| spec.ports.iter().flatten());
        let ports = ports.filter_map(|port| match &port.target_port {
            Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(port)) => u16::try_from(*port).ok(),
            _ => None,
        });
        ports.chain(self.nodes.list().iter().filter_map(|node| facts(node).agent)).collect()
    }

    async fn write(&self, service: &Service, addresses: &[IpAddr]) -> Result<(), Error> {
        let ingress: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let balancer = if ingress.is_empty() { json!(null) } else { json!(ingress) };
        let patch = Patch::Merge(json!({
            "metadata": {"uid": service.metadata.uid, "resourceVersion": service.metadata.resource_version},
            "status": {"loadBalancer": {"ingress": balancer}},
        }));
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let namespace = service.metadata.namespace.as_deref();
        match self.client.patch::<Service>(namespace, name, patch, Some("status")).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }

    fn tell(&self, service: &Service, why: &str) {
        let mut refused = self.refused.lock();
        if refused.insert(Key::of(&service.metadata), why.to_owned()).as_deref() != Some(why) {
            self.events.event(reference(service), EventType::Warning, "AllocationFailed", why);
        }
    }
}

fn is_local(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.external_traffic_policy.as_deref() == Some("Local"))
}

/// One of ours, or one that was and still has what we gave it.
fn concerns_us(service: &Service) -> bool {
    is_ours(service) || left_over(service)
}

fn left_over(service: &Service) -> bool {
    let balanced = service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"));
    !balanced && !held(service).is_empty()
}

/// What of a node matters here; it reports its health every few seconds.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    ready: bool,
    addresses: Vec<IpAddr>,
    agent: Option<u16>,
}

fn facts(node: &Node) -> Facts {
    let status = node.status.as_ref();
    let conditions = || status.iter().flat_map(|status| status.conditions.iter().flatten());
    let addresses = status.iter().flat_map(|status| status.addresses.iter().flatten());
    let excluded = node
        .metadata
        .labels
        .as_ref()
        .is_some_and(|labels| labels.contains_key("node.kubernetes.io/exclude-from-external-load-balancers"));
    let agent = status.and_then(|s| s.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref());
    Facts {
        ready: !excluded && conditions().any(|c| c.type_ == "Ready" && c.status == "True"),
        addresses: addresses.filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse().ok()).collect(),
        agent: agent.and_then(|endpoint| u16::try_from(endpoint.port).ok()),
    }
}

#[async_trait::async_trait]
impl Reconcile for LoadBalancers {
    fn name(&self) -> &'static str {
        "load-balancer"
    }

    async fn reconcile(&self, _: &Key) -> Result<Outcome, Error> {
        let mut services = self.services.list();
        // Who came first is served first, and who has something keeps it.
        services.sort_by_key(|service| {
            let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (held(service).is_empty(), created, Key::of(&service.metadata))
        });
        let reserved = self.reserved();
        // What each holds, brought up to date while we go: our own writes are not back yet.
        let mut holdings: Vec<(Key, Arc<Service>, Vec<IpAddr>)> = services
            .iter()
            .filter(|service| service.spec.as_ref().is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer")))
            .map(|service| (Key::of(&service.metadata), Arc::clone(service), held(service)))
            .collect();
        for service in services.iter().filter(|service| concerns_us(service)) {
            let key = Key::of(&service.metadata);
            let others: Vec<(Key, &Service, Vec<IpAddr>)> = holdings
                .iter()
                .filter(|(other, ..)| *other != key)
                .map(|(key, service, held)| (key.clone(), &**service, held.clone()))
                .collect();
            let node_addresses;
            let supply = if self.pools.is_empty() {
                node_addresses = self.node_addresses(service);
                Supply::Nodes { addresses: &node_addresses, reserved: &reserved }
            } else {
                Supply::Pools(&self.pools)
            };
            let given = match assign(service, &others, &supply) {
                Decision::Addresses(addresses) => {
                    self.refused.lock().remove(&key);
                    addresses
                }
                Decision::Refused(why) => {
                    self.tell(service, &why);
                    Vec::new()
                }
                // It is no balancer any more.
                Decision::NotOurs => Vec::new(),
            };
            if given != held(service) {
                self.write(service, &given).await?;
            }
            if let Some(holding) = holdings.iter_mut().find(|(other, ..)| *other == key) {
                holding.2 = given;
            }
        }
        self.refused.lock().retain(|key, _| services.iter().any(|service| Key::of(&service.metadata) == *key));
        Ok(Outcome::Done)
    }
}
