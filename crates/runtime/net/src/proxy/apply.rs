//! Turns the difference between the kernel and the plan into one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dhow_client::Key;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nlink::netlink::nftables::{Chain, SetElement, SetKeyType, Verdict};

use super::book::Book;
use super::health::HealthServers;
use super::names::{BALANCER, CLIENTS, ENDPOINTS, EXTERNAL, PICK, SERVICE, STICKIES, STICKY};
use super::plan::{NodePort, PlanContext, Step, Tables, plan, service_of};
use super::state::{Changes, State};
use crate::base_table::{
    BALANCED, BALANCED_ENDPOINTS, NO_ENDPOINT_PORTS, NO_ENDPOINTS, SERVICE_IPS, SERVICE_NODEPORTS, filled_sets,
};
use crate::error::KernelContext;
use crate::kernel::{Batch, Kernel};
use crate::rules::{
    Destination, Protocol, RuleBody, address_type, chain_name, destination_key, endpoint_type, endpoint_value,
    port_key, set_name, slot_key,
};
use crate::{Family, Net, Result};

/// Clients one endpoint remembers; a client beyond that is balanced anew each time.
const MAX_CLIENTS: u32 = 65_536;

/// A service as it is now with its slices, or its absence.
pub type Current = Option<(Arc<Service>, Vec<Arc<EndpointSlice>>)>;

/// UDP flows that go where they should not any more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct StaleFlows {
    address: Option<IpAddr>,
    port: u16,
    /// Absent: wherever they go.
    endpoint: Option<IpAddr>,
}

/// What we know of the kernel's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    /// Nothing: we have just started.
    None,
    /// A change failed, or was left half way: it may hold what the book says, or not.
    Doubt,
    /// It holds what the book says.
    Certain,
}

/// The service proxy of one node. Knows what the kernel holds, so a change costs only its difference.
#[derive(Debug)]
pub struct Proxy {
    net: Arc<Net>,
    context: PlanContext,
    book: Book,
    kernel: Knowledge,
    stale: BTreeSet<StaleFlows>,
    /// Whether flows to endpoints that went while we were away are forgotten.
    flows_checked: bool,
    health: HealthServers,
    /// Services whose health-check port is not as it should be yet.
    health_due: BTreeSet<Key>,
}

impl Proxy {
    /// Changes nothing; the first [`Proxy::sync`] reads what the kernel holds.
    pub fn open(net: Arc<Net>, node_name: &str) -> Self {
        let context =
            PlanContext { node_name: node_name.to_owned(), zone: None, networks: net.config().networks().collect() };
        Self {
            net,
            context,
            book: Book::default(),
            kernel: Knowledge::None,
            stale: BTreeSet::new(),
            flows_checked: false,
            health: HealthServers::default(),
            health_due: BTreeSet::new(),
        }
    }

