//! The cluster's zone: what every name of a Service, endpoint, pod or namespace holds, encoded when the object changes.
//!
//! Follows the Kubernetes DNS specification 1.1.0. No IO.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::kind::rtype;
use crate::name::{Labels, WireName, labels_of, push_label};
use crate::objects::{Endpoint, EndpointSlice, Pod, Port, Service};
use crate::rrset::{Node, Rrset, SoaTimes, soa_rdata, srv_rdata, txt_rdata};
use crate::{Error, Result};

const SCHEMA_VERSION: &str = "1.1.0";
/// Whose addresses the zone's name server has.
const SERVER_SERVICE: [&str; 2] = ["kube-dns", "kube-system"];

/// What the zone says about a name.
#[derive(Debug)]
pub enum Found<'a> {
    /// The name is not ours: ask someone else.
    NotOurs,
    /// There is no such name.
    NoName,
    Node(&'a Node),
    /// One that is made for the question.
    Made(Node),
}

/// All names of the cluster. A service's change replaces its names at once.
pub struct Names {
    pub apex: WireName,
    pub ttl: u32,
    pub soa: Rrset,
    top: Node,
    version: Node,
    empty: Node,
    namespaces: HashSet<Box<[u8]>>,
    /// By the labels of name and namespace.
    services: HashMap<Box<[u8]>, ServiceNames>,
    /// Names, below the apex, of an address; those of cluster addresses come first.
    reverse: HashMap<IpAddr, Vec<Reverse>>,
    /// In whose namespace a pod with this address is.
    pods: HashMap<IpAddr, PodName>,
}

struct PodName {
    namespace: Box<[u8]>,
    name: Box<[u8]>,
}

struct Reverse {
    service: Box<[u8]>,
    labels: Box<[u8]>,
    of_service: bool,
}

#[derive(Default)]
struct ServiceNames {
    node: Node,
    /// What comes before the service's name, in order.
    below: Box<[(Box<[u8]>, Node)]>,
    addresses: Box<[IpAddr]>,
}

impl Names {
    pub fn new(domain: &str, ttl: u32) -> Result<Self> {
        let invalid = || Error::InvalidDomain(domain.to_owned());
        let apex = WireName::parse(domain).filter(|apex| !apex.is_root()).ok_or_else(invalid)?;
        let name = |labels: &[&[u8]]| labels_of(labels).and_then(|labels| WireName::below(&labels, &apex));
        let server = name(&[b"ns", b"dns"]).ok_or_else(invalid)?;
        let mailbox = name(&[b"hostmaster"]).ok_or_else(invalid)?;
        let times = SoaTimes { refresh: 7200, retry: 1800, expire: 86400, minimum: ttl };
        let soa = Rrset::new(rtype::SOA, ttl, [soa_rdata(&server, &mailbox, 1, times)]).ok_or_else(invalid)?;
        let ns = Rrset::new(rtype::NS, ttl, [server.as_bytes().to_vec()]);
        Ok(Self {
            apex,
            ttl,
            top: Node::new([Some(soa.clone()), ns]),
            soa,
            version: Node::new([Rrset::new(rtype::TXT, ttl, [txt_rdata(SCHEMA_VERSION)])]),
            empty: Node::default(),
            namespaces: HashSet::new(),
            services: HashMap::new(),
            reverse: HashMap::new(),
            pods: HashMap::new(),
        })
    }

    pub fn set_namespace(&mut self, name: &str, exists: bool) {
        match exists {
            true => self.namespaces.insert(name.as_bytes().into()),
            false => self.namespaces.remove(name.as_bytes()),
        };
    }

    /// A pod that came, changed or, with `exists` false, went.
    pub fn set_pod(&mut self, pod: &Pod, exists: bool) {
        let meta = &pod.metadata;
        let (Some(namespace), Some(name)) = (meta.namespace.as_deref(), meta.name.as_deref()) else { return };
        for ip in pod.addresses() {
            if exists {
                let owner = PodName { namespace: namespace.as_bytes().into(), name: name.as_bytes().into() };
                self.pods.insert(ip, owner);
            } else if self.pods.get(&ip).is_some_and(|pod| *pod.name == *name.as_bytes()) {
                // Otherwise the address has gone to another pod already.
                self.pods.remove(&ip);
            }
        }
    }

    /// The namespace of the pod with this address.
    pub fn namespace_of(&self, ip: IpAddr) -> Option<&[u8]> {
        self.pods.get(&ip).map(|pod| pod.namespace.as_ref())
    }

