//! Turns the difference between the kernel and the plan into one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use nlink::netlink::nftables::{Chain as KernelChain, Set, SetElement, SetElementData, Verdict};

use super::Objects;
use super::plan::{
    ADMIN, BASELINE, ChainRule, Direction, Here, MatchedPeer, MatchedPorts, NAMED_PORTS, Outcome, PEERS, PERMITS, Plan,
    plan,
};
use crate::base_table::{POLICY_EGRESS, POLICY_INGRESS, filled_sets};
use crate::error::KernelContext;
use crate::kernel::{Batch, Kernel};
use crate::rules::{
    Destination, RuleBody, address_key, address_type, chain_name, destination_key, destination_type, read_address,
    read_destination, set_name, split_set_name,
};
use crate::{Family, Net, Result};

/// The network policies of one node.
#[derive(Debug)]
pub struct Policies {
    net: Arc<Net>,
    node_name: String,
    families: Vec<Family>,
    /// What the kernel holds; `None` when it has to be read first.
    held: Option<Held>,
}

/// Chains are known by name: it says what is in them. Sets are those of the kernel, of one family each.
#[derive(Debug, Default, PartialEq)]
struct Held {
    chains: BTreeSet<String>,
    peers: BTreeMap<String, BTreeSet<IpAddr>>,
    named_ports: BTreeMap<String, BTreeSet<Destination>>,
    ingress: BTreeMap<IpAddr, String>,
    egress: BTreeMap<IpAddr, String>,
}

impl Policies {
    /// Changes nothing; the first [`Policies::sync`] reads what the kernel holds.
    pub fn open(net: Arc<Net>, node_name: &str) -> Self {
        let families = net.config().networks().map(|networks| networks.family()).collect();
        Self { net, node_name: node_name.to_owned(), families, held: None }
    }

    /// Makes the kernel enforce what these objects ask for on this node. Returns the number of netlink operations
    /// of the one transaction it took, 0 when nothing had to change.
    pub async fn sync(&mut self, objects: &Objects) -> Result<usize> {
        let starting = self.net.gate.starting();
        let here = Here { node: &self.node_name, families: &self.families, starting: &starting.pods };
        let wanted = plan(objects, here);
        let held = match self.held.take() {
            Some(held) => held,
            None => Held::read(&self.net.kernel).await?,
        };
        // Until the transaction is through, `held` stays empty: after an error we look again.
        let target = Held::target(&wanted, &self.families);
        let batch = queue(&self.net.kernel, &self.net.config().table, &self.families, &held, &target, &wanted)?;
        let operations = batch.len();
        batch.commit().await?;
        self.held = Some(target);
        self.net.gate.enforced(starting.version);
        Ok(operations)
    }
}

impl Held {
    /// What the kernel has to hold for `plan`.
    fn target(plan: &Plan, families: &[Family]) -> Self {
        let mut target = Self {
            chains: plan.chains.keys().cloned().collect(),
            ingress: plan.ingress.clone(),
            egress: plan.egress.clone(),
            ..Self::default()
        };
        for family in families {
            for (name, peers) in &plan.peers {
                let peers = peers.iter().copied().filter(|address| Family::of(*address) == *family).collect();
                target.peers.insert(set_name(*family, name), peers);
            }
            for (name, ports) in &plan.named_ports {
                let ports = ports.iter().copied().filter(|(address, ..)| Family::of(*address) == *family).collect();
                target.named_ports.insert(set_name(*family, name), ports);
            }
        }
        target
    }

    async fn read(kernel: &Kernel) -> Result<Self> {
        let mut held = Self { chains: kernel.chains().await?.into_iter().collect(), ..Self::default() };
        held.chains.retain(|name| [ADMIN, PERMITS, BASELINE].iter().any(|prefix| name.starts_with(prefix)));
        for name in kernel.sets().await? {
            let (family, _) = split_set_name(&name);
            if name.starts_with(PEERS) {
                let elements = kernel.elements(&name).await?;
                held.peers.insert(name, elements.iter().filter_map(|e| read_address(family, e.key())).collect());
            } else if name.starts_with(NAMED_PORTS) {
                let elements = kernel.elements(&name).await?;
                let ports = elements.iter().filter_map(|e| read_destination(family, e.key())).collect();
                held.named_ports.insert(name, ports);
            }
        }
        held.ingress = read_isolated(kernel, POLICY_INGRESS).await?;
        held.egress = read_isolated(kernel, POLICY_EGRESS).await?;
        Ok(held)
    }
}

async fn read_isolated(kernel: &Kernel, map: &str) -> Result<BTreeMap<IpAddr, String>> {
    let mut isolated = BTreeMap::new();
    for family in Family::BOTH {
        let elements = kernel.elements(&set_name(family, map)).await?;
        let entry = |element: &SetElement| match element.data() {
            Some(SetElementData::Verdict(Verdict::JumpTo(chain))) => {
                Some((read_address(family, element.key())?, chain.as_str().to_owned()))
            }
            _ => None,
        };
        isolated.extend(elements.iter().filter_map(entry));
    }
    Ok(isolated)
}

