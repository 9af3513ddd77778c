//! Priority and fairness: nobody's flood of requests keeps others out (`flowcontrol.apiserver.k8s.io/v1`).
//!
//! A request is classified by FlowSchemas, and runs or waits at a priority level. A watch has its seat until its first
//! events are ready; exec and the other byte streams need none.

mod classify;
pub mod objects;
mod seats;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use dhow_api::Status;
use dhow_api::registry::{self, Kind};
use dhow_base::metrics::{Counters, Gauges, Histograms, Registry};
use http::{HeaderName, HeaderValue, Response};
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use crate::cache::Cache;
use crate::identity::UserInfo;
use crate::rbac::Attributes;
use classify::Schema;
use seats::{Answer, Grant, Limits, Queuing, Seats};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const PLURALS: [&str; 2] = ["flowschemas", "prioritylevelconfigurations"];
/// Requests that run at once, as upstream's defaults add up.
pub const SEATS: usize = 600;
/// Longest wait in a queue, as upstream's: a quarter of the time a request may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Seconds after which who was refused may try again.
const RETRY_AFTER: u32 = 1;

pub struct Flow {
    cache: Arc<Cache>,
    total: usize,
    compiled: ArcSwap<Compiled>,
    seats: Mutex<Seats>,
    hasher: RandomState,
    metrics: Metrics,
}

#[derive(Default)]
struct Compiled {
    /// The newest change of each of [`PLURALS`] that is in here.
    revisions: Option<[u64; 2]>,
    /// In the order in which they are tried.
    schemas: Vec<Schema>,
    /// By name: the uid, and no limits for what is exempt.
    levels: HashMap<String, (String, Option<Limits>)>,
}

/// How a request was classified.
#[derive(Debug, Clone)]
pub struct Class {
    schema_uid: String,
    level_uid: String,
}

/// The right to run; gives its seat back when it is dropped.
pub struct Seat(Option<(Arc<Flow>, Grant)>);

struct Metrics {
    dispatched: Counters,
    rejected: Counters,
    waits: Histograms,
    running: Gauges,
    waiting: Gauges,
    nominal: Gauges,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        const WAITS: &[f64] = &[0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
        let level = &["priority_level"];
        Self {
            dispatched: registry.counter(
                "apiserver_flowcontrol_dispatched_requests_total",
                "Requests that ran.",
                &["priority_level", "flow_schema"],
            ),
            rejected: registry.counter(
                "apiserver_flowcontrol_rejected_requests_total",
                "Requests that found neither a seat nor a place to wait.",
                &["priority_level", "flow_schema", "reason"],
            ),
            waits: registry.histogram(
                "apiserver_flowcontrol_request_wait_duration_seconds",
                "How long requests waited in queues.",
                &["execute", "priority_level", "flow_schema"],
                WAITS,
            ),
            running: registry.gauge(
                "apiserver_flowcontrol_current_executing_requests",
                "Requests that run now.",
                level,
            ),
            waiting: registry.gauge("apiserver_flowcontrol_current_inqueue_requests", "Requests that wait now.", level),
            nominal: registry.gauge(
                "apiserver_flowcontrol_nominal_limit_seats",
                "Requests of a level that run at once without borrowing.",
                level,
            ),
        }
    }
}

impl Flow {
    /// `total` is the number of seats of all levels together.
    pub fn new(cache: Arc<Cache>, total: usize, registry: &Registry) -> Arc<Self> {
        Arc::new(Self {
            cache,
            total,
            compiled: ArcSwap::default(),
            seats: Mutex::default(),
            hasher: RandomState::new(),
            metrics: Metrics::new(registry),
        })
    }

    /// Waits for a seat. Dropped while it waits, it gives up its place.
    pub async fn enter(
        self: &Arc<Self>,
        user: &UserInfo,
        attributes: &Attributes,
        class: &mut Option<Class>,
    ) -> Result<Seat, Status> {
        let compiled = self.current();
        let Some(schema) = compiled.schemas.iter().find(|schema| schema.matches(user, attributes)) else {
            return Ok(Seat(None));
        };
        let Some((level_uid, limits)) = compiled.levels.get(&schema.level) else { return Ok(Seat(None)) };
        *class = Some(Class { schema_uid: schema.uid.clone(), level_uid: level_uid.clone() });
        let labels = [schema.level.as_str(), schema.name.as_str()];
        if limits.is_none() {
            self.metrics.dispatched.with(&labels).inc();
            return Ok(Seat(None));
        }
        let flow = self.hasher.hash_one((&schema.name, schema.distinguisher(user, attributes)));
        let answer = self.seats.lock().ask(&schema.level, flow);
        let waited = |execute: &str, since: Instant| {
            self.metrics.waits.with(&[execute, labels[0], labels[1]]).observe_since(since);
        };
        let grant = match answer {
            Answer::Granted(grant) => Ok(grant),
            Answer::Refused(why) => Err(why),
            Answer::Waiting(told) => {
                let since = Instant::now();
                let outcome = tokio::time::timeout(PATIENCE, Told(self, Some(told))).await;
                waited(if matches!(outcome, Ok(Some(_))) { "true" } else { "false" }, since);
                outcome.ok().flatten().ok_or("time-out")
            }
        };
        match grant {
            Ok(grant) => {
                self.metrics.dispatched.with(&labels).inc();
                Ok(Seat(Some((self.clone(), grant))))
            }
            Err(why) => {
                self.metrics.rejected.with(&[labels[0], labels[1], why]).inc();
                Err(Status::too_many_requests("Too many requests, please try again later.", RETRY_AFTER))
            }
        }
    }

