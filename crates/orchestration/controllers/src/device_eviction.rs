//! Deletes pods that use devices with NoExecute taints, given by drivers or by rules, when the tolerations of what they asked
//! for end; and says at each rule how far that is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dhow_api::conditions;
use dhow_client::{
    Change, Client, Error, EventRecorder, EventType, Informer, Key, Outcome, Queue, Reconcile, reference,
};
use dhow_scheduler::{ruled_taint, tolerates_device_taint};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{DeviceRequestAllocationResult, DeviceTaint, ResourceClaim, ResourceSlice};
use k8s_openapi::api::resource::v1alpha3::{DeviceTaintRule, DeviceTaintRuleStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;

use crate::common::{is_finished, node_name};
use crate::taint_eviction::{Why, evict};

const WHY: Why = Why {
    event: "DeviceTaintManagerEviction",
    reason: "DeletionByDeviceTaintManager",
    message: "Device Taint manager: deleting due to NoExecute taint",
};
/// Condition of a rule.
const IN_PROGRESS: &str = "EvictionInProgress";

/// What is looked at.
#[derive(Clone)]
pub struct Copies {
    pub pods: Informer<Pod>,
    pub claims: Informer<ResourceClaim>,
    pub slices: Informer<ResourceSlice>,
    pub rules: Informer<DeviceTaintRule>,
}

/// Keys with a namespace are claims, those without are rules.
pub struct DeviceEviction {
    client: Client,
    recorder: EventRecorder,
    copies: Copies,
    /// Pods, by uid, that are to leave at a later time: they are told when they may stay after all.
    waiting: Mutex<BTreeSet<String>>,
    /// Pods, by uid, that each rule made leave.
    evicted: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

impl DeviceEviction {
    pub fn new(client: Client, copies: Copies, queue: &Queue) -> Arc<Self> {
        copies.slices.add_index("pool", |slice| vec![pool(&slice.spec.driver, &slice.spec.pool.name)]);
        copies
            .claims
            .add_index("pool", |claim| results(claim).map(|result| pool(&result.driver, &result.pool)).collect());
        let (to, rules) = (queue.clone(), copies.rules.clone());
        copies.claims.on_change(move |change| {
            let claim = change.object();
            to.add(Key::of(&claim.metadata));
            // What it had counts too: devices that are given back are those of a pod that left.
            let before = if let Change::Updated { old, .. } = change { old } else { claim };
            for rule in rules.list() {
                if results(before).chain(results(claim)).any(|result| taint_of(&rule, result).is_some()) {
                    to.add(Key::of(&rule.metadata));
                }
            }
        });
        let (to, claims) = (queue.clone(), copies.claims.clone());
        copies.slices.on_change(move |change| {
            let mut pools = vec![change.object()];
            if let Change::Updated { old, .. } = change {
                pools.push(old);
            }
            // Most slices say nothing of taints, and never did.
            if pools.iter().any(|slice| slice.spec.devices.iter().flatten().any(|device| device.taints.is_some())) {
                let of = pool(&change.object().spec.driver, &change.object().spec.pool.name);
                claims.by_index("pool", &of).iter().for_each(|claim| to.add(Key::of(&claim.metadata)));
            }
        });
        let (to, claims) = (queue.clone(), copies.claims.clone());
        copies.rules.on_change(move |change| {
            let mut rules = vec![change.object()];
            if let Change::Updated { old, new } = change {
                if old.spec == new.spec {
                    return;
                }
                rules.push(old);
            }
            for claim in claims.list() {
                if rules.iter().any(|rule| results(&claim).any(|result| taint_of(rule, result).is_some())) {
                    to.add(Key::of(&claim.metadata));
                }
            }
            to.add(Key::of(&change.object().metadata));
        });
        let (to, claims, rules) = (queue.clone(), copies.claims.clone(), copies.rules.clone());
        copies.pods.on_change(move |change| {
            let pod = change.object();
            let names = dhow_api::resource_claims::entries(pod).iter();
            for (name, _) in names.filter_map(|entry| dhow_api::resource_claims::name(pod, entry).ok()?) {
                let key = Key::new(pod.metadata.namespace.as_deref(), name);
                let Some(claim) = claims.get(&key) else { continue };
                for rule in rules.list() {
                    if results(&claim).any(|result| taint_of(&rule, result).is_some()) {
                        to.add(Key::of(&rule.metadata));
                    }
                }
                to.add(key);
            }
        });
        let recorder = EventRecorder::new(client.clone(), "device-taint-eviction");
        Arc::new(Self { client, recorder, copies, waiting: Mutex::default(), evicted: Mutex::default() })
    }

    /// The taints of an allocated device: of the newest generation of its pool, and of rules, whose names come along.
    fn taints(&self, result: &DeviceRequestAllocationResult) -> Vec<(DeviceTaint, Option<String>)> {
        let slices = self.copies.slices.by_index("pool", &pool(&result.driver, &result.pool));
        let newest = slices.iter().map(|slice| slice.spec.pool.generation).max();
        let current = slices.iter().filter(|slice| Some(slice.spec.pool.generation) == newest);
        let devices = current.flat_map(|slice| slice.spec.devices.iter().flatten());
        let own =
            devices.filter(|device| device.name == result.device).flat_map(|device| device.taints.iter().flatten());
        let own = own.map(|taint| (taint.clone(), None));
        let rules = self.copies.rules.list();
        let ruled = rules.iter().filter_map(|rule| Some((taint_of(rule, result)?, rule.metadata.name.clone())));
        own.chain(ruled).collect()
    }

    /// The pods that have the claim, are placed and go on.
    fn users(&self, claim: &ResourceClaim) -> Vec<Arc<Pod>> {
        let consumers = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
        let pods = consumers.filter(|by| by.resource == "pods").filter_map(|by| {
            let pod = self.copies.pods.get(&Key::new(claim.metadata.namespace.as_deref(), &by.name))?;
            (pod.metadata.uid.as_ref() == Some(&by.uid)).then_some(pod)
        });
        let goes_on =
            |pod: &Arc<Pod>| node_name(pod).is_some() && pod.metadata.deletion_timestamp.is_none() && !is_finished(pod);
        pods.filter(goes_on).collect()
    }

    async fn claim(&self, claim: &ResourceClaim) -> Result<Outcome, Error> {
        let now = Timestamp::now();
        let mut due: Option<(Duration, Option<String>)> = None;
        for result in results(claim) {
            for (taint, rule) in self.taints(result) {
                let Some(left) = eviction(result, &taint, now) else { continue };
                if due.as_ref().is_none_or(|(sooner, _)| left < *sooner) {
                    due = Some((left, rule));
                }
            }
        }
        for pod in self.users(claim) {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            match &due {
                None => {
                    if self.waiting.lock().remove(&uid) {
                        let text = format!("Cancelling deletion of Pod {}", Key::of(&pod.metadata));
                        self.recorder.event(reference(&*pod), EventType::Normal, WHY.event, &text);
                    }
                }
                Some((left, _)) if !left.is_zero() => {
                    self.waiting.lock().insert(uid);
                }
                Some((_, rule)) => {
                    evict(&self.client, &self.recorder, &pod, &WHY).await?;
                    self.waiting.lock().remove(&uid);
                    if let Some(rule) = rule {
                        self.evicted.lock().entry(rule.clone()).or_default().insert(uid);
                    }
                }
            }
        }
        Ok(match due {
            Some((left, _)) if !left.is_zero() => Outcome::RequeueAfter(left),
            _ => Outcome::Done,
        })
    }

    /// Says at a rule how many pods are still to leave because of it.
    async fn rule(&self, rule: &DeviceTaintRule) -> Result<Outcome, Error> {
        let name = rule.metadata.name.clone().unwrap_or_default();
        let (mut pods, mut devices) = (BTreeSet::new(), 0_usize);
        for claim in self.copies.claims.list() {
            let hit = results(&claim).filter(|result| {
                let taint = taint_of(rule, result).map(|taint| DeviceTaint { effect: "NoExecute".to_owned(), ..taint });
                taint.is_some_and(|taint| eviction(result, &taint, Timestamp::now()).is_some())
            });
            let hit = hit.count();
            if hit > 0 {
                devices += hit;
                pods.extend(self.users(&claim).iter().filter_map(|pod| pod.metadata.uid.clone()));
            }
        }
        let gone = self.evicted.lock().get(&name).map_or(0, BTreeSet::len);
        let (status, reason, message) = match rule.spec.taint.effect.as_str() {
            "NoExecute" if pods.is_empty() => ("False", "NotInProgress", format!("{gone} pods were evicted.")),
            "NoExecute" => {
                let text = format!("{} pods are to be evicted, {gone} were evicted.", pods.len());
                ("True", "PodsPendingEviction", text)
            }
            "None" => {
                let text = format!("{devices} allocated devices are selected, {} pods would be evicted.", pods.len());
                ("False", "NoEffect", text)
            }
            _ => ("False", "NotInProgress", "The effect of the taint evicts no pods.".to_owned()),
        };
        let known = rule.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let before = known.iter().find(|condition| condition.type_ == IN_PROGRESS);
        let generation = rule.metadata.generation;
        // What would happen is told once for each change of the rule.
        let told = rule.spec.taint.effect == "None" && before.is_some_and(|one| one.observed_generation == generation);
        let same = before.is_some_and(|one| {
            (one.status.as_str(), one.reason.as_str(), &one.message, one.observed_generation)
                == (status, reason, &message, generation)
        });
        if told || same {
            return Ok(Outcome::Done);
        }
        let condition = Condition {
            type_: IN_PROGRESS.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: generation,
            last_transition_time: conditions::since(&known, IN_PROGRESS, status, Timestamp::now()),
        };
        let mut conditions: Vec<Condition> = known.into_iter().filter(|one| one.type_ != IN_PROGRESS).collect();
        conditions.push(condition);
        let changed =
            DeviceTaintRule { status: Some(DeviceTaintRuleStatus { conditions: Some(conditions) }), ..rule.clone() };
        match self.client.update_status(&changed).await {
            Err(error) if error.is_not_found() => Ok(Outcome::Done),
            other => other.map(|_| Outcome::Done),
        }
    }
}

fn pool(driver: &str, pool: &str) -> String {
    format!("{driver}/{pool}")
}

fn results(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let devices = claim.status.as_ref().and_then(|status| status.allocation.as_ref()?.devices.as_ref());
    devices.into_iter().flat_map(|devices| devices.results.iter().flatten())
}

fn taint_of(rule: &DeviceTaintRule, result: &DeviceRequestAllocationResult) -> Option<DeviceTaint> {
    ruled_taint(rule, &result.driver, &result.pool, &result.device)
}

/// How long a device with the taint may still be used: `None` for as long as anybody likes.
fn eviction(result: &DeviceRequestAllocationResult, taint: &DeviceTaint, now: Timestamp) -> Option<Duration> {
    if taint.effect != "NoExecute" {
        return None;
    }
    let tolerations = result.tolerations.iter().flatten().filter(|one| tolerates_device_taint(one, taint));
    let tolerations: Vec<Option<i64>> = tolerations.map(|one| one.toleration_seconds).collect();
    if tolerations.is_empty() {
        return Some(Duration::ZERO);
    }
    let seconds = tolerations.into_iter().flatten().min()?;
    let since = taint.time_added.as_ref().map_or(now, |time| time.0);
    let left = seconds.max(0).saturating_sub((now.as_second() - since.as_second()).max(0));
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
}

#[async_trait::async_trait]
impl Reconcile for DeviceEviction {
    fn name(&self) -> &'static str {
        "device-taint-eviction"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        if key.namespace().is_some() {
            return match self.copies.claims.get(key) {
                Some(claim) => self.claim(&claim).await,
                None => Ok(Outcome::Done),
            };
        }
        match self.copies.rules.get(key) {
            Some(rule) => self.rule(&rule).await,
            None => {
                self.evicted.lock().remove(&*key.name);
                Ok(Outcome::Done)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_device_is_used_as_long_as_its_taint_is_tolerated() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let left = |tolerations: Value, effect: &str, after: u64| {
            let result =
                json!({"request": "r", "driver": "x.io", "pool": "p", "device": "d", "tolerations": tolerations});
            let result = serde_json::from_value(result).unwrap();
            let taint = json!({"key": "x.io/broken", "effect": effect, "timeAdded": "2026-01-01T00:00:00Z"});
            let taint = serde_json::from_value(taint).unwrap();
            eviction(&result, &taint, start + Duration::from_secs(after)).map(|left| left.as_secs())
        };
        let exists =
            |seconds: Value| json!([{"key": "x.io/broken", "operator": "Exists", "tolerationSeconds": seconds}]);
        assert_eq!(left(json!(null), "NoExecute", 0), Some(0));
        assert_eq!(left(json!(null), "NoSchedule", 0), None);
        assert_eq!(left(exists(Value::Null), "NoExecute", 9), None);
        assert_eq!(left(exists(json!(30)), "NoExecute", 9), Some(21));
        assert_eq!(left(exists(json!(30)), "NoExecute", 31), Some(0));
        assert_eq!(left(json!([{"key": "x.io/other", "operator": "Exists"}]), "NoExecute", 0), Some(0));
    }

    #[test]
    fn a_rule_is_about_the_devices_that_it_selects() {
        let rule = |selector: Value| -> DeviceTaintRule {
            let taint = json!({"key": "k", "effect": "NoExecute"});
            serde_json::from_value(json!({"spec": {"deviceSelector": selector, "taint": taint}, "metadata": {}}))
                .unwrap()
        };
        let hit = |selector: Value| ruled_taint(&rule(selector), "x.io", "p", "d").is_some();
        assert!(hit(json!({})) && hit(json!({"driver": "x.io", "pool": "p", "device": "d"})));
        assert!(!hit(json!(null)) && !hit(json!({"driver": "y.io"})) && !hit(json!({"pool": "p", "device": "e"})));
    }
}