    /// Makes the kernel hold what these objects ask for, and nothing else. Returns the number of netlink
    /// operations of the one transaction it took, 0 when nothing had to change.
    pub async fn sync(&mut self, services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> Result<usize> {
        let mut by_service: HashMap<Key, Vec<Arc<EndpointSlice>>> = HashMap::new();
        for slice in slices {
            if let Some(service) = service_of(slice) {
                by_service.entry(service).or_default().push(Arc::clone(slice));
            }
        }
        let mut changed: BTreeMap<Key, Current> = self.book.keys().map(|key| (key.clone(), None)).collect();
        for service in services {
            let key = Key::of(&service.metadata);
            let slices = by_service.remove(&key).unwrap_or_default();
            changed.insert(key, Some((Arc::clone(service), slices)));
        }
        self.update(changed).await
    }

    /// The same for the services in `changed` alone, however many others there are. After an error, the next
    /// call, even with no change, tries all that was not done again.
    pub async fn update(&mut self, changed: BTreeMap<Key, Current>) -> Result<usize> {
        let planned = changed.into_iter().map(|(key, now)| {
            let tables = now.map(|(service, slices)| plan(&service, &slices, &self.context));
            (key, tables.filter(|tables| *tables != Tables::default()))
        });
        let planned: BTreeMap<Key, Option<Tables>> =
            planned.filter(|(key, tables)| self.book.get(key) != tables.as_ref()).collect();
        let touched = self.book.touched(&planned);
        let before = self.book.part(&touched);
        self.health_due.extend(touched.keys.iter().cloned());
        for (key, tables) in planned {
            let old = self.book.replace(&key, tables);
            let new = self.book.get(&key);
            self.stale.extend(flows_to_removed(old.as_ref(), new));
            // After a restart we cannot tell new node ports from old ones, and leave their flows alone.
            if self.kernel != Knowledge::None {
                self.stale.extend(flows_past_us(old.as_ref(), new));
            }
        }
        let certain = std::mem::replace(&mut self.kernel, Knowledge::Doubt) == Knowledge::Certain;
        let (changes, keys) = if certain {
            (before.changes_to(&self.book.part(&touched)), touched.keys)
        } else {
            let held = State::read(&self.net.kernel).await?;
            (held.changes_to(&self.book.whole()), self.book.keys().cloned().collect())
        };
        let tables: Vec<&Tables> = keys.iter().filter_map(|key| self.book.get(key)).collect();
        let batch = queue(&self.net.kernel, &self.net.config().table, &changes, &tables)?;
        let operations = batch.len();
        batch.commit().await?;
        self.kernel = Knowledge::Certain;
        if !self.flows_checked {
            self.forget_flows_of_our_absence().await?;
            self.flows_checked = true;
        }
        self.forget_stale_flows().await?;
        self.answer_health_checks().await;
        Ok(operations)
    }

    /// The zone this node is in, for endpoints that are kept for a zone. Returns whether it is another than before:
    /// then all services have to be planned anew.
    pub fn set_zone(&mut self, zone: Option<String>) -> bool {
        let changed = self.context.zone != zone;
        self.context.zone = zone;
        changed
    }

    /// A port that cannot be opened now is tried again with the next change; services do not wait for it.
    async fn answer_health_checks(&mut self) {
        for key in std::mem::take(&mut self.health_due) {
            let wanted = self.book.get(&key).and_then(|tables| tables.health);
            if let Err(error) = self.health.set(&self.net, &key, wanted).await {
                tracing::warn!(%error, service = %key, "cannot answer health checks");
                self.health_due.insert(key);
            }
        }
    }

    /// What changed between the last daemon and this one is in nobody's memory: the kernel's flows are compared with
    /// what there is now.
    async fn forget_flows_of_our_absence(&self) -> Result<()> {
        let mut fronts: HashMap<(Option<IpAddr>, u16), BTreeSet<IpAddr>> = HashMap::new();
        for tables in self.book.keys().filter_map(|key| self.book.get(key)) {
            for (front, endpoints) in &tables.udp {
                fronts.entry(*front).or_default().extend(endpoints);
            }
            for (address, protocol, port) in &tables.no_endpoints {
                if *protocol == Protocol::Udp {
                    fronts.entry((Some(*address), *port)).or_default();
                }
            }
        }
        if fronts.is_empty() {
            return Ok(());
        }
        let stale = |to: IpAddr, port: u16, endpoint: IpAddr| match fronts.get(&(Some(to), port)) {
            Some(endpoints) => !endpoints.contains(&endpoint),
            // A flow to a node port that was not sent on may be one to another machine altogether.
            None => to != endpoint && fronts.get(&(None, port)).is_some_and(|now| !now.contains(&endpoint)),
        };
        let forgotten = self.net.kernel.forget_udp_flows_that(stale).await?;
        tracing::debug!(forgotten, "forgot UDP flows to endpoints that went while nobody watched");
        Ok(())
    }

    /// UDP flows have no end of their own: one that goes to a removed endpoint would go there for ever.
    async fn forget_stale_flows(&mut self) -> Result<()> {
        while let Some(flows) = self.stale.first().cloned() {
            self.net.kernel.forget_udp_flows(flows.address, Some(flows.port), flows.endpoint).await?;
            self.stale.remove(&flows);
        }
        Ok(())
    }
}

fn flows_to_removed(old: Option<&Tables>, new: Option<&Tables>) -> Vec<StaleFlows> {
    let mut stale = Vec::new();
    for (front, endpoints) in old.iter().flat_map(|tables| &tables.udp) {
        let now = new.and_then(|tables| tables.udp.get(front));
        let gone = endpoints.iter().filter(|endpoint| now.is_none_or(|now| !now.contains(endpoint)));
        stale.extend(gone.map(|e| StaleFlows { address: front.0, port: front.1, endpoint: Some(*e) }));
    }
    stale
}

/// Flows to node ports that had no endpoints until now: they go to the node itself.
fn flows_past_us(old: Option<&Tables>, new: Option<&Tables>) -> Vec<StaleFlows> {
    let held = |front| old.is_some_and(|old| old.udp.contains_key(front));
    let fresh = new.iter().flat_map(|tables| tables.udp.keys()).filter(|front| front.0.is_none() && !held(front));
    fresh.map(|(_, port)| StaleFlows { address: None, port: *port, endpoint: None }).collect()
}

/// New things first, then the entries that point at them, then what nothing points at any more.
fn queue<'a>(kernel: &'a Kernel, table: &str, changes: &Changes, tables: &[&Tables]) -> Result<Batch<'a>> {
    let mut batch = kernel.batch();
    let new = |name: &String| changes.add_maps.contains(name);
    for (name, endpoints) in tables.iter().flat_map(|t| &t.endpoints).filter(|(name, _)| new(name)) {
        let family = endpoints.first().map_or(Family::V4, |endpoint| Family::of(endpoint.ip()));
        let set = kernel.set(name).key_type(SetKeyType::Mark).map(endpoint_type(family));
        let elements: Vec<SetElement> = (0u32..)
            .zip(endpoints)
            .map(|(index, endpoint)| SetElement::mark(index).value(endpoint_value(*endpoint)))
            .collect();
        batch = batch.add_set(&set).add_elements(&set, &elements);
    }
    for (name, (family, timeout)) in tables.iter().flat_map(|t| &t.clients).filter(|(name, _)| new(name)) {
        let clients = kernel.set(name).key_type(address_type(*family)).dynamic().timeout(*timeout);
        batch = batch.add_set(&clients.size(MAX_CLIENTS));
    }
    batch = add_chains(batch, table, STICKY, changes, tables)?;
    for (name, chains) in tables.iter().flat_map(|t| &t.stickies).filter(|(name, _)| new(name)) {
        let set = kernel.set(name).key_type(SetKeyType::Mark).vmap();
        let elements: Vec<SetElement> = (0u32..)
            .zip(chains)
            .map(|(index, chain)| SetElement::mark(index).verdict(Verdict::GotoTo(chain_name(chain))))
            .collect();
        batch = batch.add_set(&set).add_elements(&set, &elements);
    }
    for prefix in [PICK, SERVICE, EXTERNAL, BALANCER] {
        batch = add_chains(batch, table, prefix, changes, tables)?;
    }
    batch = queue_entries(batch, kernel, changes);
    for prefix in [BALANCER, EXTERNAL, SERVICE, PICK] {
        batch = remove_chains(batch, prefix, changes);
    }
    batch = remove_maps(batch, ENDPOINTS, changes);
    batch = remove_maps(batch, STICKIES, changes);
    batch = remove_chains(batch, STICKY, changes);
    Ok(remove_maps(batch, CLIENTS, changes))
}

