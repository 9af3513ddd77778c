//! Cluster addresses and node ports of Services, and pod networks of Nodes. The Services and Nodes themselves are the
//! record of what is taken, and IPAddresses that people make for something else; which ranges are open is
//! [`service_cidrs`]'.
//!
//! What a write takes is chosen before it is validated, and taken when it is stored: every such write, on whichever
//! server, changes one guard key in its own transaction, after it has seen all that was written under the guard before.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use dhow_api::registry::{self, Kind};
use dhow_api::validation::FieldError;
use dhow_api::{Status, meta};
use serde_json::{Value, json};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::cache::Cache;
use crate::families::{self, family_of};
use crate::service_cidrs::{self, ServiceName};
use crate::store::{Guard, ObjectStore};

/// Changed by every write that takes an address or a port. No kind's key: the cache passes over it.
const GUARD: &str = "/registry/dhow/services";
/// The same for pod networks.
const NODE_GUARD: &str = "/registry/dhow/nodes";

/// First address and prefix length of a Service range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceRange {
    pub first: IpAddr,
    pub prefix: u8,
}

impl std::fmt::Display for ServiceRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl ServiceRange {
    /// What validation has let through.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        Some(Self { first: address.parse().ok()?, prefix: prefix.parse().ok()? })
    }

    /// So many addresses are given; larger ranges are for nobody to fill.
    fn size(self) -> u64 {
        let bits = if self.first.is_ipv4() { 32 } else { 128 };
        1u64.checked_shl(u32::from(bits - self.prefix.min(bits))).unwrap_or(u64::MAX)
    }

    fn nth(self, index: u64) -> IpAddr {
        match self.first {
            // Never more than the range has.
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits().wrapping_add(index as u32)).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits().wrapping_add(u128::from(index))).into(),
        }
    }

    fn contains(self, address: IpAddr) -> bool {
        let offset = match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => u128::from(address.to_bits().wrapping_sub(first.to_bits())),
            (IpAddr::V6(first), IpAddr::V6(address)) => address.to_bits().wrapping_sub(first.to_bits()),
            _ => return false,
        };
        // The network's own address and IPv4's broadcast address are nobody's.
        let end = u128::from(self.size()) - u128::from(self.first.is_ipv4());
        offset > 0 && offset < end
    }
}

pub struct Allocator {
    cache: Arc<Cache>,
    /// One of each family that the cluster has, the default one first.
    ranges: Vec<ServiceRange>,
    ports: RangeInclusive<u16>,
    /// Held by the write that is about to take something: the next waits for it instead of failing by the guard.
    turn: Arc<Mutex<()>>,
}

#[derive(Default)]
struct Taken {
    addresses: HashSet<IpAddr>,
    ports: HashSet<u16>,
}

/// What one write is to take, chosen as the cache was at `seen`.
pub struct Choice {
    uid: String,
    /// The Service that it is for: what it has itself is not in its way.
    service: ServiceName,
    own: Taken,
    /// Pod networks that a Node is to get.
    networks: Vec<Network>,
    seen: u64,
}

/// What a write takes its choice by. Kept until it is stored or has failed.
#[must_use]
#[derive(Default)]
pub struct Claim {
    pub guards: Vec<Guard>,
    _turn: Option<OwnedMutexGuard<()>>,
}

