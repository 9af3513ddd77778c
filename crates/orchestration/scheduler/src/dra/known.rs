//! Claims, classes and slices as one decision sees them, with what earlier decisions took and the API does not show yet.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::str::FromStr;
use std::sync::Arc;

use dhow_api::cel::devices::Selector;
use dhow_api::quantity::Quantity;
use imbl::OrdMap;
use k8s_openapi::api::resource::v1::{
    AllocationResult, Device, DeviceClass, DeviceRequestAllocationResult, DeviceTaint, ResourceClaim, ResourceSlice,
};
use k8s_openapi::api::resource::v1alpha3::DeviceTaintRule;
use parking_lot::Mutex;

/// Namespace and name.
pub(crate) type ClaimKey = (String, String);
/// A driver and the name of one of its pools.
pub(crate) type PoolId = (String, String);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DeviceId {
    pub driver: String,
    pub pool: String,
    pub device: String,
}

impl DeviceId {
    fn of(result: &DeviceRequestAllocationResult) -> Self {
        Self { driver: result.driver.clone(), pool: result.pool.clone(), device: result.device.clone() }
    }
}

/// How much of a device is in use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Use {
    /// Claims that have it for themselves: one, if all is well.
    pub alone: u32,
    /// Claims that share it, and what they have of it together.
    pub shares: u32,
    pub consumed: BTreeMap<String, Quantity>,
}

/// Which nodes a slice may be about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Wide,
    Node(String),
}

/// What a decision took for a claim.
#[derive(Debug, Clone)]
struct Taken {
    uid: Option<String>,
    allocation: Arc<AllocationResult>,
}

/// Selectors by their text.
#[derive(Debug, Clone, Default)]
struct Selectors(Arc<Mutex<HashMap<String, Result<Selector, String>>>>);

/// So many selectors are kept compiled.
const MOST_SELECTORS: usize = 4096;

#[derive(Debug, Clone, Default)]
pub(crate) struct Devices {
    claims: OrdMap<ClaimKey, Arc<ResourceClaim>>,
    classes: OrdMap<String, Arc<DeviceClass>>,
    slices: OrdMap<String, Arc<ResourceSlice>>,
    pools: OrdMap<PoolId, OrdMap<String, Arc<ResourceSlice>>>,
    /// How many slices of a pool may be about which nodes.
    reach: OrdMap<(Reach, PoolId), u32>,
    taken: OrdMap<ClaimKey, Taken>,
    used: OrdMap<DeviceId, Use>,
    rules: OrdMap<String, Arc<DeviceTaintRule>>,
    selectors: Selectors,
}

impl Devices {
    pub fn claim(&self, key: &ClaimKey) -> Option<&Arc<ResourceClaim>> {
        self.claims.get(key)
    }

    pub fn class(&self, name: &str) -> Option<&DeviceClass> {
        self.classes.get(name).map(|class| &**class)
    }

    pub fn used(&self, id: &DeviceId) -> Option<&Use> {
        self.used.get(id)
    }

    pub fn is_taken(&self, key: &ClaimKey) -> bool {
        self.taken.contains_key(key)
    }

    pub fn set_class(&mut self, name: &str, class: Option<Arc<DeviceClass>>) {
        match class {
            Some(class) => drop(self.classes.insert(name.to_owned(), class)),
            None => drop(self.classes.remove(name)),
        }
    }

    /// `None` for a rule that is gone.
    pub fn set_taint_rule(&mut self, name: &str, rule: Option<Arc<DeviceTaintRule>>) {
        match rule {
            Some(rule) => drop(self.rules.insert(name.to_owned(), rule)),
            None => drop(self.rules.remove(name)),
        }
    }

    /// The taints of a device: those that its driver gave it, and those of rules.
    pub fn taints(&self, id: &DeviceId, device: &Device) -> Vec<DeviceTaint> {
        let own = device.taints.iter().flatten().cloned();
        own.chain(self.rules.values().filter_map(|rule| ruled(rule, &id.driver, &id.pool, &id.device))).collect()
    }

    /// `None` for a claim that is gone.
    pub fn set_claim(&mut self, key: &ClaimKey, claim: Option<Arc<ResourceClaim>>) {
        if let (Some(new), Some(old)) = (&claim, self.claims.get(key))
            && new.metadata.uid == old.metadata.uid
            && version(new) < version(old)
        {
            // What was written here is known before it is heard of.
            return;
        }
        self.count(key, false);
        let shown = |claim: &ResourceClaim| allocation(claim).is_some();
        let over = |taken: &Taken| claim.as_ref().is_none_or(|new| shown(new) || new.metadata.uid != taken.uid);
        if self.taken.get(key).is_some_and(over) {
            self.taken.remove(key);
        }
        match claim {
            Some(claim) => drop(self.claims.insert(key.clone(), claim)),
            None => drop(self.claims.remove(key)),
        }
        self.count(key, true);
    }

    /// A claim has these devices from now on, though the API does not say so yet.
    pub fn take(&mut self, key: &ClaimKey, allocation: Arc<AllocationResult>) {
        self.count(key, false);
        let uid = self.claims.get(key).and_then(|claim| claim.metadata.uid.clone());
        self.taken.insert(key.clone(), Taken { uid, allocation });
        self.count(key, true);
    }

