//! The cluster as decisions see it: nodes, what the pods on them take, and how many pods each rule finds where.
//!
//! Every change of a node is written to a log, so that what was worked out before is repaired and not made anew.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::jiff::Timestamp;

use crate::counts::{Counts, GroupId, Slot};
use crate::dra::Devices;
use crate::owners::Owners;
use crate::resources::{Amounts, Capacity, Request};
use crate::selecting::Labels;
use crate::shape::{Carried, carried};
use crate::topologies::{Topologies, TopologyId};
use crate::volumes::attach::Inline;
use crate::volumes::{ClaimKey, Storage, claim_names};

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

/// A pod that another's end is to make room for on a node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Nominee {
    pub key: PodKey,
    pub priority: i32,
    pub request: Request,
    pub ports: Vec<HostPort>,
}

/// A node and the sum of what runs on it.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    pub(crate) name: Arc<str>,
    /// `None` while pods are known to be on a node that is not (yet or any more) in the API.
    pub node: Option<Arc<Node>>,
    pub capacity: Capacity,
    pub used: Amounts,
    pub scored_cpu: i64,
    pub scored_memory: i64,
    pub pods: i64,
    /// With how many pods hold each.
    pub ports: BTreeMap<HostPort, u32>,
    pub(crate) residents: HashSet<PodKey>,
    /// Volumes of its pods that may have to be attached, the same one as often as it is used.
    pub(crate) volumes: usize,
    pub(crate) nominees: Vec<Nominee>,
    /// Bytes by name.
    pub(crate) images: HashMap<String, i64>,
    /// Of all changes, and of those of the node's object.
    pub(crate) version: u64,
    pub(crate) object_version: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub slot: Slot,
    node: Arc<str>,
    pub request: Request,
    pub ports: Vec<HostPort>,
    pub group: GroupId,
    carried: Vec<(i64, Carried)>,
    pub claims: Vec<ClaimKey>,
    pub inline: Inline,
    pub priority: i32,
    pub started: Option<Timestamp>,
    pub uid: Option<String>,
}

impl Placed {
    fn volumes(&self) -> usize {
        self.claims.len() + self.inline.attachables.len()
    }
}

#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    rows: Vec<NodeInfo>,
    slots: HashMap<Arc<str>, Slot>,
    free: Vec<Slot>,
    live: usize,
    pods: HashMap<PodKey, Placed>,
    pub(crate) counts: Counts,
    topologies: Topologies,
    storage: Storage,
    devices: Devices,
    claims_used: HashMap<ClaimKey, u32>,
    /// On how many nodes an image is.
    image_nodes: HashMap<String, usize>,
    pub(crate) owners: Owners,
    nominated: HashMap<PodKey, Slot>,
    /// How many placed pods have each priority.
    priorities: BTreeMap<i32, usize>,
    /// What a required affinity of a placed pod weighs for those that it is about.
    hard_affinity_weight: i64,
    clock: u64,
    log: Vec<Slot>,
    log_base: u64,
    /// Changes when all that was worked out is void.
    epoch: u64,
    /// Changes when image scores do.
    images_epoch: u64,
}

impl Snapshot {
    pub fn new() -> Self {
        Self { hard_affinity_weight: 1, ..Self::default() }
    }

