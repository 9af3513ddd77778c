//! Follows APIServices and what is behind them, and says in their `Available` condition what it finds.

use std::sync::Arc;
use std::time::Duration;

use dhow_api::registry::builtin;
use dhow_api::{Status, meta, time};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{Remote, local, row};
use crate::ApiServer;
use crate::cache::Objects;
use crate::changes::{Changes, Missed};
use crate::object::Stored;

/// Before what failed is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs until the server ends. Sleeps while nothing changes that extension servers depend on.
pub async fn follow(server: Arc<ApiServer>) {
    let Ok(kind) = row() else { return };
    loop {
        let cache = &server.store.cache;
        let Ok((snapshot, mut changes)) = cache.snapshot_and_subscribe(kind) else { return };
        let subscribe = |group, plural| Some(cache.snapshot_and_subscribe(builtin().get(group, "v1", plural)?).ok()?.1);
        let backends = subscribe("", "services").zip(subscribe("discovery.k8s.io", "endpointslices"));
        let settled = settle(&server, &snapshot.objects).await;
        drop(snapshot);
        if let Err(status) = &settled {
            tracing::warn!(message = status.message, "cannot settle the APIServices");
        }
        let remotes = server.aggregator.remotes();
        let again = remotes.iter().filter_map(|remote| remote.due_in()).min();
        let again = if settled.is_err() { Some(PAUSE) } else { again };
        tokio::select! {
            _ = changes.recv() => {}
            () = changed(backends.filter(|_| !remotes.is_empty()), &remotes) => {}
            () = server.definitions.changed.notified() => {}
            () = server.aggregator.suspected.notified() => {}
            () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
            () = server.shutdown.cancelled() => return,
        }
    }
}

/// Returns when a service of an extension server or its endpoints change.
async fn changed(backends: Option<(Changes, Changes)>, remotes: &[Arc<Remote>]) {
    let Some((mut services, mut slices)) = backends else { return std::future::pending().await };
    loop {
        let (change, is_service) = tokio::select! {
            change = services.recv() => (change, true),
            change = slices.recv() => (change, false),
        };
        let header = match &change {
            Ok(change) => &change.object.header,
            Err(Missed::Behind) => return,
            Err(Missed::Closed) => return std::future::pending().await,
        };
        let concerned = remotes.iter().any(|remote| match is_service {
            true => remote.service.namespace == header.namespace && remote.service.name == header.name,
            false => remote.has(header),
        });
        if concerned {
            return;
        }
    }
}

/// Brings the routes, the conditions and the local APIServices in line with the objects.
async fn settle(server: &Arc<ApiServer>, objects: &Objects) -> Result<(), Status> {
    let aggregator = &server.aggregator;
    let known = aggregator.remotes();
    let mut found: Vec<(Arc<Remote>, &Arc<Stored>, Value)> = Vec::new();
    for stored in objects.values() {
        let object = stored.value()?;
        let same = known.iter().find(|remote| remote.is_of(&object)).cloned();
        let made = || Remote::of(&object, &aggregator.cache, aggregator.client.as_ref()).map(Arc::new);
        if let Some(remote) = same.or_else(made) {
            found.push((remote, stored, object));
        }
    }
    let mut all: Vec<Arc<Remote>> = found.iter().map(|(remote, ..)| remote.clone()).collect();
    let own = Remote::here();
    // Somebody's own server for it comes first.
    if !all.iter().any(|remote| remote.group == own.group && remote.version == own.version) {
        let same = known.iter().find(|remote| remote.is_here()).cloned();
        all.push(same.unwrap_or_else(|| Arc::new(own)));
    }
    aggregator.remotes.store(Arc::new(all));
    futures::future::join_all(found.iter().map(|(remote, ..)| remote.check(&aggregator.cache))).await;
    for (remote, stored, mut object) in found {
        if tell(&mut object, &remote) {
            // One that changed meanwhile comes back here.
            server.store.update(row()?, stored, &object).await?;
        }
    }
    local::ensure(server).await
}

/// Writes the condition into the object; returns whether it says something new.
fn tell(object: &mut Value, remote: &Remote) -> bool {
    let state = remote.state();
    let status = if state.available { "True" } else { "False" };
    let old = meta::items(object, &["status", "conditions"]).iter().find(|one| one["type"] == "Available").cloned();
    let old = old.unwrap_or_default();
    if old["status"] == status && old["reason"] == state.reason && old["message"] == state.message.as_str() {
        return false;
    }
    let since = match old["status"] == status {
        true => old["lastTransitionTime"].clone(),
        false => json!(time::rfc3339(Timestamp::now())),
    };
    let condition = json!({
        "type": "Available",
        "status": status,
        "lastTransitionTime": since,
        "reason": state.reason,
        "message": state.message,
    });
    meta::child_mut(object, "status").insert("conditions".into(), json!([condition]));
    true
}
