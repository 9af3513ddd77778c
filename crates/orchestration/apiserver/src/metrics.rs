//! What `/metrics` shows, in upstream's names.

use std::time::Instant;

use dhow_api::custom::Catalog;
use dhow_api::registry::KINDS;
use dhow_base::metrics::{Counter, Counters, Gauge, Gauges, Histograms, Registry};

use crate::cache::Cache;
use crate::info::{RequestInfo, Target};

const REQUEST: &[&str] =
    &["verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component", "code"];
const DURATION: &[&str] = &["verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component"];
const LONG: &[&str] = &["verb", "group", "version", "resource", "subresource", "scope", "component"];
/// Upstream's buckets of request durations, in seconds.
const SECONDS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];

pub struct Metrics {
    registry: Registry,
    requests: Counters,
    durations: Histograms,
    inflight: Gauges,
    long: Gauges,
    objects: Gauges,
    revision: Gauge,
    started: Gauge,
    memory: Gauge,
    cpu: Gauge,
    pub audit_events: Counter,
    /// Requests by the level that the audit policy gives them.
    pub audit_levels: Counters,
    /// Audit events that the disk or the webhook did not take in time, or at all.
    pub audit_lost: Counters,
}

/// The labels that tell requests apart.
pub struct Labels {
    verb: &'static str,
    dry_run: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: &'static str,
}

impl Labels {
    pub fn of(info: &RequestInfo) -> Self {
        let dry_run = if info.query.get("dryRun").is_some() { "All" } else { "" };
        let verb = match info.verb {
            "get" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" | "post" => "POST",
            "update" | "put" => "PUT",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            _ => "other",
        };
        match &info.target {
            // Names that clients make up are no labels.
            Target::Path(_) | Target::Extension(_) => {
                Self { verb, dry_run, group: "", version: "", resource: "", subresource: "", scope: "" }
            }
            Target::Resource(target) => Self {
                verb,
                dry_run,
                group: target.kind.group,
                version: target.kind.version,
                resource: target.kind.plural,
                subresource: target.subresource.map_or("", |subresource| subresource.name()),
                scope: match (&target.name, &target.namespace) {
                    (Some(_), _) => "resource",
                    (None, Some(_)) => "namespace",
                    (None, None) => "cluster",
                },
            },
        }
    }

    fn mutating(&self) -> bool {
        !matches!(self.verb, "GET" | "LIST" | "WATCH")
    }
}

/// Something that goes on, counted until it is dropped.
pub struct Running(Gauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.add(-1.0);
    }
}

fn running(gauge: Gauge) -> Running {
    gauge.add(1.0);
    Running(gauge)
}

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let gauge = |name, help| registry.gauge(name, help, &[]).with(&[]);
        let started = gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        started.set(now.as_secs_f64());
        Self {
            requests: registry.counter("apiserver_request_total", "Requests answered.", REQUEST),
            durations: registry.histogram(
                "apiserver_request_duration_seconds",
                "How long requests took, without watches and other streams.",
                DURATION,
                SECONDS,
            ),
            inflight: registry.gauge(
                "apiserver_current_inflight_requests",
                "Requests being answered now.",
                &["request_kind"],
            ),
            long: registry.gauge("apiserver_longrunning_requests", "Watches and other streams open now.", LONG),
            objects: registry.gauge("apiserver_resource_objects", "Stored objects.", &["group", "resource"]),
            revision: gauge("dhow_store_revision", "Newest revision the watch cache holds."),
            memory: gauge("process_resident_memory_bytes", "Resident memory size in bytes."),
            cpu: gauge("process_cpu_seconds_total", "Total user and system CPU time spent in seconds."),
            audit_events: registry.counter("apiserver_audit_event_total", "Audit events made.", &[]).with(&[]),
            audit_levels: registry.counter("apiserver_audit_level_total", "Requests by their audit level.", &["level"]),
            audit_lost: registry.counter("apiserver_audit_error_total", "Audit events that were lost.", &["plugin"]),
            started,
            registry,
        }
    }

    /// For parts that have metrics of their own.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Counts a request that is being answered.
    pub fn begin(&self, labels: &Labels) -> Running {
        let kind = if labels.mutating() { "mutating" } else { "readOnly" };
        running(self.inflight.with(&[kind]))
    }

    /// Counts a stream that stays open.
    pub fn long_running(&self, labels: &Labels) -> Running {
        let l = labels;
        running(self.long.with(&[l.verb, l.group, l.version, l.resource, l.subresource, l.scope, "apiserver"]))
    }

    /// Records an answer.
    pub fn end(&self, labels: &Labels, begun: Instant, code: u16) {
        let l = labels;
        let code = code.to_string();
        let mut values = vec![l.verb, l.dry_run, l.group, l.version, l.resource, l.subresource, l.scope, "apiserver"];
        if l.verb != "WATCH" {
            self.durations.with(&values).observe_since(begun);
        }
        values.push(&code);
        self.requests.with(&values).inc();
    }

    /// The text format, with what is only measured when asked.
    pub fn encode(&self, cache: &Cache, catalog: &Catalog) -> String {
        self.revision.set(cache.revision() as f64);
        for kind in KINDS.iter().chain(catalog.custom()).filter(|kind| kind.is_storage()) {
            let count = cache.objects(kind).map_or(0, |objects| objects.len());
            self.objects.with(&[kind.group, kind.plural]).set(count as f64);
        }
        if let Some((memory, cpu)) = process() {
            self.memory.set(memory);
            self.cpu.set(cpu);
        }
        debug_assert!(self.started.get() > 0.0);
        self.registry.encode()
    }
}

/// Resident bytes and CPU seconds, where the system tells.
fn process() -> Option<(f64, f64)> {
    /// Linux counts time in hundredths for every architecture we run on.
    const TICKS: f64 = 100.0;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = resident.split_whitespace().next()?.parse().ok()?;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Fields are counted from behind the program's name, which may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some((kib * 1024.0, ticks / TICKS))
}