    /// Puts a service's names in place of those it had; `None` removes them.
    pub fn set_service(
        &mut self,
        namespace: &str,
        name: &str,
        service: Option<&Service>,
        slices: &[impl AsRef<EndpointSlice>],
    ) {
        let Some(key) = labels_of(&[name.as_bytes(), namespace.as_bytes()]) else { return };
        if let Some(old) = self.services.remove(key.as_slice()) {
            for address in old.addresses {
                if let Some(names) = self.reverse.get_mut(&address) {
                    names.retain(|name| *name.service != *key);
                    if names.is_empty() {
                        self.reverse.remove(&address);
                    }
                }
            }
        }
        let Some(service) = service else { return };
        let mut build = Build { names: self, key: &key, below: BTreeMap::new(), reverse: Vec::new() };
        let Some(node) = build.service(service, slices) else { return };
        let Build { below, reverse, .. } = build;
        let mut addresses = Vec::new();
        for (address, labels, of_service) in reverse {
            let entry = Reverse { service: key.as_slice().into(), labels: labels.into(), of_service };
            let names = self.reverse.entry(address).or_default();
            names.insert(if of_service { 0 } else { names.len() }, entry);
            addresses.push(address);
        }
        let below: Box<[_]> = below.into_iter().map(|(labels, node)| (labels.into_boxed_slice(), node)).collect();
        self.services.insert(key.into(), ServiceNames { node, below, addresses: addresses.into() });
    }

    /// Looks `name` up. Allocates for the names of pods and for reverse names only.
    pub fn find(&self, name: &WireName, kind: u16) -> Found<'_> {
        let Some(prefix) = name.under(&self.apex) else {
            return if kind == rtype::PTR { self.reverse(name) } else { Found::NotOurs };
        };
        // At most four labels matter as such: the last three, and how many there are.
        let mut offsets = [0; 128];
        let mut count = 0;
        let mut at = 0;
        while at < prefix.len() {
            offsets[count] = at;
            count += 1;
            at += 1 + usize::from(prefix[at]);
        }
        let label = |back: usize| {
            count
                .checked_sub(back)
                .map_or(&[][..], |index| &prefix[offsets[index] + 1..])
                .get(..count.checked_sub(back).map_or(0, |index| usize::from(prefix[offsets[index]])))
                .unwrap_or_default()
        };
        match (count, label(1)) {
            (0, _) => Found::Node(&self.top),
            (1, b"dns-version") => Found::Node(&self.version),
            (1, b"dns" | b"svc" | b"pod") => Found::Node(&self.empty),
            (2, b"dns") if label(2) == b"ns" => Found::Node(self.server()),
            (2, b"svc" | b"pod") if self.namespaces.contains(label(2)) => Found::Node(&self.empty),
            (3, b"pod") => match dashed_address(label(3)) {
                Some(ip) if self.namespaces.contains(label(2)) => Found::Made(Node::of_addresses(&[ip], self.ttl)),
                _ => Found::NoName,
            },
            (3.., b"svc") => {
                let begin = offsets[count - 3];
                let Some(service) = self.services.get(&prefix[begin..offsets[count - 1]]) else { return Found::NoName };
                let below = &prefix[..begin];
                if below.is_empty() {
                    return Found::Node(&service.node);
                }
                let found = service.below.binary_search_by(|(labels, _)| (**labels).cmp(below));
                found.map_or(Found::NoName, |index| Found::Node(&service.below[index].1))
            }
            _ => Found::NoName,
        }
    }

    fn server(&self) -> &Node {
        let key = labels_of(&SERVER_SERVICE.map(str::as_bytes));
        key.and_then(|key| self.services.get(key.as_slice())).map_or(&self.empty, |service| &service.node)
    }

    fn reverse(&self, name: &WireName) -> Found<'_> {
        let Some(names) = address_of_arpa(name).and_then(|ip| self.reverse.get(&ip)) else { return Found::NotOurs };
        let of_service = names.first().is_some_and(|name| name.of_service);
        let wanted = names.iter().take(if of_service { 1 } else { usize::MAX });
        let targets = wanted.filter_map(|name| WireName::below(&name.labels, &self.apex));
        Found::Made(Node::new([Rrset::new(rtype::PTR, self.ttl, targets.map(|target| target.as_bytes().to_vec()))]))
    }
}

/// One service's names in the making.
struct Build<'a> {
    names: &'a Names,
    key: &'a [u8],
    below: BTreeMap<Vec<u8>, Node>,
    reverse: Vec<(IpAddr, Vec<u8>, bool)>,
}

/// Records of a set that grows.
type Srvs = BTreeMap<Vec<u8>, Vec<(u16, WireName)>>;

