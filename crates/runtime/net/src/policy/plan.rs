//! From pods, namespaces and policies to what this node has to enforce. Pure: no kernel, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::cluster::{Labels, Peer, PeerSelector, Pod, Policy, Ports, Rule, labels};
use crate::gate::StartingPod;
use crate::proxy::names::fingerprint;
use crate::rules::{Destination, Protocol};
use crate::{Cidr, Family};

/// The chain of what is permitted to, or from, the pods that lead to it.
pub(super) const PERMITS: &str = "policy_permits_";
/// The addresses of the pods that one selector selects.
pub(super) const PEERS: &str = "policy_peers_";
/// Address, protocol and number of every port of one name.
pub(super) const NAMED_PORTS: &str = "policy_ports_";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Direction {
    /// Connections to the pod; the peer is their source.
    Ingress,
    /// Connections from the pod; the peer is their destination.
    Egress,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum PermittedPeer {
    Anyone,
    /// The addresses in the set of this name.
    Set(String),
    Block {
        cidr: Cidr,
        except: Vec<Cidr>,
    },
}

/// Ports of the connection's destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum PermittedPorts {
    All,
    Protocol(Protocol),
    /// First and last.
    Range(Protocol, u16, u16),
    /// The destinations in the set of this name.
    Named(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Permit {
    pub peer: PermittedPeer,
    pub ports: PermittedPorts,
}

/// What is permitted in one direction; nothing else is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Permits {
    pub direction: Direction,
    pub permits: Vec<Permit>,
}

/// The policy part of our table, complete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub chains: BTreeMap<String, Permits>,
    pub peers: BTreeMap<String, BTreeSet<IpAddr>>,
    pub named_ports: BTreeMap<String, BTreeSet<Destination>>,
    /// This node's pods that are isolated in a direction, and the chain for each.
    pub ingress: BTreeMap<IpAddr, String>,
    pub egress: BTreeMap<IpAddr, String>,
}

/// Where the plan is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Here<'a> {
    pub node: &'a str,
    /// The address families that are used.
    pub families: &'a [Family],
    /// This node's pods, as its network knows them: some are not in their objects' status yet.
    pub starting: &'a [StartingPod],
}

/// What a node has to enforce. Policies only add up: the order of the objects does not matter.
pub(super) fn plan(
    pods: &[Arc<core::Pod>],
    namespaces: &[Arc<core::Namespace>],
    policies: &[Arc<NetworkPolicy>],
    here: Here<'_>,
) -> Plan {
    let policies: Vec<Policy<'_>> = policies.iter().filter_map(|policy| Policy::resolve(policy)).collect();
    if policies.is_empty() {
        return Plan::default();
    }
    let pods = resolve(pods, here);
    let namespaces: BTreeMap<&str, &Labels> = namespaces
        .iter()
        .map(|n| (n.metadata.name.as_deref().unwrap_or_default(), labels(n.metadata.labels.as_ref())))
        .collect();
    let families = here.families;
    let mut planner =
        Planner { pods: &pods, namespaces: &namespaces, families, plan: Plan::default(), done: BTreeMap::new() };
    for pod in pods.iter().filter(|pod| pod.node == Some(here.node)) {
        let selecting: Vec<usize> = (0..policies.len())
            .filter(|&index| policies[index].namespace == pod.namespace && policies[index].pods.matches(pod.labels))
            .collect();
        if selecting.is_empty() {
            continue;
        }
        let (ingress, egress) = planner.chains(&selecting, &policies);
        for address in &pod.addresses {
            planner.plan.ingress.extend(ingress.clone().map(|chain| (*address, chain)));
            planner.plan.egress.extend(egress.clone().map(|chain| (*address, chain)));
        }
    }
    planner.plan
}

/// All pods with addresses: by their objects, and for what those do not say yet by what this node's network knows.
fn resolve<'a>(pods: &'a [Arc<core::Pod>], here: Here<'a>) -> Vec<Pod<'a>> {
    let mut starting: BTreeMap<(&str, &str), Vec<&StartingPod>> = BTreeMap::new();
    for pod in here.starting {
        starting.entry((&pod.namespace, &pod.name)).or_default().push(pod);
    }
    let mut resolved = Vec::with_capacity(pods.len());
    for pod in pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let on_this_node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(here.node);
        let known = on_this_node.then(|| starting.remove(&(namespace, name))).flatten().unwrap_or_default();
        let given: Vec<IpAddr> = known.iter().flat_map(|pod| pod.addresses.iter().copied()).collect();
        resolved.extend(Pod::resolve(pod, &given));
    }
    resolved.extend(starting.into_values().flatten().map(|pod| Pod::starting(pod, here.node)));
    resolved
}