/// Entries of the maps that the base table has.
fn queue_entries<'a>(mut batch: Batch<'a>, kernel: &Kernel, changes: &Changes) -> Batch<'a> {
    let sets = filled_sets(kernel);
    for family in Family::BOTH {
        let set = |name: &str| {
            let name = set_name(family, name);
            sets.iter().find(|set| set.name() == name).expect("the base table has it")
        };
        let ours = |to: &Destination| Family::of(to.0) == family;
        let goto = |chain: &str| Verdict::GotoTo(chain_name(chain));
        let ips = |entries: &[(Destination, String)]| -> Vec<SetElement> {
            let entries = entries.iter().filter(|(to, _)| ours(to));
            entries.map(|(to, chain)| destination_key(*to).verdict(goto(chain))).collect()
        };
        let ports = |entries: &[(NodePort, String)]| -> Vec<SetElement> {
            let entries = entries.iter().filter(|((of, ..), _)| *of == family);
            entries.map(|((_, p, n), chain)| port_key(*p, *n).verdict(goto(chain))).collect()
        };
        let keys = |entries: &[Destination]| -> Vec<SetElement> {
            entries.iter().filter(|to| ours(to)).map(|to| destination_key(*to)).collect()
        };
        let port_keys = |entries: &[NodePort]| -> Vec<SetElement> {
            entries.iter().filter(|(of, ..)| *of == family).map(|(_, p, n)| port_key(*p, *n)).collect()
        };
        let slots = |slots: &[(Destination, u32, SocketAddr)]| -> Vec<SetElement> {
            let slots = slots.iter().filter(|(to, ..)| ours(to));
            slots.map(|(to, slot, endpoint)| slot_key(*to, *slot).value(endpoint_value(*endpoint))).collect()
        };
        let counts = |counts: &[(Destination, u32)]| -> Vec<SetElement> {
            let counts = counts.iter().filter(|(to, _)| ours(to));
            counts.map(|(to, count)| destination_key(*to).value(SetElement::mark(*count))).collect()
        };
        batch = batch
            .remove_elements(set(BALANCED_ENDPOINTS), &slots(&changes.remove_slots))
            .add_elements(set(BALANCED_ENDPOINTS), &slots(&changes.add_slots))
            .remove_elements(set(BALANCED), &counts(&changes.remove_counts))
            .add_elements(set(BALANCED), &counts(&changes.add_counts))
            .remove_elements(set(SERVICE_IPS), &ips(&changes.remove_service_ips))
            .add_elements(set(SERVICE_IPS), &ips(&changes.add_service_ips))
            .remove_elements(set(SERVICE_NODEPORTS), &ports(&changes.remove_node_ports))
            .add_elements(set(SERVICE_NODEPORTS), &ports(&changes.add_node_ports))
            .remove_elements(set(NO_ENDPOINTS), &keys(&changes.remove_no_endpoints))
            .add_elements(set(NO_ENDPOINTS), &keys(&changes.add_no_endpoints))
            .remove_elements(set(NO_ENDPOINT_PORTS), &port_keys(&changes.remove_no_endpoint_ports))
            .add_elements(set(NO_ENDPOINT_PORTS), &port_keys(&changes.add_no_endpoint_ports));
    }
    batch
}

