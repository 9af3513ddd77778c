//! What containers of a target should ask for, by what they used: percentiles of decaying histograms, with a margin,
//! and wide bounds as long as little is known.

use std::collections::{BTreeMap, HashMap};

use dhow_api::quantity::Quantity;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::histogram::{Histogram, Scale};
use super::kind::{Amounts, ContainerRecommendation, Spec};

const CPU: Scale = Scale { first: 0.01, most: 1000.0 };
const MEMORY: Scale = Scale { first: 1e7, most: 1e12 };
const MARGIN: f64 = 1.15;
/// The parts of the time that the bounds and the target suffice.
const LOWER: f64 = 0.5;
const TARGET: f64 = 0.9;
const UPPER: f64 = 0.95;
/// What a pod gets at least: processors and bytes.
const LEAST: [f64; 2] = [0.025, 250.0 * 1024.0 * 1024.0];
/// Samples of a day, one a minute.
const DAY: f64 = 24.0 * 60.0;
/// Memory counts by its peaks over this time.
const INTERVAL: SignedDuration = SignedDuration::from_hours(24);
/// A sample of a container that asks for next to nothing still counts so much.
const LEAST_WEIGHT: f64 = 0.1;

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub at: Timestamp,
    /// Processors, and how many are asked for.
    pub cpu: f64,
    pub request: f64,
    /// Bytes.
    pub memory: f64,
}

struct Usage {
    cpu: Histogram,
    memory: Histogram,
    begin: Timestamp,
    last: Timestamp,
    samples: f64,
    /// The latest measurement and the peak of memory of each pod.
    pods: HashMap<String, Pod>,
}

struct Pod {
    seen: Timestamp,
    peak: f64,
    until: Timestamp,
    out_of_memory: Option<Timestamp>,
}

/// What is known of the containers of one target.
#[derive(Default)]
pub struct Model {
    containers: BTreeMap<String, Usage>,
}

impl Model {
    fn usage(&mut self, container: &str, at: Timestamp) -> &mut Usage {
        self.containers.entry(container.to_owned()).or_insert_with(|| Usage {
            cpu: Histogram::new(CPU, at),
            memory: Histogram::new(MEMORY, at),
            begin: at,
            last: at,
            samples: 0.0,
            pods: HashMap::new(),
        })
    }

    /// Counts a measurement, unless it was counted.
    pub fn add(&mut self, pod: &str, container: &str, sample: Sample) {
        let usage = self.usage(container, sample.at);
        if usage.pods.get(pod).is_some_and(|known| known.seen >= sample.at) {
            return;
        }
        usage.cpu.add(sample.cpu, sample.request.max(LEAST_WEIGHT), sample.at);
        usage.peak(pod, sample.memory, sample.at);
        usage.samples += 1.0;
        usage.last = usage.last.max(sample.at);
    }

    /// Counts that a container with this much memory ran out of it at this time.
    pub fn out_of_memory(&mut self, pod: &str, container: &str, request: f64, at: Timestamp) {
        let usage = self.usage(container, at);
        let known = usage.pods.get(pod);
        if known.and_then(|known| known.out_of_memory).is_some_and(|known| known >= at) {
            return;
        }
        let needed = (request * 1.2).max(request + 100.0 * 1024.0 * 1024.0);
        let seen = known.map_or(at, |known| known.seen);
        usage.peak(pod, needed, at);
        if let Some(known) = usage.pods.get_mut(pod) {
            (known.seen, known.out_of_memory) = (seen, Some(at));
        }
    }

    /// Forgets pods that are gone; what they used stays known.
    pub fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.containers.values_mut().for_each(|usage| usage.pods.retain(|pod, _| is_there(pod)));
    }

    /// One recommendation per container that was measured and that the policy lets have one.
    pub fn recommend(&self, spec: &Spec) -> Vec<ContainerRecommendation> {
        #[expect(clippy::cast_precision_loss, reason = "containers are few")]
        let share = 1.0 / self.containers.len().max(1) as f64;
        let wanted = self
            .containers
            .iter()
            .filter(|(name, _)| spec.policy(name).and_then(|policy| policy.mode.as_deref()) != Some("Off"));
        wanted.filter_map(|(name, usage)| usage.recommend(name, spec, share)).collect()
    }
}

impl Usage {
    fn peak(&mut self, pod: &str, memory: f64, at: Timestamp) {
        let fresh = Pod { seen: at, peak: memory, until: at + INTERVAL, out_of_memory: None };
        match self.pods.get_mut(pod) {
            Some(known) if at < known.until => {
                known.seen = at;
                if memory > known.peak {
                    self.memory.add(known.peak, -1.0, known.until);
                    self.memory.add(memory, 1.0, known.until);
                    known.peak = memory;
                }
            }
            _ => {
                self.memory.add(memory, 1.0, fresh.until);
                self.pods.insert(pod.to_owned(), fresh);
            }
        }
    }

