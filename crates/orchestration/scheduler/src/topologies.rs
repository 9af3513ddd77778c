//! Which domain of a topology each node is in, for the topologies that rules name.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Node;

use crate::counts::Slot;

/// A node without the topology's label is in no domain.
pub(crate) const NOWHERE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TopologyId(pub u32);

#[derive(Debug, Clone)]
pub(crate) struct Topology {
    pub key: String,
    domains: HashMap<String, u32>,
    /// Nodes in each domain.
    sizes: Vec<u32>,
    of: Vec<u32>,
    /// Domains of more than one node.
    shared: usize,
}

impl Topology {
    pub fn domain(&self, slot: Slot) -> u32 {
        self.of.get(slot as usize).copied().unwrap_or(NOWHERE)
    }

    pub fn domains(&self) -> usize {
        self.sizes.len()
    }

    /// Every node is a domain of its own, as with host names.
    pub fn is_fine(&self) -> bool {
        self.shared == 0 && self.sizes.len() > 4
    }

    fn set(&mut self, slot: Slot, value: Option<&String>) {
        let index = slot as usize;
        if self.of.len() <= index {
            self.of.resize(index + 1, NOWHERE);
        }
        let new = value.map_or(NOWHERE, |value| match self.domains.get(value) {
            Some(domain) => *domain,
            None => {
                let domain = self.sizes.len() as u32;
                self.domains.insert(value.clone(), domain);
                self.sizes.push(0);
                domain
            }
        });
        let old = std::mem::replace(&mut self.of[index], new);
        if old == new {
            return;
        }
        if let Some(size) = self.sizes.get_mut(old as usize) {
            *size -= 1;
            self.shared -= usize::from(*size == 1);
        }
        if let Some(size) = self.sizes.get_mut(new as usize) {
            *size += 1;
            self.shared += usize::from(*size == 2);
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Topologies {
    all: Vec<Topology>,
}

impl Topologies {
    pub fn get(&self, id: TopologyId) -> &Topology {
        &self.all[id.0 as usize]
    }

    pub fn find<'a>(&mut self, key: &str, nodes: impl Iterator<Item = (Slot, &'a Node)>) -> TopologyId {
        if let Some(index) = self.all.iter().position(|topology| topology.key == key) {
            return TopologyId(index as u32);
        }
        let mut topology =
            Topology { key: key.to_owned(), domains: HashMap::new(), sizes: Vec::new(), of: Vec::new(), shared: 0 };
        for (slot, node) in nodes {
            topology.set(slot, node.metadata.labels.as_ref().and_then(|labels| labels.get(key)));
        }
        self.all.push(topology);
        TopologyId(self.all.len() as u32 - 1)
    }

    /// Says whether a rule has to be worked out anew because its topology became fine or coarse.
    pub fn set_node(&mut self, slot: Slot, node: Option<&Node>) -> bool {
        let mut turned = false;
        for topology in &mut self.all {
            let before = topology.is_fine();
            let labels = node.and_then(|node| node.metadata.labels.as_ref());
            topology.set(slot, labels.and_then(|labels| labels.get(&topology.key)));
            turned |= before != topology.is_fine();
        }
        turned
    }
}
