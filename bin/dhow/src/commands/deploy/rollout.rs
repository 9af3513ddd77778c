//! Following what was applied until it is available, from the watch alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use dhow_client::{Client, Informer, ListParams};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Node, Pod, Service};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::apply::Applied;

/// Returns once every applied Deployment is available in its newest version.
pub async fn follow(client: &Client, applied: &[Applied], terminal: bool) -> Result<()> {
    let wanted: Vec<&Applied> = applied.iter().filter(|object| object.kind == "Deployment").collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let shutdown = CancellationToken::new();
    let _stop = shutdown.clone().drop_guard();
    let deployments = Informer::<Deployment>::start(client.clone(), ListParams::default(), None, shutdown);
    let changed = Arc::new(Notify::new());
    let wake = changed.clone();
    deployments.on_change(move |_| wake.notify_one());
    deployments.synced().await;

    let bars = MultiProgress::new();
    let mut shown: BTreeMap<String, ProgressBar> = BTreeMap::new();
    let mut said: BTreeMap<String, Progress> = BTreeMap::new();
    loop {
        let mut done = true;
        for object in &wanted {
            let what = object.what();
            let found = deployments.list().into_iter().find(|deployment| {
                deployment.metadata.name.as_ref() == Some(&object.name)
                    && deployment.metadata.namespace == object.namespace
            });
            let progress = found.map_or(Progress::default(), |deployment| Progress::of(&deployment));
            done &= progress.complete();
            if said.insert(what.clone(), progress) != Some(progress) {
                let bar = shown.entry(what.clone()).or_insert_with(|| bars.add(new_bar(&what, terminal)));
                bar.set_length(progress.wanted);
                bar.set_position(progress.available);
                if !terminal {
                    note(&what, progress);
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

#[allow(clippy::print_stderr)]
fn note(what: &str, progress: Progress) {
    eprintln!("{what}: {} of {} available", progress.available, progress.wanted);
}

fn new_bar(what: &str, terminal: bool) -> ProgressBar {
    if !terminal {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix:40} {bar:20} {pos}/{len}");
    let bar = ProgressBar::new(0).with_prefix(what.to_owned());
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    /// The controller has seen the newest specification.
    observed: bool,
    wanted: u64,
    updated: u64,
    total: u64,
    available: u64,
}

impl Progress {
    fn of(deployment: &Deployment) -> Self {
        let count = |number: Option<i32>| u64::try_from(number.unwrap_or(0)).unwrap_or(0);
        let status = deployment.status.clone().unwrap_or_default();
        Self {
            observed: status.observed_generation >= deployment.metadata.generation,
            wanted: deployment.spec.as_ref().map_or(1, |spec| count(spec.replicas.or(Some(1)))),
            updated: count(status.updated_replicas),
            total: count(status.replicas),
            available: count(status.available_replicas),
        }
    }

    fn complete(self) -> bool {
        self.observed && self.updated == self.wanted && self.total == self.wanted && self.available == self.wanted
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
        let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
        urls.extend(ports.iter().filter_map(|port| port.node_port).map(|port| format!("http://{host}:{port}")));
    }
    Ok(urls)
}