    pub(crate) fn set_hard_affinity_weight(&mut self, weight: i64) {
        self.hard_affinity_weight = weight;
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    pub(crate) fn storage_mut(&mut self) -> &mut Storage {
        &mut self.storage
    }

    pub(crate) fn devices(&self) -> &Devices {
        &self.devices
    }

    pub(crate) fn devices_mut(&mut self) -> &mut Devices {
        &mut self.devices
    }

    /// Nodes of the API.
    pub fn nodes(&self) -> impl Iterator<Item = (&Arc<str>, &NodeInfo, &Node)> {
        self.rows.iter().filter_map(|info| Some((&info.name, info, info.node.as_deref()?)))
    }

    pub(crate) fn live(&self) -> usize {
        self.live
    }

    pub(crate) fn size(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn row(&self, slot: Slot) -> &NodeInfo {
        &self.rows[slot as usize]
    }

    pub(crate) fn slot_of(&self, name: &str) -> Option<Slot> {
        self.slots.get(name).copied()
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let Some(name) = node.metadata.name.clone() else { return };
        let slot = self.slot(&name);
        let old = self.rows[slot as usize].node.clone();
        if old.as_deref().is_some_and(|old| !differs(old, &node)) {
            self.rows[slot as usize].node = Some(node);
            return;
        }
        let images = images_of(&node);
        if old.is_none() {
            self.live += 1;
        }
        if old.is_none() || self.rows[slot as usize].images != images {
            self.change_images(slot, images);
        }
        let relabelled = old.as_deref().is_none_or(|old| old.metadata.labels != node.metadata.labels);
        if relabelled && self.topologies.set_node(slot, Some(&node)) {
            self.epoch += 1;
        }
        let row = &mut self.rows[slot as usize];
        row.capacity = Capacity::of(&node);
        row.node = Some(node);
        row.object_version += 1;
        self.touch(slot);
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.slot_of(name) else { return };
        if self.rows[slot as usize].node.is_none() {
            return;
        }
        self.live -= 1;
        self.change_images(slot, HashMap::new());
        if self.topologies.set_node(slot, None) {
            self.epoch += 1;
        }
        let row = &mut self.rows[slot as usize];
        row.node = None;
        row.capacity = Capacity::default();
        row.object_version += 1;
        self.touch(slot);
        self.tidy(slot);
    }

    fn change_images(&mut self, slot: Slot, images: HashMap<String, i64>) {
        let row = &mut self.rows[slot as usize];
        let old = std::mem::replace(&mut row.images, images);
        for name in old.keys() {
            if let Some(count) = self.image_nodes.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.image_nodes.remove(name);
                }
            }
        }
        for name in row.images.keys() {
            *self.image_nodes.entry(name.clone()).or_default() += 1;
        }
        self.images_epoch += 1;
    }

    pub(crate) fn nodes_with_image(&self, name: &str) -> usize {
        self.image_nodes.get(name).copied().unwrap_or(0)
    }