/// Chains for ingress and egress, where there are any.
type Chains = (Option<String>, Option<String>);

struct Planner<'a> {
    pods: &'a [Pod<'a>],
    namespaces: &'a BTreeMap<&'a str, &'a Labels>,
    families: &'a [Family],
    plan: Plan,
    /// Chains by the policies they come from: most pods share them.
    done: BTreeMap<Vec<usize>, Chains>,
}

impl Planner<'_> {
    fn chains(&mut self, selecting: &[usize], policies: &[Policy<'_>]) -> Chains {
        if let Some(chains) = self.done.get(selecting) {
            return chains.clone();
        }
        let selecting_policies = || selecting.iter().filter_map(|&index| policies.get(index));
        let ingress: Vec<&[Rule]> = selecting_policies().filter_map(|policy| policy.ingress.as_deref()).collect();
        let egress: Vec<&[Rule]> = selecting_policies().filter_map(|policy| policy.egress.as_deref()).collect();
        let ingress = (!ingress.is_empty()).then(|| self.chain(Direction::Ingress, &ingress));
        let egress = (!egress.is_empty()).then(|| self.chain(Direction::Egress, &egress));
        self.done.insert(selecting.to_vec(), (ingress.clone(), egress.clone()));
        (ingress, egress)
    }

    fn chain(&mut self, direction: Direction, rules: &[&[Rule]]) -> String {
        let mut permits = Vec::new();
        for rule in rules.iter().copied().flatten() {
            let peers = match &rule.peers {
                None => vec![PermittedPeer::Anyone],
                Some(peers) => peers.iter().map(|peer| self.peer(peer)).collect(),
            };
            let ports = match &rule.ports {
                None => vec![PermittedPorts::All],
                Some(ports) => ports.iter().map(|ports| self.ports(ports)).collect(),
            };
            for peer in &peers {
                permits.extend(ports.iter().map(|ports| Permit { peer: peer.clone(), ports: ports.clone() }));
            }
        }
        let permits = Permits { direction, permits: without_repeats(permits) };
        let name = format!("{PERMITS}{}", fingerprint(format!("{:?}{permits:?}", self.families).as_bytes()));
        self.plan.chains.insert(name.clone(), permits);
        name
    }

    fn peer(&mut self, peer: &Peer) -> PermittedPeer {
        match peer {
            Peer::Block { cidr, except } => PermittedPeer::Block { cidr: *cidr, except: except.clone() },
            Peer::Pods(selector) => PermittedPeer::Set(self.peer_set(selector)),
        }
    }

    fn peer_set(&mut self, selector: &PeerSelector) -> String {
        let name = format!("{PEERS}{}", fingerprint(selector.identity().as_bytes()));
        let selected = || {
            let selected = self.pods.iter().filter(|pod| selector.matches(pod, self.namespaces));
            selected.flat_map(|pod| pod.addresses.iter().copied()).collect()
        };
        self.plan.peers.entry(name.clone()).or_insert_with(selected);
        name
    }

    /// A port's name means what the destination pod says; so one set of all pods' ports serves both directions.
    fn ports(&mut self, ports: &Ports) -> PermittedPorts {
        let (protocol, wanted) = match ports {
            Ports::All(protocol) => return PermittedPorts::Protocol(*protocol),
            Ports::Range(protocol, first, last) => return PermittedPorts::Range(*protocol, *first, *last),
            Ports::Named(protocol, name) => (*protocol, name),
        };
        let name = format!("{NAMED_PORTS}{}", fingerprint(format!("{}/{wanted}", protocol.name()).as_bytes()));
        let named = || {
            let mut named = BTreeSet::new();
            for pod in self.pods {
                let ports = pod.ports.iter().filter(|(name, of, _)| *name == wanted.as_str() && *of == protocol);
                for (_, _, number) in ports {
                    named.extend(pod.addresses.iter().map(|address| (*address, protocol, *number)));
                }
            }
            named
        };
        self.plan.named_ports.entry(name.clone()).or_insert_with(named);
        PermittedPorts::Named(name)
    }
}

fn without_repeats(permits: Vec<Permit>) -> Vec<Permit> {
    let mut seen = std::collections::HashSet::new();
    permits.into_iter().filter(|permit| seen.insert(permit.clone())).collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
