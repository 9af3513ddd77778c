//! From Services and EndpointSlices to the tables we want. Pure: no kernel, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dhow_client::Key;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::health::HealthCheck;
use super::names::{BALANCER, CLIENTS, ENDPOINTS, EXTERNAL, PICK, SERVICE, STICKIES, STICKY, fingerprint};
use super::topology;
use crate::base_table::MAX_BALANCED;
use crate::rules::{Destination, Protocol};
use crate::{Cidr, Family, Networks};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Services with it belong to another proxy.
const OTHER_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const DEFAULT_AFFINITY: i32 = 10_800;

/// Where the plan is for.
#[derive(Debug, Clone)]
pub struct PlanContext {
    pub node_name: String,
    /// The node's zone, by its label.
    pub zone: Option<String>,
    /// Of each family that is used here.
    pub networks: Vec<Networks>,
}

/// One rule of a service chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// Sources outside the network get the node's address, so that replies come back this way.
    MasqueradeUnlessFrom(Cidr),
    Masquerade,
    MasqueradeFromNode,
    GotoIfFrom(Cidr, String),
    GotoIfFromNode(String),
    Goto(String),
    /// To one of the map's endpoints.
    Balance {
        endpoints: String,
        count: u32,
    },
    /// Clients in the set go on in the chain.
    GotoIfClient {
        clients: String,
        chain: String,
    },
    /// To one of the map's chains.
    BalanceChains {
        chains: String,
        count: u32,
    },
    RememberClient {
        clients: String,
        timeout: Duration,
    },
    Dnat(SocketAddr),
    Drop,
}

/// A chain of rules for packets of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceChain {
    pub family: Family,
    pub steps: Vec<Step>,
}

/// A port of the node's addresses of one family.
pub(crate) type NodePort = (Family, Protocol, u16);

/// What one service needs of our table. Several may claim one address: [`super::book::Book`] decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Endpoints of destinations that need no chain of their own.
    pub(crate) balanced: BTreeMap<Destination, Vec<SocketAddr>>,
    pub(crate) endpoints: BTreeMap<String, Vec<SocketAddr>>,
    /// Chains to choose from, by map.
    pub(crate) stickies: BTreeMap<String, Vec<String>>,
    /// Sets of clients and how long each stays.
    pub(crate) clients: BTreeMap<String, (Family, Duration)>,
    pub(crate) chains: BTreeMap<String, ServiceChain>,
    pub(crate) service_ips: BTreeMap<Destination, String>,
    pub(crate) node_ports: BTreeMap<NodePort, String>,
    pub(crate) no_endpoints: BTreeSet<Destination>,
    pub(crate) no_endpoint_ports: BTreeSet<NodePort>,
    /// What load balancers are told about this node.
    pub(crate) health: Option<HealthCheck>,
    /// Pods behind each UDP destination; the address is absent for node ports.
    pub(crate) udp: BTreeMap<(Option<IpAddr>, u16), BTreeSet<IpAddr>>,
}

/// What the kernel should hold for one service on this node. `slices` are the service's own.
pub fn plan(service: &Service, slices: &[Arc<EndpointSlice>], context: &PlanContext) -> Tables {
    let mut tables = Tables::default();
    let Some(spec) = &service.spec else { return tables };
    let proxied = spec.type_.as_deref() != Some("ExternalName")
        && !service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(OTHER_PROXY_LABEL));
    if !proxied {
        return tables;
    }
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let name = service.metadata.name.as_deref().unwrap_or_default();
    for networks in &context.networks {
        let family = networks.family();
        let of = |addresses: Vec<IpAddr>| -> Vec<IpAddr> {
            let unique: BTreeSet<IpAddr> = addresses.into_iter().filter(|ip| Family::of(*ip) == family).collect();
            unique.into_iter().collect()
        };
        let cluster = of(cluster_ips(spec));
        // Whatever its other addresses are: the service is not of this family.
        if cluster.is_empty() {
            continue;
        }
        let fronts = Fronts { cluster, external: of(external_ips(spec)), balancer: of(balancer_ips(service)) };
        for port in spec.ports.iter().flatten() {
            let Some(protocol) = Protocol::parse(port.protocol.as_deref().unwrap_or_default()) else { continue };
            let port_name = port.name.as_deref().unwrap_or_default();
            let mut id = format!("{namespace}/{name}:{port_name}/{}", protocol.name());
            if family == Family::V6 {
                id.push_str(" v6");
            }
            let id = fingerprint(id.as_bytes());
            ServicePortPlan { id, family, networks, spec, port, protocol, slices, context }.add(&fronts, &mut tables);
        }
    }
    if tables != Tables::default() {
        tables.health = health_check(spec, slices, context);
    }
    tables
}

