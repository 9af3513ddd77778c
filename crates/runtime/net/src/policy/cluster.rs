//! Pods and policies as the plan needs them: resolved from the API's objects, defaults applied.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dhow_api::selectors::LabelSelector;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as SelectorObject;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::Cidr;
use crate::gate::StartingPod;
use crate::rules::Protocol;

pub(super) type Labels = BTreeMap<String, String>;

/// A pod that has addresses of its own.
pub(super) struct Pod<'a> {
    pub namespace: &'a str,
    pub labels: &'a Labels,
    pub addresses: Vec<IpAddr>,
    pub node: Option<&'a str>,
    /// Its named ports.
    pub ports: Vec<(&'a str, Protocol, u16)>,
}

static NO_LABELS: Labels = Labels::new();

pub(super) fn labels(labels: Option<&Labels>) -> &Labels {
    labels.unwrap_or(&NO_LABELS)
}

impl<'a> Pod<'a> {
    /// `None` for a pod that cannot be told from its node, has no address yet or none any more. `given` are those that
    /// its status may not have yet.
    pub fn resolve(pod: &'a core::Pod, given: &[IpAddr]) -> Option<Self> {
        let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref());
        let ended = matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
        if spec.host_network == Some(true) || ended {
            return None;
        }
        let listed = status.into_iter().flat_map(|status| {
            status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref())
        });
        let addresses: BTreeSet<IpAddr> =
            listed.filter_map(|ip| ip.parse().ok()).chain(given.iter().copied()).collect();
        if addresses.is_empty() {
            return None;
        }
        let restartable =
            spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let ports = spec.containers.iter().chain(restartable).flat_map(|c| c.ports.iter().flatten());
        Some(Self {
            namespace: pod.metadata.namespace.as_deref().unwrap_or_default(),
            labels: labels(pod.metadata.labels.as_ref()),
            addresses: addresses.into_iter().collect(),
            node: spec.node_name.as_deref(),
            ports: ports
                .filter_map(|port| {
                    let protocol = Protocol::parse(port.protocol.as_deref().unwrap_or_default())?;
                    Some((port.name.as_deref()?, protocol, u16::try_from(port.container_port).ok()?))
                })
                .collect(),
        })
    }

    /// A pod of this node whose object we do not know yet.
    pub fn starting(pod: &'a StartingPod, node: &'a str) -> Self {
        let StartingPod { namespace, labels, addresses, .. } = pod;
        Self { namespace, labels, addresses: addresses.clone(), node: Some(node), ports: Vec::new() }
    }
}

pub(super) struct Policy<'a> {
    pub namespace: &'a str,
    pub pods: LabelSelector,
    /// Absent: the policy says nothing about this direction.
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
}

/// What a rule permits: these ports of these peers.
pub(super) struct Rule {
    /// Absent: anyone.
    pub peers: Option<Vec<Peer>>,
    /// Absent: all ports of all protocols.
    pub ports: Option<Vec<Ports>>,
}

#[derive(Clone)]
pub(super) enum Peer {
    Pods(PeerSelector),
    /// Of these labels; never one's own, which no policy judges.
    Nodes(LabelSelector),
    Block {
        cidr: Cidr,
        except: Vec<Cidr>,
    },
}

#[derive(Clone)]
pub(super) struct PeerSelector {
    pub namespaces: Namespaces,
    pub pods: LabelSelector,
}