impl Taken {
    fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.ports.is_empty()
    }

    fn holds(&mut self, service: &Value) {
        let listed = meta::items(service, &["spec", "clusterIPs"]).iter().filter_map(Value::as_str);
        let addresses = listed.chain(Some(meta::text(service, &["spec", "clusterIP"])));
        self.addresses.extend(addresses.filter_map(|address| address.parse::<IpAddr>().ok()));
        for port in meta::items(service, &["spec", "ports"]) {
            self.ports.extend(port["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok()));
        }
        self.ports.extend(health_port(service));
    }
}

/// Whether something may be chosen for objects of this kind that somebody else can take meanwhile.
pub fn chooses(kind: &Kind) -> bool {
    matches!((kind.group, kind.kind), ("", "Node" | "Service") | (service_cidrs::GROUP, "IPAddress"))
}

impl Allocator {
    pub fn new(cache: Arc<Cache>, ranges: Vec<ServiceRange>, ports: RangeInclusive<u16>) -> Self {
        Self { cache, ranges, ports, turn: Arc::default() }
    }

    /// Gives a Service what it needs, keeps what it has, refuses what another holds. Other kinds pass.
    pub fn choose(&self, kind: &Kind, old: Option<&Value>, object: &mut Value) -> Result<Choice, Status> {
        let uid = meta::uid(object).to_owned();
        let service = (meta::namespace(object).to_owned(), meta::name(object).to_owned());
        let mut choice = Choice { uid, service, own: Taken::default(), networks: Vec::new(), seen: 0 };
        if kind.kind == "Node" && kind.group.is_empty() {
            let held = old.map(pod_networks).unwrap_or_default();
            choice.networks = pod_networks(object);
            choice.networks.retain(|network| !held.contains(network));
            if !choice.networks.is_empty() {
                choice.seen = self.cache.changed(kind);
                self.free_networks(kind, &choice, meta::name(object))?;
            }
            return Ok(choice);
        }
        if kind.kind == "IPAddress" && kind.group == service_cidrs::GROUP && old.is_none() {
            return self.keep(choice, object);
        }
        if kind.kind != "Service" || !kind.group.is_empty() {
            return Ok(choice);
        }
        choice.seen = self.changed()?;
        let taken = self.taken(&choice)?;
        let ranges = service_cidrs::open(&self.cache, &self.ranges)?;
        let result = self
            .addresses(old, object, &ranges, &taken, &mut choice.own)
            .and_then(|()| self.node_ports(old, object, &taken, &mut choice.own))
            .and_then(|()| self.health_port(old, object, &taken, &mut choice.own));
        if let Err(error) = result {
            return Err(Status::invalid("", "Service", meta::name(object), &[error]));
        }
        if let Some(old) = old {
            let mut held = Taken::default();
            held.holds(old);
            choice.own.addresses.retain(|address| !held.addresses.contains(address));
            choice.own.ports.retain(|port| !held.ports.contains(port));
        }
        Ok(choice)
    }

    /// Makes sure that what was chosen is still free, and stays so until the write; `None` if it was taken meanwhile.
    pub async fn claim(&self, store: &ObjectStore, choice: &Choice) -> Result<Option<Claim>, Status> {
        if !choice.networks.is_empty() {
            let turn = self.turn.clone().lock_owned().await;
            let guard = store.bare_guard(NODE_GUARD).await?;
            let kind = registry::builtin().get("", "v1", "nodes").ok_or_else(Status::no_such_resource)?;
            if self.cache.changed(kind) != choice.seen {
                self.free_networks(kind, choice, "")?;
            }
            return Ok(Some(Claim { guards: vec![guard], _turn: Some(turn) }));
        }
        if choice.own.is_empty() {
            return Ok(Some(Claim::default()));
        }
        let turn = self.turn.clone().lock_owned().await;
        let guard = store.bare_guard(GUARD).await?;
        if self.changed()? != choice.seen {
            let taken = self.taken(choice)?;
            if !taken.addresses.is_disjoint(&choice.own.addresses) || !taken.ports.is_disjoint(&choice.own.ports) {
                return Ok(None);
            }
        }
        Ok(Some(Claim { guards: vec![guard], _turn: Some(turn) }))
    }

    /// Refuses pod networks that overlap another node's: packets would go to one of the two.
    fn free_networks(&self, kind: &Kind, choice: &Choice, name: &str) -> Result<(), Status> {
        for node in self.cache.objects(kind)?.values().filter(|node| node.header.uid != choice.uid) {
            let node = node.value()?;
            let held = pod_networks(&node);
            if let Some(network) = choice.networks.iter().find(|one| held.iter().any(|other| one.overlaps(other))) {
                let why = format!("overlaps the pod network of node {:?}", meta::name(&node));
                let error = FieldError::invalid("spec.podCIDRs", &network.text, &why);
                return Err(Status::invalid("", "Node", name, &[error]));
            }
        }
        Ok(())
    }

    /// The revision of the last change that may have taken or freed something.
    fn changed(&self) -> Result<u64, Status> {
        Ok(self.cache.changed(services()?).max(service_cidrs::changed(&self.cache)))
    }

    /// What all other Services hold, and addresses that are kept for something else.
    fn taken(&self, choice: &Choice) -> Result<Taken, Status> {
        let mut taken = Taken::default();
        let own = |header: &dhow_api::header::ObjectHeader| {
            header.uid == choice.uid || header.namespace == choice.service.0 && header.name == choice.service.1
        };
        for service in self.cache.objects(services()?)?.values().filter(|service| !own(&service.header)) {
            taken.holds(&service.value()?);
        }
        taken.addresses.extend(service_cidrs::kept(&self.cache, &choice.service)?);
        Ok(taken)
    }

    /// Lets somebody keep an address that no Service has. The cluster's own records follow what Services have already.
    fn keep(&self, mut choice: Choice, object: &Value) -> Result<Choice, Status> {
        let name = meta::name(object);
        // What is no address is validation's to refuse.
        let Ok(address) = name.parse::<IpAddr>() else { return Ok(choice) };
        if service_cidrs::is_record(object) {
            return Ok(choice);
        }
        choice.seen = self.changed()?;
        choice.service = service_cidrs::parent(object).unwrap_or_default();
        if self.taken(&choice)?.addresses.contains(&address) {
            return Err(Status::already_exists(service_cidrs::GROUP, "ipaddresses", name));
        }
        choice.own.addresses.insert(address);
        Ok(choice)
    }

    fn addresses(
        &self,
        old: Option<&Value>,
        object: &mut Value,
        ranges: &[ServiceRange],
        taken: &Taken,
        chosen: &mut Taken,
    ) -> Result<(), FieldError> {
        if meta::text(object, &["spec", "type"]) == "ExternalName" {
            let spec = meta::child_mut(object, "spec");
            spec.remove("clusterIP");
            spec.remove("clusterIPs");
            return Ok(());
        }
        let configured: Vec<&str> = self.ranges.iter().map(|range| family_of(range.first)).collect();
        let settled = families::settle(old, object, &configured)?;
        let mut texts = Vec::new();
        if settled.headless {
            texts.push("None".to_owned());
        } else {
            for (index, (family, wanted)) in settled.addresses.iter().enumerate() {
                let address = address(ranges, (index, family), wanted.as_deref(), taken, old)?;
                chosen.addresses.insert(address);
                texts.push(address.to_string());
            }
        }
        let spec = meta::child_mut(object, "spec");
        spec.insert("clusterIP".into(), json!(texts.first()));
        spec.insert("clusterIPs".into(), json!(texts));
        Ok(())
    }

    fn node_ports(
        &self,
        old: Option<&Value>,
        object: &mut Value,
        taken: &Taken,
        chosen: &mut Taken,
    ) -> Result<(), FieldError> {
        let kind = meta::text(object, &["spec", "type"]).to_owned();
        let needed = kind == "NodePort"
            || kind == "LoadBalancer"
                && meta::at(object, &["spec", "allocateLoadBalancerNodePorts"]) != Some(&json!(false));
        let old_ports: Vec<Value> = old.map(|old| meta::items(old, &["spec", "ports"]).to_vec()).unwrap_or_default();
        let spec = meta::child_mut(object, "spec");
        for (index, port) in meta::each_mut(spec, "ports").enumerate() {
            let wanted = port.get("nodePort").and_then(Value::as_u64).unwrap_or(0);
            if !needed {
                if kind == "ClusterIP" {
                    port.remove("nodePort");
                }
                continue;
            }
            let field = format!("spec.ports[{index}].nodePort");
            let same = |old: &&Value| {
                old["port"] == port["port"] && old["protocol"] == port.get("protocol").cloned().unwrap_or_default()
            };
            let kept = old_ports.iter().find(same).and_then(|old| old["nodePort"].as_u64()).unwrap_or(0);
            let kept = u16::try_from(kept).unwrap_or_default();
            let number = self.port(&field, wanted, kept, taken, chosen)?;
            chosen.ports.insert(number);
            port.insert("nodePort".into(), json!(number));
        }
        Ok(())
    }

    /// The port where load balancers ask for a service whose external traffic stays on the node.
    fn health_port(
        &self,
        old: Option<&Value>,
        object: &mut Value,
        taken: &Taken,
        chosen: &mut Taken,
    ) -> Result<(), FieldError> {
        let needed = meta::text(object, &["spec", "type"]) == "LoadBalancer"
            && meta::text(object, &["spec", "externalTrafficPolicy"]) == "Local";
        let held = old.and_then(health_port);
        if !needed {
            if held.is_some() && health_port(object) == held {
                meta::child_mut(object, "spec").remove("healthCheckNodePort");
            }
            return Ok(());
        }
        let field = "spec.healthCheckNodePort";
        let wanted = meta::at(object, &["spec", "healthCheckNodePort"]).and_then(Value::as_u64).unwrap_or(0);
        let number = self.port(field, wanted, held.unwrap_or_default(), taken, chosen)?;
        if !chosen.ports.insert(number) {
            let why = "the port is a node port of this service already";
            return Err(FieldError::invalid(field, &wanted.to_string(), why));
        }
        meta::child_mut(object, "spec").insert("healthCheckNodePort".into(), json!(number));
        Ok(())
    }

    /// The port that is asked for if it is free, else the one held so far, else any; 0 means none.
    fn port(&self, field: &str, wanted: u64, kept: u16, taken: &Taken, chosen: &Taken) -> Result<u16, FieldError> {
        match (wanted, kept) {
            (0, 0) => self
                .free_port(taken, chosen)
                .ok_or_else(|| FieldError::internal(field, "failed to allocate a nodePort: range is full")),
            (0, kept) => Ok(kept),
            (wanted, _) => {
                let number = u16::try_from(wanted).ok().filter(|number| self.ports.contains(number));
                let number = number.ok_or_else(|| {
                    let why = format!(
                        "provided port is not in the valid range. The range of valid ports is {}-{}",
                        self.ports.start(),
                        self.ports.end()
                    );
                    FieldError::invalid(field, &wanted.to_string(), &why)
                })?;
                if taken.ports.contains(&number) {
                    let why = "provided port is already allocated";
                    return Err(FieldError::invalid(field, &wanted.to_string(), why));
                }
                Ok(number)
            }
        }
    }

    fn free_port(&self, taken: &Taken, chosen: &Taken) -> Option<u16> {
        let first = *self.ports.start();
        let size = u64::from(self.ports.end() - first) + 1;
        let begin = random_below(size);
        let candidates = (0..size).filter_map(|step| u16::try_from((begin + step) % size).ok());
        candidates.map(|offset| first + offset).find(|port| !taken.ports.contains(port) && !chosen.ports.contains(port))
    }
}

fn services() -> Result<&'static Kind, Status> {
    registry::builtin().get("", "v1", "services").ok_or_else(Status::no_such_resource)
}