/// Of load balancers whose traffic stays on the node that gets it.
fn health_check(spec: &ServiceSpec, slices: &[Arc<EndpointSlice>], context: &PlanContext) -> Option<HealthCheck> {
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec.health_check_node_port.filter(|_| local && spec.type_.as_deref() == Some("LoadBalancer"))?;
    let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
    let ready = |family: Family| {
        let of = slices.iter().filter(|slice| slice.address_type == family.name()).flat_map(|slice| &slice.endpoints);
        let here = of.filter(|endpoint| endpoint.node_name.as_deref() == Some(&context.node_name));
        let ready = here.filter(|endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
        let addresses: BTreeSet<&str> = ready.filter_map(|e| e.addresses.first().map(String::as_str)).collect();
        addresses.len()
    };
    // One pod is an endpoint of each family.
    let local_endpoints = context.networks.iter().map(|networks| ready(networks.family())).max().unwrap_or(0);
    Some(HealthCheck { port, local_endpoints })
}

/// The service a slice belongs to.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some(Key::new(slice.metadata.namespace.as_deref(), service))
}

/// The addresses a service is reached at, of one family.
struct Fronts {
    cluster: Vec<IpAddr>,
    external: Vec<IpAddr>,
    balancer: Vec<IpAddr>,
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).filter_map(|ip| ip.parse().ok()).collect()
}

fn external_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect()
}

/// The load balancer's addresses, unless they ask to be passed through the balancer itself.
fn balancer_ips(service: &Service) -> Vec<IpAddr> {
    let ingress =
        service.status.iter().filter_map(|s| s.load_balancer.as_ref()).flat_map(|lb| lb.ingress.iter().flatten());
    let ours = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref());
    ours.filter_map(|ip| ip.parse().ok()).collect()
}

struct ServicePortPlan<'a> {
    id: String,
    family: Family,
    networks: &'a Networks,
    spec: &'a ServiceSpec,
    port: &'a ServicePort,
    protocol: Protocol,
    slices: &'a [Arc<EndpointSlice>],
    context: &'a PlanContext,
}

