//! From pods, namespaces and policies to what this node has to enforce. Pure: no kernel, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use dhow_api::selectors::LabelSelector;
use k8s_openapi::api::core::v1 as core;

use super::Objects;
use super::admin::{Action, TierPolicy, TierRule, Tiers};
use super::cluster::{Labels, Peer, PeerSelector, Pod, Policy, Ports, Rule, labels};
use crate::gate::StartingPod;
use crate::proxy::names::fingerprint;
use crate::rules::{Destination, Protocol};
use crate::{Cidr, Family};

/// Chains of what administrators say before NetworkPolicies are asked.
pub(super) const ADMIN: &str = "policy_admin_";
/// The chain of what is permitted to, or from, the pods that lead to it.
pub(super) const PERMITS: &str = "policy_permits_";
/// Chains of what administrators say where no NetworkPolicy speaks.
pub(super) const BASELINE: &str = "policy_baseline_";
/// The addresses of the pods, or nodes, that one selector selects.
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
pub(super) enum MatchedPeer {
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
pub(super) enum MatchedPorts {
    All,
    Protocol(Protocol),
    /// First and last.
    Range(Protocol, u16, u16),
    /// The destinations in the set of this name.
    Named(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Allow,
    Deny,
    /// As this chain says.
    Ask(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChainRule {
    pub peer: MatchedPeer,
    pub ports: MatchedPorts,
    pub outcome: Outcome,
}

/// The first rule that matches decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub direction: Direction,
    pub rules: Vec<ChainRule>,
    /// What becomes of the rest.
    pub otherwise: Outcome,
}

/// The policy part of our table, complete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub chains: BTreeMap<String, Chain>,
    pub peers: BTreeMap<String, BTreeSet<IpAddr>>,
    pub named_ports: BTreeMap<String, BTreeSet<Destination>>,
    /// This node's pods that are judged in a direction, and the chain for each.
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

/// What a node has to enforce. The order of the objects does not matter: NetworkPolicies only add up, the others have
/// priorities and names.
pub(super) fn plan(objects: &Objects, here: Here<'_>) -> Plan {
    if objects.no_policies() {
        return Plan::default();
    }
    let policies: Vec<Policy<'_>> = objects.policies.iter().filter_map(|policy| Policy::resolve(policy)).collect();
    let tiers = Tiers::resolve(objects);
    let pods = resolve(&objects.pods, here);
    let namespaces: BTreeMap<&str, &Labels> = objects
        .namespaces
        .iter()
        .map(|n| (n.metadata.name.as_deref().unwrap_or_default(), labels(n.metadata.labels.as_ref())))
        .collect();
    let (families, nodes) = (here.families, objects.nodes.as_slice());
    let mut planner =
        Planner { pods: &pods, namespaces: &namespaces, nodes, families, plan: Plan::default(), done: BTreeMap::new() };
    for pod in pods.iter().filter(|pod| pod.node == Some(here.node)) {
        let of_tier = |tier: &[TierPolicy]| indexes(tier, |policy| policy.selects(pod, &namespaces));
        let selecting = Selecting {
            admin: of_tier(&tiers.admin),
            policies: indexes(&policies, |p| p.namespace == pod.namespace && p.pods.matches(pod.labels)),
            baseline: of_tier(&tiers.baseline),
        };
        let (ingress, egress) = planner.chains(selecting, &policies, &tiers);
        for address in &pod.addresses {
            planner.plan.ingress.extend(ingress.clone().map(|chain| (*address, chain)));
            planner.plan.egress.extend(egress.clone().map(|chain| (*address, chain)));
        }
    }
    planner.plan
}

fn indexes<T>(of: &[T], wanted: impl Fn(&T) -> bool) -> Vec<usize> {
    of.iter().enumerate().filter(|(_, one)| wanted(one)).map(|(index, _)| index).collect()
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

/// Policies of each tier that select a pod, by their places.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Selecting {
    admin: Vec<usize>,
    policies: Vec<usize>,
    baseline: Vec<usize>,
}

/// Chains for ingress and egress, where there are any.
type Chains = (Option<String>, Option<String>);

struct Planner<'a> {
    pods: &'a [Pod<'a>],
    namespaces: &'a BTreeMap<&'a str, &'a Labels>,
    nodes: &'a [Arc<core::Node>],
    families: &'a [Family],
    plan: Plan,
    /// Chains by the policies they come from: most pods share them.
    done: BTreeMap<Selecting, Chains>,
}

impl Planner<'_> {
    fn chains(&mut self, selecting: Selecting, policies: &[Policy<'_>], tiers: &Tiers) -> Chains {
        if let Some(chains) = self.done.get(&selecting) {
            return chains.clone();
        }
        let chains = (
            self.tiers(Direction::Ingress, &selecting, policies, tiers),
            self.tiers(Direction::Egress, &selecting, policies, tiers),
        );
        self.done.insert(selecting, chains.clone());
        chains
    }

    /// From the last tier to the first, each leads to the one after it. Where a NetworkPolicy speaks of this direction, what
    /// it does not permit is denied, and the baseline is not asked.
    fn tiers(
        &mut self,
        direction: Direction,
        selecting: &Selecting,
        policies: &[Policy<'_>],
        tiers: &Tiers,
    ) -> Option<String> {
        let permits: Vec<&[Rule]> = selecting
            .policies
            .iter()
            .filter_map(|&index| {
                let policy = policies.get(index)?;
                match direction {
                    Direction::Ingress => policy.ingress.as_deref(),
                    Direction::Egress => policy.egress.as_deref(),
                }
            })
            .collect();
        let last = if permits.is_empty() {
            self.tier(BASELINE, direction, &selecting.baseline, &tiers.baseline, None)
        } else {
            let rules = permits.iter().copied().flatten().flat_map(|rule| self.rules(rule, &Outcome::Allow)).collect();
            Some(self.chain(PERMITS, direction, rules, Outcome::Deny))
        };
        self.tier(ADMIN, direction, &selecting.admin, &tiers.admin, last)
    }

    /// The chain of one tier's policies; `next` is asked by what passes, and about the rest.
    fn tier(
        &mut self,
        prefix: &str,
        direction: Direction,
        selecting: &[usize],
        tier: &[TierPolicy],
        next: Option<String>,
    ) -> Option<String> {
        let policies = selecting.iter().filter_map(|&index| tier.get(index));
        let wanted: Vec<&TierRule> = policies
            .flat_map(|policy| match direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            })
            .collect();
        if wanted.is_empty() {
            return next;
        }
        let passed = next.map_or(Outcome::Allow, Outcome::Ask);
        let mut rules = Vec::new();
        for TierRule { action, matches } in wanted {
            let outcome = match action {
                Action::Allow => &Outcome::Allow,
                Action::Deny => &Outcome::Deny,
                Action::Pass => &passed,
            };
            rules.extend(self.rules(matches, outcome));
        }
        Some(self.chain(prefix, direction, rules, passed))
    }

    fn chain(&mut self, prefix: &str, direction: Direction, rules: Vec<ChainRule>, otherwise: Outcome) -> String {
        let chain = Chain { direction, rules: without_repeats(rules), otherwise };
        let name = format!("{prefix}{}", fingerprint(format!("{:?}{chain:?}", self.families).as_bytes()));
        self.plan.chains.insert(name.clone(), chain);
        name
    }

    fn rules(&mut self, rule: &Rule, outcome: &Outcome) -> Vec<ChainRule> {
        let peers = match &rule.peers {
            None => vec![MatchedPeer::Anyone],
            Some(peers) => peers.iter().map(|peer| self.peer(peer)).collect(),
        };
        let ports = match &rule.ports {
            None => vec![MatchedPorts::All],
            Some(ports) => ports.iter().map(|ports| self.ports(ports)).collect(),
        };
        let mut all = Vec::with_capacity(peers.len() * ports.len());
        for peer in &peers {
            let rule =
                |ports: &MatchedPorts| ChainRule { peer: peer.clone(), ports: ports.clone(), outcome: outcome.clone() };
            all.extend(ports.iter().map(rule));
        }
        all
    }

    fn peer(&mut self, peer: &Peer) -> MatchedPeer {
        match peer {
            Peer::Block { cidr, except } => MatchedPeer::Block { cidr: *cidr, except: except.clone() },
            Peer::Pods(selector) => MatchedPeer::Set(self.peer_set(selector)),
            Peer::Nodes(selector) => MatchedPeer::Set(self.node_set(selector)),
        }
    }

    fn node_set(&mut self, selector: &LabelSelector) -> String {
        let name = format!("{PEERS}{}", fingerprint(format!("nodes {selector}").as_bytes()));
        let selected = || {
            let selected = self.nodes.iter().filter(|node| selector.matches(labels(node.metadata.labels.as_ref())));
            let statuses = selected.filter_map(|node| node.status.as_ref());
            // Names are among the addresses.
            statuses.flat_map(|s| s.addresses.iter().flatten()).filter_map(|a| a.address.parse().ok()).collect()
        };
        self.plan.peers.entry(name.clone()).or_insert_with(selected);
        name
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
    fn ports(&mut self, ports: &Ports) -> MatchedPorts {
        let (protocol, wanted) = match ports {
            Ports::All(protocol) => return MatchedPorts::Protocol(*protocol),
            Ports::Range(protocol, first, last) => return MatchedPorts::Range(*protocol, *first, *last),
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
        MatchedPorts::Named(name)
    }
}

/// Of rules that match the same, only the first is ever asked.
fn without_repeats(rules: Vec<ChainRule>) -> Vec<ChainRule> {
    let mut seen = std::collections::HashSet::new();
    rules.into_iter().filter(|rule| seen.insert((rule.peer.clone(), rule.ports.clone()))).collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "admin_tests.rs"]
mod admin_tests;
