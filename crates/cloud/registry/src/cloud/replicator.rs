//! Runs replication rules: when something was pushed, at their times, when asked to; and again what failed or was broken off.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use dhow_base::metrics::{Counters, Gauges};
use dhow_client::{
    Client, Error, EventRecorder, EventType, Informer, Key, Outcome, Patch, Queue, Reconcile, reference,
};
use dhow_image::{Auth, PeerOptions};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::replication::{FailedImage, LastRun, Read, ReplicationRule, ReplicationStatus, Running, Trigger};
use super::{ApiAccess, condition};
use crate::Registry;
use crate::catalog::Changed;
use crate::replicate::{Item, Replication, Report};
use crate::rules::Pattern;

/// Pushes within this time are replicated together.
const SETTLE: Duration = Duration::from_secs(1);
/// After a failure; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(30);
const LAST_RETRY: Duration = Duration::from_secs(1800);
/// A sleeping machine's timers stand still, so the clock is looked at again at least this often.
const LOOK: Duration = Duration::from_secs(3600);
/// Until the store is asked to tell of changes again.
const WATCH_AGAIN: Duration = Duration::from_secs(5);

/// What is known of a rule while this server replicates.
#[derive(Default)]
struct State {
    uid: Option<String>,
    /// As it was written last: the informer's copy may be behind.
    status: Option<ReplicationStatus>,
    /// The generation that a whole run was begun for.
    began: Option<i64>,
    /// What changed since it was looked at.
    waiting: BTreeSet<Item>,
    /// Everything may have changed.
    missed: bool,
    /// What failed, and when it is tried again.
    failed: Option<Failed>,
}

struct Failed {
    at: Timestamp,
    pause: Duration,
    /// `None`: all of it.
    items: Option<BTreeSet<Item>>,
}

pub struct Replicator {
    registry: Registry,
    access: Arc<ApiAccess>,
    client: Client,
    rules: Informer<ReplicationRule>,
    states: Arc<Mutex<HashMap<String, State>>>,
    events: EventRecorder,
    images: Counters,
    bytes: Counters,
    succeeded: Gauges,
    stop: CancellationToken,
}

impl Replicator {
    pub fn new(
        registry: Registry,
        access: Arc<ApiAccess>,
        client: Client,
        rules: Informer<ReplicationRule>,
        stop: CancellationToken,
    ) -> Self {
        let metrics = &registry.0.config.metrics;
        Self {
            images: metrics.counter(
                "dhow_registry_replicated_images_total",
                "Tags and referrers that replication rules looked at.",
                &["rule", "result"],
            ),
            bytes: metrics.counter(
                "dhow_registry_replicated_bytes_total",
                "Bytes that replication rules moved.",
                &["rule"],
            ),
            succeeded: metrics.gauge(
                "dhow_registry_replication_success_timestamp_seconds",
                "When a rule's last run without a failure ended.",
                &["rule"],
            ),
            events: EventRecorder::new(client.clone(), "dhow-registry"),
            registry,
            access,
            client,
            rules,
            states: Arc::default(),
            stop,
        }
    }

    /// Tells rules of what is pushed. `ready` is told once nothing is missed any more.
    pub fn follow(&self, queue: Queue, ready: Arc<Notify>) -> impl Future<Output = ()> + use<> {
        let (registry, rules, states) = (self.registry.clone(), self.rules.clone(), Arc::clone(&self.states));
        async move {
            loop {
                match registry.0.catalog.follow().await {
                    Ok(mut changes) => {
                        ready.notify_one();
                        while let Some(change) = changes.next().await {
                            let item = match change {
                                Changed::Tag { repository, tag } => Item::Tag(repository, tag),
                                Changed::Referrer { repository, subject, digest } => {
                                    Item::Referrer(repository, subject, digest)
                                }
                            };
                            tell(&rules, &states, &queue, &item);
                        }
                    }
                    Err(error) => tracing::warn!(%error, "follow what is pushed"),
                }
                tokio::time::sleep(WATCH_AGAIN).await;
                // What came meanwhile nobody told.
                for rule in rules.list().iter().filter(|rule| rule.spec.on_push) {
                    let key = Key::of(&rule.metadata);
                    states.lock().entry(key.name.to_string()).or_default().missed = true;
                    queue.add(key);
                }
            }
        }
    }

    async fn resolve(&self, rule: &ReplicationRule, read: &Read) -> Result<Replication, String> {
        let spec = &rule.spec;
        let name = rule.metadata.name.as_deref().unwrap_or_default();
        if self.access.is_own(&spec.remote.registry) {
            return Err("spec.remote.registry: that is this registry".to_owned());
        }
        let auth = match &spec.remote.credentials {
            Some(secret) => {
                let found = self.access.credentials_for(secret, &spec.remote.registry).await;
                found.map_err(|error| error.to_string())?
            }
            None => Auth::Anonymous,
        };
        let patterns = |texts: &[String]| texts.iter().cloned().map(Pattern).collect::<Vec<_>>();
        let options = PeerOptions { auth, ca_pem: spec.remote.ca.clone(), ..PeerOptions::default() };
        Ok(Replication {
            direction: read.direction,
            registry: spec.remote.registry.clone(),
            options,
            repositories: patterns(&spec.repositories),
            tags: if spec.tags.is_empty() { vec![Pattern("*".to_owned())] } else { patterns(&spec.tags) },
            labels: spec.labels.clone(),
            rename: (spec.rename.from.clone(), spec.rename.to.clone()),
            delete: spec.delete,
            bandwidth: read.bandwidth,
            user: format!("system:replication:{name}"),
        })
    }

