//! Which pressure there is and whose end relieves it, from readings alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;

use crate::settings::{Signal, Threshold};

/// What there is and what of it is free, by signal: bytes, inodes or processes.
pub type Readings = BTreeMap<Signal, Reading>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    pub available: u64,
    pub capacity: u64,
}

/// A pod has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evict {
    pub signal: Signal,
    pub threshold: u64,
    pub available: u64,
    pub hard: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub evict: Option<Evict>,
}

/// What was seen before: since when thresholds are met, and when a pressure was there last.
#[derive(Debug, Default)]
pub struct Manager {
    /// By signal and whether the threshold is hard.
    since: BTreeMap<(Signal, bool), SystemTime>,
    last: BTreeMap<&'static str, SystemTime>,
}

impl Manager {
    pub fn look(&mut self, thresholds: &[Threshold], readings: &Readings, now: SystemTime) -> Verdict {
        let mut met = BTreeSet::new();
        let mut ripe: Vec<Evict> = Vec::new();
        for threshold in thresholds {
            let Some(reading) = readings.get(&threshold.signal) else { continue };
            let least = threshold.least.of(reading.capacity);
            let key = (threshold.signal, threshold.grace.is_none());
            // Once met, it is met until what is freed beyond it is free.
            let reclaim = if self.since.contains_key(&key) { threshold.reclaim.of(reading.capacity) } else { 0 };
            if reading.available >= least.saturating_add(reclaim) {
                continue;
            }
            met.insert(key);
            self.last.insert(threshold.signal.condition(), now);
            let since = *self.since.entry(key).or_insert(now);
            let waited = now.duration_since(since).unwrap_or_default();
            if waited >= threshold.grace.unwrap_or_default() {
                let hard = threshold.grace.is_none();
                let (signal, available) = (threshold.signal, reading.available);
                ripe.push(Evict { signal, threshold: least, available, hard });
            }
        }
        self.since.retain(|key, _| met.contains(key));
        // Memory first: the kernel will not wait for us. Hard before soft.
        ripe.sort_by_key(|need| (need.signal, !need.hard));
        Verdict { evict: ripe.into_iter().next() }
    }

    /// The conditions that hold, or held a short while ago: they do not flap.
    pub fn pressures(&self, now: SystemTime, transition: Duration) -> BTreeSet<&'static str> {
        let held = self.last.iter().filter(|(_, at)| now.duration_since(**at).is_ok_and(|ago| ago < transition));
        held.map(|(condition, _)| *condition).collect()
    }
}

/// A pod that may be ended.
pub struct Candidate<'a> {
    pub pod: &'a Pod,
    pub priority: i32,
    pub usage: u64,
    pub request: u64,
    /// Name, usage and request of each container that uses more than it asked for.
    pub greedy: Vec<(String, u64, u64)>,
}

/// First those that use more than they asked for, the least important first, then those that use most beyond it.
pub fn rank(candidates: &mut [Candidate<'_>]) {
    let beyond = |c: &Candidate<'_>| i128::from(c.usage) - i128::from(c.request);
    candidates.sort_by_key(|c| (beyond(c) <= 0, c.priority, std::cmp::Reverse(beyond(c))));
}

/// Bytes in the largest unit that divides them.
pub fn show_bytes(amount: u64) -> String {
    match amount {
        a if a > 0 && a % (1 << 30) == 0 => format!("{}Gi", a >> 30),
        a if a > 0 && a % (1 << 20) == 0 => format!("{}Mi", a >> 20),
        a if a >= 1 << 10 => format!("{}Ki", a >> 10),
        a => a.to_string(),
    }
}

fn quantity(signal: Signal, amount: u64) -> String {
    match signal {
        Signal::MemoryAvailable | Signal::DiskAvailable | Signal::ImageDiskAvailable => show_bytes(amount),
        Signal::InodesFree | Signal::ImageInodesFree | Signal::PidAvailable => amount.to_string(),
    }
}

/// What the pod's status says of its end.
pub fn message(need: &Evict, candidate: &Candidate<'_>) -> String {
    let (resource, show) = (need.signal.resource(), |amount| quantity(need.signal, amount));
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        show(need.threshold),
        show(need.available)
    );
    for (name, usage, request) in &candidate.greedy {
        text.push_str(&format!(
            "Container {name} was using {}, request is {}, has larger consumption of {resource}. ",
            show(*usage),
            show(*request)
        ));
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::settings::Amount;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn memory(available: u64) -> Readings {
        [(Signal::MemoryAvailable, Reading { available, capacity: 1000 })].into()
    }

    #[test]
    fn hard_thresholds_act_at_once_and_soft_ones_after_their_grace() {
        let of = |least, grace: Option<u64>| Threshold {
            signal: Signal::MemoryAvailable,
            least,
            grace: grace.map(Duration::from_secs),
            reclaim: Amount::Units(50),
        };
        let thresholds = [of(Amount::Units(100), None), of(Amount::Part(0.2), Some(30))];
        let mut manager = Manager::default();
        assert_eq!(manager.look(&thresholds, &memory(200), at(0)).evict, None);
        assert_eq!(manager.look(&thresholds, &memory(150), at(10)).evict, None);
        assert!(manager.pressures(at(10), Duration::from_secs(300)).contains("MemoryPressure"));
        let soft = manager.look(&thresholds, &memory(150), at(40)).evict.unwrap();
        assert_eq!((soft.hard, soft.threshold), (false, 200));
        assert!(manager.look(&thresholds, &memory(99), at(50)).evict.unwrap().hard);
        // Freed to the threshold is not freed enough once it was met.
        assert!(manager.look(&thresholds, &memory(120), at(60)).evict.unwrap().hard);
        assert_eq!(manager.look(&thresholds, &memory(260), at(70)).evict, None);
        assert!(manager.pressures(at(100), Duration::from_secs(300)).contains("MemoryPressure"));
        assert!(manager.pressures(at(400), Duration::from_secs(300)).is_empty());
    }

    #[test]
    fn those_over_their_request_go_first_then_the_least_important() {
        let pods: Vec<Pod> = (0..4).map(|_| Pod::default()).collect();
        let of = |index: usize, priority, usage, request| Candidate {
            pod: &pods[index],
            priority,
            usage,
            request,
            greedy: Vec::new(),
        };
        let mut all = vec![of(0, 0, 50, 100), of(1, 10, 500, 100), of(2, 0, 200, 100), of(3, 0, 300, 100)];
        rank(&mut all);
        let order: Vec<u64> = all.iter().map(|c| c.usage).collect();
        assert_eq!(order, [300, 200, 500, 50]);
    }

    #[test]
    fn the_message_has_upstream_s_words() {
        let need = Evict { signal: Signal::MemoryAvailable, threshold: 100 << 20, available: 50 << 20, hard: true };
        let pod = Pod::default();
        let greedy = vec![("a".to_owned(), 70 << 20, 0)];
        let candidate = Candidate { pod: &pod, priority: 0, usage: 70 << 20, request: 0, greedy };
        let expected = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
            Container a was using 70Mi, request is 0, has larger consumption of memory. ";
        assert_eq!(message(&need, &candidate), expected);
    }
}