/// New sets and chains first, then what points at them, then what nothing points at any more.
fn queue<'a>(
    kernel: &'a Kernel,
    table: &str,
    families: &[Family],
    held: &Held,
    target: &Held,
    plan: &Plan,
) -> Result<Batch<'a>> {
    let mut batch = kernel.batch();
    let peers = |name: &str| kernel.set(name).key_type(address_type(split_set_name(name).0));
    let named_ports = |name: &str| kernel.set(name).key_type(destination_type(split_set_name(name).0));
    batch = fill(batch, peers, &held.peers, &target.peers, |address| address_key(*address));
    batch = fill(batch, named_ports, &held.named_ports, &target.named_ports, |port| destination_key(*port));
    let new = || plan.chains.iter().filter(|(name, _)| !held.chains.contains(*name));
    // All before any rule, which may lead to another of them.
    for (name, _) in new() {
        batch = batch.add_chain(KernelChain::new(table, name.as_str()).doing(|| format!("name chain {name}"))?);
    }
    for (name, chain) in new() {
        for wanted in &chain.rules {
            for body in families.iter().filter_map(|family| matching(*family, chain.direction, wanted)) {
                batch = batch.add_rule(name, decided(body, &wanted.outcome));
            }
        }
        batch = batch.add_rule(name, decided(RuleBody::any(), &chain.otherwise));
    }
    let sets = filled_sets(kernel);
    for (map, held, target) in
        [(POLICY_INGRESS, &held.ingress, &target.ingress), (POLICY_EGRESS, &held.egress, &target.egress)]
    {
        for family in Family::BOTH {
            let name = set_name(family, map);
            let set = sets.iter().find(|set| set.name() == name).expect("the base table has it");
            let (gone, new) = (isolated(family, held, target), isolated(family, target, held));
            batch = batch.remove_elements(set, &gone).add_elements(set, &new);
        }
    }
    let unused = || held.chains.iter().filter(|name| !target.chains.contains(*name));
    batch = unused().fold(batch, |batch, name| batch.flush_chain(name));
    batch = unused().fold(batch, |batch, name| batch.remove_chain(name));
    let unused_peers = held.peers.keys().filter(|name| !target.peers.contains_key(*name));
    let unused_ports = held.named_ports.keys().filter(|name| !target.named_ports.contains_key(*name));
    for name in unused_peers.chain(unused_ports) {
        batch = batch.remove_set(name);
    }
    Ok(batch)
}

/// Makes the sets that are new, and brings the others to what is wanted.
fn fill<'a, T: Ord>(
    mut batch: Batch<'a>,
    set: impl Fn(&str) -> Set,
    held: &BTreeMap<String, BTreeSet<T>>,
    wanted: &BTreeMap<String, BTreeSet<T>>,
    element: impl Fn(&T) -> SetElement,
) -> Batch<'a> {
    let none = BTreeSet::new();
    for (name, wanted) in wanted {
        let set = set(name);
        let now = held.get(name);
        if now.is_none() {
            batch = batch.add_set(&set);
        }
        let now = now.unwrap_or(&none);
        let gone: Vec<SetElement> = now.difference(wanted).map(&element).collect();
        let new: Vec<SetElement> = wanted.difference(now).map(&element).collect();
        batch = batch.remove_elements(&set, &gone).add_elements(&set, &new);
    }
    batch
}

/// Entries of `of` that `other` lacks or has differently.
fn isolated(family: Family, of: &BTreeMap<IpAddr, String>, other: &BTreeMap<IpAddr, String>) -> Vec<SetElement> {
    let ours = of.iter().filter(|(address, _)| Family::of(**address) == family);
    let differing = ours.filter(|(address, chain)| other.get(address) != Some(chain));
    let entry =
        |(address, chain): (&IpAddr, &String)| address_key(*address).verdict(Verdict::JumpTo(chain_name(chain)));
    differing.map(entry).collect()
}

/// Goes on for what `rule` matches; `None` when that is nothing of this family.
fn matching(family: Family, direction: Direction, rule: &ChainRule) -> Option<RuleBody> {
    let ingress = direction == Direction::Ingress;
    let body = RuleBody::of(family);
    let body = match &rule.peer {
        MatchedPeer::Anyone => body,
        MatchedPeer::Set(set) if ingress => body.source_in(&set_name(family, set)),
        MatchedPeer::Set(set) => body.destination_address_in(&set_name(family, set)),
        MatchedPeer::Block { cidr, .. } if cidr.family() != family => return None,
        MatchedPeer::Block { cidr, except } => {
            let except = except.iter().filter(|except| except.family() == family);
            match ingress {
                true => except.fold(body.from(*cidr), |body, except| body.not_from(*except)),
                false => except.fold(body.to(*cidr), |body, except| body.not_to(*except)),
            }
        }
    };
    Some(match &rule.ports {
        MatchedPorts::All => body,
        MatchedPorts::Protocol(protocol) => body.protocol(*protocol),
        MatchedPorts::Range(protocol, first, last) => body.protocol(*protocol).port_within(*first..=*last),
        MatchedPorts::Named(set) => body.destination_in(&set_name(family, set)),
    })
}

/// What is allowed returns to the judging chain, where the other direction is asked.
fn decided(body: RuleBody, outcome: &Outcome) -> RuleBody {
    match outcome {
        Outcome::Allow => body.back(),
        Outcome::Deny => body.drop(),
        Outcome::Ask(chain) => body.goto(chain),
    }
}
