//! A small metrics registry: counters, gauges and histograms with labels, printed in the Prometheus text format.
//!
//! Handles are cheap to clone and lock-free to update; only making a new label combination takes a lock.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Latencies in seconds, from a cache hit to a timed-out request.
pub const LATENCY_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A set of metrics; clones share it.
#[derive(Clone, Default)]
pub struct Registry {
    families: Arc<Mutex<BTreeMap<&'static str, Family>>>,
}

#[derive(Clone)]
struct Family {
    help: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    series: Arc<RwLock<BTreeMap<Vec<String>, Arc<Cell>>>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Counter,
    Gauge,
    Histogram(&'static [f64]),
}

/// One time series. A counter or gauge is `value`; a histogram has counts per bucket as well.
struct Cell {
    value: AtomicU64,
    buckets: Vec<AtomicU64>,
    bounds: &'static [f64],
}

impl Cell {
    fn add(&self, amount: f64) {
        let mut old = self.value.load(Ordering::Relaxed);
        loop {
            let new = (f64::from_bits(old) + amount).to_bits();
            match self.value.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(seen) => old = seen,
            }
        }
    }

    fn get(&self) -> f64 {
        f64::from_bits(self.value.load(Ordering::Relaxed))
    }
}

macro_rules! family {
    ($(#[$doc:meta])* $vec:ident, $handle:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $vec(Family);

        impl $vec {
            /// The series of these label values, in the order the labels were declared.
            pub fn with(&self, values: &[&str]) -> $handle {
                $handle(self.0.cell(values))
            }

            /// Forgets a series, when what it describes is gone.
            pub fn remove(&self, values: &[&str]) {
                self.0.remove(values);
            }
        }

        #[derive(Clone)]
        pub struct $handle(Arc<Cell>);
    };
}

family!(/** Only goes up. */ Counters, Counter);
family!(/** Goes up and down. */ Gauges, Gauge);
family!(/** Counts observations in buckets. */ Histograms, Histogram);

impl Counter {
    pub fn inc(&self) {
        self.0.add(1.0);
    }

    pub fn add(&self, amount: u64) {
        self.0.add(amount as f64);
    }

    pub fn get(&self) -> f64 {
        self.0.get()
    }
}

impl Gauge {
    pub fn set(&self, value: f64) {
        self.0.value.store(value.to_bits(), Ordering::Relaxed);
    }

    /// May be negative.
    pub fn add(&self, amount: f64) {
        self.0.add(amount);
    }

    pub fn get(&self) -> f64 {
        self.0.get()
    }
}

impl Histogram {
    pub fn observe(&self, value: f64) {
        self.0.add(value);
        let bucket = self.0.bounds.iter().position(|b| value <= *b).unwrap_or(self.0.bounds.len());
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }

    pub fn observe_since(&self, start: std::time::Instant) {
        self.observe(start.elapsed().as_secs_f64());
    }
}

impl Family {
    fn cell(&self, values: &[&str]) -> Arc<Cell> {
        debug_assert_eq!(values.len(), self.labels.len(), "one value per label");
        let key: Vec<String> = values.iter().map(|&v| v.to_owned()).collect();
        if let Some(cell) = self.series.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(cell);
        }
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(series.entry(key).or_insert_with(|| {
            let (bounds, buckets): (&'static [f64], _) = match self.kind {
                Kind::Histogram(bounds) => (bounds, (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect()),
                Kind::Counter | Kind::Gauge => (&[], Vec::new()),
            };
            Arc::new(Cell { value: AtomicU64::new(0.0f64.to_bits()), buckets, bounds })
        }))
    }

    fn remove(&self, values: &[&str]) {
        let key: Vec<String> = values.iter().map(|&v| v.to_owned()).collect();
        self.series.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}

impl Registry {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn counter(&self, name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Counters {
        Counters(self.family(name, help, Kind::Counter, labels))
    }

    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Gauges {
        Gauges(self.family(name, help, Kind::Gauge, labels))
    }

    /// `bounds` ascend; the last bucket (+Inf) is implied.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        bounds: &'static [f64],
    ) -> Histograms {
        Histograms(self.family(name, help, Kind::Histogram(bounds), labels))
    }

    /// Asking twice for a name gives the same family.
    fn family(&self, name: &'static str, help: &'static str, kind: Kind, labels: &'static [&'static str]) -> Family {
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        let family =
            families.entry(name).or_insert_with(|| Family { help, kind, labels, series: Arc::default() }).clone();
        debug_assert!(family.kind == kind && family.labels == labels, "{name} declared in two ways");
        family
    }

    /// The Prometheus text format, version 0.0.4.
    pub fn encode(&self) -> String {
        let families = self.families.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut out = String::new();
        for (name, family) in families {
            // Writing to a String cannot fail.
            let _ = encode_family(&mut out, name, &family);
        }
        out
    }
}

fn encode_family(out: &mut String, name: &str, family: &Family) -> std::fmt::Result {
    let series = family.series.read().unwrap_or_else(PoisonError::into_inner);
    if series.is_empty() {
        return Ok(());
    }
    let kind = match family.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(_) => "histogram",
    };
    writeln!(out, "# HELP {name} {}\n# TYPE {name} {kind}", family.help.replace('\\', "\\\\").replace('\n', "\\n"))?;
    for (values, cell) in series.iter() {
        let labels: Vec<String> =
            family.labels.iter().zip(values).map(|(l, v)| format!("{l}=\"{}\"", escape(v))).collect();
        let Kind::Histogram(bounds) = family.kind else {
            writeln!(out, "{name}{} {}", braces(&labels, None), cell.get())?;
            continue;
        };
        let mut total = 0;
        for (i, bucket) in cell.buckets.iter().enumerate() {
            total += bucket.load(Ordering::Relaxed);
            let bound = bounds.get(i).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            writeln!(out, "{name}_bucket{} {total}", braces(&labels, Some(&bound)))?;
        }
        writeln!(
            out,
            "{name}_sum{} {}\n{name}_count{} {total}",
            braces(&labels, None),
            cell.get(),
            braces(&labels, None)
        )?;
    }
    Ok(())
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn braces(labels: &[String], le: Option<&str>) -> String {
    let mut all = labels.to_vec();
    all.extend(le.map(|le| format!("le=\"{le}\"")));
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn encodes_the_text_format() {
        let registry = Registry::new();
        let requests = registry.counter("dhow_requests_total", "Requests by verb.", &["verb", "path"]);
        requests.with(&["GET", "/a\"b\n"]).inc();
        requests.with(&["GET", "/a\"b\n"]).add(2);
        registry.gauge("dhow_up", "Whether it runs.", &[]).with(&[]).set(1.0);
        let seconds = registry.histogram("dhow_seconds", "How long.", &["verb"], &[0.5, 1.0]);
        for value in [0.25, 0.5, 0.75, 4.0] {
            seconds.with(&["GET"]).observe(value);
        }
        let text = registry.encode();
        let expected = "# HELP dhow_requests_total Requests by verb.\n\
            # TYPE dhow_requests_total counter\n\
            dhow_requests_total{verb=\"GET\",path=\"/a\\\"b\\n\"} 3\n\
            # HELP dhow_seconds How long.\n\
            # TYPE dhow_seconds histogram\n\
            dhow_seconds_bucket{verb=\"GET\",le=\"0.5\"} 2\n\
            dhow_seconds_bucket{verb=\"GET\",le=\"1\"} 3\n\
            dhow_seconds_bucket{verb=\"GET\",le=\"+Inf\"} 4\n\
            dhow_seconds_sum{verb=\"GET\"} 5.5\n\
            dhow_seconds_count{verb=\"GET\"} 4\n\
            # HELP dhow_up Whether it runs.\n\
            # TYPE dhow_up gauge\n\
            dhow_up 1\n";
        assert_eq!(text, expected);
        requests.remove(&["GET", "/a\"b\n"]);
        assert!(!registry.encode().contains("dhow_requests_total"));
    }

    #[test]
    fn counts_from_many_threads() {
        let registry = Registry::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let counter = registry.counter("c", "C.", &["k"]).with(&["v"]);
                    (0..1000).for_each(|_| counter.inc());
                });
            }
        });
        assert_eq!(registry.counter("c", "C.", &["k"]).with(&["v"]).get(), 4000.0);
    }
}
