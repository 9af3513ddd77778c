//! Whose pods belong together when nothing else is said: those of one service or one owner, for default spreading.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::selecting::Labels;

/// Namespace and name.
type Name = (String, String);

#[derive(Debug, Clone, Default)]
pub(crate) struct Owners {
    /// By namespace, then name.
    services: HashMap<String, BTreeMap<String, Labels>>,
    /// Replica sets, stateful sets and replication controllers, by kind.
    sets: HashMap<(&'static str, Name), LabelSelector>,
}

impl Owners {
    pub fn set_service(&mut self, name: Name, selector: Option<Labels>) {
        let here = self.services.entry(name.0.clone()).or_default();
        match selector.filter(|selector| !selector.is_empty()) {
            Some(selector) => drop(here.insert(name.1, selector)),
            None => drop(here.remove(&name.1)),
        }
        if here.is_empty() {
            self.services.remove(&name.0);
        }
    }

    pub fn set_owner(&mut self, kind: &'static str, name: Name, selector: Option<LabelSelector>) {
        match selector {
            Some(selector) => drop(self.sets.insert((kind, name), selector)),
            None => drop(self.sets.remove(&(kind, name))),
        }
    }

    /// What selects the pod and its siblings; `None` for a pod that nobody owns.
    pub fn selector(&self, pod: &Pod) -> Option<LabelSelector> {
        let labels = pod.metadata.labels.as_ref()?;
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let mut all = LabelSelector::default();
        let services = self.services.get(&namespace).into_iter().flat_map(BTreeMap::values);
        for selector in services.filter(|s| s.iter().all(|(key, value)| labels.get(key) == Some(value))) {
            all.match_labels.get_or_insert_default().extend(selector.clone());
        }
        let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
        if let Some(owner) = owners.iter().find(|owner| owner.controller == Some(true)) {
            let kinds = ["ReplicaSet", "StatefulSet", "ReplicationController"];
            let kind = kinds.into_iter().find(|kind| *kind == owner.kind);
            if let Some(selector) = kind.and_then(|kind| self.sets.get(&(kind, (namespace, owner.name.clone())))) {
                all.match_labels.get_or_insert_default().extend(selector.match_labels.clone().unwrap_or_default());
                let expressions = selector.match_expressions.clone().unwrap_or_default();
                all.match_expressions.get_or_insert_default().extend(expressions);
            }
        }
        let some = all.match_labels.as_ref().is_some_and(|m| !m.is_empty())
            || all.match_expressions.as_ref().is_some_and(|m| !m.is_empty());
        some.then_some(all)
    }
}
