//! The cluster's zone as a function: a name and a type in, records out. No IO.
//!
//! Follows the Kubernetes DNS specification 1.1.0.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::{Cluster, Error, Result};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const SCHEMA_VERSION: &str = "1.1.0";

/// What the zone says to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The name is not ours: ask someone else.
    NotOurs,
    /// There is no such name.
    NoName,
    /// The name exists; `answers` may be empty for this type.
    Records { answers: Vec<Record>, additionals: Vec<Record> },
    /// An alias that leads out of the zone; the rest of the answer is elsewhere.
    Alias { alias: Box<Record>, target: Name },
}

impl Answer {
    fn records(answers: Vec<Record>) -> Self {
        Self::Records { answers, additionals: Vec::new() }
    }

    fn empty() -> Self {
        Self::records(Vec::new())
    }
}

/// The zone's fixed properties.
#[derive(Debug, Clone)]
pub struct Zone {
    apex: Name,
    ttl: u32,
}

impl Zone {
    pub fn new(domain: &str, ttl: u32) -> Result<Self> {
        let invalid = || Error::InvalidDomain(domain.to_owned());
        let mut apex = Name::from_ascii(domain).map_err(|_| invalid())?.to_lowercase();
        apex.set_fqdn(true);
        if apex.is_root() {
            return Err(invalid());
        }
        Ok(Self { apex, ttl })
    }

    /// The record that says how long "no" may be remembered.
    pub fn soa(&self) -> Record {
        let server = self.child(&["ns", "dns"]).unwrap_or_else(|| self.apex.clone());
        let mailbox = self.child(&["hostmaster"]).unwrap_or_else(|| self.apex.clone());
        let soa = SOA::new(server, mailbox, 1, 7200, 1800, 86400, self.ttl);
        Record::from_rdata(self.apex.clone(), self.ttl, RData::SOA(soa))
    }

