//! What every service asks for, and whose each address and port is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use dhow_client::Key;

use super::plan::{NodePort, Tables};
use super::state::State;
use crate::rules::Destination;

/// The tables of all services. When two claim one address and port, the one that sorts first by namespace and
/// name has it, and one without endpoints has it only if no other claims it.
#[derive(Debug, Default)]
pub(crate) struct Book {
    services: BTreeMap<Key, Tables>,
    addresses: HashMap<Destination, BTreeSet<Key>>,
    node_ports: HashMap<NodePort, BTreeSet<Key>>,
}

/// Services whose tables change, with every address and port they have or will have.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    pub keys: BTreeSet<Key>,
    addresses: BTreeSet<Destination>,
    node_ports: BTreeSet<NodePort>,
}

impl Touched {
    fn add(&mut self, tables: &Tables) {
        self.addresses.extend(addresses(tables));
        self.node_ports.extend(node_ports(tables));
    }
}

fn addresses(tables: &Tables) -> impl Iterator<Item = &Destination> {
    tables.service_ips.keys().chain(tables.balanced.keys()).chain(&tables.no_endpoints)
}

fn node_ports(tables: &Tables) -> impl Iterator<Item = &NodePort> {
    tables.node_ports.keys().chain(&tables.no_endpoint_ports)
}

impl Book {
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.services.keys()
    }

    pub fn get(&self, key: &Key) -> Option<&Tables> {
        self.services.get(key)
    }

    /// What these changes reach, before they are made.
    pub fn touched(&self, changes: &BTreeMap<Key, Option<Tables>>) -> Touched {
        let mut touched = Touched::default();
        for (key, tables) in changes {
            touched.keys.insert(key.clone());
            self.services.get(key).into_iter().chain(tables).for_each(|tables| touched.add(tables));
        }
        touched
    }

    /// Sets what the service asks for; returns what it asked for before.
    pub fn replace(&mut self, key: &Key, tables: Option<Tables>) -> Option<Tables> {
        let before = self.services.remove(key);
        if let Some(before) = &before {
            addresses(before).for_each(|address| forget(&mut self.addresses, address, key));
            node_ports(before).for_each(|port| forget(&mut self.node_ports, port, key));
        }
        if let Some(tables) = tables {
            for address in addresses(&tables) {
                self.addresses.entry(*address).or_default().insert(key.clone());
            }
            for port in node_ports(&tables) {
                self.node_ports.entry(*port).or_default().insert(key.clone());
            }
            self.services.insert(key.clone(), tables);
        }
        before
    }

    /// The part of what the kernel should hold that `touched` reaches.
    pub fn part(&self, touched: &Touched) -> State {
        let tables = touched.keys.iter().filter_map(|key| self.services.get(key));
        self.state(tables, touched.addresses.iter(), touched.node_ports.iter())
    }

    /// All the kernel should hold.
    pub fn whole(&self) -> State {
        self.state(self.services.values(), self.addresses.keys(), self.node_ports.keys())
    }

    fn state<'a>(
        &self,
        tables: impl Iterator<Item = &'a Tables>,
        addresses: impl Iterator<Item = &'a Destination>,
        node_ports: impl Iterator<Item = &'a NodePort>,
    ) -> State {
        let mut state = State::default();
        for tables in tables {
            let maps = tables.endpoints.keys().chain(tables.stickies.keys()).chain(tables.clients.keys());
            state.maps.extend(maps.cloned());
            state.chains.extend(tables.chains.keys().cloned());
        }
        for address in addresses {
            let Some(claimants) = self.addresses.get(address) else { continue };
            let served = |tables: &&Tables| !tables.no_endpoints.contains(address);
            let Some(tables) = claimants.iter().filter_map(|key| self.services.get(key)).find(served) else {
                state.no_endpoints.insert(*address);
                continue;
            };
            state.service_ips.extend(tables.service_ips.get(address).map(|chain| (*address, chain.clone())));
            state.balanced.extend(tables.balanced.get(address).map(|endpoints| (*address, endpoints.clone())));
        }
        for port in node_ports {
            let Some(claimants) = self.node_ports.get(port) else { continue };
            let first = claimants.iter().find_map(|key| self.services.get(key)?.node_ports.get(port));
            match first {
                Some(chain) => drop(state.node_ports.insert(*port, chain.clone())),
                None => drop(state.no_endpoint_ports.insert(*port)),
            }
        }
        state
    }
}

fn forget<T: Hash + Eq>(claims: &mut HashMap<T, BTreeSet<Key>>, what: &T, key: &Key) {
    if let Some(claimants) = claims.get_mut(what) {
        claimants.remove(key);
        if claimants.is_empty() {
            claims.remove(what);
        }
    }
}
