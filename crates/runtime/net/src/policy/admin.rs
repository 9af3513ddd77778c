//! Policies for the whole cluster as the plan needs them: their tiers, and ordered rules that can be read for certain.

use std::collections::BTreeMap;

use dhow_api::selectors::LabelSelector;

use super::Objects;
use super::cluster::{Labels, Namespaces, Peer, PeerSelector, Pod, Ports, Rule, readable_selector};
use super::kinds::{
    DestinationPort, PolicyPeer, PolicyPort, PolicyProtocol, PolicyRule, PolicySpec, PortRange, Transport,
};
use crate::rules::Protocol;

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Allow,
    Deny,
    /// The next tier decides.
    Pass,
}

pub(super) struct TierRule {
    pub action: Action,
    pub matches: Rule,
}

/// A policy of the tier before, or after, NetworkPolicies.
pub(super) struct TierPolicy {
    subject: PeerSelector,
    pub ingress: Vec<TierRule>,
    pub egress: Vec<TierRule>,
}

/// Both tiers, in the order in which their policies are asked.
#[derive(Default)]
pub(super) struct Tiers {
    pub admin: Vec<TierPolicy>,
    pub baseline: Vec<TierPolicy>,
}

/// After every priority that can be written.
const LAST: i32 = i32::MAX;

impl Tiers {
    pub fn resolve(objects: &Objects) -> Self {
        let mut admin: Vec<(i32, &str, &PolicySpec)> = Vec::new();
        let mut baseline = Vec::new();
        for policy in &objects.admin {
            admin.push((policy.spec.priority, policy.metadata.name.as_deref().unwrap_or_default(), &policy.spec));
        }
        for policy in &objects.baseline {
            baseline.push((LAST, policy.metadata.name.as_deref().unwrap_or_default(), &policy.spec));
        }
        for policy in &objects.cluster {
            let tier = if policy.spec.tier == "Baseline" { &mut baseline } else { &mut admin };
            tier.push((policy.spec.priority, policy.metadata.name.as_deref().unwrap_or_default(), &policy.spec));
        }
        let resolve = |mut tier: Vec<(i32, &str, &PolicySpec)>| {
            tier.sort_by_key(|(priority, name, _)| (*priority, *name));
            tier.into_iter().filter_map(|(_, _, spec)| TierPolicy::resolve(spec)).collect()
        };
        Self { admin: resolve(admin), baseline: resolve(baseline) }
    }
}

impl TierPolicy {
    /// `None` for one that selects nobody.
    fn resolve(spec: &PolicySpec) -> Option<Self> {
        let ingress = spec.ingress.iter().filter_map(|rule| TierRule::resolve(rule, &rule.from)).collect();
        let egress = spec.egress.iter().filter_map(|rule| TierRule::resolve(rule, &rule.to)).collect();
        Some(Self { subject: pods(&spec.subject)?, ingress, egress })
    }

    pub fn selects(&self, pod: &Pod<'_>, namespaces: &BTreeMap<&str, &Labels>) -> bool {
        self.subject.matches(pod, namespaces)
    }
}

impl TierRule {
    /// A rule of which something cannot be read, perhaps because it is of a later version, fails closed: it allows nothing, or
    /// denies everything.
    fn resolve(rule: &PolicyRule, peers: &[PolicyPeer]) -> Option<Self> {
        let action = match rule.action.as_str() {
            "Allow" | "Accept" => Action::Allow,
            "Pass" => Action::Pass,
            _ => Action::Deny,
        };
        match (matches(rule, peers), action) {
            (Some(matches), action) => Some(Self { action, matches }),
            (None, Action::Allow) => None,
            (None, _) => Some(Self { action: Action::Deny, matches: Rule { peers: None, ports: None } }),
        }
    }
}

fn matches(rule: &PolicyRule, peers: &[PolicyPeer]) -> Option<Rule> {
    let peers: Vec<Vec<Peer>> = peers.iter().map(peer).collect::<Option<_>>()?;
    let mut ports: Option<Vec<Ports>> = None;
    for port in rule.ports.iter().flatten() {
        ports.get_or_insert_default().extend(numbered(port)?);
    }
    for protocol in rule.protocols.iter().flatten() {
        ports.get_or_insert_default().extend(of_protocol(protocol)?);
    }
    Some(Rule { peers: Some(peers.concat()), ports })
}

fn pods(peer: &PolicyPeer) -> Option<PeerSelector> {
    let (namespaces, pods) = match (&peer.namespaces, &peer.pods) {
        (Some(namespaces), None) => (readable_selector(namespaces)?, LabelSelector::default()),
        (None, Some(pods)) => (readable_selector(&pods.namespace_selector)?, readable_selector(&pods.pod_selector)?),
        _ => return None,
    };
    Some(PeerSelector { namespaces: Namespaces::Labelled(namespaces), pods })
}

fn peer(peer: &PolicyPeer) -> Option<Vec<Peer>> {
    match (&peer.nodes, &peer.networks) {
        (None, None) => Some(vec![Peer::Pods(pods(peer)?)]),
        (Some(nodes), None) => Some(vec![Peer::Nodes(readable_selector(nodes)?)]),
        (None, Some(networks)) => {
            networks.iter().map(|cidr| Some(Peer::Block { cidr: cidr.parse().ok()?, except: Vec::new() })).collect()
        }
        (Some(_), Some(_)) => None,
    }
}

fn numbered(port: &PolicyPort) -> Option<Vec<Ports>> {
    match port {
        PolicyPort { port_number: Some(number), .. } => {
            let port = u16::try_from(number.port).ok()?;
            Some(vec![Ports::Range(Protocol::parse(&number.protocol)?, port, port)])
        }
        PolicyPort { port_range: Some(range), .. } => Some(vec![within(Protocol::parse(&range.protocol)?, range)?]),
        PolicyPort { named_port: Some(name), .. } => Some(named(name)),
        PolicyPort { port_number: None, port_range: None, named_port: None } => None,
    }
}

fn of_protocol(protocol: &PolicyProtocol) -> Option<Vec<Ports>> {
    let transport = |protocol, transport: &Transport| match &transport.destination_port {
        None => Some(Ports::All(protocol)),
        Some(DestinationPort { number: Some(number), .. }) => {
            let port = u16::try_from(*number).ok()?;
            Some(Ports::Range(protocol, port, port))
        }
        Some(DestinationPort { range: Some(range), .. }) => within(protocol, range),
        Some(_) => None,
    };
    let PolicyProtocol { tcp, udp, sctp, destination_named_port } = protocol;
    let given = [(Protocol::Tcp, tcp), (Protocol::Udp, udp), (Protocol::Sctp, sctp)];
    if let Some((of, given)) = given.into_iter().find_map(|(of, given)| Some((of, given.as_ref()?))) {
        return Some(vec![transport(of, given)?]);
    }
    destination_named_port.as_deref().map(named)
}

fn within(protocol: Protocol, range: &PortRange) -> Option<Ports> {
    Some(Ports::Range(protocol, u16::try_from(range.start).ok()?, u16::try_from(range.end).ok()?))
}

/// A name means the port whatever its protocol is.
fn named(name: &str) -> Vec<Ports> {
    PROTOCOLS.into_iter().map(|protocol| Ports::Named(protocol, name.to_owned())).collect()
}
