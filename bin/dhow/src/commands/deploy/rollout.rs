//! Following what was applied until it is available, from the watch alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, bail};
use dhow_client::{Client, Informer, Key, ListParams, Object};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Node, Pod, Service};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::apply::Applied;

/// Returns once everything that was applied and runs pods is available in its newest version; an error if a part of it
/// cannot be any more.
pub async fn follow(client: &Client, applied: &[Applied], terminal: bool) -> Result<()> {
    let shutdown = CancellationToken::new();
    let _stop = shutdown.clone().drop_guard();
    let changed = Arc::new(Notify::new());
    let mut copies: BTreeMap<&str, Look> = BTreeMap::new();
    for kind in ["Deployment", "StatefulSet", "DaemonSet", "Job"] {
        if !applied.iter().any(|object| object.kind == kind) {
            continue;
        }
        let look = match kind {
            "Deployment" => watch(client, &shutdown, &changed, of_deployment).await,
            "StatefulSet" => watch(client, &shutdown, &changed, of_stateful_set).await,
            "DaemonSet" => watch(client, &shutdown, &changed, of_daemon_set).await,
            _ => watch(client, &shutdown, &changed, of_job).await,
        };
        copies.insert(kind, look);
    }
    let wanted: Vec<&Applied> = applied.iter().filter(|object| copies.contains_key(object.kind.as_str())).collect();
    let bars = MultiProgress::new();
    let mut shown: BTreeMap<String, ProgressBar> = BTreeMap::new();
    let mut said: BTreeMap<String, Progress> = BTreeMap::new();
    loop {
        let mut done = true;
        for object in &wanted {
            let what = object.what();
            let Some(look) = copies.get(object.kind.as_str()) else { continue };
            let key = Key::new(object.namespace.as_deref(), &object.name);
            // The copy may be behind what was just applied.
            let least = object.after["metadata"]["generation"].as_i64();
            let progress = look(&key, least).unwrap_or_default();
            done &= progress.complete();
            if let Some(why) = &progress.failed {
                shown.values().for_each(ProgressBar::abandon);
                bail!("{what}: {why}");
            }
            let news = (progress.wanted, progress.available);
            let before = said.insert(what.clone(), progress).map(|known| (known.wanted, known.available));
            if before != Some(news) {
                let bar = shown.entry(what.clone()).or_insert_with(|| bars.add(new_bar(&what, terminal)));
                bar.set_length(news.0);
                bar.set_position(news.1);
                if !terminal {
                    note(&what, news);
                }
            }
        }
        if done {
            shown.values().for_each(ProgressBar::finish);
            return Ok(());
        }
        changed.notified().await;
    }
}

/// Looks one object up: how far it is, if it is there, and has the generation or a later one.
type Look = Box<dyn Fn(&Key, Option<i64>) -> Option<Progress> + Send + Sync>;

async fn watch<K: Object>(
    client: &Client,
    shutdown: &CancellationToken,
    changed: &Arc<Notify>,
    of: fn(&K) -> Progress,
) -> Look {
    let all = Informer::<K>::start(client.clone(), ListParams::default(), None, shutdown.clone());
    let wake = changed.clone();
    all.on_change(move |_| wake.notify_one());
    all.synced().await;
    Box::new(move |key, least| {
        let object = all.get(key)?;
        (object.metadata().generation >= least).then(|| of(&object))
    })
}

#[allow(clippy::print_stderr)]
fn note(what: &str, (wanted, available): (u64, u64)) {
    eprintln!("{what}: {available} of {wanted} available");
}

