//! Turns the difference between the kernel and the plan into one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nlink::netlink::nftables::{Chain, SetElement, SetKeyType, Verdict};

use super::names::{CLIENTS, ENDPOINTS, EXTERNAL, PICK, SERVICE, STICKIES, STICKY};
use super::plan::{PlanContext, Step, Tables, plan};
use super::state::{Changes, State};
use crate::base_table::{NO_ENDPOINTS, SERVICE_IPS, SERVICE_NODEPORTS, filled_sets};
use crate::error::KernelContext;
use crate::kernel::{Batch, Kernel};
use crate::rules::{RuleBody, chain_name, destination_key, endpoint_type, endpoint_value, port_key};
use crate::{Net, Result};

/// Clients one endpoint remembers; a client beyond that is balanced anew each time.
const MAX_CLIENTS: u32 = 65_536;

type UdpEndpoints = BTreeMap<(Option<Ipv4Addr>, u16), BTreeSet<Ipv4Addr>>;

/// The service proxy of one node. Knows what the kernel holds, so a change costs only its difference.
#[derive(Debug)]
pub struct Proxy {
    net: Arc<Net>,
    context: PlanContext,
    state: State,
    udp: UdpEndpoints,
}

impl Proxy {
    /// Reads what the kernel holds and changes nothing.
    pub async fn open(net: Arc<Net>, node_name: &str) -> Result<Self> {
        let context = PlanContext {
            node_name: node_name.to_owned(),
            cluster_cidr: net.config().cluster_cidr,
            pod_cidr: net.config().pod_cidr,
        };
        let state = State::read(&net.kernel).await?;
        Ok(Self { net, context, state, udp: UdpEndpoints::new() })
    }

    /// Makes the kernel hold what these objects ask for. Returns the number of netlink operations of the
    /// one transaction it took, 0 when nothing had to change.
    pub async fn sync(&mut self, services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> Result<usize> {
        let tables = plan(services, slices, &self.context);
        let wanted = State::from(&tables);
        let changes = self.state.changes_to(&wanted);
        let batch = queue(&self.net.kernel, &self.net.config().table, &changes, &tables)?;
        let operations = batch.len();
        if let Err(error) = batch.commit().await {
            // Someone else may have changed our table: look again before the next try.
            self.state = State::read(&self.net.kernel).await?;
            return Err(error);
        }
        self.state = wanted;
        let before = std::mem::replace(&mut self.udp, tables.udp);
        self.forget_stale_flows(&before).await?;
        Ok(operations)
    }

    /// UDP flows have no end of their own: one that goes to a removed endpoint would go there for ever.
    async fn forget_stale_flows(&self, before: &UdpEndpoints) -> Result<()> {
        for ((address, port), endpoints) in before {
            let now = self.udp.get(&(*address, *port));
            for endpoint in endpoints.iter().filter(|e| now.is_none_or(|now| !now.contains(e))) {
                self.net.kernel.forget_udp_flows(*address, Some(*port), *endpoint).await?;
            }
        }
        Ok(())
    }
}

/// New things first, then the entries that point at them, then what nothing points at any more.
fn queue<'a>(kernel: &'a Kernel, table: &str, changes: &Changes, tables: &Tables) -> Result<Batch<'a>> {
    let mut batch = kernel.batch();
    for name in &changes.add_maps {
        if let Some(endpoints) = tables.endpoints.get(name) {
            let set = kernel.set(name).key_type(SetKeyType::Mark).map(endpoint_type());
            let elements: Vec<SetElement> = (0u32..)
                .zip(endpoints)
                .map(|(index, endpoint)| SetElement::mark(index).value(endpoint_value(*endpoint)))
                .collect();
            batch = batch.add_set(&set).add_elements(&set, &elements);
        } else if let Some(timeout) = tables.clients.get(name) {
            let clients = kernel.set(name).key_type(SetKeyType::Ipv4Addr).dynamic().timeout(*timeout);
            batch = batch.add_set(&clients.size(MAX_CLIENTS));
        }
    }
    batch = add_chains(batch, table, STICKY, changes, tables)?;
    for (name, chains) in changes.add_maps.iter().filter_map(|name| tables.stickies.get_key_value(name)) {
        let set = kernel.set(name).key_type(SetKeyType::Mark).vmap();
        let elements: Vec<SetElement> = (0u32..)
            .zip(chains)
            .map(|(index, chain)| SetElement::mark(index).verdict(Verdict::GotoTo(chain_name(chain))))
            .collect();
        batch = batch.add_set(&set).add_elements(&set, &elements);
    }
    for prefix in [PICK, SERVICE, EXTERNAL] {
        batch = add_chains(batch, table, prefix, changes, tables)?;
    }
    let sets = filled_sets(kernel);
    let set = |name: &str| sets.iter().find(|set| set.name() == name).expect("the base table has it");
    let ips = |entries: &[(crate::rules::Destination, String)]| {
        let element = |(key, chain): &(_, String)| destination_key(*key).verdict(Verdict::GotoTo(chain_name(chain)));
        entries.iter().map(element).collect::<Vec<_>>()
    };
    let ports = |entries: &[((crate::rules::Protocol, u16), String)]| {
        let element =
            |((p, n), chain): &((_, u16), String)| port_key(*p, *n).verdict(Verdict::GotoTo(chain_name(chain)));
        entries.iter().map(element).collect::<Vec<_>>()
    };
    let keys = |entries: &[crate::rules::Destination]| entries.iter().map(|d| destination_key(*d)).collect::<Vec<_>>();
    batch = batch
        .remove_elements(set(SERVICE_IPS), &ips(&changes.remove_service_ips))
        .add_elements(set(SERVICE_IPS), &ips(&changes.add_service_ips))
        .remove_elements(set(SERVICE_NODEPORTS), &ports(&changes.remove_node_ports))
        .add_elements(set(SERVICE_NODEPORTS), &ports(&changes.add_node_ports))
        .remove_elements(set(NO_ENDPOINTS), &keys(&changes.remove_no_endpoints))
        .add_elements(set(NO_ENDPOINTS), &keys(&changes.add_no_endpoints));
    for prefix in [EXTERNAL, SERVICE, PICK] {
        batch = remove_chains(batch, prefix, changes);
    }
    batch = remove_maps(batch, ENDPOINTS, changes);
    batch = remove_maps(batch, STICKIES, changes);
    batch = remove_chains(batch, STICKY, changes);
    Ok(remove_maps(batch, CLIENTS, changes))
}