    /// Answers from `cluster` as it is now.
    pub fn answer(&self, name: &Name, kind: RecordType, cluster: &dyn Cluster) -> Answer {
        if !self.apex.zone_of(name) {
            return match (kind, address_of_arpa(name)) {
                (RecordType::PTR, Some(ip)) => self.reverse(name, ip, cluster),
                _ => Answer::NotOurs,
            };
        }
        let depth = usize::from(name.num_labels() - self.apex.num_labels());
        let labels: Option<Vec<String>> =
            name.iter().take(depth).map(|label| std::str::from_utf8(label).ok().map(str::to_ascii_lowercase)).collect();
        // A label that is no text names nothing of ours.
        let Some(labels) = labels else { return Answer::NoName };
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match labels.as_slice() {
            [] => self.apex_records(name, kind),
            ["dns-version"] => {
                let text = RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()]));
                self.only(name, kind, RecordType::TXT, vec![text])
            }
            ["ns", "dns"] | ["dns"] | ["svc"] | ["pod"] => Answer::empty(),
            [namespace, "svc"] | [namespace, "pod"] => match cluster.namespace_exists(namespace) {
                true => Answer::empty(),
                false => Answer::NoName,
            },
            [address, namespace, "pod"] => match dashed_address(address) {
                Some(ip) if cluster.namespace_exists(namespace) => self.addresses(name, kind, &[ip]),
                _ => Answer::NoName,
            },
            [rest @ .., service, namespace, "svc"] => match cluster.service(namespace, service) {
                Some(found) => self.service(name, kind, rest, &found, cluster),
                None => Answer::NoName,
            },
            _ => Answer::NoName,
        }
    }

    fn apex_records(&self, name: &Name, kind: RecordType) -> Answer {
        match kind {
            RecordType::SOA => Answer::records(vec![self.soa()]),
            RecordType::NS => {
                let server = self.child(&["ns", "dns"]).unwrap_or_else(|| self.apex.clone());
                Answer::records(vec![self.record(name, RData::NS(NS(server)))])
            }
            _ => Answer::empty(),
        }
    }

    /// `rest` is what comes before the service's own name.
    fn service(
        &self,
        name: &Name,
        kind: RecordType,
        rest: &[&str],
        service: &Service,
        cluster: &dyn Cluster,
    ) -> Answer {
        let Some(spec) = &service.spec else { return Answer::NoName };
        if spec.type_.as_deref() == Some("ExternalName") {
            return match (rest, spec.external_name.as_deref().and_then(|n| Name::from_utf8(n).ok())) {
                ([], Some(mut target)) => {
                    target.set_fqdn(true);
                    let alias = self.record(name, RData::CNAME(CNAME(target.clone())));
                    if kind == RecordType::CNAME {
                        Answer::records(vec![alias])
                    } else {
                        Answer::Alias { alias: Box::new(alias), target }
                    }
                }
                _ => Answer::NoName,
            };
        }
        let (namespace, service_name) = names(service);
        let ips = cluster_ips(service);
        let slices = if ips.is_empty() { cluster.slices(namespace, service_name) } else { Vec::new() };
        let endpoints = || slices.iter().flat_map(|slice| ready(slice).map(move |endpoint| (slice.as_ref(), endpoint)));
        match rest {
            [] if !ips.is_empty() => self.addresses(name, kind, &ips),
            [] => {
                let found: Vec<IpAddr> = endpoints().filter_map(|(_, e)| address(e)).collect();
                if found.is_empty() { Answer::NoName } else { self.addresses(name, kind, &found) }
            }
            [label] if label.starts_with('_') => match protocol(label) {
                Some(_) => Answer::empty(),
                None => Answer::NoName,
            },
            [host] => {
                let found: Vec<IpAddr> = endpoints()
                    .filter(|(_, endpoint)| endpoint_label(endpoint).is_some_and(|l| l.eq_ignore_ascii_case(host)))
                    .filter_map(|(_, endpoint)| address(endpoint))
                    .collect();
                if found.is_empty() { Answer::NoName } else { self.addresses(name, kind, &found) }
            }
            [port, proto] => match (port.strip_prefix('_'), protocol(proto)) {
                (Some(port), Some(proto)) if !ips.is_empty() => {
                    let ports =
                        spec.ports.iter().flatten().filter(|p| {
                            p.name.as_deref() == Some(port) && p.protocol.as_deref().unwrap_or("TCP") == proto
                        });
                    let target = self.child(&[service_name, namespace, "svc"]);
                    let targets: Vec<_> = ports
                        .filter_map(|p| Some((u16::try_from(p.port).ok()?, target.clone()?, ips.clone())))
                        .collect();
                    self.srv(name, kind, targets)
                }
                (Some(port), Some(proto)) => {
                    let targets = endpoints().filter_map(|(slice, endpoint)| {
                        let found = slice.ports.iter().flatten().find(|p| {
                            p.name.as_deref() == Some(port) && p.protocol.as_deref().unwrap_or("TCP") == proto
                        })?;
                        let host = endpoint_label(endpoint)?;
                        let target = self.child(&[&host, service_name, namespace, "svc"])?;
                        Some((u16::try_from(found.port?).ok()?, target, vec![address(endpoint)?]))
                    });
                    let targets = targets.collect();
                    self.srv(name, kind, targets)
                }
                _ => Answer::NoName,
            },
            _ => Answer::NoName,
        }
    }

    fn srv(&self, name: &Name, kind: RecordType, targets: Vec<(u16, Name, Vec<IpAddr>)>) -> Answer {
        if targets.is_empty() {
            return Answer::NoName;
        }
        if !matches!(kind, RecordType::SRV | RecordType::ANY) {
            return Answer::empty();
        }
        let weight = u16::try_from(100 / targets.len()).unwrap_or(0).max(1);
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        for (port, target, ips) in targets {
            additionals.extend(ips.into_iter().map(|ip| self.record(&target, address_data(ip))));
            answers.push(self.record(name, RData::SRV(SRV::new(0, weight, port, target))));
        }
        additionals.dedup();
        Answer::Records { answers, additionals }
    }

    fn reverse(&self, name: &Name, ip: IpAddr, cluster: &dyn Cluster) -> Answer {
        if let Some(service) = cluster.service_by_ip(ip) {
            let (namespace, service_name) = names(&service);
            let target = self.child(&[service_name, namespace, "svc"]);
            return target.map_or(Answer::NotOurs, |t| Answer::records(vec![self.record(name, RData::PTR(PTR(t)))]));
        }
        let mut answers = Vec::new();
        for slice in cluster.slices_by_ip(ip) {
            let labels = slice.metadata.labels.as_ref();
            let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME_LABEL)) else { continue };
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            let headless = cluster.service(namespace, service).is_some_and(|s| cluster_ips(&s).is_empty());
            for endpoint in ready(&slice).filter(|e| headless && address(e) == Some(ip)) {
                let target = endpoint_label(endpoint).and_then(|host| self.child(&[&host, service, namespace, "svc"]));
                answers.extend(target.map(|target| self.record(name, RData::PTR(PTR(target)))));
            }
        }
        if answers.is_empty() { Answer::NotOurs } else { Answer::records(answers) }
    }

    fn addresses(&self, name: &Name, kind: RecordType, ips: &[IpAddr]) -> Answer {
        let mut answers: Vec<Record> = Vec::new();
        for ip in ips {
            let data = address_data(*ip);
            let record = self.record(name, data);
            if (kind == RecordType::ANY || kind == record.record_type()) && !answers.contains(&record) {
                answers.push(record);
            }
        }
        Answer::records(answers)
    }

    fn only(&self, name: &Name, kind: RecordType, has: RecordType, data: Vec<RData>) -> Answer {
        let matches = kind == has || kind == RecordType::ANY;
        Answer::records(data.into_iter().filter(|_| matches).map(|data| self.record(name, data)).collect())
    }

    fn record(&self, name: &Name, data: RData) -> Record {
        Record::from_rdata(name.clone(), self.ttl, data)
    }

    /// `labels` below the apex; `None` if they do not fit into a name.
    fn child(&self, labels: &[&str]) -> Option<Name> {
        let name = Name::from_labels(labels.iter().map(|label| label.as_bytes())).ok()?;
        let mut name = name.append_domain(&self.apex).ok()?;
        name.set_fqdn(true);
        Some(name)
    }
}