fn new_bar(what: &str, terminal: bool) -> ProgressBar {
    if !terminal {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix:40} {bar:20} {pos}/{len}");
    let bar = ProgressBar::new(0).with_prefix(what.to_owned());
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Progress {
    /// The controller has seen the newest specification.
    observed: bool,
    wanted: u64,
    updated: u64,
    total: u64,
    available: u64,
    /// Why it will not get there.
    failed: Option<String>,
}

impl Progress {
    fn complete(&self) -> bool {
        self.observed && self.updated == self.wanted && self.total == self.wanted && self.available == self.wanted
    }
}

fn count(number: Option<i32>) -> u64 {
    u64::try_from(number.unwrap_or(0)).unwrap_or(0)
}

fn of_deployment(deployment: &Deployment) -> Progress {
    let status = deployment.status.clone().unwrap_or_default();
    let observed = status.observed_generation >= deployment.metadata.generation;
    let failed = status.conditions.iter().flatten().find(|one| {
        one.type_ == "RolledBack" && one.status == "True"
            || one.type_ == "Progressing" && one.reason.as_deref() == Some("ProgressDeadlineExceeded")
    });
    Progress {
        observed,
        wanted: deployment.spec.as_ref().map_or(1, |spec| count(spec.replicas.or(Some(1)))),
        updated: count(status.updated_replicas),
        total: count(status.replicas),
        available: count(status.available_replicas),
        failed: failed.filter(|_| observed).map(|one| one.message.clone().unwrap_or_else(|| one.type_.clone())),
    }
}

fn of_stateful_set(set: &StatefulSet) -> Progress {
    let status = set.status.clone().unwrap_or_default();
    let failed = status.conditions.iter().flatten().find(|one| one.type_ == "RolledBack" && one.status == "True");
    let observed = status.observed_generation >= set.metadata.generation;
    let current = status.update_revision == status.current_revision;
    let total = count(Some(status.replicas));
    Progress {
        observed,
        wanted: set.spec.as_ref().map_or(1, |spec| count(spec.replicas.or(Some(1)))),
        // Once all are new, the new revision is the current one, and its count is the other field's.
        updated: if current { count(status.current_replicas) } else { count(status.updated_replicas) },
        total,
        available: count(status.available_replicas),
        failed: failed.filter(|_| observed).map(|one| one.message.clone().unwrap_or_else(|| one.type_.clone())),
    }
}

fn of_daemon_set(set: &DaemonSet) -> Progress {
    let status = set.status.clone().unwrap_or_default();
    let failed = status.conditions.iter().flatten().find(|one| one.type_ == "RolledBack" && one.status == "True");
    let wanted = count(Some(status.desired_number_scheduled));
    let observed = status.observed_generation >= set.metadata.generation;
    Progress {
        observed,
        wanted,
        updated: count(status.updated_number_scheduled),
        total: wanted,
        available: count(status.number_available),
        failed: failed.filter(|_| observed).map(|one| one.message.clone().unwrap_or_else(|| one.type_.clone())),
    }
}

/// A job is there once it is done.
fn of_job(job: &Job) -> Progress {
    let status = job.status.clone().unwrap_or_default();
    let has = |name: &str| status.conditions.iter().flatten().find(|one| one.type_ == name && one.status == "True");
    let wanted = job.spec.as_ref().map_or(1, |spec| count(spec.completions.or(Some(1))));
    let succeeded = if has("Complete").is_some() { wanted } else { count(status.succeeded).min(wanted) };
    Progress {
        observed: has("Complete").is_some(),
        wanted,
        updated: succeeded,
        total: succeeded,
        available: succeeded,
        failed: has("Failed").map(|one| one.message.clone().unwrap_or_else(|| "failed".into())),
    }
}

/// One line per pod that is not ready, with the reason a person needs.
pub async fn explain(client: &Client, applied: &[Applied]) -> Result<String> {
    let mut lines = Vec::new();
    let namespaces: std::collections::BTreeSet<&String> = applied.iter().filter_map(|o| o.namespace.as_ref()).collect();
    for namespace in namespaces {
        let events = client.list::<Event>(Some(namespace), &ListParams::default()).await?.items;
        for pod in client.list::<Pod>(Some(namespace), &ListParams::default()).await?.items {
            if let Some(reason) = reason(&pod, &events) {
                lines.push(format!("  pod {namespace}/{}: {reason}", pod.metadata.name.unwrap_or_default()));
            }
        }
    }
    Ok(lines.join("\n"))
}

fn reason(pod: &Pod, events: &[Event]) -> Option<String> {
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    if conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
        return None;
    }
    let warned = events
        .iter()
        .filter(|event| event.involved_object.uid == pod.metadata.uid && event.type_.as_deref() == Some("Warning"))
        .max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0))
        .and_then(|event| event.message.as_deref());
    let waiting = status.container_statuses.iter().flatten().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let message = waiting.message.as_deref().or(warned).unwrap_or("no further word");
        Some(format!("{}: {message}", waiting.reason.as_deref()?))
    });
    let unscheduled = conditions
        .iter()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
        .and_then(|condition| condition.message.clone());
    Some(waiting.or(unscheduled).or(warned.map(str::to_owned)).unwrap_or_else(|| "not ready yet".into()))
}

/// Where the applied Services answer from outside the cluster.
pub async fn addresses(client: &Client, applied: &[Applied]) -> Result<Vec<String>> {
    let nodes = client.list::<Node>(None, &ListParams::default()).await?;
    let host = nodes.items.iter().find_map(|node| {
        let addresses = node.status.as_ref()?.addresses.as_ref()?;
        addresses.iter().find(|address| address.type_ == "InternalIP").map(|address| address.address.clone())
    });
    let Some(host) = host else { return Ok(Vec::new()) };
    let mut urls = Vec::new();
    for object in applied.iter().filter(|object| object.kind == "Service") {
        let service = client.get::<Service>(object.namespace.as_deref(), &object.name).await?;
        let Some(spec) = service.spec else { continue };
        let balancer = service.status.and_then(|status| status.load_balancer).and_then(|status| status.ingress);
        let balancer = balancer.iter().flatten().find_map(|one| one.ip.clone().or_else(|| one.hostname.clone()));
        for port in spec.ports.iter().flatten().filter(|port| port.protocol.as_deref() != Some("UDP")) {
            let at = |host: &str, port: i32| {
                if host.contains(':') { format!("http://[{host}]:{port}") } else { format!("http://{host}:{port}") }
            };
            match (&balancer, port.node_port) {
                (Some(address), _) => urls.push(at(address, port.port)),
                (None, Some(node_port)) => urls.push(at(&host, node_port)),
                (None, None) => {}
            }
        }
    }
    Ok(urls)
}