    /// Brings the gauges up to date, when somebody looks.
    pub fn measure(&self) {
        let compiled = self.current();
        let seats = self.seats.lock();
        for (name, (_, limits)) in &compiled.levels {
            let (running, waiting) = seats.counts(name);
            self.metrics.running.with(&[name]).set(running as f64);
            self.metrics.waiting.with(&[name]).set(waiting as f64);
            self.metrics.nominal.with(&[name]).set(limits.map_or(0, |limits| limits.nominal) as f64);
        }
    }

    fn release(self: &Arc<Self>, grant: &Grant) {
        let told = self.seats.lock().release(grant);
        for (waiter, grant) in told {
            if let Err(grant) = waiter.send(grant) {
                // Nobody waits any more: the seat goes on to the next.
                self.release(&grant);
            }
        }
    }

    fn current(&self) -> Arc<Compiled> {
        let revisions = PLURALS.map(|plural| kind(plural).map_or(0, |kind| self.cache.changed(kind)));
        let compiled = self.compiled.load_full();
        if compiled.revisions == Some(revisions) {
            return compiled;
        }
        // Two may do this at once; both make the same.
        let fresh = Arc::new(self.compile(revisions));
        let limits = fresh.levels.iter().filter_map(|(name, (_, limits))| Some((name.clone(), (*limits)?))).collect();
        self.seats.lock().configure(&limits);
        self.compiled.store(fresh.clone());
        fresh
    }

    fn compile(&self, revisions: [u64; 2]) -> Compiled {
        let mut schemas: Vec<Schema> = self.all::<FlowSchema>(PLURALS[0]).into_iter().filter_map(Schema::new).collect();
        let mut levels: HashMap<String, PriorityLevelConfiguration> = self
            .all::<PriorityLevelConfiguration>(PLURALS[1])
            .into_iter()
            .filter_map(|level| Some((level.metadata.name.clone()?, level)))
            .collect();
        for name in ["exempt", "catch-all"] {
            let is = |object: &serde_json::Value| object["metadata"]["name"] == name;
            if !schemas.iter().any(|schema| schema.name == name) {
                schemas.extend(objects::schemas().into_iter().filter(is).filter_map(read).filter_map(Schema::new));
            }
            if let (false, Some(level)) = (levels.contains_key(name), objects::levels().into_iter().find(is)) {
                levels.extend(read(level).map(|level| (name.to_owned(), level)));
            }
        }
        schemas.sort_by(|a, b| a.order().cmp(&b.order()));
        // One without its level is as if it were not there.
        schemas.retain(|schema| levels.contains_key(&schema.level));
        let shares: usize = levels.values().filter_map(nominal_shares).sum();
        let levels = levels
            .into_iter()
            .map(|(name, level)| {
                let limits = limits(&level, shares, self.total);
                (name, (level.metadata.uid.unwrap_or_default(), limits))
            })
            .collect();
        Compiled { revisions: Some(revisions), schemas, levels }
    }

    fn all<K: DeserializeOwned>(&self, plural: &str) -> Vec<K> {
        let objects = kind(plural).and_then(|kind| self.cache.objects(kind).ok()).unwrap_or_default();
        objects.values().filter_map(|object| object.read().ok()).collect()
    }
}

fn kind(plural: &str) -> Option<&'static Kind> {
    registry::builtin().get(GROUP, "v1", plural)
}

fn read<K: DeserializeOwned>(object: serde_json::Value) -> Option<K> {
    serde_json::from_value(object).ok()
}

fn nominal_shares(level: &PriorityLevelConfiguration) -> Option<usize> {
    let limited = level.spec.as_ref()?.limited.as_ref()?;
    usize::try_from(limited.nominal_concurrency_shares.unwrap_or(30)).ok()
}

/// A level's part of all seats; `None` if it is exempt.
fn limits(level: &PriorityLevelConfiguration, shares: usize, total: usize) -> Option<Limits> {
    let limited = level.spec.as_ref()?.limited.as_ref()?;
    let positive = |number: Option<i32>, usual: usize| number.and_then(|n| usize::try_from(n).ok()).unwrap_or(usual);
    let nominal = (total * nominal_shares(level)?).div_ceil(shares.max(1));
    let queuing = limited.limit_response.as_ref().and_then(|response| response.queuing.as_ref());
    Some(Limits {
        nominal,
        lendable: nominal * positive(limited.lendable_percent, 0).min(100) / 100,
        borrowing: limited
            .borrowing_limit_percent
            .map_or(usize::MAX, |percent| nominal * positive(Some(percent), 0) / 100),
        queuing: queuing.map(|queuing| Queuing {
            queues: positive(queuing.queues, 64),
            hand: positive(queuing.hand_size, 8),
            length: positive(queuing.queue_length_limit, 50),
        }),
    })
}

impl Class {
    /// Tells the client how its request was classified.
    pub fn write<B>(&self, response: &mut Response<B>) {
        for (name, uid) in [
            ("x-kubernetes-pf-flowschema-uid", &self.schema_uid),
            ("x-kubernetes-pf-prioritylevel-uid", &self.level_uid),
        ] {
            if let Ok(value) = HeaderValue::from_str(uid) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some((flow, grant)) = self.0.take() {
            flow.release(&grant);
        }
    }
}

/// A place in a queue. A grant that came when nobody looked any more goes back.
struct Told<'a>(&'a Arc<Flow>, Option<tokio::sync::oneshot::Receiver<Grant>>);

impl Future for Told<'_> {
    type Output = Option<Grant>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        let Some(told) = self.1.as_mut() else { return std::task::Poll::Ready(None) };
        let answer = std::task::ready!(std::pin::Pin::new(told).poll(context));
        self.1 = None;
        std::task::Poll::Ready(answer.ok())
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if let Some(mut told) = self.1.take() {
            told.close();
            if let Ok(grant) = told.try_recv() {
                self.0.release(&grant);
            }
        }
    }
}