/// The address that is asked for if it is free, else any of the family: of the first range that has one.
fn address(
    ranges: &[ServiceRange],
    (index, family): (usize, &str),
    wanted: Option<&str>,
    taken: &Taken,
    old: Option<&Value>,
) -> Result<IpAddr, FieldError> {
    let mut of_family = ranges.iter().filter(|range| family_of(range.first) == family);
    let Some(wanted) = wanted else {
        let free = of_family.find_map(|range| free_address(*range, taken));
        return free
            .ok_or_else(|| FieldError::internal("spec.clusterIPs", "failed to allocate a serviceIP: range is full"));
    };
    let field = format!("spec.clusterIPs[{index}]");
    let address: IpAddr =
        wanted.parse().map_err(|_| FieldError::invalid(&field, wanted, "must be a valid IP address"))?;
    let held = old.is_some_and(|old| {
        meta::text(old, &["spec", "clusterIP"]) == wanted
            || meta::items(old, &["spec", "clusterIPs"]).iter().any(|held| held == wanted)
    });
    if held {
        return Ok(address);
    }
    let valid: Vec<ServiceRange> = of_family.copied().collect();
    if !valid.iter().any(|range| range.contains(address)) {
        let valid = valid.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let why = format!("failed to allocate IP {wanted}: the provided IP is not in the valid range {valid}");
        return Err(FieldError::invalid("spec.clusterIPs", wanted, &why));
    }
    if taken.addresses.contains(&address) {
        let why = format!("failed to allocate IP {wanted}: provided IP is already allocated");
        return Err(FieldError::invalid("spec.clusterIPs", wanted, &why));
    }
    Ok(address)
}