impl ServicePortPlan<'_> {
    fn add(&self, fronts: &Fronts, tables: &mut Tables) {
        let Ok(number) = u16::try_from(self.port.port) else { return };
        let all = self.endpoints(false);
        let destination = |ip: &IpAddr| (*ip, self.protocol, number);
        let node_port = self.port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0);
        if all.is_empty() {
            tables.no_endpoint_ports.extend(node_port.map(|port| (self.family, self.protocol, port)));
            let addresses = fronts.cluster.iter().chain(&fronts.external).chain(&fronts.balancer);
            tables.no_endpoints.extend(addresses.map(destination));
            return;
        }
        let local = self.endpoints(true);
        let (internal_local, external_local) = (
            self.spec.internal_traffic_policy.as_deref() == Some("Local"),
            self.spec.external_traffic_policy.as_deref() == Some("Local"),
        );
        let has_external = node_port.is_some() || !fronts.external.is_empty() || !fronts.balancer.is_empty();

        let plain = !internal_local && !has_external && self.spec.session_affinity.as_deref() != Some("ClientIP");
        if plain && all.len() <= MAX_BALANCED as usize {
            for ip in &fronts.cluster {
                tables.balanced.insert(destination(ip), all.clone());
                self.note_udp(Some(*ip), number, &all, tables);
            }
            return;
        }

        let pick_all = (!internal_local || has_external).then(|| self.pick("c", &all, tables));
        let pick_local = ((internal_local || (external_local && has_external)) && !local.is_empty())
            .then(|| self.pick("l", &local, tables));
        let to = |pick: &Option<String>| pick.clone().map_or(Step::Drop, Step::Goto);

        let internal = vec![
            Step::MasqueradeUnlessFrom(self.networks.cluster),
            to(if internal_local { &pick_local } else { &pick_all }),
        ];
        let service = self.chain(SERVICE, internal, tables);
        for ip in &fronts.cluster {
            tables.service_ips.entry(destination(ip)).or_insert_with(|| service.clone());
            self.note_udp(Some(*ip), number, &all, tables);
        }
        if !has_external {
            return;
        }
        let mut steps = Vec::new();
        if let (true, Some(all)) = (external_local, &pick_all) {
            // Clients on this node are no foreigners: they may use every endpoint.
            steps.push(Step::GotoIfFrom(self.networks.pods, all.clone()));
            steps.push(Step::MasqueradeFromNode);
            steps.push(Step::GotoIfFromNode(all.clone()));
            steps.push(to(&pick_local));
        } else {
            steps.push(Step::Masquerade);
            steps.push(to(&pick_all));
        }
        let external = self.chain(EXTERNAL, steps, tables);
        for ip in &fronts.external {
            tables.service_ips.entry(destination(ip)).or_insert_with(|| external.clone());
            self.note_udp(Some(*ip), number, &all, tables);
        }
        if !fronts.balancer.is_empty() {
            let balanced = self.restricted(&external, tables);
            for ip in &fronts.balancer {
                tables.service_ips.entry(destination(ip)).or_insert_with(|| balanced.clone());
                self.note_udp(Some(*ip), number, &all, tables);
            }
        }
        if let Some(port) = node_port {
            tables.node_ports.entry((self.family, self.protocol, port)).or_insert(external);
            self.note_udp(None, port, &all, tables);
        }
    }

    /// The chain that lets only the ranges a load balancer is open to into `external`.
    fn restricted(&self, external: &str, tables: &mut Tables) -> String {
        let ranges = self.spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
        if ranges.is_empty() {
            return external.to_owned();
        }
        // A range of the other address family, or one we cannot read, opens nothing.
        let parsed = ranges.iter().filter_map(|range| range.trim().parse::<Cidr>().ok());
        let parsed = parsed.filter(|cidr| cidr.family() == self.family);
        let mut steps: Vec<Step> = parsed.map(|cidr| Step::GotoIfFrom(cidr, external.to_owned())).collect();
        steps.push(Step::Drop);
        self.chain(BALANCER, steps, tables)
    }

    fn note_udp(&self, ip: Option<IpAddr>, port: u16, endpoints: &[SocketAddr], tables: &mut Tables) {
        if self.protocol == Protocol::Udp {
            tables.udp.entry((ip, port)).or_default().extend(endpoints.iter().map(SocketAddr::ip));
        }
    }

    /// Ready endpoints, or, when there are none, those that end but still serve. Of all nodes' ready ones, those
    /// that the hints keep for this node or its zone.
    fn endpoints(&self, only_local: bool) -> Vec<SocketAddr> {
        let (mut ready, mut ending) = (BTreeMap::new(), BTreeSet::new());
        let wanted = self.port.name.as_deref().unwrap_or_default();
        for slice in self.slices.iter().filter(|slice| slice.address_type == self.family.name()) {
            let port = slice.ports.iter().flatten().find(|p| {
                p.name.as_deref().unwrap_or_default() == wanted
                    && Protocol::parse(p.protocol.as_deref().unwrap_or_default()) == Some(self.protocol)
            });
            let Some(port) = port.and_then(|p| p.port).and_then(|p| u16::try_from(p).ok()) else { continue };
            for endpoint in &slice.endpoints {
                if only_local && endpoint.node_name.as_deref() != Some(&self.context.node_name) {
                    continue;
                }
                let ip = endpoint.addresses.first().and_then(|a| a.parse::<IpAddr>().ok());
                let Some(ip) = ip.filter(|ip| Family::of(*ip) == self.family) else { continue };
                let conditions = endpoint.conditions.as_ref();
                let is_ready = conditions.and_then(|c| c.ready).unwrap_or(true);
                let serving = conditions.and_then(|c| c.serving).unwrap_or(is_ready);
                let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
                let address = SocketAddr::new(ip, port);
                if is_ready {
                    ready.insert(address, endpoint);
                } else if serving && terminating {
                    ending.insert(address);
                }
            }
        }
        if ready.is_empty() {
            return ending.into_iter().collect();
        }
        if only_local {
            return ready.into_keys().collect();
        }
        topology::nearest(&ready, &self.context.node_name, self.context.zone.as_deref())
    }

    /// The chain that sends to one of `endpoints`.
    fn pick(&self, scope: &str, endpoints: &[SocketAddr], tables: &mut Tables) -> String {
        let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
        let content = |items: &[String]| fingerprint(items.join(",").as_bytes());
        if self.spec.session_affinity.as_deref() != Some("ClientIP") {
            let texts: Vec<String> = endpoints.iter().map(SocketAddr::to_string).collect();
            let map = format!("{ENDPOINTS}{}_{}", self.id, content(&texts));
            tables.endpoints.insert(map.clone(), endpoints.to_vec());
            return self.chain(PICK, vec![Step::Balance { endpoints: map, count }], tables);
        }
        let configured = self.spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        let seconds = configured.and_then(|c| c.timeout_seconds).unwrap_or(DEFAULT_AFFINITY).max(1);
        let timeout = Duration::from_secs(u64::from(seconds.unsigned_abs()));
        let (mut steps, mut chains) = (Vec::new(), Vec::new());
        for endpoint in endpoints {
            // Clients are remembered per endpoint: when it goes, so do they, and no other endpoint's.
            let key = fingerprint(format!("{scope} {endpoint} {seconds}").as_bytes());
            let clients = format!("{CLIENTS}{}_{key}", self.id);
            tables.clients.insert(clients.clone(), (self.family, timeout));
            let remember = Step::RememberClient { clients: clients.clone(), timeout };
            let chain = self.chain(STICKY, vec![remember, Step::Dnat(*endpoint)], tables);
            steps.push(Step::GotoIfClient { clients, chain: chain.clone() });
            chains.push(chain);
        }
        let map = format!("{STICKIES}{}_{}", self.id, content(&chains));
        tables.stickies.insert(map.clone(), chains);
        steps.push(Step::BalanceChains { chains: map, count });
        self.chain(PICK, steps, tables)
    }

    fn chain(&self, prefix: &str, steps: Vec<Step>, tables: &mut Tables) -> String {
        let name = format!("{prefix}{}_{}", self.id, fingerprint(format!("{steps:?}").as_bytes()));
        tables.chains.insert(name.clone(), ServiceChain { family: self.family, steps });
        name
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
