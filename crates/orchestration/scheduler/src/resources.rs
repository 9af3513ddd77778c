//! How much a pod asks for and how much a node has, as plain numbers.

use std::collections::BTreeMap;
use std::str::FromStr;

use dhow_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// Asked for in a pod's stead when it asks for nothing, so that empty pods spread too. Only scoring uses these.
const DEFAULT_CPU_MILLIS: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

/// Amounts by resource: CPU in thousandths, everything else in whole units.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Amounts {
    pub cpu: i64,
    pub memory: i64,
    pub ephemeral: i64,
    /// Device plugins, huge pages and whatever else a node declares.
    pub extended: BTreeMap<String, i64>,
}

impl Amounts {
    fn from_list(list: Option<&BTreeMap<String, Text>>) -> Self {
        let mut amounts = Self::default();
        for (name, text) in list.into_iter().flatten() {
            // The API refuses malformed quantities, so one that gets here counts as nothing.
            let Ok(quantity) = Quantity::from_str(&text.0) else { continue };
            match name.as_str() {
                "cpu" => amounts.cpu = quantity.millis(),
                "memory" => amounts.memory = quantity.units(),
                "ephemeral-storage" => amounts.ephemeral = quantity.units(),
                "pods" => {}
                _ => {
                    amounts.extended.insert(name.clone(), quantity.units());
                }
            }
        }
        amounts
    }

    pub fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, i64::saturating_sub);
        self.extended.retain(|_, amount| *amount != 0);
    }

    /// The amount of a resource by its name.
    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral,
            _ => self.extended.get(name).copied().unwrap_or(0),
        }
    }

    /// All that is asked for, by name.
    pub fn each(&self) -> impl Iterator<Item = (&str, i64)> {
        let plain = [("cpu", self.cpu), ("memory", self.memory), ("ephemeral-storage", self.ephemeral)];
        plain.into_iter().chain(self.extended.iter().map(|(name, amount)| (name.as_str(), *amount)))
    }

    fn raise_to(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Self, f: impl Fn(i64, i64) -> i64) {
        self.cpu = f(self.cpu, other.cpu);
        self.memory = f(self.memory, other.memory);
        self.ephemeral = f(self.ephemeral, other.ephemeral);
        for (name, amount) in &other.extended {
            let have = self.extended.entry(name.clone()).or_insert(0);
            *have = f(*have, *amount);
        }
    }
}

/// What one pod takes from its node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Request {
    pub amounts: Amounts,
    /// The same with defaults for CPU and memory, for scoring.
    pub scored_cpu: i64,
    pub scored_memory: i64,
}

impl Request {
    pub fn of(pod: &Pod) -> Self {
        let plain = total(pod, requests);
        let scored = total(pod, |container| {
            let mut amounts = requests(container);
            let given = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            if given.is_none_or(|r| !r.contains_key("cpu")) {
                amounts.cpu = DEFAULT_CPU_MILLIS;
            }
            if given.is_none_or(|r| !r.contains_key("memory")) {
                amounts.memory = DEFAULT_MEMORY;
            }
            amounts
        });
        Self { amounts: plain, scored_cpu: scored.cpu, scored_memory: scored.memory }
    }
}

fn requests(container: &Container) -> Amounts {
    Amounts::from_list(container.resources.as_ref().and_then(|r| r.requests.as_ref()))
}

/// Containers run together and so do sidecars (init containers that restart always); other init containers run one at
/// a time beside the sidecars started before them, and the pod needs the largest of these moments.
fn total(pod: &Pod, requests: impl Fn(&Container) -> Amounts) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::default() };
    let mut sidecars = Amounts::default();
    let mut peak = Amounts::default();
    for container in spec.init_containers.iter().flatten() {
        let mut moment = requests(container);
        moment.add(&sidecars);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = moment.clone();
        }
        peak.raise_to(&moment);
    }
    let mut running = sidecars;
    for container in &spec.containers {
        running.add(&requests(container));
    }
    running.raise_to(&peak);
    // Requests of the pod as a whole replace the sums.
    if let Some(whole) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let given = Amounts::from_list(Some(whole));
        if whole.contains_key("cpu") {
            running.cpu = given.cpu;
        }
        if whole.contains_key("memory") {
            running.memory = given.memory;
        }
        for (name, amount) in given.extended {
            running.extended.insert(name, amount);
        }
    }
    running.add(&Amounts::from_list(spec.overhead.as_ref()));
    running
}

/// What a node can give to pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capacity {
    pub amounts: Amounts,
    pub pods: i64,
}

impl Capacity {
    pub fn of(node: &Node) -> Self {
        let list = node.status.as_ref().and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        let pods =
            list.and_then(|l| l.get("pods")).and_then(|p| Quantity::from_str(&p.0).ok()).map_or(0, |p| p.units());
        Self { amounts: Amounts::from_list(list), pods }
    }
}