/// A network as a Node's spec has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Network {
    text: String,
    bits: u128,
    prefix: u32,
    v4: bool,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let prefix: u32 = prefix.parse().ok()?;
        let (bits, v4) = match address.parse::<IpAddr>().ok()? {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, true),
            IpAddr::V6(address) => (address.to_bits(), false),
        };
        (prefix <= if v4 { 32 } else { 128 }).then(|| Self { text: text.to_owned(), bits, prefix, v4 })
    }

    fn overlaps(&self, other: &Self) -> bool {
        let shift = 128 - self.prefix.min(other.prefix);
        let top = |bits: u128| bits.checked_shr(shift).unwrap_or(0);
        self.v4 == other.v4 && top(self.bits) == top(other.bits)
    }
}

/// The pod networks of a Node. What is no network is validation's to refuse.
fn pod_networks(node: &Value) -> Vec<Network> {
    let list = meta::items(node, &["spec", "podCIDRs"]).iter().filter_map(Value::as_str);
    let one = Some(meta::text(node, &["spec", "podCIDR"])).filter(|one| !one.is_empty());
    let mut networks: Vec<Network> = Vec::new();
    for network in list.chain(one).filter_map(Network::parse) {
        if !networks.contains(&network) {
            networks.push(network);
        }
    }
    networks
}

/// The health-check port a Service has; 0 is none.
fn health_port(service: &Value) -> Option<u16> {
    let port = meta::at(service, &["spec", "healthCheckNodePort"])?.as_u64()?;
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn free_address(range: ServiceRange, taken: &Taken) -> Option<IpAddr> {
    // The lower part stays free for addresses that people choose (KEP-3070).
    let size = range.size();
    let reserved = (size / 16).clamp(16, 256).min(size);
    let begin = reserved + random_below(size.saturating_sub(reserved).max(1));
    // Each try that fails is an address taken, or one of the two that are nobody's.
    (0..size.min(taken.addresses.len() as u64 + 3))
        .map(|step| range.nth((begin + step) % size))
        .find(|address| range.contains(*address) && !taken.addresses.contains(address))
}

fn random_below(limit: u64) -> u64 {
    let bytes = uuid::Uuid::new_v4();
    u64::try_from(bytes.as_u128() % u128::from(limit.max(1))).unwrap_or(0)
}