#[derive(Clone)]
pub(super) enum Namespaces {
    /// The one with this name.
    Named(String),
    Labelled(LabelSelector),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ports {
    All(Protocol),
    Range(Protocol, u16, u16),
    Named(Protocol, String),
}

impl<'a> Policy<'a> {
    pub fn resolve(policy: &'a networking::NetworkPolicy) -> Option<Self> {
        let spec = policy.spec.as_ref()?;
        let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
        let (ingress, egress) = directions(spec);
        let ingress_rules = || {
            let rules = spec.ingress.iter().flatten();
            rules.map(|rule| Rule::resolve(namespace, rule.from.as_deref(), rule.ports.as_deref())).collect()
        };
        let egress_rules = || {
            let rules = spec.egress.iter().flatten();
            rules.map(|rule| Rule::resolve(namespace, rule.to.as_deref(), rule.ports.as_deref())).collect()
        };
        Some(Self {
            namespace,
            // Absent and empty both select every pod of the namespace.
            pods: spec.pod_selector.as_ref().map_or_else(LabelSelector::default, selector),
            ingress: ingress.then(ingress_rules),
            egress: egress.then(egress_rules),
        })
    }
}

/// The directions a policy speaks of: as it says, otherwise always ingress, and egress if it has such rules.
fn directions(spec: &networking::NetworkPolicySpec) -> (bool, bool) {
    match spec.policy_types.as_deref() {
        Some(types) if !types.is_empty() => {
            let names = |direction| types.iter().any(|t| t == direction);
            (names("Ingress"), names("Egress"))
        }
        _ => (true, spec.egress.as_ref().is_some_and(|rules| !rules.is_empty())),
    }
}

impl Rule {
    fn resolve(
        namespace: &str,
        peers: Option<&[networking::NetworkPolicyPeer]>,
        ports: Option<&[networking::NetworkPolicyPort]>,
    ) -> Self {
        // What we cannot read permits nothing, but does not turn a list into "anyone".
        let peers = peers.filter(|peers| !peers.is_empty());
        let ports = ports.filter(|ports| !ports.is_empty());
        Self {
            peers: peers.map(|peers| peers.iter().filter_map(|peer| Peer::resolve(namespace, peer)).collect()),
            ports: ports.map(|ports| ports.iter().filter_map(Ports::resolve).collect()),
        }
    }
}

impl Peer {
    fn resolve(own_namespace: &str, peer: &networking::NetworkPolicyPeer) -> Option<Self> {
        if let Some(block) = &peer.ip_block {
            let except = block.except.iter().flatten().filter_map(|cidr| cidr.parse().ok()).collect();
            return Some(Self::Block { cidr: block.cidr.parse().ok()?, except });
        }
        let namespaces = match (&peer.namespace_selector, &peer.pod_selector) {
            (Some(namespaces), _) => Namespaces::Labelled(selector(namespaces)),
            (None, Some(_)) => Namespaces::Named(own_namespace.to_owned()),
            (None, None) => return None,
        };
        let pods = peer.pod_selector.as_ref().map_or_else(LabelSelector::default, selector);
        Some(Self::Pods(PeerSelector { namespaces, pods }))
    }
}

impl PeerSelector {
    /// The same for selectors that ask for the same.
    pub fn identity(&self) -> String {
        match &self.namespaces {
            Namespaces::Named(name) => format!("namespace {name} pods {}", self.pods),
            Namespaces::Labelled(labels) => format!("namespaces {labels} pods {}", self.pods),
        }
    }

    pub fn matches(&self, pod: &Pod<'_>, namespaces: &BTreeMap<&str, &Labels>) -> bool {
        let in_namespace = match &self.namespaces {
            Namespaces::Named(name) => pod.namespace == name,
            Namespaces::Labelled(selector) => namespaces.get(pod.namespace).is_some_and(|l| selector.matches(l)),
        };
        in_namespace && self.pods.matches(pod.labels)
    }
}

impl Ports {
    fn resolve(port: &networking::NetworkPolicyPort) -> Option<Self> {
        let protocol = Protocol::parse(port.protocol.as_deref().unwrap_or_default())?;
        Some(match &port.port {
            None => Self::All(protocol),
            Some(IntOrString::String(name)) => Self::Named(protocol, name.clone()),
            Some(IntOrString::Int(first)) => {
                let last = port.end_port.unwrap_or(*first);
                Self::Range(protocol, u16::try_from(*first).ok()?, u16::try_from(last).ok()?)
            }
        })
    }
}

fn selector(object: &SelectorObject) -> LabelSelector {
    readable_selector(object).unwrap_or_else(LabelSelector::nothing)
}

/// `None` where it makes no sense.
pub(super) fn readable_selector(object: &SelectorObject) -> Option<LabelSelector> {
    let value = serde_json::to_value(object).unwrap_or_default();
    LabelSelector::from_object(Some(&value))
        .inspect_err(|error| tracing::warn!(%error, "a network policy has a selector that matches nothing"))
        .ok()
}
