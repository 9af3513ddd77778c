//! Through the API: nodes and pods are created as anyone would, and the cloud's own scheduler places them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dhow_client::{Change, Client, DeleteParams, Error, Informer, ListParams, Patch};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::trace::Entry;
use super::{LABEL, Report, node, pod};
use crate::cli::SimArgs;
use crate::commands::connect;

/// Requests under way at a time.
const AT_ONCE: usize = 64;

#[derive(Default, Clone)]
struct Seen {
    bound: BTreeSet<String>,
    /// Why a pod waits.
    told: BTreeMap<String, String>,
}

pub async fn run(args: &SimArgs, entries: &[Entry]) -> Result<Report> {
    let client = connect(&args.connect)?;
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let namespace = args.namespace.as_str();
    let made: Namespace = serde_json::from_value(json!({"metadata": {"name": namespace, "labels": {LABEL: "true"}}}))?;
    existing(client.create(&made).await.map(drop)).context("create the namespace")?;
    let simulated = run_in(&client, args, entries, &stop).await;
    if !args.keep {
        clean(&client, namespace).await.context("remove what was simulated")?;
    }
    simulated
}

async fn run_in(client: &Client, args: &SimArgs, entries: &[Entry], stop: &CancellationToken) -> Result<Report> {
    let nodes = stream::iter(0..args.nodes).map(|number| make_node(client, number, args));
    nodes.buffer_unordered(AT_ONCE).try_for_each(|()| async { Ok(()) }).await.context("create nodes")?;
    let scope = ListParams { label_selector: Some(format!("{LABEL}=true")), ..ListParams::default() };
    let pods = Informer::<Pod>::start(client.clone(), scope, Some(&args.namespace), stop.clone());
    let (sender, mut seen) = watch::channel(Seen::default());
    let sender = Arc::new(sender);
    pods.on_change(move |change| {
        let pod = change.object();
        let name = pod.metadata.name.clone().unwrap_or_default();
        if matches!(change, Change::Deleted(_)) {
            return;
        }
        let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let told =
            conditions.filter(|c| c.type_ == "PodScheduled" && c.status == "False").find_map(|c| c.message.clone());
        sender.send_if_modified(|seen| {
            let mut changed = false;
            if bound {
                seen.told.remove(&name);
                changed = seen.bound.insert(name.clone());
            } else if let Some(told) = told {
                changed = seen.told.insert(name, told.clone()) != Some(told);
            }
            changed
        });
    });
    pods.synced().await;
    let start = Instant::now();
    let created = stream::iter(entries).map(|entry| play(client, args, entry, start));
    let creating = created.buffer_unordered(AT_ONCE).try_for_each(|()| async { Ok(()) });
    creating.await.context("create pods")?;
    let all = entries.len();
    let decided = seen.wait_for(|seen| seen.bound.len() + seen.told.len() >= all);
    // At the time limit, what is known by then is told.
    let waited = tokio::time::timeout(Duration::from_secs(args.timeout), decided);
    drop(waited.await);
    let seconds = start.elapsed().as_secs_f64();
    let now = seen.borrow().clone();
    let mut report = Report { bound: now.bound.len(), pending: all - now.bound.len(), seconds, ..Report::default() };
    for told in now.told.into_values() {
        *report.reasons.entry(told).or_default() += 1;
    }
    Ok(report)
}

/// What is there already from an earlier run is as good.
fn existing(made: Result<(), Error>) -> Result<(), Error> {
    match made {
        Err(error) if error.is_conflict() => Ok(()),
        other => other,
    }
}

async fn make_node(client: &Client, number: usize, args: &SimArgs) -> Result<()> {
    let node = node(number, args)?;
    existing(client.create(&node).await.map(drop))?;
    let name = node.metadata.name.clone().unwrap_or_default();
    let patch = Patch::Merge(json!({"status": node.status}));
    client.patch::<Node>(None, &name, patch, Some("status")).await?;
    Ok(())
}

/// Creates the pod when its time comes, and ends it.
async fn play(client: &Client, args: &SimArgs, entry: &Entry, start: Instant) -> Result<()> {
    let at = |seconds: f64| tokio::time::sleep_until((start + Duration::from_secs_f64(seconds / args.speed)).into());
    if entry.comes > 0.0 {
        at(entry.comes).await;
    }
    existing(client.create(&pod(entry, &args.namespace)?).await.map(drop))?;
    if let Some(goes) = entry.goes {
        let (client, name, namespace) = (client.clone(), entry.name.clone(), args.namespace.clone());
        let ends = at(goes);
        tokio::spawn(async move {
            ends.await;
            let now = DeleteParams { grace_period: Some(0), ..DeleteParams::default() };
            let ended = client.delete::<Pod>(Some(&namespace), &name, &now).await;
            if let Err(error) = ended.filter_not_found() {
                tracing::warn!(pod = name, %error, "cannot end a simulated pod");
            }
        });
    }
    Ok(())
}

trait FilterNotFound {
    fn filter_not_found(self) -> Self;
}

impl FilterNotFound for Result<(), Error> {
    fn filter_not_found(self) -> Self {
        match self {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }
}

async fn clean(client: &Client, namespace: &str) -> Result<()> {
    let scope = ListParams { label_selector: Some(format!("{LABEL}=true")), ..ListParams::default() };
    let now = DeleteParams { grace_period: Some(0), ..DeleteParams::default() };
    let names =
        |metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| metadata.name.unwrap_or_default();
    let pods = client.list::<Pod>(Some(namespace), &scope).await?.items;
    let ended = stream::iter(pods).map(|pod| {
        let (name, now) = (names(pod.metadata), &now);
        async move { client.delete::<Pod>(Some(namespace), &name, now).await.filter_not_found() }
    });
    ended.buffer_unordered(AT_ONCE).try_for_each(|()| async { Ok(()) }).await?;
    let nodes = client.list::<Node>(None, &scope).await?.items;
    let ended = stream::iter(nodes).map(|node| {
        let (name, now) = (names(node.metadata), &now);
        async move { client.delete::<Node>(None, &name, now).await.filter_not_found() }
    });
    ended.buffer_unordered(AT_ONCE).try_for_each(|()| async { Ok(()) }).await?;
    client.delete::<Namespace>(None, namespace, &DeleteParams::default()).await.filter_not_found()?;
    Ok(())
}
