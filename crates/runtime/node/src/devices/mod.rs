//! Devices that plugins bring to the node: which there are, and which container has which.
//!
//! A device is given to a container when its pod is let in, and kept until the pod is over. What is given is in a file, so
//! that a restart of the agent changes nothing.

mod checkpoint;
mod choose;
mod equip;
mod plugin;
mod registration;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dhow_plugins::device as proto;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, ResourceHealth, ResourceStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::containers::is_sidecar;
use crate::resources::{List, whole};
use checkpoint::{Given, Share};
use plugin::Plugin;
pub use registration::{VERSION, follow, run};

/// For so long a plugin may be away before what it brought is no longer counted.
const AWAY: Duration = Duration::from_secs(300);

/// One kind of device.
#[derive(Default)]
struct Resource {
    /// By id, whether it is healthy.
    devices: BTreeMap<String, bool>,
    plugin: Option<Arc<Plugin>>,
}

#[derive(Default)]
struct State {
    resources: BTreeMap<String, Resource>,
    given: Given,
}

/// What a node has of devices: all, and those that can be used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    pub capacity: List,
    pub allocatable: List,
}

pub struct Devices {
    folder: PathBuf,
    state: Mutex<State>,
    /// Pods are given devices one after another.
    giving: tokio::sync::Mutex<()>,
    counts: watch::Sender<Counts>,
    /// Told the pods whose devices changed.
    changed: Mutex<Option<Listener>>,
}

/// Is told of a pod by its uid.
type Listener = Box<dyn Fn(&str) + Send + Sync>;

impl Devices {
    pub fn new(root: &Path) -> Self {
        let folder = root.join("device-plugins");
        let given = Given::read(&folder);
        let resources = given.resources.iter().map(|name| (name.clone(), Resource::default())).collect();
        let devices = Self {
            folder,
            state: Mutex::new(State { resources, given }),
            giving: tokio::sync::Mutex::default(),
            counts: watch::Sender::default(),
            changed: Mutex::default(),
        };
        devices.count(&devices.state.lock());
        devices
    }

    pub fn counts(&self) -> watch::Receiver<Counts> {
        self.counts.subscribe()
    }

    /// Whom to tell of pods, by uid, whose devices changed.
    pub fn on_change(&self, told: impl Fn(&str) + Send + Sync + 'static) {
        *self.changed.lock() = Some(Box::new(told));
    }

    fn count(&self, state: &State) {
        let mut counts = Counts::default();
        for (name, resource) in &state.resources {
            let healthy = resource.devices.values().filter(|healthy| **healthy).count();
            counts.capacity.insert(name.clone(), Quantity(resource.devices.len().to_string()));
            counts.allocatable.insert(name.clone(), Quantity(healthy.to_string()));
        }
        self.counts.send_if_modified(|old| {
            let changed = *old != counts;
            *old = counts;
            changed
        });
    }

    /// Takes a plugin in, in place of one before it.
    fn connect(&self, resource: &str, plugin: &Arc<Plugin>) {
        let mut state = self.state.lock();
        state.resources.entry(resource.to_owned()).or_default().plugin = Some(Arc::clone(plugin));
        if state.given.resources.insert(resource.to_owned()) {
            self.save(&state.given);
        }
    }

    fn is_current(&self, resource: &str, plugin: &Arc<Plugin>) -> bool {
        let state = self.state.lock();
        let own = state.resources.get(resource).and_then(|resource| resource.plugin.as_ref());
        own.is_some_and(|own| Arc::ptr_eq(own, plugin))
    }

    /// A plugin told of its devices.
    fn update(&self, resource: &str, plugin: &Arc<Plugin>, devices: Vec<proto::Device>) {
        if !self.is_current(resource, plugin) {
            return;
        }
        let now = devices.into_iter().map(|device| (device.id, device.health == "Healthy")).collect();
        self.set(resource, now);
    }

    /// A plugin went away: nothing of it can be used, and after a while nothing is counted.
    async fn lost(&self, resource: &str, plugin: &Arc<Plugin>) {
        if !self.is_current(resource, plugin) {
            return;
        }
        let sick = {
            let mut state = self.state.lock();
            let Some(own) = state.resources.get_mut(resource) else { return };
            own.devices.keys().map(|id| (id.clone(), false)).collect()
        };
        self.set(resource, sick);
        tokio::time::sleep(AWAY).await;
        if self.is_current(resource, plugin) {
            self.set(resource, BTreeMap::new());
        }
    }

    fn set(&self, resource: &str, now: BTreeMap<String, bool>) {
        let holders = {
            let mut state = self.state.lock();
            let own = state.resources.entry(resource.to_owned()).or_default();
            let changed = |id: &String| own.devices.get(id) != now.get(id);
            let touched: BTreeSet<String> =
                own.devices.keys().chain(now.keys()).filter(|id| changed(id)).cloned().collect();
            own.devices = now;
            self.count(&state);
            state.given.holders(resource, &touched)
        };
        if let Some(told) = self.changed.lock().as_ref() {
            holders.iter().for_each(|uid| told(uid));
        }
    }

