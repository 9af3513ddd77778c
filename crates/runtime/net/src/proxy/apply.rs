//! Turns the difference between the kernel and the plan into one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nlink::netlink::nftables::{Chain, Set, SetElement, SetElementData, SetKeyType, Verdict};

use super::names::{EXTERNAL, PICK, SERVICE};
use super::plan::{PlanContext, Step, Tables, plan};
use super::state::{Changes, State};
use crate::base_table::{NO_ENDPOINTS, SERVICE_IPS, SERVICE_NODEPORTS, filled_sets};
use crate::error::KernelContext;
use crate::kernel::{Batch, Kernel};
use crate::rules::{RuleBody, chain_name, destination_key, endpoint_type, endpoint_value, port_key, read_endpoint};
use crate::{Net, Result};

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
        if operations > 0 {
            self.forget_stale_clients(&tables).await?;
        }
        let before = std::mem::replace(&mut self.udp, tables.udp);
        self.forget_stale_flows(&before).await?;
        Ok(operations)
    }

    /// Clients remembered for an endpoint that is gone get a new one.
    async fn forget_stale_clients(&self, tables: &Tables) -> Result<()> {
        for (name, (_, endpoints)) in &tables.affinity {
            let held = self.net.kernel.elements(name).await?;
            let stale: Vec<SetElement> = held
                .into_iter()
                .filter(|element| match element.data() {
                    Some(SetElementData::Value(value)) => {
                        read_endpoint(value).is_none_or(|endpoint| !endpoints.contains(&endpoint))
                    }
                    _ => false,
                })
                .map(|element| SetElement::new(element.key().to_vec()))
                .collect();
            let set = affinity_set(&self.net.kernel, name);
            for client in stale {
                // One by one: an entry may expire in between, and that is fine.
                let batch = self.net.kernel.batch().remove_elements(&set, &[client]);
                if let Err(error) = batch.commit().await {
                    tracing::debug!(map = %name, %error, "a remembered client was gone already");
                }
            }
        }
        Ok(())
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
        } else if let Some((timeout, _)) = tables.affinity.get(name) {
            batch = batch.add_set(&affinity_set(kernel, name).timeout(*timeout));
        }
    }
    // A chain must be there before another one, or a map entry, can name it.
    for prefix in [PICK, SERVICE, EXTERNAL] {
        for name in changes.add_chains.iter().filter(|name| name.starts_with(prefix)) {
            let chain = Chain::new(table, name.as_str()).doing(|| format!("name chain {name}"))?;
            batch = batch.add_chain(chain);
            for step in tables.chains.get(name).into_iter().flatten() {
                batch = batch.add_rule(name, rule(step));
            }
        }
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
        for name in changes.remove_chains.iter().filter(|name| name.starts_with(prefix)) {
            batch = batch.flush_chain(name).remove_chain(name);
        }
    }
    for name in &changes.remove_maps {
        batch = batch.remove_set(name);
    }
    Ok(batch)
}

fn affinity_set(kernel: &Kernel, name: &str) -> Set {
    kernel.set(name).key_type(SetKeyType::Ipv4Addr).map(endpoint_type()).dynamic().per_element_timeouts().size(65_536)
}

fn rule(step: &Step) -> RuleBody {
    let rule = RuleBody::ipv4();
    match step {
        Step::MasqueradeUnlessFrom(cidr) => rule.not_from(*cidr).mark_for_masquerade(),
        Step::Masquerade => rule.mark_for_masquerade(),
        Step::MasqueradeFromNode => rule.from_node().mark_for_masquerade(),
        Step::GotoIfFrom(cidr, chain) => rule.from(*cidr).goto(chain),
        Step::GotoIfFromNode(chain) => rule.from_node().goto(chain),
        Step::Goto(chain) => rule.goto(chain),
        Step::Sticky { affinity, timeout } => {
            rule.sticky_endpoint(affinity).remember_endpoint(affinity, *timeout).dnat_to_value()
        }
        Step::Balance { endpoints, count, affinity } => {
            let picked = rule.random_endpoint(endpoints, *count);
            match affinity {
                Some((map, timeout)) => picked.remember_endpoint(map, *timeout).dnat_to_value(),
                None => picked.dnat_to_value(),
            }
        }
        Step::Drop => rule.drop(),
    }
}