/// A chain must be there before another one, or a map entry, can name it: callers go prefix by prefix.
fn add_chains<'a>(
    mut batch: Batch<'a>,
    table: &str,
    prefix: &str,
    changes: &Changes,
    tables: &Tables,
) -> Result<Batch<'a>> {
    for name in changes.add_chains.iter().filter(|name| name.starts_with(prefix)) {
        let chain = Chain::new(table, name.as_str()).doing(|| format!("name chain {name}"))?;
        batch = batch.add_chain(chain);
        for step in tables.chains.get(name).into_iter().flatten() {
            batch = batch.add_rule(name, rule(step));
        }
    }
    Ok(batch)
}

fn remove_chains<'a>(mut batch: Batch<'a>, prefix: &str, changes: &Changes) -> Batch<'a> {
    for name in changes.remove_chains.iter().filter(|name| name.starts_with(prefix)) {
        batch = batch.flush_chain(name).remove_chain(name);
    }
    batch
}

fn remove_maps<'a>(mut batch: Batch<'a>, prefix: &str, changes: &Changes) -> Batch<'a> {
    for name in changes.remove_maps.iter().filter(|name| name.starts_with(prefix)) {
        batch = batch.remove_set(name);
    }
    batch
}

fn rule(step: &Step) -> RuleBody {
    let rule = RuleBody::ipv4();
    match step {
        Step::MasqueradeUnlessFrom(cidr) => rule.not_from(*cidr).mark_for_masquerade(),
        Step::Masquerade => rule.mark_for_masquerade(),
        Step::MasqueradeFromNode => rule.sent_by_node().mark_for_masquerade(),
        Step::GotoIfFrom(cidr, chain) => rule.from(*cidr).goto(chain),
        Step::GotoIfFromNode(chain) => rule.sent_by_node().goto(chain),
        Step::Goto(chain) => rule.goto(chain),
        Step::Balance { endpoints, count } => rule.random_endpoint(endpoints, *count).dnat_to_value(),
        Step::GotoIfClient { clients, chain } => rule.client_in(clients).goto(chain),
        Step::BalanceChains { chains, count } => rule.random_verdict(chains, *count),
        Step::RememberClient { clients, timeout } => rule.remember_client(clients, *timeout),
        Step::Dnat(endpoint) => rule.dnat_to(*endpoint),
        Step::Drop => rule.drop(),
    }
}
