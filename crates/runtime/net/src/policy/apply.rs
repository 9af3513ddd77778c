//! Turns the difference between the kernel and the plan into one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use nlink::netlink::nftables::{Chain, Set, SetElement, SetElementData, SetKeyType, Verdict};

use super::plan::{Direction, NAMED_PORTS, PEERS, PERMITS, Permit, Permits, PermittedPeer, PermittedPorts, Plan, plan};
use crate::base_table::{POLICY_EGRESS, POLICY_INGRESS, filled_sets};
use crate::error::KernelContext;
use crate::kernel::{Batch, Kernel};
use crate::rules::{Destination, RuleBody, chain_name, destination_key, destination_type, read_destination};
use crate::{Net, Result};

/// The network policies of one node.
#[derive(Debug)]
pub struct Policies {
    net: Arc<Net>,
    node_name: String,
    /// What the kernel holds; `None` when it has to be read first.
    held: Option<Held>,
}

/// Chains are known by name: it says what is in them.
#[derive(Debug, Default)]
struct Held {
    chains: BTreeSet<String>,
    peers: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    named_ports: BTreeMap<String, BTreeSet<Destination>>,
    ingress: BTreeMap<Ipv4Addr, String>,
    egress: BTreeMap<Ipv4Addr, String>,
}

impl Policies {
    /// Changes nothing; the first [`Policies::sync`] reads what the kernel holds.
    pub fn open(net: Arc<Net>, node_name: &str) -> Self {
        Self { net, node_name: node_name.to_owned(), held: None }
    }

    /// Makes the kernel enforce what these objects ask for on this node. Returns the number of netlink operations
    /// of the one transaction it took, 0 when nothing had to change.
    pub async fn sync(
        &mut self,
        pods: &[Arc<Pod>],
        namespaces: &[Arc<Namespace>],
        policies: &[Arc<NetworkPolicy>],
    ) -> Result<usize> {
        let wanted = plan(pods, namespaces, policies, &self.node_name);
        let held = match self.held.take() {
            Some(held) => held,
            None => Held::read(&self.net.kernel).await?,
        };
        // Until the transaction is through, `held` stays empty: after an error we look again.
        let batch = queue(&self.net.kernel, &self.net.config().table, &held, &wanted)?;
        let operations = batch.len();
        batch.commit().await?;
        self.held = Some(Held {
            chains: wanted.chains.into_keys().collect(),
            peers: wanted.peers,
            named_ports: wanted.named_ports,
            ingress: wanted.ingress,
            egress: wanted.egress,
        });
        Ok(operations)
    }
}

impl Held {
    async fn read(kernel: &Kernel) -> Result<Self> {
        let mut held = Self { chains: kernel.chains().await?.into_iter().collect(), ..Self::default() };
        held.chains.retain(|name| name.starts_with(PERMITS));
        for name in kernel.sets().await? {
            if name.starts_with(PEERS) {
                let elements = kernel.elements(&name).await?;
                held.peers.insert(name, elements.iter().filter_map(|e| read_address(e.key())).collect());
            } else if name.starts_with(NAMED_PORTS) {
                let elements = kernel.elements(&name).await?;
                held.named_ports.insert(name, elements.iter().filter_map(|e| read_destination(e.key())).collect());
            }
        }
        held.ingress = read_isolated(kernel, POLICY_INGRESS).await?;
        held.egress = read_isolated(kernel, POLICY_EGRESS).await?;
        Ok(held)
    }
}

async fn read_isolated(kernel: &Kernel, map: &str) -> Result<BTreeMap<Ipv4Addr, String>> {
    let elements = kernel.elements(map).await?;
    let entry = |element: &SetElement| match element.data() {
        Some(SetElementData::Verdict(Verdict::JumpTo(chain))) => {
            Some((read_address(element.key())?, chain.as_str().to_owned()))
        }
        _ => None,
    };
    Ok(elements.iter().filter_map(entry).collect())
}

fn read_address(key: &[u8]) -> Option<Ipv4Addr> {
    key.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

/// New sets and chains first, then what points at them, then what nothing points at any more.
fn queue<'a>(kernel: &'a Kernel, table: &str, held: &Held, wanted: &Plan) -> Result<Batch<'a>> {
    let mut batch = kernel.batch();
    let peers = |name: &str| kernel.set(name).key_type(SetKeyType::Ipv4Addr);
    let named_ports = |name: &str| kernel.set(name).key_type(destination_type());
    batch = fill(batch, peers, &held.peers, &wanted.peers, |address| SetElement::ipv4(*address));
    batch = fill(batch, named_ports, &held.named_ports, &wanted.named_ports, |port| destination_key(*port));
    for (name, permits) in wanted.chains.iter().filter(|(name, _)| !held.chains.contains(*name)) {
        batch = batch.add_chain(Chain::new(table, name.as_str()).doing(|| format!("name chain {name}"))?);
        for permit in &permits.permits {
            batch = batch.add_rule(name, rule(permits, permit));
        }
        batch = batch.add_rule(name, RuleBody::any().drop());
    }
    let sets = filled_sets(kernel);
    for (map, held, wanted) in
        [(POLICY_INGRESS, &held.ingress, &wanted.ingress), (POLICY_EGRESS, &held.egress, &wanted.egress)]
    {
        let set = sets.iter().find(|set| set.name() == map).expect("the base table has it");
        batch = batch.remove_elements(set, &isolated(held, wanted)).add_elements(set, &isolated(wanted, held));
    }
    for name in held.chains.iter().filter(|name| !wanted.chains.contains_key(*name)) {
        batch = batch.flush_chain(name).remove_chain(name);
    }
    let unused_peers = held.peers.keys().filter(|name| !wanted.peers.contains_key(*name));
    let unused_ports = held.named_ports.keys().filter(|name| !wanted.named_ports.contains_key(*name));
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
fn isolated(of: &BTreeMap<Ipv4Addr, String>, other: &BTreeMap<Ipv4Addr, String>) -> Vec<SetElement> {
    let differing = of.iter().filter(|(address, chain)| other.get(address) != Some(chain));
    let entry =
        |(address, chain): (&Ipv4Addr, &String)| SetElement::ipv4(*address).verdict(Verdict::JumpTo(chain_name(chain)));
    differing.map(entry).collect()
}

/// Returns to the judging chain for what `permit` permits.
fn rule(permits: &Permits, permit: &Permit) -> RuleBody {
    let ingress = permits.direction == Direction::Ingress;
    let body = RuleBody::ipv4();
    let body = match &permit.peer {
        PermittedPeer::Anyone => body,
        PermittedPeer::Set(set) if ingress => body.source_in(set),
        PermittedPeer::Set(set) => body.destination_address_in(set),
        PermittedPeer::Block { cidr, except } if ingress => {
            except.iter().fold(body.from(*cidr), |body, except| body.not_from(*except))
        }
        PermittedPeer::Block { cidr, except } => {
            except.iter().fold(body.to(*cidr), |body, except| body.not_to(*except))
        }
    };
    let body = match &permit.ports {
        PermittedPorts::All => body,
        PermittedPorts::Protocol(protocol) => body.protocol(*protocol),
        PermittedPorts::Range(protocol, first, last) => body.protocol(*protocol).port_within(*first..=*last),
        PermittedPorts::Named(set) => body.destination_in(set),
    };
    body.back()
}
