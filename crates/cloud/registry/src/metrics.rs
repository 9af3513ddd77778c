//! What the registry counts.

use std::time::Instant;

use dhow_base::metrics::{Counter, Counters, Gauges, Histograms, LATENCY_BUCKETS, Registry};
use http::{Method, StatusCode};

use crate::collect::Collected;

pub struct Metrics {
    requests: Counters,
    seconds: Histograms,
    collections: Counter,
    collected_bytes: Counter,
    pub pulls: Counters,
    pub pushes: Counters,
    pub project_bytes: Gauges,
    pub project_repositories: Gauges,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Self {
        let counter = |name, help| registry.counter(name, help, &[]).with(&[]);
        let by_project = |name, help| registry.gauge(name, help, &["project"]);
        Self {
            requests: registry.counter(
                "dhow_registry_requests_total",
                "Requests to the registry of images.",
                &["method", "code"],
            ),
            seconds: registry.histogram(
                "dhow_registry_request_duration_seconds",
                "Until the registry answered; bodies it sends are not waited for.",
                &["method"],
                &LATENCY_BUCKETS,
            ),
            collections: counter("dhow_registry_collections_total", "Collections of garbage."),
            collected_bytes: counter("dhow_registry_collected_bytes_total", "Bytes that collections freed."),
            pulls: registry.counter("dhow_registry_pulls_total", "Images that were pulled.", &["project"]),
            pushes: registry.counter("dhow_registry_pushes_total", "Tags that were pushed.", &["project"]),
            project_bytes: by_project("dhow_registry_project_bytes", "What counts for a project's quota."),
            project_repositories: by_project("dhow_registry_project_repositories", "Repositories of a project."),
        }
    }

    pub fn answered(&self, method: &Method, status: StatusCode, begun: Instant) {
        // Whatever clients call a method, the series are few.
        let known = [Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::PATCH, Method::DELETE];
        let method = if known.contains(method) { method.as_str() } else { "other" };
        self.requests.with(&[method, status.as_str()]).inc();
        self.seconds.with(&[method]).observe_since(begun);
    }

    pub fn collected(&self, what: &Collected) {
        self.collections.inc();
        self.collected_bytes.add(what.bytes);
    }
}