    /// The rule's status as this server knows it.
    fn status(&self, rule: &ReplicationRule) -> ReplicationStatus {
        let mut states = self.states.lock();
        let state = states.entry(rule.metadata.name.clone().unwrap_or_default()).or_default();
        if state.uid != rule.metadata.uid {
            let waiting = std::mem::take(&mut state.waiting);
            *state = State { uid: rule.metadata.uid.clone(), waiting, ..State::default() };
        }
        state.status.clone().or_else(|| rule.status.clone()).unwrap_or_default()
    }

    async fn write(&self, rule: &ReplicationRule, status: &ReplicationStatus) -> Result<(), Error> {
        let name = rule.metadata.name.as_deref().unwrap_or_default();
        let known = self.states.lock().get(name).and_then(|state| state.status.clone());
        if known.as_ref().or(rule.status.as_ref()) == Some(status) {
            return Ok(());
        }
        let patch = Patch::Merge(json!({ "status": status }));
        match self.client.patch::<ReplicationRule>(None, name, patch, Some("status")).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        if let Some(state) = self.states.lock().get_mut(name) {
            state.status = Some(status.clone());
        }
        Ok(())
    }

    /// What is due now: why, and of what (`None`: of everything).
    fn due(&self, rule: &ReplicationRule, status: &ReplicationStatus, read: &Read, now: Timestamp) -> Option<Due> {
        let mut states = self.states.lock();
        let state = states.entry(rule.metadata.name.clone().unwrap_or_default()).or_default();
        let all = |trigger| Some(Due { trigger, items: None });
        if !rule.spec.run.is_empty() && rule.spec.run != status.handled_run {
            return all(Trigger::Manual);
        }
        if let Some((schedule, zone)) = &read.schedule {
            let last = status.last_scheduled.as_ref().map(|time| time.0);
            let made = rule.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
            if schedule.next(last.unwrap_or(made), zone).is_some_and(|next| next <= now) {
                return all(Trigger::Schedule);
            }
        }
        let generation = rule.metadata.generation;
        let is_new = state.began.is_none() || state.began != generation;
        if status.running.is_some() && is_new {
            state.began = generation;
            return all(Trigger::Resume);
        }
        if rule.spec.on_push && (is_new || state.missed) {
            state.began = generation;
            return all(Trigger::Start);
        }
        state.began = generation;
        if !state.waiting.is_empty() {
            return Some(Due { trigger: Trigger::Push, items: Some(std::mem::take(&mut state.waiting)) });
        }
        if let Some(failed) = state.failed.as_ref().filter(|failed| failed.at <= now) {
            return Some(Due { trigger: Trigger::Retry, items: failed.items.clone() });
        }
        None
    }

    /// When to look again.
    fn next(&self, name: &str, status: &ReplicationStatus, now: Timestamp) -> Outcome {
        let states = self.states.lock();
        let state = states.get(name);
        if state.is_some_and(|state| !state.waiting.is_empty() || state.missed) {
            return Outcome::RequeueAfter(Duration::ZERO);
        }
        let failed = state.and_then(|state| state.failed.as_ref()).map(|failed| failed.at);
        let next = failed.into_iter().chain(status.next_run.as_ref().map(|time| time.0)).min();
        let pause = |at: Timestamp| Duration::try_from(at.duration_since(now)).unwrap_or_default();
        next.map_or(Outcome::Done, |at| Outcome::RequeueAfter(pause(at).min(LOOK)))
    }

    /// Remembers what is to be tried again.
    fn remember(&self, name: &str, due: &Due, report: &Report) {
        let mut states = self.states.lock();
        let Some(state) = states.get_mut(name) else { return };
        if due.items.is_none() {
            state.missed = false;
        }
        let old = state.failed.take();
        // What failed before and was not looked at now is still to be done.
        let mut items = match (&old, due.trigger) {
            (Some(old), Trigger::Push) => old.items.clone(),
            _ => Some(BTreeSet::new()),
        };
        if report.failed > 0 && report.left.is_empty() && due.items.is_none() {
            items = None;
        } else if let Some(items) = &mut items {
            items.extend(report.left.iter().cloned());
        }
        if items.as_ref().is_none_or(|items| !items.is_empty()) {
            let pause = old.map_or(FIRST_RETRY, |old| match due.trigger {
                Trigger::Retry => (old.pause * 2).min(LAST_RETRY),
                _ => old.pause,
            });
            let at = Timestamp::now().checked_add(pause).unwrap_or(Timestamp::MAX);
            state.failed = Some(Failed { at, pause, items });
        }
    }