    fn save(&self, given: &Given) {
        if let Err(error) = given.write(&self.folder) {
            tracing::warn!(%error, "cannot remember which devices are given to pods");
        }
    }

    /// Gives a pod the devices that it asks for, or says why not.
    pub async fn give(&self, pod: &Pod) -> Result<(), String> {
        let (Some(spec), Some(uid)) = (&pod.spec, &pod.metadata.uid) else { return Ok(()) };
        let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
        if !all().any(|container| self.asked(container).next().is_some()) {
            return Ok(());
        }
        let _one = self.giving.lock().await;
        // What an init container is done with, those after it may have.
        let mut left: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for container in all() {
            let is_init = spec.init_containers.iter().flatten().any(|init| init.name == container.name);
            for (resource, count) in self.asked(container).collect::<Vec<_>>() {
                let known =
                    self.state.lock().given.share(uid, &container.name, &resource).map(|share| share.ids.clone());
                let again = left.get(&resource).cloned().unwrap_or_default();
                let ids = match known {
                    Some(ids) => ids,
                    None => match self.give_one(uid, &container.name, &resource, count, &again).await {
                        Ok(ids) => ids,
                        Err(error) => {
                            self.take_back(uid);
                            return Err(format!("Allocate failed due to {error}, which is unexpected"));
                        }
                    },
                };
                let left = left.entry(resource).or_default();
                match is_init && !is_sidecar(container) {
                    true => left.extend(ids),
                    false => left.retain(|id| !ids.contains(id)),
                }
            }
        }
        Ok(())
    }

    /// Kinds of devices that a container asks for, and how many of each.
    fn asked<'a>(&'a self, container: &'a Container) -> impl Iterator<Item = (String, usize)> + 'a {
        let limits = container.resources.iter().flat_map(|own| own.limits.iter().flatten());
        limits.filter_map(|(name, quantity)| {
            let count = whole(&quantity.0).and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0)?;
            self.state.lock().resources.contains_key(name).then(|| (name.clone(), count))
        })
    }

    async fn give_one(
        &self,
        uid: &str,
        container: &str,
        resource: &str,
        count: usize,
        again: &BTreeSet<String>,
    ) -> Result<BTreeSet<String>, String> {
        let (plugin, free) = {
            let state = self.state.lock();
            let own = state
                .resources
                .get(resource)
                .ok_or_else(|| format!("cannot allocate unregistered device {resource}"))?;
            let used = state.given.used(resource);
            let healthy = own.devices.iter().filter(|(_, healthy)| **healthy).map(|(id, _)| id.clone());
            let free: BTreeSet<String> = healthy.filter(|id| !used.contains(id) || again.contains(id)).collect();
            (own.plugin.clone(), free)
        };
        let must: BTreeSet<String> = again.iter().filter(|id| free.contains(*id)).take(count).cloned().collect();
        if free.len() < count {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {}, Available: {}",
                count - must.len(),
                free.len() - must.len()
            ));
        }
        let plugin = plugin.ok_or_else(|| format!("cannot allocate unregistered device {resource}"))?;
        let preferred = match plugin.options.get_preferred_allocation_available && free.len() > count {
            true => Some(plugin.preferred(&free, &must, count).await?),
            false => None,
        };
        let ids = choose::choose(&free, &must, count, preferred);
        let answer = plugin.allocate(&ids).await?;
        let mut state = self.state.lock();
        state.given.add(uid, container, resource, Share { ids: ids.clone(), answer });
        self.save(&state.given);
        Ok(ids)
    }

    /// A pod is over: others may have what it had.
    pub fn take_back(&self, uid: &str) {
        let mut state = self.state.lock();
        if state.given.pods.remove(uid).is_some() {
            self.save(&state.given);
        }
    }

    /// Takes back from pods that are not among these.
    pub fn keep_only(&self, known: &BTreeSet<String>) {
        let gone: Vec<String> =
            self.state.lock().given.pods.keys().filter(|uid| !known.contains(*uid)).cloned().collect();
        gone.iter().for_each(|uid| self.take_back(uid));
    }

    /// Adds to a pod's status how its devices are.
    pub fn show(&self, uid: &str, status: &mut PodStatus) {
        let state = self.state.lock();
        let Some(pod) = state.given.pods.get(uid) else { return };
        let lists = [&mut status.init_container_statuses, &mut status.container_statuses];
        for container in lists.into_iter().flat_map(|list| list.iter_mut().flatten()) {
            let Some(own) = pod.get(&container.name) else { continue };
            let of = |(name, share): (&String, &Share)| {
                let known = state.resources.get(name);
                let health = |id: &String| match known.and_then(|known| known.devices.get(id)) {
                    Some(true) => "Healthy",
                    Some(false) => "Unhealthy",
                    None => "Unknown",
                };
                let resources = share
                    .ids
                    .iter()
                    .map(|id| ResourceHealth { health: Some(health(id).into()), resource_id: id.clone() });
                ResourceStatus { name: name.clone(), resources: Some(resources.collect()) }
            };
            container.allocated_resources_status = Some(own.iter().map(of).collect());
        }
    }
}
