//! The cluster as one decision sees it: nodes, and what the pods on them take. Copies are cheap and independent.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use k8s_openapi::api::core::v1::{Node, Pod, PodAffinityTerm, PodSpec};

use crate::resources::{Amounts, Capacity, Request};
use crate::topology;
use crate::volumes::{Storage, claim_names};

/// Identifies a pod: namespace and name.
pub type PodKey = (String, String);

/// A port of the host that a pod takes. An empty address is every address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub protocol: String,
    pub address: String,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address.is_empty() || other.address.is_empty() || self.address == other.address)
    }
}

pub fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            let address = p.host_ip.clone().filter(|a| a != "0.0.0.0" && a != "::").unwrap_or_default();
            let port = p.host_port.or_else(|| (spec.host_network == Some(true)).then_some(p.container_port))?;
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            (port > 0).then_some(HostPort { protocol, address, port })
        })
        .collect()
}

/// A node and the sum of what runs on it.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    /// `None` while pods are known to be on a node that is not (yet or any more) in the API.
    pub node: Option<Arc<Node>>,
    pub capacity: Capacity,
    pub used: Amounts,
    pub scored_cpu: i64,
    pub scored_memory: i64,
    pub pods: i64,
    /// With how many pods hold each.
    pub ports: BTreeMap<HostPort, u32>,
}

#[derive(Debug, Clone)]
pub(crate) struct Placed {
    node: Arc<str>,
    request: Request,
    ports: Vec<HostPort>,
    labels: BTreeMap<String, String>,
    anti_terms: Vec<PodAffinityTerm>,
    claims: Vec<String>,
}

impl Placed {
    pub fn node(&self) -> &str {
        &self.node
    }

    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// Required anti-affinity, which also binds pods that come later.
    pub fn anti_terms(&self) -> &[PodAffinityTerm] {
        &self.anti_terms
    }

    /// The names of the claims it uses.
    pub fn claims(&self) -> &[String] {
        &self.claims
    }
}

#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    nodes: OrdMap<Arc<str>, Arc<NodeInfo>>,
    pods: OrdMap<PodKey, Arc<Placed>>,
    /// How many placed pods have anti-affinity terms.
    with_anti_terms: usize,
    storage: Storage,
}

impl Snapshot {
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    pub(crate) fn storage_mut(&mut self) -> &mut Storage {
        &mut self.storage
    }

    /// Nodes of the API, in the order of their names.
    pub fn nodes(&self) -> impl Iterator<Item = (&Arc<str>, &NodeInfo, &Node)> {
        self.nodes.iter().filter_map(|(name, info)| Some((name, &**info, info.node.as_deref()?)))
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let Some(name) = node.metadata.name.clone() else { return };
        self.change(&name, |info| {
            info.capacity = Capacity::of(&node);
            info.node = Some(node);
        });
    }

    pub fn remove_node(&mut self, name: &str) {
        self.change(name, |info| {
            info.node = None;
            info.capacity = Capacity::default();
        });
    }

    /// Counts `pod` on `node`, wherever it was before.
    pub fn place_pod(&mut self, key: PodKey, pod: &Pod, node: &str) {
        self.remove_pod(&key);
        let ports = pod.spec.as_ref().map(host_ports).unwrap_or_default();
        let anti_terms = pod.spec.as_ref().map(|s| topology::anti_terms(s).to_vec()).unwrap_or_default();
        self.with_anti_terms += usize::from(!anti_terms.is_empty());
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let placed = Placed {
            node: node.into(),
            request: Request::of(pod),
            ports,
            labels,
            anti_terms,
            claims: claim_names(pod),
        };
        self.change(node, |info| {
            info.used.add(&placed.request.amounts);
            info.scored_cpu += placed.request.scored_cpu;
            info.scored_memory += placed.request.scored_memory;
            info.pods += 1;
            for port in &placed.ports {
                *info.ports.entry(port.clone()).or_default() += 1;
            }
        });
        self.pods.insert(key, Arc::new(placed));
    }

    pub fn remove_pod(&mut self, key: &PodKey) {
        let Some(placed) = self.pods.remove(key) else { return };
        self.with_anti_terms -= usize::from(!placed.anti_terms.is_empty());
        self.change(&placed.node, |info| {
            info.used.subtract(&placed.request.amounts);
            info.scored_cpu -= placed.request.scored_cpu;
            info.scored_memory -= placed.request.scored_memory;
            info.pods -= 1;
            for port in &placed.ports {
                if let Some(count) = info.ports.get_mut(port) {
                    *count -= 1;
                    if *count == 0 {
                        info.ports.remove(port);
                    }
                }
            }
        });
    }

    pub(crate) fn placed(&self) -> impl Iterator<Item = (&PodKey, &Placed)> {
        self.pods.iter().map(|(key, placed)| (key, &**placed))
    }

    pub(crate) fn placed_pod(&self, key: &PodKey) -> Option<&Placed> {
        self.pods.get(key).map(|placed| &**placed)
    }

    pub(crate) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name).and_then(|info| info.node.as_deref())
    }

    pub(crate) fn has_anti_terms(&self) -> bool {
        self.with_anti_terms > 0
    }

    pub fn node_of(&self, key: &PodKey) -> Option<&str> {
        self.pods.get(key).map(|placed| &*placed.node)
    }

    fn change(&mut self, name: &str, f: impl FnOnce(&mut NodeInfo)) {
        let mut info = self.nodes.get(name).map(|info| NodeInfo::clone(info)).unwrap_or_default();
        f(&mut info);
        if info.node.is_none() && info.pods == 0 {
            self.nodes.remove(name);
        } else {
            self.nodes.insert(name.into(), Arc::new(info));
        }
    }
}