    fn count(&self, rule: &ReplicationRule, report: &Report) {
        let name = rule.metadata.name.as_deref().unwrap_or_default();
        let present = report.images.saturating_sub(report.copied);
        for (result, count) in
            [("copied", report.copied), ("present", present), ("deleted", report.deleted), ("failed", report.failed)]
        {
            self.images.with(&[name, result]).add(count);
        }
        self.bytes.with(&[name]).add(report.bytes);
        match report.failures.first() {
            None => {
                self.succeeded.with(&[name]).set(Timestamp::now().as_second() as f64);
                if report.copied + report.deleted > 0 {
                    let message = format!("copied {} images, deleted {}", report.copied, report.deleted);
                    self.events.event(reference(rule), EventType::Normal, "Replicated", &message);
                }
            }
            Some((image, reason)) => {
                let message = format!("{} failed; {image}: {reason}", report.failed);
                self.events.event(reference(rule), EventType::Warning, "ReplicationFailed", &message);
            }
        }
    }
}

struct Due {
    trigger: Trigger,
    items: Option<BTreeSet<Item>>,
}

fn tell(rules: &Informer<ReplicationRule>, states: &Mutex<HashMap<String, State>>, queue: &Queue, item: &Item) {
    for rule in rules.list() {
        let spec = &rule.spec;
        let matches = |name: &String| Pattern(name.clone()).matches(item.repository());
        if !spec.on_push || spec.suspend || !spec.repositories.iter().any(matches) {
            continue;
        }
        let key = Key::of(&rule.metadata);
        states.lock().entry(key.name.to_string()).or_default().waiting.insert(item.clone());
        queue.add_after(key, SETTLE);
    }
}

#[async_trait::async_trait]
impl Reconcile for Replicator {
    fn name(&self) -> &'static str {
        "registry-replication"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(rule) = self.rules.get(key).filter(|rule| rule.metadata.deletion_timestamp.is_none()) else {
            self.states.lock().remove(&*key.name);
            return Ok(Outcome::Done);
        };
        let mut status = self.status(&rule);
        status.observed_generation = rule.metadata.generation;
        let read = rule.spec.read();
        let now = Timestamp::now();
        let verdict = read.as_ref().map(|_| "it holds as it is written").map_err(|why| ("Invalid", why.as_str()));
        let accepted = condition("Accepted", verdict, &status.conditions);
        status.conditions.retain(|one| one.type_ != "Accepted");
        status.conditions.insert(0, accepted);
        let Ok(read) = read else {
            status.next_run = None;
            self.write(&rule, &status).await?;
            return Ok(Outcome::Done);
        };
        let following = |status: &ReplicationStatus| {
            let (schedule, zone) = read.schedule.as_ref()?;
            let from = status.last_scheduled.as_ref().map_or(now, |time| time.0.max(now));
            schedule.next(from, zone).map(Time)
        };
        if rule.spec.suspend {
            status.next_run = None;
            self.write(&rule, &status).await?;
            return Ok(Outcome::Done);
        }
        let Some(due) = self.due(&rule, &status, &read, now) else {
            status.next_run = following(&status);
            self.write(&rule, &status).await?;
            return Ok(self.next(&key.name, &status, now));
        };
        // Written first: whoever comes after a crash goes on with it.
        status.running = Some(Running { trigger: due.trigger, started: Time(now) });
        match due.trigger {
            Trigger::Manual => status.handled_run.clone_from(&rule.spec.run),
            Trigger::Schedule => status.last_scheduled = Some(Time(now)),
            _ => {}
        }
        self.write(&rule, &status).await?;
        let report = match self.resolve(&rule, &read).await {
            Ok(task) => {
                let run = self.registry.replicate(&task, due.items.as_ref());
                tokio::select! { report = run => report, () = self.stop.cancelled() => return Ok(Outcome::Done) }
            }
            Err(why) => Report {
                failed: 1,
                failures: vec![(rule.spec.remote.registry.clone(), why)],
                left: due.items.clone().unwrap_or_default(),
                ..Report::default()
            },
        };
        self.count(&rule, &report);
        self.remember(&key.name, &due, &report);
        let first = report.failures.first().map(|(image, reason)| format!("{image}: {reason}"));
        let outcome = match &first {
            None => Ok("the last run had no failures"),
            Some(message) => Err(("Failed", message.as_str())),
        };
        let replicated = condition("Replicated", outcome, &status.conditions);
        status.conditions.retain(|one| one.type_ != "Replicated");
        status.conditions.push(replicated);
        status.running = None;
        status.next_run = following(&status);
        status.last_run = Some(LastRun {
            trigger: due.trigger,
            started: Time(now),
            finished: Time(Timestamp::now()),
            images: report.images,
            copied: report.copied,
            deleted: report.deleted,
            failed: report.failed,
            bytes: report.bytes,
            failures: report.failures.into_iter().map(|(image, reason)| FailedImage { image, reason }).collect(),
        });
        self.write(&rule, &status).await?;
        Ok(self.next(&key.name, &status, Timestamp::now()))
    }
}