fn names(service: &Service) -> (&str, &str) {
    let meta = &service.metadata;
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// Empty for a headless service.
fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let mut ips: Vec<IpAddr> =
        spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).filter_map(|ip| ip.parse().ok()).collect();
    ips.dedup();
    ips
}

/// Endpoints that answer; a service that publishes unready ones has them marked ready.
fn ready(slice: &EndpointSlice) -> impl Iterator<Item = &Endpoint> {
    let is_ip = slice.address_type == "IPv4" || slice.address_type == "IPv6";
    let endpoints = slice.endpoints.iter().filter(move |_| is_ip);
    endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true))
}

fn address(endpoint: &Endpoint) -> Option<IpAddr> {
    endpoint.addresses.first()?.parse().ok()
}

/// The endpoint's host name, or its address with dashes.
fn endpoint_label(endpoint: &Endpoint) -> Option<String> {
    match endpoint.hostname.as_deref() {
        Some(hostname) if !hostname.is_empty() => Some(hostname.to_owned()),
        _ => Some(address(endpoint)?.to_string().replace(['.', ':'], "-")),
    }
}

fn address_data(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

fn protocol(label: &str) -> Option<&'static str> {
    match label {
        "_tcp" => Some("TCP"),
        "_udp" => Some("UDP"),
        "_sctp" => Some("SCTP"),
        _ => None,
    }
}

/// `10-42-0-7` or `fd00--7`.
fn dashed_address(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

/// The full address a reverse name stands for.
fn address_of_arpa(name: &Name) -> Option<IpAddr> {
    let labels: Vec<&str> = name.iter().map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
    let is = |label: &&str, text: &str| label.eq_ignore_ascii_case(text);
    match labels.as_slice() {
        [digits @ .., zone, arpa] if is(zone, "in-addr") && is(arpa, "arpa") && digits.len() == 4 => {
            let mut octets = [0; 4];
            for (octet, digit) in octets.iter_mut().rev().zip(digits) {
                *octet = digit.parse().ok()?;
            }
            Some(IpAddr::from(octets))
        }
        [digits @ .., zone, arpa] if is(zone, "ip6") && is(arpa, "arpa") && digits.len() == 32 => {
            let mut bits = 0u128;
            for digit in digits.iter().rev() {
                let nibble = (digit.len() == 1).then(|| u128::from_str_radix(digit, 16).ok()).flatten()?;
                bits = bits << 4 | nibble;
            }
            Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
        }
        _ => None,
    }
}