    fn recommend(&self, name: &str, spec: &Spec, share: f64) -> Option<ContainerRecommendation> {
        #[expect(clippy::cast_precision_loss, reason = "seconds of years fit")]
        let days = (self.last.as_second() - self.begin.as_second()) as f64 / 86400.0;
        let confidence = days.min(self.samples / DAY).max(1e-9);
        let policy = spec.policy(name);
        let mut made = ContainerRecommendation { container_name: name.to_owned(), ..Default::default() };
        let controlled = policy.and_then(|policy| policy.controlled_resources.as_ref());
        for (number, (resource, histogram)) in [("cpu", &self.cpu), ("memory", &self.memory)].into_iter().enumerate() {
            if controlled.is_some_and(|controlled| !controlled.iter().any(|one| one == resource)) {
                continue;
            }
            let least = LEAST[number] * share;
            let of = |part: f64, scale: f64| Some((histogram.percentile(part)? * MARGIN * scale).max(least));
            let lower = of(LOWER, (1.0 + 0.001 / confidence).powi(-2))?;
            let (target, upper) = (of(TARGET, 1.0)?, of(UPPER, 1.0 + 1.0 / confidence)?);
            let bound =
                |all: Option<&Amounts>| all?.get(resource)?.parse::<Quantity>().ok().map(|one| one.approximate());
            let min = bound(policy.map(|policy| &policy.min_allowed)).unwrap_or(0.0);
            let max = bound(policy.map(|policy| &policy.max_allowed)).unwrap_or(f64::INFINITY);
            let capped = |value: f64| value.min(max).max(min);
            let mut put = |into: fn(&mut ContainerRecommendation) -> &mut Amounts, value: f64| {
                into(&mut made).insert(resource.to_owned(), text(resource, value));
            };
            put(|made| &mut made.lower_bound, capped(lower));
            put(|made| &mut made.target, capped(target));
            put(|made| &mut made.upper_bound, capped(upper));
            put(|made| &mut made.uncapped_target, target);
        }
        (!made.target.is_empty()).then_some(made)
    }
}

/// Processors in thousandths, memory in bytes; rounded up.
#[expect(clippy::cast_possible_truncation, reason = "saturates")]
fn text(resource: &str, value: f64) -> String {
    let quantity = match resource {
        "cpu" => Quantity::from_millis((value * 1000.0 - 1e-6).ceil().min(1e12) as i64),
        _ => Quantity::from_units((value - 1e-6).ceil().min(1e15) as i64),
    };
    quantity.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn spec(policies: Value) -> Spec {
        let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
        serde_json::from_value(json!({"targetRef": target, "resourcePolicy": {"containerPolicies": policies}})).unwrap()
    }

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + minutes * 60).unwrap()
    }

    fn value(amounts: &Amounts, resource: &str) -> f64 {
        amounts[resource].parse::<Quantity>().unwrap().approximate()
    }

    fn day(model: &mut Model) {
        for minute in 0..=24 * 60 {
            let sample = Sample { at: at(minute), cpu: 0.4, request: 0.1, memory: 6e8 };
            model.add("p", "c", sample);
        }
    }

    #[test]
    fn the_target_is_what_was_used_with_a_margin_and_bounds_close_in() {
        let mut model = Model::default();
        model.add("p", "c", Sample { at: at(0), cpu: 0.4, request: 0.1, memory: 6e8 });
        let first = model.recommend(&spec(json!([])));
        assert!(value(&first[0].lower_bound, "cpu") < 0.1, "little is known: {first:?}");
        assert!(value(&first[0].upper_bound, "cpu") > 100.0, "{first:?}");
        let mut model = Model::default();
        day(&mut model);
        let made = model.recommend(&spec(json!([])));
        let target = value(&made[0].target, "cpu");
        assert!((0.46..0.52).contains(&target), "{made:?}");
        assert!((6.9e8..8e8).contains(&value(&made[0].target, "memory")), "{made:?}");
        assert!(value(&made[0].lower_bound, "cpu") > 0.4, "{made:?}");
        assert!(value(&made[0].upper_bound, "cpu") < 1.1, "{made:?}");
    }

    #[test]
    fn policies_cap_leave_out_and_switch_off() {
        let mut model = Model::default();
        day(&mut model);
        let made = model.recommend(&spec(
            json!([{"containerName": "*", "maxAllowed": {"cpu": "300m"}, "minAllowed": {"memory": "1Gi"}}]),
        ));
        assert_eq!((made[0].target["cpu"].as_str(), made[0].target["memory"].as_str()), ("300m", "1073741824"));
        assert!(value(&made[0].uncapped_target, "cpu") > 0.4);
        let made = model.recommend(&spec(json!([{"containerName": "c", "controlledResources": ["memory"]}])));
        assert!(!made[0].target.contains_key("cpu"));
        assert!(model.recommend(&spec(json!([{"containerName": "c", "mode": "Off"}]))).is_empty());
    }

    #[test]
    fn running_out_of_memory_asks_for_more_once() {
        let mut model = Model::default();
        model.add("p", "c", Sample { at: at(0), cpu: 0.1, request: 0.1, memory: 3e8 });
        model.out_of_memory("p", "c", 1e9, at(1));
        let once = model.recommend(&spec(json!([])));
        assert!(value(&once[0].target, "memory") > 1.2e9, "{once:?}");
        model.out_of_memory("p", "c", 5e9, at(1));
        assert_eq!(model.recommend(&spec(json!([]))), once, "the same event");
    }
}