    /// What was taken will not be written.
    pub fn give_back(&mut self, key: &ClaimKey) {
        self.count(key, false);
        self.taken.remove(key);
        self.count(key, true);
    }

    /// What a claim has: as the API shows it, or else as it was decided.
    fn effective(&self, key: &ClaimKey) -> Option<Arc<AllocationResult>> {
        let shown = self.claims.get(key).and_then(|claim| allocation(claim)).cloned().map(Arc::new);
        shown.or_else(|| self.taken.get(key).map(|taken| Arc::clone(&taken.allocation)))
    }

    fn count(&mut self, key: &ClaimKey, more: bool) {
        let Some(allocation) = self.effective(key) else { return };
        let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
        // Who only looks at a device takes nothing of it.
        for result in results.filter(|result| result.admin_access != Some(true)) {
            let id = DeviceId::of(result);
            let mut now = self.used.get(&id).cloned().unwrap_or_default();
            let count = if result.share_id.is_some() { &mut now.shares } else { &mut now.alone };
            *count = if more { count.saturating_add(1) } else { count.saturating_sub(1) };
            for (name, amount) in result.consumed_capacity.iter().flatten() {
                let Ok(amount) = Quantity::from_str(&amount.0) else { continue };
                let sum = now.consumed.entry(name.clone()).or_insert(Quantity::ZERO);
                *sum = if more { *sum + amount } else { *sum - amount };
            }
            match now.alone + now.shares {
                0 => drop(self.used.remove(&id)),
                _ => drop(self.used.insert(id, now)),
            }
        }
    }

    /// `None` for a slice that is gone.
    pub fn set_slice(&mut self, name: &str, slice: Option<Arc<ResourceSlice>>) {
        if let Some(old) = self.slices.remove(name) {
            let pool = pool_of(&old);
            if let Some(slices) = self.pools.get_mut(&pool) {
                slices.remove(name);
                if slices.is_empty() {
                    self.pools.remove(&pool);
                }
            }
            let reach = (reach_of(&old), pool);
            if let Some(count) = self.reach.get_mut(&reach) {
                *count -= 1;
                if *count == 0 {
                    self.reach.remove(&reach);
                }
            }
        }
        if let Some(new) = slice {
            let pool = pool_of(&new);
            self.pools.entry(pool.clone()).or_default().insert(name.to_owned(), Arc::clone(&new));
            *self.reach.entry((reach_of(&new), pool)).or_default() += 1;
            self.slices.insert(name.to_owned(), new);
        }
    }

    /// Pools that may have devices for a node, in the order of their names, each with all its slices.
    pub fn pools_for<'a>(&'a self, node: &str) -> BTreeMap<&'a PoolId, &'a OrdMap<String, Arc<ResourceSlice>>> {
        let mut found = BTreeMap::new();
        for reach in [Reach::Wide, Reach::Node(node.to_owned())] {
            let start = (reach.clone(), PoolId::default());
            let range = self.reach.range((Bound::Included(start), Bound::Unbounded));
            for ((_, pool), _) in range.take_while(|((other, _), _)| *other == reach) {
                if let Some((id, slices)) = self.pools.get_key_value(pool) {
                    found.insert(id, slices);
                }
            }
        }
        found
    }

    /// Whether a device is what a selector is about.
    pub fn selects(&self, expression: &str, driver: &str, device: &Device) -> Result<bool, String> {
        let known = self.selectors.0.lock().get(expression).cloned();
        let selector = known.unwrap_or_else(|| {
            let compiled = Selector::compile(expression).map_err(|error| format!("CEL compile error: {error}"));
            let mut all = self.selectors.0.lock();
            if all.len() >= MOST_SELECTORS {
                all.clear();
            }
            all.insert(expression.to_owned(), compiled.clone());
            compiled
        })?;
        selector.matches(driver, device).map_err(|error| format!("CEL runtime error: {error}"))
    }
}

/// The taint that a rule gives a device.
pub fn ruled(rule: &DeviceTaintRule, driver: &str, pool: &str, device: &str) -> Option<DeviceTaint> {
    let selector = rule.spec.device_selector.as_ref()?;
    let fits = |wanted: &Option<String>, has: &str| wanted.as_deref().is_none_or(|wanted| wanted == has);
    let selected = fits(&selector.driver, driver) && fits(&selector.pool, pool) && fits(&selector.device, device);
    let taint = &rule.spec.taint;
    selected.then(|| DeviceTaint {
        key: taint.key.clone(),
        value: taint.value.clone(),
        effect: taint.effect.clone(),
        time_added: taint.time_added.clone(),
    })
}

pub(crate) fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

fn version(claim: &ResourceClaim) -> u64 {
    claim.metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}

fn pool_of(slice: &ResourceSlice) -> PoolId {
    (slice.spec.driver.clone(), slice.spec.pool.name.clone())
}

fn reach_of(slice: &ResourceSlice) -> Reach {
    match slice.spec.node_name.as_deref() {
        Some(node) if !node.is_empty() => Reach::Node(node.to_owned()),
        _ => Reach::Wide,
    }
}