impl Build<'_> {
    /// What the service's own name holds; `None` if it does not exist.
    fn service(&mut self, service: &Service, slices: &[impl AsRef<EndpointSlice>]) -> Option<Node> {
        let (spec, ttl) = (&service.spec, self.names.ttl);
        if spec.r#type.as_deref() == Some("ExternalName") {
            let target = spec.external_name.as_deref().and_then(WireName::parse)?;
            return Some(Node::new([Rrset::new(rtype::CNAME, ttl, [target.as_bytes().to_vec()])]));
        }
        let ips = cluster_ips(service);
        let headless = ips.is_empty();
        let publish_all = spec.publish_not_ready_addresses == Some(true);
        let (mut found, mut hosts, mut srvs) = (Vec::new(), BTreeMap::<Vec<u8>, Vec<IpAddr>>::new(), Srvs::new());
        for slice in slices {
            let slice = slice.as_ref();
            for (endpoint, ip) in ready(slice, publish_all) {
                let named = endpoint.hostname.as_deref().filter(|host| !host.is_empty());
                // Endpoints behind a cluster address have names only if somebody gave them one.
                if !headless && named.is_none() {
                    continue;
                }
                let host = named.map_or_else(|| ip.to_string().replace(['.', ':'], "-"), str::to_ascii_lowercase);
                let mut labels = Vec::new();
                if push_label(&mut labels, host.as_bytes()).is_none() {
                    continue;
                }
                hosts.entry(labels.clone()).or_default().push(ip);
                if headless {
                    found.push(ip);
                    let full = [&labels, self.key, b"\x03svc"].concat();
                    let target = WireName::below(&full, &self.names.apex)?;
                    self.reverse.push((ip, full, false));
                    add_ports(&mut srvs, &slice.ports, &target);
                }
            }
        }
        if headless && found.is_empty() {
            return None;
        }
        if !headless {
            let full = [self.key, b"\x03svc"].concat();
            let target = WireName::below(&full, &self.names.apex)?;
            add_ports(&mut srvs, spec.ports.as_deref().unwrap_or_default(), &target);
            self.reverse.extend(ips.iter().map(|ip| (*ip, full.clone(), true)));
        }
        for (labels, ips) in hosts {
            self.below.insert(labels, Node::of_addresses(&ips, ttl));
        }
        for (labels, targets) in srvs {
            let weight = u16::try_from(100 / targets.len().max(1)).unwrap_or(0).max(1);
            let rdatas = targets.iter().map(|(port, target)| srv_rdata(0, weight, *port, target));
            // `_tcp` exists because there is something below it.
            let protocol = labels[1 + usize::from(labels[0])..].to_vec();
            self.below.entry(protocol).or_default();
            self.below.insert(labels, Node::new([Rrset::new(rtype::SRV, ttl, rdatas)]));
        }
        Some(Node::of_addresses(if headless { &found } else { &ips }, ttl))
    }
}

fn add_ports(srvs: &mut Srvs, ports: &[Port], target: &WireName) {
    for port in ports {
        let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) else { continue };
        let Some(number) = port.port.and_then(|port| u16::try_from(port).ok()) else { continue };
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let (port, protocol) = (format!("_{name}"), format!("_{protocol}"));
        if let Some(labels) = labels_of(&[port.as_bytes(), protocol.as_bytes()]) {
            srvs.entry(labels).or_default().push((number, *target));
        }
    }
}

/// Empty for a headless service.
fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let spec = &service.spec;
    let texts = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut ips: Vec<IpAddr> = Vec::new();
    for ip in texts.filter_map(|ip| ip.parse().ok()) {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    ips
}

/// Endpoints with an address that answer, or all of them.
fn ready(slice: &EndpointSlice, all: bool) -> impl Iterator<Item = (&Endpoint, IpAddr)> {
    let is_ip = slice.address_type == "IPv4" || slice.address_type == "IPv6";
    let endpoints = slice.endpoints.iter().filter(move |_| is_ip);
    let ready = endpoints.filter(move |e| all || e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
    ready.filter_map(|endpoint| Some((endpoint, endpoint.addresses.first()?.parse().ok()?)))
}

/// `10-42-0-7` or `fd00--7`.
fn dashed_address(label: &[u8]) -> Option<IpAddr> {
    let label = std::str::from_utf8(label).ok()?;
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

/// The full address a reverse name stands for.
fn address_of_arpa(name: &WireName) -> Option<IpAddr> {
    let mut labels = [&[][..]; 34];
    let mut count = 0;
    for label in Labels(name.as_bytes()) {
        *labels.get_mut(count)? = label;
        count += 1;
    }
    let [digits @ .., zone, b"arpa"] = &labels[..count] else { return None };
    let number = |digit: &[u8], radix| u8::from_str_radix(std::str::from_utf8(digit).ok()?, radix).ok();
    match (*zone, digits.len()) {
        (b"in-addr", 4) => {
            let mut octets = [0; 4];
            for (octet, digit) in octets.iter_mut().rev().zip(digits) {
                *octet = number(digit, 10)?;
            }
            Some(IpAddr::from(octets))
        }
        (b"ip6", 32) => {
            let mut bits = 0u128;
            for digit in digits.iter().rev() {
                bits = bits << 4 | u128::from((digit.len() == 1).then(|| number(digit, 16)).flatten()?);
            }
            Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
        }
        _ => None,
    }
}