/// A chain must be there before another one, or a map entry, can name it: callers go prefix by prefix.
fn add_chains<'a>(
    mut batch: Batch<'a>,
    table: &str,
    prefix: &str,
    changes: &Changes,
    tables: &[&Tables],
) -> Result<Batch<'a>> {
    let chains = tables.iter().flat_map(|t| &t.chains).filter(|(name, _)| name.starts_with(prefix));
    for (name, content) in chains.filter(|(name, _)| changes.add_chains.contains(*name)) {
        let chain = Chain::new(table, name.as_str()).doing(|| format!("name chain {name}"))?;
        batch = batch.add_chain(chain);
        for step in &content.steps {
            batch = batch.add_rule(name, rule(content.family, step));
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

fn rule(family: Family, step: &Step) -> RuleBody {
    let rule = RuleBody::of(family);
    match step {
        Step::MasqueradeUnlessFrom(cidr) => rule.not_from(*cidr).mark_for_masquerade(),
        Step::Masquerade => rule.mark_for_masquerade(),
        Step::MasqueradeFromNode => rule.sent_by_node().mark_for_masquerade(),
        Step::GotoIfFrom(cidr, chain) => rule.from(*cidr).goto(chain),
        Step::GotoIfFromNode(chain) => rule.sent_by_node().goto(chain),
        Step::Goto(chain) => rule.goto(chain),
        Step::Balance { endpoints, count } => rule.random_endpoint(endpoints, *count).dnat_to_value(),
        Step::GotoIfClient { clients, chain } => rule.source_in(clients).goto(chain),
        Step::BalanceChains { chains, count } => rule.random_verdict(chains, *count),
        Step::RememberClient { clients, timeout } => rule.remember_client(clients, *timeout),
        Step::Dnat(endpoint) => rule.dnat_to(*endpoint),
        Step::Drop => rule.drop(),
    }
}