    /// Counts `pod` on `node`, wherever it was before.
    pub fn place_pod(&mut self, key: PodKey, pod: &Pod, node: &str) {
        let request = Request::of(pod);
        let leaving = pod.metadata.deletion_timestamp.is_some();
        if let Some(there) = self.pods.get_mut(&key)
            && *there.node == *node
            && there.uid == pod.metadata.uid
            && there.request == request
            && self.counts.is_leaving(there.group) == leaving
            && pod.metadata.labels.as_ref().map_or_else(
                || self.counts.group_labels(there.group).is_empty(),
                |labels| labels == self.counts.group_labels(there.group),
            )
        {
            there.started = started(pod);
            return;
        }
        self.remove_pod(&key);
        self.unnominate(&key);
        let slot = self.slot(node);
        let no_labels = Labels::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&no_labels);
        let group = self.counts.enter(&key.0, labels, leaving, slot);
        let carried = carried(pod, self.hard_affinity_weight);
        for (weight, what) in &carried {
            self.counts.carry(what, *weight, slot);
        }
        let claims: Vec<ClaimKey> = claim_names(pod).into_iter().map(|name| (key.0.clone(), name)).collect();
        for claim in &claims {
            *self.claims_used.entry(claim.clone()).or_default() += 1;
        }
        let placed = Placed {
            slot,
            node: Arc::clone(&self.rows[slot as usize].name),
            request,
            ports: pod.spec.as_ref().map(host_ports).unwrap_or_default(),
            group,
            carried,
            claims,
            inline: Inline::of(pod),
            priority: pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0),
            started: started(pod),
            uid: pod.metadata.uid.clone(),
        };
        self.load(slot, &placed.request, &placed.ports, 1);
        let row = &mut self.rows[slot as usize];
        row.residents.insert(key.clone());
        row.volumes += placed.volumes();
        *self.priorities.entry(placed.priority).or_default() += 1;
        self.pods.insert(key, placed);
        self.touch(slot);
    }

    pub fn remove_pod(&mut self, key: &PodKey) {
        let Some(placed) = self.pods.remove(key) else { return };
        let slot = placed.slot;
        self.counts.leave(placed.group, slot);
        for (weight, what) in &placed.carried {
            self.counts.uncarry(what, *weight, slot);
        }
        for claim in &placed.claims {
            if let Some(count) = self.claims_used.get_mut(claim) {
                *count -= 1;
                if *count == 0 {
                    self.claims_used.remove(claim);
                }
            }
        }
        self.load(slot, &placed.request, &placed.ports, -1);
        let row = &mut self.rows[slot as usize];
        row.residents.remove(key);
        row.volumes -= placed.volumes();
        if let Some(count) = self.priorities.get_mut(&placed.priority) {
            *count -= 1;
            if *count == 0 {
                self.priorities.remove(&placed.priority);
            }
        }
        self.touch(slot);
        self.tidy(slot);
    }

    /// Takes a pod away for a trial; [`Snapshot::put_back`] undoes it.
    pub(crate) fn take_away(&mut self, key: &PodKey) -> Option<(Placed, Labels, bool)> {
        let placed = self.pods.get(key)?.clone();
        let (labels, leaving) = (self.counts.group_labels(placed.group).clone(), self.counts.is_leaving(placed.group));
        self.remove_pod(key);
        Some((placed, labels, leaving))
    }

    pub(crate) fn put_back(&mut self, key: PodKey, (mut placed, labels, leaving): (Placed, Labels, bool)) {
        let slot = placed.slot;
        placed.group = self.counts.enter(&key.0, &labels, leaving, slot);
        for (weight, what) in &placed.carried {
            self.counts.carry(what, *weight, slot);
        }
        for claim in &placed.claims {
            *self.claims_used.entry(claim.clone()).or_default() += 1;
        }
        self.load(slot, &placed.request, &placed.ports, 1);
        let row = &mut self.rows[slot as usize];
        row.residents.insert(key.clone());
        row.volumes += placed.volumes();
        *self.priorities.entry(placed.priority).or_default() += 1;
        self.pods.insert(key, placed);
        self.touch(slot);
    }

    fn load(&mut self, slot: Slot, request: &Request, ports: &[HostPort], sign: i64) {
        let row = &mut self.rows[slot as usize];
        if sign > 0 {
            row.used.add(&request.amounts);
        } else {
            row.used.subtract(&request.amounts);
        }
        row.scored_cpu += sign * request.scored_cpu;
        row.scored_memory += sign * request.scored_memory;
        row.pods += sign;
        for port in ports {
            if sign > 0 {
                *row.ports.entry(port.clone()).or_default() += 1;
            } else if let Some(count) = row.ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    row.ports.remove(port);
                }
            }
        }
    }

    /// Keeps room on a node for a pod that waits for others to end.
    pub(crate) fn nominate(&mut self, nominee: Nominee, node: &str) {
        self.unnominate(&nominee.key);
        let slot = self.slot(node);
        self.nominated.insert(nominee.key.clone(), slot);
        self.rows[slot as usize].nominees.push(nominee);
        self.touch(slot);
    }

    /// Gives the node that no longer keeps room for the pod.
    pub(crate) fn unnominate(&mut self, key: &PodKey) -> Option<Slot> {
        let slot = self.nominated.remove(key)?;
        self.rows[slot as usize].nominees.retain(|nominee| nominee.key != *key);
        self.touch(slot);
        self.tidy(slot);
        Some(slot)
    }

    pub(crate) fn nominated_slot(&self, key: &PodKey) -> Option<Slot> {
        self.nominated.get(key).copied()
    }

    pub(crate) fn placed_pod(&self, key: &PodKey) -> Option<&Placed> {
        self.pods.get(key)
    }

    /// Whether any placed pod is less important.
    pub(crate) fn has_below(&self, priority: i32) -> bool {
        self.priorities.first_key_value().is_some_and(|(lowest, _)| *lowest < priority)
    }

    pub(crate) fn node(&self, name: &str) -> Option<&Node> {
        self.slot_of(name).and_then(|slot| self.rows[slot as usize].node.as_deref())
    }

    pub fn node_of(&self, key: &PodKey) -> Option<&str> {
        self.pods.get(key).map(|placed| &*placed.node)
    }

    /// Whether a placed pod uses the claim.
    pub(crate) fn uses(&self, claim: &ClaimKey) -> bool {
        self.claims_used.contains_key(claim)
    }

    pub(crate) fn set_namespace(&mut self, name: &str, labels: Option<Labels>) -> bool {
        let matters = self.counts.set_namespace(name, labels);
        self.epoch += u64::from(matters);
        matters
    }

    pub(crate) fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        self.counts.namespace_labels(name)
    }

    /// The labels that pods of the same owner or service have.
    pub(crate) fn owners_selector(&self, pod: &Pod) -> Option<LabelSelector> {
        self.owners.selector(pod)
    }

    pub(crate) fn topology(&self, id: TopologyId) -> &crate::topologies::Topology {
        self.topologies.get(id)
    }

    pub(crate) fn find_topology(&mut self, key: &str) -> TopologyId {
        let rows = self.rows.iter().enumerate();
        let nodes = rows.filter_map(|(slot, row)| Some((slot as Slot, row.node.as_deref()?)));
        self.topologies.find(key, nodes)
    }

    /// What was worked out under another epoch is void.
    pub(crate) fn epoch(&self) -> (u64, u64) {
        (self.epoch, self.counts.epoch)
    }

    pub(crate) fn images_epoch(&self) -> u64 {
        self.images_epoch
    }

    pub(crate) fn log_end(&self) -> u64 {
        self.log_base + self.log.len() as u64
    }

    /// The nodes that changed since; `None` if that is too long ago to be told.
    pub(crate) fn changed_since(&self, cursor: u64) -> Option<&[Slot]> {
        let skip = cursor.checked_sub(self.log_base)?;
        self.log.get(skip as usize..)
    }

    fn touch(&mut self, slot: Slot) {
        self.clock += 1;
        self.rows[slot as usize].version = self.clock;
        if self.log.len() > 1024.max(2 * self.rows.len()) {
            let half = self.log.len() / 2;
            self.log.drain(..half);
            self.log_base += half as u64;
        }
        self.log.push(slot);
    }

    fn slot(&mut self, name: &str) -> Slot {
        if let Some(slot) = self.slots.get(name) {
            return *slot;
        }
        let name: Arc<str> = name.into();
        let row = NodeInfo { name: Arc::clone(&name), ..NodeInfo::default() };
        let slot = match self.free.pop() {
            Some(slot) => {
                let old = &self.rows[slot as usize];
                let object_version = old.object_version + 1;
                self.rows[slot as usize] = NodeInfo { object_version, ..row };
                slot
            }
            None => {
                self.rows.push(row);
                self.rows.len() as Slot - 1
            }
        };
        self.slots.insert(name, slot);
        slot
    }

    /// A slot without node, pods or nominees is free for another.
    fn tidy(&mut self, slot: Slot) {
        let row = &self.rows[slot as usize];
        let empty = row.node.is_none() && row.residents.is_empty() && row.nominees.is_empty();
        if empty && self.slots.remove(&row.name).is_some() {
            self.free.push(slot);
        }
    }
}

fn started(pod: &Pod) -> Option<Timestamp> {
    pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0)
}

fn images_of(node: &Node) -> HashMap<String, i64> {
    let images = node.status.iter().flat_map(|status| status.images.iter().flatten());
    let named = images.flat_map(|image| {
        let size = image.size_bytes.unwrap_or(0);
        image.names.iter().flatten().map(move |name| (name.clone(), size))
    });
    named.collect()
}

/// Whether a node changed in something placement looks at. Most updates are heartbeats.
fn differs(old: &Node, new: &Node) -> bool {
    let room = |node: &Node| node.status.as_ref().map(|s| (s.allocatable.clone(), s.capacity.clone()));
    let images = |node: &Node| node.status.as_ref().and_then(|s| s.images.clone());
    let disk = crate::volumes::local::room;
    disk(old) != disk(new)
        || old.metadata.labels != new.metadata.labels
        || old.spec != new.spec
        || room(old) != room(new)
        || images(old) != images(new)
}
